"""With SGD the noise scale pooled along a run is near the critical batch size until late; with AdamW it falls below it.

From checkpoints early, in the middle and late in runs of SGD and of AdamW, with the state of the optimizer, branches at
six batch sizes with tuned learning rates are run to a lower loss; the hyperbola through their steps is the critical
batch size. Beside it are the noise scales that are to tell it, at the checkpoint alone and pooled along a branch:
tr Σ/‖ḡ‖², that with curvature, and that in the metric of the optimizer; and the largest batch without harm after equal
examples (Merrill et al., 2025), with learning rates by the usual rules.

Command    python -m experiments branched_critical_batch_size      (--tasks digits clothes text; --cells to go on later)
Run time   some ten minutes on two cores for the digits, an hour for Fashion-MNIST, half an hour on one core for text
Expected   every best learning rate inside its grid; with SGD, pooled noise scales 0.9 to 2.1 times the measured value,
           but late on digits 9 times; with AdamW 0.3 to 1.6 times it early, and 0.1 to 0.6 times it from then on; at
           one checkpoint from 0.05 to infinitely many times

Left: critical batch sizes along training. Right: noise scales over the measured value, with 95 % intervals over seeds;
bars are single checkpoints, those at the edge beyond it or infinite. Late with AdamW on clothes steps fall as 1/M up to
972 examples, and no critical batch size can be told.
"""

import dataclasses
import functools
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import scipy.special
from jaxtyping import Array
from matplotlib.figure import Figure

from experiments import _tasks
from experiments._branches import OPTIMIZERS, PHASES, SETTINGS, Setting, cell, checkpoints
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, table
from experiments._panels import DASHED, mark, page, panel, reference
from jaxsgd import sweeps
from jaxsgd.batch_size import fit_tradeoff

POOLED = ("simple", "curvature", "metric P", "metric P²")
EXAMPLES = "equal examples"
SGD_FACTOR, ADAMW_FACTOR, FACTOR = 2.5, 4, 10  # before late; early; ever


class Config(Seeded):
    """Settings of the experiment."""

    tasks: tuple[Literal["digits", "clothes", "text"], ...] = ("digits", "clothes", "text")
    """Which problems, of digits, clothes and text."""
    batch_sizes: tuple[int, ...] = (4, 12, 36, 108, 324, 972)
    """Of the branches."""
    num_seeds: int = 5
    """Runs from other weights."""
    base_batch_size: int = 128
    """Of the runs to the checkpoints."""
    num_phases: int = 3
    """How many of the checkpoints."""
    num_points: int = 6
    """Where along a branch noise scales are measured."""
    num_examples: int = 1024
    """Of which they are measured."""
    num_probes: int = 8
    """Of the trace of HΣ."""
    multiples: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Of the smallest batch size, with which it is compared after equal examples."""
    cells: Path | None = None
    """Folder that keeps what is finished, so that an interrupted run goes on, and that several processes may share."""


QUICK = Config(
    tasks=("digits",),
    batch_sizes=(4, 24, 144),
    num_seeds=3,
    num_phases=1,
    num_points=3,
    num_examples=256,
    num_probes=2,
    multiples=(16,),
)
SUMMARY = (
    "noise scales pooled along a branch are {least_pooled:.2g} to {largest_pooled:.2g} times the critical batch size, "
    "at the checkpoint alone {least_at_once:.2g} to {largest_at_once:.2g} times"
)


def compute(config: Config) -> Arrays:
    """One row for each problem, optimizer, seed and phase."""
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        tempfile.TemporaryDirectory() as folder,
    ):
        kept = config.cells or Path(folder)
        tables = [swept(config, task, kept) for task in config.tasks]
    return {name: np.concatenate([rows[name] for rows in tables]) for name in tables[0]}


def swept(config: Config, task: Any, folder: Path) -> Arrays:
    """One row for each optimizer, seed and phase of a problem."""
    grid = {"optimizer": list(OPTIMIZERS), "seed": list(range(config.num_seeds))}
    same_in_all = dataclasses.replace(config, tasks=(task,), num_seeds=0, cells=None)
    found = sweeps.sweep(
        functools.partial(phases, same_in_all, SETTINGS[task]),
        grid,
        folder,
        config.key(),
        settings={"task": task},
        progress=lambda done: print(f"{task}: {done}", file=sys.stderr) if config.cells else None,
    )
    rows = found.stack(row=(*grid, "phase")).transpose("row", ...)
    arrays = {str(name): rows[name].values for name in (*grid, "phase", *found.data_vars)}
    return arrays | {"task": np.full(len(arrays["seed"]), task)}


def phases(config: Config, setting: Setting, optimizer: str, seed: int, key: Array) -> dict[str, Any]:
    """What is measured from the checkpoints of one run; weights and batches are the seed's, whatever the optimizer."""
    del key
    key, task = jax.random.fold_in(config.key(), seed), _tasks.named(*config.tasks)
    rows = [
        cell(task, setting, optimizer, phase, start, config, jax.random.fold_in(key, 100 + phase))
        for phase, start in enumerate(checkpoints(task, setting, optimizer, config, key))
    ]
    found = {"phase": np.arange(len(rows))} | table(rows)
    return {name: (("phase", *(f"{name}, {axis}" for axis in range(1, v.ndim))), v) for name, v in found.items()}


