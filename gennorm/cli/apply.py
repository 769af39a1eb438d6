"""`gennorm apply`: a layer on the arrays of a file, in as little memory as the layer allows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.cli.files import NpyFile, cannot_read, create_npy, located, read_npy, replacing
from gennorm.cli.options import LayerOptions, build, dtype_named, refuse
from gennorm.errors import FileError, GennormError, suggest
from gennorm.layer import NormalizationLayer
from gennorm.moments import Moments
from gennorm.plan import Plan

__all__ = ["CHUNK", "Report", "apply_file", "archive_of", "entry_of", "prepared", "stream"]

Array = npt.NDArray[Any]
Report = Callable[[int, int], None]  # bytes that are done, of so many

CHUNK = 1 << 25  # bytes of input worked on at a time: enough for the engine's threads, little beside a memory

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".npy", ".npz", *PICTURES)


def apply_file(
    source: Path,
    target: Path,
    options: LayerOptions,
    dtype: np.dtype[Any] | None,
    report: Report,
    *,
    inverse: bool = False,
) -> list[str]:
    """Normalize what a file holds into another file, or into itself.

    Parameters
    ----------
    source, target : Path
        Both ``.npy``, both ``.npz``, or both pictures.
    options : LayerOptions
    dtype : dtype, optional
        What the arrays are converted to before they are normalized.
    report : callable
        Is told of progress.
    inverse : bool
        Undo the normalization instead.

    Returns
    -------
    list of str
        What was written, a line for each array.

    Raises
    ------
    GennormError
        Anything is wrong with the layer or the files; nothing has been written.
    """
    kinds = [_kind(source), _kind(target)]
    if kinds[0] != kinds[1]:
        msg = f"{source} is {kinds[0]}, and {target} would be {kinds[1]}\nwrite the kind of file that is read"
        raise FileError(msg, code="F003")
    if kinds[0] == "an array":
        return [_apply_npy(source, target, options, dtype, report, inverse)]
    if kinds[0] == "an archive of arrays":
        return _apply_npz(source, target, options, dtype, report, inverse)
    if inverse:
        refuse("--inverse", "it goes with arrays; a picture holds what numbers look like, and not the numbers")
    return [_apply_picture(source, target, options, dtype)]


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
) -> str:
    file = read_npy(source)
    layer = _ready(build(options, file.shape), options)
    plan = layer.plan(file.shape, _converted(file.dtype, dtype))
    with replacing(target) as temporary:
        out = create_npy(temporary, file.shape, dtype_named(plan.result), fortran=file.fortran)
        stream(layer, plan, file, out, dtype, report, inverse=inverse)
    return _line(target, plan.result, file.shape)


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

    Where axis 0 is kept, or the layer holds its moments, every chunk is normalized by itself, and the result has the
    bits of the whole. Else, where it is aggregated, the chunks are measured first, and normalized by the sum of their
    moments.

    Parameters
    ----------
    layer : NormalizationLayer
    plan : Plan
        Of the layer for the whole array.
    file, out : NpyFile
        `out` has the shape of `file` and the plan's result dtype.
    dtype : dtype, optional
        What the array is converted to first.
    report : callable
        Is told of progress, in bytes of the input.
    inverse : bool
        Undo the normalization instead.
    """
    work = layer.inverse if inverse else layer
    resolved = plan.resolved
    length = file.shape[0] if file.shape else 1
    rows = max(CHUNK // max(file.row_bytes, 1), 1)
    # An array in Fortran order has its first axis scattered over the file: it is walked in the order it lies in.
    walked = file.fortran and file.dtype.isnative and _converted(file.dtype, dtype) == file.dtype
    if length <= rows or walked or not _divides(layer, plan):
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
    """Whether the layer does to a part of axis 0 what it does to the part in the whole."""
    resolved = plan.resolved
    if resolved.batched:
        return True
    if 0 in resolved.aggregation or 0 in resolved.scaling:
        return False
    try:  # a level may be declared with its size
        layer.plan((1, *resolved.shape[1:]), dtype_named(plan.dtype))
    except GennormError:
        return False
    return True


def _of_one_group(layer: NormalizationLayer, plan: Plan) -> NormalizationLayer:
    """The layer for chunks of one group of the batch: level 0 is not split, and the divisor is given, not counted."""
    groups = {str(axis): number for axis, number in enumerate(plan.resolved.groups) if axis and number > 1}
    config = {**layer.to_config(), "group_number": groups or None, "unbiased": False}
    return NormalizationLayer.from_config(config).initialize(plan.resolved.shape)


# --------------------------------------------------------------------------------------------------------- many arrays


def _apply_npz(
    source: Path, target: Path, options: LayerOptions, dtype: np.dtype[Any] | None, report: Report, inverse: bool
) -> list[str]:
    lines = []
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
                except GennormError as error:
                    raise located(error, f'array "{name}" of {source}') from None
                about = zipfile.ZipInfo(entry.filename, entry.date_time)
                about.compress_type = entry.compress_type
                with written.open(about, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, y, allow_pickle=False)
                lines.append(f"{_line(target, y.dtype.name, y.shape)} ({name})")
                done += entry.file_size
                report(done, total)
    return lines


def archive_of(path: Path) -> zipfile.ZipFile:
    """A .npz file, open; it is an archive."""
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    except zipfile.BadZipFile:
        msg = f"{path} is no .npz file: it is no archive, or a truncated one\nwrite or copy the file again"
        raise FileError(msg, code="F009") from None


def entry_of(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """One array of a .npz file."""
    try:
        with archive.open(entry) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        msg = f'"{entry.filename}" in {path} is no array that can be read: {why}\nnumpy.savez writes such archives'
        raise FileError(msg, code="F009") from None


# --------------------------------------------------------------------------------------------------------- one picture


def _apply_picture(source: Path, target: Path, options: LayerOptions, dtype: np.dtype[Any] | None) -> str:
    from gennorm.cli.pictures import levels_of_grey, read_picture, save_picture, without_alpha

    picture = read_picture(source)
    suffix = target.suffix.lower()
    if picture.alpha is not None and suffix != ".png":
        raise without_alpha(target, source)
    x = prepared(picture.pixels, dtype)
    layer = _ready(build(options, x.shape, picture=True), options)
    y = layer(x[None])[0] if layer.information("batched") else layer(x)
    shown = levels_of_grey(y, layer.information("method"))
    with replacing(target) as temporary:
        save_picture(temporary, replace(picture, pixels=shown), suffix)
    return _line(target, "uint8", shown.shape)


# ------------------------------------------------------------------------------------------------------------- helpers


def _ready(layer: NormalizationLayer, options: LayerOptions) -> NormalizationLayer:
    statistics = layer.information("statistics")
    if statistics != "input" and options.layer is None:
        msg = f'{options.config} says statistics="{statistics}", and a config holds no moments\n'
        msg += 'give --layer the file of a layer with its moments, or write "statistics": "input"'
        raise FileError(msg, code="F013")
    return layer


def _converted(found: np.dtype[Any], wanted: np.dtype[Any] | None) -> np.dtype[Any]:
    return found if wanted is None else wanted


def prepared(x: Array, dtype: np.dtype[Any] | None) -> Array:
    """The array in the dtype that was asked for; numpy.save writes bfloat16 as two bytes that mean nothing."""
    if dtype is None:
        return x
    if x.dtype == np.dtype("V2") and dtype.name == "bfloat16":
        return x.view(dtype)
    if x.dtype.kind not in "buif" and x.dtype.name != "bfloat16":
        return x  # the layer says what is wrong with it
    return x.astype(dtype, copy=False)


def _line(path: Path, dtype: str, shape: tuple[int, ...]) -> str:
    return f"{path}: {dtype} {shape}"
