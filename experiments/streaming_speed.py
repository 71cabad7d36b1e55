"""The mean and the variance of every coordinate take one pass, in memory that does not grow with the data set.

Command    python -m experiments streaming_speed
Run time   about 3 minutes on two cores
Expected   from 15,000 to 240,000 examples the peak memory grows by less than a tenth of the data added, where holding
           the data adds all of it; the mean gradient of the pass equal to the plain one to 1e-4

The cost of a pass is reported as a ratio to a pass of plain mean gradients over the same chunks: the faster, in the
same round, of one dispatched chunk by chunk and one compiled into a single loop. The target for it is 1.5. Memory is
the peak resident size of a fresh process, with all that Python and JAX take, for chunks that an iterator draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require
from experiments._harness import progress
from experiments._models import mlp
from experiments._panels import COLORS, MARKERS, column
from experiments._peak_memory import peak_bytes
from experiments._timing import in_turn, relative_error, seconds, summary
from jaxsgd._core import validate

MODELS: dict[str, tuple[int, ...]] = {"logistic regression": (784, 10), "MLP 784-512-10": (784, 512, 10)}
PLAIN = ("plain, chunk by chunk", "plain, one loop")
EVERY_COORDINATE, TRACE = "mean + variance of every coordinate", "mean + trace of the covariance"
TARGET_RATIO, MAX_GROWTH, MIN_GROWTH_HELD, MAX_ERROR = 1.5, 0.25, 0.75, 1e-4


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    models: tuple[str, ...] = tuple(MODELS)
    """Which models to run."""
    num_examples: int = 60_000
    """The size of the data set that is timed."""
    chunk_size: int = 2048
    """How many examples are differentiated at a time."""
    memory_sizes: tuple[int, ...] = (15_000, 60_000, 240_000)
    """The sizes of the data sets, increasing, at which the peak memory is measured."""
    rounds: int = 7
    """How often each pass is timed."""
    hold_to_speed: bool = False
    """Fail if a pass costs more than 1.5 passes of plain gradients."""


QUICK = Config(models=("logistic regression",), num_examples=5000, memory_sizes=(10_000, 110_000), rounds=2)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Time the passes, and measure the peak memory of fresh processes."""
    unknown = set(config.models) - MODELS.keys()
    if unknown:
        raise ValueError(f"models must be among {', '.join(MODELS)}, got {', '.join(sorted(unknown))}")
    validate.at_least(1, chunk_size=config.chunk_size, rounds=config.rounds)
    validate.at_least(1, num_examples=config.num_examples)
    if len(config.memory_sizes) < 2 or not 0 < config.memory_sizes[0] < config.memory_sizes[-1]:
        raise ValueError(f"memory_sizes must be positive and increasing, got {config.memory_sizes}")
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        rows = [measure(MODELS[name], config) for name in progress(config.models, "models")]
    peaks = [
        [
            [peak_bytes(MODELS[name], count, config.chunk_size, held=held) for count in config.memory_sizes]
            for held in (False, True)
        ]
        for name in progress(config.models, "peak memory")
    ]
    names = [*PLAIN, EVERY_COORDINATE, TRACE]
    return {
        "models": np.array(config.models),
        "names": np.array(names),
        **{field: np.array([[row[name][field] for name in names] for row in rows]) for field in rows[0][PLAIN[0]]},
        "error": np.array([row["error"] for row in rows]),
        "memory_sizes": np.array(config.memory_sizes),
        "data_bytes": np.array(
            [[4 * (MODELS[name][0] + 1) * count for count in config.memory_sizes] for name in config.models]
        ),
        "peak_bytes": np.array(peaks)[:, 0],
        "peak_bytes_held": np.array(peaks)[:, 1],
        "hold_to_speed": np.array(config.hold_to_speed),
    }


def measure(sizes: tuple[int, ...], config: Config) -> dict[str, Any]:
    """Times, as ratios to the faster plain pass of the same round, and the error of the mean gradient."""
    problem = mlp(sizes, config.num_examples)
    passes = plain_passes(problem, config.chunk_size)
    for name, per_coordinate in ((EVERY_COORDINATE, True), (TRACE, False)):
        passes[name] = partial(
            jaxsgd.gradient_moments, *problem, chunk_size=config.chunk_size, per_coordinate=per_coordinate
        )
    means = {name: run() for name, run in passes.items()}  # and compiles
    times = in_turn({name: partial(seconds, run) for name, run in passes.items()}, config.rounds)
    reference = np.minimum(*(times[name] for name in PLAIN))
    errors = [relative_error(means[name].mean, means[PLAIN[0]]) for name in (EVERY_COORDINATE, TRACE)]
    result: dict[str, Any] = {name: summary(values, reference) for name, values in times.items()}
    return result | {"error": max(errors)}


