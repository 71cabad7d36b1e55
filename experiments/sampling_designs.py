"""Correlated batches change the variance of a minibatch gradient, for better or worse, and never its mean.

Command    python -m experiments sampling_designs
Run time   about 45 seconds on two cores
Expected   every design unbiased to rounding on four problems; on six scalar gradients systematic batches have 25/93 to
           43/93 of the variance of independent draws, contiguous blocks 163/93 to 196/93; on digits sorted by label,
           blocks have many times that variance, and their design effect is 1 + (M−1)ρ

Variances are exact, from the law of each design and the factored per-example gradients; bars are two standard errors of
batches really drawn. Four more designs, a line fit and the diabetes data are checked as well, and not drawn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import MAX_Z, Claims
from experiments._harness import Arrays, Seeded, progress, table
from experiments._panels import BLUE, DASHED, ORANGE, SKY, note, page, panel, reference
from jaxsgd import designs, estimators, problems

SIZE = "batch size $M$ (examples)"
DRAWN = ((6, 3), (1536, 64))  # population and batch sizes at which batches are drawn too
Laws = dict[str, Callable[[int], designs.SamplingDesign]]
SIX, DIGITS, SORTED = "six scalar gradients", "digits", "blocks, sorted by label"
DARKER = {"0.5": "0.4", SKY: "black"}  # of names
# what is drawn: color, marker and line, and in which panels, with the place of its name and the side the name lies on
STYLES: dict[str, tuple[str, str, Any, dict[str, tuple[float, float, str]]]] = {
    "with replacement": ("black", "", DASHED, {SIX: (6.15, 1, "left"), DIGITS: (620, 1, "left")}),
    "distinct units": ("0.5", "x", ":", {SIX: (6.15, 0.45, "left")}),
    "without replacement": ("black", "o", "-", {SIX: (6.15, 0.1, "left"), DIGITS: (620, 0.68, "left")}),
    "Bernoulli": ("0.5", "v", ":", {SIX: (1.15, 2.17, "left")}),
    "conditional Poisson": (SKY, "D", "--", {SIX: (3.3, -0.1, "center")}),
    "stratified": (BLUE, "D", "-", {SIX: (1.88, 0.25, "right"), DIGITS: (9.5, 0.163, "right")}),
    "systematic": (BLUE, "s", "--", {SIX: (1.88, 0.42, "right"), DIGITS: (620, 0.157, "left")}),
    "blocks": (ORANGE, "s", "-", {SIX: (3.15, 2.11, "left"), DIGITS: (620, 0.55, "left")}),
}


class Config(Seeded):
    """Settings of the experiment."""

    panels: tuple[str, ...] = (SIX, "line fit", "diabetes", DIGITS)
    """The problems."""
    num_examples: int = 1536
    """Digits used, in stored order."""
    hidden: int = 16
    """Width of the hidden layer of the network on digits."""
    num_draws: int = 400
    """Batches drawn for every check of an exact variance."""
    num_sizes: int = 7
    """At most how many batch sizes of a problem, the smallest."""


QUICK = Config(panels=(SIX, DIGITS), num_examples=60, hidden=4, num_draws=100, num_sizes=3)
SUMMARY = (
    "every design unbiased to {largest_bias:.0e}; drawn variances within {worst_z:.1f} standard errors; blocks of "
    "digits sorted by label have {largest_effect[digits, blocks, sorted by label]:.0f} times the variance of "
    "independent draws"
)


def compute(config: Config) -> Arrays:
    """The exact variance of every design at every batch size, and some drawn ones, on four problems."""
    key, draw_key = jax.random.split(config.key())
    rows: list[dict[str, Any]] = []
    available = populations(config, key)
    for name in config.panels:
        if name not in available:
            raise ValueError(f"panels must be among {', '.join(available)}, got {name}")
        g, labels, sizes = available[name]
        trace = float(jaxsgd.moments.of(g).trace_covariance(ddof=0))
        for kind, law in progress(laws(g, labels).items(), name):
            by_label = kind.endswith("sorted by label")
            population = g.take(np.argsort(labels, kind="stable")) if by_label else g
            for M in sizes[: config.num_sizes]:
                if possible(kind, M, g.count, labels):
                    place = {"panel": name, "design": kind, "batch_size": M}
                    rows.append(place | measure(law(M), population, trace, config, draw_key))
    return table(rows)


def populations(config: Config, key: jax.Array) -> dict[str, tuple[Any, np.ndarray | None, tuple[int, ...]]]:
    """Per-example gradients, labels where there are classes, and batch sizes."""
    digits = problems.digits_mlp(key=key, hidden=config.hidden).take(slice(config.num_examples))
    diabetes = problems.diabetes_regression().take(slice(440))
    values = jnp.array([1.0, 2.0, 4.0, 7.0, 11.0, 17.0])
    six = problems.Problem(lambda theta, value: theta * value, jnp.ones(()), values)
    divisors = tuple(M for M in (1, 4, 12, 16, 64, 256, 512) if config.num_examples % M == 0)
    given: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
        SIX: (six, None, (1, 2, 3, 4, 5, 6)),
        "line fit": (problems.line_fit(), None, (1, 2, 3, 4)),
        "diabetes": (diabetes, None, (1, 4, 20, 88, 220)),
        DIGITS: (digits, np.asarray(digits.data["y"]), divisors),
    }
    return {
        name: (jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data), labels, sizes)
        for name, (problem, labels, sizes) in given.items()
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
    return found | ({SORTED: designs.Blocks} if labels is not None else {})


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


def measure(design: Any, g: Any, trace: float, config: Config, key: jax.Array) -> dict[str, Any]:
    """Relative bias, design effect, the drawn one with its standard error, and 1 + (M−1)ρ of the groups, if any."""
    exact, mean, M = estimators.exact(design, g), g.mean(), design.expected_batch_size(g.count)
    error = sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, (exact.mean, mean)), strict=True))
    found = {
        "bias": np.sqrt(error) / float(jnp.sqrt(g.squared_norms()).mean()),
        "effect": float(exact.variance) * M / trace,
        "drawn": np.nan,
        "standard_error": np.nan,
        "intraclass": kish(design, g, trace),
    }
    if (g.count, M) in DRAWN:
        estimate = estimators.monte_carlo(design, g, key=key, num_draws=config.num_draws)
        found["drawn"] = float(estimate.variance) * M / trace
        found["standard_error"] = float(estimate.standard_error) * M / trace
    return found


def kish(design: Any, g: Any, trace: float) -> float:
    """1 + (M−1)ρ with the intraclass correlation ρ of the gradients in a group, from the squared norms of group sums.

    (M−1) N T ρ = Σ_r (‖Σ_{i∈r} d_i‖² − Σ_{i∈r} ‖d_i‖²), with d_i = g_i − ḡ and T = tr Σ.
    """
    if not isinstance(design, designs.Systematic | designs.Blocks):
        return np.nan
    groups, M = design.assignment_of(g.count), design.batch_size
    sums = [g.weighted_sum(jnp.asarray((groups == r) - 1 / len(set(groups)))) for r in np.unique(groups)]
    squares = sum(float(jnp.sum(leaf**2)) for total in sums for leaf in jax.tree.leaves(total))
    correlation = (squares - g.count * trace) / ((M - 1) * g.count * trace) if M > 1 else 0
    return 1 + (M - 1) * correlation


def check(results: Arrays) -> Claims:
    """Confirm unbiasedness, known design effects, Kish's law, the drawn variances, and harm and help of correlation."""
    claims = Claims()
    claims.below(results["bias"], 1e-12, "every design must be unbiased, got a bias of {:.1e}", enter="largest_bias")
    check_groups(claims, results)
    seen = np.isfinite(results["drawn"]) & (results["standard_error"] > 1e-12)
    drawn, exact, error = (results[name][seen] for name in ("drawn", "effect", "standard_error"))
    claims.agree((drawn - exact) / error, "a drawn variance is")
    claims["worst_z"] = np.abs((drawn - exact) / error).max()
    independent = np.abs((1 - exact) / error).max()
    claims.above(independent, MAX_Z, "the law of independent draws must be rejected somewhere, got z = {:.1f}")
    sorted_blocks = effect(results, DIGITS, SORTED)
    message = "batches of one class must be noisier than independent draws, got a design effect of {:.2f}"
    enter = "largest_effect.digits, blocks, sorted by label"
    claims.above(max(sorted_blocks.values()), 2, message, enter=enter)
    claims["largest_effect"]["digits, blocks"] = max(effect(results, DIGITS, "blocks").values())
    helpful = ("stratified", "importance, optimal")
    claims["least_effect"] = {name: min(effect(results, DIGITS, name).values()) for name in helpful}
    units, draws = (effect(results, SIX, name) for name in ("distinct units", "with replacement"))
    better = all(units[M] <= draws[M] for M in units)
    claims.require(better, "averaging distinct units must not be worse than all draws")
    return claims


