"""What a noise scale says about batch sizes, in closed form.

A step along the gradient of a batch has noise c_M tr Σ beside the signal ‖ḡ‖². A step of the best length with
independent batches of M gains 1/(1 + B/M) of one without noise, so over a run, if B stays what it is, the steps are
S/S_min = 1 + B/M and the examples E/E_min = 1 + M/B, and (S/S_min − 1)(E/E_min − 1) = 1 (McCandlish et al., 2018,
section 2.3). Numbers in, numbers out: no gradient is looked at here.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core import validate


def critical_batch_size(
    noise_scale: Any, *, relative_noise: float = 1.0, population_size: int | None = None
) -> Float[Array, "..."]:
    """The batch size M at which the noise is a given part of the signal: c_M tr Σ = r ‖ḡ‖².

    In an infinite population, c_M = 1/M and M = B/r. For M of N examples without replacement, c_M = (N − M)/(M(N − 1))
    and M = NB/(r(N − 1) + B): never more than N, since the full batch has no noise.

    At r = 1, noise and signal are equal, and a step gains half of what it would without noise: the critical batch size
    of McCandlish et al. (2018). Smaller batches need nearly as few examples, larger ones nearly as few steps. With r =
    θ² it is the size that the norm test asks for (R. H. Byrd, G. M. Chin, J. Nocedal, Y. Wu, Math. Program. 134, 2012).

    Args:
        noise_scale: B, a number or an array, at least 0; infinite at a minimum of the mean loss.
        relative_noise: r = E‖ĝ − ḡ‖²/‖ḡ‖².
        population_size: N; infinite by default.

    Returns:
        M as a real number; round it up.

    Raises:
        TypeError, ValueError: if ``relative_noise`` is not positive, ``population_size`` not a positive integer, or B
            negative, as an estimate is that cannot be told from infinity.

    >>> round(float(critical_batch_size(63 / 5, relative_noise=0.25)), 4)
    50.4
    >>> round(float(critical_batch_size(63 / 5, relative_noise=0.25, population_size=4)), 4)
    3.7753
    """
    if not 0 < relative_noise < math.inf:
        raise ValueError(f"relative_noise must be positive, got {relative_noise}")
    B = _noise_scale(noise_scale)
    if population_size is None:
        return B / relative_noise
    validate.positive_integer(population_size=population_size)
    return float(population_size) / (1 + relative_noise * float(population_size - 1) / B)


class RelativeCost(NamedTuple):
    """What a target costs at a batch size, as multiples of the least that any batch size takes."""

    steps: Any
    examples: Any


def relative_cost(noise_scale: Any, batch_size: Any) -> RelativeCost:
    """How many steps and examples a batch size takes, as multiples of the fewest of each, if B stays what it is.

    The steps are S/S_min = 1 + B/M and the examples E/E_min = 1 + M/B (McCandlish et al., 2018, section 2.3). At M = B
    both are twice their least.

    Args:
        noise_scale: B, a number or an array, at least 0.
        batch_size: M, positive numbers that broadcast against B.

    Raises:
        ValueError: if B is negative, or M not positive.

    >>> cost = relative_cost(100.0, jnp.asarray([25.0, 100.0, 400.0]))
    >>> cost.steps.tolist(), cost.examples.tolist()
    ([5.0, 2.0, 1.25], [1.25, 2.0, 5.0])
    """
    B = _noise_scale(noise_scale)
    validate.positive_if_known(batch_size=batch_size)
    M = jnp.asarray(batch_size, B.dtype)
    return RelativeCost(1 + B / M, 1 + M / B)


def adascale_gain(noise_scale: Any, scale: Any, *, base_batch_size: int = 1) -> Float[Array, "..."]:
    """By how much more a step on S batches advances than one on a single of them: r_S, between 1 and S.

    r_S = (σ² + μ²)/(σ²/S + μ²) with σ² = tr Σ/b and μ² = ‖ḡ‖², which depends on their quotient alone: (B/b + 1)/(B/(bS)
    + 1). AdaScale multiplies the learning rate by it, and counts the step as r_S steps.

    Args:
        noise_scale: B.
        scale: S, how many batches make one, positive.
        base_batch_size: b, the number of examples in each.

    References:
        T. B. Johnson, P. Agrawal, H. Gu, C. Guestrin, "AdaScale SGD: a user-friendly algorithm for distributed
        training", ICML 2020.

    >>> round(float(adascale_gain(63 / 5, 4) * 83), 3)
    272.0
    """
    validate.positive_integer(base_batch_size=base_batch_size)
    validate.positive_if_known(scale=scale)
    relative = _noise_scale(noise_scale) / float(base_batch_size)
    S = jnp.asarray(scale, relative.dtype)
    return jnp.where(jnp.isinf(relative), S, (relative + 1) / (relative / S + 1))


def cabs_batch_size(trace_covariance: Any, mean_loss: Any, learning_rate: Any) -> Float[Array, "..."]:
    """The batch size α tr Σ/L̄ of CABS, for losses of which 0 is the lowest.

    It couples the batch to the learning rate α, and changes if a constant is added to the loss.

    Raises:
        ValueError: if tr Σ is negative, or one of the others not positive.

    References:
        L. Balles, J. Romero, P. Hennig, "Coupling adaptive batch sizes with learning rates", UAI 2017.

    >>> round(float(cabs_batch_size(15.75, 0.75, 0.05)), 4)
    1.05
    """
    validate.positive_if_known(mean_loss=mean_loss, learning_rate=learning_rate)
    if not isinstance(trace_covariance, jax.core.Tracer) and not np.all(np.asarray(trace_covariance) >= 0):
        raise ValueError(f"trace_covariance must be at least 0, got {trace_covariance}")
    return jnp.asarray(learning_rate) * trace_covariance / mean_loss


def _noise_scale(value: Any) -> Array:
    if not isinstance(value, jax.core.Tracer):
        values = np.asarray(value)
        if not (values >= 0).all():
            raise ValueError(f"noise_scale must be at least 0, got {values[~(values >= 0)].ravel()[0]}")
    return jnp.asarray(value, jnp.result_type(float, value))
