"""Write the vectors of ``spec/vectors/layers`` from ``reference.py``, or check that they are what it says.

    python spec/generate.py            write the files
    python spec/generate.py --check    fail, with a summary, where they differ

Inputs and parameters are multiples of 1/8 between -4 and 4, exact in float16 and in bfloat16, and made from the names
of the cases: nothing here is random, and a new case changes no other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spec import reference

Array = NDArray[np.float64]
Case = dict[str, Any]

FOLDER = Path(__file__).resolve().parent / "vectors" / "layers"
FORMAT, VERSION = "gennorm/vectors/layers", 1
# NumPy may add in another order on another machine.
ULPS = 8

GEOMETRY = ("aggregation_levels", "scaling_levels", "group_number", "batched")
MOMENTS = (*GEOMETRY, "method")
NORMALIZE = (*MOMENTS, "unbiased", "epsilon", "epsilon_placement")


# One case ------------------------------------------------------------------------------------------------------------


def eighths(name: str, shape: tuple[int, ...]) -> Array:
    numbers = [zlib.crc32(f"{name} {i}".encode()) % 64 - 32 for i in range(int(np.prod(shape)))]
    return np.array(numbers, dtype=np.float64).reshape(shape) / 8


def hexadecimal(value: float) -> str:
    """``float.hex`` without the zeros at the end."""
    text = float(value).hex()
    mantissa, p, exponent = text.partition("p")
    return (mantissa.rstrip("0").rstrip(".") + p + exponent) if "." in mantissa else text


def written(array: Array | None) -> Any:
    return None if array is None else {"shape": list(array.shape), "values": [hexadecimal(v) for v in array.ravel()]}


def written_mask(mask: NDArray[np.bool]) -> Any:
    return {"shape": list(mask.shape), "values": mask.ravel().tolist()}


def case(
    name: str,
    shape: tuple[int, ...] | Array,
    aggregation_levels: reference.Levels,
    scaling_levels: reference.Levels = "Complement",
    *,
    parameters: str = "scaling biases",
    call: str = "",
    each_example: bool = False,
    mask: NDArray[np.bool] | None = None,
    given: tuple[Array | None, Array] | None = None,
    training: bool = False,
    derivative: bool = False,
    exact_in: str = "float16",
    preset: Case | None = None,
    **settings: Any,
) -> Case:
    """One call of one layer.

    `shape` is that of the input, or the input itself. `parameters` and `call` name which of scaling and biases the
    layer holds and which are passed in the call; `given` are the moments the layer holds before the call.
    """
    config: Case = {
        "aggregation_levels": aggregation_levels,
        "scaling_levels": scaling_levels,
        "group_number": None,
        "method": "Standardize",
        "unbiased": False,
        "epsilon": 1e-3,
        "epsilon_placement": "inside",
        "batched": False,
    } | settings
    x = shape if isinstance(shape, np.ndarray) else eighths(f"{name} input", shape)
    where = reference.geometry(x.shape, *(config[key] for key in GEOMETRY))
    sizes = tuple(x.shape[axis] for axis in where.scaling)
    held = {key: eighths(f"{name} {key}", sizes) for key in parameters.split()}
    passed = {key: eighths(f"{name} {key} of the call", (x.shape[0],) * each_example + sizes) for key in call.split()}

    mean, variance = given or (None, None)
    if training:
        mean = variance = None
    arguments = {key: config[key] for key in NORMALIZE} | held | passed | {"mask": mask}
    output = reference.normalize(x, **arguments, mean=mean, variance=variance)
    found: Case = {"name": name, "exact_in": exact_in, "config": written_config(config)}
    if preset is not None:
        found["preset"] = preset
    found["input"] = written(x)
    found["parameters"] = {key: written(held.get(key)) for key in ("scaling", "biases")}
    if given is not None:
        found["given"] = {"mean": written(given[0]), "variance": written(given[1])}
    options = {key: written(value) for key, value in passed.items()}
    if mask is not None:
        options["mask"] = written_mask(mask)
    if training:
        options["training"] = True
    if options:
        found["call"] = options
    found["output"] = written(output)
    if given is None or training:
        count, centre, m2 = reference.moments(x, **{key: config[key] for key in MOMENTS}, mask=mask)
        found["moments"] = {"count": written(count), "mean": written(centre), "m2": written(m2)}
    if training and given is not None:
        old_mean = np.zeros_like(given[1]) if given[0] is None else given[0]
        some = {key: config[key] for key in MOMENTS if key != "batched"} | {"momentum": config["momentum"]}
        moved = reference.moving(old_mean, given[1], x, **some, mask=mask)
        found["moving"] = {"mean": None if given[0] is None else written(moved[0]), "variance": written(moved[1])}
    if derivative:
        dy = eighths(f"{name} derivative", x.shape)
        dx, dscaling, dbiases = reference.vjp(x, dy, **arguments, mean=mean, variance=variance)
        found["derivative"] = {
            "output": written(dy),
            "input": written(dx),
            "scaling": written(dscaling),
            "biases": written(dbiases),
        }
    return found


def written_config(config: Case) -> Case:
    """The constructor's arguments as JSON: no tuples, no integers as keys."""
    found = dict(config)
    for key in ("aggregation_levels", "scaling_levels"):
        if isinstance(found[key], tuple):
            found[key] = list(found[key])
    if isinstance(found["group_number"], dict):
        found["group_number"] = {str(level): number for level, number in found["group_number"].items()}
    if "input_shape" in found:
        found["input_shape"] = ["..." if size is ... else size for size in found["input_shape"]]
    return found


