"""What every sampling design of the package has in common: its scale, its printed form, the checks of its methods.

A design states the law of the weights of a *mean*, in methods with a leading underscore; this module turns them into
the public ones.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from jaxsgd._core import validate
from jaxsgd._core.rational import Number
from jaxsgd.designs._covariance import Covariance

WeightVector = tuple[Fraction, ...]
Scale = Literal["mean", "sum", "total"]

MOST_DRAWS = 2**31 - 1  # of one batch; laws know no limit


@dataclass(frozen=True, repr=False)
class SamplingDesign(ABC):
    """A law on the weights w of ĝ = Σ w_i g_i.

    Attributes:
        scale: what ĝ is a version of. "mean": the mean ḡ of the population. "sum": the sum over a batch of M, M times
            the mean; where the size of the batch is random, M stands for the size that the design is made for (its
            ``nominal_batch_size``), not for the size that was drawn. "total": the sum over the population, N times the
            mean.
    """

    scale: Scale = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        validate.one_of(("mean", "sum", "total"), scale=self.scale)

    def __repr__(self) -> str:
        own = sorted(fields(self), key=lambda f: f.name == "scale")
        changed = [f for f in own if f.default is MISSING or getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={_shown(getattr(self, f.name))}' for f in changed)})"

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of w, shape (N,), for any key; the shape does not depend on the size of the batch."""
        validate.random_key(key=key)
        self._check(population_size)
        drawn = self._draw(key, population_size)
        return drawn if self.scale == "mean" else drawn * float(self.scale_factor(population_size))

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E w, shape (N,)."""
        self._check(population_size)
        mean = self._mean(population_size)
        mean = mean if self.scale == "mean" else mean * self.scale_factor(population_size)
        mean = np.asarray(mean, dtype=np.float64)
        return np.full(population_size, mean) if mean.ndim == 0 else mean

    def squared_norm_of_mean(self, population_size: int) -> float:
        """‖E w‖²; of a design that treats all examples alike, from one number, whatever the size of the population."""
        self._check(population_size)
        mean = np.asarray(self._mean(population_size))
        squares = population_size * mean[()] ** 2 if mean.ndim == 0 else np.sum(mean**2)
        return float(squares * self.scale_factor(population_size) ** 2)

    def weight_covariance(self, population_size: int) -> Covariance:
        """Cov w in structured form; rational where the law's numbers are."""
        self._check(population_size)
        covariance = self._covariance(population_size)
        return covariance if self.scale == "mean" else covariance.scaled(self.scale_factor(population_size))

    def support_size(self, population_size: int) -> int:
        """How many values w can take."""
        self._check(population_size)
        return self._support_size(population_size)

    def support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every value of w with its probability, as rational numbers; floating-point numbers are rational too."""
        self._check(population_size)
        factor = Fraction(self.scale_factor(population_size))
        for probability, weights in self._support(population_size):
            yield probability, tuple(w * factor for w in weights)

    def inclusion_probabilities(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """π_i, the probability that example i is in the batch, shape (N,)."""
        self._check(population_size)
        inclusion = np.asarray(self._inclusion(population_size), dtype=np.float64)
        return np.full(population_size, inclusion) if inclusion.ndim == 0 else inclusion

    def joint_inclusion_probabilities(self, population_size: int) -> Float64[np.ndarray, "n n"]:
        """π_ij, the probability that examples i and j are in the batch, shape (N, N), with π_i on the diagonal."""
        self._check(population_size)
        joint = np.asarray(self._joint_inclusion(population_size), dtype=np.float64)
        joint = np.full((population_size, population_size), joint) if joint.ndim == 0 else joint.copy()
        np.fill_diagonal(joint, self.inclusion_probabilities(population_size))
        return joint

    def expected_batch_size(self, population_size: int) -> float:
        """The expected number of draws, repeated ones included."""
        self._check(population_size)
        return float(self._expected_size(population_size))

    def nominal_batch_size(self, population_size: int) -> Number:
        """The batch size that ``scale="sum"`` multiplies the mean with."""
        self._check(population_size)
        return self._nominal_size(population_size)

    def scale_factor(self, population_size: int) -> Number:
        """What w is multiplied with: 1 for the mean, M for the sum, N for the total."""
        if self.scale == "mean":
            return Fraction(1)
        return Fraction(population_size) if self.scale == "total" else self._nominal_size(population_size)

    def _check(self, population_size: int) -> None:
        """Raise unless the design is one for a population of this size."""
        validate.positive_integer(population_size=population_size)

    @abstractmethod
    def _draw(self, key: Array, population_size: int) -> Float[Array, " n"]: ...

    def _mean(self, population_size: int) -> Any:
        """E w, shape () or (N,)."""
        return Fraction(1, population_size)

    @abstractmethod
    def _covariance(self, population_size: int) -> Covariance: ...

    @abstractmethod
    def _support_size(self, population_size: int) -> int: ...

    @abstractmethod
    def _support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]: ...

    @abstractmethod
    def _inclusion(self, population_size: int) -> Any:
        """π_i, shape () or (N,)."""

    @abstractmethod
    def _joint_inclusion(self, population_size: int) -> Any:
        """π_ij for i ≠ j, shape () or (N, N)."""

    @abstractmethod
    def _expected_size(self, population_size: int) -> Number: ...

    def _nominal_size(self, population_size: int) -> Number:
        return self._expected_size(population_size)


class FixedSizeDesign(SamplingDesign):
    """A design with a fixed number of draws, M."""

    batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.positive_integer(batch_size=self.batch_size)
        object.__setattr__(self, "batch_size", operator.index(self.batch_size))  # exact arithmetic needs Python's

    def _expected_size(self, population_size: int) -> Number:  # noqa: ARG002
        return Fraction(self.batch_size)


class WithinPopulation(FixedSizeDesign):
    """A design of a fixed size that cannot exceed the population."""

    def _check(self, population_size: int) -> None:
        super()._check(population_size)
        validate.at_most(population_size, "the population size", batch_size=self.batch_size)


def centered_identity(factor: Number, population_size: int) -> tuple[Number, Number]:
    """a and c of factor · (I/N − 11ᵀ/N²) = a I − c 11ᵀ."""
    return factor / population_size, factor / population_size**2


def floats(numbers: Any) -> Float[Array, "..."]:
    """Numbers as an array of JAX's default dtype for floating-point numbers."""
    return jnp.asarray(np.asarray(numbers, dtype=np.float64), dtype=jnp.zeros(()).dtype)


