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

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsgd import _factors, _validate, designs, kernels, moments
from jaxsgd._batch_losses import BatchLossGradient, batch_loss_gradient
from jaxsgd._curves import (
    DesignName,
    SquaredErrorLaw,
    VarianceCurve,
    monte_carlo_curve,
    squared_error_law,
    variance_curve,
)
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
    "DesignName",
    "Estimate",
    "SquaredErrorLaw",
    "VarianceCurve",
    "batch_loss_gradient",
    "enumerate_batches",
    "exact",
    "horvitz_thompson_variance",
    "monte_carlo",
    "monte_carlo_curve",
    "sen_yates_grundy_variance",
    "squared_error_law",
    "variance_curve",
    "with_replacement_variance",
    "without_replacement_central_moments",
    "without_replacement_variance",
]


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


def exact(design: designs.Design, g: kernels.PerExampleGradients | moments.GradientMoments) -> Estimate:
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
    m = moments.of(g)
    population_size = g.count if isinstance(g, kernels.PerExampleGradients) else int(m.count)
    covariance, mean_weights = design.weight_covariance(population_size), design.mean_weights(population_size)
    if np.ptp(mean_weights) > 0:
        raise ValueError(f"mean_weights of {design} must be equal for all examples, as its covariance is")
    identity = covariance.identity * population_size
    of_total = identity - covariance.common * population_size**2  # 0 for a batch whose total weight is fixed
    variance = float(identity) * m.trace_covariance(ddof=0) + float(of_total) * m.squared_mean_norm
    return Estimate(
        mean=jax.tree.map(lambda leaf: float(mean_weights[0] * population_size) * leaf, m.mean),
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
        [_squared_errors(g, _draw(design, g.count, key, chunk) - mean_weights[None]) for chunk in chunks]
    )
    terms = squared_errors * (num_draws / (num_draws - 1))
    return Estimate(
        mean=g.weighted_sum(mean_weights),
        variance=terms.mean(),
        standard_error=terms.std(ddof=1) / num_draws**0.5,
        num_draws=num_draws,
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
