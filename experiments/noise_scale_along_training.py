"""The noise scale grows more than tenfold as the loss falls, and the plug-in ratio cannot see it beyond the batch size.

Single batches measure tr Σ and ‖ḡ‖² without bias, per example or, with several times the error, from two halves; the
plug-in ratio tr s²/‖ĝ‖² tends to B/(1 + B/m), never above m; the interval of one batch ends where B < m,
and has no upper end where B ≫ m. A monitor averages batches along the run, and its interval holds the ratio of the
averages of what is exact.

Command    python -m experiments noise_scale_along_training
Run time   about two minutes on two cores
Expected   on digits, B from 50 examples to about 4,000; means of both estimators within 4.5 standard
           errors of tr Σ and ‖ḡ‖² at every recorded step; intervals that cover B in 90 % of the batches at least, and
           those of both monitors in 90 % of 20 runs, early and late; read from reshuffled batches B is too small

A network is trained on the digits by SGD, with two monitors, 20 times. At recorded steps of the first run, many batches
without replacement are drawn at the same θ, and each is asked for the noise scale of all digits; at all steps that the
readings of a monitor are made of, tr Σ and ‖ḡ‖² are computed from all digits. The last runs have reshuffled batches.
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
from experiments._monitored import MONITORS, NUM_GROUPS, along
from experiments._panels import DASHED, mark, note, page_of, panel, reference
from jaxsgd import designs, problems, training

LOOKS, EARLY = (16, 32, 64, 256, 1024), 64  # steps of readings, and the last early one
RESHUFFLED = [96, 128, 160]  # steps of readings from reshuffled batches


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
    num_runs: int = 20
    """How many runs with batches of their own are watched."""


QUICK = Config(hidden=16, num_records=10, num_draws=150, num_runs=10)
SUMMARY = (
    "B from {first:.3g} to {last:.3g}; intervals of {batch_size} examples cover it in {mean_coverage:.1%} of the "
    "batches, those of a monitor in {per_example/held/early:.0%} of the runs early and {per_example/held/late:.0%} "
    "late; the plug-in ratio stops at {plug_in/last:.3g}"
)


def compute(config: Config) -> Arrays:
    """Runs, what is exact along them and what monitors read; at steps 0, 1, 2, 4, … of the first, what batches say."""
    weight_key, run_key, draw_key = jax.random.split(config.key(), 3)
    problem = problems.digits_mlp(key=weight_key, hidden=config.hidden)
    steps = [0, *(2**k for k in range(config.num_records - 1))]
    looks = [look for look in LOOKS if look <= steps[-1]]
    drawn, shuffled = designs.WithoutReplacement(config.batch_size), designs.Reshuffling(config.batch_size)
    run = partial(training.run_sgd, *problem, optax.sgd(config.learning_rate), num_runs=config.num_runs)
    params, watched = along(run, problem, drawn, run_key, looks, steps)
    _, reshuffled = along(run, problem, shuffled, run_key, RESHUFFLED, RESHUFFLED)
    found = [measure(problem, params[step], config, jax.random.fold_in(draw_key, step)) for step in steps]
    last = {f"reshuffled/{name}": reshuffled[name] for name in ("exact", "per_example/value")}
    sizes = {"batch_size": config.batch_size, "population_size": len(problem.data["y"])}
    return table(found) | watched | last | {"steps": np.array(steps), "looks": np.array(looks)} | sizes


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
    claims["two_batch_error/last"] = ratio[-1]
    check_monitors(claims, results)
    return claims


def check_monitors(claims: Claims, results: Arrays) -> None:
    """Confirm that intervals of monitors hold the average, early and late; refute that reshuffling changes nothing."""
    B, is_early = results["exact"], results["looks"] <= EARLY
    for name in MONITORS:
        low, value, high = (results[f"{name}/{end}"] for end in ("low", "value", "high"))
        held = (low <= B) & (high >= B)
        for when, some in (("early", held[is_early]), ("late", held[~is_early])):
            message = f"intervals of the {name} monitor must hold the average in 90 % of the runs {when}, got {{:.3f}}"
            claims.above(some.mean(), 0.9, message, enter=f"{name}/held/{when}")
        claims[f"{name}/held/least"] = held.mean(axis=1).min()
        claims[f"{name}/not_positive"] = int(np.sum(~(value > 0)))
        claims[f"{name}/unbounded/last"] = np.isinf(high[-1]).mean()
        claims[f"{name}/median_effective/last"] = np.median(results[f"{name}/number"][-1])
    excess = results["reshuffled/exact"] / results["reshuffled/per_example/value"] - 1  # of ‖ḡ‖², relative
    claims.reject(z_scores(excess.mean(axis=0)), "that reshuffling changes nothing", enter="reshuffled/z")
    claims["reshuffled/ratio"] = 1 + excess.mean()


def shares(results: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The share of the batches whose interval covers B, and of those where it has no upper end, at every step."""
    B, low, high = (results["trace"] / results["signal"])[:, None], results["low"], results["high"]
    return ((low <= B) & (high >= B)).mean(axis=1), np.isinf(high).mean(axis=1)


