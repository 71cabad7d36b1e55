"""Claims 31 to 36: exchanging the gradient and the mean, on paper and in programs. ``test_claims`` says of what."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import designs, exchange


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
