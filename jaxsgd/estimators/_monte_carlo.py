"""Expectation and variance of ĝ from batches really drawn; estimates continue and merge.

With ĝ_r the gradient of draw r, m their mean, and v = Σ E[w_i] g_i the mean that the design states,

    Σ ‖ĝ_r − m‖² = Σ ‖ĝ_r − v‖² − R ‖m − v‖²,

and this over R − 1 is unbiased for tr Cov ĝ, whether or not the stated mean is right. It takes one pass.

How far off it is
-----------------
With e = ĝ − v, C = Cov ĝ and s² the variance of ‖e‖², the variance of that estimate is, for R independent draws,

    s²/R + 2 tr C²/(R (R − 1))

(the first term that of the mean of ‖e_r‖², the second that of the products ⟨e_r, e_s⟩ of different draws in ‖m − v‖²;
W. Hoeffding, Ann. Math. Stat. 19, 1948). The second is all there is where a design draws one of two batches, whose
errors are e and −e: s² is then 0, and the estimate off by tr C (1 − χ²)/R with a χ² of one degree of freedom. Its tail
is longer than a normal one: one value in ten thousand exceeds χ² − 1 = 14.1, which is 10 standard deviations. That 4
standard errors hold this too, the second term is taken (10/4)² = 6.25 times; it is of the order 1/R² all the same.
There tr C² is the mean of ⟨e_r, u⟩² over independent errors u, those of ``_REFERENCES`` draws of their own, the same
for all r, so that estimates still merge.

What stays outside is what the draws do not show: that a batch which is not among R draws, as happens in (1 − p)^R of
all cases if its probability is p, would have changed them. Of the designs that the tests enumerate, 4 standard errors
hold the truth in all but 1 of 1000 cases from a few thousand draws on, and in all but 10 of 1000 from 250 draws.

With n draws of mean m, variance V and mean squared error q ± s in each of two estimates, Σ‖ĝ_r − m‖² = (n − 1) V gains
‖m₁ − m₂‖² n₁n₂/(n₁ + n₂) over the two sums, and n (n − 1) s² gains (q₁ − q₂)² n₁n₂/(n₁ + n₂) (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", The American Statistician 37, 1983).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxsgd import designs, kernels
from jaxsgd._core import sums, validate
from jaxsgd._core.rational import quotient
from jaxsgd.estimators._contraction import squared_errors
from jaxsgd.estimators._exact import Estimate


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

    The variance is unbiased, whether or not the mean that the design states is right.

    Args:
        design: a law on w for this population.
        g: the gradients of the whole population.
        key: draw r uses ``fold_in(key, r)``, so results do not depend on ``chunk_size`` but for rounding.
        num_draws: R, at least 2.
        chunk_size: how many draws are held at a time: chunk_size · (N + P) numbers.
        first_draw: the number of the first draw. Draws k, k + 1, … continue an estimate from draws 0, …, k − 1 with the
            same key, and ``merge`` puts the two together.

    Returns:
        :class:`Estimate`; ``standard_error`` is the sample standard deviation of the R numbers ‖ĝ_r − v‖² over √R, for
        the mean v that the design states, and a term of the order 1/R, all that is left where they are all equal.

    Raises:
        TypeError: if ``key`` is not a key.
        ValueError: if there are fewer than two draws, the batch is larger than the population, or a gradient
            is not finite; or if draws are numbered beyond 2³²: continue with another key.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g, key = kernels.per_example_gradients(loss_fn)(params, data), jax.random.key(0)
    >>> first = monte_carlo(designs.WithoutReplacement(2), g, key=key, num_draws=100)
    >>> more = monte_carlo(designs.WithoutReplacement(2), g, key=key, num_draws=300, first_draw=100)
    >>> int(merge(first, more).num_draws)
    400
    """
    validate.random_key(key=key)
    validate.at_least(2, num_draws=num_draws)
    validate.at_least(0, first_draw=first_draw)
    validate.at_most(_DRAWS, "what can be folded into a key,", **{"first_draw + num_draws": first_draw + num_draws})
    validate.positive_integer(chunk_size=chunk_size)
    kernels.require_finite(g)
    stated = jnp.asarray(design.mean_weights(g.count))
    references = _draw(design, g.count, key, jnp.asarray(np.arange(_DRAWS, 2**32, dtype=np.uint32))) - stated[None]
    products = _products(g, references)
    total, errors, cross = jnp.zeros_like(stated), [], []
    for start in range(first_draw, first_draw + num_draws, chunk_size):
        draws = jnp.asarray(np.arange(start, min(start + chunk_size, first_draw + num_draws), dtype=np.uint32))
        deviations = _draw(design, g.count, key, draws) - stated[None]
        total = total + deviations.sum(axis=0)
        errors.append(squared_errors(g, deviations))
        cross.append(jnp.sum(jnp.matmul(deviations.astype(products.dtype), products, precision="highest") ** 2))
    terms = jnp.concatenate(errors)
    mean_error = squared_errors(g, total[None] / num_draws)[0]
    squared_covariance = jnp.stack(cross).sum() / float(num_draws * _REFERENCES)
    return Estimate(
        mean=g.weighted_sum(stated + total / num_draws),
        variance=(terms.mean() - mean_error) * (num_draws / (num_draws - 1)),
        standard_error=jnp.sqrt(terms.var(ddof=1) / num_draws + _of_products(squared_covariance, num_draws)),
        num_draws=num_draws,
        mean_squared_error=terms.mean(),
        squared_covariance=squared_covariance,
    )


