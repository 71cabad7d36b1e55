"""The 36 claims and questions of the source pages, in order of number, each settled by library code and exact numbers.

The docstring of a test is the sentence in our own words and the verdict; ``README.md`` has them as a table, with the
figure of each. S0, S1 and S2 are the three pages: a proof for one example, a question on averaged errors, a question on
averaged gradients.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import batch_losses, designs, dynamics, estimators, exchange

EX_B = (1, 2, 4, 7, 11, 17)
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


def rational_moments(design, values) -> tuple[Fraction, Fraction]:
    """E ĝ and Var ĝ of scalar gradients over every batch of a design, in rational arithmetic."""
    outcomes = [(p, sum(w * g for w, g in zip(ws, values, strict=True))) for p, ws in design.support(len(values))]
    mean = sum(p * value for p, value in outcomes)
    return mean, sum(p * (value - mean) ** 2 for p, value in outcomes)


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
