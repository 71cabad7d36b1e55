"""Designs whose batches are fixed beforehand, and one of them is drawn: groups, systematic samples, blocks.

The variance of ĝ is that between the batches' means, whatever the variance within.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsgd._core import validate
from jaxsgd._core.rational import Number, Numbers, as_array
from jaxsgd.designs._base import SamplingDesign, WeightVector, WithinPopulation, floats, subset_weights
from jaxsgd.designs._covariance import CircularCovariance, GroupCovariance


class OneOfTheGroups(SamplingDesign):
    """One of k fixed groups, drawn uniformly, with given weights u_i of its examples."""

    @abstractmethod
    def assignment_of(self, population_size: int) -> Int[np.ndarray, " n"]:
        """The group of every example, shape (N,)."""

    def _weights_when_drawn(self, population_size: int) -> Numbers:
        """u_i, shape (N,): k/N, so that E w_i = 1/N."""
        groups = self.assignment_of(population_size)
        return np.full(population_size, Fraction(int(groups.max()) + 1, population_size))

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        groups = self.assignment_of(population_size)
        drawn = jax.random.randint(key, (), 0, int(groups.max()) + 1)
        weights = floats(self._weights_when_drawn(population_size))
        return jnp.where(jnp.asarray(groups, drawn.dtype) == drawn, weights, jnp.zeros_like(weights))

    def _mean(self, population_size: int) -> Any:
        k = int(self.assignment_of(population_size).max()) + 1
        return np.asarray(self._weights_when_drawn(population_size), dtype=np.float64) / k

    def _covariance(self, population_size: int) -> GroupCovariance:
        return GroupCovariance(self.assignment_of(population_size), self._weights_when_drawn(population_size))

    def _support_size(self, population_size: int) -> int:
        """k, the groups."""
        return int(self.assignment_of(population_size).max()) + 1

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every group, with probability 1/k."""
        groups, weights = self.assignment_of(population_size), self._weights_when_drawn(population_size).tolist()
        for r in range(int(groups.max()) + 1):
            probability = Fraction(1, int(groups.max()) + 1)
            yield probability, subset_weights(np.flatnonzero(groups == r).tolist(), weights, population_size)

    def _inclusion(self, population_size: int) -> Any:
        return Fraction(1, self._support_size(population_size))

    def _joint_inclusion(self, population_size: int) -> Any:
        groups = self.assignment_of(population_size)
        return (groups[:, None] == groups[None]) / self._support_size(population_size)

    def _expected_size(self, population_size: int) -> Number:
        return Fraction(population_size, self._support_size(population_size))


@dataclass(frozen=True, repr=False)
class Groups(OneOfTheGroups):
    """One of k fixed groups of examples, drawn uniformly: clusters, shards, files, batches that never change.

    Every example has π_i = 1/k. With t_r the sum over group r, the weights of its examples are

        "expected"   k/N: ĝ = (k/N) t_r is unbiased, whatever the sizes.
        "realized"   1/N_r: ĝ is the mean of the group, biased towards small groups where sizes differ.

    Cov ĝ = (1/k) Σ_r (ĝ_r − E ĝ)(ĝ_r − E ĝ)ᵀ, between groups only. One batch gives no unbiased estimate of it, since
    some pairs are never drawn together. ``assignment`` is the group 0, …, k−1 of every example.

    References:
        L. Kish, *Survey Sampling*, Wiley 1965, chapter 5.

    >>> Groups([0, 0, 1]).mean_weights(3).round(6).tolist()
    [0.333333, 0.333333, 0.333333]
    >>> Groups([0, 0, 1], normalize="realized").mean_weights(3).tolist()
    [0.25, 0.25, 0.5]
    """

    assignment: Any
    normalize: Literal["expected", "realized"] = "expected"

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.one_of(("expected", "realized"), normalize=self.normalize)
        validate.consecutive_labels(assignment=self.assignment)
        object.__setattr__(self, "assignment", tuple(np.asarray(self.assignment).tolist()))

    def assignment_of(self, population_size: int) -> Int[np.ndarray, " n"]:
        """The group of every example, shape (N,)."""
        self._check(population_size)
        return np.asarray(self.assignment)

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        validate.one_for_each(population_size, "examples", assignment=self.assignment)

    def _weights_when_drawn(self, population_size: int) -> Numbers:
        if self.normalize == "expected":
            return super()._weights_when_drawn(population_size)
        groups = self.assignment_of(population_size)
        return as_array([Fraction(1, int(size)) for size in np.bincount(groups)])[groups]


