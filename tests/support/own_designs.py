"""Designs as a user would write them, each unlike those of the package in one way."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import jax
import numpy as np

from jaxsgd import designs
from tests.support.twins import Vector


@dataclass(frozen=True)
class Bernoulli:
    """Every example in the batch with probability p, independently; ĝ is the sum over p N, so ‖ḡ‖² adds to it."""

    p: Fraction

    def weights(self, key: jax.Array, population_size: int) -> jax.Array:
        drawn = jax.random.bernoulli(key, float(self.p), (population_size,))
        return drawn.astype(float) / (float(self.p) * population_size)

    def mean_weights(self, population_size: int) -> np.ndarray:
        return np.full(population_size, 1 / population_size)

    def weight_covariance(self, population_size: int) -> designs.ExchangeableCovariance:
        return designs.ExchangeableCovariance(float((1 - self.p) / (self.p * population_size**2)), 0.0)

    def support_size(self, population_size: int) -> int:
        return 2**population_size

    def support(self, population_size: int) -> Iterator[tuple[Fraction, Vector]]:
        for mask in range(2**population_size):
            drawn = [mask >> i & 1 for i in range(population_size)]
            probability = math.prod(self.p if bit else 1 - self.p for bit in drawn)
            yield Fraction(probability), tuple(Fraction(bit, population_size) / self.p for bit in drawn)


@dataclass(frozen=True)
class BatchSum(designs.WithoutReplacement):
    """The sum over the batch, not its mean: ĝ has M times the mean, and M² times the variance."""

    def mean_weights(self, population_size: int) -> np.ndarray:
        return super().mean_weights(population_size) * self.batch_size

    def weight_covariance(self, population_size: int) -> designs.ExchangeableCovariance:
        identity, common = super().weight_covariance(population_size)
        return designs.ExchangeableCovariance(identity * self.batch_size**2, common * self.batch_size**2)

    def support(self, population_size: int) -> Iterator[tuple[Fraction, Vector]]:
        for probability, weights in super().support(population_size):
            yield probability, tuple(w * self.batch_size for w in weights)


class Unequal(Bernoulli):
    """Always the same unequal weights."""

    def mean_weights(self, population_size: int) -> np.ndarray:
        return np.array([0.5, 0.25, 0.25])

    def weight_covariance(self, population_size: int) -> designs.ExchangeableCovariance:
        return designs.ExchangeableCovariance(0.0, 0.0)
