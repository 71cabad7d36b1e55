"""Every way to be refused by ``batch_losses``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp

from jaxsgd import problems, report
from tests.support.error_helpers import KEY, Case, additivity_of, batch_loss_over

CASES: list[Case] = [
    # Through those who call it.
    (TypeError, "batch_loss_fn must be a function, got 3 of type int", lambda *_: additivity_of(3)),
    (
        ValueError,
        "batch_loss_fn(params, batch, key) failed on a batch of 4 examples: TypeError: … positional arguments",
        lambda *_: additivity_of(key=KEY),
    ),
    (
        ValueError,
        "batch_loss_fn must return one scalar, or (scalar, aux), got an array of shape (4,) and dtype … for 4 examples",
        lambda *_: additivity_of(lambda t, b: t * b["x"]),
    ),
    (
        TypeError,
        "batch_loss_fn must return a real floating-point number, got dtype int64",
        lambda *_: additivity_of(lambda t, b: jnp.asarray(3)),
    ),
    (
        ValueError,
        "batch_loss_fn(params, batch) failed on a batch of 3 examples: TypeError: ",
        lambda *_: batch_loss_over(loss_fn=lambda t, x: x.reshape(2, 2)),
    ),
    (
        TypeError,
        "batch_loss_fn must be a function, got 3 of type int",
        lambda *_: report.report((*problems.line_fit(), 3)),
    ),
]
