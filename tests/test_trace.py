"""The engine finds the factored form, and every statistic from it equals a float64 loop over examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import MODELS

import jaxsgd
from jaxsgd import _factors

RELATIVE = {np.dtype("float64"): 1e-11, np.dtype("float32"): 1e-5}  # of the largest entry, by the dtype of a result


def flat(tree):
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def rows_by_loop(loss_fn, params, batch):
    """The gradient of one example after the other, as rows."""
    count = len(jax.tree.leaves(batch)[0])
    examples = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(count)]
    return np.stack([flat(jax.grad(loss_fn)(params, example)) for example in examples]), examples


def assert_close(actual, expected, scale=None):
    actual, expected = np.asarray(actual), np.asarray(expected)
    tolerance = RELATIVE[actual.dtype]
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0) if scale is None else scale
    worst = np.abs(actual - expected).max(initial=0)
    assert worst <= tolerance * scale, f"{worst} > {tolerance} · {scale}, at {np.abs(actual - expected).argmax()}"


@pytest.fixture(params=MODELS, scope="module")
def case(request):
    loss_fn, params, batch, dense = MODELS[request.param]()
    rows, examples = rows_by_loop(loss_fn, params, batch)
    return jaxsgd.per_example_gradients(loss_fn)(params, batch), rows, loss_fn, params, examples, dense


def test_gradients(case):
    g, rows, loss_fn, params, examples, _ = case
    materialized = jax.tree.leaves(g.materialize())
    assert [leaf.shape[1:] for leaf in materialized] == [leaf.shape for leaf in jax.tree.leaves(params)]
    assert_close(np.concatenate([np.asarray(leaf).reshape(g.count, -1) for leaf in materialized], axis=1), rows)
    assert_close(g.losses(), [loss_fn(params, example) for example in examples])


def test_sums(case):
    g, rows, *_ = case
    weights = np.random.default_rng(7).normal(size=g.count)
    scale = np.abs(rows).max()
    assert_close(flat(g.mean()), rows.mean(axis=0), scale)
    assert_close(flat(g.weighted_sum(jnp.asarray(weights))), weights @ rows, scale)


def test_norms_and_products(case):
    g, rows, _, params, *_ = case
    assert_close(g.squared_norms(), np.sum(rows**2, axis=1))
    assert_close(g.gram(), rows @ rows.T)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    size = np.abs(rows).max() * np.abs(flat(direction)).sum()
    assert_close(g.inner_products(direction), rows @ flat(direction), size)


def test_squares(case):
    g, rows, *_ = case
    centered = rows - rows.mean(axis=0)
    assert_close(flat(g.second_moment()), np.mean(rows**2, axis=0))
    assert_close(flat(g.variance(ddof=0)), np.var(rows, axis=0), np.mean(rows**2, axis=0).max())
    assert_close(g.squared_deviations(), np.sum(centered**2, axis=1))
    assert_close(g.total_deviation(), np.sum(centered**2))


def test_gram_against_others(case):
    g, rows, loss_fn, params, examples, _ = case
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples[::2])
    other = jaxsgd.per_example_gradients(loss_fn)(params, batch)
    assert_close(g.gram(other), rows @ rows[::2].T)


def test_stays_factored(case):
    g, _, _, params, _, dense = case
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, leaf, factor in zip(paths, jax.tree.leaves(params), g.factors, strict=True):
        matrix = leaf.ndim - any(getattr(key, "key", None) == "blocks" for key in path) >= 2 and leaf.size > 0
        name = path[-1].key
        if matrix and name != "b":
            assert isinstance(factor, _factors.Dense) == (name in dense), g.explain()


def test_explains_every_parameter(case):
    g, _, _, params, *_ = case
    lines = g.explain().splitlines()
    assert len(lines) == len(jax.tree.leaves(params))
    for (path, leaf), line in zip(jax.tree_util.tree_leaves_with_path(params), lines, strict=True):
        assert line.startswith(f"params{jax.tree_util.keystr(path)} {leaf.shape}: ")


@pytest.mark.parametrize("name", ["tanh", "conv_same", "gpt_scanned", "embedding", "recurrent"])
def test_under_jit_and_vmap(name):
    loss_fn, params, batch, _ = MODELS[name]()

    def statistics(params):
        g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
        return g.mean(), g.squared_norms(), g.second_moment(), g.variance()

    plain = statistics(params)
    twice = jax.vmap(statistics)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params))
    for other in (jax.jit(statistics)(params), *(jax.tree.map(lambda leaf, i=i: leaf[i], twice) for i in (0, 1))):
        jax.tree.map(lambda a, b: assert_close(a, b, max(np.abs(b).max(initial=0), 1e-12)), other, plain)
