"""Steps to a target of SGD with heavy-ball momentum on the noisy quadratic ½ Σ h_i θ_i², exactly.

With Δ the last change, Δ' = βΔ − α(h_iθ + noise of variance c_i/B) and θ' = θ + Δ'. The second moments X of (θ, Δ) of a
coordinate, a 2 × 2 matrix, become P X Pᵀ + S/B, where P and S do not depend on B. From those of 2^k steps, P² and
P S Pᵀ + S of half as many, the number of steps to a target is found digit by binary digit.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._harness import Arrays, progress, table
from jaxsgd import designs, dynamics

DIGITS = 24  # of the number of steps
Square = tuple[Any, Any, Any, Any]  # a, b, c, d of [a b; c d], each with one number for each coordinate
Symmetric = tuple[Any, ...]  # x, y, z of [x y; y z]
NEAR_THE_LIMIT = (4, 6, 8, 10)  # rates (1 − 2^−j) times the largest stable one are tried as well


def curvatures(dimension: int) -> np.ndarray:
    """h_i = 1/i, which are the c_i too."""
    return 1 / np.arange(1, dimension + 1)


def step(h: Any, alpha: Any, beta: Any) -> tuple[Square, Symmetric]:
    """P and S of one step."""
    beta = beta * jnp.ones_like(h)
    return (1 - alpha * h, beta, -alpha * h, beta), (alpha**2 * h,) * 3


def start(h: Any) -> Symmetric:
    """X at E θ_i² = 1 and Δ = 0."""
    return jnp.ones_like(h), jnp.zeros_like(h), jnp.zeros_like(h)


def squared(P: Square) -> Square:
    """P² of every coordinate."""
    a, b, c, d = P
    return a * a + b * c, b * (a + d), c * (a + d), d * d + b * c


def moved(P: Square, X: Symmetric, S: Symmetric, size: Any = 1) -> Symmetric:
    """P X Pᵀ + S/B of every coordinate."""
    (a, b, c, d), (x, y, z) = P, X
    carried = (
        a * a * x + 2 * a * b * y + b * b * z,
        a * c * x + (a * d + b * c) * y + b * d * z,
        c * c * x + 2 * c * d * y + d * d * z,
    )
    return tuple(part + noise / size for part, noise in zip(carried, S, strict=True))


@jax.jit
def steps_to(target: Any, sizes: Any, h: Any, alpha: Any, beta: Any) -> Any:
    """After how many steps the expected loss is at most the target and was not one step before; for each batch size.

    It is 2^DIGITS if so many are not enough. A loss that falls all the time meets the target only once; with momentum
    it may swing, and have met it some steps before.
    """

    def doubled(map_: Any, _: Any) -> tuple[Any, Any]:
        P, S = map_
        return (squared(P), moved(P, S, S)), map_

    _, powers = jax.lax.scan(doubled, step(h, alpha, beta), length=DIGITS)

    def of_size(size: Any) -> Any:
        def digit(state: Any, power: Any) -> tuple[Any, Any]:
            X, steps = state
            P, S, count = power
            later = moved(P, X, S, size)
            above = h @ later[0] / 2 > target
            X = jax.tree.map(lambda new, old: jnp.where(above, new, old), later, X)
            return (X, steps + jnp.where(above, count, 0)), None

        (_, steps), _ = jax.lax.scan(digit, (start(h), 0), (*powers, 2 ** jnp.arange(DIGITS)), reverse=True)
        return steps + 1

    return jax.lax.map(of_size, sizes)


@partial(jax.jit, static_argnames="limit")
def first_time(target: Any, size: Any, h: Any, alpha: Any, beta: Any, limit: int) -> Any:
    """After how many steps the expected loss is at most the target for the first time, one by one up to a limit."""
    P, S = step(h, alpha, beta)

    def unmet(state: Any) -> Any:
        return (h @ state[0][0] / 2 > target) & (state[1] < limit)

    return jax.lax.while_loop(unmet, lambda s: (moved(P, s[0], S, size), s[1] + 1), (start(h), 0))[1]


def rates(beta: float, per_octave: int, smallest: float) -> np.ndarray:
    """Rates (1 − β) 2^(j/k) below the largest stable one, 2(1 + β), and some near it; j = 0, ±1, …."""
    largest = 2 * (1 + beta)
    places = np.arange(per_octave * np.log2(smallest), per_octave * np.log2(largest / (1 - beta)))
    near = largest * (1 - 2.0 ** -np.array(NEAR_THE_LIMIT))
    return np.sort(np.append((1 - beta) * 2.0 ** (places[:-1] / per_octave), near))


def fewest_steps(target: float, sizes: np.ndarray, h: np.ndarray, betas: Any, tried: tuple[int, float]) -> Arrays:
    """The fewest steps over rates at every momentum and batch size, and which rate it is, shape (betas, sizes)."""
    rows = []
    for beta in progress(betas, "momentum"):
        alphas = rates(beta, *tried)
        found = np.stack([steps_to(target, sizes, h, alpha, beta) for alpha in alphas])
        best = found.argmin(axis=0)
        inside = (best > 0) & (best < len(alphas) - 1)
        rows.append({"steps": found.min(axis=0), "rates": alphas[best], "is_inside": inside})
    return table(rows)


def stationary_risk(h: float, alpha: float, beta: float) -> list[float]:
    """½ h E θ² of a coordinate with noise c = h and B = 1: as published, and by the library's law."""
    published = alpha * h * (1 + beta) / (2 * (2 * beta + 2 - alpha * h) * (1 - beta))
    law = dynamics.momentum_law(pair(h), designs.WithReplacement(1), alpha, beta)
    return [published, h * law.stationary().covariance[0, 0] / 2]


def after(count: int, h: float, alpha: float, beta: float) -> list[float]:
    """E θ² of a coordinate from θ = 1, with c = h and B = 1, after some steps: by P and S, and by the library's law."""
    P, S = step(jnp.asarray([h]), alpha, beta)
    X = start(S[0])
    for _ in range(count):
        X = moved(P, X, S)
    law = dynamics.momentum_law(pair(h), designs.WithReplacement(1), alpha, beta)
    return [X[0].item(), law.iterate(np.array([1.0, 0.0]), count).second_moment(np.zeros(2))[0, 0]]


def pair(h: float) -> dynamics.Quadratics:
    """Two examples of curvature h whose gradients differ from their mean by ±√h."""
    return dynamics.Quadratics([h, h], [np.sqrt(h), -np.sqrt(h)])
