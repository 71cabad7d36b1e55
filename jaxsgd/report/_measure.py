"""How a report is measured: one pass over all data, and a look at the gradients of some examples one by one.

Two quantities need one pass over all data and no more, whatever its size: ḡ and tr Σ, from which the noise scale of the
data set and the variance at every batch size follow exactly. What needs the gradients of single examples (intervals,
norms, shares of the parameters, some designs) is found on a uniformly random subset, which is all data if they are few.

References:
    S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", arXiv:1812.06162.
"""

import math
import sys
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxsgd import checks, estimators, kernels, moments, sources
from jaxsgd._core import loss_functions, validate
from jaxsgd.noise import noise_scale
from jaxsgd.problems import Problem
from jaxsgd.report._batch_loss import examine
from jaxsgd.report._designs import compare_designs
from jaxsgd.report._findings import ParameterShare, PooledNoiseScale, advised, trusted
from jaxsgd.report._parameters import load_checkpoint, name_of
from jaxsgd.report._report import Report
from jaxsgd.report._subset import Reservoir, Subset, draw

_MOST_SIZES = 100_000  # of a curve that holds every batch size
_LEVEL = 0.95  # of the interval of the noise scale


def report(
    problem: Any,
    *,
    name: str = "problem",
    key: Array | None = None,
    checkpoint: Any = None,
    batch_size: int | None = None,
    sample_size: int = 2048,
    chunk_size: int = 256,
    memory_limit: int = 2**30,
) -> Report:
    """Measure the gradients of a model on its data, at one θ.

    One pass over all data gives the noise scale and the variance at every batch size exactly; a random subset gives
    what needs the gradients of single examples. The report says which is which.

    Args:
        problem: a :class:`jaxsgd.Problem`, or a tuple ``(loss_fn, params, data)`` or with a fourth, ``batch_loss_fn``.
            ``data`` is what :func:`jaxsgd.gradient_moments` takes: arrays, a source, or an iterable of batches.
        name: the heading.
        key: draws the subset, and goes to a ``batch_loss_fn`` with a third argument; ``jax.random.key(0)`` by default.
        checkpoint: a file of :func:`save_checkpoint`, whose parameters are taken instead of the problem's; or several
            along a run, of which the last one is looked at, and the noise scale pooled over all.
        batch_size: where designs are compared; the advice by default.
        sample_size: the most examples whose gradients are looked at one by one, at least 2.
        chunk_size: how many examples are differentiated at a time.
        memory_limit: how many bytes the factored gradients of the subset may take; beyond, they are computed anew.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.gradient_moments`; if the batch loss fails or is no real number; if
            there are fewer than two examples, or the checkpoint is not one of these parameters.
        FileNotFoundError: if there is no such checkpoint.

    Guarantees:
        - the same numbers and bytes for the same arguments, on the same machine.

    >>> from jaxsgd import problems
    >>> found = report(problems.line_fit(), name="a line")
    >>> round(found.noise_scale, 3), found.batch_size, [row.name for row in found.designs][-1]
    (12.6, 2, 'independent draws')
    """
    loss_fn, params, data, batch_loss_fn = as_problem(problem)
    key = jax.random.key(0) if key is None else key
    validate.random_key(key=key)
    along = _checkpoints(checkpoint, params)
    params = along[-1]
    validate.floating_leaves(params=params)
    subset_key, loss_key = jax.random.split(key)
    m, subset = _one_pass(loss_fn, params, data, sample_size, chunk_size, subset_key)
    N = int(m.count)
    validate.at_least(2, **{"the number of examples of data": N})
    g = kernels.per_example_gradients(loss_fn, memory_limit=memory_limit)(params, subset.examples)
    check = checks.check_per_example(loss_fn, params, subset.examples)
    batch_loss = None
    if batch_loss_fn is not None:
        batch_loss = examine(batch_loss_fn, loss_fn, params, subset.examples, check.tolerance, loss_key)
    T, G = float(m.trace_covariance(ddof=0)), float(m.squared_mean_norm)
    B = T / G if G > 0 else math.inf if T > 0 else 0.0
    population = _noise_scale(g)
    pooled = _pooled(loss_fn, along, subset.examples, memory_limit) if len(along) > 1 else None
    batch_size = advised(trusted(B, pooled), N) if batch_size is None else batch_size
    validate.positive_integer(batch_size=batch_size)
    validate.at_most(N, "the population size", batch_size=batch_size)
    sizes = grid(N)
    return Report(
        name=name,
        settings=_settings(key, sample_size, chunk_size),
        num_examples=N,
        num_params=g.num_params,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})),
        mean_loss=float(m.mean_loss),
        squared_mean_norm=G,
        trace_covariance=T,
        noise_scale=B,
        population_noise_scale=float(population.value),
        population_interval=(float(population.low), float(population.high)),
        confidence_level=_LEVEL,
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
        pooled=pooled,
    )


def _checkpoints(checkpoint: Any, params: PyTree) -> list[PyTree]:
    """The parameters of the problem, or those of one checkpoint or several."""
    paths = [] if checkpoint is None else checkpoint if isinstance(checkpoint, list | tuple) else [checkpoint]
    return [load_checkpoint(path, params) for path in paths] or [params]


def _pooled(loss_fn: kernels.Loss, along: list[PyTree], examples: PyTree, memory_limit: int) -> PooledNoiseScale:
    """The noise scale over several θ, each on examples of its own, so that errors are independent."""
    count = len(jax.tree.leaves(examples)[0])
    validate.at_least(2 * len(along), sample_size=count)
    batches = np.array_split(np.arange(count), len(along))
    gradients = kernels.per_example_gradients(loss_fn, memory_limit=memory_limit)
    several = [
        gradients(params, jax.tree.map(lambda leaf, rows=rows: leaf[rows], examples))
        for params, rows in zip(along, batches, strict=True)
    ]
    found = noise_scale(several, confidence_level=_LEVEL)
    return PooledNoiseScale(len(along), float(found.value), (float(found.low), float(found.high)))


def as_problem(problem: Any, what: str = "problem") -> tuple[Any, Any, Any, Any]:
    """The four parts of a problem, or of a tuple of three or four of them."""
    if isinstance(problem, Problem):
        return *problem, problem.batch_loss_fn
    if isinstance(problem, tuple) and len(problem) in (3, 4):
        return *problem, *[None] * (4 - len(problem))
    raise TypeError(f"{what} must be a Problem(loss_fn, params, data), got {validate.describe(problem)}")


def grid(population_size: int) -> Int[np.ndarray, " b"]:
    """Every batch size, or some thousand spread evenly on a logarithmic scale, 1 and N among them."""
    if population_size <= _MOST_SIZES:
        return np.arange(1, population_size + 1)
    return np.unique(np.geomspace(1, population_size, 1000).round().astype(int))


def _one_pass(
    loss_fn: kernels.Loss, params: PyTree, data: Any, sample_size: int, chunk_size: int, key: Array
) -> tuple[moments.GradientMoments, Subset]:
    """The moments of all data, and a random subset; a stream is read once."""
    validate.at_least(2, sample_size=sample_size)
    if sources.kind(data) == "batches":
        reservoir = Reservoir(sample_size, key)
        m = moments.gradient_moments(loss_fn, params, reservoir.passing(sources.batches(data)))
        return m, reservoir.subset()
    subset = draw(data, sample_size, key)
    loss_functions.require_scalar(loss_fn, params, subset.examples)
    return moments.gradient_moments(loss_fn, params, data, chunk_size=chunk_size), subset


_noise_scale = jax.jit(lambda g: noise_scale(g, confidence_level=_LEVEL))


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


def _settings(key: Array, sample_size: int, chunk_size: int) -> dict[str, Any]:
    """What the numbers depend on, but for the problem."""
    device = jax.devices()[0]
    return {
        "jaxsgd": sys.modules["jaxsgd"].__version__,
        "jax": jax.__version__,
        "device": f"{device.platform}: {device.device_kind}",
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "sample_size": sample_size,
        "chunk_size": chunk_size,
    }
