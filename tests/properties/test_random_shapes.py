"""Random shapes of everything that has a rule: each statistic against ``vmap(grad)``, in float64."""

import itertools
import string
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jaxsgd
from tests.support.models import QUICK, labels, normal

N = 3
MAX_EXAMPLES = 8
TOLERANCE = 1e-11


@pytest.fixture(autouse=True, params=[MAX_EXAMPLES, pytest.param(30, marks=pytest.mark.slow)])
def examples(request, monkeypatch):
    """How many of each are tried."""
    monkeypatch.setattr(sys.modules[__name__], "MAX_EXAMPLES", request.param)


def check(loss_fn, params, batch):
    """All statistics of one batch equal those of the rows that ``vmap(grad)`` gives; returns the kinds of factors."""
    kinds = Counter()

    def compute(params, batch):
        g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
        direction = jax.tree.map(jnp.cos, params)
        found = {
            "mean": g.mean(),
            "squared_norms": g.squared_norms(),
            "second_moment": g.second_moment(),
            "variance": g.variance(),
            "gram": g.gram(),
            "inner_products": g.inner_products(direction),
            "total_deviation": g.total_deviation(),
        }
        kinds.update(type(factor).__name__ for factor in g.factors)
        return found, direction, jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, batch)

    found, direction, gradients = jax.jit(compute, compiler_options=QUICK)(params, batch)
    rows = np.concatenate([np.asarray(leaf).reshape(N, -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    v, largest, norms = flat(direction), np.abs(rows).max(), np.sum(rows**2, axis=1)
    assert found["total_deviation"].dtype == rows.dtype == np.float64
    for name, expected, scale in (
        ("mean", rows.mean(axis=0), largest),
        ("squared_norms", norms, norms.max()),
        ("second_moment", np.mean(rows**2, axis=0), largest**2),
        ("variance", rows.var(axis=0), largest**2),
        ("gram", rows @ rows.T, norms.max()),
        ("inner_products", rows @ v, largest * np.abs(v).sum()),
        ("total_deviation", np.sum((rows - rows.mean(axis=0)) ** 2), norms.max()),
    ):
        worst = np.abs(flat(found[name]) - np.ravel(expected)).max()
        assert worst <= TOLERANCE * scale, f"{name} is off by {worst}, of {scale}"
    return kinds


def run(strategy, property_of_one):
    """Check a property on examples of a strategy; returns how often which kind of factor was met."""
    met = Counter()

    @settings(max_examples=MAX_EXAMPLES, deadline=None, derandomize=True)
    @given(strategy)
    def each(example):
        met.update(property_of_one(*example))

    each()
    return met


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def weighted(out):
    """A number in which every entry of ``out`` counts differently."""
    return jnp.sum(jnp.tanh(out) * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


@st.composite
def products(draw):
    """An einsum of an example and a weight: blocks, contracted, free and summed dimensions in any order."""
    counts = [draw(st.integers(0, 2)) for _ in range(4)]
    names = iter(string.ascii_lowercase)
    blocks, contracted, positions, free = ([next(names) for _ in range(count)] for count in counts)
    summed = [next(names)] if draw(st.integers(0, 3)) == 0 else []  # of the weight, and nothing else
    left, right, out = (
        "".join(draw(st.permutations(kinds)))
        for kinds in (blocks + contracted + positions, blocks + contracted + free + summed, blocks + positions + free)
    )
    sizes = {name: draw(st.integers(1, 5 if name in contracted + free else 2)) for name in left + right}
    return left, right, out, sizes, draw(st.booleans())


def check_product(left, right, out, sizes, weight_first):
    x, w = ([sizes[name] for name in names] for names in (left, right))
    spec = f"{right},{left}->{out}" if weight_first else f"{left},{right}->{out}"

    def loss(params, example):
        operands = (params["w"], example) if weight_first else (example, params["w"])
        return weighted(jnp.einsum(spec, *operands))

    return check(loss, {"w": normal(0, *w)}, normal(1, N, *x))


def test_matrix_products():
    assert run(products(), check_product).keys() == {"Dense", "OuterProducts"}


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 2))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    feature_groups = draw(st.integers(1, 3))
    batch_groups = draw(st.integers(1, 2)) if feature_groups == 1 else 1
    images = batch_groups * draw(st.integers(1, 2))
    few_places = draw(st.booleans())  # so that the factors are smaller than the gradients
    channels = draw(st.integers(3 if few_places else 1, 4))
    outputs = feature_groups * batch_groups * draw(st.integers(6 if few_places else 1, 9))
    space = "HW"[:rank]
    layouts = tuple("".join(draw(st.permutations(letters + space))) for letters in ("NC", "IO", "NC"))
    padding = draw(st.sampled_from(["SAME", "VALID", "explicit"]))
    if padding == "explicit":
        padding = tuple(draw(st.tuples(st.integers(-1, 2), st.integers(-1, 2))) for _ in range(rank))
    options = {
        "window_strides": each(1, 3),
        "padding": padding,
        "rhs_dilation": each(1, 2),
        "lhs_dilation": each(1, 2) if padding not in ("SAME", "VALID") else None,
        "feature_group_count": feature_groups,
        "batch_group_count": batch_groups,
        "dimension_numbers": layouts,
    }
    sizes = {"N": images, "C": feature_groups * channels, "I": channels, "O": outputs}
    source = [(sizes | dict(zip(space, each(2, 3 if few_places else 6), strict=True)))[letter] for letter in layouts[0]]
    kernel = [(sizes | dict(zip(space, each(2 if few_places else 1, 3), strict=True)))[letter] for letter in layouts[1]]
    return source, kernel, options


def check_convolution(source, kernel, options):
    def loss(params, example):
        return weighted(jax.lax.conv_general_dilated(example, params["kernel"], **options))

    def out(params, example):
        return jax.lax.conv_general_dilated(example, params["kernel"], **options)

    params, batch = {"kernel": normal(0, *kernel)}, normal(1, N, *source)
    assume(jax.eval_shape(out, params, batch[0]).size > 0)
    return check(loss, params, batch)


def test_convolutions():
    assert run(convolutions(), check_convolution).keys() == {"Dense", "OuterProducts"}


@st.composite
def look_ups(draw):
    if draw(st.booleans()):  # a matrix as well
        rows, row, positions, tied = draw(st.integers(4, 9)), [draw(st.integers(4, 8))], [draw(st.integers(1, 2))], True
    else:
        rows, row, tied = draw(st.integers(1, 6)), draw(st.lists(st.integers(1, 4), max_size=2)), False
        positions = draw(st.lists(st.integers(1, 4), max_size=2))
    mode = draw(st.sampled_from([None, "clip", "fill", "wrap"]))
    return rows, row, positions, mode, draw(st.booleans()), tied


def check_look_up(rows, row, positions, mode, twice, tied):
    """Repeated, negative and outlying indices, looked up twice, or in a table that is a matrix as well."""

    def loss(params, example):
        table = params["table"]
        out = jnp.take(table, example, axis=0, mode=mode, fill_value=0)
        total = weighted(out)
        if twice:
            total += weighted(table[example[..., None]] + 1)
        if tied:
            total += weighted(jnp.tanh(out) @ table.T)
        return total

    tokens = labels(1, 2 * rows + 4, N, *positions) - rows - 2
    return check(loss, {"table": normal(0, rows, *row)}, tokens)


def test_look_ups():
    assert run(look_ups(), check_look_up).keys() == {"Dense", "OuterProducts", "Rows"}


@st.composite
def networks(draw):
    depth = draw(st.integers(1, 2))
    widths = draw(st.lists(st.integers(1, 7), min_size=depth + 1, max_size=depth + 1))
    layers = [
        (*pair, draw(st.booleans()), draw(st.sampled_from(["plain", "transposed", "checkpoint", "twice"])))
        for pair in itertools.pairwise(widths)
    ]
    return layers, draw(st.lists(st.integers(1, 4), max_size=2))


def check_network(layers, positions):
    def loss(params, x):
        for layer, (_, _, bias, kind) in zip(params, layers, strict=True):

            def dense(w, x, kind=kind):
                return jnp.tanh(jnp.dot(x, w.T if kind == "transposed" else w))

            out = (jax.checkpoint(dense) if kind == "checkpoint" else dense)(layer["w"], x)
            if kind == "twice" and layer["w"].shape[0] == layer["w"].shape[1]:
                out = dense(layer["w"], out)
            x = out + jnp.broadcast_to(layer["b"], out.shape) if bias else out
        return weighted(x)

    params = [
        {"w": normal(3 * i, *((o, k) if kind == "transposed" else (k, o)))}
        | ({"b": normal(3 * i + 1, o)} if bias else {})
        for i, (k, o, bias, kind) in enumerate(layers)
    ]
    return check(loss, params, normal(2, N, *positions, layers[0][0]))


def test_gradients_of_rows_outside_the_table_do_not_count():
    """By default ``jnp.take`` fills with NaN, whose gradient JAX drops: vmap(grad) is finite though the loss is not."""

    def loss(table, tokens):
        return weighted(jnp.take(table, tokens, axis=0))

    check(loss, normal(0, 4, 3), jnp.asarray([[0, 1], [2, 9], [9, 9]]))


def test_networks():
    assert run(networks(), check_network).keys() == {"Dense", "OuterProducts"}
