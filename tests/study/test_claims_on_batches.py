"""Claims 10 to 21: what a batch is an estimate of, and how precise. ``test_claims`` says what they are claims of."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import designs, dynamics, estimators
from tests.support.claims import EX_B, THREE_QUADRATICS, rational_moments


def test_claim_10_the_sum_is_off_by_a_factor_n() -> None:
    """The expected gradient of a drawn example is that of the SUM: FALSE by a factor N, true of the mean."""
    problem = jaxsgd.problems.line_fit()
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    total = g.weighted_sum(jnp.ones(4))
    drawn = estimators.exact(designs.WithReplacement(1), g).mean
    assert (float(total["m"]), float(drawn["m"])) == (-4, -1)


def test_claim_11_one_uniform_example_is_unbiased() -> None:
    """E ∇L_J = ∇L̄ for a uniformly drawn J: TRUE, with no condition beyond differentiability."""
    for values in (EX_B, (0, -3, 5)):
        for design in (designs.WithReplacement(1), designs.WithoutReplacement(1)):
            assert rational_moments(design, values)[0] == Fraction(sum(values), len(values))


@pytest.mark.parametrize("M", range(1, 7))
def test_claim_12_every_batch_size_is_unbiased(M: int) -> None:
    """Does the proof extend to 1 < M ≤ N? TRUE for every design with E w_i = 1/N, by going through all batches.

    Without replacement the variance is (N−M)/(M(N−1)) · 31 for these gradients, with replacement 31/M.
    """
    assert rational_moments(designs.WithoutReplacement(M), EX_B) == (7, Fraction((6 - M) * 31, M * 5))
    assert rational_moments(designs.WithReplacement(M), EX_B) == (7, Fraction(31, M))


def test_claim_13_a_sum_of_gradients_grows_with_the_batch() -> None:
    """A minibatch gradient is a SUM of gradients: CONDITIONAL, only N/M times the sum has the mean of all."""
    slopes = (0, -2, 4, -6)  # ∂L_i/∂m of the line fit at (1, 1)
    for M in range(1, 5):
        assert rational_moments(designs.WithoutReplacement(M, scale="sum"), slopes)[0] == -M
        assert rational_moments(designs.WithoutReplacement(M, scale="total"), slopes)[0] == -4
        assert rational_moments(designs.WithoutReplacement(M), slopes)[0] == -1


def test_claim_14_published_methods_rescale_the_sum() -> None:
    """SGLD and AEVB take plain sums over the minibatch: FALSE, both carry N/M in front of the sum.

    SGLD's drift is (ε/2) (N/n) Σ, which is the total scale; without the factor it is another posterior's.
    """
    x = (0, 1, 3, 4)
    for n in (1, 2, 4):
        score = [Fraction(value) - 1 for value in x]  # of a Gaussian mean at θ = 1
        drift = rational_moments(designs.WithoutReplacement(n, scale="total"), score)[0]
        assert drift == sum(score) == 4
        assert rational_moments(designs.WithoutReplacement(n, scale="sum"), score)[0] == n


def test_claim_15_the_factor_matters() -> None:
    """Langevin dynamics sample the posterior with N/M, and another law without: TRUE, exactly.

    Stationary variances 5/9, 10/27, 5/18 at ε = 1/10, which tend to the posterior's 1/4; with the plain mean they tend
    to 1, with the sum to 1/M.
    """
    for M, expected in ((1, Fraction(5, 9)), (2, Fraction(10, 27)), (4, Fraction(5, 18))):
        total = designs.WithoutReplacement(M, scale="total")
        assert dynamics.langevin_variance(total, [0, 1, 3, 4], Fraction(1, 10)) == expected
        for scale, limit in (("total", Fraction(1, 4)), ("mean", Fraction(1)), ("sum", Fraction(1, M))):
            design = designs.WithoutReplacement(M, scale=scale)
            found = dynamics.langevin_variance(design, [0, 1, 3, 4], Fraction(1, 10**9))
            assert abs(found - limit) < Fraction(1, 10**7)


def test_claim_16_any_design_with_equal_expected_weights_is_unbiased() -> None:
    """Any completely random subset is unbiased: TRUE, and equal inclusion is enough; independence is not needed."""
    for design in (designs.Systematic(2), designs.Blocks(3), designs.CircularBlocks(4), designs.DistinctUnits(3)):
        assert rational_moments(design, EX_B)[0] == 7
    assert rational_moments(designs.Stratified([0, 0, 0, 1, 1, 1], [1, 2], weighted=False), EX_B)[0] == Fraction(77, 9)


def test_claim_17_more_examples_are_not_always_more_precise() -> None:
    """The more examples are averaged, the more precise: CONDITIONAL. True of random subsets, no theorem for others."""
    shuffled = [rational_moments(designs.WithoutReplacement(M), EX_B)[1] for M in range(1, 7)]
    assert shuffled == sorted(shuffled, reverse=True)
    found = [
        rational_moments(design, EX_B)[1]
        for design in (designs.Systematic(2), designs.Systematic(3), designs.Blocks(2), designs.Blocks(3))
    ]
    assert found == [Fraction(43, 6), Fraction(25, 9), Fraction(163, 6), Fraction(196, 9)]
    copies = (1, 1, 1, 5, 5, 5)  # perfectly correlated: a batch of three tells no more than one
    assert rational_moments(designs.Blocks(3), copies)[1] == rational_moments(designs.Blocks(1), copies)[1] == 4


def test_claim_18_the_full_batch_is_exact_only_without_replacement() -> None:
    """The full batch is exact: TRUE without replacement; Σ/N is left with replacement, and noise of dropout stays."""
    assert rational_moments(designs.WithoutReplacement(6), EX_B)[1] == 0
    assert rational_moments(designs.WithReplacement(6), EX_B)[1] == Fraction(31, 6)


def test_claim_19_correlation_changes_precision_not_the_mean() -> None:
    """It will not work if samples are correlated: FALSE for the mean, TRUE for the precision, which may even gain.

    Relative to independent draws blocks have 163/93 and 196/93 of the variance, systematic batches 43/93 and 25/93.
    """
    for design, effect in (
        (designs.Blocks(2), Fraction(163, 93)),
        (designs.Blocks(3), Fraction(196, 93)),
        (designs.Systematic(2), Fraction(43, 93)),
        (designs.Systematic(3), Fraction(25, 93)),
    ):
        mean, variance = rational_moments(design, EX_B)
        assert (mean, variance / Fraction(31, design.batch_size)) == (7, effect)


def test_claim_20_shuffling_is_not_independence() -> None:
    """Shuffling makes batches i.i.d.: FALSE. It makes them exchangeable, with no more noise than independent ones.

    The batches of a shuffled epoch are draws without replacement: each alone is uniform, two have covariance −Σ/(N−1),
    here −31/5, whatever their sizes; so averages over an epoch have c_m Σ ≤ Σ/m. Runs end nearer the minimum at small
    steps only: three quadratics with η = 11/34 have 1.85 times the E δ² of independent draws, with η = 1/10 a quarter.
    """
    g = np.array([Fraction(v) for v in (1, 2, 4, 7, 11, 17)], dtype=object)
    pairs = [(g[i] - 7) * (g[j] - 7) for i in range(6) for j in range(6) if i != j]
    assert sum(pairs) / len(pairs) == Fraction(-31, 5)
    for design in (designs.Reshuffling(1), designs.Reshuffling(2), designs.Reshuffling(4, drop_last=False)):
        assert g @ design.cross_covariance(6).entries(6) @ g == Fraction(-31, 5)
    for m in range(1, 7):
        shuffled, independent = designs.WithoutReplacement(m), designs.WithReplacement(m)
        variances = [g @ design.weight_covariance(6).entries(6) @ g for design in (shuffled, independent)]
        assert variances == [31 * shuffled.variance_factor(6), Fraction(31, m)]
        assert variances[0] < variances[1] or m == 1
    assert designs.Reshuffling(2).epoch_mean_covariance(6).entries(6).any() == 0
    losses, ratios = dynamics.Quadratics.from_minima([1, 5, 5], [-1, -2, 0]), []
    for rate in (Fraction(11, 34), Fraction(1, 10)):
        laws = [dynamics.reshuffled_law(losses, designs.Reshuffling(1), rate)]
        laws += [dynamics.step_law(losses, designs.WithReplacement(1), rate)]
        shuffled, drawn = (law.stationary().second_moment(losses.minimum()).item() for law in laws)
        ratios.append((shuffled, drawn))
    assert ratios[0] == (Fraction(64862050, 11916727), Fraction(50, 17))
    assert ratios[1] == (Fraction(302, 4557), Fraction(50, 169))


def test_claim_21_without_shuffling_epochs_end_off_the_minimum() -> None:
    """Data should be shuffled before training: TRUE for a constant step size, even if examples are independent.

    In a fixed order SGD runs into a limit cycle, whose end of an epoch is off by O(η), differently for each order.
    Random reshuffling is biased too, by −η Cov(g, h)/(2h̄) to first order; with independent batches the mean is the
    minimum, and E δ² larger.
    """
    eta, minimum = Fraction(1, 4), THREE_QUADRATICS.minimum()
    ends = {(0, 1, 2): -21, (0, 2, 1): -9, (1, 0, 2): -18, (1, 2, 0): 6, (2, 0, 1): 3, (2, 1, 0): 15}
    for order, end in ends.items():
        state = dynamics.fixed_order_law(THREE_QUADRATICS, order, eta).stationary()
        assert (state.mean.item(), state.covariance.item()) == (Fraction(end, 29), 0)
    random = dynamics.reshuffled_law(THREE_QUADRATICS, designs.Reshuffling(1), eta).stationary()
    assert random.mean.item() == Fraction(-4, 29) == Fraction(sum(ends.values()), 6 * 29)
    assert random.second_moment(minimum).item() == Fraction(1098, 5887)
    independent = dynamics.step_law(THREE_QUADRATICS, designs.WithReplacement(1), eta).stationary()
    assert (independent.mean.item(), independent.second_moment(minimum).item()) == (0, Fraction(9, 17))
    bias = dynamics.reshuffling_bias(THREE_QUADRATICS, designs.Reshuffling(1), eta).item()
    assert bias == -eta / 2 != random.mean.item()
