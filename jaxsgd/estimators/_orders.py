"""Random orders of a population, of which every prefix is a batch: squared norms of their sums, and who was in them.

With the centered Gram matrix K of N examples, ‖S_M‖² grows along an order by a few entries of K. N² numbers are more
than memory holds for N = 10⁵, and more work than P N a draw: beyond ``LARGEST_BLOCK`` examples the sums S_M, of P
numbers, are formed themselves, a few gradients at a time, and what is summed over K is found without it too:

    Σ_ij K_ij² = ‖Σ_i d_i d_iᵀ‖²,  d_i = g_i − ḡ,

from a P × P matrix, or, where that is the larger one, from a few rows of K at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, PyTree

from jaxsgd import kernels
from jaxsgd._core import devices, memory
from jaxsgd._core.sums import LARGEST_BLOCK, accumulated, chunked, einsum, examples_at_a_time, total
from jaxsgd.estimators._contraction import squared_errors

Orders = Callable[[Int[Array, " r"]], tuple[Int[Array, "r n"], Float[Array, "r n"]]]


def by_gram(law: Any, g: kernels.PerExampleGradients, key: Array) -> Orders:
    """Of draws, orders and the ‖S_M‖² of all their prefixes, from the Gram matrix."""
    gram = kernels.centered_gram(g)
    return lambda draws: _grown_from_gram(law, gram, key, draws)


def by_sums(law: Any, g: kernels.PerExampleGradients, key: Array) -> Orders:
    """The same, from sums of gradients."""
    mean = g.precise_mean()
    return lambda draws: _grown_from_sums(law, g, mean, key, draws)


class Counts:
    """How often each example was in the batches of each size."""

    def __init__(self, sizes: Int[np.ndarray, " b"], population_size: int) -> None:
        memory.require(
            f"to count in {len(sizes)} batch_sizes of {population_size} examples",
            3 * len(sizes) * population_size,
            np.float64,
            "choose fewer batch_sizes",
        )
        ascending, self._place = np.unique(sizes, return_inverse=True)
        self._first = np.searchsorted(ascending, np.arange(population_size), side="right")  # with position p in it
        self._counts = np.zeros((len(ascending) + 1, population_size))

    def add(self, orders: Int[np.ndarray, "r n"]) -> None:
        """Count the examples of some orders, each in the smallest batch that it is in."""
        for order in orders:
            np.add.at(self._counts, (self._first, order), 1)

    def of_each_size(self) -> Float64[np.ndarray, "b n"]:
        """The counts, for the sizes as they were given."""
        return np.cumsum(self._counts[:-1], axis=0)[self._place]


def squared_mean_errors(g: kernels.PerExampleGradients, deviations: Float64[np.ndarray, "b n"]) -> Any:
    """‖Gᵀ d‖² for every row d, shape (b,)."""
    return devices.on_host(squared_errors(g, jnp.asarray(deviations))).astype(np.float64)


def sums_over_gram(g: kernels.PerExampleGradients) -> tuple[Any, Any, Any]:
    """Σ K_ii, Σ K_ii² and Σ K_ij² of the centered Gram matrix K."""
    if g.count <= LARGEST_BLOCK:
        gram = devices.on_host(kernels.centered_gram(g)).astype(np.float64)
        return np.trace(gram), np.sum(np.diagonal(gram) ** 2), np.sum(gram**2)
    diagonal, mean = devices.on_host(g.squared_deviations()).astype(np.float64), g.precise_mean()
    by_parameters = g.num_params <= LARGEST_BLOCK
    block = LARGEST_BLOCK if by_parameters else 64
    parts = (np.arange(start, min(start + block, g.count)) for start in range(0, g.count, block))
    if by_parameters:
        products = sum(devices.on_host(_outer_products(g, mean, part)).astype(np.float64) for part in parts)
        squares = np.sum(products**2)
    else:
        squares = sum(np.sum(devices.on_host(_rows_of_gram(g, mean, part)).astype(np.float64) ** 2) for part in parts)
    return diagonal.sum(), np.sum(diagonal**2), squares


@jax.jit
def _outer_products(g: kernels.PerExampleGradients, mean: PyTree, some: Int[Array, " m"]) -> Float[Array, "p p"]:
    """Σ d_i d_iᵀ of some examples."""
    leaves = jax.tree.leaves(_deviations(g, mean, some))
    rows = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    return einsum("np,nq->pq", rows, rows)


@jax.jit
def _rows_of_gram(g: kernels.PerExampleGradients, mean: PyTree, some: Int[Array, " m"]) -> Float[Array, "m n"]:
    """⟨d_i, d_j⟩ of some i and all j."""

    def row(deviation: PyTree) -> Float[Array, " n"]:
        products = g.inner_products(deviation)
        return products - products.mean()

    return jax.lax.map(row, _deviations(g, mean, some))


def _deviations(g: kernels.PerExampleGradients, mean: PyTree, some: Int[Array, " m"]) -> PyTree:
    return jax.tree.map(lambda leaf, m: accumulated(leaf) - m[None], g.take(some).materialize(), mean)


@partial(jax.jit, static_argnums=0)
def _grown_from_gram(
    law: Any, gram: Float[Array, "n n"], key: Array, draws: Int[Array, " r"]
) -> tuple[Int[Array, "r n"], Float[Array, "r n"]]:
    """For every draw, an order of N examples and ‖S_M‖², the squared norms of its centered prefix sums."""

    def one_order(r: Int[Array, ""]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        order = law.indices(jax.random.fold_in(key, r), gram.shape[0])

        def extend(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], Array]:
            products, squared = carry
            squared = squared + 2 * products[j] + gram[j, j]
            return (products + gram[j], squared), squared

        start = (jnp.zeros_like(gram[0]), jnp.zeros((), gram.dtype))
        return order, jax.lax.scan(extend, start, order)[1]

    return jax.lax.map(one_order, draws)


@partial(jax.jit, static_argnums=0)
def _grown_from_sums(
    law: Any, g: kernels.PerExampleGradients, mean: PyTree, key: Array, draws: Int[Array, " r"]
) -> tuple[Int[Array, "r n"], Float[Array, "r n"]]:
    def extend(so_far: PyTree, some: Int[Array, " m"]) -> tuple[PyTree, Float[Array, " m"]]:
        deviations = _deviations(g, mean, some)
        grown = jax.tree.map(lambda s, leaf: s[None] + jnp.cumsum(leaf, axis=0), so_far, deviations)
        norms = [jnp.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in jax.tree.leaves(grown)]
        return jax.tree.map(lambda leaf: leaf[-1], grown), total(norms)

    def one_order(r: Int[Array, ""]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        order = law.indices(jax.random.fold_in(key, r), g.count)
        some, rest = chunked(order, min(g.count, LARGEST_BLOCK, examples_at_a_time(g.num_params)))
        last, norms = jax.lax.scan(extend, jax.tree.map(jnp.zeros_like, mean), some)
        norms = norms.reshape(-1)
        return order, norms if rest is None else jnp.concatenate([norms, extend(last, rest)[1]])

    return jax.lax.map(one_order, draws)
