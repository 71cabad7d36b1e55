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
from experiments._panels import COLORS, DASHED, DOTTED, SKY, mark, page_of, panel, reference, series
from jaxsgd import batch_size, designs, problems, training

RULES = ("norm, unbiased", "norm, published", "inner product")
ASKED = ("norm", "inner product", "CABS")
SCALES = (4, 16, 64)
THETA, NU = 0.9, 5.67
STATISTICS = ("norm", "inner_product", "orthogonality", "unbiased_norm")


class Config(Seeded):
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


QUICK = Config(num_draws=300, growth=4)
SUMMARY = (
    "with θ = 1 and x > 2, at least {passing[published]:.0%} of the batches pass the published norm test, at most "
    "{passing[unbiased]:.0%} the unbiased one"
)


def compute(config: Config) -> Arrays:
    """Statistics along gradient descent, and runs whose batches grow."""
    draw_key, run_key = jax.random.split(config.key())
    problem = problems.breast_cancer_logistic()
    steps = [0, *(2**k for k in range(config.num_records - 1))]
    optimizer = optax.sgd(config.learning_rate)  # one object, so that runs share their compilations
    full = designs.WithoutReplacement(len(problem.data["y"]))
    kept = training.run_sgd(*problem, optimizer, full, steps[-1], jax.random.key(0), keep_params_at=steps).kept_params
    found = [
        measure(problem, jax.tree.map(lambda leaf, k=k: leaf[k], kept), config, jax.random.fold_in(draw_key, step))
        for k, step in enumerate(steps)
    ]
    runs = [grow(problem, rule, config, optimizer, run_key) for rule in RULES]
    settings = {"steps": steps, "batch_size": config.batch_size, "population_size": len(problem.data["y"])}
    return table(found) | table(runs, prefix="run/") | settings


def measure(problem: jaxsgd.Problem, params: PyTree, config: Config, key: Array) -> dict[str, Any]:
    """What is exact at θ, what batches say, and what every rule asks for."""
    g = jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)
    N, mean = g.count, g.mean()
    exact = jaxsgd.noise_scale(g, population_size=N)
    along = g.inner_products(mean).var() / exact.squared_mean_norm**2
    keys = jax.random.split(key, config.num_draws)
    drawn = _statistics(problem.loss_fn, config.batch_size, params, problem.data, keys)
    loss, trace = g.losses().mean(), exact.trace_covariance
    size = partial(batch_size.critical_batch_size, relative_noise=THETA**2, population_size=N)
    return drawn | {
        "loss": loss,
        "noise_scale": exact.value,
        "along": along,
        "asked/norm": size(exact.value),
        "asked/inner product": max(size(along), size((exact.value - along) * THETA**2 / NU**2)),
        "asked/CABS": batch_size.cabs_batch_size(trace, loss, config.learning_rate),
        "asked/CABS, loss + 1": batch_size.cabs_batch_size(trace, loss + 1, config.learning_rate),
        "adascale": [batch_size.adascale_gain(exact.value, S, base_batch_size=config.batch_size) for S in SCALES],
    }


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


def grow(problem: jaxsgd.Problem, rule: str, config: Config, optimizer: Any, key: Array) -> dict[str, Any]:
    """SGD whose batch is multiplied whenever one of its size fails a test."""
    N = len(problem.data["y"])
    params, size, sizes, losses = problem.params, 8, [], []
    for number in range(config.num_rounds):
        round_key = jax.random.fold_in(key, number)
        tests = _tests(problem.loss_fn, size, params, problem.data, jax.random.fold_in(round_key, 1))
        if asked_by(rule, tests) > size:
            size = min(config.growth * size, N)
        settings = optimizer, designs.WithoutReplacement(size), config.steps_per_round, round_key
        result = training.run_sgd(problem.loss_fn, params, problem.data, *settings)
        params = result.params
        sizes.append(size)
        losses.append(result.metrics["loss"][-1])
    return {"sizes": sizes, "losses": losses}


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


def check(results: Arrays) -> Claims:
    """Confirm the identity, the limits of published and unbiased statistics, and that batches grow to all examples."""
    claims = Claims(population_size=results["population_size"], batch_size=results["batch_size"])
    gap = np.abs(results["norm"] - results["inner_product"] - results["orthogonality"])
    claims.below(gap, 1e-10, "norm = inner product + orthogonality must hold on every batch, off by {:.1e}")
    check_norm_tests(claims, results)
    less = results["asked/inner product"] / results["asked/norm"]
    claims.below(less, 1, "the inner-product test must ask for less, got {:.2f} times as much")
    change = np.min(results["asked/CABS, loss + 1"] / results["asked/CABS"])
    claims.below(change, 0.5, "CABS must change with a constant in the loss, got a factor of {:.2f}")
    gains = results["adascale"]
    claims.require((gains >= 1).all() and (gains <= SCALES).all(), "AdaScale's gain must lie between 1 and S")
    claims.above(gains[-1] / gains[0], 2, "AdaScale's gain must grow as the gradient drowns in noise, not {:.2f}-fold")
    claims["gain_of_16"] = gains[[0, -1], 1]
    rounds = dict(zip(RULES, (results["run/sizes"] < results["population_size"]).sum(axis=1), strict=True))
    claims["rounds_below_all"] = rounds
    unbiased, published, inner = rounds.values()
    claims.require(unbiased < results["run/sizes"].shape[1], "batches must grow to all examples")
    claims.require(unbiased < published, "the unbiased test must ask for more, and sooner")
    claims.require(published < inner, "the inner-product test must ask for less")
    return claims


