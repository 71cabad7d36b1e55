"""One step of SGD: the batch, its gradient, what monitors see of it, the optimizer's update.

The gradient of Σ w_j L(θ, x_j) is the sum of the per-example gradients of w_j L, kept in factored form, wherever that
costs no more than ``jax.grad``: then the terms that monitors look at are at hand, and the parameters are the same bit
for bit whether or not there are monitors. Where a large parameter has no factored form, the gradient is ``jax.grad``'s,
with and without monitors, and a monitor that measures computes the terms anew.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsgd import kernels, monitors
from jaxsgd._core import sums
from jaxsgd.designs import Batches, Draw
from jaxsgd.kernels import ScaledLoss


@dataclass(frozen=True)
class Plan:
    """What a run does, as compilations know it; equal plans share them."""

    loss_fn: kernels.Loss
    optimizer: Any
    batches: Batches
    monitors: tuple[optax.GradientTransformationExtraArgs, ...]
    eval_fn: Callable[[Any], Any] | None
    factored: bool
    has_rates: bool
    has_runs: bool

    def over_runs(self, function: Callable[..., Any], carry_axis: int | None = 0) -> Callable[..., Any]:
        """``function(carry, key, rate)`` for all runs: axes of learning rates, then of runs, where there are any."""
        if self.has_runs:
            function = jax.vmap(function, in_axes=(carry_axis, 0, None))
        if self.has_rates:
            function = jax.vmap(function, in_axes=(carry_axis, None, 0))
        return function

    def transformation(self, rate: Any) -> optax.GradientTransformationExtraArgs:
        """The optimizer, for one learning rate."""
        optimizer = self.optimizer
        if not isinstance(optimizer, optax.GradientTransformation):
            optimizer = optimizer(rate)
            if not isinstance(optimizer, optax.GradientTransformation):
                raise TypeError(f"optimizer must make an Optax transformation from a learning rate, got {optimizer!r}")
        return optax.with_extra_args_support(optimizer)


class Carry(NamedTuple):
    """The state of a run between two steps."""

    params: PyTree
    optimizer: Any
    monitors: Any
    draws: Any


def start(plan: Plan, given: tuple[PyTree, PyTree], key: Array, rate: Any) -> Carry:  # noqa: ARG001 - the same for all
    """The state before the first step, with the learning rate in it where it belongs there."""
    params, opt_state = given
    with jax.numpy_dtype_promotion("standard"):
        state = plan.transformation(rate).init(params)
    if opt_state is not None:
        state = _alike(opt_state, state)
    if plan.has_rates and isinstance(plan.optimizer, optax.GradientTransformation):
        if not optax.tree_utils.tree_get_all_with_path(state, "learning_rate"):
            raise ValueError(
                "optimizer must be a function of the learning rate, or have the hyperparameter learning_rate in its "
                "state, as optax.inject_hyperparams gives it"
            )
        state = optax.tree_utils.tree_set(state, learning_rate=rate)
    return Carry(params, state, tuple(m.init(params) for m in plan.monitors), plan.batches.start())


def _alike(opt_state: PyTree, fresh: PyTree) -> PyTree:
    """The state that was given, if it is one of this optimizer."""
    found, expected = jax.tree.structure(opt_state), jax.tree.structure(fresh)
    if found != expected:  # type: ignore[operator]
        raise ValueError(f"opt_state must be one of this optimizer, {expected}, got {found}")
    for (path, own), new in zip(jax.tree_util.tree_leaves_with_path(opt_state), jax.tree.leaves(fresh), strict=True):
        if jnp.shape(own) != jnp.shape(new):
            place = jax.tree_util.keystr(path)
            raise ValueError(f"opt_state must be one of these parameters: {jnp.shape(new)} at {place}, got {own.shape}")
    return jax.tree.map(lambda own, new: jnp.asarray(own, jnp.asarray(new).dtype), opt_state, fresh)


def step(plan: Plan, data: PyTree, number: Any, quiet: bool, carry: Carry, key: Array, rate: Any) -> Carry:
    """The state after step ``number``, which counts from 0; a quiet one is not looked at by the plan's monitors."""
    draws, draw = plan.batches(carry.draws, key, number)
    batch = draw.take(data)
    params = carry.params

    def value_fn(params: PyTree, step: Any = None, terms: Any = None, full_gradient: Any = None) -> Array:  # noqa: ARG001
        """The loss of this batch; a line search hands it the extra arguments of monitors too."""
        return _weighted_loss(plan.loss_fn, batch, draw.weights, params)

    value, gradient, terms = _gradient(plan, params, batch, draw)
    extra = {
        "value": value,
        "grad": gradient,
        "value_fn": value_fn,
        "step": number,
        "terms": terms,
        "full_gradient": lambda: jax.grad(partial(_mean_loss, plan.loss_fn, data))(params),
    }
    states = carry.monitors
    if not quiet:
        both = zip(plan.monitors, states, strict=True)
        states = tuple(monitor.update(gradient, state, params, **extra)[1] for monitor, state in both)
    with jax.numpy_dtype_promotion("standard"):  # which Optax is written for, whatever the loss is
        updates, optimizer = plan.transformation(rate).update(gradient, carry.optimizer, params, **extra)
    return Carry(optax.apply_updates(params, updates), optimizer, states, draws)


