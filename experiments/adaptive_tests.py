"""With ‖ĝ‖² for ‖ḡ‖², the tests that let a batch grow pass too early; the inner-product test asks for less.

The norm statistic is the sum of the inner-product and the orthogonality statistic, on every batch. Published, it tends
to x/(1 + x) where it should be x = tr Σ/(m‖ḡ‖²), so with θ = 1 it lets most batches pass at any x; the unbiased form
does not. What both tests ask for grows with the noise; what CABS asks for changes when a constant is added to the loss.

Command    python -m experiments adaptive_tests
Run time   about 20 seconds on two cores
Expected   on breast cancer, with θ = 1 and x > 2, more than half of the batches pass the published norm test, and less
           than half of those the unbiased one; batches double from 8 to all 569, sooner with the unbiased form

Logistic regression is fitted by gradient descent, and batches are drawn at the same θ along it; then by SGD whose batch
is doubled whenever it fails a test.
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
from experiments._harness import require, z_scores
from experiments._style import COLORS, MARKERS, page
from jaxsgd import batch_size, designs, problems, training

RULES = ("norm, unbiased", "norm, published", "inner product")
ASKED = ("norm", "inner product", "CABS")
SCALES = (4, 16, 64)
THETA, NU = 0.9, 5.67
MAX_Z = 4.5
STATISTICS = ("norm", "inner_product", "orthogonality", "unbiased_norm")


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    batch_size: int = 32
    """Examples in the batches that are tested along gradient descent."""
    num_draws: int = 2000
    """How many of them at each step."""
    num_records: int = 10
    """At how many steps, each twice the one before."""
    learning_rate: float = 0.5
    """Of gradient descent and of SGD."""
    num_rounds: int = 40
    """How often SGD's batch size is set."""
    steps_per_round: int = 16
    """Steps in between."""
    growth: int = 2
    """By how much a batch that fails a test is multiplied."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(num_draws=300, growth=4)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Statistics along gradient descent, and runs whose batches grow."""
    draw_key, run_key = jax.random.split(jax.random.key(config.seed))
    problem = problems.breast_cancer_logistic()
    found, step, params = [], 0, problem.params
    steps = [0, *(2**k for k in range(config.num_records - 1))]
    optimizer = optax.sgd(config.learning_rate)  # one object, so that runs share their compilations
    for to in steps:
        if to > step:
            params, step = descend(problem, params, to - step, optimizer), to
        found.append(measure(problem, params, config, jax.random.fold_in(draw_key, to)))
    runs = [grow(problem, rule, config, optimizer, run_key) for rule in RULES]
    return (
        {name: np.array([each[name] for each in found]) for name in found[0]}
        | {f"run/{name}": np.array([each[name] for each in runs]) for name in runs[0]}
        | {"steps": np.array(steps), "batch_size": np.array(config.batch_size)}
        | {"population_size": np.array(len(problem.data["y"]))}
    )


def descend(problem: jaxsgd.Problem, params: PyTree, num_steps: int, optimizer: Any) -> PyTree:
    """Gradient descent: SGD with the full batch."""
    design = designs.WithoutReplacement(len(problem.data["y"]))
    return training.run_sgd(
        problem.loss_fn, params, problem.data, optimizer, design, num_steps, jax.random.key(0)
    ).params


