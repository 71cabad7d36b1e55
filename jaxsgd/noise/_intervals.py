"""Intervals for a noise scale B = tr Σ/‖ḡ‖², which is 1/ρ with ρ = ‖ḡ‖²/tr Σ, from one batch of m examples or several.

The quotient of unbiased estimates G of ‖ḡ‖² and T of tr Σ has no mean, and its error is far from normal unless m is a
multiple of B. The intervals are therefore for ρ (E. C. Fieller, "Some problems in interval estimation", J. R. Stat.
Soc. B 16, 1954): for the true ρ, the difference G − ρT has mean 0, and the interval holds all ρ at which it is within a
quantile of its standard deviations. It includes 0, and so reaches up to B = ∞, exactly when ‖ḡ‖² is not significantly
above 0.

"fieller" has V_G − 2ρC + ρ²V_T for the variance, with unbiased estimates of the three, U-statistics of degree four;
where they are no covariance matrix, which few examples can bring about, the jackknife's. An estimate of V_G that comes
from the same examples is too small when G is, which costs this interval some coverage.

"score" has for the variance what it is if the ρ in question is the true one. For ‖ĝ‖², whose mean is ρT + fS with
f = 1/m − 1/N and S = Σ‖g_i − ĝ‖²/(m − 1), that is 2f² tr Σ² + 4f ḡᵀΣḡ to first order, for normal gradients exactly.
The first has an unbiased estimate Q for any law of the gradients (S. X. Chen, L.-X. Zhang, P.-S. Zhong, J. Am. Stat.
Assoc. 105, 2010). Of the second the g_i know the variance λ̂ along ĝ, which has noise in it itself: E ‖ĝ‖²λ̂ is
ḡᵀΣḡ + f tr Σ², so that ḡᵀΣḡ is estimated by (ρT + fS)λ̂ − fQ, or by ρTλ̂ if that is more, as it is for noise that is
smaller along ḡ than elsewhere. The variance of T is an estimate V_T from the ‖g_i − ĝ‖⁴, which the kurtosis of the
gradients enters, times (‖ĝ‖²/T)²: the event that a ratio ‖ĝ‖²/T is at most r is that of ‖ĝ‖² − rT ≤ 0. λ̂ and V_T are
known as well as a variance from m − 1 normal numbers, which the quantile of Student's distribution takes into account,
with the degrees of freedom of a sum (B. L. Welch, Biometrika 34, 1947). In one dimension and for Σ = I that is near the
exact interval from the noncentral F distribution of m‖ĝ‖²/S.

Several batches, of several θ, have the averages of G and of T; the variance of their difference is the mean of the
variances over their number k. If the G − ρT differ by more than that between the batches, as they do where B changes
along a run, the rest is added, with k − 1 degrees of freedom. Batches count as independent.

"jackknife" is m B̂ − (m − 1) mean B̂₋ᵢ with a symmetric interval from the spread of the B̂₋ᵢ: for comparison, as it is
short where it should be unbounded.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import stdtrit

from jaxsgd import kernels
from jaxsgd._core import sums
from jaxsgd._core.rational import quotient
from jaxsgd.noise._evidence import Evidence

_STEPS = 50  # of bisection
_MANY = 1e4  # degrees of freedom, from which on they make no difference


@partial(jax.jit, static_argnames="alpha")
def score(evidence: Evidence, alpha: float) -> tuple[Array, Array]:
    """The ends of the interval for B that is missed with probability ``alpha``, from k batches."""
    G, T = evidence.squared_mean_norm.mean(), evidence.trace.mean()
    estimate = jnp.where(T > 0, G / jnp.where(T > 0, T, 1), 0)
    center, scale = jnp.maximum(estimate, 0), jnp.abs(estimate) + evidence.factor.mean()

    quantiles = _student(alpha, G.dtype)

    def refused(rho: Array) -> Bool[Array, ""]:
        variance, freedom = _variance(evidence, rho)
        square = (G - rho * T) ** 2
        quantile = jnp.interp(1 / freedom, *quantiles)
        return jnp.isfinite(variance) & (square > quantile**2 * variance)

    largest = _last(center, lambda x: center + scale * x / (1 - x), refused)
    smallest = jnp.where(refused(jnp.zeros_like(center)), _last(center, lambda x: center * (1 - x), refused), 0)
    none = (T <= 0) & (G > 0)
    return jnp.where(none, 0, _reciprocal(largest)), jnp.where(none, 0, _reciprocal(smallest))


def _student(alpha: float, dtype: Any) -> tuple[Array, Array]:
    """Quantiles of Student's distribution that |t| exceeds with probability ``alpha``, as a function of 1/freedom."""
    inverses = np.linspace(0, 1, 1025)
    quantiles = stdtrit(1 / np.maximum(inverses, 1 / _MANY), 1 - alpha / 2)
    return jnp.asarray(inverses, dtype), jnp.asarray(quantiles, dtype)


