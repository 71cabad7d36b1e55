"""Every batch size at once: the variance of minibatch gradients as a curve over 1 ≤ M ≤ N.

One number, tr Σ, gives the whole exact curve; one random order of the examples gives one batch of every size, so R
orders give a Monte Carlo curve; three sums over the Gram matrix give its standard errors in closed form:

    M⁴ E‖ĝ − ḡ‖⁴ = A q + B (t² + 2f),
    A = M(N−M)(N² + N − 6NM + 6M²) / (N)₄,   B = M(M−1)(N−M)(N−M−1) / (N)₄,

with the centered Gram matrix K, t = tr K, q = Σ K_ii², f = Σ K_ij², (N)₄ = N(N−1)(N−2)(N−3), and a batch without
replacement: the fourth moment of a sum drawn from a finite population (Isserlis, 1918, in one dimension), with the 2f
that several dimensions add. It follows from writing ‖Σ_{i∈s} z_i‖⁴ as a sum over quadruples and using that the rows of
K sum to zero. With replacement A = M/N and B = M(M−1)/N².
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int, PyTree

from jaxsgd import designs, kernels, moments
from jaxsgd._core import devices, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.sums import LARGEST_BLOCK
from jaxsgd.estimators._orders import Counts, by_gram, by_sums, squared_mean_errors, sums_over_gram

DesignName = Literal["with_replacement", "without_replacement"]

_FULL_SIZE_DESIGNS: dict[str, Callable[[int], Any]] = {
    "with_replacement": designs.WithReplacement,
    "without_replacement": designs.WithoutReplacement,
}


@dataclass(frozen=True)
class VarianceCurve:
    """E‖ĝ − ḡ‖² for many batch sizes.

    Attributes:
        design: "with_replacement" or "without_replacement".
        batch_sizes: M, shape (B,).
        variance: E‖ĝ − ḡ‖², shape (B,).
        standard_error: of ``variance``, from the draws, shape (B,); 0 for an exact curve.
        squared_mean_error: ‖(mean of the drawn ĝ) − ḡ‖², shape (B,); 0 for an exact curve.
        num_draws: R; 0 for an exact curve.
    """

    design: str
    batch_sizes: Int[np.ndarray, " b"]
    variance: Float64[np.ndarray, " b"]
    standard_error: Float64[np.ndarray, " b"]
    squared_mean_error: Float64[np.ndarray, " b"]
    num_draws: int


@on_any_mesh
def variance_curve(
    g: kernels.PerExampleGradients | moments.GradientMoments,
    batch_sizes: Sequence[int] | Int[np.ndarray, " b"] | None = None,
    *,
    design: DesignName = "without_replacement",
    metric: PyTree | None = None,
) -> VarianceCurve:
    """The exact tr Cov ĝ at every batch size, from one number: tr Σ.

    Without replacement it is c_M tr Σ with c_M = (N−M)/(M(N−1)); with replacement, tr Σ / M.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the moments of the population's gradients, or the gradients.
        batch_sizes: which M in 1..N; all of them by default.
        design: "without_replacement" or "with_replacement".
        metric: D, for tr D Cov ĝ: positive weights, a pytree like ``params``, or the Optax state of an optimizer that
            divides coordinates, as :func:`jaxsgd.noise_scale` takes them.

    Raises:
        TypeError, ValueError: if a batch size is not an integer in 1..N, or the design is unknown; if there is a
            ``metric`` for moments that are not per coordinate.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> variance_curve(moments.gradient_moments(loss_fn, params, data)).variance.tolist()
    [15.75, 5.25, 1.75, 0.0]
    """
    m = moments.of(g, metric=metric)
    population_size = int(m.count)
    sizes = _batch_sizes(batch_sizes, population_size)
    validate.one_of(tuple(_FULL_SIZE_DESIGNS), design=design)
    zeros = np.zeros(len(sizes))
    variance = _factors(design, population_size, sizes) * float(m.trace_covariance(ddof=0))
    return VarianceCurve(design, sizes, variance, zeros, zeros, 0)


@on_any_mesh
def monte_carlo_curve(
    g: kernels.PerExampleGradients,
    batch_sizes: Sequence[int] | Int[np.ndarray, " b"] | None = None,
    *,
    key: Array,
    num_draws: int,
    design: DesignName = "without_replacement",
    chunk_size: int = 32,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> VarianceCurve:
    """E‖ĝ − ḡ‖² at every batch size, from batches really drawn: one random order of examples gives every M.

    The first M examples of a random permutation are a batch without replacement, and the first M of N independent
    draws are one with replacement. With S_M the sum of the first M centered gradients and K the centered Gram
    matrix,

        ‖S_M‖² = ‖S_{M−1}‖² + 2⟨S_{M−1}, g_j − ḡ⟩ + K_jj

    for the M-th example j, and K S_M grows by one row of K: N numbers a step, whatever the number of parameters. Of
    more than 4096 examples no Gram matrix is formed: S_M itself grows by one gradient, P numbers a step.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the gradients of the whole population.
        batch_sizes: which M in 1..N to return; all of them by default.
        key: order r uses ``fold_in(key, r)``.
        num_draws: R, the number of orders, at least 2. Points of one curve share them, so they are correlated.
        design: "without_replacement" or "with_replacement".
        chunk_size: how many orders are compiled into one call; the result does not depend on it.
        progress: wraps the loop over chunks, as ``tqdm`` does.

    Returns:
        :class:`VarianceCurve`. The error of rounding is about N·tr Σ times the machine's epsilon, so ask for
        float64 where M close to N matters.

    Raises:
        TypeError, ValueError: as :func:`monte_carlo` and :func:`variance_curve`; if B·N numbers are more than memory
            holds.
    """
    validate.random_key(key=key)
    validate.at_least(2, num_draws=num_draws)
    validate.positive_integer(chunk_size=chunk_size)
    validate.one_of(tuple(_FULL_SIZE_DESIGNS), design=design)
    kernels.require_finite(g)
    sizes = _batch_sizes(batch_sizes, g.count)
    law, few = _FULL_SIZE_DESIGNS[design](g.count), g.count <= LARGEST_BLOCK
    by_order = by_gram(law, g, key) if few else by_sums(law, g, key)
    squared_sums, counts = [], Counts(sizes, g.count)
    for start in progress(range(0, num_draws, chunk_size)):
        orders, chunk = by_order(jnp.arange(start, min(start + chunk_size, num_draws)))
        squared_sums.append(devices.on_host(chunk).astype(np.float64)[:, sizes - 1])
        counts.add(devices.on_host(orders))
    squared_errors = np.concatenate(squared_sums) / sizes.astype(np.float64) ** 2
    deviations = counts.of_each_size() / (num_draws * sizes[:, None]) - 1 / g.count
    return VarianceCurve(
        design=design,
        batch_sizes=sizes,
        variance=squared_errors.mean(axis=0),
        standard_error=squared_errors.std(axis=0, ddof=1) / num_draws**0.5,
        squared_mean_error=squared_mean_errors(g, deviations),
        num_draws=num_draws,
    )


@dataclass(frozen=True)
class SquaredErrorLaw:
    """Mean and variance of the random number ‖ĝ − ḡ‖², for many batch sizes.

    Attributes:
        mean: E‖ĝ − ḡ‖² = tr Cov ĝ, shape (B,).
        variance: Var ‖ĝ − ḡ‖², shape (B,).
        squared_covariance: tr (Cov ĝ)², shape (B,).
    """

    mean: Float64[np.ndarray, " b"]
    variance: Float64[np.ndarray, " b"]
    squared_covariance: Float64[np.ndarray, " b"]

    def of_mean(self, num_draws: int) -> "SquaredErrorLaw":
        """The law of ‖ē‖² for the mean ē of R independent errors e_r = ĝ_r − ḡ.

        ‖ē‖² = R⁻² (Σ‖e_r‖² + Σ_{r≠s} ⟨e_r, e_s⟩), two uncorrelated sums, and E⟨e_r, e_s⟩² = tr (Cov ĝ)², so
        Var ‖ē‖² = R⁻⁴ (R Var‖e‖² + 2R(R−1) tr (Cov ĝ)²).
        """
        validate.positive_integer(num_draws=num_draws)
        R = num_draws
        return SquaredErrorLaw(
            mean=self.mean / R,
            variance=(self.variance + 2 * (R - 1) * self.squared_covariance) / R**3,
            squared_covariance=self.squared_covariance / R**2,
        )

    def z_scores(self, observed: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
        """Observed values of ‖ĝ − ḡ‖² as standard normal scores, shape (B,); 0 where nothing is random.

        A squared error is skewed, so its distance from the mean in standard deviations is no normal score. Its cube
        root is nearly normal: with the ν = 2 mean²/variance degrees of freedom of the χ² law of the same mean and
        variance, (observed/mean)^(1/3) has mean 1 − 2/(9ν) and variance 2/(9ν) (Wilson and Hilferty, "The
        distribution of chi-square", PNAS 17, 1931).
        """
        random = self.variance > 0
        mean = np.where(random, self.mean, 1)
        spread = np.where(random, self.variance, 1) / (9 * mean**2)  # 2/(9ν)
        roots = np.cbrt(observed / mean)
        return np.where(random, (roots - (1 - spread)) / np.sqrt(spread), 0)


@on_any_mesh
def squared_error_law(
    g: kernels.PerExampleGradients,
    batch_sizes: Sequence[int] | Int[np.ndarray, " b"] | None = None,
    *,
    design: DesignName = "without_replacement",
) -> SquaredErrorLaw:
    """Mean and variance of ‖ĝ − ḡ‖² in closed form: the standard error of any Monte Carlo check, before it is run.

    It is that of a sum drawn from a finite population, from three sums over the centered Gram matrix.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the gradients of the whole population. Of more than 4096, no Gram matrix is formed: what is summed over its
            N² entries is then found from P × P products, or a few rows at a time.
        batch_sizes: which M in 1..N; all of them by default.
        design: "without_replacement" or "with_replacement".
    """
    validate.one_of(tuple(_FULL_SIZE_DESIGNS), design=design)
    kernels.require_finite(g)
    sizes = _batch_sizes(batch_sizes, g.count)
    N, M = float(g.count), sizes.astype(np.float64)
    trace, quartic, frobenius = sums_over_gram(g)
    if design == "with_replacement":
        A, B = M / N, M * (M - 1) / N**2
    elif g.count < 4:  # a batch or its complement is one example
        A, B = np.minimum(M, N - M) / N, np.zeros_like(M)
    else:
        quadruples = N * (N - 1) * (N - 2) * (N - 3)
        A = M * (N - M) * (N**2 + N - 6 * N * M + 6 * M**2) / quadruples
        B = M * (M - 1) * (N - M) * (N - M - 1) / quadruples
    factors = _factors(design, g.count, sizes)
    mean = factors * trace / N
    fourth_moment = (A * quartic + B * (trace**2 + 2 * frobenius)) / M**4
    return SquaredErrorLaw(mean, fourth_moment - mean**2, factors**2 * frobenius / N**2)


def _batch_sizes(sizes: Any, population_size: int) -> Int[np.ndarray, " b"]:
    if sizes is None:
        return np.arange(1, population_size + 1)
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or sizes.size == 0:
        raise ValueError(f"batch_sizes must be a non-empty vector, got shape {sizes.shape}")
    if not np.issubdtype(sizes.dtype, np.integer):
        raise TypeError(f"batch_sizes must be integers, got dtype {sizes.dtype}")
    outside = sizes[(sizes < 1) | (sizes > population_size)]
    if outside.size:
        raise ValueError(f"batch_sizes must lie between 1 and the population size {population_size}, got {outside[0]}")
    return sizes


def _factors(design: str, population_size: int, sizes: Int[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    """Cov ĝ = factor · Σ, at every batch size."""
    if design == "with_replacement":
        return 1 / sizes
    return (population_size - sizes) / (sizes * max(population_size - 1, 1))
