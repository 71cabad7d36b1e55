"""Steps against examples to a target loss lie on a hyperbola, whose critical batch size is near the mean noise scale.

With the learning rate tuned for each batch size M, small batches take the fewest examples and large ones the fewest
steps: (S/S_min − 1)(E/E_min − 1) = 1 (McCandlish, Kaplan, Amodei et al., arXiv:1812.06162, 2018). The mean along a
tuned run of B_noise = tr HΣ/ḡᵀHḡ and of B_simple = tr Σ/‖ḡ‖² tells B_crit = E_min/S_min within a factor of 3. Along a
large-batch run at a quarter of the best rate it does not: noise scales are properties of where the run goes.

Command    python -m experiments critical_batch_size
Run time   about 40 seconds on two cores
Expected   a network on the digits within 20% of the hyperbola at every batch size and target, B_crit rising as the
           target falls; the noisy quadratic of Zhang et al. (NeurIPS 2019), solved exactly, within 15%, from perfect
           scaling (steps ∝ 1/M) to a plateau, and its mean noise scale within a factor of 3 up to M = 16 B_crit

Above: steps and examples to three targets, points measured, lines fitted; noise scales averaged along runs to the
middle target, and B_crit with a factor of 3 around it; B_noise of the slow run is a median, as it has no stable mean.
Below: the noisy quadratic, and the mean noise scale along its runs.
"""

from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Settings, progress, table
from experiments._panels import BLUE, DOTTED, LONG_DASHED, ORANGE, mark, page_of, panel, reference
from jaxsgd import designs, dynamics, problems, training
from jaxsgd.batch_size import fit_tradeoff, steps_to_target

MAX_RESIDUAL, MAX_RESIDUAL_QUADRATIC, FACTOR, SLOWER, FOLLOWED_RUNS = 0.2, 0.15, 3.0, 4.0, 4


class Config(Settings):
    """Settings of the experiment."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 128, 512)
    """Batch sizes, drawn with replacement."""
    targets: tuple[float, ...] = (1.0, 0.5, 0.35)
    """Mean losses over all data, of which the run starts at 2.4; decreasing."""
    num_rates: int = 7
    """How many learning rates are tried at each batch size, each √2 times the one before."""
    num_runs: int = 8
    """Over how many runs the loss is averaged."""
    largest_rate: float = 1.6
    """The learning rates are centered at this number over (1 + half_size/M)."""
    half_size: float = 12.0
    """See largest_rate; how many steps are made goes with it too."""
    num_steps: int = 70
    """How many steps large batches make."""
    followed: tuple[int, ...] = (1, 16, 512)
    """Batch sizes of the runs along which noise scales are measured; the last one also at a quarter of its rate."""
    followed_target: int = 1
    """To which of the targets."""
    num_records: int = 8
    """How often they are measured along four runs each."""
    num_probes: int = 16
    """Of the trace of HΣ."""
    hidden: int = 16
    """The width of the digits network."""
    dimension: int = 1000
    """Of the noisy quadratic with curvatures 1/i."""
    quadratic_target: float = 0.1
    """The loss that the noisy quadratic is to reach, from 3.74 in 1000 dimensions."""
    num_sizes: int = 10
    """Batch sizes of the noisy quadratic, the powers of 4 from 1."""


QUICK = Config(
    batch_sizes=(2, 16, 256),
    targets=(1.2, 0.7),
    num_rates=5,
    num_runs=3,
    num_steps=45,
    followed=(256,),
    num_records=6,
    num_probes=4,
    hidden=8,
    dimension=100,
    quadratic_target=0.05,
    num_sizes=8,
)
SUMMARY = (
    "steps within {worst_residual:.0%} of hyperbolas with B_crit {critical_batch_sizes}; mean noise scales along tuned "
    "runs {least_over_critical:.2f} to {largest_over_critical:.2f} times it, at a quarter of the best rate "
    "{median_at_quarter_rate_over_critical:.0f} times; noisy quadratic within {quadratic_worst_residual:.0%}"
)


def compute(config: Config) -> Arrays:
    """Steps to every target at every batch size and rate; noise scales along the best runs; the noisy quadratic."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        problem = problems.digits_mlp(key=jax.random.key(0), hidden=config.hidden)
        found = table([swept(problem, M, config) for M in progress(config.batch_sizes, "batch sizes")])
        scales = noise_scales(problem, config.num_probes)
        runs = [(M, 1.0) for M in config.followed] + [(config.followed[-1], SLOWER)]
        along_runs = [along(problem, scales, *run, found, config) for run in progress(runs, "noise scales")]
    settings = {name: getattr(config, name) for name in ("batch_sizes", "targets", "followed", "followed_target")}
    return found | settings | {"noise_scales": along_runs} | quadratic(config)


