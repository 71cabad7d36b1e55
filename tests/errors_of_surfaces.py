"""Every way to be refused by ``surfaces``: the exception, its message, and the call that gives it."""

import jax.numpy as jnp

from jaxsgd import surfaces
from tests.support.error_helpers import Case, G
from tests.support.registry import linear_loss

CASES: list[Case] = [
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
