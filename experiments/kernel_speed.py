"""The mean and all squared norms of the per-example gradients cost about one batch gradient, whatever the model.

Command    python -m experiments kernel_speed
Run time   about 4 minutes on two cores
Expected   mean + squared norms at most 1.5 times the plain mean gradient on every workload, where `jit(vmap(grad))`
           costs up to 100 times; every statistic equal to `jit(vmap(grad))`'s to 1e-4

Each workload is run with every statistic in turn, round after round; what is reported is the median of the ratios to
the plain mean gradient of the same round, compiled and warmed up. Compilation is timed apart.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._harness import progress, require
from experiments._models import cnn, cnn_3c3d, gpt, mlp
from experiments._style import COLORS, MARKERS, column

WORKLOADS: dict[str, Callable[[], jaxsgd.Problem]] = {
    "MLP 784-1000-500-100-10, 128": lambda: mlp((784, 1000, 500, 100, 10), 128),
    "MLP 784-512-512-10, 512": lambda: mlp((784, 512, 512, 10), 512),
    "CNN, 64": lambda: cnn(64),
    "CNN 3c3d, 32": lambda: cnn_3c3d(32),
    "GPT, T = 16": lambda: gpt(16, 16, scanned=False),
    "GPT, T = 64": lambda: gpt(64, 16, scanned=False),
    "GPT, T = 256": lambda: gpt(256, 16, scanned=False),
    "GPT scanned, T = 16": lambda: gpt(16, 16, scanned=True),
    "GPT scanned, T = 64": lambda: gpt(64, 16, scanned=True),
    "MLP 6-8-3, 5": lambda: mlp((6, 8, 3), 5),
}
QUICK_WORKLOAD = "MLP 6-8-3, 5"
STATISTICS: dict[str, Callable[[jaxsgd.PerExampleGradients], Any]] = {
    "mean + squared norms": lambda g: (g.mean(), g.squared_norms()),
    "mean + second moment": lambda g: (g.mean(), g.second_moment()),
    "Gram matrix": lambda g: g.gram(),
}
VMAP = "jit(vmap(grad))"
MAX_ERROR, MAX_RATIO = 1e-4, 1.5


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    workloads: tuple[str, ...] = tuple(name for name in WORKLOADS if name != QUICK_WORKLOAD)
    """Which workloads to run."""
    rounds: int = 15
    """How often each is timed."""
    vmap: bool = True
    """Time jit(vmap(grad)) too, for the mean and the squared norms."""
    hold_to_speed: bool = True
    """Fail if the mean and the squared norms cost more than 1.5 plain gradients on any workload."""


QUICK = Config(workloads=(QUICK_WORKLOAD,), rounds=3, hold_to_speed=False)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Time every statistic on every workload, in float32."""
    unknown = set(config.workloads) - WORKLOADS.keys()
    if unknown:
        raise ValueError(f"workloads must be among {', '.join(WORKLOADS)}, got {', '.join(sorted(unknown))}")
    with jax.enable_x64(False):
        rows = [measure(WORKLOADS[name](), config) for name in progress(config.workloads, "workloads")]
    names = ["plain", *STATISTICS, *([VMAP] if config.vmap else [])]
    return {
        "workloads": np.array(config.workloads),
        "names": np.array(names),
        "ratio": np.array([[row[name]["ratio"] for name in names] for row in rows]),
        "milliseconds": np.array([[row[name]["milliseconds"] for name in names] for row in rows]),
        "compile_seconds": np.array([[row[name]["compile_seconds"] for name in names] for row in rows]),
        "error": np.array([row["error"] for row in rows]),
        "hold_to_speed": np.array(config.hold_to_speed),
    }


