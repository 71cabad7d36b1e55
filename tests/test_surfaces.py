"""Error surfaces: every example's losses along directions in θ, and the directions in which gradients differ most."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import Problem, problems, surfaces
from tests.support.registry import classifier, gradients_given, measured, odd_leaves
from tests.support.twins import assert_close, flat, flat_rows


@pytest.mark.parametrize("make", [classifier, odd_leaves, problems.line_fit])
def test_principal_directions_are_eigenvectors_of_the_covariance(make: Any) -> None:
    """Catches a divisor N − 1, a missing normalization, the smallest for the largest, and uncentered gradients."""
    g = measured(make())
    rows = flat_rows(g.materialize())
    covariance = np.cov(rows.T, bias=True)
    found = surfaces.principal_directions(g, count=2)
    values = np.linalg.eigvalsh(covariance)[::-1][:2]
    assert_close(found.variances, values, atol=1e-11 * values[0])
    vectors = flat_rows(found.directions)
    assert_close(vectors @ vectors.T, np.eye(2), atol=1e-8)
    assert_close(vectors @ covariance, values[:, None] * vectors, atol=1e-8 * values[0])


def test_all_directions_of_a_plane() -> None:
    """Gradients that differ in the second coordinate only, twice as much as in the first."""
    g = measured(gradients_given([[5.0, 1.0], [5.0, 3.0], [6.0, 2.0], [4.0, 2.0], [5.0, 0.0], [5.0, 4.0]]))
    found = surfaces.principal_directions(g)
    assert_close(np.abs(np.asarray(found.directions)), [[0, 1], [1, 0]], atol=1e-12)
    assert_close(found.variances, [10 / 6, 2 / 6], atol=1e-13)


def test_losses_along_directions_equal_a_loop() -> None:
    """Catches directions or steps in the wrong order, and a mean where losses are meant."""
    loss_fn, params, data = odd_leaves()
    count = len(jax.tree.leaves(data)[0])
    keys = jax.random.split(jax.random.key(1), 3)
    directions = jax.tree.map(lambda leaf: jnp.stack([jnp.cos(k + jnp.ones_like(leaf)) for k in range(3)]), params)
    steps = jax.random.normal(keys[0], (4, 3)) / 10
    found = surfaces.losses_along(loss_fn, params, data, directions, steps)
    assert found.shape == (4, count)
    for s in range(4):
        moved = jax.tree.map(lambda p, d, s=s: p + sum(steps[s, k] * d[k] for k in range(3)), params, directions)
        for i in range(count):
            expected = loss_fn(moved, jax.tree.map(lambda leaf, i=i: leaf[i], data))
            assert_close(found[s, i], expected, atol=1e-12 * (1 + abs(float(expected))))


def test_slopes_of_the_surfaces_are_inner_products_of_the_gradients() -> None:
    """Central differences: the slope of every example's surface at θ is ⟨g_i, d⟩; the mean's is the mean slope."""
    problem = classifier()
    g = measured(problem)
    found = surfaces.principal_directions(g, count=1)
    h = 1e-4
    losses = surfaces.losses_along(*problem, found.directions, jnp.asarray([[h], [-h]]))
    slopes = (losses[0] - losses[1]) / (2 * h)
    direction = jax.tree.map(lambda leaf: leaf[0], found.directions)
    assert_close(slopes, g.inner_products(direction), atol=1e-6)
    assert_close(slopes.mean(), flat(g.mean()) @ flat(direction), atol=1e-6)


def test_float32_directions_stay_float32() -> None:
    loss_fn, params, data = classifier()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    data = {"x": data["x"].astype(jnp.float32), "y": data["y"]}
    problem = Problem(loss_fn, params, data)
    found = surfaces.principal_directions(measured(problem))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.directions)} == {jnp.dtype(jnp.float32)}
    losses = surfaces.losses_along(*problem, found.directions, jnp.zeros((1, 2)))
    assert losses.dtype == jnp.float32
