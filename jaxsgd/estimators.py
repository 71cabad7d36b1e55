"""Expectation and variance of minibatch gradients: the only place where a design meets gradients.

A batch is a random weight vector w, and ĝ = Σ w_i g_i with every g_i taken at the same θ. The proof for 1 < M ≤ N:

    1   E ĝ = Σ E[w_i] g_i                           a finite sum: linearity, nothing else
    2   E ĝ = ḡ for every data set ⇔ E w_i = 1/N     the g_i can be any vectors
    3   w_i = n_i/M, Σ E n_i = M                      the mean of M draws, n_i of them example i
    4   E n_i = M/N, so E w_i = 1/N                   no example is preferred, whatever M is

Neither independence nor distinctness is used. Both enter the variance only:

    5   Cov ĝ = Gᵀ Cov(w) G, tr Cov ĝ = Σ_ij Cov(w)_ij ⟨g_i, g_j⟩
    6   without replacement Cov w = c_M (I/N − 11ᵀ/N²), so Cov ĝ = c_M Σ, c_M = (N−M)/(M(N−1))
    7   with replacement Cov w = (1/M)(I/N − 11ᵀ/N²), so Cov ĝ = Σ/M

:func:`exact` evaluates this, :func:`enumerate_batches` sums over every batch, :func:`monte_carlo` draws batches;
the three agree, exactly or within the standard errors they carry. The curves do the same for every batch size.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsgd import _factors, _validate, designs, kernels
from jaxsgd._batch_losses import BatchLossGradient, batch_loss_gradient
from jaxsgd._comparison import Comparison, compare, design_effect, optimal_probabilities, stratum_deviations
from jaxsgd._curves import (
    DesignName,
    SquaredErrorLaw,
    VarianceCurve,
    monte_carlo_curve,
    squared_error_law,
    variance_curve,
)
from jaxsgd._descent import descent_probability
from jaxsgd._exact import Estimate, exact
from jaxsgd._populations import PopulationFactors, PopulationVariance, enumerate_data_sets, population_factors
from jaxsgd._sample_estimates import (
    CentralMoments,
    horvitz_thompson_variance,
    sen_yates_grundy_variance,
    with_replacement_variance,
    without_replacement_central_moments,
    without_replacement_variance,
)

__all__ = [
    "BatchLossGradient",
    "CentralMoments",
    "Comparison",
    "DesignName",
    "Estimate",
    "PopulationFactors",
    "PopulationVariance",
    "SquaredErrorLaw",
    "VarianceCurve",
    "batch_loss_gradient",
    "compare",
    "descent_probability",
    "design_effect",
    "enumerate_batches",
    "enumerate_data_sets",
    "exact",
    "horvitz_thompson_variance",
    "merge",
    "monte_carlo",
    "monte_carlo_curve",
    "optimal_probabilities",
    "population_factors",
    "sen_yates_grundy_variance",
    "squared_error_law",
    "stratum_deviations",
    "variance_curve",
    "with_replacement_variance",
    "without_replacement_central_moments",
    "without_replacement_variance",
]


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
    first_draw: int = 0,
) -> Estimate:
    """E ĝ and tr Cov ĝ from batches really drawn.

    With ĝ_r the gradient of draw r, m their mean, and v = Σ E[w_i] g_i the mean that the design states,

        Σ ‖ĝ_r − m‖² = Σ ‖ĝ_r − v‖² − R ‖m − v‖²,

    and this over R − 1 is unbiased for tr Cov ĝ, whether or not the stated mean is right. It takes one pass.

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        key: draw r uses ``fold_in(key, r)``, so results do not depend on ``chunk_size`` but for rounding.
        num_draws: R, at least 2.
        chunk_size: how many draws are held at a time: chunk_size · (N + P) numbers.
        first_draw: the number of the first draw. Draws k, k + 1, … continue an estimate from draws 0, …, k − 1 with the
            same key, and ``merge`` puts the two together.

    Returns:
        :class:`Estimate`; ``standard_error`` is the sample standard deviation of the R numbers ‖ĝ_r − v‖² over √R.

    Raises:
        TypeError: if ``key`` is not a key.
        ValueError: if there are fewer than two draws, the batch is larger than the population, or a gradient
            is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g, key = kernels.per_example_gradients(loss_fn)(params, data), jax.random.key(0)
    >>> first = monte_carlo(designs.WithoutReplacement(2), g, key=key, num_draws=100)
    >>> more = monte_carlo(designs.WithoutReplacement(2), g, key=key, num_draws=300, first_draw=100)
    >>> int(merge(first, more).num_draws)
    400
    """
    _validate.random_key(key=key)
    _validate.at_least(2, num_draws=num_draws)
    _validate.at_least(0, first_draw=first_draw)
    _validate.positive_integer(chunk_size=chunk_size)
    kernels.require_finite(g)
    stated = jnp.asarray(design.mean_weights(g.count))
    total, squared_errors = jnp.zeros_like(stated), []
    for start in range(first_draw, first_draw + num_draws, chunk_size):
        draws = jnp.arange(start, min(start + chunk_size, first_draw + num_draws))
        deviations = _draw(design, g.count, key, draws) - stated[None]
        total = total + deviations.sum(axis=0)
        squared_errors.append(_squared_errors(g, deviations))
    terms = jnp.concatenate(squared_errors)
    mean_error = _squared_errors(g, total[None] / num_draws)[0]
    return Estimate(
        mean=g.weighted_sum(stated + total / num_draws),
        variance=(terms.mean() - mean_error) * (num_draws / (num_draws - 1)),
        standard_error=terms.std(ddof=1) / num_draws**0.5,
        num_draws=num_draws,
        mean_squared_error=terms.mean(),
    )


def merge(first: Estimate, second: Estimate) -> Estimate:
    """The estimate from the draws of two, as if ``monte_carlo`` had made them all at once, but for rounding.

    With n draws of mean m, variance V and mean squared error q ± s in each, Σ‖ĝ_r − m‖² = (n − 1) V gains
    ‖m₁ − m₂‖² n₁n₂/(n₁ + n₂) over the two sums, and n (n − 1) s² gains (q₁ − q₂)² n₁n₂/(n₁ + n₂) (Chan, Golub and
    LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983).

    Args:
        first: from ``monte_carlo``.
        second: from other draws of the same design and gradients.

    Raises:
        ValueError: if one of the two is not from draws.
    """
    for name, estimate in (("first", first), ("second", second)):
        if estimate.mean_squared_error is None:
            raise ValueError(f"{name} must be an estimate from monte_carlo, got one without draws")
    a, b = first.num_draws, second.num_draws
    count = a + b
    distance = _factors.total(
        [jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (first.mean, second.mean)), strict=True)]
    )
    change = second.mean_squared_error - first.mean_squared_error
    squares = (a - 1) * first.variance + (b - 1) * second.variance + distance * (a * b / count)
    spread = sum(e.num_draws * (e.num_draws - 1) * e.standard_error**2 for e in (first, second))
    return Estimate(
        mean=jax.tree.map(lambda x, y: x + (y - x) * (b / count), first.mean, second.mean),
        variance=squares / (count - 1),
        standard_error=((spread + change**2 * (a * b / count)) / (count * (count - 1))) ** 0.5,
        num_draws=count,
        mean_squared_error=first.mean_squared_error + change * (b / count),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _draw(design: designs.Design, population_size: int, key: Array, draws: Int[Array, " r"]) -> Float[Array, "r n"]:
    """The weights of draws number ``draws``."""
    return jax.vmap(lambda r: design.weights(jax.random.fold_in(key, r), population_size))(draws)


@jax.jit
def _squared_errors(g: kernels.PerExampleGradients, deviations: Float[Array, "r n"]) -> Float[Array, " r"]:
    """‖Gᵀ d‖² for every row d."""

    def squared_norm(deviation: Float[Array, " n"]) -> Float[Array, ""]:
        return _factors.total([jnp.sum(leaf**2) for leaf in jax.tree.leaves(g.weighted_sum(deviation))])

    return jax.lax.map(squared_norm, deviations, batch_size=64)
