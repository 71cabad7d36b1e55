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
from jaxtyping import Array, Bool

from jaxsgd import kernels
from jaxsgd._core import sums
from jaxsgd._core.rational import quotient
from jaxsgd._core.ratios import MANY, reciprocal, student
from jaxsgd.noise._evidence import Evidence

_STEPS = 50  # of bisection


@partial(jax.jit, static_argnames="alpha")
def score(evidence: Evidence, alpha: float) -> tuple[Array, Array]:
    """The ends of the interval for B that is missed with probability ``alpha``, from k batches."""
    G, T = evidence.squared_mean_norm.mean(), evidence.trace.mean()
    estimate = jnp.where(T > 0, G / jnp.where(T > 0, T, 1), 0)
    center, scale = jnp.maximum(estimate, 0), jnp.abs(estimate) + evidence.factor.mean()

    quantiles = student(alpha, G.dtype)

    def refused(rho: Array) -> Bool[Array, ""]:
        variance, freedom = _variance(evidence, rho)
        square = (G - rho * T) ** 2
        quantile = jnp.interp(1 / freedom, *quantiles)
        return jnp.isfinite(variance) & (square > quantile**2 * variance)

    largest = _last(center, lambda x: center + scale * x / (1 - x), refused)
    smallest = jnp.where(refused(jnp.zeros_like(center)), _last(center, lambda x: center * (1 - x), refused), 0)
    none = (T <= 0) & (G > 0)
    return jnp.where(none, 0, reciprocal(largest)), jnp.where(none, 0, reciprocal(smallest))


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
    return variance, jnp.where(uncertain * MANY > variance**2, variance**2 / uncertain, MANY)


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
