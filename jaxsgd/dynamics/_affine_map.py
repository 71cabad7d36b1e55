"""Random affine maps θ ↦ Aθ + b: their first two moments are enough for the mean and the covariance of θ.

A step of SGD on a quadratic loss is such a map, an epoch is a composition of them, and a random order is a mixture of
compositions. Numbers are float64, or ``Fraction`` in arrays of dtype object: what is rational stays so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from numbers import Rational
from typing import Any, NamedTuple

import numpy as np

from jaxsgd._core import validate


class StateLaw(NamedTuple):
    """The mean and the covariance of θ.

    Attributes:
        mean: E θ, shape (d,).
        covariance: Cov θ, shape (d, d).
    """

    mean: np.ndarray
    covariance: np.ndarray

    def second_moment(self, about: np.ndarray) -> np.ndarray:
        """E (θ − a)(θ − a)ᵀ = Cov θ + (E θ − a)(E θ − a)ᵀ, shape (d, d)."""
        deviation = self.mean - about
        return self.covariance + deviation[:, None] * deviation


@dataclass(frozen=True, eq=False)
class AffineLaw:
    """A random affine map θ ↦ Aθ + b, independent of θ, by the first two moments of F = [A b].

    With θ₁ = (θ, 1) the map is Fθ₁, so that for θ of mean m and covariance V

        E(Aθ + b) = E[F] m₁,    Cov(Aθ + b) = E[A V Aᵀ] + Cov(F m₁),

    the second by conditioning on F: given F, the covariance is A V Aᵀ and the mean F m₁. Both are exact for any law of
    θ: no distribution is assumed.

    Attributes:
        mean: E F, shape (d, d+1).
        covariance: Cov(F_ak, F_cl) at [a, k, c, l], shape (d, d+1, d, d+1).
    """

    mean: np.ndarray
    covariance: np.ndarray

    @cached_property
    def second_moment_matrix(self) -> np.ndarray:
        """E[A ⊗ A], shape (d², d²), which takes vec(V) to vec(E[A V Aᵀ])."""
        A, d = self.mean[:, :-1], len(self.mean)
        products = A[:, :, None, None] * A + self.covariance[:, :-1, :, :-1]
        return products.transpose(0, 2, 1, 3).reshape(d * d, d * d)

    def spectral_radius(self) -> float:
        """ρ(E[A ⊗ A]): the second moments of θ converge from every start if and only if it is below 1."""
        matrix = self.second_moment_matrix.astype(np.float64)
        symmetric = np.allclose(matrix, matrix.T, rtol=0, atol=1e-14)  # a step's is, an epoch's need not be
        return float(np.abs(np.linalg.eigvalsh(matrix) if symmetric else np.linalg.eigvals(matrix)).max())

    def apply(self, state: StateLaw) -> StateLaw:
        """The law of Aθ + b for a θ with the given mean and covariance."""
        d, m = len(self.mean), _homogeneous(state.mean)
        moved = (self.second_moment_matrix @ state.covariance.reshape(d * d)).reshape(d, d)
        return StateLaw(self.mean @ m, moved + _quadratic_form(self.covariance, m))

    def iterate(self, start: np.ndarray, num_steps: int) -> StateLaw:
        """The law of θ after a number of independent maps, from a start that is not random."""
        validate.at_least(0, num_steps=num_steps)
        state = StateLaw(start, start[:, None] * start * 0)
        for _ in range(num_steps):
            state = self.apply(state)
        return state

    def stationary(self) -> StateLaw:
        """The mean and the covariance that the map leaves as they are: (I − E A) m = E b, V = E[A V Aᵀ] + Cov(F m₁).

        Two linear systems, the second for vec(V) with the matrix I − E[A ⊗ A].

        Raises:
            ValueError: unless the map is stable in mean square, ρ(E[A ⊗ A]) < 1.
        """
        radius = self.spectral_radius()
        if not radius < 1:
            raise ValueError(
                "learning_rate must be below the stability threshold for a stationary law to exist, "
                f"got a spectral radius of {radius:.6g} for E[A ⊗ A]"
            )
        d = len(self.mean)
        mean = solve(identity_like(self.mean[:, :-1]) - self.mean[:, :-1], self.mean[:, -1])
        noise = _quadratic_form(self.covariance, _homogeneous(mean))
        operator = self.second_moment_matrix
        V = solve(identity_like(operator) - operator, noise.reshape(d * d)).reshape(d, d)
        return StateLaw(mean, (V + V.T) / 2)

    def then(self, later: "AffineLaw") -> "AffineLaw":
        """The law of the composition later ∘ self of independent maps.

        Given the later F' = [A' b'], the composition A'F + [0 b'] has mean F'F₁ and covariance A' Cov(F) A'ᵀ.
        """
        A, d = later.mean[:, :-1], len(self.mean)
        first = np.concatenate([self.mean, _last_row(self.mean)])
        products = A[:, :, None, None] * A + later.covariance[:, :-1, :, :-1]
        within = np.einsum("apcq,pkql->akcl", products, self.covariance)
        between = np.einsum("apcq,pk,ql->akcl", later.covariance, first, first)
        return AffineLaw(later.mean @ first, (within + between).reshape(d, d + 1, d, d + 1))


def certain(F: np.ndarray) -> AffineLaw:
    """The law of a map [A b] that is not random."""
    return AffineLaw(F, F[:, :, None, None] * F * 0)


def mixture(laws: Sequence[AffineLaw]) -> AffineLaw:
    """One of the maps, drawn uniformly: the covariance is the mean of the covariances plus that of the means."""
    means = np.stack([law.mean for law in laws])
    deviations = means - means.sum(axis=0) / len(laws)
    between = deviations[:, :, :, None, None] * deviations[:, None, None]
    within = np.stack([law.covariance for law in laws])
    return AffineLaw(means.sum(axis=0) / len(laws), (within + between).sum(axis=0) / len(laws))


def solve(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The solution x of A x = b; by Gaussian elimination, without rounding, where the numbers are rational."""
    if A.dtype != object:
        return np.linalg.solve(A, b)
    rows = np.concatenate([A, b[:, None]], axis=1)
    for i in range(len(rows)):
        pivot = i + int(np.argmax(rows[i:, i] != 0))
        rows[[i, pivot]] = rows[[pivot, i]]
        rows[i] = rows[i] / rows[i, i]
        others = np.arange(len(rows)) != i
        rows[others] = rows[others] - rows[others, i][:, None] * rows[i]
    return rows[:, -1]


def numbers(values: Any) -> np.ndarray:
    """An array of dtype object with ``Fraction`` where all numbers are rational, else of dtype float64."""
    array = np.asarray(values, dtype=object)
    flat = array.ravel().tolist()
    if all(isinstance(value, Rational) for value in flat):
        exact = np.empty(len(flat), dtype=object)
        exact[:] = [Fraction(int(value.numerator), int(value.denominator)) for value in flat]
        return exact.reshape(array.shape)
    return np.asarray(values, dtype=np.float64)


def identity_like(A: np.ndarray) -> np.ndarray:
    """The identity matrix of the size and the numbers of A."""
    return numbers(np.eye(len(A), dtype=int)) if A.dtype == object else np.eye(len(A))


def _homogeneous(theta: np.ndarray) -> np.ndarray:
    """(θ, 1)."""
    one: Any = Fraction(1) if theta.dtype == object else 1.0
    return np.append(theta, one)


def _last_row(F: np.ndarray) -> np.ndarray:
    """(0, …, 0, 1), which makes [A b] square."""
    return _homogeneous(F[0, :-1] * 0)[None]


def _quadratic_form(covariance: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Cov(F m), shape (d, d)."""
    return np.einsum("akcl,k,l->ac", covariance, m, m)


def floats(array: np.ndarray) -> np.ndarray:
    """Numbers that may be rational, as float64."""
    return array.astype(np.float64)
