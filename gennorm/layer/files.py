"""A layer in a file: settings, parameters and moments, written whole or not at all, read without running anything."""

from __future__ import annotations

import errno
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.errors import FileError, GennormError, shown, suggest
from gennorm.layer.arrays import dtype_named
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig

__all__ = ["Stored", "cannot_read", "cannot_write", "read", "replacing", "write"]

Array = npt.NDArray[Any]

FORMAT = "gennorm/file"
VERSION = 1
HEADER = "gennorm"  # the entry that says what the arrays are
SUFFIXES = (".npz", ".safetensors")
PARAMETERS = ("scaling", "biases")
MEMBERS = ("count", "mean", "m2")
BITS = {"bfloat16": "uint16"}  # NumPy's own format has no name for it
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds of a layer.

    Attributes
    ----------
    config : LayerConfig
    parameters : mapping
        Scaling and biases; None where they are absent or not known yet.
    moments : Moments or None
    """

    config: LayerConfig
    parameters: Mapping[str, Array | None]
    moments: Moments | None


def write(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write a layer.

    Raises
    ------
    FileError
        The path has no suffix of a layer, or the operating system refuses.
    """
    target = _path(path)
    kind = _kind(target)
    # C order is the one that every format has.
    arrays = {name: np.asarray(array, order="C") for name, array in stored.parameters.items() if array is not None}
    if stored.moments is not None:
        members = {f"moments.{member}": getattr(stored.moments, member) for member in MEMBERS}
        arrays |= {name: array for name, array in members.items() if array is not None}
    header = {"format": FORMAT, "version": VERSION, "config": stored.config.to_dict(), "arrays": [*arrays]}
    text = json.dumps(header, allow_nan=False)
    data = _to_npz(text, arrays) if kind == ".npz" else _to_safetensors(target, text, arrays)
    with replacing(target) as temporary:
        temporary.write_bytes(data)


def read(path: str | os.PathLike[str]) -> Stored:
    """Read a layer that `write` wrote.

    Raises
    ------
    FileError
        There is no such file, or something is wrong with it; the text says what.
    """
    source = _path(path)
    kind = _kind(source)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise cannot_read(source, error) from None
    text, arrays = (_from_npz if kind == ".npz" else _from_safetensors)(source, data)
    return _understood(source, text, arrays)


def _path(value: Any) -> Path:
    try:
        return Path(value)
    except TypeError:
        msg = f"the path of a layer cannot be {shown(value)}\nwrite a text or a pathlib.Path"
        raise FileError(msg, code="F029") from None


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        has = f"has the suffix {path.suffix}" if suffix else "has no suffix"
        msg = f"{path} {has}{suggest(suffix, SUFFIXES)}\nlayers are .npz or .safetensors files"
        raise FileError(msg, code="F020")
    return suffix


# -------------------------------------------------------------------------------------------------------- what it means


def _understood(path: Path, text: str | None, arrays: Mapping[str, Array]) -> Stored:
    """A layer from the header and the arrays of a file, once they are known to be all there and to fit."""
    header = _header(path, text)
    try:
        config = LayerConfig.from_dict(header["config"])
    except GennormError as error:
        msg = f"{path} has settings that make no layer: {str(error).splitlines()[0]}\nsave the layer again"
        raise FileError(msg, code="F024") from None
    found, named = {*arrays}, {*header["arrays"]}
    allowed = {*PARAMETERS, *(f"moments.{member}" for member in MEMBERS)}
    needed = {name for name in PARAMETERS if getattr(config, name) == "explicit"}
    if any(name.startswith("moments.") for name in named):
        needed |= {"moments.count", "moments.m2"} | ({"moments.mean"} if config.method == "Standardize" else set())
    missing, strange = sorted((named | needed) - found), sorted(found - (named & allowed))
    if missing or strange:
        what = f"lacks the array {missing[0]}" if missing else f"has an array {strange[0]} that belongs to no layer"
        msg = f"{path} {what}\nwrite or copy the file again"
        raise FileError(msg, code="F025")
    bits = BITS.get(config.dtype)
    arrays = {
        name: array.view(dtype_named(config.dtype)) if array.dtype.name == bits else array
        for name, array in arrays.items()
    }
    parameters: dict[str, Array | None] = {name: arrays.get(name) for name in PARAMETERS}
    shapes = {array.shape for array in parameters.values() if array is not None}
    for name, array in arrays.items():
        expected = config.dtype if name in PARAMETERS else "float64"
        if array.dtype.name != expected or len(shapes) > 1 or getattr(config, name, "Automatic") is None:
            what = f"dtype {array.dtype}, shape {array.shape}"
            msg = f"{path} has an array {name} that does not fit its layer: {what}\nsave the layer again"
            raise FileError(msg, code="F026")
    moments = None
    if "moments.count" in arrays:
        try:
            moments = Moments(*(arrays.get(f"moments.{member}") for member in MEMBERS))  # type: ignore[arg-type]
        except GennormError as error:
            msg = f"{path} has moments that are none: {str(error).splitlines()[0]}\nsave the layer again"
            raise FileError(msg, code="F027") from None
    return Stored(config, parameters, moments)


