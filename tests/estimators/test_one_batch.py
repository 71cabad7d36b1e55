"""Variance estimates from one batch: their mean over every batch that can be drawn is the variance."""

import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import PerExampleGradients, estimators
from jaxsgd.designs import WithoutReplacement, WithReplacement
from tests.support.registry import EX_B, PROBLEMS, gradients_given, measured
from tests.support.twins import assert_close, flat, loop_of

F = Fraction
SMALL = ["line_fit", "line_fit_at_optimum", "scalar_gradients", "odd_leaves", "repeated_rows", "equal_rows"]
every_problem = pytest.mark.parametrize("name", SMALL)


def rows_of(g: PerExampleGradients, rows: Any) -> PerExampleGradients:
    """The gradients of some examples, repeated where ``rows`` repeats."""
    return g.take(np.asarray(rows))


@pytest.mark.parametrize("M", [2, 3])
@every_problem
def test_without_replacement_is_unbiased(name: str, M: int) -> None:
    """Catches Σ for S², and a missing finite-population correction."""
    g = measured(PROBLEMS[name]())
    estimates = [
        float(estimators.without_replacement_variance(rows_of(g, batch), population_size=g.count))
        for batch in itertools.combinations(range(g.count), M)
    ]
    truth = float(estimators.exact(WithoutReplacement(M), g).variance)
    assert_close(np.mean(estimates), truth, atol=1e-12 * loop_of(name).scale ** 2)


@pytest.mark.parametrize("M", [2, 3])
@every_problem
def test_with_replacement_is_unbiased(name: str, M: int) -> None:
    """Over all multisets with their multinomial probabilities."""
    g = measured(PROBLEMS[name]())
    mean = 0.0
    for batch in itertools.combinations_with_replacement(range(g.count), M):
        orders = math.factorial(M) / math.prod(math.factorial(batch.count(i)) for i in set(batch))
        mean += orders / g.count**M * float(estimators.with_replacement_variance(rows_of(g, batch)))
    truth = float(estimators.exact(WithReplacement(M), g).variance)
    assert_close(mean, truth, atol=1e-12 * loop_of(name).scale ** 2)


Law = dict[tuple[int, ...], Fraction]  # the examples of a batch -> probability


def rejective(N: int, M: int) -> Law:
    """Conditional Poisson sampling with odds 1, 2, ..., N: unequal probabilities, fixed size."""
    products = {s: F(math.prod(i + 1 for i in s)) for s in itertools.combinations(range(N), M)}
    return {s: p / sum(products.values()) for s, p in products.items()}


def poisson(N: int) -> Law:
    """Independent inclusions with probabilities (i + 1)/(N + 1): batches of every size, the empty one too."""
    law = {}
    for bits in itertools.product((0, 1), repeat=N):
        p = math.prod(F(i + 1, N + 1) if bit else F(N - i, N + 1) for i, bit in enumerate(bits))
        law[tuple(i for i, bit in enumerate(bits) if bit)] = F(p)
    return law


def inclusion(law: Law, N: int) -> tuple[list[Fraction], list[list[Fraction]]]:
    joint = [[sum((p for s, p in law.items() if i in s and j in s), F(0)) for j in range(N)] for i in range(N)]
    return [joint[i][i] for i in range(N)], joint


def variance(law: Law, gradients: np.ndarray) -> float:
    """tr Cov of (1/N) Σ g_i/π_i, from every batch."""
    N = len(gradients)
    first, _ = inclusion(law, N)
    batches = np.array([sum((gradients[i] / float(first[i]) for i in s), 0 * gradients[0]) / N for s in law])
    probabilities = np.array([float(p) for p in law.values()])
    return float(probabilities @ ((batches - gradients.mean(axis=0)) ** 2).sum(axis=1))


