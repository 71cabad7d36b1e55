"""Losses that do not add: the mean of their gradients over every batch is the number worked out by hand."""

import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import batch_losses, estimators, problems
from jaxsgd.designs import WithoutReplacement
from tests.support.over_batches import MAXIMA, F, Result, over, scaled
from tests.support.registry import EX_B, measured
from tests.support.twins import assert_close


def check(result: Result, mean: Any, full: Any) -> None:
    """E of a loss θ·statistic and of its gradient, and their bias."""
    for value, bias in ((result.loss, result.loss_bias), (result.mean, result.bias)):
        assert_close(value, float(mean), atol=1e-13 * abs(float(full)) + 1e-14)
        assert_close(bias, float(mean - full), atol=1e-13 * abs(float(full)) + 1e-14)
    assert float(result.standard_error) == float(result.loss_standard_error) == result.num_draws == 0


FIT = {"x": (0, 1, 3, 4), "y": (1, 0, 2, 5)}


@pytest.mark.parametrize(("M", "mean"), [(1, F(-13)), (2, F(-29, 3)), (3, F(-77, 9)), (4, F(-8))])
def test_squared_mean_residual(M: int, mean: Fraction) -> None:
    """It interpolates from the gradient of the mean square (M = 1) to that of the squared mean."""
    result = over(lambda t, b: jnp.mean(b["y"] - t * b["x"]) ** 2, 0.0, FIT, M)
    assert_close(result.mean, float(mean), atol=1e-13)
    assert_close(result.bias, float(mean + 8), atol=1e-13)


@pytest.mark.parametrize(("M", "mean"), [(1, F(15, 4)), (2, F(17, 4)), (3, F(53, 12)), (4, F(9, 2))])
def test_product_of_means(M: int, mean: Fraction) -> None:
    data = {"a": (1, 2, 4, 5), "b": (3, 1, 0, 2)}
    check(over(scaled(lambda b: batch_losses.product_of_means(b["a"], b["b"])), 1.0, data, M), mean, F(9, 2))
    if M > 1:
        unbiased = scaled(lambda b: batch_losses.product_of_means_unbiased(b["a"], b["b"], 4))
        check(over(unbiased, 1.0, data, M), F(9, 2), F(9, 2))


@pytest.mark.parametrize(("M", "mean"), [(1, F(5, 2)), (2, F(35, 6)), (3, F(25, 2)), (4, F(24))])
def test_product_of_losses(M: int, mean: Fraction) -> None:
    """e_M / C(N, M), the elementary symmetric polynomial."""
    check(over(scaled(batch_losses.product_of_losses), 1.0, (1, 2, 3, 4), M), mean, F(24))


@pytest.mark.parametrize(("M", "bias"), [(1, -0.2027326), (2, -0.0722727), (3, -0.0248585), (4, 0.0)])
def test_log_mean_exp(M: int, bias: float) -> None:
    result = over(lambda t, a: batch_losses.log_mean_exp(t + a), 0.0, np.log([1, 2, 3, 6]), M)
    assert_close(result.loss_bias, bias, atol=6e-8)
    exact = np.mean([math.log(sum(u) / M) for u in itertools.combinations((1, 2, 3, 6), M)]) - math.log(3)
    assert_close(result.loss_bias, exact, atol=1e-14)


def test_gradient_of_log_mean_exp() -> None:
    """Softmax weights for the whole, uniform ones for one example."""
    result = over(lambda t, a: batch_losses.log_mean_exp(t * a), 1.0, (0.0, math.log(3)), 1)
    assert_close(result.mean, math.log(3) / 2, atol=1e-15)
    assert_close(result.bias, -math.log(3) / 4, atol=1e-15)


@pytest.mark.parametrize(("M", "mean"), list(enumerate(MAXIMA, start=1)))
def test_max(M: int, mean: Fraction) -> None:
    result = over(scaled(jnp.max), 1.0, EX_B, M)
    check(result, mean, F(17))
    largest = [max(batch) for batch in itertools.combinations(EX_B, M)]
    assert_close(result.variance, np.var(largest), atol=1e-12)


@pytest.mark.parametrize(("M", "mean"), [(2, F(32, 3)), (4, F(341, 30)), (6, F(35, 3))])
def test_cvar(M: int, mean: Fraction) -> None:
    check(over(scaled(lambda b: batch_losses.cvar(b, 0.5)), 1.0, EX_B, M), mean, F(35, 3))
    bound = over(scaled(lambda b: batch_losses.cvar_bound(b, jnp.asarray(7.0), 0.5)), 1.0, EX_B, M)
    check(bound, F(35, 3), F(35, 3))


def test_cvar_weighs_the_examples() -> None:
    """The gradient with respect to one slope per example holds their expected weights."""
    data = {"i": range(6), "y": EX_B}

    def loss(slopes: Any, b: Any) -> Any:
        return batch_losses.cvar(slopes[b["i"].astype(int)] * b["y"], 0.5)

    result = over(loss, np.ones(6), data, 4)
    expected = [F(0), F(0), F(1, 10), F(7, 30), F(1, 3), F(1, 3)]
    assert_close(np.asarray(result.mean) / EX_B, [float(w) for w in expected], atol=1e-15)


