"""The noise scale of gradients at hand, with its interval, and its law.

With the sample variance S = Σ‖g_i − ĝ‖²/(m − 1), unbiased are

    ‖ĝ‖² − (1/m − 1/N) S  for ‖ḡ‖²    and    (1 − 1/N) S  for tr Σ,

since E‖ĝ‖² = ‖ḡ‖² + (1/m − 1/N) tr S² for m of N examples without replacement, and E S = tr S² = tr Σ · N/(N − 1). In
an infinite population 1/N is 0. Where the m examples are all there is, m = N, the quotient is T/‖ḡ‖² exactly.

The quotient of unbiased estimates has no mean, and its error is far from normal unless m is a multiple of B. The
intervals are therefore for ρ = ‖ḡ‖²/tr Σ = 1/B (E. C. Fieller, "Some problems in interval estimation", J. R. Stat. Soc.
B 16, 1954): for the true ρ, the difference G − ρT has mean 0 and variance V_G − 2ρC + ρ²V_T, and the interval holds all
ρ at which it is within z of its standard deviations. It includes 0, and so reaches up to B = ∞, exactly when ‖ḡ‖² is
not significantly above 0.

An estimate of V_G that comes from the same examples is too small when G is, which costs Fieller's interval some
coverage. With f = 1/m − 1/N, V_G = 4f ḡᵀΣḡ + 2f² tr Σ² to first order, for normal gradients exactly, and for a given ρ
the first term is 4fρT λ where λ is the variance of the g_i along ḡ: the interval "score" takes this in place of V_G at
every ρ. In simulations with normal gradients whose covariance is a multiple of the identity, "score" covers B as often
as it should from m = B/10 on, where "fieller" and "jackknife", asked for 95 %, cover it in 94 % of cases at m = 5B, and
in 90 % and 71 % at m = B/2. If λ differs much between ḡ and the noise, "score" covers too much or too little until m is
a multiple of B.

"fieller" takes unbiased estimates of the three variances, U-statistics of degree four; where they are no covariance
matrix, which few examples can bring about, the jackknife's. "jackknife" is m B̂ − (m − 1) mean B̂₋ᵢ with a symmetric
interval from the spread of the B̂₋ᵢ: for comparison, as it is short where it should be unbounded.

Two mean gradients will do for an estimate without an interval: since E‖ĝ_M‖² = ‖ḡ‖² + c_M tr Σ,

    tr Σ ≈ (‖ĝ_s‖² − ‖ĝ_b‖²)/(c_s − c_b),    ‖ḡ‖² ≈ (c_s ‖ĝ_b‖² − c_b ‖ĝ_s‖²)/(c_s − c_b)

are unbiased, with c_M = 1/M for an infinite population (McCandlish et al., 2018, appendix A.1) and (N − M)/(M(N − 1))
for batches without replacement of N examples. With 1/M in place of c_M they are unbiased too, whatever the two sizes:
for tr S² and ‖ḡ‖² − tr S²/N, as if the N examples were drawn from an infinite population themselves.
"""

import warnings
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels, moments
from jaxsgd._core import sums, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.rational import quotient
from jaxsgd.noise import _u_statistics


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScale:
    """An estimate of B = tr Σ/‖ḡ‖²; a registered pytree of scalars.

    Attributes:
        value: the estimate; negative or infinite where the estimate of ‖ḡ‖² is not positive.
        low: the lower end of the interval for B, at least 0.
        high: its upper end; infinite where the data do not tell ‖ḡ‖² from 0. Both are NaN without per-example
            gradients.
        trace_covariance: the unbiased estimate of tr Σ.
        squared_mean_norm: the unbiased estimate of ‖ḡ‖², which may be negative.
        covariance: the estimated covariance of (``squared_mean_norm``, ``trace_covariance``), shape (2, 2); a fourth
            power of gradients, with a warning where float32 does not hold it.
        count: how many examples there were.
    """

    value: Any
    low: Any
    high: Any
    trace_covariance: Any
    squared_mean_norm: Any
    covariance: Any
    count: Any

    def __str__(self) -> str:
        value, low, high = float(self.value), float(self.low), float(self.high)
        text = f"noise scale {value:.4g}, between {low:.4g} and {high:.4g}, from {int(self.count)} examples"
        return f"{text}: the mean gradient cannot be told from 0" if high == float("inf") else text