def expected_estimate(estimate: Any, law: Law, g: PerExampleGradients) -> float:
    first, joint = (np.array(p, float) for p in inclusion(law, g.count))
    mean = 0.0
    for s, p in law.items():
        if s:
            pairs = joint[np.ix_(s, s)] * (1 - np.eye(len(s)))  # the diagonal is not read
            value = estimate(rows_of(g, s), jnp.asarray(first[list(s)]), jnp.asarray(pairs), population_size=g.count)
            mean += float(p) * float(value)
    return mean


@pytest.mark.parametrize("name", ["line_fit", "scalar_gradients", "odd_leaves"])
@pytest.mark.parametrize("M", [2, 3])
def test_unequal_probabilities_of_fixed_size(name: str, M: int) -> None:
    """Catches π_iπ_j for π_ij, a pair counted once or twice, and a sum over examples for a mean."""
    g, gradients = measured(PROBLEMS[name]()), loop_of(name).gradients
    law = rejective(g.count, M)
    truth = variance(law, gradients)
    for estimate in (estimators.horvitz_thompson_variance, estimators.sen_yates_grundy_variance):
        assert_close(expected_estimate(estimate, law, g), truth, atol=1e-11 * loop_of(name).scale ** 2)


def test_batches_of_random_size() -> None:
    """Horvitz and Thompson's is unbiased for any design; Sen, Yates and Grundy's needs a fixed size: the control."""
    g, gradients = measured(PROBLEMS["line_fit"]()), loop_of("line_fit").gradients
    truth = variance(poisson(4), gradients)
    assert_close(expected_estimate(estimators.horvitz_thompson_variance, poisson(4), g), truth, atol=1e-12)
    assert abs(expected_estimate(estimators.sen_yates_grundy_variance, poisson(4), g) - truth) > 0.1


def test_equal_probabilities_give_the_simple_estimate() -> None:
    """Without replacement, the difference form is (1 − M/N) s²/M for every batch."""
    g = measured(PROBLEMS["tanh_network"]())
    first, joint = (
        np.array(p, float) for p in inclusion({s: F(1, 35) for s in itertools.combinations(range(7), 3)}, 7)
    )
    for s in itertools.combinations(range(7), 3):
        pairs = jnp.asarray(joint[np.ix_(s, s)])
        difference = estimators.sen_yates_grundy_variance(
            rows_of(g, s), jnp.asarray(first[list(s)]), pairs, population_size=7
        )
        simple = estimators.without_replacement_variance(rows_of(g, s), population_size=7)
        assert_close(difference, simple, atol=1e-13 * loop_of("tanh_network").scale ** 2)


THIRD = (F(116), F(58, 5), F(0), F(-29, 20), F(-116, 125), F(0))
FOURTH = (F(2043), F(3303, 10), F(1241, 15), F(3303, 160), F(2043, 625), F(0))


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6])
def test_higher_moments_of_scalars(M: int) -> None:
    moments = estimators.without_replacement_central_moments(measured(gradients_given(EX_B)), batch_size=M)
    assert_close(moments.third, float(THIRD[M - 1]), atol=1e-12)
    assert_close(moments.fourth, float(FOURTH[M - 1]), atol=1e-11)


@pytest.mark.parametrize("M", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["line_fit", "odd_leaves", "tanh_network"])
def test_higher_moments_are_those_of_all_batches(name: str, M: int) -> None:
    gradients, g = loop_of(name).gradients, measured(PROBLEMS[name]())
    errors = np.array(
        [gradients[list(s)].mean(axis=0) for s in itertools.combinations(range(g.count), M)]
    ) - gradients.mean(axis=0)
    moments = estimators.without_replacement_central_moments(g, batch_size=M)
    scale = np.abs(gradients).max()
    assert_close(flat(moments.third), (errors**3).mean(axis=0), atol=1e-13 * scale**3)
    assert_close(flat(moments.fourth), (errors**4).mean(axis=0), atol=1e-13 * scale**4)
    assert jax.tree.structure(moments.third) == jax.tree.structure(PROBLEMS[name]().params)