def measure(problem: jaxsgd.Problem, config: Config) -> dict[str, Any]:
    """Times, as ratios to the plain gradient of the same round, and the largest relative error."""
    loss_fn, params, data = problem
    gradients = jaxsgd.per_example_gradients(loss_fn)

    def batch_loss(params: Any, data: Any) -> jax.Array:
        return jax.vmap(loss_fn, in_axes=(None, 0))(params, data).mean()

    functions: dict[str, Any] = {"plain": jax.jit(jax.grad(batch_loss))}
    for name, statistic in STATISTICS.items():
        functions[name] = jax.jit(lambda params, data, statistic=statistic: statistic(gradients(params, data)))
    if config.vmap:
        functions[VMAP] = jax.jit(lambda params, data: _materialized(loss_fn, params, data))
    compile_seconds = {name: _seconds(function, params, data) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(config.rounds):
        for name, function in functions.items():
            times[name].append(_seconds(function, params, data))
    plain = np.array(times["plain"])
    result: dict[str, Any] = {
        name: {
            "ratio": np.median(np.array(values) / plain),
            "milliseconds": 1e3 * np.median(values),
            "compile_seconds": compile_seconds[name],
        }
        for name, values in times.items()
    }
    return result | {"error": _error(problem, functions)}


def _materialized(loss_fn: Any, params: Any, data: Any) -> Any:
    """The mean and the squared norms from the gradients themselves."""
    gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, data)
    squares = [jnp.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in jax.tree.leaves(gradients)]
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients), sum(squares)


def _seconds(function: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def _error(problem: jaxsgd.Problem, functions: dict[str, Any]) -> float:
    """The largest error of any statistic on a few examples, relative to its largest entry."""
    loss_fn, params, data = problem
    few = jax.tree.map(lambda leaf: leaf[:4], data)
    gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, few)
    rows = np.concatenate([np.asarray(leaf, np.float64).reshape(4, -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    expected = {
        "mean + squared norms": (rows.mean(axis=0), np.sum(rows**2, axis=1)),
        "mean + second moment": (rows.mean(axis=0), np.mean(rows**2, axis=0)),
        "Gram matrix": (rows @ rows.T,),
    }
    errors = []
    for name, truths in expected.items():
        found = functions[name](params, few)
        for part, truth in zip(found if isinstance(found, tuple) else (found,), truths, strict=True):
            flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(part)])
            errors.append(np.abs(flat - truth.ravel()).max() / np.abs(truth).max())
    return float(max(errors))


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm that the statistics are right and, at full size, what the first of them costs."""
    names, workloads = results["names"].tolist(), results["workloads"].tolist()
    error = float(results["error"].max())
    require(error < MAX_ERROR, f"every statistic must equal jit(vmap(grad))'s, got a relative error of {error:.1e}")
    first = results["ratio"][:, names.index("mean + squared norms")]
    if results["hold_to_speed"]:
        worst = workloads[int(first.argmax())]
        require(first.max() <= MAX_RATIO, f"mean + squared norms cost {first.max():.2f} plain gradients on {worst}")
    table = {
        workload: {name: round(float(ratio), 2) for name, ratio in zip(names, row, strict=True)}
        for workload, row in zip(workloads, results["ratio"], strict=True)
    }
    for workload, milliseconds in zip(workloads, results["milliseconds"], strict=True):
        table[workload]["plain"] = f"{milliseconds[0]:.1f} ms"
    compile_ratio = results["compile_seconds"] / results["compile_seconds"][:, :1]
    return {
        "ratios": table,
        "largest_relative_error": error,
        "compile_time_ratio": round(float(compile_ratio[:, names.index("mean + squared norms")].max()), 1),
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    ratios = [row["mean + squared norms"] for row in findings["ratios"].values()]
    text = f"mean + squared norms cost {min(ratios):.2f} to {max(ratios):.2f} plain gradients"
    materialized = [row[VMAP] for row in findings["ratios"].values() if VMAP in row]
    return text + (f", {VMAP} {min(materialized):.1f} to {max(materialized):.0f}" if materialized else "")


def draw(results: dict[str, np.ndarray]) -> Figure:
    """One line of points for each workload, on a logarithmic axis."""
    figure = Figure(figsize=column(height_to_width_ratio=0.95))
    axes = figure.subplots()
    names, workloads = results["names"].tolist(), results["workloads"].tolist()
    places = np.arange(len(workloads))[::-1]
    axes.axvline(1, color="gray", linewidth=0.6, linestyle=":")
    for name, color, marker in zip(STATISTICS, COLORS, MARKERS, strict=True):
        axes.plot(results["ratio"][:, names.index(name)], places, marker, color=color, label=name)
    if VMAP in names:
        axes.plot(results["ratio"][:, names.index(VMAP)], places, "x", color="black", label=f"{VMAP}: mean + norms")
    axes.set(xscale="log", xlabel="time ÷ time of the mean gradient", ylim=(-0.6, len(workloads) - 0.4))
    axes.set_yticks(places, workloads, fontsize="small")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
