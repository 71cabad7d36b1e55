"""A stated standard error covers: 4 of them hold the truth, for designs that draw few values too, and are not too many.

The truth is ``estimators.exact``, which other tests hold against enumeration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import designs, estimators, model_agnostic
from tests.support.registry import LAWS, gradients_given, measured, quick, skewed

N = 8
ROWS = skewed(N, 3) + np.asarray([[0.0, 0.5, -2.0]])


def drawn(design, num_draws: int, num_keys: int):
    """Estimates from many keys, each with its standard error, and the truth."""
    g = measured(gradients_given(ROWS))

    def estimate(key):
        found = estimators.monte_carlo(design, g, key=key, num_draws=num_draws, chunk_size=num_draws)
        return found.variance, found.standard_error

    keys = jax.random.split(jax.random.key(7), num_keys)
    variance, error = jax.jit(lambda keys: jax.lax.map(estimate, keys, batch_size=25))(keys)
    return np.asarray(variance), np.asarray(error), float(estimators.exact(design, g).variance)


@pytest.mark.parametrize("design", [designs.Blocks(4), designs.Groups([0, 0, 0, 1, 1, 1, 0, 1])])
def test_two_batches_of_opposite_errors(design) -> None:
    """All ‖e‖² are equal: their standard deviation is 0, and the estimate is not exact."""
    variance, error, exact = drawn(design, 64, 1000)
    assert np.abs(variance / exact - 1).max() > 0.05
    misses = int(np.sum(np.abs(variance - exact) >= 4 * error))
    assert misses <= 1, f"{misses} of 1000 keys are off by 4 standard errors"
    assert error.max() < 8 * exact / 64, "of the order 1/R"


@pytest.mark.slow
@pytest.mark.parametrize(("num_draws", "most"), [(4096, 1), (1000, 8)])  # as docs/reliability.md says
@pytest.mark.parametrize("name", quick(LAWS, {}))
def test_four_standard_errors_hold_the_truth(name: str, num_draws: int, most: int) -> None:
    variance, error, exact = drawn(LAWS[name](N), num_draws, 1000)
    misses = int(np.sum(np.abs(variance - exact) >= 4 * error + 1e-14 * exact))
    assert misses <= most, f"{misses} of 1000 keys are off by 4 standard errors"


def test_other_estimates_of_variances_are_not_exact_either() -> None:
    """Of two draws whose squared errors are equal by chance, the sample standard deviation is 0."""
    key = jax.random.key(0)
    design = designs.WithoutReplacement(1)
    batch_loss = estimators.batch_loss_gradient(
        lambda p, batch: jnp.mean(batch @ p), jnp.ones(3), jnp.asarray(ROWS[:2]), design, key=key, num_draws=64
    )
    exact = float(estimators.exact(design, measured(gradients_given(ROWS[:2]))).variance)
    of_products = np.sqrt(12.5 / (64 * 63)) * exact  # Cov has rank one
    assert 0.99 * of_products < float(batch_loss.standard_error) < 4 * of_products
    assert abs(float(batch_loss.variance) - exact) < 4 * float(batch_loss.standard_error)

    def misses(key):
        problem = gradients_given(ROWS[:2])
        found = model_agnostic.random_sign_moments(*problem, key=key, num_draws=4)
        return jnp.abs(found.trace_covariance - true) >= 4 * found.trace_standard_error

    true = ROWS[:2].var(axis=0).sum()
    missed = int(jax.jit(lambda keys: jax.lax.map(misses, keys))(jax.random.split(key, 1000)).sum())
    assert missed < 95, "one in 16 of 4 draws of ±(g₁ − g₂) or 0 is all 0, which nothing tells; another is never 0"


@pytest.mark.parametrize("num_draws", [512])
def test_they_are_no_larger_than_they_have_to_be(num_draws: int) -> None:
    variance, error, exact = drawn(designs.WithoutReplacement(3), num_draws, 500)
    real = np.sqrt(np.mean((variance - exact) ** 2))
    ratio = np.sqrt(np.mean(error**2)) / real
    assert 0.9 < ratio < 1.15, f"stated errors are {ratio:.2f} times the real ones"


def test_draws_are_numbered_up_to_what_a_key_holds() -> None:
    """Draw 2³² + 5 would be draw 5 again, and without x64 draw 2³¹ + 5 is no negative number."""
    g, key, design = measured(gradients_given(ROWS)), jax.random.key(0), designs.WithoutReplacement(2)
    first, late = (
        estimators.monte_carlo(design, g, key=key, num_draws=4, first_draw=start) for start in (5, 2**32 - 20)
    )
    assert float(first.variance) != float(late.variance)
    with jax.enable_x64(False):
        single = measured(gradients_given(ROWS, jnp.float32))
        narrow = estimators.monte_carlo(design, single, key=key, num_draws=4, first_draw=2**32 - 20)
    assert np.isclose(float(narrow.variance), float(late.variance), rtol=1e-4)
