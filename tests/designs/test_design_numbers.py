"""Numbers of survey theory worked out by hand or by other programs, which no code of the package has produced.

Unless stated otherwise for the scalar gradients 1, 2, 4, 7, 11, 17, of mean 7, variance 31 and S² = 186/5.
"""

from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest

from jaxsgd import designs, estimators, moments, problems
from tests.support.registry import EX_B, gradients_given, measured
from tests.support.twins import assert_close, line_gradients

F = Fraction
VALUES = np.array([F(x) for x in EX_B], dtype=object)
UNEQUAL = [F(1, 6), F(1, 6), F(1, 3), F(1, 3), F(1, 2), F(1, 2)]
TWO_STRATA = [0, 0, 0, 1, 1, 1]


def mean_and_variance(design: Any, values: Any = VALUES) -> tuple[Fraction, Fraction]:
    """E ĝ and Var ĝ in rational arithmetic, from the support; the covariance, where rational, must agree."""
    N = len(values)
    outcomes = [(p, sum(w * x for w, x in zip(weights, values, strict=True))) for p, weights in design.support(N)]
    mean = sum(p * x for p, x in outcomes)
    variance = sum(p * (x - mean) ** 2 for p, x in outcomes)
    entries = design.weight_covariance(N).entries(N)
    if all(isinstance(entry, Fraction) for entry in entries.ravel()):
        assert values @ entries @ values == variance
    else:
        assert_close(float(values @ entries @ values), float(variance), atol=1e-13 * float(values @ values))
    estimate = estimators.exact(design, measured(gradients_given([float(x) for x in values])))
    assert_close(estimate.variance, float(variance), atol=1e-13 * float(values @ values))
    assert_close(estimate.mean, float(mean), atol=1e-14 * float(sum(abs(values))))
    return mean, variance


GOLD: list[tuple[Any, Fraction | int, Fraction]] = [
    (designs.WithoutReplacement(2), 7, F(62, 5)),
    (designs.WithoutReplacement(6), 7, F(0)),
    (designs.WithReplacement(6), 7, F(31, 6)),  # the full batch is not exact with replacement
    (designs.DistinctUnits(1), 7, F(31)),
    (designs.DistinctUnits(2), 7, F(31, 2)),
    (designs.DistinctUnits(3), 7, F(341, 36)),
    (designs.DistinctUnits(4), 7, F(155, 24)),
    (designs.Bernoulli(F(1, 3)), 7, F(80, 3)),
    (designs.Bernoulli(F(1, 2)), 7, F(40, 3)),
    (designs.Bernoulli(F(1)), 7, F(0)),
    (designs.Bernoulli(F(1, 3), "realized"), F(4655, 729), F(236589038, 13286025)),
    (designs.Bernoulli(F(1, 2), "realized"), F(441, 64), F(957079, 102400)),
    (designs.Bernoulli(F(1, 3), "realized", "skip"), 7, F(36146, 2375)),
    (designs.Bernoulli(F(1, 2), "realized", "skip"), 7, F(27497, 3150)),
    (designs.Poisson(UNEQUAL), 7, F(565, 36)),
    (designs.Poisson([F(1)] * 6), 7, F(0)),
    (designs.Stratified(TWO_STRATA, [1, 1]), 7, F(83, 18)),
    (designs.Stratified(TWO_STRATA, [1, 2]), 7, F(13, 9)),
    (designs.Stratified(TWO_STRATA, [2, 1]), 7, F(311, 72)),
    (designs.Stratified(TWO_STRATA, [3, 3]), 7, F(0)),
    (designs.Systematic(2), 7, F(43, 6)),
    (designs.Systematic(3), 7, F(25, 9)),
    (designs.Blocks(2), 7, F(163, 6)),
    (designs.Blocks(3), 7, F(196, 9)),
    (designs.Groups([0, 1, 2, 0, 1, 2]), 7, F(43, 6)),
    (designs.CircularBlocks(1), 7, F(31)),
    (designs.CircularBlocks(2), 7, F(211, 12)),
    (designs.CircularBlocks(3), 7, F(29, 3)),
    (designs.CircularBlocks(4), 7, F(211, 48)),
    (designs.CircularBlocks(6), 7, F(0)),
    (designs.Importance([F(x, 42) for x in EX_B], 1), 7, F(0)),  # p ∝ g, the best there is
    (designs.Importance([F(i, 21) for i in range(1, 7)], 1), 7, F(1253, 240)),
    (designs.Importance([F(i, 21) for i in range(1, 7)], 3), 7, F(1253, 720)),
    (designs.Importance([F(1, 6)] * 6, 2), 7, F(31, 2)),
    (designs.ConditionalPoisson([1] * 6, 2), 7, F(62, 5)),
    (designs.ConditionalPoisson([1, 2, 3, 4, 5, 6], 6), 7, F(0)),
    (designs.Reshuffling(3), 7, F(31, 5)),
    (designs.WithoutReplacement(2, scale="sum"), 14, 4 * F(62, 5)),
    (designs.WithoutReplacement(2, scale="total"), 42, 36 * F(62, 5)),
]


