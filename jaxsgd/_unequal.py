"""Designs of a fixed size with unequal probabilities: draws with replacement, and conditional Poisson sampling.

Imports ``_covariances``, ``_law`` and ``_validate`` only.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from jaxsgd import _validate, _validate_designs
from jaxsgd._covariances import DenseCovariance, DiagonalCovariance, Number, Numbers
from jaxsgd._law import (
    FixedSizeDesign,
    WeightVector,
    WithinPopulation,
    as_array,
    as_numbers,
    floats,
    prod,
    reciprocals,
    subset_weights,
)

_MAX_DENSE = 4096  # examples; N × N numbers


@dataclass(frozen=True, repr=False)
class Importance(FixedSizeDesign):
    """M independent draws, of example i with probability p_i, each divided by N p_i: the Hansen-Hurwitz mean.

    With counts n ~ Multinomial(M; p) and w_i = n_i/(M N p_i),

        E w_i = 1/N,    Cov w = (1/M) (diag(1/p_i) − 11ᵀ)/N²,    Cov ĝ = (1/M) ((1/N²) Σ g_i g_iᵀ/p_i − ḡḡᵀ).

    ĝ is unbiased, since E n_i = M p_i. The variance is least for p_i proportional to ‖g_i‖, which
    ``estimators.optimal_probabilities`` gives. An example with p_i = 0 is never seen: ``estimators.exact`` refuses it
    unless its gradient is zero. ``probabilities`` is any vector, divided by its sum and kept as a tuple.

    References:
        M. H. Hansen and W. N. Hurwitz, "On the theory of sampling from finite populations", Ann. Math. Stat. 14, 1943.
        P. Zhao and T. Zhang, "Stochastic optimization with importance sampling", ICML 2015.

    >>> from fractions import Fraction
    >>> Importance([Fraction(1, 3), Fraction(2, 3)], batch_size=2).weight_covariance(2).entries(2).tolist()
    [[Fraction(1, 4), Fraction(-1, 8)], [Fraction(-1, 8), Fraction(1, 16)]]
    """

    probabilities: Any
    batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "probabilities", as_numbers(probabilities=self.probabilities))
        _validate.probabilities(probabilities=self.probabilities)

    def indices(self, key: Array, population_size: int) -> Int[Array, " m"]:
        """The M examples of one batch, shape (M,)."""
        _validate.random_key(key=key)
        self._check(population_size)
        cumulative = np.cumsum(np.asarray(self.probabilities, dtype=np.float64))
        last = int(np.flatnonzero(np.diff(cumulative, prepend=0))[-1])  # rounding must not draw an impossible example
        chosen = jnp.searchsorted(
            floats(cumulative / cumulative[-1]), jax.random.uniform(key, (self.batch_size,)), side="right"
        )
        return jnp.minimum(chosen, last)

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        _validate_designs.for_population(population_size, probabilities=self.probabilities)

    def _normalized(self) -> Numbers:
        p = as_array(self.probabilities)
        return p / p.sum()

    def _expansion(self) -> Numbers:
        """1/(M N p_i), and 0 where p_i = 0."""
        return reciprocals(self._normalized()) / (self.batch_size * len(self.probabilities))

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        counts: Any = jnp.zeros(population_size).at[self.indices(key, population_size)].add(1.0)
        return counts * floats(self._expansion())

    def _mean(self, population_size: int) -> Any:
        return np.where(self._normalized() > 0, 1 / population_size, 0)

    def _covariance(self, population_size: int) -> DiagonalCovariance:
        N = population_size
        return DiagonalCovariance(self._expansion() / N, Fraction(1, self.batch_size * N**2), singular=True)

    def _support_size(self, population_size: int) -> int:  # noqa: ARG002
        """C(k + M − 1, M), the multisets of M of the k examples with p_i > 0."""
        return math.comb(sum(p > 0 for p in self.probabilities) + self.batch_size - 1, self.batch_size)

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every multiset, with the multinomial probability M! Π p_i^{n_i}/n_i!."""
        N, M = population_size, self.batch_size
        total = sum(map(Fraction, self.probabilities), Fraction(0))
        p = [Fraction(x) / total for x in self.probabilities]
        possible = [i for i in range(N) if p[i] > 0]
        for drawn in itertools.combinations_with_replacement(possible, M):
            counts = Counter(drawn)
            orders = math.factorial(M) // math.prod(map(math.factorial, counts.values()))
            probability = orders * prod(p[i] for i in drawn)
            yield probability, tuple(counts[i] / (M * N * p[i]) if counts[i] else Fraction(0) for i in range(N))

    def _inclusion(self, population_size: int) -> Any:  # noqa: ARG002
        return 1 - (1 - self._normalized()) ** self.batch_size

    def _joint_inclusion(self, population_size: int) -> Any:  # noqa: ARG002
        p = np.asarray(self._normalized(), dtype=np.float64)
        missed, neither = (1 - p) ** self.batch_size, np.maximum(1 - p[:, None] - p[None], 0) ** self.batch_size
        return 1 - missed[:, None] - missed[None] + neither


