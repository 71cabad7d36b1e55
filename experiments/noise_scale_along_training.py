"""The noise scale grows more than tenfold as the loss falls, and the plug-in ratio cannot see it beyond the batch size.

Single batches measure tr Σ and ‖ḡ‖² without bias, per example or, with several times the error, from two halves; the
plug-in ratio tr s²/‖ĝ‖² tends to B/(1 + B/m), never above m; the interval of one batch ends where B < m,
and has no upper end where B ≫ m.

Command    python -m experiments noise_scale_along_training
Run time   about 20 seconds on two cores
Expected   on digits, B from 50 examples to about 1,000; means of both estimators within 4.5 standard
           errors of tr Σ and ‖ḡ‖² at every recorded step; intervals that cover B in 90 % of the batches at least

A network is trained on the digits by SGD, with two monitors. At recorded steps, many batches without replacement are
drawn at the same θ, and each is asked for the noise scale of all digits.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require, z_scores
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, monitors, problems, training

MAX_Z = 4.5
NUM_GROUPS = 2


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    hidden: int = 32
    """Width of the hidden layer."""
    batch_size: int = 128
    """Examples in a batch."""
    learning_rate: float = 0.3
    """Of SGD."""
    num_records: int = 12
    """At how many steps, each twice the one before, noise is measured exactly."""
    num_draws: int = 400
    """How many batches are drawn at each of them."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(hidden=16, num_records=10, num_draws=150)


def compute(config: Config) -> dict[str, np.ndarray]:
    """A run, and at steps 0, 1, 2, 4, … of it what is exact and what batches say."""
    weight_key, run_key, draw_key = jax.random.split(jax.random.key(config.seed), 3)
    problem = problems.digits_mlp(key=weight_key, hidden=config.hidden)
    design = designs.Reshuffling(config.batch_size)
    watch = (monitors.noise_scale(decay=0.95), monitors.two_batch_noise_scale(decay=0.95, num_groups=NUM_GROUPS))
    params, found, step = problem.params, [], 0
    steps = [0, *(2**k for k in range(config.num_records - 1))]
    run = partial(training.run_sgd, problem.loss_fn, problem.params, problem.data, optax.sgd(config.learning_rate))
    for step in steps:
        readings: dict[str, Any] = {}
        if step:
            result = run(design, step, run_key, monitors=watch)
            params, readings = result.params, {name: v[-1] for name, v in result.metrics.items()}
        found.append(measure(problem, params, config, jax.random.fold_in(draw_key, step)) | of_monitors(readings))
    return {name: np.array([each[name] for each in found]) for name in found[0]} | {
        "steps": np.array(steps),
        "batch_size": np.array(config.batch_size),
        "population_size": np.array(len(problem.data["y"])),
    }


def of_monitors(readings: dict[str, Any]) -> dict[str, float]:
    """What the monitors of a run have read at its last step; nothing yet at step 0."""
    names = {"monitor/per_example": "noise_scale", "monitor/two_batch": "two_batch/noise_scale"}
    return {name: float(readings.get(reading, np.nan)) for name, reading in names.items()}


