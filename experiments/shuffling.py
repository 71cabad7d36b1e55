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
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import MAX_Z, Claims
from experiments._harness import Arrays, Seeded, progress
from experiments._panels import BLUE, DOTTED, LONG_DASHED, ORANGE, SKY, mark, note, page_of, panel
from jaxsgd import designs, dynamics

LOSSES = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
ORDERS = list(itertools.permutations(range(3)))
ENDS = np.array([-21, -9, -18, 6, 3, 15]) / 29  # of the six orders, at η = 1/4
GRADIENTS = np.array([1.0, 2, 4, 7, 11, 17])
EPOCHS = (designs.Reshuffling(1), designs.Reshuffling(2), designs.Reshuffling(4, drop_last=False))
SHORT, SHORT_GRADIENTS = designs.Reshuffling(2, drop_last=False), np.array([1.0, 2, 4, 8, 16])


class Config(Seeded):
    """Settings of the experiment."""

    halvings: int = 10
    """Step sizes 1/4, 1/8, ..., down to 2 to the minus this, for the exact laws."""
    simulated: int = 5
    """At how many of the step sizes, from the largest, runs are simulated."""
    num_runs: int = 20_000
    """Independent runs for each point; five times as many epochs at one θ for the covariances."""


QUICK = Config(simulated=2, num_runs=4_000)
SUMMARY = (
    "batches of an epoch have covariance {cross_covariance:.2f}, E δ² is of order {slope_independent:.2f} in η for "
    "independent batches, {slope_random:.2f} for reshuffling, {slope_fixed:.2f} in a fixed order; reshuffled epochs "
    "end at {bias_over_learning_rate:.4f} η on average"
)


def compute(config: Config) -> Arrays:
    """Exact laws at all step sizes, simulated runs at some, and the batches of many epochs."""
    keys = jax.random.split(config.key(), 4)
    rates = [Fraction(1, 2**k) for k in range(2, config.halvings + 1)]
    return exact(rates) | simulate(config, rates[: config.simulated], keys[0]) | frozen(config, *keys[1:])


def exact(rates: Sequence[Fraction]) -> Arrays:
    """The mean and the second moment of δ at the ends of epochs, shape (rates,), or (rates, 6) for the fixed orders."""
    independent = [dynamics.step_law(LOSSES, designs.WithReplacement(1), eta).stationary() for eta in rates]
    random = [dynamics.reshuffled_law(LOSSES, designs.Reshuffling(1), eta).stationary() for eta in rates]
    fixed = [[dynamics.fixed_order_law(LOSSES, order, eta).stationary() for order in ORDERS] for eta in rates]
    origin = LOSSES.minimum()
    found = {
        "learning_rate": rates,
        "independent/mean": [state.mean.item() for state in independent],
        "independent/square": [state.second_moment(origin).item() for state in independent],
        "random/mean": [state.mean.item() for state in random],
        "random/square": [state.second_moment(origin).item() for state in random],
        "fixed/mean": [[state.mean.item() for state in row] for row in fixed],
    }
    return {name: np.array(values, dtype=float) for name, values in found.items()}


def simulate(config: Config, rates: Sequence[Fraction], key: jax.Array) -> dict[str, Any]:
    """Runs of 3/η epochs from the minimum, after which exp(−18) is left of the start: the mean of δ and of δ²."""
    found: dict[str, list[Any]] = {"independent/drawn": [], "random/drawn": [], "fixed/drawn": []}
    for place, eta in enumerate(progress(rates, "step sizes")):
        epochs, rate, runs = int(3 / eta), float(eta), config.num_runs
        first, second = jax.random.split(jax.random.fold_in(key, place))
        batches, order = designs.WithReplacement(1), designs.Reshuffling(1)
        steps = dynamics.simulate_steps(LOSSES, batches, rate, key=first, num_steps=3 * epochs, num_runs=runs)
        ends = dynamics.simulate_epochs(LOSSES, order, rate, key=second, num_epochs=epochs, num_runs=runs)
        rows = summary(steps[:, 0]), summary(ends[:, 0]), [cycle(order, rate, epochs) for order in ORDERS]
        for rows_so_far, row in zip(found.values(), rows, strict=True):
            rows_so_far.append(row)
    return found


