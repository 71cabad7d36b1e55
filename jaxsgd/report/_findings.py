"""What a report says of a model and its data, as numbers: text, page and figures are made of these and of nothing else.

They stand apart from the measuring, since every form of a report needs the numbers and none the way to them.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from jaxsgd import checks
from jaxsgd.batch_size import critical_batch_size
from jaxsgd.report._batch_loss import BatchLossFindings
from jaxsgd.report._designs import DesignRow


@dataclass(frozen=True)
class ParameterShare:
    """One parameter's part of the noise and of the signal.

    Attributes:
        name: the path in ``params``, joined by slashes.
        shape: its shape.
        rule: the primitives by which its per-example gradients are kept in factored form, or "none".
        error: the largest relative error of any statistic against the loop over examples.
        of_trace: its part of tr Σ.
        of_mean: its part of ‖ḡ‖².
    """

    name: str
    shape: tuple[int, ...]
    rule: str
    error: float
    of_trace: float
    of_mean: float


@dataclass(frozen=True)
class PooledNoiseScale:
    """The noise scale of a stretch of training, the ratio of averages over checkpoints.

    Attributes:
        num_checkpoints: how many.
        value: the estimate for what the data were drawn from.
        interval: its interval, (low, high), which includes how much the checkpoints differ.
    """

    num_checkpoints: int
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Findings:
    """What was measured; all of it is about the gradients at one θ, but for what is pooled.

    Attributes:
        name: what is reported on.
        settings: versions, device and the arguments that change numbers.
        num_examples: N, of all data.
        num_params: P.
        dtype: of the parameters.
        mean_loss: over all data.
        squared_mean_norm: ‖ḡ‖², over all data.
        trace_covariance: tr Σ with divisor N, over all data.
        noise_scale: tr Σ/‖ḡ‖², exact for this data set.
        population_noise_scale: estimate for what the data were drawn from, if they are independent draws.
        population_interval: its interval, (low, high); see :func:`jaxsgd.noise_scale`.
        confidence_level: of the interval.
        batch_size: the advice, and the size at which designs are compared.
        batch_sizes: M, every one up to N for N ≤ 100000, otherwise a grid, shape (B,).
        variance: E‖ĝ − ḡ‖² without replacement at these sizes, shape (B,).
        variance_with_replacement: the same with replacement, shape (B,).
        designs: sampling designs at ``batch_size``, relative to independent draws.
        indices: which examples the subset holds, shape (n,).
        norms: ‖g_i‖ of the subset, shape (n,).
        parameters: shares of every parameter, from the subset.
        check: every statistic against the loop over examples.
        explanation: how the gradients of every parameter are kept.
        batch_loss: the form of the batch loss, or None if none was given.
        pooled: the noise scale over several checkpoints, or None if there were not several.
    """

    name: str
    settings: dict[str, Any]
    num_examples: int
    num_params: int
    dtype: str
    mean_loss: float
    squared_mean_norm: float
    trace_covariance: float
    noise_scale: float
    population_noise_scale: float
    population_interval: tuple[float, float]
    confidence_level: float
    batch_size: int
    batch_sizes: Int[np.ndarray, " b"]
    variance: Float64[np.ndarray, " b"]
    variance_with_replacement: Float64[np.ndarray, " b"]
    designs: tuple[DesignRow, ...]
    indices: Int[np.ndarray, " n"]
    norms: Float64[np.ndarray, " n"]
    parameters: tuple[ParameterShare, ...]
    check: checks.PerExampleCheck
    explanation: str
    batch_loss: BatchLossFindings | None
    pooled: PooledNoiseScale | None

    @property
    def sample_size(self) -> int:
        """N, or how many examples the subset has."""
        return len(self.indices)

    @property
    def is_sampled(self) -> bool:
        """Whether the subset is not all data."""
        return self.sample_size < self.num_examples

    def variance_at(self, batch_size: int) -> float:
        """E‖ĝ − ḡ‖² = (N − M)/(M(N − 1)) tr Σ at any batch size M, without replacement."""
        M, N = batch_size, self.num_examples
        return self.trace_covariance * (N - M) / (M * (N - 1))

    def steps(self, batch_size: Any) -> Any:
        """Optimization steps at a batch size, relative to the fewest: 1 + B c_M, where c_M is (N − M)/(M (N − 1)).

        The best step along a noisy gradient gains ‖ḡ‖²/(‖ḡ‖² + E‖ĝ − ḡ‖²) of what it gains without noise, where the
        curvature is the same in all directions (McCandlish et al., arXiv:1812.06162, 2018, with 1/M for c_M).
        """
        M, N, B = batch_size, self.num_examples, trusted(self.noise_scale, self.pooled)
        return 1 + B * ((N - M) / (M * (N - 1))) if math.isfinite(B) else math.inf + 0 * M

    def examples(self, batch_size: Any) -> Any:
        """Examples differentiated at a batch size, relative to the fewest: M steps(M)/B, or M/B + (N − M)/(N − 1)."""
        M, N, B = batch_size, self.num_examples, trusted(self.noise_scale, self.pooled)
        return M / B + (N - M) / (N - 1) if B > 0 else math.inf + 0 * M


@dataclass(frozen=True)
class BatchSizeRow:
    """What one batch size gives and costs.

    Attributes:
        batch_size: M.
        variance: E‖ĝ − ḡ‖² without replacement.
        steps: of a whole run, relative to the fewest.
        examples: of a whole run, relative to the fewest.
    """

    batch_size: int
    variance: float
    steps: float
    examples: float


def batch_size_table(findings: Findings) -> tuple[BatchSizeRow, ...]:
    """Powers of two about the noise scale, the batch size of the report, and all data."""
    B, N = trusted(findings.noise_scale, findings.pooled), findings.num_examples
    center = math.log2(min(max(B, 1), N))
    exponents = range(max(math.floor(center) - 4, 0), math.floor(min(center + 4, math.log2(N))) + 1)
    sizes = sorted({2**k for k in exponents} | {findings.batch_size, N})
    return tuple(BatchSizeRow(M, findings.variance_at(M), findings.steps(M), findings.examples(M)) for M in sizes)


def trusted(noise_scale: float, pooled: PooledNoiseScale | None) -> float:
    """The noise scale that advice is read off: that over several checkpoints, where there are, if it is one."""
    return noise_scale if pooled is None or not 0 < pooled.value < math.inf else pooled.value


def advised(noise_scale: float, population_size: int) -> int:
    """The largest power of two up to the critical batch size, where noise without replacement equals the signal.

    There a run takes twice the fewest steps; below it steps are wasted, above it examples.
    """
    largest = float(critical_batch_size(noise_scale, population_size=population_size))
    return int(2 ** math.floor(math.log2(max(largest, 1))))
