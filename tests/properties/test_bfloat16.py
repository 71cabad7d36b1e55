"""Parameters in bfloat16, of 8 bits: every statistic is accumulated, and returned, in float32.

A gradient in bfloat16 is off by 2⁻⁸ of itself, so ``jax.grad`` cannot say what a statistic is to more digits. Two
things can: the engine's own gradients, whose statistics NumPy computes in float64, and losses whose per-example
gradients are products of two numbers of 8 bits, which float32 holds exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.kernels.factors import _dense
from tests.support import shared_maps, transformers  # noqa: F401 - register their models
from tests.support.models import MODELS, QUICK, labels, normal

BF16 = jnp.bfloat16
ONE_ROUNDING = 2.0**-8
# Each operation rounds to bfloat16 in the engine as in the loop: XLA may otherwise keep more digits in either.
AS_WRITTEN = QUICK | {"xla_allow_excess_precision": False}


def in_bfloat16(tree):
    return jax.tree.map(lambda leaf: leaf.astype(BF16) if leaf.dtype == jnp.float64 else leaf, tree)


def float64(array):
    return np.asarray(array, dtype=np.float64)


def rows_of(tree):
    leaves = [float64(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def flat(tree):
    return np.concatenate([float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def statistics(g, direction, weights):
    return {
        "mean": g.mean(),
        "weighted_sum": g.weighted_sum(weights),
        "squared_norms": g.squared_norms(),
        "squared_deviations": g.squared_deviations(),
        "total_deviation": g.total_deviation(),
        "second_moment": g.second_moment(),
        "variance": g.variance(),
        "inner_products": g.inner_products(direction),
        "gram": g.gram(),
    }


def check(found, rows, direction, weights, tolerance=1e-5):
    """Statistics in float32 equal those that NumPy computes of the rows, to the rounding of float32."""
    largest, v, w, norms = np.abs(rows).max(), flat(direction), float64(weights), np.sum(rows**2, axis=1)
    deviations = np.sum((rows - rows.mean(axis=0)) ** 2, axis=1)
    for name, expected, scale in (
        ("mean", rows.mean(axis=0), largest),
        ("weighted_sum", w @ rows, largest * np.abs(w).sum()),
        ("squared_norms", norms, norms.max()),
        ("squared_deviations", deviations, norms.max()),
        ("total_deviation", deviations.sum(), norms.sum()),
        ("second_moment", np.mean(rows**2, axis=0), largest**2),
        ("variance", rows.var(axis=0), largest**2),
        ("inner_products", rows @ v, largest * np.abs(v).sum()),
        ("gram", rows @ rows.T, norms.max()),
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(found[name])} == {jnp.dtype("float32")}, name
        worst = np.abs(flat(found[name]) - np.ravel(expected)).max()
        assert worst <= tolerance * scale, f"{name} is off by {worst}, {worst / scale:.1e} of its scale"


def quarters(low, high, seed, *shape):
    """Multiples of 1/4, few enough for 8 bits, whose products float32 holds exactly."""
    return (labels(seed, 4 * (high - low), *shape) / 4 + low).astype(BF16)


@pytest.mark.parametrize(
    "name",
    [
        "gelu",
        pytest.param("gpt_scanned", marks=pytest.mark.slow),
        "embedding",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cond_divides", "upsampled", "low_rank")),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("weight_norm", "normalized_rows", "masked_by_where")),
        "pairs_look_up",
        "split_weights",
    ],
)
def test_statistics_are_those_of_the_gradients(name):
    loss_fn, params, batch, _ = MODELS[name]()
    params, batch = in_bfloat16((params, batch))
    direction, weights = jax.tree.map(jnp.cos, params), jnp.cos(jnp.arange(5, dtype=jnp.float32))

    def compute(params, batch):
        g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
        return statistics(g, direction, weights), g.materialize()

    found, gradients = jax.jit(compute, compiler_options=AS_WRITTEN)(params, batch)
    check(found, rows_of(gradients), direction, weights)
    gradient = jax.jit(jax.grad(loss_fn), compiler_options=AS_WRITTEN)
    loop = [gradient(params, jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(5)]
    for leaf, *examples in zip(*map(jax.tree.leaves, (gradients, *loop)), strict=True):
        expected = np.stack([float64(example) for example in examples])
        # the last rounding; where uses of a parameter are added, as for a tied table, one rounding of each part; and of
        # weights that are normalized the loop rounds the gradient twice, before and after what is taken away from it
        roundings = ONE_ROUNDING * (2 if "norm" in name else 1)
        np.testing.assert_allclose(float64(leaf), expected, rtol=0, atol=roundings * np.abs(expected).max())


def linear_loss(params, example):
    """Gradients: x rᵀ, r, and r added to the row of the token."""
    out = example["x"] @ params["w"] + params["b"] + params["table"][example["token"]]
    return jnp.sum(out * example["r"])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "i", "o"), [(4096, 6, 5), (16, 96, 64)])
def test_sums_over_many_examples_or_entries(count, i, o):
    """A running sum in bfloat16 stops growing at 2⁸ times its terms."""
    params = in_bfloat16({"w": normal(0, i, o), "b": normal(1, o), "table": normal(2, 4, o)})
    batch = {"x": quarters(1, 3, 3, count, i), "r": quarters(1, 3, 4, count, o), "token": labels(5, 4, count)}
    direction, weights = jax.tree.map(jnp.cos, params), quarters(1, 3, 6, count).astype(jnp.float32)
    found = jax.jit(lambda p, b: statistics(jaxsgd.per_example_gradients(linear_loss)(p, b), direction, weights))(
        params, batch
    )
    x, r = float64(batch["x"]), float64(batch["r"])
    table = np.eye(4)[np.asarray(batch["token"])][:, :, None] * r[:, None, :]
    rows = rows_of({"b": r, "table": table, "w": x[:, :, None] * r[:, None, :]})
    check(found, rows, direction, weights)

    def running_sum(terms):
        add = jax.jit(
            lambda terms: jax.lax.scan(lambda s, t: (s + t, None), jnp.zeros(terms.shape[1:], BF16), terms)[0]
        )
        return float64(add(jnp.asarray(terms, BF16)))

    if count > i * o:
        assert np.abs(running_sum(rows) / count - rows.mean(axis=0)).max() > 0.1 * np.abs(rows).max()
    else:
        assert np.abs(running_sum(rows.T**2) - np.sum(rows**2, axis=1)).max() > 0.1 * np.sum(rows**2, axis=1).max()


LENGTH = 100


def steps(step, xs):
    """The sum of a number over the steps of a loop."""
    return jax.lax.scan(lambda total, x: (total + step(x), None), jnp.zeros((), BF16), xs)[0]


# A sum of 100 products, as one matrix product and over a loop.
LONG = {
    "positions": lambda p, e: jnp.sum((e["x"] @ p) * e["r"]),
    "loop": lambda p, e: steps(lambda xr: jnp.sum((xr[0] @ p) * xr[1]), (e["x"], e["r"])),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(("i", "o"), [(3, 4), pytest.param(240, 200, marks=pytest.mark.slow)])
def test_sums_over_many_positions(name, i, o):
    """Kept dense, and as factors: in both, more exact than ``jax.grad``, which rounds what it adds to bfloat16."""
    params, batch = (
        normal(0, i, o).astype(BF16),
        {"x": quarters(1, 3, 1, 2, LENGTH, i), "r": quarters(1, 3, 2, 2, LENGTH, o)},
    )
    g = jaxsgd.per_example_gradients(LONG[name])(params, batch)
    assert isinstance(g.factors[0], _dense.Dense) == (i == 3)
    exact = np.einsum("nti,nto->nio", float64(batch["x"]), float64(batch["r"]))
    for found, expected in (
        (g.mean(), exact.mean(axis=0)),
        (g.squared_norms(), np.sum(exact**2, axis=(1, 2))),
        (g.gram(), np.einsum("nio,mio->nm", exact, exact)),
        (g.variance(), exact.var(axis=0)),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(float64(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    direct = jax.grad(LONG[name])(params, jax.tree.map(lambda leaf: leaf[0], batch))
    assert np.abs(float64(direct) - exact[0]).max() > 1e-3 * exact.max()


def test_rows_of_a_token_that_repeats():
    def loss(table, example):
        return jnp.sum(table[example["tokens"]] * example["r"])

    batch = {"tokens": labels(0, 2, 2, LENGTH), "r": quarters(1, 3, 1, 2, LENGTH, 5)}
    g = jaxsgd.per_example_gradients(loss)(normal(2, 3, 5).astype(BF16), batch)
    units = np.eye(3)[np.asarray(batch["tokens"])]
    exact = np.einsum("ntv,ntd->nvd", units, float64(batch["r"]))
    for found, expected in ((g.mean(), exact.mean(axis=0)), (g.squared_norms(), np.sum(exact**2, axis=(1, 2)))):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(float64(found), expected, rtol=1e-6)
