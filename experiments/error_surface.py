"""All gradients of a batch are taken at one θ: each example has a surface of its own, and their mean is minimized.

An error surface is a function of the parameters. Examples do not sit at different places of one surface; they have
different surfaces at the same place, with gradients, minima and valleys of their own. The mean of the gradients belongs
to the mean of the surfaces, while the mean of the minima is no minimum of it.

Command    python -m experiments error_surface
Run time   about 10 seconds on two cores
Expected   the line fit at (1, 1): a batch of 1, 2, 3, 4 fails to descend with probability 1/2, 1/3, 1/4, 0; three
           quadratics: minima 3, 0, −1 of mean 2/3, and 0 the minimum of their mean; on digits, the mean surface is the
           loss of all, and its slopes are the mean slopes

The line fit is y ≈ mx + b through four points. The network has one hidden layer; its plane goes through θ along the two
directions in which the gradients of the digits differ most.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require
from experiments._models import mean_loss
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, estimators, problems, surfaces

THETA = (1.0, 1.0)
MINIMUM = (1.1, 1.1)
AXES = {"m": jnp.asarray(np.array([1.0, 0.0])), "b": jnp.asarray(np.array([0.0, 1.0]))}


@dataclass(frozen=True)
class Config:
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
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(grid=9, hidden=4, steps=20, max_examples=200)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Surfaces and gradients of the line fit, of three quadratics and of a network."""
    return line_fit(config) | quadratics() | network(config)


def line_fit(config: Config) -> dict[str, np.ndarray]:
    """Surfaces over (m, b), the gradients at one θ and at several, and what batches do to the mean loss."""
    problem = problems.line_fit(*THETA)
    side = np.linspace(-1.5, 1.5, config.grid)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2))
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    rows = _pairs(g.materialize())
    moved = [np.array(THETA), *(THETA - 0.05 * rows[:3])]
    gradient = jax.grad(problem.loss_fn)
    elsewhere = [
        gradient({"m": m, "b": b}, {name: value[i] for name, value in problem.data.items()})
        for i, (m, b) in enumerate(moved)
    ]
    steps = jnp.asarray(-0.01 * np.vstack([rows, rows.mean(axis=0)]))
    after = surfaces.losses_along(problem.loss_fn, problem.params, problem.data, AXES, steps)
    chances = [estimators.descent_probability(designs.WithoutReplacement(M), g) for M in (1, 2, 3, 4)]
    return {
        "line/side": side,
        "line/losses": np.asarray(surfaces.losses_along(problem.loss_fn, problem.params, problem.data, AXES, grid)),
        "line/gradients": rows,
        "line/gradient_of_mean": _pairs(jax.grad(mean_loss(problem.loss_fn))(problem.params, problem.data)),
        "line/elsewhere": np.stack([_pairs(gradient) for gradient in elsewhere]),
        "line/not_descending": np.array([(1 - chance).as_integer_ratio() for chance in chances]),
        "line/change": np.asarray(after.mean(axis=1)) - 0.75,
        "line/points": np.stack([problem.data["x"], problem.data["y"]]),
    }


def quadratics() -> dict[str, np.ndarray]:
    """Slopes of ½h(θ − c)² and of their mean, as lines a + bθ, and so their minima."""
    data = {"h": jnp.asarray(np.array([1.0, 2.0, 3.0])), "c": jnp.asarray(np.array([3.0, 0.0, -1.0]))}

    def loss_fn(theta: Any, example: Any) -> Any:
        return 0.5 * example["h"] * (theta - example["c"]) ** 2

    places = np.linspace(-3, 5, 81)
    zero, slope = jnp.zeros(()), jax.grad(loss_fn)
    at_zero = np.asarray(jax.vmap(slope, (None, 0))(zero, data))
    curvature = np.asarray(jax.vmap(jax.grad(slope), (None, 0))(zero, data))
    losses = surfaces.losses_along(loss_fn, zero, data, jnp.ones(1), jnp.asarray(places[:, None]))
    return {
        "quadratics/places": places,
        "quadratics/losses": np.asarray(losses),
        "quadratics/minima": 0 - at_zero / curvature,
        "quadratics/minimum_of_mean": 0 - at_zero.mean() / curvature.mean(),
    }


