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
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Settings, progress, table
from experiments._models import mean_loss, mlp
from experiments._panels import column, mark, reference
from experiments._peak_memory import peak_bytes
from experiments._timing import in_turn, relative_error, seconds, summary

MODELS: dict[str, tuple[int, ...]] = {"logistic regression": (784, 10), "MLP 784-512-10": (784, 512, 10)}
PLAIN = ("plain, chunk by chunk", "plain, one loop")
EVERY_COORDINATE, TRACE = "mean + variance of every coordinate", "mean + trace of the covariance"
NAMES = (*PLAIN, EVERY_COORDINATE, TRACE)
TARGET_RATIO, MAX_GROWTH, MIN_GROWTH_HELD, MAX_ERROR = 1.5, 0.25, 0.75, 1e-4


class Config(Settings):
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
SUMMARY = (
    "a pass with the variance of every coordinate costs {cost[least]:.2f} to {cost[most]:.2f} plain passes; peak "
    "memory grows by {largest_growth:.2f} of the data added"
)


def compute(config: Config) -> Arrays:
    """Time the passes, and measure the peak memory of fresh processes."""
    refuse(config)
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        rows = [measure(MODELS[name], config) for name in progress(config.models, "models")]
    sizes, peaks = config.memory_sizes, {}
    for name in progress(config.models, "peak memory"):
        for held in (False, True):
            peaks[name, held] = [peak_bytes(MODELS[name], count, config.chunk_size, held=held) for count in sizes]
    return table(rows) | {
        "models": config.models,
        "names": NAMES,
        "memory_sizes": sizes,
        "data_bytes": [[4 * (MODELS[name][0] + 1) * count for count in sizes] for name in config.models],
        "peak_bytes": [peaks[name, False] for name in config.models],
        "peak_bytes_held": [peaks[name, True] for name in config.models],
        "hold_to_speed": config.hold_to_speed,
    }


def refuse(config: Config) -> None:
    """Raise ValueError for settings that measure nothing."""
    unknown = set(config.models) - MODELS.keys()
    if unknown:
        raise ValueError(f"models must be among {', '.join(MODELS)}, got {', '.join(sorted(unknown))}")
    for name in ("chunk_size", "rounds", "num_examples"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if len(config.memory_sizes) < 2 or not 0 < config.memory_sizes[0] < config.memory_sizes[-1]:
        raise ValueError(f"memory_sizes must be positive and increasing, got {config.memory_sizes}")


def measure(sizes: tuple[int, ...], config: Config) -> dict[str, Any]:
    """Times, as ratios to the faster plain pass of the same round, and the error of the mean gradient."""
    problem = mlp(sizes, config.num_examples)
    ours = partial(jaxsgd.gradient_moments, *problem, chunk_size=config.chunk_size)
    passes = plain_passes(problem, config.chunk_size)
    passes |= {EVERY_COORDINATE: partial(ours, per_coordinate=True), TRACE: partial(ours, per_coordinate=False)}
    means = {name: run() for name, run in passes.items()}  # and compiles
    times = in_turn({name: partial(seconds, run) for name, run in passes.items()}, config.rounds)
    fastest = np.minimum(*(times[name] for name in PLAIN))
    errors = [relative_error(means[name].mean, means[PLAIN[0]]) for name in (EVERY_COORDINATE, TRACE)]
    return table([summary(times[name], fastest) for name in NAMES]) | {"error": max(errors)}


def plain_passes(problem: jaxsgd.Problem, chunk_size: int) -> dict[str, Callable[[], Any]]:
    """The mean gradient of all the data, in two ways to go over the chunks."""
    loss_fn, params, data = problem
    N, gradient_of = len(data["x"]), jax.grad(mean_loss(loss_fn))

    @partial(jax.jit, static_argnums=0)
    def step(size: int, params: Any, data: Any, start: Any, total: Any) -> Any:
        chunk = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)
        return jax.tree.map(lambda a, g: a + g * (size / N), total, gradient_of(params, chunk))

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


def check(results: Arrays) -> Claims:
    """Confirm the mean gradient and that memory does not grow; report what a pass costs."""
    claims, models, names = Claims(), results["models"], results["names"].tolist()
    message = "both passes must give the same mean gradient, got a relative error of {:.1e}"
    claims.below(results["error"], MAX_ERROR, message, enter="largest_relative_error")
    added = np.ptp(results["data_bytes"], axis=1)
    growth, held = (
        (peaks[:, -1] - peaks[:, 0]) / added for peaks in (results["peak_bytes"], results["peak_bytes_held"])
    )
    claims["growth_share_of_added_data"] = dict(zip(models, growth.round(3), strict=True))
    message = "peak memory must not grow with the data, got {:.2f} of what was added"
    claims.below(growth, MAX_GROWTH, message, enter="largest_growth")
    claims.above(held, MIN_GROWTH_HELD, "holding the data must show, got {:.2f} of what was added")
    cost = results["ratio"][:, names.index(EVERY_COORDINATE)]
    claims["cost"] = {"least": cost.min(), "most": cost.max()}
    claims["within_target_ratio"] = within = bool(cost.max() <= TARGET_RATIO)
    if results["hold_to_speed"]:
        claims.require(within, f"a pass costs {cost.max():.2f} passes of plain gradients")
    megabytes = {f"peak_megabytes{kind}": results[f"peak_bytes{kind}"] / 1e6 for kind in ("", "_held")}
    for name, columns, values, digits in (
        ("ratios", names, results["ratio"], 2),
        ("milliseconds", names, results["milliseconds"], 1),
        *((name, results["memory_sizes"], values, 1) for name, values in megabytes.items()),
    ):
        rows = (dict(zip(columns, row.round(digits), strict=True)) for row in values)
        claims[name] = dict(zip(models, rows, strict=True))
    return claims


def draw(results: Arrays) -> Figure:
    """The cost of a pass, and the peak memory against the size of the data set."""
    figure = column(nrows=2, height_to_width_ratio=0.5)
    cost, memory = figure.subplots(nrows=2)
    names, sizes = results["names"].tolist(), results["memory_sizes"]
    places = np.arange(len(names))[::-1]
    reference(cost, x=1, linewidth=0.6)
    for place, model in enumerate(results["models"].tolist()):
        streamed, held = (results[name][place] / 1e6 for name in ("peak_bytes", "peak_bytes_held"))
        beside = 1 - 2 * place  # so that no point hides another
        cost.plot(results["ratio"][place], places + 0.15 * beside, **mark(place, line="none"))
        memory.plot(sizes / 1e3 - 3 * beside, streamed, **mark(place), label=f"{model}, streamed")
        memory.plot(sizes / 1e3 - 3 * beside, held, **mark(place, line=":", hollow=True), label="data held")
    cost.set_yticks(places, names)
    cost.set(xlabel="time ÷ time of a plain pass", xlim=(0, None), ylim=(-0.6, len(names) - 0.4))
    memory.set(xlabel="thousand examples", ylabel="peak memory (MB)", ylim=(0, None), xticks=sizes / 1e3)
    figure.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
