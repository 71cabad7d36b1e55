"""The monitors themselves: which sums of a batch each takes, and what is read from their averages.

What a batch tells is ``_terms``', how it is averaged over the steps is ``_transformation``'s. A monitor is a
:class:`Statistic` of a few lines between the two, and a function that makes the transformation of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsgd._core import sums, units
from jaxsgd.monitors._terms import (
    Where,
    batch_noise,
    chosen_leaves,
    coordinate_noise,
    projections,
)
from jaxsgd.monitors._transformation import MonitorState, Statistic, as_transformation


@dataclass(frozen=True, kw_only=True)
class _Snr(Statistic):
    per_coordinate: bool
    function = "gradient_snr"
    sums = ("trace_covariance", "squared_mean_norm")

    def zeros(self, params: PyTree) -> dict[str, Any]:
        if not self.per_coordinate:
            return super().zeros(params)
        leaves = [jnp.zeros(p.shape, sums.accumulation_dtype(p)) for p in chosen_leaves(params, self.where)]
        return dict.fromkeys(self.sums, leaves)

    def measure(self, updates: PyTree, extra: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        terms = self.terms(extra)
        chosen = self.gradient(terms, extra)
        noise = coordinate_noise(chosen, terms) if self.per_coordinate else batch_noise(chosen, terms, centered=False)
        return dict(zip(self.sums, noise, strict=True))

    def read(self, state: MonitorState) -> dict[str, Array]:
        averages = state.averages
        S, G = averages["trace_covariance"], averages["squared_mean_norm"]
        if not self.per_coordinate:
            return {"gradient_snr": G / S}
        ratios = jnp.concatenate([(g / s).reshape(-1) for s, g in zip(S, G, strict=True)])
        noisy = jnp.concatenate([_is_noisy(s, g).reshape(-1) for s, g in zip(S, G, strict=True)])
        total = [sum(leaf.sum() for leaf in leaves) for leaves in (G, S)]
        return {"gradient_snr": total[0] / total[1], "mean_coordinate_snr": jnp.mean(ratios, where=noisy)}


def _is_noisy(variance: Array, signal: Array) -> Array:
    """Whether a variance is more than what rounding leaves of none."""
    eps = float(jnp.finfo(variance.dtype).eps)  # type: ignore[no-untyped-call]
    return variance > (16 * eps) ** 2 * signal


def gradient_snr(
    *,
    every: int = 1,
    decay: float = 0.95,
    where: Where | None = None,
    name: str = "",
    per_coordinate: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The signal-to-noise ratio of one example's gradient, ‖ḡ‖²/tr Σ, and the mean of ḡ_j²/Σ_jj over coordinates.

    The first is the reciprocal of the noise scale. For the second, the GSNR of Liu et al., unbiased estimates of ḡ_j²
    and Σ_jj are averaged for every coordinate j, at the memory of two more ``params``; coordinates without noise are
    left out. Rounding is that of :func:`noise_scale` without ``centered``.

    Readings: ``gradient_snr``; with ``per_coordinate`` also ``mean_coordinate_snr``.

    References:
        J. Liu et al., "Understanding why neural networks generalize well through GSNR of parameters", ICLR 2020.
    """
    return as_transformation(_Snr(every=every, decay=decay, where=where, name=name, per_coordinate=per_coordinate))


