"""Every way to be refused by ``estimators``: the exception, its message, and the call that gives it."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd import designs, estimators, moments
from tests.support.error_helpers import KEY, PAIR, TWO_BY_TWO, Broken, Case, G, batch_loss_over, gradients
from tests.support.own_designs import Bernoulli, Unequal
from tests.support.registry import gradients_given, measured


class OddCovariance(designs.WithReplacement):
    """A design whose covariance is of a kind that nobody knows."""

    def weight_covariance(self, population_size: int) -> Any:
        return type("Odd", (), {})()


def curve(batch_sizes: Any, **options: Any) -> Any:
    return estimators.variance_curve(G, batch_sizes, **options)


def tiny(rows: Any) -> Any:
    return measured(gradients_given(rows, jnp.float32))


def thirds(population_size: int) -> Any:
    return ((1.0, (Fraction(1, 3),) + (Fraction(0),) * (population_size - 1)),)


class Two(Broken):
    """Claims two draws."""

    batch_size = 2


def drawn_under_jit(folder: Path, _: Any) -> Any:
    options = {"key": KEY, "num_draws": 2, "checkpoint": folder / "draws.npz"}
    return jax.jit(lambda g: estimators.monte_carlo(designs.WithReplacement(1), g, **options).variance)(G)


CASES: list[Case] = [
    (
        ValueError,
        "fourth powers of gradients leave float32: scale the loss so that norms are near 1, got some near 2.91e-11, or",
        lambda *_: estimators.without_replacement_central_moments(tiny([1e-11, 2e-11, 4e-11, 7e-12]), batch_size=2),
    ),
    (
        ValueError,
        "squares of gradients underflow float32: scale the loss up, or use float64 parameters",
        lambda *_: estimators.batch_loss_gradient(
            lambda p, x: jnp.mean(p * x),
            jnp.ones((), jnp.float32),
            jnp.asarray([1e-20, 3e-20, 2e-20], jnp.float32),
            designs.WithoutReplacement(2),
        ),
    ),
    (ValueError, "checkpoint must be None under jax.jit and where several … got … draws.npz", drawn_under_jit),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: estimators.monte_carlo(designs.WithReplacement(1), G, key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.monte_carlo(designs.WithoutReplacement(5), G, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "first_draw must be at least 0, got -1",
        lambda *_: estimators.monte_carlo(designs.Blocks(2), G, key=KEY, num_draws=2, first_draw=-1),
    ),
    (
        ValueError,
        "first_draw + num_draws must be at most what can be folded into a key, 4294967288, got 4294967303",
        lambda *_: estimators.monte_carlo(designs.Blocks(2), G, key=KEY, num_draws=2, first_draw=2**32 + 5),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: estimators.monte_carlo_curve(G, key=KEY, num_draws=1),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (2,) and dtype uint32",
        lambda *_: estimators.monte_carlo_curve(G, key=jax.random.PRNGKey(0), num_draws=2),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.exact(designs.WithoutReplacement(5), G),
    ),
    # A mean scaled by the first weight alone would be wrong in silence, as would an example that is never seen.
    (
        TypeError,
        "g must be per-example gradients for Unequal(p=Fraction(1, 1)), which does not treat all examples alike",
        lambda *_: estimators.exact(Unequal(Fraction(1)), moments.of(measured(gradients_given([1.0, 2.0, 7.0])))),
    ),
    (
        TypeError,
        "g must be per-example gradients for Blocks(batch_size=2)",
        lambda *_: estimators.exact(designs.Blocks(2), moments.of(G)),
    ),
    (
        TypeError,
        "weight_covariance must be one of the covariances of jaxsgd.designs, got Odd",
        lambda *_: estimators.exact(OddCovariance(2), PAIR),
    ),
    (
        ValueError,
        "probabilities must be positive for examples whose gradients are not zero, got 0 for example 1",
        lambda *_: estimators.exact(designs.Poisson([0.5, 0.0]), PAIR),
    ),
    (
        ValueError,
        "probabilities must be positive for examples whose gradients are not zero, got 0 for example 0",
        lambda *_: estimators.exact(designs.Importance([0.0, 1.0], 1), PAIR),
    ),
    (
        ValueError,
        "the variance under Poisson(probabilities=(1e-30, 1.0)) overflows float32",
        lambda *_: estimators.exact(designs.Poisson([1e-30, 1.0]), measured(gradients_given([1e10, 1.0], jnp.float32))),
    ),
    (
        ValueError,
        "probabilities must have one entry for each of the 4 examples, got 2",
        lambda *_: estimators.exact(designs.Poisson([0.5, 0.5]), G),
    ),
    (
        ValueError,
        "strata must have one entry for each of the 4 examples, got 3",
        lambda *_: estimators.exact(designs.Stratified([0, 1, 1], [1, 1]), G),
    ),
    (
        ValueError,
        "design must be one of with_replacement, without_replacement, got 'poisson'",
        lambda *_: curve(None, design="poisson"),
    ),
    (ValueError, "batch_sizes must be a non-empty vector, got shape (0,)", lambda *_: curve([])),
    (ValueError, "batch_sizes must be a non-empty vector, got shape ()", lambda *_: curve(3)),
    (TypeError, "batch_sizes must be integers, got dtype float64", lambda *_: curve([1.5])),
    (ValueError, "batch_sizes must lie between 1 and the population size 4, got 5", lambda *_: curve([1, 5])),
    (ValueError, "batch_sizes must lie between 1 and the population size 4, got 0", lambda *_: curve([0, 1])),
    (
        ValueError,
        "the support of Broken must be a non-empty vector, got shape (0,)",
        lambda *_: estimators.enumerate_batches(Broken(()), G),
    ),
    (
        ValueError,
        "the support of Broken must be non-negative, got -0.5",
        lambda *_: estimators.enumerate_batches(Broken(((1.5, (1, 0)), (-0.5, (0, 1)))), PAIR),
    ),
    (
        ValueError,
        "the support of Broken must sum to one, got a sum of 0.75",
        lambda *_: estimators.enumerate_batches(Broken(((0.5, (1, 0)), (0.25, (0, 1)))), PAIR),
    ),
    (
        ValueError,
        "max_batches must be at least 6 to enumerate WithoutReplacement(batch_size=2), got 5",
        lambda *_: estimators.enumerate_batches(designs.WithoutReplacement(2), G, max_batches=5),
    ),
    (
        ValueError,
        "the largest norm of a gradient must be positive, got 0.0",
        lambda *_: estimators.optimal_probabilities(measured(gradients_given([0.0, 0.0]))),
    ),
    (
        ValueError,
        "relative_to must be one of with_replacement, without_replacement, got 'srs'",
        lambda *_: estimators.design_effect(designs.Blocks(2), G, relative_to="srs"),
    ),
    (
        ValueError,
        "second must be an estimate from monte_carlo, got one without draws",
        lambda *_: estimators.merge(
            estimators.monte_carlo(designs.Blocks(2), G, key=KEY, num_draws=2), estimators.exact(designs.Blocks(2), G)
        ),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: estimators.with_replacement_variance(gradients(batch=(1.0,))),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: estimators.without_replacement_variance(gradients(batch=(1.0,)), population_size=3),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 4",
        lambda *_: estimators.without_replacement_variance(G, population_size=3),
    ),
    (
        ValueError,
        "joint_inclusion_probabilities must have shape (2, 2), got (2, 3)",
        lambda *_: estimators.horvitz_thompson_variance(PAIR, jnp.ones(2), jnp.ones((2, 3)), population_size=3),
    ),
    (
        ValueError,
        "inclusion_probabilities must be above 0 and at most 1, or no unbiased estimate exists, got 1.5 at (1,)",
        lambda *_: estimators.horvitz_thompson_variance(PAIR, jnp.asarray([1.0, 1.5]), TWO_BY_TWO, population_size=3),
    ),
    (
        ValueError,
        "inclusion_probabilities must have shape (2,), got (3,)",
        lambda *_: estimators.sen_yates_grundy_variance(PAIR, jnp.ones(3), TWO_BY_TWO, population_size=3),
    ),
    (
        ValueError,
        "joint_inclusion_probabilities must be above 0 and at most 1, … estimate exists, got 0.0 at (0, 1)",
        lambda *_: estimators.sen_yates_grundy_variance(PAIR, jnp.ones(2), jnp.eye(2), population_size=3),
    ),
    (
        ValueError,
        "the number of examples must be at least 4, got 2",
        lambda *_: estimators.without_replacement_central_moments(PAIR, batch_size=1),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.without_replacement_central_moments(G, batch_size=5),
    ),
    (
        ValueError,
        "max_batches must be at least 486 to enumerate WithoutReplacement(batch_size=2), got 485",
        lambda *_: estimators.enumerate_data_sets(designs.WithoutReplacement(2), [0, 1, 5], 4, max_batches=485),
    ),
    (
        ValueError,
        "probabilities must have shape (2,), got (1,)",
        lambda *_: estimators.enumerate_data_sets(designs.WithReplacement(1), [0, 1], 2, probabilities=[Fraction(1)]),
    ),
    (
        ValueError,
        "max_batches must be at least 6 to enumerate WithoutReplacement(batch_size=2), got 5",
        lambda *_: estimators.descent_probability(designs.WithoutReplacement(2), G, max_batches=5),
    ),
    (
        ValueError,
        "key must be None unless batches are drawn: give num_draws as well",
        lambda *_: batch_loss_over(key=KEY),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got None", lambda *_: batch_loss_over(num_draws=5)),
    (ValueError, "num_draws must be at least 2, got 1", lambda *_: batch_loss_over(key=KEY, num_draws=1)),
    (
        TypeError,
        "design must have a method indices(key, population_size), got Bernoulli",
        lambda *_: batch_loss_over(Bernoulli(Fraction(1, 2)), key=KEY, num_draws=3),
    ),
    (
        ValueError,
        "max_batches must be at least 3 to enumerate WithoutReplacement(batch_size=2), got 2",
        lambda *_: batch_loss_over(max_batches=2),
    ),
    (
        ValueError,
        "design must have no empty batch, on which a batch loss has no value, got Bernoulli",
        lambda *_: batch_loss_over(Bernoulli(Fraction(1, 2))),
    ),
    (
        ValueError,
        "design must have weights n/2 that tell how often an example was drawn, got Broken",
        lambda *_: batch_loss_over(Two(thirds(3))),
    ),
    (
        ValueError,
        "the support of Broken must sum to one, got a sum of 0.5",
        lambda *_: batch_loss_over(Broken(((Fraction(1, 2), (1, 0, 0)),))),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, with a finite gradient, on every batch and on all data",
        lambda *_: batch_loss_over(loss_fn=lambda t, x: jnp.log(t * jnp.var(x)), design=designs.WithReplacement(2)),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 5",
        lambda *_: batch_loss_over(designs.WithoutReplacement(5)),
    ),
]
