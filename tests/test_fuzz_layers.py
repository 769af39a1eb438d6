"""Random sequences of operations on layers, each compared with a model by the specification.

A state machine of Hypothesis draws the operations. After each step the layers' states, all earlier outputs and
gradients and all arrays of the caller have to be what the model says. Every session draws the same sequences;
``pytest tests/test_fuzz_layers.py --fuzz-seconds 600`` continues with new ones. A failure prints the shortest sequence
of operations that fails, and the seed that repeats it.
"""

import copy
import io
import pickle
import secrets
import time
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import gennorm as gn
from gennorm import engine
from gennorm.engine.compiler import CompilationError
from spec import reference
from tests import accuracy, derivatives, strategies
from tests.engines import in_plain_python
from tests.model import HALVES, Held, Model, assert_moments, expected, pooled, result_of
from tests.strategies import FLOATS, buffer_of, dtype_of, sample, slow

MOST_LAYERS, MOST_ARRAYS, MOST_PULLBACKS = 4, 40, 6
CHANGES = {
    "epsilon": (1e-3, 1e-5, 0.0, 0.5),
    "epsilon_placement": ("inside", "floor", "outside"),
    "momentum": (0.0, 0.5, 0.9, 1.0),
    "trainable": (True, False),
    "unbiased": (True, False),
    "learning_rate_multipliers": (None, 2.0, {"scaling": 0.5}),
}
NUMBERS = st.integers(0, 2**16)


class Own(np.ndarray):
    """A subclass of arrays; a layer reads it as an array."""


class Template(NamedTuple):
    """A layer whose kernels are compiled: the shape of a batch, and its settings."""

    shape: tuple[int, ...]
    settings: dict


TEMPLATES = [
    Template((4, 24), {"aggregation_levels": -1, "scaling_levels": "Same"}),
    Template((3, 5, 40), {"aggregation_levels": -1, "scaling_levels": "Same", "method": "RMS"}),
    Template((2, 300, 128), {"aggregation_levels": -1, "scaling_levels": "Same"}),  # shared by threads, and pooled
    Template((2, 6, 5, 7), {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 3}}),
    Template((4, 3, 6), {"aggregation_levels": "{0, 2;;All}", "scaling_levels": 1}),
    Template((5, 4, 3), {"aggregation_levels": "{0, 1;;-2}", "scaling_levels": -1}),
    Template((4, 6), {"aggregation_levels": 0, "scaling_levels": 1, "group_number": {0: 2}}),
]


class Pending(NamedTuple):
    """A pullback that has not been called, or not for the last time, and what it belongs to."""

    pullback: object
    x: np.ndarray  # as a batch of one where it was passed as one example
    settings: dict
    others: dict
    alone: bool
    original: np.ndarray


def eighths(shape, number, *, nonzero=False):
    """Parameters that every dtype of parameters can hold."""
    values = np.asarray(np.rint(np.random.default_rng(number).normal(1, 0.7, shape) * 8) / 8)
    return np.asarray(np.where(values == 0, 0.5, values)) if nonzero else values


