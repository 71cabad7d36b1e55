"""How the estimate of a noise scale varies over the batches of a finite population, exactly."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd import kernels
from jaxsgd._core import validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.noise import _u_statistics
from jaxsgd.noise._evidence import in_unit_of_gradients, targets


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScaleLaw:
    """How the estimate of the noise scale varies over batches of one size.

    Attributes:
        trace_covariance: the mean of its numerator.
        squared_mean_norm: the mean of its denominator.
        covariance: of (denominator, numerator), shape (2, 2), exact.
        bias: of their quotient, to first order in the covariance (delta method).
        variance: of their quotient, to first order.
    """

    trace_covariance: Any
    squared_mean_norm: Any
    covariance: Any
    bias: Any
    variance: Any


@on_any_mesh
def noise_scale_law(g: kernels.PerExampleGradients, batch_size: int) -> NoiseScaleLaw:
    """The exact first two moments, over batches of M without replacement, of what ``noise_scale`` divides.

    The moments of numerator and denominator of ``noise_scale(g_batch, population_size=N)`` are meant: their means are
    tr Σ and ‖ḡ‖², and their covariance is that of two U-statistics in a finite population. With numerator T and
    denominator G, the quotient B̂ has, to first order, the bias B (Var G/‖ḡ‖⁴ − Cov/(tr Σ ‖ḡ‖²)) and the variance
    B² (Var T/(tr Σ)² + Var G/‖ḡ‖⁴ − 2 Cov/(tr Σ ‖ḡ‖²)). Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the gradients of the whole population of N.
        batch_size: M, at least 2.

    Raises:
        TypeError, ValueError: if ``batch_size`` is not an integer from 2 to N, or a gradient is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> law = noise_scale_law(kernels.per_example_gradients(loss_fn)(params, data), 2)
    >>> round(float(law.trace_covariance), 4), round(float(law.squared_mean_norm), 4), round(float(law.bias), 2)
    (15.75, 1.25, 816.64)
    """
    validate.at_least(2, batch_size=batch_size)
    validate.at_most(g.count, "the population size", batch_size=batch_size)
    kernels.require_finite(g)
    unit = kernels.unit(g)
    pairs = _u_statistics.pair_sums(g, unit)
    G, T, covariance = targets(pairs, _u_statistics.batch_covariance(pairs, batch_size), g.count)
    relative = covariance / jnp.outer(jnp.stack([G, T]), jnp.stack([G, T]))
    B = T / G
    variance = B**2 * (relative[0, 0] + relative[1, 1] - 2 * relative[0, 1])
    bias = B * (relative[0, 0] - relative[0, 1])
    return NoiseScaleLaw(T * unit**2, G * unit**2, in_unit_of_gradients(covariance, unit), bias, variance)