@dataclass(frozen=True, kw_only=True)
class _Tests(Statistic):
    function = "gradient_tests"
    sums = ("variance", "projected_variance", "orthogonal_variance", "squared_norm", "fourth_power")

    def measure(self, updates: PyTree, extra: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        terms = self.terms(extra)
        # What is computed of the gradient here must not be fused with the step, which would then be rounded otherwise.
        chosen = jax.lax.optimization_barrier(self.gradient(terms, extra))  # type: ignore[no-untyped-call]
        squared_norm = sums.squared_norm(chosen)
        m = jnp.asarray(terms.count, squared_norm.dtype)
        S, _ = batch_noise(chosen, terms, centered=False)
        unit = units.near(jnp.stack([jnp.abs(leaf).max(initial=0) for leaf in chosen]))  # or ⟨h_j, ĝ⟩² may be lost
        direction = [leaf / unit.astype(leaf.dtype) for leaf in chosen]
        along = projections(jax.tree.unflatten(terms.gradients.structure, direction), terms)
        across = S - along / (squared_norm / unit**2)
        values = (S / m, along * unit**2 / m, across / m, squared_norm, squared_norm**2)
        return dict(zip(self.sums, values, strict=True))

    def read(self, state: MonitorState) -> dict[str, Array]:
        averages = state.averages
        squared_norm = averages["squared_norm"]
        return {
            "norm_statistic": averages["variance"] / squared_norm,
            "inner_product_statistic": averages["projected_variance"] / averages["fourth_power"],
            "orthogonality_statistic": averages["orthogonal_variance"] / squared_norm,
        }


def gradient_tests(
    *, every: int = 1, decay: float = 0.0, where: Where | None = None, name: str = ""
) -> optax.GradientTransformationExtraArgs:
    """What the norm, inner-product and orthogonality tests compare with θ² and ν²; a batch passes where it is below.

        norm             tr s²/m / ‖ĝ‖²
        inner product    Var_j⟨h_j, ĝ⟩/m / ‖ĝ‖⁴
        orthogonality    (1/(m−1)) Σ ‖h_j − ⟨h_j, ĝ⟩ĝ/‖ĝ‖²‖² / m / ‖ĝ‖²

    with sample variances (divisor m − 1). On every batch the first is the sum of the others. They are those of the
    papers, with ‖ĝ‖² in place of ‖ḡ‖²: since E‖ĝ‖² = ‖ḡ‖² + tr Σ/m, the norm test with θ = 1 passes on a third of all
    batches at least.
    Rounding is that of :func:`noise_scale` without ``centered``.

    Args:
        every: measure at steps that it divides.
        decay: 0 by default: the statistics of the last batch measured.
        where: which parameters to look at, a function of their path.
        name: a prefix of what is read.

    Readings: ``norm_statistic``, ``inner_product_statistic`` and ``orthogonality_statistic``.

    References:
        R. H. Byrd, G. M. Chin, J. Nocedal, Y. Wu, Math. Program. 134, 2012.
        R. Bollapragada, R. Byrd, J. Nocedal, SIAM J. Optim. 28, 2018, arXiv:1710.11258.
    """
    return as_transformation(_Tests(every=every, decay=decay, where=where, name=name))


@dataclass(frozen=True, kw_only=True)
class _Cosine(Statistic):
    function = "full_gradient_cosine"
    needs = ("full_gradient",)
    sums = ("inner_product", "squared_norm", "full_squared_norm")

    def usable(self, extra: Mapping[str, Any]) -> bool:  # noqa: ARG002
        return True

    def measure(self, updates: PyTree, extra: Mapping[str, Any]) -> dict[str, Any]:
        full = extra["full_gradient"]
        a, b = chosen_leaves(updates, self.where), chosen_leaves(full() if callable(full) else full, self.where)
        products = [jnp.sum(sums.accumulated(x) * sums.accumulated(y)) for x, y in zip(a, b, strict=True)]
        values = (sums.total(products), sums.squared_norm(a), sums.squared_norm(b))
        return dict(zip(self.sums, values, strict=True))

    def read(self, state: MonitorState) -> dict[str, Array]:
        averages = state.averages
        norms = jnp.sqrt(averages["squared_norm"]), jnp.sqrt(averages["full_squared_norm"])
        return {
            "full_gradient_cosine": averages["inner_product"] / (norms[0] * norms[1]),
            "full_gradient_norm": norms[1],
        }


def full_gradient_cosine(
    *, every: int = 1, decay: float = 0.0, where: Where | None = None, name: str = ""
) -> optax.GradientTransformationExtraArgs:
    """The cosine of the angle between the step's gradient and that of the mean loss over all data, ⟨ĝ, ḡ⟩/(‖ĝ‖‖ḡ‖).

    A measurement differentiates all N examples: choose ``every`` accordingly.

    Readings: ``full_gradient_cosine`` and ``full_gradient_norm``.
    """
    return as_transformation(_Cosine(every=every, decay=decay, where=where, name=name))
