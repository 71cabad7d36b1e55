"""Designs that treat all examples alike: with and without replacement, the distinct ones of draws with replacement.

Their covariance is a multiple of I/N − 11ᵀ/N², so the variance of ĝ needs two moments of the gradients, and nothing
else.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from jaxsgd._core import validate
from jaxsgd._core.rational import Number
from jaxsgd.designs._base import (
    MOST_DRAWS,
    FixedSizeDesign,
    WeightVector,
    WithinPopulation,
    centered_identity,
    subset_weights,
)
from jaxsgd.designs._covariance import ExchangeableCovariance

_MAX_TERMS = 1_000_000  # that are summed one by one
_MAX_RATIONAL_TERMS = 10_000  # beyond, sums of powers are rounded rather than numbers of millions of digits


@dataclass(frozen=True, repr=False)
class WithReplacement(FixedSizeDesign):
    """M independent uniform draws from N examples, each with weight 1/M.

    The counts are multinomial, n ~ Multinomial(M; 1/N, …, 1/N), and w = n/M, so

        E w_i = 1/N,    Cov w = (1/M) (I/N − 11ᵀ/N²).

    ĝ is unbiased, since every draw is uniform, and Cov ĝ = Σ/M. ``batch_size`` may exceed N.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, section 2.8.

    >>> design = WithReplacement(batch_size=2)
    >>> design.weight_covariance(4)
    ExchangeableCovariance(identity=Fraction(1, 8), common=Fraction(1, 32))
    """

    batch_size: int

    def indices(self, key: Array, population_size: int) -> Int[Array, " m"]:
        """The M examples of one batch, shape (M,); its first M' entries are a batch of size M'."""
        validate.random_key(key=key)
        validate.positive_integer(population_size=population_size)
        validate.at_most(MOST_DRAWS, batch_size=self.batch_size)
        return jax.random.randint(key, (self.batch_size,), 0, population_size)

    def draw_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """What one draw of each example adds to its weight, shape (N,): 1/M, times the scale."""
        self._check(population_size)
        return np.full(population_size, float(self.scale_factor(population_size) / self.batch_size))

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        return shares(self.indices(key, population_size), population_size)

    def _covariance(self, population_size: int) -> ExchangeableCovariance:
        return ExchangeableCovariance(*centered_identity(Fraction(1, self.batch_size), population_size))

    def _support_size(self, population_size: int) -> int:
        """C(N + M − 1, M), the multisets of M examples."""
        return math.comb(population_size + self.batch_size - 1, self.batch_size)

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every multiset, with the multinomial probability M!/(Π n_i!) N^−M of its N^M ordered draws."""
        N, M = population_size, self.batch_size
        for drawn in itertools.combinations_with_replacement(range(N), M):
            counts = Counter(drawn)
            orders = math.factorial(M) // math.prod(map(math.factorial, counts.values()))
            yield Fraction(orders, N**M), tuple(Fraction(counts[i], M) for i in range(N))

    def _inclusion(self, population_size: int) -> Any:
        return 1 - _missed(1, population_size, self.batch_size)

    def _joint_inclusion(self, population_size: int) -> Any:
        N, M = population_size, self.batch_size
        return 1 - 2 * _missed(1, N, M) + _missed(2, N, M)


