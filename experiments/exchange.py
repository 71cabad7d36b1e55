"""Gradient and expectation may be exchanged where the loss is locally Lipschitz with an integrable constant.

Nineteen closed forms lie on both sides of that line.

Command    python -m experiments exchange
Run time   about 10 seconds on two cores
Expected   thirteen cases hold: the mean of drawn gradients within 4.5 standard errors of F'; six fail, by what their
           closed forms say; of fifteen usual losses, two lose the gradient and eight the second derivative

Left: the expectation of the derivatives that ``jax.grad`` returns less the derivative of the expectation F, from both
sides where F has a kink. Middle: a smooth loss without a dominating function; the derivative at 0 is 0 for every finite
data set, 1 for the population. Right: the same gap of the usual losses, twice differentiated; kinks are lost.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import Claims
from experiments._harness import Arrays, Seeded
from experiments._panels import BLUE, COLORS, DASHED, DOTTED, ORANGE, SKY, note, page, panel, reference
from jaxsgd import exchange

TOLERANCE = 1e-3  # ten times what central differences are off, a tenth of the smallest failure
OF_CASES = ("derivative", "expected_gradient", "second_moment")
UNDOMINATED = "smooth, not dominated"


class Config(Seeded):
    """Settings of the experiment."""

    num_draws: int = 1_000_000
    """Examples drawn for every case."""
    num_points: int = 2**18
    """Points of the quadrature of the usual losses."""
    data_set_sizes: tuple[int, ...] = (10, 100, 1000)
    """Sizes of the finite data sets."""


QUICK = Config(num_draws=20_000, num_points=2**15)
SUMMARY = (
    "exchange fails in {num_failing} of {cases} cases and holds in the others, worst deviation {worst_z:.1f} standard "
    "errors; {num_lost} usual losses lose their second derivative"
)


def compute(config: Config) -> Arrays:
    """Drawn gradients of every case, finite data sets of one of them, and two derivatives of the usual losses."""
    uniforms = jax.random.uniform(config.key(), (config.num_draws,), minval=1e-12)
    drawn = [np.asarray(case.gradients(uniforms)) for case in exchange.CASES]
    second = [
        exchange.derivatives(loss.loss_fn, loss.quantile, loss.theta, num_points=config.num_points)
        for loss in exchange.LOSSES
    ]
    theta = np.linspace(-0.4, 0.4, 161)
    cases = {name: [getattr(case, name) for case in exchange.CASES] for name in OF_CASES}
    return cases | {
        "cases": [case.name for case in exchange.CASES],
        "drawn_mean": [gradients.mean() for gradients in drawn],
        "num_draws": config.num_draws,
        "theta": theta,
        "data_set_sizes": config.data_set_sizes,
        "finite_slopes": np.stack([finite_slopes(theta, size) for size in config.data_set_sizes]),
        "losses": [loss.name for loss in exchange.LOSSES],
        "of_mean": [found[0] for found in second],
        "mean_of": [found[1] for found in second],
    }


def finite_slopes(theta: np.ndarray, size: int) -> np.ndarray:
    """The derivative of the mean loss over a data set of evenly spaced examples, at every θ."""
    case = next(case for case in exchange.CASES if case.name == UNDOMINATED)
    data = jnp.asarray((np.arange(size) + 0.5) / size)
    slope = jax.grad(lambda t: jax.vmap(case.loss_fn, in_axes=(None, 0))(t, data).mean())
    return np.asarray(jax.jit(jax.vmap(slope))(theta))


def check(results: Arrays) -> Claims:
    """Confirm what the closed forms say of every case and every usual loss."""
    claims, names, losses = Claims(cases=len(results["cases"])), results["cases"], results["losses"]
    mean, second, drawn = results["expected_gradient"], results["second_moment"], results["drawn_mean"]
    finite = np.isfinite(second)
    error = np.sqrt((second[finite] - mean[finite] ** 2) / results["num_draws"])
    off = (drawn - mean)[finite]
    z = np.where(off == 0, 0.0, np.abs(off) / np.where(error > 0, error, 1e-300))
    claims.agree(z, "the mean of drawn gradients and E ∂L are", enter="worst_z", case=names[finite])
    gap = np.abs(results["derivative"] - mean[:, None]).max(axis=1)
    fails = gap > 0
    away = np.abs(results["derivative"] - drawn[:, None]).max(axis=1)[fails]
    missed = np.all(away > 0.9 * gap[fails]) and np.all(gap[fails] > 0.5)
    claims.require(missed, f"where exchange fails, drawn gradients must miss F', got {away.min():.2g}")
    middle = results["finite_slopes"][:, results["theta"] == 0]
    claims.require(np.all(middle == 0), f"every finite data set must have slope 0 at 0, got {middle.max():.1e}")
    gaps = np.abs(results["of_mean"] - results["mean_of"])
    for order, attribute in enumerate(("gradient", "second")):
        holds = np.array([getattr(loss, attribute) for loss in exchange.LOSSES])
        claims.require(
            np.array_equal(gaps[:, order] < TOLERANCE, holds),
            f"derivative {order + 1} of the usual losses: exchange must fail for {', '.join(losses[~holds])} alone, "
            f"got gaps {gaps[:, order].round(4)}",
        )
    lost = losses[gaps[:, 1] >= TOLERANCE]
    return claims | {
        "fails": names[fails],
        "num_failing": fails.sum(),
        "gap": dict(zip(names[fails], gap[fails].round(6), strict=True)),
        "infinite_variance": names[np.isinf(second)],
        "second_derivatives_lost": lost,
        "num_lost": len(lost),
    }


def draw(results: Arrays) -> Figure:
    """The gaps of the cases, the limits that do not commute, and the gaps of second derivatives."""
    figure = page(height_to_width_ratio=0.44)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.05, 0.9, 0.95))
    _draw_gaps(left, results["cases"], results["expected_gradient"][:, None] - results["derivative"])
    panel(left, "gradient at one $\\theta$", x=r"$\mathbb{E}\,L'-(\mathbb{E}\,L)'$")
    _draw_limits(middle, results)
    second = (results["mean_of"] - results["of_mean"])[:, 1:]
    _draw_gaps(right, results["losses"], np.where(np.abs(second) > TOLERANCE, second, 0))  # a quadrature has its error
    panel(right, "second derivative", x=r"$\mathbb{E}\,L''-(\mathbb{E}\,L)''$")
    return figure


def _draw_gaps(axes: Any, names: np.ndarray, gaps: np.ndarray) -> None:
    """One row for each name: a dot at 0 where exchange holds, and elsewhere bars from 0, to both sides if F has two."""
    fails = np.abs(gaps).max(axis=1) > 0
    order = np.argsort(~fails, kind="stable")
    reference(axes, x=0, color="0.7", linestyle="-", zorder=0)
    for row, i in enumerate(order):
        for gap in np.unique(gaps[i]) if fails[i] else ():
            axes.plot([0, gap], [row, row], color=ORANGE, linewidth=2)
            axes.plot(gap, row, "X", color=ORANGE, markersize=4.5)
            if gap:
                text, side = f"{gap:+.2g}".replace("-", "−"), np.sign(gap)
                note(axes, gap + 0.12 * side, row, text, va="center", color=ORANGE, ha="left" if gap > 0 else "right")
    holds = np.flatnonzero(~fails[order])
    axes.plot(0 * holds, holds, "o", color=BLUE)
    note(axes, 0.12, holds.mean(), "equal", color=BLUE, va="center")
    axes.set_yticks(np.arange(len(names)), [_typeset(name) for name in names[order]])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(-1.7, 1.7))


def _draw_limits(axes: Any, results: Arrays) -> None:
    theta, dashes = results["theta"], (DOTTED, DASHED, (0, (6, 1.5)))
    places = ((0.2, 1.78, "left"), (-0.07, 1.88, "right"), (0, 1.96, "left"))  # of the names, beside the peaks
    sizes = zip(results["data_set_sizes"], results["finite_slopes"], COLORS, dashes, places, strict=True)
    for size, slopes, color, dash, (x, y, side) in sizes:
        axes.plot(theta, slopes, color=color, linestyle=dash)
        note(axes, x, y, f"$N={size}$", color=color if color != SKY else "black", ha=side)
    axes.plot(theta, (1 - 2 * theta**2) * np.exp(-(theta**2)), color="black", linewidth=1.4)
    note(axes, 0.42, 0.57, "population", va="center")
    limits: dict[str, Any] = {"ylim": (-0.08, 2.2), "xlim": (-0.43, 0.95), "xticks": (-0.4, 0, 0.4)}
    panel(axes, UNDOMINATED, x=r"$\theta$", y="slope of the mean loss", **limits)


def _typeset(name: str) -> str:
    for text, formula in {"^¾": "^{3/4}", "^¼": "^{1/4}"}.items():
        name = name.replace(f"|θ − x|{text}", rf"$|\theta-x|{formula}$")
    return name.replace("e^{θx}", r"$e^{\theta x}$")
