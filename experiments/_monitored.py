"""What monitors of the noise scale read in several runs, beside the exact averages that they are readings of."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

import jaxsgd
from experiments._harness import Arrays, table
from jaxsgd import monitors

NUM_GROUPS, DECAY = 2, 0.95
MONITORS = {"per_example": "", "two_batch": "two_batch/"}
READINGS = {"value": "noise_scale", "low": "noise_scale_low", "high": "noise_scale_high", "number": "num_effective"}
EVERY = 16  # steps between readings
WINDOW = 128  # how many steps at most are behind a reading: those before weigh 0.1 %


def along(
    run: Callable[..., Any], problem: jaxsgd.Problem, design: Any, key: Array, looks: list[int], steps: list[int]
) -> tuple[dict[int, PyTree], Arrays]:
    """θ of the first run at some steps; what monitors read in all runs, and what is exact, of shape (looks, runs)."""
    N, windows = len(problem.data["y"]), [range(max(0, look - WINDOW), look) for look in looks]
    kept = sorted({*steps, *(step for window in windows for step in window)})
    watch = (
        monitors.noise_scale(decay=DECAY, population_size=N),
        monitors.two_batch_noise_scale(decay=DECAY, population_size=N, num_groups=NUM_GROUPS),
    )
    result = run(design, max(steps), key, monitors=watch, record_every=EVERY, keep_params_at=kept)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), result.kept_params)
    exact = np.asarray(_exact(problem.loss_fn, problem.data, flat)).reshape(-1, len(kept), 2)
    rows = []
    for look, window in zip(looks, windows, strict=True):
        weights = DECAY ** np.arange(len(window))[::-1]
        trace, signal = (weights @ exact[:, [kept.index(step) for step in window]]).T
        readings = {
            f"{monitor}/{name}": result.metrics[prefix + reading][:, look // EVERY]
            for monitor, prefix in MONITORS.items()
            for name, reading in READINGS.items()
        }
        rows.append({"exact": trace / signal} | readings)
    first = jax.tree.map(lambda leaf: leaf[0], result.kept_params)
    return {step: jax.tree.map(lambda leaf, k=k: leaf[k], first) for k, step in enumerate(kept)}, table(rows)


@partial(jax.jit, static_argnums=0)
def _exact(loss_fn: Any, data: PyTree, params: PyTree) -> Array:
    """tr Σ and ‖ḡ‖² of all data at several θ."""

    def one(params: PyTree) -> Array:
        g = jaxsgd.per_example_gradients(loss_fn)(params, data)
        return jax.numpy.stack([g.squared_deviations().mean(), optax.tree.norm(g.mean(), squared=True)])

    return jax.lax.map(one, params)
