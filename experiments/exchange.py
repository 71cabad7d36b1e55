"""Gradient and expectation may be exchanged where the loss is locally Lipschitz with an integrable constant.

Nineteen closed forms lie on both sides of that line.

Command    python -m experiments exchange
Run time   about 10 seconds on two cores
Expected   thirteen cases hold: the mean of drawn gradients within 4.5 standard errors of F'; six fail, by what their
           closed forms say; of fifteen usual losses, two lose the gradient and eight the second derivative

Left: the derivative of the expectation F, and the expectation of the derivatives that ``jax.grad`` returns. Middle: a
smooth loss without a dominating function; the derivative at 0 is 0 for every finite data set, 1 for the population.
Right: the usual losses, twice differentiated; those with kinks lose what the kinks contribute.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import require
from experiments._panels import COLORS, page
from jaxsgd import exchange

MAX_Z = 4.5
TOLERANCE = 1e-3  # ten times what central differences are off, a tenth of the smallest failure
UNDOMINATED = "smooth, not dominated"


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    num_draws: int = 1_000_000
    """Examples drawn for every case."""
    num_points: int = 2**18
    """Points of the quadrature of the usual losses."""
    data_set_sizes: tuple[int, ...] = (10, 100, 1000)
    """Sizes of the finite data sets."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(num_draws=20_000, num_points=2**15)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Drawn gradients of every case, finite data sets of one of them, and two derivatives of the usual losses."""
    uniforms = jax.random.uniform(jax.random.key(config.seed), (config.num_draws,), minval=1e-12)
    drawn = [np.asarray(case.gradients(uniforms)) for case in exchange.CASES]
    second = [
        exchange.derivatives(loss.loss_fn, loss.quantile, loss.theta, num_points=config.num_points)
        for loss in exchange.LOSSES
    ]
    theta = np.linspace(-0.4, 0.4, 161)
    return {
        "cases": np.array([case.name for case in exchange.CASES]),
        "derivative": np.array([case.derivative for case in exchange.CASES]),
        "expected_gradient": np.array([case.expected_gradient for case in exchange.CASES]),
        "second_moment": np.array([case.second_moment for case in exchange.CASES]),
        "drawn_mean": np.array([gradients.mean() for gradients in drawn]),
        "num_draws": np.array(config.num_draws),
        "theta": theta,
        "data_set_sizes": np.array(config.data_set_sizes),
        "finite_slopes": np.stack([finite_slopes(theta, size) for size in config.data_set_sizes]),
        "losses": np.array([loss.name for loss in exchange.LOSSES]),
        "of_mean": np.array([found[0] for found in second]),
        "mean_of": np.array([found[1] for found in second]),
    }


