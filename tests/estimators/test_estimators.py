"""Exact and enumerated estimates against rational arithmetic, which shares no code with the package."""

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import estimators, moments, problems
from tests.support.own_designs import BatchSum, Bernoulli
from tests.support.registry import DESIGNS, EX_B, PROBLEMS, gradients_given, measured, quick, skewed, take
from tests.support.twins import (
    Vector,
    assert_close,
    average,
    combine,
    errors,
    expect,
    flat,
    law,
    line_gradients,
    loop_of,
    squared_norm,
)

F = Fraction
THETAS = [(F(1), F(1)), (F(0), F(0)), (F(11, 10), F(11, 10))]  # the last is the minimum, where ḡ = 0
every_design = pytest.mark.parametrize("design", DESIGNS)
every_theta = pytest.mark.parametrize("theta", THETAS, ids=["one", "zero", "optimum"])


def line(theta: tuple[Fraction, Fraction]) -> jaxsgd.PerExampleGradients:
    return measured(problems.line_fit(*map(float, theta)))


def trace_covariance(gradients: list[Vector], design: str, batch_size: int) -> Fraction:
    return expect(errors(gradients, law(design, len(gradients), batch_size)), squared_norm)


@every_theta
@every_design
@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_line_fit_equals_enumeration_in_rationals(theta: Any, design: str, M: int) -> None:
    """Catches any wrong factor: of c_M, of a divisor, of the mean weight; and a design that is biased."""
    gradients, g = line_gradients(*theta), line(theta)
    scale = float(sum(map(squared_norm, gradients))) / 4
    truth = float(trace_covariance(gradients, design, M))
    mean = [float(x) for x in average(gradients)]
    estimates = {
        "exact": estimators.exact(DESIGNS[design](M), g),
        "exact from moments": estimators.exact(DESIGNS[design](M), moments.of(g)),
        "enumerate_batches": estimators.enumerate_batches(DESIGNS[design](M), g),
    }
    for what, estimate in estimates.items():
        assert_close(estimate.variance, truth, atol=1e-14 * (truth or scale), what=what)
        assert_close(flat(estimate.mean), mean, atol=1e-14 * scale**0.5, what=what)
        assert (float(estimate.standard_error), estimate.num_draws) == (0, 0)
    curve = estimators.variance_curve(g, [M], design=design)
    assert_close(curve.variance, [truth], atol=1e-14 * truth, what="curve")


# Line fit, tr Cov ĝ for M = 1, 2, 3, 4 at each θ, worked out by hand.
GOLD_LINE = {
    "without_replacement": [
        [F(63, 4), F(21, 4), F(7, 4), 0],
        [F(551, 4), F(551, 12), F(551, 36), 0],
        [F(667, 50), F(667, 150), F(667, 450), 0],
    ],
    "with_replacement": [
        [F(63, 4), F(63, 8), F(21, 4), F(63, 16)],
        [F(551, 4), F(551, 8), F(551, 12), F(551, 16)],
        [F(667, 50), F(667, 100), F(667, 150), F(667, 200)],
    ],
}


@every_design
def test_line_fit_equals_the_numbers_worked_out_by_hand(design: str) -> None:
    """Catches a mistake that the package and the enumeration share."""
    for theta, gold in zip(THETAS, GOLD_LINE[design], strict=True):
        gradients = line_gradients(*theta)
        assert [trace_covariance(gradients, design, M) for M in (1, 2, 3, 4)] == gold
        curve = estimators.variance_curve(line(theta), design=design)
        assert_close(curve.variance, [float(x) for x in gold], atol=1e-14 * float(gold[0]))


# Scalar gradients 1, 2, 4, 7, 11, 17: variance and fourth central moment of ĝ for M = 1, ..., 6.
GOLD_SCALAR = {
    "without_replacement": (
        [31, F(62, 5), F(31, 5), F(31, 10), F(31, 25), 0],
        [2043, F(3303, 10), F(1241, 15), F(3303, 160), F(2043, 625), 0],
    ),
    "with_replacement": (
        [31, F(31, 2), F(31, 3), F(31, 4), F(31, 5), F(31, 6)],
        [2043, F(2463, 4), F(2603, 9), F(2673, 16), F(543, 5), F(2743, 36)],
    ),
}