class Layers(RuleBasedStateMachine):
    """Layers and their models."""

    dtypes = strategies.DTYPES

    def __init__(self):
        super().__init__()
        self.layers = []
        self.arrays = {}  # what has to stay as it is: an array, a copy of its bytes, and what it is
        self.pending = []
        self.threads = gn.get_num_threads()
        self.patch = pytest.MonkeyPatch()
        engine.fallback_reason()
        self.patch.setattr(engine, "_reason", None)
        self.prepare()

    def prepare(self):
        """Choose the engine."""

    def teardown(self):
        gn.set_num_threads(self.threads)
        self.patch.undo()

    # Drawing ---------------------------------------------------------------------------------------------------------

    def one(self, data):
        """A layer and its model."""
        return self.layers[data.draw(st.integers(0, len(self.layers) - 1), "layer")]

    def ready(self, data):
        """A layer that can be called."""
        layer, model = self.one(data)
        if model.statistics == "dataset" and model.held is None:
            kept = self.held_shape(model)
            mean = None if model.settings["method"] == "RMS" else np.full(kept, 0.5)
            layer.moments = gn.Moments(np.full(kept, 2.0), mean, np.full(kept, 3.0))
            model.held = Held.of(layer.moments)
        return layer, model

    def keep(self, array, what):
        """Remember an array that nothing may change from now on."""
        if len(self.arrays) >= MOST_ARRAYS:
            del self.arrays[next(iter(self.arrays))]
        self.arrays[len(self.arrays), id(array), what] = array, array.tobytes(), what
        return array

    def shape(self, data, model, batch=None, filled=False):
        """A shape that the layer takes: sizes vary where neither parameters nor held moments depend on them."""
        shape = list(model.shape)
        whole = np.empty(shape)
        where = model.geometry(whole)
        first = 0 if model.is_batch(whole) else 1
        grouped = {level - first for level, number in model.groups.items() if number > 1}
        for axis in range(len(shape)):
            level = axis + first
            held = model.statistics != "input" and level not in model.aggregated
            if level and (axis in where.scaling or held or axis in grouped):
                continue
            if data.draw(st.integers(0, 3), "vary") == 0:
                step = model.groups.get(0, 1) if level == 0 else 1
                shape[axis] = data.draw(st.sampled_from([2, 3, 1, 5] if filled else [2, 3, 1, 5, 0]), "size") * step
        # One example is no batch that could be split into groups.
        alone = 0 not in model.aggregated or (model.statistics == "dataset" and model.groups.get(0, 1) == 1)
        if model.batched is None and batch is None and alone and data.draw(st.booleans(), "one example"):
            shape = shape[1:]
        x = np.empty(shape)
        if model.settings["unbiased"] and model.geometry(x[None] if model.is_alone(x) else x).size == 1:
            return model.shape
        return tuple(shape)

    def array(self, data, model, *, batch=None, plain=False, dtypes=None):
        """An input of any dtype and layout."""
        shape = self.shape(data, model, batch, filled=plain)
        dtype = data.draw(st.sampled_from(dtypes or self.dtypes), "dtype")
        values = sample(shape, dtype, data.draw(NUMBERS, "values"))
        kind = data.draw(st.sampled_from(["normal"] * 6 + ["constant", "far", "spoiled"]), "kind")
        if plain:
            kind = "normal"
        if kind == "constant":
            values = np.full(shape, values.reshape(-1)[0] if values.size else 0, values.dtype)
        if kind == "far" and dtype in ("float32", "float64"):
            values = values + values.dtype.type(1000)
        if kind == "spoiled" and dtype in FLOATS and values.size:
            values.reshape(-1)[data.draw(NUMBERS, "place") % values.size] = data.draw(st.sampled_from([np.nan, np.inf]))
        x = data.draw(strategies.layouts(len(shape)), "layout").hold(values)
        x = x.view(Own) if data.draw(st.integers(0, 7), "subclass") == 0 else x
        return self.keep(x, "an input")

    def out(self, data, model, x):
        """An output array of any layout, with guarded memory around it, or the input itself."""
        name = result_of(x)
        if x.dtype == dtype_of(name) and x.flags.writeable and data.draw(st.booleans(), "in place"):
            values = x.copy()
            own = strategies.layout(x.ndim).hold(values)
            return own, own
        return x, data.draw(strategies.layouts(x.ndim, writable=True), "layout of out").empty(x.shape, dtype_of(name))

    def mask(self, data, x):
        if data.draw(st.integers(0, 2), "masked"):
            return None
        shape = tuple(data.draw(st.sampled_from([1, size]), "axis of the mask") for size in x.shape)
        return np.random.default_rng(data.draw(NUMBERS, "mask")).random(shape) < 0.7

    def parameter(self, data, model, x):
        """A parameter of a call, and the same as an array for the model; None where the layer's own is used."""
        form = data.draw(st.sampled_from(["own", "own", "array", "list", "per example", "strided"]), "parameter")
        if form == "own":
            return None, None
        where = model.geometry(x)
        shape = tuple(x.shape[axis] for axis in where.scaling)
        if form == "per example" and model.is_batch(x):
            shape = (x.shape[0], *shape)
        values = eighths(shape, data.draw(NUMBERS, "values"))
        if form == "list" and values.size:
            return values.tolist(), values
        given = values.astype(data.draw(st.sampled_from(["float32", "float64", "float16"]), "dtype"))
        if form == "strided":
            given = np.repeat(given[..., None], 2, -1)[..., 1]
        return given, values

    def moments(self, data, model, x, *, apart):
        """Moments to normalize by, in any form, and the mean and variance that they stand for."""
        kept = model.geometry(x, apart=apart).kept
        shape = tuple(1 if data.draw(st.integers(0, 4), "broadcast") == 0 else size for size in kept)
        rng = np.random.default_rng(data.draw(NUMBERS, "moments"))
        mean, variance = np.asarray(rng.normal(0, 1, shape)), np.asarray(rng.gamma(2, 1, shape))
        rms, unbiased = model.settings["method"] == "RMS", model.settings["unbiased"]
        form = data.draw(st.sampled_from(["moments", "pair", "squares"]), "form")
        if form == "pair" and apart:
            own = mean.copy(), variance.copy()  # the caller's, which are written to after the call
            return (None if rms else own[0], own[1]), (None if rms else mean, variance), [*own]
        count = np.asarray(rng.integers(2, 9, shape), float)
        if rms and form == "squares":
            return gn.Moments(count, None, variance * count), (None, variance), []
        given = gn.Moments(count, mean, variance * count)
        if rms:
            return given, (None, variance + mean**2), []
        return given, (mean, variance * count / (count - 1) if unbiased else variance), []

    # What has to hold after each step --------------------------------------------------------------------------------

    @invariant()
    def nothing_else_changes(self):
        for array, before, what in self.arrays.values():
            assert array.tobytes() == before, f"{what} has changed"
        for layer, model in self.layers:
            for name in ("scaling", "biases"):
                own, wanted = getattr(layer, name), getattr(model, name)
                assert (own is None) == (wanted is None)
                if wanted is not None:
                    assert own.dtype == dtype_of(model.dtype)
                    assert own.astype(np.float64).tobytes() == wanted.tobytes(), name
            assert (layer.moments is None) == (model.held is None)
            if model.held is not None:
                for one, other in zip(Held.of(layer.moments), model.held, strict=True):
                    assert (one is None) == (other is None)
                    assert one is None or np.array_equal(one, other, equal_nan=True)

    def learned(self, layer, model, x, mask):
        """Compare moving moments after training, and let the model hold the layer's."""
        wanted, count = model.learned(x, mask), layer.moments.count
        assert np.all(count == 1) or np.array_equal(count, model.held.count)  # the latter where nothing was counted
        assert_moments(layer.moments, wanted._replace(count=count), result_of(x) in HALVES)
        model.held = Held.of(layer.moments)

    def adapted(self, layer, model, batches, weights):
        wanted = pooled(model.adapted(batches, weights), model.settings["method"] == "RMS")
        assert_moments(layer.moments, wanted, any(result_of(x) in HALVES for x in batches))
        model.held = Held.of(layer.moments)

    # Calls -----------------------------------------------------------------------------------------------------------

    def drawn_call(self, data, layer, model, x, *, moments=True):
        """Arguments of a call, what they stand for in the reference, and arrays to write to afterwards."""
        alone = model.is_alone(x)
        batch = x[None] if alone else x
        arguments, others, caller = {}, {}, []
        training = data.draw(st.booleans(), "training")
        mask = self.mask(data, x)
        if mask is not None:
            arguments["mask"] = mask.copy()
            others["mask"] = mask[None] if alone else mask
            caller.append(arguments["mask"])
        for name in ("scaling", "biases"):
            given, values = self.parameter(data, model, batch)
            others[name] = getattr(model, name) if given is None else values
            if given is not None:
                arguments[name] = given
                if isinstance(given, np.ndarray):
                    caller.append(given)
        pair = None
        if moments and data.draw(st.integers(0, 3), "given moments") == 0:
            arguments["moments"], pair, written = self.moments(data, model, batch, apart=True)
            caller += written
        stats = model.moments_for(training, pair)
        where = model.settings_for(batch, apart=bool(stats))
        if stats:
            others.pop("mask", None)
        return arguments | {"training": training}, {**others, **stats}, where, mask, caller, batch, alone

    def spoil(self, caller):
        """Write into the arrays that the caller passed: the call is over."""
        for array in caller:
            array[...] = True if array.dtype == bool else 77

    def legal(self, model, training, where, batch, stats):
        """Whether unbiased variances exist, which a call has to refuse otherwise."""
        own = "variance" not in stats
        return not (model.settings["unbiased"] and own and model.geometry(batch).size == 1)

    @rule(data=st.data())
    def call(self, data):
        layer, model = self.ready(data)
        x = self.array(data, model)
        arguments, others, where, mask, caller, batch, alone = self.drawn_call(data, layer, model, x)
        training = arguments["training"]
        plain = data.draw(st.booleans(), "plain call")
        if plain:
            arguments = {"training": training}
            stats = model.moments_for(training)
            others = {"scaling": model.scaling, "biases": model.biases, **stats}
            where, mask = model.settings_for(batch, apart=bool(stats)), None
        times = data.draw(st.integers(1, 2), "times")
        learns = model.learns(training) and "moments" not in arguments
        out = None
        values = np.array(batch)
        for _ in range(1 if learns else times):
            source = x
            if not plain and data.draw(st.integers(0, 2), "out") == 0:
                source, out = self.out(data, model, x)
                before = buffer_of(out).copy()
                y = layer(source, **arguments, out=out)
                assert y is out
                assert_only_written(out, before)
            else:
                y = layer(source, **arguments)
                assert type(y) is np.ndarray
            assert y.dtype == dtype_of(result_of(x))
            accuracy.assert_within(y[None] if alone else y, *expected(values, where, **others))
            self.keep(y, "an output")
        self.spoil(caller)
        if learns:
            self.learned(layer, model, x, mask)

    @rule(data=st.data())
    def call_on_list(self, data):
        layer, model = self.ready(data)
        xs = [self.array(data, model) for _ in range(data.draw(st.integers(0, 3), "arrays"))]
        training = data.draw(st.booleans(), "training")
        ys = layer(xs, training=training)
        assert isinstance(ys, list)
        learns = model.learns(training)
        for x, y in zip(xs, ys, strict=True):
            batch = x[None] if model.is_alone(x) else x
            stats = model.moments_for(training)
            where = model.settings_for(batch, apart=bool(stats))
            wanted = expected(np.array(batch), where, model.scaling, model.biases, **stats)
            accuracy.assert_within(y[None] if model.is_alone(x) else y, *wanted)
            self.keep(y, "an output of a list")
            if learns:
                model.held = model.learned(x)
        if learns and xs:
            wanted = model.held._replace(count=layer.moments.count)
            assert_moments(layer.moments, wanted, any(result_of(x) in HALVES for x in xs))
            model.held = Held.of(layer.moments)

    @rule(data=st.data())
    def vjp(self, data):
        layer, model = self.ready(data)
        x = self.array(data, model)
        arguments, others, where, mask, caller, batch, alone = self.drawn_call(data, layer, model, x)
        y, pullback = layer.vjp(x, **arguments)
        values = np.array(batch)
        accuracy.assert_within(y[None] if alone else y, *expected(values, where, **others))
        self.keep(y, "an output of vjp")
        self.spoil(caller)
        others = {name: None if value is None else np.array(value) for name, value in others.items()}
        self.pending = [*self.pending[1 - MOST_PULLBACKS :], Pending(pullback, values, where, others, alone, x)]
        if model.learns(arguments["training"]) and "moments" not in arguments:
            self.learned(layer, model, x, mask)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def pull_back(self, data):
        """A pullback is called any number of times, long after its layer has changed."""
        late = self.pending[data.draw(st.integers(0, len(self.pending) - 1), "pullback")]
        shape = late.x.shape[late.alone :]
        dtype = data.draw(st.sampled_from([late.pullback._dtype.name, *FLOATS]), "dtype")
        values = sample(shape, dtype, data.draw(NUMBERS, "gradient"))
        dy = data.draw(strategies.layouts(len(shape)), "layout").hold(values)
        found = late.pullback(dy)
        for name in ("input", "scaling", "biases"):
            value, own = getattr(found, name), late.others.get(name)
            assert (value is None) == (name != "input" and own is None)
            if value is not None:
                self.keep(value, f"the gradient of {name}")
        assert found.input.dtype == dtype_of(result_of(late.x))
        # With epsilon 0, the derivative of a constant slice has no bound; that of NaN is only known to be none.
        if late.settings["epsilon"] and np.all(np.isfinite(late.x.astype(np.float64))):
            whole = found
            gradient = np.array(dy).astype(dtype_of(result_of(late.x)))
            if late.alone:
                whole, gradient = type(found)(found.input[None], found.scaling, found.biases), gradient[None]
            derivatives.judge(whole, late.x, gradient, late.settings, **late.others)

    @rule(data=st.data())
    def jvp(self, data):
        layer, model = self.ready(data)
        x = self.array(data, model)
        arguments, others, where, mask, caller, batch, alone = self.drawn_call(data, layer, model, x)
        result = dtype_of(result_of(x))
        dx = None
        if data.draw(st.integers(0, 4), "direction"):
            values = sample(x.shape, data.draw(st.sampled_from(FLOATS), "dtype"), data.draw(NUMBERS, "direction"))
            dx = data.draw(strategies.layouts(x.ndim), "layout").hold(values)
        directions = {}
        for name in ("scaling", "biases"):
            given, values = self.parameter(data, model, batch)
            if given is not None and others[name] is not None:
                arguments[f"d{name}"], directions[name] = given, values
        y, dy = layer.jvp(x, dx, **arguments)
        y, dy = self.keep(y, "an output of jvp"), self.keep(dy, "a derivative")
        assert dy.dtype == result
        values = np.array(batch)
        y, dy = (y[None], dy[None]) if alone else (y, dy)
        accuracy.assert_within(y, *expected(values, where, **others))
        self.spoil(caller)
        if where["epsilon"] and np.all(np.isfinite(values.astype(np.float64))):
            t = np.zeros(values.shape) if dx is None else np.array(dx).astype(result).reshape(values.shape)
            t = t.astype(np.float64)
            given = {name: others[name] for name in ("mask", "mean", "variance") if name in others}
            wide = values.astype(np.float64)
            exact = derivatives.tangent(wide, t, where, others["scaling"], **given)
            room = derivatives.bounds(wide, t, where, others["scaling"], result=result_of(x), **given)["tangent"]
            if directions:
                more = {"scaling": np.zeros(model.parameter_shape), "biases": None, **directions}
                added, error = expected(values, where, **more, **given)
                exact, room = exact + added, room + error + 2 * derivatives.STORED[result.name] * np.abs(added)
                room = room + 2 * derivatives.STORED[result.name] * np.abs(exact - added)
            derivatives.close(dy, exact, room, "the derivative along a direction")
        if model.learns(arguments["training"]) and "moments" not in arguments:
            self.learned(layer, model, x, mask)

    @rule(data=st.data())
    def measure(self, data):
        layer, model = self.one(data)
        x = self.array(data, model)
        mask = self.mask(data, x)
        found = layer.measure(x, mask)
        batch, weights = (x[None], mask if mask is None else mask[None]) if model.is_alone(x) else (x, mask)
        assert_moments(found, model.measured(np.array(batch), weights), result_of(x) in HALVES)
        for values in (found.count, found.mean, found.m2):
            if values is not None:
                self.keep(values, "measured moments")

    @rule(data=st.data())
    def apply(self, data):
        layer, model = self.one(data)
        x = self.array(data, model)
        alone = model.is_alone(x)
        batch = x[None] if alone else x
        moments, (mean, variance), _ = self.moments(data, model, batch, apart=False)
        where = model.settings_for(batch)
        wanted = expected(np.array(batch), where, model.scaling, model.biases, mean=mean, variance=variance)
        if data.draw(st.booleans(), "out"):
            source, out = self.out(data, model, x)
            before = buffer_of(out).copy()
            assert layer.apply(source, moments, out=out) is out
            assert_only_written(out, before)
            y = out
        else:
            y = layer.apply(x, moments)
        accuracy.assert_within(y[None] if alone else y, *wanted)
        self.keep(y, "an output of apply")

    @rule(data=st.data())
    def inverse(self, data):
        layer, model = self.ready(data)
        if model.scaling is not None and not np.all(model.scaling):
            with pytest.raises(gn.GennormError, match="scaling is 0"):
                layer.inverse(np.ones(model.shape), gn.Moments.from_variance(0.0, 1.0))
            return
        y = self.array(data, model)
        alone = model.is_alone(y)
        batch = y[None] if alone else y
        arguments, stats = (), model.moments_for(False)
        if not stats or data.draw(st.booleans(), "given moments"):
            moments, (mean, variance), _ = self.moments(data, model, batch, apart=False)
            arguments, stats = (moments,), {"mean": mean, "variance": variance}
            where = model.settings_for(batch)
        else:
            where = model.settings_for(batch, apart=True)
        values = np.array(batch).astype(np.float64)
        plain = {name: value for name, value in where.items() if name != "unbiased"}
        exact = reference.inverse(values, **stats, **plain, scaling=model.scaling, biases=model.biases)
        with np.errstate(all="ignore"):
            s = reference._statistics(
                values, *(where[name] for name in derivatives.NAMES), where["batched"], where["epsilon_placement"],
                None, stats["mean"], stats["variance"],
            )  # fmt: skip
            shift = 0.0 if model.biases is None else np.abs(s.where.over_levels(model.biases, where["batched"]))
            scale = 1.0 if model.scaling is None else np.abs(s.where.over_levels(model.scaling, where["batched"]))
            divisor = np.where(s.factor == 0, 0.0, 1 / np.where(s.factor == 0, 1.0, s.factor))
            unit = accuracy.UNIT[result_of(y)]
            room = unit * (16 * (np.abs(values) + shift) / scale * divisor + 4 * np.abs(s.mean))
            room = np.broadcast_to(room, values.shape) + 4 * accuracy.LEAST[result_of(y)]
        if data.draw(st.booleans(), "out"):
            source, out = self.out(data, model, y)
            before = buffer_of(out).copy()
            x = layer.inverse(source, *arguments, out=out)
            assert x is out
            assert_only_written(out, before)
        else:
            x = layer.inverse(y, *arguments)
        accuracy.assert_within(x[None] if alone else x, exact, room)
        self.keep(x, "an inverse")

    # Changes ---------------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def change_setting(self, data):
        layer, model = self.one(data)
        name = data.draw(st.sampled_from(sorted(CHANGES)), "setting")
        value = data.draw(st.sampled_from(CHANGES[name]), "value")
        size = model.geometry(np.empty(model.shape)).size
        if name == "unbiased" and value and (model.settings["method"] == "RMS" or size == 1):
            return
        setattr(layer, name, value)
        if name in model.settings:
            model.settings[name] = value
        elif name != "learning_rate_multipliers":
            setattr(model, name, value)

    @rule(data=st.data())
    def set_parameter(self, data):
        layer, model = self.one(data)
        name = data.draw(st.sampled_from(["scaling", "biases"]), "parameter")
        how = data.draw(st.sampled_from(["array", "list", "None", "Automatic", "in place", "element", "own"]), "how")
        own = getattr(model, name)
        values = eighths(model.parameter_shape, data.draw(NUMBERS, "values"))
        if how in ("in place", "element", "own") and own is None:
            how = "array"
        if how == "array":
            given = values.astype(data.draw(st.sampled_from(["float64", "float32", ">f4", "float16"]), "dtype"))
            setattr(layer, name, given)
            given[...] = 55  # the layer has its own copy
            setattr(model, name, values)
        elif how == "list":
            setattr(layer, name, values.tolist() if values.size else values)
            setattr(model, name, values)
        elif how == "None":
            setattr(layer, name, None)
            setattr(model, name, None)
        elif how == "Automatic":
            setattr(layer, name, "Automatic")
            layer.initialize(model.shape)
            setattr(model, name, np.full(model.parameter_shape, 1.0 if name == "scaling" else 0.0))
        elif how == "in place":
            getattr(layer, name)[...] = values
            setattr(model, name, values)
        elif how == "element":
            getattr(layer, name).reshape(-1)[:1] = 2.5
            own.reshape(-1)[:1] = 2.5
        else:
            setattr(layer, name, getattr(layer, name))

    @rule(data=st.data())
    def set_moments(self, data):
        layer, model = self.one(data)
        if model.statistics == "input":
            with pytest.raises(gn.GennormError, match="holds no moments"):
                layer.moments = gn.Moments.from_variance(0.0, 1.0)
            return
        how = data.draw(st.sampled_from(["set", "reset", "own", "measured"]), "how")
        kept = self.held_shape(model)
        rms = model.settings["method"] == "RMS"
        if how == "reset":
            assert layer.reset_moments() is layer
            layer.initialize(model.shape)
        elif how == "own" and model.held is not None:
            layer.moments = layer.moments
        else:
            rng = np.random.default_rng(data.draw(NUMBERS, "values"))
            arrays = [
                np.asarray(values, float)
                for values in (rng.integers(1, 9, kept), rng.normal(0, 1, kept), rng.gamma(2, 1, kept))
            ]
            count, mean, m2 = arrays
            layer.moments = gn.Moments(count, None if rms else mean, m2)
            wanted = Held(count.copy(), None if rms else mean.copy(), m2 / count)
            self.spoil(arrays)
            assert_moments(layer.moments, wanted, halves=False)
        model.held = None if layer.moments is None else Held.of(layer.moments)
        if how == "reset":
            assert (model.held is None) == (model.statistics == "dataset")

    def held_shape(self, model):
        whole = np.empty(model.shape)
        kept = model.geometry(whole).kept
        return kept[1:] if model.keeps_batch(whole) else kept

    @rule(data=st.data())
    def adapt(self, data):
        layer, model = self.one(data)
        if model.statistics != "dataset":
            with pytest.raises(gn.GennormError, match="takes no moments from a data set"):
                layer.adapt(np.ones(model.shape))
            return
        form = data.draw(st.sampled_from(["array", "list", "generator"]), "form")
        number = 1 if form == "array" else data.draw(st.integers(1, 3), "batches")
        batches = [self.array(data, model, batch=True, plain=True) for _ in range(number)]
        how = data.draw(st.sampled_from(["plain", "mask", "weights"]), "how")
        reset = data.draw(st.booleans(), "reset")
        keywords, weights = {"reset": reset}, [None] * number
        if how == "mask":
            weights = [np.random.default_rng(data.draw(NUMBERS, "mask")).random(x.shape) < 0.7 for x in batches]
        if how == "weights":
            weights = [np.random.default_rng(data.draw(NUMBERS, "mask")).integers(0, 4, x.shape) / 2 for x in batches]
        if how != "plain":
            keywords[how] = weights[0] if form == "array" else list(weights)
        source = {"array": batches[0], "list": batches, "generator": (x for x in batches)}[form]
        if not any(x.size if weight is None else np.sum(weight) for x, weight in zip(batches, weights, strict=True)):
            with pytest.raises(gn.GennormError, match="nothing in the data that counts"):
                layer.adapt(source, **keywords)
            return
        assert layer.adapt(source, **keywords) is layer
        if reset:
            model.held = None
        self.adapted(layer, model, [np.array(x) for x in batches], weights)

    @rule(data=st.data())
    def load_state(self, data):
        """A layer takes over the state of another one."""
        (layer, _), (other, others) = self.one(data), self.one(data)
        layer.__setstate__(other.__getstate__())
        self.layers = [(one, others.copy() if one is layer else its) for one, its in self.layers]

    @rule(data=st.data())
    def duplicate(self, data):
        layer, model = self.one(data)
        how = data.draw(st.sampled_from(["copy", "deepcopy", "pickle", ".npz", ".safetensors", "config"]), "how")
        model = model.copy()
        if how in ("copy", "deepcopy"):
            twin = getattr(copy, how)(layer)
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(layer, data.draw(st.integers(2, 5), "protocol")))
        elif how == "config":
            own = {name: getattr(layer, name) for name in ("scaling", "biases") if getattr(layer, name) is not None}
            twin = gn.NormalizationLayer.from_config(layer.to_config(), **own).initialize(model.shape)
            if model.held is not None and layer.moments is not None:
                twin.moments = layer.moments
        else:
            stream = io.BytesIO()
            stream.name = f"layer{how}"
            layer.save(stream)
            stream.seek(0)
            twin = gn.load(stream)
        assert repr(twin) == repr(layer) or how == "config"
        self.layers = [*self.layers[1 - MOST_LAYERS :], (twin, model)]

    @rule(number=st.sampled_from([1, 2, 3]))
    def set_threads(self, number):
        gn.set_num_threads(number)

    @rule(number=st.integers(0, 5))
    def fall_back(self, number):
        """A kernel cannot be compiled: what is new goes by the definition, and what is prepared goes on."""
        if number == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                engine.use_definition(CompilationError("fuzz"))
                if self.layers:
                    self.layers[0][0]._fall_back(CompilationError("fuzz"))

    @rule(data=st.data())
    def refuse(self, data):
        """A wrong call raises, and changes nothing; the invariant compares the state."""
        layer, model = self.ready(data)
        x = self.array(data, model, batch=True)
        states = [one._state for one, _ in self.layers]
        name = data.draw(st.sampled_from(sorted(WRONG)), "wrong call")
        with pytest.raises(gn.GennormError):
            WRONG[name](layer, x)
        assert all(one._state is state for (one, _), state in zip(self.layers, states, strict=True))


