"""How a statistic of single batches becomes an Optax transformation that averages it over the steps of a run.

It knows no statistic: schedules, weights and what is read are the same for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxsgd._core import sums, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.monitors._terms import Terms, Where


@dataclass(frozen=True, kw_only=True)
class Statistic(ABC):
    """Sums that a monitor measures on a batch and averages, and what is read from the averages."""

    every: int
    decay: float
    where: Where | None
    name: str
    sums: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        validate.positive_integer(every=self.every)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")

    @abstractmethod
    def measure(self, updates: PyTree, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The sums of one batch."""

    @abstractmethod
    def read(self, averages: Mapping[str, Any]) -> dict[str, Array]:
        """The statistics."""

    def zeros(self, params: PyTree) -> dict[str, Any]:
        """Sums of no batch."""
        dtype = sums.accumulation_dtype(*jax.tree.leaves(params))
        return {name: jnp.zeros((), dtype) for name in self.sums}

    def usable(self, extra: Mapping[str, Any]) -> Any:
        """Whether the batch is large enough: of fewer than two examples there is no variance."""
        return True if "group_gradients" in extra else self.terms(extra).count >= 2

    def terms(self, extra: Mapping[str, Any]) -> Terms:
        """The terms of the batch, for the parameters that are looked at."""
        given = extra.get("terms", extra.get("per_example_gradients"))
        require_given(type(self).__name__, terms=given)
        given = given() if callable(given) else given
        return (given if isinstance(given, Terms) else Terms(given)).only(self.where)


def require_given(who: str, **named: Any) -> None:
    """Raise if a value that somebody needs is None."""
    for name, value in named.items():
        if value is None:
            raise ValueError(f"{name} must be given to {who}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MonitorState:
    """Weighted sums over the measurements so far, their total weight, and the number of calls."""

    calls: Any
    weight: Any
    totals: Any
    statistic: Statistic = field(metadata={"static": True})


def _is_state(node: Any) -> bool:
    return isinstance(node, MonitorState)


def readings(state: PyTree) -> dict[str, Array]:
    """What the monitors in an optimizer's state have measured; NaN where they have not yet.

    Raises:
        ValueError: if two monitors give the same name; tell them apart by their ``name``.
    """
    found: dict[str, Array] = {}
    for node in filter(_is_state, jax.tree.leaves(state, is_leaf=_is_state)):
        averages = jax.tree.map(lambda total, w=node.weight: total / w.astype(total.dtype), node.totals)
        prefix = f"{node.statistic.name}/" if node.statistic.name else ""
        for name, value in node.statistic.read(averages).items():
            if prefix + name in found:
                raise ValueError(f"name must tell monitors apart, got {prefix + name!r} twice")
            found[prefix + name] = value
    return found


@lru_cache(maxsize=1024)  # equal monitors are one object, so that they share compilations
def as_transformation(statistic: Statistic) -> optax.GradientTransformationExtraArgs:
    """A transformation that leaves updates alone and measures ``statistic`` at the steps that ``every`` divides."""

    def init(params: PyTree) -> MonitorState:
        return MonitorState(jnp.zeros((), jnp.int32), jnp.zeros(()), statistic.zeros(params), statistic)

    def update(
        updates: PyTree,
        state: MonitorState,
        params: PyTree | None = None,  # noqa: ARG001
        **extra: Any,
    ) -> tuple[PyTree, MonitorState]:
        step = extra.get("step", state.calls)

        def measured() -> tuple[Any, Any]:
            fresh = on_any_mesh(statistic.measure)(updates, extra)
            usable, decay = statistic.usable(extra), statistic.decay

            def merged(old: Array, new: Array) -> Array:
                average = decay * old + (1 - decay) * new.astype(old.dtype)
                return average if usable is True else jnp.where(usable, average, old)

            return merged(state.weight, jnp.ones(())), jax.tree.map(merged, state.totals, fresh)

        def kept() -> tuple[Any, Any]:
            return state.weight, state.totals

        always = statistic.every == 1
        weight, totals = measured() if always else jax.lax.cond(step % statistic.every == 0, measured, kept)
        return updates, replace(state, calls=state.calls + 1, weight=weight, totals=totals)

    return optax.GradientTransformationExtraArgs(init, update)
