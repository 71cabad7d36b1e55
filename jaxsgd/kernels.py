"""Per-example gradients of any JAX loss, and the algebra on them.

``per_example_gradients(loss_fn)`` is a transformation, like ``jax.grad``: it gives a function of
``(params, batch)`` that returns a :class:`PerExampleGradients`. Every statistic of the batch is a method of
that object, computed in jitted code that keeps no more than the statistic needs.

Imports ``_trace`` (what a gradient is kept as) and ``_validate`` only; knows no sampling design.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd import _trace, _validate
from jaxsgd._factors import total
from jaxsgd._recipe import Factor

Loss = Callable[[Any, Any], Any]


def per_example_gradients(loss_fn: Loss) -> Callable[[PyTree, PyTree], "PerExampleGradients"]:
    """Transform the loss of one example into the per-example gradients of a batch.

    Args:
        loss_fn: ``loss_fn(params, example) -> scalar``. ``example`` is ONE example: a pytree like the batch,
            without the leading batch axis.

    Returns:
        A function of ``params`` (pytree of floating-point arrays) and ``batch`` (pytree of arrays with n
        examples along the first axis of each), which returns :class:`PerExampleGradients` and works under
        ``jax.jit`` and ``jax.vmap``.

    Raises:
        TypeError: if a leaf of ``params`` is not a floating-point array, a leaf of ``batch`` is not an array
            of numbers, or the loss is not one real number.
        ValueError: if the arrays of ``batch`` differ in length or are empty, if the loss is not scalar, or if
            it fails on one example (as a loss written for a batch does).

    Guarantees:
        - compiles once: calls with the same ``loss_fn`` and shapes share one compilation, also when
          ``per_example_gradients(loss_fn)`` is written anew each time.

    >>> import jax.numpy as jnp
    >>> def loss_fn(params, example):
    ...     return (example["y"] - params["m"] * example["x"] - params["b"]) ** 2
    >>> params = {"m": jnp.asarray(1.0), "b": jnp.asarray(1.0)}
    >>> batch = {"x": jnp.asarray([0.0, 1.0, 2.0, 3.0]), "y": jnp.asarray([1.0, 3.0, 2.0, 5.0])}
    >>> g = per_example_gradients(loss_fn)(params, batch)
    >>> g.count, [float(norm) for norm in g.squared_norms()]
    (4, [0.0, 8.0, 20.0, 40.0])
    """

    def gradients(params: PyTree, batch: PyTree) -> PerExampleGradients:
        _validate.floating_leaves(params=params)
        _validate.leading_axis(batch=batch)
        _validate.scalar_loss(loss_fn, params, batch)
        return trace_batch(loss_fn, params, batch)

    return gradients


@partial(jax.jit, static_argnums=0)
def trace_batch(loss_fn: Loss, params: PyTree, batch: PyTree) -> "PerExampleGradients":
    """``per_example_gradients(loss_fn)(params, batch)`` for arguments that were validated before."""
    losses, factors = _trace.loss_and_factors(loss_fn, params, batch)
    return PerExampleGradients(losses, factors, jax.tree.structure(params))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerExampleGradients:
    """The gradients g_i of n examples at one θ, and the statistics of them.

    A registered pytree: it passes through ``jit``, ``vmap`` and ``lax.scan``. Sums are accumulated, and
    statistics returned, in float32 at least (float64 for float64 parameters), with matrix products at the
    highest precision of the device.
    """

    example_losses: Any
    factors: tuple[Factor, ...]
    structure: Any = field(metadata={"static": True})

    @property
    def count(self) -> int:
        """n, the number of examples."""
        count: int = self.example_losses.shape[0]
        return count

    @property
    def num_params(self) -> int:
        """P, the number of scalar parameters."""
        return sum(int(np.prod(shape)) for shape in self._shapes())

    def losses(self) -> Float[Array, " n"]:
        """L(θ, x_i), shape (n,)."""
        return self.example_losses

    def mean(self) -> PyTree:
        """ḡ = (1/n) Σ g_i, a pytree like ``params``.

        It is the gradient of the mean loss: θ ↦ L_i(θ) are n functions of the same θ, and differentiation
        is linear.
        """
        return _mean(self)

    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖², shape (n,)."""
        return _squared_norms(self)

    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖², shape (n,), from centered gradients, so that no digit cancels."""
        return _squared_deviations(self)

    def inner_products(self, direction: PyTree) -> Float[Array, " n"]:
        """⟨g_i, v⟩, shape (n,), for ``direction`` v, a pytree like ``params``."""
        _validate.like_params(self.structure, self._shapes(), direction=direction)
        return _inner_products(self, direction)

    def weighted_sum(self, weights: Float[Array, " n"]) -> PyTree:
        """Σ w_i g_i, a pytree like ``params``, for ``weights`` w of shape (n,)."""
        _validate.vector(self.count, weights=weights)
        return _weighted_sum(self, weights)

    def scaled(self, scales: Float[Array, " n"]) -> "PerExampleGradients":
        """The gradients s_i g_i, for ``scales`` s of shape (n,), in the same form; the losses are scaled too."""
        _validate.vector(self.count, scales=scales)
        return _scaled(self, scales)

    def second_moment(self) -> PyTree:
        """(1/n) Σ g_i², coordinate by coordinate, a pytree like ``params``."""
        return _second_moment(self)

    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖² = n tr Σ."""
        return _total_deviation(self)

    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """Σ w_i ‖g_i − ḡ_w‖² for ``weights`` w ≥ 0 of shape (n,) and the weighted mean ḡ_w = Σ w_i g_i / Σ w_i."""
        _validate.vector(self.count, weights=weights)
        return _weighted_deviation(self, weights)

    def variance(self, *, ddof: int = 0) -> PyTree:
        """(1/(n − ddof)) Σ (g_i − ḡ)², coordinate by coordinate, a pytree like ``params``."""
        _validate.at_least(0, ddof=ddof)
        _validate.at_least(1 + ddof, **{"the number of examples": self.count})
        return jax.tree.map(lambda total: total / (self.count - ddof), _coordinate_deviations(self))

    def gram(self, other: "PerExampleGradients | None" = None) -> Float[Array, "n m"]:
        """K_ij = ⟨g_i, h_j⟩, shape (n, m), for the gradients h of ``other`` (of the same parameters), or of itself."""
        if other is None:
            return _own_gram(self)
        if (other.structure, other._shapes()) != (self.structure, self._shapes()):
            raise ValueError("other must hold gradients of the same parameters")
        return _gram(self, other)

    def materialize(self) -> PyTree:
        """All g_i, a pytree like ``params`` with a leading axis of n: n·P numbers."""
        return self.structure.unflatten(factor.materialize() for factor in self.factors)

    def explain(self) -> str:
        """What is kept for every parameter, one line each."""
        indices = self.structure.unflatten(range(len(self.factors)))
        return "\n".join(
            f"params{jax.tree_util.keystr(path)} {self.factors[i].shape}: {self.factors[i].describe()}"
            for path, i in jax.tree_util.tree_leaves_with_path(indices)
        )

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(factor.shape for factor in self.factors)


