"""Gram matrices about the mean: what is large in all gradients is taken off before it is multiplied.

From K_ij = ⟨g_i, g_j⟩ the products of deviations are K less the means of its rows and columns, a difference in which
digits cancel where the mean gradient is large: with κ = tr K / tr K̃ for the centered K̃, the relative error is κ times
that of K. At hand, κ decides whether K̃ is taken as it is, or found in another way that costs more.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_MAX_CANCELLATION = 16.0  # tr K / tr K̃: four bits of the 24 of float32


def first_without_cancellation(ways: Sequence[Callable[[], Float[Array, "n n"]]]) -> Float[Array, "n n"]:
    """K̃ of the first way to a Gram matrix, about whatever center, in which too many digits do not cancel, or the last.

    A Gram matrix about any one center has the same K̃.
    """
    gram = ways[0]()
    centered = less_its_means(gram)
    if len(ways) == 1:
        return centered
    lost = jnp.trace(gram) > _MAX_CANCELLATION * jnp.trace(centered)
    return jax.lax.cond(lost, lambda: first_without_cancellation(ways[1:]), lambda: centered)


def less_its_means(gram: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The matrix less the means of its rows and of its columns, whose sums are then 0."""
    once = gram - gram.mean(axis=1, keepdims=True)
    return once - once.mean(axis=0, keepdims=True)