@pytest.mark.parametrize(("M", "at_0", "at_2"), [(1, 0, 0), (2, F(-10, 3), F(10, 3)), (3, F(-40, 9), F(40, 9))])
def test_centering_shrinks_the_gradient(M: int, at_0: Any, at_2: Any) -> None:
    """E ∇ = N(M−1)/(M(N−1)) of the gradient of the whole, ∓5."""

    def loss(theta: Any, b: Any) -> Any:
        return batch_losses.centered_squared_error(theta, b["x"], b["y"])

    for theta, mean, full in ((0.0, at_0, -5), (2.0, at_2, 5)):
        result = over(loss, theta, FIT, M)
        assert_close(result.mean, float(mean), atol=1e-13)
        assert_close(result.bias, float(mean - full), atol=1e-13)


def normalized(x: Any) -> Any:
    return (x - x.mean()) / jnp.std(x)


@pytest.mark.parametrize(
    ("M", "at_0", "at_1"), [(2, -F(7, 3), -F(1, 3)), (3, -2.94689, -0.94689), (4, -3.16228, -1.16228)]
)
def test_batch_norm(M: int, at_0: Any, at_1: Any) -> None:
    for theta, mean in ((0.0, at_0), (1.0, at_1)):
        result = over(lambda t, b: batch_losses.normalized_squared_error(t, b["x"], b["y"]), theta, FIT, M)
        assert_close(result.mean, float(mean), atol=6e-6 if M > 2 else 1e-13)
        assert_close(result.bias, float(mean) + math.sqrt(10) - 2 * theta, atol=6e-6 if M > 2 else 1e-13)


def test_batch_norm_of_two_is_a_sign() -> None:
    data = {"x": (0, 1, 3), "y": (1, 2, 5)}
    result = over(scaled(lambda b: jnp.mean(normalized(b["x"]) * b["y"])), 1.0, data, 2)
    assert_close(result.mean, 4 / 3, atol=1e-14)
    assert_close(result.bias, 4 / 3 - (19 / 9) / math.sqrt(14 / 9), atol=1e-14)


def info_nce(theta: Any, b: Any) -> Any:
    return batch_losses.info_nce(theta * b["a"][:, None] * b["b"][None, :])


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5])
def test_info_nce(M: int) -> None:
    """Against a loop over batches and anchors; nothing at all is learned from one example."""
    a, b = np.array([0.3, -1.0, 2.0, 0.7, -0.2]), np.array([1.0, -0.5, 1.5, 0.1, 0.4])
    gradients = []
    for batch in itertools.combinations(range(5), M):
        rows = []
        for i in batch:
            weights = np.array([math.exp(a[i] * b[j]) for j in batch])
            rows.append(a[i] * (np.dot(weights, b[list(batch)]) / weights.sum() - b[i]))
        gradients.append(np.mean(rows))
    result = over(info_nce, 1.0, {"a": a, "b": b}, M)
    full = over(info_nce, 1.0, {"a": a, "b": b}, 5).mean
    assert_close(result.mean, np.mean(gradients), atol=1e-14)
    assert_close(result.bias, np.mean(gradients) - full, atol=1e-14)
    assert_close(result.variance, np.var(gradients), atol=1e-14)
    if M == 1:
        assert float(result.mean) == float(result.variance) == 0


@pytest.mark.parametrize(("M", "mean"), [(2, F(93, 5)), (3, F(124, 5)), (4, F(279, 10))])
def test_pairs(M: int, mean: Fraction) -> None:
    """½(y_i − y_j)²: over all ordered pairs biased by (M−1)/M, over pairs of different examples not."""

    def half_square(a: Any, b: Any) -> Any:
        return (a - b) ** 2 / 2

    check(over(scaled(lambda y: batch_losses.all_pairs(y, half_square)), 1.0, EX_B, M), mean, F(31))
    full = over(scaled(lambda y: batch_losses.different_pairs(y, half_square)), 1.0, EX_B, M)
    check(full, F(186, 5), F(186, 5))


RANKED = {"s": (0.9, 0.4, 0.8, 0.3, 0.1), "positive": (1, 1, 0, 0, 0)}


@pytest.mark.parametrize(("M", "both"), [(2, F(3, 5)), (3, F(9, 10)), (4, F(1)), (5, F(1))])
def test_auc(M: int, both: Fraction) -> None:
    """Zero where a class is missing: the population value times the probability of both. The expected number of
    pairs as divisor: unbiased.
    """

    def auc(num_pairs: float | None) -> Any:
        return scaled(lambda b: batch_losses.auc_loss(b["s"], b["positive"], num_pairs=num_pairs))

    check(over(auc(None), 1.0, RANKED, M), F(427, 600) * both, F(427, 600))
    assert_close(over(auc(6 * M * (M - 1) / 20), 1.0, RANKED, M).mean, 427 / 600, atol=1e-15)


