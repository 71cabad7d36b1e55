"""Importance sampling: independent draws with unequal probabilities, each divided by its own."""

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

from jaxsgd._core import validate
from jaxsgd._core.rational import Number, Numbers, as_array, as_numbers, prod, reciprocals
from jaxsgd.designs._base import MOST_DRAWS, FixedSizeDesign, WeightVector, floats
from jaxsgd.designs._covariance import DiagonalCovariance


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
        validate.probabilities(probabilities=self.probabilities)

    def indices(self, key: Array, population_size: int) -> Int[Array, " m"]:
        """The M examples of one batch, shape (M,)."""
        validate.random_key(key=key)
        self._check(population_size)
        validate.at_most(MOST_DRAWS, batch_size=self.batch_size)
        thresholds, others = _alias_table(self.probabilities)
        first, second = jax.random.split(key)
        drawn = jax.random.randint(first, (self.batch_size,), 0, population_size)
        kept = jax.random.uniform(second, (self.batch_size,)) < floats(thresholds)[drawn]
        return jnp.where(kept, drawn, jnp.asarray(others, drawn.dtype)[drawn])

    def draw_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """What one draw of each example adds to its weight, shape (N,): 1/(M N p_i), times the scale."""
        self._check(population_size)
        return np.asarray(self._expansion() * self.scale_factor(population_size), dtype=np.float64)

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        validate.one_for_each(population_size, "examples", probabilities=self.probabilities)

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


@lru_cache(maxsize=8)
def _alias_table(probabilities: tuple[Number, ...]) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For every example, with what probability a uniform draw of it is kept, and which example it stands for else.

    Cumulative sums would give the chances of single examples to N times the precision of a number near one only, and
    be off by a percent in float32 for N = 10⁵ (A. J. Walker, "An efficient method for generating discrete random
    variables with general distributions", ACM Trans. Math. Softw. 3, 1977).
    """
    thresholds = np.asarray(probabilities, dtype=np.float64)
    thresholds = thresholds * (len(thresholds) / thresholds.sum())
    others = np.full(len(thresholds), np.argmax(thresholds))  # for what rounding leaves over: never an impossible one
    small, large = (list(np.flatnonzero(side)) for side in (thresholds < 1, thresholds >= 1))
    while small and large:
        i, j = small.pop(), large[-1]
        others[i] = j
        thresholds[j] -= 1 - thresholds[i]
        if thresholds[j] < 1:
            small.append(large.pop())
    return thresholds, others
