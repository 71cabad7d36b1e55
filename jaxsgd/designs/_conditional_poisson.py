"""Conditional Poisson sampling: a fixed number of distinct examples, with unequal probabilities and largest entropy."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Float64, Int

from jaxsgd._core import validate
from jaxsgd._core.rational import Number, Numbers, as_array, as_numbers, prod
from jaxsgd.designs._base import WeightVector, WithinPopulation, floats, subset_weights
from jaxsgd.designs._covariance import DenseCovariance

_MAX_DENSE = 4096  # examples; N × N numbers
_MAX_RATIONAL = 64  # examples; beyond, rational numbers of thousands of digits are rounded
_NEGLIGIBLE = 1e-20


@dataclass(frozen=True, repr=False)
class ConditionalPoisson(WithinPopulation):
    """M distinct examples, a subset s with probability proportional to Π_{i∈s} ω_i, each divided by N π_i.

    It is Poisson sampling with odds π/(1−π) = ω given that M examples are drawn, and of all laws on subsets of M with
    its inclusion probabilities the one of largest entropy. With E_m the elementary symmetric polynomials,
    π_i = ω_i E_{M−1}(ω without i)/E_M(ω). Rational odds are carried from size to size,

        π_i^(m) ∝ ω_i (1 − π_i^(m−1)),    π_ij^(m) ∝ ω_i ω_j (1 − π_i^(m−2) − π_j^(m−2) + π_ij^(m−2)),

    with sums m and m(m−1); in floating point that loses all digits where some π_i are close to one, so the polynomials
    are taken as Fourier sums instead. ĝ = Σ_{i∈s} g_i/(N π_i) is unbiased, and its covariance is that of Horvitz
    and Thompson, (π_ij − π_i π_j)/(N² π_i π_j), which has no structure. ``odds`` is any vector of
    positive numbers, kept as a tuple; only their ratios matter. Draws are exact: example after example, with its
    probability given those before.

    References:
        X.-H. Chen, A. P. Dempster and J. S. Liu, "Weighted finite population sampling to maximize entropy",
        Biometrika 81, 1994.
        J. Hájek, "Asymptotic theory of rejective sampling with varying probabilities", Ann. Math. Statist. 35, 1964.

    >>> ConditionalPoisson([1, 2, 5], batch_size=1).inclusion_probabilities(3).tolist()
    [0.125, 0.25, 0.625]
    """

    odds: Any
    batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "odds", as_numbers(odds=self.odds))
        validate.positive(odds=self.odds)

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        validate.one_for_each(population_size, "examples", odds=self.odds)

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """Example i is taken with probability ω_i E_{r−1}(ω_{i+1..}) / E_r(ω_{i..}), where r are still to be drawn."""
        chances = floats(_sequential_chances(self.odds, self.batch_size))

        def step(remaining: Int[Array, ""], at: tuple[Array, Array]) -> tuple[Array, Array]:
            row, uniform = at
            taken = uniform < row[remaining]
            return remaining - taken.astype(remaining.dtype), taken

        uniforms = jax.random.uniform(key, (population_size,))
        _, taken = jax.lax.scan(step, jnp.asarray(self.batch_size, jnp.int32), (chances, uniforms))
        return taken.astype(chances.dtype) * floats(1 / (population_size * self._pi()))

    def _pi(self) -> Numbers:
        return _inclusion(self.odds, self.batch_size, _is_rational(self.odds))

    def _covariance(self, population_size: int) -> DenseCovariance:
        if population_size > _MAX_DENSE:
            raise ValueError(
                f"population_size must be at most {_MAX_DENSE} for the covariance of {self}, which has no structure, "
                f"got {population_size}: use estimators.monte_carlo"
            )
        pi = self._pi()
        covariance = _joint_inclusion(self.odds, self.batch_size, _is_rational(self.odds)) - np.outer(pi, pi)
        np.fill_diagonal(covariance, pi * (1 - pi))
        return DenseCovariance(covariance, 1 / (population_size * pi), 0 * pi)

    def _support_size(self, population_size: int) -> int:
        """C(N, M), the subsets of M examples."""
        return math.comb(population_size, self.batch_size)

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every subset, with its share of the sum of all products of odds."""
        odds = [Fraction(x) for x in self.odds]
        subsets = list(itertools.combinations(range(population_size), self.batch_size))
        products = [prod(odds[i] for i in s) for s in subsets]
        total = sum(products, Fraction(0))
        containing = [Fraction(0)] * population_size
        for subset, product in zip(subsets, products, strict=True):
            for i in subset:
                containing[i] += product
        expansion = [total / (population_size * x) for x in containing]
        for subset, product in zip(subsets, products, strict=True):
            yield product / total, subset_weights(subset, expansion, population_size)

    def _inclusion(self, population_size: int) -> Any:  # noqa: ARG002
        return self._pi()

    def _joint_inclusion(self, population_size: int) -> Any:  # noqa: ARG002
        return _joint_inclusion(self.odds, self.batch_size, _is_rational(self.odds))


