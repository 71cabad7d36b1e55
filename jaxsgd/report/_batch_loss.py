"""What a report says of the loss of a batch: its form, and whether it is the mean of the loss of one example.

It is the one part of a report that looks at a batch as a whole; everything else is about single examples.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsgd import additivity, kernels
from jaxsgd._core import sums, validate
from jaxsgd.batch_losses import BatchLoss, on_sub_batch

_EXAMPLES = 16  # enough for eight blocks, and a handful of compilations of small batches


@dataclass(frozen=True)
class BatchLossFindings:
    """The form of a batch loss.

    Attributes:
        additivity: the diagnosis, or None where it cannot be told.
        note: why it cannot be told; otherwise empty.
        gradient_difference: ‖∇L(batch) − c Σ g_i‖/‖c Σ g_i‖ for the per-example gradients g_i of ``loss_fn``, with
            c = 1/M for a mean and 1 for a sum; None for other forms, and for a loss with a key.
        rounding: what rounding errors may make of it.
    """

    additivity: additivity.Additivity | None
    note: str
    gradient_difference: float | None
    rounding: float

    @property
    def agrees(self) -> bool:
        """Whether the batch loss is the mean, or the sum, of the losses of single examples, as far as that is known."""
        return self.gradient_difference is None or self.gradient_difference <= self.rounding


def examine(
    batch_loss_fn: Callable[..., Any],
    loss_fn: kernels.Loss,
    params: PyTree,
    examples: PyTree,
    tolerance: float,
    key: Array,
) -> BatchLossFindings:
    """The form of a batch loss on a few examples, spread over those given.

    Raises:
        TypeError, ValueError: if it is no function of a batch, fails, or is no real number. A form that cannot be told,
            because examples are too few or equal or rounding errors are too large, is no error.
    """
    count = validate.leading_axis(batch=examples)
    chosen = np.unique(np.linspace(0, count - 1, _EXAMPLES).astype(int))
    batch = jax.tree.map(lambda leaf: leaf[chosen], examples)
    loss_key = key if _takes_key(batch_loss_fn) else None
    loss = BatchLoss.of(batch_loss_fn, params, batch, loss_key)
    try:
        found = additivity.check_additivity(batch_loss_fn, params, batch, key=loss_key)
    except ValueError as error:
        return BatchLossFindings(None, f"its form could not be told: {error}", None, tolerance)
    difference = None
    if found.kind in ("mean", "sum") and loss_key is None:
        rows = jnp.arange(len(chosen))
        _, gradient = on_sub_batch(loss, params, batch, rows, None)
        scale = len(chosen) if found.kind == "sum" else 1
        expected = jax.tree.map(lambda leaf: scale * leaf, kernels.trace_batch(loss_fn, params, batch).mean())
        difference = _relative_difference(gradient, expected)
    return BatchLossFindings(found, "", difference, max(tolerance, found.gradient_rounding))


def _takes_key(function: Any) -> bool:
    """Whether a loss of a batch must be given a third argument."""
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 3


def _relative_difference(a: PyTree, b: PyTree) -> float:
    distance = sums.squared_norm(jax.tree.map(lambda x, y: x.astype(y.dtype) - y, a, b))
    size = float(sums.squared_norm(b))
    return float((float(distance) / size) ** 0.5) if size > 0 else float("inf") if distance > 0 else 0.0
