"""Error surfaces: the losses of single examples, and so their mean, as functions of θ along a few directions.

An error surface is a function of the parameters. Every example has its own, θ ↦ L_i(θ), and the surface that training
descends is their mean; at any θ all of them are evaluated at the same place.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels
from jaxsgd._core import arrays, devices, loss_functions, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.kernels import centered_gram

__all__ = ["PrincipalDirections", "losses_along", "principal_directions"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrincipalDirections:
    """Eigenvectors of the covariance Σ of the per-example gradients, with the largest eigenvalues first.

    Attributes:
        directions: k orthogonal unit vectors, a pytree like ``params`` with a leading axis of k.
        variances: the eigenvalues, shape (k,): the variance of g_i along each direction, with divisor N.
    """

    directions: Any
    variances: Float[Array, " k"]


@on_any_mesh
def principal_directions(g: kernels.PerExampleGradients, *, count: int = 2) -> PrincipalDirections:
    """The directions along which the gradients of the examples differ most.

    With the centered Gram matrix K v = λ v, ‖v‖ = 1, the vector Σ v_i g_i / √λ has norm 1 and is an eigenvector of Σ
    with eigenvalue λ/N: the entries of v sum to zero, as K has centered rows. No P × P matrix is formed, and of more
    than 2048 examples no N × N matrix either. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the gradients of the examples, all at one θ.
        count: k, how many directions.

    Raises:
        ValueError: if the gradients span fewer than ``count`` directions about their mean, or one is not finite.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> [round(float(v), 3) for v in principal_directions(g).variances]       # they sum to tr Σ = 63/4
    [15.393, 0.357]
    """
    validate.positive_integer(count=count)
    kernels.require_finite(g)
    dtype = g.losses().dtype
    values, vectors = _of_gram(g) if g.count <= _MAX_GRAM else _of_products(g, min(count, g.count - 2))
    rounding = float(np.finfo(dtype).eps) * min(g.count, _MAX_GRAM) * max(values[-1], 0.0)
    rank = int(np.sum(values > rounding))
    if count > rank:
        raise ValueError(f"count must be at most {rank}, the rank of the gradients' covariance, got {count}")
    variances, vectors = values[: -count - 1 : -1] / g.count, vectors[:, : -count - 1 : -1]
    weights = (vectors - vectors.mean(axis=0)) / np.sqrt(variances * g.count)
    rows = [g.weighted_sum(jnp.asarray(column, dtype)) for column in weights.T]
    return PrincipalDirections(
        directions=jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows),
        variances=jnp.asarray(variances, dtype),
    )


def _of_gram(g: kernels.PerExampleGradients) -> tuple[Any, Any]:
    """All eigenvalues of K, ascending, and its eigenvectors."""
    values, vectors = np.linalg.eigh(devices.on_host(centered_gram(g)).astype(np.float64))
    return values, vectors


def _of_products(g: kernels.PerExampleGradients, count: int) -> tuple[Any, Any]:
    """The ``count`` largest, from products K v = (⟨g_i − ḡ, Σ v_j g_j⟩)_i by Lanczos' iteration; N · 20 numbers."""
    from scipy.sparse import linalg  # slow to import, and needed nowhere else

    def product(vector: Any) -> Any:
        weights = vector.reshape(-1) - vector.mean()
        return devices.on_host(g.centered_products(g.weighted_sum(jnp.asarray(weights)))).astype(np.float64)

    operator = linalg.LinearOperator((g.count, g.count), matvec=product, dtype=np.float64)
    tolerance = 4 * float(np.finfo(g.losses().dtype).eps)
    values, vectors = linalg.eigsh(operator, count, v0=np.cos(np.arange(g.count)), tol=tolerance)
    return values, vectors


_MAX_GRAM = 2048  # examples, whose Gram matrix is formed and decomposed


@on_any_mesh
def losses_along(
    loss_fn: kernels.Loss, params: PyTree, data: PyTree, directions: PyTree, steps: Float[Array, "s k"]
) -> Float[Array, "s n"]:
    """L_i(θ + Σ_j t_j d_j) of every example i, at every step t: s·n numbers. The mean over i is the mean surface.

    Args:
        loss_fn: ``loss_fn(params, example) -> scalar`` for ONE example.
        params: θ, a pytree of floating-point arrays.
        data: a pytree of arrays with n examples along the first axis of each.
        directions: k directions d_j, a pytree like ``params`` with a leading axis of k.
        steps: the coordinates t, shape (s, k).

    Raises:
        TypeError, ValueError: if an argument is not as stated.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit(m=1.0, b=1.0)
    >>> directions = {"m": jnp.asarray([1.0, 0.0]), "b": jnp.asarray([0.0, 1.0])}
    >>> losses = losses_along(loss_fn, params, data, directions, jnp.asarray([[0.0, 0.0], [0.0, 1.0]]))
    >>> losses.tolist()
    [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 4.0, 0.0]]
    """
    validate.floating_leaves(params=params)
    data = arrays.readable(data=data)
    validate.leading_axis(data=data)
    loss_functions.require_scalar(loss_fn, params, data)
    count = validate.leading_axis(directions=directions)
    shapes = [(count, *leaf.shape) for leaf in jax.tree.leaves(params)]
    validate.like_params(jax.tree.structure(params), shapes, directions=directions)
    if len(jnp.shape(steps)) != 2 or jnp.shape(steps)[1] != count:
        raise ValueError(f"steps must be a matrix with {count} columns, got shape {jnp.shape(steps)}")
    return _losses_along(loss_fn, params, data, directions, steps)


@partial(jax.jit, static_argnums=0)
def _losses_along(
    loss_fn: kernels.Loss, params: PyTree, data: PyTree, directions: PyTree, steps: Float[Array, "s k"]
) -> Float[Array, "s n"]:
    def at(step: Float[Array, " k"]) -> Float[Array, " n"]:
        moved = jax.tree.map(
            lambda p, d: p + jnp.tensordot(step.astype(p.dtype), d.astype(p.dtype), 1), params, directions
        )
        return jax.vmap(loss_fn, (None, 0))(moved, data)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(at, steps)
