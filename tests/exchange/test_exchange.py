"""The closed forms agree with quadrature and with differences of each other; the tables say what JAX does."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxsgd import exchange

CASES = {case.name: case for case in exchange.CASES}
POINTS, WEIGHTS = exchange.midpoints(2**17)
# Where ∂L has a pole, or a tail that decays slowly, the midpoint rule is that much worse.
TOLERANCES = {
    "absolute error, Cauchy data": 1e-4,
    "|θ − x|^¾": 1e-4,
    "|θ − x|^¼": 2e-2,
    "e^{θx}, infinite variance": 2e-3,
}


@pytest.mark.parametrize("case", exchange.CASES, ids=CASES)
def test_closed_forms(case):
    tolerance = TOLERANCES.get(case.name, 1e-5)
    assert np.sum(WEIGHTS * np.asarray(case.losses(POINTS))) == pytest.approx(
        case.expectation(case.theta), abs=tolerance
    )
    gradients = np.asarray(case.gradients(POINTS))
    assert np.sum(WEIGHTS * gradients) == pytest.approx(case.expected_gradient, abs=tolerance)
    if math.isfinite(case.second_moment):
        assert np.sum(WEIGHTS * gradients**2) == pytest.approx(case.second_moment, rel=2e-3, abs=tolerance)
    for sign, derivative in zip((-1, 1), case.derivative, strict=True):
        quotient = (case.expectation(case.theta + sign * 1e-6) - case.expectation(case.theta)) / (sign * 1e-6)
        assert quotient == pytest.approx(derivative, abs=2e-5)


@pytest.mark.slow
def test_infinite_second_moments_do_not_settle():
    """Catches a finite one called infinite: four times the points, and the sum of squares still grows."""
    for case in exchange.CASES:
        sums = []
        for num_points in (2**13, 2**15, 2**17):
            u, weights = exchange.midpoints(num_points)
            sums.append(float(np.sum(weights * np.asarray(case.gradients(u)) ** 2)))
        grows = sums[2] - sums[1] > 0.5 * (sums[1] - sums[0]) > 1e-3
        assert grows == (case.second_moment == math.inf), (case.name, sums)


def test_which_hold():
    fail = {name for name, case in CASES.items() if not case.holds}
    assert fail == {
        "smooth, not dominated",
        "cosine of Cauchy data",
        "indicator",
        "absolute error, atom at θ",
        "second derivative of relu",
        "moving support, score",
    }


def test_gold_numbers():
    assert CASES["|θ − x|^¾"].expected_gradient == pytest.approx(-0.359925533308, abs=1e-12)
    assert CASES["|θ − x|^¾"].second_moment == pytest.approx(1.557430407, abs=1e-9)
    assert CASES["absolute error, Cauchy data"].expected_gradient == pytest.approx(0.3888002244, abs=1e-10)
    assert CASES["Huber"].expected_gradient == pytest.approx(0.2679954105, abs=1e-10)
    assert CASES["pinball, τ = 0.9"].expected_gradient == pytest.approx(stats.norm.cdf(0.4) - 0.9, abs=1e-12)


def test_no_dominating_function():
    """sup |∂L(θ, x)| over θ is at least e^{−½}/x, whose integral over (0, 1) diverges."""
    loss_fn = CASES["smooth, not dominated"].loss_fn
    for x in (1e-2, 1e-4, 1e-6):
        slope = abs(float(jax.grad(loss_fn)(math.sqrt(x / 2), x)))
        assert slope == pytest.approx(math.sqrt(0.5) * math.sqrt(0.5) * 2 * math.exp(-0.5) / x, rel=1e-12)


def test_limits_that_do_not_commute():
    """For every finite data set the derivative at 0 is 0; a little beside it, it is that of the population."""
    grid = (np.arange(1000) + 0.5) / 1000
    case = CASES["smooth, not dominated"]
    for h, expected in [(0.1, 0.990), (0.01, 0.417), (0.003, 0.044)]:
        assert float(case.losses(grid, h).mean()) / h == pytest.approx(expected, abs=5e-4)
    assert np.all(np.asarray(case.gradients(grid)) == 0)


def test_cantor():
    """Differentiable almost everywhere with derivative 0, and yet it rises by 1."""
    theta = np.array([0.0, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0])
    np.testing.assert_allclose(exchange.cantor(theta), [0, 1 / 3, 0.5, 0.5, 2 / 3, 0.8, 1], atol=1e-8)
    slopes = jax.vmap(jax.grad(exchange.cantor))(jax.random.uniform(jax.random.key(0), (100,)))
    assert np.all(np.asarray(slopes) == 0)


@pytest.mark.parametrize("loss", exchange.LOSSES, ids=lambda loss: loss.name)
def test_typical_losses(loss):
    """1e-3 is ten times what the differences are off, and a tenth of the smallest failure."""
    of_mean, mean_of = np.asarray(exchange.derivatives(loss.loss_fn, loss.quantile, loss.theta))
    assert (abs(of_mean[0] - mean_of[0]) < 1e-3) == loss.gradient
    assert (abs(of_mean[1] - mean_of[1]) < 1e-3) == loss.second
    assert loss.gradient or abs(of_mean[0] - mean_of[0]) > 0.1
    assert loss.second or abs(of_mean[1] - mean_of[1]) > 0.1


@pytest.mark.parametrize("kink", exchange.KINKS, ids=lambda kink: kink.program)
def test_kinks(kink):
    found = float(jax.grad(kink.fn)(float(kink.at)))
    assert found == kink.returned or (math.isnan(found) and math.isnan(kink.returned))
    low, high = kink.truth
    if math.isfinite(low) and math.isfinite(high):
        h = 1e-7
        sides = [float(kink.fn(kink.at + s * h) - kink.fn(float(kink.at))) / (s * h) for s in (-1, 1)]
        sides = [side for side in sides if math.isfinite(side)]  # sqrt(x)² ends at 0, log(1 + e^x) overflows
        assert all(low - 1e-3 <= side <= high + 1e-3 for side in sides), sides
        if len(sides) == 2:
            assert min(sides) == pytest.approx(low, abs=1e-3)
            assert max(sides) == pytest.approx(high, abs=1e-3)


def test_midpoints_integrate_in_either_precision():
    u, weights = exchange.midpoints(500)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert np.sum(weights * u**2) == pytest.approx(1 / 3, abs=1e-5)
    value, _ = integrate.quad(lambda u: stats.norm.ppf(u) ** 2, 0, 1)
    assert np.sum(weights * stats.norm.ppf(u) ** 2) == pytest.approx(value, abs=1e-3)
    assert exchange.derivatives(jnp.multiply, lambda u: u, 2.0).tolist()[1] == pytest.approx([0.5, 0.0], abs=1e-9)