@dataclass(frozen=True, repr=False)
class WithoutReplacement(WithinPopulation):
    """M distinct examples out of N, every subset equally likely, each with weight 1/M.

    Example i is in the batch with probability π_i = M/N, two examples with π_ij = M(M−1)/(N(N−1)), so

        E w_i = 1/N,    Cov w = c_M (I/N − 11ᵀ/N²),    c_M = (N−M)/(M(N−1)).

    ĝ is unbiased, since all π_i are equal, and Cov ĝ = c_M Σ: with replacement's 1/M times the finite-population
    correction (N−M)/(N−1), and exactly 0 at M = N.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, theorems 2.1 and 2.2.

    >>> design = WithoutReplacement(batch_size=2)
    >>> design.variance_factor(4)
    Fraction(1, 3)
    """

    batch_size: int

    def indices(self, key: Array, population_size: int) -> Int[Array, " m"]:
        """The M examples of one batch, shape (M,); its first M' entries are a batch of size M'."""
        validate.random_key(key=key)
        self._check(population_size)
        return jax.random.permutation(key, population_size)[: self.batch_size]

    def draw_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """What one draw of each example adds to its weight, shape (N,): 1/M, times the scale."""
        self._check(population_size)
        return np.full(population_size, float(self.scale_factor(population_size) / self.batch_size))

    def variance_factor(self, population_size: int) -> Fraction:
        """c_M = (N−M)/(M(N−1)), and 0 for N = 1."""
        self._check(population_size)
        return variance_factor(population_size, self.batch_size)

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """1/M in the batch, 0 outside."""
        return shares(self.indices(key, population_size), population_size)

    def _covariance(self, population_size: int) -> ExchangeableCovariance:
        return ExchangeableCovariance(*centered_identity(self.variance_factor(population_size), population_size))

    def _support_size(self, population_size: int) -> int:
        """C(N, M), the subsets of M examples."""
        return math.comb(population_size, self.batch_size)

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every subset, with probability 1/C(N, M)."""
        probability = Fraction(1, self._support_size(population_size))
        for subset in itertools.combinations(range(population_size), self.batch_size):
            yield probability, subset_weights(subset, Fraction(1, self.batch_size), population_size)

    def _inclusion(self, population_size: int) -> Any:
        return Fraction(self.batch_size, population_size)

    def _joint_inclusion(self, population_size: int) -> Any:
        N, M = population_size, self.batch_size
        return Fraction(M * (M - 1), N * max(N - 1, 1))


@dataclass(frozen=True, repr=False)
class DistinctUnits(FixedSizeDesign):
    """The mean over the D distinct examples among M independent uniform draws.

    Given D, the distinct examples are a uniform subset of that size. So ĝ is unbiased, and

        Cov ĝ = (E[1/D] − 1/N) S²,    E[1/D] = Σ_{j=1}^{N} j^{M−1} / N^M,

    never more than the Σ/M of the mean over all draws. ``batch_size`` is the number of draws M and may exceed N;
    ``expected_batch_size`` is E D.

    References:
        D. Basu, "On sampling with and without replacement", Sankhyā 20, 1958.
        D. Raj and S. H. Khamis, "Some remarks on sampling with replacement", Ann. Math. Statist. 29, 1958.

    >>> DistinctUnits(batch_size=3).expected_reciprocal_size(6)
    Fraction(91, 216)
    """

    batch_size: int

    def expected_reciprocal_size(self, population_size: int) -> Number:
        """E[1/D] = Σ j^{M−1} / N^M; rounded where N·M exceeds ten thousand."""
        return Fraction(1, population_size) + self._excess(population_size)

    def _excess(self, population_size: int) -> Number:
        """E[1/D] − 1/N, the sum without its last term."""
        self._check(population_size)
        N, M = population_size, self.batch_size
        if N * M <= _MAX_RATIONAL_TERMS:
            return Fraction(sum(j ** (M - 1) for j in range(1, N)), N**M)
        return mean_power_below_one(N, M - 1)

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        drawn = jax.random.randint(key, (self.batch_size,), 0, population_size)
        present: Any = jnp.zeros(population_size).at[drawn].set(1.0)
        return present / present.sum()

    def _covariance(self, population_size: int) -> ExchangeableCovariance:
        factor = self._excess(population_size) * Fraction(population_size, max(population_size - 1, 1))
        return ExchangeableCovariance(*centered_identity(factor, population_size))

    def _support_size(self, population_size: int) -> int:
        """Σ_d C(N, d), the subsets of at most M examples."""
        return sum(math.comb(population_size, d) for d in range(1, self.batch_size + 1))

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every subset of d examples, with the share of the N^M ordered draws that are onto it."""
        N, M = population_size, self.batch_size
        for d in range(1, min(N, M) + 1):
            onto = sum((-1) ** j * math.comb(d, j) * (d - j) ** M for j in range(d + 1))
            for subset in itertools.combinations(range(N), d):
                yield Fraction(onto, N**M), subset_weights(subset, Fraction(1, d), N)

    def _inclusion(self, population_size: int) -> Any:
        return 1 - _missed(1, population_size, self.batch_size)

    def _joint_inclusion(self, population_size: int) -> Any:
        N, M = population_size, self.batch_size
        return 1 - 2 * _missed(1, N, M) + _missed(2, N, M)

    def _expected_size(self, population_size: int) -> Number:
        return population_size * self._inclusion(population_size)

    def _nominal_size(self, population_size: int) -> Number:  # noqa: ARG002
        return Fraction(self.batch_size)


def variance_factor(population_size: int, batch_size: int) -> Fraction:
    """c_M = (N−M)/(M(N−1)), and 0 for N = 1."""
    return Fraction(population_size - batch_size, batch_size * max(population_size - 1, 1))


def shares(indices: Int[Array, " m"], population_size: int) -> Float[Array, " n"]:
    """How often each example was drawn, divided by the number of draws."""
    counts: Any = jnp.zeros(population_size).at[indices].add(1.0)
    return counts / indices.shape[0]


def mean_power_below_one(N: int, power: int) -> float:
    """(1/N) Σ_{j<N} (j/N)^p, to rounding, in an effort that does not grow with N.

    Seen from its last term the sum is one of (1 − d/N)^p ≤ exp(−pd/N), of which those with pd > 40N are no longer seen.
    Where these are too many, N > 25 000 p, the Euler-Maclaurin formula has 1/(p+1) − 1/(2N) + p/(12N²), or no last term
    for p = 1, and the next, p³/(720N⁴), is below 10⁻¹⁸ times the first (R. L. Graham, D. E. Knuth, O. Patashnik,
    *Concrete Mathematics*, 2nd ed., 1994, section 9.5).
    """
    if power == 0:
        return (N - 1) / N
    if min(N, 40 * N / power) <= _MAX_TERMS:
        d = np.arange(1, min(N - 1, 40 * N // power + 1) + 1)
        with np.errstate(divide="ignore"):
            return float(np.sum(np.exp(power * np.log1p(-d / N))) / N)
    return 1 / (power + 1) - 1 / (2 * N) + (power / (12 * N**2) if power > 1 else 0.0)


def _missed(examples: int, population_size: int, num_draws: int) -> float:
    """The probability that none of so many given examples is drawn."""
    return max(1 - examples / population_size, 0.0) ** num_draws