def summary(delta: Any) -> list[float]:
    """The mean of δ and its standard error, the mean of δ² and its standard error, over independent runs."""
    delta = np.asarray(delta)
    return [number for values in (delta, delta**2) for number in mean_and_error(values)]


def cycle(order: Sequence[int], rate: float, epochs: int) -> float:
    """Where SGD in a fixed order ends an epoch."""
    theta, h, c = 0.0, (1.0, 2.0, 3.0), (3.0, 0.0, -1.0)
    for i in order * epochs:
        theta -= rate * h[i] * (theta - c[i])
    return theta


def frozen(config: Config, key: jax.Array, start_key: jax.Array, short_key: jax.Array) -> dict[str, Any]:
    """Covariances of the first batch of an epoch with the later ones at one θ; averages of an epoch's batches."""
    centered = GRADIENTS - GRADIENTS.mean()
    num_epochs, drawn_with = 5 * config.num_runs, jax.random.split(key, len(EPOCHS))
    drawn = [np.asarray(batch_means(d, centered, num_epochs, k)) for d, k in zip(EPOCHS, drawn_with, strict=True)]
    mean, error = np.concatenate([mean_and_error(means[:, :1] * means[:, 1:]) for means in drawn], axis=1)
    lags = [means.shape[1] - 1 for means in drawn]
    blocks = [centered, centered.reshape(3, 2).mean(axis=1)]
    circular = [[np.mean(b * np.roll(b, -lag)) for lag in range(1, len(b))] for b in blocks]
    starts = np.asarray(jax.random.randint(start_key, (num_epochs, 1), 0, 6))
    passes = [b[(starts + np.arange(len(b))) % len(b)] for b in blocks]
    averages = np.asarray(batch_means(SHORT, SHORT_GRADIENTS, num_epochs, short_key)).mean(axis=1)
    spread = SHORT_GRADIENTS - SHORT_GRADIENTS.mean()
    return {
        "cross/exact": [float(centered @ d.cross_covariance(6).dense(6) @ centered) for d in EPOCHS],
        "cross/drawn": mean,
        "cross/error": error,
        "cross/lag": np.concatenate([np.arange(count) + 1 for count in lags]),
        "cross/batch_size": np.repeat([1, 2, 4], lags),
        "stored/exact": np.concatenate(circular),
        "stored/drawn": np.concatenate([mean_and_error(p[:, :1] * p[:, 1:]) for p in passes], axis=1),
        "short/exact": [SHORT_GRADIENTS.mean(), spread @ SHORT.epoch_mean_covariance(5).dense(5) @ spread],
        "short/drawn": summary(averages - SHORT_GRADIENTS.mean()),
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


def check(results: Arrays) -> Claims:
    """Confirm the laws and the drawn epochs and runs, and that independent or unbiased epochs are rejected."""
    return Claims.of(results, check_covariances, check_short_batch, check_dynamics, check_slopes)


def check_covariances(claims: Claims, results: Arrays) -> None:
    """Two batches of an epoch: −Σ/(N−1) if shuffled; another number at each distance in stored order."""
    law = claims["cross_covariance"] = -GRADIENTS.var() / 5
    claims.equal(results["cross/exact"], law, f"batches must have covariance {law}, got {{}}", rtol=1e-12, atol=0)
    mean, error = results["cross/drawn"], results["cross/error"]
    claims.agree((mean - law) / error, "drawn covariances of batches are")
    claims["worst_z_covariance"] = np.abs((mean - law) / error).max()
    claims.reject(np.abs(mean / error), "independence of an epoch's batches", enter="z_if_independent")
    (mean, error), exact = results["stored/drawn"], results["stored/exact"]
    claims.equal(exact[5:], -163 / 12, "blocks of two must have covariance −163/12, got {}", rtol=1e-12)
    claims.agree((mean - exact) / error, "covariances in stored order are")
    z = np.abs((mean - law) / error)
    claims.above(z, MAX_Z, "the law of shuffling must be rejected in stored order, got z = {:.1f}")


def check_short_batch(claims: Claims, results: Arrays) -> None:
    """The average of an epoch's batches is random if they differ in size, and unbiased if shuffled."""
    mean, variance = results["short/exact"]
    claims |= {"short_batch_mean": mean, "short_batch_variance": variance}
    claims.equal(results["short/exact"], [31 / 5, 62 / 75], "31/5 and 62/75 must be {}", rtol=1e-12, atol=0)
    off = np.abs(results["short/by_example"])
    claims.below(off, 1e-12, "weighted by size, the average of an epoch must not vary, got {:.1e}")
    offset, offset_error, square, square_error = results["short/drawn"]
    z = np.array([offset / offset_error, (square - variance) / square_error])
    claims.agree(z, "drawn epochs with a short batch are")
    claims["worst_z_short_batch"] = np.abs(z).max()
    claims.reject(square / square_error, "that an epoch with a short batch averages to ḡ")
    off = np.abs(mean + offset - results["short/stored_order"]) / offset_error
    claims.reject(off, "that shuffled epochs have the average in stored order")


def check_dynamics(claims: Claims, results: Arrays) -> None:
    """Simulated runs follow the exact laws; those of independent batches are rejected under reshuffling."""
    ends, drawn = results["fixed/mean"], results["fixed/drawn"]
    count = len(drawn)
    message = f"the six orders must end at {ENDS} for η = 1/4, got {{}}"
    claims.equal(ends[0], ENDS, message, rtol=1e-12, atol=0)
    off = np.abs(drawn - ends[:count])
    claims.below(off, 1e-6, "epochs in a fixed order must end where they should, off by {:.1e}")
    for name in ("independent", "random"):
        mean, mean_error, square, square_error = results[f"{name}/drawn"].T
        z = [(mean - results[f"{name}/mean"][:count]) / mean_error]
        z.append((square - results[f"{name}/square"][:count]) / square_error)
        claims.agree(z, f"{name} batches: simulated runs")
        claims[f"worst_z_{name}"] = np.abs(z).max()
    what = "that reshuffled epochs end at the minimum on average"
    claims.reject(np.abs(mean / mean_error), what, enter="z_if_unbiased")
    z = np.abs((square - results["independent/square"][:count]) / square_error)
    claims.reject(z, "the law of independent batches", enter="z_if_independent_steps")


def check_slopes(claims: Claims, results: Arrays) -> None:
    """Orders in η, from the last halving: 1 and 2; and the bias of reshuffling, −η/2."""
    squares = {name: results[f"{name}/square"] for name in ("independent", "random")}
    squares["fixed"] = results["fixed/mean"][:, 0] ** 2
    orders = {"independent": (1, 0.01, ""), "random": (2, 0.05, "random order: "), "fixed": (2, 0.05, "fixed order: ")}
    for name, (order, atol, where) in orders.items():
        slope = np.log2(squares[name][-2] / squares[name][-1])
        message = f"{where}E δ² must be of order η{'²' if order == 2 else ''}, got a slope of {{}}"
        claims.equal(slope, order, message, atol=atol, enter=f"slope_{name}")
    bias = results["random/mean"][-1] / results["learning_rate"][-1]
    predicted = dynamics.reshuffling_bias(LOSSES, designs.Reshuffling(1), 1).item()
    message = "reshuffled epochs must end at −η/2 on average, got {}η"
    claims.equal(bias, float(predicted), message, atol=1e-3, enter="bias_over_learning_rate")


def draw(results: Arrays) -> Figure:
    """Three panels: E δ² against η, mean end of epochs against η, covariances within an epoch."""
    return page_of(results, _draw_squares, _draw_means, _draw_covariances, ratio=0.85)


def _draw_squares(axes: Any, results: Arrays) -> None:
    """E δ² at the ends of epochs."""
    rate, count = results["learning_rate"], len(results["fixed/drawn"])
    axes.plot(rate, results["independent/square"], color=BLUE)
    axes.plot(rate, results["fixed/mean"][:, 0] ** 2, color=SKY, linestyle=DOTTED)
    axes.plot(rate, results["random/square"], color=ORANGE, linestyle=LONG_DASHED)
    for place, (name, label) in enumerate((("independent", "independent batches"), ("random", "random order"))):
        _, _, square, error = results[f"{name}/drawn"].T
        axes.errorbar(rate[:count], square, 2 * error, **mark(place, line="none"), label=label)
    square = results["fixed/drawn"][:, 0] ** 2
    axes.plot(rate[:count], square, **mark(2, line="none"), label="fixed order 1, 2, 3")
    legend, height = {"loc": "upper left", "handletextpad": 0.2}, r"$\mathbb{E}\,\delta^2$ at the ends of epochs"
    panel(axes, x=r"step size $\eta$", y=height, log="xy", legend=legend)
    axes.set_ylim(top=30)


def _draw_means(axes: Any, results: Arrays) -> None:
    """The mean of δ at the ends of epochs, over η."""
    rate, count = results["learning_rate"], len(results["fixed/drawn"])
    axes.plot(rate, results["fixed/mean"] / rate[:, None], color=SKY, linestyle=DOTTED)
    axes.plot(rate, results["random/mean"] / rate, color=ORANGE, linestyle=LONG_DASHED)
    axes.plot(rate, results["independent/mean"], color=BLUE)
    for column in results["fixed/drawn"].T:
        axes.plot(rate[:count], column / rate[:count], **mark(2, line="none"))
    for place, name in enumerate(("independent", "random")):
        mean, error, *_ = results[f"{name}/drawn"].T / rate[:count]
        axes.errorbar(rate[:count], mean, 2 * error, **mark(place, line="none"))
    note(axes, rate[-1], 0.62, "six fixed orders", va="bottom")
    panel(axes, x=r"step size $\eta$", y=r"$\mathbb{E}\,\delta\,/\,\eta$ at the ends of epochs", log="x")


def _draw_covariances(axes: Any, results: Arrays) -> None:
    """Covariance of two batches by their distance."""
    axes.axhline(0, color=BLUE)
    axes.axhline(results["cross/exact"][0], color=ORANGE, linestyle=LONG_DASHED)
    for lags, part, marker in ((np.arange(1, 6), slice(0, 5), "^"), (np.arange(1, 3), slice(5, 7), "v")):
        axes.plot(lags, results["stored/exact"][part], color=SKY, linestyle=DOTTED)
        mean, error = results["stored/drawn"][:, part]
        axes.errorbar(lags, mean, 2 * error, color=SKY, marker=marker, linestyle="none")
    note(axes, 1.3, -14.3, "$M=2$", ha="left", va="top")
    shown = {"random order, $M=1$": (1, "s"), "$M=2$": (2, "D"), "$M=4$, and a short batch": (4, "P")}
    for place, (label, (size, marker)) in enumerate(shown.items()):
        of_size, shift = results["cross/batch_size"] == size, 0.16 * (place - 0.5)
        lag, mean, error = (results[f"cross/{name}"][of_size] for name in ("lag", "drawn", "error"))
        axes.errorbar(lag + shift, mean, 2 * error, color=ORANGE, marker=marker, linestyle="none", label=label)
    note(axes, 3, 0.4, "independent", ha="center", va="bottom")
    note(axes, 3.05, -11.5, "stored order", ha="center", va="bottom")
    legend, distance = {"loc": "upper left", "handletextpad": 0.2}, "distance in the epoch (batches)"
    panel(axes, x=distance, y="covariance of two batches", ylim=(-19, 16), legend=legend)
