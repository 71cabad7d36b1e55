"""All gradients of a batch are taken at one θ: each example has a surface of its own, and their mean is minimized.

An error surface is a function of the parameters. Examples do not sit at different places of one surface; they have
different surfaces at the same place, with gradients, minima and valleys of their own. The mean of the gradients belongs
to the mean of the surfaces, while the mean of the minima is no minimum of it. One θ fits every example only if the
model can: then all gradients are 0 at the minimum, and so is the noise. Otherwise the minimum is a compromise, and the
noise stays.

Command    python -m experiments error_surface
Run time   about 10 seconds on two cores
Expected   the line fit at (1, 1): a batch of 1, 2, 3, 4 fails to descend with probability 1/2, 1/3, 1/4, 0; three
           quadratics: minima 3, 0, −1 of mean 2/3, and 0 the minimum of their mean; on digits, the mean surface is the
           loss of all, and its slopes are the mean slopes; at the minimum tr Σ is 209/100 for the line, 0 for a cubic
           through the points, and SGD with a constant step converges for the cubic only

The line fit is y ≈ mx + b through four points. The network has one hidden layer; its plane goes through θ along the two
directions in which the gradients of the digits differ most.
"""

from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments import _fits
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded
from experiments._panels import BLUE, DASHED, ORANGE, SKY, note, page, panel
from experiments._plane import THETA, arrow, line_axes
from jaxsgd import designs, estimators, problems, surfaces, training

MINIMUM = (1.1, 1.1)
AXES = {"m": jnp.asarray(np.array([1.0, 0.0])), "b": jnp.asarray(np.array([0.0, 1.0]))}


class Config(Seeded):
    """Settings of the experiment."""

    grid: int = 41
    """Points along each side of a plane."""
    hidden: int = 16
    """Width of the network's hidden layer."""
    steps: int = 100
    """Steps of gradient descent on the network before its surface is taken."""
    extent: float = 4.0
    """How far the network's plane reaches from θ, as a distance in parameters."""
    max_examples: int = 1797
    """How many digits the network is trained on."""
    fit_steps: int = 300
    """Steps of SGD on the line and on the cubic."""
    fit_runs: int = 20_000
    """Simulated runs of each."""


QUICK = Config(grid=9, hidden=4, steps=20, max_examples=200, fit_runs=4000)
SUMMARY = (
    "a batch of 1, 2, 3, 4 fails to descend with probability 1/2, 1/3, 1/4, 0; {examples_against_the_mean:.0%} of the "
    "digits have gradients against their mean"
)


def compute(config: Config) -> Arrays:
    """Surfaces and gradients of the line fit, of three quadratics and of a network; a fit and a compromise."""
    found = _fits.fits(config.fit_steps, config.fit_runs, config.key())
    return line_fit(config) | quadratics() | network(config) | found


def line_fit(config: Config) -> Arrays:
    """Surfaces over (m, b), the gradients at one θ and at several, and what batches do to the mean loss."""
    problem = problems.line_fit(*THETA)
    side = np.linspace(-1.5, 1.5, config.grid)
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    rows = _pairs(g.materialize())
    m, b = np.array([THETA, *(THETA - 0.05 * rows[:3])]).T
    elsewhere = jax.vmap(jax.grad(problem.loss_fn))({"m": jnp.asarray(m), "b": jnp.asarray(b)}, problem.data)
    after = surfaces.losses_along(*problem, AXES, jnp.asarray(-0.01 * np.vstack([rows, rows.mean(axis=0)])))
    chances = [estimators.descent_probability(designs.WithoutReplacement(M), g) for M in (1, 2, 3, 4)]
    return {
        "line/side": side,
        "line/losses": surfaces.losses_along(*problem, AXES, jnp.asarray(_grid(side))),
        "line/gradients": rows,
        "line/gradient_of_mean": _pairs(jax.grad(problems.mean_loss, argnums=1)(*problem)),
        "line/elsewhere": _pairs(elsewhere),
        "line/not_descending": [(1 - chance).as_integer_ratio() for chance in chances],
        "line/change": after.mean(axis=1) - 0.75,
        "line/points": np.stack([problem.data["x"], problem.data["y"]]),
    }


