"""The definition on arrays of every namespace: against the vectors, the reference, the engine and the frameworks."""

import functools
import itertools
import math
import types

import numpy as np
import pytest

import gennorm as gn
from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.layer.statistics import ungrouped
from gennorm.spec.config import LayerConfig, resolve_config
from spec import reference
from tests import derivatives
from tests.accuracy import judge
from tests.conformance import test_vectors as vectors
from tests.engine.kernels.test_forms import FORMS, LAYOUTS, MAIN, SETTINGS, made, with_dtypes
from tests.strategies import DTYPES, RESULTS, dtype_of, named_layouts, sample, some

# ------------------------------------------------------------------------------------------------------- the namespaces


def numpy_arrays():
    return types.SimpleNamespace(of=lambda x: x, back=np.asarray)


def strict_arrays():
    strict = pytest.importorskip("array_api_strict")
    return types.SimpleNamespace(of=strict.asarray, back=lambda x: np.asarray(x._array))


def torch_arrays():
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")

    def of(x):
        narrow = x.dtype == dtype_of("bfloat16")
        tensor = torch.from_numpy(np.array(x, np.float32 if narrow else x.dtype.newbyteorder("=")))
        return tensor.bfloat16() if narrow else tensor

    def back(tensor):
        narrow = tensor.dtype == torch.bfloat16
        array = (tensor.float() if narrow else tensor).detach().numpy()
        return array.astype(dtype_of("bfloat16")) if narrow else array

    return types.SimpleNamespace(of=of, back=back)


def jax_arrays():
    jax = pytest.importorskip("jax")
    return types.SimpleNamespace(of=jax.numpy.asarray, back=np.asarray)


NAMESPACES = {"numpy": numpy_arrays, "strict": strict_arrays, "torch": torch_arrays, "jax": jax_arrays}
each_namespace = pytest.mark.parametrize("namespace", NAMESPACES)


@pytest.fixture(autouse=True)
def quiet():
    """NumPy's warnings are the caller's business: the engine gives none."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def double():
    """JAX with float64."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield jax


@pytest.fixture
def arrays(namespace, request):
    if namespace == "jax":
        request.getfixturevalue("double")
    return NAMESPACES[namespace]()


