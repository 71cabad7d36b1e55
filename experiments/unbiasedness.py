"""A minibatch gradient is unbiased if every example has expected weight 1/N, for every batch size, and only then.

Command    python -m experiments unbiasedness
Run time   about 15 seconds on two cores
Expected   twelve designs have bias 0, in rational arithmetic over all their batches, at every M; five traps do not; the
           stationary variance of Langevin dynamics within 4.5 standard errors of its closed form, which is that of the
           posterior for (N/M) times the batch sum alone

Left: the bias of designs of the scalar gradients 1, 2, 4, 7, 11, 17, by enumeration. Middle: the expected slope of the
line fit at (1, 1), of the mean, the sum and N/M times the sum. Right: Langevin dynamics of a Gaussian mean.
"""

import dataclasses
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, table
from experiments._panels import COLORS, DOTTED, MARKERS, SKY, note, page_of, panel, reference, series
from jaxsgd import designs, dynamics, estimators, problems

GRADIENTS = (1, 2, 4, 7, 11, 17)
EXAMPLES = (0, 1, 3, 4)  # of the Langevin dynamics
STRATA = (0, 0, 0, 1, 1, 1)
LABELS = ("mean", "sum", "$N/M$ times the sum")
BATCH_SIZE = "batch size $M$ (examples)"
TRAP_NAMES = {  # where they are in the figure
    "mean, 0 if empty": (1.25, -2.35),
    "Poisson, plain mean": (1.8, 2.95),
    "Hájek": (3.2, 0.5),
    "fixed groups, plain mean": (1.25, 4),
    "strata, unweighted": (4.2, 2.35),
}
SCALES: tuple[designs.Scale, ...] = ("mean", "sum", "total")


class Config(Seeded):
    """Settings of the experiment."""

    step_size: float = 0.1
    """Step size of the Langevin dynamics."""
    num_steps: int = 40
    """Steps of the Langevin dynamics, from the stationary law."""
    num_runs: int = 20_000
    """Independent runs of the Langevin dynamics."""


QUICK = Config(num_runs=5_000, num_steps=10)
SUMMARY = (
    "{unbiased_designs} designs are unbiased exactly, {traps} traps off by up to {largest_bias:.2g}; Langevin "
    "variances within {worst_z:.1f} standard errors"
)


def unbiased(M: int) -> dict[str, designs.SamplingDesign]:
    """The designs with E w_i = 1/N at (expected) batch size M."""
    ranks = [Fraction(i, 21) for i in range(1, 7)]
    laws: dict[str, designs.SamplingDesign] = {
        "with replacement": designs.WithReplacement(M),
        "without replacement": designs.WithoutReplacement(M),
        "distinct units": designs.DistinctUnits(M),
        "Bernoulli": designs.Bernoulli(Fraction(M, 6)),
        "Poisson": designs.Poisson([Fraction(M, 8)] * 4 + [Fraction(M, 4)] * 2 if M < 4 else [Fraction(M, 6)] * 6),
        "circular blocks": designs.CircularBlocks(M),
        "importance": designs.Importance(ranks, M),
        "conditional Poisson": designs.ConditionalPoisson([1, 2, 3, 4, 5, 6], M),
        "reshuffling": designs.Reshuffling(M),
    }
    if M > 1:
        laws["stratified"] = designs.Stratified(STRATA, [1, M - 1] if M < 4 else [M - 3, 3])
    if 6 % M == 0:
        laws |= {"systematic": designs.Systematic(M), "blocks": designs.Blocks(M)}
    return laws


def traps(M: int) -> dict[str, designs.SamplingDesign]:
    """Designs that look as good, at (expected) batch size M."""
    unequal = [Fraction(M, 12)] * 2 + [Fraction(M, 6)] * 2 + [Fraction(M, 4)] * 2
    laws: dict[str, designs.SamplingDesign] = {"mean, 0 if empty": designs.Bernoulli(Fraction(M, 6), "realized")}
    if M <= 4:
        laws["Poisson, plain mean"] = designs.Poisson(unequal, "realized", "skip")
        laws["Hájek"] = designs.Hajek(unequal, "skip")
    if M > 2:
        laws["strata, unweighted"] = designs.Stratified(STRATA, [1, M - 1] if M < 4 else [M - 3, 3], weighted=False)
    laws["fixed groups, plain mean"] = designs.Groups([0] * (6 - M) + [1] * M if M < 6 else [0] * 6, "realized")
    return laws


