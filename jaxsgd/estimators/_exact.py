"""E ĝ and tr Cov ĝ of a design, exactly: from two moments of the gradients, or from a structured covariance.

Where a design treats all examples alike the moments are enough, in the centered form

    tr Cov ĝ = a Σ‖g_i‖² − c ‖Σ g_i‖² = a N tr Σ + (a N − c N²) ‖ḡ‖²    for Cov w = a I − c 11ᵀ,

in which no digit cancels. Other designs need the gradients, which ``_contraction`` sums by the structure of Cov w.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PyTree

from jaxsgd import designs, kernels, moments
from jaxsgd._core import devices, units
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.estimators import _contraction


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """E ĝ (a pytree like ``params``) and tr Cov ĝ, with the standard error of the latter.

    ``standard_error`` and ``num_draws`` are 0 for exact results. The standard error of ``mean`` needs no field:
    E‖mean − E ĝ‖² = variance / num_draws. ``mean_squared_error`` is (1/R) Σ ‖ĝ_r − E ĝ‖² over the draws, about the mean
    that the design states, and ``covariance_norm`` an estimate of ‖Cov ĝ‖_F; ``merge`` needs both, and exact results
    have none.
    """

    mean: Any
    variance: Any
    standard_error: Any
    num_draws: Any
    mean_squared_error: Any = None
    covariance_norm: Any = None


@on_any_mesh
def exact(design: designs.Design, g: kernels.PerExampleGradients | moments.GradientMoments) -> Estimate:
    """E ĝ and tr Cov ĝ of a design, exactly, in time proportional to N.

    For designs that treat all examples alike, moments of the gradients are enough. Others need the gradients; their
    covariances are contracted by their structure. Those without structure (``ConditionalPoisson``, ``Hajek``,
    ``Poisson(..., normalize="realized")``) take N² numbers, and refuse populations of more than 4096.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        design: a law on w for this population. A biased one gives its own mean, E ĝ ≠ ḡ.
        g: the gradients of the whole population, or their moments.

    Raises:
        TypeError: if ``g`` are moments and the design needs gradients.
        ValueError: if the design is not one for this population, if an example whose gradient is not zero has a mean
            weight of zero, or if a gradient is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> float(exact(designs.WithoutReplacement(batch_size=2), g).variance)
    5.25
    >>> float(exact(designs.WithReplacement(batch_size=2), g).variance)
    7.875
    >>> round(float(exact(designs.Stratified([0, 0, 1, 1], [1, 1]), g).variance), 6)
    7.75
    """
    population_size = g.count if isinstance(g, kernels.PerExampleGradients) else int(moments.of(g).count)
    covariance, mean_weights = design.weight_covariance(population_size), design.mean_weights(population_size)
    alike = bool(np.ptp(mean_weights) == 0)
    if alike and isinstance(covariance, designs.ExchangeableCovariance):
        m = moments.of(g)
        total = float(mean_weights[0] * population_size)
        mean = jax.tree.map(lambda leaf: total * leaf, m.mean)
        return _without_error(mean, _of_moments(covariance, m, population_size))
    if not isinstance(g, kernels.PerExampleGradients):
        raise TypeError(
            f"g must be per-example gradients for {design}, which does not treat all examples alike, got their moments"
        )
    _require_counted(g, mean_weights)
    if isinstance(covariance, designs.ExchangeableCovariance):
        variance = _of_moments(covariance, moments.of(g), population_size)
    else:
        variance = _contraction.trace(covariance, g)
        if _is_lost(variance):
            kernels.require_finite(g)
            unit = kernels.unit(g)
            variance = _contraction.trace(covariance, g.times(1 / unit)) * unit**2
        _require_finite(design, g, variance)
    return _without_error(g.weighted_sum(jnp.asarray(mean_weights)), variance)


def _of_moments(
    covariance: designs.ExchangeableCovariance, m: moments.GradientMoments, population_size: int
) -> Float[Array, ""]:
    identity = covariance.identity * population_size
    of_total = identity - covariance.common * population_size**2  # 0 for a batch whose total weight is fixed
    return float(identity) * m.trace_covariance(ddof=0) + float(of_total) * m.squared_mean_norm


def _without_error(mean: PyTree, variance: Float[Array, ""]) -> Estimate:
    return Estimate(mean=mean, variance=variance, standard_error=jnp.zeros_like(variance), num_draws=0)


def _require_counted(g: kernels.PerExampleGradients, mean_weights: Float64[np.ndarray, " n"]) -> None:
    """Raise if an example is left out of E ĝ though its gradient is not zero: no number of batches would see it."""
    left_out = np.flatnonzero(mean_weights == 0)
    if isinstance(g.example_losses, jax.core.Tracer) or not left_out.size:
        return
    seen = np.flatnonzero(devices.on_host(g.squared_norms())[left_out])
    if seen.size:
        raise ValueError(
            "probabilities must be positive for examples whose gradients are not zero, "
            f"got 0 for example {left_out[seen[0]]}"
        )


def _require_finite(design: designs.Design, g: kernels.PerExampleGradients, variance: Float[Array, ""]) -> None:
    """Raise if the variance is not finite, naming the gradient if one is not."""
    if isinstance(variance, jax.core.Tracer) or np.isfinite(float(variance)):
        return
    kernels.require_finite(g)
    raise ValueError(f"the variance under {design} overflows {variance.dtype}: scale the loss down, or use float64")


def _is_lost(variance: Float[Array, ""]) -> bool:
    """Whether squares that it is made of may be too small for its dtype."""
    return not isinstance(variance, jax.core.Tracer) and float(variance) < units.smallest_square(variance.dtype)
