"""From the loss of one example to its gradient, parameter by parameter, in the form that is cheapest to keep.

All contact with how JAX represents a differentiated function lives here. ``kernels`` vmaps
:func:`loss_and_factors` over a batch and does its algebra on what comes back: one factor per parameter,
in the order of ``jax.tree.leaves(params)``. The only rule so far is :class:`Dense`, the gradient itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense:
    """The gradient of one parameter as an array: ``value`` has the parameter's shape, or (n, *shape) for n examples."""

    value: Any


def loss_and_factors(
    loss_fn: Callable[[Any, Any], Any], params: PyTree, example: PyTree
) -> tuple[Any, tuple[Dense, ...]]:
    """Return the loss of one example and, for every parameter, the factor of its gradient."""
    loss, gradient = jax.value_and_grad(loss_fn)(params, example)
    return loss, tuple(Dense(leaf) for leaf in jax.tree.leaves(gradient))