def mapped(function, value):
    """A function of every array in a structure of tuples."""
    if isinstance(value, tuple):
        parts = [mapped(function, one) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return None if value is None else function(value)


def call(function, arrays, *positional, config, shape, **keywords):
    """Call a function of the definition on arrays of a namespace; all in NumPy again."""
    positional = mapped(arrays.of, positional)
    keywords = {key: mapped(arrays.of, value) for key, value in keywords.items()}
    return mapped(arrays.back, function(*positional, config, resolve_config(config, shape), **keywords))


def config_of(settings):
    return LayerConfig.make(**settings)


def ran(form, **others):
    return {**form.settings, **others}


# ------------------------------------------------------------------------------------- the vectors of the specification


def case_config(case):
    return LayerConfig.make(**vectors.arguments(case["config"]))


def case_call(case, dtype, config):
    """The keywords of a call of the definition, and the config whose moments it has."""
    options = vectors.options(case, dtype)
    keywords = {**vectors.held(case, dtype), **{key: options[key] for key in ("scaling", "biases") if key in options}}
    if "given" in case and not options.get("training"):
        config = ungrouped(config, tuple(case["input"]["shape"]))
        keywords["moments"] = (vectors.array_or_none(case["given"]["mean"]), vectors.array(case["given"]["variance"]))
    keywords["weights"] = options.get("mask")
    return keywords, config


def vector_cases():
    """Every case: all dtypes with NumPy, and each other namespace with one or two; JAX has fewer, it compiles each."""
    found = []
    for parameter in vectors.with_dtypes():
        case, dtype = parameter.values
        quick = parameter.id.startswith(("degenerate", "masks: nothing", "masks: what", "not_finite: nan"))
        for namespace in NAMESPACES:
            chosen = {
                "numpy": True,
                "strict": dtype == "float64",
                "torch": dtype == "float32" or case["exact_in"] == "float64",
                "jax": dtype == "float64" and quick,
            }[namespace]
            if chosen:
                found.append(pytest.param(case, dtype, namespace, id=f"{parameter.id}, {namespace}"))
    return found


@pytest.mark.parametrize(("case", "dtype", "namespace"), vector_cases())
def test_vectors(case, dtype, arrays):
    x, stored = vectors.array(case["input"], dtype), case.get("moments")
    keywords, config = case_call(case, dtype, case_config(case))
    y, moments = call(definition.normalize, arrays, x, config=config, shape=x.shape, **keywords)
    assert y.dtype == x.dtype
    vectors.agree(y, case["output"], vectors.TOLERANCE[dtype] * vectors.far(case), "output")
    if stored is not None and dtype in ("float32", "float64"):
        np.testing.assert_array_equal(moments.count, vectors.array(stored["count"]), strict=True)
        assert (moments.mean is None) == (stored["mean"] is None)
        for key in ("mean", "m2"):
            if stored[key] is not None:
                found, values = getattr(moments, key), vectors.array(stored[key])
                np.testing.assert_array_equal(np.isfinite(found), np.isfinite(values), err_msg=key)
                vectors.agree(np.where(np.isfinite(values), found, values), stored[key], vectors.TOLERANCE[dtype], key)


def in_float64(select):
    cases = [(name, case) for name, case in vectors.CASES.items() if select(case)]
    return pytest.mark.parametrize(
        ("case", "namespace"),
        [
            pytest.param(case, namespace, id=f"{name}, {namespace}")
            for namespace in ("numpy", "strict", "torch")
            for name, case in cases
        ],
    )


@in_float64(lambda case: "derivative" in case)
def test_vectors_of_derivatives(case, arrays):
    x, stored = vectors.array(case["input"]), case["derivative"]
    keywords, config = case_call(case, "float64", case_config(case))
    found = call(
        definition.pull_back, arrays, x, vectors.array(stored["output"]), config=config, shape=x.shape, **keywords
    )
    for key in ("input", "scaling", "biases"):
        gradient = getattr(found, key)
        assert (gradient is None) == (stored[key] is None), key
        if gradient is not None:
            vectors.agree(gradient, stored[key], 1e-11, key)


@in_float64(vectors.invertible)
def test_vectors_of_inverses(case, arrays):
    y = vectors.array(case["output"])
    keywords, config = case_call(case, "float64", case_config(case))
    del keywords["weights"]
    x = call(definition.invert, arrays, y, config=config, shape=y.shape, **keywords)
    vectors.agree(x, case["input"], 1e-11, "input")


@in_float64(lambda case: "moving" in case)
def test_vectors_of_moving_moments(case, arrays):
    x, config = vectors.array(case["input"]), case_config(case)
    given = [vectors.array_or_none(case["given"][key]) for key in ("mean", "variance")]
    measured = call(
        definition.measure, arrays, x, config=config, shape=x.shape, weights=vectors.options(case).get("mask")
    )
    mean, variance = call(definition.fold, arrays, *given, measured, config=config, shape=x.shape)
    vectors.agree(variance, case["moving"]["variance"], 1e-12, "variance")
    if case["moving"]["mean"] is not None:
        vectors.agree(mean, case["moving"]["mean"], 1e-12, "mean")


# ----------------------------------------------------------------------------------------- the reference and the engine


def check(arrays, layer, x, settings, **others):
    """The output is right to the engine's bound, and has the dtype of the engine's."""
    config = config_of(settings)
    y, moments = call(
        *(definition.normalize, arrays, x),
        config=config,
        shape=x.shape,
        scaling=layer.scaling,
        biases=layer.biases,
        **others,
    )
    name = x.dtype.newbyteorder("=").name
    assert y.dtype == dtype_of(RESULTS[name])
    judge(y, x, settings, layer.scaling, layer.biases)
    if name in ("float32", "float64"):  # of which kernels are compiled anyway
        measured = layer.measure(x)
        np.testing.assert_array_equal(moments.count, measured.count, strict=True)
        np.testing.assert_allclose(moments.m2, measured.m2, rtol=1e-9, atol=1e-300)
        assert layer(x).dtype == y.dtype
        np.testing.assert_allclose(y, layer(x), rtol=0, atol=(1e-5, 1e-13)[name == "float64"])


@with_dtypes(FORMS, MAIN, [dtype for dtype in DTYPES if dtype not in MAIN])
@pytest.mark.parametrize("namespace", ["numpy", "torch"])
def test_form(name, dtype, arrays):
    form = FORMS[name]
    check(arrays, made(form.settings, form.shape), sample(form.shape, dtype), form.settings)


@pytest.mark.parametrize("namespace", ["strict", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int64", "bool"])
@pytest.mark.parametrize("name", ["a row a slice", "rows apart", "folded columns"])
def test_form_of_other_namespaces(name, dtype, arrays):
    form = FORMS[name]
    check(arrays, made(form.settings, form.shape), sample(form.shape, dtype), form.settings)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name, layout):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape))
    before = x.tobytes()
    check(numpy_arrays(), made(form.settings, form.shape), x, form.settings)
    assert x.tobytes() == before


every_setting = [
    (name, others) for name in FORMS for others in SETTINGS if name != "one element" or "unbiased" not in others
]


@pytest.mark.parametrize(("name", "others"), every_setting, ids=str)
@pytest.mark.parametrize("namespace", ["numpy", "torch"])
def test_settings(name, others, arrays):
    form = FORMS[name]
    check(arrays, made(form.settings, form.shape, **others), sample(form.shape), ran(form, **others))


