"""The noise scale grows more than tenfold as the loss falls, and the plug-in ratio cannot see it beyond the batch size.

Single batches measure tr Σ and ‖ḡ‖² without bias, per example or, with several times the error, from two halves; the
plug-in ratio tr s²/‖ĝ‖² tends to B/(1 + B/m), never above m; the interval of one batch ends where B < m,
and has no upper end where B ≫ m.

Command    python -m experiments noise_scale_along_training
Run time   about a minute on two cores
Expected   on digits, B from 50 examples to about 1,000; means of both estimators within 4.5 standard
           errors of tr Σ and ‖ḡ‖² at every recorded step; intervals that cover B in 90 % of the batches at least

A network is trained on the digits by SGD, with two monitors. At recorded steps, many batches without replacement are
drawn at the same θ, and each is asked for the noise scale of all digits.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims, z_scores
from experiments._harness import Arrays, Seeded, table
from experiments._panels import DASHED, mark, note, page_of, panel, reference
from jaxsgd import designs, monitors, problems, training

NUM_GROUPS = 2
MONITORS = {"per_example": "noise_scale", "two_batch": "two_batch/noise_scale"}


class Config(Seeded):
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


QUICK = Config(hidden=16, num_records=10, num_draws=150)
SUMMARY = (
    "B from {first:.3g} to {last:.3g}; intervals of {batch_size} examples cover it in {mean_coverage:.1%} of the "
    "batches; the plug-in ratio stops at {plug_in/last:.3g}"
)


def compute(config: Config) -> Arrays:
    """A run, and at steps 0, 1, 2, 4, … of it what is exact and what batches say."""
    weight_key, run_key, draw_key = jax.random.split(config.key(), 3)
    problem = problems.digits_mlp(key=weight_key, hidden=config.hidden)
    design = designs.Reshuffling(config.batch_size)
    watch = (monitors.noise_scale(decay=0.95), monitors.two_batch_noise_scale(decay=0.95, num_groups=NUM_GROUPS))
    steps = [0, *(2**k for k in range(config.num_records - 1))]
    run = partial(training.run_sgd, *problem, optax.sgd(config.learning_rate), design, steps[-1], run_key)
    result = run(monitors=watch, record_every=1, keep_params_at=steps)
    found = []
    for k, step in enumerate(steps):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], result.kept_params)
        found.append(measure(problem, params, config, jax.random.fold_in(draw_key, step)))
    readings = {f"monitor/{name}": _at(steps, result.metrics[reading]) for name, reading in MONITORS.items()}
    sizes = {"batch_size": config.batch_size, "population_size": len(problem.data["y"])}
    return table(found) | readings | {"steps": steps} | sizes


def _at(steps: list[int], readings: Array) -> np.ndarray:
    """What a monitor has read after each step, with nothing yet at step 0."""
    return np.array([readings[step] if step else np.nan for step in steps], float)


def measure(problem: jaxsgd.Problem, params: PyTree, config: Config, key: Array) -> dict[str, Any]:
    """The exact noise scale at θ, and the estimates of batches."""
    g = jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)
    exact = jaxsgd.noise_scale(g, population_size=g.count)
    keys = jax.random.split(key, config.num_draws)
    drawn = _estimates(problem.loss_fn, config.batch_size, params, problem.data, keys)
    exact_parts = {"trace": exact.trace_covariance, "signal": exact.squared_mean_norm}
    return {"loss": g.losses().mean()} | exact_parts | drawn


@partial(jax.jit, static_argnums=(0, 1))
def _estimates(loss_fn: Any, batch_size: int, params: PyTree, data: PyTree, keys: Array) -> dict[str, Array]:
    """Numerators, denominators and intervals of one batch for each key."""
    population_size = len(jax.tree.leaves(data)[0])
    half = batch_size // NUM_GROUPS

    def one(key: Array) -> dict[str, Array]:
        chosen = designs.WithoutReplacement(batch_size).indices(key, population_size)
        g = jaxsgd.per_example_gradients(loss_fn)(params, jax.tree.map(lambda leaf: leaf[chosen], data))
        each = jaxsgd.noise_scale(g, population_size=population_size)
        compare = partial(jaxsgd.two_batch_noise_scale, small_size=half, big_size=batch_size)
        parts = [g.take(slice(k * half, (k + 1) * half)).mean() for k in range(NUM_GROUPS)]
        halves = [compare(part, g.mean(), population_size=population_size) for part in parts]
        return {
            "per_example/trace": each.trace_covariance,
            "per_example/signal": each.squared_mean_norm,
            "two_batch/trace": sum(two.trace_covariance for two in halves) / NUM_GROUPS,
            "two_batch/signal": sum(two.squared_mean_norm for two in halves) / NUM_GROUPS,
            "squared_norm": optax.tree.norm(g.mean(), squared=True),
            "low": each.low,
            "high": each.high,
        }

    return jax.lax.map(one, keys)


def check(results: Arrays) -> Claims:
    """Confirm unbiased parts, coverage and growth; refute the plug-in ratio and the two-batch form as equally good."""
    N, m, B = results["population_size"], results["batch_size"], results["trace"] / results["signal"]
    claims = Claims(batch_size=m, population_size=N, first=B[0], last=B[-1], largest=B.max())
    claims.above(B[-1] / B[0], 10, "the noise scale must grow tenfold, got a factor of {:.3g}")
    claims.below(results["loss"][-1] / results["loss"][0], 0.5, "the loss must fall by half, got {:.2f} of it")
    for name in ("per_example", "two_batch"):
        for part in ("trace", "signal"):
            z = z_scores(results[f"{name}/{part}"], results[part], axis=1)
            claims.agree(z, f"the {part} of the {name} form is", enter=f"{name}/{part}/worst_z", step=results["steps"])
    c = (N - m) / (m * (N - 1))
    plug_in = claims["plug_in/last"] = (results["trace"] / (results["signal"] + c * results["trace"]))[-1]
    traces, norms = results["per_example/trace"], results["squared_norm"]
    claims.agree(z_scores((traces - plug_in * norms)[-1]), f"the plug-in ratio must tend to {plug_in:.1f}, and is")
    claims.reject(z_scores((traces - B[-1] * norms)[-1]), "that the plug-in ratio tends to B", side=-1)
    covered, unbounded = shares(results)
    claims.above(covered, 0.9, "intervals must cover B in 90 % of the batches, got {:.3f}", enter="least_coverage")
    claims["mean_coverage"] = covered.mean()
    claims.below(unbounded[0], 0.1, "intervals must end where B < m, got {:.2f} unbounded", enter="unbounded/first")
    claims.above(unbounded[-1], 0.5, "intervals must be unbounded where B ≫ m, got {:.2f}", enter="unbounded/last")
    ratio = results["two_batch/trace"].std(axis=1) / results["per_example/trace"].std(axis=1)
    message = "two halves must have several times the error of their examples, got {:.2f}"
    claims.above(ratio[0], 3, message, enter="two_batch_error/first")
    claims.above(ratio, 1, "two halves must nowhere say more than their examples, got {:.2f}")
    return claims | {"two_batch_error/last": ratio[-1]}


def shares(results: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The share of the batches whose interval covers B, and of those where it has no upper end, at every step."""
    B, low, high = (results["trace"] / results["signal"])[:, None], results["low"], results["high"]
    return ((low <= B) & (high >= B)).mean(axis=1), np.isinf(high).mean(axis=1)