@pytest.mark.parametrize(("design", "mean", "variance"), GOLD, ids=lambda value: str(value))
def test_numbers_worked_out_by_hand(design: Any, mean: Fraction, variance: Fraction) -> None:
    """Catches a mistake that a design's support and its covariance share."""
    assert mean_and_variance(design) == (mean, variance)


@pytest.mark.parametrize(("batch_sizes", "mean"), [([1, 2], F(77, 9)), ([2, 1], F(49, 9)), ([1, 1], F(7))])
def test_class_balanced_batches_change_the_cost(batch_sizes: list[int], mean: Fraction) -> None:
    """Without weights E ĝ = Σ (m_h/M) ḡ_h, which is ḡ for proportional sizes only."""
    assert mean_and_variance(designs.Stratified(TWO_STRATA, batch_sizes, weighted=False))[0] == mean


@pytest.mark.parametrize(
    ("design", "mean"),
    [
        (designs.Hajek(UNEQUAL, "skip"), F(13954327157, 1657261320)),
        (designs.Poisson(UNEQUAL, "realized", "skip"), F(223653, 23920)),
    ],
    ids=str,
)
def test_ratios_are_biased_even_given_a_batch(design: Any, mean: Fraction) -> None:
    assert mean_and_variance(design)[0] == mean


def test_hajek_of_two() -> None:
    """E ĝ = (2/3) g_1 + (1/3) g_2 for π = (1/2, 1/4): the mean of a stream of weights, not of the population."""
    assert_close(designs.Hajek([F(1, 2), F(1, 4)], "skip").mean_weights(2), [2 / 3, 1 / 3], atol=1e-15)


def test_sizes_of_random_batches() -> None:
    assert [designs.DistinctUnits(M).expected_reciprocal_size(6) for M in (1, 2, 3, 4)] == [
        1,
        F(7, 12),
        F(91, 216),
        F(49, 144),
    ]
    assert designs.Bernoulli(F(1, 3)).empty_probability(6) == F(64, 729)
    assert designs.Bernoulli(F(1, 3)).expected_reciprocal_size(6) == F(547, 950)
    assert designs.Poisson(UNEQUAL).empty_probability(6) == F(25, 36) * F(4, 9) * F(1, 4)


def test_rounded_sums_agree_with_rational_ones() -> None:
    """Catches a switch to floating point at large N or M that changes the law."""
    exact = sum(F(j) ** 999 for j in range(1, 12)) / F(11) ** 1000  # N M = 11000
    assert_close(float(designs.DistinctUnits(1000).expected_reciprocal_size(11)), float(exact), atol=1e-16)
    rational, rounded = designs.Bernoulli(F(1, 3), "realized"), designs.Bernoulli(1 / 3, "realized")
    for N in (6, 40):
        a, b = rational.weight_covariance(N), rounded.weight_covariance(N)
        assert_close([float(x) for x in b], [float(x) for x in a], atol=1e-13 * float(a.identity))
    large = designs.Bernoulli(F(1, 10), "realized").weight_covariance(100_000)
    N, m = 100_000, 10_000  # E[1/m] = (1 + (1 − p)/(Np) + ...)/(Np)
    assert float(large.identity) == pytest.approx((1 / m * (1 + 0.9 / m) - 1 / N) / N, rel=1e-6)


@pytest.mark.parametrize(
    ("design", "correlation"),
    [
        (designs.Systematic(3), F(-34, 93)),
        (designs.Systematic(2), F(-50, 93)),
        (designs.Blocks(3), F(103, 186)),
        (designs.Blocks(2), F(70, 93)),
        (designs.WithoutReplacement(3), F(-1, 5)),
        (designs.WithReplacement(3), F(0)),
    ],
    ids=str,
)
def test_design_effect_is_that_of_the_intraclass_correlation(design: Any, correlation: Fraction) -> None:
    """Relative to sampling with replacement: 1 + (M − 1)ρ."""
    g = measured(gradients_given(EX_B))
    effect = 1 + (design.batch_size - 1) * correlation
    assert_close(estimators.design_effect(design, g), float(effect), atol=1e-14)
    without = effect * F(5, 6 - design.batch_size)
    assert_close(estimators.design_effect(design, g, relative_to="without_replacement"), float(without), atol=1e-13)