def _variance(e: Evidence, rho: Array) -> tuple[Array, Array]:
    """The variance of the average G − ρT if ρ is the true one, and its degrees of freedom."""
    k, signal = len(e.count), rho * e.trace
    of_noise = 2 * e.factor**2 * e.squared_covariance
    with_noise = (signal + e.factor * e.deviation) * e.along_mean - e.factor * e.squared_covariance
    of_signal = 4 * e.factor * jnp.maximum(with_noise, signal * e.along_mean)
    trace_variance = jnp.where(jnp.isnan(e.covariance[:, 1, 1]), 0, e.covariance[:, 1, 1])
    of_trace = (e.squared_norm.mean() / e.trace.mean()) ** 2 * trace_variance
    variance = (of_noise + of_signal + of_trace).sum() / k**2
    uncertain = ((of_signal**2 + of_trace**2) / (e.count - 1)).sum() / k**4
    if k > 1:
        between = jnp.var(e.squared_mean_norm - signal, ddof=1) / k
        rest = jnp.maximum(between - variance, 0)
        variance, uncertain = variance + rest, uncertain + rest**2 / (k - 1)
    return variance, jnp.where(uncertain * _MANY > variance**2, variance**2 / uncertain, _MANY)


def _last(start: Array, rho: Any, refused: Any) -> Array:
    """ρ at the last x from 0 to 1 at which it is not refused."""

    def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        inside, outside = ends
        middle = (inside + outside) / 2
        out = refused(rho(middle))
        return jnp.where(out, inside, middle), jnp.where(out, middle, outside)

    zero = jnp.zeros((), start.dtype)
    inside, outside = jax.lax.fori_loop(0, _STEPS, halved, (zero, zero + 1))
    return jnp.where(outside < 1, rho(inside), rho(zero + 1))


def fieller(G: Array, T: Array, covariance: Float[Array, "2 2"], z: float) -> tuple[Array, Array]:
    """The interval for B = 1/ρ from that of all ρ with (G − ρT)² ≤ z² (V_G − 2ρC + ρ²V_T).

    That is leading · ρ² − 2 half · ρ + last ≤ 0. Below ρ = 0 there is nothing: where 0 is in the interval, B ends at
    infinity. Unless T is significant, every ρ from some point on is in it, and B starts at 0.
    """
    (V_G, C), (_, V_T) = z**2 * covariance
    leading, half, last = T**2 - V_T, G * T - C, G**2 - V_G
    root = jnp.sqrt(jnp.maximum(half**2 - leading * last, 0))
    bounded = leading > 0
    largest, smallest = (half + root) / jnp.where(bounded, leading, 1), last / (half + root)
    low, high = _reciprocal(largest), _reciprocal(smallest)
    return jnp.where(bounded, low, 0), jnp.where(last > 0, high, jnp.inf)


def _reciprocal(rho: Array) -> Array:
    """1/ρ, and infinity for ρ ≤ 0."""
    return jnp.where(rho > 0, 1 / jnp.where(rho > 0, rho, 1), jnp.inf)


def jackknife(g: kernels.PerExampleGradients, population_size: int | None) -> tuple[Array, Array]:
    """The bias-corrected value and its standard error, from the estimates without each one example.

    With d_i = g_i − ĝ and Q = Σ‖d_j‖², the mean without i is ĝ − d_i/(m − 1) and the sum of squares Q − ‖d_i‖² m/(m −
    1). The B̂₋ᵢ differ from B̂ = T/G by 1/m of it, and of many examples no digit would be left in their differences: the
    changes of T and G are formed, and B̂₋ᵢ − B̂ = (ΔT − B̂ ΔG)/G₋ᵢ from them.
    """
    m, mean = g.count, g.mean()
    q, products = g.squared_deviations(), g.centered_products(mean)
    share = 0.0 if population_size is None else 1 / population_size
    variance = q.sum() / (m - 1)
    of_variance = (q - q.mean()) * -quotient(m, (m - 1) * max(m - 2, 1))
    of_norm = products * (-2 / (m - 1)) + q * quotient(1, (m - 1) ** 2)
    G = sums.squared_norm(mean).astype(q.dtype) - (1 / m - share) * variance
    value = (1 - share) * variance / G
    of_G = of_norm - (1 / (m - 1) - share) * of_variance - quotient(1, m * (m - 1)) * variance
    changes = ((1 - share) * of_variance - value * of_G) / (G + of_G)
    spread = (m - 1) * (1 - share * m) * changes.var(ddof=0)
    return value - (m - 1) * changes.mean(), jnp.sqrt(spread)
