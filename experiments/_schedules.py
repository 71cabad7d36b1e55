"""Batch sizes that stay, and such that a monitor of the noise scale raises, at equal examples."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from experiments._branches import OPTIMIZERS
from jaxsgd import designs, monitors, problems, training

_MOST_WIDENINGS = 6


class Ended(NamedTuple):
    """What a run ended with.

    Attributes:
        held_out: the mean loss of examples that were not trained on.
        trained: that of those which were.
        steps: that were made.
        sizes: the batch size of every stretch.
        read: the noise scale that was read at the end of every stretch.
    """

    held_out: float
    trained: float
    steps: int
    sizes: list[int]
    read: list[float]


def constant(
    task: Any, optimizer: str, size: int, rates: np.ndarray, config: Any, key: Array, *, decayed: bool
) -> list[Ended]:
    """A run with each learning rate, all of them side by side; ``decayed``: to 0 along a straight line."""
    num_steps = config.num_examples // size
    result = training.run_sgd(
        task.loss_fn,
        task.init(key),
        task.data,
        _decaying(optimizer, num_steps) if decayed else OPTIMIZERS[optimizer],
        designs.WithReplacement(size),
        num_steps,
        jax.random.fold_in(key, 1),
        learning_rates=rates,
        eval_data=task.held_out,
        gradient="plain",
    )
    read = [float("nan")] * config.num_stretches
    trained = jax.vmap(functools.partial(problems.mean_loss, task.loss_fn), in_axes=(0, None))(result.params, task.seen)
    return [
        Ended(float(held_out), float(loss), num_steps, [size] * config.num_stretches, read)
        for held_out, loss in zip(result.metrics["loss"][:, -1], trained, strict=True)
    ]


@functools.cache
def _decaying(optimizer: str, num_steps: int) -> Callable[[Any], Any]:
    return lambda rate: OPTIMIZERS[optimizer](optax.linear_schedule(rate, 0.0, num_steps))


def ramp(task: Any, optimizer: str, share: float, rate: float, config: Any, key: Array) -> Ended:
    """A run whose batch follows ``share`` times the noise scale that a monitor reads in the stretch before.

    It is a power of two times the smallest batch, never falls, and doubles at most from one stretch to the next. A
    reading below zero or infinite says that there is much more noise than signal: the batch doubles.
    """
    params, opt_state, size = task.init(key), None, min(config.batch_sizes)
    sizes: list[int] = []
    read: list[float] = []
    for stretch in range(config.num_stretches):
        num_steps = config.num_examples // config.num_stretches // size
        result = training.run_sgd(
            task.loss_fn,
            params,
            task.data,
            OPTIMIZERS[optimizer],
            designs.WithReplacement(size),
            num_steps,
            jax.random.fold_in(key, 1 + stretch),
            learning_rates=[rate],
            opt_state=opt_state,
            eval_data=task.held_out,
            monitors=[_watch()],
        )
        params, opt_state = jax.tree.map(lambda leaf: leaf[0], (result.params, result.opt_state))
        sizes.append(size)
        read.append(float(result.metrics["noise_scale"][0, -1]))
        asked = share * read[-1] if 0 < read[-1] < np.inf else np.inf
        if asked >= 2 * size and 2 * size <= max(config.batch_sizes):
            size *= 2
        if not np.isfinite(result.metrics["loss"][0, -1]):
            break
    num_steps = sum(config.num_examples // config.num_stretches // size for size in sizes)
    missing = config.num_stretches - len(sizes)
    trained = float(problems.mean_loss(task.loss_fn, params, task.seen))
    return Ended(
        float(result.metrics["loss"][0, -1]), trained, num_steps, sizes + missing * [size], read + missing * [np.nan]
    )


@functools.cache
def _watch() -> Any:
    return monitors.noise_scale(decay=0.98)


def best_rate(held_out: Callable[[np.ndarray], np.ndarray], rates: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The learning rate whose mean held-out loss is least, with rates added until it is not at the edge; the edges.

    Args:
        held_out: from learning rates to their losses, infinite where a run diverged.
        rates: increasing, each the same multiple of the one before.
    """
    ratio = rates[1] / rates[0]
    tried = dict(zip(rates.tolist(), held_out(rates).tolist(), strict=True))
    for _ in range(_MOST_WIDENINGS):
        order = sorted(tried)
        best = min(order, key=lambda rate: tried[rate])
        if order[0] < best < order[-1]:
            break
        more = np.array([best / ratio if best == order[0] else best * ratio])
        tried |= dict(zip(more.tolist(), held_out(more).tolist(), strict=True))
    return best, (order[0], order[-1])
