"""Expectation and variance of minibatch gradients: the only place where a design meets gradients.

A batch is a random weight vector w and ĝ = Σ w_i g_i, with every g_i taken at the same θ. Then

    E ĝ = Σ E[w_i] g_i                  (a finite sum: linearity, nothing else)
        = ḡ for every data set  ⇔  E w_i = 1/N for every i.

This is the proof for 1 < M ≤ N: a uniform draw of M examples, with or without replacement, gives each of them
the mean weight 1/N; neither independence nor distinctness is used. Both enter the variance only,

    tr Cov ĝ = Σ_ij Cov(w)_ij ⟨g_i, g_j⟩.

:func:`exact` evaluates this, :func:`enumerate_batches` sums over every batch, :func:`monte_carlo` draws batches;
the three agree, exactly or within the standard errors they carry. The curves do the same for every batch size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from jaxsgd import _validate, designs, kernels, moments

DesignName = Literal["with_replacement", "without_replacement"]
Measured = kernels.PerExampleGradients | moments.GradientMoments

_FULL_SIZE_DESIGNS: dict[str, Callable[[int], Any]] = {
    "with_replacement": designs.WithReplacement,
    "without_replacement": designs.WithoutReplacement,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Estimate:
    """E ĝ (a pytree like ``params``) and tr Cov ĝ, with the standard error of the latter.

    ``standard_error`` and ``num_draws`` are 0 for exact results. The standard error of ``mean`` needs no field:
    E‖mean − E ĝ‖² = variance / num_draws.
    """

    mean: Any
    variance: Any
    standard_error: Any
    num_draws: Any


def exact(design: designs.Design, g: Measured) -> Estimate:
    """E ĝ and tr Cov ĝ of a design, from the moments of the gradients alone.

    For Cov w = a I − c 11ᵀ, in centered form so that no digit cancels,

        tr Cov ĝ = a Σ‖g_i‖² − c ‖Σ g_i‖² = a N tr Σ + (a N − c N²) ‖ḡ‖².

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population, or their moments.

    Raises:
        ValueError: if the batch is larger than the population, or a gradient is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> float(exact(designs.WithoutReplacement(batch_size=2), g).variance)
    5.25
    >>> float(exact(designs.WithReplacement(batch_size=2), g).variance)
    7.875
    """
    m = _moments(g)
    population_size = int(m.count)
    covariance = design.weight_covariance(population_size)
    total_mean_weight = design.mean_weights(population_size)[0] * population_size
    identity = covariance.identity * population_size
    common = covariance.common * population_size**2
    variance = identity * m.trace_covariance(ddof=0)
    if identity != common:  # a batch whose total weight is random carries the mean's size as well
        variance = variance + (identity - common) * m.squared_mean_norm
    return Estimate(
        mean=jax.tree.map(lambda leaf: float(total_mean_weight) * leaf, m.mean),
        variance=variance,
        standard_error=jnp.zeros_like(variance),
        num_draws=0,
    )


def enumerate_batches(
    design: designs.Design, g: kernels.PerExampleGradients, *, max_batches: int = 100_000
) -> Estimate:
    """E ĝ and tr Cov ĝ by summing over every batch the design can draw: the oracle for small populations.

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        max_batches: refuse, before any work, where the support is larger.

    Raises:
        ValueError: if the support is larger than ``max_batches``, or its probabilities do not sum to one.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> round(float(enumerate_batches(designs.WithoutReplacement(batch_size=2), g).variance), 6)
    5.25
    """
    _validate.positive_integer(max_batches=max_batches)
    kernels.require_finite(g)
    size = design.support_size(g.count)
    if size > max_batches:
        raise ValueError(f"max_batches must be at least {size} to enumerate {design}, got {max_batches}")
    support = list(design.support(g.count))
    probabilities = np.array([float(probability) for probability, _ in support])
    _validate.probabilities(**{f"the support of {design}": probabilities})
    weights = np.array([[float(w) for w in vector] for _, vector in support])
    mean_weights = probabilities @ weights
    squared_errors = _squared_errors(g, jnp.asarray(weights - mean_weights))
    variance = jnp.sum(jnp.asarray(probabilities, squared_errors.dtype) * squared_errors)
    return Estimate(
        mean=g.weighted_sum(jnp.asarray(mean_weights)),
        variance=variance,
        standard_error=jnp.zeros_like(variance),
        num_draws=0,
    )


def monte_carlo(
    design: designs.Design,
    g: kernels.PerExampleGradients,
    *,
    key: Array,
    num_draws: int,
    chunk_size: int = 256,
) -> Estimate:
    """E ĝ and tr Cov ĝ from batches really drawn.

    The mean over R draws is Gᵀ w̄ for the mean w̄ of the drawn weights, so a first pass needs no gradients;
    a second pass over the same draws sums ‖Gᵀ(w_r − w̄)‖² and divides by R − 1, which is unbiased for tr Cov ĝ.

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        key: draw r uses ``fold_in(key, r)``, so results do not depend on ``chunk_size`` but for rounding.
        num_draws: R, at least 2.
        chunk_size: how many draws are held at a time: chunk_size · (N + P) numbers.

    Returns:
        :class:`Estimate`; ``standard_error`` is the sample standard deviation of the R terms over √R.

    Raises:
        TypeError: if ``key`` is not a key.
        ValueError: if there are fewer than two draws, the batch is larger than the population, or a gradient
            is not finite.
    """
    _validate.random_key(key=key)
    _validate.at_least(2, num_draws=num_draws)
    _validate.positive_integer(chunk_size=chunk_size)
    kernels.require_finite(g)
    chunks = [jnp.arange(start, min(start + chunk_size, num_draws)) for start in range(0, num_draws, chunk_size)]
    totals = [_draw(design, g.count, key, chunk).sum(axis=0) for chunk in chunks]
    mean_weights = sum(totals[1:], totals[0]) / num_draws
    squared_errors = jnp.concatenate(
        [_squared_errors(g, _draw(design, g.count, key, chunk) - mean_weights) for chunk in chunks]
    )
    terms = squared_errors * (num_draws / (num_draws - 1))
    return Estimate(
        mean=g.weighted_sum(mean_weights),
        variance=terms.mean(),
        standard_error=terms.std(ddof=1) / num_draws**0.5,
        num_draws=num_draws,
    )


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


def variance_curve(
    g: Measured,
    batch_sizes: Sequence[int] | Int[np.ndarray, " b"] | None = None,
    *,
    design: DesignName = "without_replacement",
) -> VarianceCurve:
    """The exact tr Cov ĝ at every batch size, from one number: tr Σ.

    Without replacement it is c_M tr Σ with c_M = (N−M)/(M(N−1)); with replacement, tr Σ / M.

    Args:
        g: the moments of the population's gradients, or the gradients.
        batch_sizes: which M in 1..N; all of them by default.
        design: "without_replacement" or "with_replacement".

    Raises:
        TypeError, ValueError: if a batch size is not an integer in 1..N, or the design is unknown.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> variance_curve(moments.gradient_moments(loss_fn, params, data)).variance.tolist()
    [15.75, 5.25, 1.75, 0.0]
    """
    m = _moments(g)
    population_size = int(m.count)
    sizes = _batch_sizes(batch_sizes, population_size)
    _validate.one_of(tuple(_FULL_SIZE_DESIGNS), design=design)
    zeros = np.zeros(len(sizes))
    variance = _factors(design, population_size, sizes) * float(m.trace_covariance(ddof=0))
    return VarianceCurve(design, sizes, variance, zeros, zeros, 0)


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

    for the M-th example j, and K S_M grows by one row of K: N numbers a step, whatever the number of parameters.

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
        TypeError, ValueError: as :func:`monte_carlo` and :func:`variance_curve`.
    """
    _validate.random_key(key=key)
    _validate.at_least(2, num_draws=num_draws)
    _validate.positive_integer(chunk_size=chunk_size)
    _validate.one_of(tuple(_FULL_SIZE_DESIGNS), design=design)
    kernels.require_finite(g)
    sizes = _batch_sizes(batch_sizes, g.count)
    gram = centered_gram(g)
    law = _FULL_SIZE_DESIGNS[design](g.count)
    squared_sums, counts = [], np.zeros((g.count, g.count))
    for start in progress(range(0, num_draws, chunk_size)):
        draws = jnp.arange(start, min(start + chunk_size, num_draws))
        orders, chunk = _prefix_squared_norms(law, gram, key, draws)
        squared_sums.append(np.asarray(chunk, dtype=np.float64)[:, sizes - 1])
        np.add.at(counts, (np.arange(g.count), np.asarray(orders)), 1)
    squared_errors = np.concatenate(squared_sums) / sizes.astype(np.float64) ** 2
    mean_weights = np.cumsum(counts, axis=0)[sizes - 1] / (num_draws * sizes[:, None])
    return VarianceCurve(
        design=design,
        batch_sizes=sizes,
        variance=squared_errors.mean(axis=0),
        standard_error=squared_errors.std(axis=0, ddof=1) / num_draws**0.5,
        squared_mean_error=_quadratic_forms(mean_weights, np.asarray(gram, dtype=np.float64)),
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
        _validate.positive_integer(num_draws=num_draws)
        R = num_draws
        return SquaredErrorLaw(
            mean=self.mean / R,
            variance=(self.variance + 2 * (R - 1) * self.squared_covariance) / R**3,
            squared_covariance=self.squared_covariance / R**2,
        )


def squared_error_law(
    g: kernels.PerExampleGradients,
    batch_sizes: Sequence[int] | Int[np.ndarray, " b"] | None = None,
    *,
    design: DesignName = "without_replacement",
) -> SquaredErrorLaw:
    """Mean and variance of ‖ĝ − ḡ‖² in closed form: the standard error of any Monte Carlo check, before it is run.

    With the centered Gram matrix K, t = tr K, q = Σ K_ii², f = Σ K_ij², and a batch without replacement,

        M⁴ E‖ĝ − ḡ‖⁴ = A q + B (t² + 2f),
        A = M(N−M)(N² + N − 6NM + 6M²) / (N)₄,   B = M(M−1)(N−M)(N−M−1) / (N)₄,

    where (N)₄ = N(N−1)(N−2)(N−3): the fourth moment of a sum drawn from a finite population (Isserlis, 1918, in
    one dimension), with the 2f that several dimensions add. It follows from writing ‖Σ_{i∈s} z_i‖⁴ as a sum over
    quadruples and using that the rows of K sum to zero. With replacement A = M/N and B = M(M−1)/N².

    Args:
        g: the gradients of the whole population; their N × N Gram matrix is formed.
        batch_sizes: which M in 1..N; all of them by default.
        design: "without_replacement" or "with_replacement".
    """
    _validate.one_of(tuple(_FULL_SIZE_DESIGNS), design=design)
    kernels.require_finite(g)
    sizes = _batch_sizes(batch_sizes, g.count)
    gram = np.asarray(centered_gram(g), dtype=np.float64)
    N, M, diagonal = float(g.count), sizes.astype(np.float64), np.diagonal(gram)
    trace, quartic, frobenius = diagonal.sum(), np.sum(diagonal**2), np.sum(gram**2)
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


def centered_gram(g: kernels.PerExampleGradients) -> Float[Array, "n n"]:
    """K_ij = ⟨g_i − ḡ, g_j − ḡ⟩, shape (n, n)."""
    gram = g.gram()
    rows = gram.mean(axis=1, keepdims=True)
    return gram - rows - rows.T + rows.mean()


def _moments(g: Measured) -> moments.GradientMoments:
    if isinstance(g, moments.GradientMoments):
        return g
    kernels.require_finite(g)
    return moments.of(g)


def _batch_sizes(sizes: Any, population_size: int) -> Int[np.ndarray, " b"]:
    if sizes is None:
        return np.arange(1, population_size + 1)
    sizes = np.asarray(sizes)
    _validate.batch_sizes(sizes, population_size=population_size)
    return sizes


def _factors(design: str, population_size: int, sizes: Int[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    """Cov ĝ = factor · Σ, at every batch size."""
    if design == "with_replacement":
        return 1 / sizes
    return (population_size - sizes) / (sizes * max(population_size - 1, 1))


@partial(jax.jit, static_argnums=(0, 1))
def _draw(design: designs.Design, population_size: int, key: Array, draws: Int[Array, " r"]) -> Float[Array, "r n"]:
    """The weights of draws number ``draws``."""
    return jax.vmap(lambda r: design.weights(jax.random.fold_in(key, r), population_size))(draws)


@jax.jit
def _squared_errors(g: kernels.PerExampleGradients, deviations: Float[Array, "r n"]) -> Float[Array, " r"]:
    """‖Gᵀ d‖² for every row d."""

    def squared_norm(deviation: Float[Array, " n"]) -> Float[Array, ""]:
        leaves = jax.tree.leaves(g.weighted_sum(deviation))
        dtype = jnp.result_type(*leaves)
        return sum((jnp.sum(leaf.astype(dtype) ** 2) for leaf in leaves), jnp.zeros((), dtype))

    return jax.lax.map(squared_norm, deviations, batch_size=64)


@partial(jax.jit, static_argnums=0)
def _prefix_squared_norms(
    law: Any, gram: Float[Array, "n n"], key: Array, draws: Int[Array, " r"]
) -> tuple[Int[Array, "r n"], Float[Array, "r n"]]:
    """For every draw, an order of N examples and ‖S_M‖², the squared norms of its centered prefix sums."""

    def one_order(r: Int[Array, ""]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        order = law.indices(jax.random.fold_in(key, r), gram.shape[0])

        def extend(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], Array]:
            products, squared = carry
            squared = squared + 2 * products[j] + gram[j, j]
            return (products + gram[j], squared), squared

        start = (jnp.zeros_like(gram[0]), jnp.zeros((), gram.dtype))
        return order, jax.lax.scan(extend, start, order)[1]

    return jax.lax.map(one_order, draws)


def _quadratic_forms(rows: Float64[np.ndarray, "b n"], gram: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, " b"]:
    """wᵀ K w for every row w."""
    return np.einsum("bn,bn->b", rows @ gram, rows)