def bias(design: designs.SamplingDesign) -> Fraction:
    """E ĝ − ḡ in rational arithmetic, by going through every batch."""
    mean = sum(p * sum(w * g for w, g in zip(weights, GRADIENTS, strict=True)) for p, weights in design.support(6))
    return Fraction(mean) - Fraction(sum(GRADIENTS), 6)


def compute(config: Config) -> Arrays:
    """Biases by enumeration, expectations at three scales, and stationary variances, exact and simulated."""
    kinds = {"unbiased": unbiased, "traps": traps}
    biases = [
        {"kind": kind, "design": name, "batch_size": M, "bias": float(bias(law))}
        for kind, laws in kinds.items()
        for M in range(1, 7)
        for name, law in laws(M).items()
    ]
    problem = problems.line_fit()
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    laws = [[designs.WithoutReplacement(M, scale=scale) for M in range(1, 5)] for scale in SCALES]
    exact = [[float(dynamics.langevin_variance(law, EXAMPLES, config.step_size)) for law in row] for row in laws]
    pairs = [zip(*rows, strict=True) for rows in zip(laws, exact, strict=True)]
    runs = np.array([[simulate(config, law, value) for law, value in row] for row in pairs])
    return table(biases) | {
        "slope": [[float(estimators.exact(law, g).mean["m"]) for law in row] for row in laws],
        "langevin": exact,
        "simulated": runs[..., 0],
        "standard_error": runs[..., 1],
    }


def simulate(config: Config, design: designs.SamplingDesign, variance: float) -> tuple[float, float]:
    """The variance after some steps of Langevin dynamics from its stationary law, and its standard error."""
    keys = jax.random.split(config.key(), config.num_runs)
    factor = float(design.scale_factor(len(EXAMPLES)))
    mean_design = dataclasses.replace(design, scale="mean")  # so that the three scales share a compilation
    theta = np.asarray(_runs(mean_design, config.num_steps, factor, config.step_size, variance**0.5, keys), np.float64)
    squares = (theta - np.mean(EXAMPLES)) ** 2
    return float(squares.mean()), float(squares.std() / np.sqrt(len(squares)))


@partial(jax.jit, static_argnums=(0, 1))
def _runs(
    design: designs.SamplingDesign, num_steps: int, factor: Any, step_size: Any, deviation: Any, keys: Any
) -> Any:
    examples = jnp.asarray(np.array(EXAMPLES, float))

    def step(theta: Any, key: Any) -> tuple[Any, None]:
        batch_key, noise_key = jax.random.split(key)
        score = factor * jnp.sum(design.weights(batch_key, len(EXAMPLES)) * (examples - theta))
        return theta + step_size / 2 * score + jnp.sqrt(step_size) * jax.random.normal(noise_key), None

    def run(key: Any) -> Any:
        first, rest = jax.random.split(key)
        start = examples.mean() + deviation * jax.random.normal(first)
        return jax.lax.scan(step, start, jax.random.split(rest, num_steps))[0]

    return jax.vmap(run)(keys)


def check(results: Arrays) -> Claims:
    """Confirm bias 0 where it is claimed, bias where it is not, the three scales, and the stationary variances."""
    is_trap, biases = results["kind"] == "traps", results["bias"]
    wrong = results["design"][~is_trap & (biases != 0)]
    claims = Claims(unbiased_designs=len(set(results["design"][~is_trap])))
    claims.require(wrong.size == 0, f"the bias must be 0 in rational arithmetic, but not for {', '.join(wrong)}")
    worst = {name: np.abs(biases[is_trap & (results["design"] == name)]).max() for name in _traps(results)}
    claims |= {"largest_bias_of_traps": worst, "traps": len(worst), "largest_bias": max(worst.values())}
    claims.above(list(worst.values()), 0.05, "every trap must be biased at some batch size, got {:.2g}")
    M, N = np.arange(1, 5), len(EXAMPLES)
    claims.equal(results["slope"], [-(M**0), -M, -N * M**0], "slopes: {}", rtol=1e-12, atol=1e-8)
    z = (results["simulated"] - results["langevin"]) / results["standard_error"]
    claims.agree(z, "a simulated variance is", scale=SCALES, M=M)
    claims["worst_z"] = np.abs(z).max()
    (tempered, _, total), posterior = results["langevin"], 1 / N
    near = np.all(np.diff(total) < 0) and total[-1] < 1.2 * posterior and np.all(tempered > 3 * posterior)
    claims.require(near, f"only N/M times the sum must be near the posterior's {posterior}, got {results['langevin']}")
    claims["langevin_variance"] = dict(zip(SCALES, results["langevin"].round(6), strict=True))
    return claims


