"""Random signs estimate what the loop computes, within the standard errors they state; directions are exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import model_agnostic
from tests.support.registry import PROBLEMS, gradients_given, network, skewed
from tests.support.twins import flat, loop, loop_of

DRAWS = 4000


def signs_of(problem: Any, **options: Any) -> model_agnostic.RandomSignMoments:
    options = {"key": jax.random.key(0), "num_draws": DRAWS} | options
    return model_agnostic.random_sign_moments(*problem, **options)


def law(G: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Means and closed-form standard deviations of one draw: every coordinate, and the trace."""
    centered = G - G.mean(axis=0)
    n = len(G)

    def deviation(K: np.ndarray) -> float:
        return np.sqrt(2 * ((K**2).sum() - (np.diag(K) ** 2).sum())) / n

    coordinates = np.array([deviation(np.outer(column, column)) for column in centered.T])
    return centered.var(axis=0), coordinates, (centered**2).sum() / n, deviation(centered @ centered.T)


@pytest.mark.parametrize("name", ["line_fit", "tanh_network", "odd_leaves", "repeated_rows", "line_fit_at_optimum"])
def test_estimates_agree_within_closed_form_standard_errors(name: str) -> None:
    """Catches uncentered signs, a missing divisor and a key that is used again."""
    problem = PROBLEMS[name]()
    G = loop_of(name).gradients
    found = signs_of(problem)
    variance, deviations, trace, deviation = law(G)
    scale = np.abs(G).max() ** 2
    errors = np.abs(flat(found.variance) - variance)
    assert np.all(errors <= 4.5 * deviations / np.sqrt(DRAWS) + 1e-12 * scale), errors
    assert abs(float(found.trace_covariance) - trace) <= 4.5 * deviation / np.sqrt(DRAWS) + 1e-12 * scale
    np.testing.assert_allclose(flat(found.mean), G.mean(axis=0), atol=1e-12 * np.abs(G).max())
    second = np.abs(flat(found.second_moment) - (G**2).mean(axis=0))
    assert np.all(second <= 4.5 * deviations / np.sqrt(DRAWS) + 1e-12 * scale)
    norms = float(found.squared_norms_mean)
    assert abs(norms - (G**2).sum(axis=1).mean()) <= 4.5 * deviation / np.sqrt(DRAWS) + 1e-12 * scale


def test_the_second_moment_is_rejected_as_the_variance() -> None:
    """The control of the test above: without centering, tr Σ would be off by ‖ḡ‖²."""
    G = loop_of("tanh_network").gradients
    _, _, trace, deviation = law(G)
    uncentered = (G**2).sum(axis=1).mean()
    assert abs(uncentered - trace) > 20 * deviation / np.sqrt(DRAWS)


def test_standard_errors_are_those_of_the_law() -> None:
    """Catches a standard deviation in place of a standard error, and a divisor that is off."""
    G = loop_of("tanh_network").gradients
    found = signs_of(network())
    _, deviations, _, deviation = law(G)
    assert abs(float(found.trace_standard_error) * np.sqrt(DRAWS) / deviation - 1) < 0.15
    np.testing.assert_allclose(flat(found.variance_standard_error) * np.sqrt(DRAWS), deviations, rtol=0.3)


def test_enumerated_signs_give_the_variance_exactly() -> None:
    """Unbiased: the mean over all 2^n sign vectors is Σ ‖g_i − ḡ‖², with no sampling error."""
    G = loop_of("scalar_gradients").gradients
    n = len(G)
    signs = np.array(np.meshgrid(*[[-1, 1]] * n)).reshape(n, -1).T
    u = (signs - signs.mean(axis=1, keepdims=True)) @ G
    np.testing.assert_allclose((u**2).sum(axis=1).mean(), ((G - G.mean(axis=0)) ** 2).sum(), rtol=1e-13)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_change_rounding_only(chunk_size: int) -> None:
    """Catches a chunk that is dropped, and signs that depend on the chunk."""
    whole, chunked = (signs_of(network(), num_draws=5, chunk_size=size) for size in (None, chunk_size))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_the_same_key_gives_the_same_numbers_and_more_draws_begin_alike() -> None:
    first, again = (signs_of(network(), num_draws=2) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    other = signs_of(network(), num_draws=2, key=jax.random.key(1))
    assert float(first.trace_covariance) != float(other.trace_covariance)


def test_bfloat16_accumulates_in_float32() -> None:
    problem = gradients_given(skewed(400, 2) + 2, jnp.bfloat16)
    found = signs_of(problem, num_draws=3, chunk_size=8)
    assert found.mean.dtype == found.variance.dtype == jnp.float32
    np.testing.assert_allclose(found.mean, np.asarray(problem.data, np.float64).mean(axis=0), rtol=1e-2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_inner_products_equal_the_loop(name: str) -> None:
    problem = PROBLEMS[name]()
    twin = loop(problem)
    direction = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype) + 0.5).reshape(leaf.shape), problem.params
    )
    found = model_agnostic.inner_products(problem.loss_fn, problem.params, problem.data, direction)
    expected = twin.gradients @ flat(direction)
    np.testing.assert_allclose(found, expected, atol=1e-12 * max(np.abs(twin.gradients).sum(axis=1).max(), 1e-300))
