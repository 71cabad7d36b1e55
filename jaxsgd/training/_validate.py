"""Checks of the arguments of a run, and of the loss before its first step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_EXAMPLES_AT_A_TIME = 1024


def optimizer(optimizer: Any, *, tuned: bool) -> None:
    """Raise unless it is an Optax transformation, or a function of the learning rate where there are learning rates."""
    if isinstance(optimizer, optax.GradientTransformation):
        return
    if not callable(optimizer):
        raise TypeError(f"optimizer must be an Optax transformation, or a function that makes one, got {optimizer!r}")
    if not tuned:
        raise ValueError(
            "optimizer must be an Optax transformation, such as optax.sgd(0.1); a function that makes one from a "
            f"learning rate needs learning_rates, got {optimizer!r}"
        )


def hashable(**named: Any) -> None:
    """Raise unless every value can be hashed, as what a compilation is kept for."""
    for name, value in named.items():
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(f"{name} must be hashable, as frozen dataclasses and functions are: {error}") from None


def rates(learning_rates: Any) -> None:
    """Raise unless they are a non-empty vector of finite numbers."""
    values = np.asarray(learning_rates, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"learning_rates must be a non-empty vector of finite numbers, got {learning_rates!r}")


def like_data(data: Any, eval_data: Any) -> None:
    """Raise unless both have one structure, which the loss is written for."""
    structure: Any = jax.tree.structure(data)
    if jax.tree.structure(eval_data) != structure:
        raise ValueError(f"eval_data must have the structure of data, {structure}, got {jax.tree.structure(eval_data)}")


def finite_at_start(loss: Any, loss_fn: Callable[..., Any], params: Any, data: Any, name: str) -> None:
    """Raise, naming the data and the first example, unless their mean ``loss`` is finite before the first step."""
    if np.isfinite(loss).all():
        return
    size = min(_EXAMPLES_AT_A_TIME, len(jax.tree.leaves(data)[0]))
    losses = jax.jit(lambda p, d: jax.lax.map(partial(loss_fn, p), d, batch_size=size))(params, data)
    finite = jnp.isfinite(losses)
    what = "their sum" if finite.all() else f"that of example {int(jnp.argmin(finite))}"
    raise ValueError(f"the loss of all {name} must be finite at the start, got {np.ravel(loss)[0]}, and {what} is not")
