"""The mean and the variance of SVRG, SAGA and SAG: rational numbers, every batch, and the formulas of papers."""

import itertools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import designs, estimators, problems, variance_reduction
from jaxsgd.variance_reduction import Inclusion
from tests.support.registry import LAWS, gradients_given, measured, skewed
from tests.support.twins import assert_close, flat

F = Fraction
KEY = jax.random.key(7)
CURVATURES, CENTERS = (1, 2, 3), (3, 0, -1)
N = 6
# Two sets of gradients that are alike, the second with a mean of its own.
CONTROL = skewed(N, 3, seed=4)
GRADIENTS = 0.6 * CONTROL + 0.4 * skewed(N, 3, seed=5) + 0.3


def pair() -> tuple[jaxsgd.PerExampleGradients, jaxsgd.PerExampleGradients]:
    return measured(gradients_given(GRADIENTS)), measured(gradients_given(CONTROL))


def quadratic(theta: float) -> jaxsgd.PerExampleGradients:
    problem = problems.quadratics()
    return measured(problem._replace(params=jnp.asarray(theta)))


def rational(theta: Fraction) -> list[Fraction]:
    return [h * (theta - c) for h, c in zip(CURVATURES, CENTERS, strict=True)]


def moments_over_batches(design: Any, terms: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and variance of Σ w_i t_i + constant by a sum over every batch."""
    support = [(float(p), np.array([float(x) for x in w])) for p, w in design.support(len(terms))]
    values = np.array([w @ terms + constant for _, w in support])
    p = np.array([p for p, _ in support])
    mean = p @ values
    return mean, float(p @ np.sum((values - mean) ** 2, axis=1))


# ---- laws ----


@pytest.mark.parametrize("M", [1, 2, 3])
def test_three_quadratics_in_rationals(M: int) -> None:
    """Catches a snapshot's mean left out, a wrong sign, and a variance of ĝ(θ) in place of that of the differences."""
    now, before = rational(F(1)), rational(F(1, 2))
    factor = F(3 - M, M * 2)

    def variance(values: list[Fraction]) -> Fraction:
        return sum(v**2 for v in values) / 3 - (sum(values) / 3) ** 2

    differences = [a - b for a, b in zip(now, before, strict=True)]
    assert (differences, variance(differences), variance(now)) == ([F(1, 2), 1, F(3, 2)], F(1, 6), F(32, 3))
    g, h = quadratic(1.0), quadratic(0.5)
    design = designs.WithoutReplacement(M)
    law = variance_reduction.exact(design, g, h)
    assert_close(law.mean, 2.0, atol=1e-14)
    assert_close(law.variance, float(factor / 6), atol=1e-15)
    assert_close(estimators.exact(design, g).variance, float(factor * 32 / 3), atol=1e-13)
    covariance = sum(a * b for a, b in zip(now, before, strict=True)) / 3 - sum(now) * sum(before) / 9
    best = covariance / variance(before)
    assert best == F(8, 7)
    if M < 3:
        found = variance_reduction.optimal_coefficient(design, g, h)
        assert_close(found.value, 8 / 7, atol=1e-14)
        assert_close(found.variance, 0.0, atol=1e-28)


def test_linear_regression_formula() -> None:
    """d_i = x_i x_iᵀ δ, so SVRG's variance is c_M tr Cov(H_i δ), quadratic in the distance δ at any distance."""
    problem = problems.diabetes_regression()
    at = jnp.linspace(-0.3, 0.2, 10)
    delta = jnp.cos(jnp.arange(10.0))
    x = np.asarray(problem.data["x"])
    rows = x * (x @ np.asarray(delta))[:, None]
    spread = np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1))
    h = measured(problem._replace(params=at))
    for step, M in itertools.product((1e-4, 1.0, 50.0), (1, 16)):
        g = measured(problem._replace(params=at + step * delta))
        law = variance_reduction.exact(designs.WithoutReplacement(M), g, h)
        truth = (442 - M) / (M * 441) * spread * step**2
        assert_close(float(law.variance) / truth, 1.0, atol=1e-9)


