"""The differences of two sets of gradients, factored or not: their numbers, their form, and every digit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import designs, estimators, problems, variance_reduction
from jaxsgd.variance_reduction import SAGA
from tests.support.models import MODELS, QUICK
from tests.support.registry import measured, quick, skewed
from tests.support.twins import assert_close, flat, flat_rows

KEY = jax.random.key(7)


def waves(leaf: jax.Array) -> jax.Array:
    """A direction without symmetries."""
    return jnp.asarray(np.cos(1 + np.arange(leaf.size)).reshape(leaf.shape), leaf.dtype)


@pytest.mark.parametrize(
    "name",
    quick(
        ["tanh", "embedding", "penalized", "penalized_embedding", "weight_normalized", "conv_1d_first_axes"],
        {"embedding", "penalized"},
    ),
)
def test_differences_of_factored_gradients(name: str) -> None:
    """Outer products, rows of a table, shared parts and dense ones, against the difference of the gradients formed."""
    loss_fn, params, batch, _ = MODELS[name]()
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * waves(leaf), params)
    gradients = jaxsgd.per_example_gradients(loss_fn)

    def compute(params: Any, moved: Any, batch: Any) -> Any:
        g, h = gradients(params, batch), gradients(moved, batch)
        d, table = g.minus(h, 0.7), g.minus(h.scaled(jnp.ones(h.count)), 0.7)
        found = [(each.squared_norms(), each.squared_deviations(), each.total_deviation()) for each in (d, table)]
        return (
            g.materialize(),
            h.materialize(),
            d.materialize(),
            table.mean(),
            d.losses(),
            g.losses(),
            h.losses(),
            found,
        )

    g, h, d, mean, losses, own, others, found = jax.jit(compute, compiler_options=QUICK)(params, moved, batch)
    truth = flat_rows(g) - 0.7 * flat_rows(h)
    scale = np.abs(truth).max() ** 2 * truth.shape[1]
    assert_close(flat_rows(d), truth, atol=1e-13 * scale)
    assert_close(flat(mean), truth.mean(axis=0), atol=1e-13 * scale)
    assert_close(losses, own - 0.7 * others, atol=1e-13)
    deviations = np.sum((truth - truth.mean(axis=0)) ** 2, axis=1)
    for norms, squares, total in found:
        assert_close(norms, np.sum(truth**2, axis=1), atol=1e-12 * scale)
        assert_close(squares, deviations, atol=1e-12 * scale)
        assert_close(total, deviations.sum(), atol=1e-12 * scale)


def test_differences_keep_the_factored_form() -> None:
    """Catches a fallback to n × P numbers where the factors would do."""
    problem = problems.mlp(skewed(6, 30), np.arange(6) % 3, key=KEY, hidden=40)
    g = measured(problem)
    h = measured(problem._replace(params=jax.tree.map(lambda leaf: leaf * 1.1, problem.params)))
    assert [type(factor).__name__ for factor in g.minus(h).factors] == [type(f).__name__ for f in g.factors]
    assert sum(leaf.size for leaf in jax.tree.leaves(g.minus(h))) < 6 * g.num_params / 4
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(SAGA(problem.loss_fn, None)._rows(*problem[1:]))) < 6 * g.num_params
    )


@pytest.mark.slow
def test_no_digit_cancels_near_the_snapshot_in_float32() -> None:
    """At a distance of 1e-5 the variance of differences is 1e-10 of that of gradients, below float32's digits."""
    x, y = skewed(64, 12), np.arange(64) % 3
    problem = problems.mlp(x, y, key=KEY, hidden=16)
    change = jax.tree.map(lambda leaf: 1e-5 * waves(leaf), problem.params)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problem.params)
    moved = jax.tree.map(lambda leaf, d: leaf + d.astype(jnp.float32), single, change)
    data = {"x": problem.data["x"].astype(jnp.float32), "y": problem.data["y"]}
    exact_params = [jax.tree.map(lambda leaf: leaf.astype(jnp.float64), p) for p in (single, moved)]
    exact_data = {"x": data["x"].astype(jnp.float64), "y": data["y"]}
    gradients, design = jaxsgd.per_example_gradients(problem.loss_fn), designs.WithoutReplacement(4)
    g, h = (flat_rows(gradients(p, exact_data).materialize()) for p in exact_params)
    d = g - h - (g - h).mean(axis=0)
    truth = 60 / (4 * 63) * np.mean(np.sum(d**2, axis=1))
    law = variance_reduction.exact(design, gradients(moved, data), gradients(single, data))
    assert law.variance.dtype == jnp.float32
    print("F32", float(law.variance) / truth - 1)
    assert abs(float(law.variance) / truth - 1) < 0.02
    gram = [gradients(a, data).gram(gradients(b, data)) for a, b in [(moved, moved), (moved, single), (single, single)]]
    K = np.asarray(gram[0] - gram[1] - gram[1].T + gram[2])
    naive = 60 / (4 * 63) * (np.trace(K) / 64 - K.sum() / 64**2)
    print("NAIVE", naive / truth - 1)
    assert abs(naive / truth - 1) > 1, "the control: from Gram matrices, the digits are gone"


def test_differences_under_jit_and_gradients_that_are_not_kept() -> None:
    loss_fn, params, data = problems.line_fit()
    gradients = jaxsgd.per_example_gradients(loss_fn)
    moved = {"m": params["m"] + 1, "b": params["b"]}

    def compute(beta: Any) -> Any:
        return variance_reduction.exact(
            designs.WithReplacement(2), gradients(moved, data), gradients(params, data), coefficient=beta
        ).variance

    inside = jax.jit(compute)(jnp.asarray(0.5))
    assert_close(inside, float(compute(0.5)), atol=1e-12)
    best = jax.jit(
        lambda: variance_reduction.optimal_coefficient(
            designs.WithReplacement(2), gradients(moved, data), gradients(params, data)
        )
    )()
    assert float(best.variance) <= float(inside)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_importance_sampling_of_gradients_of_very_different_sizes(dtype: Any) -> None:
    """Late in training, p_i ∝ ‖g_i‖ spans 25 orders of magnitude: catches means in which the scales 1/p_i cancel."""
    x, residuals = skewed(40, 5) + 1, np.logspace(-16 if dtype == jnp.float32 else -25, 0, 40)
    data = {"x": jnp.asarray(x, dtype), "r": jnp.asarray(residuals, dtype)}
    g = jaxsgd.per_example_gradients(lambda w, e: e["r"] * (e["x"] @ w))(jnp.zeros(5, dtype), data)
    assert [type(factor).__name__ for factor in g.factors] == ["OuterProducts"]
    rows = flat_rows(g.materialize())
    norms = np.linalg.norm(rows, axis=1)
    truth = norms.mean() ** 2 - np.sum(rows.mean(axis=0) ** 2)
    variance = estimators.exact(designs.Importance(estimators.optimal_probabilities(g), 1), g).variance
    assert_close(float(variance) / truth, 1.0, atol=1e-4 if dtype == jnp.float32 else 1e-12)