@dataclass(frozen=True, repr=False)
class ConditionalPoisson(WithinPopulation):
    """M distinct examples, a subset s with probability proportional to Π_{i∈s} ω_i, each divided by N π_i.

    It is Poisson sampling with odds π/(1−π) = ω given that M examples are drawn, and of all laws on subsets of M with
    its inclusion probabilities the one of largest entropy. With E_m the elementary symmetric polynomials of the odds,
    π_i = ω_i E_{M−1}(ω without i)/E_M(ω), found from size to size by

        π_i^(m) ∝ ω_i (1 − π_i^(m−1)),    π_ij^(m) ∝ ω_i ω_j (1 − π_i^(m−2) − π_j^(m−2) + π_ij^(m−2)),

    with sums m and m(m−1). ĝ = Σ_{i∈s} g_i/(N π_i) is unbiased, and its covariance is that of Horvitz and Thompson,
    (π_ij − π_i π_j)/(N² π_i π_j), which has no structure. ``odds`` is any vector of positive numbers, kept as a tuple;
    only their ratios matter. Draws are exact: example after example, with its probability given those before.

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
        _validate_designs.positive(odds=self.odds)

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        _validate_designs.for_population(population_size, odds=self.odds)

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
        return _inclusion(self.odds, self.batch_size)

    def _covariance(self, population_size: int) -> DenseCovariance:
        if population_size > _MAX_DENSE:
            raise ValueError(
                f"population_size must be at most {_MAX_DENSE} for the covariance of {self}, which has no structure, "
                f"got {population_size}: use estimators.monte_carlo"
            )
        pi = self._pi()
        covariance = _joint_inclusion(self.odds, self.batch_size) - np.outer(pi, pi)
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
        return _joint_inclusion(self.odds, self.batch_size)


@lru_cache(maxsize=8)
def _inclusion(odds: tuple[Number, ...], batch_size: int) -> Numbers:
    """π of every example, from batch size to batch size."""
    omega = as_array(odds)
    pi = 0 * omega
    for m in range(1, batch_size + 1):
        pi = omega * (1 - pi)
        pi = m * pi / pi.sum()
    return pi


@lru_cache(maxsize=2)
def _joint_inclusion(odds: tuple[Number, ...], batch_size: int) -> Numbers:
    """π_ij of every pair, from batch size to batch size, in steps of two; 0 on the diagonal."""
    omega, pi = as_array(odds), _inclusion(odds, batch_size % 2)
    products = np.outer(omega, omega)
    np.fill_diagonal(products, 0)
    joint = 0 * products
    for m in range(2 + batch_size % 2, batch_size + 1, 2):
        joint = products * (1 - pi[:, None] - pi[None] + joint)
        joint = m * (m - 1) * joint / joint.sum()
        pi = joint.sum(axis=1) / (m - 1)
    return joint


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