def finite_slopes(theta: np.ndarray, size: int) -> np.ndarray:
    """The derivative of the mean loss over a data set of evenly spaced examples, at every θ."""
    case = next(case for case in exchange.CASES if case.name == UNDOMINATED)
    data = jnp.asarray((np.arange(size) + 0.5) / size)
    slope = jax.grad(lambda t: jax.vmap(case.loss_fn, in_axes=(None, 0))(t, data).mean())
    return np.asarray(jax.jit(jax.vmap(slope))(theta))


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm what the closed forms say of every case and every usual loss."""
    mean, second = results["expected_gradient"], results["second_moment"]
    finite = np.isfinite(second)
    standard_error = np.sqrt((second[finite] - mean[finite] ** 2) / results["num_draws"])
    worst = 0.0
    for name, drawn, truth, error in zip(
        results["cases"][finite], results["drawn_mean"][finite], mean[finite], standard_error, strict=True
    ):
        z = (drawn - truth) / error if error > 0 else (0.0 if drawn == truth else math.inf)
        worst = max(worst, abs(z))
        require(worst <= MAX_Z, f"the drawn gradients of {name} are {z:.1f} standard errors from E ∂L")
    gap = np.abs(results["derivative"] - mean[:, None]).max(axis=1)
    fails = gap > 0
    away = np.abs(results["derivative"] - results["drawn_mean"][:, None]).max(axis=1)
    require(
        np.all(away[fails] > 0.9 * gap[fails]) and np.all(gap[fails] > 0.5),
        f"where exchange fails, drawn gradients must miss F', got {np.min(away[fails]):.2g}",
    )
    middle = results["finite_slopes"][:, results["theta"] == 0]
    require(np.all(middle == 0), f"every finite data set must have slope 0 at 0, got {middle.max():.1e}")
    gaps = np.abs(results["of_mean"] - results["mean_of"])
    for order, attribute in enumerate(("gradient", "second")):
        holds = np.array([getattr(loss, attribute) for loss in exchange.LOSSES])
        require(
            np.all((gaps[:, order] < TOLERANCE) == holds),
            f"derivative {order + 1} of the usual losses: exchange must fail for "
            f"{', '.join(results['losses'][~holds])} alone, got gaps {gaps[:, order].round(4).tolist()}",
        )
    return {
        "cases": len(mean),
        "fails": results["cases"][fails].tolist(),
        "worst_z": float(worst),
        "gap": dict(zip(results["cases"][fails].tolist(), gap[fails].round(6).tolist(), strict=True)),
        "infinite_variance": results["cases"][np.isinf(second)].tolist(),
        "second_derivatives_lost": results["losses"][gaps[:, 1] >= TOLERANCE].tolist(),
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    return (
        f"exchange fails in {len(findings['fails'])} of {findings['cases']} cases and holds in the others, worst "
        f"deviation {findings['worst_z']:.1f} standard errors; {len(findings['second_derivatives_lost'])} usual losses "
        "lose their second derivative"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """The cases, the limits that do not commute, and the second derivatives of the usual losses."""
    figure = page(height_to_width_ratio=0.44)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 0.8, 0.9))
    _draw_pairs(
        left, results["cases"], results["derivative"], results["expected_gradient"], "derivative at one $\\theta$"
    )
    _draw_limits(middle, results)
    of_mean = np.repeat(results["of_mean"][:, 1:], 2, axis=1)
    _draw_pairs(right, results["losses"], of_mean, results["mean_of"][:, 1], "second derivative")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _draw_pairs(axes: Any, names: np.ndarray, of_mean: np.ndarray, mean_of: np.ndarray, label: str) -> None:
    """One row for each name: an open square for the derivative of F (both sides), a disk for what JAX averages."""
    rows = np.arange(len(names))
    fails = np.abs(of_mean - mean_of[:, None]).max(axis=1) > TOLERANCE
    axes.plot(of_mean[:, 0], rows, "s", mfc="none", color="black", markersize=5, label="of the expectation, $F'$")
    axes.plot(of_mean[:, 1], rows, "s", mfc="none", color="black", markersize=5)
    holds = {"color": COLORS[0], "marker": "o", "linestyle": "none"}
    axes.plot(mean_of[~fails], rows[~fails], **holds, label="expected gradient, the same")
    axes.plot(
        mean_of[fails], rows[fails], "X", color=COLORS[1], markersize=4.5, label="expected gradient, not the same"
    )
    axes.set_yticks(rows, [_typeset(name) for name in names], fontsize="x-small")
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axes.axvline(0, color="0.8", linewidth=0.6, zorder=0)


def _draw_limits(axes: Any, results: dict[str, np.ndarray]) -> None:
    theta = results["theta"]
    axes.plot(theta, (1 - 2 * theta**2) * np.exp(-(theta**2)), color="black", label="population")
    dashes = [(0, (1, 1)), (0, (3, 1.5)), (0, (6, 1.5))]
    for size, slopes, color, dash in zip(
        results["data_set_sizes"], results["finite_slopes"], COLORS, dashes, strict=False
    ):
        axes.plot(theta, slopes, color=color, linestyle=dash, label=f"$N = {size}$")
    axes.set(xlabel=r"$\theta$", ylabel=f"slope of the mean loss ({UNDOMINATED})", ylim=(-0.08, 3.1))
    axes.legend(fontsize="x-small", loc="upper center", labelspacing=0.3)


def _typeset(name: str) -> str:
    for text, formula in {
        "|θ − x|^¾": r"|\theta-x|^{3/4}",
        "|θ − x|^¼": r"|\theta-x|^{1/4}",
        "e^{θx}": r"e^{\theta x}",
    }.items():
        name = name.replace(text, f"${formula}$")
    return name
