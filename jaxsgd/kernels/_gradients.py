"""The algebra on the per-example gradients of a batch."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd._core import memory, preconditioners, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.sums import accumulated, accumulation_dtype, total
from jaxsgd._core.tables import si, table
from jaxsgd.kernels._centering import first_without_cancellation
from jaxsgd.kernels._range import require_squares
from jaxsgd.kernels._statistic import require_one_batch, statistic
from jaxsgd.kernels.factors import Dense, Factor, Flops
from jaxsgd.kernels.tracing import loss_and_factors

Loss = Callable[[Any, Any], Any]


@partial(jax.jit, static_argnums=0)
def trace_batch(loss_fn: Loss, params: PyTree, batch: PyTree) -> "PerExampleGradients":
    """``per_example_gradients(loss_fn)(params, batch)`` for arguments that were validated before."""
    losses, factors, rules = loss_and_factors(loss_fn, params, batch)
    return PerExampleGradients(losses, jax.tree.structure(params), factors, rules)


@partial(jax.jit, static_argnums=0)
def trace_batch_with_aux(loss_fn: Loss, params: PyTree, batch: PyTree) -> tuple["PerExampleGradients", PyTree]:
    """The same for a loss that returns (loss, aux), and the aux of each example."""
    (losses, aux), factors, rules = loss_and_factors(loss_fn, params, batch, has_aux=True)
    return PerExampleGradients(losses, jax.tree.structure(params), factors, rules), aux


# What the arguments of statistics must be.


def one_number_each(g: "PerExampleGradients", **numbers: Any) -> None:
    """Raise unless every value is a vector with an entry for each example."""
    validate.vector(g.count, **numbers)


def like_params(g: "PerExampleGradients", **trees: Any) -> None:
    """Raise unless every value is a pytree like the parameters."""
    validate.like_params(g.structure, g._shapes(), **trees)


def of_the_same_parameters(g: "PerExampleGradients", other: "PerExampleGradients | None") -> None:
    """Raise unless the gradients of another batch, if there are any, have the same parameters."""
    if other is not None and (other.structure, other._shapes()) != (g.structure, g._shapes()):
        raise ValueError("other must hold gradients of the same parameters")


def with_memory_for_gram(g: "PerExampleGradients", other: "PerExampleGradients | None" = None) -> None:
    """Raise if the gradients are of other parameters, or if their products are more than memory holds."""
    of_the_same_parameters(g, other)
    n, m = g.count, g.count if other is None else other.count
    memory.require(
        f"a Gram matrix of {n} by {m} examples",
        2 * n * m,  # with what it is put together from
        g.losses().dtype,
        "take fewer, as in g.take(slice(1000)), or inner_products with one direction at a time",
    )


def with_memory_for_all(g: "PerExampleGradients") -> None:
    """Raise if the gradients themselves are more than memory holds."""
    memory.require(
        f"{g.count} gradients of {g.num_params} numbers",
        g.count * g.num_params,
        g.losses().dtype,
        "take fewer, as in g.take(slice(1000)), or a statistic that needs none of them whole",
    )


def kept_and_alike(g: "PerExampleGradients", other: "PerExampleGradients", coefficient: Any) -> None:
    """Raise unless both gradients are kept, and those of the same parameters and of as many examples."""
    del coefficient
    if not g.factors or not other.factors:
        raise ValueError("other must be gradients that are kept, as these must be: without a memory_limit")
    if (other.structure, other._shapes(), other.count) != (g.structure, g._shapes(), g.count):
        raise ValueError("other must hold gradients of the same parameters and of as many examples")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerExampleGradients:
    """The gradients g_i of n examples at one θ, and the statistics of them.

    A registered pytree: it passes through ``jit``, ``vmap`` and ``lax.scan``. Sums are accumulated, and
    statistics returned, in float32 at least (float64 for float64 parameters), with matrix products at the
    highest precision of the device. Squares below 1e-38 are 0 in float32, as in any array: ``kernels.require_finite``
    refuses gradients of which that, or an infinite square, would spoil a statistic.
    """

    example_losses: Any
    structure: Any = field(metadata={"static": True})
    factors: tuple[Factor, ...] = ()
    rules: tuple[str, ...] = field(default=(), metadata={"static": True})

    @property
    def count(self) -> int:
        """n, the number of examples."""
        require_one_batch(self)
        count: int = self.example_losses.shape[0]
        return count

    @property
    def num_params(self) -> int:
        """P, the number of scalar parameters."""
        return sum(int(np.prod(shape)) for shape in self._shapes())

    def losses(self) -> Float[Array, " n"]:
        """L(θ, x_i), shape (n,)."""
        require_one_batch(self)
        return accumulated(self.example_losses)

    @statistic()
    def mean(self) -> PyTree:
        """ḡ = (1/n) Σ g_i, a pytree like ``params``.

        It is the gradient of the mean loss: θ ↦ L_i(θ) are n functions of the same θ, and differentiation
        is linear.
        """
        return self.structure.unflatten(factor.mean() for factor in self.factors)

    @statistic()
    def precise_mean(self) -> PyTree:
        """ḡ to its own rounding, where the sum of n large numbers loses more: from centered gradients.

        That matters where means are subtracted from each other, as in merging moments.
        """
        return self.structure.unflatten(factor.precise_mean() for factor in self.factors)

    @statistic(per_example=True)
    def squared_norms(self) -> Float[Array, " n"]:
        """‖g_i‖², shape (n,)."""
        return total([factor.squared_norms() for factor in self.factors])

    @statistic(per_example=True)
    def squared_deviations(self) -> Float[Array, " n"]:
        """‖g_i − ḡ‖², shape (n,), from centered gradients, so that no digit cancels."""
        return total([factor.squared_deviations() for factor in self.factors])

    @statistic(like_params, per_example=True)
    def inner_products(self, direction: PyTree) -> Float[Array, " n"]:
        """⟨g_i, v⟩, shape (n,), for ``direction`` v, a pytree like ``params``."""
        leaves = jax.tree.leaves(direction)
        return total([factor.inner_products(v) for factor, v in zip(self.factors, leaves, strict=True)])

    @statistic(like_params, per_example=True)
    def centered_products(self, direction: PyTree) -> Float[Array, " n"]:
        """⟨g_i − ḡ, v⟩, shape (n,), for ``direction`` v, from centered gradients, so that no digit cancels."""
        centered = [factor.centered()[0] for factor in self.factors]
        parts = [factor.inner_products(v) for factor, v in zip(centered, jax.tree.leaves(direction), strict=True)]
        return total([part - part.mean() for part in parts])

    @statistic(one_number_each)
    def weighted_sum(self, weights: Float[Array, " n"]) -> PyTree:
        """Σ w_i g_i, a pytree like ``params``, for ``weights`` w of shape (n,)."""
        return self.structure.unflatten(factor.weighted_sum(weights) for factor in self.factors)

    @statistic(one_number_each, per_example=True)
    def scaled(self, scales: Float[Array, " n"]) -> "PerExampleGradients":
        """The gradients s_i g_i, for ``scales`` s of shape (n,), in the same form; the losses are scaled too."""
        losses = self.example_losses * scales.astype(self.example_losses.dtype)
        factors = tuple(factor.scaled(scales) for factor in self.factors)
        return PerExampleGradients(losses, self.structure, factors, self.rules)

    @statistic(per_example=True)
    def times(self, number: Any) -> "PerExampleGradients":
        """The gradients c g_i, for one ``number`` c, in the same form, what they share included; the losses times c."""
        c = jnp.asarray(number, self.losses().dtype)
        factors = tuple(factor.times(c) for factor in self.factors)
        return PerExampleGradients(self.losses() * c, self.structure, factors, self.rules)

    @statistic(like_params, per_example=True)
    def stretched(self, scales: PyTree) -> "PerExampleGradients":
        """The gradients s∘g_i, coordinate by coordinate, for ``scales`` s, a pytree like ``params``; the same losses.

        They are those with respect to φ of θ = θ₀ + s∘φ, and every statistic of them is found from factors too.
        """
        leaves = zip(self.factors, jax.tree.leaves(scales), strict=True)
        factors = tuple(factor.stretched(jnp.asarray(leaf)) for factor, leaf in leaves)
        return PerExampleGradients(self.example_losses, self.structure, factors, self.rules)

    @partial(on_any_mesh, per_example=True)
    def in_metric(self, metric: PyTree) -> "PerExampleGradients":
        """The gradients √d∘g_i, whose statistics are those of the g_i under the metric ⟨u, v⟩ = Σ_j d_j u_j v_j.

        Args:
            metric: d, a pytree like ``params`` of positive weights, or the Optax state of an optimizer that has one, of
                which :func:`jaxsgd.noise.optimizer_metric` takes the metric of its updates.

        Raises:
            TypeError, ValueError: if a weight is not positive and finite, the weights are not like ``params``, or there
                is no metric in the state.
        """
        require_one_batch(self)
        weights = preconditioners.weights(metric)
        like_params(self, metric=weights)
        return self.stretched(preconditioners.roots(weights))

    @statistic(kept_and_alike, per_example=True)
    def minus(self, other: "PerExampleGradients", coefficient: Any = 1.0) -> "PerExampleGradients":
        """The differences g_i − β h_i, in factored form where both are, with ``coefficient`` β.

        They are the gradients of L(θ, x_i) − β L(θ̃, x_i) with respect to a change of θ and θ̃ alike, and everything that
        holds for per-example gradients holds for them. The losses are subtracted too.

        Args:
            other: gradients h of the same parameters and number of examples.
            coefficient: β, one number.
        """
        beta = jnp.asarray(coefficient)
        losses = self.losses() - beta.astype(other.losses().dtype) * other.losses()
        factors = tuple(a.minus(b, beta) for a, b in zip(self.factors, other.factors, strict=True))
        return PerExampleGradients(losses, self.structure, factors, self.rules)

    @statistic()
    def second_moment(self) -> PyTree:
        """(1/n) Σ g_i², coordinate by coordinate, a pytree like ``params``."""
        return self.structure.unflatten(factor.second_moment() for factor in self.factors)

    @statistic()
    def total_deviation(self) -> Float[Array, ""]:
        """Σ ‖g_i − ḡ‖² = n tr Σ."""
        return total([factor.total_deviation() for factor in self.factors])

    @statistic(one_number_each)
    def weighted_deviation(self, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """Σ w_i ‖g_i − ḡ_w‖² for ``weights`` w ≥ 0 of shape (n,) and the weighted mean ḡ_w = Σ w_i g_i / Σ w_i."""
        return total([factor.weighted_deviation(weights) for factor in self.factors])

    def variance(self, *, ddof: int = 0) -> PyTree:
        """(1/(n − ddof)) Σ (g_i − ḡ)², coordinate by coordinate, a pytree like ``params``."""
        validate.at_least(0, ddof=ddof)
        validate.at_least(1 + ddof, **{"the number of examples": self.count})
        totals = self._coordinate_deviations()
        require_squares(self, total([leaf.sum() for leaf in jax.tree.leaves(totals)]))
        return jax.tree.map(lambda leaf: leaf / (self.count - ddof), totals)

    @statistic()
    def _coordinate_deviations(self) -> PyTree:
        """Σ (g_i − ḡ)², coordinate by coordinate; the divisor, which is no array, would be compiled anew."""
        return self.structure.unflatten(factor.coordinate_deviations() for factor in self.factors)

    @statistic(with_memory_for_gram, per_example=True)
    def gram(self, other: "PerExampleGradients | None" = None) -> Float[Array, "n m"]:
        """K_ij = ⟨g_i, h_j⟩, shape (n, m), for the gradients h of ``other`` (of the same parameters), or of itself."""
        if other is None:
            return self._own_gram()
        if not other.factors:  # they are recomputed: see ``RecomputedGradients``
            return other.gram(self).T
        return total([a.gram(b) for a, b in zip(self.factors, other.factors, strict=True)])

    @statistic(with_memory_for_gram, per_example=True)
    def centered_gram(self) -> Float[Array, "n n"]:
        """K_ij = ⟨g_i − ḡ, g_j − ḡ⟩, shape (n, n), from centered gradients, so that no digit cancels.

        The Gram matrix less its means is tried first, where that is less work, then that of centered factors, then that
        of each g_i − ḡ formed alone; each only if too many digits were lost in the one before.
        """

        def one_by_one() -> Float[Array, "n n"]:
            mean = self.precise_mean()

            def products(index: Array) -> Float[Array, " n"]:
                deviation = jax.tree.map(lambda g, m: g[0] - m, self.take(index[None]).materialize(), mean)
                return self.inner_products(deviation)

            return jax.lax.map(products, jnp.arange(self.count))

        ways: list[Callable[[], Float[Array, "n n"]]] = [
            PerExampleGradients(
                self.example_losses, self.structure, tuple(factor.centered()[0] for factor in self.factors), self.rules
            )._own_gram
        ]
        if not all(isinstance(factor, Dense) for factor in self.factors):
            ways = [self._own_gram, *ways, one_by_one]
        return first_without_cancellation(ways)

    def _own_gram(self) -> Float[Array, "n n"]:
        """The symmetric Gram matrix: blocks of rows against what is right of them, the rest by reflection."""
        edges = [*range(0, self.count, max(self.count // _GRAM_BLOCKS, _SMALLEST_GRAM_BLOCK)), self.count]
        rows = [self.take(slice(a, b)).gram(self.take(slice(a, None))) for a, b in itertools.pairwise(edges)]
        upper = jnp.concatenate([jnp.pad(row, ((0, 0), (a, 0))) for a, row in zip(edges[:-1], rows, strict=True)])
        first_column = np.repeat(edges[:-1], np.diff(edges))
        return jnp.where(jnp.arange(self.count)[None] >= jnp.asarray(first_column)[:, None], upper, upper.T)

    @statistic(with_memory_for_all, per_example=True)
    def materialize(self) -> PyTree:
        """All g_i, a pytree like ``params`` with a leading axis of n: n·P numbers."""
        return self.structure.unflatten(factor.materialize() for factor in self.factors)

    @partial(on_any_mesh, per_example=True)
    def take(self, some: Any) -> "PerExampleGradients":
        """The gradients of some of the examples, in the order of ``some``, a slice or an array of indices."""
        require_one_batch(self)
        factors = tuple(factor.take(some) for factor in self.factors)
        return PerExampleGradients(self.example_losses[some], self.structure, factors, self.rules)

    def only(self, where: Callable[[str], bool]) -> "PerExampleGradients":
        """The gradients with respect to the parameters whose path ``where`` accepts, as a list; the same losses.

        Args:
            where: called with paths as ``jax.tree_util.keystr`` has them, such as ``"['norm']['scale']"``.

        Raises:
            ValueError: if it accepts none, or the gradients are computed anew, with a ``memory_limit``.
        """
        require_one_batch(self)
        if not self.factors:
            raise ValueError("where must be None where gradients are computed anew, with a memory_limit")
        paths = jax.tree_util.tree_leaves_with_path(self.structure.unflatten(range(len(self.factors))))
        chosen = [i for path, i in paths if where(jax.tree_util.keystr(path))]
        if not chosen:
            raise ValueError("where must accept at least one parameter, got none")
        factors, rules = tuple(self.factors[i] for i in chosen), tuple(self.rules[i] for i in chosen)
        return PerExampleGradients(self.example_losses, jax.tree.structure(chosen), factors, rules)

    def explain(self) -> str:
        """A table of what is kept for every parameter: by which rule, in how many bytes, and what statistics cost.

        Costs are predicted floating-point operations, on top of the forward pass and the backward pass to the
        activations; that of the mean is what a plain gradient spends too. The last line has the totals, and what the
        gradients themselves would take.
        """
        require_one_batch(self)
        indices = self.structure.unflatten(range(len(self.factors)))
        rows = [("parameter", "rule", "kept as", "bytes", *(name.replace("_", " ") for name in Flops._fields))]
        sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(f)) for f in self.factors]
        for path, i in jax.tree_util.tree_leaves_with_path(indices):
            factor = self.factors[i]
            costs = (si(sizes[i]), *map(si, factor.flops()))
            rows.append((f"{jax.tree_util.keystr(path)} {factor.shape}", self.rules[i], factor.describe(), *costs))
        totals = [sum(costs) for costs in zip(*(factor.flops() for factor in self.factors), strict=True)]
        formed = self.count * self.num_params * jnp.dtype(accumulation_dtype(self.example_losses)).itemsize
        rows.append(("total", "", f"instead of {si(formed)} bytes", si(sum(sizes)), *map(si, totals)))
        return table(rows)

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(factor.shape for factor in self.factors)


_GRAM_BLOCKS = 4  # work falls to 10/16 of the full product; smaller blocks keep the cores less busy
_SMALLEST_GRAM_BLOCK = 64