@pytest.mark.parametrize("coefficient", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("name", LAWS)
def test_exact_equals_the_sum_over_every_batch(name: str, coefficient: float) -> None:
    """Every design of the package; those of the scale of a sum or a total too."""
    design, (g, h) = LAWS[name](N), pair()
    scale = float(design.scale_factor(N))
    terms = GRADIENTS - coefficient * CONTROL
    mean, variance = moments_over_batches(design, terms, coefficient * scale * CONTROL.mean(axis=0))
    law = variance_reduction.exact(design, g, h, coefficient=coefficient)
    assert_close(flat(law.mean), mean, atol=1e-8 if "realized" in name or "hajek" in name else 1e-12)
    assert_close(law.variance, variance, atol=1e-8 * scale**2)
    if np.allclose(design.mean_weights(N), scale / N, rtol=1e-12):
        assert_close(flat(law.mean), scale * GRADIENTS.mean(axis=0), atol=1e-12 * scale)


@pytest.mark.parametrize("name", LAWS)
def test_the_optimal_coefficient_is_optimal(name: str) -> None:
    """A little more and a little less are both worse, and by the same: the bottom of a parabola."""
    design, (g, h) = LAWS[name](N), pair()
    best = variance_reduction.optimal_coefficient(design, g, h)

    def variance(beta: float) -> float:
        return float(variance_reduction.exact(design, g, h, coefficient=beta).variance)

    below, at, above = (variance(float(best.value) + step) for step in (-0.1, 0.0, 0.1))
    assert_close(best.variance, at, atol=1e-12 * max(at, 1))
    assert min(below, above) > at + 1e-6
    assert abs(above - below) < 1e-6 * (above - at)
    assert at <= min(variance(0.0), variance(1.0))


@pytest.mark.slow
def test_a_coefficient_of_one_can_be_worse_than_none() -> None:
    """A control that points the other way, and one that is too large."""
    design, (g, h) = designs.WithoutReplacement(2), pair()
    plain = float(estimators.exact(design, g).variance)
    for scale, sign in ((-1.0, -1), (5.0, 1)):
        control = h.scaled(jnp.full(N, scale))
        assert float(variance_reduction.exact(design, g, control).variance) > plain
        best = variance_reduction.optimal_coefficient(design, g, control)
        assert np.sign(float(best.value)) == sign
        assert float(best.variance) < plain


# ---- SAG ----


@pytest.mark.parametrize("name", LAWS)
def test_inclusion_is_the_law_of_who_is_in_the_batch(name: str) -> None:
    """Mean and covariance of I/N against the support of the design, where repeats count once."""
    design, inclusion = LAWS[name](N), Inclusion(LAWS[name](N))
    support = [(float(p), np.array([float(x != 0) for x in w]) / N) for p, w in design.support(N)]
    p, u = np.array([p for p, _ in support]), np.array([u for _, u in support])
    mean = p @ u
    covariance = (u - mean).T @ ((u - mean) * p[:, None])
    assert_close(inclusion.mean_weights(N), mean, atol=1e-14)
    assert_close(inclusion.weight_covariance(N).dense(N), covariance, atol=1e-14)
    assert inclusion.support_size(N) == len(list(inclusion.support(N)))
    if name in ("with_replacement", "poisson"):
        drawn = inclusion.weights(KEY, N)
        assert_close(drawn, np.where(np.asarray(design.weights(KEY, N)) != 0, 1 / N, 0), atol=0)


@pytest.mark.parametrize("name", LAWS)
def test_law_of_sag(name: str) -> None:
    """E v and tr Cov v against every batch, and the bias −(1/N) Σ (1 − π_i)(g_i − h_i)."""
    design, (g, h) = LAWS[name](N), pair()
    law = variance_reduction.exact(Inclusion(design), g, h)
    mean, variance = moments_over_batches(Inclusion(design), GRADIENTS - CONTROL, CONTROL.mean(axis=0))
    assert_close(flat(law.mean), mean, atol=1e-14)
    assert_close(law.variance, variance, atol=1e-14)
    pi = design.inclusion_probabilities(N)
    bias = -(1 - pi) @ (GRADIENTS - CONTROL) / N
    assert_close(flat(law.mean) - GRADIENTS.mean(axis=0), bias, atol=1e-14)


def test_bias_of_sag_on_three_quadratics() -> None:
    """A table of zeros gives −(1 − 1/3)·2 = −4/3, one of gradients at 1/2 −2/3·(2 − 1) = −2/3; SAGA has none."""
    g = quadratic(1.0)
    for table, mean in ((quadratic(0.0), F(2, 3)), (quadratic(0.5), F(4, 3))):
        before = F(0) if mean == F(2, 3) else F(1)
        assert mean == before + F(1, 3) * (2 - before)
        law = variance_reduction.exact(Inclusion(designs.WithoutReplacement(1)), g, table)
        assert_close(law.mean, float(mean), atol=1e-15)
        saga = variance_reduction.exact(designs.WithoutReplacement(1), g, table)
        assert_close(saga.mean, 2.0, atol=1e-15)
        assert_close(float(saga.variance), 9 * float(law.variance), atol=1e-14)