@lru_cache(maxsize=8)
def _inclusion(odds: tuple[Number, ...], batch_size: int, rational: bool) -> Numbers:
    """π of every example; ``rational`` is part of the key, since equal numbers of either kind are one key."""
    if rational:
        omega = as_array(odds)
        pi = 0 * omega
        for m in range(1, batch_size + 1):
            pi = omega * (1 - pi)
            pi = m * pi / pi.sum()
        return pi
    if batch_size == len(odds):
        return np.ones(len(odds))
    p, chance, rotation, ratios = _fourier(odds, batch_size)
    return p * np.real((chance * rotation) @ ratios) / np.real(chance.sum())


@lru_cache(maxsize=2)
def _joint_inclusion(odds: tuple[Number, ...], batch_size: int, rational: bool) -> Numbers:
    """π_ij of every pair; what is on the diagonal has no meaning."""
    if rational:
        return _rational_joint_inclusion(odds, batch_size)
    if batch_size == len(odds):
        return np.ones((len(odds), len(odds)))
    p, chance, rotation, ratios = _fourier(odds, batch_size)
    joint = np.real((ratios * (chance * rotation**2)[:, None]).T @ ratios) / np.real(chance.sum())
    return np.outer(p, p) * joint


def _rational_joint_inclusion(odds: tuple[Number, ...], batch_size: int) -> Numbers:
    """π_ij of every pair, from batch size to batch size, in steps of two."""
    omega, pi = as_array(odds), _inclusion(odds, batch_size % 2, True)
    products = np.outer(omega, omega)
    np.fill_diagonal(products, 0)
    joint = 0 * products
    for m in range(2 + batch_size % 2, batch_size + 1, 2):
        joint = products * (1 - pi[:, None] - pi[None] + joint)
        joint = m * (m - 1) * joint / joint.sum()
        pi = joint.sum(axis=1) / (m - 1)
    return joint


def _fourier(odds: tuple[Number, ...], batch_size: int) -> tuple[Any, Any, Any, Any]:
    """The law of the number S of examples in a Poisson batch, as sums over the unit circle.

    With independent chances p_i of odds ω_i t, where t makes E S = M, and z = e^{iφ} on a grid of more than N points,
    P(S = M) is the mean of Π_k (1 − p_k + p_k z) z^−M. Leaving out i gives P(S without i = M − 1) and so on. All terms
    are at most 1 and the sums of the order of 1/√N, so few digits are lost, however large N and M.

    Returns:
        p, shape (N,); and at the points that count, the terms of P(S = M), shape (Q,), z, shape (Q,), and
        1/(1 − p_i + p_i z), shape (Q, N).
    """
    logs = np.log(np.asarray(odds, dtype=np.float64))

    def excess(log_t: float) -> float:
        return float(np.sum(_logistic(logs + log_t)) - batch_size)

    span = float(np.ptp(logs)) + 2 * np.log(len(odds)) + 1
    middle = -float(np.median(logs))
    p = _logistic(logs + scipy.optimize.brentq(excess, middle - span, middle + span, xtol=1e-12))
    grid = len(odds) + 1 + len(odds) % 2  # odd, so that z = −1, where a factor may be zero, is not on it
    z = np.exp(2j * np.pi * np.arange(grid) / grid)
    # |1 − p + p z|² = 1 − 2 p (1 − p) (1 − cos φ); leaving out two factors can undo a small one
    sizes = np.sum(np.log1p(-2 * np.outer(1 - z.real, p * (1 - p))), axis=1) / 2
    smallest = np.sqrt(1 - 2 * (1 - z.real) * np.max(p * (1 - p)))
    counts = sizes - 2 * np.log(smallest) > np.log(_NEGLIGIBLE)
    z = z[counts]
    factors = 1 - p[None] + p[None] * z[:, None]
    chance = np.exp(np.sum(np.log(factors), axis=1)) * z**-batch_size
    return p, chance, z, 1 / factors


def _logistic(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def _is_rational(odds: tuple[Number, ...]) -> bool:
    return isinstance(odds[0], Fraction) and len(odds) <= _MAX_RATIONAL


@lru_cache(maxsize=8)
def _sequential_chances(odds: tuple[Number, ...], batch_size: int) -> Float64[np.ndarray, "n r"]:
    """The probability of taking example i where r are still to be drawn from i on, shape (N, M + 1)."""
    logs = np.log(np.asarray(odds, dtype=np.float64))
    rest = np.full(batch_size + 1, -np.inf)  # log E_r of the odds of the examples after i
    rest[0] = 0.0
    chances = np.zeros((len(odds), batch_size + 1))
    for i in reversed(range(len(odds))):
        taken = logs[i] + rest[:-1]
        total = np.logaddexp(rest[1:], taken)
        possible = np.isfinite(total)
        chances[i, 1:][possible] = np.exp(taken[possible] - total[possible])
        rest[1:] = total
    return chances
