"""Correlated batches change the variance of a minibatch gradient, for better or worse, and never its mean.

Command    python -m experiments sampling_designs
Run time   about 45 seconds on two cores
Expected   every design unbiased to rounding on four problems; on six scalar gradients systematic batches have 25/93 to
           43/93 of the variance of independent draws, contiguous blocks 163/93 to 196/93; on digits sorted by label,
           blocks have many times that variance, and their design effect is 1 + (M−1)ρ

Variances are exact, from the law of each design and the factored per-example gradients; bars are two standard errors of
batches really drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

import jaxsgd
from experiments._claims import require
from experiments._harness import progress
from experiments._panels import COLORS, page
from jaxsgd import designs, estimators, problems

MAX_Z = 4.5
DRAWN = ((6, 3), (1536, 64))  # population and batch sizes at which batches are drawn too
SMALL = {"six scalar gradients": (1, 2, 3, 6), "line fit": (1, 2, 3, 4)}  # ticks
Laws = dict[str, Callable[[int], designs.SamplingDesign]]
STYLES = {
    "with replacement": ("black", "", (0, (3, 1.5))),
    "distinct units": ("black", "x", ":"),
    "without replacement": ("black", "o", "-"),
    "Bernoulli": ("0.5", "v", ":"),
    "Poisson, optimal": (COLORS[2], "v", ":"),
    "importance, optimal": (COLORS[2], "^", "-"),
    "conditional Poisson": (COLORS[2], "D", "--"),
    "stratified": (COLORS[0], "D", "-"),
    "systematic": (COLORS[0], "s", "--"),
    "blocks": (COLORS[1], "s", "-"),
    "circular blocks": (COLORS[1], "P", "--"),
    "blocks, sorted by label": ("0.5", "X", "-."),
}


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    panels: tuple[str, ...] = ("six scalar gradients", "line fit", "diabetes", "digits")
    """The problems."""
    num_examples: int = 1536
    """Digits used, in stored order."""
    hidden: int = 16
    """Width of the hidden layer of the network on digits."""
    num_draws: int = 400
    """Batches drawn for every check of an exact variance."""
    num_sizes: int = 7
    """At most how many batch sizes of a problem, the smallest."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(panels=("six scalar gradients", "digits"), num_examples=60, hidden=4, num_draws=100, num_sizes=3)


def compute(config: Config) -> dict[str, np.ndarray]:
    """The exact variance of every design at every batch size, and some drawn ones, on four problems."""
    key, draw_key = jax.random.split(jax.random.key(config.seed))
    rows: list[tuple[Any, ...]] = []
    available = populations(config, key)
    for panel in config.panels:
        if panel not in available:
            raise ValueError(f"panels must be among {', '.join(available)}, got {panel}")
        g, labels, sizes = available[panel]
        trace = float(jaxsgd.moments.of(g).trace_covariance(ddof=0))
        for name, law in progress(laws(g, labels).items(), panel):
            by_label = name.endswith("sorted by label")
            population = g.take(np.argsort(labels, kind="stable")) if by_label else g
            for M in sizes[: config.num_sizes]:
                design = law(M) if possible(name, M, g.count, labels) else None
                if design is not None:
                    rows.append((panel, name, M, *measure(design, population, trace, config, draw_key)))
    names = ("panel", "design", "batch_size", "bias", "effect", "drawn", "standard_error", "intraclass")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def populations(config: Config, key: jax.Array) -> dict[str, tuple[Any, np.ndarray | None, tuple[int, ...]]]:
    """Per-example gradients, labels where there are classes, and batch sizes."""
    line = problems.line_fit()
    digits = problems.digits_mlp(key=key, hidden=config.hidden)
    digits = digits._replace(data=jax.tree.map(lambda leaf: leaf[: config.num_examples], digits.data))
    diabetes = problems.diabetes_regression()
    diabetes = diabetes._replace(data=jax.tree.map(lambda leaf: leaf[:440], diabetes.data))
    six = problems.Problem(
        lambda theta, value: theta * value, jnp.ones(()), jnp.array([1.0, 2.0, 4.0, 7.0, 11.0, 17.0])
    )
    divisors = tuple(M for M in (1, 4, 12, 16, 64, 256, 512) if config.num_examples % M == 0)
    measured = {
        name: jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
        for name, problem in {"six": six, "line fit": line, "diabetes": diabetes, "digits": digits}.items()
    }
    return {
        "six scalar gradients": (measured["six"], None, (1, 2, 3, 4, 5, 6)),
        "line fit": (measured["line fit"], None, (1, 2, 3, 4)),
        "diabetes": (measured["diabetes"], None, (1, 4, 20, 88, 220)),
        "digits": (measured["digits"], np.asarray(digits.data["y"]), divisors),
    }


