"""For every batch size, a minibatch gradient is unbiased and one pass over the data gives its variance.

For 1 ≤ M ≤ N it is (N−M)/(M(N−1)) · tr Σ without replacement, and tr Σ / M with replacement.

Command    python -m experiments variance_vs_batch_size          (also with --data FILE.npz holding arrays x and y)
Run time   about 30 seconds on two cores
Expected   all 1797 batch sizes, two designs, three points of a training run: Monte Carlo variances and means within 4.5
           closed-form standard errors; 1/M without the factor (N−M)/(N−1) rejected at every M > N/2

The model is a network with one hidden layer on scikit-learn's digits, at initialization and at two later points of a
short Optax run. The lines are the closed forms. The points are batches really drawn: one random order of all examples
gives one batch of every size, so that the deviations of one curve at neighboring sizes are nearly the same number.
"""

import itertools
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
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress, table
from experiments._panels import DASHED, column, mark, note, panel
from jaxsgd import designs, estimators, problems, sources

DESIGNS: tuple[estimators.DesignName, ...] = ("without_replacement", "with_replacement")


class Config(Seeded):
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


QUICK = Config(max_examples=300, steps=(20, 200), num_draws=200)


def compute(config: Config) -> Arrays:
    """Train, and at three points take the closed forms and the Monte Carlo curves of both designs."""
    data_key, train_key, draw_key = jax.random.split(config.key(), 3)
    problem, available = load(config, data_key)
    points = trajectory(problem, config, train_key)
    return table([measure(problem, params, config, draw_key, step) for step, params in points.items()]) | {
        "step": list(points),
        "num_draws": config.num_draws,
        "available": available,
        "classification": np.issubdtype(problem.data["y"].dtype, np.integer),
    }


def load(config: Config, key: jax.Array) -> tuple[jaxsgd.Problem, int]:
    """The problem, and how many examples there were before a subset was taken."""
    if config.max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {config.max_examples}")
    weight_key, subset_key = jax.random.split(key)
    network: Any = problems.digits_mlp
    if config.data:
        arrays = sources.load(config.data)
        names = list(arrays) if isinstance(arrays, dict) else []
        if not {"x", "y"} <= set(names):
            raise ValueError(f"{config.data} must hold arrays x and y, got {', '.join(names) or 'none'}")
        network = partial(problems.mlp, arrays["x"], arrays["y"])
    problem = network(key=weight_key, hidden=config.hidden, activation=config.activation)
    available = len(problem.data["x"])
    if available > config.max_examples:
        chosen = designs.WithoutReplacement(config.max_examples).indices(subset_key, available)
        problem = problem.take(jnp.sort(chosen))
    if len(problem.data["x"]) < 4:
        raise ValueError(f"data must have at least 4 examples, got {available}")
    return problem, available


def trajectory(problem: jaxsgd.Problem, config: Config, key: jax.Array) -> dict[int, Any]:
    """The parameters after 0 and after each of ``config.steps`` steps of SGD; step t draws with ``fold_in(key, t)``."""
    optimizer, design = optax.sgd(config.learning_rate), designs.WithoutReplacement(config.batch_size)
    batches = designs.batches(design, len(problem.data["y"]))

    @jax.jit
    def train(state: Any, steps: jax.Array) -> Any:
        def step(state: Any, t: jax.Array) -> tuple[Any, None]:
            params, optimizer_state, batches_state = state
            batches_state, draw = batches(batches_state, key, t)
            batch = draw.take(problem.data)
            gradient = jax.grad(lambda p: jax.vmap(problem.loss_fn, in_axes=(None, 0))(p, batch).mean())(params)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            return (optax.apply_updates(params, updates), optimizer_state, batches_state), None

        return jax.lax.scan(step, state, steps)[0]

    points, state = {0: problem.params}, (problem.params, optimizer.init(problem.params), batches.start())
    for start, stop in itertools.pairwise((0, *config.steps)):
        if stop <= start:
            raise ValueError(f"steps must be positive and increasing, got {config.steps}")
        state = train(state, jnp.arange(start, stop))
        points[stop] = state[0]
    return points


def measure(problem: jaxsgd.Problem, params: Any, config: Config, key: jax.Array, step: int) -> dict[str, Any]:
    """Closed forms and Monte Carlo curves of both designs at one θ."""
    moments = jaxsgd.gradient_moments(problem.loss_fn, params, problem.data, chunk_size=256)
    gradients = jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)
    result = {
        "mean_loss": moments.mean_loss,
        "trace_covariance": moments.trace_covariance(ddof=0),
        "squared_mean_norm": moments.squared_mean_norm,
    }
    for design in DESIGNS:
        law = estimators.squared_error_law(gradients, design=design)
        bar = partial(progress, description=f"step {step}, {design.replace('_', ' ')}")
        options = {"key": jax.random.fold_in(key, step), "num_draws": config.num_draws, "chunk_size": 16}
        drawn = estimators.monte_carlo_curve(gradients, design=design, progress=bar, **options)
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