@dataclass(frozen=True, repr=False)
class Systematic(WithinPopulation, OneOfTheGroups):
    """Every k-th example from a random start r < k = N/M: r, r + k, r + 2k, …, each with weight 1/M.

    One of k groups, so E w_i = 1/N, and with ρ the intraclass correlation of the gradients of a batch,
    tr Cov ĝ = (tr Σ/M) (1 + (M−1)ρ): less than of a simple random sample where neighbors in order are alike, and more
    where the data have period k. M must divide N.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, section 8.3.

    >>> [[int(w > 0) for w in weights] for _, weights in Systematic(2).support(6)]
    [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]
    """

    batch_size: int

    def assignment_of(self, population_size: int) -> Int[np.ndarray, " n"]:
        """The start that every example belongs to, shape (N,)."""
        self._check(population_size)
        return np.arange(population_size) % (population_size // self.batch_size)

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        _check_divides(self.batch_size, population_size)


@dataclass(frozen=True, repr=False)
class Blocks(WithinPopulation, OneOfTheGroups):
    """One of the N/M contiguous blocks of M examples, each with weight 1/M: data read in their stored order.

    One of k groups, so E w_i = 1/N, and with ρ the intraclass correlation of the gradients of a block,
    tr Cov ĝ = (tr Σ/M) (1 + (M−1)ρ): up to M times that of independent draws where neighbors are alike. M must
    divide N.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, section 9.4.

    >>> [[int(w > 0) for w in weights] for _, weights in Blocks(2).support(6)]
    [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    """

    batch_size: int

    def assignment_of(self, population_size: int) -> Int[np.ndarray, " n"]:
        """The block of every example, shape (N,)."""
        self._check(population_size)
        return np.arange(population_size) // self.batch_size

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        _check_divides(self.batch_size, population_size)


@dataclass(frozen=True, repr=False)
class CircularBlocks(WithinPopulation):
    """M consecutive examples from a start anywhere on the circle of N, each with weight 1/M.

    Every example is in M of the N windows, so ĝ is unbiased for every M ≤ N, and with the circular autocovariance
    γ_δ = (1/N) Σ_i ⟨g_i − ḡ, g_{i+δ} − ḡ⟩,

        tr Cov ĝ = (1/M) (γ_0 + 2 Σ_{δ=1}^{M−1} (1 − δ/M) γ_δ).

    References:
        D. N. Politis and J. P. Romano, "A circular block-resampling procedure for stationary data", in *Exploring the
        Limits of Bootstrap*, Wiley 1992, for the windows.

    >>> CircularBlocks(2).inclusion_probabilities(5).tolist()
    [0.4, 0.4, 0.4, 0.4, 0.4]
    """

    batch_size: int

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        start = jax.random.randint(key, (), 0, population_size)
        inside = (jnp.arange(population_size) - start) % population_size < self.batch_size
        return inside.astype(jnp.zeros(()).dtype) / self.batch_size

    def _covariance(self, population_size: int) -> CircularCovariance:  # noqa: ARG002
        return CircularCovariance(self.batch_size, Fraction(1, self.batch_size))

    def _support_size(self, population_size: int) -> int:
        """N, the starts; one, if every window holds all examples."""
        return population_size if self.batch_size < population_size else 1

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every window, with probability 1/N."""
        N, M = population_size, self.batch_size
        for start in range(self._support_size(N)):
            window = [(start + j) % N for j in range(M)]
            yield Fraction(1, self._support_size(N)), subset_weights(window, Fraction(1, M), N)

    def _inclusion(self, population_size: int) -> Any:
        return Fraction(self.batch_size, population_size)

    def _joint_inclusion(self, population_size: int) -> Any:
        N, M = population_size, self.batch_size
        lags = np.abs(np.arange(N)[:, None] - np.arange(N)[None])
        return (np.maximum(0, M - lags) + np.maximum(0, M - N + lags)) / N


def _check_divides(batch_size: int, population_size: int) -> None:
    """Raise unless the batch size divides the population size."""
    if population_size % batch_size:
        raise ValueError(f"batch_size must divide the population size {population_size}, got {batch_size}")