@every_design
def test_scalar_gradients_have_the_variance_and_fourth_moment_worked_out_by_hand(design: str) -> None:
    """Catches a fourth moment that is right for symmetric gradients only."""
    g = measured(PROBLEMS["scalar_gradients"]())
    variance, fourth = ([float(x) for x in gold] for gold in GOLD_SCALAR[design])
    assert_close(estimators.variance_curve(g, design=design).variance, variance, atol=1e-14 * 31)
    stated = estimators.squared_error_law(g, design=design)
    assert_close(stated.mean, variance, atol=1e-13 * 31)
    for M, (value, v, f) in enumerate(zip(stated.variance, variance, fourth, strict=True), start=1):
        assert_close(value, f - v**2, atol=1e-12 * f, what=f"M = {M}")


def law_of_squared_error(gradients: list[Vector], design: str, M: int, num_draws: int = 1) -> tuple[Fraction, ...]:
    """E‖ē‖², Var‖ē‖² and tr (Cov ē)² for the mean ē of independent errors."""
    outcomes = list(errors(gradients, law(design, len(gradients), M), num_draws))
    mean = expect(outcomes, squared_norm)
    fourth = expect(outcomes, lambda e: squared_norm(e) ** 2)
    size = range(len(gradients[0]))
    covariance = [expect(outcomes, lambda e, j=j, k=k: e[j] * e[k]) for j in size for k in size]
    return mean, fourth - mean**2, squared_norm(covariance)


def check_law(stated: estimators.SquaredErrorLaw, truth: tuple[Fraction, ...], at: int, scale: float) -> None:
    """``scale`` is the squared size of the gradients."""
    mean, variance, squared_covariance = map(float, truth)
    assert_close(stated.mean[at], mean, atol=1e-13 * scale, what="mean")
    assert_close(stated.variance[at], variance, atol=1e-13 * scale**2, what="variance")
    assert_close(stated.squared_covariance[at], squared_covariance, atol=1e-13 * scale**2, what="squared covariance")


@every_theta
@every_design
def test_squared_error_law_equals_enumeration(theta: Any, design: str) -> None:
    """Catches a fourth moment that is right in one dimension only, where tr (Cov ĝ)² is the variance squared."""
    gradients = line_gradients(*theta)
    scale = float(sum(map(squared_norm, gradients))) / 4
    stated = estimators.squared_error_law(line(theta), design=design)
    for M in (1, 2, 3, 4):
        check_law(stated, law_of_squared_error(gradients, design, M), M - 1, scale)


@every_design
@pytest.mark.parametrize(("num_draws", "sizes"), [(1, (1, 2, 3, 4)), (2, (1, 2, 3, 4)), (3, (1, 2))])
def test_squared_error_law_of_a_mean_equals_enumeration(design: str, num_draws: int, sizes: tuple[int, ...]) -> None:
    """Catches a power of R too many, and R where R − 1 pairs are meant: with R = 1 and 2 only, some agree."""
    gradients = line_gradients(F(1), F(1))
    stated = estimators.squared_error_law(line(THETAS[0]), design=design).of_mean(num_draws)
    for M in sizes:
        check_law(stated, law_of_squared_error(gradients, design, M, num_draws), M - 1, 17.0 / num_draws)


@every_design
@pytest.mark.parametrize("N", [1, 2, 3, 4])
def test_squared_error_law_of_tiny_populations(design: str, N: int) -> None:
    """Catches a division by (N − 1)(N − 2)(N − 3) = 0."""
    rows = [(F(1), F(0)), (F(5), F(2)), (F(-2), F(3)), (F(7), F(7))][:N]
    stated = estimators.squared_error_law(measured(gradients_given([list(map(float, r)) for r in rows])), design=design)
    for M in range(1, N + 1):
        check_law(stated, law_of_squared_error(rows, design, M), M - 1, 35.0)