def check(results: Arrays) -> Claims:
    """Confirm the claim at every batch size, and that the law without its correction is rejected."""
    trace, N = results["trace_covariance"], results["with_replacement/exact"].shape[1]
    claims = Claims(population_size=N, num_draws=results["num_draws"], available_examples=results["available"])
    places = {"step": results["step"], "M": range(1, N + 1)}
    for design in DESIGNS:
        for what in ("variance", "mean"):
            name = f"the {what} {design.replace('_', ' ')} is"
            claims.agree(results[f"{design}/z_{what}"], name, enter=f"{design}/worst_z_{what}", **places)
    full = results["without_replacement/exact"][:, -1]
    claims.equal(full, 0, "the full batch without replacement must have variance 0, got {}", atol=0)
    drawn = results["without_replacement/drawn"][:, -1] / trace
    claims.below(drawn, 1e-12, "drawn full batches must agree to rounding, got a variance of {:.1e} tr Σ")
    z, wrong = results["z_wrong_law"][:, N // 2 : -1], "without replacement, at every M > N/2, the 1/M law"
    claims.reject(z, wrong, side=-1, enter="weakest_rejection_of_1/M")
    return claims | {name: results[name] for name in ("trace_covariance", "squared_mean_norm", "mean_loss")}


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    size, available = findings["population_size"], findings["available_examples"]
    worst = max(abs(value) for name, value in findings.items() if "worst_z" in name)
    subset = f" (a random subset of {available}; see --max-examples)" if size < available else ""
    return (
        f"both laws hold at all {size} batch sizes{subset}, worst deviation {worst:.1f} standard errors; "
        f"1/M alone is rejected at every M > {size // 2}"
    )


def draw(results: Arrays) -> Figure:
    """Variance against batch size on top, the ratio of the two designs below."""
    figure = column(nrows=2, height_to_width_ratio=0.62)
    top, bottom = figure.subplots(2, 1, height_ratios=(1.5, 1))
    _draw_variance(top, results)
    _draw_ratio(bottom, results)
    figure.align_ylabels()
    return figure


def _draw_variance(axes: Any, results: Arrays) -> None:
    """Variances of both designs, exact and drawn."""
    without, replaced = (results[f"{design}/exact"] for design in DESIGNS)
    size = len(replaced[0])
    sizes, shown = np.arange(1, size + 1), np.unique(np.round(np.geomspace(1, size - 1, 12)).astype(int))
    for point in range(len(without)):
        color = mark(point)["color"]
        axes.plot(sizes[:-1], without[point, :-1], color=color)
        axes.plot(sizes, replaced[point], color=color, linestyle=DASHED)
        _draw_points(axes, results, point, shown)
    unit = "nats$^2$" if results["classification"] else "loss$^2$"
    height = rf"$\mathbb{{E}}\,\|\hat g-\bar g\|^2$ ({unit})"
    panel(axes, x="batch size $M$ (examples)", y=height, log="xy")
    axes.set_ylim(bottom=without[:, min(size - 2, int(0.97 * size))].min())
    handles = [
        Line2D([], [], color="black", marker="o", label="without replacement"),
        Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle=DASHED, label="with replacement"),
    ]
    for point, step in enumerate(results["step"]):
        handles.append(Line2D([], [], **mark(point, line="none"), label=f"step {step}" if step else "initialization"))
    axes.legend(handles=handles, loc="lower left", labelspacing=0.3)


def _draw_ratio(axes: Any, results: Arrays) -> None:
    """Drawn variances of both designs as multiples of tr Σ / M, on a linear axis."""
    law = results["with_replacement/exact"]
    size = law.shape[1]
    sizes, thin = np.arange(1, size + 1), {"color": "black", "linewidth": 0.8}
    axes.plot(sizes, np.ones(size), **thin, linestyle=DASHED)
    axes.plot(sizes, (size - sizes) / (size - 1), **thin)
    for point in range(len(law)):
        offset = (2 - point) * 0.018 * size  # each θ has batch sizes of its own, so that no point hides another
        places = np.unique(np.clip(np.linspace(size / 12, size, 12) - offset, 1, size).astype(int))
        _draw_points(axes, results, point, places, unit=law[point, places - 1])
    note(axes, 0.56 * size, 0.53, "$(N-M)/(N-1)$")
    ratio, limits = (
        r"variance $\div$ $\mathrm{tr}\,\Sigma/M$",
        {"ylim": (-0.04, None), "xlim": (-0.02 * size, 1.03 * size)},
    )
    panel(axes, x="batch size $M$ (examples)", y=ratio, **limits)
    axes.xaxis.set_major_locator(FixedLocator([1, size // 4, size // 2, 3 * size // 4, size]))


def _draw_points(axes: Any, results: Arrays, point: int, sizes: np.ndarray, unit: Any = 1) -> None:
    """Variances drawn at one θ, filled markers without replacement and empty ones with it."""
    for design in DESIGNS:
        face = mark(point, line="none") | {"markerfacecolor": mark(point)["color"]}
        style = face if design == "without_replacement" else mark(point, line="none", hollow=True)
        drawn, error = (
            results[f"{design}/{name}"][point, sizes - 1] / unit for name in ("drawn", "drawn_standard_error")
        )
        axes.errorbar(sizes, drawn, 2 * error, **style, markeredgewidth=0.7, elinewidth=0.7, zorder=3)
