"""The mean and all squared norms of the per-example gradients cost about one batch gradient, whatever the model.

Command    python -m experiments kernel_speed
Run time   about 3 minutes on two cores; 6 where `make peers` was run
Expected   mean + squared norms at most 1.5 times the plain mean gradient on every workload, where `jit(vmap(grad))`
           costs up to 100 times; every statistic equal to `jit(vmap(grad))`'s to 1e-4, and to the peers' to 1e-5

Each workload is run with every statistic in turn, round after round; what is reported is the median of the ratios to
the plain mean gradient of the same round, compiled and warmed up. Compilation is timed apart. Where `make peers` was
run, BackPACK and Opacus compute the same statistics of the same network, weights and data in the same rounds, in a
process of their own with as many threads; their ratios are to PyTorch's plain mean gradient. Products are taken in full
float32 by all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxsgd
from experiments import _peers
from experiments._claims import Claims
from experiments._harness import Arrays, Settings, progress
from experiments._models import cnn, cnn_3c3d, gpt, mlp
from experiments._panels import BLUE, MARKERS, ORANGE, SKY, page, panel, reference
from experiments._timing import device, flat, in_turn, relative_error, seconds, summary

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
}
FOR_ACCELERATORS: dict[str, Callable[[], jaxsgd.Problem]] = {
    "MLP 784-4096-4096-10, 4096": lambda: mlp((784, 4096, 4096, 10), 4096),
    "CNN 3c3d, 1024": lambda: cnn_3c3d(1024),
    "GPT d = 512, T = 256, 32": lambda: gpt(256, 32, scanned=False, width=512),
    "GPT scanned d = 512, T = 256, 32": lambda: gpt(256, 32, scanned=True, width=512),
}
QUICK_WORKLOAD = "MLP 6-8-3, 5"
ALL_WORKLOADS = WORKLOADS | FOR_ACCELERATORS | {QUICK_WORKLOAD: lambda: mlp((6, 8, 3), 5)}
STATISTICS: dict[str, tuple[str, ...]] = {
    "mean + squared norms": ("mean", "squared_norms"),
    "mean + second moment": ("mean", "second_moment"),
    "Gram matrix": ("gram",),
}
PEERS = (("Opacus hooks", "gray", "D"), ("Opacus ghost", SKY, MARKERS[2]), ("BackPACK", ORANGE, MARKERS[1]))
VMAP = "jit(vmap(grad))"
GRADIENT_BYTES = 2**33
MAX_ERROR, MAX_DISAGREEMENT, MAX_RATIO = 1e-4, 1e-5, 1.5


class Config(Settings):
    """Settings of the experiment."""

    workloads: tuple[str, ...] = ()
    """Which workloads to run (default: all; the largest on an accelerator only)."""
    rounds: int = 15
    """How often each is timed; what takes more than a second, five times at most."""
    vmap: bool = True
    """Time jit(vmap(grad)) too, for the mean and the squared norms, where the gradients fit into 8 GiB."""
    peers: bool = True
    """Time BackPACK and Opacus too, if `make peers` has set them up; what forms all gradients, where they fit."""
    device: Literal["cpu", "gpu"] | None = None
    """Where to run (default: JAX's own choice)."""
    hold_to_speed: bool = True
    """Fail if the mean and the squared norms cost more than 1.5 plain gradients on any workload."""


QUICK = Config(workloads=(QUICK_WORKLOAD,), rounds=3, hold_to_speed=False)
SUMMARY = "mean + squared norms cost {least_ratio:.2f} to {largest_ratio:.2f} plain gradients{vmap_ratios}"


def compute(config: Config) -> Arrays:
    """Time every statistic on every workload, in float32."""
    unknown = set(config.workloads) - ALL_WORKLOADS.keys()
    if unknown:
        raise ValueError(f"workloads must be among {', '.join(ALL_WORKLOADS)}, got {', '.join(sorted(unknown))}")
    where = device(config.device)
    workloads = config.workloads or tuple(WORKLOADS if where.platform == "cpu" else WORKLOADS | FOR_ACCELERATORS)
    with (
        jax.enable_x64(False),
        jax.default_device(where),
        jax.default_matmul_precision("highest"),
        _peers.started(config.peers) as worker,
    ):
        rows = [measure(ALL_WORKLOADS[name](), config, worker) for name in progress(workloads, "workloads")]
        offered = worker.offered if worker else []
        versions = worker.versions if worker else {}
    names = ["plain", *STATISTICS, *([VMAP] if config.vmap else [])]

    def table(field: str, columns: list[str]) -> np.ndarray:
        values = [[row.get(name, {}).get(field, np.nan) for name in columns] for row in rows]
        return np.array(values).reshape(len(rows), len(columns))

    return {
        "workloads": np.array(workloads),
        "device": np.array(f"{where.platform} ({where.device_kind})"),
        "names": np.array(names),
        **{field: table(field, names) for field in ("ratio", "milliseconds", "compile_seconds")},
        "error": np.array([row["error"] for row in rows]),
        "peers": np.array(offered, dtype=str),
        "peer_reasons": np.array([row["reason"] for row in rows]),
        "peer_versions": np.array([" ".join(item) for item in versions.items()], dtype=str),
        **{f"peer_{field}": table(field, offered) for field in ("ratio", "milliseconds", "error")},
        "hold_to_speed": np.array(config.hold_to_speed),
    }


def measure(problem: jaxsgd.Problem, config: Config, worker: _peers.Worker | None) -> dict[str, Any]:
    """Times, as ratios to the plain gradient of the same round, and the largest relative error."""
    loss_fn, params, data = problem
    functions = {name: jax.jit(function) for name, function in _functions(loss_fn).items()}
    fits = 4 * flat(params).size * len(jax.tree.leaves(data)[0]) <= GRADIENT_BYTES
    if not (config.vmap and fits):
        functions.pop(VMAP)
    timers = {name: partial(seconds, function, params, data) for name, function in functions.items()}
    reason = worker.load(problem, jax.tree.leaves(params)[0].device.platform) if worker else "not set up"
    offered = worker.offered if worker and not reason else []
    peers = [name for name in offered if fits or not name.startswith(_peers.FORMING_GRADIENTS)]
    timers |= {name: partial(worker.seconds, name) for name in peers}
    first = {name: timer() for name, timer in timers.items()}
    times = in_turn(timers, config.rounds, elsewhere=peers)
    result: dict[str, Any] = {"error": _error(problem, functions), "reason": reason}
    for name in timers:
        result[name] = summary(times[name], times[_peers.PLAIN if name in peers else "plain"])
        result[name]["compile_seconds"] = first[name]
    for name in peers:
        result[name]["error"] = _disagreement(worker.values(name), functions, problem)
    return result


def _functions(loss_fn: Any) -> dict[str, Callable[[Any, Any], Any]]:
    gradients = jaxsgd.per_example_gradients(loss_fn)

    def batch_loss(params: Any, data: Any) -> jax.Array:
        return jax.vmap(loss_fn, in_axes=(None, 0))(params, data).mean()

    def statistic(parts: tuple[str, ...], params: Any, data: Any) -> dict[str, Any]:
        g = gradients(params, data)
        return {part: getattr(g, part)() for part in parts}

    return {
        "plain": jax.grad(batch_loss),
        **{name: partial(statistic, parts) for name, parts in STATISTICS.items()},
        VMAP: partial(_materialized, loss_fn),
    }


def _materialized(loss_fn: Any, params: Any, data: Any) -> Any:
    """The mean and the squared norms from the gradients themselves."""
    gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, data)
    squares = [jnp.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in jax.tree.leaves(gradients)]
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients), sum(squares)