# The files -----------------------------------------------------------------------------------------------------------

PER_RANK: dict[int, tuple[tuple[int, ...], reference.Levels, Any]] = {
    1: ((6,), 1, 2),
    2: ((3, 4), 2, 2),
    3: ((4, 2, 3), "{3, 1}", [1, 2]),
    4: ((2, 2, 3, 2), "2;;All", {-1: 2}),
    5: ((2, 3, 2, 2, 2), "{1, 3;;4}", [2, 1, 2]),
    6: ((2, 1, 2, 2, 3, 2), "1;;All;;2", {1: 2, 5: 3}),
}
METHODS: list[Case] = [
    {"method": method, "epsilon_placement": placement, "unbiased": unbiased}
    for method in ("Standardize", "RMS")
    for placement in ("inside", "floor", "outside")
    for unbiased in (False, True)
    if not (unbiased and method == "RMS")
]


def methods() -> Iterator[Case]:
    """Every method, placement of epsilon and estimator, with and without groups, for each kind of scaling levels."""
    kinds = ["Complement", "Same", "{}", "{-1, 1}", None]
    for m, method in enumerate(METHODS):
        for n, (kind, grouped, batched) in enumerate(itertools.product(kinds, (False, True), (False, True))):
            rank = (m + n) % 6 + 1
            shape, aggregation, groups = PER_RANK[rank]
            name = [*method.values(), f"rank {rank}", f"scaling {kind}", f"groups {grouped}", f"batched {batched}"]
            yield case(
                ", ".join(map(str, name)),
                ((2, *shape) if batched else shape),
                aggregation,
                ("{}" if rank == 1 and kind == "{-1, 1}" else kind or "Complement"),
                parameters="scaling biases" if kind else "",
                group_number=groups if grouped else None,
                epsilon=(1e-3, 0.5, 2.0)[n % 3],
                batched=batched,
                derivative=n % 5 == m % 5,
                **method,
            )


def levels() -> Iterator[Case]:
    """Every set of aggregation levels up to rank 3, patterns of runs up to rank 6, and the spellings of level specs."""
    sizes = (2, 3, 2, 2, 3, 2)
    for rank in (1, 2, 3):
        for count in range(1, rank + 2):
            for chosen in itertools.combinations(range(rank + 1), count):
                for batched in (False, True):
                    if batched or 0 not in chosen:
                        shape = (2,) * batched + sizes[:rank]
                        yield case(f"rank {rank}, {chosen}, batched {batched}", shape, chosen, batched=batched)
    patterns: dict[int, list[reference.Levels]] = {
        4: ["All", "1;;2", "3;;4", "2;;3", "{1, 4}", "{2, 4}", "{1, 3}", "{0, 3}", "{0, 2;;4}"],
        5: ["All", "2;;All", "{1, 3, 5}", "{2, 4}", "{0, 1, 5}"],
        6: ["All", "{1, 2, 5, 6}", "{3, 4}", "{1, 3, 5}", "{2, 4, 6}", "{0, 2, 4, 6}"],
    }
    for rank, specs in patterns.items():
        for spec in specs:
            for batched in (False, True):
                if batched or not str(spec).startswith("{0"):
                    shape = (2,) * batched + sizes[:rank]
                    yield case(f"rank {rank}, {spec}, batched {batched}", shape, spec, batched=batched)
    spellings: list[tuple[reference.Levels, reference.Levels]] = [
        (-1, 1), ("-1", "1"), ("2;;All", "Same"), (";;-2", "All"), ("-2;;-1", "{3, 1}"), ("1;;", "2;;"),
        ((3, 1), (2, 1)), (("1;;2",), -3), ("1;;All;;2", ()), ("{3, 1;;2}", "Same"), (";;", "Complement"),
    ]  # fmt: skip
    for aggregation, scaling in spellings:
        for batched in (False, True):
            shape = (2,) * batched + (2, 3, 2)
            yield case(
                f"{aggregation!r} and {scaling!r}, batched {batched}", shape, aggregation, scaling, batched=batched
            )
    for spec, shape in (("{0, 2;;All}", (4, 3)), ("{0, ;;-2}", (4, 3)), ("0;;All", (4,)), (0, (3, 1, 2))):
        yield case(f"{spec} of a batch {shape}", shape, spec, batched=True)
    yield case("slices of one element", (3, 1, 2), 2)
    yield case("sizes of one", (1, 1, 1), "All", "All")
    yield case("an axis of size zero is kept", (0, 3), 2)
    yield case("an axis of size zero is aggregated", (3, 0), 2)
    yield case("an empty batch", (0, 3, 2), "2", batched=True)


