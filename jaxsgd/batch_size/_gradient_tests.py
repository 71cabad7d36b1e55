"""Tests of one batch that tell whether it should grow, as published and unbiased.

As published, they are too lenient: E‖ĝ‖² = ‖ḡ‖² + tr Σ/m, so that with x = tr Σ/(m‖ḡ‖²) the norm test compares about
x/(1 + x) < 1 with θ², and with θ = 1 passes on a third to a half of all batches however large the noise is. The
unbiased forms have the averages over pairs,

    ‖ḡ‖² = E⟨g₁, g₂⟩,    ‖ḡ‖⁴ = E⟨g₁, g₂⟩⟨g₃, g₄⟩,    ḡᵀΣḡ = E⟨g₁, g₂⟩⟨g₁, g₃⟩ − ‖ḡ‖⁴,

of different examples. Unlike the advice beside them, these need the gradients of a batch and not a noise scale.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd import kernels, noise
from jaxsgd._core import sums, validate
from jaxsgd._core.meshes import on_any_mesh


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

        The formula is the published one, or the unbiased one, which is infinite where the statistics are negative.
        """
        validate.positive(theta=theta, nu=nu)
        if not unbiased:
            return self.count * jnp.maximum(self.inner_product / theta**2, self.orthogonality / nu**2)
        excess = [self.unbiased_inner_product / theta**2, self.unbiased_orthogonality / nu**2]
        return self.count * jnp.where(self.unbiased_norm > 0, jnp.maximum(*excess), jnp.inf)

    def norm_batch_size(self, *, theta: float = 0.9, unbiased: bool = True) -> Float[Array, ""]:
        """The size at which the norm test is passed."""
        validate.positive(theta=theta)
        if not unbiased:
            return self.count * self.norm / theta**2
        return self.count * jnp.where(self.unbiased_norm > 0, self.unbiased_norm / theta**2, jnp.inf)


@on_any_mesh
def gradient_tests(g: kernels.PerExampleGradients) -> GradientTests:
    """The norm, inner-product and orthogonality tests of a batch of m independent examples.

    As published, the tests are too lenient: ‖ĝ‖² is larger than ‖ḡ‖² on the average, and with θ = 1 the norm test
    passes on a third of all batches at least. The unbiased forms average products over different examples. Norm = inner
    product + orthogonality holds for both forms, on every batch. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

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
    validate.at_least(2, **{"the number of examples": g.count})
    kernels.require_finite(g)
    return _tests(g, kernels.unit(g))


@jax.jit
def _tests(g: kernels.PerExampleGradients, unit: Float[Array, ""]) -> GradientTests:
    m, pairs = g.count, noise.pair_sums(g, unit)  # of quotients, in which the unit cancels
    signal, variance = pairs.means
    squared_norm = sums.squared_norm(g.mean()).astype(variance.dtype) / unit.astype(variance.dtype) ** 2
    norm = variance / m / squared_norm
    inner_product = pairs.along_mean / m / squared_norm
    unknown = jnp.full((), jnp.nan, variance.dtype)
    fourth_power, projected = noise.mean_fourth_power(pairs) if m >= 4 else (unknown, unknown)
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
