"""tr Cov ĝ = ⟨Cov w, K⟩ for every structured covariance, without the Gram matrix K, and centered.

Each form is written as a sum of squares in which only deviations occur, so that no digit cancels where gradients are
nearly equal. Groups and strata of unequal sizes are padded to common lengths, a few examples at a time; memory does not
grow with N but for the gradients themselves, and for :class:`DenseCovariance`.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsgd import kernels
from jaxsgd._core import sums, units
from jaxsgd.designs import (
    CircularCovariance,
    DenseCovariance,
    DiagonalCovariance,
    GroupCovariance,
    StratifiedCovariance,
    StructuredCovariance,
)

_EXAMPLES_AT_A_TIME = 2**16
_NUMBERS_AT_A_TIME = 2**24


def trace(covariance: StructuredCovariance, g: kernels.PerExampleGradients) -> Float[Array, ""]:
    """The number tr Cov ĝ = Σ_ij Cov(w)_ij ⟨g_i, g_j⟩."""
    match covariance:
        case DiagonalCovariance():
            return _of_diagonal(covariance, g)
        case StratifiedCovariance():
            return _weighted(covariance.identity, stratum_deviations(g, covariance.strata))
        case GroupCovariance():
            return _of_groups(covariance, g)
        case CircularCovariance():
            return _of_windows(covariance, g)
        case DenseCovariance():
            return _of_matrix(covariance, g)
    raise TypeError(
        f"weight_covariance must be one of the covariances of jaxsgd.designs, got {type(covariance).__name__}"
    )


def _of_diagonal(covariance: DiagonalCovariance, g: kernels.PerExampleGradients) -> Float[Array, ""]:
    """Σ d_i ‖g_i‖² − c ‖Σ g_i‖².

    With D = Σ 1/d_i, p_i = 1/(d_i D) and z_i = g_i/(N p_i), whose mean under p is ḡ, it is
    (N²/D) Σ p_i ‖z_i − ḡ‖² + N² (1/D − c) ‖ḡ‖².
    """
    d = covariance.diagonal
    if not covariance.common:
        return _weighted(d, g.squared_norms())
    random = d > 0
    inverse = np.where(random, 1 / np.where(random, d, 1 + 0 * d), 0 * d)
    total, N = inverse.sum(), g.count
    p = np.asarray(inverse / total, dtype=np.float64)
    z = g.scaled(jnp.asarray(np.where(random, 1 / (N * np.where(random, p, 1)), 0)))
    variance = float(N**2 / total) * z.weighted_deviation(jnp.asarray(p))
    if covariance.singular:
        return variance
    return variance + float(N**2 * (1 / total - covariance.common)) * sums.squared_norm(g.mean())


def stratum_deviations(g: kernels.PerExampleGradients, strata: Int[np.ndarray, " n"]) -> Float[Array, " h"]:
    """Σ_{i∈h} ‖g_i − ḡ_h‖² of every stratum h, shape (H,)."""
    labels, deviations = [], []
    for members, indices, real in _padded(strata, g.num_params):
        labels.append(members)
        deviations.append(_within(g, indices, real))
    return jnp.concatenate(deviations)[np.argsort(np.concatenate(labels))]


def _of_groups(covariance: GroupCovariance, g: kernels.PerExampleGradients) -> Float[Array, ""]:
    """(1/k) Σ_r ‖t_r − t̄‖² for the weighted sums t_r of the groups, and their mean t̄.

    About c ≈ t̄ it is the mean of ‖t_r − c‖² less the square of that of t_r − c: c, rounded, is off by ε t̄ for all.
    """
    k, weights = covariance.num_groups, np.asarray(covariance.weights, dtype=np.float64)
    center = g.weighted_sum(jnp.asarray(weights / k))
    parts = [
        _between(g, indices, jnp.asarray(weights[indices] * real), center)
        for _, indices, real in _padded(covariance.groups, g.num_params)
    ]
    squares, total = jax.tree.map(lambda *each: jnp.sum(jnp.stack(each), axis=0), *parts)
    return squares / k - sums.squared_norm(jax.tree.map(lambda leaf: leaf / k, total))


def _of_windows(covariance: CircularCovariance, g: kernels.PerExampleGradients) -> Float[Array, ""]:
    """(u²/N) Σ_r ‖T_r‖² for the sums T_r of the centered gradients of the window that starts at r."""
    if covariance.batch_size == g.count:
        return jnp.zeros_like(g.squared_norms()[0])
    total = _windows(g, covariance.batch_size, sums.examples_at_a_time(g.num_params))
    return total * float(covariance.weight**2 / g.count)


def _of_matrix(covariance: DenseCovariance, g: kernels.PerExampleGradients) -> Float[Array, ""]:
    """⟨A, K⟩ for z_i = s_i g_i, split into deviations and mean: ⟨A, K of z − z̄⟩ + 2⟨z − z̄, z̄⟩ A1 + 1ᵀA1 ‖z̄‖²."""
    z = g.scaled(jnp.asarray(np.asarray(covariance.scales, dtype=np.float64)))
    matrix, row_sums = (jnp.asarray(np.asarray(a, np.float64)) for a in (covariance.matrix, covariance.row_sums))
    return _quadratic(z, matrix, row_sums)


@jax.jit
def _quadratic(
    z: kernels.PerExampleGradients, matrix: Float[Array, "n n"], row_sums: Float[Array, " n"]
) -> Float[Array, ""]:
    parts = []
    for leaf in jax.tree.leaves(z.materialize()):
        rows = sums.accumulated(leaf).reshape(z.count, -1)
        mean = rows.mean(axis=0)
        centered = rows - mean[None]
        A, r = matrix.astype(rows.dtype), row_sums.astype(rows.dtype)
        inner = jnp.sum(centered * sums.einsum("ij,jp->ip", A, centered))
        parts.append(inner + jnp.sum(r * (2 * sums.einsum("np,p->n", centered, mean) + jnp.sum(mean**2))))
    return sums.total(parts)


@jax.jit
def _within(g: kernels.PerExampleGradients, indices: Int[Array, "c m"], real: Bool[Array, "c m"]) -> Float[Array, " c"]:
    """Σ ‖g_i − ḡ_h‖² of the real examples of every padded stratum."""

    def one(index: Array, is_real: Array) -> Array:
        return g.take(index).weighted_deviation(is_real.astype(jnp.float32))

    return jax.vmap(one)(indices, real)


@jax.jit
def _between(
    g: kernels.PerExampleGradients, indices: Int[Array, "c m"], weights: Float[Array, "c m"], center: PyTree
) -> tuple[Float[Array, ""], PyTree]:
    """Σ ‖t_r − c‖² and Σ (t_r − c) over padded groups with sums t_r = Σ_i u_i g_i."""

    def one(index: Array, weight: Array) -> tuple[Array, PyTree]:
        deviation = jax.tree.map(jnp.subtract, g.take(index).weighted_sum(weight), center)
        return sums.squared_norm(deviation), deviation

    squares, deviations = jax.vmap(one)(indices, weights)
    return squares.sum(), jax.tree.map(lambda leaf: sums.accumulated(leaf).sum(axis=0), deviations)


@partial(jax.jit, static_argnums=(1, 2))
def _windows(g: kernels.PerExampleGradients, length: int, chunk_size: int) -> Float[Array, ""]:
    """Σ_r ‖T_r − T̄‖², from T_{r+1} = T_r + g_{r+M} − g_r: a variance, so that T_0 may be anything, such as 0."""
    N = g.count
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, sums.accumulated(leaf).dtype), g.mean())

    def step(state: tuple[PyTree, PyTree], start: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        T, total = state
        starts = start + jnp.arange(chunk_size)
        inside = starts < N
        entering, leaving = (g.take((starts + shift) % N).materialize() for shift in (length, 0))

        def windows(at_start: Array, so_far: Array, enter: Array, leave: Array) -> tuple[Array, Array, Array]:
            enter, leave = sums.accumulated(enter), sums.accumulated(leave)
            changes = (enter - leave) * _column(inside, enter)
            before = (at_start[None] + jnp.cumsum(changes, axis=0) - changes) * _column(inside, enter)
            after = at_start + changes.sum(axis=0)
            return after, so_far + before.sum(axis=0), jnp.sum(before**2)

        out = jax.tree.map(windows, T, total, entering, leaving)
        T, total, squares = jax.tree.transpose(g.structure, jax.tree.structure((0, 0, 0)), out)
        return (T, total), sums.total(jax.tree.leaves(squares))

    (_, total), squares = jax.lax.scan(step, (zero, zero), jnp.arange(0, N, chunk_size))
    return squares.sum() - sums.squared_norm(jax.tree.map(lambda leaf: leaf / math.sqrt(N), total))


def _padded(labels: Int[np.ndarray, " n"], num_params: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The examples of every group, some groups at a time: their labels, (c,); indices and which are real, (c, m).

    Lengths are rounded up by at most an eighth, so that groups of similar sizes share a compilation.
    """
    order, sizes = np.argsort(labels, kind="stable"), np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    units = 2 ** np.maximum(np.floor(np.log2(np.maximum(sizes, 1))).astype(int) - 3, 0)
    lengths = -(-sizes // units) * units
    for length in np.unique(lengths).tolist():
        groups = np.flatnonzero(lengths == length)
        at_a_time = max(1, min(_EXAMPLES_AT_A_TIME // length, _NUMBERS_AT_A_TIME // max(num_params, 1)))
        for chunk in (groups[at : at + at_a_time] for at in range(0, len(groups), at_a_time)):
            place = np.arange(length)[None]
            yield chunk, order[starts[chunk, None] + place % sizes[chunk, None]], place < sizes[chunk, None]


def _weighted(coefficients: Any, squares: Float[Array, " n"]) -> Float[Array, ""]:
    """Σ c_i q_i in the dtype of q."""
    return jnp.sum(jnp.asarray(np.asarray(coefficients, dtype=np.float64)).astype(squares.dtype) * squares)


def _column(mask: Bool[Array, " c"], like: Array) -> Array:
    """The mask as numbers, with the trailing axes of another array."""
    return mask.astype(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


@jax.jit
def squared_errors(g: kernels.PerExampleGradients, deviations: Float[Array, "r n"]) -> Float[Array, " r"]:
    """‖Gᵀ d‖² for every row d."""

    def squared_norm(deviation: Float[Array, " n"]) -> Float[Array, ""]:
        return units.squared_norm(g.weighted_sum(deviation))

    return jax.lax.map(squared_norm, deviations, batch_size=64)
