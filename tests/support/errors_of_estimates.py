"""Error cases of estimates from gradients: the exception, its message, and the call that gives it."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import (
    batch_size,
    designs,
    estimators,
    model_agnostic,
    moments,
    problems,
    surfaces,
    tails,
    variance_reduction,
)
from jaxsgd.noise_scale import noise_scale_law
from tests.support.error_helpers import KEY, LARGE, ONE, PAIR, TWO_BY_TWO, Broken, Case, G, gradients
from tests.support.own_designs import Unequal
from tests.support.registry import gradients_given, linear_loss, measured


class OddCovariance(designs.WithReplacement):
    """A design whose covariance is of a kind that nobody knows."""

    def weight_covariance(self, population_size: int) -> Any:
        return type("Odd", (), {})()


def curve(batch_sizes: Any, **options: Any) -> Any:
    return estimators.variance_curve(G, batch_sizes, **options)


def merged(first: bool, second: bool) -> Any:
    a, b = (jaxsgd.gradient_moments(*problems.line_fit(), per_coordinate=each) for each in (first, second))
    return moments.merge(a, b)


CASES: list[Case] = [
    (
        ValueError,
        "other must hold gradients of the same parameters and of as many examples",
        lambda *_: variance_reduction.exact(designs.WithoutReplacement(1), G, G.take(slice(2))),
    ),
    (
        ValueError,
        "the variance of control under WithoutReplacement(batch_size=4) must be positive, got 0.0",
        lambda *_: variance_reduction.optimal_coefficient(designs.WithoutReplacement(4), G, G),
    ),
    (
        ValueError,
        "population_size must be at most 4096 for the covariance of Inclusion( … got 4098: use estimators.monte_carlo",
        lambda *_: variance_reduction.Inclusion(designs.Systematic(2)).weight_covariance(4098),
    ),
    (
        ValueError,
        "refresh_every must be at least 1, got 0",
        lambda *_: variance_reduction.SVRG(linear_loss, designs.WithoutReplacement(1), 0).init(KEY, ONE, jnp.ones(3)),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: variance_reduction.SAGA(linear_loss, designs.WithoutReplacement(1)).init(0, ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 4",
        lambda *_: variance_reduction.SAG(linear_loss, designs.WithoutReplacement(4)).init(KEY, ONE, jnp.ones(3)),
    ),
    (
        TypeError,
        "design must have a method weights(key, population_size), got 4",
        lambda *_: variance_reduction.SAG(linear_loss, 4).init(KEY, ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "squared gradient norms overflow float32: scale the loss down, or use float64 parameters",
        lambda *_: model_agnostic.random_sign_moments(*LARGE, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "samples must be finite, got nan at (1,) in samples",
        lambda *_: tails.hill_index(jnp.asarray([1.0, np.nan]), num_largest=1),
    ),
    (
        ValueError,
        "samples must be finite, got inf at (0,) in samples",
        lambda *_: tails.stable_index(jnp.asarray([np.inf, 1.0]), block_size=2),
    ),
    (
        ValueError,
        "big_gradient must be finite, got nan at (1,) in big_gradient['a']",
        lambda *_: jaxsgd.two_batch_noise_scale(
            {"a": jnp.ones(2)}, {"a": jnp.asarray([1.0, np.nan])}, small_size=1, big_size=2
        ),
    ),
    (
        TypeError,
        "g must be per-example gradients or their moments, got None of type NoneType",
        lambda *_: estimators.exact(designs.WithReplacement(1), None),
    ),
    (
        TypeError,
        "g must be what per_example_gradients returns, got an array of shape (2, 2)",
        lambda *_: estimators.monte_carlo(designs.WithReplacement(1), TWO_BY_TWO, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: estimators.monte_carlo(designs.WithReplacement(1), G, key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: estimators.monte_carlo_curve(G, key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: model_agnostic.random_sign_moments(*problems.line_fit(), key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.exact(designs.WithoutReplacement(5), G),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.monte_carlo(designs.WithoutReplacement(5), G, key=KEY, num_draws=2),
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
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (2,) and dtype uint32",
        lambda *_: estimators.monte_carlo_curve(G, key=jax.random.PRNGKey(0), num_draws=2),
    ),
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
        "gradients must be finite, got nan for example 1 in params",
        lambda *_: estimators.exact(designs.Poisson([1.0, 1.0]), measured(gradients_given([1.0, np.nan]))),
    ),
    (
        ValueError,
        "probabilities must have one entry for each of the 4 examples, got 2",
        lambda *_: estimators.exact(designs.Poisson([0.5, 0.5]), G),
    ),
    (
        ValueError,
        "empty must be 'zero' or 'skip' where a batch may be empty, got 'error' for Hajek",
        lambda *_: estimators.exact(designs.Hajek([0.5, 0.5], "error"), PAIR),
    ),
    (
        ValueError,
        "batch_size must divide the population size 4, got 3",
        lambda *_: estimators.exact(designs.Systematic(3), G),
    ),
    (
        ValueError,
        "strata must have one entry for each of the 4 examples, got 3",
        lambda *_: estimators.exact(designs.Stratified([0, 1, 1], [1, 1]), G),
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
        "first_draw must be at least 0, got -1",
        lambda *_: estimators.monte_carlo(designs.Blocks(2), G, key=KEY, num_draws=2, first_draw=-1),
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
        "second must have per-coordinate sums if and only if first does",
        lambda *_: merged(True, False),
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
        "inclusion_probabilities must be above 0 and at most 1, or no unbiased estimate exists, got 1.5 at (1,)",
        lambda *_: estimators.horvitz_thompson_variance(PAIR, jnp.asarray([1.0, 1.5]), TWO_BY_TWO, population_size=3),
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
    # The noise scale, batch sizes, tails.
    (
        ValueError,
        "interval must be one of score, fieller, jackknife, got 'normal'",
        lambda *_: jaxsgd.noise_scale(G, interval="normal"),
    ),
    (
        ValueError,
        "confidence_level must be between 0 and 1, got 95",
        lambda *_: jaxsgd.noise_scale(G, confidence_level=95),
    ),
    (
        ValueError,
        "the number of examples must be at most 3, got 4",
        lambda *_: jaxsgd.noise_scale(G, population_size=3),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: jaxsgd.noise_scale(G.take(slice(0, 1))),
    ),
    (
        TypeError,
        "population_size must be an integer, got 2.5",
        lambda *_: jaxsgd.noise_scale(moments.of(G), population_size=2.5),
    ),
    (
        ValueError,
        "big_size must be at least 3, got 2",
        lambda *_: jaxsgd.two_batch_noise_scale(ONE, ONE, small_size=2, big_size=2),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: noise_scale_law(G, 5),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got None of type NoneType",
        lambda *_: jaxsgd.hessian_noise_scale(*problems.line_fit(), num_probes=4),
    ),
    (
        ValueError,
        "relative_noise must be positive, got 0",
        lambda *_: batch_size.critical_batch_size(3.0, relative_noise=0),
    ),
    (
        ValueError,
        "noise_scale must be at least 0, got -5.25",
        lambda *_: batch_size.critical_batch_size(np.array([1.0, -5.25])),
    ),
    (
        ValueError,
        "the number of samples must be a multiple of 3, got 4",
        lambda *_: tails.stable_index(jnp.ones(4), block_size=3),
    ),
    (
        ValueError,
        "num_largest must be at most 3, got 4",
        lambda *_: tails.hill_index(jnp.ones(4), num_largest=4),
    ),
    # Data sets that are samples, descent, surfaces.
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
        "count must be at most 2, the rank of the gradients' covariance, got 3",
        lambda *_: surfaces.principal_directions(G, count=3),
    ),
    (
        ValueError,
        "steps must be a matrix with 2 columns, got shape (3, 1)",
        lambda *_: surfaces.losses_along(linear_loss, jnp.ones(2), jnp.ones((4, 2)), jnp.eye(2), jnp.ones((3, 1))),
    ),
    (
        ValueError,
        "directions must have the shapes of params, but directions has shape (3, 2), not (3, 3)",
        lambda *_: surfaces.losses_along(
            linear_loss, jnp.ones(3), jnp.ones((4, 3)), jnp.ones((3, 2)), jnp.ones((1, 3))
        ),
    ),
]
