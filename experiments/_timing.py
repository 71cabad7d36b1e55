"""Times functions in turn, round after round, and compares what they return."""

import time
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import numpy as np

Timer = Callable[[], float]
SLOW_SECONDS, SLOW_ROUNDS = 1.0, 5
SECONDS_TO_FALL_ASLEEP = 0.25


def seconds(function: Any, *arguments: Any) -> float:
    """The time until the results of one call are there."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def in_turn(timers: Mapping[str, Timer], rounds: int, *, elsewhere: Container[str] = ()) -> dict[str, np.ndarray]:
    """The times of every timer in every round; what takes more than a second is left out (NaN) after five rounds.

    Between timers of this process and those of another, named by ``elsewhere``, both are given time to fall asleep: the
    threads of a library that has nothing to do keep a core busy for a while. The first call of a round, and after such
    a change, does not count: what ran before has left its own data in the caches.
    """
    times = {name: np.full(rounds, np.nan) for name in timers}
    was_elsewhere = False
    for number in range(rounds):
        is_cold = True
        for name, timer in timers.items():
            if number >= SLOW_ROUNDS and np.nanmin(times[name]) >= SLOW_SECONDS:
                continue
            if was_elsewhere != (name in elsewhere):
                time.sleep(SECONDS_TO_FALL_ASLEEP)
                was_elsewhere, is_cold = name in elsewhere, True
            if is_cold:
                timer()
                is_cold = False
            times[name][number] = timer()
    return times


def summary(times: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The median of the ratios to the reference in the same round, and of the milliseconds."""
    return {"ratio": float(np.nanmedian(times / reference)), "milliseconds": float(1e3 * np.nanmedian(times))}


def device(platform: str | None) -> jax.Device:
    """The first device of a platform, or JAX's default one.

    Raises:
        ValueError: if this machine has none.
    """
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        there = ", ".join(sorted({device.platform for device in jax.devices()} | {"cpu"}))
        raise ValueError(f"device must be one of this machine, {there}, got {platform!r}") from None


def flat(tree: Any) -> np.ndarray:
    """All numbers of a pytree as one vector, in float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def relative_error(found: Any, truth: Any) -> float:
    """The largest difference, relative to the largest entry of the truth."""
    truth = flat(truth)
    return float(np.abs(flat(found) - truth).max() / np.abs(truth).max())
