"""Which form a set function has: a mean, a sum, a sum over a normalizer, a sum over pairs, or none of them.

A batch loss and its gradient, restricted to subsets S of a batch, are a function F(S) with values in R^(1+P). Each
form is a linear space of such functions, or becomes one when multiplied by a normalizer that is linear in unknown
numbers, so the distance from F to the form is a projection, and rounding errors in F cannot grow in it. The distance
is relative to the root mean square over the subsets. There are more subsets than a form has coefficients, so no form
fits by its freedom alone.

A normalizer is found from the same values: F(S) B(S) = A(S) is linear in the unknown numbers of A and B; one that
depends on θ enters the gradient as B ∇F = ∇A − F ∇B. For pairs the identities say that the third differences of c F
vanish but for a constant.

All of it is linear algebra on numbers at hand, in NumPy and float64: no loss is evaluated here, no derivative taken.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float64, Int64

_EXHAUSTIVE = 7  # with more units, C(units, 3) triples cost more than they tell
_RANK = 1e-10  # singular values below this share of the largest are zero: designs of 0, 1 and small integers
_ZERO = 1e-6  # normalizers below this share of the largest are zero, where F must be zero as well
_STIFF = 1e8  # weight of the equations of a normalizer against the wish for an even one
_ROUNDS = 8


@dataclass(frozen=True)
class Family:
    """Values of F on some unions of equally large, disjoint units of a batch (single examples, or blocks of them).

    Attributes:
        members: which units a subset contains, shape (subsets, units).
        unit_size: how many examples a unit has.
        loss: the loss on every subset, shape (subsets,).
        gradient: its gradient, shape (subsets, P).
        rounding: relative size of the rounding errors of a value.
    """

    members: Bool[np.ndarray, "s u"]
    unit_size: int
    loss: Float64[np.ndarray, " s"]
    gradient: Float64[np.ndarray, "s p"]
    rounding: float = 1e-14

    @property
    def sizes(self) -> Int64[np.ndarray, " s"]:
        """|S| in examples, shape (subsets,)."""
        return self.members.sum(axis=1) * self.unit_size

    def only(self, rows: Bool[np.ndarray, " s"]) -> "Family":
        """This family on some of its subsets."""
        return Family(self.members[rows], self.unit_size, self.loss[rows], self.gradient[rows], self.rounding)

    def scales(self) -> tuple[float, float]:
        """Root mean squares over the subsets of the loss and of the norm of the gradient."""
        return root_mean_square(self.loss[:, None]), root_mean_square(self.gradient)

    def normalized(self) -> Float64[np.ndarray, "s c"]:
        """Loss and gradient, each over its scale, in the fewest coordinates that keep all their linear relations."""
        parts = (self.loss[:, None], self.gradient)
        scaled = [part / scale for part, scale in zip(parts, self.scales(), strict=True) if scale > 0]
        left, values, _ = np.linalg.svd(np.concatenate(scaled or [self.loss[:, None]], axis=1), full_matrices=False)
        return (left * values)[:, values > _RANK * max(values[0], 1e-300)]


@dataclass(frozen=True)
class Fit:
    """How far F is from a form.

    Attributes:
        loss: F minus the nearest function of this form, shape (subsets,).
        gradient: the same for the gradient, shape (subsets, P).
        testable: False where the form could match any F on so few subsets.
        normalizer: the coefficients of the normalizer that was found, if the form has one.
    """

    loss: Float64[np.ndarray, " s"]
    gradient: Float64[np.ndarray, "s p"]
    testable: bool
    normalizer: Float64[np.ndarray, " b"] | None = None


def root_mean_square(rows: np.ndarray) -> float:
    """The root mean square over rows of their norm; 0 without rows."""
    return float(np.sqrt(np.mean(np.sum(rows**2, axis=1)))) if len(rows) else 0.0


def subsets(units: int) -> Bool[np.ndarray, "s u"]:
    """All single units, pairs, triples and the whole; of more than seven units, cyclic triples and halves instead."""
    chosen = [*itertools.combinations(range(units), 1), *itertools.combinations(range(units), 2)]
    if units <= _EXHAUSTIVE:
        chosen += itertools.combinations(range(units), 3)
    else:
        shifts = [(0, 1, 3), tuple(range(units // 2))]
        chosen += [tuple((i + start) % units for i in shift) for shift in shifts for start in range(units)]
    chosen.append(tuple(range(units)))
    return np.array([[unit in subset for unit in range(units)] for subset in chosen])


def mean(family: Family) -> Fit:
    """|S| F(S) = Σ a_i."""
    return _linear(family, _singles(family) / family.sizes[:, None])


def total(family: Family, *, offset: bool = False) -> Fit:
    """F(S) = Σ a_i, or R + Σ a_i with an ``offset``."""
    return _linear(family, _with_ones(_singles(family)) if offset else _singles(family))


def offset(family: Family) -> tuple[float, Float64[np.ndarray, " p"]]:
    """R in F(S) = R + Σ a_i: its loss, and its gradient, shape (P,)."""
    columns = _with_ones(_singles(family))
    coefficients = np.linalg.lstsq(columns, np.column_stack([family.loss, family.gradient]), rcond=_RANK)[0][0]
    return float(coefficients[0]), coefficients[1:]


def pairs(family: Family, normalizer: str) -> Fit:
    """c(|S|) F(S) of degree two, Σ_{i<j} a_ij + Σ a_i + R, for c = 1, m² or m(m−1).

    That is so exactly if the third differences of c F over disjoint sets vanish but for a constant.
    """
    sizes = family.sizes.astype(np.float64)
    divisor = {"1": np.ones_like(sizes), "m^2": sizes**2, "m(m-1)": sizes * (sizes - 1)}[normalizer]
    family, divisor = family.only(divisor > 0), divisor[divisor > 0]
    columns = [_pairs(family)]
    if normalizer != "m(m-1)" or family.unit_size > 1:  # of single examples, Σ a_i and R are sums over pairs
        columns.append(_singles(family))
    if normalizer == "1":
        columns.append(np.ones((len(divisor), 1)))
    return _linear(family, np.concatenate(columns, axis=1) / divisor[:, None])


def size_factor(family: Family) -> Fit:
    """F(S) = c(|S|) Σ a_i, for any c; ``normalizer`` is 1/c at the sizes of the family, in increasing order."""
    sizes = np.unique(family.sizes)
    return _fractional(family, _singles(family), (family.sizes[:, None] == sizes).astype(np.float64))


def ratio(family: Family) -> Fit:
    """F(S) = (R + Σ a_i) / (C + Σ b_i), with numbers C and b_i that do not depend on θ: ``normalizer`` is (C, b)."""
    columns = _with_ones(_singles(family))
    return _fractional(family, columns, columns)


def ratio_in_params(family: Family) -> Fit:
    """F(S) = (R + Σ a_i) / (C + Σ b_i), with C and b_i that may depend on θ.

    The loss gives the normalizer B(S) = C + Σ b_i. Differentiating F B = A, the gradient G has
    B G = ∇A − F ∇B, which is linear in the unknown ∇a_i, ∇b_i, ∇C and ∇R.
    """
    columns = _with_ones(_singles(family))
    loss = _fractional(replace(family, gradient=family.gradient[:, :0]), columns, columns)
    if loss.normalizer is None:
        return _none(family)
    weight = _inverse(columns @ loss.normalizer)
    basis = _basis(np.concatenate([columns, family.loss[:, None] * columns], axis=1) * weight[:, None])
    gradient = family.gradient - basis @ (basis.T @ family.gradient)
    return Fit(loss.loss, gradient, loss.testable and basis.shape[1] < len(weight), loss.normalizer)


def pair_ratio(family: Family) -> Fit:
    """F(S) = Σ a_ij / Σ b_ij over the pairs in S, as where only pairs of unlike (or like) labels count.

    Sets with Σ b_ij = 0 must have F = 0.
    """
    columns = _pairs(family)
    if family.unit_size > 1:
        columns = np.concatenate([columns, _singles(family)], axis=1)
    else:
        family, columns = family.only(family.sizes > 1), columns[family.sizes > 1]
    return _fractional(family, columns, columns)


def _linear(family: Family, columns: np.ndarray) -> Fit:
    basis = _basis(columns)
    loss = family.loss - basis @ (basis.T @ family.loss)
    gradient = family.gradient - basis @ (basis.T @ family.gradient)
    return Fit(loss, gradient, basis.shape[1] < len(columns))


def _fractional(family: Family, numerator: np.ndarray, denominator: np.ndarray) -> Fit:
    """The nearest F = (numerator @ a) / (denominator @ b) with b ≥ 0; F must be 0 where the denominator is.

    For fixed weights D and the best a, D (F ∘ (denominator @ b) − numerator @ a) is linear in b, and b is a vector
    that it maps to zero; D = 1 / (denominator @ b) makes it the distance to F itself (Sanathanan and Koerner, IEEE
    Trans. Automatic Control 8, 1963).
    """
    F = family.normalized()
    if not F.size:
        return _none(family)
    weight = np.ones(len(F))
    for _ in range(_ROUNDS):
        basis = _basis(numerator * weight[:, None])
        products = weight[:, None, None] * F[:, :, None] * denominator[:, None, :]
        products -= np.einsum("sk,kcb->scb", basis, np.einsum("sk,scb->kcb", basis, products))
        b = _smallest_nonnegative(products.reshape(-1, denominator.shape[1]), family.rounding)
        below = denominator @ b
        weight = _inverse(below)
    vanishing = below <= _ZERO * below.max()
    if np.any(np.abs(F[vanishing]) > _ZERO):
        return _none(family)
    basis = _basis(numerator * weight[:, None])
    gradient = family.gradient - basis @ (basis.T @ family.gradient)
    equations = (len(F) - basis.shape[1]) * F.shape[1]
    return Fit(family.loss - basis @ (basis.T @ family.loss), gradient, equations > denominator.shape[1] - 1, b)


def _smallest_nonnegative(matrix: np.ndarray, rounding: float) -> np.ndarray:
    """The most even b ≥ 0 with Σ b = 1 and matrix @ b = 0, as far as there is one."""
    _, values, right = np.linalg.svd(np.linalg.qr(matrix, mode="r"))
    determined = right[:-1][values[:-1] > rounding * values[0]]
    even = np.full(matrix.shape[1], 1 / matrix.shape[1])
    equations = np.concatenate([determined * _STIFF, np.eye(len(even))])
    target = np.concatenate([np.zeros(len(determined)), even])
    b = scipy.optimize.lsq_linear(equations, target, (0.0, np.inf), method="bvls", tol=1e-15).x
    return b / (b.sum() or 1.0)


def _none(family: Family) -> Fit:
    """The form has no function with a positive normalizer near F."""
    return Fit(np.full_like(family.loss, np.inf), np.full_like(family.gradient, np.inf), len(family.loss) > 0)


def _inverse(values: np.ndarray) -> np.ndarray:
    """1/values, and 1/maximum where they vanish."""
    return 1 / np.where(values > _ZERO * values.max(), values, values.max())


def _singles(family: Family) -> np.ndarray:
    return family.members.astype(np.float64)


def _pairs(family: Family) -> np.ndarray:
    first, second = np.triu_indices(family.members.shape[1], 1)
    return (family.members[:, first] & family.members[:, second]).astype(np.float64)


def _with_ones(columns: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(columns)), columns])


def _basis(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the span of the columns."""
    lengths = np.linalg.norm(columns, axis=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    if not columns.size:
        return np.zeros((len(columns), 0))
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, values > _RANK * values[0]]
