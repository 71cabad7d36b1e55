"""The 36 claims and questions of the source pages, in order of number, each settled by library code and exact numbers.

The docstring of a test is the sentence in our own words and the verdict; ``README.md`` has them as a table, with the
figure of each. S0, S1 and S2 are the three pages: a proof for one example, a question on averaged errors, a question on
averaged gradients.
"""

import itertools
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import batch_losses, designs, dynamics, estimators, exchange, problems, surfaces

EX_B = (1, 2, 4, 7, 11, 17)
THREE_QUADRATICS = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
F = Fraction
LINE = problems.line_fit()
POINTS = [(0, 1), (1, 3), (2, 2), (3, 5)]


def rational_moments(design, values) -> tuple[Fraction, Fraction]:
    """E ĝ and Var ĝ of scalar gradients over every batch of a design, in rational arithmetic."""
    outcomes = [(p, sum(w * g for w, g in zip(ws, values, strict=True))) for p, ws in design.support(len(values))]
    mean = sum(p * value for p, value in outcomes)
    return mean, sum(p * (value - mean) ** 2 for p, value in outcomes)


def line_gradient(theta: Any, example: tuple[int, int]) -> np.ndarray:
    """The gradient of (y − mx − b)² as rational numbers, (∂m, ∂b)."""
    x, y = example
    residual = y - theta[0] * x - theta[1]
    return np.array([-2 * residual * x, -2 * residual], dtype=object)