def swept(problem: jaxsgd.Problem, batch_size: int, config: Config) -> Arrays:
    """The learning rates tried, and the steps of the mean loss to every target with each, shape (targets, rates)."""
    slower = 1 + config.half_size / batch_size
    rates = config.largest_rate / slower * 2 ** (np.arange(config.num_rates) / 2 - (config.num_rates - 1) / 4)
    num_steps = int(config.num_steps * (1 + 3 * config.half_size / batch_size))
    options = {"learning_rates": rates, "num_runs": config.num_runs, "record_every": max(num_steps // 50, 1)}
    result = run(problem, batch_size, num_steps, jax.random.fold_in(jax.random.key(1), batch_size), **options)
    losses = np.asarray(result.metrics["loss"]).mean(axis=1)
    steps = np.array([steps_to_target(result.steps, losses, target) for target in config.targets])
    return {"rates": rates, "steps": steps}


def run(problem: jaxsgd.Problem, batch_size: int, num_steps: int, key: Any, **options: Any) -> training.RunResult:
    """Several runs of SGD with replacement."""
    return training.run_sgd(*problem, optax.sgd, designs.WithReplacement(batch_size), num_steps, key, **options)


def along(
    problem: jaxsgd.Problem, scales: Any, batch_size: int, slower: float, tried: Arrays, config: Config
) -> np.ndarray:
    """Means of B_simple and B_noise along runs to the target, and the median of B_noise."""
    place, target = config.batch_sizes.index(batch_size), config.followed_target
    steps = tried["steps"][place, target]
    num_steps = int(slower * steps.min())
    rates = [tried["rates"][place, steps.argmin()] / slower]
    options = {"learning_rates": rates, "num_runs": FOLLOWED_RUNS, "eval_fn": scales}
    every = max(num_steps // config.num_records, 1)
    result = run(problem, batch_size, num_steps, jax.random.key(2), record_every=every, **options)
    before = np.asarray(result.metrics["loss"]).ravel() > config.targets[target]
    simple, curved = (np.asarray(result.metrics[name], float).ravel()[before] for name in ("simple", "curved"))
    return np.array([simple.mean(), curved.mean(), np.median(curved)])


def noise_scales(problem: jaxsgd.Problem, num_probes: int) -> Any:
    """A function of the parameters: B_simple and B_noise of the whole data set."""
    loss_fn, _, data = problem

    def measured(params: Any) -> dict[str, Any]:
        g = jaxsgd.per_example_gradients(loss_fn)(params, data)
        law = jaxsgd.hessian_noise_scale(loss_fn, params, data, num_probes=num_probes, key=jax.random.key(3))
        return {"simple": jaxsgd.noise_scale(g, population_size=g.count).value, "curved": law.value}

    return measured


def quadratic(config: Config) -> Arrays:
    """The fewest steps of the noisy quadratic at every batch size, and the mean of B_noise along the way."""
    model = dynamics.NoisyQuadratic.of_dimension(config.dimension)
    found = []
    for size in progress(4.0 ** np.arange(config.num_sizes), "noisy quadratic"):
        steps, rate = model.fewest_steps(config.quadratic_target, size)
        scale = model.noise_scale(size, rate, np.linspace(0, steps, 400, endpoint=False)).mean()
        found.append({"sizes": size, "steps": steps, "rates": rate, "scales": scale})
    return table(found, prefix="quadratic/")


def check(results: Arrays) -> Claims:
    """Confirm the hyperbola, the noise scales and the noisy quadratic."""
    claims, fits = Claims(), fitted(results)
    check_hyperbola(claims, results, fits)
    check_scales(claims, results, fits[int(results["followed_target"])].critical_batch_size)
    check_quadratic(claims, results)
    return claims


def fitted(results: Arrays) -> list[Any]:
    """The hyperbola of each target, with the best learning rate for every batch size."""
    return [fit_tradeoff(results["batch_sizes"], row) for row in results["steps"].min(axis=2).T]


def check_hyperbola(claims: Claims, results: Arrays, fits: list[Any]) -> None:
    """Every point is near it, neither examples nor steps alone explain them, and B_crit grows along the run."""
    best = results["steps"].argmin(axis=2)
    inside = (best > 0) & (best < results["rates"].shape[1] - 1)
    claims.require(np.all(inside), "the best learning rate must lie inside those tried")
    residuals = [np.abs(fit.relative_residuals).max() for fit in fits]
    message = "steps must be within 20% of the hyperbola, got {:.0%}"
    claims.below(residuals, MAX_RESIDUAL, message, enter="worst_residual")
    steps, sizes = results["steps"].min(axis=2), results["batch_sizes"][:, None]
    for name, constant in (("examples", steps * sizes), ("steps", steps)):
        spread = constant.max(axis=0) / constant.min(axis=0)
        claims.above(spread, 2, f"that every batch size takes equally many {name} must be rejected")
    critical = [round(fit.critical_batch_size, 1) for fit in fits]
    rises = np.all(np.diff([fit.critical_batch_size for fit in fits]) > 0)
    claims.require(rises, f"B_crit must rise as the target falls, got {critical}")
    claims["critical_batch_sizes"] = ", ".join(f"{size:g}" for size in critical)
    claims["targets"] = {
        f"{target:g}": {
            "min_steps": round(fit.min_steps, 1),
            "min_examples": round(fit.min_examples),
            "critical_batch_size": round(fit.critical_batch_size, 1),
            "interval": [round(fit.low, 1), round(fit.high, 1)],
        }
        for target, fit in zip(results["targets"], fits, strict=True)
    }


def check_scales(claims: Claims, results: Arrays, critical: float) -> None:
    """Averages along tuned runs are near B_crit, those along a slow run far above."""
    simple, curved, median = results["noise_scales"].T / critical
    tuned = np.concatenate([simple[:-1], curved[:-1]])
    message = "mean noise scales must be within a factor of 3 of B_crit, got {:.2f} times it"
    claims.above(tuned, 1 / FACTOR, message, enter="least_over_critical")
    claims.below(tuned, FACTOR, message, enter="largest_over_critical")
    claims.above(median[-1], FACTOR, "that a run at a quarter of the best rate tells B_crit must be rejected")
    claims |= {"simple_over_critical": simple[:-1].round(2), "curved_over_critical": curved[:-1].round(2)}
    claims["median_at_quarter_rate_over_critical"] = round(median[-1], 1)


def check_quadratic(claims: Claims, results: Arrays) -> None:
    """From perfect scaling to a plateau, near a hyperbola."""
    sizes, steps, scales = (results[f"quadratic/{name}"] for name in ("sizes", "steps", "scales"))
    fit = fit_tradeoff(sizes, steps)
    worst = np.abs(fit.relative_residuals).max()
    message = "the noisy quadratic must be within 15% of a hyperbola, got {:.0%}"
    claims.below(worst, MAX_RESIDUAL_QUADRATIC, message, enter="quadratic_worst_residual")
    claims.above(worst, 0.02, "that the noisy quadratic is exactly a hyperbola must be rejected")
    slopes = np.diff(np.log(steps)) / np.diff(np.log(sizes))
    claims.equal(slopes[0], -1, "small batches must scale perfectly, got an exponent of {:.3f}", atol=0.05)
    claims.equal(slopes[-1], 0, "large batches must be on a plateau, got an exponent of {:.3f}", atol=0.05)
    ratios = scales / fit.critical_batch_size
    some = ratios[sizes <= 16 * fit.critical_batch_size]
    message = "mean noise scales of the noisy quadratic must be within a factor of 3 of B_crit, got {:.2f}"
    claims.above(some, 1 / FACTOR, message)
    claims.below(some, FACTOR, message)
    claims |= {"quadratic_scale_over_critical": ratios.round(2), "quadratic_exponents": slopes.round(3)}
    claims["quadratic_critical_batch_size"] = round(fit.critical_batch_size, 1)


def draw(results: Arrays) -> Figure:
    """The digits above, the noisy quadratic below: hyperbolas, and noise scales along runs."""
    panels = (draw_hyperbola, draw_scales, draw_quadratic, draw_quadratic_scales)
    return page_of(results, *panels, nrows=2, ratio=0.6)


def draw_hyperbola(axes: Any, results: Arrays) -> None:
    """Examples against steps."""
    sizes, steps = results["batch_sizes"], results["steps"].min(axis=2)
    fine = np.geomspace(sizes[0] / 3, sizes[-1] * 3, 200)
    for k, fit in enumerate(fitted(results)):
        axes.plot(fit.steps(fine), fit.examples(fine), color=mark(k)["color"])
        label = f"$L={results['targets'][k]:g}$"
        axes.plot(steps[:, k], sizes * steps[:, k], **mark(k, line="none"), label=label)
    for place, offset in ((0, (-4, 6)), (-1, (6, -2))):
        at = (steps[place, -1], sizes[place] * steps[place, -1])
        axes.annotate(f"$M={sizes[place]}$", at, xytext=offset, textcoords="offset points", fontsize="small")
    legend = {"loc": "upper right", "title": "mean loss", "title_fontsize": "small"}
    panel(axes, "digits", x="steps to the target", y="examples to the target", log="xy", legend=legend)


def draw_scales(axes: Any, results: Arrays) -> None:
    """Averages along runs, with B_crit."""
    target, sizes = int(results["followed_target"]), results["followed"]
    critical = fitted(results)[target].critical_batch_size
    axes.axhspan(critical / FACTOR, critical * FACTOR, color="0.92", linewidth=0)
    axes.axhline(critical, color="black", linewidth=0.8, label=r"$\mathcal{B}_{\rm crit}$, and a factor of 3")
    for k, fit in enumerate(fitted(results)):
        if k != target:
            label = rf"$\mathcal{{B}}_{{\rm crit}}$ for $L={results['targets'][k]:g}$"
            style = {"color": mark(k)["color"], "linewidth": 0.8, "linestyle": LONG_DASHED}
            axes.axhline(fit.critical_batch_size, **style, label=label)
    simple, curved, median = results["noise_scales"].T
    for k, (name, values) in enumerate({"noise": curved, "simple": simple}.items()):
        axes.plot(sizes, values[:-1], **mark(k), label=rf"mean $\mathcal{{B}}_{{\rm {name}}}$")
    axes.plot(sizes[-1:], median[-1:], **mark(0, line="none", hollow=True))
    style = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": "small"}
    axes.annotate("at a quarter of\nthe best rate", (sizes[-1], median[-1]), xytext=(-6, 0), **style)
    labels = {"x": "batch size $M$ of the run", "y": "noise scale along it (examples)"}
    limits = {"xlim": (sizes[0] / 1.6, sizes[-1] * 1.6), "ylim": (critical / 5, 4 * median[-1])}
    panel(axes, f"digits, $L={results['targets'][target]:g}$", **labels, log="xy", **limits, legend="upper left")


def draw_quadratic(axes: Any, results: Arrays) -> None:
    """Steps against the batch size."""
    sizes, steps = results["quadratic/sizes"], results["quadratic/steps"]
    fit, fine = fit_tradeoff(sizes, steps), np.geomspace(sizes[0], sizes[-1], 200)
    axes.plot(sizes, steps, **mark(0, line="none"), label="exact")
    axes.plot(fine, fit.steps(fine), color=BLUE, label="hyperbola")
    axes.plot(fine, fit.min_examples / fine, color=ORANGE, linestyle=LONG_DASHED, label=r"$\propto 1/M$")
    reference(axes, y=fit.min_steps, color="black", linewidth=0.8, linestyle=DOTTED)
    labels = {"x": "batch size $M$", "y": "steps to the target"}
    limits = (steps[-1] / 2, steps[0] * 1.6)
    panel(axes, "noisy quadratic", **labels, log="xy", ylim=limits, legend="upper right")


def draw_quadratic_scales(axes: Any, results: Arrays) -> None:
    """Averages of the noise scale along runs, over B_crit."""
    sizes, steps, scales = (results[f"quadratic/{name}"] for name in ("sizes", "steps", "scales"))
    critical = fit_tradeoff(sizes, steps).critical_batch_size
    axes.axhspan(1 / FACTOR, FACTOR, color="0.92", linewidth=0)
    reference(axes, y=1, color="black", linewidth=0.8, linestyle="-")
    axes.plot(sizes, scales / critical, **mark(1))
    ratio = r"mean $\mathcal{B}_{\rm simple}\div\mathcal{B}_{\rm crit}$"
    panel(axes, "noisy quadratic", x="batch size $M$ of the run", y=ratio, log="xy", ylim=(0.2, 7))
    axes.set_yticks([0.3, 1, 3], ["0.3", "1", "3"])
    axes.minorticks_off()
