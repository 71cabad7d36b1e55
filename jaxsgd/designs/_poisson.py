"""Designs in which every example is in the batch independently of all others: Poisson, Hájek, and what they share.

Their batches have random sizes, and may be empty. What becomes of the weights then is part of the law, ``empty``:

    "zero"    w = 0: the step is not taken.
    "skip"    the batch is drawn again until it is not empty: the law given a batch of at least one example.
    "error"   a population in which an empty batch is possible is refused, by every method.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxsgd._core import validate
from jaxsgd._core.rational import Number, Numbers, as_array, as_numbers, prod, reciprocals
from jaxsgd.designs import _ratio_moments
from jaxsgd.designs._base import SamplingDesign, WeightVector, floats, subset_weights
from jaxsgd.designs._covariance import Covariance, DenseCovariance, DiagonalCovariance

Empty = Literal["zero", "skip", "error"]
Normalize = Literal["expected", "realized"]

MAX_RATIONAL = 1000  # examples; beyond, binomial sums are rounded
_MAX_DENSE = 4096  # examples; N × N numbers


class IndependentExamples(SamplingDesign):
    """Independent inclusions with probabilities π_i; ``normalize`` says what the sum over the batch is divided by."""

    empty: Empty

    def empty_probability(self, population_size: int) -> Number:
        """The probability Π(1 − π_i) that no example is drawn."""
        self._check_size(population_size)
        return math.prod((1 - p for p in self._chances(population_size)), start=Fraction(1))

    @abstractmethod
    def _chances(self, population_size: int) -> Sequence[Number]:
        """π, of length N."""

    @abstractmethod
    def _ratios(self, population_size: int) -> Numbers | None:
        """a, shape (N,), where w_i = a_i I_i / Σ a_k I_k; None for w_i = I_i / (N π_i)."""

    def _check_size(self, population_size: int) -> None:
        super()._check(population_size)

    def _check(self, population_size: int) -> None:
        self._check_size(population_size)
        chance = self.empty_probability(population_size) if self.empty == "error" else 0
        if chance > 0:
            raise ValueError(
                f"empty must be 'zero' or 'skip' where a batch may be empty, got 'error' for {self}, "
                f"whose batches of {population_size} examples are empty with probability {float(chance):.3g}"
            )

    def _kept(self, population_size: int) -> Number:
        """The probability that a draw counts: that it is not empty, where empty batches are drawn again."""
        return 1 - self.empty_probability(population_size) if self.empty == "skip" else Fraction(1)

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        chances = floats(self._chances(population_size))
        drawn = _nonempty(key, chances) if self.empty == "skip" else jax.random.bernoulli(key, chances)
        included: Any = drawn.astype(chances.dtype)
        ratios = self._ratios(population_size)
        if ratios is None:
            return included * floats(self._expansion(population_size))
        included = included * floats(ratios)
        total = included.sum()
        return included / jnp.where(total > 0, total, jnp.ones_like(total))

    def _expansion(self, population_size: int) -> Numbers:
        """1/(N π_i), shape (N,), and 0 where π_i = 0."""
        return reciprocals(as_array(self._chances(population_size))) / population_size

    def _support_size(self, population_size: int) -> int:
        """2 for every example that may or may not be drawn, less the empty batch where it is drawn again."""
        free = sum(0 < p < 1 for p in self._chances(population_size))
        return 2**free - int(self.empty == "skip" and self.empty_probability(population_size) > 0)

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every subset, with probability Π π_i Π (1 − π_i)."""
        chances = [Fraction(p) for p in self._chances(population_size)]
        kept = 1 - prod(1 - p for p in chances) if self.empty == "skip" else Fraction(1)
        for included in itertools.product(*((False, True) if 0 < p < 1 else (p == 1,) for p in chances)):
            chosen = list(itertools.compress(range(population_size), included))
            if chosen or self.empty != "skip":
                probability = prod(p if inside else 1 - p for p, inside in zip(chances, included, strict=True))
                yield probability / kept, self._subset_weights(chosen, chances, population_size)

    def _subset_weights(self, chosen: list[int], chances: list[Fraction], population_size: int) -> WeightVector:
        ratios = self._ratios(population_size)
        if ratios is None:
            expansion = [1 / (population_size * p) if p else p for p in chances]
            return subset_weights(chosen, expansion, population_size)
        a = [Fraction(x) for x in ratios]
        total = sum((a[i] for i in chosen), Fraction(0))
        return subset_weights(chosen, [x / total if total else x for x in a], population_size)

    def _inclusion(self, population_size: int) -> Any:
        return as_array(self._chances(population_size)) / self._kept(population_size)

    def _joint_inclusion(self, population_size: int) -> Any:
        chances = as_array(self._chances(population_size))
        return np.outer(chances, chances) / self._kept(population_size)

    def _expected_size(self, population_size: int) -> Number:
        return self._nominal_size(population_size) / self._kept(population_size)

    def _nominal_size(self, population_size: int) -> Number:
        return sum(self._chances(population_size), Fraction(0))

    def _mean(self, population_size: int) -> Any:
        if self._ratios(population_size) is None:
            mean = float(1 / (population_size * self._kept(population_size)))
            return np.where(as_array(self._chances(population_size)) > 0, mean, 0)
        present, chances, a = self._ratio_arguments(population_size)
        return _embedded(_ratio_moments.first_moments(chances, a), present) / float(self._kept(population_size))

    def _covariance(self, population_size: int) -> Covariance:
        if self._ratios(population_size) is not None:
            return self._ratio_covariance(population_size)
        N, kept, chances = population_size, self._kept(population_size), as_array(self._chances(population_size))
        kept = kept if chances.dtype == object else float(kept)
        diagonal = (1 - chances) * reciprocals(chances) / (N**2 * kept)
        return DiagonalCovariance(diagonal, (1 - kept) / (N * kept) ** 2)

    def _ratio_arguments(self, population_size: int) -> tuple[Any, Any, Any]:
        """Which examples can be drawn at all, and their π and a as floating-point numbers."""
        chances = np.asarray(self._chances(population_size), dtype=np.float64)
        present = chances > 0
        return present, chances[present], np.asarray(self._ratios(population_size), dtype=np.float64)[present]

    def _ratio_covariance(self, population_size: int) -> DenseCovariance:
        """Cov w, of w given a batch that is not empty, and of 0 in place of empty ones."""
        if population_size > _MAX_DENSE:
            raise ValueError(
                f"population_size must be at most {_MAX_DENSE} for the covariance of {self}, which has no structure, "
                f"got {population_size}: use estimators.monte_carlo"
            )
        present, chances, a = self._ratio_arguments(population_size)
        empty = float(self.empty_probability(population_size))
        counted = float(1 - self.empty_probability(population_size))
        mean = _embedded(_ratio_moments.first_moments(chances, a), present) / counted
        second = _embedded(_ratio_moments.second_moments(chances, a), present[:, None] & present[None]) / counted
        given_some, row_sums = second - np.outer(mean, mean), np.zeros(population_size)
        if self.empty != "skip":
            given_some = counted * given_some + empty * counted * np.outer(mean, mean)
            row_sums = empty * counted * mean
        return DenseCovariance(given_some, np.ones(population_size), row_sums)