def draw(results: Arrays) -> Figure:
    """Along the run; single batches against the truth; what intervals say."""
    return page_of(results, _draw_run, _draw_batches, _draw_intervals, ratio=0.95)


def _draw_run(axes: Any, results: Arrays) -> None:
    steps, N = results["steps"], results["population_size"]
    axes.plot(steps, results["trace"] / results["signal"], color="black", label="exact")
    labels = {"per_example": "monitor, per example", "two_batch": "monitor, two halves"}
    for place, (name, label) in enumerate(labels.items()):
        readings = results[f"monitor/{name}"]
        shown = readings > 0
        style = mark(place, line="none", hollow=place == 1)
        axes.plot(steps[shown], readings[shown], **style, zorder=3, label=label)
    reference(axes, y=N)
    note(axes, -0.1, N * 1.1, "$N$", color="gray")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(-0.2, 1.3 * steps[-1]), xticks=[0, 1, 10, 100, 1000], yscale="log", ylim=(20, 6e4))
    legend = {"loc": "upper left", "bbox_to_anchor": (0, 1.02)}
    panel(axes, "along a run on digits", x="step", y="noise scale $B$ (examples)", legend=legend)


def _draw_batches(axes: Any, results: Arrays) -> None:
    B, m, N = results["trace"] / results["signal"], int(results["batch_size"]), int(results["population_size"])
    c = (N - m) / (m * (N - 1))
    names = ("per_example/trace", "per_example/signal", "squared_norm")
    trace, signal, norm = (results[name].mean(axis=1)[np.argsort(B)] for name in names)
    grid = np.geomspace(B.min(), B.max(), 200)
    axes.plot(grid, grid, color="black", linewidth=0.8)
    axes.plot(grid, grid / (1 + c * grid), color="black", linewidth=0.8, linestyle=DASHED)
    axes.plot(np.sort(B), trace / signal, **mark(0, line="none"), zorder=3, label="unbiased parts")
    label = r"plug-in, $\mathrm{tr}\,s^2/\|\hat g\|^2$"
    axes.plot(np.sort(B), trace / norm, **mark(1, line="none", hollow=True), zorder=3, label=label)
    reference(axes, y=m)
    note(axes, grid[0], m * 1.1, f"$m$ = {m}", color="gray")
    labels = {"x": "exact $B$ (examples)", "y": "ratio of means over batches"}
    panel(axes, f"batches of {m}", **labels, log="xy", legend="lower right")


def _draw_intervals(axes: Any, results: Arrays) -> None:
    B, m = results["trace"] / results["signal"], results["batch_size"]
    order = np.argsort(B)
    covered, unbounded = shares(results)
    axes.plot(B[order], covered[order], **mark(0), label="hold $B$")
    axes.plot(B[order], unbounded[order], **mark(1, line=DASHED, hollow=True), label="have no upper end")
    reference(axes, y=0.95, x=m)
    note(axes, m / 1.2, 0.5, "$m$", color="gray")
    labels = {"x": "exact $B$ (examples)", "y": "share of the batches"}
    legend = {"loc": "lower right", "bbox_to_anchor": (1, 0.1)}
    panel(axes, "intervals of 95 %", **labels, log="x", ylim=(-0.03, 1.03), legend=legend)
