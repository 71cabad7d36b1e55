"""Every way to be refused by ``dynamics``: the exception, its message, and the call that gives it."""

from fractions import Fraction
from typing import Any

import numpy as np

from jaxsgd import designs, dynamics
from tests.support.error_helpers import KEY, Case

LOSSES = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
FLAT = dynamics.Quadratics([[[1, 0], [0, 0]]] * 2, [[1, 0], [0, 0]])


def noisy_quadratic(curvatures: Any = (1.0, 0.5), noise: Any = (1.0, 1.0), start: Any = (1.0, 1.0)) -> Any:
    return dynamics.NoisyQuadratic(curvatures, noise, start)


def simulated(**changed: Any) -> Any:
    """Two runs of three steps."""
    options = {"key": KEY, "num_runs": 2, "num_steps": 3} | changed
    return dynamics.simulate_steps(LOSSES, designs.WithReplacement(1), options.pop("learning_rate", 0.1), **options)


CASES: list[Case] = [
    (
        ValueError,
        "design must draw batches of one total weight, got Bernoulli",
        lambda *_: dynamics.langevin_variance(designs.Bernoulli(0.5), [0, 1], 0.1),
    ),
    (
        ValueError,
        "with ε the step_size and W the total weight, must be positive, got 0",
        lambda *_: dynamics.langevin_variance(designs.WithoutReplacement(1, scale="total"), [0, 1], 2),
    ),
    (
        ValueError,
        "hessians must be one square matrix for each example, shape (N, d, d), got shape (2, 3)",
        lambda *_: dynamics.Quadratics(np.ones((2, 3)), np.ones(2)),
    ),
    (
        ValueError,
        "linear must be one vector for each of the hessians, shape (2, 3), got (2,)",
        lambda *_: dynamics.Quadratics(np.ones((2, 3, 3)), np.ones(2)),
    ),
    (
        ValueError,
        "hessians must be symmetric, got [[1.0, 2.0], [0.0, 1.0]] in example 1",
        lambda *_: dynamics.Quadratics([[[1, 0], [0, 1]], [[1, 2], [0, 1]]], np.ones((2, 2))),
    ),
    (
        ValueError,
        "linear must be finite, got nan in example 1",
        lambda *_: dynamics.Quadratics([1.0, 2.0], [0.0, np.nan]),
    ),
    (
        ValueError,
        "minima must have shape (2,), got (3,)",
        lambda *_: dynamics.Quadratics.from_minima([1, 2], [1, 2, 3]),
    ),
    (
        ValueError,
        "x must be one vector for each example, shape (N, d), got shape (3,)",
        lambda *_: dynamics.Quadratics.from_least_squares(np.ones(3), np.ones(3)),
    ),
    (
        ValueError,
        "y must be one number for each row of x, shape (3,), got (2,)",
        lambda *_: dynamics.Quadratics.from_least_squares(np.ones((3, 2)), np.ones(2)),
    ),
    (ValueError, "the mean Hessian must be positive definite, got a smallest … of 0", lambda *_: FLAT.minimum()),
    (
        ValueError,
        "the mean Hessian of a batch must be positive definite, got a smallest eigenvalue of 0",
        lambda *_: dynamics.stability_threshold(FLAT, designs.WithReplacement(1)),
    ),
    (
        ValueError,
        "learning_rate must be below the stability threshold … a spectral radius of 1 for E[A ⊗ A]",
        lambda *_: dynamics.step_law(LOSSES, designs.WithoutReplacement(1), Fraction(6, 7)).stationary(),
    ),
    (
        ValueError,
        "learning_rate must be positive, got 0",
        lambda *_: dynamics.step_law(LOSSES, designs.WithReplacement(1), 0),
    ),
    (
        ValueError,
        "learning_rate must be positive, got -1",
        lambda *_: dynamics.reshuffled_law(LOSSES, designs.Reshuffling(1), -1),
    ),
    (
        ValueError,
        "max_batches must be at least 12 to enumerate Reshuffling(batch_size=1), got 11",
        lambda *_: dynamics.reshuffled_law(LOSSES, designs.Reshuffling(1), 0.1, max_batches=11),
    ),
    (
        ValueError,
        "order must hold examples from 0 to 2, got 3",
        lambda *_: dynamics.fixed_order_law(LOSSES, [0, 3], 0.1),
    ),
    (
        ValueError,
        "order must hold examples from 0 to 2, got none",
        lambda *_: dynamics.fixed_order_law(LOSSES, [], 0.1),
    ),
    (ValueError, "learning_rate must be positive, got 0.0", lambda *_: simulated(learning_rate=0.0)),
    (ValueError, "num_steps must be at least 0, got -1", lambda *_: simulated(num_steps=-1)),
    (ValueError, "num_runs must be at least 1, got 0", lambda *_: simulated(num_runs=0)),
    (ValueError, "start must have shape (2, 1), got (3, 1)", lambda *_: simulated(start=np.zeros((3, 1)))),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: simulated(key=0),
    ),
    (ValueError, "curvatures must be a non-empty vector, got shape (0,)", lambda *_: noisy_quadratic((), (), ())),
    (ValueError, "noise must have shape (2,), got (1,)", lambda *_: noisy_quadratic(noise=(1.0,))),
    (ValueError, "noise must be positive, got 0.0", lambda *_: noisy_quadratic(noise=(1.0, 0.0))),
    (ValueError, "second_moments must be finite, got inf", lambda *_: noisy_quadratic(start=(1.0, np.inf))),
    (ValueError, "dimension must be at least 1, got 0", lambda *_: dynamics.NoisyQuadratic.of_dimension(0)),
    (
        ValueError,
        "learning_rate must be positive and below 2, got 2.0",
        lambda *_: noisy_quadratic().steps_to(0.1, 1, [0.5, 2.0]),
    ),
    (ValueError, "batch_size must be positive, got 0", lambda *_: noisy_quadratic().steps_to(0.1, 0, 1.0)),
    (ValueError, "target must be positive, got -1", lambda *_: noisy_quadratic().fewest_steps(-1, 2)),
]
