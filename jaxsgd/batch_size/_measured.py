"""The critical batch size measured: steps to a target at several batch sizes, each with its own best learning rate.

All learning rates of a batch size run side by side, several times with batches of their own, and the mean of their
losses is looked at: the first rate to be at the target is the best one, so no run need go on after it. A best rate at
the edge of those tried says nothing of the rates beyond, so as many again are tried there, until they are slower.

The largest batches come first, as they need the fewest steps: how many that were says how often to look at the loss
of the next ones, and their best rate is where the next begin.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd import designs, kernels, training
from jaxsgd._core import validate
from jaxsgd._core.tables import decimal, table
from jaxsgd.batch_size._tradeoff import Tradeoff, fit_tradeoff, steps_to_target

_LEAST_STEPS = 4  # of which a target may cost the largest batches: fewer are mostly the first step's
_LOOKS = 12  # at the loss, in as many steps as larger batches took
_MOST_WIDENINGS = 12


@dataclass(frozen=True)
class Trial:
    """What was tried at one batch size.

    Attributes:
        batch_size: M.
        learning_rates: increasing.
        steps: to the target with each, where they were needed to tell which is first; infinite for all others.
        widened: how often learning rates were added, since the best was the first or the last.
    """

    batch_size: int
    learning_rates: Float[np.ndarray, " r"]
    steps: Float[np.ndarray, " r"]
    widened: int

    @property
    def fewest_steps(self) -> float:
        """The steps to the target with the best learning rate."""
        return float(self.steps.min())

    @property
    def best_rate(self) -> float:
        """The learning rate that was first at the target."""
        return float(self.learning_rates[self.steps.argmin()])


@dataclass(frozen=True)
class MeasuredTradeoff:
    """Steps to a target at every batch size, and the hyperbola through them; ``print`` it for a table.

    Attributes:
        target: the mean loss that was to be reached.
        trials: what was tried, in the order of batch sizes.
        tradeoff: the hyperbola, with the critical batch size and its interval.
    """

    target: float
    trials: tuple[Trial, ...]
    tradeoff: Tradeoff

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("batch size", "steps", "examples", "learning rate", "of those from", "to")]
        for each in self.trials:
            S, M, rates = each.fewest_steps, each.batch_size, each.learning_rates
            rows.append((str(M), *map(decimal, (S, S * M, each.best_rate, rates[0], rates[-1]))))
        fit = self.tradeoff
        low, value, high = map(decimal, (fit.low, fit.critical_batch_size, fit.high))
        level = f"{100 * fit.confidence_level:g} %"
        return f"{table(rows, left=0)}\ncritical batch size {value}, between {low} and {high} ({level})"


def measure_critical(
    loss_fn: kernels.Loss,
    params: PyTree,
    data: PyTree,
    optimizer: Any,
    key: Array,
    *,
    target: float,
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int] = (4, 8, 16, 32, 64, 128, 256),
    opt_state: PyTree = None,
    num_runs: int = 8,
    max_steps: int = 100_000,
    eval_data: PyTree = None,
    confidence_level: float = 0.95,
    progress: Callable[[Trial], Any] | None = None,
) -> MeasuredTradeoff:
    """The critical batch size from here to a target, by runs at every batch size with the best learning rate of each.

    B_crit is the batch size whose runs take twice the fewest steps and twice the fewest examples (McCandlish et al.,
    arXiv:1812.06162, 2018). Its interval comes from how far the steps are from a hyperbola: give five sizes or more.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: θ where the runs begin, such as a checkpoint's.
        data: a pytree of arrays with N examples along the first axis of each, drawn with replacement.
        optimizer: a function that makes an Optax transformation from a learning rate, as ``optax.adam`` is.
        key: a JAX random key.
        target: the mean loss to reach, positive; so far that the largest batches take four steps.
        learning_rates: those tried first, at the largest batch size: at least three, √2 to 2 times each other.
        batch_sizes: M, at least three.
        opt_state: of the optimizer at ``params``; by default a fresh one.
        num_runs: over how many runs the loss is averaged.
        max_steps: after which the target counts as out of reach.
        eval_data: the examples of the mean loss; by default ``data``. It is taken some ten times a run.
        confidence_level: of the interval.
        progress: called with the :class:`Trial` of every batch size.

    Raises:
        TypeError, ValueError: for arguments out of range, and where the target is too near or out of reach.
    """
    validate.positive(target=target)
    validate.at_least(3, **{"the number of batch_sizes": len(batch_sizes)})
    for size in batch_sizes:
        validate.positive_integer(batch_sizes=size)
    validate.positive_integer(num_runs=num_runs, max_steps=max_steps)
    validate.random_key(key=key)
    rates = _increasing(learning_rates)
    start = functools.partial(
        training.run_sgd,
        loss_fn,
        params,
        data,
        optimizer,
        opt_state=opt_state,
        num_runs=num_runs,
        eval_data=eval_data,
        gradient="plain",
    )
    trials: list[Trial] = []
    for size in sorted(set(batch_sizes), reverse=True):
        run = functools.partial(start, designs.WithReplacement(size), key=jax.random.fold_in(key, size))
        before = trials[-1].fewest_steps if trials else 1.0
        trials.append(_tried(run, size, rates, target, max_steps, max(int(before / _LOOKS), 1)))
        rates = trials[-1].best_rate * rates / rates[len(rates) // 2]
        if progress is not None:
            progress(trials[-1])
    trials.reverse()
    steps = [each.fewest_steps for each in trials]
    fit = fit_tradeoff([each.batch_size for each in trials], steps, confidence_level=confidence_level)
    return MeasuredTradeoff(float(target), tuple(trials), fit)


def _increasing(learning_rates: Sequence[float]) -> Float[np.ndarray, " r"]:
    validate.positive(learning_rates=tuple(learning_rates))
    rates = np.unique(np.asarray(learning_rates, np.float64))
    validate.at_least(3, **{"the number of learning_rates": len(rates)})
    return rates


def _tried(
    run: Callable[..., Any], size: int, rates: Float[np.ndarray, " r"], target: float, max_steps: int, record_every: int
) -> Trial:
    """The steps to the target with each learning rate of a batch size, and with more where the best is at the edge."""
    tried: dict[float, tuple[float, float]] = {}
    limit, count = max_steps, len(rates)
    ratio = (rates[-1] / rates[0]) ** (count / (count - 1))
    for widened in range(_MOST_WIDENINGS + 1):
        steps, losses = _raced(run, rates, target, limit, record_every)
        tried |= dict(zip(rates.tolist(), zip(steps, losses, strict=True), strict=True))
        order = sorted(tried)
        best = min(order, key=lambda rate: tried[rate])
        _require_distant(tried[best][0], size)
        if order[0] < best < order[-1]:
            _require_reached(tried[best], target, size, max_steps)
            return Trial(size, np.asarray(order), np.asarray([tried[rate][0] for rate in order]), widened)
        limit = min(max_steps, math.ceil(min(tried[best][0], max_steps)))
        rates = np.asarray(order[:count]) / ratio if best == order[0] else np.asarray(order[-count:]) * ratio
    raise ValueError(f"learning_rates must be near the best one, which at batch size {size} lies beyond {best:g}")


def _require_distant(steps: float, size: int) -> None:
    """Raise if the target is so near that a batch size of this takes next to no steps."""
    if steps < _LEAST_STEPS:
        got = math.floor(100 * steps) / 100
        raise ValueError(
            f"target must be {_LEAST_STEPS} steps away at least, got {got:g} at batch size {size}: lower it, or "
            "leave out the largest batch_sizes"
        )


def _require_reached(found: tuple[float, float], target: float, size: int, max_steps: int) -> None:
    """Raise unless the target was reached."""
    steps, loss = found
    if not math.isfinite(steps):
        raise ValueError(
            f"target must be in reach of max_steps={max_steps} steps of {size} examples, got {target:g} where the "
            f"lowest mean loss was {loss:.4g}"
        )


def _raced(
    run: Callable[..., Any], rates: Float[np.ndarray, " r"], target: float, max_steps: int, record_every: int
) -> tuple[list[float], list[float]]:
    """After how many steps each rate is at the target, where one is before the others stop; and the last losses."""

    def decided(_step: int, metrics: dict[str, np.ndarray]) -> bool:
        means = metrics["loss"].mean(axis=1)
        return bool((means <= target).any() or not np.isfinite(means).any())

    result = run(
        num_steps=max_steps, learning_rates=rates, record_every=min(record_every, max_steps), stop_when=decided
    )
    losses = np.asarray(result.metrics["loss"], np.float64).mean(axis=1)
    steps = steps_to_target(np.asarray(result.steps), losses, target)
    return np.asarray(steps).tolist(), np.nan_to_num(losses[:, -1], nan=np.inf).tolist()
