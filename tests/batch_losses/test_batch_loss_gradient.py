"""Gradients of batch losses, enumerated and drawn: one answer for every design, and its standard error."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import designs, estimators
from jaxsgd.designs import WithoutReplacement, WithReplacement
from tests.support.over_batches import MAXIMA, F, Result, over, scaled
from tests.support.own_designs import Bernoulli
from tests.support.registry import DESIGNS, EX_B, PROBLEMS, measured, quick
from tests.support.twins import assert_close, flat, z_score


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", quick(["line_fit", "odd_leaves", "equal_rows"], {"line_fit", "equal_rows"}))
def test_mean_losses_are_unbiased_and_have_the_exact_variance(name: str, design: str) -> None:
    """Catches lost multiplicities, a divisor of the number of batches less one, and a variance about the full one."""
    problem, law = PROBLEMS[name](), DESIGNS[design](3)

    def loss(params: Any, batch: Any) -> Any:
        return jnp.mean(jax.vmap(problem.loss_fn, (None, 0))(params, batch))

    result = estimators.batch_loss_gradient(loss, problem.params, problem.data, law)
    exact = estimators.exact(law, measured(problem))
    scale = float(measured(problem).squared_norms().mean())
    assert_close(flat(result.bias), np.zeros(flat(result.bias).shape), atol=1e-13 * scale**0.5)
    assert_close(flat(result.mean), flat(exact.mean), atol=1e-13 * scale**0.5)
    assert_close(result.variance, exact.variance, atol=1e-12 * scale)
    losses = np.asarray(measured(problem).losses())
    factor = float(law.weight_covariance(len(losses)).identity) * len(losses)
    assert_close(result.loss_variance, factor * losses.var(), atol=1e-12 * losses.mean() ** 2)


def test_repeated_draws_are_in_the_batch_twice() -> None:
    """A maximum does not count, a sum over pairs does: all 3² ordered draws, by hand."""
    y = (1.0, 2.0, 5.0)
    for statistic in (jnp.max, lambda b: jnp.sum(b[:, None] * b[None, :]), lambda b: jnp.var(b)):
        result = estimators.batch_loss_gradient(scaled(statistic), jnp.asarray(1.0), jnp.asarray(y), WithReplacement(2))
        drawn = [float(statistic(jnp.asarray(batch))) for batch in itertools.product(y, repeat=2)]
        assert_close(result.mean, np.mean(drawn), atol=1e-13)
        assert_close(result.variance, np.var(drawn), atol=1e-12)


class NeverEmpty(Bernoulli):
    """Bernoulli sampling, given that the batch is not empty."""

    def support(self, population_size: int) -> Any:
        nonempty = [(p, w) for p, w in super().support(population_size) if any(w)]
        total = sum(p for p, _ in nonempty)
        yield from ((p / total, w) for p, w in nonempty)


def test_batches_of_every_size() -> None:
    """Sizes are weighted by their probabilities: not all batches count alike."""
    result = estimators.batch_loss_gradient(
        scaled(jnp.max), jnp.asarray(1.0), jnp.asarray(EX_B, float), NeverEmpty(F(1, 3))
    )
    weights = [math.comb(6, M) * F(1, 3) ** M * F(2, 3) ** (6 - M) for M in range(1, 7)]
    mean = sum(w * m for w, m in zip(weights, MAXIMA, strict=True)) / sum(weights)
    assert_close(result.mean, float(mean), atol=1e-13)


def two_numbers(theta: Any, b: Any) -> Any:
    return theta["a"] * b.max() + theta["b"] ** 2 * b.min()


def drawn(num_draws: int = 4000, seed: int = 0, **options: Any) -> Result:
    """The gradient is (maximum, minimum) of two out of six."""
    return estimators.batch_loss_gradient(
        two_numbers,
        {"a": jnp.asarray(1.0), "b": jnp.asarray(0.5)},
        jnp.asarray(EX_B, float),
        WithoutReplacement(2),
        key=jax.random.key(seed),
        num_draws=num_draws,
        **options,
    )


PAIRS = np.array([(max(pair), min(pair)) for pair in itertools.combinations(EX_B, 2)], float)
NORMS = ((PAIRS - PAIRS.mean(axis=0)) ** 2).sum(axis=1)


def test_draws_agree_with_enumeration() -> None:
    """z-scores with the standard deviations of the law, and standard errors that are close to those."""
    R, result = 4000, drawn()
    loss = PAIRS[:, 0] + PAIRS[:, 1] / 4
    for value, error, truth, deviation in (
        (result.mean["a"], result.mean_standard_error["a"], PAIRS[:, 0].mean(), PAIRS[:, 0].std()),
        (result.mean["b"], result.mean_standard_error["b"], PAIRS[:, 1].mean(), PAIRS[:, 1].std()),
        (result.loss, result.loss_standard_error, loss.mean(), loss.std()),
        (result.variance, result.standard_error, NORMS.mean(), NORMS.std()),
    ):
        assert abs(z_score(float(value), truth, deviation / R**0.5)) < 4
        assert abs(float(error) / (deviation / R**0.5) - 1) < 0.1
    assert_close(result.bias["a"], float(result.mean["a"]) - 17, atol=1e-12)
    assert abs(z_score(float(result.loss_variance), loss.var(), ((loss - loss.mean()) ** 2).std() / R**0.5)) < 4


def test_draws_reject_the_full_data() -> None:
    """The control: without the bias, the same test must fail."""
    result = drawn()
    assert abs(z_score(float(result.mean["a"]), 17.0, PAIRS[:, 0].std() / 4000**0.5)) > 20
    assert abs(z_score(float(result.variance), 2 * NORMS.mean(), NORMS.std() / 4000**0.5)) > 20


def test_sample_variance_has_the_divisor_less_one() -> None:
    """Mean over many runs of three draws: the divisor R would be off by a third, the standard error says by chance."""
    variances = np.array([float(drawn(3, seed).variance) for seed in range(200)])
    standard_error = variances.std(ddof=1) / 200**0.5
    assert abs(z_score(variances.mean(), NORMS.mean(), standard_error)) < 4
    assert abs(z_score(variances.mean() * 2 / 3, NORMS.mean(), standard_error)) > 4


@pytest.mark.parametrize("chunk_size", [1, 3, 15, 16])
def test_chunks_change_nothing(chunk_size: int) -> None:
    for result, chunked in (
        (drawn(15), drawn(15, chunk_size=chunk_size)),
        (over(scaled(jnp.max), 1.0, EX_B, 2), over(scaled(jnp.max), 1.0, EX_B, 2, chunk_size=chunk_size)),
    ):
        for value, other in zip(jax.tree.leaves(result), jax.tree.leaves(chunked), strict=True):
            assert_close(other, value, atol=1e-13 * max(1.0, abs(float(value))))


def test_aux_is_left_out() -> None:
    with_aux = over(lambda t, b: (t * b.max(), b), 1.0, EX_B, 3)
    assert_close(with_aux.mean, float(MAXIMA[2]), atol=1e-13)


def test_float32_stays_float32() -> None:
    result = estimators.batch_loss_gradient(
        scaled(jnp.max), jnp.float32(1.0), jnp.asarray(EX_B, jnp.float32), WithoutReplacement(3)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(result) if hasattr(leaf, "dtype")} == {np.dtype(np.float32)}
    assert_close(result.mean, float(MAXIMA[2]), atol=1e-5)


def test_one_compilation_for_every_size() -> None:
    """The loss is traced for its shape, on all data, and twice on batches; not once per batch."""
    traced = []

    def loss(theta: Any, b: Any) -> Any:
        traced.append(len(b))
        return theta * b.max()

    over(loss, 1.0, EX_B, 2)
    assert sorted(set(traced)) == [2, 6]
    assert len(traced) <= 4, traced


def test_unequal_weights_of_one_batch_are_not_seen() -> None:
    """A design that draws everything, with weights that the batch loss does not see."""

    class Everything(Bernoulli):
        def support_size(self, population_size: int) -> int:
            return 1

        def support(self, population_size: int) -> Any:
            yield F(1), tuple(F(i + 1, 21) for i in range(6))

    result = estimators.batch_loss_gradient(
        scaled(jnp.mean), jnp.asarray(1.0), jnp.asarray(EX_B, float), Everything(F(1))
    )
    assert_close(result.mean, 7.0, atol=1e-14)
    assert isinstance(Everything(F(1)), designs.Design)