def require_finite(g: PerExampleGradients, first_index: int = 0) -> None:
    """Raise ValueError, naming the example and the parameter, if a gradient is not finite.

    Args:
        g: concrete gradients; under a transformation, where values are unknown, nothing is checked.
        first_index: the index of the first example of ``g`` in the data, for the message.
    """
    if isinstance(g.example_losses, jax.core.Tracer):
        return
    if np.isfinite(np.asarray(g.squared_norms(), dtype=np.float64)).all():
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(g.materialize()):
        values = np.asarray(leaf, dtype=np.float64).reshape(g.count, -1)
        rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if rows.size:
            bad = values[rows[0]][~np.isfinite(values[rows[0]])][0]
            raise ValueError(
                f"gradients must be finite, got {bad} for example {first_index + rows[0]} "
                f"in params{jax.tree_util.keystr(path)}"
            )
    dtype = g.squared_norms().dtype
    raise ValueError(f"squared gradient norms overflow {dtype}: scale the loss down, or use float64 parameters")


# Jitted once each, over the whole object, so that one compilation serves all its parameters.


@jax.jit
def _mean(g: PerExampleGradients) -> PyTree:
    return g.structure.unflatten(factor.mean() for factor in g.factors)


@jax.jit
def _squared_norms(g: PerExampleGradients) -> Float[Array, " n"]:
    return total([factor.squared_norms() for factor in g.factors])


@jax.jit
def _squared_deviations(g: PerExampleGradients) -> Float[Array, " n"]:
    return total([factor.squared_deviations() for factor in g.factors])


@jax.jit
def _total_deviation(g: PerExampleGradients) -> Float[Array, ""]:
    return total([factor.total_deviation() for factor in g.factors])


@jax.jit
def _weighted_deviation(g: PerExampleGradients, weights: Float[Array, " n"]) -> Float[Array, ""]:
    return total([factor.weighted_deviation(weights) for factor in g.factors])


@jax.jit
def _coordinate_deviations(g: PerExampleGradients) -> PyTree:
    return g.structure.unflatten(factor.coordinate_deviations() for factor in g.factors)


@jax.jit
def _inner_products(g: PerExampleGradients, direction: PyTree) -> Float[Array, " n"]:
    leaves = jax.tree.leaves(direction)
    return total([f.inner_products(v) for f, v in zip(g.factors, leaves, strict=True)])


@jax.jit
def _weighted_sum(g: PerExampleGradients, weights: Float[Array, " n"]) -> PyTree:
    return g.structure.unflatten(factor.weighted_sum(weights) for factor in g.factors)


@jax.jit
def _scaled(g: PerExampleGradients, scales: Float[Array, " n"]) -> PerExampleGradients:
    losses = g.example_losses * scales.astype(g.example_losses.dtype)
    return PerExampleGradients(losses, tuple(factor.scaled(scales) for factor in g.factors), g.structure)


@jax.jit
def _second_moment(g: PerExampleGradients) -> PyTree:
    return g.structure.unflatten(factor.second_moment() for factor in g.factors)


@jax.jit
def _gram(g: PerExampleGradients, other: PerExampleGradients) -> Float[Array, "n m"]:
    return total([a.gram(b) for a, b in zip(g.factors, other.factors, strict=True)])


@jax.jit
def _own_gram(g: PerExampleGradients) -> Float[Array, "n n"]:
    """The symmetric Gram matrix: blocks of rows against what is right of them, the rest by reflection."""
    edges = [*range(0, g.count, max(g.count // _GRAM_BLOCKS, _SMALLEST_GRAM_BLOCK)), g.count]
    rows = [
        _gram(jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], g), jax.tree.map(lambda leaf, a=a: leaf[a:], g))
        for a, b in itertools.pairwise(edges)
    ]
    upper = jnp.concatenate([jnp.pad(row, ((0, 0), (a, 0))) for a, row in zip(edges[:-1], rows, strict=True)])
    first_column = np.repeat(edges[:-1], np.diff(edges))
    return jnp.where(np.arange(g.count)[None] >= first_column[:, None], upper, upper.T)


_GRAM_BLOCKS = 4  # work falls to 10/16 of the full product; smaller blocks keep the cores less busy
_SMALLEST_GRAM_BLOCK = 64
