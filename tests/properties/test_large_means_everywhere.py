"""Gradients that are large against their deviations, in float32, through every public function of them.

As in ``test_large_means``, statistics may be off by what rounding takes of the deviations of gradients, ε mean/noise,
and by no multiple of its square; the truth is that of the same numbers in float64.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.properties.test_large_means import EPSILON, LOSSES, example_data
from tests.support.every_statistic import EVERY, Given

LINEAR = {"noise.hessian_noise_scale"}  # of losses without curvature, as those here, 0/0
UNCENTERED = {"monitors.gradient_snr", "monitors.gradient_tests"}  # by norms alone, as they say
# What is less than the deviations by √n by nature: means of half of the examples, or of all draws, and the covariance
# with coefficients that have nothing to do with the gradients.
LESS = {"estimators.merge", "estimators.enumerate_batches", "variance_reduction.optimal_coefficient"}
SPREAD_OF_LOGARITHMS = {"tails.hill_index": 8.0}  # is an eighth and more: the index is the reciprocal of that


def given(name: str, ratio: float, n: int, dtype: Any) -> Given:
    loss_fn, keys, shape = LOSSES[name]
    data = example_data(name, ratio, n)
    batch = {key: jnp.asarray(data[key], None if key == "k" else dtype) for key in keys}
    return Given(loss_fn, jnp.ones(shape, dtype), batch)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree))])


def errors(name: str, single: Given, double: Given) -> dict[int, float]:
    """The error of every power, relative to the largest number; of draws, in a thousandth of 4 standard errors."""
    with jax.enable_x64(False):
        found = {power: flat(tree) for power, tree in EVERY[name].call(single).items()}
    truth = {power: flat(tree) for power, tree in EVERY[name].call(double).items()}
    if EVERY[name].draws:
        (a, s), (b, t) = found[2], truth[2]
        return {2: 0.0 if abs(a - b) < 4 * np.hypot(s, t) else 1.0}
    return {
        power: float(np.abs(found[power] - each).max(initial=0) / max(np.abs(each).max(initial=0), 1e-300))
        for power, each in truth.items()
    }


def limit(name: str, power: int, allowed: float) -> float:
    """Of the error of a power; of what is less than the deviations by nature, with the square of it."""
    first = allowed * max(power, 2) / 2
    return first + (first / 2) ** 2 if name in LESS else first


QUICK = {"estimators.horvitz_thompson_variance": "dense", "estimators.exact diagonal": "dense"}


@pytest.mark.parametrize(
    ("loss", "ratio", "n"),
    [("dense", 1e4, 200)]
    + [
        pytest.param(loss, ratio, 300, marks=pytest.mark.slow)
        for loss in ("dense", "layer", "table")
        for ratio in (1e2, 1e4, 1e6)
    ]
    + [pytest.param("dense", 1e4, 100_000, marks=pytest.mark.slow)],
)
def test_no_digit_cancels_in_any_function(loss: str, ratio: float, n: int) -> None:
    names = [name for name, each in EVERY.items() if n <= each.max_count and name not in LINEAR | UNCENTERED]
    if (loss, ratio, n) == ("dense", 1e4, 200):
        names = list(QUICK)
    with jax.enable_x64(False):
        single = given(loss, ratio, n, jnp.float32)
    double = given(loss, ratio, n, jnp.float64)
    found = {name: errors(name, single, double) for name in names}
    factors = dict.fromkeys(LESS, np.sqrt(n)) | SPREAD_OF_LOGARITHMS
    allowed = {name: 4 * EPSILON * max(ratio, 100) * factors.get(name, 1) for name in found}
    wrong = {
        name: each
        for name, each in found.items()
        if not all(error < limit(name, power, allowed[name]) for power, error in each.items())
    }
    assert not wrong, "\n".join(f"{name}: {each}" for name, each in wrong.items())


@pytest.mark.parametrize("name", ["estimators.exact groups", "estimators.exact windows"])
def test_no_center_is_off_for_all_groups_at_once(name: str) -> None:
    """A mean that is off by ε mean, taken off every group, would add its square: 40 times the variance here."""
    with jax.enable_x64(False):
        single = given("dense", 1e6, 300, jnp.float32)
    assert errors(name, single, given("dense", 1e6, 300, jnp.float64))[2] < 0.1


@pytest.mark.parametrize(
    ("name", "loss", "ratio", "n"),
    [
        ("PerExampleGradients.weighted_deviation", "table", 1e6, 300),
        ("PerExampleGradients.weighted_deviation", "dense", 1e6, 3000),
        pytest.param("estimators.merge", "dense", 1e4, 100_000, marks=pytest.mark.slow),
    ],
)
def test_sums_of_many_large_numbers(name: str, loss: str, ratio: float, n: int) -> None:
    """Rows of a table, added up one by one; means of draws, which differ by less than what is left of their digits."""
    with jax.enable_x64(False):
        single = given(loss, ratio, n, jnp.float32)
    allowed = 4 * EPSILON * ratio * (np.sqrt(n) if name in LESS else 1)
    assert errors(name, single, given(loss, ratio, n, jnp.float64))[2] < allowed
