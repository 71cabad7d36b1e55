"""Bernoulli sampling: every example is in the batch with the same probability, independently of all others.

All examples are alike, so the covariance is exchangeable, for every way to normalize and to treat the empty batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from jaxsgd._core import validate
from jaxsgd._core.rational import Number, Numbers, as_number
from jaxsgd.designs._base import centered_identity
from jaxsgd.designs._covariance import ExchangeableCovariance
from jaxsgd.designs._poisson import (
    MAX_RATIONAL,
    Empty,
    IndependentExamples,
    Normalize,
    between_zero_and_one,
    check_options,
)

_SERIES_FROM = 1e8  # expected examples, of which the next term of the series would be 10⁻²⁴


@dataclass(frozen=True, repr=False)
class Bernoulli(IndependentExamples):
    """Every example is in the batch with probability p, independently: the subsampling of private training.

    With m the size of the batch and q = (1−p)^N the probability that it is empty, the sum over it is divided by

        "expected"   p N:  E w_i = 1/N,  Cov w = (1−p)/(pN²) I.  Unbiased, but Cov ĝ = (1−p)/(pN) (Σ + ḡḡᵀ) contains
                     the mean, since the size is random.
        "realized"   m:    given m > 0 the batch is a simple random sample of its size, so ĝ is unbiased with
                     Cov ĝ = (E[1/m | m > 0] − 1/N) S². With ``empty="zero"`` it is biased, E ĝ = (1−q) ḡ.

    With "expected", ``empty="zero"`` is the unbiased choice, and "skip" gives ĝ the mean ḡ/(1−q).

    References:
        M. Abadi et al., "Deep learning with differential privacy", CCS 2016, for the expected size.

    >>> from fractions import Fraction
    >>> Bernoulli(Fraction(1, 3)).weight_covariance(6)
    ExchangeableCovariance(identity=Fraction(1, 18), common=Fraction(0, 1))
    """

    probability: Number
    normalize: Normalize = "expected"
    empty: Empty = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.normalize, self.empty)
        object.__setattr__(self, "probability", as_number(self.probability))
        validate.positive(probability=self.probability)
        between_zero_and_one(probability=self.probability)

    def empty_probability(self, population_size: int) -> Number:
        """The probability (1−p)^N that no example is drawn."""
        self._check_size(population_size)
        p = self._number(population_size)
        if isinstance(p, Fraction) or p == 1:
            return (1 - p) ** population_size
        return math.exp(population_size * math.log1p(-p))  # in which 1 − p is not rounded

    def expected_reciprocal_size(self, population_size: int) -> Number:
        """E[1/m | m > 0]; rounded where N exceeds a thousand."""
        return Fraction(1, population_size) + self._excess(population_size)

    def _excess(self, population_size: int) -> Number:
        """E[1/m | m > 0] − 1/N, term by term, so that nothing cancels."""
        N, p = population_size, self._number(population_size)
        counted = 1 - self.empty_probability(N)
        if isinstance(p, Fraction):
            terms = (math.comb(N, m) * p**m * (1 - p) ** (N - m) * Fraction(N - m, m * N) for m in range(1, N))
            return sum(terms, Fraction(0)) / counted
        mean, spread = p * N, math.sqrt(p * N * (1 - p))
        if mean > _SERIES_FROM:  # E[1/m] = (1/μ) Σ (−1)^k E(m − μ)^k/μ^k, and 1/μ − 1/N = (1 − p)/μ
            return (1 - p) / mean * (1 + 1 / mean + (3 * (1 - p) - (1 - 2 * p)) / mean**2)
        from scipy import stats  # slow to import, and needed nowhere else

        reach = 15 * spread + 100  # beyond which no size has a probability of 10⁻⁴⁰
        m = np.arange(max(1, int(mean - reach)), min(N - 1, int(mean + reach)) + 1)
        return float(np.sum(stats.binom.pmf(m, N, p) * (N - m) / (m * float(N)))) / counted

    def _number(self, population_size: int) -> Number:
        """p, rounded where rational powers of it would have thousands of digits."""
        return self.probability if population_size <= MAX_RATIONAL else float(self.probability)

    def _chances(self, population_size: int) -> Sequence[Number]:
        return (self._number(population_size),) * population_size

    def _ratios(self, population_size: int) -> Numbers | None:
        return None if self.normalize == "expected" else np.full(population_size, 1.0)

    def _mean(self, population_size: int) -> Any:
        if self.normalize == "expected":
            return 1 / (population_size * self._kept(population_size))
        counted = 1 - self.empty_probability(population_size)
        return counted / self._kept(population_size) * Fraction(1, population_size)

    def _covariance(self, population_size: int) -> ExchangeableCovariance:
        N, kept = population_size, self._kept(population_size)
        if self.normalize == "expected":
            p = self._number(N)
            return ExchangeableCovariance((1 - p) / (p * N**2 * kept), (1 - kept) / (N * kept) ** 2)
        factor = self._excess(N) * Fraction(N, max(N - 1, 1))
        if self.empty == "skip":
            return ExchangeableCovariance(*centered_identity(factor, N))
        empty = self.empty_probability(N)
        identity, common = centered_identity(factor * (1 - empty), N)
        return ExchangeableCovariance(identity, common - empty * (1 - empty) / N**2)

    def _inclusion(self, population_size: int) -> Any:
        return self._number(population_size) / self._kept(population_size)

    def _joint_inclusion(self, population_size: int) -> Any:
        return self._number(population_size) ** 2 / self._kept(population_size)

    def _nominal_size(self, population_size: int) -> Number:
        return population_size * self._number(population_size)
