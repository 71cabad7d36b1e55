"""Shuffling does not make batches independent: it makes those of an epoch cancel, and it biases where epochs end.

Any two batches of a shuffled epoch have covariance −Σ/(N−1), whatever their sizes. With a constant step size η epochs
in random order end at a squared distance of order η² from the minimum, not η as for independent batches; but they end
off it on average, by −η Cov(g, h)/(2h̄), and epochs in a fixed order by another multiple of η for every order.

Command    python -m experiments shuffling
Run time   about 10 seconds on two cores
Expected   cross-covariance −31/5; epochs with a short last batch of mean 31/5 and variance 62/75, in stored order 47/6;
           at η = 1/4 the six orders of three examples end at −21/29, −9/29, −18/29, 6/29, 3/29 and 15/29, random ones
           at −4/29 on average; when η is halved, E δ² falls 2-fold (independent) and 4-fold (the others)

Left: SGD on three quadratics, E δ² at the ends of epochs; lines are exact, in rational arithmetic, points are simulated
runs. Middle: the mean of δ, divided by η. Right: the covariance of two batches of an epoch, of scalar gradients (1, 2,
4, 7, 11, 17), by their distance in the epoch; in stored order from a random start.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import require
from experiments._harness import progress
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, dynamics

LOSSES = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
ORDERS = list(itertools.permutations(range(3)))
ENDS = np.array([-21, -9, -18, 6, 3, 15]) / 29  # of the six orders, at η = 1/4
GRADIENTS = np.array([1.0, 2, 4, 7, 11, 17])
EPOCHS = (designs.Reshuffling(1), designs.Reshuffling(2), designs.Reshuffling(4, drop_last=False))
SHORT, SHORT_GRADIENTS = designs.Reshuffling(2, drop_last=False), np.array([1.0, 2, 4, 8, 16])
MAX_Z = 4.5


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    halvings: int = 10
    """Step sizes 1/4, 1/8, ..., down to 2 to the minus this, for the exact laws."""
    simulated: int = 5
    """At how many of the step sizes, from the largest, runs are simulated."""
    num_runs: int = 20_000
    """Independent runs for each point; five times as many epochs at one θ for the covariances."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(simulated=2, num_runs=4_000)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Exact laws at all step sizes, simulated runs at some, and the batches of many epochs."""
    keys = jax.random.split(jax.random.key(config.seed), 4)
    rates = [Fraction(1, 2**k) for k in range(2, config.halvings + 1)]
    return exact(rates) | simulate(config, rates[: config.simulated], keys[0]) | frozen(config, *keys[1:])


def exact(rates: Sequence[Fraction]) -> dict[str, np.ndarray]:
    """The mean and the second moment of δ at the ends of epochs, shape (rates,), or (rates, 6) for the fixed orders."""
    independent = [dynamics.step_law(LOSSES, designs.WithReplacement(1), eta).stationary() for eta in rates]
    random = [dynamics.reshuffled_law(LOSSES, designs.Reshuffling(1), eta).stationary() for eta in rates]
    fixed = [[dynamics.fixed_order_law(LOSSES, order, eta).stationary() for order in ORDERS] for eta in rates]
    origin = LOSSES.minimum()
    return {
        "learning_rate": np.array(rates, dtype=float),
        "independent/mean": np.array([state.mean.item() for state in independent], dtype=float),
        "independent/square": np.array([state.second_moment(origin).item() for state in independent], dtype=float),
        "random/mean": np.array([state.mean.item() for state in random], dtype=float),
        "random/square": np.array([state.second_moment(origin).item() for state in random], dtype=float),
        "fixed/mean": np.array([[state.mean.item() for state in row] for row in fixed], dtype=float),
    }


def simulate(config: Config, rates: Sequence[Fraction], key: jax.Array) -> dict[str, np.ndarray]:
    """Runs of 3/η epochs from the minimum, after which exp(−18) is left of the start: the mean of δ and of δ²."""
    found: dict[str, list[Any]] = {"independent": [], "random": [], "fixed": []}
    for place, eta in enumerate(progress(rates, "step sizes")):
        epochs, rate = int(3 / eta), float(eta)
        first, second = jax.random.split(jax.random.fold_in(key, place))
        steps = dynamics.simulate_steps(
            LOSSES, designs.WithReplacement(1), rate, key=first, num_steps=3 * epochs, num_runs=config.num_runs
        )
        ends = dynamics.simulate_epochs(
            LOSSES, designs.Reshuffling(1), rate, key=second, num_epochs=epochs, num_runs=config.num_runs
        )
        found["independent"].append(summary(steps[:, 0]))
        found["random"].append(summary(ends[:, 0]))
        found["fixed"].append([cycle(order, rate, epochs) for order in ORDERS])
    return {f"{name}/drawn": np.array(values) for name, values in found.items()}