def groups() -> Iterator[Case]:
    """Groups on one level, on several and on the batch; as an integer, a sequence and a mapping."""
    for number in (1, 2, 3, 6):
        yield case(f"{number} groups", (2, 6), 2, group_number=number)
        yield case(f"group norm, {number} groups", (2, 6, 2, 2), "All", 1, group_number=[number, 1, 1], batched=True)
        yield case(f"channels last, {number} groups", (2, 2, 2, 6), "All", -1, group_number={-1: number}, batched=True)
    yield case("a sequence follows the order written", (4, 6), "{2, 1}", "Same", group_number=[3, 2])
    yield case("the same, upwards", (4, 6), "{1, 2}", "Same", group_number=[2, 3])
    yield case("every level in groups", (4, 2, 6), "All", (), group_number={1: 2, 2: 2, 3: 3})
    yield case("two kept levels beside groups", (2, 4, 3), 2, group_number=2)
    yield case("ghost batches", (6, 3, 2), "{0, 2}", 1, group_number={0: 3}, batched=True)
    yield case("ghost batches of channels in groups", (4, 4, 2), "0;;2", 1, group_number=[2, 2, 1], batched=True)
    yield case("groups of the root mean square", (2, 6), 2, "Same", group_number=2, method="RMS")


def parameters() -> Iterator[Case]:
    """Which levels carry parameters and in which order; parameters absent, of the layer, of the call, of an example."""
    shape = (2, 3, 4)
    for held in ("", "scaling", "biases", "scaling biases"):
        yield case(f"held: {held or 'nothing'}", shape, "2;;All", parameters=held, derivative=True)
        yield case(f"held: {held or 'nothing'}, RMS", shape, 3, "Same", parameters=held, method="RMS")
    for scaling in itertools.chain.from_iterable(itertools.permutations((1, 2, 3), count) for count in range(4)):
        for batched in (False, True):
            yield case(
                f"scaling levels {scaling}, batched {batched}", (2,) * batched + shape, 2, scaling, batched=batched
            )
    for passed in ("scaling", "biases", "scaling biases"):
        for scaling_levels in ("Complement", "{3, 1}", ()):
            for each in (False, True):
                name = f"of the call: {passed}, levels {scaling_levels}, each example {each}"
                yield case(
                    name, (2, *shape), 3, scaling_levels, parameters="", call=passed, each_example=each, batched=True
                )
    yield case("the call replaces the scaling of the layer", shape, 3, call="scaling")
    yield case("the call replaces the biases of the layer", shape, 3, call="biases")
    yield case("adaptive instance normalization", (3, 2, 2, 2), "2;;All", parameters="", call="scaling biases",
               each_example=True, batched=True, derivative=True)  # fmt: skip


def mask_of(name: str, shape: tuple[int, ...]) -> NDArray[np.bool]:
    return eighths(f"{name} mask", shape) >= -1.5


