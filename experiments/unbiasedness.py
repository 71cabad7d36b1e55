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
from experiments._panels import COLORS, MARKERS, note, page_of, panel, reference, series
from jaxsgd import designs, dynamics, estimators, problems

GRADIENTS = (1, 2, 4, 7, 11, 17)
EXAMPLES = (0, 1, 3, 4)  # of the Langevin dynamics
STRATA = (0, 0, 0, 1, 1, 1)
LABELS = ("mean", "sum", "$N/M$ times the sum")
BATCH_SIZE = "batch size $M$ (examples)"
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
    axes.plot(range(1, 7), np.zeros(6), color="black", marker="o", label=f"{count} designs")
    styles = zip((*COLORS, "0.5", COLORS[0]), (*MARKERS[1:], "D", "v", "X"), ("-", "--", "-.", ":", "--"), strict=True)
    for name, (color, marker, line) in zip(_traps(results), styles, strict=True):
        M, biases = (results[what][results["design"] == name] for what in ("batch_size", "bias"))
        axes.plot(M, biases, color=color, marker=marker, linestyle=line, label=name)
    legend = {"fontsize": "x-small", "labelspacing": 0.25, "loc": "upper right"}
    panel(axes, x=BATCH_SIZE, y=r"bias of $\hat g$  ($\bar g = 7$)", xticks=range(1, 7), legend=legend)
    axes.set_ylim(top=9.5)


def _draw_slopes(axes: Any, results: Arrays) -> None:
    series(axes, range(1, 5), dict(zip(LABELS, results["slope"], strict=True)))
    reference(axes, y=-1, color="black", linewidth=0.6)
    note(axes, 2.6, -0.93, r"$\bar g$", va="bottom")
    legend = {"fontsize": "x-small", "loc": "lower left", "bbox_to_anchor": (0, 0.16)}
    panel(axes, x=BATCH_SIZE, y="expected slope", xticks=range(1, 5), ylim=(-4.6, 0.4), legend=legend)


def _draw_langevin(axes: Any, results: Arrays) -> None:
    series(axes, range(1, 5), dict(zip(LABELS, results["langevin"], strict=True)))
    for color, values, error in zip(COLORS, results["simulated"], results["standard_error"], strict=True):
        axes.errorbar(range(1, 5), values, 2 * error, linestyle="none", color=color, capsize=2)
    reference(axes, y=0.25, color="black", linewidth=0.6)
    note(axes, 1, 0.235, "posterior", va="top")
    panel(axes, x=BATCH_SIZE, y=r"stationary variance of $\theta$", log="y", ylim=(0.18, 1.6), xticks=range(1, 5))
    axes.set_yticks([0.2, 0.5, 1.0], ["0.2", "0.5", "1"])
    axes.minorticks_off()


def _traps(results: Arrays) -> list[str]:
    return list(dict.fromkeys(results["design"][results["kind"] == "traps"].tolist()))