@on_any_mesh
def noise_scale(
    gradients: kernels.PerExampleGradients | moments.GradientMoments,
    *,
    population_size: int | None = None,
    confidence_level: float = 0.95,
    interval: Literal["score", "fieller", "jackknife"] = "score",
) -> NoiseScale:
    """Estimate the noise scale of the population that m examples were drawn from.

    Both parts are unbiased, for tr Σ and ‖ḡ‖². Where the m examples are all there is, m = N, it is exact. The interval
    reaches up to B = ∞ where ‖ḡ‖² is not significantly above 0. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        gradients: of the examples, independent draws or ``population_size`` without replacement; moments give an
            estimate without an interval.
        population_size: N, the size of the population that the examples are from without replacement; infinite by
            default. ``population_size=g.count``: they are the population.
        confidence_level: the probability that the interval holds B, for many examples.
        interval: "score", which covers B as often as it should from m = B/10 on; or, for comparison, "fieller" or
            "jackknife", which do from a multiple of B on.

    Raises:
        TypeError: if ``population_size`` is not an integer.
        ValueError: if there are fewer than two examples (of a population of more than one), or more than
            ``population_size``; if ``confidence_level`` is not in (0, 1); if a gradient is not finite.

    Guarantees:
        - O(m) beyond a Gram matrix of at most 2048 examples, which corrects the variances by a relative O(B/m).
        - under ``jit`` and ``vmap``, without the check for finite gradients.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> round(float(noise_scale(g, population_size=4).value), 4)
    12.6
    >>> print(noise_scale(g))
    noise scale -5.25, between 0 and inf, from 4 examples: the mean gradient cannot be told from 0
    """
    validate.one_of(("score", "fieller", "jackknife"), interval=interval)
    validate.fraction(confidence_level=confidence_level)
    count = gradients.count if isinstance(gradients, kernels.PerExampleGradients) else int(gradients.count)
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, **{"the number of examples": count})
    validate.at_least(1 if population_size == 1 else 2, **{"the number of examples": count})
    z = NormalDist().inv_cdf((1 + confidence_level) / 2)
    if isinstance(gradients, moments.GradientMoments):
        return _of_moments(gradients, population_size)
    kernels.require_finite(gradients)
    return _of_examples(gradients, population_size, z, interval)


