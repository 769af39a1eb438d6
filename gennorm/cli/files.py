"""The .npy files of the commands: arrays are read and written a chunk at a time."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt

from gennorm.errors import FileError, GennormError
from gennorm.layer.files import cannot_read, cannot_write, open_regular, replacing

__all__ = [
    "NpyFile",
    "cannot_read",
    "cannot_write",
    "create_npy",
    "located",
    "open_regular",
    "read_npy",
    "replacing",
    "same_file",
]

Array = npt.NDArray[Any]

MAGIC = b"\x93NUMPY"
ZEROS = 1 << 24  # bytes written at a time where a file system cannot reserve space


@dataclass(frozen=True, slots=True)
class NpyFile:
    """A ``.npy`` file: the contents of its header, and the reading and writing of its rows.

    Attributes
    ----------
    path : Path
    offset : int
        Bytes before the array.
    shape : tuple of int
    dtype : dtype
    fortran : bool
        Whether the first axis is the innermost in memory.
    modified : int
        Time of the last change, in nanoseconds; 0 for a file that is written by this process.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    modified: int = 0
    _whole: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one position on axis 0."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, lo: int, hi: int, mode: Literal["r", "r+"] = "r") -> Array:
        """Return the positions `lo` to `hi` of axis 0; for an array without axes, the element.

        With mode "r" they are read, because a memory map would end the process with SIGBUS if another process truncates
        the file. With mode "r+" they are a memory map of a file that only this process writes.

        Raises
        ------
        FileError
            The file cannot be read, or another process changed it after its header was read.
        """
        if self.nbytes == 0:
            return np.empty((hi - lo, *self.shape[1:]), self.dtype)
        if self.fortran or not self.shape:
            if mode == "r":
                whole = self._whole.get("array")
                if whole is None:
                    whole = self._whole["array"] = self._read(0, self.shape)
            else:
                whole = np.asarray(np.memmap(self.path, self.dtype, mode, self.offset, self.shape, "F"))
            return whole[lo:hi] if self.shape else whole
        if mode == "r":
            return self._read(lo * self.row_bytes, (hi - lo, *self.shape[1:]))
        # A map of these rows only: their memory is released with them, whatever the size of the file.
        place = self.offset + lo * self.row_bytes
        return np.asarray(np.memmap(self.path, self.dtype, mode, place, (hi - lo, *self.shape[1:])))

    def _read(self, start: int, shape: tuple[int, ...]) -> Array:
        """Read an array of this shape, from byte `start` of the data on."""
        array = np.empty(shape, self.dtype, order="F" if self.fortran else "C")
        rest = memoryview(cast("Any", array.ravel("K").view(np.uint8)))
        try:
            with self.path.open("rb", buffering=0) as stream:
                if os.fstat(stream.fileno()).st_mtime_ns != self.modified:
                    raise self._changed()
                stream.seek(self.offset + start)
                while rest:
                    count = stream.readinto(rest)
                    if not count:
                        raise self._changed()
                    rest = rest[count:]
        except OSError as error:
            raise cannot_read(self.path, error) from None
        return array

    def _changed(self) -> FileError:
        msg = f"{self.path} was changed by another process while it was read\nread it when it is complete"
        return FileError(msg, code="F016")


def read_npy(path: Path) -> NpyFile:
    """Read the header of a ``.npy`` file, and check that the file has the whole array.

    Raises
    ------
    FileError
        The file is missing, is not an array, or is shorter than its header says.
    """
    try:
        with open_regular(path) as stream:
            start = stream.read(len(MAGIC))
            if start != MAGIC:
                why = f"it starts with {start!r}, and a .npy file with {MAGIC!r}" if start else "it is empty"
                msg = f"{path} is not a .npy file: {why}\nnumpy.save writes such files"
                raise FileError(msg, code="F004")
            stream.seek(0)
            shape, fortran, dtype = _header(path, stream)
            offset = stream.tell()
            status = os.fstat(stream.fileno())
            found = status.st_size - offset
    except OSError as error:
        raise cannot_read(path, error) from None
    file = NpyFile(path, offset, shape, dtype, fortran and len(shape) > 1, status.st_mtime_ns)
    if dtype.hasobject:
        msg = f"{path} contains Python objects (dtype {dtype}), which are never unpickled\n"
        msg += "save an array of numbers: numpy.save(path, array.astype(float))"
        raise FileError(msg, code="F006")
    if found < file.nbytes:
        msg = f"{path} is truncated: an array of shape {shape} and dtype {dtype} has {file.nbytes:,} bytes, and "
        msg += f"the file has {max(found, 0):,}\nwrite or copy the file again"
        raise FileError(msg, code="F005")
    return file


def _header(path: Path, stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:  # version 3 differs from 2 in the names of fields, which arrays of numbers do not have
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if any(size < 0 for size in shape):
            msg = f"it has the shape {shape}"
            raise ValueError(msg)
    except Exception as error:  # noqa: BLE001 - a header is a literal of Python, and parsing it raises anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{path} has a header that cannot be read: {why}\nwrite or copy the file again"
        raise FileError(msg, code="F018") from None
    return shape, fortran, dtype


def create_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool) -> NpyFile:
    """Write the header of a ``.npy`` file, and reserve the space of its array on the disk.

    Raises
    ------
    OSError
        For example where the disk is full. A map of a file without reserved space would end the process when it is
        written to a full disk.
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
    """Return the same error with the place at the start of its first line."""
    return type(error)(f"{where}: {error.message}", code=error.code, position=error.position)


def same_file(path: Path, other: Path | None) -> bool:
    """Return whether two paths are the same existing file, also through links."""
    try:
        return other is not None and path.samefile(other)
    except OSError:
        return False
