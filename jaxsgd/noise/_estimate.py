"""The noise scale of gradients at hand, with its interval, and its law.

With the sample variance S = Σ‖g_i − ĝ‖²/(m − 1), unbiased are

    ‖ĝ‖² − (1/m − 1/N) S  for ‖ḡ‖²    and    (1 − 1/N) S  for tr Σ,

since E‖ĝ‖² = ‖ḡ‖² + (1/m − 1/N) tr S² for m of N examples without replacement, and E S = tr S² = tr Σ · N/(N − 1). In
an infinite population 1/N is 0. Where the m examples are all there is, m = N, the quotient is T/‖ḡ‖² exactly.

How sure the quotient is, :mod:`jaxsgd.noise._intervals` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd import kernels, moments
from jaxsgd._core import ratios, validate
from jaxsgd.noise import _evidence, _intervals

_HEAVY = 0.1  # a share of tr Σ; see experiments/interval_coverage.py


Gradients = kernels.PerExampleGradients | moments.GradientMoments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScale:
    """An estimate of B = tr Σ/‖ḡ‖²; a registered pytree of scalars.

    Attributes:
        value: the estimate; negative or infinite where the estimate of ‖ḡ‖² is not positive.
        low: the lower end of the interval for B, at least 0.
        high: its upper end; infinite where the data do not tell ‖ḡ‖² from 0. Both are NaN without per-example
            gradients.
        trace_covariance: the unbiased estimate of tr Σ.
        squared_mean_norm: the unbiased estimate of ‖ḡ‖², which may be negative.
        covariance: the estimated covariance of (``squared_mean_norm``, ``trace_covariance``), shape (2, 2); a fourth
            power of gradients, with a warning where float32 does not hold it.
        count: how many examples there were.
        largest_share: the share of tr Σ that the hundredth part of the examples with the largest deviations carries, or
            the largest one. Where it is large the interval is not to be trusted: the next example may be larger still.
    """

    value: Any
    low: Any
    high: Any
    trace_covariance: Any
    squared_mean_norm: Any
    covariance: Any
    count: Any
    largest_share: Any

    def __str__(self) -> str:
        value, low, high, share = (float(each) for each in (self.value, self.low, self.high, self.largest_share))
        count = int(self.count)
        text = f"noise scale {value:.4g}, between {low:.4g} and {high:.4g}, from {count} examples"
        if high == float("inf"):
            text += ": the mean gradient cannot be told from 0"
        if self.is_heavy_tailed:
            text += (
                f"; {share:.0%} of the noise is that of {_evidence.num_largest(count)} of them, and more may change it"
            )
        return text

    @property
    def is_heavy_tailed(self) -> bool:
        """Whether a few examples carry so much of tr Σ that the interval holds B less often than it says."""
        return float(self.largest_share) > _HEAVY + 3 / int(self.count)


def require_examples(gradients: Gradients, population_size: int | None) -> None:
    """Raise unless there are enough examples for an estimate, no more than there can be, of finite gradients."""
    count = int(gradients.count)
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, **{"the number of examples": count})
    validate.at_least(1 if population_size == 1 else 2, **{"the number of examples": count})
    if isinstance(gradients, kernels.PerExampleGradients):
        kernels.require_finite(gradients)


def estimated(
    several: Sequence[Gradients], population_size: int | None, confidence_level: float, interval: str
) -> NoiseScale:
    """From one batch, or from the averages over several."""
    found, unit = _evidence.of(several, population_size)
    G, T, covariance = found.squared_mean_norm.mean(), found.trace.mean(), found.covariance[0]
    value = T / G
    if len(several) > 1:
        low, high = _intervals.score(found, 1 - confidence_level)
        covariance = jnp.cov(jnp.stack([found.squared_mean_norm, found.trace])) / len(several)
    elif isinstance(several[0], moments.GradientMoments):
        low = high = jnp.full_like(value, jnp.nan)
    elif several[0].count == population_size:
        low = high = value
    elif interval == "score":
        low, high = _intervals.score(found, 1 - confidence_level)
    else:
        z = NormalDist().inv_cdf((1 + confidence_level) / 2)
        low, high = ratios.fieller(G, T, covariance, z)
        if interval == "jackknife":
            value, error = _intervals.jackknife(several[0], population_size)
            low, high = value - z * error, value + z * error
    return NoiseScale(
        value=value,
        low=low,
        high=high,
        trace_covariance=T * unit**2,
        squared_mean_norm=G * unit**2,
        covariance=_evidence.in_unit_of_gradients(covariance, unit),
        count=jnp.asarray(sum(int(each.count) for each in several)),
        largest_share=found.largest_share.max(),
    )
