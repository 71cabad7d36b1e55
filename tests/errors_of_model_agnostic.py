"""Every way to be refused by ``model_agnostic``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp
import numpy as np

from jaxsgd import model_agnostic, problems
from tests.support.error_helpers import KEY, LARGE, ONE, Case
from tests.support.registry import linear_loss

CASES: list[Case] = [
    (
        ValueError,
        "squares of gradients underflow float32: scale the loss up, or use float64 parameters",
        lambda *_: model_agnostic.random_sign_moments(
            linear_loss, jnp.ones((), jnp.float32), jnp.asarray([1e-20, 2e-20], jnp.float32), key=KEY, num_draws=2
        ),
    ),
    (
        ValueError,
        "gradients must be finite, got nan for example 1 in params",
        lambda *_: model_agnostic.random_sign_moments(
            linear_loss, ONE, jnp.asarray([1.0, np.nan]), key=KEY, num_draws=2
        ),
    ),
    (
        ValueError,
        "squared gradient norms overflow float32: scale the loss down, or use float64 parameters",
        lambda *_: model_agnostic.random_sign_moments(*LARGE, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: model_agnostic.random_sign_moments(*problems.line_fit(), key=KEY, num_draws=1),
    ),
]
