"""Every way to be refused by ``batch_size``: the exception, its message, and the call that gives it."""

from typing import Any

import numpy as np

from jaxsgd import batch_size
from tests.support.error_helpers import Case, G


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
]