@on_any_mesh
def two_batch_noise_scale(
    small_gradient: PyTree,
    big_gradient: PyTree,
    *,
    small_size: int,
    big_size: int,
    population_size: int | None = None,
) -> NoiseScale:
    """Estimate the noise scale from the mean gradients of two batches, of which one may be a part of the other.

    ``trace_covariance`` and ``squared_mean_norm`` are unbiased, as E‖ĝ_M‖² = ‖ḡ‖² + c_M tr Σ tells them apart by the
    two sizes. One pair says next to nothing: average the two over many pairs, then divide.
    ``monitors.two_batch_noise_scale`` does so along a run.

    Args:
        small_gradient: ĝ_s, a pytree like ``params``.
        big_gradient: ĝ_b, of the same structure.
        small_size: the number of examples in the small batch.
        big_size: the number of examples in the big batch.
        population_size: N; infinite by default.

    Returns:
        :class:`NoiseScale` without an interval.

    Raises:
        TypeError, ValueError: if a size is out of its range, or the gradients are not finite, of other parameters, or
            too small or large to be squared.

    References:
        S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", arXiv:1812.06162,
        2018, appendix A.1.

    >>> estimate = two_batch_noise_scale(jnp.asarray([3.0]), jnp.asarray([2.0]), small_size=1, big_size=4)
    >>> round(float(estimate.trace_covariance), 3), round(float(estimate.squared_mean_norm), 3)
    (6.667, 2.333)
    """
    validate.positive_integer(small_size=small_size)
    validate.at_least(small_size + 1, big_size=big_size)
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, "the population size", batch_size=big_size)
    layouts = [
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (small_gradient, big_gradient)
    ]
    if layouts[0] != layouts[1]:
        raise ValueError(
            "big_gradient must be of the same parameters as small_gradient, with the same structure and shapes"
        )
    validate.floating_leaves(small_gradient=small_gradient, big_gradient=big_gradient)
    validate.finite_if_known(small_gradient=small_gradient, big_gradient=big_gradient)
    units.require_squares("small_gradient and big_gradient", small_gradient, big_gradient)
    small, big = (sums.squared_norm(gradient) for gradient in (small_gradient, big_gradient))
    c_small, c_big = (variance_factor(size, population_size) for size in (small_size, big_size))
    trace, signal = (small - big) / (c_small - c_big), (c_small * big - c_big * small) / (c_small - c_big)
    return _without_interval(trace, signal, big_size)


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
    G, T, covariance = _targets(pairs, _u_statistics.batch_covariance(pairs, batch_size), g.count)
    relative = covariance / jnp.outer(jnp.stack([G, T]), jnp.stack([G, T]))
    B = T / G
    variance = B**2 * (relative[0, 0] + relative[1, 1] - 2 * relative[0, 1])
    bias = B * (relative[0, 0] - relative[0, 1])
    return NoiseScaleLaw(T * unit**2, G * unit**2, _with_unit(covariance, unit), bias, variance)


def variance_factor(batch_size: int, population_size: int | None) -> float:
    """c_M: 1/M, or (N − M)/(M(N − 1)) for M of N without replacement.

    Raises:
        TypeError, ValueError: if M, or N if it is not None, is not a positive integer, or M > N.
    """
    validate.positive_integer(batch_size=batch_size)
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, "the population size", batch_size=batch_size)
    if population_size is None:
        return 1 / batch_size
    return (population_size - batch_size) / (batch_size * max(population_size - 1, 1))


def _of_moments(m: moments.GradientMoments, population_size: int | None) -> NoiseScale:
    count = int(m.count)
    S = m.trace_covariance(ddof=min(count - 1, 1))
    share = 0.0 if population_size is None else 1 / population_size
    return _without_interval((1 - share) * S, m.squared_mean_norm - (1 / count - share) * S, count)


def _without_interval(trace: Any, signal: Any, count: int) -> NoiseScale:
    unknown = jnp.full((), jnp.nan, signal.dtype)
    return NoiseScale(trace / signal, unknown, unknown, trace, signal, jnp.full((2, 2), unknown), jnp.asarray(count))


def _of_examples(g: kernels.PerExampleGradients, population_size: int | None, z: float, interval: str) -> NoiseScale:
    if g.count == population_size:
        return _of_population(g)
    unit = kernels.unit(g)
    found = _in_units(g, unit, population_size, z, interval)
    covariance = _with_unit(found.covariance, unit)
    trace, signal = (number * unit**2 for number in (found.trace_covariance, found.squared_mean_norm))
    return replace(found, trace_covariance=trace, squared_mean_norm=signal, covariance=covariance)


def _with_unit(covariance: Float[Array, "2 2"], unit: Array) -> Float[Array, "2 2"]:
    """The covariance of squares in the unit of the gradients themselves, of which it is a fourth power."""
    if units.leaves_range(covariance, unit, 4):
        warnings.warn(
            f"covariance is a fourth power of gradients that {covariance.dtype} does not hold, and is 0 or infinite: "
            "scale the loss, or use float64 parameters",
            stacklevel=2,
        )
    return covariance * unit**2 * unit**2


