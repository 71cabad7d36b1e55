"""For every batch size, a minibatch gradient is unbiased and one pass over the data gives its variance.

For 1 ≤ M ≤ N it is (N−M)/(M(N−1)) · tr Σ without replacement, and tr Σ / M with replacement.

Command    python -m experiments variance_vs_batch_size          (also with --data FILE.npz holding arrays x and y)
Run time   about 30 seconds on two cores
Expected   all 1797 batch sizes, two designs, three points of a training run: Monte Carlo variances and means within 4.5
           closed-form standard errors; 1/M without the factor (N−M)/(N−1) rejected at every M > N/2

The model is a network with one hidden layer on scikit-learn's digits, at initialization and at two later points of a
short Optax run. The lines are the closed forms. The points are batches really drawn: one random order of all examples
gives one batch of every size.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

import jaxsgd
from experiments._claims import require
from experiments._harness import progress
from experiments._panels import COLORS, MARKERS, column
from jaxsgd import designs, estimators, problems
from jaxsgd._core import files, validate

DESIGNS: tuple[estimators.DesignName, ...] = ("without_replacement", "with_replacement")
MAX_Z = 4.5


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    data: Path | None = None
    """An .npz file with arrays x (N, ...) and y (N,); integer y is classified, real y is fitted. Default: digits."""
    max_examples: int = 4096
    """With more examples than this, a random subset of this size is studied (Monte Carlo keeps an N x N matrix)."""
    hidden: int = 64
    """Width of the hidden layer."""
    activation: Literal["sigmoid", "tanh", "relu"] = "tanh"
    """Activation of the hidden layer."""
    learning_rate: float = 0.5
    """Step size of the SGD run."""
    batch_size: int = 32
    """Batch size of the SGD run."""
    steps: tuple[int, int] = (100, 1000)
    """The two later points: after how many steps the gradients are measured again."""
    num_draws: int = 400
    """Random orders per curve; each gives one batch of every size."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(max_examples=300, steps=(20, 200), num_draws=200)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Train, and at three points take the closed forms and the Monte Carlo curves of both designs."""
    data_key, train_key, draw_key = jax.random.split(jax.random.key(config.seed), 3)
    problem, available = load(config, data_key)
    points = trajectory(problem, config, train_key)
    measured = [measure(problem, params, config, draw_key, step) for step, params in points.items()]
    stacked = {name: np.stack([m[name] for m in measured]) for name in measured[0]}
    return stacked | {
        "step": np.array(list(points)),
        "num_draws": np.array(config.num_draws),
        "available": np.array(available),
        "classification": np.array(np.issubdtype(problem.data["y"].dtype, np.integer)),
    }


def load(config: Config, key: jax.Array) -> tuple[jaxsgd.Problem, int]:
    """The problem, and how many examples there were before a subset was taken."""
    arrays = files.read_arrays(config.data) if config.data else {}
    if config.data and not {"x", "y"} <= arrays.keys():
        raise ValueError(f"{config.data} must hold arrays x and y, got {', '.join(arrays) or 'none'}")
    validate.positive_integer(max_examples=config.max_examples)
    weight_key, subset_key = jax.random.split(key)
    network = partial(problems.mlp, arrays["x"], arrays["y"]) if config.data else problems.digits_mlp
    problem = network(key=weight_key, hidden=config.hidden, activation=config.activation)
    available = len(problem.data["x"])
    if available > config.max_examples:
        chosen = jnp.sort(designs.WithoutReplacement(config.max_examples).indices(subset_key, available))
        problem = problem._replace(data=jax.tree.map(lambda leaf: leaf[chosen], problem.data))
    if len(problem.data["x"]) < 4:
        raise ValueError(f"data must have at least 4 examples, got {available}")
    return problem, available


def trajectory(problem: jaxsgd.Problem, config: Config, key: jax.Array) -> dict[int, Any]:
    """The parameters after 0 and after each of ``config.steps`` steps of SGD."""
    points, state = {0: problem.params}, (problem.params, optax.sgd(config.learning_rate).init(problem.params))
    for start, stop in zip((0, *config.steps), config.steps, strict=False):
        if stop <= start:
            raise ValueError(f"steps must be positive and increasing, got {config.steps}")
        state = train(problem.loss_fn, config, problem.data, state, key, jnp.arange(start, stop))
        points[stop] = state[0]
    return points


