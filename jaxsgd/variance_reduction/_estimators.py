"""SVRG, SAGA and SAG, as estimators to train with: what each carries from step to step, and how a step changes it.

The states are pytrees of fixed shapes, so steps can be scanned. The law of the next estimate is that of the control
variate with the state's gradients, in ``_control_variates``; a state adds no formula of its own.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd import estimators, kernels
from jaxsgd._core import loss_functions, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.designs import Draw, batches
from jaxsgd.variance_reduction._control_variates import (
    Inclusion,
    exact,
    with_mean,
)


class SnapshotState(NamedTuple):
    """What SVRG carries from step to step.

    Attributes:
        step: how many estimates there were.
        snapshot: θ̃, a pytree like ``params``.
        mean: the full gradient at θ̃, a pytree like ``params``.
        key: of the batches.
        draws: the order of the epoch, for designs that have one.
    """

    step: Any
    snapshot: Any
    mean: Any
    key: Any
    draws: Any


class TableState(NamedTuple):
    """What SAGA and SAG carry from step to step.

    Attributes:
        step: how many estimates there were.
        table: h, the last gradient of every example, factored where the loss allows: n (i + o) numbers for a dense
            layer instead of n i o.
        mean: h̄, a pytree like ``params``.
        key: of the batches.
        draws: the order of the epoch, for designs that have one.
    """

    step: Any
    table: Any
    mean: Any
    key: Any
    draws: Any


@dataclass(frozen=True)
class _Estimator:
    """A loss, and the design that its batches are of."""

    loss_fn: kernels.Loss
    design: Any

    def _check(self, key: Array, params: PyTree, data: PyTree) -> int:
        validate.random_key(key=key)
        validate.floating_leaves(params=params)
        population_size = validate.leading_axis(data=data)
        loss_functions.require_scalar(self.loss_fn, params, data)
        validate.has_method("weights(key, population_size)", design=self.design)
        jax.eval_shape(lambda k: self.design.weights(k, population_size), key)  # the design's own checks
        return population_size

    def _gradients(self, params: PyTree, data: PyTree) -> kernels.PerExampleGradients:
        return kernels.trace_batch(self.loss_fn, params, data)

    def _draw(self, state: Any, data: PyTree) -> tuple[Any, Draw, PyTree]:
        """What is carried of the draws, the batch's indices, weights and which are drawn, and its data."""
        population_size = len(jax.tree.leaves(data)[0])
        draws, draw = batches(self.design, population_size)(state.draws, state.key, state.step)
        if draw.indices is None:
            return draws, draw._replace(indices=jnp.arange(population_size)), data
        return draws, draw, jax.tree.map(lambda leaf: leaf[draw.indices], data)

    def _controlled(self, total: PyTree, mean: PyTree, params: PyTree, data: PyTree) -> PyTree:
        """Σ w_j d_j + h̄, in the dtypes of the parameters."""
        return _like(params, with_mean(self.design, total, mean, 1.0, len(jax.tree.leaves(data)[0])))


@dataclass(frozen=True)
class SVRG(_Estimator):
    """v = ĝ(θ) − ĝ(θ̃) + ḡ(θ̃), with both ĝ of the same batch and a snapshot θ̃ that is renewed now and then.

    SVRG is unbiased for every unbiased design. Its variance is that of the differences g_i(θ) − g_i(θ̃): of the order
    of ‖θ − θ̃‖², and no less than that of ĝ(θ) itself once these are less alike than the gradients are.

    Attributes:
        loss_fn: the loss of ONE example.
        design: any sampling design.
        refresh_every: at estimates 0, ``refresh_every``, 2 ``refresh_every``, … the snapshot becomes the θ of the
            moment, at the cost of a full gradient, and v is that gradient.

    References:
        R. Johnson and T. Zhang, "Accelerating stochastic gradient descent using predictive variance reduction",
        NeurIPS 2013 (option I: the snapshot is the last iterate).

    >>> from jaxsgd import designs, problems
    >>> loss_fn, params, data = problems.quadratics()
    >>> estimator = SVRG(loss_fn, designs.WithoutReplacement(1), refresh_every=10)
    >>> state = estimator.init(jax.random.key(0), params + 0.5, data)
    >>> gradient, state = estimator.estimate(params + 0.5, state, data)
    >>> law = estimator.law(params + 1, state, data)
    >>> float(gradient), float(law.mean), round(float(law.variance), 6)
    (1.0, 2.0, 0.166667)
    """

    refresh_every: int

    @on_any_mesh
    def init(self, key: Array, params: PyTree, data: PyTree) -> SnapshotState:
        """The state before the first estimate.

        Args:
            key: a JAX random key, from which all batches are drawn.
            params: θ, a pytree of floating-point arrays.
            data: a pytree of arrays with N examples along the first axis of each.
        """
        validate.positive_integer(refresh_every=self.refresh_every)
        size = self._check(key, params, data)
        shapes = jax.eval_shape(lambda p, d: self._gradients(p, d).mean(), params, data)
        mean = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return SnapshotState(jnp.asarray(0), params, mean, key, batches(self.design, size).start())

    @on_any_mesh
    def estimate(self, params: PyTree, state: SnapshotState, data: PyTree) -> tuple[PyTree, SnapshotState]:
        """v, a pytree like ``params``, and the next state."""
        state = self._refreshed(params, state, data)
        draws, draw, batch = self._draw(state, data)
        difference = self._gradients(params, batch).minus(self._gradients(state.snapshot, batch))
        v = self._controlled(difference.weighted_sum(draw.weights), state.mean, params, data)
        return v, state._replace(step=state.step + 1, draws=draws)

    @on_any_mesh
    def law(self, params: PyTree, state: SnapshotState, data: PyTree) -> estimators.Estimate:
        """E v and tr Cov v of the next estimate, exactly, over all batches that the design can draw."""
        snapshot = self._refreshed(params, state, data).snapshot
        return exact(self.design, self._gradients(params, data), self._gradients(snapshot, data))

    def _refreshed(self, params: PyTree, state: SnapshotState, data: PyTree) -> SnapshotState:
        return jax.lax.cond(
            state.step % self.refresh_every == 0,
            lambda: state._replace(snapshot=params, mean=self._gradients(params, data).mean()),
            lambda: state,
        )


