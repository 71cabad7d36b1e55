"""How a statistic of single batches becomes an Optax transformation that averages it over the steps of a run.

It knows no statistic: schedules, weights and what is read are the same for all of them.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsgd import kernels
from jaxsgd._core import sums, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.monitors._terms import Terms, Where, chosen_leaves


@dataclass(frozen=True, kw_only=True)
class Statistic(ABC):
    """Sums that a monitor measures on a batch and averages, and what is read from the averages."""

    every: int
    decay: float
    where: Where | None
    name: str
    function: ClassVar[str]  # of this package, that makes the monitor
    needs: ClassVar[tuple[str, ...]] = ("per_example_gradients", "terms")  # any one of them
    sums: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        validate.positive_integer(every=self.every)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")

    @abstractmethod
    def measure(self, updates: PyTree, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The sums of one batch."""

    @abstractmethod
    def read(self, state: "MonitorState") -> dict[str, Array]:
        """The statistics, from the averages of sums."""

    def series(self, params: PyTree) -> Any:  # noqa: ARG002
        """What is kept beside sums, of no batch; nothing by default."""
        return None

    def follow(self, state: "MonitorState", fresh: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """What is kept beside sums, after one more batch, from the state before and the sums of the batch."""
        return state.series

    def zeros(self, params: PyTree) -> dict[str, Any]:
        """Sums of no batch."""
        dtype = sums.accumulation_dtype(*jax.tree.leaves(params))
        return {name: jnp.zeros((), dtype) for name in self.sums}

    def usable(self, extra: Mapping[str, Any]) -> Any:
        """Whether the batch is large enough: of fewer than two examples there is no variance."""
        return True if "group_gradients" in extra else self.terms(extra).count >= 2

    def is_shown(self, extra: Mapping[str, Any]) -> bool:
        """Whether there is a batch to look at."""
        return any(extra.get(name) is not None for name in self.needs)

    def require_shown(self, extra: Mapping[str, Any]) -> None:
        """Raise, saying how a batch is shown, unless there is one."""
        if not self.is_shown(extra):
            raise ValueError(
                f"{self.needs[0]} must be given to update for monitors.{self.function}: "
                f"optimizer.update(grads, state, params, {self.needs[0]}=...); in a loop that calls update itself, "
                "as flax's TrainState does, wrap the optimizer in monitors.observed, inside of all other wrappers, "
                "and show the monitors each batch by "
                f"state = monitors.observe(state, {self.needs[0]}=...)"
            )

    def terms(self, extra: Mapping[str, Any]) -> Terms:
        """The terms of the batch, for the parameters that are looked at."""
        return terms_of(extra).only(self.where)

    def gradient(self, terms: Terms, extra: Mapping[str, Any]) -> list[Array]:
        """The leaves of ĝ that are looked at: of ``grad``, or else the mean of the terms.

        They are not taken from the updates, which other transformations have changed by then: clipped, or averaged over
        several batches by ``optax.MultiSteps``.
        """
        given = extra.get("grad")
        return jax.tree.leaves(terms.mean()) if given is None else chosen_leaves(given, self.where)


def terms_of(extra: Mapping[str, Any]) -> Terms:
    """The terms of a batch, of all parameters."""
    given = extra.get("terms")
    given = extra["per_example_gradients"] if given is None else given
    given = given() if callable(given) else given
    if not isinstance(given, Terms | kernels.PerExampleGradients):
        raise TypeError(
            "per_example_gradients must be what jaxsgd.per_example_gradients(loss_fn)(params, batch) gives, or a "
            f"function without arguments that does, got {validate.outline(given)}"
        )
    return given if isinstance(given, Terms) else Terms(given)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MonitorState:
    """Weighted sums over the measurements so far, their total weight, the number of calls, and how they varied."""

    calls: Any
    weight: Any
    totals: Any
    statistic: Statistic = field(metadata={"static": True})
    series: Any = None

    @property
    def averages(self) -> Any:
        """The sums over their weight, NaN where nothing was measured."""
        return jax.tree.map(lambda total: total / self.weight.astype(total.dtype), self.totals)


def _is_state(node: Any) -> bool:
    return isinstance(node, MonitorState)


def _states(state: PyTree) -> list[MonitorState]:
    found = [node for node in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(node)]
    if not found:
        raise ValueError(
            "state must hold the state of a monitor, as that of optax.chain(monitors.noise_scale(), optimizer) does; "
            f"of a flax.nnx.Optimizer it is opt_state; got {validate.outline(state)}"
        )
    return found


def readings(state: PyTree) -> dict[str, Array]:
    """What the monitors in an optimizer's state have measured; NaN where they have not yet.

    Raises:
        ValueError: if the state holds no monitor, or two that give the same name; tell them apart by their ``name``.
    """
    found: dict[str, Array] = {}
    for node in _states(state):
        prefix = f"{node.statistic.name}/" if node.statistic.name else ""
        with jax.debug_nans(False):
            values = node.statistic.read(jax.tree.map(jnp.asarray, node, is_leaf=_is_array))
        for name, value in values.items():
            if prefix + name in found:
                raise ValueError(f"name must tell monitors apart, got {prefix + name!r} twice")
            found[prefix + name] = value
    return found


def _is_array(leaf: Any) -> bool:
    """Whether it stands for an array, as flax's variables do."""
    return hasattr(leaf, "__jax_array__")


def observe(
    state: PyTree,
    *,
    per_example_gradients: Any = None,
    terms: Any = None,
    group_gradients: PyTree = None,
    full_gradient: Any = None,
    grad: PyTree = None,
    step: Any = None,
) -> PyTree:
    """Show a batch to all monitors in a state, where the loop that calls ``update`` does not hand it on.

    The optimizer is wrapped in :func:`observed`, so that its monitors do not wait for a batch in ``update``.

    Args:
        state: any pytree with the state of the optimizer in it, such as flax's ``TrainState`` as a whole.
        per_example_gradients: those of the batch, or a function without arguments that gives them, which is called
            where a monitor measures only.
        terms: in their place, :class:`Terms`.
        group_gradients: in their place, for :func:`two_batch_noise_scale`.
        full_gradient: for :func:`full_gradient_cosine`.
        grad: ĝ, where it is at hand and no more than the mean of the terms.
        step: the number of the step; without it, a monitor counts the batches that it was shown.

    Returns:
        The state, of the same structure.

    Raises:
        ValueError: if there is no monitor in the state, or a monitor's batch is not given.

    >>> from jaxsgd import monitors, per_example_gradients, problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> optimizer = observed(optax.chain(monitors.noise_scale(), optax.sgd(0.1)))
    >>> g = per_example_gradients(loss_fn)(params, data)
    >>> state = observe(optimizer.init(params), per_example_gradients=g)
    >>> updates, state = optimizer.update(g.mean(), state, params)
    >>> round(float(readings(state)["trace_covariance"]), 4)
    21.0
    """
    given = {
        "per_example_gradients": per_example_gradients,
        "terms": terms,
        "group_gradients": group_gradients,
        "full_gradient": full_gradient,
        "grad": grad,
        "step": step,
    }
    shown = {name: value for name, value in given.items() if value is not None}
    _states(state)

    def look(node: Any) -> Any:
        return _measured(node, None, shown) if _is_state(node) else node

    return jax.tree.map(look, state, is_leaf=_is_state)


def observed(optimizer: optax.GradientTransformation | optax.MultiSteps) -> optax.GradientTransformationExtraArgs:
    """The same optimizer for loops that call ``update`` themselves: its monitors are shown batches by :func:`observe`.

    Where ``update`` is called without what they need, they leave their state alone in place of raising; a batch that is
    shown to both counts twice. What wraps an optimizer may not hand on anything to it, so this one goes inside.
    """
    parameters = inspect.signature(optimizer.update).parameters.values()
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)  # optax.MultiSteps says so only
    called = optimizer.update if hands_on else optax.with_extra_args_support(optimizer).update

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        updates, state = called(updates, state, params, **(extra | {_OBSERVED: True}))
        return updates, state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


