"""The 36 claims and questions of the source pages, in order of number, each settled by library code and exact numbers.

The docstring of a test is the sentence in our own words and the verdict; ``README.md`` has them as a table, with the
figure of each. S0, S1 and S2 are the three pages: a proof for one example, a question on averaged errors, a question on
averaged gradients.
"""

from fractions import Fraction

import numpy as np

from jaxsgd import designs, dynamics

THREE_QUADRATICS = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])


def test_claim_20_shuffling_is_not_independence() -> None:
    """Shuffling makes batches i.i.d.: FALSE. It makes them exchangeable, and better than independent.

    The batches of a shuffled epoch are draws without replacement: each alone is uniform, two have covariance −Σ/(N−1),
    here −31/5, whatever their sizes; so averages over an epoch have c_m Σ ≤ Σ/m.
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


def test_claim_21_without_shuffling_epochs_end_off_the_minimum() -> None:
    """Data should be shuffled before training: TRUE for a constant step size, even if examples are independent.

    In a fixed order SGD runs into a limit cycle, whose end of an epoch is off by O(η), differently for each order. Random
    reshuffling is biased too, by −η Cov(g, h)/(2h̄) to first order; with independent batches the mean is the minimum,
    and E δ² larger.
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


def test_claim_35_average_of_batch_averages() -> None:
    """The average of an epoch's batch means is the full gradient: CONDITIONAL on batches of equal size.

    With a short last batch it is unbiased if shuffled, but random: 31/5 with variance 62/75 here; in stored order it is
    47/6. Weighted by size it is exact. Dropping the short batch is unbiased with reshuffling only.
    """
    g = np.array([Fraction(v) for v in (1, 2, 4, 8, 16)], dtype=object)
    used, dropped = designs.Reshuffling(2, drop_last=False), designs.Reshuffling(2)
    slots = sum((Fraction(1, 3 * m) ** 2 for m in (2, 2, 2, 2, 1)), Fraction(0))
    S2 = sum((g - Fraction(31, 5)) ** 2) / 4
    assert g @ used.epoch_mean_covariance(5).entries(5) @ g == Fraction(62, 75) == S2 * (slots - Fraction(1, 5))
    assert g @ used.epoch_mean_covariance(5, by="example").entries(5) @ g == 0
    assert np.abs(used.mean_weights(5) @ g.astype(float) - 31 / 5) < 1e-12
    stored = [sum(g[:2]) / 2, sum(g[2:4]) / 2, g[4]]
    assert sum(stored) / 3 == Fraction(47, 6)
    assert sum(stored[:2]) / 2 == Fraction(15, 4)
    assert np.abs(dropped.mean_weights(5) @ g.astype(float) - 31 / 5) < 1e-12
    assert g @ dropped.epoch_mean_covariance(5).entries(5) @ g == S2 * Fraction(1, 20)
    equal = designs.Reshuffling(3)
    assert g[:3] @ equal.epoch_mean_covariance(3).entries(3) @ g[:3] == 0
