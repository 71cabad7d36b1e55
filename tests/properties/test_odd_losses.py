"""Losses that people write and a rule may misread: each statistic against ``jit(vmap(grad))``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests.support.models import labels, normal
from tests.support.registry import quick

tanh = jnp.tanh
MASK = normal(90, 6) > 0
SQUARE, VECTORS = normal(0, 6, 6), normal(1, 5, 6)
BYTES = jnp.asarray([[0, 255, 7], [255, 255, 1]], jnp.uint8)  # of a table of 256 rows, which no byte counts
TABLE, TOKENS = normal(2, 7, 4), labels(3, 7, 5, 3)


def scanned(step, state, length, xs=None):
    return jnp.sum(jax.lax.scan(lambda state, x: (step(state, x), None), state, xs, length=length)[0])


def carried(scale):
    """The weights travel in the carry of the loop, instead of being a constant of it."""

    def loss(p, e):
        step = jax.lax.scan(lambda c, _: ((tanh(c[0] @ c[1]), c[1] * scale), None), (e, p), None, length=3)
        return jnp.sum(step[0][0])

    return loss


def nested_scan(p, e):
    def inner(state, x):
        return jax.lax.scan(lambda c, _: (tanh(c @ p + x), None), state, None, length=2)[0]

    return scanned(inner, e, None, jnp.stack([e, 2 * e]))


def twice_convolved(p, e):
    hidden = tanh(jax.lax.conv_general_dilated(e[None], p, (1,), "SAME"))
    return jnp.sum(tanh(jax.lax.conv_general_dilated(hidden, p, (1,), "SAME")))


# name: (loss, params, batch)
LOSSES = {
    "constant mask": (lambda p, e: jnp.sum(tanh(jnp.where(MASK, e, 0.0) @ p)), SQUARE, VECTORS),
    "quadratic in the weights": (lambda p, e: tanh(e @ p) @ p @ e, SQUARE, VECTORS),
    "loop of one step": (lambda p, e: scanned(lambda c, _: tanh(c @ p), e, 1), SQUARE, VECTORS),
    "twice in a loop": (lambda p, e: scanned(lambda c, _: tanh(c @ p) @ p.T, e, 3), SQUARE, VECTORS),
    "carried": (carried(1.0), SQUARE, VECTORS),
    "carried and scaled": (carried(0.5), SQUARE, VECTORS),
    "in a loop and after it": (
        lambda p, e: jnp.sum(jax.lax.scan(lambda c, _: (tanh(c @ p), None), e, None, length=3)[0] @ p),
        SQUARE,
        VECTORS,
    ),
    "fori_loop": (lambda p, e: jnp.sum(jax.lax.fori_loop(0, 3, lambda _, c: tanh(c @ p), e)), SQUARE, VECTORS),
    "loop in a loop": (nested_scan, SQUARE, VECTORS),
    "bilinear": (lambda p, e: jnp.sum(tanh(jnp.einsum("i,ijk,j->k", e, p, e))), normal(4, 6, 6, 3), VECTORS),
    "its own transpose": (lambda p, e: jnp.sum((p @ p.T) * jnp.outer(e, e)), SQUARE, VECTORS),
    "matrix and bias": (lambda p, e: jnp.sum(tanh(e @ p + p[0])), SQUARE, VECTORS),
    "stacked, unrolled": (lambda p, e: jnp.sum(tanh(tanh(e @ p[0]) @ p[1])), normal(5, 2, 6, 6), VECTORS),
    "concatenated": (
        lambda p, e: jnp.sum(tanh(e @ jnp.concatenate([p["a"], p["b"]], 1))),
        {"a": normal(6, 6, 2), "b": normal(7, 6, 3)},
        VECTORS,
    ),
    "one matrix a head": (
        lambda p, e: jnp.sum(tanh(jnp.einsum("thd,hdk->thk", e, p))),
        normal(8, 3, 9, 8),
        normal(9, 5, 2, 3, 9),
    ),
    "broadcast": (
        lambda p, e: jnp.sum(tanh(jnp.einsum("hd,hdk->hk", e, jnp.broadcast_to(p, (3, 6, 4))))),
        normal(10, 6, 4),
        normal(11, 5, 3, 6),
    ),
    "penalty": (lambda p, e: jax.nn.logsumexp(e @ p) + 0.1 * jnp.sum(p**2), SQUARE, VECTORS),
    "one row looked up": (lambda p, e: jnp.sum(tanh(jnp.take(p, e[0], axis=0))), TABLE, TOKENS),
    "rows by bytes": (lambda p, e: jnp.sum(tanh(jnp.take(p, e, axis=0))), normal(21, 256, 2), BYTES),
    "entries of a vector": (lambda p, e: jnp.sum(tanh(p[e])), normal(12, 7), TOKENS),
    "one entry of a matrix": (lambda p, e: tanh(p[e[0], e[1]]), normal(13, 7, 7), TOKENS),
    "columns": (lambda p, e: jnp.sum(tanh(p[:, e])), TABLE.T, TOKENS),
    "rows, then scaled": (lambda p, e: jnp.sum(tanh(p[e] * 3.0)), TABLE, TOKENS),
    "scaled, then rows": (lambda p, e: jnp.sum(tanh((p * 2.0)[e])), TABLE, TOKENS),
    "rows of matrices": (lambda p, e: jnp.sum(tanh(p[e])), normal(14, 7, 2, 2), TOKENS),
    "rows twice": (lambda p, e: jnp.sum(tanh(p[e[:2]])) + jnp.prod(tanh(p[e[1:]])), TABLE, TOKENS),
    "divided by a parameter": (
        lambda p, e: jnp.sum(tanh(e @ (p["w"] / p["s"]))),
        {"w": SQUARE, "s": jnp.asarray(2.0)},
        VECTORS,
    ),
    "convolved twice": (twice_convolved, normal(15, 3, 3, 3), normal(16, 5, 3, 8)),
    "several images an example": (
        lambda p, e: jnp.sum(tanh(jax.lax.conv_general_dilated(e, p, (2, 2), "SAME"))),
        normal(17, 4, 3, 3, 3),
        normal(18, 5, 3, 3, 8, 7),
    ),
    "batch groups": (
        lambda p, e: jnp.sum(tanh(jax.lax.conv_general_dilated(e, p, (1,), "SAME", batch_group_count=2))),
        normal(19, 4, 3, 3),
        normal(20, 5, 2, 3, 8),
    ),
    "cond over weights": (
        lambda p, e: jax.lax.cond(e[0] > 0, lambda w: jnp.sum(tanh(e @ w)), lambda w: jnp.sum(w[0]), p),
        SQUARE,
        VECTORS,
    ),
    "a row set to zero": (lambda p, e: jnp.sum(tanh(e @ p.at[0].set(0.0))), SQUARE, VECTORS),
    "triangular": (lambda p, e: jnp.sum(tanh(e @ jnp.tril(p))), SQUARE, VECTORS),
    "Fourier transform": (lambda p, e: jnp.sum(jnp.abs(jnp.fft.fft(e @ p)) ** 2), SQUARE, VECTORS),
    "determinant": (lambda p, e: jnp.linalg.slogdet(p @ p.T + jnp.outer(e, e))[1], SQUARE, VECTORS),
    "one example": (lambda p, e: jnp.sum(tanh(e @ p)), SQUARE, VECTORS[:1]),
}


@pytest.mark.parametrize("name", quick(LOSSES, list(LOSSES)[::2]))
def test_equals_vmap_of_grad(name):
    loss, params, batch = LOSSES[name]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = jax.jit(lambda p, b: _statistics(jaxsgd.per_example_gradients(loss)(p, b)))(params, batch)
        gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, batch)
    rows = np.concatenate([np.asarray(leaf).reshape(len(batch), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    expected = {
        "mean": rows.mean(axis=0),
        "squared_norms": np.sum(rows**2, axis=1),
        "second_moment": np.mean(rows**2, axis=0),
        "variance": rows.var(axis=0),
        "gram": rows @ rows.T,
        "total_deviation": np.sum((rows - rows.mean(axis=0)) ** 2),
    }
    scale = max(np.sum(rows**2, axis=1).max(), np.abs(rows).max())
    for statistic, truth in expected.items():
        flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(found[statistic])])
        worst = np.abs(flat - np.ravel(truth)).max()
        assert worst <= 1e-12 * scale, f"{statistic} is off by {worst}, {worst / scale:.1e} of the largest"


def _statistics(g):
    return {
        "mean": g.mean(),
        "squared_norms": g.squared_norms(),
        "second_moment": g.second_moment(),
        "variance": g.variance(),
        "gram": g.gram(),
        "total_deviation": g.total_deviation(),
    }


def test_can_be_differentiated():
    """A penalty on the squared gradient norms has a gradient of its own."""

    def penalty(norms):
        return jax.grad(lambda p: jnp.sum(norms(p)))(SQUARE)

    loss = LOSSES["quadratic in the weights"][0]
    direct = jax.vmap(jax.grad(loss), in_axes=(None, 0))
    ours = penalty(lambda p: jaxsgd.per_example_gradients(loss)(p, VECTORS).squared_norms())
    truth = penalty(lambda p: jnp.sum(direct(p, VECTORS) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(ours, truth, rtol=1e-11)


def test_loss_that_closes_over_a_traced_value():
    def norms(scale):
        return jaxsgd.per_example_gradients(lambda p, e: scale * jnp.sum(tanh(e @ p)))(SQUARE, VECTORS).squared_norms()

    truth = 4 * norms(jnp.asarray(1.0))
    np.testing.assert_allclose(jax.jit(norms)(2.0), truth, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(norms)(jnp.asarray([1.0, 2.0]))[1], truth, rtol=1e-12)


@pytest.mark.slow
def test_rows_of_a_table_that_are_nearly_equal():
    """Deviations of 10⁻⁴ of the gradients, in float32; one example leaves a row out, others add to a row twice."""
    tokens = jnp.tile(jnp.asarray([0, 1, 2, 2]), (64, 1)).at[0].set(2)
    for skips, batch in (
        (True, {"tokens": tokens, "r": (100 + normal(5, 64, 4, 5) / 100).astype(jnp.float32)}),
        (False, {"tokens": tokens[1:], "r": (100 + normal(5, 63, 4, 5) / 100).astype(jnp.float32)}),
    ):
        g = jaxsgd.per_example_gradients(lambda p, e: jnp.sum(p[e["tokens"]] * e["r"]))(jnp.zeros((4, 5), "f"), batch)
        rows = np.asarray(g.materialize(), np.float64)
        squares = (rows - rows.mean(axis=0)) ** 2
        np.testing.assert_allclose(g.variance(), squares.mean(axis=0), rtol=1e-3)
        np.testing.assert_allclose(g.total_deviation(), squares.sum(), rtol=1e-3)
        if not skips:  # else one large deviation in the mean makes the others small against it
            np.testing.assert_allclose(g.squared_deviations(), squares.sum(axis=(1, 2)), rtol=1e-2)