def laws(g: Any, labels: np.ndarray | None) -> Laws:
    """A design for every batch size, by name."""
    best = estimators.optimal_probabilities(g)
    strata = labels if labels is not None else (np.arange(g.count) * 2) // g.count
    found: Laws = {
        "with replacement": designs.WithReplacement,
        "distinct units": designs.DistinctUnits,
        "without replacement": designs.WithoutReplacement,
        "Bernoulli": lambda M: designs.Bernoulli(M / g.count),
        "Poisson, optimal": lambda M: designs.Poisson(inclusion(best, M)),
        "importance, optimal": lambda M: designs.Importance(best, M),
        "conditional Poisson": lambda M: designs.ConditionalPoisson(np.maximum(best, 1e-3 / g.count), M),
        "stratified": lambda M: designs.Stratified.proportional(strata, M),
        "systematic": designs.Systematic,
        "blocks": designs.Blocks,
        "circular blocks": designs.CircularBlocks,
    }
    return found | ({"blocks, sorted by label": designs.Blocks} if labels is not None else {})


def inclusion(sizes: np.ndarray, M: int) -> np.ndarray:
    """Inclusion probabilities proportional to ``sizes`` that sum to M, none above 1."""
    certain = np.zeros(len(sizes), bool)
    while True:
        rest = np.where(certain, 0, sizes)
        probabilities = np.where(certain, 1.0, (M - certain.sum()) * rest / max(rest.sum(), 1e-300))
        if np.all(probabilities <= 1):
            return probabilities
        certain |= probabilities >= 1


def possible(name: str, M: int, N: int, labels: np.ndarray | None) -> bool:
    """Whether the design exists at this batch size."""
    if name.startswith(("blocks", "systematic")):
        return N % M == 0
    if name == "stratified":
        return (2 if labels is None else int(labels.max()) + 1) <= M
    return name != "Poisson, optimal" or M < N


def measure(design: Any, g: Any, trace: float, config: Config, key: jax.Array) -> tuple[float, ...]:
    """Relative bias, design effect, the drawn one with its standard error, and 1 + (M−1)ρ of the groups, if any."""
    exact, mean, M = estimators.exact(design, g), g.mean(), design.expected_batch_size(g.count)
    error = sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, (exact.mean, mean)), strict=True))
    scale = float(jnp.sqrt(g.squared_norms()).mean())
    drawn = (np.nan, np.nan)
    if (g.count, M) in DRAWN:
        estimate = estimators.monte_carlo(design, g, key=key, num_draws=config.num_draws)
        drawn = float(estimate.variance) * M / trace, float(estimate.standard_error) * M / trace
    return np.sqrt(error) / scale, float(exact.variance) * M / trace, *drawn, kish(design, g, trace)