@partial(jax.jit, static_argnums=(0, 1))
def train(loss_fn: Any, config: Config, data: Any, state: Any, key: jax.Array, steps: jax.Array) -> Any:
    """Steps of SGD with batches drawn without replacement; step t draws with ``fold_in(key, t)``."""
    optimizer = optax.sgd(config.learning_rate)
    design = designs.WithoutReplacement(config.batch_size)
    population_size = len(jax.tree.leaves(data)[0])

    def batch_loss(params: Any, batch: Any) -> jax.Array:
        return jax.vmap(loss_fn, in_axes=(None, 0))(params, batch).mean()

    def step(state: Any, t: jax.Array) -> tuple[Any, None]:
        params, optimizer_state = state
        indices = design.indices(jax.random.fold_in(key, t), population_size)
        gradient = jax.grad(batch_loss)(params, jax.tree.map(lambda leaf: leaf[indices], data))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(params, updates), optimizer_state), None

    return jax.lax.scan(step, state, steps)[0]


def measure(problem: jaxsgd.Problem, params: Any, config: Config, key: jax.Array, step: int) -> dict[str, np.ndarray]:
    """Closed forms and Monte Carlo curves of both designs at one θ."""
    moments = jaxsgd.gradient_moments(problem.loss_fn, params, problem.data, chunk_size=256)
    gradients = jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)
    result = {
        "mean_loss": np.asarray(moments.mean_loss),
        "trace_covariance": np.asarray(moments.trace_covariance(ddof=0)),
        "squared_mean_norm": np.asarray(moments.squared_mean_norm),
    }
    for design in DESIGNS:
        law = estimators.squared_error_law(gradients, design=design)
        drawn = estimators.monte_carlo_curve(
            gradients,
            key=jax.random.fold_in(key, step),
            num_draws=config.num_draws,
            design=design,
            chunk_size=16,
            progress=partial(progress, description=f"step {step}, {design.replace('_', ' ')}"),
        )
        result |= {
            f"{design}/exact": estimators.variance_curve(moments, design=design).variance,
            f"{design}/drawn": drawn.variance,
            f"{design}/drawn_standard_error": drawn.standard_error,
            f"{design}/z_variance": z_variance(law, drawn),
            f"{design}/z_mean": law.of_mean(drawn.num_draws).z_scores(drawn.squared_mean_error),
        }
    result["z_wrong_law"] = result["without_replacement/drawn"] - result["with_replacement/exact"]
    without = estimators.squared_error_law(gradients, design="without_replacement")
    result["z_wrong_law"][:-1] /= np.sqrt(without.variance[:-1] / config.num_draws)
    return result


def z_variance(law: estimators.SquaredErrorLaw, drawn: estimators.VarianceCurve) -> np.ndarray:
    """Drawn minus exact variance in closed-form standard errors; 0 where nothing is random."""
    standard_error = np.sqrt(law.variance / drawn.num_draws)
    random = standard_error > 0
    return np.divide(drawn.variance - law.mean, standard_error, out=np.zeros_like(law.mean), where=random)