DICE = {"i": (0, 1, 2), "y": (1, 0, 1)}


def dice(p: Any, b: Any) -> Any:
    return batch_losses.soft_dice(p[b["i"].astype(int)], b["y"])


@pytest.mark.parametrize(
    ("M", "mean", "gradient"),
    [
        (1, F(32, 63), (F(8, 27), F(0), F(32, 147))),
        (2, F(761, 1092), (F(9896, 24843), F(-275, 1176), F(1357, 4056))),
        (3, F(5, 7), (F(18, 49), F(-10, 49), F(18, 49))),
    ],
)
def test_dice(M: int, mean: Fraction, gradient: tuple[Fraction, ...]) -> None:
    result = over(dice, (0.5, 0.25, 0.75), DICE, M)
    assert_close(result.loss, float(mean), atol=1e-15)
    assert_close(result.loss_bias, float(mean - F(5, 7)), atol=1e-15)
    assert_close(result.mean, [float(g) for g in gradient], atol=1e-15)


SEQUENCES = {"loss": (2, 3, 16), "tokens": (1, 3, 8)}


@pytest.mark.parametrize(("M", "mean"), [(1, F(5, 3)), (2, F(73, 44)), (3, F(7, 4))])
def test_token_mean(M: int, mean: Fraction) -> None:
    """Divided by the tokens of the batch; divided by the mean number of tokens, there is no bias."""
    check(over(scaled(lambda b: batch_losses.token_mean(b["loss"], b["tokens"])), 1.0, SEQUENCES, M), mean, F(7, 4))
    constant = over(scaled(lambda b: b["loss"].mean() / 4), 1.0, SEQUENCES, M)
    check(constant, F(7, 4), F(7, 4))


def test_log_mean_exp_bound_is_tight_and_unbiased() -> None:
    values, data = jnp.log(jnp.array([1.0, 2.0, 3.0, 6.0])), (0.0, 1.0, 2.0, 3.0)
    level = batch_losses.log_mean_exp(values)
    assert_close(level, math.log(3), atol=1e-15)
    for M in (1, 2, 3, 4):
        bound = over(lambda t, i: batch_losses.log_mean_exp_bound(t * values[i.astype(int)], level), 1.0, data, M)
        assert_close(bound.loss, math.log(3), atol=1e-14)
        assert_close(bound.mean, float(jnp.exp(values) @ values / 12), atol=1e-14)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8])
def test_wasserstein_can_have_the_wrong_sign(m: int) -> None:
    """E sign(p − p̂) = P(p̂ < p) − P(p̂ > p) of m draws of a Bernoulli with mean 0.3; Cramér's 2(p − p̂) has mean 0."""
    p = 0.3
    law = [math.comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m + 1)]
    draws = [jnp.asarray([1.0] * k + [0.0] * (m - k)) for k in range(m + 1)]
    gradient = jax.grad(batch_losses.wasserstein_to_bernoulli)
    expected = sum(q * float(gradient(jnp.asarray(p), draw)) for q, draw in zip(law, draws, strict=True))
    signs = sum(q for k, q in enumerate(law) if k / m < p) - sum(q for k, q in enumerate(law) if k / m > p)
    assert_close(expected, signs, atol=1e-15)
    assert abs(sum(2 * q * (p - k / m) for k, q in enumerate(law))) < 1e-15
    assert abs(expected) > 0.01, "at the true p nothing should push"


@pytest.mark.parametrize(
    ("M", "square", "sign"), [(1, 17, F(-1, 4)), (2, F(13, 2), F(-1, 3)), (3, 3, F(-1, 2)), (4, F(5, 4), -1)]
)
def test_what_is_made_of_an_unbiased_gradient_need_not_be(M: int, square: Any, sign: Any) -> None:
    """E ‖ĝ‖² = ‖ḡ‖² + c_M tr Σ and E sign ĝ of the line fit at (1, 1), over all batches."""
    g = np.array([[0, 0], [-2, -2], [4, 2], [-6, -2]])
    means = np.array([g[list(batch)].mean(axis=0) for batch in itertools.combinations(range(4), M)])
    assert_close(np.mean(np.sum(means**2, axis=1)), float(square), atol=1e-14)
    exact = estimators.exact(WithoutReplacement(M), measured(problems.line_fit()))
    assert_close(float(exact.variance) + 5 / 4, float(square), atol=1e-13)
    assert_close(np.mean(np.sign(means[:, 0])), float(sign), atol=1e-15)


def test_clipping_each_gradient_is_not_clipping_the_mean() -> None:
    g = np.array([[0, 0], [-2, -2], [4, 2], [-6, -2]], float)
    norms = np.linalg.norm(g, axis=1, keepdims=True)
    each = (g / np.maximum(norms, 1)).mean(axis=0)
    assert_close(each, [-0.19034, -0.14403], atol=1e-5)
    assert_close(g.mean(axis=0) / np.linalg.norm(g.mean(axis=0)), [-0.89443, -0.44721], atol=1e-5)
