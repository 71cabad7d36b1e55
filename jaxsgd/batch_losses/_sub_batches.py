"""A loss of a batch as a function of sub-batches: its value and its gradient on some rows.

It is for losses that users bring, not for those of this package: whoever evaluates one on parts of a batch does it so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxsgd._core import validate


@dataclass(frozen=True)
class BatchLoss:
    """A loss of a batch as one hashable function of (params, batch, key) with a scalar value."""

    function: Callable[..., Any]
    has_aux: bool

    @classmethod
    def of(
        cls,
        batch_loss_fn: Callable[..., Any],
        params: PyTree,
        batch: PyTree,
        key: Array | None = None,
        count: int | None = None,
    ) -> "BatchLoss":
        """The loss that a function is, found out on ``batch``, without evaluating it.

        Args:
            batch_loss_fn: ``batch_loss_fn(params, batch) -> scalar`` or ``(scalar, aux)``; with a third argument if
                ``key`` is given.
            params: its first argument.
            batch: a pytree of arrays with examples along the first axis of each.
            key: a random key.
            count: how many examples the batch has, where not every leaf says so.

        Raises:
            TypeError: if it is no function, or its value is not real.
            ValueError: if it fails on the batch, or its value is not one number.
        """
        if not callable(batch_loss_fn):
            raise TypeError(f"batch_loss_fn must be a function, got {validate.describe(batch_loss_fn)}")
        arguments, names = ((), "(params, batch)") if key is None else ((key,), "(params, batch, key)")
        count = validate.leading_axis(batch=batch) if count is None else count
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
        return cls(batch_loss_fn, has_aux)

    def __call__(self, params: PyTree, batch: PyTree, key: Array | None = None) -> Float[Array, ""]:
        """The loss, without the auxiliary output."""
        out = self.function(params, batch) if key is None else self.function(params, batch, key)
        return out[0] if self.has_aux else out


def on_sub_batch(
    loss: BatchLoss, params: PyTree, batch: PyTree, rows: Int[Array, " m"], key: Array | None
) -> tuple[Float[Array, ""], PyTree]:
    """Loss and gradient on some rows of a batch, with matrix products as precise as the device can."""
    with jax.default_matmul_precision("highest"):
        return _on_sub_batch(loss, params, batch, rows, key)


@partial(jax.jit, static_argnums=0)
def _on_sub_batch(
    loss: BatchLoss, params: PyTree, batch: PyTree, rows: Int[Array, " m"], key: Array | None
) -> tuple[Float[Array, ""], PyTree]:
    return jax.value_and_grad(loss)(params, jax.tree.map(lambda leaf: leaf[rows], batch), key)