def summary(delta: Any) -> list[float]:
    """The mean of δ and its standard error, the mean of δ² and its standard error, over independent runs."""
    values = [np.asarray(delta), np.asarray(delta) ** 2]
    return [float(x) for v in values for x in (v.mean(), v.std(ddof=1) / np.sqrt(len(v)))]


def cycle(order: Sequence[int], rate: float, epochs: int) -> float:
    """Where SGD in a fixed order ends an epoch."""
    theta, h, c = 0.0, (1.0, 2.0, 3.0), (3.0, 0.0, -1.0)
    for i in order * epochs:
        theta -= rate * h[i] * (theta - c[i])
    return theta


def frozen(config: Config, key: jax.Array, start_key: jax.Array, short_key: jax.Array) -> dict[str, np.ndarray]:
    """Covariances of the first batch of an epoch with the later ones at one θ; averages of an epoch's batches."""
    centered = GRADIENTS - GRADIENTS.mean()
    exact_law = [float(centered @ d.cross_covariance(6).dense(6) @ centered) for d in EPOCHS]
    num_epochs, drawn_with = 5 * config.num_runs, jax.random.split(key, len(EPOCHS))
    drawn = [np.asarray(batch_means(d, centered, num_epochs, k)) for d, k in zip(EPOCHS, drawn_with, strict=True)]
    covariances = [mean_and_error(means[:, :1] * means[:, 1:]) for means in drawn]
    blocks = [centered, centered.reshape(3, 2).mean(axis=1)]
    circular = [[np.mean(b * np.roll(b, -lag)) for lag in range(1, len(b))] for b in blocks]
    starts = np.asarray(jax.random.randint(start_key, (num_epochs, 1), 0, 6))
    passes = [b[(starts + np.arange(len(b))) % len(b)] for b in blocks]
    stored = [mean_and_error(p[:, :1] * p[:, 1:]) for p in passes]
    averages = np.asarray(batch_means(SHORT, SHORT_GRADIENTS, num_epochs, short_key)).mean(axis=1)
    spread = SHORT_GRADIENTS - SHORT_GRADIENTS.mean()
    return {
        "cross/exact": np.array(exact_law),
        "cross/drawn": np.concatenate([mean for mean, _ in covariances]),
        "cross/error": np.concatenate([error for _, error in covariances]),
        "cross/lag": np.concatenate([np.arange(len(mean)) + 1 for mean, _ in covariances]),
        "cross/batch_size": np.repeat([1, 2, 4], [len(mean) for mean, _ in covariances]),
        "stored/exact": np.concatenate(circular),
        "stored/drawn": np.concatenate(stored, axis=1),
        "short/exact": np.array([SHORT_GRADIENTS.mean(), spread @ SHORT.epoch_mean_covariance(5).dense(5) @ spread]),
        "short/drawn": np.array(summary(averages - SHORT_GRADIENTS.mean())),
        "short/stored_order": np.mean([1.5, 6, 16]),
        "short/by_example": spread @ SHORT.epoch_mean_covariance(5, by="example").dense(5) @ spread,
    }


@partial(jax.jit, static_argnums=(0, 2))
def batch_means(design: designs.Reshuffling, values: jax.Array, num_epochs: int, key: jax.Array) -> jax.Array:
    """The means of the batches of independent epochs, shape (num_epochs, k)."""
    return jax.vmap(lambda k: design.epoch_weights(k, len(values)) @ values)(jax.random.split(key, num_epochs))


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over independent rows, and its standard error."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm the laws and the drawn epochs and runs, and that independent or unbiased epochs are rejected."""
    return check_covariances(results) | check_short_batch(results) | check_dynamics(results) | check_slopes(results)