def network(config: Config) -> dict[str, np.ndarray]:
    """Surfaces of digits on a plane through θ, and their slopes there, from differences and from gradients."""
    key = jax.random.key(config.seed)
    problem = problems.digits_mlp(key=key, hidden=config.hidden)
    problem = problem._replace(data=jax.tree.map(lambda leaf: leaf[: config.max_examples], problem.data))
    problem = problem._replace(params=_trained(problem, config.steps))
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    found = surfaces.principal_directions(g)
    side = np.linspace(-config.extent, config.extent, config.grid)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    stencil = 1e-4 * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    losses = np.asarray(surfaces.losses_along(*problem, found.directions, jnp.asarray(np.vstack([grid, stencil]))))
    differences = (losses[[-4, -2]] - losses[[-3, -1]]) / 2e-4
    directions = [jax.tree.map(lambda leaf, k=k: leaf[k], found.directions) for k in range(2)]
    slopes = np.stack([g.inner_products(direction) for direction in directions])

    def batch(step: Any) -> Any:
        moved = jax.tree.map(lambda p, d: p + step[0] * d[0] + step[1] * d[1], problem.params, found.directions)
        return mean_loss(problem.loss_fn)(moved, problem.data)

    mean = g.mean()
    along = np.asarray(g.inner_products(mean))
    picked = np.argsort(slopes[0])[[0, len(along) // 2, -1]]  # the most different of all, and one between
    return {
        "network/side": side,
        "network/mean": losses[:-4].mean(axis=1),
        "network/examples": losses[:-4][:, picked],
        "network/batch": np.asarray(jax.lax.map(batch, jnp.asarray(grid))),
        "network/slopes": slopes,
        "network/differences": differences,
        "network/slope_of_mean": np.array([_inner(mean, direction) for direction in directions]),
        "network/picked": picked,
        "network/variances": np.asarray(found.variances),
        "network/trace": np.asarray(g.squared_deviations().mean()),
        "network/against": np.mean(along <= 0),
    }


def _trained(problem: jaxsgd.Problem, steps: int) -> Any:
    optimizer = optax.sgd(0.5)

    @jax.jit
    def train(params: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            params, optimizer_state = state
            updates, optimizer_state = optimizer.update(
                jax.grad(mean_loss(problem.loss_fn))(params, problem.data), optimizer_state
            )
            return (optax.apply_updates(params, updates), optimizer_state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0][0]

    return train(problem.params)


def _pairs(tree: Any) -> np.ndarray:
    """A pytree of m and b as an array with a last axis of two."""
    return np.stack([np.asarray(tree["m"]), np.asarray(tree["b"])], axis=-1)


def _inner(first: Any, second: Any) -> float:
    return float(sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)))


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm what is true of one θ, and reject it for several, and for minima."""
    return check_line(results) | check_quadratics(results) | check_network(results)


def check_line(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """The gradients of the four examples and of the mean, and the exact chances of descent."""
    rows, mean = results["line/gradients"], results["line/gradient_of_mean"]
    require(np.array_equal(rows, [[0, 0], [-2, -2], [4, 2], [-6, -2]]), f"the gradients at (1, 1) are off: {rows}")
    toward = np.array(MINIMUM) - THETA
    cosine = float(-mean @ toward / np.linalg.norm(mean) / np.linalg.norm(toward))
    require(
        abs(cosine - 3 / np.sqrt(10)) < 1e-12, f"−ḡ and the way to the minimum must have cosine 3/√10, got {cosine}"
    )
    require(np.allclose(rows.mean(axis=0), mean, rtol=0, atol=1e-14), f"the mean of gradients must be {mean}")
    apart = float(np.max(np.abs(results["line/elsewhere"].mean(axis=0) - mean)))
    require(apart > 0.1, f"gradients at different θ must not average to the gradient, got a distance of {apart:.1e}")
    chances = [Fraction(int(a), int(b)) for a, b in results["line/not_descending"]]
    law = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(0)]
    require(chances == law, f"batches must fail to descend with probability 1/2, 1/3, 1/4, 0, got {chances}")
    change = np.array([0, -27 / 1000, 73 / 1250, -267 / 5000, -479 / 40000])
    off = float(np.max(np.abs(results["line/change"] - change)))
    require(off < 1e-14, f"steps on one example must change the mean loss by {change}, got {results['line/change']}")
    surface = _mean_on_grid(results).ravel()
    losses = results["line/losses"]
    require(
        np.allclose(losses.mean(axis=1), surface, rtol=0, atol=1e-12),
        "the mean of the surfaces must be that of the mean",
    )
    require(np.all(np.ptp(losses, axis=1) > 0.02), "that examples share one surface must be rejected")
    return {"not_descending": [str(chance) for chance in chances], "gradients_at_different_θ": apart, "cosine": cosine}


def _mean_on_grid(results: dict[str, np.ndarray]) -> np.ndarray:
    """The mean loss over (m, b): 27/40 at the minimum, plus a quadratic form with the second moments of (x, 1)."""
    m, b = np.meshgrid(*[results["line/side"] + 1 - 1.1] * 2, indexing="ij")
    return 27 / 40 + 3.5 * m**2 + 3 * m * b + b**2


def check_quadratics(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """The minimum of the mean is not the mean of the minima."""
    minima, minimum = results["quadratics/minima"], float(results["quadratics/minimum_of_mean"])
    require(np.allclose(minima, [3, 0, -1], rtol=0, atol=1e-12), f"the minima must be 3, 0, −1, got {minima}")
    require(abs(minima.mean() - minimum) > 0.5, f"the mean of the minima, 2/3, must be rejected as {minimum}")
    require(abs(minimum) < 1e-12, f"the minimum of the mean must be 0, got {minimum}")
    lowest = float(results["quadratics/places"][np.argmin(results["quadratics/losses"].mean(axis=1))])
    require(abs(lowest - minimum) < 0.051, f"the mean surface must be lowest at {minimum}, got {lowest}")
    return {"minima": minima.tolist(), "minimum_of_mean": minimum}


def check_network(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """The mean surface, and every slope at its center."""
    off = float(np.max(np.abs(results["network/mean"] - results["network/batch"]) / results["network/batch"]))
    require(off < 1e-12, f"the mean of the examples' surfaces must be the surface of the mean, got {off:.1e}")
    slopes, differences = results["network/slopes"], results["network/differences"]
    spread = float(np.min(slopes.std(axis=1) / np.abs(slopes.mean(axis=1))))
    require(spread > 1, f"that all examples have one slope must be rejected, got a spread of {spread:.1e} mean slopes")
    worst = float(np.max(np.abs(slopes - differences)))
    require(worst < 1e-5, f"slopes of the surfaces must be those of the gradients, got a difference of {worst:.1e}")
    of_mean = float(np.max(np.abs(slopes.mean(axis=1) - results["network/slope_of_mean"])))
    require(of_mean < 1e-12, f"the slope of the mean must be the mean slope, got a difference of {of_mean:.1e}")
    along = slopes.var(axis=1)
    require(np.allclose(along, results["network/variances"], rtol=1e-8), f"variances along the plane must be {along}")
    return {
        "share_of_variance_in_plane": float(results["network/variances"].sum() / results["network/trace"]),
        "examples_against_the_mean": float(results["network/against"]),
        "largest_difference_of_slopes": worst,
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    return (
        f"a batch of 1, 2, 3, 4 fails to descend with probability {', '.join(findings['not_descending'])}; "
        f"{findings['examples_against_the_mean']:.0%} of the digits have gradients against their mean"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Each example's surface, their mean with all gradients at θ, quadratics, and surfaces of a network."""
    figure = page(nrows=3, ncols=4, height_to_width_ratio=0.95)
    panels = figure.subplots(3, 4)
    for i, axes in enumerate(panels[0]):
        _draw_example(axes, results, i)
    _draw_mean(panels[1, 0], results)
    _draw_chances(panels[1, 1], results)
    _draw_changes(panels[1, 2], results)
    _draw_quadratics(panels[1, 3], results)
    _draw_network(panels[2], results)
    return figure


def _line_axes(axes: Any, results: dict[str, np.ndarray], losses: np.ndarray, title: str) -> None:
    side = results["line/side"]
    shape = (len(side), len(side))
    levels = [0.3, 1, 3, 6, 12, 24, 48]
    axes.contour(side + THETA[0], side + THETA[1], losses.reshape(shape).T, levels, colors="0.6", linewidths=0.6)
    axes.plot(*THETA, color="black", marker="o", markersize=2.2, linestyle="none", zorder=4)
    axes.set(xlabel="$m$", title=title, xlim=(-0.5, 2.5), ylim=(-0.5, 2.5), xticks=(0, 1, 2), yticks=(0, 1, 2))


def _arrow(axes: Any, gradient: np.ndarray, color: str, **style: Any) -> None:
    """−g/5 from θ."""
    axes.annotate(
        "",
        xy=np.array(THETA) - gradient / 5,
        xytext=THETA,
        arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7, **style},
    )


