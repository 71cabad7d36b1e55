"""Gradients of which every coordinate is multiplied by a number: from factors as from the gradients themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import kernels
from jaxsgd.kernels.factors import Layout, OuterProducts, Stretched, _stretched
from tests.kernels.test_tracing import WEIGHTS, assert_close, case, flat
from tests.support import frameworks, transformers  # noqa: F401 - register their models
from tests.support.models import MODELS, QUICK
from tests.support.registry import gradients_given, measured, quick, skewed


def scales_like(params: Any) -> Any:
    """Unequal numbers of either sign."""

    def of(p: jax.Array) -> jax.Array:
        return 1.5 * jnp.cos(2 * jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)

    return jax.tree.map(of, params)


def statistics(g: jaxsgd.PerExampleGradients, direction: Any) -> dict[str, Any]:
    """Every statistic, with the power of gradients in it."""
    weights = jnp.asarray(WEIGHTS)
    return {
        "mean 1": g.mean(),
        "precise_mean 1": g.precise_mean(),
        "materialize 1": g.materialize(),
        "weighted_sum 1": g.weighted_sum(weights),
        "scaled 1": g.scaled(weights).mean(),
        "times 1": g.times(0.5).mean(),
        "inner_products 1": g.inner_products(direction),
        "centered_products 1": g.centered_products(direction),
        "squared_norms 2": g.squared_norms(),
        "squared_deviations 2": g.squared_deviations(),
        "total_deviation 2": g.total_deviation(),
        "weighted_deviation 2": g.weighted_deviation(weights**2),
        "variance 2": g.variance(),
        "second_moment 2": g.second_moment(),
        "gram 2": g.gram(),
        "centered_gram 2": g.centered_gram(),
        "gram of some 2": g.gram(g.take(slice(1, 4))),
    }


def expected(G: np.ndarray, direction: np.ndarray) -> dict[str, Any]:
    """The same from the gradients as rows."""
    centered, w = G - G.mean(axis=0), WEIGHTS**2
    about = G - w @ G / w.sum()
    return {
        "mean 1": G.mean(axis=0),
        "precise_mean 1": G.mean(axis=0),
        "weighted_sum 1": WEIGHTS @ G,
        "scaled 1": WEIGHTS @ G / len(G),
        "times 1": G.mean(axis=0) / 2,
        "inner_products 1": G @ direction,
        "centered_products 1": centered @ direction,
        "squared_norms 2": (G**2).sum(axis=1),
        "squared_deviations 2": (centered**2).sum(axis=1),
        "total_deviation 2": (centered**2).sum(),
        "weighted_deviation 2": w @ (about**2).sum(axis=1),
        "variance 2": (centered**2).mean(axis=0),
        "second_moment 2": (G**2).mean(axis=0),
        "gram 2": G @ G.T,
        "centered_gram 2": centered @ centered.T,
        "gram of some 2": G @ G[1:4].T,
    }


def check(found: dict[str, Any], rows: np.ndarray, scales: Any, direction: Any) -> None:
    G = rows * flat(scales)
    materialized = jax.tree.leaves(found["materialize 1"])
    assert_close(np.concatenate([np.asarray(leaf).reshape(len(G), -1) for leaf in materialized], axis=1), G)
    for name, value in expected(G, flat(direction)).items():
        scale = max(np.abs(rows).max() ** int(name[-1]), 1e-12) * rows.shape[1]
        assert_close(flat(found[name]), value.reshape(-1), scale)


@pytest.mark.parametrize("name", quick(MODELS, {"conv_small_output"}))
def test_statistics_equal_those_of_the_gradients_themselves(name: str) -> None:
    """Catches scales at the wrong place of a layout, applied to a shared part twice, or to one side of a product."""
    loss_fn, params, batch, _ = MODELS[name]()
    scales, direction = scales_like(params), jax.tree.map(lambda p: jnp.ones_like(p) / 2, params)

    def compute(params: Any, batch: Any, scales: Any) -> dict[str, Any]:
        g = jaxsgd.per_example_gradients(loss_fn)(params, batch).stretched(scales)
        return statistics(g, direction)

    found = jax.jit(compute, compiler_options=QUICK)(params, batch, scales)
    check(found, case(name)[2], scales, direction)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "conv_small_output", "embedding", "penalized"])
def test_gradients_computed_anew_are_stretched_too(name: str) -> None:
    loss_fn, params, batch, _ = MODELS[name]()
    scales, direction = scales_like(params), jax.tree.map(lambda p: jnp.ones_like(p) / 2, params)
    kept = jaxsgd.per_example_gradients(loss_fn)(params, batch)
    limit = sum(leaf.nbytes for leaf in jax.tree.leaves(kept)) * 9 // 10
    g = kernels.per_example_gradients(loss_fn, memory_limit=limit)(params, batch)
    assert type(g) is not type(kept)
    root = jax.tree.map(lambda s: 0.5 * jnp.ones_like(s), scales)
    found = statistics(g.stretched(scales).stretched(root), direction)
    check(found, case(name)[2], jax.tree.map(lambda s: s / 2, scales), direction)


def outer(t: int, n: int = 5, i: int = 4, o: int = 3) -> tuple[OuterProducts, np.ndarray, np.ndarray]:
    """Factors with a large mean at their first position, laid out turned round, their gradients and scales."""
    left, right = skewed(n, 1, t, i, seed=t) + 3, skewed(n, 1, t, o, seed=t + 1)
    base = OuterProducts(
        jnp.asarray(left), jnp.asarray(right), Layout((1, i, o)).then("reshape", (i, o)).then("transpose", (1, 0))
    )
    return base, np.einsum("nbti,nbto->noi", left, right), skewed(o, i, seed=9)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_factors_of_few_and_of_many_positions(t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pair of positions that is left out; a chunk of two, of products that take all of a chunk formed."""
    base, rows, scales = outer(t)
    monkeypatch.setattr(_stretched, "_NUMBERS_AT_A_TIME", 2 * scales.size)

    def statistics(base: OuterProducts, scales: jax.Array) -> dict[str, Any]:
        g = base.stretched(scales)
        assert isinstance(g, Stretched)
        return {
            "norms": g.squared_norms(),
            "deviations": g.squared_deviations(),
            "gram": g.gram(g),
            "gram of some": g.gram(g.take(slice(3))),
            "minus": g.minus(base, jnp.asarray(2.0)).materialize(),
            "twice": g.stretched(scales).squared_norms(),
        }

    found = jax.jit(statistics, compiler_options=QUICK)(base, jnp.asarray(scales))
    G = (rows * scales).reshape(len(rows), -1)
    truth = {
        "norms": (G**2).sum(axis=1),
        "deviations": ((G - G.mean(axis=0)) ** 2).sum(axis=1),
        "gram": G @ G.T,
        "gram of some": G @ G[:3].T,
        "minus": rows * scales - 2 * rows,
        "twice": ((rows * scales**2) ** 2).sum(axis=(1, 2)),
    }
    for name, value in truth.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-11, err_msg=name)