class _Unequal(IndependentExamples):
    """Inclusion probabilities that are given one by one."""

    probabilities: tuple[Number, ...]

    def _set_probabilities(self) -> None:
        object.__setattr__(self, "probabilities", as_numbers(probabilities=self.probabilities))
        between_zero_and_one(probabilities=self.probabilities)
        validate.positive(**{"the largest of probabilities": max(self.probabilities)})

    def _check_size(self, population_size: int) -> None:
        super()._check_size(population_size)
        validate.one_for_each(population_size, "examples", probabilities=self.probabilities)

    def _chances(self, population_size: int) -> Sequence[Number]:
        if population_size <= MAX_RATIONAL:
            return self.probabilities
        return tuple(map(float, self.probabilities))


@dataclass(frozen=True, repr=False)
class Poisson(_Unequal):
    """Example i is in the batch with probability π_i, independently of all others.

    The sum over the batch is

        "expected"   Σ I_i g_i/(N π_i), the Horvitz-Thompson mean: unbiased, since E I_i = π_i, with
                     Cov w = diag((1−π_i)/π_i)/N² and Cov ĝ = (1/N²) Σ ((1−π_i)/π_i) g_i g_iᵀ.
        "realized"   Σ I_i g_i / Σ I_i, the plain mean of the batch: biased towards examples of large π_i. Its moments
                     are integrals over one variable, and its covariance has no structure.

    An example with π_i = 0 is never seen: ``estimators.exact`` refuses it unless its gradient is zero.
    ``probabilities`` is any vector; it is kept as a tuple, of rational numbers if all are rational.

    References:
        C.-E. Särndal, B. Swensson and J. Wretman, *Model Assisted Survey Sampling*, Springer 1992, section 3.5.
        D. G. Horvitz and D. J. Thompson, "A generalization of sampling without replacement from a finite universe",
        JASA 47, 1952.

    >>> from fractions import Fraction
    >>> Poisson([Fraction(1, 2), Fraction(1, 4)]).weight_covariance(2).diagonal.tolist()
    [Fraction(1, 4), Fraction(3, 4)]
    """

    probabilities: Any
    normalize: Normalize = "expected"
    empty: Empty = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.normalize, self.empty)
        self._set_probabilities()

    def _ratios(self, population_size: int) -> Numbers | None:
        return None if self.normalize == "expected" else np.full(population_size, 1.0)