def check(results: dict[str, np.ndarray]) -> dict[str, float]:
    """Confirm the claim at every batch size, and that the law without its correction is rejected."""
    population_size = results["with_replacement/exact"].shape[1]
    trace = results["trace_covariance"]
    findings = {"population_size": population_size, "num_draws": int(results["num_draws"])}
    for design in DESIGNS:
        for what in ("variance", "mean"):
            z = results[f"{design}/z_{what}"]
            point, worst = np.unravel_index(np.argmax(np.abs(z)), z.shape)
            findings[f"{design}/worst_z_{what}"] = float(z[point, worst])
            require(
                np.abs(z[point, worst]) <= MAX_Z,
                f"the {what} {design.replace('_', ' ')} is {z[point, worst]:.1f} standard errors off "
                f"at M = {worst + 1}, step {results['step'][point]}",
            )
    full = results["without_replacement/exact"][:, -1]
    require(np.all(full == 0), f"the full batch without replacement must have variance 0, got {full}")
    drawn = np.max(results["without_replacement/drawn"][:, -1] / trace)
    require(drawn < 1e-12, f"drawn full batches must agree to rounding, got a variance of {drawn:.1e} tr Σ")
    control = results["z_wrong_law"][:, population_size // 2 : -1]
    require(
        np.all(control < -MAX_Z),
        f"the 1/M law must be rejected without replacement at every M > N/2, got z = {control.max():.1f}",
    )
    return findings | {
        "weakest_rejection_of_1/M": float(control.max()),
        "trace_covariance": trace.tolist(),
        "squared_mean_norm": results["squared_mean_norm"].tolist(),
        "mean_loss": results["mean_loss"].tolist(),
        "available_examples": int(results["available"]),
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    size, available = findings["population_size"], findings["available_examples"]
    worst = max(abs(findings[f"{design}/worst_z_{what}"]) for design in DESIGNS for what in ("variance", "mean"))
    subset = f" (a random subset of {available}; see --max-examples)" if size < available else ""
    return (
        f"both laws hold at all {size} batch sizes{subset}, worst deviation {worst:.1f} standard errors; "
        f"1/M alone is rejected at every M > {size // 2}"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Variance against batch size on top, the ratio of the two designs below."""
    figure = column(nrows=2, height_to_width_ratio=0.62)
    top, bottom = figure.subplots(2, 1, height_ratios=(1.5, 1))
    exact = {design: results[f"{design}/exact"] for design in DESIGNS}
    size = exact["with_replacement"].shape[1]
    sizes = np.arange(1, size + 1)
    shown = np.unique(np.round(np.geomspace(1, size - 1, 12)).astype(int))
    for point, (color, marker) in enumerate(zip(COLORS, MARKERS, strict=True)):
        top.plot(sizes[:-1], exact["without_replacement"][point, :-1], color=color)
        top.plot(sizes, exact["with_replacement"][point], color=color, linestyle=(0, (3, 1.5)))
        for design, face in (("without_replacement", color), ("with_replacement", "white")):
            top.errorbar(
                shown,
                results[f"{design}/drawn"][point, shown - 1],
                2 * results[f"{design}/drawn_standard_error"][point, shown - 1],
                **_points(color, marker, face),
            )
    top.set(xscale="log", yscale="log", xlabel="batch size $M$ (examples)", ylabel=_variance_label(results))
    smallest = exact["without_replacement"][:, min(size - 2, int(0.97 * size))].min()
    top.set_ylim(bottom=smallest)
    _legends(top, results)
    _draw_ratio(bottom, results, size)
    figure.align_ylabels()
    return figure


def _draw_ratio(axes: Any, results: dict[str, np.ndarray], size: int) -> None:
    """Drawn variances of both designs as multiples of tr Σ / M, on a linear axis."""
    sizes = np.arange(1, size + 1)
    axes.plot(sizes, np.ones(size), color="black", linewidth=0.8, linestyle=(0, (3, 1.5)))
    axes.plot(sizes, (size - sizes) / (size - 1), color="black", linewidth=0.8)
    for point, (color, marker) in enumerate(zip(COLORS, MARKERS, strict=True)):
        offset = (2 - point) * 0.018 * size  # each θ has batch sizes of its own, so that no point hides another
        places = np.unique(np.clip(np.linspace(size / 12, size, 12) - offset, 1, size).astype(int))
        law = results["with_replacement/exact"][point, places - 1]
        for design, face in (("without_replacement", color), ("with_replacement", "white")):
            drawn = results[f"{design}/drawn"][point, places - 1] / law
            error = 2 * results[f"{design}/drawn_standard_error"][point, places - 1] / law
            axes.errorbar(places, drawn, error, **_points(color, marker, face))
    axes.text(0.56 * size, 0.53, "$(N-M)/(N-1)$", fontsize="small")
    axes.set(
        xlabel="batch size $M$ (examples)",
        ylabel=r"variance $\div$ $\mathrm{tr}\,\Sigma/M$",
        ylim=(-0.04, None),
        xlim=(-0.02 * size, 1.03 * size),
    )
    axes.xaxis.set_major_locator(FixedLocator([1, size // 4, size // 2, 3 * size // 4, size]))


def _points(color: str, marker: str, face: str) -> dict[str, Any]:
    return {
        "color": color,
        "marker": marker,
        "markerfacecolor": face,
        "markeredgewidth": 0.7,
        "linestyle": "none",
        "elinewidth": 0.7,
        "zorder": 3,
    }


def _variance_label(results: dict[str, np.ndarray]) -> str:
    unit = "nats$^2$" if results["classification"] else "loss$^2$"
    return rf"$\mathbb{{E}}\,\|\hat g-\bar g\|^2$ ({unit})"


def _legends(axes: Any, results: dict[str, np.ndarray]) -> None:
    steps = [
        Line2D(
            [],
            [],
            color=color,
            marker=marker,
            linestyle="none",
            label="initialization" if step == 0 else f"step {step}",
        )
        for step, color, marker in zip(results["step"], COLORS, MARKERS, strict=True)
    ]
    designs_shown = [
        Line2D([], [], color="black", marker="o", label="without replacement"),
        Line2D(
            [],
            [],
            color="black",
            marker="o",
            markerfacecolor="white",
            linestyle=(0, (3, 1.5)),
            label="with replacement",
        ),
    ]
    axes.legend(handles=[*designs_shown, *steps], loc="lower left", fontsize="small", labelspacing=0.3)