def mean_loss(loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda params, data: jnp.mean(jax.vmap(loss_fn, (None, 0))(params, data))


def pair(tree: Any) -> list[float]:
    return [float(tree["m"]), float(tree["b"])]


def assert_trees_close(actual: Any, expected: Any, atol: float) -> None:
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


def test_claim_01_differentiation_is_linear() -> None:
    """The gradient of a sum is the sum of gradients, and constants come out: TRUE where both are differentiable."""
    rng = np.random.default_rng(0)
    f, g = (jnp.asarray(rng.normal(size=(5, 3))) for _ in range(2))

    def polynomial(coefficients: Any, x: Any) -> Any:
        return jnp.sum(coefficients * jnp.stack([x**k for k in range(5)]))

    x = jnp.asarray(rng.normal(size=3))
    of_f, of_g = (jax.grad(polynomial, 1)(coefficients, x) for coefficients in (f, g))
    of_sum = jax.grad(lambda x: 3 * polynomial(f, x) - 2 * polynomial(g, x))(x)
    np.testing.assert_allclose(of_sum, 3 * of_f - 2 * of_g, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_f, sum(k * f[k] * x ** max(k - 1, 0) for k in range(1, 5)), rtol=0, atol=1e-12)
    assert np.max(np.abs(of_f)) > 1


def test_claim_02_the_derivative_of_x2_plus_x3() -> None:
    """S0 prints 2x + 3x as the derivative of x² + x³: FALSE, a slip for 2x + 3x².

    The two agree at 0 and 1 only, so that a check at those points alone would pass the wrong one.
    """
    derivative = jax.grad(lambda x: x**2 + x**3)
    found = {x: float(derivative(float(x))) for x in (-1, 0, 1, 2)}
    assert found == {x: 2 * x + 3 * x**2 for x in found} == {-1: 1, 0: 0, 1: 5, 2: 16}
    assert {x for x in found if 2 * x + 3 * x == found[x]} == {0, 1}
    assert (2 * 2 + 3 * 2, 2 * -1 + 3 * -1) == (10, -5)


def test_claim_03_a_straight_line_is_not_a_linear_map() -> None:
    """x + 1 is a straight line and not linear: TRUE. Differentiation is linear all the same; functions need not be."""

    def f(x: Any) -> Any:
        return x + 1

    assert (f(2 + 3), f(2) + f(3)) == (6, 7)
    assert jax.grad(lambda x: f(x) ** 3 + f(x))(2.0) == jax.grad(lambda x: f(x) ** 3)(2.0) + jax.grad(f)(2.0) == 28


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_claim_04_a_network_being_nonlinear_in_its_input_does_not_matter(activation: str) -> None:
    """For a network the gradient of the sum may differ from the sum of gradients, inputs being different: FALSE.

    The summands are functions of the same parameters, in which inputs and targets are constants; differentiation is
    with respect to the parameters, and a finite sum of differentiable functions is all it takes.
    """
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    loss_fn, params, data = problems.mlp(x, y, key=jax.random.key(0), hidden=4, activation=activation)
    of_sum = jax.grad(lambda p: jnp.sum(jax.vmap(loss_fn, (None, 0))(p, data)))(params)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert_trees_close(of_sum, g.weighted_sum(jnp.ones(9)), 1e-12)
    assert_trees_close(of_sum, jax.tree.map(lambda leaf: leaf.sum(axis=0), g.materialize()), 1e-12)
    assert sum(line_gradient((1, 1), point) for point in POINTS).tolist() == [-4, -2]


@pytest.mark.parametrize(
    ("eta", "ends"),
    [
        (F(1, 20), [(F(1293, 1000), F(1121, 1000)), (F(6, 5), F(11, 10))]),
        (F(1, 200), [(1 + F(1, 50) + F(363, 10**6), 1 + F(1, 100) + F(21, 10**6)), (F(51, 50), F(101, 100))]),
    ],
)
def test_claim_05_all_gradients_are_at_the_same_point(eta: Fraction, ends: Any) -> None:
    """Averages and gradients commute at one point only: TRUE. A batch has several points: FALSE, θ is the one point.

    They would not commute at different θ, as in four steps one after another: these are off by 12η² + 504η³ in m, and
    by 168η³ in b.
    """
    one_by_one = together = np.array([F(1), F(1)], dtype=object)
    for point in POINTS:
        one_by_one = one_by_one - eta * line_gradient(one_by_one, point)
    together = together - eta * sum(line_gradient((1, 1), point) for point in POINTS)
    assert [tuple(one_by_one), tuple(together)] == ends
    assert tuple(one_by_one - together) == (12 * eta**2 + 504 * eta**3, 168 * eta**3)
    params = LINE.params
    for i in range(4):
        gradient = jax.grad(LINE.loss_fn)(params, {k: v[i] for k, v in LINE.data.items()})
        params = jax.tree.map(lambda p, g: p - float(eta) * g, params, gradient)
    np.testing.assert_allclose(pair(params), [float(end) for end in ends[0]], rtol=0, atol=1e-14)


def test_claim_06_differentiating_the_average_and_averaging_the_derivatives() -> None:
    """The average loss may be back-propagated instead of every example's (S1's question): TRUE for additive losses."""
    loss_fn, params, data = LINE
    of_mean = jax.grad(mean_loss(loss_fn))(params, data)
    mean_of = jaxsgd.per_example_gradients(loss_fn)(params, data).mean()
    total = {"m": 0.0, "b": 0.0}
    for i in range(4):
        gradient = jax.grad(loss_fn)(params, {k: v[i] for k, v in data.items()})
        total = {k: total[k] + float(gradient[k]) / 4 for k in total}
    assert pair(of_mean) == pair(mean_of) == pair(total) == [-1, -0.5]
    assert jaxsgd.check_additivity(mean_loss(loss_fn), params, data).kind == "mean"


def test_claim_07_the_hand_written_partial_derivatives_of_a_line_fit() -> None:
    """∂J/∂m = −(2/N) Σ x(y − mx − b) and ∂J/∂b = −(2/N) Σ (y − mx − b): TRUE.

    A line before them lacks brackets: as printed, the derivative of y alone is taken and mx + b subtracted from it.
    """
    gradient = jax.grad(mean_loss(LINE.loss_fn))
    for m, b in ((1, 1), (0, 0), (F(11, 10), F(11, 10)), (F(-3, 2), F(1, 4))):
        by_hand = sum(line_gradient((m, b), point) for point in POINTS) / F(4)
        found = gradient({"m": jnp.asarray(float(m)), "b": jnp.asarray(float(b))}, LINE.data)
        np.testing.assert_allclose(pair(found), by_hand.astype(float), rtol=0, atol=1e-14)

        def loss(m: Fraction, b: Fraction) -> Fraction:
            return sum((F(y) - m * x - b) ** 2 for x, y in POINTS) / 4

        h = F(1, 3)  # a central difference of a quadratic is exact for any step
        assert (loss(m + h, b) - loss(m - h, b)) / (2 * h) == by_hand[0]
        assert (loss(m, b + h) - loss(m, b - h)) / (2 * h) == by_hand[1]
    as_printed = sum(2 * (y - x - 1) * 0 - (x + 1) for x, y in POINTS)  # at m = b = 1, where ∂y/∂m = 0
    assert F(as_printed, 4) == F(-5, 2) != -1


def test_claim_08_the_mean_error_is_ambiguous() -> None:
    """Compute the average error of a batch and backpropagate it: CONDITIONAL, right for losses, wrong for residuals.

    The loss of the mean residual has an expected gradient that goes from that of the mean square (M = 1) to that of the
    squared mean (M = N): −13, −29/3, −77/9, −8.
    """
    data = {"x": jnp.array([0.0, 1.0, 3.0, 4.0]), "y": jnp.array([1.0, 0.0, 2.0, 5.0])}
    expected = {1: -13, 2: -29 / 3, 3: -77 / 9, 4: -8}
    for M, of_residuals in expected.items():
        design, theta = designs.WithoutReplacement(M), jnp.asarray(0.0)
        losses = estimators.batch_loss_gradient(lambda t, b: jnp.mean((b["y"] - t * b["x"]) ** 2), theta, data, design)
        found = estimators.batch_loss_gradient(lambda t, b: jnp.mean(b["y"] - t * b["x"]) ** 2, theta, data, design)
        np.testing.assert_allclose([losses.mean, found.mean], [-13, of_residuals], rtol=1e-13)


def test_claim_09_sum_and_mean() -> None:
    """Can the sum of errors replace their mean? It IS the sum of gradients, N times the mean: CONDITIONAL.

    The minimum is the same, and SGD is the same with the learning rate divided by N. It is not where something else
    sets a scale: with an L2 penalty, clipping, or Adam's ε the two differ.
    """
    loss_fn, params, data = LINE
    of_sum = jax.grad(lambda p: 4 * mean_loss(loss_fn)(p, data))(params)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert pair(of_sum) == [4 * value for value in pair(g.mean())] == [-4, -2]
    for scale, factor in (("mean", 1), ("sum", 2), ("total", 4)):
        drawn = estimators.exact(designs.WithoutReplacement(2, scale=scale), g)
        np.testing.assert_allclose(pair(drawn.mean), [-factor, -factor / 2], rtol=0, atol=1e-14)
        np.testing.assert_allclose(float(drawn.variance), 5.25 * factor**2, rtol=0, atol=1e-13)
    of_mean, of_sum = g.mean(), g.weighted_sum(jnp.ones(4))

    def steps(optimizer: Any, for_sum: Any) -> bool:
        """Whether one step is the same, the second with the learning rate for the sum."""
        first, second = (o.update(u, o.init(params))[0] for o, u in ((optimizer, of_mean), (for_sum, of_sum)))
        return bool(np.allclose(pair(first), pair(second), rtol=1e-9, atol=0))

    assert steps(optax.sgd(0.1), optax.sgd(0.1 / 4))
    clip = optax.clip_by_global_norm(2.0)
    assert not steps(optax.chain(clip, optax.sgd(0.1)), optax.chain(clip, optax.sgd(0.1 / 4)))
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
        assert steps(optax.adam(0.1, eps=0.0), optax.adam(0.1, eps=0.0))
        assert not steps(optax.adam(0.1, eps=1e-3), optax.adam(0.1, eps=1e-3))
    x, y, penalty = (1, 2, 3), (1, 3, 2), F(1)
    xx, xy = sum(a * a for a in x), sum(a * b for a, b in zip(x, y, strict=True))
    assert [F(xy, 1) / (xx + n * penalty) for n in (0, 1, 3)] == [F(13, 14), F(13, 15), F(13, 17)]
    ridge_data = {"x": jnp.asarray([1.0, 2.0, 3.0]), "y": jnp.asarray([1.0, 3.0, 2.0])}

    def penalized(theta: Any, total: float) -> Any:
        residuals = ridge_data["y"] - theta * ridge_data["x"]
        return total * jnp.mean(residuals**2) + theta**2

    for total, minimum in ((3.0, 13 / 15), (1.0, 13 / 17)):
        assert abs(float(jax.grad(penalized)(minimum, total))) < 1e-14


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


def test_claim_22_only_fixed_multipliers_can_be_pulled_out() -> None:
    """A multiplier free of the parameters can be pulled out: CONDITIONAL on its not being random.

    The number of tokens of a batch correlates with its content: 5/3, 73/44, 7/4 instead of 7/4; the expected number
    does not.
    """
    data = {"loss": jnp.array([2.0, 3.0, 16.0]), "tokens": jnp.array([1.0, 3.0, 8.0])}
    for M, expected in ((1, 5 / 3), (2, 73 / 44), (3, 7 / 4)):
        design, theta = designs.WithoutReplacement(M), jnp.asarray(1.0)
        ratio = estimators.batch_loss_gradient(
            lambda t, b: t * batch_losses.token_mean(b["loss"], b["tokens"]), theta, data, design
        )
        fixed = estimators.batch_loss_gradient(lambda t, b: t * jnp.mean(b["loss"]) / 4, theta, data, design)
        np.testing.assert_allclose([ratio.mean, fixed.mean], [expected, 7 / 4], rtol=1e-14)


def test_claim_23_other_combinations_than_sums() -> None:
    """It fails for any cost that combines examples other than by addition: MOSTLY TRUE, not an equivalence.

    Sums over pairs are unbiased from M = 2 on, the logarithm of a product is a sum, CVaR and log-mean-exp are minima of
    sums over one more variable. A product of all losses is none of these: 5/2, 35/6, 25/2, 24.
    """
    theta, four = jnp.asarray(1.0), jnp.array([1.0, 2.0, 3.0, 4.0])

    def mean(loss, M, values=four) -> float:
        return float(estimators.batch_loss_gradient(loss, theta, values, designs.WithoutReplacement(M)).mean)

    products = [mean(lambda t, b: t * batch_losses.product_of_losses(b), M) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(products, [5 / 2, 35 / 6, 25 / 2, 24], rtol=1e-14)
    logarithms = [mean(lambda t, b: t * jnp.log(batch_losses.product_of_losses(b)) / len(b), M) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(logarithms, np.log(24) / 4, rtol=1e-14)
    six = jnp.array(EX_B, float)
    pairs = [
        mean(lambda t, b: t * batch_losses.different_pairs(b, lambda x, y: (x - y) ** 2 / 2), M, six) for M in (2, 3, 6)
    ]
    np.testing.assert_allclose(pairs, 186 / 5, rtol=1e-14)
    tails = [mean(lambda t, b: t * batch_losses.cvar(b, 0.5), M, six) for M in (2, 4, 6)]
    np.testing.assert_allclose(tails, [32 / 3, 341 / 30, 35 / 3], rtol=1e-14)
    bounds = [mean(lambda t, b: t * batch_losses.cvar_bound(b, jnp.asarray(7.0), 0.5), M, six) for M in (2, 4, 6)]
    np.testing.assert_allclose(bounds, 35 / 3, rtol=1e-14)


def test_claim_24_such_costs_are_common() -> None:
    """It would be an unusual cost that is not a sum: FALSE of practice.

    Batch normalization, contrastive losses, CVaR, AUC, Dice and token means are none, as the diagnosis finds from the
    losses alone.
    """
    x = jnp.array([0.3, -1.1, 2.0, 0.7, -0.4, 1.2, 0.1, -0.8])
    batch = {"x": x, "y": jnp.sin(3 * x), "n": jnp.array([1.0, 3.0, 8.0, 2.0, 5.0, 4.0, 7.0, 6.0])}
    losses = {
        "mean": lambda t, b: jnp.mean((t * b["x"] - b["y"]) ** 2),
        "ratio": lambda t, b: batch_losses.token_mean((t * b["x"] - b["y"]) ** 2, b["n"]),
        "coupled": lambda t, b: batch_losses.normalized_squared_error(t, b["x"] + t * b["y"], b["y"]),
    }
    for kind, loss in losses.items():
        assert jaxsgd.check_additivity(loss, jnp.asarray(0.8), batch).kind == kind


def test_claim_25_gradients_are_taken_at_one_place_in_parameter_space() -> None:
    """Each example's gradient is at the same location, in the space of parameters: TRUE, by definition.

    It has the shape of the parameters, whatever the example's. There is a derivative with respect to the example too,
    of the example's shape; no step uses it.
    """
    loss_fn, params, data = problems.mlp(np.ones((3, 5)), np.array([0, 1, 1]), key=jax.random.key(0), hidden=2)
    example = {"x": data["x"][0], "y": data["y"][0]}
    of_params = jax.grad(loss_fn)(params, example)
    assert jax.tree.map(jnp.shape, of_params) == jax.tree.map(jnp.shape, params)
    of_input = jax.grad(lambda x: loss_fn(params, {"x": x, "y": example["y"]}))(example["x"])
    assert of_input.shape == (5,)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], g.materialize()) == jax.tree.map(jnp.shape, params)
    elsewhere = [
        line_gradient(theta, point) for theta, point in zip([(1, 1), (1, 1), (0, 1), (1, 0)], POINTS, strict=True)
    ]
    assert (sum(elsewhere) / F(4)).tolist() != [-1, F(-1, 2)]


def test_claim_26_examples_are_not_at_places_of_their_own() -> None:
    """Each example ends up at a distant place of the error surface, the size of its gradient being the place: FALSE.

    All losses are evaluated at one θ; there are as many surfaces as examples. Gradients at one place differ in size,
    and equal gradients occur at different places.
    """
    here = surfaces.losses_along(*LINE, {"m": jnp.ones(1), "b": jnp.zeros(1)}, jnp.zeros((1, 1)))
    np.testing.assert_array_equal(here, [[0, 1, 1, 1]])
    g = jaxsgd.per_example_gradients(LINE.loss_fn)(LINE.params, LINE.data)
    assert g.squared_norms().tolist() == [0, 8, 20, 40]
    assert line_gradient((1, 1), (1, 3)).tolist() == line_gradient((0, 2), (1, 3)).tolist() == [-2, -2]


def test_claim_27_surfaces_of_single_examples_differ() -> None:
    """Every loss can be plotted on its own, and they may look very different: TRUE.

    Minima at 3, 0 and −1 with curvatures 1, 2 and 3 give a mean with its minimum at 0 = Σhc/Σh, not at the mean 2/3.
    """
    h, c = (1, 2, 3), (3, 0, -1)
    assert sum(a * b for a, b in zip(h, c, strict=True)) == 0 != F(sum(c), 3) == F(2, 3)
    data = {"h": jnp.asarray([1.0, 2.0, 3.0]), "c": jnp.asarray([3.0, 0.0, -1.0])}

    def loss_fn(theta: Any, example: Any) -> Any:
        return 0.5 * example["h"] * (theta - example["c"]) ** 2

    losses = surfaces.losses_along(
        loss_fn, jnp.zeros(()), data, jnp.ones(1), jnp.asarray([[3.0], [0.0], [-1.0], [2 / 3]])
    )
    assert jnp.argmin(losses[:3], axis=0).tolist() == [0, 1, 2]
    assert int(jnp.argmin(losses.mean(axis=1))) == 1
    slopes = [float(jaxsgd.per_example_gradients(loss_fn)(jnp.asarray(at), data).mean()) for at in (0.0, 2 / 3)]
    np.testing.assert_allclose(slopes, [0, 4 / 3], rtol=0, atol=1e-14)


def test_claim_28_the_average_direction_is_better() -> None:
    """The average of gradients points to the minimum, better than each: CONDITIONAL.

    −ḡ descends the mean loss, which −g_i need not; but neither need it point at the minimum. At (1, 1) a batch of M =
    1, 2, 3, 4 fails to descend with probability 1/2, 1/3, 1/4, 0.
    """
    g = jaxsgd.per_example_gradients(LINE.loss_fn)(LINE.params, LINE.data)
    failing = [1 - estimators.descent_probability(designs.WithoutReplacement(M), g) for M in (1, 2, 3, 4)]
    assert failing == [F(1, 2), F(1, 3), F(1, 4), 0]

    def loss(theta: Any) -> Fraction:
        return sum((F(y) - theta[0] * x - theta[1]) ** 2 for x, y in POINTS) / 4

    rows = [line_gradient((F(1), F(1)), point) for point in POINTS]
    mean = sum(rows) / F(4)
    changes = [loss(1 - step / 100) - loss((F(1), F(1))) for step in [*rows, mean]]
    assert changes == [0, F(-27, 1000), F(73, 1250), F(-267, 5000), F(-479, 40000)]
    directions = {"m": jnp.asarray([1.0, 0.0]), "b": jnp.asarray([0.0, 1.0])}
    steps = jnp.asarray(np.array([*rows, mean], dtype=float) / -100)
    after = surfaces.losses_along(*LINE, directions, steps).mean(axis=1)
    np.testing.assert_allclose(after - 0.75, [float(change) for change in changes], rtol=0, atol=1e-14)
    toward = np.array([F(1, 10), F(1, 10)], dtype=object)
    cosine_squared = (mean @ toward) ** 2 / (mean @ mean * (toward @ toward))
    assert cosine_squared == F(9, 10)
    assert mean @ toward < 0


def test_claim_29_the_surface_is_itself_an_average() -> None:
    """Gradients combine into a better approximation because the error surface is an average itself: TRUE.

    A batch's gradient is the gradient of the batch's surface, and the average over all batches is that of the data's.
    """
    loss_fn, params, data = LINE
    for M in (1, 2, 3, 4):
        batches = list(itertools.combinations(range(4), M))
        gradients = [
            jax.grad(mean_loss(loss_fn))(params, {k: v[jnp.asarray(s)] for k, v in data.items()}) for s in batches
        ]
        np.testing.assert_allclose(np.mean([pair(g) for g in gradients], axis=0), [-1, -0.5], rtol=0, atol=1e-14)
        exact = estimators.enumerate_batches(
            designs.WithoutReplacement(M), jaxsgd.per_example_gradients(loss_fn)(params, data)
        )
        np.testing.assert_allclose(pair(exact.mean), [-1, -0.5], rtol=0, atol=1e-14)
        spread = np.sum((np.array([pair(g) for g in gradients]) - [-1, -0.5]) ** 2) / len(batches)
        np.testing.assert_allclose(float(exact.variance), spread, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_claim_30_the_full_batch_is_a_sample_too(size: int) -> None:
    """Even the whole batch is an approximation, of the population: TRUE. Of M out of N independent examples, Σ_P/M.

    The full batch keeps Σ_P/N; with replacement it is Σ_P (1/N + (N−1)/(NM)), nearly twice that for the full batch.
    """
    variance, N = F(14, 3), size
    for M in range(1, N + 1):
        without = estimators.enumerate_data_sets(designs.WithoutReplacement(M), (0, 1, 5), N)
        assert (without.mean, without.total) == (2, variance / M)
        assert without.given_data == F(N - M, M * (N - 1)) * F(N - 1, N) * variance
        replaced = estimators.enumerate_data_sets(designs.WithReplacement(M), (0, 1, 5), N)
        assert (replaced.mean, replaced.total) == (2, variance * (F(1, N) + F(N - 1, N * M)))
        assert without.of_data == replaced.of_data == variance / N
        factors = estimators.population_factors(designs.WithoutReplacement(M), N)
        assert math.isclose(factors.total, 1 / M, rel_tol=1e-14)


def test_claim_31_when_gradient_and_expectation_may_be_exchanged() -> None:
    """Under some conditions gradient and expectation may be exchanged; which? TRUE, and for a data set there are none.

    A finite sum needs each L_i to be differentiable at θ, nothing else. For a continuous distribution it suffices that
    the loss is Lipschitz near θ with an integrable constant and differentiable at θ with probability one.
    """
    cases = {case.name: case for case in exchange.CASES}
    examples = (np.arange(50) + 0.5) / 50
    for name in ("smooth, not dominated", "relu", "hinge", "absolute error", "moving support, pathwise"):
        case = cases[name]
        data = jnp.asarray(case.quantile(examples))
        loss_fn = jax.vmap(case.loss_fn, in_axes=(None, 0))
        of_mean = jax.grad(lambda theta, loss_fn=loss_fn, data=data: loss_fn(theta, data).mean())(case.theta)
        np.testing.assert_allclose(of_mean, np.mean(np.asarray(case.gradients(examples))), rtol=1e-12, atol=1e-14)
    assert {name for name in cases if not cases[name].holds} == {
        "smooth, not dominated",
        "cosine of Cauchy data",
        "indicator",
        "absolute error, atom at θ",
        "second derivative of relu",
        "moving support, score",
    }
    assert cases["smooth, not dominated"].derivative == (1, 1)
    assert cases["smooth, not dominated"].expected_gradient == 0


def test_claim_32_typical_losses_meet_the_conditions() -> None:
    """Do typical losses meet them? For the gradient nearly all do, for second derivatives only smooth ones.

    The 0–1 loss loses its gradient, surrogates have another by design; whatever is piecewise linear in the prediction
    loses its second derivative. CTC is smooth in the logits: −log of a sum over alignments.
    """
    losses = {loss.name: loss for loss in exchange.LOSSES}
    assert {name for name in losses if not losses[name].gradient} == {"0–1", "straight-through rounding"}
    kinked = {"hinge", "absolute", "pinball", "ε-insensitive", "maximum", "relu network"}
    assert {name for name in losses if losses[name].gradient and not losses[name].second} == kinked
    absolute = exchange.derivatives(losses["absolute"].loss_fn, losses["absolute"].quantile, 0.0)
    density = 1 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(absolute, [[0, 2 * density], [0, 0]], atol=1e-4)

    logits, no_padding = jnp.zeros((1, 3, 3)), jnp.zeros((1, 3))
    for labels, alignments in (((1, 2), 5), ((1, 1), 1)):
        with jax.numpy_dtype_promotion("standard"):
            loss = optax.ctc_loss(logits, no_padding, jnp.array([labels]), jnp.zeros((1, 2)))
        np.testing.assert_allclose(loss, -np.log(alignments / 27), rtol=1e-6)


def test_claim_33_exchange_is_linearity_for_finitely_many_examples() -> None:
    """What has the proof to do with linearity of the gradient? For N examples they are the same statement.

    The expectation over a uniformly drawn example is the linear combination Σ (1/N)(·). For infinitely many examples it
    is linearity and a limit theorem, and the limits need not commute: at θ = 0 every data set says 0, the population 1.
    """
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    problem = jaxsgd.problems.line_fit()
    losses = jax.vmap(problem.loss_fn, in_axes=(None, 0))
    expectation = jax.grad(lambda params: jnp.sum(weights * losses(params, problem.data)))(problem.params)
    gradients = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        expectation,
        gradients.weighted_sum(jnp.asarray(weights)),
    )
    case = next(case for case in exchange.CASES if case.name == "smooth, not dominated")
    for size in (10, 1000, 100_000):
        examples = (np.arange(size) + 0.5) / size
        assert np.all(np.asarray(case.gradients(examples)) == 0)
    assert float(case.losses(examples, 0.1).mean()) / 0.1 == pytest.approx(np.exp(-0.01), abs=1e-3)


def test_claim_34_programs_are_differentiated_additively_even_at_kinks() -> None:
    """Automatic differentiation is additive: AD of the mean is the mean of AD. TRUE, even where both are wrong.

    relu(θ) and −relu(−θ) have the mean θ/2, whose derivative is 1/2; JAX says 0, in either order.
    """
    functions = [jax.nn.relu, lambda theta: -jax.nn.relu(-theta)]
    of_mean = jax.grad(lambda theta: (functions[0](theta) + functions[1](theta)) / 2)
    assert float(of_mean(0.0)) == np.mean([float(jax.grad(function)(0.0)) for function in functions]) == 0
    assert float(of_mean(1e-9)) == float(of_mean(-1e-9)) == 0.5
    wrong = {kink.program for kink in exchange.KINKS if not kink.is_subgradient}
    assert {"relu(x) - relu(-x)", "sqrt(x**2)", "where(x > 0, sqrt(x), 0)"} <= wrong


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_claim_36_equal_up_to_rounding(dtype: str) -> None:
    """The two agree in floating point: TRUE up to rounding, not bit by bit.

    A sum one by one is off by at most γ_N Σ|g_i|/N, γ_k = ku/(1 − ku), and one in pairs by γ of ⌈log₂ N⌉ + 1; the first
    breaks the second's bound.
    """
    N, unit = 100_000, np.finfo(dtype).eps / 2
    g = (np.random.default_rng(0).normal(size=N) ** 2).astype(dtype)
    exact, scale = math.fsum(g.tolist()), math.fsum(np.abs(g).tolist())
    in_pairs = np.pad(g, (0, 2**17 - N))
    while len(in_pairs) > 1:
        in_pairs = in_pairs[::2] + in_pairs[1::2]
    sums = {"one by one": np.add.accumulate(g)[-1], "in pairs": in_pairs[0]}
    means = {name: value / g.dtype.type(N) for name, value in sums.items()} | {"XLA": jnp.mean(jnp.asarray(g))}
    errors = {name: abs(float(mean) - exact / N) / (scale / N) for name, mean in means.items()}
    gamma = {terms: terms * unit / (1 - terms * unit) for terms in (18, N)}
    assert errors["in pairs"] <= gamma[18] < errors["one by one"] <= gamma[N]
    assert errors["XLA"] <= gamma[N]
    assert len({float(mean) for mean in means.values()}) > 1


def test_the_readme_has_a_row_for_every_claim() -> None:
    """Catches a claim without a verdict, a figure or a test, and a test that was renamed."""
    root = Path(__file__).parents[2]
    pattern = r"^\| (\d+) \| .+ \| .+ \| \[`(\w+)`\]\(figures/\2\.png\) \| `test_claim_(\d\d)(_\w+)` \|$"
    rows = re.findall(pattern, (root / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 37))
    for number, figure, digits, name in rows:
        assert int(digits) == int(number)
        assert f"test_claim_{digits}{name}" in globals()
        assert (root / "experiments" / f"{figure}.py").exists()