_OBSERVED = "monitors_are_observed"  # the extra argument by which ``observed`` reaches the monitors of any chain


@lru_cache(maxsize=1024)  # equal monitors are one object, so that they share compilations
def as_transformation(statistic: Statistic) -> optax.GradientTransformationExtraArgs:
    """A transformation that leaves updates alone and measures ``statistic`` at the steps that ``every`` divides."""

    def init(params: PyTree) -> MonitorState:
        params = jax.tree.map(jnp.asarray, params)  # Python numbers too
        zeros = statistic.zeros(params)
        return MonitorState(jnp.zeros((), jnp.int32), jnp.zeros(()), zeros, statistic, statistic.series(params))

    def update(
        updates: PyTree,
        state: MonitorState,
        params: PyTree | None = None,  # noqa: ARG001
        **extra: Any,
    ) -> tuple[PyTree, MonitorState]:
        if _OBSERVED in extra and not statistic.is_shown(extra):
            return updates, state
        return updates, _measured(state, updates, extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _measured(state: MonitorState, updates: PyTree, extra: Mapping[str, Any]) -> MonitorState:
    """The state of a monitor after one more batch; without updates, of which the gradient ĝ takes the place."""
    statistic = state.statistic
    statistic.require_shown(extra)

    def measured() -> tuple[Any, Any, Any]:
        if statistic.usable(extra) is False:
            return kept()
        fresh = on_any_mesh(statistic.measure)(_gradient(extra) if updates is None else updates, extra)
        usable, decay = statistic.usable(extra), statistic.decay

        def chosen(old: Array, new: Array) -> Array:
            return new if usable is True else jnp.where(usable, new, old)

        def merged(old: Array, new: Array) -> Array:
            return chosen(old, decay * old + (1 - decay) * new.astype(old.dtype))

        series = on_any_mesh(statistic.follow)(state, fresh)
        return (
            merged(state.weight, jnp.ones(())),
            jax.tree.map(merged, state.totals, fresh),
            jax.tree.map(chosen, state.series, series),
        )

    def kept() -> tuple[Any, Any, Any]:
        return state.weight, state.totals, state.series

    if statistic.every == 1:
        weight, totals, series = measured()
    else:
        step = extra.get("step", state.calls)
        weight, totals, series = jax.lax.cond(step % statistic.every == 0, measured, kept)
    return replace(state, calls=state.calls + 1, weight=weight, totals=totals, series=series)


@on_any_mesh
def _gradient(extra: Mapping[str, Any]) -> PyTree:
    """ĝ, from whatever is given of the batch."""
    if "grad" in extra:
        return extra["grad"]
    if "group_gradients" in extra:
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), extra["group_gradients"])
    return terms_of(extra).mean()