def _draw_example(axes: Any, results: dict[str, np.ndarray], i: int) -> None:
    x, y = results["line/points"][:, i]
    _line_axes(axes, results, results["line/losses"][:, i], f"example ({x:g}, {y:g})")
    m = np.array([-1.0, 3.0])
    axes.plot(m, y - m * x, color=COLORS[2])
    if np.any(results["line/gradients"][i]):
        _arrow(axes, results["line/gradients"][i], COLORS[0])
    if i == 0:
        axes.set_ylabel("$b$")
        axes.text(2.4, 1.02, "all minima", fontsize="small", ha="right", va="bottom")


def _draw_mean(axes: Any, results: dict[str, np.ndarray]) -> None:
    _line_axes(axes, results, results["line/losses"].mean(axis=1), "mean of the four")
    for gradient in results["line/gradients"]:
        if np.any(gradient):
            _arrow(axes, gradient, COLORS[0])
    mean = results["line/gradient_of_mean"]
    _arrow(axes, 4 * mean, COLORS[1], linewidth=1.4)
    axes.text(*(THETA - 4 * mean / 5 + [0.05, 0.08]), r"$-4\,\bar g$", color=COLORS[1], fontsize="small", va="bottom")
    axes.plot(*MINIMUM, color="black", marker="*", linestyle="none", zorder=1, markersize=5)
    axes.set_ylabel("$b$")