def subset_weights(chosen: Sequence[int], weight: Sequence[Fraction] | Fraction, population_size: int) -> WeightVector:
    """The weights of the examples in ``chosen``, zero elsewhere."""
    inside, none = set(chosen), Fraction(0)
    if isinstance(weight, Fraction):
        return tuple(weight if i in inside else none for i in range(population_size))
    return tuple(weight[i] if i in inside else none for i in range(population_size))


_SHOWN = 8


def _shown(value: Any) -> str:
    """A field in print; of a long vector, the first and the last entry."""
    if isinstance(value, tuple) and len(value) > _SHOWN:
        return f"({value[0]!r}, ..., {value[-1]!r})"
    return repr(value)


@runtime_checkable
class Design(Protocol):
    """What ``estimators`` needs of a law on w; anything with these methods is a design."""

    def weights(self, key: Array, population_size: int) -> Float[Array, " n"]:
        """One draw of w, shape (N,)."""

    def mean_weights(self, population_size: int) -> Float64[np.ndarray, " n"]:
        """E w, shape (N,)."""

    def weight_covariance(self, population_size: int) -> Covariance:
        """Cov w, exactly, in structured form."""

    def support_size(self, population_size: int) -> int:
        """How many values w can take."""

    def support(self, population_size: int) -> Iterator[tuple[Fraction, WeightVector]]:
        """Every value of w with its probability, as exact rational numbers."""
