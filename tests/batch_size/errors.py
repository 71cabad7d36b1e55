"""Every way to be refused by ``batch_size``: the exception, its message, and the call that gives it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxsgd import batch_size
from tests.support.error_helpers import KEY, Case, G


def bowl(params: Any, example: Any) -> Any:
    return (params - example) ** 2


def measured(target: float = 0.5, **options: Any) -> Any:
    options = {"learning_rates": (0.1, 0.2, 0.4), "batch_sizes": (1, 2, 4), "num_runs": 1, "max_steps": 40} | options
    return batch_size.measure_critical(bowl, jnp.ones(()), jnp.zeros(4), optax.sgd, KEY, target=target, **options)


def branched(**options: Any) -> Any:
    options = {"batch_size": 1, "learning_rate": 0.1, "num_examples": 64, "tolerance": 0.1, "num_runs": 2} | options
    return batch_size.branched_critical(bowl, jnp.ones(()), jnp.zeros(4), optax.sgd, KEY, **options)


def unaffected(_rate: float) -> Any:
    """An optimizer for which no learning rate is better than another, but for smaller ones."""
    return optax.scale_by_schedule(lambda step: -0.01 / (1 + 100 * _rate))


def tradeoff(batch_sizes: Any = (1, 2, 4), steps: Any = (8.0, 5.0, 3.5), **options: Any) -> Any:
    return batch_size.fit_tradeoff(batch_sizes, steps, **options)


CASES: list[Case] = [
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
    (ValueError, "batch_size must be positive, got -1.0", lambda *_: batch_size.relative_cost(8.0, -1)),
    (ValueError, "batch_size must be positive, got nan", lambda *_: batch_size.relative_cost(8.0, np.nan)),
    (ValueError, "scale must be positive, got 0.0", lambda *_: batch_size.adascale_gain(8.0, 0)),
    (
        ValueError,
        "trace_covariance must be at least 0, got nan",
        lambda *_: batch_size.cabs_batch_size(np.nan, 1.0, 0.1),
    ),
    (ValueError, "mean_loss must be positive, got 0.0", lambda *_: batch_size.cabs_batch_size(1.0, 0.0, 0.1)),
    (ValueError, "learning_rate must be positive, got -0.1", lambda *_: batch_size.cabs_batch_size(1.0, 1.0, -0.1)),
    (ValueError, "theta must be positive, got 0", lambda *_: batch_size.gradient_tests(G).batch_size(theta=0)),
    (
        ValueError,
        "theta must be positive, got nan",
        lambda *_: batch_size.gradient_tests(G).norm_batch_size(theta=np.nan),
    ),
    (ValueError, "steps must be a non-empty vector, got shape (0,)", lambda *_: tradeoff((), ())),
    (ValueError, "steps must be finite, got nan", lambda *_: tradeoff(steps=(8.0, np.nan, 3.5))),
    (ValueError, "batch_sizes must have shape (3,), got (2,)", lambda *_: tradeoff((1, 2))),
    (ValueError, "batch_sizes must be positive, got 0.0", lambda *_: tradeoff((0, 1, 2))),
    (ValueError, "steps must be positive, got -1.0", lambda *_: tradeoff(steps=(8.0, 5.0, -1.0))),
    (
        ValueError,
        "batch_sizes must hold at least two different numbers, got [2.0, 2.0, 2.0]",
        lambda *_: tradeoff((2, 2, 2)),
    ),
    (ValueError, "relative_errors must have shape (3,), got (1,)", lambda *_: tradeoff(relative_errors=[0.1])),
    (ValueError, "relative_errors must be positive, got 0.0", lambda *_: tradeoff(relative_errors=[0.1, 0.0, 0.1])),
    (ValueError, "confidence_level must be between 0 and 1, got 1.0", lambda *_: tradeoff(confidence_level=1.0)),
    (
        ValueError,
        "the number of batch_sizes without relative_errors must be at least 3, got 2",
        lambda *_: tradeoff((1, 2), (8.0, 5.0)),
    ),
    (
        ValueError,
        "steps must be near a + b/B for batch sizes B, and positive, got [100.0, 1.0, 1.0]",
        lambda *_: tradeoff(steps=(100.0, 1.0, 1.0), relative_errors=(1e-3, 1e-3, 1e3)),
    ),
    (ValueError, "target must be positive, got 0", lambda *_: batch_size.steps_to_target([0, 1], [2.0, 1.0], 0)),
    (
        ValueError,
        "steps must have shape (2,), got (3,)",
        lambda *_: batch_size.steps_to_target([0, 1, 2], [2.0, 1.0], 1.5),
    ),
    (
        ValueError,
        "steps must increase, got [0.0, 0.0]",
        lambda *_: batch_size.steps_to_target([0, 0], [2.0, 1.0], 1.5),
    ),
    (
        ValueError,
        "losses must be positive, got -1.0",
        lambda *_: batch_size.steps_to_target([0, 1], [2.0, -1.0], 1.5),
    ),
    (ValueError, "target must be positive, got -1", lambda *_: measured(-1)),
    (ValueError, "the number of batch_sizes must be at least 3, got 2", lambda *_: measured(batch_sizes=(1, 2))),
    (ValueError, "batch_sizes must be at least 1, got 0", lambda *_: measured(batch_sizes=(0, 2, 4))),
    (ValueError, "the number of learning_rates must be at least 3, got 2", lambda *_: measured(learning_rates=(1, 2))),
    (ValueError, "learning_rates must be positive, got 0", lambda *_: measured(learning_rates=(0, 1, 2))),
    (
        ValueError,
        "target must be 4 steps away at least, got 0 at batch size 4: lower it, or leave out the largest",
        lambda *_: measured(2.0),
    ),
    (
        ValueError,
        "target must be in reach of max_steps=5 steps of 4 examples, got 1e-30 where the lowest mean loss was",
        lambda *_: measured(1e-30, max_steps=5, learning_rates=(0.25, 0.4, 0.6)),
    ),
    (
        ValueError,
        "learning_rates must be near the best one, which at batch size 4 lies beyond",
        lambda *_: batch_size.measure_critical(
            bowl,
            jnp.ones(()),
            jnp.zeros(4),
            unaffected,
            KEY,
            target=0.01,
            learning_rates=(1e3, 2e3, 4e3),
            batch_sizes=(1, 2, 4),
            num_runs=1,
            max_steps=1,
        ),
    ),
    (ValueError, "multiples must be increasing integers from 2 on, got (2, 2)", lambda *_: branched(multiples=(2, 2))),
    (ValueError, "num_examples must be at least 64, got 63", lambda *_: branched(num_examples=63)),
    (ValueError, "scaling must be one of linear, square root, got 'none'", lambda *_: branched(scaling="none")),
    (ValueError, "tolerance must be positive, got 0", lambda *_: branched(tolerance=0)),
    (
        ValueError,
        "learning_rate must be lower: with 1e+06 the branch of 1 examples diverged",
        lambda *_: branched(learning_rate=1e6),
    ),
    (
        ValueError,
        "num_examples must be a multiple of all batch sizes, of 32, got 65",
        lambda *_: branched(num_examples=65),
    ),
]