LAYERS = {
    "layer norm": ("a row a slice", {}),
    "batch norm": ("columns", {"epsilon_placement": "floor", "epsilon": 1.25}),
    "instance norm": ("columns with the channels last", {"epsilon_placement": "outside", "epsilon": 0.25}),
    "group norm": ("rows in groups of channels", {"unbiased": True}),
    "group norm, channels last": ("folded columns with parameters everywhere", {"method": "RMS"}),
    "RMS norm, floor": ("rows apart", {"method": "RMS", "epsilon_placement": "floor", "epsilon": 1.5}),
    "six runs": ("six runs", {"epsilon_placement": "outside", "epsilon": 0.25, "unbiased": True}),
}


class Given:
    """A layer, an array, and what a call may bring, in NumPy."""

    def __init__(self, name, *, way="plain", dtype="float64"):
        form, others = LAYERS[name]
        self.form = FORMS[form]
        self.settings = ran(self.form, **others)
        self.shape = self.form.shape
        self.layer = made(self.form.settings, self.shape, dtype=dtype, **others)
        self.config = config_of(self.settings)
        self.resolved = resolve_config(self.config, self.shape)
        self.x, self.dy, self.dx = (sample(self.shape, dtype, seed) for seed in range(3))
        self.parameters = {"scaling": self.layer.scaling, "biases": self.layer.biases}
        self.options = {}
        self.given = {}
        match way:
            case "mask":
                self.options["weights"] = some((*self.shape[:-1], 1) if len(self.shape) > 3 else self.shape)
            case "given":
                mean = sample(self.resolved.moments_shape, "float64", 5)
                self.given = {"mean": mean, "variance": mean**2 + 0.25}
                if self.config.method == "RMS":
                    self.given["mean"] = None
                self.options["moments"] = tuple(self.given.values())
            case "per example":
                sizes = (self.shape[0], *self.resolved.parameter_shape)
                self.parameters = {key: sample(sizes, dtype, seed) for seed, key in enumerate(self.parameters)}
            case "one example":
                self.settings |= {"batched": False}
                self.config = config_of(self.settings)
                self.shape = self.shape[1:]
                self.x, self.dy, self.dx = self.x[0], self.dy[0], self.dx[0]

    @property
    def reference(self):
        """What the reference takes."""
        return {**self.settings, **self.parameters, "mask": self.options.get("weights"), **self.given}

    def call(self, function, arrays, *positional, **others):
        return call(function, arrays, *positional, config=self.config, shape=self.shape, **(self.options | others))


WAYS = ("plain", "mask", "given", "per example", "one example")
ways = pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name, way in itertools.product(LAYERS, WAYS)
        if way != "one example" or "0" not in str(FORMS[LAYERS[name][0]].aggregation_levels)
    ],
)


@ways
@each_namespace
def test_call(name, way, arrays):
    one = Given(name, way=way)
    y, _ = one.call(definition.normalize, arrays, one.x, **one.parameters)
    np.testing.assert_allclose(y, reference.normalize(one.x, **one.reference), rtol=1e-12, atol=1e-12)


@ways
@each_namespace
def test_derivatives(name, way, arrays):
    """Of the input, of the parameters and along a direction, against the reference."""
    one = Given(name, way=way)
    found = one.call(definition.pull_back, arrays, one.x, one.dy, **one.parameters)
    others = {"mask": one.options.get("weights"), **one.given}
    derivatives.judge(found, one.x, one.dy, one.settings, **one.parameters, **others)
    pushed = one.call(definition.push_forward, arrays, one.x, one.dx, scaling=one.parameters["scaling"])
    derivatives.judge_tangent(pushed, one.x, one.dx, one.settings, one.parameters["scaling"], **others)
    absent = one.call(definition.pull_back, arrays, one.x, one.dy)
    assert absent.scaling is absent.biases is None
    derivatives.judge(absent, one.x, one.dy, one.settings, None, None, **others)


