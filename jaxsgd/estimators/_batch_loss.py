"""The gradient of any batch loss, additive or not, over a sampling design.

For a loss that is no average of per-example losses, ∇L of a batch is not Σ w_i g_i, and no formula in the g_i gives its
moments. With probability p(B) of batch B,

    E ∇L(B) = Σ p(B) ∇L(B),    tr Cov ∇L(B) = Σ p(B) ‖∇L(B) − E ∇L(B)‖²,

summed over the design's support, or estimated from batches drawn: by the sample mean and the unbiased sample variance,
whose standard errors are sample standard deviations over √num_draws; that of the variance has the term of the order
1/num_draws of ``_monte_carlo`` as well. The batch loss sees the examples of a batch, not
the design's weights: an example drawn twice is in the batch twice, and a design that corrects unequal probabilities by
its weights is not corrected here. With unequal weights every example of positive weight is in the batch; to repeat
one, a design must have weights n_i/M for n_i draws out of ``batch_size`` M.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, PyTree

from jaxsgd import designs
from jaxsgd._core import arrays, sums, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.batch_losses import BatchLoss, on_sub_batch
from jaxsgd.estimators._monte_carlo import REFERENCE_DRAWS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchLossGradient:
    """The gradient of a batch loss over a sampling design, compared with that of the full data.

    Attributes:
        mean: E ∇L(B), a pytree like ``params``.
        bias: E ∇L(B) − ∇L(all data), a pytree like ``params``.
        variance: tr Cov ∇L(B).
        loss: E L(B).
        loss_bias: E L(B) − L(all data).
        loss_variance: Var L(B).
        mean_standard_error: of every number of ``mean``, and so of ``bias``; a pytree like ``params``.
        standard_error: of ``variance``.
        loss_standard_error: of ``loss``, and so of ``loss_bias``.
        num_draws: how many batches were drawn. For 0 the result is exact and all standard errors are 0.
    """

    mean: Any
    bias: Any
    variance: Any
    loss: Any
    loss_bias: Any
    loss_variance: Any
    mean_standard_error: Any
    standard_error: Any
    loss_standard_error: Any
    num_draws: Any


@on_any_mesh
def batch_loss_gradient(
    batch_loss_fn: Callable[..., Any],
    params: PyTree,
    data: PyTree,
    design: designs.Design,
    *,
    key: Array | None = None,
    num_draws: int | None = None,
    max_batches: int = 100_000,
    chunk_size: int = 256,
) -> BatchLossGradient:
    """Mean, bias and variance of the gradient of any batch loss, additive or not, over a sampling design.

    The gradients of whole batches are summed over the design's support, or over ``num_draws`` batches drawn. The bias
    is against ∇L of all data, in their order. The batch loss sees the examples of a batch, not the design's weights.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        batch_loss_fn: ``batch_loss_fn(params, batch) -> scalar`` or ``(scalar, aux)``.
        params: pytree of floating-point arrays.
        data: pytree of arrays with N examples along the first axis of each.
        design: how batches are drawn.
        key: for drawing batches, batch r with ``fold_in(key, r)``; none for enumeration.
        num_draws: how many batches to draw, at least 2; None to enumerate the support.
        max_batches: refuse, before any work, to enumerate a larger support.
        chunk_size: how many batches are evaluated at a time, vectorized: chunk_size · P numbers, and as many batches.

    Raises:
        TypeError: if an argument is of the wrong type, or the design cannot draw batches of a fixed size.
        ValueError: if the support is larger than ``max_batches``, does not tell which examples are in a batch, or has
            an empty batch; if a batch is larger than the population; if only one of ``key`` and ``num_draws`` is given;
            if the loss is not scalar, or not finite on some batch.

    >>> import jax.numpy as jnp
    >>> from jaxsgd import designs
    >>> squared_mean = lambda theta, r: jnp.mean(r - theta) ** 2
    >>> result = batch_loss_gradient(
    ...     squared_mean, jnp.asarray(0.0), jnp.asarray([1.0, 3.0, 8.0]), designs.WithoutReplacement(2)
    ... )
    >>> round(float(result.mean), 3), round(float(result.bias), 3), round(float(result.loss_bias), 3)
    (-8.0, 0.0, 2.167)
    """
    validate.floating_leaves(params=params)
    data = arrays.readable(data=data)
    count = validate.leading_axis(data=data)
    validate.positive_integer(max_batches=max_batches, chunk_size=chunk_size)
    loss = BatchLoss.of(batch_loss_fn, params, data)
    data = jax.tree.map(jnp.asarray, data)
    if num_draws is None:
        if key is not None:
            raise ValueError("key must be None unless batches are drawn: give num_draws as well")
        batches, references = _enumerated(design, count, max_batches), None
    else:
        validate.random_key(key=key)
        validate.at_least(2, num_draws=num_draws)
        validate.has_method("indices(key, population_size)", design=design)
        batches = _drawn(design, count, key, num_draws)
        references = _draw(design, count, key, jnp.asarray(REFERENCE_DRAWS))
    return _summary(loss, params, data, batches, references, num_draws or 0, chunk_size)


Batches = list[tuple[np.ndarray, np.ndarray]]  # for every size of batch: examples (r, m), probabilities (r,)


def _enumerated(design: designs.Design, count: int, max_batches: int) -> Batches:
    """Every batch of the support with its probability, by size."""
    validate.enough(design.support_size(count), f"enumerate {design}", max_batches=max_batches)
    by_size: dict[int, list[tuple[list[int], float]]] = {}
    for probability, weights in design.support(count):
        if probability:
            rows = _members(getattr(design, "batch_size", None), weights, design)
            by_size.setdefault(len(rows), []).append((rows, float(probability)))
    batches = [
        (np.array([rows for rows, _ in found]), np.array([probability for _, probability in found]))
        for found in by_size.values()
    ]
    total = np.concatenate([probabilities for _, probabilities in batches])
    validate.probabilities(**{f"the support of {design}": total})
    return batches


def _members(batch_size: int | None, weights: Sequence[Any], design: Any) -> list[int]:
    """The examples that a weight vector puts into a batch, repeated as often as they were drawn."""
    drawn = [i for i, weight in enumerate(weights) if weight > 0]
    if not drawn:
        raise ValueError(f"design must have no empty batch, on which a batch loss has no value, got {design}")
    if batch_size is None or len(drawn) == batch_size:
        return drawn
    counts = [Fraction(weight) * batch_size for weight in weights]
    if sum(counts) != batch_size or any(count.denominator != 1 for count in counts):
        raise ValueError(
            f"design must have weights n/{batch_size} that tell how often an example was drawn, got {design}"
        )
    return [i for i, count in enumerate(counts) for _ in range(int(count))]


def _drawn(design: Any, count: int, key: Any, num_draws: int) -> Batches:
    indices = _draw(design, count, key, jnp.arange(num_draws))
    return [(np.asarray(indices), np.full(num_draws, 1 / num_draws))]


@partial(jax.jit, static_argnums=(0, 1))
def _draw(design: Any, count: int, key: Array, draws: Integer[Array, " r"]) -> Int[Array, "r m"]:
    return jax.vmap(lambda r: design.indices(jax.random.fold_in(key, r), count))(draws)


def _summary(
    loss: BatchLoss,
    params: PyTree,
    data: PyTree,
    batches: Batches,
    references: Any,
    num_draws: int,
    chunk_size: int,
) -> BatchLossGradient:
    """Two passes over the batches: the means, then what is centered at them, with a few others as references."""
    chunks = [
        (jnp.asarray(rows[start : start + chunk_size]), jnp.asarray(probabilities[start : start + chunk_size]))
        for rows, probabilities in batches
        for start in range(0, len(rows), chunk_size)
    ]
    with jax.default_matmul_precision("highest"):
        full = on_sub_batch(loss, params, data, jnp.arange(len(jax.tree.leaves(data)[0])), None)
        mean = _added([_weighted_mean(loss, params, data, *chunk) for chunk in chunks])
        if not all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves((full, mean))):
            raise ValueError("batch_loss_fn must be finite, with a finite gradient, on every batch and on all data")
        if references is not None:
            references = _deviations(loss, params, data, references, mean)[1]
        units.require_squares("gradients", full[1], mean[1], references)
        parts = [_weighted_spread(loss, params, data, *chunk, mean, references) for chunk in chunks]
    losses, squares = _added([part[:2] for part in parts])
    mean_loss, mean_gradient = mean
    unbiased = num_draws / (num_draws - 1) if num_draws else 1.0
    per_draw = 1 / (num_draws - 1) if num_draws else 0.0
    variance = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(squares)) * unbiased
    error = jnp.zeros_like(variance)
    if num_draws:
        norms, products = (jnp.concatenate([part[i] for part in parts]) for i in (2, 3))
        error = units.standard_error(norms * unbiased, units.root_mean_square(products))
    return BatchLossGradient(
        mean=mean_gradient,
        bias=jax.tree.map(jnp.subtract, mean_gradient, full[1]),
        variance=variance,
        loss=mean_loss,
        loss_bias=mean_loss - full[0],
        loss_variance=losses * unbiased,
        mean_standard_error=jax.tree.map(lambda leaf: (leaf * per_draw) ** 0.5, squares),
        standard_error=error,
        loss_standard_error=(losses * per_draw) ** 0.5,
        num_draws=num_draws,
    )


def _added(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


@partial(jax.jit, static_argnums=0)
def _weighted_mean(
    loss: BatchLoss, params: PyTree, data: PyTree, rows: Int[Array, "r m"], probabilities: Float[Array, " r"]
) -> tuple[Float[Array, ""], PyTree]:
    """Σ p L(B) and Σ p ∇L(B) over some batches."""
    values = jax.vmap(lambda each: on_sub_batch(loss, params, data, each, None))(rows)
    return jax.tree.map(lambda leaf: jnp.tensordot(probabilities.astype(leaf.dtype), leaf, 1), values)


@partial(jax.jit, static_argnums=0)
def _deviations(
    loss: BatchLoss, params: PyTree, data: PyTree, rows: Int[Array, "r m"], center: tuple[Float[Array, ""], PyTree]
) -> tuple[Float[Array, " r"], PyTree]:
    """L(B) − E L, and ∇L(B) − E ∇L, of some batches."""
    values = jax.vmap(lambda each: on_sub_batch(loss, params, data, each, None))(rows)
    return jax.tree.map(lambda leaf, mean: leaf - mean[None], values, center)


@partial(jax.jit, static_argnums=0)
def _weighted_spread(
    loss: BatchLoss,
    params: PyTree,
    data: PyTree,
    rows: Int[Array, "r m"],
    probabilities: Float[Array, " r"],
    center: tuple[Float[Array, ""], PyTree],
    references: PyTree,
) -> tuple[Float[Array, ""], PyTree, Float[Array, " r"], Float[Array, "r k"] | None]:
    """Σ p (L(B) − E L)², Σ p (∇L(B) − E ∇L)² by coordinate, and of each batch ‖e‖² and the ⟨e, u⟩, e = ∇L(B) − E ∇L."""
    deviations = _deviations(loss, params, data, rows, center)
    squares = jax.tree.map(lambda leaf: leaf**2, deviations)
    losses, gradients = jax.tree.map(lambda leaf: jnp.tensordot(probabilities.astype(leaf.dtype), leaf, 1), squares)
    norms = sums.total([leaf.reshape(len(rows), -1).sum(axis=1) for leaf in jax.tree.leaves(squares[1])])
    if references is None:
        return losses, gradients, norms, None
    pairs = zip(jax.tree.leaves(deviations[1]), jax.tree.leaves(references), strict=True)
    products = [sums.einsum("rp,kp->rk", *(leaf.reshape(len(leaf), -1) for leaf in pair)) for pair in pairs]
    return losses, gradients, norms, sums.total(products)