@pytest.mark.parametrize(("M", "sum_mean"), [(1, -1), (2, -2), (3, -3), (4, -4)])
def test_the_sum_over_a_batch_has_m_times_the_mean(M: int, sum_mean: int) -> None:
    """The line fit at (1, 1): the raw sum grows with M, N/M times the sum is the gradient of the total, −4."""
    slopes = np.array([g[1] for g in line_gradients(F(1), F(1))], dtype=object)
    assert mean_and_variance(designs.WithoutReplacement(M, scale="sum"), slopes)[0] == sum_mean
    assert mean_and_variance(designs.WithoutReplacement(M, scale="total"), slopes)[0] == -4


def test_covariance_matrices_of_the_line_fit() -> None:
    """The whole matrix Gᵀ Cov(w) G at (1, 1), in the order (m, b)."""
    G = np.array([(m, b) for b, m in line_gradients(F(1), F(1))], dtype=object)
    gold = {
        designs.WithoutReplacement(2): [[F(13, 3), F(11, 6)], [F(11, 6), F(11, 12)]],
        designs.WithoutReplacement(3): [[F(13, 9), F(11, 18)], [F(11, 18), F(11, 36)]],
        designs.WithReplacement(2): [[F(13, 2), F(11, 4)], [F(11, 4), F(11, 8)]],
        designs.WithReplacement(3): [[F(13, 3), F(11, 6)], [F(11, 6), F(11, 12)]],
    }
    for design, matrix in gold.items():
        assert (G.T @ design.weight_covariance(4).entries(4) @ G).tolist() == matrix


def test_optimal_importance_sampling_of_the_line_fit() -> None:
    g = measured(problems.line_fit())
    p = estimators.optimal_probabilities(g)
    norms = np.array([0, 2 * 2**0.5, 2 * 5**0.5, 2 * 10**0.5])
    assert_close(p, norms / norms.sum(), atol=1e-15)
    assert_close(estimators.exact(designs.Importance(p, 1), g).variance, 10.352740713516717, atol=1e-13)
    rng = np.random.default_rng(0)
    for _ in range(20):  # no other law is better
        other = 0.9 * p + 0.1 * rng.dirichlet(np.ones(4))
        assert float(estimators.exact(designs.Importance(other, 1), g).variance) > 10.3527407135


def test_batches_of_an_epoch_repel_each_other() -> None:
    """Cov(ĝ_a, ĝ_b) = −Σ/(N − 1) = −31/5, whatever the batch sizes; the epoch's mean is exact for equal ones."""
    for design in (designs.Reshuffling(2), designs.Reshuffling(4, drop_last=False)):
        assert VALUES @ design.cross_covariance(6).entries(6) @ VALUES == F(-31, 5)
    assert designs.Reshuffling(2).epoch_mean_covariance(6) == (0, 0)
    assert designs.Reshuffling(4, drop_last=False).epoch_mean_covariance(6, by="example") == (0, 0)


def test_a_short_last_batch_makes_the_epoch_mean_random() -> None:
    """N = 5, M = 2 of 1, 2, 4, 8, 16: mean 31/5, variance 62/75 over epochs; and the first 4 as one batch."""
    values = np.array([F(x) for x in (1, 2, 4, 8, 16)], dtype=object)
    design = designs.Reshuffling(2, drop_last=False)
    assert values @ design.epoch_mean_covariance(5).entries(5) @ values == F(62, 75)
    dropped = designs.Reshuffling(2).epoch_mean_covariance(5)
    assert dropped == designs.WithoutReplacement(4).weight_covariance(5)


# R 4.2.2 with its package sampling 2.9 (Tillé and Matei): π = UPMEpikfromq(UPMEqfromw(odds, 3)), and the rows of
# UPMEpik2frompikw(π, odds) for the first and the last example of the first odds, and the last of the second.
ODDS = ([1, 2, 3, 5, 8, 13], [0.1136825912, 0.2883560916, 0.7912414310, 1.3788381264, 3.5321129520, 6.8987563540])
PI = (
    "0.16698935140367860 0.30590513068731850 0.41965150048402711 0.58325266214908034 0.71248789932236201 "
    "0.81171345595353350",
    "0.069999999976247285 0.169999999998578954 0.409999999991079778 0.610000000009381482 0.830000000015854167 "
    "0.910000000008858168",
)
FIRST_ROW = (
    "0.166989351403678599 0.028073572120038692 0.040658276863504317 0.062923523717328178 0.089060987415295251 "
    "0.11326234269119068"
)
LAST_ROWS = (
    "0.113262342691190676 0.213939980638915755 0.302032913843175266 0.440464666021297080 0.553727008712487700 "
    "0.81171345595353350",
    "0.055925963355560639 0.137720032172622797 0.345223946145641281 0.535062035194795893 0.746068023149095594 "
    "0.910000000008858168",
)