def check(results: Arrays) -> Claims:
    """Every best rate is inside its grid; what each predictor is of the measured critical batch size."""
    claims = Claims()
    inside = (results["lowest_rates"] < results["rates"]) & (results["rates"] < results["highest_rates"])
    claims.require(np.all(inside), "the best learning rate must lie inside those tried")
    cases = list(grouped(results))
    found = {name: np.array([over_seeds(rows, name) for rows in cases]) for name in ("critical", *POOLED, EXAMPLES)}
    low, high = found["critical"][:, 1:].T
    claims.require(np.all((low > 0) & (high < np.inf)), "critical batch sizes must have intervals")
    pooled, phase = found["simple"][:, 0], np.array([rows["phase"][0] for rows in cases])
    off, sgd = np.maximum(pooled, 1 / pooled), np.array([rows["optimizer"][0] == "SGD" for rows in cases])
    alone = np.array([at_once(rows, "simple") / over_seeds(rows, "critical")[0] for rows in cases])
    message = "{} a pooled noise scale must be within a factor of {} of the critical batch size, got {{:.2f}}"
    for when, some, factor, name in (
        ("before late with SGD", sgd & (phase < 2), SGD_FACTOR, "factor_before_late/SGD"),
        ("early with AdamW", ~sgd & (phase == 0), ADAMW_FACTOR, "early_factor/AdamW"),
    ):
        claims.below(off[some], factor, message.format(when, factor), enter=name)
    if phase.any():  # in a quick run all are early
        later = "later on with AdamW a pooled noise scale must be below the critical batch size, got {:.2f} times that"
        claims.below(pooled[~sgd & (phase > 0)], 1, later, enter="largest_later/AdamW")
        claims.above(off.max(), 2, "that pooled noise scales are always near must be rejected")
        claims.above(alone.max(), FACTOR, "that one checkpoint tells as much must be rejected")
    claims.below(off, FACTOR, "a pooled noise scale must be within a factor of 10, got {:.2f}", enter="largest_factor")
    claims |= {"least_pooled": pooled.min(), "largest_pooled": pooled.max()}
    claims |= {"least_at_once": alone.min(), "largest_at_once": alone.max()}
    claims["cases"] = {
        label(rows): {name: [float(f"{number:.3g}") for number in values[k]] for name, values in found.items()}
        | {"simple, at the checkpoint": [float(f"{number:.3g}") for number in np.sort(alone[k])]}
        for k, rows in enumerate(cases)
    }
    return claims


def grouped(results: Arrays) -> Iterator[Arrays]:
    """The rows of all seeds of every problem, optimizer and phase."""
    for task in dict.fromkeys(results["task"].tolist()):
        for optimizer in OPTIMIZERS:
            for phase in range(len(PHASES)):
                rows = (results["task"] == task) & (results["optimizer"] == optimizer) & (results["phase"] == phase)
                if rows.any():
                    yield {name: values[rows] for name, values in results.items()}


def label(rows: Arrays) -> str:
    """What a case is called."""
    return f"{rows['task'][0]}, {rows['optimizer'][0]}, {PHASES[rows['phase'][0]]}"


def over_seeds(rows: Arrays, name: str) -> tuple[float, float, float]:
    """The critical batch size, or a predictor over it, of all seeds; its interval from leaving one out each time."""
    count = len(rows["seed"])
    value = math.log(_of(rows, name))
    left = np.array(
        [math.log(_of({key: np.delete(v, k, axis=0) for key, v in rows.items()}, name)) for k in range(count)]
    )
    error = math.sqrt((count - 1) / count * np.sum((left - left.mean()) ** 2))
    margin = error * float(scipy.special.stdtrit(count - 1, 0.975))
    return math.exp(value), math.exp(value - margin), math.exp(value + margin)


