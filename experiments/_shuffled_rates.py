"""The exact error of SGD on quadratics of one parameter of two kinds, for any number of examples and of epochs.

Half of the examples have curvature h_0 and gradient g_0 at the minimum, half h_1 and g_1 = −g_0. With one parameter the
factor A = Π (1 − ηh_i) of an epoch δ ↦ Aδ + b does not depend on the order, and the two moments of b follow from a
recursion over how many of each kind have been used: (n/2 + 1)² states where n! orders, or 2ⁿ sets, would be for n
examples that all differ. Then, with A' = A^K,

    reshuffled       E δ_K = A'δ_0 + (1 − A')/(1 − A) E b,  Var δ_K = (1 − A'²)/(1 − A²) Var b,
    shuffled once    the same mean, and Var δ_K = ((1 − A')/(1 − A))² Var b.
"""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np

from experiments._harness import Arrays
from jaxsgd import designs, dynamics

CURVATURES, GRADIENTS = (1, 3), (-1, 1)
MU, SMOOTHNESS, VARIANCE = 1.0, 3.0, 1.0  # of the bound: the least and the largest curvature, and that of g_i
WAYS = ("independent", "shuffled once", "reshuffled")


def losses(num_examples: int) -> dynamics.Quadratics:
    """The examples, in rational numbers; δ is θ itself, as the minimum is 0."""
    kinds = [i % 2 for i in range(num_examples)]
    return dynamics.Quadratics([CURVATURES[k] for k in kinds], [-GRADIENTS[k] for k in kinds])


def learning_rates(num_examples: int, epochs: Any) -> Any:
    """2 log(nK)/(μnK): constant along a run, and small enough for the start, and for the noise, to be forgotten."""
    steps = num_examples * np.asarray(epochs, float)
    return 2 * np.log(steps) / (MU * steps)


def errors(num_examples: int, epochs: Any, rates: Any) -> Arrays:
    """E δ² after K epochs from δ = 1, for each of the ways; and the share of it that is bias, of reshuffling."""
    K, eta = np.asarray(epochs, float), np.asarray(rates, float)
    A, mean, variance = epoch_moments(num_examples, eta)
    left, total = A**K, (1 - A**K) / (1 - A)
    bias = (left + total * mean) ** 2
    reshuffled = bias + (1 - left**2) / (1 - A**2) * variance
    return {
        "independent": independent_error(num_examples * K, eta),
        "shuffled once": bias + total**2 * variance,
        "reshuffled": reshuffled,
        "bias": bias / reshuffled,
    }


def independent_error(steps: Any, eta: Any) -> Any:
    """E δ² of independent examples, from E δ' = aδ, E δ'² = s E δ² + 2η² Cov(g, h) E δ + η² E g²."""
    h, g = np.array(CURVATURES), np.array(GRADIENTS)
    a, s = 1 - eta * h.mean(), 1 - 2 * eta * h.mean() + eta**2 * np.mean(h**2)
    started, mixed = s**steps, (s**steps - a**steps) / (s - a)
    return started + 2 * eta**2 * np.mean(g * h) * mixed + eta**2 * np.mean(g**2) * (1 - started) / (1 - s)


def epoch_moments(num_examples: int, eta: np.ndarray) -> tuple[np.ndarray, ...]:
    """A, E b and Var b of an epoch in random order: the last of i and s − i used is of kind 0 with probability i/s."""
    half = num_examples // 2
    mean, square = np.zeros((2, half + 2, len(eta)))  # at i + 1; a state that cannot be reached stays 0
    count = np.arange(half + 1)[:, None]
    for s in range(1, num_examples + 1):
        possible, moved = (count <= s) & (s - count <= half), np.zeros((2, half + 1, len(eta)))
        for h, g, used, before in zip(CURVATURES, GRADIENTS, (count, s - count), (np.s_[:-1], np.s_[1:]), strict=True):
            a, b, m = 1 - eta * h, -eta * g, mean[before]
            moved += possible * used / s * np.stack([a * m + b, a**2 * square[before] + 2 * a * b * m + b**2])
        mean[1:], square[1:] = moved
    A = np.prod([(1 - eta * h) ** half for h in CURVATURES], axis=0)
    return A, mean[-1], square[-1] - mean[-1] ** 2


def bound(num_examples: int, epochs: Any, rates: Any) -> Any:
    """Of both ways to shuffle: (1 − ημ)^{nK} δ_0² + (2η²/μ) Lnσ²/4, of Mishchenko, Khaled and Richtárik."""
    eta, steps = np.asarray(rates), num_examples * np.asarray(epochs, float)
    return (1 - eta * MU) ** steps + eta**2 / MU * SMOOTHNESS * num_examples * VARIANCE / 2


def at(num_examples: int, epochs: Any) -> dict[str, Any]:
    """The errors at the step size of n and K, the bound on them, and the logarithm in it, for any number of K."""
    K = np.asarray(epochs, float).reshape(-1)
    eta = learning_rates(num_examples, K)
    found = errors(num_examples, K, eta) | {"bound": bound(num_examples, K, eta), "log": np.log(num_examples * K)}
    return {name: value.reshape(np.shape(epochs)) for name, value in (found | {"epochs": K}).items()}


def for_six() -> tuple[np.ndarray, np.ndarray]:
    """The errors for six examples, and by the library's laws of any quadratics, in rational arithmetic."""
    epochs, rate, origin = 3, Fraction(1, 20), np.array([Fraction(0)])
    given, start = losses(6), origin + 1
    ours = errors(6, epochs, [float(rate)])
    independent = dynamics.step_law(given, designs.WithReplacement(1), rate).iterate(start, 6 * epochs)
    once = [dynamics.fixed_order_law(given, order, rate).iterate(start, epochs) for order in orders(6)]
    reshuffled = dynamics.reshuffled_law(given, designs.Reshuffling(1), rate).iterate(start, epochs)
    library = [
        np.mean([state.second_moment(origin).item() for state in way]) for way in ([independent], once, [reshuffled])
    ]
    return np.array([ours[way][0] for way in WAYS]), np.array(library, dtype=float)


def orders(num_examples: int) -> list[list[int]]:
    """One for each way in which the kinds may follow each other, all equally likely."""
    found = []
    for places in itertools.combinations(range(num_examples), num_examples // 2):
        kinds = [iter(range(kind, num_examples, 2)) for kind in (0, 1)]
        found.append([next(kinds[0 if place in places else 1]) for place in range(num_examples)])
    return found
