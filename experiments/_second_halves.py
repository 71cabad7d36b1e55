"""Averages over the second half of runs of SGD on quadratics, simulated and expected."""

from typing import Any

import jax
import numpy as np

from jaxsgd import designs, dynamics

EVERY = 10  # steps between what is averaged


def second_half(
    losses: dynamics.Quadratics, design: designs.Design, rate: float, num_runs: int, num_steps: int, key: jax.Array
) -> np.ndarray:
    """For every run, δδᵀ averaged over the second half of its steps, shape (num_runs, d, d)."""
    theta, minimum = np.tile(losses.minimum(), (num_runs, 1)), losses.minimum()
    total: Any = 0
    stretches = [num_steps // 2] + [EVERY] * (num_steps // 2 // EVERY)
    for place, length in enumerate(stretches):
        options = {"key": jax.random.fold_in(key, place), "num_runs": num_runs, "num_steps": length, "start": theta}
        theta = np.asarray(dynamics.simulate_steps(losses, design, rate, **options))
        delta = theta - minimum
        total = total + (delta[:, :, None] * delta[:, None] if place else 0)
    return total / (len(stretches) - 1)


def exact_second_half(losses: dynamics.Quadratics, design: designs.Design, rate: float, num_steps: int) -> np.ndarray:
    """The expectation of the same average, from the law after every step."""
    law, minimum = dynamics.step_law(losses, design, rate), losses.minimum()
    state = law.iterate(minimum, num_steps // 2)
    found = []
    for step in range(1, num_steps // 2 // EVERY * EVERY + 1):
        state = law.apply(state)
        if step % EVERY == 0:
            found.append(state.second_moment(minimum))
    return np.mean(found, axis=0)
