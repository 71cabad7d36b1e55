"""Gradient statistics of any loss from ordinary passes alone: no rules, no factors, memory of a few gradients.

The alternative route for models that are too large, or written in a way that has no factored form. Inner products with
one direction are exact, from one forward pass; variances are estimated from backward passes with random signs, and
carry their standard errors.

For independent signs ε_i = ±1 with mean ε̄, u = Σ (ε_i − ε̄) g_i is the gradient of a weighted sum of losses: one
backward pass. The signs are uncorrelated, so Cov(ε − ε̄1) = I − 11ᵀ/n, E u = 0, and

    E u² = Σ (g_i − ḡ)² in every coordinate,    E ‖u‖² = Σ ‖g_i − ḡ‖²:

both are unbiased after division by n (Hutchinson's estimator of a trace, for the centered Gram matrix K̃). One draw of
‖u‖² has variance 2 (‖K̃‖_F² − Σ K̃_ii²). A few draws may be equal by chance, with a standard deviation of 0: so standard
errors have the term of the order 1/R that those of drawn batches have (:mod:`jaxsgd._core.units`), with ‖Cov u‖_F from
the products of each draw with the one before.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd._core import arrays, loss_functions, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.rational import quotient
from jaxsgd._core.sums import accumulated, accumulation_dtype, chunked, inner, squared_norm
from jaxsgd.kernels import Loss

__all__ = ["RandomSignMoments", "inner_products", "random_sign_moments"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RandomSignMoments:
    """Moments of n per-example gradients, estimated with random signs.

    Attributes:
        mean: ḡ, exact; a pytree like ``params``.
        variance: an unbiased estimate of (1/n) Σ (g_i − ḡ)², coordinate by coordinate.
        variance_standard_error: its standard error, a pytree like ``params``.
        trace_covariance: an unbiased estimate of tr Σ = (1/n) Σ ‖g_i − ḡ‖².
        trace_standard_error: its standard error.
        num_draws: how many sign vectors were drawn.
    """

    mean: Any
    variance: Any
    variance_standard_error: Any
    trace_covariance: Any
    trace_standard_error: Any
    num_draws: Any

    @property
    def second_moment(self) -> PyTree:
        """(1/n) Σ g_i², coordinate by coordinate, with the standard error of ``variance``: ḡ² is exact."""
        return jax.tree.map(lambda v, m: v + m**2, self.variance, self.mean)

    @property
    def squared_norms_mean(self) -> Float[Array, ""]:
        """(1/n) Σ ‖g_i‖² = tr Σ + ‖ḡ‖², with the standard error of ``trace_covariance``."""
        return self.trace_covariance + squared_norm(self.mean)


@on_any_mesh
def random_sign_moments(
    loss_fn: Loss, params: PyTree, batch: PyTree, *, key: Array, num_draws: int, chunk_size: int | None = None
) -> RandomSignMoments:
    """Estimate the variance of per-example gradients from ``num_draws`` + 1 backward passes over the batch.

    A pass gives u = Σ (ε_i − ε̄) g_i for random signs ε_i, and u² is unbiased for Σ (g_i − ḡ)² in every coordinate.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: a pytree of floating-point arrays.
        batch: a pytree of arrays with n examples along the first axis of each.
        key: draw r uses ``fold_in(key, r)``.
        num_draws: at least 2, for the standard errors.
        chunk_size: how many examples a pass takes at a time; all at once by default.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.per_example_gradients`, for a ``key`` that is none, if there are
            fewer than two draws, or a gradient is not finite.

    References:
        M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines",
        Communications in Statistics – Simulation and Computation 19, 1990.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> m = random_sign_moments(loss_fn, params, data, key=jax.random.key(0), num_draws=1000)
    >>> abs(float(m.trace_covariance) - 15.75) < 3 * float(m.trace_standard_error)
    True
    """
    batch = _checked(loss_fn, params, batch)
    validate.random_key(key=key)
    validate.at_least(2, num_draws=num_draws)
    count = jax.tree.leaves(batch)[0].shape[0]
    chunk_size = count if chunk_size is None else chunk_size
    validate.positive_integer(chunk_size=chunk_size)
    found, last = _random_sign_moments(loss_fn, num_draws, min(chunk_size, count), params, batch, key)
    _check_finite((found.mean, found.trace_covariance), loss_fn, params, batch)
    units.require_squares("gradients", found.mean, last)
    return found


@on_any_mesh
def inner_products(loss_fn: Loss, params: PyTree, batch: PyTree, direction: PyTree) -> Float[Array, " n"]:
    """⟨g_i, v⟩, shape (n,), exactly, from one forward pass: the derivatives of all losses along ``direction`` v.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: a pytree of floating-point arrays.
        batch: a pytree of arrays with n examples along the first axis of each.
        direction: v, a pytree like ``params``.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.per_example_gradients`, or if ``direction`` is not like ``params``.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> direction = {"m": jnp.asarray(1.0), "b": jnp.asarray(0.5)}
    >>> [round(float(product), 6) + 0 for product in inner_products(loss_fn, params, data, direction)]
    [0.0, -3.0, 5.0, -7.0]
    """
    batch = _checked(loss_fn, params, batch)
    leaves, structure = jax.tree.flatten(params)
    validate.like_params(structure, tuple(leaf.shape for leaf in leaves), direction=direction)
    return _directional_derivatives(loss_fn, params, batch, direction)


def _checked(loss_fn: Loss, params: PyTree, batch: PyTree) -> PyTree:
    """The batch as JAX reads it."""
    validate.floating_leaves(params=params)
    batch = arrays.readable(batch=batch)
    validate.leading_axis(batch=batch)
    loss_functions.require_scalar(loss_fn, params, batch)
    return batch


def _check_finite(moments: Any, loss_fn: Loss, params: PyTree, batch: PyTree) -> None:
    """Raise, naming the first example and the parameter, unless some ``moments`` of all gradients are finite."""
    leaves = jax.tree.leaves(moments)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) or all(jnp.isfinite(leaf).all() for leaf in leaves):
        return
    gradient = jax.jit(jax.grad(loss_fn))
    for example in range(len(jax.tree.leaves(batch)[0])):
        found = gradient(params, jax.tree.map(lambda leaf, i=example: leaf[i], batch))
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            row = np.asarray(leaf, np.float64).reshape(1, -1)
            validate.finite_rows([example], f"params{jax.tree_util.keystr(path)}", gradients=row)
    raise ValueError(
        f"squared gradient norms overflow {leaves[-1].dtype}: scale the loss down, or use float64 parameters"
    )


@partial(jax.jit, static_argnums=0)
def _directional_derivatives(loss_fn: Loss, params: PyTree, batch: PyTree, direction: PyTree) -> Float[Array, " n"]:
    tangent = jax.tree.map(lambda leaf, v: v.astype(leaf.dtype), params, direction)
    _, products = jax.jvp(lambda params: jax.vmap(loss_fn, in_axes=(None, 0))(params, batch), (params,), (tangent,))
    return accumulated(products)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _random_sign_moments(
    loss_fn: Loss, num_draws: int, chunk_size: int, params: PyTree, batch: PyTree, key: Array
) -> tuple[RandomSignMoments, PyTree]:
    """The moments, and the last u."""
    count = jax.tree.leaves(batch)[0].shape[0]
    dtype = accumulation_dtype(*jax.tree.leaves(params))

    def weighted_gradient(weights: Float[Array, " n"]) -> PyTree:
        return _weighted_gradient(loss_fn, chunk_size, params, batch, weights)

    def drawn(draw: Array) -> PyTree:
        signs = jax.random.rademacher(jax.random.fold_in(key, draw), (count,), dtype)
        return weighted_gradient(signs - signs.mean())

    def add(carry: tuple[Any, Any, Any, Any], draw: Array) -> tuple[tuple[Any, Any, Any, Any], None]:
        """Welford's update of the means and of the roots of sums of squares, which are fourth powers of gradients."""
        before, mean, spread, products = carry
        u = drawn(draw)
        term = jax.tree.map(lambda leaf: leaf**2 / count, u), squared_norm(u) / count
        delta = jax.tree.map(jnp.subtract, term, mean)
        share = 1 / (draw + 1).astype(dtype)
        mean = jax.tree.map(lambda m, d: m + d * share.astype(d.dtype), mean, delta)
        spread = jax.tree.map(lambda s, d: jnp.hypot(s, d * jnp.sqrt(1 - share).astype(d.dtype)), spread, delta)
        return (u, mean, spread, jnp.hypot(products, inner(u, before) / count)), None

    u = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, accumulated(leaf).dtype), params)
    zeros = jax.tree.map(jnp.zeros_like, u), jnp.zeros((), dtype)
    start = (u, zeros, zeros, jnp.zeros((), dtype))
    (last, mean, spread, products), _ = jax.lax.scan(add, start, jnp.arange(num_draws))
    norms = mean[0], products / (num_draws - 1) ** 0.5  # of the covariances of u, of one coordinate and of all
    errors = jax.tree.map(
        lambda s, norm: jnp.hypot(
            s * quotient(1, num_draws * (num_draws - 1)) ** 0.5, units.of_products(norm, num_draws)
        ),
        spread,
        norms,
    )
    exact_mean = weighted_gradient(jnp.full(count, 1 / count, dtype))
    return RandomSignMoments(exact_mean, mean[0], errors[0], mean[1], errors[1], num_draws), last


def _weighted_gradient(
    loss_fn: Loss, chunk_size: int, params: PyTree, batch: PyTree, weights: Float[Array, " n"]
) -> PyTree:
    """Σ w_i g_i by ordinary backward passes, a chunk of examples at a time."""

    def of_chunk(chunk: tuple[PyTree, Array]) -> PyTree:
        batch, weights = chunk

        def weighted_loss(params: PyTree) -> Array:
            losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, batch)
            return jnp.sum(losses * weights.astype(losses.dtype))

        return jax.tree.map(accumulated, jax.grad(weighted_loss)(params))

    some, rest = chunked((batch, weights), chunk_size)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(accumulated(leaf)), params)
    found, _ = jax.lax.scan(lambda sums, chunk: (jax.tree.map(jnp.add, sums, of_chunk(chunk)), None), zeros, some)
    return found if rest is None else jax.tree.map(jnp.add, found, of_chunk(rest))
