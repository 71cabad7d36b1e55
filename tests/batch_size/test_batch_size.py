"""Batch-size advice and adaptive tests against exact numbers and enumeration."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import batch_size, designs, problems
from tests.support.registry import gradients_given, measured

LINE = measured(problems.line_fit())
B = 63 / 5


def given(rows: Any) -> jaxsgd.PerExampleGradients:
    return measured(gradients_given(rows))


def test_the_size_that_a_noise_asks_for() -> None:
    np.testing.assert_allclose(batch_size.critical_batch_size(jnp.asarray([B, np.inf])), [B, np.inf])
    np.testing.assert_allclose(batch_size.critical_batch_size(B, relative_noise=1 / 4), 252 / 5)
    for r in (0.1, 1.0, 3.0):
        M = float(batch_size.critical_batch_size(B, relative_noise=r, population_size=10))
        np.testing.assert_allclose((10 - M) / (M * 9) * B, r)
    assert float(batch_size.critical_batch_size(np.inf, population_size=10)) == 10
    assert float(batch_size.critical_batch_size(0.0, population_size=10)) == 0


def test_the_size_is_where_the_design_has_that_variance() -> None:
    """The norm test with θ = 1/2 on the line: only the full batch passes."""
    M = float(batch_size.critical_batch_size(B, relative_noise=1 / 4, population_size=4))
    assert 3 < M < 4
    passes = [float(designs.WithoutReplacement(m).variance_factor(4)) * B <= 1 / 4 for m in (1, 2, 3, 4)]
    assert passes == [False, False, False, True]


def test_costs_lie_on_the_hyperbola() -> None:
    cost = batch_size.relative_cost(B, jnp.asarray([1.0, 5.0, B, 100.0]))
    np.testing.assert_allclose((cost.steps - 1) * (cost.examples - 1), 1)
    np.testing.assert_allclose(cost.steps * jnp.asarray([1.0, 5.0, B, 100.0]), cost.examples * B)


def test_adascale_on_the_line() -> None:
    gains = [float(batch_size.adascale_gain(B, S)) for S in (1, 2, 4, 16)]
    np.testing.assert_allclose(gains, [1, 136 / 73, 272 / 83, 1088 / 143], rtol=1e-13)
    assert float(batch_size.adascale_gain(np.inf, 16)) == 16
    assert float(batch_size.adascale_gain(0.0, 16)) == 1
    sigma, mu = 63 / 4 / 3, 5 / 4
    np.testing.assert_allclose(
        batch_size.adascale_gain(B, 4, base_batch_size=3), (sigma + mu) / (sigma / 4 + mu), rtol=1e-13
    )


def test_cabs_on_the_line() -> None:
    np.testing.assert_allclose(batch_size.cabs_batch_size(63 / 4, 3 / 4, 1 / 20), 21 / 20)


def test_published_tests_of_a_batch_of_three() -> None:
    tests = batch_size.gradient_tests(LINE.take(np.array([1, 2, 3])))
    found = [tests.norm, tests.inner_product, tests.orthogonality]
    np.testing.assert_allclose(found, [23 / 5, 112 / 25, 3 / 25], rtol=1e-12)
    assert np.isnan(tests.unbiased_inner_product)
    np.testing.assert_allclose(tests.norm_batch_size(theta=0.5, unbiased=False), 3 * 4 * 23 / 5, rtol=1e-12)
    np.testing.assert_allclose(tests.batch_size(theta=0.5, nu=5.0, unbiased=False), 3 * 4 * 112 / 25, rtol=1e-12)
    np.testing.assert_allclose(tests.batch_size(theta=5.0, nu=0.1, unbiased=False), 3 * 100 * 3 / 25, rtol=1e-12)


def test_unbiased_forms_are_quotients_of_unbiased_parts() -> None:
    """Over all batches of four independent draws from three gradients."""
    rows = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])
    numerators = []
    for chosen in itertools.product(range(3), repeat=4):
        g = given(rows[list(chosen)])
        tests, signal = batch_size.gradient_tests(g), float(jaxsgd.noise_scale(g).squared_mean_norm)
        numerators.append(float(tests.unbiased_norm) * signal)
        parts = float(tests.unbiased_inner_product), float(tests.unbiased_orthogonality)
        np.testing.assert_allclose(tests.unbiased_norm, sum(parts), rtol=1e-8)
    np.testing.assert_allclose(np.mean(numerators), np.trace(np.cov(rows.T, ddof=0)) / 4, rtol=1e-10)


def test_unbiased_forms_settle_at_the_truth() -> None:
    """Of many normal gradients: tr Σ/m‖ḡ‖², and the share of it along ḡ."""
    m, scales = 40_000, np.array([3.0, 1.0])
    g = given(jax.random.normal(jax.random.key(0), (m, 2)) * scales[None] + np.array([[1.0, 0.5]]))
    tests = batch_size.gradient_tests(g)
    along = (9 * 1 + 1 * 0.25) / 1.25**2
    np.testing.assert_allclose(m * tests.unbiased_norm, 10 / 1.25, rtol=0.1)
    np.testing.assert_allclose(m * tests.unbiased_inner_product, along, rtol=0.1)
    np.testing.assert_allclose(m * tests.unbiased_orthogonality, 8 - along, rtol=0.1)


def test_the_published_norm_test_saturates_and_the_unbiased_does_not() -> None:
    """With θ = 1 it passes at B = 4m, where the noise is twice the signal in length."""
    m, P = 50, 400
    rows = jax.random.normal(jax.random.key(0), (200, m, P)) + (1 / (4 * m)) ** 0.5
    tests = jax.vmap(lambda data: batch_size.gradient_tests(given(data)))(rows)
    assert float(jnp.mean(tests.norm <= 1)) == 1
    assert float(jnp.mean(tests.norm)) == pytest.approx(4 / 5, abs=0.02)
    assert float(jnp.median(tests.unbiased_norm)) == pytest.approx(4, rel=0.1)
    refused = ~((tests.unbiased_norm > 0) & (tests.unbiased_norm <= 1))
    assert float(jnp.mean(refused)) > 0.99


def test_a_batch_that_cannot_tell_the_mean_from_zero_asks_for_more_than_any() -> None:
    tests = batch_size.gradient_tests(LINE)
    assert float(tests.unbiased_norm) < 0
    assert float(tests.batch_size()) == float(tests.norm_batch_size()) == np.inf
