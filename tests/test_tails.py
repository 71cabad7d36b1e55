"""Tail indices: right for stable laws, Pareto tails and Kesten's recursion, and misleading where they must be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import tails

KEY = jax.random.key(0)
MEAN_LOG_NORMAL = -(np.euler_gamma + np.log(2)) / 2
K = 100


def reciprocal(samples: Any) -> tuple[float, float]:
    """1/α̂ and its standard error, from blocks that are independent."""
    rows = np.asarray(samples).reshape(-1, K)
    each = (np.log(np.abs(rows.sum(axis=1))) - np.log(np.abs(rows)).mean(axis=1)) / np.log(K)
    value = 1 / float(tails.stable_index(jnp.asarray(samples), block_size=K))
    np.testing.assert_allclose(value, each.mean(), rtol=1e-12)
    return value, each.std(ddof=1) / np.sqrt(len(each))


@pytest.mark.parametrize(("draw", "expected"), [(jax.random.cauchy, 1.0), (jax.random.normal, 0.5)])
def test_stable_laws(draw: Any, expected: float) -> None:
    value, error = reciprocal(draw(KEY, (10**6,)))
    assert abs(value - expected) < 4 * error < 0.02


@pytest.mark.slow
def test_finite_variance_gives_what_the_limit_says_and_not_a_half() -> None:
    """Student's t with three degrees of freedom."""
    samples = jax.random.t(KEY, 3.0, (10**6,))
    value, error = reciprocal(samples)
    predicted = 0.5 + (np.log(3) / 2 + MEAN_LOG_NORMAL - float(jnp.log(jnp.abs(samples)).mean())) / np.log(K)
    assert abs(predicted - 0.579) < 1e-3
    assert abs(value - predicted) < 0.02
    assert value - 0.5 > 20 * error


def test_a_mixture_of_scales_looks_heavy_and_has_all_moments() -> None:
    scales = jnp.exp(2 * jax.random.normal(jax.random.key(1), (10**6,)))
    value, error = reciprocal(scales * jax.random.normal(KEY, (10**6,)))
    assert value > 1.1 > 1.1 - 4 * error


def test_vectors_have_the_growth_of_their_norms() -> None:
    samples = jax.random.normal(KEY, (40_000, 3))
    rows = np.asarray(samples).reshape(-1, K, 3)
    growth = np.log(np.linalg.norm(rows.sum(axis=1), axis=1)).mean() - np.log(np.linalg.norm(rows, axis=2)).mean()
    np.testing.assert_allclose(tails.stable_index(samples, block_size=K), np.log(K) / growth, rtol=1e-12)


def test_hill_of_pareto_numbers_has_a_gamma_law() -> None:
    """k/α̂ has mean k/α and variance k/α²; 4,000 samples of 50."""
    k, alpha = 20, 1.5
    samples = jax.random.pareto(KEY, alpha, (4000, 50))
    found = k / np.asarray(jax.vmap(lambda row: tails.hill_index(row, num_largest=k))(samples))
    assert abs(found.mean() - k / alpha) < 4 * np.sqrt(k) / alpha / np.sqrt(4000)
    # The variance of a sample variance is (κ − 1) σ⁴/n nearly, with κ = 3 + 6/k for a Gamma law.
    assert abs(found.var() * alpha**2 / k - 1) < 4 * np.sqrt((2 + 6 / k) / 4000)


def test_kesten_numbers() -> None:
    assert tails.kesten_index([0.5, 4.0], 0.55) == pytest.approx(2.314123268, abs=1e-9)
    assert tails.kesten_index([0.5, 4.0], 0.6) == pytest.approx(0.168292486, abs=1e-9)
    assert tails.kesten_index([0.5, 4.0], 0.5) == np.inf
    assert tails.kesten_index([0.5, 4.0], 0.9) == 0


def test_kesten_is_two_at_the_largest_rate_with_a_variance() -> None:
    """E (1 − ηh)² = 1 at η = 2 E h/E h²."""
    h = np.array([1.0, 2.0, 3.0])
    assert tails.kesten_index(h, 2 * h.mean() / (h**2).mean()) == pytest.approx(2, abs=1e-9)