def assert_only_written(out, before):
    """Nothing but the elements of an output has been written."""
    buffer = buffer_of(out)
    offset = out.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]
    if out.size:
        np.ndarray(out.shape, out.dtype, before.data, offset, out.strides)[...] = out
    assert before.tobytes() == buffer.tobytes(), "written outside the output"


BAD = np.ones((1,) * 9)
# Calls that no layer takes.
WRONG = {
    "complex": lambda layer, x: layer(x.astype(complex), training=True),
    "no array": lambda layer, _: layer("array", training=True),
    "mask of numbers": lambda layer, x: layer(x, training=True, mask=np.ones(x.shape)),
    "mask of another shape": lambda layer, x: layer(x, training=True, mask=np.ones((*x.shape, 2), bool)),
    "scaling": lambda layer, x: layer(x, training=True, scaling=BAD),
    "biases": lambda layer, x: layer(x, training=True, biases=BAD),
    "moments": lambda layer, x: layer(x, training=True, moments=3),
    "three moments": lambda layer, x: layer(x, training=True, moments=(1, 2, 3)),
    "moments of another shape": lambda layer, x: layer(x, moments=(BAD, np.broadcast_to(BAD, (2,) * 9))),
    "out of another shape": lambda layer, x: layer(x, training=True, out=BAD),
    "out of another dtype": lambda layer, x: layer(x, training=True, out=np.zeros(x.shape, "int8")),
    "second array of a list": lambda layer, x: layer([x, x.astype(complex)], training=True),
    "list with a mask": lambda layer, x: layer([x, x], training=True, mask=np.ones(x.shape, bool)),
    "vjp with a mask of numbers": lambda layer, x: layer.vjp(x, training=True, mask=np.ones(x.shape)),
    "vjp with scaling": lambda layer, x: layer.vjp(x, training=True, scaling=BAD),
    "gradient": lambda layer, x: layer.vjp(x)[1](BAD),
    "direction": lambda layer, x: layer.jvp(x, BAD, training=True),
    "direction of scaling": lambda layer, x: layer.jvp(x, None, training=True, dscaling=BAD),
    "direction of biases": lambda layer, x: layer.jvp(x, None, training=True, dbiases=BAD),
    "measure with a mask": lambda layer, x: layer.measure(x, np.ones(x.shape)),
    "apply": lambda layer, x: layer.apply(x, 3),
    "apply to another shape": lambda layer, x: layer.apply(x, gn.Moments.from_variance(BAD, np.ones((2,) * 9))),
    "inverse": lambda layer, x: layer.inverse(x.astype(complex)),
    "inverse by no moments": lambda layer, x: layer.inverse(x, 3),
    "assigned scaling": lambda layer, _: setattr(layer, "scaling", "wide"),
    "assigned biases": lambda layer, _: setattr(layer, "biases", np.ones(3, complex)),
    "assigned moments": lambda layer, _: setattr(layer, "moments", 3),
    "assigned epsilon": lambda layer, _: setattr(layer, "epsilon", -1),
    "assigned momentum": lambda layer, _: setattr(layer, "momentum", "fast"),
    "adapt to a bad second batch": lambda layer, x: layer.adapt([x, x.astype(complex)]),
    "adapt with surplus masks": lambda layer, x: layer.adapt([x], mask=[np.ones(x.shape, bool)] * 2),
    "initialize": lambda layer, _: layer.initialize((-1, 2)),
    "plan": lambda layer, x: layer.plan(x.astype(complex)),
}


