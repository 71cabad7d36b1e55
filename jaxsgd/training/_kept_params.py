"""θ at chosen steps of a run, in the host's memory."""

import itertools
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxsgd._core import devices


class KeptParams:
    """θ at the steps that were asked for, as far as the run has come.

    Attributes:
        steps: after how many steps θ is kept, increasing; none where nothing was asked for.
        found: for each of these steps that the run has passed, the leaves of θ.
    """

    def __init__(self, keep_params_at: Any, num_steps: int) -> None:
        self.steps = () if keep_params_at is None else _steps(keep_params_at, num_steps)
        self.found: list[list[np.ndarray]] = []

    def next_step(self) -> tuple[int, ...]:
        """The next step to keep θ at; empty if there is none left."""
        return self.steps[len(self.found) :][:1]

    def keep(self, params: PyTree) -> None:
        """Copy θ to the host."""
        leaves = [devices.on_host(leaf) for leaf in jax.tree.leaves(params)]
        self.found.append(leaves)  # in one piece, whenever an interruption comes

    def stacked(self, params: PyTree, axis: int) -> PyTree:
        """All that was kept, like ``params`` with an axis of steps at ``axis``, or None if nothing was asked for."""
        if not self.steps:
            return None
        leaves = [np.stack(leaf, axis) for leaf in zip(*self.found, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _steps(keep_params_at: Any, num_steps: int) -> tuple[int, ...]:
    """The step numbers, unless they are not integers that increase from 0 or more to ``num_steps`` or less."""
    found = np.asarray(keep_params_at)
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu":
        raise TypeError(f"keep_params_at must be a non-empty sequence of step numbers, got {keep_params_at!r}")
    steps = tuple(found.tolist())
    increase = all(before < after for before, after in itertools.pairwise(steps))
    if not increase or steps[0] < 0 or steps[-1] > num_steps:
        raise ValueError(
            f"keep_params_at must increase, from 0 at least to num_steps = {num_steps} at most, got {steps}"
        )
    return steps
