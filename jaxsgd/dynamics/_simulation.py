"""SGD on quadratics as it runs, for many runs at once: what the exact laws are held against.

The laws are exact arithmetic on the host; this is compiled and in floating point, one executable for any number of
steps or epochs, and uses nothing of a design but its draws.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core import validate
from jaxsgd.designs import Design, Reshuffling
from jaxsgd.dynamics._affine_map import floats
from jaxsgd.dynamics._quadratics import (
    Quadratics,
    rows,
)


def simulate_steps(
    quadratics: Quadratics,
    design: Design,
    learning_rate: float,
    *,
    key: Array,
    num_runs: int,
    num_steps: int,
    start: Any = None,
) -> Float[Array, "r d"]:
    """θ after a number of steps of SGD, in independent runs, shape (num_runs, d).

    Args:
        quadratics: the losses.
        design: any sampling design; a batch of its own for every step of every run.
        learning_rate: η.
        key: for the batches.
        num_runs: how many runs.
        num_steps: how many steps of each.
        start: θ before the first step, shape (d,) for all runs or (num_runs, d); by default the minimum θ*.
    """
    validate.at_least(0, num_steps=num_steps)
    return _simulate(quadratics, design, learning_rate, "weights", key, num_runs, num_steps, start)


def simulate_epochs(
    quadratics: Quadratics,
    design: Reshuffling,
    learning_rate: float,
    *,
    key: Array,
    num_runs: int,
    num_epochs: int,
    start: Any = None,
) -> Float[Array, "r d"]:
    """θ after a number of epochs of randomly reshuffled SGD, in independent runs, shape (num_runs, d).

    Args:
        quadratics: the losses.
        design: the batch size, and whether a short last batch is used or dropped.
        learning_rate: η.
        key: for the orders.
        num_runs: how many runs.
        num_epochs: how many epochs of each.
        start: θ before the first epoch, shape (d,) for all runs or (num_runs, d); by default the minimum θ*.
    """
    validate.at_least(0, num_epochs=num_epochs)
    return _simulate(quadratics, design, learning_rate, "epoch_weights", key, num_runs, num_epochs, start)


def _simulate(
    quadratics: Quadratics,
    design: Any,
    learning_rate: float,
    method: str,
    key: Array,
    num_runs: int,
    num_rounds: int,
    start: Any,
) -> Float[Array, "r d"]:
    validate.positive(learning_rate=learning_rate)
    validate.random_key(key=key)
    validate.positive_integer(num_runs=num_runs)
    d = quadratics.linear.shape[1]
    begin = np.asarray(quadratics.minimum() if start is None else start, dtype=np.float64)
    begin = begin if begin.ndim == 2 else np.tile(begin, (num_runs, 1))
    if begin.shape != (num_runs, d):
        raise ValueError(f"start must have shape {(num_runs, d)}, got {begin.shape}")
    R = jnp.asarray(floats(rows(quadratics)), float)
    return _runs(design, method, R, jnp.asarray(begin, float), jnp.asarray(learning_rate, float), key, num_rounds)


@partial(jax.jit, static_argnames=("design", "method"))
def _runs(
    design: Any,
    method: str,
    R: Float[Array, "n f"],
    start: Float[Array, "r d"],
    learning_rate: Float[Array, ""],
    key: Array,
    num_rounds: Any,
) -> Float[Array, "r d"]:
    """Every run from its own key, the rounds of a run from ``fold_in(key, t)``; one compilation for any length."""
    N, d = R.shape[0], start.shape[1]

    def step(theta: Array, weights: Array) -> tuple[Array, None]:
        F = jnp.reshape(weights @ R, (d, d + 1))
        return theta + learning_rate * (F[:, :-1] @ theta + F[:, -1]), None

    def one_run(run_key: Array, theta: Array) -> Array:
        def one_round(t: Array, theta: Array) -> Array:
            batches = jnp.reshape(getattr(design, method)(jax.random.fold_in(run_key, t), N), (-1, N))
            return jax.lax.scan(step, theta, batches)[0]

        return jax.lax.fori_loop(0, num_rounds, one_round, theta)

    return jax.vmap(one_run)(jax.random.split(key, start.shape[0]), start)