def plain_passes(problem: jaxsgd.Problem, chunk_size: int) -> dict[str, Callable[[], Any]]:
    """The mean gradient of all the data, in two ways to go over the chunks."""
    loss_fn, params, data = problem
    N = len(data["x"])

    def mean_loss(params: Any, chunk: Any) -> jax.Array:
        return jax.vmap(loss_fn, in_axes=(None, 0))(params, chunk).mean()

    @partial(jax.jit, static_argnums=0)
    def step(size: int, params: Any, data: Any, start: Any, total: Any) -> Any:
        chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)
        return jax.tree.map(lambda a, g: a + g * (size / N), total, jax.grad(mean_loss)(params, chunk))

    def chunk_by_chunk() -> Any:
        total = jax.tree.map(jnp.zeros_like, params)
        for start in range(0, N, chunk_size):
            total = step(min(chunk_size, N - start), params, data, np.int32(start), total)
        return total

    @jax.jit
    def one_loop(params: Any, data: Any) -> Any:
        whole = N - N % chunk_size
        starts = jnp.arange(0, whole, chunk_size, dtype=jnp.int32)
        total = jax.tree.map(jnp.zeros_like, params)
        total = jax.lax.scan(lambda sums, at: (step(chunk_size, params, data, at, sums), None), total, starts)[0]
        return step(N - whole, params, data, whole, total) if whole < N else total

    return dict(zip(PLAIN, (chunk_by_chunk, partial(one_loop, params, data)), strict=True))


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm the mean gradient and that memory does not grow; report what a pass costs."""
    names, models = results["names"].tolist(), results["models"].tolist()
    error = float(results["error"].max())
    require(error < MAX_ERROR, f"both passes must give the same mean gradient, got a relative error of {error:.1e}")
    added = np.ptp(results["data_bytes"], axis=1)
    growth = _growth(results["peak_bytes"]) / added
    held = _growth(results["peak_bytes_held"]) / added
    require(
        growth.max() < MAX_GROWTH, f"peak memory must not grow with the data, got {growth.max():.2f} of what was added"
    )
    require(held.min() > MIN_GROWTH_HELD, f"holding the data must show, got {held.min():.2f} of what was added")
    ratios = results["ratio"][:, names.index(EVERY_COORDINATE)]
    if results["hold_to_speed"]:
        require(ratios.max() <= TARGET_RATIO, f"a pass costs {ratios.max():.2f} passes of plain gradients")
    sizes = results["memory_sizes"].tolist()
    return {
        "ratios": _table(models, names, results["ratio"], 2),
        "milliseconds": _table(models, names, results["milliseconds"], 1),
        "within_target_ratio": bool(ratios.max() <= TARGET_RATIO),
        "largest_relative_error": error,
        "peak_megabytes": _table(models, sizes, results["peak_bytes"] / 1e6, 1),
        "peak_megabytes_held": _table(models, results["memory_sizes"].tolist(), results["peak_bytes_held"] / 1e6, 1),
        "growth_share_of_added_data": dict(zip(models, growth.round(3).tolist(), strict=True)),
    }


def _growth(peaks: np.ndarray) -> Any:
    """From the smallest data set to the largest."""
    return (peaks[:, -1] - peaks[:, 0]).astype(float)


def _table(models: list[str], columns: list[Any], values: np.ndarray, digits: int) -> dict[str, dict[str, float]]:
    return {
        model: {str(name): round(float(value), digits) for name, value in zip(columns, row, strict=True)}
        for model, row in zip(models, values, strict=True)
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    ratios = [row[EVERY_COORDINATE] for row in findings["ratios"].values()]
    growth = max(findings["growth_share_of_added_data"].values())
    return (
        f"a pass with the variance of every coordinate costs {min(ratios):.2f} to {max(ratios):.2f} plain passes; "
        f"peak memory grows by {growth:.2f} of the data added"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """The cost of a pass, and the peak memory against the size of the data set."""
    figure = column(nrows=2, height_to_width_ratio=0.42)
    cost, memory = figure.subplots(nrows=2)
    names, models = results["names"].tolist(), results["models"].tolist()
    places = np.arange(len(names))[::-1]
    cost.axvline(1, color="gray", linewidth=0.6, linestyle=":")
    for model, ratios, streamed, held, color, marker in zip(
        models, results["ratio"], results["peak_bytes"], results["peak_bytes_held"], COLORS, MARKERS, strict=False
    ):
        cost.plot(ratios, places, marker, color=color, label=model)
        memory.plot(results["memory_sizes"], streamed / 1e6, f"{marker}-", color=color, label=f"{model}, streamed")
        memory.plot(results["memory_sizes"], held / 1e6, f"{marker}:", color=color, mfc="none", label="data held")
    cost.set_yticks(places, names)
    cost.set(xlabel="time ÷ time of a plain pass", xlim=(0, None), ylim=(-0.6, len(names) - 0.4))
    memory.set(xlabel="number of examples", ylabel="peak memory (MB)", ylim=(0, None), xticks=results["memory_sizes"])
    figure.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure
