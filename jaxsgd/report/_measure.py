"""What a report says of a model and its data, as numbers: measured here, written down elsewhere.

Two quantities need one pass over all data and no more, whatever its size: ḡ and tr Σ, from which the noise scale of the
data set and the variance at every batch size follow exactly. What needs the gradients of single examples (intervals,
norms, shares of the parameters, some designs) is found on a uniformly random subset, which is all data if they are few.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float64, Int, PyTree

from jaxsgd import checks, estimators, kernels, moments, sources
from jaxsgd._core import validate
from jaxsgd.batch_size import critical_batch_size
from jaxsgd.noise import noise_scale
from jaxsgd.report._batch_loss import BatchLossFindings, examine
from jaxsgd.report._designs import DesignRow, compare_designs
from jaxsgd.report._parameters import name_of
from jaxsgd.report._subset import Reservoir, Subset, draw

_MOST_SIZES = 100_000  # of a curve that holds every batch size


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
class Findings:
    """What was measured; all of it is about the gradients at one θ.

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
        M, N = batch_size, self.num_examples
        return 1 + self.noise_scale * ((N - M) / (M * (N - 1))) if self.noise_scale < math.inf else math.inf + 0 * M

    def examples(self, batch_size: Any) -> Any:
        """Examples differentiated at a batch size, relative to the fewest: M steps(M)/B, or M/B + (N − M)/(N − 1)."""
        M, N = batch_size, self.num_examples
        return M / self.noise_scale + (N - M) / (N - 1) if self.noise_scale > 0 else math.inf + 0 * M


@dataclass(frozen=True)
class Options:
    """How to measure; see :func:`jaxsgd.report.report`."""

    name: str
    key: Array
    batch_size: int | None
    sample_size: int
    chunk_size: int
    memory_limit: int
    confidence_level: float = 0.95


def measure(
    loss_fn: kernels.Loss, params: PyTree, data: Any, batch_loss_fn: Callable[..., Any] | None, options: Options
) -> Findings:
    """Everything that a report says, from one pass over the data and a subset of them."""
    validate.floating_leaves(params=params)
    subset_key, loss_key = jax.random.split(options.key)
    m, subset = _one_pass(loss_fn, params, data, options, subset_key)
    N = int(m.count)
    validate.at_least(2, **{"the number of examples of data": N})
    g = kernels.per_example_gradients(loss_fn, memory_limit=options.memory_limit)(params, subset.examples)
    check = checks.check_per_example(loss_fn, params, subset.examples)
    batch_loss = None
    if batch_loss_fn is not None:
        batch_loss = examine(batch_loss_fn, loss_fn, params, subset.examples, check.tolerance, loss_key)
    T, G = float(m.trace_covariance(ddof=0)), float(m.squared_mean_norm)
    B = T / G if G > 0 else math.inf if T > 0 else 0.0
    population = _noise_scale(g, options.confidence_level)
    batch_size = advised(B, N) if options.batch_size is None else options.batch_size
    validate.positive_integer(batch_size=batch_size)
    validate.at_most(N, "the population size", batch_size=batch_size)
    sizes = grid(N)
    return Findings(
        name=options.name,
        settings=_settings(options),
        num_examples=N,
        num_params=g.num_params,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})),
        mean_loss=float(m.mean_loss),
        squared_mean_norm=G,
        trace_covariance=T,
        noise_scale=B,
        population_noise_scale=float(population.value),
        population_interval=(float(population.low), float(population.high)),
        confidence_level=options.confidence_level,
        batch_size=batch_size,
        batch_sizes=sizes,
        variance=estimators.variance_curve(m, sizes).variance,
        variance_with_replacement=estimators.variance_curve(m, sizes, design="with_replacement").variance,
        designs=compare_designs(m, g, subset.examples, batch_size),
        indices=subset.indices,
        norms=np.sqrt(np.asarray(g.squared_norms(), np.float64)),
        parameters=_shares(g, check),
        check=check,
        explanation=g.explain(),
        batch_loss=batch_loss,
    )


def advised(noise_scale: float, population_size: int) -> int:
    """The largest power of two up to the critical batch size, where noise without replacement equals the signal.

    There a run takes twice the fewest steps; below it steps are wasted, above it examples.
    """
    largest = float(critical_batch_size(noise_scale, population_size=population_size))
    return int(2 ** math.floor(math.log2(max(largest, 1))))


def grid(population_size: int) -> Int[np.ndarray, " b"]:
    """Every batch size, or some thousand spread evenly on a logarithmic scale, 1 and N among them."""
    if population_size <= _MOST_SIZES:
        return np.arange(1, population_size + 1)
    return np.unique(np.geomspace(1, population_size, 1000).round().astype(int))


def _one_pass(
    loss_fn: kernels.Loss, params: PyTree, data: Any, options: Options, key: Array
) -> tuple[moments.GradientMoments, Subset]:
    """The moments of all data, and a random subset; a stream is read once."""
    validate.at_least(2, sample_size=options.sample_size)
    if sources.kind(data) == "batches":
        reservoir = Reservoir(options.sample_size, key)
        m = moments.gradient_moments(loss_fn, params, reservoir.passing(sources.batches(data)))
        return m, reservoir.subset()
    subset = draw(data, options.sample_size, key)
    validate.scalar_loss(loss_fn, params, subset.examples)
    return moments.gradient_moments(loss_fn, params, data, chunk_size=options.chunk_size), subset


_noise_scale = jax.jit(lambda g, level: noise_scale(g, confidence_level=level), static_argnums=1)


def _shares(g: kernels.PerExampleGradients, check: checks.PerExampleCheck) -> tuple[ParameterShare, ...]:
    mean = jax.tree_util.tree_leaves_with_path(g.mean())
    noise = np.asarray(
        [np.sum(leaf, dtype=np.float64) for leaf in map(np.asarray, jax.tree.leaves(g.variance(ddof=0)))]
    )
    signal = np.asarray([np.sum(np.asarray(leaf, np.float64) ** 2) for _, leaf in mean])
    noise, signal = (part / (part.sum() or 1.0) for part in (noise, signal))
    return tuple(
        ParameterShare(name_of(path), p.shape, p.rule, p.errors[p.worst], float(t), float(s))
        for (path, _), p, t, s in zip(mean, check.parameters, noise, signal, strict=True)
    )


def _settings(options: Options) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "jaxsgd": sys.modules["jaxsgd"].__version__,
        "jax": jax.__version__,
        "device": f"{device.platform}: {device.device_kind}",
        "key": np.asarray(jax.random.key_data(options.key)).tolist(),
        "sample_size": options.sample_size,
        "chunk_size": options.chunk_size,
    }
