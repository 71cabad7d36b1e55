"""Checks of a loss of a batch and of the subsets it is evaluated on, in the manner of ``validate``."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np


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
