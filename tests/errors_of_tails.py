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