def draw(results: Arrays) -> Figure:
    """Biases, scales, and Langevin dynamics, from left to right."""
    return page_of(results, _draw_biases, _draw_slopes, _draw_langevin, ratio=0.85)


def _draw_biases(axes: Any, results: Arrays) -> None:
    count = len(set(results["design"][results["kind"] == "unbiased"]))
    axes.plot((1, 6), (0, 0), color="0.8", linewidth=5, solid_capstyle="round", zorder=0)
    note(axes, 6.2, 0, f"{count}\ndesigns", va="center")
    styles = zip((*COLORS, "0.5", "black"), (*MARKERS[1:], "D", "v", "X"), ("-", "--", "-.", ":", DOTTED), strict=True)
    for name, (color, marker, line) in zip(_traps(results), styles, strict=True):
        M, biases = (results[what][results["design"] == name] for what in ("batch_size", "bias"))
        axes.plot(M, biases, color=color, marker=marker, linestyle=line)
        note(axes, *TRAP_NAMES[name], name, color={SKY: "black", "0.5": "0.4"}.get(color, color), va="center")
    limits: dict[str, Any] = {"xlim": (0.7, 7.7), "ylim": (-2.8, 4.6)}
    panel(axes, x=BATCH_SIZE, y=r"bias of $\hat g$  ($\bar g = 7$)", xticks=range(1, 7), **limits)


def _draw_slopes(axes: Any, results: Arrays) -> None:
    reference(axes, y=-1, color="black", linewidth=0.6)
    note(axes, 4.15, -0.93, r"$\bar g$", va="bottom")
    _draw_scales(axes, results["slope"], ((2.5, -0.85), (2.95, -2.7), (1.4, -4.15)), ("bottom", "bottom", "top"))
    panel(axes, x=BATCH_SIZE, y="expected slope", xticks=range(1, 5), xlim=(0.8, 4.4), ylim=(-4.7, 0.2))


def _draw_langevin(axes: Any, results: Arrays) -> None:
    _draw_scales(axes, results["langevin"], ((2.5, 1.08), (2.3, 0.55), (1.02, 0.325)), ("bottom", "bottom", "top"))
    for color, values, error in zip(COLORS, results["simulated"], results["standard_error"], strict=True):
        axes.errorbar(range(1, 5), values, 2 * error, linestyle="none", color=color, capsize=2)
    reference(axes, y=0.25, color="black", linewidth=0.6)
    note(axes, 1, 0.245, "posterior", va="top")
    panel(axes, x=BATCH_SIZE, y=r"stationary variance of $\theta$", log="y", ylim=(0.18, 1.6), xticks=range(1, 5))
    axes.set_yticks([0.2, 0.5, 1.0], ["0.2", "0.5", "1"])
    axes.minorticks_off()


def _draw_scales(axes: Any, curves: np.ndarray, places: Any, sides: tuple[str, ...]) -> None:
    """A curve for each scale of a batch, and its name at a place above or below it."""
    series(axes, range(1, 5), dict(zip(LABELS, curves, strict=True)))
    for label, (x, y), side, color in zip(LABELS, places, sides, (*COLORS[:2], "black"), strict=True):
        note(axes, x, y, label, color=color, va=side)


def _traps(results: Arrays) -> list[str]:
    return list(dict.fromkeys(results["design"][results["kind"] == "traps"].tolist()))
