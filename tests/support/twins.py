"""Slow and obviously right versions of what the package computes, which share no code with it.

Gradients: ``jax.grad`` of one example at a time, collected by a Python loop into a float64 matrix.
Sampling: exact rational arithmetic over every ordered way to draw a batch.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsgd.problems import Problem
from tests.support.registry import PROBLEMS

Vector = tuple[Fraction, ...]
Law = dict[Vector, Fraction]  # weight vector -> probability


class Loop(NamedTuple):
    """Losses, shape (N,), and gradients, shape (N, P), in float64."""

    losses: np.ndarray
    gradients: np.ndarray

    @property
    def scale(self) -> float:
        """The mean norm of the gradients: what errors of rounding are relative to, also where the mean is zero."""
        return float(np.linalg.norm(self.gradients, axis=1).mean())


def loop(problem: Problem) -> Loop:
    losses, rows, value_and_grad = [], [], jax.jit(jax.value_and_grad(problem.loss_fn))
    for i in range(jax.tree.leaves(problem.data)[0].shape[0]):
        example = jax.tree.map(lambda a, i=i: a[i], problem.data)
        loss, gradient = value_and_grad(problem.params, example)
        losses.append(float(loss))
        rows.append(flat(gradient))
    return Loop(np.array(losses), np.array(rows))


@functools.cache
def loop_of(name: str) -> Loop:
    return loop(PROBLEMS[name]())


def flat(tree: Any) -> np.ndarray:
    """All numbers of a pytree like ``params``, shape (P,)."""
    return np.concatenate([np.asarray(leaf, dtype=np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def flat_rows(tree: Any) -> np.ndarray:
    """All numbers of a pytree with a leading axis of n, shape (n, P)."""
    leaves = [np.asarray(leaf, dtype=np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def assert_close(actual: Any, expected: Any, *, atol: float, what: str = "value") -> None:
    """Fail with value, truth, difference and the index of the worst entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what} has shape {actual.shape}, not {expected.shape}"
    difference = np.abs(actual - expected)
    if np.all(difference <= atol):
        return
    worst = np.unravel_index(np.argmax(np.where(np.isnan(difference), np.inf, difference)), difference.shape)
    raise AssertionError(
        f"{what} at {tuple(map(int, worst))}: got {actual[worst]!r}, expected {expected[worst]!r}, "
        f"difference {difference[worst]:.3g}, tolerance {atol:.3g}"
    )


def z_score(value: float, truth: float, standard_error: float) -> float:
    return float(value - truth) / float(standard_error)


@functools.cache
def law(design: str, population_size: int, batch_size: int) -> Law:
    """The law of w, from every ordered way to draw the batch, all equally likely."""
    if design == "with_replacement":
        ordered = itertools.product(range(population_size), repeat=batch_size)
    else:
        ordered = itertools.permutations(range(population_size), batch_size)
    ways: dict[tuple[int, ...], int] = {}
    for batch in ordered:
        counts = tuple(map(batch.count, range(population_size)))
        ways[counts] = ways.get(counts, 0) + 1
    total = sum(ways.values())
    return {tuple(Fraction(n, batch_size) for n in counts): Fraction(k, total) for counts, k in ways.items()}


def line_gradients(m: Fraction, b: Fraction) -> list[Vector]:
    """∂L/∂b and ∂L/∂m (the order of the leaves of ``params``) of (y − mx − b)² at (0,1), (1,3), (2,2), (3,5)."""
    residuals = [(x, y - m * x - b) for x, y in ((0, 1), (1, 3), (2, 2), (3, 5))]
    return [(-2 * r, -2 * x * r) for x, r in residuals]


def scalar_gradients(values: Any) -> list[Vector]:
    return [(Fraction(value),) for value in values]


def combine(weights: Vector, gradients: list[Vector]) -> Vector:
    return tuple(sum(w * g[k] for w, g in zip(weights, gradients, strict=True)) for k in range(len(gradients[0])))


def average(gradients: list[Vector]) -> Vector:
    return combine((Fraction(1, len(gradients)),) * len(gradients), gradients)


def errors(gradients: list[Vector], law: Law, num_draws: int = 1) -> Iterator[tuple[Fraction, Vector]]:
    """Every value, with its probability, of the mean of independent batches' ĝ, minus ḡ."""
    target = average(gradients)
    batches = [(probability, combine(weights, gradients)) for weights, probability in law.items()]
    for drawn in itertools.product(batches, repeat=num_draws):
        probability = functools.reduce(lambda p, q: p * q, (p for p, _ in drawn))
        yield probability, tuple(sum(g[k] for _, g in drawn) / num_draws - t for k, t in enumerate(target))


def expect(outcomes: Iterator[tuple[Fraction, Vector]], f: Callable[[Vector], Fraction]) -> Fraction:
    return sum((probability * f(error) for probability, error in outcomes), Fraction(0))


def squared_norm(vector: Vector) -> Fraction:
    return sum((x * x for x in vector), Fraction(0))
