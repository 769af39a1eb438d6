"""Reading and writing a layer as a file: its settings, parameters and moments.

A file is written under a temporary name and then renamed, so there is never an incomplete file. A file has a checksum
of all its bytes and is checked before its arrays are unpacked. Reading a file executes nothing in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import signal
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from gennorm.errors import FileError, GennormError, InitializationError, shown, suggest
from gennorm.layer.arrays import dtype_named
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig, kept_shape, parameter_shape

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where an open file cannot be removed
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Stored",
    "cannot_read",
    "cannot_write",
    "interrupts_deferred",
    "is_layer",
    "open_regular",
    "read",
    "remove_unfinished",
    "replacing",
    "write",
]

Array = npt.NDArray[Any]

FORMAT = "gennorm/file"
VERSION = 2  # version 1 had no checksum
HEADER = "gennorm"  # the name of the entry with the header: the config, and the names of the arrays
LONGEST_HEADER = 1 << 22  # bytes; the longest config has a few thousand
SUFFIXES = (".npz", ".safetensors")
PARAMETERS = ("scaling", "biases")
MEMBERS = ("count", "mean", "m2")
ARRAYS = (*PARAMETERS, *(f"moments.{member}" for member in MEMBERS))
BITS = {"bfloat16": "uint16"}  # NumPy's own format has no name for bfloat16
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ALLOWED_NPZ = {f"{name}.npy" for name in (HEADER, *ARRAYS)}

# The checksum covers all bytes of the file except its own. In an .npz file it is at the end, in the comment of the
# archive. In a .safetensors file it is in the header; while it is computed, zeros replace it.
COMMENT = b"gennorm-sha256="
DIGITS = 64
KEY = "sha256"

PART = re.compile(r"\.gennorm-[0-9a-f]{16}\.part")


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


Target: TypeAlias = str | os.PathLike[str] | _Writable
Source: TypeAlias = str | os.PathLike[str] | _Readable


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of the file of a layer.

    Attributes
    ----------
    config : LayerConfig
    parameters : mapping
        Scaling and biases; None if they are absent or not known yet.
    moments : Moments or None
    """

    config: LayerConfig
    parameters: Mapping[str, Array | None]
    moments: Moments | None


def write(path: Target, stored: Stored) -> None:
    """Write a layer to a path, or to a binary file object.

    An interrupt that arrives while the file is written is raised when it is complete.

    Parameters
    ----------
    path : str, path-like or file object
        A file object is written as ``.npz``, unless its name ends in ``.safetensors``.
    stored : Stored

    Raises
    ------
    FileError
        The path has no suffix of a layer, or the operating system refuses.
    """
    target = None if hasattr(path, "write") else _path(path)
    kind = _kind_of_stream(path) if target is None else _kind(target)
    # Both formats support C order.
    arrays = {name: np.asarray(array, order="C") for name, array in stored.parameters.items() if array is not None}
    if stored.moments is not None:
        members = {f"moments.{member}": getattr(stored.moments, member) for member in MEMBERS}
        arrays |= {name: np.asarray(array, order="C") for name, array in members.items() if array is not None}
    header = {"format": FORMAT, "version": VERSION, "config": stored.config.to_dict(), "arrays": [*arrays]}
    text = json.dumps(header, allow_nan=False)
    with interrupts_deferred():
        data = (
            _to_npz(text, arrays) if kind == ".npz" else _to_safetensors(target or Path("a file object"), text, arrays)
        )
        if target is None:
            _write_stream(cast("_Writable", path), data)
            return
        with replacing(target) as temporary:
            temporary.write_bytes(data)


def read(path: Source) -> Stored:
    """Read a layer that `write` wrote, from a path or from a binary file object.

    Parameters
    ----------
    path : str, path-like or file object
        A file object is read from its position to its end.

    Raises
    ------
    FileError
        The file does not exist, is damaged, or is not the file of a layer; the message says which.
    """
    if hasattr(path, "read"):
        data = _read_stream(cast("_Readable", path))
        source = Path(f"a file object of {len(data):,} bytes")
        kind = ".npz" if data[:2] == b"PK" else ".safetensors"
        text, arrays = (_from_npz if kind == ".npz" else _from_safetensors)(source, data)
        return _understood(source, text, arrays)
    source = _path(path)
    kind = _kind(source)
    with open_regular(source) as stream:
        try:
            if kind == ".npz":
                _look_into_npz(source, stream)
            else:
                _look_into_safetensors(source, stream)
            stream.seek(0)
            data = stream.read()
        except OSError as error:
            raise cannot_read(source, error) from None
    text, arrays = (_from_npz if kind == ".npz" else _from_safetensors)(source, data)
    return _understood(source, text, arrays)


