"""A data set that is itself a sample: the laws against every data set and every batch."""

import itertools
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest

from jaxsgd import designs, estimators
from tests.support.registry import gradients_given, measured
from tests.support.twins import assert_close

F = Fraction
VALUES, CHANCES = (0, 1, 5), (F(1, 2), F(1, 3), F(1, 6))
MEAN = F(1, 3) + F(5, 6)
VARIANCE = sum(p * (v - MEAN) ** 2 for p, v in zip(CHANCES, VALUES, strict=True))

DESIGNS: dict[str, Any] = {
    "without": designs.WithoutReplacement(2),
    "full": designs.WithoutReplacement(4),
    "with": designs.WithReplacement(3),
    "bernoulli": designs.Bernoulli(F(1, 3)),
    "sum": designs.WithoutReplacement(3, scale="sum"),
    "importance": designs.Importance([F(1, 2), F(1, 4), F(1, 8), F(1, 8)], batch_size=2),
    "poisson": designs.Poisson([F(1, 2), F(1, 3), F(1, 4), F(1)]),
    "stratified": designs.Stratified([0, 0, 0, 1], [2, 1]),
    "blocks": designs.Blocks(2),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_factors_equal_enumeration_of_data_sets_and_batches(name: str) -> None:
    """Catches a term in the mean left out (designs whose weights do not sum to one) and unequal mean weights."""
    design = DESIGNS[name]
    truth = estimators.enumerate_data_sets(design, VALUES, 4, probabilities=CHANCES)
    factors = estimators.population_factors(design, 4)
    total_weight = float(design.mean_weights(4).sum())
    assert_close(float(truth.mean), total_weight * float(MEAN), atol=1e-14 * 10)
    given = factors.given_data * float(VARIANCE) + factors.of_mean * float(MEAN) ** 2
    assert_close(given, float(truth.given_data), atol=1e-13)
    assert_close(factors.of_data * float(VARIANCE), float(truth.of_data), atol=1e-13)
    assert_close(given + factors.of_data * float(VARIANCE), float(truth.total), atol=1e-13)
    assert_close(factors.total, factors.given_data + factors.of_data, atol=0)


def test_enumeration_equals_a_loop_over_ordered_draws() -> None:
    """The oracle's own oracle: ordered batches in plain integers, without weights."""
    outcomes = [
        (F(1, 27 * 6), F(sum(batch), 2), F(sum(data), 3))
        for data in itertools.product(VALUES, repeat=3)
        for batch in itertools.permutations(data, 2)
    ]
    mean = sum(p * value for p, value, _ in outcomes)
    drawn = estimators.enumerate_data_sets(designs.WithoutReplacement(2), VALUES, 3)
    assert drawn.mean == mean == 2
    assert drawn.total == sum(p * (value - mean) ** 2 for p, value, _ in outcomes) == F(14, 3) / 2
    assert drawn.given_data == sum(p * (value - center) ** 2 for p, value, center in outcomes)
    assert drawn.of_data == sum(p * (center - mean) ** 2 for p, _, center in outcomes) == F(14, 3) / 3


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("design", [designs.WithoutReplacement, designs.WithReplacement])
def test_noise_of_an_examples_own_has_the_same_factor(design: Any, batch_size: int) -> None:
    """Every batch and every sign of the noise ±s_i; catches a W̄/N, and a factor c_M for the noise too."""
    g, scale = np.array([F(1), F(2), F(6)], dtype=object), (F(1), F(3), F(2))
    total = F(0)
    for p, w in design(batch_size).support(3):
        for signs in itertools.product((-1, 1), repeat=3):
            noisy = sum(wi * (gi + si * ei) for wi, gi, si, ei in zip(w, g, scale, signs, strict=True))
            total += p / 8 * (noisy - 3) ** 2
    own = float(sum(s**2 for s in scale) / 3)
    without_noise = g @ design(batch_size).weight_covariance(3).entries(3) @ g
    factor = estimators.population_factors(design(batch_size), 3).total
    assert_close(float(total), float(without_noise) + factor * own, atol=1e-13)


def test_descent_probability_on_batches_with_a_tie() -> None:
    """g = (3, −1, −1): ḡ = 1/3; of the pairs (2, 2, −2) two descend; a design of its own probabilities."""
    g = measured(gradients_given([3.0, -1.0, -1.0]))
    found = [estimators.descent_probability(designs.WithoutReplacement(M), g) for M in (1, 2, 3)]
    assert found == [F(1, 3), F(2, 3), 1]
    assert estimators.descent_probability(designs.WithReplacement(2), g) == F(5, 9)
    tied = measured(gradients_given([[1.0, 0.0], [0.0, 2.0], [1.0, -2.0], [2.0, 0.0]]))  # ⟨g_i, ḡ⟩ = 1, 0, 1, 2
    assert estimators.descent_probability(designs.WithoutReplacement(1), tied) == F(3, 4)


def test_factors_of_a_large_data_set_form_no_matrix() -> None:
    """Catches N × N numbers where two are enough: 10¹² of them would not fit."""
    factors = estimators.population_factors(designs.WithReplacement(10), 1_000_000)
    assert_close(factors.total, 1e-6 + (1e6 - 1) / 1e7, atol=1e-16)
    assert jax.numpy.asarray(factors.of_mean) == 0
