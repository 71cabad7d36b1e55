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
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, dynamics, problems

GRADIENTS = (1, 2, 4, 7, 11, 17)
EXAMPLES = (0, 1, 3, 4)  # of the Langevin dynamics
STRATA = (0, 0, 0, 1, 1, 1)
SCALES: tuple[designs.Scale, ...] = ("mean", "sum", "total")
MAX_Z = 4.5


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    step_size: float = 0.1
    """Step size of the Langevin dynamics."""
    num_steps: int = 40
    """Steps of the Langevin dynamics, from the stationary law."""
    num_runs: int = 20_000
    """Independent runs of the Langevin dynamics."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(num_runs=5_000, num_steps=10)


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


def compute(config: Config) -> dict[str, np.ndarray]:
    """Biases by enumeration, expectations at three scales, and stationary variances, exact and simulated."""
    sizes = range(1, 7)
    kinds = {"unbiased": unbiased, "traps": traps}
    found = {(kind, name, M): bias(law) for kind, laws in kinds.items() for M in sizes for name, law in laws(M).items()}
    problem = problems.line_fit()
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    slopes = [
        [float(jaxsgd.estimators.exact(designs.WithoutReplacement(M, scale=scale), g).mean["m"]) for M in range(1, 5)]
        for scale in SCALES
    ]
    laws = [[designs.WithoutReplacement(M, scale=scale) for M in range(1, 5)] for scale in SCALES]
    exact = [[float(dynamics.langevin_variance(law, EXAMPLES, config.step_size)) for law in row] for row in laws]
    runs = [
        [simulate(config, law, value) for law, value in zip(*rows, strict=True)]
        for rows in zip(laws, exact, strict=True)
    ]
    return {
        "kind": np.array([kind for kind, _, _ in found]),
        "design": np.array([name for _, name, _ in found]),
        "batch_size": np.array([M for _, _, M in found]),
        "bias": np.array([float(value) for value in found.values()]),
        "slope": np.array(slopes),
        "langevin": np.array(exact),
        "simulated": np.array(runs)[..., 0],
        "standard_error": np.array(runs)[..., 1],
    }


def simulate(config: Config, design: designs.SamplingDesign, variance: float) -> tuple[float, float]:
    """The variance after some steps of Langevin dynamics from its stationary law, and its standard error."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_runs)
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


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm bias 0 where it is claimed, bias where it is not, the three scales, and the stationary variances."""
    is_trap, biases = results["kind"] == "traps", results["bias"]
    wrong = results["design"][~is_trap & (biases != 0)]
    require(wrong.size == 0, f"the bias must be 0 in rational arithmetic, but not for {', '.join(wrong)}")
    worst = {name: float(np.abs(biases[is_trap & (results["design"] == name)]).max()) for name in _traps(results)}
    require(min(worst.values()) > 0.05, f"every trap must be biased at some batch size, got {worst}")
    M, N = np.arange(1, 5), len(EXAMPLES)
    require(np.allclose(results["slope"], [-(M**0), -M, -N * M**0], rtol=1e-12), f"slopes: {results['slope'].tolist()}")
    z = (results["simulated"] - results["langevin"]) / results["standard_error"]
    require(np.abs(z).max() <= MAX_Z, f"a simulated variance is {z.flat[np.abs(z).argmax()]:.1f} standard errors off")
    posterior = 1 / N
    total = results["langevin"][SCALES.index("total")]
    tempered = results["langevin"][SCALES.index("mean")]
    require(
        np.all(np.diff(total) < 0) and total[-1] < 1.2 * posterior and np.all(tempered > 3 * posterior),
        f"only N/M times the sum must be near the posterior's {posterior}, got {results['langevin'].tolist()}",
    )
    return {
        "unbiased_designs": len(set(results["design"][~is_trap])),
        "largest_bias_of_traps": worst,
        "worst_z": float(np.abs(z).max()),
        "langevin_variance": dict(zip(SCALES, results["langevin"].round(6).tolist(), strict=True)),
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    traps = findings["largest_bias_of_traps"]
    return (
        f"{findings['unbiased_designs']} designs are unbiased exactly, {len(traps)} traps off by up to "
        f"{max(traps.values()):.2g}; Langevin variances within {findings['worst_z']:.1f} standard errors"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Biases, scales, and Langevin dynamics, from left to right."""
    figure = page(ncols=3, height_to_width_ratio=0.85)
    left, middle, right = figure.subplots(1, 3)
    _draw_biases(left, results)
    labels = {"mean": "mean", "sum": "sum", "total": "$N/M$ times the sum"}
    for axes, array in ((middle, "slope"), (right, "langevin")):
        for scale, values, color, marker in zip(SCALES, results[array], COLORS, MARKERS, strict=True):
            axes.plot(range(1, 5), values, color=color, marker=marker, label=labels[scale])
        axes.set(xlabel="batch size $M$ (examples)", xticks=range(1, 5))
    middle.axhline(-1, color="black", linewidth=0.6, linestyle=":")
    middle.text(2.6, -0.93, r"$\bar g$", fontsize="small", va="bottom")
    middle.set(ylabel="expected slope", ylim=(-4.6, 0.4))
    middle.legend(fontsize="x-small", loc="lower left", bbox_to_anchor=(0, 0.16))
    for scale, values, error in zip(SCALES, results["simulated"], results["standard_error"], strict=True):
        color = COLORS[SCALES.index(scale)]
        right.errorbar(range(1, 5), values, 2 * error, linestyle="none", color=color, capsize=2)
    right.axhline(0.25, color="black", linewidth=0.6, linestyle=":")
    right.text(1, 0.235, "posterior", fontsize="small", va="top")
    right.set(ylabel=r"stationary variance of $\theta$", yscale="log", ylim=(0.18, 1.6))
    right.set_yticks([0.2, 0.5, 1.0], ["0.2", "0.5", "1"])
    right.minorticks_off()
    return figure


def _draw_biases(axes: Any, results: dict[str, np.ndarray]) -> None:
    count = len(set(results["design"][results["kind"] == "unbiased"]))
    axes.plot(range(1, 7), np.zeros(6), color="black", marker="o", label=f"{count} designs")
    styles = zip((*COLORS, "0.5", COLORS[0]), (*MARKERS[1:], "D", "v", "X"), ("-", "--", "-.", ":", "--"), strict=True)
    for name, (color, marker, dash) in zip(_traps(results), styles, strict=True):
        chosen = results["design"] == name
        axes.plot(
            results["batch_size"][chosen],
            results["bias"][chosen],
            color=color,
            marker=marker,
            linestyle=dash,
            label=name,
        )
    axes.set(xlabel="batch size $M$ (examples)", ylabel=r"bias of $\hat g$  ($\bar g = 7$)", xticks=range(1, 7))
    axes.set_ylim(top=9.5)
    axes.legend(fontsize="x-small", labelspacing=0.25, loc="upper right")


def _traps(results: dict[str, np.ndarray]) -> list[str]:
    return list(dict.fromkeys(results["design"][results["kind"] == "traps"].tolist()))