def _in_units(
    g: kernels.PerExampleGradients, unit: Array, population_size: int | None, z: float, interval: str
) -> NoiseScale:
    pairs = _u_statistics.pair_sums(g, unit)
    spread = jnp.full((2, 2), jnp.inf, pairs.means.dtype)
    if g.count >= 4:
        unbiased = _u_statistics.sample_covariance(pairs, population_size)
        fallback = _u_statistics.jackknife_covariance(pairs, population_size)
        spread = jnp.where(_is_covariance(unbiased), unbiased, fallback)
    G, T, covariance = _targets(pairs, spread, population_size)
    if interval == "jackknife":
        value, error = _jackknife(g, population_size)
        low, high = value - z * error, value + z * error
    else:
        linear = jnp.zeros_like(G)
        variances = covariance
        if interval == "score":
            f = 1 / g.count - (0 if population_size is None else 1 / population_size)
            noise = 2 * f**2 * g.count / (g.count - 1) * pairs.squared_covariance
            variances, linear = covariance.at[0, 0].set(noise), 4 * f * T * pairs.along_mean
        value, (low, high) = T / G, _interval(G, T, variances, linear, z)
    return NoiseScale(value, low, high, T, G, covariance, jnp.asarray(g.count))


def _of_population(g: kernels.PerExampleGradients) -> NoiseScale:
    signal = sums.squared_norm(g.mean())
    trace = (g.total_deviation() / g.count).astype(signal.dtype)
    value = trace / signal
    return NoiseScale(value, value, value, trace, signal, jnp.zeros((2, 2), signal.dtype), jnp.asarray(g.count))


def _targets(
    pairs: _u_statistics.PairSums, covariance: Array, population_size: int | None
) -> tuple[Array, Array, Array]:
    """The estimates of ‖ḡ‖² and tr Σ, and their covariance, from those of the U-statistics of K and D.

    ‖ĝ‖² − (1/m − 1/N) S is U_K + U_D/N, and (1 − 1/N) S is (1 − 1/N) U_D.
    """
    share = 0.0 if population_size is None else 1 / population_size
    change = jnp.asarray([[1.0, share], [0.0, 1 - share]], pairs.means.dtype)
    G, T = jnp.einsum("ij,j->i", change, pairs.means, precision="highest")
    return G, T, jnp.einsum("ij,jk,lk->il", change, covariance, change, precision="highest")


def _is_covariance(matrix: Float[Array, "2 2"]) -> Any:
    return (jnp.diag(matrix) > 0).all() & (matrix[0, 0] * matrix[1, 1] >= matrix[0, 1] ** 2)


def _interval(G: Array, T: Array, covariance: Float[Array, "2 2"], linear: Array, z: float) -> tuple[Array, Array]:
    """The interval for B = 1/ρ from that of all ρ with (G − ρT)² ≤ z² (V_G + ρv − 2ρC + ρ²V_T), v being ``linear``.

    That is leading · ρ² − 2 half · ρ + last ≤ 0. Below ρ = 0 there is nothing: where 0 is in the interval, B ends at
    infinity. Unless T is significant, every ρ from some point on is in it, and B starts at 0.
    """
    (V_G, C), (_, V_T) = z**2 * covariance
    leading, half, last = T**2 - V_T, G * T - C + z**2 * linear / 2, G**2 - V_G
    root = jnp.sqrt(jnp.maximum(half**2 - leading * last, 0))
    bounded = leading > 0
    largest, smallest = (half + root) / jnp.where(bounded, leading, 1), last / (half + root)
    low, high = _reciprocal(largest), _reciprocal(smallest)
    return jnp.where(bounded, low, 0), jnp.where(last > 0, high, jnp.inf)


def _reciprocal(rho: Array) -> Array:
    """1/ρ, and infinity for ρ ≤ 0."""
    return jnp.where(rho > 0, 1 / jnp.where(rho > 0, rho, 1), jnp.inf)


def _jackknife(g: kernels.PerExampleGradients, population_size: int | None) -> tuple[Array, Array]:
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
