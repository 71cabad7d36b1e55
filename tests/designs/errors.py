"""Every way to be refused by ``designs``: the exception, its message, and the call that gives it."""

import numpy as np

from jaxsgd import designs, estimators
from tests.support.error_helpers import KEY, PAIR, Case, G

CASES: list[Case] = [
    (
        ValueError,
        "batch_size must be at most 2147483647, got 1000000000000000000000000000000",
        lambda *_: designs.WithReplacement(10**30).weights(KEY, 4),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: designs.WithReplacement(1).weights(0, 4),
    ),
    (
        ValueError,
        "empty must be 'zero' or 'skip' where a batch may be empty, got 'error' for Bernoulli(probability=0.5, "
        "empty='error'), whose batches of 3 examples are empty with probability 0.125",
        lambda *_: designs.Bernoulli(0.5, empty="error").weights(KEY, 3),
    ),
    (ValueError, "batch_size must be at least 1, got -1", lambda *_: designs.Reshuffling(-1)),
    (ValueError, "batch_size must be at least 1, got 0", lambda *_: designs.WithReplacement(0)),
    (ValueError, "batch_size must be at least 1, got -3", lambda *_: designs.WithoutReplacement(-3)),
    (TypeError, "batch_size must be an integer, got 2.5", lambda *_: designs.WithReplacement(2.5)),
    (TypeError, "batch_size must be an integer, got True", lambda *_: designs.WithReplacement(True)),
    (TypeError, "batch_size must be an integer, got array([2])", lambda *_: designs.WithReplacement(np.array([2]))),
    (TypeError, "batch_size must be an integer, got array(2.)", lambda *_: designs.WithReplacement(np.array(2.0))),
    (ValueError, "scale must be one of mean, sum, total, got 'max'", lambda *_: designs.Blocks(2, scale="max")),
    (ValueError, "population_size must be at least 1, got 0", lambda *_: designs.WithReplacement(1).support_size(0)),
    (
        ValueError,
        "batch_size must be at most the population size 2, got 3",
        lambda *_: designs.ConditionalPoisson([1, 1], 3).support_size(2),
    ),
    (
        ValueError,
        "normalize must be one of expected, realized, got 'm'",
        lambda *_: designs.Bernoulli(0.5, normalize="m"),
    ),
    (ValueError, "probability must be positive, got 0", lambda *_: designs.Bernoulli(0)),
    (ValueError, "probability must lie between 0 and 1, got 1.5", lambda *_: designs.Bernoulli(1.5)),
    (ValueError, "probability must be positive, got nan", lambda *_: designs.Bernoulli(np.nan)),
    (ValueError, "empty must be one of zero, skip, error, got 'nan'", lambda *_: designs.Hajek([0.5], empty="nan")),
    (
        ValueError,
        "probabilities must be a non-empty vector, got shape (1, 2)",
        lambda *_: designs.Hajek(np.ones((1, 2))),
    ),
    (ValueError, "probabilities must lie between 0 and 1, got -0.5", lambda *_: designs.Poisson([0.5, -0.5])),
    (ValueError, "probabilities must be finite, got nan", lambda *_: designs.Poisson([0.5, np.nan])),
    (ValueError, "the largest of probabilities must be positive, got 0.0", lambda *_: designs.Poisson([0.0, 0.0])),
    (ValueError, "probabilities must sum to one, got a sum of 0.75", lambda *_: designs.Importance([0.5, 0.25], 2)),
    (
        ValueError,
        "population_size must be at most 4096 for the covariance of Hajek(probabilities=(0.5, ..., 0.5)), "
        "which has no structure, got 5000: use estimators.monte_carlo",
        lambda *_: designs.Hajek([0.5] * 5000).weight_covariance(5000),
    ),
    (
        ValueError,
        "population_size must be at most 4096 for the covariance of ConditionalPoisson",
        lambda *_: designs.ConditionalPoisson([1.0] * 5000, 2).weight_covariance(5000),
    ),
    (ValueError, "odds must be positive, got 0", lambda *_: designs.ConditionalPoisson([1, 0], 1)),
    (ValueError, "strata must be a non-empty vector of labels, got shape (0,)", lambda *_: designs.Stratified([], [])),
    (TypeError, "strata must be integers, got dtype float64", lambda *_: designs.Stratified([0.0, 1.0], [1, 1])),
    (
        ValueError,
        "batch_sizes must have one entry for each of the 2 strata, got 1",
        lambda *_: designs.Stratified([0, 1], [1]),
    ),
    (ValueError, "batch_sizes must be at least 1, got 0", lambda *_: designs.Stratified([0, 1], [1, 0])),
    (
        ValueError,
        "batch_sizes must be at most 2, the size of stratum 1, got 3",
        lambda *_: designs.Stratified([0, 1, 1], [1, 3]),
    ),
    (ValueError, "assignment must be labels 0, 1, 2, ..., got -1", lambda *_: designs.Groups([0, -1])),
    (
        ValueError,
        "assignment must use every label from 0 to its largest, but none is 1",
        lambda *_: designs.Groups([0, 2]),
    ),
    (
        ValueError,
        "batch_size must be at least 2, got 1",
        lambda *_: designs.Stratified.proportional([0, 1, 1], batch_size=1),
    ),
    (
        ValueError,
        "deviations must be non-negative, got -1.0",
        lambda *_: designs.Stratified.neyman([0, 1], [1.0, -1.0], 2),
    ),
    (
        ValueError,
        "the number of batches of an epoch must be at least 2, got 1",
        lambda *_: designs.Reshuffling(3).cross_covariance(5),
    ),
    (
        ValueError,
        "by must be one of batch, example, got 'epoch'",
        lambda *_: designs.Reshuffling(3).epoch_mean_covariance(5, by="epoch"),
    ),
    (ValueError, "population_size must be at least 1, got 0", lambda *_: designs.batches(designs.Systematic(2), 0)),
    (TypeError, "design must have a method weights(key, population_size), got 3", lambda *_: designs.batches(3, 4)),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: designs.batches(designs.Reshuffling(5), 4),
    ),
    # Through those who call it.
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
]
