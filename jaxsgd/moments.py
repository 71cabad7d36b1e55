"""The mean and variance of the per-example gradients of a data set, in one streaming pass.

A pass never holds more than one chunk of examples: each chunk is reduced to its moments, and moments are
merged by the rule of Chan, Golub and LeVeque ("Algorithms for computing the sample variance", The American
Statistician 37, 1983), which subtracts means before squaring, so no digit cancels. What a sum loses to rounding
is kept and added later (T. J. Dekker, "A floating-point technique for extending the available precision",
Numerische Mathematik 18, 1971), so a million chunks are as good as one.

Data that are split over devices are reduced where they are: each device merges the chunks of its own part, and the
parts are merged once, at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels, sources
from jaxsgd._core import arrays, devices, loss_functions, meshes, preconditioners, sums, units, validate
from jaxsgd._core.devices import Shards
from jaxsgd._core.meshes import on_any_mesh

__all__ = ["GradientMoments", "gradient_moments", "merge", "of"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradientMoments:
    """The first two moments of n per-example gradients g_i.

    A registered pytree. ``count`` is n, ``mean`` is ḡ (a pytree like ``params``), ``mean_loss`` is L̄,
    ``sum_squared_deviations`` is Σ‖g_i − ḡ‖², and ``coordinate_sums`` is Σ(g_i − ḡ)² coordinate by
    coordinate, or None where it was not asked for.
    """

    count: Any
    mean: Any
    mean_loss: Any
    sum_squared_deviations: Any
    coordinate_sums: Any = None

    @property
    def squared_mean_norm(self) -> Float[Array, ""]:
        """‖ḡ‖²."""
        return sums.squared_norm(self.mean)

    @property
    def squared_norms_mean(self) -> Float[Array, ""]:
        """(1/n) Σ ‖g_i‖² = tr Σ + ‖ḡ‖²."""
        return self.trace_covariance(ddof=0) + self.squared_mean_norm

    def trace_covariance(self, *, ddof: int = 0) -> Float[Array, ""]:
        """Σ‖g_i − ḡ‖² / (n − ddof): tr Σ with ``ddof=0``, tr S² with ``ddof=1``."""
        return self.sum_squared_deviations / self._divisor(ddof)

    def variance(self, *, ddof: int = 0) -> PyTree:
        """Σ(g_i − ḡ)² / (n − ddof), coordinate by coordinate, a pytree like ``params``."""
        if self.coordinate_sums is None:
            raise ValueError("variance must be asked for: gradient_moments(..., per_coordinate=True)")
        divisor = self._divisor(ddof)
        return jax.tree.map(lambda total: total / divisor.astype(total.dtype), self.coordinate_sums)

    @on_any_mesh
    def in_metric(self, metric: PyTree) -> "GradientMoments":
        """The moments of √d∘g_i, from those per coordinate, as ``PerExampleGradients.in_metric`` has them."""
        mean, coordinates = preconditioners.moments_in(metric, self.mean, self.coordinate_sums)
        deviations = sums.total([leaf.sum() for leaf in jax.tree.leaves(coordinates)])
        return replace(self, mean=mean, sum_squared_deviations=deviations, coordinate_sums=coordinates)

    def _divisor(self, ddof: int) -> Any:
        validate.at_least(0, ddof=ddof)
        if not isinstance(self.count, jax.core.Tracer):
            validate.at_least(1 + ddof, **{"the number of examples": int(self.count)})
        return (self.count - ddof).astype(self.sum_squared_deviations.dtype)


@on_any_mesh
def gradient_moments(
    loss_fn: Callable[..., Any],
    params: PyTree,
    data: Any,
    *,
    chunk_size: int | None = None,
    per_coordinate: bool = False,
    key: Array | None = None,
    has_aux: bool = False,
) -> GradientMoments:
    """Compute the :class:`GradientMoments` of all per-example gradients of a data set in one pass.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: θ, a pytree of floating-point arrays.
        data: a pytree of arrays with N examples along the first axis of each (NumPy arrays, memory-mapped
            ones included, are sliced on the host), a source with ``len()`` and ``source[i]``, or an
            iterator of batches: see :mod:`jaxsgd.sources`. JAX arrays, and batches of them, may be split over the
            devices of a mesh, those of other processes included; ``params`` too.
        chunk_size: how many examples each device differentiates at a time; all at once by default. The last chunk
            may be shorter. Neither it nor the devices change more than rounding: ε mean/noise (:mod:`jaxsgd.kernels`).
        per_coordinate: keep the variance of every coordinate too, at the memory of one more ``params``.
        key: for ``loss_fn(params, example, key)``; example i of the data has the key fold_in(key, i).
        has_aux: whether the loss returns ``(scalar, aux)``; a pass keeps nothing of the aux.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.per_example_gradients`; also if a gradient is not finite, naming
            the example and the parameter, if an iterator has no batch, or if ``chunk_size`` is given for one.

    Guarantees:
        - one pass: every example is differentiated once.
        - at most two compilations, for the full chunk and the last one.
        - nothing is communicated until the end of the pass, and then P numbers and a few, twice P with
          ``per_coordinate``. (``params`` that are split along the same axes of a mesh as the data are gathered first.)

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> m = gradient_moments(loss_fn, params, data, chunk_size=3)
    >>> int(m.count), round(float(m.trace_covariance(ddof=0)), 4), round(float(m.squared_mean_norm), 4)
    (4, 15.75, 1.25)
    """
    validate.floating_leaves(params=params)
    kind = sources.kind(data)
    if kind == "batches" and chunk_size is not None:
        raise ValueError(f"chunk_size must be None for an iterator of batches, got {chunk_size}")
    if kind != "arrays":
        return _stream(loss_fn, params, sources.batches(data, chunk_size), per_coordinate, key, has_aux)
    population_size = validate.leading_axis(data=data)
    first = jax.tree.map(lambda leaf: sources.rows(leaf, slice(0, 1)), data)
    loss_functions.require_scalar(loss_fn, params, first, key=key, has_aux=has_aux)
    first = kernels.with_keys(loss_fn, first, key)[1]
    loss_fn, data = _as_taken(loss_fn, data, key, has_aux)
    moments_pass = _Pass(loss_fn, params, per_coordinate)
    loss_functions.require_deterministic(loss_fn, params, first)
    chunk_size = population_size if chunk_size is None else chunk_size
    validate.positive_integer(chunk_size=chunk_size)

    moments_pass.add(data, chunk_size)
    total = moments_pass.total()
    if not _is_ordinary(total):
        starts = range(0, population_size, chunk_size)
        for start, batch in zip(starts, sources.batches(data, chunk_size), strict=True):
            kernels.require_finite(kernels.trace_batch(loss_fn, params, batch), start)
        _require_no_overflow(total)
    return total


def _as_taken(
    loss_fn: Callable[..., Any], data: PyTree, key: Array | None, has_aux: bool, first: int = 0
) -> tuple[kernels.Loss, PyTree]:
    """The loss as one number for each example, which has a key if there is one."""
    loss_fn, data = kernels.with_keys(loss_fn, data, key, first)
    return kernels.WithoutAux(loss_fn) if has_aux else loss_fn, data


@on_any_mesh
def of(g: kernels.PerExampleGradients | GradientMoments, *, metric: PyTree | None = None) -> GradientMoments:
    """The moments of per-example gradients that are at hand; moments are returned as they are, but for a ``metric``.

    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Raises:
        TypeError: if ``g`` is neither.
        ValueError: if a gradient is not finite; of a ``metric``, as ``in_metric`` of either.
    """
    if not isinstance(g, kernels.PerExampleGradients | GradientMoments):
        raise TypeError(f"g must be per-example gradients or their moments, got {validate.describe(g)}")
    if metric is not None:
        g = g.in_metric(metric)
    if isinstance(g, GradientMoments):
        return g
    m = _of(g, False)
    if not _is_ordinary(m):
        kernels.require_finite(g)
        _require_no_overflow(m)
    return m


@on_any_mesh
def merge(first: GradientMoments, second: GradientMoments) -> GradientMoments:
    """The moments of the union of two disjoint sets of examples (Chan, Golub and LeVeque, 1983).

    With δ the difference of the means, ḡ = ḡ₁ + δ n₂/n and Σ‖g_i − ḡ‖² gains ‖δ‖² n₁n₂/n over the two sums.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Raises:
        ValueError: if only one of the two has per-coordinate sums, or there are more examples than JAX's integers count
            (2³¹ − 1 without x64).
    """
    if (first.coordinate_sums is None) != (second.coordinate_sums is None):
        raise ValueError("second must have per-coordinate sums if and only if first does")
    if not any(isinstance(each.count, jax.core.Tracer) for each in (first, second)):
        _countable(int(first.count) + int(second.count))
    return _add(_Running(first, jax.tree.map(jnp.zeros_like, first)), second).total


class _Running(NamedTuple):
    """Moments, and what their sums have lost to rounding so far."""

    total: GradientMoments
    lost: GradientMoments


def _add(running: _Running, part: GradientMoments) -> _Running:
    """The running moments with one more part merged in."""
    total, lost = running
    count = total.count + part.count
    share = part.count / count  # n₂/n
    overlap = total.count.astype(share.dtype) * share  # n₁n₂/n
    delta = jax.tree.map(lambda new, old, rest: (new - old) - rest, part.mean, total.mean, lost.mean)

    def weigh(weight: Any, leaf: Any) -> Any:
        return weight.astype(leaf.dtype) * leaf

    gains = GradientMoments(
        count=part.count,
        mean=jax.tree.map(lambda d: weigh(share, d), delta),
        mean_loss=weigh(share, (part.mean_loss - total.mean_loss) - lost.mean_loss),
        sum_squared_deviations=part.sum_squared_deviations + weigh(overlap, sums.squared_norm(delta)),
        coordinate_sums=None
        if part.coordinate_sums is None
        else jax.tree.map(lambda new, d: new + weigh(overlap, d**2), part.coordinate_sums, delta),
    )
    pairs = jax.tree.map(lambda old, rest, gain: sums.two_sum(old, rest + gain), total, lost, gains)
    return _Running(*jax.tree.transpose(jax.tree.structure(total), jax.tree.structure((0, 0)), pairs))


def _countable(count: int) -> None:
    """Raise if there are more examples than an integer of JAX's counts, 2³¹ − 1 without x64."""
    dtype = jnp.asarray(0).dtype
    validate.at_most(int(np.iinfo(dtype).max), f"what {dtype} counts,", **{"the number of examples": count})


class _Pass:
    """Running moments, one for every way in which data are split over devices; for those split, one of each part."""

    def __init__(self, loss_fn: kernels.Loss, params: PyTree, per_coordinate: bool) -> None:
        self.loss_fn, self.params, self.per_coordinate = loss_fn, params, per_coordinate
        self._running: dict[Shards | None, _Running] = {}
        self._count = 0

    def add(self, data: PyTree, chunk_size: int) -> _Running:
        """Merge in the moments of arrays, a chunk at a time."""
        shards, params, count = devices.shards(data), self.params, len(jax.tree.leaves(data)[0])
        self._count += count
        _countable(self._count)
        running = self._running.get(shards)
        if running is None:
            first = jax.tree.map(lambda leaf: sources.rows(leaf, slice(0, 1)), data)
            running = _empty(params, first, self.loss_fn, self.per_coordinate, shards)
        if shards is not None:
            params, data, count = shards.gathered(params), shards.split(data), count // shards.count
        for start in range(0, count, chunk_size):
            size = min(chunk_size, count - start)
            running = _add_chunk(self.loss_fn, size, shards, params, *_chunk(data, start, size), running)
        self._running[shards] = running
        return running

    def total(self) -> GradientMoments:
        """The moments of all."""
        parts = [r.total if shards is None else _united(r) for shards, r in self._running.items()]
        return reduce(merge, parts)


def _stream(
    loss_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterator[PyTree],
    per_coordinate: bool,
    key: Array | None,
    has_aux: bool,
) -> GradientMoments:
    """The moments over an iterator, each batch checked while it is at hand."""
    structure: Any = None
    seen = 0
    moments_pass: Any = None
    for batch in map(meshes.automatic, (arrays.readable(data=batch) for batch in batches)):
        size = validate.leading_axis(**{"a batch of data": batch})
        if structure is None:
            structure = jax.tree.structure(batch)
            loss_functions.require_scalar(loss_fn, params, batch, key=key, has_aux=has_aux)
        if structure != jax.tree.structure(batch):
            raise ValueError(
                f"batches of data must have the structure of the first, {structure}, got {jax.tree.structure(batch)}"
            )
        loss, batch = _as_taken(loss_fn, batch, key, has_aux, seen)
        if moments_pass is None:
            loss_functions.require_deterministic(loss, params, batch)
            moments_pass = _Pass(loss, params, per_coordinate)
        running = moments_pass.add(batch, size)
        if not _is_ordinary(running.total):
            kernels.require_finite(kernels.trace_batch(loss, params, batch), seen)
            _require_no_overflow(running.total)
        seen += size
    if moments_pass is None:
        raise ValueError("data must have at least one batch, got an empty iterator")
    total: GradientMoments = moments_pass.total()
    return total


def _chunk(data: PyTree, start: int, size: int) -> tuple[PyTree, Any]:
    """Arrays that hold the chunk, and where it starts in them.

    JAX arrays are sliced inside the compiled step, so that no start is compiled in; others on the host, so that
    only the chunk moves to the device.
    """
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data)):
        return data, np.int32(start) if start < 2**31 else np.int64(start)
    return jax.tree.map(lambda leaf: sources.rows(leaf, slice(start, start + size)), data), np.int32(0)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _add_chunk(
    loss_fn: kernels.Loss,
    size: int,
    shards: Shards | None,
    params: PyTree,
    data: PyTree,
    start: Any,
    running: _Running,
) -> _Running:
    def add(shared: tuple[PyTree, Any], data: PyTree, running: _Running) -> _Running:
        params, start = shared
        chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)
        g = kernels.trace_batch(loss_fn, params, chunk)
        return _add(running, _of(g, running.total.coordinate_sums is not None))

    return (add if shards is None else shards.each(add))((params, start), data, running)


@jax.jit
def _united(running: _Running) -> GradientMoments:
    """The moments of the union of equal parts: about ḡ, the sum Σ‖g_i − ḡ_d‖² of part d is larger by n_d‖ḡ_d − ḡ‖²."""
    parts = jax.tree.map(jnp.add, *running)
    mean, mean_loss = jax.tree.map(lambda leaf: leaf.mean(axis=0), (parts.mean, parts.mean_loss))

    def about_mean(part: GradientMoments) -> tuple[Array, Array, PyTree]:
        moved = jax.tree.map(lambda m, overall: part.count.astype(m.dtype) * (m - overall) ** 2, part.mean, mean)
        squares = part.sum_squared_deviations + sums.total([leaf.sum() for leaf in jax.tree.leaves(moved)])
        coordinates = None if part.coordinate_sums is None else jax.tree.map(jnp.add, part.coordinate_sums, moved)
        return part.count, squares, coordinates

    count, squares, coordinates = jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.vmap(about_mean)(parts))
    return GradientMoments(count, mean, mean_loss, squares, coordinates)


def _of(g: kernels.PerExampleGradients, per_coordinate: bool) -> GradientMoments:
    losses, mean, deviation = g.losses(), g.mean(), g.total_deviation()
    lost = sums.squared_norm(mean) * g.count > _MAX_SIGNAL * deviation
    coordinates = jax.tree.map(lambda v: v * g.count, g.variance(ddof=0)) if per_coordinate else None
    return GradientMoments(
        count=jnp.asarray(g.count),
        mean=jax.lax.cond(lost, g.precise_mean, lambda: mean),
        mean_loss=sums.accumulated(losses).mean(),
        sum_squared_deviations=sums.total([leaf.sum() for leaf in jax.tree.leaves(coordinates)])
        if per_coordinate
        else deviation,
        coordinate_sums=coordinates,
    )


_MAX_SIGNAL = 2**16  # ‖ḡ‖²/tr Σ, from where on the rounding of a sum of n large numbers would show in merged variances


def _empty(
    params: PyTree, batch: PyTree, loss_fn: kernels.Loss, per_coordinate: bool, shards: Shards | None
) -> _Running:
    """The moments of no example, the neutral element of :func:`merge`, for each part."""

    def moments_of_one(params: PyTree, batch: PyTree) -> GradientMoments:
        one = jax.tree.map(lambda leaf: leaf[:1], batch)
        return _of(kernels.trace_batch(loss_fn, params, one), per_coordinate)

    shapes = jax.eval_shape(moments_of_one, params, batch)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes) if shards is None else shards.zeros(shapes)
    return _Running(zeros, zeros)


def _is_ordinary(m: GradientMoments) -> bool:
    """Whether the moments are finite, and squares far from the smallest numbers, as far as that is known.

    Otherwise the gradients themselves are looked at. Under a transformation moments have no values.
    """
    if isinstance(m.sum_squared_deviations, jax.core.Tracer):
        return True
    deviations = m.sum_squared_deviations  # of every device, where they are not added yet
    squares = deviations / jnp.maximum(jnp.asarray(m.count, deviations.dtype), 1) + m.squared_mean_norm
    return bool(jnp.max(squares) >= units.smallest_square(squares.dtype)) and _is_finite(m)


def _is_finite(m: GradientMoments) -> bool:
    return bool(jnp.isfinite(m.sum_squared_deviations).all() & jnp.isfinite(m.squared_mean_norm))


def _require_no_overflow(m: GradientMoments) -> None:
    if not _is_finite(m):
        dtype = m.sum_squared_deviations.dtype
        raise ValueError(f"sums of squared gradients overflow {dtype}: scale the loss down, or use float64 parameters")
