"""Quadratic losses, one for each example, and what a design makes of them in one step or in one epoch of SGD.

The result is an affine map of ``_affine_map``, which knows neither losses nor designs: here the two meet.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from jaxsgd._core import validate
from jaxsgd.designs import Covariance, Design, ExchangeableCovariance, Reshuffling
from jaxsgd.dynamics._affine_map import AffineLaw, certain, identity_like, mixture, numbers, solve

Number = Fraction | float

_ROUNDING = 1e-10  # of a symmetric matrix
_MAX_RATIONAL_SUPPORT = 10_000  # beyond, the mean of the weights is taken in floating point


@dataclass(frozen=True, eq=False)
class Quadratics:
    """N losses L_i(θ) = ½ θᵀH_iθ − q_iᵀθ + const with gradients g_i(θ) = H_iθ − q_i.

    With a minimum c_i of its own, L_i = ½ (θ − c_i)ᵀH_i(θ − c_i) has q_i = H_i c_i. Numbers given as ``Fraction`` or
    integers stay rational, in all that follows from them.

    Attributes:
        hessians: H_i, symmetric, shape (N, d, d); or (N,) for one parameter.
        linear: q_i, shape (N, d); or (N,) for one parameter.

    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> losses.minimum()
    array([Fraction(0, 1)], dtype=object)
    >>> losses.gradients(losses.minimum())[:, 0]
    array([Fraction(-3, 1), Fraction(0, 1), Fraction(3, 1)], dtype=object)
    """

    hessians: Any
    linear: Any

    def __post_init__(self) -> None:
        H, q = numbers(self.hessians), numbers(self.linear)
        H, q = (H[:, None, None], q[:, None]) if H.ndim == q.ndim == 1 else (H, q)
        _check_shapes(hessians=H.shape, linear=q.shape)
        validate.finite(hessians=H, linear=q)
        _check_symmetric(H.astype(np.float64))
        if H.dtype != q.dtype:
            H, q = H.astype(np.float64), q.astype(np.float64)
        object.__setattr__(self, "hessians", H)
        object.__setattr__(self, "linear", q)

    @classmethod
    def from_minima(cls, hessians: Any, minima: Any) -> "Quadratics":
        """L_i = ½ (θ − c_i)ᵀH_i(θ − c_i) with the minima c_i, shape (N, d), or (N,) for one parameter."""
        H, c = numbers(hessians), numbers(minima)
        if H.ndim == c.ndim == 1:
            validate.vector(len(H), minima=c)
            return cls(H, H * c)
        _check_shapes(hessians=H.shape, minima=c.shape)
        return cls(H, (H * c[:, None]).sum(axis=2))

    @classmethod
    def from_least_squares(cls, x: Any, y: Any) -> "Quadratics":
        """L_i = ½ (x_iᵀθ − y_i)², so that H_i = x_i x_iᵀ and q_i = y_i x_i.

        Args:
            x: inputs, shape (N, d).
            y: targets, shape (N,).
        """
        x, y = numbers(x), numbers(y)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"x must be one vector for each example, shape (N, d), got shape {x.shape}")
        if y.shape != x.shape[:1]:
            raise ValueError(f"y must be one number for each row of x, shape {x.shape[:1]}, got {y.shape}")
        return cls(x[:, :, None] * x[:, None], x * y[:, None])

    @property
    def population_size(self) -> int:
        """N."""
        return len(self.hessians)

    @property
    def mean_hessian(self) -> np.ndarray:
        """H̄ = (1/N) Σ H_i, shape (d, d)."""
        return self.hessians.sum(axis=0) / self.population_size

    def gradients(self, theta: np.ndarray) -> np.ndarray:
        """g_i(θ) = H_iθ − q_i, shape (N, d)."""
        return self.hessians @ theta - self.linear

    def minimum(self) -> np.ndarray:
        """θ* = H̄⁻¹ q̄, the minimum of the mean loss, shape (d,).

        Raises:
            ValueError: unless H̄ is positive definite.
        """
        require_positive_definite(**{"the mean Hessian": self.mean_hessian.astype(np.float64)})
        return solve(self.mean_hessian, self.linear.sum(axis=0) / self.population_size)

    def excess_loss(self, second_moment: np.ndarray) -> Any:
        """E L̄(θ) − L̄(θ*) = ½ tr(H̄ S) for a second moment S about θ*, shape (d, d)."""
        return (self.mean_hessian * second_moment).sum() / 2

    def floats(self) -> "Quadratics":
        """These losses in floating point."""
        return Quadratics(self.hessians.astype(np.float64), self.linear.astype(np.float64))


def _check_shapes(**named: tuple[int, ...]) -> None:
    """Raise unless the first shape is (N, d, d) and every other (N, d), with N and d at least 1."""
    (name, full), *vectors = named.items()
    if len(full) != 3 or full[1] != full[2] or 0 in full:
        raise ValueError(f"{name} must be one square matrix for each example, shape (N, d, d), got shape {full}")
    for other, its_shape in vectors:
        if its_shape != full[:2]:
            raise ValueError(f"{other} must be one vector for each of the {name}, shape {full[:2]}, got {its_shape}")


def _check_symmetric(hessians: np.ndarray) -> None:
    """Raise, naming the example, unless every matrix is symmetric up to rounding."""
    asymmetry = np.abs(hessians - hessians.transpose(0, 2, 1)).max(axis=(1, 2))
    bad = np.flatnonzero(asymmetry > _ROUNDING * np.abs(hessians).max(axis=(1, 2)))
    if bad.size:
        raise ValueError(f"hessians must be symmetric, got {hessians[bad[0]].tolist()} in example {bad[0]}")


def require_positive_definite(**named: np.ndarray) -> None:
    """Raise unless every symmetric matrix has positive eigenvalues only, by more than rounding."""
    for name, matrix in named.items():
        eigenvalues = np.linalg.eigvalsh(matrix)
        if not eigenvalues[0] > np.finfo(np.float64).eps * len(matrix) * abs(eigenvalues[-1]):
            raise ValueError(f"{name} must be positive definite, got a smallest eigenvalue of {eigenvalues[0]:.3g}")


def step_law(quadratics: Quadratics, design: Design, learning_rate: Any) -> AffineLaw:
    """One step of SGD, θ ↦ θ − η Σ w_i g_i(θ), as a random affine map; the batches of different steps independent.

    With R_i = [−H_i q_i] it is F = [I 0] + η Σ w_i R_i, so E F and Cov F follow from E w and Cov w, for every design,
    without a list of its batches. For Cov w = c (I/N − 11ᵀ/N²), c = c_M without and 1/M with replacement,

        E[A ⊗ A] = (1 − c) (I − ηH̄) ⊗ (I − ηH̄) + c (1/N) Σ (I − ηH_i) ⊗ (I − ηH_i),

    as if the batch were all data with probability 1 − c, and one example with probability c.

    Args:
        quadratics: the losses.
        design: any sampling design.
        learning_rate: η; a rational number keeps the result rational.

    References:
        R. Mulayoff and T. Michaeli, "Exact mean square linear stability analysis for SGD", COLT 2024,
        arXiv:2306.07850, for the mixture.

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> law = step_law(Quadratics.from_minima([1, 2, 3], [3, 0, -1]), designs.WithReplacement(1), Fraction(1, 4))
    >>> law.stationary().covariance.item()
    Fraction(9, 17)
    """
    validate.positive(learning_rate=learning_rate)
    quadratics, eta = _same_numbers(quadratics, learning_rate)
    N, d = quadratics.population_size, quadratics.linear.shape[1]
    R = rows(quadratics)
    moved = (mean_weights(quadratics, design) @ R).reshape(d, d + 1)
    noise = weighted_covariance(design.weight_covariance(N), R) * eta**2
    mean, covariance = numbers(unmoved(quadratics) + eta * moved), numbers(noise.reshape(d, d + 1, d, d + 1))
    if mean.dtype != covariance.dtype:
        mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    return AffineLaw(mean, covariance)


def fixed_order_law(
    quadratics: Quadratics, order: Sequence[int], learning_rate: Any, *, batch_size: int = 1
) -> AffineLaw:
    """One epoch of SGD in a fixed order of the examples, as an affine map that is not random.

    Its stationary mean is the point of the limit cycle at which epochs end; the covariance is 0. The last batch may be
    shorter.

    Args:
        quadratics: the losses.
        order: the examples in the order of their use.
        learning_rate: η.
        batch_size: M; consecutive examples of the order form a batch.

    >>> from fractions import Fraction
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> fixed_order_law(losses, [0, 1, 2], Fraction(1, 4)).stationary().mean.item()
    Fraction(-21, 29)
    """
    validate.positive(learning_rate=learning_rate)
    validate.positive_integer(batch_size=batch_size)
    N = quadratics.population_size
    outside = [i for i in order if i not in range(N)]
    if outside or len(order) == 0:
        raise ValueError(f"order must hold examples from 0 to {N - 1}, got {outside[0] if outside else 'none'}")
    quadratics, eta = _same_numbers(quadratics, learning_rate)
    law = certain(unmoved(quadratics))
    for batch in _batched(order, batch_size):
        law = law.then(certain(batch_map(quadratics, batch, Fraction(1, len(batch)), eta)))
    return law


def reshuffled_law(
    quadratics: Quadratics, design: Reshuffling, learning_rate: Any, *, max_batches: int = 100_000
) -> AffineLaw:
    """One epoch of SGD in a random order of the examples, as a random affine map; the orders of epochs independent.

    The law is exact, by recursion over sets rather than orders: the last batch B of those that use up a set S is a
    uniform one of its subsets, and before it came the batches that use up S∖B in random order. So the law for S is the
    mixture over B of compositions, and the number of compositions grows as 2^N, not N!.

    Args:
        quadratics: the losses.
        design: the batch size, and whether a short last batch is used or dropped.
        learning_rate: η.
        max_batches: the largest number of compositions to go through.

    Raises:
        ValueError: if there are more.

    References:
        M. Gürbüzbalaban, A. Ozdaglar and P. Parrilo, "Why random reshuffling beats stochastic gradient descent",
        Mathematical Programming 186, 2021.

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> ends = reshuffled_law(losses, designs.Reshuffling(1), Fraction(1, 4)).stationary()
    >>> ends.mean.item(), ends.second_moment(losses.minimum()).item()
    (Fraction(-4, 29), Fraction(1098, 5887))
    """
    validate.positive(learning_rate=learning_rate)
    N = quadratics.population_size
    sizes = design.batch_sizes(N)
    validate.enough(num_compositions(N, sizes), f"enumerate {design}", max_batches=max_batches)
    quadratics, eta = _same_numbers(quadratics, learning_rate)
    laws, used = {frozenset[int](): certain(unmoved(quadratics))}, 0
    for size in sizes:
        used += size
        weight = Fraction(design.scale_factor(N)) / size
        laws = {
            whole: mixture(
                [
                    laws[whole.difference(batch)].then(certain(batch_map(quadratics, batch, weight, eta)))
                    for batch in itertools.combinations(sorted(whole), size)
                ]
            )
            for whole in map(frozenset, itertools.combinations(range(N), used))
        }
    return mixture(list(laws.values()))


def num_compositions(population_size: int, sizes: Sequence[int]) -> int:
    """Σ C(N, s) C(s, m) over the batches of an epoch, of size m, the s-th example being the batch's last."""
    ends = itertools.accumulate(sizes)
    return sum(math.comb(population_size, s) * math.comb(s, m) for s, m in zip(ends, sizes, strict=True))