def _error(problem: jaxsgd.Problem, functions: dict[str, Any]) -> float:
    """The largest error of any statistic on a few examples, relative to its largest entry."""
    loss_fn, params, data = problem
    few = jax.tree.map(lambda leaf: leaf[:4], data)
    gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, few)
    rows = np.concatenate([np.asarray(leaf, np.float64).reshape(4, -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    expected = {
        "mean": rows.mean(axis=0),
        "squared_norms": np.sum(rows**2, axis=1),
        "second_moment": np.mean(rows**2, axis=0),
        "gram": rows @ rows.T,
    }
    found = [part for name in STATISTICS for part in functions[name](params, few).items()]
    return max(relative_error(value, expected[part]) for part, value in found)


def _disagreement(theirs: Arrays, functions: dict[str, Any], problem: jaxsgd.Problem) -> float:
    """The largest difference between a peer's values and ours, relative to the largest of theirs."""
    name = next((name for name, parts in STATISTICS.items() if set(parts) == theirs.keys()), "mean + squared norms")
    ours = functions[name](problem.params, problem.data)
    return max(relative_error(ours[part], value) for part, value in theirs.items())


def check(results: Arrays) -> Claims:
    """Confirm that the statistics are right and, at full size, what the first of them costs."""
    claims, names = Claims(device=str(results["device"])), results["names"].tolist()
    workloads, ratios = results["workloads"].tolist(), results["ratio"]
    message = "every statistic must equal jit(vmap(grad))'s, got a relative error of {:.1e}"
    claims.below(results["error"], MAX_ERROR, message, enter="largest_relative_error")
    first = ratios[:, names.index("mean + squared norms")]
    if results["hold_to_speed"]:
        worst = workloads[int(first.argmax())]
        claims.require(
            first.max() <= MAX_RATIO, f"mean + squared norms cost {first.max():.2f} plain gradients on {worst}"
        )
    table = {
        workload: {name: round(float(ratio), 2) for name, ratio in zip(names, row, strict=True) if ratio == ratio}
        for workload, row in zip(workloads, ratios, strict=True)
    }
    times_of_vmap = [row[VMAP] for row in table.values() if VMAP in row]
    range_of_vmap = f", {VMAP} {min(times_of_vmap):.1f} to {max(times_of_vmap):.0f}" if times_of_vmap else ""
    for workload, milliseconds in zip(workloads, results["milliseconds"], strict=True):
        table[workload]["plain"] = f"{milliseconds[0]:.1f} ms"
    claims |= _peers.findings(results)
    message = "every statistic must equal the peers', got a relative difference of {:.1e}"
    claims.below(claims.get("largest_disagreement", 0.0), MAX_DISAGREEMENT, message)
    compile_ratio = results["compile_seconds"] / results["compile_seconds"][:, :1]
    claims["throughput"] = {
        workload: {name: round(float(1 / row[names.index(name)]), 2) for name in STATISTICS}
        for workload, row in zip(workloads, ratios, strict=True)
    }
    claims["compile_time_ratio"] = round(float(compile_ratio[:, names.index("mean + squared norms")].max()), 1)
    extremes = {"least_ratio": first.min(), "largest_ratio": first.max(), "vmap_ratios": range_of_vmap}
    return claims | extremes | {"ratios": table}


def draw(results: Arrays) -> Figure:
    """A panel for each statistic and a line of points for each workload, on logarithmic axes."""
    names, workloads = results["names"].tolist(), results["workloads"].tolist()
    places = np.arange(len(workloads))[::-1]
    figure = page(ncols=3, height_to_width_ratio=1.05)
    panels = figure.subplots(ncols=len(STATISTICS), sharex=True, sharey=True)
    for axes, statistic in zip(panels, STATISTICS, strict=True):
        reference(axes, x=1, linewidth=0.6)
        for peer, color, marker in PEERS:
            if f"{peer}: {statistic}" in results["peers"]:
                column = results["peers"].tolist().index(f"{peer}: {statistic}")
                axes.plot(results["peer_ratio"][:, column], places, marker, color=color, mfc="none", label=peer)
        if VMAP in names and statistic == "mean + squared norms":
            axes.plot(results["ratio"][:, names.index(VMAP)], places, "x", color="black", label=VMAP)
        axes.plot(results["ratio"][:, names.index(statistic)], places, "o", color=BLUE, label="jaxsgd")
        panel(axes, statistic, log="x", ylim=(-0.6, len(workloads) - 0.4))
    panels[0].set_yticks(places, workloads)
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    panels[1].set_xlabel("time ÷ time of the mean gradient in the same framework")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=5)
    return figure
