"""Per-example gradients that are not kept: every statistic computes them anew, a few examples at a time.

For models and batches of which even the factors are more than memory holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.sums import accumulated, chunked, squared_norm, varying_like
from jaxsgd.kernels._centering import first_without_cancellation
from jaxsgd.kernels._gradients import (
    Loss,
    PerExampleGradients,
    like_params,
    one_number_each,
    trace_batch,
    with_memory_for_all,
    with_memory_for_gram,
)
from jaxsgd.kernels._loss import WithoutAux
from jaxsgd.kernels._statistic import statistic
from jaxsgd.kernels.factors import WithSharedPart


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RecomputedGradients(PerExampleGradients):
    """The gradients of n examples, computed ``chunk_size`` examples at a time whenever a statistic is asked for.

    Where they are stretched, ``scales`` is by what, a pytree like ``params``.
    """

    params: Any = None
    batch: Any = None
    scales: Any = None
    loss_fn: Any = field(default=None, metadata={"static": True})
    chunk_size: int = field(default=1, metadata={"static": True})

    @partial(on_any_mesh, per_example=True)
    def take(self, some: Any) -> "RecomputedGradients":
        batch = jax.tree.map(lambda leaf: leaf[some], self.batch)
        chunk_size = min(self.chunk_size, len(jax.tree.leaves(batch)[0]))
        return replace(recomputed(self.loss_fn, self.params, batch, chunk_size), scales=self.scales)

    def explain(self) -> str:
        """What is kept of every chunk."""
        some = jax.tree.map(lambda leaf: leaf[: self.chunk_size], self.batch)
        chunk: PerExampleGradients = jax.eval_shape(partial(trace_batch, self.loss_fn), self.params, some)
        how = f"computed anew for every statistic, {self.chunk_size} of {self.count} examples at a time"
        return f"{chunk.explain()}\n{how}"

    @statistic()
    def precise_mean(self) -> PyTree:
        return jax.tree.map(jnp.add, *self._center_and_rest())

    @statistic()
    def mean(self) -> PyTree:
        mean = jnp.full(self.count, 1 / self.count, accumulated(self.example_losses).dtype)
        return self.weighted_sum(mean)

    @statistic(one_number_each)
    def weighted_sum(self, weights: Float[Array, " n"]) -> PyTree:
        return self._sum(lambda g, w: g.weighted_sum(w), weights)

    @statistic(per_example=True)
    def squared_norms(self) -> Float[Array, " n"]:
        return self._map(lambda g: g.squared_norms())

    @statistic(like_params, per_example=True)
    def inner_products(self, direction: PyTree) -> Float[Array, " n"]:
        return self._map(lambda g: g.inner_products(direction))

    @statistic(like_params, per_example=True)
    def centered_products(self, direction: PyTree) -> Float[Array, " n"]:
        center = self.mean()
        products = self._map(lambda g: _about(g, center).inner_products(direction))
        return products - products.mean()

    @statistic()
    def second_moment(self) -> PyTree:
        return self._sum(lambda g: jax.tree.map(lambda leaf: leaf * (g.count / self.count), g.second_moment()))

    @statistic(per_example=True)
    def squared_deviations(self) -> Float[Array, " n"]:
        """With m the mean of a chunk and δ = m − ḡ, ‖g_i − m‖² + 2⟨g_i − m, δ⟩ + ‖δ‖²."""
        mean = self.precise_mean()

        def deviations(g: PerExampleGradients) -> Float[Array, " n"]:
            delta = jax.tree.map(jnp.subtract, g.precise_mean(), mean)
            products = g.inner_products(delta)
            return g.squared_deviations() + 2 * (products - products.mean()) + squared_norm(delta)

        return self._map(deviations)

    @statistic()
    def total_deviation(self) -> Float[Array, ""]:
        center, rest = self._center_and_rest()

        def deviation(g: PerExampleGradients) -> Float[Array, ""]:
            return g.total_deviation() + g.count * squared_norm(_difference(g.precise_mean(), center, rest))

        return self._sum(deviation)

    @statistic(one_number_each)
    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        center, _ = self._center_and_rest()
        rest = self._sum(lambda g, w: _about(g, center).weighted_sum(w), weights / weights.sum())

        def deviation(g: PerExampleGradients, w: Float[Array, " n"]) -> Float[Array, ""]:
            weight = jnp.maximum(w.sum(), jnp.finfo(w.dtype).tiny)  # type: ignore[no-untyped-call]
            delta = jax.tree.map(jnp.subtract, _about(g, center).weighted_sum(w / weight), rest)
            within = jnp.where(w.sum() > 0, g.weighted_deviation(jnp.where(w.sum() > 0, w, jnp.ones_like(w))), 0.0)
            return within + w.sum().astype(within.dtype) * squared_norm(delta)

        return self._sum(deviation, weights)

    @statistic(one_number_each, per_example=True)
    def scaled(self, scales: Float[Array, " n"]) -> "RecomputedGradients":
        scaled = recomputed(ScaledLoss(self.loss_fn), self.params, (self.batch, scales), self.chunk_size)
        return replace(scaled, scales=self.scales)

    @statistic(like_params, per_example=True)
    def stretched(self, scales: PyTree) -> "RecomputedGradients":
        own = jax.tree.map(lambda leaf: accumulated(jnp.asarray(leaf)), scales)
        if self.scales is not None:
            own = jax.tree.map(lambda s, t: s * t.astype(s.dtype), self.scales, own)
        return replace(self, scales=own)

    @statistic(per_example=True)
    def times(self, number: Any) -> "RecomputedGradients":
        return self.scaled(jnp.full(self.count, number, self.losses().dtype))

    @statistic()
    def _coordinate_deviations(self) -> PyTree:
        center, rest = self._center_and_rest()

        def deviations(g: PerExampleGradients) -> PyTree:
            delta = _difference(g.precise_mean(), center, rest)
            return jax.tree.map(lambda variance, d: g.count * (variance + d**2), g.variance(), delta)

        return self._sum(deviations)

    @statistic(with_memory_for_all, per_example=True)
    def materialize(self) -> PyTree:
        return self._map(lambda g: g.materialize())

    @statistic(with_memory_for_gram, per_example=True)
    def centered_gram(self) -> Float[Array, "n n"]:
        center, _ = self._center_and_rest()

        def one_by_one() -> Float[Array, "n n"]:
            """⟨g_i, g_j − c⟩, of a chunk of i and a chunk of j at a time: its columns are off by one number each."""
            return self._map(lambda g: self._map(lambda other: _products_with_deviations(g, other, center)).T)

        return first_without_cancellation([self.gram, one_by_one])

    @statistic(with_memory_for_gram, per_example=True)
    def gram(self, other: PerExampleGradients | None = None) -> Float[Array, "n m"]:
        return self._map(lambda g: g.gram(self if other is None else other))

    def _center_and_rest(self) -> tuple[PyTree, PyTree]:
        """Some c near ḡ, and ḡ − c: each in its own digits, so that their sum has more than one number holds."""
        center = self.mean()
        share = 1 / self.count
        rest = self._sum(lambda g: jax.tree.map(lambda m, c: (g.count * share) * (m - c), g.precise_mean(), center))
        return center, rest

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(leaf.shape for leaf in jax.tree.leaves(self.params))

    def _map(self, statistic: Callable[..., Any], *arrays: Array) -> Any:
        """A statistic with one entry for each example, of all chunks."""
        some, rest = chunked((self.batch, arrays), self.chunk_size)
        found = jax.lax.map(partial(self._of_chunk, statistic), some)
        found = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), found)
        if rest is None:
            return found
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, self._of_chunk(statistic, rest))

    def _sum(self, statistic: Callable[..., Any], *arrays: Array) -> Any:
        """A statistic that is a sum over examples, of all chunks."""
        some, rest = chunked((self.batch, arrays), self.chunk_size)
        shapes = jax.eval_shape(partial(self._of_chunk, statistic), jax.tree.map(lambda leaf: leaf[0], some))
        zeros = varying_like(some, jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes))

        def add(total: Any, chunk: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, self._of_chunk(statistic, chunk)), None

        found, _ = jax.lax.scan(add, zeros, some)
        return found if rest is None else add(found, rest)[0]

    def _of_chunk(self, statistic: Callable[..., Any], chunk: tuple[PyTree, tuple[Array, ...]]) -> Any:
        batch, arrays = chunk
        g = trace_batch(self.loss_fn, self.params, batch)
        return statistic(g if self.scales is None else g.stretched(self.scales), *arrays)


def _difference(mean: PyTree, center: PyTree, rest: PyTree) -> PyTree:
    """The mean of a chunk less that of all, c + rest."""
    return jax.tree.map(lambda m, c, r: (m - c) - r, mean, center, rest)


def _about(g: PerExampleGradients, center: PyTree) -> PerExampleGradients:
    """The gradients g_i − c of a chunk: of these about a center of their own, and what this is off by."""
    parts = [factor.centered() for factor in g.factors]
    factors = tuple(
        WithSharedPart(factor, own - c) for (factor, own), c in zip(parts, jax.tree.leaves(center), strict=True)
    )
    return PerExampleGradients(g.example_losses, g.structure, factors, g.rules)


def _products_with_deviations(g: PerExampleGradients, other: PerExampleGradients, center: PyTree) -> Array:
    """⟨h_j, g_i − c⟩ for the gradients h of another chunk, shape (m, n)."""
    deviations = jax.tree.map(lambda leaf, c: leaf - c[None], g.materialize(), center)
    return jax.lax.map(other.inner_products, deviations).T


@dataclass(frozen=True)
class ScaledLoss:
    """The loss of an example and a scale; equal for equal losses, so that it is not compiled again."""

    loss_fn: Loss

    def __call__(self, params: PyTree, example: tuple[PyTree, Array]) -> Array:
        inner, scale = example
        loss = self.loss_fn(params, inner)
        return loss * scale.astype(loss.dtype)


def recomputed(loss_fn: Loss, params: PyTree, batch: PyTree, chunk_size: int) -> RecomputedGradients:
    """The gradients of a batch, ``chunk_size`` examples at a time."""
    losses = jax.lax.map(partial(loss_fn, params), batch, batch_size=chunk_size)
    return RecomputedGradients(
        losses, jax.tree.structure(params), params=params, batch=batch, loss_fn=loss_fn, chunk_size=chunk_size
    )


def recomputed_with_aux(
    loss_fn: Loss, params: PyTree, batch: PyTree, chunk_size: int
) -> tuple[RecomputedGradients, PyTree]:
    """The same for a loss that returns (loss, aux), and the aux of each example, which is kept."""
    losses, aux = jax.lax.map(partial(loss_fn, params), batch, batch_size=chunk_size)
    structure, loss = jax.tree.structure(params), WithoutAux(loss_fn)
    return RecomputedGradients(losses, structure, params=params, batch=batch, loss_fn=loss, chunk_size=chunk_size), aux