def _header(path: Path, text: str | None) -> dict[str, Any]:
    try:
        header = json.loads(text or "")
    except (ValueError, RecursionError):
        header = None
    known = isinstance(header, dict) and header.get("format") == FORMAT and isinstance(header.get("version"), int)
    if known and header["version"] > VERSION:
        msg = (
            f"{path} is of version {header['version']}, and this gennorm reads {VERSION}\nread it with a newer gennorm"
        )
        raise FileError(msg, code="F023")
    arrays = header.get("arrays") if known else None
    if not isinstance(arrays, list) or not all(isinstance(name, str) for name in arrays) or "config" not in header:
        msg = f"{path} holds something else than a layer of gennorm\nlayer.save(path) writes one"
        raise FileError(msg, code="F022")
    return dict(header)


# ------------------------------------------------------------------------------------------------------------ two kinds


def _to_npz(text: str, arrays: Mapping[str, Array]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in {HEADER: np.array(text), **arrays}.items():
            plain = array.view(BITS[array.dtype.name]) if array.dtype.name in BITS else array
            # A date of its own, so that the same layer is the same file.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)
    return stream.getvalue()


def _from_npz(path: Path, data: bytes) -> tuple[str | None, dict[str, Array]]:
    found: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    except Exception:  # noqa: BLE001 - a broken archive raises what its parts raise
        raise _broken(path) from None
    header = found.pop(HEADER, None)
    if header is None or header.dtype.kind != "U" or header.shape != ():
        return None, found
    return str(header), found


def _to_safetensors(path: Path, text: str, arrays: Mapping[str, Array]) -> bytes:
    if not _installed():
        raise _not_installed(path)
    from safetensors.numpy import save

    written: bytes = save(dict(arrays), {HEADER: text})
    return written


def _from_safetensors(path: Path, data: bytes) -> tuple[str | None, dict[str, Array]]:
    if not _installed():
        raise _not_installed(path)
    from safetensors import deserialize

    found: dict[str, Array] = {}
    try:
        for name, about in deserialize(data):  # type: ignore[no-untyped-call]
            dtype = dtype_named(NAMES.get(about["dtype"], "uint8"))
            found[name] = np.frombuffer(about["data"], dtype).reshape(about["shape"] if about["dtype"] in NAMES else -1)
        # The header is a length of eight bytes and JSON, which `deserialize` has seen and keeps to itself.
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(HEADER)
    except Exception:  # noqa: BLE001 - what the extension raises is no part of its interface
        raise _broken(path) from None
    return text, {name: array.copy() for name, array in found.items()}


def _installed() -> bool:
    try:
        import safetensors  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _not_installed(path: Path) -> FileError:
    msg = f"{path} needs safetensors, which is not installed\npip install 'gennorm[safetensors]', or use an .npz file"
    return FileError(msg, code="F028")


def _broken(path: Path) -> FileError:
    msg = f"{path} is no {path.suffix} file that can be read: it is cut short or spoiled, or something else\n"
    msg += "write or copy the file again"
    return FileError(msg, code="F021")


# ------------------------------------------------------------------------------------------------------ all or nothing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` at the end of the block, at once, or disappears with an exception.

    It lies beside `path`, since a file changes its name at once only within a file system. A link is followed, and a
    file that is replaced passes on its permissions.

    Raises
    ------
    FileError
        The operating system refuses; `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    temporary = target.parent / f".gennorm-{secrets.token_hex(8)}.part"
    try:
        temporary.open("xb").close()
        try:
            yield temporary
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())  # the name must not reach the disk before the bytes
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_read(path: Path, error: OSError) -> FileError:
    """What to raise for what the operating system says about a file that is read."""
    if isinstance(error, FileNotFoundError):
        msg = f"{path} does not exist\ngive the path of a file that does"
        return FileError(msg, code="F001")
    msg = f"{path} cannot be read: {_reason(error)}\ngive the path of a file that can"
    return FileError(msg, code="F007")


def cannot_write(path: Path, error: OSError) -> FileError:
    """What to raise for what the operating system says about a file that is written."""
    msg = f"{path} cannot be written: {_reason(error)}\nnothing has been written there"
    return FileError(msg, code="F008")


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