def measure(problem: jaxsgd.Problem, params: PyTree, config: Config, key: Array) -> dict[str, Any]:
    """What is exact at θ, what batches say, and what every rule asks for."""
    g = jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)
    N, mean = g.count, g.mean()
    exact = jaxsgd.noise_scale(g, population_size=N)
    squared_norm = float(exact.squared_mean_norm)
    along = float(g.inner_products(mean).var()) / squared_norm**2
    keys = jax.random.split(key, config.num_draws)
    drawn = _statistics(problem.loss_fn, config.batch_size, params, problem.data, keys)
    loss, trace = float(g.losses().mean()), float(exact.trace_covariance)
    gain = partial(batch_size.adascale_gain, base_batch_size=config.batch_size)
    size = partial(batch_size.critical_batch_size, relative_noise=THETA**2, population_size=N)
    return {
        "loss": loss,
        "noise_scale": float(exact.value),
        "along": along,
        "asked/norm": float(size(exact.value)),
        "asked/inner product": max(
            float(size(along)),
            float(size((float(exact.value) - along) * THETA**2 / NU**2)),
        ),
        "asked/CABS": float(batch_size.cabs_batch_size(trace, loss, config.learning_rate)),
        "asked/CABS, loss + 1": float(batch_size.cabs_batch_size(trace, loss + 1, config.learning_rate)),
        "adascale": [float(gain(exact.value, S)) for S in SCALES],
    } | {name: np.asarray(value) for name, value in drawn.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _statistics(loss_fn: Any, size: int, params: PyTree, data: PyTree, keys: Array) -> dict[str, Array]:
    """The statistics of one batch of independent examples for each key."""
    N = len(jax.tree.leaves(data)[0])

    def one(key: Array) -> dict[str, Array]:
        chosen = designs.WithReplacement(size).indices(key, N)
        g = jaxsgd.per_example_gradients(loss_fn)(params, jax.tree.map(lambda leaf: leaf[chosen], data))
        tests, sample = batch_size.gradient_tests(g), jaxsgd.noise_scale(g)
        noise = sample.trace_covariance / size
        parts = {"noise": noise, "squared_norm": sample.squared_mean_norm + noise}
        return parts | {name: getattr(tests, name) for name in STATISTICS}

    return jax.lax.map(one, keys, batch_size=50)


def grow(problem: jaxsgd.Problem, rule: str, config: Config, optimizer: Any, key: Array) -> dict[str, np.ndarray]:
    """SGD whose batch is multiplied whenever one of its size fails a test."""
    N = len(problem.data["y"])
    params, size, sizes, losses = problem.params, 8, [], []
    for number in range(config.num_rounds):
        round_key = jax.random.fold_in(key, number)
        tests = _tests(problem.loss_fn, size, params, problem.data, jax.random.fold_in(round_key, 1))
        if asked_by(rule, tests) > size:
            size = min(config.growth * size, N)
        result = training.run_sgd(
            problem.loss_fn,
            params,
            problem.data,
            optimizer,
            designs.WithoutReplacement(size),
            config.steps_per_round,
            round_key,
        )
        params = result.params
        sizes.append(size)
        losses.append(float(result.metrics["loss"][-1]))
    return {"sizes": np.array(sizes), "losses": np.array(losses)}


@partial(jax.jit, static_argnums=(0, 1))
def _tests(loss_fn: Any, size: int, params: PyTree, data: PyTree, key: Array) -> batch_size.GradientTests:
    """The statistics of one batch of different examples."""
    chosen = designs.WithoutReplacement(size).indices(key, len(jax.tree.leaves(data)[0]))
    g = jaxsgd.per_example_gradients(loss_fn)(params, jax.tree.map(lambda leaf: leaf[chosen], data))
    return batch_size.gradient_tests(g)


def asked_by(rule: str, tests: batch_size.GradientTests) -> float:
    """The batch size at which a rule would be content."""
    if rule == "inner product":
        return float(tests.batch_size(theta=THETA, nu=NU, unbiased=False))
    return float(tests.norm_batch_size(theta=THETA, unbiased=rule == "norm, unbiased"))


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm the identity, the limits of published and unbiased statistics, and that batches grow to all examples."""
    N, m = int(results["population_size"]), int(results["batch_size"])
    x = results["noise_scale"] / m
    gap = np.abs(results["norm"] - results["inner_product"] - results["orthogonality"]).max()
    require(gap < 1e-10, f"norm = inner product + orthogonality must hold on every batch, off by {gap:.1e}")
    published, honest = passing(results)
    noisy = x > 2
    require(noisy.any() and published[noisy].min() > 0.5, f"published: {published[noisy].min():.0%} pass where x > 2")
    require(honest[noisy].max() < published[noisy].min() / 2, f"unbiased: {honest[noisy].max():.0%} pass where x > 2")
    z = z_scores(results["noise"] - (x / (1 + x))[:, None] * results["squared_norm"], axis=1)
    worst = float(z[np.argmax(np.abs(z))])
    require(abs(worst) <= MAX_Z, f"published norm statistics must tend to x/(1 + x), {worst:.1f} standard errors off")
    z = z_scores(results["noise"] - x[:, None] * results["squared_norm"], axis=1).max()
    require(z < -MAX_Z, f"that published norm statistics tend to x must be rejected, got z = {z:.1f}")
    z = z_scores(results["noise"] - x[:, None] * (results["squared_norm"] - results["noise"]), axis=1)
    unbiased = float(z[np.argmax(np.abs(z))])
    require(abs(unbiased) <= MAX_Z, f"unbiased norm statistics must have parts of ratio x, {unbiased:.1f} off")
    require((results["asked/inner product"] < results["asked/norm"]).all(), "the inner-product test must ask for less")
    change = (results["asked/CABS, loss + 1"] / results["asked/CABS"]).min()
    require(change < 0.5, f"CABS must change with a constant in the loss, got a factor of {change:.2f}")
    gains = results["adascale"]
    require((gains >= 1).all() and (gains <= SCALES).all(), "AdaScale's gain must lie between 1 and S")
    require((gains[-1] > 2 * gains[0]).all(), "AdaScale's gain must grow as the gradient drowns in noise")
    sizes = dict(zip(RULES, results["run/sizes"], strict=True))
    rounds = {rule: int((each < N).sum()) for rule, each in sizes.items()}
    require(rounds["norm, unbiased"] < len(sizes["norm, unbiased"]), "batches must grow to all examples")
    require(rounds["norm, unbiased"] < rounds["norm, published"], "the unbiased test must ask for more, and sooner")
    require(rounds["norm, published"] < rounds["inner product"], "the inner-product test must ask for less")
    return {
        "population_size": N,
        "batch_size": m,
        "worst_z": {"published": worst, "unbiased": unbiased},
        "passing": {"published": float(published[noisy].min()), "unbiased": float(honest[noisy].max())},
        "rounds_below_all": rounds,
        "gain_of_16": [float(gains[0, 1]), float(gains[-1, 1])],
    }


def passing(results: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The share of the batches that pass the norm test with θ = 1, as published and unbiased."""
    honest = (results["unbiased_norm"] > 0) & (results["unbiased_norm"] <= 1)
    return (results["noise"] <= results["squared_norm"]).mean(axis=1), honest.mean(axis=1)


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    share = findings["passing"]
    return (
        f"with θ = 1 and x > 2, at least {share['published']:.0%} of the batches pass the published norm test, at most "
        f"{share['unbiased']:.0%} the unbiased one"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Who passes, what the rules ask for, what larger batches gain, and batches that grow."""
    figure = Figure(figsize=page(nrows=2, ncols=2, height_to_width_ratio=0.5))
    (statistics, asked), (gain, runs) = figure.subplots(2, 2)
    _draw_statistics(statistics, results)
    _draw_asked(asked, results)
    _draw_gain(gain, results)
    _draw_runs(runs, results)
    return figure


def _draw_statistics(axes: Any, results: dict[str, np.ndarray]) -> None:
    x = results["noise_scale"] / results["batch_size"]
    order = np.argsort(x)
    published, honest = passing(results)
    axes.plot([x.min(), 1, 1, x.max()], [1, 1, 0, 0], color="black", linewidth=0.8, label="truth")
    axes.plot(x[order], honest[order], color=COLORS[0], marker=MARKERS[0], label="unbiased")
    dashed = {"linestyle": (0, (3, 1.5)), "marker": MARKERS[1], "markerfacecolor": "white"}
    axes.plot(x[order], published[order], color=COLORS[1], label="published", **dashed)
    axes.set(xscale="log", xlabel=r"$x=\mathrm{tr}\,\Sigma/(m\|\bar g\|^2)$", ylabel="share of the batches")
    axes.set_title(rf"pass the norm test, $\theta=1$, $m={int(results['batch_size'])}$")
    axes.legend(fontsize="small")


def _draw_asked(axes: Any, results: dict[str, np.ndarray]) -> None:
    steps = results["steps"]
    for place, rule in enumerate(ASKED):
        axes.plot(steps, results[f"asked/{rule}"], color=COLORS[place], marker=MARKERS[place], label=rule)
    axes.plot(steps, results["asked/CABS, loss + 1"], color=COLORS[2], linestyle=(0, (3, 1.5)), label="CABS, loss + 1")
    axes.axhline(results["population_size"], color="gray", linewidth=0.7, linestyle=":")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        xlim=(-0.2, 1.3 * steps[-1]),
        yscale="log",
        xlabel="step of gradient descent",
        title="exact, at the same $\\theta$",
    )
    axes.set_ylabel("batch size asked for (examples)")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_gain(axes: Any, results: dict[str, np.ndarray]) -> None:
    steps = results["steps"]
    for place, S in enumerate(SCALES):
        axes.plot(steps, results["adascale"][:, place], color=COLORS[place], marker=MARKERS[place], label=f"$S={S}$")
        axes.axhline(S, color=COLORS[place], linewidth=0.7, linestyle=":")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log", base=2)
    axes.set(xlim=(-0.2, 1.3 * steps[-1]), xlabel="step of gradient descent", ylabel="AdaScale's gain (steps)")
    axes.set_title(f"$S$ batches of {int(results['batch_size'])} in place of one")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 0.95))


def _draw_runs(axes: Any, results: dict[str, np.ndarray]) -> None:
    rounds = np.arange(1, results["run/sizes"].shape[1] + 1)
    lines = ("-", (0, (3, 1.5)), (0, (1, 1)))
    for place, rule in enumerate(RULES):
        style = {"color": COLORS[place], "linestyle": lines[place], "drawstyle": "steps-mid"}
        axes.plot(rounds, results["run/sizes"][place], marker=MARKERS[place], markevery=(place, 4), label=rule, **style)
    axes.axhline(results["population_size"], color="gray", linewidth=0.7, linestyle=":")
    axes.set(yscale="log", xlabel="round of SGD", ylabel="batch size (examples)", title="doubled where a batch fails")
    axes.legend(fontsize="small", loc="lower right")