def _of(rows: Arrays, name: str) -> float:
    """B_crit of the geometric means of steps over seeds; or what a predictor, pooled over them too, is of it."""
    steps = np.exp(np.log(rows["steps"]).mean(axis=0))
    critical = float(fit_tradeoff(rows["sizes"][0], steps).critical_batch_size)
    if name == "critical":
        return critical
    if name == EXAMPLES:
        return float(np.exp(np.log(rows[EXAMPLES][:, 0]).mean())) / critical
    noise, signal = rows[f"parts of {name}"].sum(axis=(0, 1))
    return float(noise / signal) / critical


def at_once(rows: Arrays, name: str) -> np.ndarray:
    """A noise scale at the checkpoint of each seed, infinite where the signal cannot be told from zero."""
    noise, signal = rows[f"parts of {name}"][:, 0].T
    return np.where(signal > 0, noise / np.where(signal > 0, signal, 1), np.inf)


def draw(results: Arrays) -> Figure:
    """For every problem critical batch sizes along training, and what the predictors are of them."""
    tasks = list(dict.fromkeys(results["task"].tolist()))
    figure = page(nrows=len(tasks), ncols=2, height_to_width_ratio=0.4)
    rows = figure.subplots(len(tasks), 2, width_ratios=(1, 1.9), sharex="col", squeeze=False)
    for task, (left, right) in zip(tasks, rows, strict=True):
        cases = list(grouped({name: values[results["task"] == task] for name, values in results.items()}))
        draw_measured(left, cases)
        draw_factors(right, cases)
        left.set_title(f"{task}, measured")
        right.set_title(f"{task}, predicted")
    rows[0, 0].legend(loc="upper left")
    panel(rows[len(tasks) // 2, 0], y="critical batch size (examples)")
    panel(rows[-1, 1], x="noise scale over the critical batch size")
    figure.legend(*rows[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_measured(axes: Any, cases: list[Arrays]) -> None:
    """Critical batch sizes early, in the middle and late with each optimizer."""
    for place, optimizer in enumerate(OPTIMIZERS):
        series = [rows for rows in cases if rows["optimizer"][0] == optimizer]
        values, low, high = np.array([over_seeds(rows, "critical") for rows in series]).T
        style = mark(place, line=DASHED if place else "-", hollow=bool(place))
        x = np.arange(len(series)) + 0.06 * (place - 0.5)
        axes.errorbar(x, values, [values - low, high - values], label=optimizer, capsize=1.5, elinewidth=0.6, **style)
    ticks = {"xticks": range(len(PHASES)), "xticklabels": PHASES, "yticks": [10, 100, 1000, 10000]}
    panel(axes, log="y", xlim=(-0.3, len(PHASES) - 0.7), ylim=(5, 3e4), **ticks)


def draw_factors(axes: Any, cases: list[Arrays]) -> None:
    """A row for each case: the predictors over the measured value."""
    limits = (0.05, 200.0)
    heights = -np.arange(len(cases), dtype=float)
    axes.axvspan(1 / FACTOR, FACTOR, color="0.93", linewidth=0)
    reference(axes, x=1)
    shown = {"simple": "pooled", "curvature": "pooled, curvature", "metric P": "pooled, metric of AdamW"}
    for place, (name, text) in enumerate(shown.items()):
        rows = [k for k, case in enumerate(cases) if name != "metric P" or case["optimizer"][0] == "AdamW"]
        values, low, high = np.array([over_seeds(cases[k], name) for k in rows]).T
        y = heights[rows] + 0.2 * (1 - place)
        style = mark(place, line="none")
        axes.errorbar(values, y, xerr=[values - low, high - values], label=text, elinewidth=0.6, **style)
    for k, case in enumerate(cases):
        alone = np.clip(at_once(case, "simple") / over_seeds(case, "critical")[0], *limits)
        y = np.full(len(alone), heights[k] - 0.38)
        axes.plot(alone, y, "|", color="black", markersize=4, label="one checkpoint, each seed" if k == 0 else None)
    names = [label(case).split(", ", 1)[1] for case in cases]
    panel(axes, log="x", yticks=heights, yticklabels=names, xlim=limits)
