"""`gennorm apply`: call a layer on the arrays of a file, a chunk at a time where the layer allows it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gennorm.cli.files import (
    NpyFile,
    cannot_read,
    create_npy,
    located,
    open_regular,
    read_npy,
    replacing,
    same_file,
)
from gennorm.cli.options import LayerOptions, build, dtype_named, refuse
from gennorm.errors import DtypeError, FileError, GennormError, suggest
from gennorm.layer import NormalizationLayer
from gennorm.layer.files import interrupts_deferred, is_layer
from gennorm.moments import Moments
from gennorm.plan import Plan

__all__ = ["CHUNK", "Report", "Written", "apply_file", "archive_of", "entry_of", "prepared", "stream"]

Array = npt.NDArray[Any]
Report = Callable[[int, int], None]  # called with the bytes that are done, and their total

CHUNK = 1 << 25  # bytes of input in memory at a time: enough for all threads of the engine

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".npy", ".npz", *PICTURES)


@dataclass(frozen=True, slots=True)
class Written:
    """The result of `apply_file`.

    Attributes
    ----------
    lines : list of str
        A line for each array that was written.
    layer : str
        The layer of the last array, as Python.
    batched : bool
        Whether axis 0 of that array was the batch.
    """

    lines: list[str]
    layer: str
    batched: bool


def apply_file(
    source: Path,
    target: Path,
    options: LayerOptions,
    dtype: np.dtype[Any] | None,
    report: Report,
    *,
    inverse: bool = False,
) -> Written:
    """Normalize the arrays or the picture of a file into another file, or into itself.

    Parameters
    ----------
    source, target : Path
        Both ``.npy``, both ``.npz``, or both pictures.
    options : LayerOptions
    dtype : dtype, optional
        The dtype that the arrays are converted to before they are normalized.
    report : callable
        Called with the progress.
    inverse : bool
        Undo the normalization instead.

    Returns
    -------
    Written

    Raises
    ------
    GennormError
        Something is wrong with the layer or the files; nothing has been written.
    """
    kinds = [_kind(source), _kind(target)]
    if kinds[0] != kinds[1]:
        msg = f"{source} is {kinds[0]}, and {target} would be {kinds[1]}\nuse the same kind of file for both"
        raise FileError(msg, code="F003")
    _require_no_layer(target, options)
    if kinds[0] == "an array":
        return _apply_npy(source, target, options, dtype, report, inverse)
    if kinds[0] == "an archive of arrays":
        return _apply_npz(source, target, options, dtype, report, inverse)
    if inverse:
        refuse("--inverse", "it is possible for arrays only: the pixels of a picture are not the normalized numbers")
    return _apply_picture(source, target, options, dtype)


def _require_no_layer(target: Path, options: LayerOptions) -> None:
    """Refuse to write arrays over a layer or a config."""
    described = same_file(target, options.layer) or same_file(target, options.config)
    if described or (target.suffix.lower() == ".npz" and target.exists() and is_layer(target)):
        msg = f"{target} is the file of a layer, and apply would write arrays over it\n"
        msg += "give the output another name, or remove the file first"
        raise FileError(msg, code="F038")


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        what = f"has the suffix {path.suffix}" if path.suffix else "has no suffix"
        msg = f"{path} {what}{suggest(suffix, SUFFIXES)}\n"
        msg += "arrays are .npy or .npz files, pictures .png, .jpg or .jpeg"
        raise FileError(msg, code="F002")
    return {".npy": "an array", ".npz": "an archive of arrays"}.get(suffix, "a picture")


# ----------------------------------------------------------------------------------------------------------- one array


def _apply_npy(
    source: Path, target: Path, options: LayerOptions, dtype: np.dtype[Any] | None, report: Report, inverse: bool
) -> Written:
    file = read_npy(source)
    layer = _ready(build(options, file.shape), options)
    plan = layer.plan(file.shape, _converted(file.dtype, dtype))
    with replacing(target) as temporary:
        out = create_npy(temporary, file.shape, dtype_named(plan.result), fortran=file.fortran)
        stream(layer, plan, file, out, dtype, report, inverse=inverse)
    return Written([_line(target, plan.result, file.shape)], repr(layer), plan.resolved.batched)


def stream(
    layer: NormalizationLayer,
    plan: Plan,
    file: NpyFile,
    out: NpyFile,
    dtype: np.dtype[Any] | None,
    report: Report,
    *,
    inverse: bool = False,
) -> None:
    """Normalize the array of one file into that of another, by chunks of axis 0.

    Where axis 0 is kept, or the layer has held moments, every chunk is normalized by itself, and the result has the
    bits of one call on the whole array. Where axis 0 is aggregated, the chunks are measured first, and then normalized
    by the sum of their moments.

    Parameters
    ----------
    layer : NormalizationLayer
    plan : Plan
        Of the layer for the whole array.
    file, out : NpyFile
        `out` has the shape of `file` and the plan's result dtype.
    dtype : dtype, optional
        The dtype that the array is converted to first.
    report : callable
        Called with the progress, in bytes of the input.
    inverse : bool
        Undo the normalization instead.
    """
    work = layer.inverse if inverse else layer
    resolved = plan.resolved
    length = file.shape[0] if file.shape else 1
    rows = max(CHUNK // max(file.row_bytes, 1), 1)
    # In Fortran order the positions of axis 0 are scattered over the file, so the array is normalized in one call.
    at_once = file.fortran and file.dtype.isnative and _converted(file.dtype, dtype) == file.dtype
    if length <= rows or at_once or not _divides(layer, plan):
        if file.nbytes:
            work(prepared(file.rows(0, length), dtype), out=out.rows(0, length, "r+"))
        report(file.nbytes, file.nbytes)
        return
    if 0 not in resolved.aggregation or layer.moments is not None:
        for lo, hi in _ranges(0, length, rows):
            work(prepared(file.rows(lo, hi), dtype), out=out.rows(lo, hi, "r+"))
            report(hi * file.row_bytes, file.nbytes)
        return

    done = 0

    def read(lo: int, hi: int) -> Array:
        nonlocal done
        report(done, 2 * file.nbytes)
        done += (hi - lo) * file.row_bytes
        return prepared(file.rows(lo, hi), dtype)

    chunked = _of_one_group(layer, plan)
    size = length // resolved.groups[0]
    for start in range(0, length, size):
        ranges = [*_ranges(start, start + size, rows)]
        moments = reduce(add, (chunked.measure(read(lo, hi)) for lo, hi in ranges))
        if plan.config.unbiased:
            moments = Moments.from_variance(moments.mean, moments.variance(unbiased=True))
        for lo, hi in ranges:
            chunked.apply(read(lo, hi), moments, out=out.rows(lo, hi, "r+"))
    report(done, 2 * file.nbytes)


def _ranges(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    for lo in range(start, stop, step):
        yield lo, min(lo + step, stop)


def _divides(layer: NormalizationLayer, plan: Plan) -> bool:
    """Return whether a call on a part of axis 0 gives the same result for it as a call on the whole array."""
    resolved = plan.resolved
    if resolved.batched:
        return True
    if 0 in resolved.aggregation or 0 in resolved.scaling:
        return False
    try:  # input_shape may declare the size of axis 0
        layer.plan((1, *resolved.shape[1:]), dtype_named(plan.dtype))
    except GennormError:
        return False
    return True


def _of_one_group(layer: NormalizationLayer, plan: Plan) -> NormalizationLayer:
    """Return the layer for chunks of one group of the batch: level 0 is not split, and variances are biased."""
    groups = {str(axis): number for axis, number in enumerate(plan.resolved.groups) if axis and number > 1}
    config = {**layer.to_config(), "group_number": groups or None, "unbiased": False}
    return NormalizationLayer.from_config(config).initialize(plan.resolved.shape)


# --------------------------------------------------------------------------------------------------------- many arrays


def _apply_npz(
    source: Path, target: Path, options: LayerOptions, dtype: np.dtype[Any] | None, report: Report, inverse: bool
) -> Written:
    lines = []
    layer, batched = NormalizationLayer(), False
    with archive_of(source) as archive, replacing(target) as temporary:
        total = sum(entry.file_size for entry in archive.infolist())
        done = 0
        with zipfile.ZipFile(temporary, "w") as written:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                x = entry_of(source, archive, entry)
                try:
                    layer = _ready(build(options, x.shape), options)
                    y = (layer.inverse if inverse else layer)(prepared(x, dtype))
                    batched = layer.plan(x.shape).resolved.batched
                except GennormError as error:
                    raise located(error, f'array "{name}" of {source}') from None
                about = zipfile.ZipInfo(entry.filename, entry.date_time)
                about.compress_type = entry.compress_type
                # An interrupt while a member is open would make `zipfile` raise another error.
                with interrupts_deferred(), written.open(about, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, y, allow_pickle=False)
                lines.append(f"{_line(target, y.dtype.name, y.shape)} ({name})")
                done += entry.file_size
                report(done, total)
    return Written(lines, repr(layer), batched)


def archive_of(path: Path) -> zipfile.ZipFile:
    """Open a .npz file for reading.

    Raises
    ------
    FileError
        The file is missing or damaged, or has two entries with the same name.
    """
    open_regular(path).close()
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    except Exception:  # noqa: BLE001 - a damaged archive raises nearly anything
        msg = f"{path} is not a .npz file: it is not an archive, or it is damaged\nwrite or copy the file again"
        raise FileError(msg, code="F009") from None
    names = archive.namelist()
    if len({*names}) < len(names):
        archive.close()
        twice = next(name for name in names if names.count(name) > 1)
        msg = f'{path} has two entries "{twice}"\nwrite the file again, with a name for each array'
        raise FileError(msg, code="F041")
    return archive


def entry_of(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """Read one array of a .npz file.

    Raises
    ------
    FileError
        The entry is damaged, or is not an array of numbers.
    """
    try:
        with archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, fortran, found = np.lib.format.read_array_header_1_0(member)
            else:  # version 3 differs from 2 in the names of fields
                shape, fortran, found = np.lib.format.read_array_header_2_0(member)
            if found.hasobject:
                msg = f"it contains Python objects (dtype {found}), which are never unpickled"
                raise ValueError(msg)
            # Checked before the memory is allocated, because a damaged header may have any sizes.
            size = math.prod(shape) * found.itemsize
            if min(shape, default=0) < 0 or entry.file_size - member.tell() != size:
                msg = f"its header says {shape} and {found}, and the size of the entry is {entry.file_size:,} bytes"
                raise ValueError(msg)
            array = np.empty(shape, found, order="F" if fortran else "C")
            rest = memoryview(cast("Any", array.ravel("K").view(np.uint8))) if size else memoryview(b"")
            while rest:
                part = member.read(min(len(rest), CHUNK))
                if not part:
                    msg = "it is cut short"
                    raise ValueError(msg)
                rest[: len(part)] = part
                rest = rest[len(part) :]
            member.read()  # the checksum is compared at the end of the entry
            return array
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged entry raises nearly anything
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        msg = f'"{entry.filename}" in {path} cannot be read as an array: {why}\nnumpy.savez writes such archives'
        raise FileError(msg, code="F017") from None


# --------------------------------------------------------------------------------------------------------- one picture


def _apply_picture(source: Path, target: Path, options: LayerOptions, dtype: np.dtype[Any] | None) -> Written:
    from gennorm.cli.pictures import levels_of_grey, read_picture, save_picture, without_alpha

    picture = read_picture(source)
    suffix = target.suffix.lower()
    if picture.alpha is not None and suffix != ".png":
        raise without_alpha(target, source)
    x = prepared(picture.pixels, dtype)
    layer = _ready(build(options, x.shape, picture=True), options)
    batched = bool(layer.information("batched"))
    y = layer(x[None])[0] if batched else layer(x)
    shown = levels_of_grey(y, layer.information("method"))
    with replacing(target) as temporary:
        save_picture(temporary, replace(picture, pixels=shown), suffix)
    return Written([_line(target, "uint8", shown.shape)], repr(layer), batched)


# ------------------------------------------------------------------------------------------------------------- helpers


def _ready(layer: NormalizationLayer, options: LayerOptions) -> NormalizationLayer:
    statistics = layer.information("statistics")
    if statistics != "input" and options.layer is None:
        msg = f'{options.config} says statistics="{statistics}", and a config has no moments\n'
        msg += 'give --layer the file of a layer with its moments, or write "statistics": "input"'
        raise FileError(msg, code="F013")
    return layer


def _converted(found: np.dtype[Any], wanted: np.dtype[Any] | None) -> np.dtype[Any]:
    return found if wanted is None else wanted


def prepared(x: Array, dtype: np.dtype[Any] | None) -> Array:
    """The array in the dtype of the option ``--dtype``.

    Raises
    ------
    DtypeError
        A value cannot be converted: NaN, an infinity or a number out of range, to integers.
    """
    if dtype is None:
        return x
    if x.dtype == np.dtype("V2") and dtype.name == "bfloat16":
        return x.view(dtype)  # numpy.save writes bfloat16 as two bytes without a meaning
    if x.dtype.kind not in "buif" and x.dtype.name != "bfloat16":
        return x  # the layer refuses it
    if dtype.kind in "iu" and x.size:
        _require_range(x, dtype)
    with np.errstate(all="ignore"):  # a number that is too large for a float dtype becomes infinite
        return x.astype(dtype, copy=False)


def _require_range(x: Array, dtype: np.dtype[Any]) -> None:
    """Refuse values that an integer dtype does not have, and that a cast would replace by arbitrary ones."""
    limits = np.iinfo(dtype)
    for value in (x.min(), x.max()):  # NaN is both
        number = value.item() if x.dtype.kind in "buif" else float(value)
        if not math.isfinite(number) or not limits.min <= int(number) <= limits.max:
            msg = f"the input has the value {number}, which {dtype} does not have\n"
            msg += f"its values are {limits.min} to {limits.max}: convert to a float dtype, or leave --dtype out"
            raise DtypeError(msg, code="D020")


def _line(path: Path, dtype: str, shape: tuple[int, ...]) -> str:
    return f"{path}: {dtype} {shape}"