def measure(problem: jaxsgd.Problem, params: PyTree, config: Config, key: Array) -> dict[str, Any]:
    """The exact noise scale at θ, and the estimates of batches."""
    g = jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)
    exact = jaxsgd.noise_scale(g, population_size=g.count)
    keys = jax.random.split(key, config.num_draws)
    drawn = _estimates(problem.loss_fn, config.batch_size, params, problem.data, keys)
    return {
        "loss": float(g.losses().mean()),
        "trace": float(exact.trace_covariance),
        "signal": float(exact.squared_mean_norm),
    } | {name: np.asarray(value) for name, value in drawn.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _estimates(loss_fn: Any, batch_size: int, params: PyTree, data: PyTree, keys: Array) -> dict[str, Array]:
    """Numerators, denominators and intervals of one batch for each key."""
    population_size = len(jax.tree.leaves(data)[0])
    half = batch_size // NUM_GROUPS

    def one(key: Array) -> dict[str, Array]:
        chosen = designs.WithoutReplacement(batch_size).indices(key, population_size)
        g = jaxsgd.per_example_gradients(loss_fn)(params, jax.tree.map(lambda leaf: leaf[chosen], data))
        each = jaxsgd.noise_scale(g, population_size=population_size)
        halves = [
            jaxsgd.two_batch_noise_scale(
                g.take(slice(k * half, (k + 1) * half)).mean(),
                g.mean(),
                small_size=half,
                big_size=batch_size,
                population_size=population_size,
            )
            for k in range(NUM_GROUPS)
        ]
        return {
            "per_example/trace": each.trace_covariance,
            "per_example/signal": each.squared_mean_norm,
            "two_batch/trace": sum(two.trace_covariance for two in halves) / NUM_GROUPS,
            "two_batch/signal": sum(two.squared_mean_norm for two in halves) / NUM_GROUPS,
            "squared_norm": optax.tree.norm(g.mean(), squared=True),
            "low": each.low,
            "high": each.high,
        }

    return jax.lax.map(one, keys, batch_size=20)


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm unbiased parts, coverage and growth; refute the plug-in ratio and the two-batch form as equally good."""
    N, m = int(results["population_size"]), int(results["batch_size"])
    B = results["trace"] / results["signal"]
    findings: dict[str, Any] = {"first": float(B[0]), "last": float(B[-1]), "largest": float(B.max())}
    require(B[-1] > 10 * B[0], f"the noise scale must grow tenfold, got {B[0]:.3g} to {B[-1]:.3g}")
    require(results["loss"][-1] < results["loss"][0] / 2, "the loss must fall by half")
    for name in ("per_example", "two_batch"):
        for part in ("trace", "signal"):
            z = z_scores(results[f"{name}/{part}"], results[part], axis=1)
            worst = float(z[np.argmax(np.abs(z))])
            findings[f"{name}/{part}/worst_z"] = worst
            require(abs(worst) <= MAX_Z, f"the {part} of the {name} form is {worst:.1f} standard errors off")
    c = (N - m) / (m * (N - 1))
    plug_in = (results["trace"] / (results["signal"] + c * results["trace"]))[-1]
    findings["plug_in/last"] = float(plug_in)
    norms = results["squared_norm"]
    z = z_scores(results["per_example/trace"] - plug_in * norms, axis=1)[-1]
    require(abs(z) <= MAX_Z, f"the plug-in ratio must tend to {plug_in:.1f}, and is {z:.1f} standard errors off")
    z = z_scores(results["per_example/trace"] - B[-1] * norms, axis=1)[-1]
    require(z < -MAX_Z, f"that the plug-in ratio tends to B must be rejected, got z = {z:.1f}")
    covered = ((results["low"] <= B[:, None]) & (results["high"] >= B[:, None])).mean(axis=1)
    findings |= {"least_coverage": float(covered.min()), "mean_coverage": float(covered.mean())}
    require(covered.min() >= 0.9, f"intervals must cover B in 90 % of the batches, got {covered.min():.3f}")
    unbounded = np.isinf(results["high"]).mean(axis=1)
    findings |= {"unbounded/first": float(unbounded[0]), "unbounded/last": float(unbounded[-1])}
    require(unbounded[0] < 0.1, f"intervals must end where B < m, got {unbounded[0]:.2f} unbounded")
    require(unbounded[-1] > 0.5, f"intervals must be unbounded where B ≫ m, got {unbounded[-1]:.2f}")
    ratio = results["two_batch/trace"].std(axis=1) / results["per_example/trace"].std(axis=1)
    findings |= {"two_batch_error/first": float(ratio[0]), "two_batch_error/last": float(ratio[-1])}
    require(ratio[0] > 3, f"two halves must have several times the error of their examples, got {ratio[0]:.2f}")
    require(ratio.min() > 1, f"two halves must nowhere say more than their examples, got {ratio.min():.2f}")
    return findings | {"batch_size": m, "population_size": N}


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    return (
        f"B from {findings['first']:.3g} to {findings['last']:.3g}; intervals of {findings['batch_size']} examples "
        f"cover it in {findings['mean_coverage']:.1%} of the batches; the plug-in ratio stops at "
        f"{findings['plug_in/last']:.3g}"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Along the run; single batches against the truth; what intervals say."""
    figure = page(ncols=3, height_to_width_ratio=0.95)
    along, batches, intervals = figure.subplots(1, 3)
    _draw_run(along, results)
    _draw_batches(batches, results)
    _draw_intervals(intervals, results)
    return figure


def _draw_run(axes: Any, results: dict[str, np.ndarray]) -> None:
    steps, B = results["steps"], results["trace"] / results["signal"]
    axes.plot(steps, B, color="black", label="exact")
    for place, (name, label) in enumerate(
        (("per_example", "monitor, per example"), ("two_batch", "monitor, two halves"))
    ):
        readings = results[f"monitor/{name}"]
        shown = readings > 0
        style = {"linestyle": "none", "color": COLORS[place], "marker": MARKERS[place], "zorder": 3}
        axes.plot(
            steps[shown], readings[shown], markerfacecolor="white" if place else COLORS[place], label=label, **style
        )
    axes.axhline(results["population_size"], color="gray", linewidth=0.7, linestyle=":")
    axes.text(-0.1, results["population_size"] * 1.1, "$N$", color="gray", fontsize="small")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(-0.2, 1.3 * steps[-1]), xticks=[0, 1, 10, 100, 1000], yscale="log", ylim=(20, 6e4))
    axes.set(xlabel="step", ylabel="noise scale $B$ (examples)", title="along a run on digits")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 1.02))