def draw(results: Arrays) -> Figure:
    """Along a run; what intervals along runs say; single batches against the truth, and what their intervals say."""
    return page_of(results, _draw_run, _draw_monitors, _draw_batches, _draw_intervals, nrows=2, ratio=0.65)


def _draw_run(axes: Any, results: Arrays) -> None:
    """The first run; what is negative or infinite stands at the upper edge, where 1/B has fallen to 0."""
    steps, looks, N, top = results["steps"], results["looks"], results["population_size"], 1e5
    axes.plot(steps, results["trace"] / results["signal"], color="black", label="exact")
    axes.plot(looks, results["exact"][:, 0], color="black", linestyle=DASHED, label="exact, averaged")
    labels = {"per_example": "monitor, per example", "two_batch": "monitor, two halves"}
    for place, (name, label) in enumerate(labels.items()):
        value, low, high = (results[f"{name}/{end}"][:, 0] for end in ("value", "low", "high"))
        beyond = ~((value > 0) & (value < top))
        shown, x = np.where(beyond, top, value), looks * (1.08 if place else 1)
        axes.vlines(x, low, np.minimum(high, top), color=mark(place)["color"], linewidth=0.8)
        style = mark(place, line="none", hollow=place == 1)
        axes.plot(x, shown, **style, zorder=3, label=label, clip_on=False)
    reference(axes, y=N)
    note(axes, -0.1, N * 1.1, "$N$", color="gray")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(-0.2, 1.3 * steps[-1]), xticks=[0, 1, 10, 100, 1000], yscale="log", ylim=(20, top))
    axes.set_yticks([1e2, 1e3, 1e4, top], ["$10^2$", "$10^3$", "$10^4$", r"$\infty, <0$"])
    legend = {"loc": "upper left", "bbox_to_anchor": (0, 0.98)}
    panel(axes, "along a run on digits", x="step", y="noise scale $B$ (examples)", legend=legend)


def _draw_monitors(axes: Any, results: Arrays) -> None:
    looks, B = results["looks"], results["exact"]
    for place, (name, label) in enumerate({"per_example": "per example", "two_batch": "two halves"}.items()):
        value, low, high = (results[f"{name}/{end}"] for end in ("value", "low", "high"))
        style = mark(place, hollow=place == 1)
        axes.plot(looks, ((low <= B) & (high >= B)).mean(axis=1), **style, label=f"{label}: hold the average")
        axes.plot(looks, np.isinf(high).mean(axis=1), **style | {"linestyle": DASHED}, label="have no upper end")
        axes.plot(looks, np.mean(~(value > 0), axis=1), **style | {"linestyle": ":"}, label="readings below 0")
    reference(axes, y=0.95)
    ticks = {"xticks": looks, "xticklabels": looks, "ylim": (-0.03, 1.03)}
    title = f"intervals of the monitors, {B.shape[1]} runs"
    panel(axes, title, x="step", y="share of the runs", log="x", legend="center left", **ticks)
    axes.minorticks_off()


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
    panel(axes, "intervals of single batches", **labels, log="x", ylim=(-0.03, 1.03), legend=legend)
