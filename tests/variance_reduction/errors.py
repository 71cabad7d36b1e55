"""Every way to be refused by ``variance_reduction``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp

from jaxsgd import designs, variance_reduction
from tests.support.error_helpers import KEY, ONE, Case, G
from tests.support.registry import linear_loss

CASES: list[Case] = [
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
]