def check_covariances(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Two batches of an epoch: −Σ/(N−1) if shuffled; another number at each distance in stored order."""
    law = -GRADIENTS.var() / 5
    require(np.allclose(results["cross/exact"], law, rtol=1e-12, atol=0), f"batches must have covariance {law}")
    z = (results["cross/drawn"] - law) / results["cross/error"]
    require(np.abs(z).max() < MAX_Z, f"drawn covariances of batches are {np.abs(z).max():.1f} standard errors off")
    independent = np.abs(results["cross/drawn"] / results["cross/error"]).min()
    require(independent > MAX_Z, "independence of an epoch's batches must be rejected")
    mean, error = results["stored/drawn"]
    stored = np.abs((mean - results["stored/exact"]) / error).max()
    require(np.allclose(results["stored/exact"][5:], -163 / 12), "blocks of two must have covariance −163/12")
    require(stored < MAX_Z, f"covariances in stored order are {stored:.1f} standard errors off")
    require(np.all(np.abs((mean - law) / error) > MAX_Z), "the law of shuffling must be rejected in stored order")
    return {"cross_covariance": law, "worst_z_covariance": float(np.abs(z).max()), "z_if_independent": independent}


def check_short_batch(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """The average of an epoch's batches is random if they differ in size, and unbiased if shuffled."""
    mean, variance = results["short/exact"]
    require(
        np.allclose([mean, variance], [31 / 5, 62 / 75], rtol=1e-12, atol=0),
        f"31/5 and 62/75 must be {mean}, {variance}",
    )
    require(abs(results["short/by_example"]) < 1e-12, "weighted by size, the average of an epoch must not vary")
    offset, offset_error, square, square_error = results["short/drawn"]
    z = np.array([offset / offset_error, (square - variance) / square_error])
    require(np.abs(z).max() < MAX_Z, f"drawn epochs with a short batch are {np.abs(z).max():.1f} standard errors off")
    require(square / square_error > MAX_Z, "that an epoch with a short batch averages to ḡ must be rejected")
    off = (mean + offset - results["short/stored_order"]) / offset_error
    require(abs(off) > MAX_Z, "the average in stored order must be rejected as that of shuffled epochs")
    return {"short_batch_mean": mean, "short_batch_variance": variance, "worst_z_short_batch": np.abs(z).max()}


def check_dynamics(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Simulated runs follow the exact laws; those of independent batches are rejected under reshuffling."""
    drawn = {name: results[f"{name}/drawn"] for name in ("independent", "random", "fixed")}
    count = len(drawn["fixed"])
    ends = results["fixed/mean"]
    require(
        np.allclose(ends[0], ENDS, rtol=1e-12, atol=0), f"the six orders must end at {ENDS} for η = 1/4, got {ends[0]}"
    )
    off = np.abs(drawn["fixed"] - ends[:count]).max()
    require(off < 1e-6, f"epochs in a fixed order must end where they should, off by {off:.1e}")
    worst = {}
    for name in ("independent", "random"):
        mean, mean_error, square, square_error = drawn[name].T
        z = [(mean - results[f"{name}/mean"][:count]) / mean_error]
        z.append((square - results[f"{name}/square"][:count]) / square_error)
        worst[f"worst_z_{name}"] = float(np.abs(z).max())
        require(np.abs(z).max() < MAX_Z, f"{name} batches: simulated runs {np.abs(z).max():.1f} standard errors off")
    mean, mean_error, square, square_error = drawn["random"].T
    unbiased = np.abs(mean / mean_error).min()
    require(unbiased > MAX_Z, "that reshuffled epochs end at the minimum on average must be rejected")
    other = np.abs((square - results["independent/square"][:count]) / square_error).min()
    require(other > MAX_Z, "the law of independent batches must be rejected for reshuffled ones")
    return worst | {"z_if_unbiased": float(unbiased), "z_if_independent_steps": float(other)}


def check_slopes(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Orders in η, from the last halving: 1 and 2; and the bias of reshuffling, −η/2."""
    last = {
        "independent": results["independent/square"][-2:],
        "random": results["random/square"][-2:],
        "fixed": results["fixed/mean"][-2:, 0] ** 2,
    }
    slopes = {name: float(np.log2(pair[0] / pair[1])) for name, pair in last.items()}
    require(abs(slopes["independent"] - 1) < 0.01, f"E δ² must be of order η, got a slope of {slopes['independent']}")
    for name in ("random", "fixed"):
        require(abs(slopes[name] - 2) < 0.05, f"{name} order: E δ² must be of order η², got a slope of {slopes[name]}")
    bias = float(results["random/mean"][-1] / results["learning_rate"][-1])
    predicted = float(dynamics.reshuffling_bias(LOSSES, designs.Reshuffling(1), 1).item())
    require(abs(bias - predicted) < 1e-3, f"reshuffled epochs must end at −η/2 on average, got {bias}η")
    return {f"slope_{name}": value for name, value in slopes.items()} | {"bias_over_learning_rate": bias}


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    return (
        f"batches of an epoch have covariance {findings['cross_covariance']:.2f}, E δ² is of order "
        f"{findings['slope_independent']:.2f} in η for independent batches, {findings['slope_random']:.2f} for "
        f"reshuffling, {findings['slope_fixed']:.2f} in a fixed order; reshuffled epochs end at "
        f"{findings['bias_over_learning_rate']:.4f} η on average"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Three panels: E δ² against η, mean end of epochs against η, covariances within an epoch."""
    figure = page(ncols=3, height_to_width_ratio=0.85)
    left, middle, right = figure.subplots(1, 3)
    draw_squares(left, results)
    draw_means(middle, results)
    draw_covariances(right, results)
    return figure


def draw_squares(axes: Any, results: dict[str, np.ndarray]) -> None:
    """E δ² at the ends of epochs."""
    rate, fixed = results["learning_rate"], results["fixed/mean"][:, 0] ** 2
    count = len(results["fixed/drawn"])
    axes.plot(rate, results["independent/square"], color=COLORS[0])
    axes.plot(rate, fixed, color=COLORS[2], linestyle=(0, (1, 1)))
    axes.plot(rate, results["random/square"], color=COLORS[1], linestyle=(0, (4, 1.5)))
    shown = (("independent", 0, "independent batches"), ("random", 1, "random order"))
    for name, style, label in shown:
        square, error = results[f"{name}/drawn"][:, 2:].T
        axes.errorbar(rate[:count], square, 2 * error, **points(style), label=label)
    order = "fixed order 1, 2, 3"
    axes.plot(rate[:count], results["fixed/drawn"][:, 0] ** 2, **points(2), label=order)
    axes.set(
        xscale="log", yscale="log", xlabel=r"step size $\eta$", ylabel=r"$\mathbb{E}\,\delta^2$ at the ends of epochs"
    )
    axes.legend(loc="upper left", fontsize="small", handletextpad=0.2)
    axes.set_ylim(top=30)


def draw_means(axes: Any, results: dict[str, np.ndarray]) -> None:
    """The mean of δ at the ends of epochs, over η."""
    rate, count = results["learning_rate"], len(results["fixed/drawn"])
    axes.plot(rate, results["fixed/mean"] / rate[:, None], color=COLORS[2], linestyle=(0, (1, 1)))
    axes.plot(rate, results["random/mean"] / rate, color=COLORS[1], linestyle=(0, (4, 1.5)))
    axes.plot(rate, results["independent/mean"], color=COLORS[0])
    for column in results["fixed/drawn"].T:
        axes.plot(rate[:count], column / rate[:count], **points(2))
    for name, style in (("independent", 0), ("random", 1)):
        mean, error = results[f"{name}/drawn"][:, :2].T
        axes.errorbar(rate[:count], mean / rate[:count], 2 * error / rate[:count], **points(style))
    axes.text(rate[-1], 0.62, "six fixed orders", va="bottom", fontsize="small")
    axes.set(xscale="log", xlabel=r"step size $\eta$", ylabel=r"$\mathbb{E}\,\delta\,/\,\eta$ at the ends of epochs")


def draw_covariances(axes: Any, results: dict[str, np.ndarray]) -> None:
    """Covariance of two batches by their distance."""
    lag = results["cross/lag"]
    axes.axhline(0, color=COLORS[0])
    axes.axhline(results["cross/exact"][0], color=COLORS[1], linestyle=(0, (4, 1.5)))
    for lags, part, marker in ((np.arange(1, 6), slice(0, 5), "^"), (np.arange(1, 3), slice(5, 7), "v")):
        axes.plot(lags, results["stored/exact"][part], color=COLORS[2], linestyle=(0, (1, 1)))
        mean, error = results["stored/drawn"][:, part]
        axes.errorbar(lags, mean, 2 * error, **points(2) | {"marker": marker})
    axes.text(1.3, -14.3, "$M=2$", ha="left", va="top", fontsize="small")
    for place, size in enumerate((1, 2, 4)):
        of_size = results["cross/batch_size"] == size
        shift = 0.16 * (place - 0.5)
        style = points(1) | {"marker": ("s", "D", "P")[place]}
        mean, error = results["cross/drawn"][of_size], 2 * results["cross/error"][of_size]
        label = ("random order, $M=1$", "$M=2$", "$M=4$, and a short batch")[place]
        axes.errorbar(lag[of_size] + shift, mean, error, **style, label=label)
    axes.text(3, 0.4, "independent", ha="center", va="bottom", fontsize="small")
    axes.text(3.05, -11.5, "stored order", ha="center", va="bottom", fontsize="small")
    axes.set(xlabel="distance in the epoch (batches)", ylabel="covariance of two batches", ylim=(-19, 16))
    axes.legend(loc="upper left", fontsize="small", handletextpad=0.2)


def points(style: int) -> dict[str, Any]:
    """Marks of simulated values."""
    return {"color": COLORS[style], "marker": MARKERS[style], "linestyle": "none"}
