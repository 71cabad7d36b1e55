"""What one batch tells of the noise of its gradient: sums that monitors average over steps.

A batch of m examples has terms h_j whose mean is the step's gradient ĝ: the gradients of its examples, each times m
times its weight where those are unequal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels
from jaxsgd._core import sums, validate

Where = Callable[[str], bool]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Terms:
    """The terms h_j = factor · u_j of a batch.

    Attributes:
        gradients: the u_j, one for each of n places.
        factor: a number.
        drawn: which places hold an example of the batch, shape (n,), or None where all do. The others must be 0.
    """

    gradients: kernels.PerExampleGradients
    factor: Any = 1.0
    drawn: Any = None

    @property
    def count(self) -> Any:
        """m, the number of examples in the batch."""
        return self.gradients.count if self.drawn is None else self.drawn.sum()

    def mean(self) -> PyTree:
        """ĝ, the mean of the terms, a pytree like ``params``."""

        def mean(leaf: Array) -> Array:
            n, m, factor = (jnp.asarray(x, leaf.dtype) for x in (self.gradients.count, self.count, self.factor))
            return factor * (n / m) * leaf

        return jax.tree.map(mean, self.gradients.mean())

    def only(self, where: Where | None) -> "Terms":
        """The terms of the parameters whose path ``where`` accepts."""
        return self if where is None else Terms(self.gradients.only(where), self.factor, self.drawn)


def chosen_leaves(tree: PyTree, where: Where | None) -> list[Any]:
    """The leaves whose path, such as ``['norm']['scale']``, ``where`` accepts; all leaves by default."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [leaf for path, leaf in leaves if where is None or where(jax.tree_util.keystr(path))]


def noise_moments(
    sum_squared_norms: Any, squared_mean_norm: Any, count: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of tr Σ and ‖ḡ‖² from Σ‖h_j‖², ‖ĝ‖² and the number m of independent terms.

        S = (Σ‖h_j‖² − m‖ĝ‖²)/(m − 1),    G = ‖ĝ‖² − S/m

    since E‖h‖² = tr Σ + ‖ḡ‖² and E‖ĝ‖² = tr Σ/m + ‖ḡ‖². The difference costs S a relative rounding error of 1 + ‖ḡ‖²/tr
    Σ times that of the sums, which matters only where there is next to no noise. For m = 1 both are NaN.
    """
    m = jnp.asarray(count, squared_mean_norm.dtype)
    S = (sum_squared_norms - m * squared_mean_norm) / (m - 1)
    return S, squared_mean_norm - S / m


def batch_noise(updates: PyTree, terms: Terms, *, centered: bool) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of tr Σ and ‖ḡ‖² from the terms of a batch.

    They are made of the norms of the terms or, dearer and without cancellation, of their deviations.
    """
    g, m = terms.gradients, terms.count
    squared_mean_norm = sums.squared_norm(updates)
    square = jnp.asarray(terms.factor, squared_mean_norm.dtype) ** 2
    if not centered:
        return noise_moments(square * g.squared_norms().sum(), squared_mean_norm, m)
    places = jnp.ones(g.count) if terms.drawn is None else terms.drawn
    deviation = g.weighted_deviation(places.astype(squared_mean_norm.dtype))
    S = square * deviation / jnp.asarray(m - 1, square.dtype)
    return S, squared_mean_norm - S / jnp.asarray(m, square.dtype)


def projections(updates: PyTree, terms: Terms) -> Float[Array, ""]:
    """The sample variance of ⟨h_j, ĝ⟩ over the batch, centered; their mean is ‖ĝ‖²."""
    products = terms.gradients.inner_products(updates)
    products = jnp.asarray(terms.factor, products.dtype) * products
    drawn = jnp.ones(products.shape, bool) if terms.drawn is None else terms.drawn
    m = drawn.sum().astype(products.dtype)
    mean = jnp.where(drawn, products, 0).sum() / m
    return jnp.sum(jnp.where(drawn, (products - mean) ** 2, 0)) / (m - 1)


def coordinate_noise(updates: PyTree, terms: Terms) -> tuple[list[Array], list[Array]]:
    """Unbiased estimates of Σ_jj and ḡ_j² for every coordinate j, as lists of leaves."""
    g, m = terms.gradients, terms.count
    if terms.drawn is None:
        deviations = [g.count * leaf for leaf in jax.tree.leaves(g.variance(ddof=0))]  # Σ (u − ū)²
    else:
        squares = jax.tree.leaves(g.second_moment())
        means = [
            leaf.astype(square.dtype) / jnp.asarray(terms.factor, square.dtype)
            for leaf, square in zip(jax.tree.leaves(updates), squares, strict=True)
        ]
        deviations = [
            g.count * square - m.astype(mean.dtype) * mean**2 for square, mean in zip(squares, means, strict=True)
        ]
    variances, signals = [], []
    for deviation, leaf in zip(deviations, jax.tree.leaves(updates), strict=True):
        factor, count = jnp.asarray(terms.factor, deviation.dtype), jnp.asarray(m, deviation.dtype)
        variances.append(factor**2 * deviation / (count - 1))
        signals.append(leaf.astype(deviation.dtype) ** 2 - variances[-1] / count)
    return variances, signals


def group_noise(
    group_gradients: PyTree, group_size: int
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of tr Σ and ‖ḡ‖² from the mean gradients of k groups of b independent examples each.

    The two-batch estimators of McCandlish et al. (2018, appendix A.1) with B_small = b and B_big = kb, where the small
    batches are the parts of the big one. Since its gradient is the mean of theirs, mean ‖g_k‖² − ‖ĝ‖² = mean ‖g_k −
    ĝ‖², which is computed so:

        S = mean ‖g_k − ĝ‖² / (1/b − 1/(kb)),    G = ‖ĝ‖² − S/(kb)

    Args:
        group_gradients: a pytree with a leading axis of k groups.
        group_size: b.

    Returns:
        S, G and ‖ĝ‖².
    """
    num_groups = validate.leading_axis(group_gradients=group_gradients)
    validate.at_least(2, **{"the number of groups": num_groups})
    leaves = [sums.accumulated(leaf) for leaf in jax.tree.leaves(group_gradients)]
    means = [leaf.mean(axis=0) for leaf in leaves]
    spread = sums.squared_norm([leaf - mean[None] for leaf, mean in zip(leaves, means, strict=True)]) / num_groups
    squared_mean_norm = sums.squared_norm(means)
    S = spread / ((1 - 1 / num_groups) / group_size)
    return S, squared_mean_norm - S / (num_groups * group_size), squared_mean_norm


def groups_of(terms: Terms, num_groups: int) -> PyTree:
    """The mean gradients of k consecutive parts of a batch, with a leading axis of k."""
    n = terms.gradients.count
    if terms.drawn is not None or n % num_groups:
        found = n if terms.drawn is None else "random"
        raise ValueError(
            f"num_groups must divide a fixed batch size, got {num_groups} for a batch size that is {found}"
        )
    size = n // num_groups
    parts = [terms.gradients.take(slice(k * size, (k + 1) * size)).mean() for k in range(num_groups)]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(terms.factor, x.dtype) * x for x in leaves]), *parts)