def masks() -> Iterator[Case]:
    """Masks of every broadcastable shape: they change the statistics and nothing else."""
    for m, method in enumerate(METHODS):
        for n, sizes in enumerate(((4, 3, 5), (4, 1, 5), (1, 3, 1), (5,), (4, 1, 1))):
            name = f"{', '.join(map(str, method.values()))}, mask of shape {sizes}"
            aggregation: reference.Levels = ("2", "{0, 2}", "All", "0;;All")[(m + n) % 4]
            scaling = "{}" if aggregation == "0;;All" else "Complement"
            yield case(name, (4, 3, 5), aggregation, scaling, mask=mask_of(name, sizes), batched=True,
                       derivative=n == 0, **method)  # fmt: skip
    half = np.array([True, True, False, False, True, True, True, True])
    yield case("a group where half counts", (2, 8), 2, group_number=2, mask=half)
    yield case("one element counts", (2, 4), 2, mask=np.arange(4) == 2)
    yield case("one element counts, unbiased", (2, 4), 2, mask=np.arange(4) == 2, unbiased=True)
    for placement in ("inside", "floor", "outside"):
        yield case(f"nothing counts, {placement}", (2, 4), 2, mask=np.array(False), epsilon_placement=placement)
    yield case("nothing counts in one slice", (3, 4), 2, mask=np.array([[True], [False], [True]]))
    unseen = eighths("what is not counted", (2, 4))
    unseen[0, 1], unseen[1, 2], unseen[1, 3] = np.nan, np.inf, -np.inf
    yield case("what does not count may be anything", unseen, 2, mask=np.isfinite(unseen))


def given() -> Iterator[Case]:
    """Moments that the layer holds: inference with moving moments, and statistics of a dataset."""
    for statistics in ("moving", "dataset"):
        for m, method in enumerate(METHODS):
            if method["unbiased"]:
                continue
            for spec, shape, kept in (("{0, 2;;All}", (2, 3, 4), (3,)), ("0;;All", (4, 3), ()), (0, (4, 2, 3), (2, 3))):
                name = f"{statistics}, {method['method']}, {method['epsilon_placement']}, {spec}"
                mean = None if method["method"] == "RMS" else eighths(f"{name} mean", kept)
                moments = (mean, np.abs(eighths(f"{name} variance", kept)) + 0.125)
                yield case(name, shape, spec, batched=True, given=moments, statistics=statistics,
                           scaling_levels="{}" if spec == "0;;All" else "Complement",
                           derivative=m % 2 == 0, **method)  # fmt: skip
    zero = (np.array([0.5, 1.0, 2.0]), np.array([0.0, 1.0, 4.0]))
    for placement in ("floor", "outside", "inside"):
        yield case(f"a feature that never varied, {placement}", (4, 3), 0, batched=True, given=zero, parameters="",
                   statistics="dataset", epsilon=1e-7, epsilon_placement=placement)  # fmt: skip
    yield case("batches not aggregated use the moving moments of all", (2, 3, 4), 2, 1, batched=True, given=zero,
               statistics="moving")  # fmt: skip


