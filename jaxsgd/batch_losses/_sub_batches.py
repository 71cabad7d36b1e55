"""A loss of a batch as a function of sub-batches: its value and its gradient on some rows.

It is for losses that users bring, not for those of this package: whoever evaluates one on parts of a batch does it so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Int, PyTree


@dataclass(frozen=True)
class BatchLoss:
    """A loss of a batch as one hashable function of (params, batch, key) with a scalar value."""

    function: Callable[..., Any]
    has_aux: bool

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