def kish(design: Any, g: Any, trace: float) -> float:
    """1 + (M−1)ρ with the intraclass correlation ρ of the gradients in a group, from the squared norms of group sums.

    (M−1) N T ρ = Σ_r (‖Σ_{i∈r} d_i‖² − Σ_{i∈r} ‖d_i‖²), with d_i = g_i − ḡ and T = tr Σ.
    """
    if not isinstance(design, designs.Systematic | designs.Blocks):
        return np.nan
    groups = design.assignment_of(g.count)
    sums = [g.weighted_sum(jnp.asarray((groups == r) - 1 / len(set(groups)))) for r in np.unique(groups)]
    squares = sum(float(jnp.sum(leaf**2)) for total in sums for leaf in jax.tree.leaves(total))
    correlation = (
        (squares - g.count * trace) / ((design.batch_size - 1) * g.count * trace) if design.batch_size > 1 else 0
    )
    return 1 + (design.batch_size - 1) * correlation


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm unbiasedness, known design effects, Kish's law, the drawn variances, and harm and help of correlation."""
    require(results["bias"].max() < 1e-12, f"every design must be unbiased, got a bias of {results['bias'].max():.1e}")

    def effect(panel: str, design: str) -> dict[int, float]:
        rows = (results["panel"] == panel) & (results["design"] == design)
        return dict(zip(results["batch_size"][rows].tolist(), results["effect"][rows].tolist(), strict=True))

    six = {name: effect("six scalar gradients", name) for name in ("systematic", "blocks")}
    gold = {("systematic", 2): 43 / 93, ("systematic", 3): 25 / 93, ("blocks", 2): 163 / 93, ("blocks", 3): 196 / 93}
    for (name, M), expected in gold.items():
        require(abs(six[name][M] - expected) < 1e-12, f"the design effect of {name} at M = {M} must be {expected}")
    grouped = np.isfinite(results["intraclass"])
    gap = np.abs(results["effect"] - results["intraclass"])[grouped].max()
    require(gap < 1e-9, f"the design effect of groups must be 1 + (M−1)ρ, got a difference of {gap:.1e}")
    seen = np.isfinite(results["drawn"]) & (results["standard_error"] > 1e-12)
    z = (results["drawn"] - results["effect"])[seen] / results["standard_error"][seen]
    require(np.abs(z).max() < MAX_Z, f"a drawn variance is {z[np.abs(z).argmax()]:.1f} standard errors off")
    independent = (1 - results["effect"])[seen] / results["standard_error"][seen]
    require(np.abs(independent).max() > MAX_Z, "the law of independent draws must be rejected somewhere")
    harm = max(effect("digits", "blocks, sorted by label").values())
    require(harm > 2, f"batches of one class must be noisier than independent draws, got a design effect of {harm:.2f}")
    units, draws = (effect("six scalar gradients", name) for name in ("distinct units", "with replacement"))
    require(all(units[M] <= draws[M] for M in units), "averaging distinct units must not be worse than all draws")
    return {
        "largest_bias": float(results["bias"].max()),
        "worst_z": float(np.abs(z).max()),
        "largest_effect": {
            "digits, blocks, sorted by label": harm,
            "digits, blocks": max(effect("digits", "blocks").values()),
        },
        "least_effect": {name: min(effect("digits", name).values()) for name in ("stratified", "importance, optimal")},
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    harm = findings["largest_effect"]["digits, blocks, sorted by label"]
    return (
        f"every design unbiased to {findings['largest_bias']:.0e}; drawn variances within {findings['worst_z']:.1f} "
        f"standard errors; blocks of digits sorted by label have {harm:.0f} times the variance of independent draws"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Design effect against batch size, one panel for each problem."""
    figure = page(ncols=4, height_to_width_ratio=1.15)
    panels = list(dict.fromkeys(results["panel"].tolist()))
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, (color, marker, dash) in STYLES.items():
            rows = (results["panel"] == panel) & (results["design"] == name) & (results["effect"] > 1e-9)
            M, effect = results["batch_size"][rows], results["effect"][rows]
            if rows.any():
                (handles[name],) = axes.plot(M, effect, color=color, marker=marker, linestyle=dash, markersize=2.8)
                error = 2 * results["standard_error"][rows]
                axes.errorbar(M, results["drawn"][rows], error, color=color, linestyle="none", capsize=1.5)
        axes.set(title=panel, xscale="log", yscale="log", xlabel="batch size $M$ (examples)")
        axes.title.set_fontsize("small")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if panel == "diabetes":
            axes.set_yticks([0.2, 0.5, 1])
        if panel in SMALL:
            axes.set_xticks(SMALL[panel], map(str, SMALL[panel]))
            axes.xaxis.set_minor_locator(NullLocator())
    figure.axes[0].set_ylabel(r"variance $\div$ $\mathrm{tr}\,\Sigma/M$")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize="x-small")
    return figure