def moving() -> Iterator[Case]:
    """Training with moving moments: the output of the input's moments, and what the layer holds afterwards."""
    start = (np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    later = (np.array([0.5, -1.0, 2.0]), np.array([0.25, 3.0, 1.5]))
    common: Case = {"batched": True, "statistics": "moving", "training": True}
    for name, held in (("first", start), ("later", later)):
        for momentum in (0.0, 0.5, 0.99, 1.0):
            yield case(
                f"{name} batch, momentum {momentum}", (4, 3, 2), "{0, 2}", given=held, momentum=momentum, **common
            )
    yield case("the moving variance is biased", (4, 3), 0, given=later, momentum=0.5, unbiased=True, **common)
    yield case("the root mean square", (4, 3), 0, given=(None, later[1]), momentum=0.5, method="RMS", **common)
    yield case("a batch with a mask", (4, 3), 0, given=later, momentum=0.5, mask=mask_of("moving", (4, 1)), **common)
    yield case("instances are averaged", (4, 3, 5), 2, 1, given=later, momentum=0.5, **common)
    yield case("ghost batches are averaged", (4, 3), 0, 1, given=later, momentum=0.5, group_number=2, **common)


def degenerate() -> Iterator[Case]:
    """Slices without variance: the biases, where epsilon is 0 as well."""
    constant = np.array([[0.1] * 7, [-2.5] * 7, [0.0] * 7])
    for epsilon in (0.0, 1e-3):
        for placement in ("inside", "floor", "outside"):
            for method in ("Standardize", "RMS"):
                name = f"constant, epsilon {epsilon} {placement}, {method}"
                yield case(name, constant, 2, epsilon=epsilon, epsilon_placement=placement, method=method,
                           exact_in="float64", derivative=True)  # fmt: skip
    mixed = np.array([[1.5, 1.5, 1.5, 1.5], [1.5, 1.0, 2.0, 1.5]])
    yield case("constant beside varying, epsilon 0", mixed, 2, epsilon=0.0)
    yield case("epsilon 0 of varying slices", (3, 5), 2, epsilon=0.0)
    yield case("one element, epsilon 0", (3, 1), 2, epsilon=0.0)
    yield case("nothing counts, epsilon 0", (2, 3), 2, epsilon=0.0, mask=np.array(False))
    outside = np.array([[2.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    yield case("the counted are constant, epsilon 0", outside, 2, epsilon=0.0, mask=np.array([True, True, False]))
    zeros = (np.zeros(3), np.array([0.0, 1.0, 0.0]))
    yield case("given variance 0, epsilon 0", (2, 3), 0, epsilon=0.0, given=zeros, batched=True, statistics="dataset")


def not_finite() -> Iterator[Case]:
    """NaN and infinity stay in their slice."""
    for number in (np.nan, np.inf, -np.inf):
        for method in ("Standardize", "RMS"):
            for aggregation, scaling in ((2, 1), (1, 2), ("All", ())):
                x = eighths(f"{number} {method} {aggregation}", (3, 4))
                x[1, 2] = number
                yield case(f"{number}, {method}, {aggregation}", x, aggregation, scaling, method=method)
    x = eighths("infinities of both signs", (3, 4))
    x[0, 0], x[0, 1] = np.inf, -np.inf
    yield case("infinities of both signs", x, 2)
    x = eighths("not a number in a group", (2, 6))
    x[0, 4] = np.nan
    yield case("not a number in a group", x, 2, group_number=2)


def numerics() -> Iterator[Case]:
    """A mean far from zero, and numbers whose squares leave the range of float32."""
    for method in ("Standardize", "RMS"):
        for aggregation, scaling in ((2, 1), (1, 2)):
            name = f"{method} over {aggregation}"
            x = eighths(name, (6, 8))
            yield case(f"{name}, mean 2^20", x + 2**20, aggregation, scaling, method=method, exact_in="float32")
            yield case(f"{name}, scale 2^100", x * 2.0**100, aggregation, scaling, method=method, exact_in="float32")
            small: Case = {"method": method, "epsilon": 0.0, "exact_in": "float32"}
            yield case(f"{name}, scale 2^-100", x * 2.0**-100, aggregation, scaling, **small)


def presets() -> Iterator[Case]:
    """The five presets beside the layers they are."""

    def preset(function: str, arguments: list[Any], keywords: Case | None = None) -> Case:
        return {"function": function, "arguments": arguments, "keywords": keywords or {}}

    shape: tuple[int, ...]
    last: tuple[int, ...]
    held = (np.array([0.5, -1.0, 2.0]), np.array([0.25, 3.0, 1.5]))
    moving_moments: Case = {"statistics": "moving", "momentum": 0.99, "given": held, "batched": True}
    for shape in ((4, 3), (4, 3, 2), (2, 3, 2, 2), (2, 3, 2, 1, 2)):
        first: Case = {"input_shape": (3, ...), "preset": preset("batch_norm", [3])}
        for training in (False, True):
            yield case(f"batch norm {shape}, training {training}", shape, "{0, 2;;All}", 1, training=training,
                       **first, **moving_moments)  # fmt: skip
        last = (shape[0], *shape[2:], 3)
        keywords: Case = {"input_shape": (..., 3), "preset": preset("batch_norm", [3], {"channel_level": -1})}
        for training in (False, True):
            yield case(f"batch norm {last}, channels last, training {training}", last, "{0, ;;-2}", -1,
                       training=training, **keywords, **moving_moments)  # fmt: skip
    for function, method, epsilon in (("layer_norm", "Standardize", 1e-3), ("rms_norm", "RMS", 1e-6)):
        common: Case = {"method": method, "epsilon": epsilon, "parameters": "scaling"}
        for shape in ((4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)):
            yield case(f"{function} {shape}", shape, -1, "Same", input_shape=(..., 4), preset=preset(function, [4]),
                       **common)  # fmt: skip
        yield case(f"{function} of two levels", (2, 3, 4), "-2;;-1", "Same", input_shape=(..., 3, 4),
                   preset=preset(function, [[3, 4]]), **common)  # fmt: skip
    yield case("layer_norm with biases", (2, 3, 4), -1, "Same", input_shape=(..., 4), preset=preset("layer_norm", [4]))
    for shape in ((2, 3, 4), (2, 3, 2, 2), (2, 3, 2, 2, 2)):
        yield case(f"instance norm {shape}", shape, "2;;All", 1, input_shape=(3, ...), batched=True,
                   preset=preset("instance_norm", [3]))  # fmt: skip
        last = (shape[0], *shape[2:], 3)
        yield case(f"instance norm {last}, channels last", last, ";;-2", -1, input_shape=(..., 3), batched=True,
                   preset=preset("instance_norm", [3], {"channel_level": -1}))  # fmt: skip
    for shape in ((2, 6), (2, 6, 2), (2, 6, 2, 2), (2, 6, 2, 1, 2)):
        yield case(f"group norm {shape}", shape, "All", 1, group_number={1: 3}, input_shape=(6, ...), batched=True,
                   preset=preset("group_norm", [3, 6]))  # fmt: skip
        last = (shape[0], *shape[2:], 6)
        yield case(f"group norm {last}, channels last", last, "All", -1, group_number={-1: 3}, input_shape=(..., 6),
                   batched=True, preset=preset("group_norm", [3, 6], {"channel_level": -1}))  # fmt: skip


FILES = (methods, levels, groups, parameters, masks, given, moving, degenerate, not_finite, numerics, presets)


def text_of(cases: list[Case], title: str) -> str:
    """JSON with one line for each member of a case: small differences stay small."""
    bodies = []
    for one in cases:
        lines = ",\n".join(f'      "{key}": {json.dumps(value, allow_nan=False)}' for key, value in one.items())
        bodies.append(f"    {{\n{lines}\n    }}")
    head = f'  "format": "{FORMAT}",\n  "version": {VERSION},\n  "title": {json.dumps(title, ensure_ascii=False)},\n'
    return "{\n" + head + '  "cases": [\n' + ",\n".join(bodies) + "\n  ]\n}\n"


def texts() -> dict[str, str]:
    """Every file by its name."""
    found = {}
    for make in FILES:
        cases = list(make())
        names = [one["name"] for one in cases]
        twice = {name for name in names if names.count(name) > 1}
        reference.require(not twice, f"{make.__name__}: cases of one name: {twice}")
        found[f"{make.__name__}.json"] = text_of(cases, (make.__doc__ or "").strip())
    return found


# Comparison ----------------------------------------------------------------------------------------------------------


def differences(stored: Any, made: Any, path: str) -> Iterator[str]:
    """Where two JSON values differ by more than the last few bits of a number."""
    if isinstance(stored, dict) and isinstance(made, dict):
        for key in [*stored, *(key for key in made if key not in stored)]:
            if key not in stored or key not in made:
                yield f"{path}.{key}: only in the {'file' if key in stored else 'reference'}"
            else:
                yield from differences(stored[key], made[key], f"{path}.{key}")
    elif isinstance(stored, list) and isinstance(made, list) and len(stored) == len(made):
        for i, (a, b) in enumerate(zip(stored, made, strict=True)):
            yield from differences(a, b, f"{path}[{a['name'] if isinstance(a, dict) and 'name' in a else i}]")
    elif stored != made and not near(stored, made):
        yield f"{path}: {stored!r} in the file, {made!r} from the reference"


def near(stored: object, made: object) -> bool:
    try:
        a, b = float.fromhex(str(stored)), float.fromhex(str(made))
    except ValueError:
        return False
    return bool(abs(a - b) <= ULPS * np.spacing(max(abs(a), abs(b))))


def summary(folder: Path = FOLDER) -> list[str]:
    """What differs between the files of a folder and the reference."""
    made = texts()
    stored = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*")}
    lines = [f"{name}: not made by spec/generate.py" for name in sorted(stored.keys() - made.keys())]
    lines += [f"{name}: missing" for name in sorted(made.keys() - stored.keys())]
    for name in sorted(stored.keys() & made.keys()):
        if stored[name] == made[name]:
            continue
        try:
            found = list(differences(json.loads(stored[name]), json.loads(made[name]), name.removesuffix(".json")))
        except json.JSONDecodeError as error:
            found = [f"{name}: not JSON: {error}"]
        lines += found[:5] + ([f"{name}: {len(found) - 5} more"] if len(found) > 5 else [])
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Vectors of the specification, from spec/reference.py.")
    parser.add_argument("--check", action="store_true", help="compare with the stored files and write nothing")
    if parser.parse_args(arguments).check:
        lines = summary()
        print("\n".join(lines) or "the vectors are what spec/reference.py says")
        return 1 if lines else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{FOLDER.name}/{name}: {len(json.loads(text)['cases'])} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