@ways
def test_the_derivatives_are_each_other_s_transpose(name, way):
    one = Given(name, way=way)
    gradients = one.call(definition.pull_back, numpy_arrays(), one.x, one.dy, **one.parameters)
    directions = {f"d{key}": sample(value.shape, "float64", 7) for key, value in one.parameters.items()}
    pushed = one.call(
        definition.push_forward, numpy_arrays(), one.x, one.dx, scaling=one.parameters["scaling"], **directions
    )
    across = (gradients.input * one.dx).sum()
    across += sum((getattr(gradients, key[1:]) * value).sum() for key, value in directions.items())
    assert math.isclose((pushed * one.dy).sum(), across, rel_tol=1e-9)
    parts = [
        one.call(definition.push_forward, numpy_arrays(), one.x, dx, scaling=one.parameters["scaling"], **along)
        for dx, along in ((one.dx, {}), (None, directions))
    ]
    np.testing.assert_allclose(sum(parts), pushed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("namespace", ["numpy", "torch"])
def test_derivatives_of_narrow_dtypes(name, dtype, arrays):
    one = Given(name, dtype=dtype)
    found = one.call(definition.pull_back, arrays, one.x, one.dy, **one.parameters)
    assert {part.dtype for part in found} == {dtype_of(dtype)}
    derivatives.judge(found, one.x, one.dy, one.settings, **one.parameters)


@pytest.mark.parametrize("name", LAYERS)
@each_namespace
def test_weights_are_repetitions(name, arrays):
    """An element of weight 2 counts as two, one of weight 0 not at all, whatever it is."""
    one = Given(name)
    weights = np.random.default_rng(4).integers(0, 4, one.shape).astype(np.float64)
    x = np.where(weights == 0, np.nan, one.x)
    _, moments = one.call(definition.normalize, arrays, x, weights=weights)
    slices = Given(name).layer.measure(np.zeros(one.shape)).shape
    axes = tuple(i for i, axis in enumerate(_axis_of(one)) if axis in one.resolved.aggregation and _last(one, i))
    cut = [size for part in _parts(one) for size in part]
    w, v = weights.reshape(cut), np.nan_to_num(x).reshape(cut)
    count = w.sum(axes)
    mean = (w * v).sum(axes) / count if one.config.method == "Standardize" else np.zeros(count.shape)
    away = v - np.expand_dims(mean, axes)
    np.testing.assert_array_equal(moments.count, count)
    assert moments.count.shape == slices
    np.testing.assert_allclose(moments.m2, (w * away**2).sum(axes), rtol=1e-12)
    whole = one.call(definition.normalize, arrays, one.x, weights=weights)[0]
    mask = one.call(definition.normalize, arrays, one.x, weights=weights > 0)[0]
    ones = one.call(definition.normalize, arrays, one.x, weights=(weights > 0).astype(np.float32))[0]
    np.testing.assert_allclose(ones, mask, rtol=1e-13, atol=1e-13)
    assert not np.allclose(whole, mask)


def _parts(one):
    return [
        (groups, size // groups) if groups > 1 else (size,)
        for size, groups in zip(one.shape, one.resolved.groups, strict=True)
    ]


def _axis_of(one):
    return [axis for axis, part in enumerate(_parts(one)) for _ in part]


def _last(one, i):
    return _axis_of(one)[i : i + 2] != [_axis_of(one)[i]] * 2


# ------------------------------------------------------------------------------------------- moments shared with others


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_parts_of_a_batch(method, masked, unbiased):
    """With merged moments and sums, the derivatives of every part are those of the whole."""
    if method == "RMS" and unbiased:
        return
    settings = {"aggregation_levels": "{0, 2}", "scaling_levels": 1, "method": method, "batched": True}
    config = config_of({**settings, "unbiased": unbiased})
    x, dy, dx = (sample((7, 5, 3), "float64", seed) for seed in range(3))
    weights = some(x.shape) if masked else None
    pieces = [slice(0, 2), slice(2, 2), slice(2, 7)]
    run = functools.partial(_part, config, numpy_arrays())

    y, _ = run(definition.normalize, x, weights=weights)
    whole = run(definition.pull_back, x, dy, scaling=np.arange(5.0), weights=weights)
    along = run(definition.push_forward, x, dx, weights=weights)
    each = [None if weights is None else weights[piece] for piece in pieces]
    measured = [run(definition.measure, x[piece], weights=w) for piece, w in zip(pieces, each, strict=True)]
    total = functools.reduce(lambda a, b: a + b, (gn.Moments(*part) for part in measured))
    moments = SliceMoments(total.count, total.mean, total.m2)

    def together(function, other, **keywords):
        heard = []
        for piece, w in zip(pieces, each, strict=True):
            run(
                *(function, x[piece], other[piece]),
                weights=w,
                moments=moments,
                merge=lambda sums: heard.append(sums) or sums,
                **keywords,
            )
        assert [sums.shape for sums in heard] == [(2, 5)] * 3
        return [
            run(function, x[piece], other[piece], weights=w, moments=moments, merge=lambda _: sum(heard), **keywords)
            for piece, w in zip(pieces, each, strict=True)
        ]

    parts = [run(definition.normalize, x[piece], moments=moments) for piece in pieces]
    np.testing.assert_allclose(np.concatenate([part for part, _ in parts]), y, rtol=1e-12, atol=1e-13)
    assert all(found is moments for _, found in parts)
    pulled = together(definition.pull_back, dy, scaling=np.arange(5.0))
    np.testing.assert_allclose(np.concatenate([one.input for one in pulled]), whole.input, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(sum(one.scaling for one in pulled), whole.scaling, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.concatenate(together(definition.push_forward, dx)), along, rtol=1e-12, atol=1e-13)


def _part(config, arrays, function, x, *others, moments=None, **keywords):
    resolved = resolve_config(config, x.shape)
    if moments is not None:
        keywords["moments"] = moments
    return function(x, *others, config, resolved, **keywords)


# -------------------------------------------------------------------------------------------- the frameworks' gradients


def torch_call(one, function, *positional, **others):
    return function(*positional, one.config, resolve_config(one.config, one.shape), **others)


def tensors(torch, one, *, grad=True):
    found = [torch.from_numpy(np.array(value, np.float64)) for value in (one.x, *one.parameters.values(), one.dy)]
    return [tensor.requires_grad_() for tensor in found] if grad else found


def options_of(torch, one):
    return {key: mapped(lambda value: torch.from_numpy(np.array(value)), value) for key, value in one.options.items()}


@ways
def test_autograd_gives_the_gradients_of_the_formulas(name, way):
    torch = pytest.importorskip("torch")
    one = Given(name, way=way)
    x, scaling, biases, dy = tensors(torch, one)
    options = options_of(torch, one)
    y, _ = torch_call(one, definition.normalize, x, scaling=scaling, biases=biases, **options)
    found = torch.autograd.grad(y, (x, scaling, biases), dy)
    expected = torch_call(one, definition.pull_back, x, dy, scaling=scaling, biases=biases, **options)
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-11, atol=1e-11)


SMALL = {
    "inside": {"aggregation_levels": "2;;All"},
    "floor": {"aggregation_levels": 0, "epsilon_placement": "floor", "epsilon": 0.9, "scaling_levels": 1},
    "outside": {"aggregation_levels": "All", "epsilon_placement": "outside", "group_number": [2, 1], "unbiased": True},
    "RMS": {"aggregation_levels": "All", "method": "RMS", "group_number": [1, 3]},
    "RMS, outside": {"aggregation_levels": "{0, 2}", "method": "RMS", "epsilon_placement": "outside", "epsilon": 0.5},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_gradcheck(name, masked):
    """Of the output and of its closed forms, first and second order."""
    torch = pytest.importorskip("torch")
    shape = (3, 2, 3)
    config = LayerConfig.make(**{"scaling_levels": (1,), **SMALL[name]}, batched=True)
    resolved = resolve_config(config, shape)
    x, dy, dx = (torch.from_numpy(sample(shape, "float64", seed)).requires_grad_() for seed in range(3))
    s, b = (torch.from_numpy(sample(resolved.parameter_shape, "float64", seed)).requires_grad_() for seed in (3, 4))
    weights = torch.from_numpy(some(shape)) if masked else None

    def normalize(x, s, b):
        return definition.normalize(x, config, resolved, scaling=s, biases=b, weights=weights)[0]

    def pull_back(x, dy, s, b):
        return tuple(definition.pull_back(x, dy, config, resolved, scaling=s, biases=b, weights=weights))

    def push_forward(x, dx, s):
        return definition.push_forward(x, dx, config, resolved, scaling=s, weights=weights)

    assert torch.autograd.gradcheck(normalize, (x, s, b))
    assert torch.autograd.gradgradcheck(normalize, (x, s, b))
    assert torch.autograd.gradcheck(pull_back, (x, dy, s, b))
    assert torch.autograd.gradgradcheck(pull_back, (x, dy, s, b))
    assert torch.autograd.gradcheck(push_forward, (x, dx, s))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_second_derivatives_are_the_engine_s(name, masked):
    torch = pytest.importorskip("torch")
    one = Given(name, way="mask" if masked else "plain")
    x, scaling, _, dy = tensors(torch, one)
    options = options_of(torch, one)
    gradients = torch_call(one, definition.pull_back, x, dy, scaling=scaling, **options)
    t, p = torch.from_numpy(one.dx), torch.from_numpy(sample(one.resolved.parameter_shape, "float64", 8))
    found = torch.autograd.grad(gradients[:2], (dy, x, scaling), (t, p))
    dscaling = p.numpy()
    exact = reference.second(
        *(one.x, one.dy, (one.dx, dscaling, None)),
        **{key: value for key, value in one.reference.items() if key != "biases"},
    )
    for part, other in zip(found, exact, strict=True):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(part.detach().numpy() / scale, other / scale, rtol=1e-10, atol=1e-10)


@ways
def test_jax_gives_the_gradients_of_the_formulas(name, way, double):
    jax = double
    one = Given(name, way=way)
    x, scaling, biases, dy = map(jax.numpy.asarray, (one.x, *one.parameters.values(), one.dy))
    options = {key: mapped(jax.numpy.asarray, value) for key, value in one.options.items()}

    @jax.jit
    def normalize(x, scaling, biases):
        return torch_call(one, definition.normalize, x, scaling=scaling, biases=biases, **options)[0]

    y, back = jax.vjp(normalize, x, scaling, biases)
    np.testing.assert_allclose(y, reference.normalize(one.x, **one.reference), rtol=1e-12, atol=1e-12)
    expected = one.call(definition.pull_back, numpy_arrays(), one.x, one.dy, **one.parameters)
    for part, other in zip(back(dy), expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-11, atol=1e-11)
    _, pushed = jax.jvp(normalize, (x, scaling, biases), (jax.numpy.asarray(one.dx), 0 * scaling, 0 * biases))
    exact = one.call(definition.push_forward, numpy_arrays(), one.x, one.dx, scaling=one.parameters["scaling"])
    np.testing.assert_allclose(pushed, exact, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------------------------------- degenerate slices


DEGENERATE = {
    "constant": ([[0.1] * 7, [-2.5] * 7, [1.0, 2.0, 4.0, 8.0, 1.0, 0.0, 3.0]], None),
    "one element": ([[0.1], [3.0]], None),
    "nothing counted": ([[1.0, 2.0], [3.0, 5.0]], [[False], [True]]),
    "one counted": ([[1.0, 2.0, 4.0], [3.0, 5.0, 9.0]], [[True, False, False], [True, True, True]]),
    "the counted are constant": ([[2.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[True, True, False]]),
    "padding is not a number": ([[1.0, 2.0, np.nan], [3.0, 5.0, np.inf]], [[True, True, False]]),
}


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.25])
@pytest.mark.parametrize("placement", ["inside", "floor", "outside"])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("kind", DEGENERATE)
@each_namespace
def test_degenerate_slices(kind, method, placement, epsilon, arrays):
    """By the policy of the specification, in the output and in the gradients: of the formulas and of the frameworks."""
    rows, mask = DEGENERATE[kind]
    x, mask = np.array(rows), None if mask is None else np.array(mask)
    settings = {"aggregation_levels": 2, "method": method, "epsilon_placement": placement, "epsilon": epsilon}
    dy = sample(x.shape, "float64", 1)
    dy[~np.isfinite(x)] = 0
    config, scaling = config_of(settings), np.array([2.0, -1.0, 3.0][: len(x)])
    others = {"scaling": scaling, "biases": 0 * scaling + 5.0}
    keywords = {"config": config, "shape": x.shape, **others, "weights": mask}
    y, moments = call(definition.normalize, arrays, x, **keywords)
    exact = reference.normalize(x, **settings, **others, mask=mask)
    np.testing.assert_allclose(y, exact, rtol=1e-12, atol=1e-12)
    if kind in ("constant", "one element") and method == "Standardize":
        assert not moments.m2[:2].any()
        np.testing.assert_array_equal(moments.mean[:2], x[:2, 0])
        assert (y[:2] == 5.0).all()
    found = call(definition.pull_back, arrays, x, dy, **keywords)
    expected = reference.vjp(x, dy, **settings, **others, mask=mask)
    for part, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-9, atol=1e-12 * max(1.0, np.abs(other).max()))
    if kind == "one element" and method == "Standardize":
        assert not found.input.any()
    if arrays.of is not np.asarray and type(arrays.of(x)).__module__.startswith("torch"):
        _degenerate_in_torch(arrays, config, keywords, x, dy, expected)


def _degenerate_in_torch(arrays, config, keywords, x, dy, expected):
    import torch

    values, gain = arrays.of(x).requires_grad_(), arrays.of(keywords["scaling"]).requires_grad_()
    mask = None if keywords["weights"] is None else arrays.of(keywords["weights"])
    resolved = resolve_config(config, x.shape)
    y, _ = definition.normalize(values, config, resolved, scaling=gain, weights=mask)
    found = torch.autograd.grad(y, (values, gain), arrays.of(dy), create_graph=True)
    for part, other in zip(found, expected[:2], strict=True):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(part.detach().numpy() / scale, other / scale, rtol=1e-9, atol=1e-9)
    again = torch.autograd.grad(found[0].square().sum() + found[1].square().sum(), (values, gain), allow_unused=True)
    assert all(torch.isfinite(part).all() for part in again if part is not None)


@pytest.mark.parametrize("placement", ["inside", "floor", "outside"])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_jax_has_no_nan_in_degenerate_gradients(kind, placement, double):
    jax = double
    rows, mask = DEGENERATE[kind]
    x = jax.numpy.asarray(rows)
    config = LayerConfig.make(2, epsilon=0, epsilon_placement=placement)
    weights = None if mask is None else jax.numpy.asarray(mask)
    dy = jax.numpy.where(jax.numpy.isfinite(x), jax.numpy.asarray(sample(x.shape, "float64", 1)), 0)

    def output(x):
        y, _ = definition.normalize(x, config, resolve_config(config, x.shape), weights=weights)
        return (jax.numpy.where(dy == 0, 0, y) * dy).sum()

    assert np.isfinite(jax.grad(output)(x)).all()
    assert np.isfinite(jax.grad(lambda x: (jax.grad(output)(x) ** 2).sum())(x)).all()


@each_namespace
def test_non_finite_numbers_stay_in_their_slice(arrays):
    config = LayerConfig.make(2, epsilon=0)
    x, dy = sample((4, 6), "float64"), sample((4, 6), "float64", 1)
    keywords = {"config": config, "shape": x.shape}
    clean = call(definition.normalize, arrays, x, **keywords)[0], call(definition.pull_back, arrays, x, dy, **keywords)
    x[1, 2], x[2, 3] = np.nan, np.inf
    y, found = (
        call(definition.normalize, arrays, x, **keywords)[0],
        call(definition.pull_back, arrays, x, dy, **keywords),
    )
    for one, other in ((y, clean[0]), (found.input, clean[1].input)):
        assert np.isnan(one[1:3]).all()
        assert np.array_equal(one[[0, 3]], other[[0, 3]])


@each_namespace
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_no_elements(shape, arrays):
    config = LayerConfig.make(2, 1)
    x = np.ones(shape)
    keywords = {"config": config, "shape": shape, "scaling": np.ones(shape[0])}
    y, moments = call(definition.normalize, arrays, x, **keywords)
    assert y.shape == shape
    np.testing.assert_array_equal(moments.count, np.full(shape[0], shape[1]))
    assert not moments.m2.any()
    assert not call(definition.pull_back, arrays, x, x, **keywords).scaling.any()


# ------------------------------------------------------------------------------------------------------------ exactness


FAR = [(1e6, 1.0, "float32"), (1e4, 1e-1, "float32"), (1e30, 1e30, "float32"), (1e-30, 1e-30, "float32")]
FAR += [(1e15, 1.0, "float64"), (1e3, 1.0, "float16")]


@pytest.mark.parametrize(("mean", "deviation", "dtype"), FAR)
@pytest.mark.parametrize("aggregated", [1, 2])
@pytest.mark.parametrize("namespace", ["numpy", "torch", "jax"])
def test_a_mean_far_from_zero(mean, deviation, dtype, aggregated, arrays):
    """The bound of the engine holds: see docs/explanation/numerics.md."""
    if arrays.of is not np.asarray and mean == 1e-30 and "jax" in type(arrays.of(np.ones(1))).__module__:
        mean = deviation = 1e-25  # XLA takes subnormal numbers for 0, and the rest of a mean would be one
    x = (mean + deviation * sample((300, 70), "float64")).astype(dtype)
    settings = {"aggregation_levels": aggregated, "epsilon": 0.0}
    y, _ = call(definition.normalize, arrays, x, config=config_of(settings), shape=x.shape)
    judge(y, x, settings)


@pytest.mark.parametrize("shape", [(100_000, 3), (3, 100_000)])
@pytest.mark.parametrize("namespace", ["numpy", "torch"])
def test_long_slices(shape, arrays):
    """Sums of many float32 numbers, along memory and across it."""
    settings = {"aggregation_levels": 1 + (shape[1] > 3), "epsilon": 0.0}
    x = sample(shape, "float32")
    y, _ = call(definition.normalize, arrays, x, config=config_of(settings), shape=shape)
    judge(y, x, settings)


@pytest.mark.parametrize("value", [0.1, 1e30, -1e-30, 16777217.0, 1 / 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
@each_namespace
def test_a_constant_slice_has_no_deviation(value, dtype, weighted, arrays):
    x = np.full((3, 1001), value, dtype)
    weights = np.random.default_rng(0).random(x.shape) if weighted else None
    config = LayerConfig.make(2, epsilon=0)
    y, moments = call(definition.normalize, arrays, x, config=config, shape=x.shape, weights=weights)
    assert not y.any()
    assert not moments.m2.any()
    np.testing.assert_array_equal(moments.mean, x[:, 0].astype(np.float64))


def test_jax_without_float64():
    """Moments are float32, and a mean a million deviations from zero is right all the same."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(False):  # another test of the process may have switched it on
        check_without_float64(jax)


def check_without_float64(jax):
    x = (1e6 + np.array([[-1, 1, -1, 1] * 64])).astype(np.float32)
    config = LayerConfig.make(2, epsilon=0)
    resolved = resolve_config(config, x.shape)
    y, moments = jax.jit(lambda x: definition.normalize(x, config, resolved))(jax.numpy.asarray(x))
    assert {part.dtype.name for part in (y, *moments)} == {"float32"}
    np.testing.assert_allclose(y, np.sign(x - 1e6), rtol=2e-7)
    numbers = jax.numpy.arange(6, dtype="int32").reshape(1, 6)  # their arithmetic is float64 where that exists
    assert definition.normalize(numbers, config, resolve_config(config, (1, 6)))[0].dtype.name == "float32"


# -------------------------------------------------------------------------------------------- tracing and vectorization


def test_jit_and_vmap_of_jax(double):
    jax = double
    one = Given("group norm")
    config = config_of({**one.settings, "batched": False})
    resolved = resolve_config(config, one.shape[1:])

    def normalize(x, scaling):
        return definition.normalize(x, config, resolved, scaling=scaling, biases=one.parameters["biases"])[0]

    x, scaling = map(jax.numpy.asarray, (one.x, one.parameters["scaling"]))
    expected = reference.normalize(one.x, **one.reference)
    for mapped_ in (jax.vmap(normalize, (0, None)), jax.jit(jax.vmap(normalize, (0, None)))):
        np.testing.assert_allclose(mapped_(x, scaling), expected, rtol=1e-12, atol=1e-12)
    many = jax.jit(jax.vmap(normalize, (None, 0)))(x[0], jax.numpy.stack([scaling, 2 * scaling]))
    assert many.shape == (2, *one.shape[1:])
    np.testing.assert_allclose(many[0], expected[0], rtol=1e-12, atol=1e-12)


def torch_normalize(one):
    import torch

    scaling, biases = (torch.from_numpy(value) for value in one.parameters.values())

    def normalize(x):
        return definition.normalize(x, one.config, one.resolved, scaling=scaling, biases=biases)

    return normalize


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["layer norm", "group norm", "batch norm"])
def test_compile(name):
    """One graph for every size of the batch."""
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    one = Given(name)
    normalize = torch.compile(torch_normalize(one), fullgraph=True, backend="aot_eager")
    for examples in (len(one.x), len(one.x) + 3):
        x = sample((examples, *one.shape[1:]), "float64", examples)
        tensor = torch.from_numpy(x).requires_grad_()
        y, moments = normalize(tensor)
        np.testing.assert_allclose(y.detach(), reference.normalize(x, **one.reference), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.m2.detach(), one.layer.measure(x).m2, rtol=1e-12)
        y.backward(torch.ones_like(y))
        exact = reference.vjp(x, np.ones_like(x), **one.reference)[0]
        np.testing.assert_allclose(tensor.grad, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["layer norm", "group norm", "batch norm"])
def test_export_with_open_sizes(name):
    torch = pytest.importorskip("torch")
    one = Given(name)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.normalize = torch_normalize(one)

        def forward(self, x):
            return self.normalize(x)[0]

    open_axes = {0: torch.export.Dim("batch")}
    if name == "group norm":
        open_axes |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(Module(), (torch.from_numpy(one.x),), dynamic_shapes=(open_axes,))
    for examples in (len(one.x), 2, 11):
        size = [examples, *one.shape[1:]]
        size = [n + 2 if axis in open_axes and axis else n for axis, n in enumerate(size)]
        x = sample(size, "float64", examples)
        found = program.module()(torch.from_numpy(x))
        np.testing.assert_allclose(found, reference.normalize(x, **one.reference), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_of_torch():
    torch = pytest.importorskip("torch")
    one = Given("group norm")
    config = config_of({**one.settings, "batched": False})
    resolved = resolve_config(config, one.shape[1:])
    scaling, biases = (torch.from_numpy(value) for value in one.parameters.values())

    def normalize(x):
        return definition.normalize(x, config, resolved, scaling=scaling, biases=biases)[0]

    x, dx = torch.from_numpy(one.x), torch.from_numpy(one.dx)
    y = torch.func.vmap(normalize)(x)
    np.testing.assert_allclose(y, reference.normalize(one.x, **one.reference), rtol=1e-12, atol=1e-12)
    _, along = torch.func.jvp(torch.func.vmap(normalize), (x,), (dx,))
    exact = one.call(definition.push_forward, numpy_arrays(), one.x, one.dx, scaling=one.parameters["scaling"])
    np.testing.assert_allclose(along, exact, rtol=1e-11, atol=1e-11)
    meta = definition.normalize(x.to("meta"), one.config, one.resolved)[0]
    assert (meta.shape, meta.dtype, meta.device.type) == (x.shape, x.dtype, "meta")


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, "x"])
def test_a_value_that_is_not_an_array(value):
    with pytest.raises(gn.GennormError, match="is no array of the Python array API standard") as raised:
        definition.namespace_of(value)
    assert raised.value.code == "A032"