def _draw_batches(axes: Any, results: dict[str, np.ndarray]) -> None:
    B, m = results["trace"] / results["signal"], int(results["batch_size"])
    order = np.argsort(B)
    per_example = results["per_example/trace"].mean(axis=1) / results["per_example/signal"].mean(axis=1)
    N = int(results["population_size"])
    c = (N - m) / (m * (N - 1))
    plug_in = results["per_example/trace"].mean(axis=1) / results["squared_norm"].mean(axis=1)
    grid = np.geomspace(B.min(), B.max(), 200)
    axes.plot(grid, grid, color="black", linewidth=0.8)
    axes.plot(grid, grid / (1 + c * grid), color="black", linewidth=0.8, linestyle=(0, (3, 1.5)))
    shown = {"linestyle": "none", "zorder": 3}
    axes.plot(B[order], per_example[order], color=COLORS[0], marker=MARKERS[0], label="unbiased parts", **shown)
    label = r"plug-in, $\mathrm{tr}\,s^2/\|\hat g\|^2$"
    axes.plot(
        B[order], plug_in[order], color=COLORS[1], marker=MARKERS[1], markerfacecolor="white", label=label, **shown
    )
    axes.axhline(m, color="gray", linewidth=0.7, linestyle=":")
    axes.text(grid[0], m * 1.1, f"$m$ = {m}", color="gray", fontsize="small")
    axes.set(xscale="log", yscale="log", xlabel="exact $B$ (examples)", ylabel="ratio of means over batches")
    axes.set_title(f"batches of {m}")
    axes.legend(fontsize="small", loc="lower right")


def _draw_intervals(axes: Any, results: dict[str, np.ndarray]) -> None:
    B = results["trace"] / results["signal"]
    order = np.argsort(B)
    covered = ((results["low"] <= B[:, None]) & (results["high"] >= B[:, None])).mean(axis=1)
    unbounded = np.isinf(results["high"]).mean(axis=1)
    axes.plot(B[order], covered[order], color=COLORS[0], marker=MARKERS[0], label="hold $B$")
    axes.plot(
        B[order],
        unbounded[order],
        color=COLORS[1],
        marker=MARKERS[1],
        markerfacecolor="white",
        linestyle=(0, (3, 1.5)),
        label="have no upper end",
    )
    axes.axhline(0.95, color="gray", linewidth=0.7, linestyle=":")
    axes.axvline(results["batch_size"], color="gray", linewidth=0.7, linestyle=":")
    axes.text(results["batch_size"] / 1.2, 0.5, "$m$", color="gray", fontsize="small")
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="exact $B$ (examples)", ylabel="share of the batches")
    axes.set_title("intervals of 95 %")
    axes.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.1))
