"""Random reshuffling: the batches of an epoch are the consecutive parts of one random order."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core import validate
from jaxsgd._core.rational import Number
from jaxsgd.designs._base import WeightVector, WithinPopulation, centered_identity, floats, subset_weights
from jaxsgd.designs._covariance import ExchangeableCovariance
from jaxsgd.designs._uniform import variance_factor


@dataclass(frozen=True, repr=False)
class Reshuffling(WithinPopulation):
    """Batches of M consecutive examples of a random order, each with weights 1/(its size): an epoch of k batches.

    Every batch is a simple random sample of its size, so each is unbiased. Any two batches a ≠ b of an epoch are
    disjoint, with Cov(w_a, w_b) = −(I/N − 11ᵀ/N²)/(N−1) whatever their sizes, so Cov(ĝ_a, ĝ_b) = −Σ/(N−1): batches of
    an epoch repel each other, and at a frozen θ their errors cancel over the epoch. Where M does not divide N, the last
    batch has the N mod M examples that are left, or is dropped with ``drop_last=True``.

    As a design for a single batch it is one of the k batches, drawn uniformly: ``WithoutReplacement`` but for the
    short batch, with the covariance factor E[c_m].

    References:
        K. Mishchenko, A. Khaled and P. Richtárik, "Random reshuffling: simple analysis with vast improvements",
        NeurIPS 2020, lemma 1.

    >>> design = Reshuffling(batch_size=2, drop_last=False)
    >>> design.batch_sizes(5)
    (2, 2, 1)
    >>> design.epoch_mean_covariance(5)
    ExchangeableCovariance(identity=Fraction(1, 180), common=Fraction(1, 900))
    >>> design.epoch_mean_covariance(5, by="example").identity
    Fraction(0, 1)
    """

    batch_size: int
    drop_last: bool = True

    def batch_sizes(self, population_size: int) -> tuple[int, ...]:
        """The sizes of the k batches of an epoch."""
        self._check(population_size)
        full, rest = divmod(population_size, self.batch_size)
        return (self.batch_size,) * full + ((rest,) if rest and not self.drop_last else ())

    def epoch_weights(self, key: Array, population_size: int) -> Float[Array, "k n"]:
        """One draw of the weights of all batches of an epoch, shape (k, N)."""
        validate.random_key(key=key)
        sizes = self.batch_sizes(population_size)
        order = jax.random.permutation(key, population_size)[: sum(sizes)]
        batch = np.repeat(np.arange(len(sizes)), sizes)
        weights = float(self.scale_factor(population_size)) / np.take(sizes, batch)
        drawn: Any = jnp.zeros((len(sizes), population_size)).at[batch, order].set(floats(weights))
        return drawn

    def cross_covariance(self, population_size: int) -> ExchangeableCovariance:
        """Cov(w_a, w_b) of two batches of an epoch, −(I/N − 11ᵀ/N²)/(N−1)."""
        validate.at_least(2, **{"the number of batches of an epoch": len(self.batch_sizes(population_size))})
        covariance = ExchangeableCovariance(*centered_identity(Fraction(-1, population_size - 1), population_size))
        return covariance.scaled(self.scale_factor(population_size))

    def epoch_mean_covariance(
        self, population_size: int, *, by: Literal["batch", "example"] = "batch"
    ) -> ExchangeableCovariance:
        """The covariance of the average of the weights of an epoch's batches.

        An example of batch b has weight v = 1/(k m_b) in the average over batches, or 1/(Σ m_b) where batches are
        weighted by size. Given weights assigned to examples at random have Cov = (Σ v² − 1/N) N/(N−1) (I/N − 11ᵀ/N²):
        zero if all examples are used with equal weights, so that the epoch's average is ḡ.

        Args:
            population_size: N.
            by: "batch", every batch counts alike, or "example", every example does.
        """
        validate.one_of(("batch", "example"), by=by)
        sizes, N = self.batch_sizes(population_size), population_size
        if by == "example":
            squares = Fraction(1, sum(sizes))
        else:
            squares = sum((Fraction(1, m) for m in sizes), Fraction(0)) / len(sizes) ** 2
        factor = (squares - Fraction(1, N)) * Fraction(N, max(N - 1, 1))
        return ExchangeableCovariance(*centered_identity(factor, N)).scaled(self.scale_factor(N))

    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]:
        sizes = np.array(self.batch_sizes(population_size))
        which, how = jax.random.split(key)
        place = jax.random.permutation(how, population_size)
        batch = jax.random.randint(which, (), 0, len(sizes))
        starts, lengths = jnp.asarray(np.cumsum(sizes) - sizes)[batch], jnp.asarray(sizes)[batch]
        inside = (place >= starts) & (place < starts + lengths)
        return jnp.where(inside, floats(1 / sizes)[batch], jnp.zeros(()))

    def _chances(self, population_size: int) -> list[tuple[int, Fraction]]:
        """The sizes that a batch can have, with their probabilities."""
        self._check(population_size)
        full, rest = divmod(population_size, self.batch_size)
        short = int(rest > 0 and not self.drop_last)
        return [(self.batch_size, Fraction(full, full + short))] + [(rest, Fraction(1, full + short))] * short

    def _covariance(self, population_size: int) -> ExchangeableCovariance:
        factor = sum((p * variance_factor(population_size, m) for m, p in self._chances(population_size)), Fraction(0))
        return ExchangeableCovariance(*centered_identity(factor, population_size))

    def _support_size(self, population_size: int) -> int:
        """Σ C(N, m) over the sizes m of a batch."""
        return sum(math.comb(population_size, m) for m, _ in self._chances(population_size))

    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every subset of a possible size."""
        N = population_size
        for m, chance in self._chances(N):
            for subset in itertools.combinations(range(N), m):
                yield chance / math.comb(N, m), subset_weights(subset, Fraction(1, m), N)

    def _inclusion(self, population_size: int) -> Any:
        return sum(p * Fraction(m, population_size) for m, p in self._chances(population_size))

    def _joint_inclusion(self, population_size: int) -> Any:
        pairs = population_size * max(population_size - 1, 1)
        return sum(p * Fraction(m * (m - 1), pairs) for m, p in self._chances(population_size))

    def _expected_size(self, population_size: int) -> Number:
        return population_size * self._inclusion(population_size)

    def _nominal_size(self, population_size: int) -> Number:  # noqa: ARG002
        return Fraction(self.batch_size)
