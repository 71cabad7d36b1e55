"""Sampling designs that a data loader may have, against independent draws, on one model's gradients.

Which designs are worth naming is a question of data loaders, so it is answered here and not in ``estimators``.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd import designs, estimators, kernels, moments
from jaxsgd.report._parameters import name_of

_MOST_LABELS = 100


@dataclass(frozen=True)
class DesignRow:
    """One design.

    Attributes:
        name: what a data loader with this design does.
        design: its name in ``jaxsgd.designs``.
        effect: tr Cov ĝ relative to independent draws of as many examples.
        variance: tr Cov ĝ for all data.
        on_subset: whether ``effect`` was found on the subset, not on all data.
    """

    name: str
    design: str
    effect: float
    variance: float
    on_subset: bool


def compare_designs(
    m: moments.GradientMoments, g: kernels.PerExampleGradients, examples: PyTree, batch_size: int
) -> tuple[DesignRow, ...]:
    """The designs in order of their noise.

    Designs that treat all examples alike are exact from the moments of all data. The others need single gradients:
    where ``g`` are those of a subset, so is their effect; consecutive examples are then no design to speak of.

    Args:
        m: moments of all data.
        g: gradients of the subset, or of all data.
        examples: those of ``g``.
        batch_size: M.
    """
    N, M = int(m.count), batch_size
    alike = {
        "independent draws": designs.WithReplacement(M),
        "shuffled, without replacement": designs.WithoutReplacement(M),
        "every example with probability M/N": designs.Bernoulli(Fraction(M, N)),
    }
    rows = [_row(name, law, m, m, False) for name, law in alike.items()]
    rows += [_row(name, law, m, g, g.count < N) for name, law in _unlike(g, examples, M, N).items()]
    return tuple(sorted(rows, key=lambda row: row.effect))


def _unlike(g: kernels.PerExampleGradients, examples: PyTree, M: int, N: int) -> dict[str, designs.SamplingDesign]:
    found: dict[str, designs.SamplingDesign] = {}
    if np.any(np.asarray(g.squared_norms())):
        found["independent, p ∝ gradient norm"] = designs.Importance(estimators.optimal_probabilities(g), M)
    if g.count < N:
        return found
    found["consecutive, not shuffled"] = designs.CircularBlocks(M)
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        strata = _strata(leaf)
        if strata is not None and strata.max() < M:
            found[f"stratified by {name_of(path)}"] = designs.Stratified.proportional(strata, M)
    return found


def _strata(leaf: Any) -> np.ndarray | None:
    """The labels of a leaf that holds one of a few integers for every example, as 0, 1, 2, …; otherwise None."""
    if len(leaf.shape) != 1 or not jnp.issubdtype(leaf.dtype, jnp.integer):
        return None
    values, strata = np.unique(np.asarray(leaf), return_inverse=True)
    return strata if 2 <= len(values) <= _MOST_LABELS else None


def _row(name: str, design: designs.SamplingDesign, m: moments.GradientMoments, g: Any, on_subset: bool) -> DesignRow:
    effect = estimators.design_effect(design, g)
    count = int(m.count) if isinstance(g, moments.GradientMoments) else g.count
    reference = float(m.trace_covariance(ddof=0)) / design.expected_batch_size(count)
    return DesignRow(name, type(design).__name__, effect, effect * reference, on_subset)