def is_layer(path: Path) -> bool:
    """Return whether a path is an existing file with the header of a layer; its arrays are not read."""
    try:
        with open_regular(path) as stream:
            if path.suffix.lower() == ".npz":
                with zipfile.ZipFile(stream) as archive:
                    return f"{HEADER}.npy" in archive.namelist()
            return HEADER in _metadata(stream)
    except Exception:  # noqa: BLE001 - whatever is wrong with the file, it is not the file of a layer
        return False


def _path(value: Any) -> Path:
    try:
        path = Path(value)
    except TypeError:
        msg = f"the path of a layer cannot be {shown(value)}\nwrite a text, a pathlib.Path or a binary file object"
        raise FileError(msg, code="F029") from None
    if "\0" in str(path):
        msg = f"the path of a layer has a NUL character: {str(path)!r}\nleave it out: no file can have such a name"
        raise FileError(msg, code="F030")
    return path


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        has = f"has the suffix {path.suffix}" if suffix else "has no suffix"
        msg = f"{path} {has}{suggest(suffix, SUFFIXES)}\nlayers are .npz or .safetensors files"
        raise FileError(msg, code="F020")
    return suffix


def _kind_of_stream(stream: object) -> str:
    name = getattr(stream, "name", "")
    return ".safetensors" if isinstance(name, str) and name.lower().endswith(".safetensors") else ".npz"


def _write_stream(stream: _Writable, data: bytes) -> None:
    try:
        stream.write(data)
    except TypeError:
        raise _text_stream(writing=True) from None
    except OSError as error:
        raise cannot_write(Path(str(getattr(stream, "name", "a file object"))), error) from None


def _read_stream(stream: _Readable) -> bytes:
    try:
        data = stream.read()
    except OSError as error:
        raise cannot_read(Path(str(getattr(stream, "name", "a file object"))), error) from None
    except UnicodeDecodeError:
        raise _text_stream(writing=False) from None
    if not isinstance(data, bytes):
        raise _text_stream(writing=False)
    return data


def _text_stream(*, writing: bool) -> FileError:
    mode = "wb" if writing else "rb"
    msg = f'the file object of a layer is opened as text\nopen it as bytes: open(path, "{mode}")'
    return FileError(msg, code="F031")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes; refuse other files, because reading a named pipe could block for ever.

    Raises
    ------
    FileError
        The file does not exist, is not a regular file, or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            msg = f"{path} is {_special(mode)}, not a regular file\ngive the path of a regular file"
            raise FileError(msg, code="F032")
        return path.open("rb")
    except OSError as error:
        raise cannot_read(path, error) from None


