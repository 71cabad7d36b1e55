"""Every way to be refused by ``checks``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import problems
from tests.support.error_helpers import ONE, Case, random_loss
from tests.support.registry import linear_loss

CASES: list[Case] = [
    (
        ValueError,
        "gradients must be finite, got nan for example 1 in params",
        lambda *_: jaxsgd.check_per_example(linear_loss, ONE, jnp.asarray([1.0, np.nan])),
    ),
    (
        ValueError,
        "loss_fn must give the same loss for the same arguments, got … and then … must come from a key",
        lambda *_: jaxsgd.check_per_example(random_loss(), ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "num_examples must be at least 1, got 0",
        lambda *_: jaxsgd.check_per_example(*problems.line_fit(), num_examples=0),
    ),
]
