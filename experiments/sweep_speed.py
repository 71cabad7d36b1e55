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
from functools import partial
from typing import Any

import jax
import jax.monitoring
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Settings, progress
from experiments._models import gpt, mean_loss
from experiments._panels import BLUE, ORANGE, note, page_of, panel, series
from experiments._timing import flat, in_turn, relative_error, seconds
from jaxsgd import designs, monitors, problems, sweeps, training

MIN_SPEEDUP, MAX_EVERY_STEP, MAX_EVERY_16TH, MAX_DIFFERENCE = 5.0, 1.3, 1.03, 1e-3
WATCHED = {"every step": (monitors.noise_scale(),), "every 16th": (monitors.noise_scale(every=16),)}

MODELS: dict[str, Callable[[jaxsgd.Problem], tuple[jaxsgd.Problem, int, int, int]]] = {
    "MLP, M = 32, 8 runs": lambda digits: (digits, 32, 128, 8),
    "MLP, M = 128, 8 runs": lambda digits: (digits, 128, 64, 8),
    "GPT, M = 16": lambda _: (gpt(16, 64, scanned=False), 16, 16, 1),
}  # problem, batch size, steps, runs


class Config(Settings):
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
SUMMARY = (
    "the loop takes {speedup} times as long as the sweep; watching costs at most {most_watching[every step]:.2f} plain "
    "steps at every step, {most_watching[every 16th]:.3f} at every 16th"
)