def _grid(side: np.ndarray) -> np.ndarray:
    """All points of a square, given those along its side."""
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)


def quadratics() -> Arrays:
    """Slopes of ½h(θ − c)² and of their mean, as lines a + bθ, and so their minima."""
    data = {"h": jnp.asarray(np.array([1.0, 2.0, 3.0])), "c": jnp.asarray(np.array([3.0, 0.0, -1.0]))}

    def loss_fn(theta: Any, example: Any) -> Any:
        return 0.5 * example["h"] * (theta - example["c"]) ** 2

    places = np.linspace(-3, 5, 81)
    zero, slope = jnp.zeros(()), jax.grad(loss_fn)
    at_zero = np.asarray(jax.vmap(slope, (None, 0))(zero, data))
    curvature = np.asarray(jax.vmap(jax.grad(slope), (None, 0))(zero, data))
    return {
        "quadratics/places": places,
        "quadratics/losses": surfaces.losses_along(loss_fn, zero, data, jnp.ones(1), jnp.asarray(places[:, None])),
        "quadratics/minima": 0 - at_zero / curvature,
        "quadratics/minimum_of_mean": 0 - at_zero.mean() / curvature.mean(),
    }


def network(config: Config) -> Arrays:
    """Surfaces of digits on a plane through θ, and their slopes there, from differences and from gradients."""
    problem = problems.digits_mlp(key=config.key(), hidden=config.hidden).take(slice(config.max_examples))
    full = designs.WithoutReplacement(len(problem.data["y"]))
    descended = training.run_sgd(*problem, optax.sgd(0.5), full, config.steps, jax.random.key(0), gradient="plain")
    problem = problem._replace(params=descended.params)
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    found = surfaces.principal_directions(g)
    side = np.linspace(-config.extent, config.extent, config.grid)
    grid = _grid(side)
    stencil = 1e-4 * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    losses = np.asarray(surfaces.losses_along(*problem, found.directions, jnp.asarray(np.vstack([grid, stencil]))))
    differences = (losses[[-4, -2]] - losses[[-3, -1]]) / 2e-4
    slopes = np.asarray(jax.vmap(g.inner_products)(found.directions))

    def batch(step: Any) -> Any:
        moved = jax.tree.map(lambda p, d: p + step[0] * d[0] + step[1] * d[1], problem.params, found.directions)
        return problems.mean_loss(problem.loss_fn, moved, problem.data)

    mean = g.mean()
    picked = np.argsort(slopes[0])[[0, g.count // 2, -1]]  # the most different of all, and one between
    return {
        "network/side": side,
        "network/mean": losses[:-4].mean(axis=1),
        "network/examples": losses[:-4][:, picked],
        "network/batch": jax.lax.map(batch, jnp.asarray(grid)),
        "network/slopes": slopes,
        "network/differences": differences,
        "network/slope_of_mean": jax.vmap(partial(optax.tree.vdot, mean))(found.directions),
        "network/picked": picked,
        "network/variances": found.variances,
        "network/trace": g.squared_deviations().mean(),
        "network/against": np.mean(np.asarray(g.inner_products(mean)) <= 0),
    }


def _pairs(tree: Any) -> np.ndarray:
    """A pytree of m and b as an array with a last axis of two."""
    return np.stack([np.asarray(tree["m"]), np.asarray(tree["b"])], axis=-1)


def check(results: Arrays) -> Claims:
    """Confirm what is true of one θ, and reject it for several, and for minima."""
    return Claims.of(results, check_line, check_quadratics, check_network, _fits.check_fits)


def check_line(claims: Claims, results: Arrays) -> None:
    """The gradients of the four examples and of the mean, and the exact chances of descent."""
    rows, mean, losses = (results[f"line/{name}"] for name in ("gradients", "gradient_of_mean", "losses"))
    claims.equal(rows, [[0, 0], [-2, -2], [4, 2], [-6, -2]], "the gradients at (1, 1) are off: {}", atol=0)
    toward = np.array(MINIMUM) - THETA
    cosine = -mean @ toward / np.linalg.norm(mean) / np.linalg.norm(toward)
    message = "−ḡ and the way to the minimum must have cosine 3/√10, got {}"
    claims.equal(cosine, 3 / np.sqrt(10), message, enter="cosine")
    claims.equal(rows.mean(axis=0), mean, f"the mean of gradients must be {mean}", atol=1e-14)
    apart = np.abs(results["line/elsewhere"].mean(axis=0) - mean).max()
    message = "gradients at different θ must not average to the gradient, got a distance of {:.1e}"
    claims.above(apart, 0.1, message, enter="gradients_at_different_θ")
    chances = [str(Fraction(int(a), int(b))) for a, b in results["line/not_descending"]]
    descends = f"batches must fail to descend with probability 1/2, 1/3, 1/4, 0, got {chances}"
    claims.require(chances == ["1/2", "1/3", "1/4", "0"], descends)
    change = np.array([0, -27 / 1000, 73 / 1250, -267 / 5000, -479 / 40000])
    message = f"steps on one example must change the mean loss by {change}, got {{}}"
    claims.equal(results["line/change"], change, message, atol=1e-14)
    m, b = _grid(results["line/side"] + 1 - 1.1).T
    surface = 27 / 40 + 3.5 * m**2 + 3 * m * b + b**2  # at the minimum, and second moments of (x, 1)
    claims.equal(losses.mean(axis=1), surface, "the mean of the surfaces must be that of the mean")
    claims.above(np.ptp(losses, axis=1), 0.02, "that examples share one surface must be rejected")
    claims["not_descending"] = chances


def check_quadratics(claims: Claims, results: Arrays) -> None:
    """The minimum of the mean is not the mean of the minima."""
    minima, minimum = results["quadratics/minima"], results["quadratics/minimum_of_mean"]
    claims.equal(minima, [3, 0, -1], "the minima must be 3, 0, −1, got {}", enter="minima")
    claims.above(abs(minima.mean() - minimum), 0.5, f"the mean of the minima, 2/3, must be rejected as {minimum}")
    claims.equal(minimum, 0, "the minimum of the mean must be 0, got {}", enter="minimum_of_mean")
    lowest = results["quadratics/places"][np.argmin(results["quadratics/losses"].mean(axis=1))]
    claims.equal(lowest, minimum, f"the mean surface must be lowest at {minimum}, got {{}}", atol=0.051)


def check_network(claims: Claims, results: Arrays) -> None:
    """The mean surface, and every slope at its center."""
    off = np.abs(results["network/mean"] - results["network/batch"]) / results["network/batch"]
    claims.below(off, 1e-12, "the mean of the examples' surfaces must be the surface of the mean, got {:.1e}")
    slopes, variances = results["network/slopes"], results["network/variances"]
    spread = slopes.std(axis=1) / np.abs(slopes.mean(axis=1))
    claims.above(spread, 1, "that all examples have one slope must be rejected, got a spread of {:.1e} mean slopes")
    message = "slopes of the surfaces must be those of the gradients, got a difference of {:.1e}"
    off = np.abs(slopes - results["network/differences"])
    claims.below(off, 1e-5, message, enter="largest_difference_of_slopes")
    of_mean = np.abs(slopes.mean(axis=1) - results["network/slope_of_mean"])
    claims.below(of_mean, 1e-12, "the slope of the mean must be the mean slope, got a difference of {:.1e}")
    claims.equal(slopes.var(axis=1), variances, "variances along the plane must be {}", rtol=1e-8, atol=1e-8)
    claims["share_of_variance_in_plane"] = variances.sum() / results["network/trace"]
    claims["examples_against_the_mean"] = results["network/against"]


def draw(results: Arrays) -> Figure:
    """Each example's surface; their mean with all gradients at θ; quadratics; a network; a fit and a compromise."""
    figure = page(nrows=4, ncols=4, height_to_width_ratio=0.95)
    panels = figure.subplots(4, 4)
    for i, axes in enumerate(panels[0]):
        _draw_example(axes, results, i)
    for axes, draw_one in zip(panels[1], (_draw_mean, _draw_chances, _draw_changes, _draw_quadratics), strict=True):
        draw_one(axes, results)
    _draw_network(panels[2], results)
    _fits.draw_fits(panels[3], results)
    return figure


def _draw_example(axes: Any, results: Arrays, i: int) -> None:
    x, y = results["line/points"][:, i]
    line_axes(axes, results, results["line/losses"][:, i], f"example ({x:g}, {y:g})")
    m = np.array([-1.0, 3.0])
    axes.plot(m, y - m * x, color=SKY)
    arrow(axes, results["line/gradients"][i], BLUE)
    if i == 0:
        axes.set_ylabel("$b$")
        note(axes, 2.4, 1.02, "all minima", ha="right", va="bottom")


def _draw_mean(axes: Any, results: Arrays) -> None:
    line_axes(axes, results, results["line/losses"].mean(axis=1), "mean of the four")
    for gradient in results["line/gradients"]:
        arrow(axes, gradient, BLUE)
    mean = results["line/gradient_of_mean"]
    arrow(axes, 4 * mean, ORANGE, linewidth=1.4)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # the contours end before it
    note(axes, 2.45, 1.62, r"$-4\,\bar g$", color=ORANGE, va="bottom", ha="right", bbox=box)
    axes.plot(*MINIMUM, color="black", marker="*", linestyle="none", zorder=1, markersize=5)
    axes.set_ylabel("$b$")


def _draw_chances(axes: Any, results: Arrays) -> None:
    chances = results["line/not_descending"]
    axes.bar((1, 2, 3, 4), chances[:, 0] / chances[:, 1], width=0.6, color=BLUE)
    for M, (a, b) in enumerate(chances, start=1):
        axes.text(M, a / b + 0.01, f"{a}/{b}" if a else "0", ha="center", va="bottom")
    axes.set(xlabel="batch size $M$ (examples)", title="chance of not descending", ylim=(0, 0.62), xticks=(1, 2, 3, 4))


def _draw_changes(axes: Any, results: Arrays) -> None:
    axes.bar(range(5), results["line/change"], width=0.6, color=[BLUE] * 4 + [ORANGE])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(5), [*(f"$x={value:g}$" for value in results["line/points"][0]), "mean"], rotation=45)
    axes.set(title=r"change of $\bar L$ in a step of 1/100", yticks=(-0.05, 0, 0.05))


def _draw_quadratics(axes: Any, results: Arrays) -> None:
    places, losses = results["quadratics/places"], results["quadratics/losses"]
    for i in range(3):
        axes.plot(places, losses[:, i], color="0.6", linewidth=0.8)
        axes.plot(results["quadratics/minima"][i], 0, color="0.4", marker="o", linestyle="none")
    mean = losses.mean(axis=1)
    axes.plot(places, mean, color=BLUE)
    at = float(results["quadratics/minimum_of_mean"])
    axes.plot(at, np.interp(at, places, mean), color=BLUE, marker="*", linestyle="none", markersize=6)
    axes.axvline(results["quadratics/minima"].mean(), ymax=0.74, color=ORANGE, linestyle=DASHED)
    note(axes, 1.0, 19.2, "mean of\nminima", color=ORANGE, ha="center", va="bottom", linespacing=0.9)
    note(axes, 3.5, 16, "mean", color=BLUE, ha="right", va="center")
    panel(axes, "three quadratics", x=r"$\theta$", ylim=(-1, 24), xlim=(-3, 5))


def _draw_network(row: Any, results: Arrays) -> None:
    side = results["network/side"]
    ticks = (side[0] / 2, 0.0, side[-1] / 2)
    roots = np.sqrt(np.column_stack([results["network/mean"], results["network/examples"]]))
    titles = ["mean of the digits", *(f"digit {i}" for i in results["network/picked"])]
    for axes, root, title in zip(row, roots.T, titles, strict=True):
        surface = root.reshape(len(side), len(side)).T
        filled = axes.contourf(side, side, surface, np.linspace(0, roots.max(), 13), cmap="cividis")
        filled.set_edgecolor("face")
        axes.plot(0, 0, color="white", marker="o", linestyle="none")
        panel(axes, title, x="first direction", xticks=ticks, yticks=ticks)
    row[0].set_ylabel("second direction")
    bar = row[-1].figure.colorbar(filled, ax=row[-1], label=r"$\sqrt{\mathrm{loss}}$ (nats$^{1/2}$)")
    bar.set_ticks(np.arange(0, roots.max()))
