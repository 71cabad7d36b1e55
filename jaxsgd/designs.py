"""Sampling designs: laws on the weight vector w of a minibatch gradient ĝ = Σ w_i g_i.

A design knows no gradients. It draws w (or the indices of the batch), states its mean and covariance exactly,
and lists its support where that is finite and small. ``estimators`` does the rest, the same way for every
design, since E ĝ = Gᵀ E[w] and tr Cov ĝ = ⟨Cov w, K⟩ for the gradient matrix G and K = G Gᵀ.

Designs are frozen dataclasses: hashable (static arguments of ``jit``) and printable (captions of figures).
Their methods take the population size N. Imports ``_validate`` only.
"""

import itertools
import math
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from jaxsgd import _validate

WeightVector = tuple[Fraction, ...]


class ExchangeableCovariance(NamedTuple):
    """Cov w = a I − c 11ᵀ, the form of every design that treats all examples alike.

    Rational where the design's numbers are, so that what cancels on paper cancels here.

    Attributes:
        identity: a, the coefficient of the identity.
        common: c, what is subtracted everywhere.
    """

    identity: Fraction | float
    common: Fraction | float


@runtime_checkable
class Design(Protocol):
    """What ``estimators`` needs of a law on w; anything with these methods is a design."""

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of w, shape (N,)."""

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E w, shape (N,)."""

    def weight_covariance(self, population_size: int) -> ExchangeableCovariance:
        """Cov w, exactly, in structured form."""

    def support_size(self, population_size: int) -> int:
        """How many values w can take."""

    def support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every value of w with its probability, as exact rational numbers."""


@dataclass(frozen=True)
class WithReplacement:
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

    def __post_init__(self) -> None:
        _validate.positive_integer(batch_size=self.batch_size)
        object.__setattr__(self, "batch_size", operator.index(self.batch_size))  # exact arithmetic needs Python's

    def indices(self, key: Array, population_size: int) -> Int[Array, " m"]:
        """The M examples of one batch, shape (M,); its first M' entries are a batch of size M'."""
        _validate.random_key(key=key)
        _validate.positive_integer(population_size=population_size)
        return jax.random.randint(key, (self.batch_size,), 0, population_size)

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of w, shape (N,): the share of the batch that each example has."""
        return _shares(self.indices(key, population_size), population_size)

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E w = 1/N, shape (N,)."""
        _validate.positive_integer(population_size=population_size)
        return np.full(population_size, 1 / population_size)

    def weight_covariance(self, population_size: int) -> ExchangeableCovariance:
        """Cov w = (1/M) (I/N − 11ᵀ/N²)."""
        _validate.positive_integer(population_size=population_size)
        N, M = population_size, self.batch_size
        return ExchangeableCovariance(Fraction(1, M * N), Fraction(1, M * N**2))

    def support_size(self, population_size: int) -> int:
        """C(N + M − 1, M), the multisets of M examples."""
        _validate.positive_integer(population_size=population_size)
        return math.comb(population_size + self.batch_size - 1, self.batch_size)

    def support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every multiset, with the multinomial probability M!/(Π n_i!) N^−M of its N^M ordered draws."""
        _validate.positive_integer(population_size=population_size)
        N, M = population_size, self.batch_size
        for drawn in itertools.combinations_with_replacement(range(N), M):
            counts = Counter(drawn)
            orders = math.factorial(M) // math.prod(map(math.factorial, counts.values()))
            yield Fraction(orders, N**M), tuple(Fraction(counts[i], M) for i in range(N))


@dataclass(frozen=True)
class WithoutReplacement:
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

    def __post_init__(self) -> None:
        _validate.positive_integer(batch_size=self.batch_size)
        object.__setattr__(self, "batch_size", operator.index(self.batch_size))  # exact arithmetic needs Python's

    def indices(self, key: Array, population_size: int) -> Int[Array, " m"]:
        """The M examples of one batch, shape (M,); its first M' entries are a batch of size M'."""
        _validate.random_key(key=key)
        self._check(population_size)
        return jax.random.permutation(key, population_size)[: self.batch_size]

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of w, shape (N,): 1/M in the batch, 0 outside."""
        return _shares(self.indices(key, population_size), population_size)

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E w = 1/N, shape (N,)."""
        self._check(population_size)
        return np.full(population_size, 1 / population_size)

    def variance_factor(self, population_size: int) -> Fraction:
        """c_M = (N−M)/(M(N−1)), and 0 for N = 1."""
        self._check(population_size)
        N, M = population_size, self.batch_size
        return Fraction(N - M, M * max(N - 1, 1))

    def weight_covariance(self, population_size: int) -> ExchangeableCovariance:
        """Cov w = c_M (I/N − 11ᵀ/N²)."""
        factor = self.variance_factor(population_size)
        return ExchangeableCovariance(factor / population_size, factor / population_size**2)

    def support_size(self, population_size: int) -> int:
        """C(N, M), the subsets of M examples."""
        self._check(population_size)
        return math.comb(population_size, self.batch_size)

    def support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every subset, with probability 1/C(N, M)."""
        probability = Fraction(1, self.support_size(population_size))
        share, none = Fraction(1, self.batch_size), Fraction(0)
        for subset in itertools.combinations(range(population_size), self.batch_size):
            chosen = set(subset)
            yield probability, tuple(share if i in chosen else none for i in range(population_size))

    def _check(self, population_size: int) -> None:
        _validate.positive_integer(population_size=population_size)
        _validate.batch_within_population(batch_size=self.batch_size, population_size=population_size)


def _shares(indices: Int[Array, " m"], population_size: int) -> Float[Array, " n"]:
    """How often each example was drawn, divided by the number of draws."""
    counts: Any = jnp.zeros(population_size).at[indices].add(1.0)
    return counts / indices.shape[0]
