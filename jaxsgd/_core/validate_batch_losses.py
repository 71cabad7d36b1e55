"""Checks of a loss of a batch and of the subsets it is evaluated on, in the manner of ``validate``."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core import validate


def batch_loss(batch_loss_fn: Callable[..., Any], params: Any, batch: Any, key: Any = None) -> bool:
    """Raise unless the loss of ``batch`` is one real number; return whether it comes with an auxiliary output."""
    if not callable(batch_loss_fn):
        raise TypeError(f"batch_loss_fn must be a function, got {validate.describe(batch_loss_fn)}")
    arguments, names = ((), "(params, batch)") if key is None else ((key,), "(params, batch, key)")
    count = validate.leading_axis(batch=batch)
    try:
        out = jax.eval_shape(batch_loss_fn, params, batch, *arguments)
    except Exception as error:
        raise ValueError(
            f"batch_loss_fn{names} failed on a batch of {count} examples: {type(error).__name__}: {error}"
        ) from error
    has_aux = isinstance(out, tuple) and len(out) == 2
    loss = out[0] if has_aux else out
    if getattr(loss, "shape", None) != ():
        raise ValueError(
            f"batch_loss_fn must return one scalar, or (scalar, aux), got {validate.describe(loss)} "
            f"for {count} examples"
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"batch_loss_fn must return a real floating-point number, got dtype {loss.dtype}")
    return has_aux


def different_examples(**named: Any) -> None:
    """Raise unless every matrix, one row for each example, has two different rows."""
    for name, rows in named.items():
        if np.all(rows == rows[:1]):
            raise ValueError(f"{name} must hold different examples, got {len(rows)} equal ones, where all forms agree")


def reproducible(*, first: float, second: float, rounding: float) -> None:
    """Raise if two evaluations of one loss differ by more than rounding errors."""
    if not abs(first - second) <= rounding * max(abs(first), abs(second)):
        raise ValueError(
            f"batch_loss_fn must give the same loss for the same arguments, got {first} and then {second}; "
            "its randomness must come from a key"
        )


def evaluated_somewhere(*, notes: Sequence[str], **named: int) -> None:
    """Raise, with the reasons, if there is no subset of the batch on which a function could be evaluated."""
    for name, count in named.items():
        if count == 0:
            raise ValueError(f"{name} must be finite on some subsets of the batch, got none: {'; '.join(notes)}")


def fine_enough(limit: float, **named: float) -> None:
    """Raise unless every relative rounding error is below ``limit``."""
    for name, value in named.items():
        if not value <= limit:
            raise ValueError(
                f"rounding errors may be {value:.1g} of the {name} of batch_loss_fn, and must be at most {limit:g} to "
                "tell its form: use params of a finer dtype, or other values of them"
            )


def none(**named: Any) -> None:
    """Raise unless every value is None."""
    for name, value in named.items():
        if value is not None:
            raise ValueError(f"{name} must be None unless batches are drawn: give num_draws as well")


def members(batch_size: int | None, *, weights: Sequence[Any], design: Any) -> list[int]:
    """Return the examples that a weight vector puts into a batch, repeated as often as they were drawn, or raise."""
    drawn = [i for i, weight in enumerate(weights) if weight > 0]
    if not drawn:
        raise ValueError(f"design must have no empty batch, on which a batch loss has no value, got {design}")
    if batch_size is None or len(drawn) == batch_size:
        return drawn
    counts = [Fraction(weight) * batch_size for weight in weights]
    if sum(counts) != batch_size or any(count.denominator != 1 for count in counts):
        raise ValueError(
            f"design must have weights n/{batch_size} that tell how often an example was drawn, got {design}"
        )
    return [i for i, count in enumerate(counts) for _ in range(int(count))]


def finite_values(**named: Any) -> None:
    """Raise unless all numbers of a pytree of a function's values are finite."""
    for name, values in named.items():
        if not all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(values)):
            raise ValueError(f"{name} must be finite, with a finite gradient, on every batch and on all data")