@dataclass(frozen=True, repr=False)
class Hajek(_Unequal):
    """The batch of :class:`Poisson`, with Hájek's ratio Σ (I_i/π_i) g_i / Σ (I_i/π_i) in place of its mean.

    The weights sum to one, so a constant gradient is estimated without error, at the price of a bias of order 1/M, even
    given a batch that is not empty: for N = 2 and π = (1/2, 1/4), E ĝ = (2/3) g_1 + (1/3) g_2. The moments of w are
    integrals over one variable, exact but for rounding; its covariance has no structure.

    References:
        J. Hájek, comment on an essay by D. Basu, in *Foundations of Statistical Inference*, Holt 1971.
        C.-E. Särndal, B. Swensson and J. Wretman, *Model Assisted Survey Sampling*, Springer 1992, section 5.7.

    >>> Hajek([0.5, 0.25], empty="skip").mean_weights(2).round(6).tolist()
    [0.666667, 0.333333]
    """

    probabilities: Any
    empty: Empty = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options("realized", self.empty)
        self._set_probabilities()

    def _ratios(self, population_size: int) -> Numbers | None:  # noqa: ARG002
        return reciprocals(as_array(self.probabilities))


def between_zero_and_one(**named: Any) -> None:
    """Raise unless every number of every value lies between 0 and 1."""
    for name, value in named.items():
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 <= number <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {number}")


def check_options(normalize: str, empty: str) -> None:
    """Raise unless both are known."""
    validate.one_of(("expected", "realized"), normalize=normalize)
    validate.one_of(("zero", "skip", "error"), empty=empty)


def _nonempty(key: Array, chances: Float[Array, " n"]) -> Bool[Array, " n"]:
    """Independent inclusions, drawn again until there is one: a loop of fixed shapes."""

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        next_key, now = jax.random.split(state[0])
        return next_key, jax.random.bernoulli(now, chances)

    return jax.lax.while_loop(lambda state: ~jnp.any(state[1]), again, again((key, chances > 0)))[1]


def _embedded(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """An array with ``values`` where ``where`` is true, and zeros elsewhere."""
    out = np.zeros(where.shape)
    out[where] = values.ravel()
    return out
