"""Steps against examples: how many of each a target costs at every batch size, and the batch size between.

A step of the best size on B examples does 1/(1 + B_noise/B) of what it does on infinitely many, which over a run makes
S = S_min + E_min/B: linear in (S_min, E_min). Steps vary by a percentage rather than a number, so the weights are 1/Ŝ²
with the hyperbola's own Ŝ, iterated (quasi-likelihood with a standard deviation proportional to the mean). Weights 1/S²
from the data would pull the curve down: steps that are low by chance would weigh more.

B_crit is a ratio of two estimates; its interval {B : (Ê − BŜ)² ≤ q² Var(Ê − BŜ)}, Fieller's, is unbounded exactly where
S_min cannot be told from 0, as when all batches are so small that doubling them halves the steps. q is the quantile of
Student's t with b − 2 degrees of freedom, or of the normal law where the errors are known.

References:
    S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", arXiv:1812.06162, 2018,
        for
    the hyperbola. E. C. Fieller, "Some problems in interval estimation", JRSS B 16, 1954. P. McCullagh and J. A.
        Nelder,
    "Generalized linear models", 1989, chapters 8 and 9, for the weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from jaxtyping import Float64

from jaxsgd._core import validate

_MAX_ITERATIONS = 100
_CONVERGED = 1e-13  # relative change of the fitted steps


@dataclass(frozen=True)
class Tradeoff:
    """The hyperbola (S/S_min − 1)(E/E_min − 1) = 1 between the steps S and the examples E = BS that a target costs.

    Solved for the batch size B it is S = S_min (1 + B_crit/B) and E = E_min (1 + B/B_crit), with B_crit = E_min/S_min:
    at B_crit both are twice their minimum.

    Attributes:
        min_steps: S_min, of infinite batches. An estimate, which noise can make negative where all batches are small.
        min_examples: E_min, of infinitely many steps; negative by noise at most where all batches are large.
        critical_batch_size: B_crit; infinite where S_min ≤ 0 and 0 where E_min ≤ 0.
        low: the lower end of the confidence interval of B_crit; 0 where E_min is not significantly positive.
        high: its upper end; infinite where S_min is not significantly positive.
        confidence_level: of the interval.
        covariance: of the estimates of (S_min, E_min), shape (2, 2).
        relative_residuals: measured steps over those of the hyperbola, less 1, shape (b,).
    """

    min_steps: float
    min_examples: float
    critical_batch_size: Any
    low: float
    high: float
    confidence_level: float
    covariance: Float64[np.ndarray, "2 2"]
    relative_residuals: Float64[np.ndarray, " b"]

    @property
    def min_steps_error(self) -> float:
        """The standard error of S_min."""
        return float(np.sqrt(self.covariance[0, 0]))

    @property
    def min_examples_error(self) -> float:
        """The standard error of E_min."""
        return float(np.sqrt(self.covariance[1, 1]))

    def steps(self, batch_size: Any) -> Any:
        """S = S_min + E_min/B at any batch sizes, with their shape."""
        return self.min_steps + self.min_examples / np.asarray(batch_size, np.float64)

    def examples(self, batch_size: Any) -> Any:
        """E = E_min + S_min B at any batch sizes, with their shape."""
        return self.min_examples + self.min_steps * np.asarray(batch_size, np.float64)


def fit_tradeoff(
    batch_sizes: Any, steps: Any, *, relative_errors: Any = None, confidence_level: float = 0.95
) -> Tradeoff:
    """The hyperbola through the steps that reached one target at several batch sizes, each with its best learning rate.

    S = S_min + E_min/B is fitted with weights proportional to 1/S², since steps vary by a percentage. The interval of
    B_crit is Fieller's, unbounded exactly where S_min cannot be told from 0.

    Args:
        batch_sizes: B, shape (b,), positive, at least two of them different. For batches drawn without replacement from
            N examples 1/c_M takes the place of M (infinite at M = N).
        steps: S, shape (b,), positive; a mean over runs, say, or the steps of the mean loss.
        relative_errors: known relative standard errors of ``steps``, shape (b,), positive. By default they are taken
            to be equal and estimated from the residuals, of which there must be one at least.
        confidence_level: of the interval for B_crit.

    Raises:
        ValueError: if an argument is out of its range or of another shape, if batch sizes or steps are too few, or if
            no hyperbola with positive steps is near them.

    Guarantees:
        - exact for steps on a hyperbola.
        - steps or batch sizes in another unit give the same hyperbola in that unit.

    >>> fit = fit_tradeoff([1, 4, 16, 64], [2100, 600, 225, 131.25])
    >>> round(fit.min_steps, 6), round(fit.min_examples, 6), round(fit.critical_batch_size, 6)
    (100.0, 2000.0, 20.0)
    >>> round(float(fit.steps(20)), 6), round(float(fit.examples(20)), 6)
    (200.0, 4000.0)
    """
    B, S = (np.asarray(value, np.float64) for value in (batch_sizes, steps))
    validate.finite_vector(steps=S)
    validate.vector(len(S), batch_sizes=B)
    validate.positive(batch_sizes=tuple(B), steps=tuple(S))
    if len(np.unique(B)) < 2:
        raise ValueError(f"batch_sizes must hold at least two different numbers, got {B.tolist()}")
    known = relative_errors is not None
    errors = np.asarray(relative_errors if known else np.ones(len(S)), np.float64)
    validate.vector(len(S), relative_errors=errors)
    validate.positive(relative_errors=tuple(errors))
    validate.fraction(confidence_level=confidence_level)
    if not known:
        validate.at_least(3, **{"the number of batch_sizes without relative_errors": len(S)})
    estimate, covariance, fitted = _relative_least_squares(np.stack([np.ones(len(S)), 1 / B], axis=1), S, errors)
    residuals = S / fitted - 1
    tail = (1 + confidence_level) / 2
    if known:
        quantile = float(scipy.special.ndtri(tail))
    else:
        covariance = covariance * (residuals @ residuals) / (len(S) - 2)
        quantile = float(scipy.special.stdtrit(len(S) - 2, tail))
    low, high = _positive_ratios(estimate, quantile**2 * covariance)
    min_steps, min_examples = map(float, estimate)
    critical = max(min_examples, 0.0) / min_steps if min_steps > 0 else np.inf
    return Tradeoff(min_steps, min_examples, critical, low, high, confidence_level, covariance, residuals)


def steps_to_target(steps: Any, losses: Any, target: Any) -> Any:
    """After how many steps a loss first is at the target, with its logarithm linear between records.

    Of losses from runs that differ by the batches drawn, take the mean first: the first time that a noisy loss is low
    comes too early, the more so the noisier it is.

    Args:
        steps: where losses were recorded, shape (s,), increasing.
        losses: positive, or infinite or NaN after a run has diverged, shape (..., s).
        target: a positive loss.

    Returns:
        Numbers of steps, shape (...,); infinite where the target is not reached.

    Raises:
        ValueError: if the target or a loss is not positive, or the shapes do not agree.

    >>> steps_to_target([0, 10, 20], [[4.0, 1.0, 0.5], [4.0, 3.0, 3.0]], 2.0).tolist()
    [5.0, inf]
    """
    t, values = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    validate.positive(target=target)
    validate.vector(values.shape[-1] if values.ndim else 0, steps=t)
    if not np.all(np.diff(t) > 0):
        raise ValueError(f"steps must increase, got {t.tolist()}")
    if np.any(values <= 0):  # infinite or NaN are those of runs that diverged
        raise ValueError(f"losses must be positive, got {values[values <= 0][0]}")
    reached = values <= target  # NaN compares as false
    after = reached.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    high, low = (np.take_along_axis(values, at[..., None], axis=-1)[..., 0] for at in (before, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.log(high / target) / np.log(high / low)
    part = np.where(after > before, np.where(np.isfinite(high), part, 1.0), 0.0)
    return np.where(reached.any(axis=-1), t[before] + part * (t[after] - t[before]), np.inf)


def _relative_least_squares(
    X: Float64[np.ndarray, "b 2"], S: Float64[np.ndarray, " b"], errors: Float64[np.ndarray, " b"]
) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, "2 2"], Float64[np.ndarray, " b"]]:
    """The estimate, its covariance for these relative errors, and X times it, with weights 1/(errors · fitted)²."""
    fitted = S
    scale = 1 / np.abs(X).max(axis=0)  # so that batches in the millions leave a well-conditioned system
    for _ in range(_MAX_ITERATIONS):
        weighted = X * scale / (errors * fitted)[:, None]
        estimate = scale * np.linalg.lstsq(weighted, S / (errors * fitted))[0]
        before, fitted = fitted, X @ estimate
        if not np.all(fitted > 0):
            raise ValueError(f"steps must be near a + b/B for batch sizes B, and positive, got {S.tolist()}")
        if np.abs(fitted / before - 1).max() < _CONVERGED:
            break
    weighted = X * scale / (errors * fitted)[:, None]
    return estimate, np.outer(scale, scale) * np.linalg.inv(weighted.T @ weighted), fitted


def _positive_ratios(
    estimate: Float64[np.ndarray, " 2"], covariance: Float64[np.ndarray, "2 2"]
) -> tuple[float, float]:
    """The least and the largest B ≥ 0 with (E − BS)² ≤ V_EE − 2B V_SE + B² V_SS, for ``covariance`` times q²."""
    S, E = estimate
    a, b, c = S * S - covariance[0, 0], E * S - covariance[0, 1], E * E - covariance[1, 1]
    if a > 0 and S < 0:
        return np.inf, np.inf
    root = np.sqrt(max(b * b - a * c, 0.0))  # the condition is aB² − 2bB + c ≤ 0
    low = c / (b + root) if c > 0 else 0.0
    high = (b + root) / a if a > 0 else np.inf
    return max(float(low), 0.0), max(float(high), 0.0)