# -------------------------------------------------------------------------------------------------------- the machines


class InPlainPython(Layers):
    """Any layer, any dtype, any layout; kernels run as they stand, without Numba."""

    elements = 60

    def prepare(self):
        in_plain_python(self.patch)

    @initialize(data=st.data())
    def first(self, data):
        self.make(data)

    @rule(data=st.data())
    def make(self, data):
        case = data.draw(strategies.cases(most=4, elements=self.elements), "case")
        self.add(data, case.shape, case.settings)

    def add(self, data, shape, settings, *, parts=True):
        """Make a layer and its model."""
        batched = settings["batched"]
        rank = len(shape) - batched
        aggregated = reference.levels(settings["aggregation_levels"], rank)
        given = settings["group_number"]
        numbers = [given] if isinstance(given, int) else given
        groups = {}
        if isinstance(numbers, dict):
            groups = {level if level >= 0 else rank + 1 + level: number for level, number in numbers.items()}
        elif numbers is not None:
            groups = dict(zip(aggregated, numbers, strict=True))
        kinds = ["input", "moving", "dataset"] if batched else ["input"]
        statistics = data.draw(st.sampled_from(kinds), "statistics")
        declared = batched and data.draw(st.booleans(), "declared")
        model = Model(
            shape=shape,
            settings={name: value for name, value in settings.items() if name != "batched"},
            groups=groups,
            batched=None if declared else batched,
            dtype=data.draw(st.sampled_from(FLOATS if parts else ("float32",)), "parameters"),
            statistics=statistics,
            momentum=data.draw(st.sampled_from(CHANGES["momentum"]), "momentum"),
        )
        arguments = {**settings, "statistics": statistics, "momentum": model.momentum, "dtype": model.dtype}
        if declared:
            del arguments["batched"]
            arguments["input_shape"] = (None,) * rank
        for number, name in enumerate(("scaling", "biases")):
            form = data.draw(st.sampled_from(["array", "Automatic", "None"] if parts else ["array"]), name)
            if form == "array":
                setattr(model, name, eighths(model.parameter_shape, number, nonzero=True))
                arguments[name] = getattr(model, name).copy()
            elif form == "Automatic":
                setattr(model, name, np.full(model.parameter_shape, 1.0 - number))
            else:
                arguments[name] = None
        layer = gn.NormalizationLayer(**arguments).initialize(shape)
        for name in ("scaling", "biases"):
            if name in arguments and arguments[name] is not None:
                arguments[name][...] = 99  # the layer has its own copy
        if layer.moments is not None:
            kept = self.held_shape(model)
            mean = None if model.settings["method"] == "RMS" else np.zeros(kept)
            model.held = Held(np.ones(kept), mean, np.ones(kept))
        self.layers = [*self.layers[1 - MOST_LAYERS :], (layer, model)]