def rows(quadratics: Quadratics) -> np.ndarray:
    """R_i = [−H_i q_i], one row of d(d+1) numbers for each example."""
    R = np.concatenate([-quadratics.hessians, quadratics.linear[:, :, None]], axis=2)
    return R.reshape(len(R), -1)


def unmoved(quadratics: Quadratics) -> np.ndarray:
    """[I 0], the map that leaves θ where it is."""
    return np.concatenate([identity_like(quadratics.mean_hessian), quadratics.linear[0][:, None] * 0], axis=1)


def batch_map(quadratics: Quadratics, batch: Sequence[int], weight: Number, learning_rate: Any) -> np.ndarray:
    """[A b] of one step with a batch whose examples have equal weights."""
    weight = weight if quadratics.linear.dtype == object else float(weight)
    total = rows(quadratics)[list(batch)].sum(axis=0)
    return unmoved(quadratics) + (learning_rate * weight * total).reshape(quadratics.linear.shape[1], -1)


def mean_weights(quadratics: Quadratics, design: Design) -> np.ndarray:
    """E w, rational where the losses are and the design's support is small."""
    N = quadratics.population_size
    if quadratics.linear.dtype != object or design.support_size(N) > _MAX_RATIONAL_SUPPORT:
        return np.asarray(design.mean_weights(N))
    return sum(probability * np.array(weights, dtype=object) for probability, weights in design.support(N))


def weighted_covariance(covariance: Covariance, R: np.ndarray) -> np.ndarray:
    """Cov(Σ w_i R_i) = Rᵀ Cov(w) R for rows R_i; centred where Cov w = a I − c 11ᵀ, so that nothing cancels."""
    N, rational = len(R), R.dtype == object
    if not isinstance(covariance, ExchangeableCovariance):
        return numbers(R.T @ (covariance.entries(N) if rational else covariance.dense(N)) @ R)
    a, rest = covariance.identity, covariance.identity * N - covariance.common * N**2
    a, rest = (a, rest) if rational else (float(a), float(rest))
    mean = R.sum(axis=0) / N
    return numbers(a * ((R - mean).T @ (R - mean)) + rest * mean[:, None] * mean)


def _same_numbers(quadratics: Quadratics, learning_rate: Any) -> tuple[Quadratics, Any]:
    """Losses and learning rate, both rational or both in floating point."""
    eta = numbers(learning_rate).item()
    if isinstance(eta, Fraction) and quadratics.linear.dtype == object:
        return quadratics, eta
    return quadratics.floats(), float(eta)


def _batched(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
