"""Files: arrays that are mapped into memory a chunk at a time, and outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from gennorm.errors import FileError, GennormError
from gennorm.layer.files import cannot_read, cannot_write, replacing

__all__ = ["NpyFile", "cannot_read", "cannot_write", "create_npy", "located", "read_npy", "replacing"]

Array = npt.NDArray[Any]

MAGIC = b"\x93NUMPY"
ZEROS = 1 << 24  # bytes written at a time where a file system cannot reserve space


@dataclass(frozen=True, slots=True)
class NpyFile:
    """What the header of a ``.npy`` file says.

    Attributes
    ----------
    path : Path
    offset : int
        Bytes before the array.
    shape : tuple of int
    dtype : dtype
    fortran : bool
        Whether the first axis is the innermost in memory.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one position on axis 0."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, lo: int, hi: int, mode: Literal["r", "r+"] = "r") -> Array:
        """The positions `lo` to `hi` of axis 0, mapped into memory; of an array without axes, the element."""
        if self.nbytes == 0:
            return np.empty((hi - lo, *self.shape[1:]), self.dtype)
        if self.fortran or not self.shape:
            whole = np.asarray(np.memmap(self.path, self.dtype, mode, self.offset, self.shape, "F"))
            return whole[lo:hi] if self.shape else whole
        # A map of these rows only: what is read leaves memory with them, whatever the size of the file.
        place = self.offset + lo * self.row_bytes
        return np.asarray(np.memmap(self.path, self.dtype, mode, place, (hi - lo, *self.shape[1:])))


def read_npy(path: Path) -> NpyFile:
    """Read the header of a ``.npy`` file, and see that the array is all there.

    Raises
    ------
    FileError
        It is missing, something else than an array, or shorter than its header says.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
            if start != MAGIC:
                why = f"it begins with {start!r}, and an array with {MAGIC!r}" if start else "it is empty"
                msg = f"{path} is no .npy file: {why}\nnumpy.save writes such files"
                raise FileError(msg, code="F004")
            stream.seek(0)
            shape, fortran, dtype = _header(path, stream)
            offset = stream.tell()
            found = os.fstat(stream.fileno()).st_size - offset
    except OSError as error:
        raise cannot_read(path, error) from None
    file = NpyFile(path, offset, shape, dtype, fortran and len(shape) > 1)
    if dtype.hasobject:
        msg = f"{path} holds Python objects (dtype {dtype}), and they are never unpickled\n"
        msg += "save an array of numbers: numpy.save(path, array.astype(float))"
        raise FileError(msg, code="F006")
    if found < file.nbytes:
        msg = f"{path} is truncated: an array of shape {shape} and dtype {dtype} has {file.nbytes:,} bytes, and "
        msg += f"{max(found, 0):,} are there\nwrite or copy the file again"
        raise FileError(msg, code="F005")
    return file


def _header(path: Path, stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:  # version 3 differs from 2 in the names of fields, and arrays with fields are no numbers
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if any(size < 0 for size in shape):
            msg = f"it has the shape {shape}"
            raise ValueError(msg)
    except Exception as error:  # noqa: BLE001 - a header is evaluated as Python, and raises what that raises
        why = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{path} has a header that cannot be read: {why}\nwrite or copy the file again"
        raise FileError(msg, code="F005") from None
    return shape, fortran, dtype


def create_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool) -> NpyFile:
    """Write the header of a ``.npy`` file, and reserve the space of its array.

    Raises
    ------
    OSError
        Among others, where the disk has not that much room. It is said here, since a map of a file that has no room
        on the disk ends the process when it is written.
    """
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": fortran,
        "shape": shape,
    }
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        offset = stream.tell()
        stream.flush()
        _reserve(stream, math.prod(shape) * dtype.itemsize)
    return NpyFile(path, offset, shape, dtype, fortran)


def _reserve(stream: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(stream.fileno(), stream.tell(), size)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
        else:
            return
    stream.writelines(bytes(min(ZEROS, size - start)) for start in range(0, size, ZEROS))


def located(error: GennormError, where: str) -> GennormError:
    """The same error, with a first line that says where."""
    return type(error)(f"{where}: {error}", code=error.code, position=error.position)