def check_norm_tests(claims: Claims, results: Arrays) -> None:
    """What published and unbiased norm statistics tend to, and how many batches pass where the noise is large."""
    x = results["noise_scale"] / results["batch_size"]
    noise, norm = results["noise"], results["squared_norm"]
    published, honest = passing(results)
    most, few = published[x > 2].min(), honest[x > 2].max()
    claims.above(most, 0.5, "published: {:.0%} pass where x > 2")
    claims.below(few, most / 2, "unbiased: {:.0%} pass where x > 2")
    claims["passing"] = {"published": most, "unbiased": few}
    z = z_scores(noise - (x / (1 + x))[:, None] * norm, axis=1)
    claims.agree(z, "published norm statistics must tend to x/(1 + x),", enter="worst_z.published")
    claims.reject(z_scores(noise - x[:, None] * norm, axis=1), "that published norm statistics tend to x", side=-1)
    z = z_scores(noise - x[:, None] * (norm - noise), axis=1)
    claims.agree(z, "unbiased norm statistics must have parts of ratio x,", enter="worst_z.unbiased")


def passing(results: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The share of the batches that pass the norm test with θ = 1, as published and unbiased."""
    honest = (results["unbiased_norm"] > 0) & (results["unbiased_norm"] <= 1)
    return (results["noise"] <= results["squared_norm"]).mean(axis=1), honest.mean(axis=1)


def draw(results: Arrays) -> Figure:
    """Who passes, what the rules ask for, what larger batches gain, and batches that grow."""
    return page_of(results, _draw_statistics, _draw_asked, _draw_gain, _draw_runs, nrows=2, ratio=0.5)


def _draw_statistics(axes: Any, results: Arrays) -> None:
    x = results["noise_scale"] / results["batch_size"]
    order = np.argsort(x)
    published, honest = passing(results)
    axes.plot([x.min(), 1, 1, x.max()], [1, 1, 0, 0], color="black", linewidth=0.8, label="truth")
    axes.plot(x[order], honest[order], **mark(0), label="unbiased")
    axes.plot(x[order], published[order], **mark(1, line=DASHED, hollow=True), label="published")
    title = rf"pass the norm test, $\theta=1$, $m={int(results['batch_size'])}$"
    label = r"$x=\mathrm{tr}\,\Sigma/(m\|\bar g\|^2)$"
    panel(axes, title, x=label, y="share of the batches", log="x", legend="best")


def _draw_asked(axes: Any, results: Arrays) -> None:
    series(axes, results["steps"], {rule: results[f"asked/{rule}"] for rule in ASKED})
    axes.plot(results["steps"], results["asked/CABS, loss + 1"], color=SKY, linestyle=DASHED, label="CABS, loss + 1")
    reference(axes, y=results["population_size"])
    _steps(axes, results)
    outside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    panel(axes, "exact, at the same $\\theta$", y="batch size asked for (examples)", log="y", legend=outside)


def _draw_gain(axes: Any, results: Arrays) -> None:
    for place, S in enumerate(SCALES):
        axes.plot(results["steps"], results["adascale"][:, place], **mark(place), label=f"$S={S}$")
        reference(axes, y=S, color=COLORS[place])
    _steps(axes, results)
    axes.set_yscale("log", base=2)
    upper_left = {"loc": "upper left", "bbox_to_anchor": (0, 0.95)}
    title = f"$S$ batches of {int(results['batch_size'])} in place of one"
    panel(axes, title, y="AdaScale's gain (steps)", legend=upper_left)


def _steps(axes: Any, results: Arrays) -> None:
    """Steps 0, 1, 2, 4, … of gradient descent along the horizontal axis."""
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(-0.2, 1.3 * results["steps"][-1]), xlabel="step of gradient descent")


def _draw_runs(axes: Any, results: Arrays) -> None:
    rounds = np.arange(1, results["run/sizes"].shape[1] + 1)
    for place, (rule, line) in enumerate(zip(RULES, ("-", DASHED, DOTTED), strict=True)):
        style = {"drawstyle": "steps-mid", "markevery": (place, 4)}
        axes.plot(rounds, results["run/sizes"][place], **mark(place, line=line), **style, label=rule)
    reference(axes, y=results["population_size"])
    title = "doubled where a batch fails"
    panel(axes, title, x="round of SGD", y="batch size (examples)", log="y", legend="lower right")
