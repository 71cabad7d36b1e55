"""With sixty thousand images the laws hold at every batch size, and 600 of them tell the noise scale of all.

One pass over all of Fashion-MNIST gives the variance of every batch size, and batches of up to 60,000 images, really
drawn, agree. Along a run of a small convolutional network the noise scale of all images grows many times; a monitor
reads it from the batches of the run, and the interval of a few hundred images holds it.

Command    python -m experiments fashion_mnist         (reads Debian's package dataset-fashion-mnist)
Run time   some ten minutes on two cores
Expected   Monte Carlo variances within 4.5 standard errors of both laws at 46 batch sizes, 1/M rejected at M > N/2
           without replacement; a noise scale that grows more than tenfold while the held-out loss falls; intervals of
           600 images that hold it at 90 % of the points at least

The network has two convolutions and 2,754 parameters. Left: variances at initialization and after the run. Middle: the
noise scale. Right: losses of the images that are trained on, and of the 10,000 others.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

import jaxsgd
from experiments import _tasks
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress, table
from experiments._panels import DASHED, mark, page_of, panel, reference
from jaxsgd import designs, estimators, monitors, problems, training

DESIGNS: tuple[estimators.DesignName, ...] = ("without_replacement", "with_replacement")


class Config(Seeded):
    """Settings of the experiment."""

    max_examples: int = 60_000
    """The first images of those that are trained on."""
    num_steps: int = 4000
    """Of SGD."""
    batch_size: int = 128
    """Of the run."""
    learning_rate: float = 0.1
    """Of SGD."""
    num_records: int = 10
    """At how many steps of the run noise is measured."""
    num_draws: int = 64
    """Random orders of all images; each gives one batch of every size."""
    num_examples: int = 600
    """From which the noise scale is estimated."""
    num_subsets: int = 10
    """How often so many are drawn at every recorded step."""


QUICK = Config(max_examples=3000, num_steps=500, num_records=4, num_draws=60, num_examples=300, num_subsets=5)
SUMMARY = (
    "both laws hold up to M = {population_size}; B grows from {first:.3g} to {last:.3g}, and intervals of "
    "{num_examples} images hold it at {covered:.0%} of the points"
)


def compute(config: Config) -> Arrays:
    """A run; at recorded steps of it, what is exact, and what few images say; at its ends, curves."""
    steps = np.unique([0, *np.geomspace(10, config.num_steps, config.num_records).round().astype(int)])
    weights, running, drawing = jax.random.split(config.key(), 3)
    with jax.enable_x64(False):
        task = _tasks.named("clothes")
        train = jax.tree.map(lambda leaf: leaf[: config.max_examples], task.data)
        result = training.run_sgd(
            task.loss_fn,
            task.init(weights),
            train,
            optax.sgd(config.learning_rate),
            designs.WithReplacement(config.batch_size),
            config.num_steps,
            running,
            monitors=[monitors.noise_scale(decay=0.98, population_size=len(train["y"]))],
            record_every=10,
            keep_params_at=steps.tolist(),
            eval_data=jax.tree.map(lambda leaf: leaf[:2], train),
        )
        kept = [jax.tree.map(lambda leaf, k=k: leaf[k], result.kept_params) for k in range(len(steps))]
        rows = [
            measure(task, params, train, config, jax.random.fold_in(drawing, step))
            for step, params in progress(list(zip(steps.tolist(), kept, strict=True)), "steps")
        ]
        ends = [curves(task.loss_fn, kept[k], train, config, jax.random.fold_in(drawing, 10**6 + k)) for k in (0, -1)]
    read = {f"read{end}": result.metrics[f"noise_scale{end}"] for end in ("", "_low", "_high")}
    sizes = {"population_size": len(train["y"]), "num_examples": config.num_examples, "batch_size": config.batch_size}
    return table(rows) | table(ends, "curve/") | read | {"read_steps": result.steps, "steps": steps} | sizes


def measure(task: _tasks.Task, params: PyTree, train: PyTree, config: Config, key: Array) -> dict[str, Any]:
    """Losses and the noise scale of all images at one θ, and intervals for it of some."""
    moments = jaxsgd.gradient_moments(task.loss_fn, params, train, chunk_size=500)
    keys = jax.random.split(key, config.num_subsets)
    low, high = _intervals(task.loss_fn, config.num_examples, params, train, keys)
    return {
        "trace": moments.trace_covariance(ddof=0),
        "signal": moments.squared_mean_norm,
        "loss": moments.mean_loss,
        "held_out": problems.mean_loss(task.loss_fn, params, task.held_out),
        "low": low,
        "high": high,
    }


@partial(jax.jit, static_argnums=(0, 1))
def _intervals(loss_fn: Any, count: int, params: PyTree, data: PyTree, keys: Array) -> tuple[Array, Array]:
    N = len(data["y"])

    def one(key: Array) -> tuple[Array, Array]:
        some = designs.WithoutReplacement(count).indices(key, N)
        g = jaxsgd.per_example_gradients(loss_fn)(params, jax.tree.map(lambda leaf: leaf[some], data))
        scale = jaxsgd.noise_scale(g, population_size=N)
        return scale.low, scale.high

    return jax.lax.map(one, keys)


def curves(loss_fn: Any, params: PyTree, data: PyTree, config: Config, key: Array) -> dict[str, Any]:
    """Both laws and both Monte Carlo curves at one θ."""
    N = len(data["y"])
    sizes = np.unique(np.concatenate([np.geomspace(1, N, 36), np.linspace(N / 12, N, 12)]).round().astype(int))
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    moments = jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=500)
    found: dict[str, Any] = {"sizes": sizes, "trace": moments.trace_covariance(ddof=0)}
    for design in DESIGNS:
        bar = partial(progress, description=design.replace("_", " "))
        options = {"key": key, "num_draws": config.num_draws, "chunk_size": 4}
        drawn = estimators.monte_carlo_curve(g, sizes, design=design, progress=bar, **options)
        found[f"{design}/exact"] = estimators.variance_curve(moments, sizes, design=design).variance
        found |= {f"{design}/drawn": drawn.variance, f"{design}/standard_error": drawn.standard_error}
    return found


def check(results: Arrays) -> Claims:
    """Confirm both laws at all sizes and the coverage; refute 1/M without replacement, and that B stays."""
    N, B = int(results["population_size"]), results["trace"] / results["signal"]
    claims = Claims(population_size=N, num_examples=results["num_examples"], first=B[0], last=B[-1], largest=B.max())
    sizes, trace = results["curve/sizes"][0], results["curve/trace"][:, None]
    for design in DESIGNS:
        drawn, exact, error = (results[f"curve/{design}/{name}"] for name in ("drawn", "exact", "standard_error"))
        some = sizes < N if design == DESIGNS[0] else sizes > 0
        z = ((drawn - exact) / error)[:, some]
        claims.agree(
            z, f"the variance {design.replace('_', ' ')} is", enter=f"{design}/worst_z", end=range(2), M=sizes[some]
        )
    drawn, error = (results[f"curve/without_replacement/{name}"] for name in ("drawn", "standard_error"))
    claims.below(drawn[:, -1:] * N / trace, 1e-4, "drawn full batches must agree, got a variance of {:.1e} tr Σ/N")
    large = (sizes > N / 2) & (sizes < N)
    claims.reject(
        ((drawn - trace / sizes) / error)[:, large], "that 1/M is all, at M > N/2,", side=-1, enter="weakest_rejection"
    )
    claims.above(B[-1] / B[0], 10, "the noise scale must grow tenfold, got a factor of {:.3g}", enter="growth")
    claims.below(results["held_out"][-1] / results["held_out"][0], 0.5, "the held-out loss must fall by half")
    held = (results["low"] <= B[:, None]) & (B[:, None] <= results["high"])
    message = "intervals of few images must hold the noise scale of all at 90 % of the points, got {:.3f}"
    claims.above(held.mean(), 0.9, message, enter="covered")
    claims["least_held_out"] = results["held_out"].min()
    return claims


def draw(results: Arrays) -> Figure:
    """Variances at both ends of the run, the noise scale along it, and losses."""
    return page_of(results, _draw_curves, _draw_noise, _draw_losses, ratio=0.8)


def _draw_curves(axes: Any, results: Arrays) -> None:
    """Filled points are without replacement, empty ones with it."""
    sizes, N = results["curve/sizes"][0], int(results["population_size"])
    grid = np.unique(np.geomspace(1, N, 300).round())
    for k, label in enumerate(("initialization", f"step {results['steps'][-1]}")):
        trace, style = results["curve/trace"][k], mark(k)
        axes.plot(grid, trace / grid, color=style["color"], linestyle=DASHED)
        axes.plot(grid[:-1], trace * (N - grid[:-1]) / (grid[:-1] * (N - 1)), color=style["color"])
        for design, hollow in zip(DESIGNS, (False, True), strict=True):
            drawn = np.where(sizes < N, results[f"curve/{design}/drawn"][k], np.nan)
            text = None if hollow else label
            axes.plot(sizes[2 * hollow :: 4], drawn[2 * hollow :: 4], **mark(k, line="none", hollow=hollow), label=text)
    axes.plot([], [], **mark(0, line=DASHED, hollow=True) | {"color": "black"}, label="with replacement")
    height = r"$\mathbb{E}\,\|\hat g-\bar g\|^2$ (nats$^2$)"
    panel(axes, f"$N$ = {N:,} images", x="batch size $M$ (examples)", y=height, log="xy", legend="lower left")


def _draw_noise(axes: Any, results: Arrays) -> None:
    """What has no upper end ends at the edge."""
    steps, B, N = results["steps"], results["trace"] / results["signal"], results["population_size"]
    read, at, low, high = (results[name] for name in ("read", "read_steps", "low", "high"))
    top = 10 * N
    axes.fill_between(at, results["read_low"], np.minimum(results["read_high"], top), color="0.85", linewidth=0)
    axes.plot(at, np.where(read > 0, read, np.nan), color="0.5", linewidth=0.6, label="monitor, with its interval")
    x = steps[:, None] * np.geomspace(0.93, 1.07, low.shape[1])
    label = f"intervals of {results['num_examples']} images"
    axes.vlines(
        x.ravel(), low.ravel(), np.minimum(high, top).ravel(), color=mark(1)["color"], linewidth=0.6, label=label
    )
    axes.plot(steps, B, **mark(0, line="none"), label="exact", zorder=3)
    reference(axes, y=N)
    limits = {"xlim": (0.8 * steps[1], 1.2 * steps[-1]), "ylim": (0.5 * B[1:].min(), 100 * top)}
    panel(axes, "along a run", x="step", y="noise scale $B$ (examples)", log="xy", legend="upper left", **limits)
    powers = [10**k for k in range(1, 5)]
    axes.set_yticks([*powers, top], [f"$10^{k}$" for k in range(1, 5)] + [r"$\infty$"])
    axes.minorticks_off()


def _draw_losses(axes: Any, results: Arrays) -> None:
    for k, (name, label) in enumerate({"loss": "trained on", "held_out": "held out"}.items()):
        axes.plot(results["steps"][1:], results[name][1:], **mark(k, hollow=k == 1), label=label)
    panel(axes, "mean loss", x="step", y="cross-entropy (nats)", log="xy", legend="upper right")
    axes.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
    axes.minorticks_off()