def compute(config: Config) -> Arrays:
    """Run the sweep, time it against the loop, and time the monitors."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        problem = problems.digits_mlp(key=jax.random.key(0), hidden=config.hidden)
        swept = _sweep(problem, config)
        rows = [_against_loop(problem, M, config) for M in progress(config.batch_sizes, "batch sizes")]
        watched = [_watched(*MODELS[name](problem), config) for name in progress(config.models, "models")]
    loop, ours, difference = zip(*rows, strict=True)
    ratios, same = zip(*watched, strict=True)
    given = ("batch_sizes", "learning_rates", "num_steps", "models", "hold_to_speed")
    return {
        **swept,
        **{name: getattr(config, name) for name in given},
        "num_cells": len(config.learning_rates) * config.num_runs,
        "loop_microseconds": loop,
        "sweep_microseconds": ours,
        "difference": difference,
        "watching": ratios,
        "same_bits": same,
    }


def _run(problem: jaxsgd.Problem, design: Any, num_steps: int, **options: Any) -> training.RunResult:
    return training.run_sgd(*problem, optax.sgd, design, num_steps, jax.random.key(1), **options)


def _seconds_of_steps(problem: jaxsgd.Problem, design: Any, num_steps: int, **options: Any) -> float:
    """The time of so many steps, without what is before and after: that between two looks of the host."""
    looks: list[float] = []
    look = {"chunk_size": num_steps, "progress": lambda *_: looks.append(time.perf_counter())}
    _run(problem, design, 2 * num_steps, **look, **options)
    return looks[1] - looks[0]


def _sweep(problem: jaxsgd.Problem, config: Config) -> dict[str, Any]:
    """The whole sweep, with what it compiles."""
    compiled, counts, times = [], [], []

    def listen(event: str, _: float, fun_name: str = "", **__: Any) -> None:
        if event.endswith("backend_compile_duration") and "_advance" in fun_name:  # the loop over the steps
            compiled.append(fun_name)

    def run(batch_size: int, key: jax.Array) -> training.RunResult:
        started, before = time.perf_counter(), len(compiled)
        settings = optax.sgd, designs.WithoutReplacement(batch_size), config.num_steps, key
        grid = {"num_runs": config.num_runs, "learning_rates": config.learning_rates}
        result = training.run_sgd(*problem, *settings, **grid)
        times.append(time.perf_counter() - started)
        counts.append(len(compiled) - before)
        return result

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = sweeps.sweep(run, {"batch_size": list(config.batch_sizes)}, folder, jax.random.key(1))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    losses = found["loss"].transpose("batch_size", "learning_rate", "run", "step").values
    return {"final_loss": losses[..., -1], "compilations": counts, "cell_seconds": times}


def _against_loop(problem: jaxsgd.Problem, batch_size: int, config: Config) -> tuple[float, float, float]:
    """Microseconds for a step of one run in the loop and in the sweep, and the difference of what they arrive at."""
    middle = len(config.learning_rates) // 2
    design, rate = designs.WithoutReplacement(batch_size), config.learning_rates[middle]
    key = jax.random.fold_in(jax.random.key(1), 0)
    step = jax.jit(partial(_plain_step, problem, design, optax.sgd(rate)))

    def loop() -> Any:
        params, state = problem.params, optax.sgd(rate).init(problem.params)
        for number in range(config.timed_steps):
            params, state = step(params, state, key, number)
        return params

    both = {"learning_rates": config.learning_rates, "num_runs": config.num_runs}
    ours = partial(_seconds_of_steps, problem, design, config.timed_steps, **both)
    params = _run(problem, design, config.timed_steps, **both).params
    difference = relative_error(jax.tree.map(lambda leaf: leaf[middle, 0], params), loop())
    times = in_turn({"loop": partial(seconds, loop), "sweep": ours}, min(config.rounds, 3))
    of_loop, of_sweep = (1e6 / config.timed_steps * float(np.nanmedian(times[name])) for name in ("loop", "sweep"))
    return of_loop, of_sweep / (len(config.learning_rates) * config.num_runs), difference


def _plain_step(problem: jaxsgd.Problem, design: Any, optimizer: Any, params: Any, state: Any, key: Any, t: Any) -> Any:
    """One step as one writes it: draw, gather, differentiate the mean loss, update."""
    indices = design.indices(jax.random.fold_in(key, t), len(jax.tree.leaves(problem.data)[0]))
    batch = jax.tree.map(lambda leaf: leaf[indices], problem.data)
    gradient = jax.grad(mean_loss(problem.loss_fn))(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _watched(
    problem: jaxsgd.Problem, batch_size: int, num_steps: int, num_runs: int, config: Config
) -> tuple[list[float], bool]:
    """The time of a run with the plain gradient, and monitored, relative to one that is not; whether bits are equal."""
    setting = (problem, designs.WithReplacement(batch_size), min(num_steps, 8 * config.timed_steps))
    forms: dict[str, dict[str, Any]] = {"alone": {}, "plain": {"gradient": "plain"}}
    forms |= {name: {"monitors": watching} for name, watching in WATCHED.items()}
    options = {name: {"learning_rates": (0.05,), "num_runs": num_runs, **form} for name, form in forms.items()}
    found = {name: flat(_run(*setting, **given).params) for name, given in options.items()}
    timers = {name: partial(_seconds_of_steps, *setting, **given) for name, given in options.items()}
    times = in_turn(timers, config.rounds)
    ratios = [float(np.nanmedian(times[name] / times["alone"])) for name in ("plain", *WATCHED)]
    return ratios, all(bool(np.all(found[name] == found["alone"])) for name in WATCHED)


def check(results: Arrays) -> Claims:
    """Confirm that the results are the same and, at full size, how long they take."""
    claims, compilations = Claims(), results["compilations"]
    message = "loop and sweep must arrive at the same parameters, got {:.1e}"
    claims.below(results["difference"], MAX_DIFFERENCE, message, enter="largest_difference")
    claims.require(np.all(results["same_bits"]), "monitors must change no parameter, bit for bit")
    once = np.all(compilations == 1)
    claims.require(once, f"each batch size must compile once, got {compilations.tolist()}")
    learns = np.all(results["final_loss"][:, 0] < np.log(10))
    claims.require(learns, "the smallest learning rate must learn at every batch size")
    loop, ours = results["loop_microseconds"], results["sweep_microseconds"]
    speedup, most = loop.sum() / ours.sum(), dict(zip(WATCHED, results["watching"].max(axis=0)[1:], strict=True))
    if results["hold_to_speed"]:
        every_step, every_16th = most.values()
        claims.require(speedup >= MIN_SPEEDUP, f"the loop must take 5 times as long, got {speedup:.1f}")
        claims.require(every_step <= MAX_EVERY_STEP, f"watching every step cost {every_step:.2f} plain steps")
        claims.require(every_16th <= MAX_EVERY_16TH, f"watching every 16th step cost {every_16th:.3f} plain steps")
    millions_of_steps = results["num_cells"] * results["num_steps"] / 1e6
    names = ("plain gradient", *WATCHED)
    return claims | {
        "speedup": round(speedup, 1),
        "speedup_by_batch_size": dict(zip(results["batch_sizes"], np.round(loop / ours, 1), strict=True)),
        "loop_seconds_scaled": round(loop.sum() * millions_of_steps, 1),
        "sweep_seconds_scaled": round(ours.sum() * millions_of_steps, 1),
        "sweep_seconds_with_compilation": round(results["cell_seconds"].sum(), 1),
        "compilations": compilations.sum(),
        "watching": {
            model: dict(zip(names, np.round(row, 3), strict=True))
            for model, row in zip(results["models"], results["watching"], strict=True)
        },
        "most_watching": {name: np.round(value, 3) for name, value in most.items()},
    }


def draw(results: Arrays) -> Figure:
    """Times per step against the batch size, and the loss that each cell ends with."""
    return page_of(results, _draw_times, _draw_losses, ratio=0.7)


def _draw_times(axes: Any, results: Arrays) -> None:
    loop, ours = results["loop_microseconds"], results["sweep_microseconds"]
    series(axes, results["batch_sizes"], {"Python loop over jitted steps": loop, "sweep": ours})
    for values, name, color in ((loop, "Python loop over jitted steps", BLUE), (ours, "sweep", ORANGE)):
        note(axes, results["batch_sizes"][-1], 1.18 * values[-1], name, ha="right", va="bottom", color=color)
    limits = float(ours.min()) / 2, 2 * float(loop.max())
    height = "microseconds per step of one run"
    panel(axes, x="batch size $M$ (examples)", y=height, log="y", ylim=limits)
    _label_sizes(axes, results)
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if limits[0] <= tick <= limits[1]]
    axes.set_yticks(ticks, map(str, ticks))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_losses(axes: Any, results: Arrays) -> None:
    losses = np.median(np.nan_to_num(results["final_loss"], nan=np.inf), axis=-1)
    grays = np.linspace(0.65, 0.0, losses.shape[1])
    sizes = results["batch_sizes"]
    for k, (rate, gray) in enumerate(zip(results["learning_rates"], grays, strict=True)):
        style = {"color": str(gray), "marker": ("o", "s", "^", "D", "v")[k % 5]}
        axes.plot(sizes, losses[:, k], **style)
        note(axes, 1.25 * sizes[-1], losses[-1, k], rf"$\eta = {rate:g}$", va="center", color=str(0.8 * gray))
    height = f"median loss after {results['num_steps']:,} steps"
    panel(axes, x="batch size $M$ (examples)", y=height, log="y")
    _label_sizes(axes, results)
    axes.set_xlim(right=5 * sizes[-1])


def _label_sizes(axes: Any, results: Arrays) -> None:
    """Every batch size by its number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(results["batch_sizes"], map(str, results["batch_sizes"]))
    axes.minorticks_off()
