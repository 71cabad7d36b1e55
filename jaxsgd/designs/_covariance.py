"""The structured forms that the covariance of a weight vector takes, each with no more numbers than its law has.

    ExchangeableCovariance   a I − c 11ᵀ                       every example alike
    DiagonalCovariance       diag(d) − c 11ᵀ                   independent examples, or draws of unequal chances
    StratifiedCovariance     Σ_h a_h (I_h − 1_h 1_hᵀ/N_h)      a fixed number from each stratum
    GroupCovariance          (1/k) Σ_r u_r u_rᵀ − ūūᵀ          one of k groups
    CircularCovariance       circulant                         a window of consecutive examples
    DenseCovariance          S A S                             no structure: N × N numbers

Entries are rational (``Fraction``) where the law's numbers are, so that what cancels on paper cancels here.
``estimators`` contracts them with gradients, none but the last through an N × N matrix.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxsgd._core.rational import Number, Numbers


class ExchangeableCovariance(NamedTuple):
    """Cov w = a I − c 11ᵀ, the form of every design that treats all examples alike.

    Attributes:
        identity: a, the coefficient of the identity.
        common: c, what is subtracted everywhere.
    """

    identity: Number
    common: Number

    def scaled(self, factor: Number) -> "ExchangeableCovariance":
        """The covariance of ``factor`` times w."""
        return ExchangeableCovariance(self.identity * factor**2, self.common * factor**2)

    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""
        return _eye(population_size) * self.identity - self.common

    def dense(self, population_size: int) -> Float64[np.ndarray, "n n"]:
        """The matrix, shape (N, N)."""
        return self.entries(population_size).astype(np.float64)


class StructuredCovariance(ABC):
    """What the forms with a number for each example have in common."""

    @abstractmethod
    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""

    def dense(self, population_size: int) -> Float64[np.ndarray, "n n"]:
        """The matrix, shape (N, N)."""
        return self.entries(population_size).astype(np.float64)


@dataclass(frozen=True, eq=False)
class DiagonalCovariance(StructuredCovariance):
    """Cov w = diag(d) − c 11ᵀ, the form of independent examples, and of independent draws with unequal chances.

    Attributes:
        diagonal: d, shape (N,).
        common: c, what is subtracted wherever neither example has d = 0.
        singular: whether c is 1/Σ(1/d_i), the largest number for which this is a covariance.
    """

    diagonal: Numbers
    common: Number = Fraction(0)
    singular: bool = False

    def scaled(self, factor: Number) -> "DiagonalCovariance":
        """The covariance of ``factor`` times w."""
        return DiagonalCovariance(self.diagonal * factor**2, self.common * factor**2, self.singular)

    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""
        random = (self.diagonal > 0).astype(int).astype(object)
        return _eye(population_size) * self.diagonal - np.outer(random, random) * self.common


@dataclass(frozen=True, eq=False)
class StratifiedCovariance(StructuredCovariance):
    """Cov w = Σ_h a_h (I_h − 1_h 1_hᵀ/N_h), the form of a fixed number of examples from each stratum h.

    Attributes:
        strata: the stratum of every example, shape (N,).
        identity: a_h, shape (H,).
    """

    strata: np.ndarray
    identity: Numbers

    def scaled(self, factor: Number) -> "StratifiedCovariance":
        """The covariance of ``factor`` times w."""
        return StratifiedCovariance(self.strata, self.identity * factor**2)

    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""
        shares = (Fraction(1) / np.bincount(self.strata).astype(object))[self.strata]
        centering = _eye(population_size) - _same(self.strata) * shares[:, None]
        return centering * self.identity[self.strata][:, None]


@dataclass(frozen=True, eq=False)
class GroupCovariance(StructuredCovariance):
    """Cov w = (1/k) Σ_r u_r u_rᵀ − ūūᵀ, the form of one of k groups, drawn uniformly.

    Attributes:
        groups: the group of every example, shape (N,).
        weights: what an example weighs when its group is drawn, shape (N,), the sum of all u_r.
    """

    groups: np.ndarray
    weights: Numbers

    @property
    def num_groups(self) -> int:
        """k, how many groups there are."""
        return int(self.groups.max()) + 1

    def scaled(self, factor: Number) -> "GroupCovariance":
        """The covariance of ``factor`` times w."""
        return replace(self, weights=self.weights * factor)

    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""
        k = self.num_groups
        between = _same(self.groups) * Fraction(1, k) - Fraction(1, k**2)
        return between * self.weights[:population_size, None] * self.weights[None]


@dataclass(frozen=True, eq=False)
class CircularCovariance(StructuredCovariance):
    """The covariance of a window of M consecutive examples on a circle of N, which starts anywhere: circulant.

    At a distance of δ it is u² (π_δ − (M/N)²) with Nπ_δ = max(0, M−δ) + max(0, M−N+δ), how many windows hold both.

    Attributes:
        batch_size: M.
        weight: u, what each example of the window weighs.
    """

    batch_size: int
    weight: Number

    def scaled(self, factor: Number) -> "CircularCovariance":
        """The covariance of ``factor`` times w."""
        return replace(self, weight=self.weight * factor)

    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""
        N, M = population_size, self.batch_size
        lags = np.abs(np.arange(N)[:, None] - np.arange(N)[None])
        windows = np.maximum(0, M - lags) + np.maximum(0, M - N + lags)
        return (windows.astype(object) * Fraction(1, N) - Fraction(M, N) ** 2) * self.weight**2


@dataclass(frozen=True, eq=False)
class DenseCovariance(StructuredCovariance):
    """Cov w = S A S with S = diag(s), for laws without structure.

    Attributes:
        matrix: A, shape (N, N).
        scales: s, shape (N,).
        row_sums: A 1, shape (N,): stated, since it is often 0 where the sum of the entries is so but for rounding.
    """

    matrix: Numbers
    scales: Numbers
    row_sums: Numbers

    def scaled(self, factor: Number) -> "DenseCovariance":
        """The covariance of ``factor`` times w."""
        return replace(self, scales=self.scales * factor)

    def entries(self, population_size: int) -> np.ndarray:
        """The matrix, shape (N, N), in the numbers it is stated in."""
        return self.matrix * self.scales[:population_size, None] * self.scales[None]


Covariance = (
    ExchangeableCovariance
    | DiagonalCovariance
    | StratifiedCovariance
    | GroupCovariance
    | CircularCovariance
    | DenseCovariance
)


def _eye(population_size: int) -> Any:
    return np.eye(population_size, dtype=int).astype(object)


def _same(labels: np.ndarray) -> Any:
    """1 where two examples have the same label, as Python's integers."""
    return (labels[:, None] == labels[None]).astype(int).astype(object)
