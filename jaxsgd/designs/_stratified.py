"""Stratified sampling: a simple random sample from each stratum, and the sizes of them that are best."""

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsgd._core import validate
from jaxsgd._core.rational import Number, Numbers, as_array, as_numbers
from jaxsgd.designs._base import SamplingDesign, WeightVector, floats
from jaxsgd.designs._covariance import StratifiedCovariance
from jaxsgd.designs._uniform import variance_factor


@dataclass(frozen=True, repr=False)
class Stratified(SamplingDesign):
    """A simple random sample of m_h examples from each stratum h of N_h, weighted by the stratum's share of N.

    An example of the batch has weight N_h/(N m_h), so

        ĝ = Σ_h (N_h/N) ĝ_h,    Cov ĝ = Σ_h (N_h/N)² (1 − m_h/N_h) S_h²/m_h,

    unbiased, since π_i = m_h/N_h, and free of the variance between strata. With ``weighted=False`` the weights are 1/M
    for M = Σ m_h, as in class-balanced batches: then E ĝ = Σ_h (m_h/M) ḡ_h is the gradient of another cost, unless the
    m_h are proportional to the N_h.

    Attributes:
        strata: the stratum 0, …, H−1 of every example, any vector; kept as a tuple.
        batch_sizes: m_h of every stratum, at least 1 and at most N_h.
        weighted: whether examples are weighted by N_h/(N m_h) or by 1/M.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, theorem 5.3.
        P. Zhao and T. Zhang, "Accelerating minibatch stochastic gradient descent using stratified sampling",
        arXiv:1405.3080, 2014.

    >>> design = Stratified([0, 0, 0, 1, 1, 1], batch_sizes=[1, 2])
    >>> design.mean_weights(6).round(6).tolist() == [0.166667] * 6
    True
    >>> Stratified.proportional([0, 0, 0, 0, 1, 1], batch_size=3).batch_sizes
    (2, 1)
    """

    strata: Any
    batch_sizes: Any
    weighted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.consecutive_labels(strata=self.strata)
        object.__setattr__(self, "strata", tuple(np.asarray(self.strata).tolist()))
        for size in np.asarray(self.batch_sizes).tolist() if np.ndim(self.batch_sizes) else [self.batch_sizes]:
            validate.positive_integer(batch_sizes=size)
        object.__setattr__(self, "batch_sizes", tuple(np.asarray(self.batch_sizes).reshape(-1).tolist()))
        _check_allocation(self.batch_sizes, self._stratum_sizes().tolist())

    @classmethod
    def proportional(cls, strata: Any, batch_size: int) -> "Stratified":
        """M examples, spread over the strata in proportion to their sizes, at least one from each.

        Fractions are rounded so that Σ N_h²/m_h is least, which for N_h M/N that are integers gives these.
        """
        validate.consecutive_labels(strata=strata)
        return cls.neyman(strata, np.ones(int(np.max(strata)) + 1), batch_size)

    @classmethod
    def neyman(cls, strata: Any, deviations: Any, batch_size: int) -> "Stratified":
        """M examples, spread over the strata so that the variance is least, at least one from each.

        Without rounding this is m_h ∝ N_h S_h. The best integers are found one by one: an example more in stratum h
        reduces Σ N_h² S_h²/m_h by N_h² S_h²/(m_h (m_h + 1)), and the stratum where that is most gets it.

        Args:
            strata: the stratum of every example.
            deviations: S_h = √tr S_h² of every stratum, as ``estimators.stratum_deviations`` gives it.
            batch_size: M, between the number of strata and N.

        References:
            J. Neyman, "On the two different aspects of the representative method", J. R. Stat. Soc. 97, 1934.
            T. Wright, "The equivalence of Neyman optimum allocation for sampling and equal proportions for
            apportioning the U.S. House of Representatives", The American Statistician 66, 2012.

        >>> Stratified.neyman([0, 0, 0, 1, 1, 1], deviations=[1.0, 5.0], batch_size=3).batch_sizes
        (1, 2)
        """
        validate.consecutive_labels(strata=strata)
        sizes = np.bincount(np.asarray(strata)).tolist()
        S = as_numbers(deviations=deviations)
        for deviation in S:
            if not deviation >= 0:
                raise ValueError(f"deviations must be non-negative, got {deviation}")
        validate.one_for_each(len(sizes), "strata", deviations=S)
        validate.at_least(len(sizes), batch_size=batch_size)
        validate.at_most(sum(sizes), "the population size", batch_size=batch_size)
        return cls(strata, _allocate(sizes, S, batch_size))

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        validate.one_for_each(population_size, "examples", strata=self.strata)

    def _stratum_sizes(self) -> Int[np.ndarray, " h"]:
        return np.bincount(np.asarray(self.strata))

    def _stratum_weights(self) -> list[Fraction]:
        """What an example of the batch weighs, for every stratum."""
        sizes, drawn = self._stratum_sizes().tolist(), self.batch_sizes
        if not self.weighted:
            return [Fraction(1, sum(drawn))] * len(drawn)
        return [Fraction(n, len(self.strata) * m) for n, m in zip(sizes, drawn, strict=True)]

    def _of_examples(self, of_strata: Any) -> Numbers:
        return as_array(of_strata)[np.asarray(self.strata)]

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """In a random order of all examples, the first m_h of every stratum."""
        strata = jnp.asarray(np.asarray(self.strata, dtype=np.int32))
        order = jax.random.permutation(key, population_size)
        by_stratum = order[jnp.argsort(strata[order], stable=True)]
        sizes = self._stratum_sizes()
        place = np.arange(population_size) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its stratum
        taken = np.where(place < np.repeat(self.batch_sizes, sizes), 1.0, 0.0)
        weights = np.repeat(np.asarray(self._stratum_weights(), dtype=np.float64), sizes)
        drawn: Any = jnp.zeros(population_size).at[by_stratum].set(floats(taken * weights))
        return drawn

    def _mean(self, population_size: int) -> Any:
        if self.weighted:
            return Fraction(1, population_size)
        weights = zip(self.batch_sizes, self._stratum_sizes().tolist(), strict=True)
        return self._of_examples([Fraction(m, n * sum(self.batch_sizes)) for m, n in weights])

    def _covariance(self, population_size: int) -> StratifiedCovariance:  # noqa: ARG002
        """Within stratum h the m_h-fold weights have Cov = c (I/N_h − 11ᵀ/N_h²) with the factor c of m_h out of N_h."""
        laws = zip(self._stratum_sizes().tolist(), self.batch_sizes, self._stratum_weights(), strict=True)
        identity = [variance_factor(n, m) / n * (m * weight) ** 2 for n, m, weight in laws]
        return StratifiedCovariance(np.asarray(self.strata), as_array(identity))

    def _support_size(self, population_size: int) -> int:  # noqa: ARG002
        """Π_h C(N_h, m_h)."""
        return math.prod(map(math.comb, self._stratum_sizes().tolist(), self.batch_sizes))

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every choice of a subset from each stratum, all equally likely."""
        strata, weights = np.asarray(self.strata), self._stratum_weights()
        subsets = [
            itertools.combinations(np.flatnonzero(strata == h).tolist(), m) for h, m in enumerate(self.batch_sizes)
        ]
        probability = Fraction(1, self._support_size(population_size))
        for chosen in itertools.product(*subsets):
            w = [Fraction(0)] * population_size
            for weight, subset in zip(weights, chosen, strict=True):
                for i in subset:
                    w[i] = weight
            yield probability, tuple(w)

    def _inclusion(self, population_size: int) -> Any:  # noqa: ARG002
        return self._of_examples(list(map(Fraction, self.batch_sizes, self._stratum_sizes().tolist())))

    def _joint_inclusion(self, population_size: int) -> Any:
        pi, strata = self._inclusion(population_size), np.asarray(self.strata)
        pairs = zip(self.batch_sizes, self._stratum_sizes().tolist(), strict=True)
        within = self._of_examples([Fraction(m * (m - 1), n * max(n - 1, 1)) for m, n in pairs])
        return np.where(strata[:, None] == strata[None], within[:, None], np.outer(pi, pi))

    def _expected_size(self, population_size: int) -> Number:  # noqa: ARG002
        return Fraction(sum(self.batch_sizes))


def _check_allocation(batch_sizes: tuple[int, ...], stratum_sizes: list[int]) -> None:
    """Raise unless there is one batch size for each stratum, none larger than its stratum."""
    validate.one_for_each(len(stratum_sizes), "strata", batch_sizes=batch_sizes)
    for stratum, (drawn, size) in enumerate(zip(batch_sizes, stratum_sizes, strict=True)):
        if drawn > size:
            raise ValueError(f"batch_sizes must be at most {size}, the size of stratum {stratum}, got {drawn}")


def _allocate(sizes: list[int], deviations: tuple[Number, ...], batch_size: int) -> tuple[int, ...]:
    """The m_h with 1 ≤ m_h ≤ N_h and sum M for which Σ N_h² S_h²/m_h is least."""
    drawn = [1] * len(sizes)

    def priority(h: int) -> tuple[Number, Number]:
        """How much one more example of the stratum helps; where nothing does, strata fill up in proportion."""
        return (
            -((sizes[h] * deviations[h]) ** 2) / (drawn[h] * (drawn[h] + 1)),
            -Fraction(sizes[h] ** 2, drawn[h] * (drawn[h] + 1)),
        )

    queue = [(priority(h), h) for h in range(len(sizes)) if sizes[h] > 1]
    heapq.heapify(queue)
    for _ in range(batch_size - len(sizes)):
        _, h = heapq.heappop(queue)
        drawn[h] += 1
        if drawn[h] < sizes[h]:
            heapq.heappush(queue, (priority(h), h))
    return tuple(drawn)
