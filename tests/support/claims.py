"""What the claims of the source pages are settled with: four points, six gradients, and rational arithmetic."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import dynamics, problems

EX_B = (1, 2, 4, 7, 11, 17)
THREE_QUADRATICS = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
F = Fraction
LINE = problems.line_fit()
POINTS = [(0, 1), (1, 3), (2, 2), (3, 5)]


def rational_moments(design, values) -> tuple[Fraction, Fraction]:
    """E ĝ and Var ĝ of scalar gradients over every batch of a design, in rational arithmetic."""
    outcomes = [(p, sum(w * g for w, g in zip(ws, values, strict=True))) for p, ws in design.support(len(values))]
    mean = sum(p * value for p, value in outcomes)
    return mean, sum(p * (value - mean) ** 2 for p, value in outcomes)


def line_gradient(theta: Any, example: tuple[int, int]) -> np.ndarray:
    """The gradient of (y − mx − b)² as rational numbers, (∂m, ∂b)."""
    x, y = example
    residual = y - theta[0] * x - theta[1]
    return np.array([-2 * residual * x, -2 * residual], dtype=object)


def mean_loss(loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda params, data: jnp.mean(jax.vmap(loss_fn, (None, 0))(params, data))


def pair(tree: Any) -> list[float]:
    return [float(tree["m"]), float(tree["b"])]


def assert_trees_close(actual: Any, expected: Any, atol: float) -> None:
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)
