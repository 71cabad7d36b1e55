"""Losses times a power of two: every statistic is that power of what it was, bit for bit, or refused by name.

In float32, where squares leave the range from 1e19 on and below 1e-17, and products of four gradients from 1e9 on.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.every_statistic import (
    EVERY,
    MODULES,
    MODULES_WITHOUT_GRADIENTS,
    NOT_OF_GRADIENTS,
    Given,
    public_functions,
    public_modules,
)

LIMITS = np.finfo(np.float32)
N = 16
REFUSED = "underflow float32|overflow float32|leave float32"
ARRAYS = {name for name in EVERY if name.startswith("PerExampleGradients.")} | {"kernels.centered_gram"}
NOTICE = ".*fourth power of gradients that float32 does not hold"


def loss_fn(params: Any, example: Any) -> jax.Array:
    """Of a curvature, and a scale that is data."""
    return example["unit"] * (jnp.sum(params * example["x"]) + 0.5 * jnp.sum(params**2 * example["c"]))


def given(exponent: int) -> Given:
    r = np.random.default_rng(0)
    numbers = {"x": r.normal(1, 1, size=(N, 3)), "c": r.exponential(size=(N, 3)), "unit": np.full(N, 2.0**exponent)}
    data = {name: jnp.asarray(each, jnp.float32) for name, each in numbers.items()}
    return Given(loss_fn, jnp.asarray([0.5, -0.25, 1.0], jnp.float32), data)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def differences(name: str, exponent: int, ordinary: dict[int, Any]) -> list[str]:
    """What is neither the same number in another unit, nor refused, nor beyond the range."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", NOTICE)
            found = EVERY[name].call(given(exponent))
    except ValueError as error:
        return [] if abs(exponent) >= 30 and any(text in str(error) for text in REFUSED.split("|")) else [str(error)]
    wrong = []
    for power, tree in found.items():
        expected, values = np.ldexp(flat(ordinary[power]), power * exponent), flat(tree)
        size = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        under_jit = name.startswith("monitors") and exponent < -58
        if power == 4 or under_jit or (name in ARRAYS and power and not LIMITS.tiny / LIMITS.eps < size < LIMITS.max):
            continue  # with a notice, or as any array of JAX
        few = 4 * LIMITS.eps * size if exponent < -45 else 0  # products of what is small, next to the largest
        same = np.isclose(values, expected, rtol=0, atol=few, equal_nan=True)
        if not (same | (np.isnan(values) & name.startswith("monitors"))).all():
            wrong.append(f"{name} 2**{exponent} power {power}: {values[~same][:3]} for {expected[~same][:3]}")
    return wrong


def test_the_table_is_whole() -> None:
    """Every public function is in it, or among those that take no gradients, with the reason."""
    names = {name.split(" ")[0] for name in EVERY}
    assert names | set(NOT_OF_GRADIENTS) == public_functions()
    assert not names & set(NOT_OF_GRADIENTS)
    assert public_modules() == {*MODULES, *MODULES_WITHOUT_GRADIENTS}
    assert all(NOT_OF_GRADIENTS.values())


QUICK = {"estimators.monte_carlo", "estimators.without_replacement_central_moments"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_the_unit_of_the_loss_changes_no_number(name: str) -> None:
    exponents = (
        (-60, -34, 31, 60) if name in QUICK else (-70, -66, -63, -60, -55, -50, -34, -20, 20, 31, 50, 59, 64, 70)
    )
    with jax.enable_x64(False):
        ordinary = EVERY[name].call(given(0))
        wrong = [each for exponent in exponents for each in differences(name, exponent, ordinary)]
    assert not wrong, "\n".join(wrong)