@dataclass(frozen=True)
class SAGA(_Estimator):
    """v = Σ w_i (g_i − h_i) + h̄ with a table of the last gradient h_i of every example.

    SAGA is unbiased for every unbiased design, without the full gradients that SVRG takes. Afterwards the rows of all
    examples in the batch are replaced, once each, however often they were drawn. h̄ is kept as a running sum.

    Attributes:
        loss_fn: the loss of ONE example.
        design: any sampling design.

    References:
        A. Defazio, F. Bach and S. Lacoste-Julien, "SAGA: a fast incremental gradient method with support for
        non-strongly convex composite objectives", NeurIPS 2014.

    >>> from jaxsgd import designs, problems
    >>> loss_fn, params, data = problems.quadratics()
    >>> estimator = SAGA(loss_fn, designs.WithoutReplacement(1))
    >>> state = estimator.init(jax.random.key(0), params + 0.5, data)
    >>> law = estimator.law(params + 1, state, data)
    >>> float(law.mean), round(float(law.variance), 6)
    (2.0, 0.166667)
    """

    @on_any_mesh
    def init(self, key: Array, params: PyTree, data: PyTree) -> TableState:
        """The state before the first estimate: a table of the gradients at ``params``.

        Args:
            key: a JAX random key, from which all batches are drawn.
            params: θ, a pytree of floating-point arrays.
            data: a pytree of arrays with N examples along the first axis of each.
        """
        size = self._check(key, params, data)
        table = self._rows(params, data)
        return TableState(jnp.asarray(0), table, table.mean(), key, batches(self.design, size).start())

    @on_any_mesh
    def estimate(self, params: PyTree, state: TableState, data: PyTree) -> tuple[PyTree, TableState]:
        """v, a pytree like ``params``, and the next state."""
        difference, weights, after = self._step(params, state, data)
        return self._controlled(difference.weighted_sum(weights), state.mean, params, data), after

    @on_any_mesh
    def law(self, params: PyTree, state: TableState, data: PyTree) -> estimators.Estimate:
        """E v and tr Cov v of the next estimate, exactly, over all batches that the design can draw."""
        return exact(self.design, self._gradients(params, data), state.table)

    def _rows(self, params: PyTree, data: PyTree) -> kernels.PerExampleGradients:
        """All g_i, of which nothing is shared between examples, so that rows can be kept and replaced."""
        return self._gradients(params, data).scaled(jnp.ones(len(jax.tree.leaves(data)[0])))

    def _step(
        self, params: PyTree, state: TableState, data: PyTree
    ) -> tuple[kernels.PerExampleGradients, Float[Array, " m"], TableState]:
        """The differences g_j − h_j of the batch, their weights, and the state with the new rows."""
        draws, draw, batch = self._draw(state, data)
        size = state.table.count
        g = self._rows(params, batch)
        difference = g.minus(state.table.take(draw.indices))
        drawn = jnp.ones(g.count, bool) if draw.drawn is None else draw.drawn
        rows = jnp.where(drawn, draw.indices, size)
        times = jnp.zeros(size, draw.weights.dtype).at[rows].add(1, mode="drop")[draw.indices]
        shares = jnp.where(drawn, 1 / (size * jnp.maximum(times, 1)), 0)
        mean = jax.tree.map(jnp.add, state.mean, difference.weighted_sum(shares))
        table = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), state.table, g)
        return difference, draw.weights, TableState(state.step + 1, table, mean, state.key, draws)


@dataclass(frozen=True)
class SAG(SAGA):
    """v = h̄ after the rows of the batch have been replaced: the mean of the last gradients of all examples.

    SAG is biased: E v − ḡ = −(1/N) Σ (1 − π_i)(g_i − h_i) for the probabilities π_i that an example is in the batch,
    however it is weighted there; −(1 − M/N)(ḡ − h̄) where these are M/N.

    Attributes:
        loss_fn: the loss of ONE example.
        design: any sampling design of the package.

    References:
        N. Le Roux, M. Schmidt and F. Bach, "A stochastic gradient method with an exponential convergence rate for
        finite training sets", NeurIPS 2012.

    >>> from jaxsgd import designs, problems
    >>> loss_fn, params, data = problems.quadratics()
    >>> estimator = SAG(loss_fn, designs.WithoutReplacement(1))
    >>> law = estimator.law(params + 1, estimator.init(jax.random.key(0), params, data), data)
    >>> round(float(law.mean), 6)
    0.666667
    """

    @on_any_mesh
    def estimate(self, params: PyTree, state: TableState, data: PyTree) -> tuple[PyTree, TableState]:
        """v, a pytree like ``params``, and the next state."""
        _, _, after = self._step(params, state, data)
        return _like(params, after.mean), after

    @on_any_mesh
    def law(self, params: PyTree, state: TableState, data: PyTree) -> estimators.Estimate:
        """E v and tr Cov v of the next estimate, exactly, over all batches that the design can draw."""
        return exact(Inclusion(self.design), self._gradients(params, data), state.table)


def _like(params: PyTree, tree: PyTree) -> PyTree:
    """Numbers in the dtypes of the parameters."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, params)