def printed(row: str) -> np.ndarray:
    return np.array(row.split(), dtype=float)


@pytest.mark.parametrize("rational", [True, False])
def test_conditional_poisson_agrees_with_another_program(rational: bool) -> None:
    """Both ways to calculate. The control: independent inclusions with the same chances are far off."""
    for odds, pi, row in zip(ODDS, PI, LAST_ROWS, strict=True):
        design = designs.ConditionalPoisson([F(x) if rational else float(x) for x in odds], 3)
        joint = design.joint_inclusion_probabilities(6)
        assert_close(design.inclusion_probabilities(6), printed(pi), atol=1e-14)
        assert_close(joint[5], printed(row), atol=1e-14)
        assert abs(printed(pi)[4] * printed(pi)[5] - printed(row)[4]) > 1e-3
        if odds is ODDS[0]:
            assert_close(joint[0], printed(FIRST_ROW), atol=1e-15)


@pytest.mark.parametrize(("N", "M"), [(2, 1), (6, 5), (6, 6), (40, 33), (41, 3)])
def test_fourier_sums_agree_with_rational_recursions(N: int, M: int) -> None:
    """Catches a grid that leaves out a point that counts."""
    odds = [int(x) for x in np.random.default_rng(N).integers(1, 10**4, N)]
    exact, rounded = designs.ConditionalPoisson(odds, M), designs.ConditionalPoisson(list(map(float, odds)), M)
    assert exact == rounded
    assert isinstance(exact.weight_covariance(N).entries(N)[0, 0], Fraction)
    assert isinstance(rounded.weight_covariance(N).entries(N)[0, 0], float)
    pi, joint = exact.inclusion_probabilities(N), exact.joint_inclusion_probabilities(N)
    assert_close(rounded.inclusion_probabilities(N) / pi, np.ones(N), atol=1e-13)
    assert_close(rounded.joint_inclusion_probabilities(N), joint, atol=1e-15)


def test_conditional_poisson_of_many_examples() -> None:
    """Catches recursions that overflow or lose digits: π sums to M, π_ij to M π_i, and draws have M examples."""
    N, M = 400, 150
    odds = np.exp(np.random.default_rng(0).normal(0, 2, N))
    design = designs.ConditionalPoisson(odds, M)
    pi, joint = design.inclusion_probabilities(N), design.joint_inclusion_probabilities(N)
    assert 0 < pi.min() < pi.max() < 1
    assert pi.sum() == pytest.approx(M, rel=1e-13)
    assert_close(joint.sum(axis=1), M * pi, atol=1e-10)
    assert np.all(joint >= 0)
    assert np.all(joint <= np.outer(pi, pi) + np.diag(pi) + 1e-12)
    drawn = jax.vmap(lambda key: design.weights(key, N))(jax.random.split(jax.random.key(0), 500)) > 0
    assert np.all(drawn.sum(axis=1) == M)
    z = (np.asarray(drawn).mean(axis=0) - pi) / np.sqrt(pi * (1 - pi) / 500)
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=4.5 / np.sqrt(2 * N))


def test_poisson_of_equal_chances_is_bernoulli() -> None:
    """Catches an integral that is right for a few examples only: the closed form is a sum over sizes."""
    for N in (30, 200):
        for empty in ("zero", "skip"):
            integral = designs.Poisson([0.05] * N, "realized", empty)
            closed = designs.Bernoulli(0.05, "realized", empty)
            assert_close(integral.mean_weights(N), closed.mean_weights(N), atol=1e-14)
            a, b = integral.weight_covariance(N), closed.weight_covariance(N)
            assert_close(a.dense(N), b.dense(N), atol=1e-13 * float(b.identity))
            hajek = designs.Hajek([0.05] * N, empty).weight_covariance(N)
            assert_close(hajek.dense(N), a.dense(N), atol=1e-13 * float(b.identity))


def test_moments_are_enough_for_designs_that_treat_examples_alike() -> None:
    m = moments.of(measured(gradients_given(EX_B)))
    for design in (designs.DistinctUnits(3), designs.Bernoulli(F(1, 3)), designs.Reshuffling(4, drop_last=False)):
        assert_close(estimators.exact(design, m).variance, float(mean_and_variance(design)[1]), atol=1e-13)