_REFERENCES = 8  # errors that those of all draws are multiplied with
_DRAWS = (
    2**32 - _REFERENCES
)  # of one key, since ``fold_in`` tells 2³² numbers apart: draw 2³² + r would be draw r again
_OF_PRODUCTS = 2 * 6.25  # see the head of this module


def _of_products(squared_covariance: Any, num_draws: int) -> Any:
    """The part of the squared standard error that is due to products of different draws."""
    return squared_covariance * (_OF_PRODUCTS / (num_draws * (num_draws - 1)))


@jax.jit
def _products(g: kernels.PerExampleGradients, deviations: Float[Array, "k n"]) -> Float[Array, "n k"]:
    """⟨g_i, u⟩ for the errors u = Gᵀ d of a few draws."""
    return jax.lax.map(lambda d: g.inner_products(g.weighted_sum(d)), deviations).T


def merge(first: Estimate, second: Estimate) -> Estimate:
    """The estimate from the draws of two, as if ``monte_carlo`` had made them all at once, but for rounding.

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
    distance = sums.total(
        [jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (first.mean, second.mean)), strict=True)]
    )
    change = second.mean_squared_error - first.mean_squared_error
    squares = (a - 1) * first.variance + (b - 1) * second.variance + distance * (a * b / count)
    between = first.squared_covariance * (a / count) + second.squared_covariance * (b / count)
    spread = sum(
        float(n * (n - 1)) * (e.standard_error**2 - _of_products(e.squared_covariance, n))
        for n, e in ((a, first), (b, second))
    )
    return Estimate(
        mean=jax.tree.map(lambda x, y: x + (y - x) * (b / count), first.mean, second.mean),
        variance=squares / (count - 1),
        standard_error=(
            (jnp.maximum(spread, 0) + change**2 * (a * b / count)) * quotient(1, count * (count - 1))
            + _of_products(between, count)
        )
        ** 0.5,
        num_draws=count,
        mean_squared_error=first.mean_squared_error + change * (b / count),
        squared_covariance=between,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _draw(design: designs.Design, population_size: int, key: Array, draws: Integer[Array, " r"]) -> Float[Array, "r n"]:
    """The weights of draws number ``draws``."""
    return jax.vmap(lambda r: design.weights(jax.random.fold_in(key, r), population_size))(draws)
