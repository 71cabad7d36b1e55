"""What batch size is worth it: advice from the noise scale, and the tests that let a batch grow along a run.

The noise scale B = tr Σ/‖ḡ‖² is :func:`jaxsgd.noise_scale`'s, or, with curvature, :func:`jaxsgd.hessian_noise_scale`'s.
The functions here take numbers or arrays of them, so they can be applied to ``estimate.value``, ``.low`` and ``.high``
alike.

Imports ``_factors``, ``_pairs``, ``_tradeoff``, ``_validate`` and ``kernels`` only.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd import _factors, _pairs, _validate, kernels
from jaxsgd._tradeoff import Tradeoff, fit_tradeoff, steps_to_target

__all__ = [
    "GradientTests",
    "RelativeCost",
    "Tradeoff",
    "adascale_gain",
    "cabs_batch_size",
    "critical_batch_size",
    "fit_tradeoff",
    "gradient_tests",
    "relative_cost",
    "steps_to_target",
]


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
    _validate.positive(relative_noise=relative_noise)
    B = _noise_scale(noise_scale)
    if population_size is None:
        return B / relative_noise
    _validate.positive_integer(population_size=population_size)
    return population_size / (1 + relative_noise * (population_size - 1) / B)


class RelativeCost(NamedTuple):
    """What a target costs at a batch size, as multiples of the least that any batch size takes."""

    steps: Any
    examples: Any


def relative_cost(noise_scale: Any, batch_size: Any) -> RelativeCost:
    """How many steps and examples a batch size takes, as multiples of the fewest of each, if B stays what it is.

    A step of the best length with independent batches of M gains 1/(1 + B/M) of one without noise, so the steps are
    S/S_min = 1 + B/M and the examples E/E_min = 1 + M/B: (S/S_min − 1)(E/E_min − 1) = 1 (McCandlish et al., 2018,
    section 2.3). At M = B both are twice their least.

    Args:
        noise_scale: B, a number or an array, at least 0.
        batch_size: M, numbers that broadcast against B.

    >>> cost = relative_cost(100.0, jnp.asarray([25.0, 100.0, 400.0]))
    >>> cost.steps.tolist(), cost.examples.tolist()
    ([5.0, 2.0, 1.25], [1.25, 2.0, 5.0])
    """
    B, M = _noise_scale(noise_scale), jnp.asarray(batch_size)
    return RelativeCost(1 + B / M, 1 + M / B)


def adascale_gain(noise_scale: Any, scale: Any, *, base_batch_size: int = 1) -> Float[Array, "..."]:
    """By how much more a step on S batches advances than one on a single of them: r_S, between 1 and S.

    r_S = (σ² + μ²)/(σ²/S + μ²) with σ² = tr Σ/b and μ² = ‖ḡ‖², which depends on their quotient alone: (B/b + 1)/(B/(bS)
    + 1). AdaScale multiplies the learning rate by it, and counts the step as r_S steps.

    Args:
        noise_scale: B.
        scale: S, how many batches make one.
        base_batch_size: b, the number of examples in each.

    References:
        T. B. Johnson, P. Agrawal, H. Gu, C. Guestrin, "AdaScale SGD: a user-friendly algorithm for distributed
        training", ICML 2020.

    >>> round(float(adascale_gain(63 / 5, 4) * 83), 3)
    272.0
    """
    _validate.positive_integer(base_batch_size=base_batch_size)
    relative = _noise_scale(noise_scale) / base_batch_size
    return jnp.where(jnp.isinf(relative), scale, (relative + 1) / (relative / scale + 1))


def cabs_batch_size(trace_covariance: Any, mean_loss: Any, learning_rate: Any) -> Float[Array, "..."]:
    """The batch size α tr Σ/L̄ of CABS, for losses of which 0 is the lowest.

    It couples the batch to the learning rate α, and changes if a constant is added to the loss.

    References:
        L. Balles, J. Romero, P. Hennig, "Coupling adaptive batch sizes with learning rates", UAI 2017.

    >>> round(float(cabs_batch_size(15.75, 0.75, 0.05)), 4)
    1.05
    """
    return jnp.asarray(learning_rate) * trace_covariance / mean_loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradientTests:
    """What the tests of a batch compare with θ² and ν²: a batch of m passes where the statistic is not larger.

    Each is the variance of something over m, divided by a power of ‖ḡ‖². As published, with ‖ĝ‖² in its place:

        norm             tr s²/m / ‖ĝ‖²
        inner_product    Var⟨g_i, ĝ⟩/m / ‖ĝ‖⁴
        orthogonality    the first minus the second: the variance orthogonal to ĝ, over m, / ‖ĝ‖²

    and unbiased, both numerator and denominator: ``unbiased_norm``, ``unbiased_inner_product``,
    ``unbiased_orthogonality``. Those are negative where the denominator is, that is where the batch does not tell ‖ḡ‖²
    from 0, and then fail for every θ. ``count`` is m.
    """

    norm: Any
    inner_product: Any
    orthogonality: Any
    unbiased_norm: Any
    unbiased_inner_product: Any
    unbiased_orthogonality: Any
    count: Any

    def batch_size(self, *, theta: float = 0.9, nu: float = 5.67, unbiased: bool = True) -> Float[Array, ""]:
        """The size at which both the inner-product and the orthogonality test are passed: m times the larger excess.

        By the published formula, or by the unbiased one, infinite where that is negative.
        """
        if not unbiased:
            return self.count * jnp.maximum(self.inner_product / theta**2, self.orthogonality / nu**2)
        excess = [self.unbiased_inner_product / theta**2, self.unbiased_orthogonality / nu**2]
        return self.count * jnp.where(self.unbiased_norm > 0, jnp.maximum(*excess), jnp.inf)

    def norm_batch_size(self, *, theta: float = 0.9, unbiased: bool = True) -> Float[Array, ""]:
        """The size at which the norm test is passed."""
        if not unbiased:
            return self.count * self.norm / theta**2
        return self.count * jnp.where(self.unbiased_norm > 0, self.unbiased_norm / theta**2, jnp.inf)


def gradient_tests(g: kernels.PerExampleGradients) -> GradientTests:
    """The norm, inner-product and orthogonality tests of a batch of m independent examples.

    As published, the tests are too lenient: E‖ĝ‖² = ‖ḡ‖² + tr Σ/m, so that with x = tr Σ/(m‖ḡ‖²) the norm test compares
    about x/(1 + x) < 1 with θ², and with θ = 1 passes always. The unbiased forms have the averages over pairs,

        ‖ḡ‖² = E⟨g₁, g₂⟩,    ‖ḡ‖⁴ = E⟨g₁, g₂⟩⟨g₃, g₄⟩,    ḡᵀΣḡ = E⟨g₁, g₂⟩⟨g₁, g₃⟩ − ‖ḡ‖⁴,

    of different examples. Norm = inner product + orthogonality holds for both, on every batch.

    Args:
        g: the gradients of the batch, at least two; of fewer than four, the unbiased forms are NaN.

    Raises:
        ValueError: if there are fewer, or a gradient is not finite.

    References:
        R. H. Byrd, G. M. Chin, J. Nocedal, Y. Wu, "Sample size selection in optimization methods for machine learning",
        Math. Program. 134, 2012.
        R. Bollapragada, R. Byrd, J. Nocedal, "Adaptive sampling strategies for stochastic optimization", SIAM J. Optim.
        28, 2018, whose defaults are θ = 0.9 and ν = tan 80°.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit(0.0, 0.0)
    >>> tests = gradient_tests(kernels.per_example_gradients(loss_fn)(params, data))
    >>> round(float(tests.norm), 4), round(float(tests.inner_product + tests.orthogonality), 4)
    (0.3036, 0.3036)
    """
    _validate.at_least(2, **{"the number of examples": g.count})
    kernels.require_finite(g)
    return _tests(g)


@jax.jit
def _tests(g: kernels.PerExampleGradients) -> GradientTests:
    m, sums = g.count, _pairs.pair_sums(g)
    signal, variance = sums.means
    squared_norm = _factors.squared_norm(g.mean()).astype(variance.dtype)
    norm = variance / m / squared_norm
    inner_product = sums.along_mean / m / squared_norm
    unknown = jnp.full((), jnp.nan, variance.dtype)
    fourth_power, projected = _pairs.mean_fourth_power(sums) if m >= 4 else (unknown, unknown)
    unbiased_norm, unbiased_inner = variance / m / signal, projected / m / fourth_power
    return GradientTests(
        norm=norm,
        inner_product=inner_product,
        orthogonality=norm - inner_product,
        unbiased_norm=unbiased_norm,
        unbiased_inner_product=unbiased_inner,
        unbiased_orthogonality=unbiased_norm - unbiased_inner,
        count=jnp.asarray(m),
    )


def _noise_scale(value: Any) -> Array:
    if not isinstance(value, jax.core.Tracer):
        _validate.not_negative(noise_scale=value)
    return jnp.asarray(value, jnp.result_type(float, value))