class ByDefinition(InPlainPython):
    """The same without kernels."""

    def prepare(self):
        self.patch.setattr(engine, "_reason", "the test")


class Compiled(InPlainPython):
    """A few layers with compiled kernels and threads; some arrays are large enough to be shared and pooled."""

    dtypes = ("float32",)

    def prepare(self):
        pass

    @rule(data=st.data())
    def make(self, data):
        template = data.draw(st.sampled_from(TEMPLATES), "template")
        defaults = {"group_number": None, "method": "Standardize", "unbiased": False, "epsilon": 1e-3}
        self.add(
            data, template.shape, {**defaults, "epsilon_placement": "inside", "batched": True, **template.settings},
            parts=False,
        )  # fmt: skip


class CompiledForAll(Compiled):
    """The same for every dtype."""

    dtypes = strategies.DTYPES


MACHINES = {"plain Python": InPlainPython, "definition": ByDefinition, "compiled": Compiled}
EXAMPLES = {"plain Python": 6, "definition": 8, "compiled": 4}  # sequences that every session draws
# Not the phase that explains a failure: it runs every line under a tracer, which takes minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
RELAXED = {"suppress_health_check": list(HealthCheck), "deadline": None, "phases": PHASES}


@pytest.mark.parametrize("name", ["plain Python", "definition", slow("compiled")])
def test_sequences(name, request):
    machine = MACHINES[name]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=EXAMPLES[name], stateful_step_count=25, **RELAXED)
    )
    end = time.monotonic() + request.config.getoption("--fuzz-seconds", 0) / len(MACHINES)
    unseen = settings(max_examples=40, stateful_step_count=40, derandomize=False, database=None, **RELAXED)
    while time.monotonic() < end:
        number = secrets.randbits(32)
        drawn = seed(number)(type(name, (CompiledForAll if machine is Compiled else machine,), {}))
        try:
            run_state_machine_as_test(drawn, settings=unseen)
        except BaseException as error:
            error.add_note(f"seed {number}")
            raise