def _special(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    return kinds.get(stat.S_IFMT(mode), "a device")


# ------------------------------------------------------------------------------------------- from the file to the layer


def _understood(path: Path, text: str | None, arrays: Mapping[str, Array]) -> Stored:
    """Return the contents for a header and arrays, after checks that they fit each other."""
    header = _header(path, text)
    try:
        config = LayerConfig.from_dict(header["config"])
    except GennormError as error:
        msg = f"{path} has invalid settings: {error.message.splitlines()[0]}\nsave the layer again"
        raise FileError(msg, code="F024") from None
    found, named = {*arrays}, {*header["arrays"]}
    needed = {name for name in PARAMETERS if getattr(config, name) == "explicit"}
    if any(name.startswith("moments.") for name in named):
        needed |= {"moments.count", "moments.m2"} | ({"moments.mean"} if config.method == "Standardize" else set())
    missing, strange = sorted((named | needed) - found), sorted(found - (named & {*ARRAYS}))
    if missing or strange:
        what = f"lacks the array {missing[0]}" if missing else f"has an array {strange[0]} that layers do not have"
        msg = f"{path} {what}\nwrite or copy the file again"
        raise FileError(msg, code="F025")
    bits = BITS.get(config.dtype)
    arrays = {
        name: array.view(dtype_named(config.dtype)) if name in PARAMETERS and array.dtype.name == bits else array
        for name, array in arrays.items()
    }
    parameters: dict[str, Array | None] = {name: arrays.get(name) for name in PARAMETERS}
    shapes = {array.shape for array in parameters.values() if array is not None}
    expected_shape = _expected_shape(config)
    for name in (name for name in ARRAYS if name in arrays):
        array = arrays[name]
        expected = config.dtype if name in PARAMETERS else "float64"
        fits = array.dtype.name == expected and len(shapes) < 2 and getattr(config, name, "Automatic") is not None
        if name in PARAMETERS and expected_shape is not None:
            fits = fits and array.shape == expected_shape
        if not fits:
            what = f"dtype {array.dtype}, shape {array.shape}"
            msg = f"{path} has an array {name} that does not fit its layer: {what}\nsave the layer again"
            raise FileError(msg, code="F026")
    return Stored(config, parameters, _moments(path, config, arrays) if "moments.count" in arrays else None)


def _expected_shape(config: LayerConfig) -> tuple[int, ...] | None:
    try:
        return parameter_shape(config)
    except InitializationError:
        return None  # the config does not determine it


def _moments(path: Path, config: LayerConfig, arrays: Mapping[str, Array]) -> Moments:
    try:
        moments = Moments(*(arrays.get(f"moments.{member}") for member in MEMBERS))  # type: ignore[arg-type]
    except GennormError as error:
        raise _wrong_moments(path, error.message.splitlines()[0]) from None
    if config.statistics == "input":
        raise _wrong_moments(path, 'a layer with statistics="input" stores none')
    if config.method == "RMS" and moments.mean is not None:
        raise _wrong_moments(path, "they have a mean, and method RMS subtracts none")
    shape = kept_shape(config)
    if shape is not None and moments.shape != shape:
        raise _wrong_moments(path, f"they have the shape {moments.shape}, and the layer has {shape}")
    return moments


def _wrong_moments(path: Path, why: str) -> FileError:
    msg = f"{path} has moments that its layer cannot have: {why}\nsave the layer again"
    return FileError(msg, code="F027")


def _header(path: Path, text: str | None) -> dict[str, Any]:
    try:
        header = json.loads(text or "")
    except (ValueError, RecursionError):
        header = None
    known = isinstance(header, dict) and header.get("format") == FORMAT and type(header.get("version")) is int
    if known and header["version"] > VERSION:
        msg = f"{path} is of version {header['version']}, and this gennorm reads versions up to {VERSION}\n"
        msg += "read it with a newer gennorm"
        raise FileError(msg, code="F023")
    arrays = header.get("arrays") if known else None
    if (
        not isinstance(arrays, list)
        or not all(isinstance(name, str) for name in arrays)
        or "config" not in header
        or header["version"] < 1
    ):
        raise _foreign(path)
    return dict(header)


def _version(text: str | None) -> int:
    """Return the version in a header, or 0."""
    try:
        version = json.loads(text or "")["version"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return 0
    return version if type(version) is int else 0


def _foreign(path: Path) -> FileError:
    msg = f"{path} is not the file of a layer\nlayer.save(path) writes one"
    return FileError(msg, code="F022")


# ---------------------------------------------------------------------------------------------------------------- .npz


def _to_npz(text: str, arrays: Mapping[str, Array]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in {HEADER: np.array(text), **arrays}.items():
            plain = array.view(BITS[array.dtype.name]) if array.dtype.name in BITS else array
            # With the default date, equal layers give equal files.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)
        archive.comment = COMMENT + b"0" * DIGITS
    data = stream.getvalue()[:-DIGITS]
    return data + hashlib.sha256(data).hexdigest().encode()


def _look_into_npz(path: Path, stream: BinaryIO) -> None:
    """Refuse an archive that is not a layer, by its table of contents, before anything is unpacked."""
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _broken(path) from None
    names = [entry.filename for entry in entries]
    if f"{HEADER}.npy" not in names:
        raise _foreign(path)
    if len({*names}) < len(names):
        raise _broken(path)
    for entry in entries:
        if entry.filename == f"{HEADER}.npy" and entry.file_size > LONGEST_HEADER:
            raise _foreign(path)
        if entry.filename not in ALLOWED_NPZ:
            msg = f"{path} has an entry {entry.filename!r} that layers do not have\nwrite or copy the file again"
            raise FileError(msg, code="F033")
        if entry.compress_type != zipfile.ZIP_STORED:
            msg = (
                f"{path} has a compressed entry {entry.filename!r}\nlayer.save(path) compresses nothing: save it again"
            )
            raise FileError(msg, code="F034")


def _from_npz(path: Path, data: bytes) -> tuple[str | None, dict[str, Array]]:
    checked = _require_comment(path, data)
    _look_into_npz(path, BytesIO(data))
    found: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for name in archive.namelist():
                found[name.removesuffix(".npy")] = _array_of_npy(archive.read(name))
    except Exception:  # noqa: BLE001 - a broken archive raises what its parts raise
        raise _broken(path) from None
    header = found.pop(HEADER)
    text = str(header) if header.dtype.kind == "U" and header.shape == () else None
    if not checked and _version(text) > 1:
        raise _broken(path)
    return text, found


def _require_comment(path: Path, data: bytes) -> bool:
    """Return whether the archive ends with a checksum; refuse a wrong one."""
    body, digits = data[:-DIGITS], data[-DIGITS:]
    if not body.endswith(COMMENT):
        return False
    if hashlib.sha256(body).hexdigest().encode() != digits:
        raise _broken(path)
    return True


def _array_of_npy(data: bytes) -> Array:
    """Return the array of a .npy file in memory. The size in the header is checked before anything is allocated."""
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    rest = data[stream.tell() :]
    if dtype.hasobject or any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        msg = "not an array of numbers"
        raise ValueError(msg)
    array = np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
    # A machine with the other byte order may have written it.
    return array.astype(dtype.newbyteorder("="), order="C")


# -------------------------------------------------------------------------------------------------------- .safetensors


def _to_safetensors(path: Path, text: str, arrays: Mapping[str, Array]) -> bytes:
    if not _installed():
        raise _not_installed(path)
    from safetensors.numpy import save

    zeros = "0" * DIGITS
    data: bytes = save(dict(arrays), {HEADER: f'{text[:-1]}, "{KEY}": "{zeros}"}}'})
    return data.replace(zeros.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _metadata(stream: BinaryIO) -> dict[str, Any]:
    """Return the metadata of a .safetensors file. It reads only the header: a length in eight bytes, and JSON."""
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > LONGEST_HEADER:
        return {}
    header = json.loads(stream.read(length))
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _look_into_safetensors(path: Path, stream: BinaryIO) -> None:
    """Refuse a file that is not a layer, by its header, before its arrays are read."""
    if not _installed():
        raise _not_installed(path)
    try:
        metadata = _metadata(stream)
    except (ValueError, RecursionError, struct.error, AttributeError):
        raise _broken(path) from None
    if HEADER not in metadata:
        raise _foreign(path)


def _from_safetensors(path: Path, data: bytes) -> tuple[str | None, dict[str, Array]]:
    _look_into_safetensors(path, BytesIO(data))
    from safetensors import deserialize

    text = _metadata(BytesIO(data))[HEADER]
    _require_digest(path, data, text)
    found: dict[str, Array] = {}
    try:
        for name, about in deserialize(data):  # type: ignore[no-untyped-call]
            dtype = dtype_named(NAMES.get(about["dtype"], "uint8"))
            array = np.frombuffer(about["data"], dtype)
            found[name] = array.reshape(about["shape"] if about["dtype"] in NAMES else -1).copy()
    except Exception:  # noqa: BLE001 - the extension does not document what it raises
        raise _broken(path) from None
    return text if isinstance(text, str) else None, found


def _require_digest(path: Path, data: bytes, text: Any) -> None:
    """Refuse a file whose checksum is wrong, or is missing although its version has one."""
    try:
        digest = json.loads(text)[KEY]
    except (ValueError, RecursionError, TypeError, KeyError):
        digest = None
    if digest is None:
        if _version(text) > 1:
            raise _broken(path)
        return
    digits = str(digest).encode()
    zeroed = data.replace(digits, b"0" * DIGITS, 1)
    if len(digits) != DIGITS or hashlib.sha256(zeroed).hexdigest() != digest:
        raise _broken(path)


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
    msg = f"{path} cannot be read as a layer: it is damaged, or cut short, or another kind of file\n"
    msg += "write or copy the file again"
    return FileError(msg, code="F021")


# ------------------------------------------------------------------------------------------------------ atomic writing

_unfinished: set[Path] = set()  # temporary files of this process


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that is renamed to `path` at the end of the block, or removed after an exception.

    It is in the folder of `path`, because a rename is atomic only within a file system. Symbolic links are followed.
    The new file gets the owner, group and permissions of the file that it replaces; until then only its owner can read
    it. Temporary files of killed processes are removed first.

    Raises
    ------
    FileError
        The operating system refuses, or `path` is not a regular file; `path` is not changed.
    """
    handle = -1
    temporary = None
    try:
        with interrupts_deferred():
            target = Path(os.path.realpath(path))
            before = _replaced(path, target)
            _remove_stale(target.parent)
            temporary, handle = _create(target.parent, private=before is not None)
        yield temporary
        with interrupts_deferred():
            if before is not None:
                _take_permissions(handle, temporary, before)
            os.fsync(handle)  # the name must not reach the disk before the bytes
            if os.name == "nt":  # Windows does not rename an open file
                os.close(handle)
                handle = -1
            temporary.replace(target)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with interrupts_deferred():
            if handle >= 0:
                os.close(handle)
            if temporary is not None:
                _remove(temporary)


def _replaced(path: Path, target: Path) -> os.stat_result | None:
    """Return the status of the file that is replaced; None if it does not exist."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path} is {_special(found.st_mode)}, and only regular files are replaced\ngive the path of another file"
        raise FileError(msg, code="F035")
    return found


def _create(folder: Path, *, private: bool) -> tuple[Path, int]:
    """Create a temporary file in a folder; return it and its open descriptor, which holds a lock while it is open."""
    while True:
        temporary = folder / f".gennorm-{secrets.token_hex(8)}.part"
        _unfinished.add(temporary)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(temporary, flags, 0o600 if private else 0o666)
        except BaseException:
            _unfinished.discard(temporary)
            raise
        if fcntl is None:
            return temporary, handle
        with suppress(OSError):  # a file system without locks: no file there is removed as stale
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)  # another process saw it between its creation and its lock, and removed it
        _unfinished.discard(temporary)


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
    _unfinished.discard(temporary)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of killed processes of this user: no process holds their locks."""
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if PART.fullmatch(entry.name):
                _remove_if_stale(entry.path)


def _remove_if_stale(path: str) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # a link, already removed, or of another user
    try:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path(path).unlink()
    except OSError:
        return  # the lock is held: a process writes this file
    finally:
        os.close(handle)


def _take_permissions(handle: int, temporary: Path, before: os.stat_result) -> None:
    """Give a file the owner, group and mode of the file that it replaces, as far as the system allows."""
    mode = stat.S_IMODE(before.st_mode)
    if not hasattr(os, "fchown"):
        temporary.chmod(mode)
        return
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(handle, before.st_uid if os.geteuid() == 0 else -1, before.st_gid)
        except OSError:
            mode &= 0o0707  # the permissions of the old group do not apply to this group
    os.fchmod(handle, mode)


def remove_unfinished() -> None:
    """Remove the temporary files of this process, which is about to exit."""
    for temporary in [*_unfinished]:
        _remove(temporary)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Run the block without interrupts: Python's signal handlers run at the end of the block.

    Signals are handled in the main thread; in another thread this does nothing.
    """
    arrived: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append((number, frame))

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM), signal.SIGINT):
                handler = signal.getsignal(number)
                if callable(handler) and number not in handlers:
                    handlers[number] = handler
                    with suppress(ValueError):  # a main thread, but not that of the main interpreter
                        signal.signal(number, remember)
        yield
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):
                signal.signal(number, handler)
        for number, frame in arrived:
            handlers[number](number, frame)


def cannot_read(path: Path, error: OSError) -> FileError:
    """Return the error for an `OSError` of a file that is read."""
    if isinstance(error, FileNotFoundError):
        msg = f"{path} does not exist\ngive the path of an existing file"
        return FileError(msg, code="F001")
    msg = f"{path} cannot be read: {_reason(error)}\ngive the path of a readable file"
    return FileError(msg, code="F007")


def cannot_write(path: Path, error: OSError) -> FileError:
    """Return the error for an `OSError` of a file that is written."""
    msg = f"{path} cannot be written: {_reason(error)}\nnothing has been written there"
    return FileError(msg, code="F008")


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