@pytest.mark.parametrize("name", quick(PROBLEMS, PROBLEMS.keys() - {"classifier", "diabetes_rows"}))
def test_exact_equals_enumeration_on_every_problem(name: str) -> None:
    """Catches a parameter left out of the norm, and a design that is exact for the line fit only."""
    problem = PROBLEMS[name]()
    g = measured(take(problem, range(7)) if len(loop_of(name).losses) > 7 else problem)
    scale = float(g.squared_norms().mean())
    for design in DESIGNS.values():
        for M in {g.count // 2, g.count} - {0}:
            exact, enumerated = estimators.exact(design(M), g), estimators.enumerate_batches(design(M), g)
            assert_close(exact.variance, enumerated.variance, atol=1e-13 * scale, what=f"{design(M)}")
            assert_close(flat(exact.mean), flat(enumerated.mean), atol=1e-13 * scale**0.5, what=f"{design(M)}")


def test_a_batch_and_its_complement_mirror_each_other() -> None:
    """ĝ_{sᶜ} − ḡ = −(M/(N−M)) (ĝ_s − ḡ): M² Var and M⁴ Var‖·‖² are symmetric under M → N − M.

    Catches a law that is exact at the ends and interpolates in between.
    """
    g, M = measured(PROBLEMS["diabetes_rows"]()), np.arange(1, 40)
    variance, stated = estimators.variance_curve(g).variance[:-1], estimators.squared_error_law(g)
    fourth = (stated.variance + stated.mean**2)[:-1]
    for moment, power in ((variance, 2), (fourth, 4)):
        mirrored = M**power * moment
        assert_close(mirrored / mirrored[::-1], np.ones(39), atol=1e-9, what=f"power {power}")
    gradients = line_gradients(F(1), F(1))
    whole = combine((F(1),) * 4, gradients)
    for weights in law("without_replacement", 4, 1):
        rest = combine(tuple((1 - w) / 3 for w in weights), gradients)
        assert all(3 * r + b == w for r, b, w in zip(rest, combine(weights, gradients), whole, strict=True))


def test_variance_curve_takes_moments_gradients_and_any_sizes() -> None:
    problem = PROBLEMS["diabetes_rows"]()
    g, m = measured(problem), jaxsgd.gradient_moments(*problem, chunk_size=7)
    whole = estimators.variance_curve(m)
    assert whole.batch_sizes.tolist() == list(range(1, 41))
    assert_close(estimators.variance_curve(g).variance, whole.variance, atol=1e-12 * whole.variance[0])
    some = estimators.variance_curve(m, [40, 3, 3])
    assert_close(some.variance, whole.variance[[39, 2, 2]], atol=0)
    assert whole.variance[-1] == 0
    assert (whole.num_draws, whole.standard_error.any(), whole.squared_mean_error.any()) == (0, False, False)


@every_design
@pytest.mark.parametrize("N", [1, 2, 7, 49, 98])
def test_equal_gradients_have_no_variance(design: str, N: int) -> None:
    """Catches a variance of −10⁻¹⁵ ‖ḡ‖² from coefficients that cancel but for rounding."""
    g = measured(take(problems.line_fit(), [2] * N))
    for M in {1, N // 2, N} - {0}:
        assert 0 <= float(estimators.exact(DESIGNS[design](M), g).variance) < 1e-28
        assert 0 <= float(estimators.variance_curve(g, [M], design=design).variance[0]) < 1e-28
        assert_close(estimators.squared_error_law(g, [M], design=design).variance, [0], atol=1e-24)


@pytest.mark.parametrize(("p", "gold"), [(F(1, 3), F(80, 3)), (F(1, 2), F(40, 3)), (F(1), F(0))])
def test_a_design_of_ones_own(p: Fraction, gold: Fraction) -> None:
    """Catches estimators that know the two designs of the package only; here the total weight is random."""
    g = measured(gradients_given(EX_B))
    assert_close(estimators.exact(Bernoulli(p), g).variance, float(gold), atol=1e-13)
    assert_close(estimators.enumerate_batches(Bernoulli(p), g).variance, float(gold), atol=1e-13)
    h = measured(gradients_given(skewed(5, 3)))
    exact, enumerated = estimators.exact(Bernoulli(p), h), estimators.enumerate_batches(Bernoulli(p), h)
    assert_close(exact.variance, enumerated.variance, atol=1e-14)
    assert_close(exact.mean, enumerated.mean, atol=1e-14)


@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_the_sum_of_a_batch_is_a_biased_design(M: int) -> None:
    """Catches an expectation that is ḡ whatever the design: −1 is expected of the mean, −M of the sum."""
    g = line(THETAS[0])
    for estimate in (estimators.exact(BatchSum(M), g), estimators.enumerate_batches(BatchSum(M), g)):
        assert_close(estimate.mean["m"], -M, atol=1e-14)
        assert_close(estimate.variance, M**2 * float(GOLD_LINE["without_replacement"][0][M - 1]), atol=1e-13)


@every_design
def test_low_precision_parameters(design: str) -> None:
    """Catches a variance in the parameters' dtype, and weights that do not cast."""
    for dtype in (jnp.float32, jnp.bfloat16):
        g = measured(gradients_given(EX_B, dtype))
        for function in (estimators.exact, estimators.enumerate_batches):
            estimate = function(DESIGNS[design](2), g)
            assert estimate.variance.dtype == estimate.mean.dtype == jnp.float32
            assert_close(estimate.variance, float(GOLD_SCALAR[design][0][1]), atol=1e-5)
            assert_close(estimate.mean, 7, atol=1e-5)