def period(states: Any) -> int:
    """A number that divides every step at which one of the monitors measures."""
    scheduled = [state.statistic.every if isinstance(state, monitors.MonitorState) else 1 for state in states]
    return math.gcd(*scheduled) or 1


def _is_monitored(node: Any) -> bool:
    return isinstance(node, monitors.MonitorState)


def measure(plan: Plan, data: PyTree, carry: Carry, key: Array, rate: Any) -> dict[str, Array]:  # noqa: ARG001
    """The metrics of a run at one step."""
    metrics = {"loss": _mean_loss(plan.loss_fn, data, carry.params)}
    watched = (carry.monitors, carry.optimizer)
    if any(map(_is_monitored, jax.tree.leaves(watched, is_leaf=_is_monitored))):
        metrics |= monitors.readings(watched)
    if plan.eval_fn is not None:
        found = plan.eval_fn(carry.params)
        found = found if isinstance(found, dict) else {"eval": found}
        found = {name: jnp.asarray(value) for name, value in found.items()}
        for name, value in found.items():
            if not isinstance(name, str) or name in metrics:
                raise ValueError(f"eval_fn must name its metrics by strings other than those of the run, got {name!r}")
            if value.shape != ():
                raise ValueError(f"eval_fn must return one number or a dict of numbers, got {value!r} for {name}")
        metrics |= found
    return metrics


def _mean_loss(loss_fn: kernels.Loss, data: PyTree, params: PyTree) -> Array:
    """The mean loss over all data."""
    return sums.mean_of_each(partial(loss_fn, params), data)


def _gradient(plan: Plan, params: PyTree, batch: PyTree, draw: Draw) -> tuple[Any, PyTree, Any]:
    """Σ w_j L(θ, x_j), its gradient, and the terms of the batch (or how to compute them)."""
    factor: Any = draw.weights.shape[0] if draw.drawn is None else draw.drawn.sum()

    def traced() -> monitors.Terms:
        g = kernels.trace_batch(ScaledLoss(plan.loss_fn), params, (batch, draw.weights))
        return monitors.Terms(g, factor, draw.drawn)

    if not plan.factored:
        value, gradient = jax.value_and_grad(partial(_weighted_loss, plan.loss_fn, batch, draw.weights))(params)
        return value, gradient, traced
    terms = traced()
    n = terms.gradients.count
    gradient = jax.tree.map(lambda mean, leaf: (n * mean).astype(leaf.dtype), terms.gradients.mean(), params)
    return terms.gradients.example_losses.sum(), gradient, terms


def _weighted_loss(loss_fn: kernels.Loss, batch: PyTree, weights: Array, params: PyTree) -> Array:
    losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, batch)
    return jnp.sum(weights.astype(losses.dtype) * losses)