def effect(results: Arrays, name: str, design: str) -> dict[int, float]:
    """The design effect in a panel by batch size."""
    rows = (results["panel"] == name) & (results["design"] == design)
    return dict(zip(results["batch_size"][rows].tolist(), results["effect"][rows].tolist(), strict=True))


def check_groups(claims: Claims, results: Arrays) -> None:
    """Systematic batches and blocks have the design effects known for six gradients, and Kish's law everywhere."""
    known = {("systematic", 2): 43 / 93, ("systematic", 3): 25 / 93, ("blocks", 2): 163 / 93, ("blocks", 3): 196 / 93}
    for (name, M), expected in known.items():
        message = f"the design effect of {name} at M = {M} must be {expected}, got {{}}"
        claims.equal(effect(results, SIX, name)[M], expected, message)
    grouped = np.isfinite(results["intraclass"])
    gap = np.abs(results["effect"] - results["intraclass"])[grouped]
    claims.below(gap, 1e-9, "the design effect of groups must be 1 + (M−1)ρ, got a difference of {:.1e}")


def draw(results: Arrays) -> Figure:
    """Design effect against batch size: six scalar gradients, and digits."""
    figure = page(ncols=2, height_to_width_ratio=0.72)
    six, digits = figure.subplots(1, 2)
    _draw_designs(six, results, SIX)
    ratio = r"variance $\div$ $\mathrm{tr}\,\Sigma/M$"
    panel(six, SIX, x=SIZE, y=ratio, xlim=(0.7, 8.1), ylim=(-0.2, 2.4), xticks=range(1, 7))
    _draw_designs(digits, results, DIGITS)
    panel(digits, DIGITS, x=SIZE, log="x", xlim=(0.85, 5000), ylim=(0, 2.05))
    digits.set_xticks([4**k for k in range(5)], [str(4**k) for k in range(5)])
    digits.minorticks_off()
    worst = effect(results, DIGITS, SORTED)
    for M in [M for M in worst if M > 1 and M != 12]:  # 12 has no room beside 16
        note(digits, M, 1.72, f"{worst[M]:.2g}", color=ORANGE, ha="center")
        digits.annotate("", (M, 1.72), (M, 1.54), arrowprops={"arrowstyle": "->", "color": ORANGE, "linewidth": 0.7})
    note(digits, 1, 1.9, f"{SORTED}, off the scale:", color=ORANGE)
    return figure


def _draw_designs(axes: Any, results: Arrays, name: str) -> None:
    """Lines of the exact variances with their names, and drawn ones with two standard errors."""
    reference(axes, y=0, color="0.8", linestyle="-", zorder=0)
    for design, (color, marker, line, places) in STYLES.items():
        rows = (results["panel"] == name) & (results["design"] == design)
        if name in places and rows.any():
            M, exact, drawn, error = (results[key][rows] for key in ("batch_size", "effect", "drawn", "standard_error"))
            shown = (exact > 1e-9) | (design == "without replacement")  # all that are exact at M = N meet there
            axes.plot(M[shown], exact[shown], color=color, marker=marker, linestyle=line)
            axes.errorbar(M, drawn, 2 * error, color=color, linestyle="none", capsize=2, elinewidth=0.7)
            x, y, side = places[name]
            note(axes, x, y, design, color=DARKER.get(color, color), ha=side, va="center")