def test_squares_of_a_side_may_leave_the_dtype() -> None:
    """Catches a∘a, which is 0 in float32, where the square of a∘s is not."""
    with jax.enable_x64(False):
        left, right = jnp.full((3, 1, 1, 2), 1e-25, jnp.float32), jnp.asarray(skewed(3, 1, 1, 2), jnp.float32)
        g = OuterProducts(left, right, Layout((1, 2, 2))).stretched(jnp.full((1, 2, 2), 1e25, jnp.float32))
        truth = 2 * np.sum(np.asarray(right, float) ** 2, axis=(1, 2, 3))
        norms, gram = jax.jit(lambda g: (g.squared_norms(), g.gram(g)), compiler_options=QUICK)(g)
        np.testing.assert_allclose(norms, truth, rtol=1e-5)
        np.testing.assert_allclose(np.diag(gram), truth, rtol=1e-5)


@pytest.mark.parametrize("statistic", ["squared_norms", "total_deviation", "gram"])
def test_not_all_gradients_are_formed_at_once(statistic: str) -> None:
    """Of 64 examples with 128 · 128 parameters, those at a time are a few."""
    base = OuterProducts(jnp.ones((64, 1, 1, 128)), jnp.ones((64, 1, 1, 128)), Layout((1, 128, 128)))
    g = base.stretched(jnp.ones((1, 128, 128)))
    program = jax.jit(lambda g: g.gram(g) if statistic == "gram" else getattr(g, statistic)()).lower(g).compile(QUICK)
    assert program.memory_analysis().temp_size_in_bytes < 64 * 128 * 128 * 8 / 2


def test_under_a_map_over_scales() -> None:
    """Catches a reduction over an axis counted from the wrong end."""
    loss_fn, params, batch, _ = MODELS["tanh"]()
    several = jax.tree.map(lambda p: jnp.stack([jnp.ones_like(p), 2 * jnp.ones_like(p)]), params)
    g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
    found = jax.jit(jax.vmap(lambda s: g.stretched(s).squared_norms()), compiler_options=QUICK)(several)
    np.testing.assert_allclose(found, jnp.stack([g.squared_norms(), 4 * g.squared_norms()]), rtol=1e-12)


def test_a_metric_is_the_square_of_the_scales() -> None:
    g = measured(gradients_given([[1.0, 2.0], [3.0, -4.0]]))
    np.testing.assert_allclose(g.in_metric(jnp.asarray([4.0, 9.0])).materialize(), [[2, 6], [6, -12]])
    assert "stretched" in g_of_a_layer().stretched(jnp.ones((2, 3))).explain()


def g_of_a_layer() -> jaxsgd.PerExampleGradients:
    data = (jnp.asarray(skewed(4, 2)), jnp.asarray(skewed(4, 3)))
    return jaxsgd.per_example_gradients(lambda w, e: jnp.sum((e[0] @ w) * e[1]))(jnp.ones((2, 3)), data)