def _draw_chances(axes: Any, results: dict[str, np.ndarray]) -> None:
    chances = results["line/not_descending"]
    axes.bar((1, 2, 3, 4), chances[:, 0] / chances[:, 1], width=0.6, color=COLORS[0])
    for M, (a, b) in enumerate(chances, start=1):
        axes.text(M, a / b + 0.01, f"{a}/{b}" if a else "0", ha="center", va="bottom")
    axes.set(xlabel="batch size $M$ (examples)", title="chance of not descending", ylim=(0, 0.62), xticks=(1, 2, 3, 4))


def _draw_changes(axes: Any, results: dict[str, np.ndarray]) -> None:
    x = results["line/points"][0]
    axes.bar(range(5), results["line/change"], width=0.6, color=[COLORS[0]] * 4 + [COLORS[1]])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(5), [*(f"$x={value:g}$" for value in x), "mean"], rotation=45)
    axes.set(title=r"change of $\bar L$ in a step of 1/100", yticks=(-0.05, 0, 0.05))


def _draw_quadratics(axes: Any, results: dict[str, np.ndarray]) -> None:
    places, losses = results["quadratics/places"], results["quadratics/losses"]
    for i in range(3):
        axes.plot(places, losses[:, i], color="0.6", linewidth=0.8)
        axes.plot(results["quadratics/minima"][i], 0, color="0.4", marker=MARKERS[0], linestyle="none")
    mean = losses.mean(axis=1)
    axes.plot(places, mean, color=COLORS[0], label="mean")
    at = float(results["quadratics/minimum_of_mean"])
    axes.plot(at, np.interp(at, places, mean), color=COLORS[0], marker="*", linestyle="none", markersize=6)
    axes.axvline(results["quadratics/minima"].mean(), color=COLORS[1], linestyle=(0, (3, 1.5)), label="mean of minima")
    axes.set(xlabel=r"$\theta$", title="three quadratics", ylim=(-1, 24), xlim=(-3, 5))
    axes.legend(fontsize="small", handlelength=1.2, loc="upper right", frameon=True, framealpha=1, edgecolor="none")


def _draw_network(row: Any, results: dict[str, np.ndarray]) -> None:
    side = results["network/side"]
    roots = np.sqrt(np.column_stack([results["network/mean"], results["network/examples"]]))
    titles = ["mean of the digits", *(f"digit {i}" for i in results["network/picked"])]
    for axes, root, title in zip(row, roots.T, titles, strict=True):
        surface = root.reshape(len(side), len(side)).T
        filled = axes.contourf(side, side, surface, np.linspace(0, roots.max(), 13), cmap="cividis")
        filled.set_edgecolor("face")
        axes.plot(0, 0, color="white", marker="o", linestyle="none")
        axes.set(xlabel="first direction", title=title, xticks=_ticks(side), yticks=_ticks(side))
    row[0].set_ylabel("second direction")
    bar = row[-1].figure.colorbar(filled, ax=row[-1], label=r"$\sqrt{\mathrm{loss}}$ (nats$^{1/2}$)")
    bar.set_ticks(np.arange(0, roots.max()))


def _ticks(side: np.ndarray) -> tuple[float, ...]:
    """The middle and the middles of both halves."""
    return (float(side[0]) / 2, 0.0, float(side[-1]) / 2)
