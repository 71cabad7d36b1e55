"""Problems and designs that every property test meets: add one here, and it is tested everywhere.

Each problem can fail in its own way: asymmetric data with unequal norms (a symmetric sample hides a wrong third
moment), a mean gradient of zero (a tolerance relative to it accepts nothing), more parameters than examples (a
covariance in place of a Gram matrix), repeated rows, equal rows (a variance below zero), parameters of every odd
shape, data that are not floats, one example only.
"""

from collections.abc import Callable, Collection, Iterable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import PerExampleGradients, designs, per_example_gradients, problems
from jaxsgd.problems import Problem

EX_B = (1, 2, 4, 7, 11, 17)  # scalar gradients whose moments are known: mean 7, variance 31

# By batch size: the two designs that have a variance curve over all batch sizes.
DESIGNS: dict[str, Callable[[int], Any]] = {
    "with_replacement": designs.WithReplacement,
    "without_replacement": designs.WithoutReplacement,
}


def chances(N: int) -> list[Fraction]:
    """Unequal probabilities, from 1/6 to 5/6."""
    return [Fraction(1 + 2 * i % 5, 6) for i in range(N)]


def shares(N: int) -> list[Fraction]:
    """Unequal probabilities that sum to one."""
    return [Fraction(i + 1, N * (N + 1) // 2) for i in range(N)]


def labels(N: int) -> list[int]:
    """Two groups of unequal sizes, not contiguous; one group for one example."""
    return [int(i % 3 == 1) for i in range(N)]


def half(N: int) -> int:
    return max(N // 2, 1)


def smallest_divisor(N: int) -> int:
    return next((d for d in range(2, N + 1) if N % d == 0), 1)


# By population size: every design of the package, in every variant that has a law of its own.
LAWS: dict[str, Callable[[int], Any]] = {
    "with_replacement": lambda N: designs.WithReplacement(3),
    "without_replacement": lambda N: designs.WithoutReplacement(half(N)),
    "distinct_units": lambda N: designs.DistinctUnits(3),
    "reshuffling": lambda N: designs.Reshuffling(half(N)),
    "reshuffling_short_batch": lambda N: designs.Reshuffling(min(N, 3), drop_last=False),
    "bernoulli": lambda N: designs.Bernoulli(Fraction(1, 3)),
    "bernoulli_skip": lambda N: designs.Bernoulli(Fraction(1, 3), empty="skip"),
    "bernoulli_realized": lambda N: designs.Bernoulli(Fraction(1, 3), normalize="realized"),
    "bernoulli_realized_skip": lambda N: designs.Bernoulli(Fraction(1, 3), normalize="realized", empty="skip"),
    "poisson": lambda N: designs.Poisson(chances(N)),
    "poisson_skip": lambda N: designs.Poisson(chances(N), empty="skip"),
    "poisson_floats": lambda N: designs.Poisson(np.linspace(0.2, 1.0, N)),
    "poisson_realized": lambda N: designs.Poisson(chances(N), normalize="realized"),
    "poisson_realized_skip": lambda N: designs.Poisson(chances(N), normalize="realized", empty="skip"),
    "hajek": lambda N: designs.Hajek(chances(N)),
    "hajek_skip": lambda N: designs.Hajek(chances(N), empty="skip"),
    "stratified": lambda N: designs.Stratified(labels(N), [half(N - N // 3)] + [1] * (N > 1)),
    "stratified_unweighted": lambda N: designs.Stratified(labels(N), [1] * (1 + (N > 1)), weighted=False),
    "groups": lambda N: designs.Groups(labels(N)),
    "groups_realized": lambda N: designs.Groups(labels(N), normalize="realized"),
    "systematic": lambda N: designs.Systematic(smallest_divisor(N)),
    "blocks": lambda N: designs.Blocks(smallest_divisor(N)),
    "circular_blocks": lambda N: designs.CircularBlocks(half(N)),
    "importance": lambda N: designs.Importance(shares(N), 2),
    "importance_floats": lambda N: designs.Importance(np.arange(1.0, N + 1) / (N * (N + 1) / 2), 2),
    "conditional_poisson": lambda N: designs.ConditionalPoisson(list(range(1, N + 1)), half(N)),
    "conditional_poisson_floats": lambda N: designs.ConditionalPoisson(np.linspace(0.3, 5.0, N), half(N)),
    "sum": lambda N: designs.Bernoulli(Fraction(1, 3), scale="sum"),
    "total": lambda N: designs.Importance(shares(N), 2, scale="total"),
}
RATIOS = {"poisson_realized", "poisson_realized_skip", "hajek", "hajek_skip"}  # their moments are integrals
ROUNDED = RATIOS | {name for name in LAWS if name.endswith("floats")}  # not rational


def linear_loss(params: jax.Array, example: jax.Array) -> jax.Array:
    """⟨θ, x⟩: the gradient of an example is the example."""
    return jnp.sum(params * example)


def gradients_given(rows: Any, dtype: Any = float) -> Problem:
    """A problem whose per-example gradients are the given rows."""
    data = jnp.asarray(rows, dtype)
    return Problem(linear_loss, jnp.zeros(data.shape[1:], dtype), data)


def measured(problem: Problem) -> PerExampleGradients:
    return per_example_gradients(problem.loss_fn)(problem.params, problem.data)


def skewed(*shape: int, seed: int = 0) -> np.ndarray:
    """Asymmetric numbers of mean 1/2."""
    return np.random.default_rng(seed).exponential(size=shape) - 0.5


def quick(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    """Parameters of a test of which the chosen ones stay in `make test`."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


def take(problem: Problem, rows: Any) -> Problem:
    """The same problem on some of its examples."""
    return problem._replace(data=jax.tree.map(lambda a: a[np.asarray(rows)], problem.data))


def network(activation: str = "tanh") -> Problem:
    """A regression network with 26 parameters and 7 examples, one of them near zero in norm."""
    inputs, targets = skewed(7, 3), skewed(7, 2, seed=1) * np.arange(1, 8)[:, None]
    return problems.mlp(inputs, targets, key=jax.random.key(1), hidden=4, activation=activation)


def classifier() -> Problem:
    labels = np.array([0, 2, 1, 1, 0])
    return problems.mlp(skewed(5, 2, 2), labels, key=jax.random.key(2), hidden=3)


def odd_leaves() -> Problem:
    """Scalar, empty and unused parameters; integers and random keys among the data."""
    params = {
        "layers": [jnp.asarray(skewed(2, 3)), jnp.asarray(skewed(4, seed=1))],
        "scale": jnp.asarray(0.7),
        "empty": jnp.zeros((0,)),
        "unused": jnp.ones((2, 1)),
    }
    data = {
        "x": jnp.asarray(skewed(6, 3, seed=2)),
        "label": jnp.asarray([0, 3, 3, 1, 0, 2]),
        "key": jax.random.split(jax.random.key(3), 6),
    }
    return Problem(_odd_loss, params, data)


def _odd_loss(params: Any, example: Any) -> jax.Array:
    weights, offsets = params["layers"]
    augmented = example["x"] + 0.1 * jax.random.normal(example["key"], (3,))
    score = jnp.sum(jnp.tanh(weights @ augmented)) + offsets[example["label"]]
    return params["scale"] * score**2 + jnp.sum(params["empty"])


def diabetes_rows() -> Problem:
    problem = take(problems.diabetes_regression(), range(40))
    return problem._replace(params=jnp.linspace(-0.2, 0.3, 10))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "line_fit": problems.line_fit,
    "line_fit_at_zero": lambda: problems.line_fit(0.0, 0.0),
    "line_fit_at_optimum": lambda: problems.line_fit(1.1, 1.1),
    "scalar_gradients": lambda: gradients_given(EX_B),
    "tanh_network": network,
    "classifier": classifier,
    "diabetes_rows": diabetes_rows,
    "repeated_rows": lambda: take(problems.line_fit(), [1, 2, 2, 3, 3, 3]),
    "equal_rows": lambda: take(problems.line_fit(), [2] * 7),
    "odd_leaves": odd_leaves,
    "one_example": lambda: take(problems.line_fit(), [2]),
}
