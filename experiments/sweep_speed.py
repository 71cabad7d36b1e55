"""A sweep over batch sizes, learning rates and seeds takes at most a fifth of a Python loop over jitted steps.

Command    python -m experiments sweep_speed
Run time   about 4 minutes on two cores
Expected   the loop takes at least 5 times as long as the sweep, which compiles one loop for each batch size; measuring
           the noise scale at every step costs at most 1.3 times the plain step, at every 16th at most 1.03 times

The sweep is 8 batch sizes x 5 learning rates x 8 seeds x 2,000 steps of SGD without replacement on the digits network,
all of it run. The loop calls one compiled step after the other, of the same design, network, gradients and optimizer;
it is run on one cell of each batch size for fewer steps, in turn with the sweep's share of them, and scaled to all.
Monitoring is timed on 8 runs of the same network and on a small GPT, in turn with the run without; its parameters must
be equal, bit for bit, and the loop's those of the sweep up to rounding. Compilation is timed apart, in float32
throughout.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxsgd
from experiments._claims import require
from experiments._harness import progress
from experiments._models import gpt
from experiments._panels import COLORS, MARKERS, page
from experiments._timing import flat, in_turn, relative_error, seconds
from jaxsgd import designs, monitors, problems, sweeps, training

MIN_SPEEDUP, MAX_EVERY_STEP, MAX_EVERY_16TH, MAX_DIFFERENCE = 5.0, 1.3, 1.03, 1e-3
WATCHED = {"every step": (monitors.noise_scale(),), "every 16th": (monitors.noise_scale(every=16),)}

MODELS: dict[str, Callable[[jaxsgd.Problem], tuple[jaxsgd.Problem, int, int, int]]] = {
    "MLP, M = 32, 8 runs": lambda digits: (digits, 32, 128, 8),
    "MLP, M = 128, 8 runs": lambda digits: (digits, 128, 64, 8),
    "GPT, M = 16": lambda _: (gpt(16, 64, scanned=False), 16, 16, 1),
}  # problem, batch size, steps, runs


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """The batch sizes of the sweep."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """The learning rates of the sweep."""
    num_runs: int = 8
    """How many seeds."""
    num_steps: int = 2000
    """How many steps each run makes."""
    timed_steps: int = 128
    """For how many steps the loop is timed, and the sweep beside it."""
    rounds: int = 15
    """How often each is timed."""
    hidden: int = 64
    """The width of the digits network."""
    models: tuple[str, ...] = tuple(MODELS)
    """What is monitored."""
    hold_to_speed: bool = True
    """Fail if the sweep or the monitors are slower than claimed."""


QUICK = Config(
    batch_sizes=(2, 8),
    learning_rates=(0.03, 0.3),
    num_runs=2,
    num_steps=48,
    timed_steps=16,
    rounds=2,
    hidden=8,
    models=("MLP, M = 32, 8 runs",),
    hold_to_speed=False,
)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Run the sweep, time it against the loop, and time the monitors."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        problem = problems.digits_mlp(key=jax.random.key(0), hidden=config.hidden)
        swept = _sweep(problem, config)
        rows = [_against_loop(problem, M, config) for M in progress(config.batch_sizes, "batch sizes")]
        loop, ours, difference = (np.array(column) for column in zip(*rows, strict=True))
        watched = [_watched(*MODELS[name](problem), config) for name in progress(config.models, "models")]
    return {
        **swept,
        "batch_sizes": np.array(config.batch_sizes),
        "learning_rates": np.array(config.learning_rates),
        "num_cells": np.array(len(config.learning_rates) * config.num_runs),
        "num_steps": np.array(config.num_steps),
        "loop_microseconds": loop,
        "sweep_microseconds": ours,
        "difference": difference,
        "models": np.array(config.models),
        "watching": np.array([ratios for ratios, _ in watched]),
        "same_bits": np.array([same for _, same in watched]),
        "hold_to_speed": np.array(config.hold_to_speed),
    }


def _run(problem: jaxsgd.Problem, design: Any, num_steps: int, **options: Any) -> training.RunResult:
    return training.run_sgd(*problem, optax.sgd, design, num_steps, jax.random.key(1), **options)


def _seconds_of_steps(problem: jaxsgd.Problem, design: Any, num_steps: int, **options: Any) -> float:
    """The time of so many steps, without what is before and after: that between two looks of the host."""
    looks: list[float] = []
    _run(
        problem,
        design,
        2 * num_steps,
        chunk_size=num_steps,
        progress=lambda *_: looks.append(time.perf_counter()),
        **options,
    )
    return looks[1] - looks[0]


def _sweep(problem: jaxsgd.Problem, config: Config) -> dict[str, np.ndarray]:
    """The whole sweep, with what it compiles."""
    counts = [training._run._advance._cache_size()]
    times: list[float] = []

    def run(batch_size: int, key: jax.Array) -> training.RunResult:
        started = time.perf_counter()
        result = training.run_sgd(
            *problem,
            optax.sgd,
            designs.WithoutReplacement(batch_size),
            config.num_steps,
            key,
            num_runs=config.num_runs,
            learning_rates=config.learning_rates,
        )
        times.append(time.perf_counter() - started)
        counts.append(training._run._advance._cache_size())
        return result

    grid = {"batch_size": list(config.batch_sizes)}
    with tempfile.TemporaryDirectory() as folder:
        found = sweeps.sweep(run, grid, folder, jax.random.key(1))
    losses = found["loss"].transpose("batch_size", "learning_rate", "run", "step").values
    return {
        "final_loss": losses[..., -1],
        "compilations": np.diff(counts),
        "cell_seconds": np.array(times),
    }


def _against_loop(problem: jaxsgd.Problem, batch_size: int, config: Config) -> tuple[float, float, float]:
    """Microseconds for a step of one run in the loop and in the sweep, and the difference of what they arrive at."""
    design, rate = designs.WithoutReplacement(batch_size), config.learning_rates[len(config.learning_rates) // 2]
    key = jax.random.fold_in(jax.random.key(1), 0)
    step = jax.jit(partial(_plain_step, problem, design, optax.sgd(rate)))

    def loop() -> Any:
        params, state = problem.params, optax.sgd(rate).init(problem.params)
        for number in range(config.timed_steps):
            params, state = step(params, state, key, number)
        return params

    both = {"learning_rates": config.learning_rates, "num_runs": config.num_runs}
    ours = partial(_seconds_of_steps, problem, design, config.timed_steps, **both)
    first = jax.tree.map(
        lambda leaf: leaf[len(config.learning_rates) // 2, 0],
        _run(problem, design, config.timed_steps, **both).params,
    )
    difference = relative_error(first, loop())
    times = in_turn({"loop": partial(seconds, loop), "sweep": ours}, min(config.rounds, 3))
    per_step = 1e6 / config.timed_steps
    return (
        float(np.nanmedian(times["loop"])) * per_step,
        float(np.nanmedian(times["sweep"])) * per_step / (len(config.learning_rates) * config.num_runs),
        difference,
    )


def _plain_step(problem: jaxsgd.Problem, design: Any, optimizer: Any, params: Any, state: Any, key: Any, t: Any) -> Any:
    """One step as one writes it: draw, gather, differentiate the mean loss, update."""
    data = problem.data
    indices = design.indices(jax.random.fold_in(key, t), len(jax.tree.leaves(data)[0]))
    batch = jax.tree.map(lambda leaf: leaf[indices], data)
    gradient = jax.grad(lambda p: jax.vmap(problem.loss_fn, in_axes=(None, 0))(p, batch).mean())(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _watched(
    problem: jaxsgd.Problem, batch_size: int, num_steps: int, num_runs: int, config: Config
) -> tuple[list[float], bool]:
    """The time of a run with the plain gradient, and monitored, relative to one that is not; whether bits are equal."""
    setting = (problem, designs.WithReplacement(batch_size), min(num_steps, 8 * config.timed_steps))
    forms: dict[str, dict[str, Any]] = {"alone": {}, "plain": {"gradient": "plain"}}
    forms |= {name: {"monitors": watching} for name, watching in WATCHED.items()}
    found = {
        name: flat(_run(*setting, learning_rates=(0.05,), num_runs=num_runs, **form).params)
        for name, form in forms.items()
    }
    timers = {
        name: partial(_seconds_of_steps, *setting, learning_rates=(0.05,), num_runs=num_runs, **form)
        for name, form in forms.items()
    }
    times = in_turn(timers, config.rounds)
    ratios = [float(np.nanmedian(times[name] / times["alone"])) for name in ("plain", *WATCHED)]
    return ratios, all(bool(np.all(found[name] == found["alone"])) for name in WATCHED)


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm that the results are the same and, at full size, how long they take."""
    difference = float(results["difference"].max())
    require(difference <= MAX_DIFFERENCE, f"loop and sweep must arrive at the same parameters, got {difference:.1e}")
    require(bool(np.all(results["same_bits"])), "monitors must change no parameter, bit for bit")
    compilations = results["compilations"]
    require(bool(np.all(compilations == 1)), f"each batch size must compile once, got {compilations.tolist()}")
    finite = results["final_loss"][:, 0]
    require(bool(np.all(finite < np.log(10))), "the smallest learning rate must learn at every batch size")
    loop, ours = results["loop_microseconds"], results["sweep_microseconds"]
    speedup = float(loop.sum() / ours.sum())
    every_step, every_16th = (float(column.max()) for column in results["watching"].T[1:])
    if results["hold_to_speed"]:
        require(speedup >= MIN_SPEEDUP, f"the loop must take 5 times as long, got {speedup:.1f}")
        require(every_step <= MAX_EVERY_STEP, f"watching every step cost {every_step:.2f} plain steps")
        require(every_16th <= MAX_EVERY_16TH, f"watching every 16th step cost {every_16th:.3f} plain steps")
    all_steps = int(results["num_cells"]) * int(results["num_steps"])
    return {
        "speedup": round(speedup, 1),
        "speedup_by_batch_size": dict(
            zip(map(str, results["batch_sizes"]), np.round(loop / ours, 1).tolist(), strict=True)
        ),
        "loop_seconds_scaled": round(float(loop.sum()) * all_steps / 1e6, 1),
        "sweep_seconds_scaled": round(float(ours.sum()) * all_steps / 1e6, 1),
        "sweep_seconds_with_compilation": round(float(results["cell_seconds"].sum()), 1),
        "compilations": int(compilations.sum()),
        "largest_difference": difference,
        "watching": {
            str(model): dict(zip(("plain gradient", *WATCHED), np.round(row, 3).tolist(), strict=True))
            for model, row in zip(results["models"], results["watching"], strict=True)
        },
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    every = [max(row[name] for row in findings["watching"].values()) for name in WATCHED]
    return (
        f"the loop takes {findings['speedup']} times as long as the sweep; watching costs at most {every[0]:.2f} plain "
        f"steps at every step, {every[1]:.3f} at every 16th"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Times per step against the batch size, and the loss that each cell ends with."""
    figure = page(ncols=2, height_to_width_ratio=0.7)
    left, right = figure.subplots(ncols=2)
    sizes = results["batch_sizes"]
    lines = {"Python loop over jitted steps": "loop_microseconds", "sweep": "sweep_microseconds"}
    for (label, name), color, marker in zip(lines.items(), COLORS, MARKERS, strict=False):
        left.plot(sizes, results[name], f"{marker}-", color=color, label=label)
    left.set(xscale="log", yscale="log", xlabel="batch size $M$", ylabel="microseconds per step of one run")
    left.set_ylim(float(results["sweep_microseconds"].min()) / 2, 2 * float(results["loop_microseconds"].max()))
    left.set_xscale("log", base=2)
    left.yaxis.set_minor_formatter(NullFormatter())
    left.legend(fontsize=6)
    losses = np.nan_to_num(results["final_loss"], nan=np.inf)
    shades = [str(gray) for gray in np.linspace(0.75, 0.0, losses.shape[1])]
    markers = ("o", "s", "^", "D", "v")
    for k, (rate, shade) in enumerate(zip(results["learning_rates"], shades, strict=True)):
        middle = np.median(losses[:, k], axis=-1)
        right.plot(sizes, middle, f"{markers[k % 5]}-", color=shade, label=f"{rate:g}")
    right.set(yscale="log", xlabel="batch size $M$", ylabel=f"median loss after {int(results['num_steps']):,} steps")
    right.set_xscale("log", base=2)
    right.legend(title="learning rate", ncols=2, fontsize=6)
    return figure
