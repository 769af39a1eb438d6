"""`gennorm adapt`: measure the arrays of files, and save the layer with their moments."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm import presets
from gennorm.cli.apply import CHUNK, Report, archive_of, entry_of, prepared
from gennorm.cli.files import located, read_npy, same_file
from gennorm.cli.options import LayerOptions, build, refuse, with_braces
from gennorm.errors import FileError, GennormError, suggest
from gennorm.layer import NormalizationLayer
from gennorm.layer.files import SUFFIXES, is_layer
from gennorm.spec.names import is_name

__all__ = ["adapt_files"]

Array = npt.NDArray[Any]


def adapt_files(
    sources: list[Path],
    target: Path,
    options: LayerOptions,
    level: str | None,
    dtype: np.dtype[Any] | None,
    report: Report,
    nan: str = "propagate",
) -> list[str]:
    """Make a layer whose moments are those of the arrays of files, and save it.

    Parameters
    ----------
    sources : list of Path
        ``.npy`` files, which are read in pieces, and ``.npz`` files.
    target : Path
        The file of the layer: ``.npz`` or ``.safetensors``.
    options : LayerOptions
        The description of the layer, if there is one. Its statistics are always those of a data set.
    level : str, optional
        The kept levels, if no other option describes the layer.
    dtype : dtype, optional
        The dtype that the arrays are converted to first.
    report : callable
        Called with the progress, in bytes.
    nan : {"propagate", "omit", "raise"}
        How NaN in the data is handled.

    Returns
    -------
    list of str
        A line for the file that was written, and the warnings.

    Raises
    ------
    GennormError
        Something is wrong with the layer, the arrays or the files; nothing has been written.
    """
    if target.suffix.lower() not in SUFFIXES:
        msg = f"{target} cannot be the file of a layer{suggest(target.suffix, SUFFIXES)}\n"
        msg += "the last name is the file of the layer: .npz or .safetensors"
        raise FileError(msg, code="F014")
    _require_free(sources, target, options)
    data = _Data(sources, dtype, report)
    layer = _layer(options, level, data.shape())
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            layer.adapt(data.batches(layer), reset=options.layer is None, nan=nan, progress=False)
    except GennormError as error:
        raise located(error, str(data.current)) if data.current else error from None
    layer.save(target)
    moments = layer.moments
    assert moments is not None
    least, most = (f"{count:,.15g}" for count in (moments.count.min(initial=np.inf), moments.count.max(initial=0)))
    counted = least if least == most else f"{least} to {most}"
    lines = [f"{target}: moments {moments.shape}, each of {counted} elements"]
    return lines + [f"warning: {warning.message}" for warning in found]


def _require_free(sources: list[Path], target: Path, options: LayerOptions) -> None:
    """Refuse to write a layer over data, for example if the last name was forgotten."""
    for path in (*sources, options.config):
        if same_file(target, path):
            msg = f"{target} is an input, and the last name is the file of the layer\n"
            msg += "give the layer another name: gennorm adapt DATA... OUT"
            raise FileError(msg, code="F036")
    if target.exists() and not is_layer(target) and not (target.is_file() and target.stat().st_size == 0):
        msg = f"{target} exists and is not the file of a layer, and the last name is the file of the layer\n"
        msg += "give the layer another name, or remove the file first"
        raise FileError(msg, code="F037")


class _Data:
    """The arrays of files, which are read in pieces."""

    def __init__(self, sources: list[Path], dtype: np.dtype[Any] | None, report: Report) -> None:
        self.sources, self.dtype, self.report = sources, dtype, report
        self.current: Path | None = None
        self.done = 0
        self.total = 0
        for path in sources:
            if path.suffix.lower() not in {".npy", ".npz"}:
                msg = f"{path} is not a file of arrays{suggest(path.suffix, ('.npy', '.npz'))}\n"
                msg += "data are .npy or .npz files; the last name is the file of the layer"
                raise FileError(msg, code="F015")
            if path.suffix.lower() == ".npy":
                self.total += read_npy(path).nbytes
            else:
                with archive_of(path) as archive:
                    self.total += sum(entry.file_size for entry in archive.infolist())

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the first array."""
        for path in self.sources:
            if path.suffix.lower() == ".npy":
                return read_npy(path).shape
            with archive_of(path) as archive:
                for entry in archive.infolist():
                    return entry_of(path, archive, entry).shape
        return ()

    def batches(self, layer: NormalizationLayer) -> Iterator[Array]:
        """Yield every array, in pieces along axis 0 if that is the batch."""
        for path in self.sources:
            self.current = path
            if path.suffix.lower() == ".npy":
                yield from self._pieces(path, layer)
            else:
                with archive_of(path) as archive:
                    yield from self._entries(path, archive)
        self.current = None

    def _pieces(self, path: Path, layer: NormalizationLayer) -> Iterator[Array]:
        file = read_npy(path)
        length = file.shape[0] if file.shape else 1
        try:
            batched = layer.plan(file.shape).resolved.batched
        except GennormError:  # adapt raises it for the whole array, or treats that as one example
            batched = False
        rows = max(CHUNK // max(file.row_bytes, 1), 1) if batched and not file.fortran else max(length, 1)
        for lo in range(0, max(length, 1), rows):
            hi = min(lo + rows, length)
            yield prepared(file.rows(lo, hi), self.dtype)
            self._progress((hi - lo) * file.row_bytes)

    def _entries(self, path: Path, archive: zipfile.ZipFile) -> Iterator[Array]:
        for entry in archive.infolist():
            yield prepared(entry_of(path, archive, entry), self.dtype)
            self._progress(entry.file_size)

    def _progress(self, done: int) -> None:
        self.done += done
        self.report(self.done, self.total)


def _layer(options: LayerOptions, level: str | None, shape: tuple[int, ...]) -> NormalizationLayer:
    described = {"preset": options.preset, "aggregate": options.aggregate, "config": options.config}
    described |= {"layer": options.layer}
    ways = [name for name, value in described.items() if value is not None]
    if not ways:
        named: dict[str, Any] = {} if options.input_levels is None else {"input_levels": options.input_levels}
        return presets.feature_norm(_levels(level, shape, named=bool(named)), **named)
    if level is not None:
        refuse("--level", f"it cannot be combined with --{ways[0]}, which describes the levels")
    layer = build(options, shape)
    if options.layer is not None:
        return layer
    config = {**layer.to_config(), "statistics": "dataset"}
    return NormalizationLayer.from_config(config).initialize(shape)


def _levels(text: str | None, shape: tuple[int, ...], *, named: bool) -> int | tuple[int | str, ...] | None:
    """Return the kept levels for a text such as ``-1``, ``1,3`` or ``none``; they must exist in the array."""
    if text is None:
        return -1
    if text.strip().lower() == "none":
        return None
    try:
        parts = with_braces(text).strip().removeprefix("{").removesuffix("}").split(",")
        levels = tuple(part.strip() if named and is_name(part.strip()) else int(part) for part in parts)
    except ValueError:
        refuse("--level", f'"{text}" names no levels; write -1, or 1,3, or none')
    rank = len(shape) - 1
    for level in levels:
        if isinstance(level, int) and level and not (1 <= level <= rank or -rank <= level <= -1):
            refuse("--level", f"level {level} does not exist: an array of shape {shape} is a batch of rank {rank}")
    return levels
