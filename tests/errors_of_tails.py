"""Every way to be refused by ``tails``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp
import numpy as np

from jaxsgd import tails
from tests.support.error_helpers import Case

CASES: list[Case] = [
    (
        ValueError,
        "samples must be finite, got nan at (1,) in samples",
        lambda *_: tails.hill_index(jnp.asarray([1.0, np.nan]), num_largest=1),
    ),
    (
        ValueError,
        "the 2 largest of samples must be positive, got -1.0",
        lambda *_: tails.hill_index(jnp.asarray([3.0, -1.0]), num_largest=1),
    ),
    (
        ValueError,
        "samples must have at least one example, got 0",
        lambda *_: tails.hill_index(jnp.ones(0), num_largest=1),
    ),
    (
        TypeError,
        "samples must be a pytree of arrays, but samples is 'words' of type str",
        lambda *_: tails.hill_index("words", num_largest=1),
    ),
    (
        TypeError,
        "samples must be real floating-point arrays, but samples has dtype int64",
        lambda *_: tails.stable_index(np.arange(4), block_size=2),
    ),
    (ValueError, "curvatures must be finite, got nan", lambda *_: tails.kesten_index([1.0, np.nan], 0.1)),
    (ValueError, "curvatures must be a non-empty vector, got shape (0,)", lambda *_: tails.kesten_index([], 0.1)),
    (ValueError, "learning_rate must be positive, got -0.1", lambda *_: tails.kesten_index([1.0], -0.1)),
    (ValueError, "learning_rate must be positive, got nan", lambda *_: tails.kesten_index([1.0], np.nan)),
    (
        ValueError,
        "num_largest must be at most 3, got 4",
        lambda *_: tails.hill_index(jnp.ones(4), num_largest=4),
    ),
    (
        ValueError,
        "samples must be finite, got inf at (0,) in samples",
        lambda *_: tails.stable_index(jnp.asarray([np.inf, 1.0]), block_size=2),
    ),
    (
        ValueError,
        "the number of samples must be a multiple of 3, got 4",
        lambda *_: tails.stable_index(jnp.ones(4), block_size=3),
    ),
]
