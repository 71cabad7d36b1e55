"""One θ for all examples: where the model can fit every one of them, and where it must compromise.

The four points of the line fit, with ½ (f(x) − y)² as losses, and polynomials in 2x − 3 that are orthogonal on them:
the first two make a line, all four a cubic, which goes through the points. At both minima ḡ = 0. For the cubic every
g_i is 0 there, so no batch has noise and SGD with a constant step converges; for the line Σ ≠ 0, and SGD keeps moving.
"""

from fractions import Fraction
from typing import Any

import jax
import numpy as np

from experiments._claims import Claims
from experiments._harness import Arrays
from experiments._panels import BLUE, DASHED, ORANGE, note, panel, reference
from jaxsgd import designs, dynamics

X, Y = np.arange(4), np.array([1, 3, 2, 5])
POLYNOMIALS = np.array([[1, -3, 1, -1], [1, -1, -1, 3], [1, 1, -1, -3], [1, 3, 1, 1]])  # a row for each point
WIDTHS = {"line": 2, "cubic": 4}
RATE = Fraction(1, 12)  # one over the squared norm of every row: a step on one example fits it with the cubic
DESIGN = designs.WithoutReplacement(1)
STATIONARY = Fraction(15, 224)  # of the line's excess loss
OF_FITS = ("residuals", "gradients", "stationary", "excess", "drawn")
SHOWN = (2, 8, 32)  # steps after which runs are simulated


def losses_of(width: int) -> dynamics.Quadratics:
    """The losses of a polynomial with some parameters, in rational numbers."""
    return dynamics.Quadratics.from_least_squares(POLYNOMIALS[:, :width], Y)


def fits(num_steps: int, num_runs: int, key: jax.Array) -> Arrays:
    """Residuals and gradients at both minima, and E L̄ − L̄(θ*) of SGD with M = 1: exact, and of simulated runs."""
    found: dict[str, Any] = {}
    for name, width in WIDTHS.items():
        losses = losses_of(width)
        minimum = losses.minimum()
        law = dynamics.step_law(losses, DESIGN, RATE)
        runs = [simulated(losses, steps, num_runs, jax.random.fold_in(key, steps)) for steps in SHOWN]
        found |= {
            f"fits/{name}/minimum": minimum.astype(float),
            f"fits/{name}/residuals": (POLYNOMIALS[:, :width] @ minimum - Y).astype(float),
            f"fits/{name}/gradients": losses.gradients(minimum).astype(float),
            f"fits/{name}/stationary": float(losses.excess_loss(law.stationary().covariance)),
            f"fits/{name}/excess": excess_along(losses.floats(), num_steps),
            f"fits/{name}/drawn": runs,
        }
    return found


def excess_along(losses: dynamics.Quadratics, num_steps: int) -> list[float]:
    """E L̄(θ_t) − L̄(θ*) from θ = 0, for every t up to a number of steps."""
    law, minimum = dynamics.step_law(losses, DESIGN, float(RATE)), losses.minimum()
    states = [law.iterate(0 * minimum, 0)]
    for _ in range(num_steps):
        states.append(law.apply(states[-1]))
    return [float(losses.excess_loss(state.second_moment(minimum))) for state in states]


def simulated(losses: dynamics.Quadratics, num_steps: int, num_runs: int, key: jax.Array) -> tuple[float, float]:
    """The mean of L̄(θ_t) − L̄(θ*) over runs, and its standard error."""
    options = {"key": key, "num_runs": num_runs, "num_steps": num_steps, "start": np.zeros(len(losses.mean_hessian))}
    ends = np.asarray(dynamics.simulate_steps(losses.floats(), DESIGN, float(RATE), **options))
    away = ends - losses.minimum().astype(float)
    excess = 0.5 * np.einsum("rp,pq,rq->r", away, losses.mean_hessian.astype(float), away)
    return float(excess.mean()), float(excess.std(ddof=1) / np.sqrt(num_runs))


def check_fits(claims: Claims, results: Arrays) -> None:
    """No gradient and no noise where every example is fit; noise, and no end to it, where they compromise."""
    line, cubic = ({name: results[f"fits/{fit}/{name}"] for name in OF_FITS} for fit in WIDTHS)
    for found in (line, cubic):
        claims.equal(found["gradients"].mean(axis=0), 0, "at a minimum ḡ must be 0, got {}", atol=1e-14)
        z = (found["drawn"][:, 0] - found["excess"][list(SHOWN)]) / found["drawn"][:, 1]
        claims.agree(z, "the mean excess loss of simulated runs is", steps=SHOWN)
    claims.equal(cubic["gradients"], 0, "at an interpolating minimum every g_i must be 0, got {}", atol=0)
    trace = (line["gradients"] ** 2).sum(axis=1).mean()
    message = "at the minimum of the line tr Σ must be 209/100, got {}"
    claims.equal(trace, 2.09, message, enter="trace_at_a_compromise")
    claims.equal(line["residuals"], [0.1, -0.8, 1.3, -0.6], "the line must miss the points by 1/10 to 13/10, got {}")
    message = "SGD must converge where all examples are fit, got an excess loss of {:.1e} of the first"
    claims.below(cubic["excess"][-1] / cubic["excess"][0], 1e-8, message, enter="left_of_an_interpolating_run")
    claims.equal(cubic["stationary"], 0, "the stationary noise of an interpolating fit must be 0, got {}", atol=0)
    message = f"the line's stationary excess loss must be {STATIONARY}, got {{}}"
    claims.equal(line["stationary"], float(STATIONARY), message, enter="left_of_a_compromising_run")
    claims.equal(
        line["excess"][-1], line["stationary"], "SGD on the line must reach its stationary noise, got {}", atol=1e-6
    )
    claims.reject(line["drawn"][-1, 0] / line["drawn"][-1, 1], "that SGD on the line converges")


def draw_fits(row: Any, results: Arrays) -> None:
    """Both fits; the losses and squared gradients of the examples at both minima; SGD."""
    _draw_curves(row[0], results)
    _draw_losses(row[1], results)
    _draw_norms(row[2], results)
    _draw_runs(row[3], results)


def _draw_curves(axes: Any, results: Arrays) -> None:
    x = np.linspace(-0.2, 3.2, 69)
    u = 2 * x - 3
    columns = np.stack([u**0, u, (u**2 - 5) / 4, (5 * u**3 - 41 * u) / 12], axis=1)
    for name, color, line in (("line", ORANGE, DASHED), ("cubic", BLUE, "-")):
        axes.plot(x, columns[:, : WIDTHS[name]] @ results[f"fits/{name}/minimum"], color=color, linestyle=line)
    axes.plot(X, Y, color="black", marker="o", linestyle="none")
    note(axes, 0.75, 1.35, "line", color=ORANGE)
    note(axes, 0.55, 3.3, "cubic", color=BLUE)
    panel(axes, "one θ for all examples", x="$x$", y="$y$", xticks=X, ylim=(0, 6))


def _draw_losses(axes: Any, results: Arrays) -> None:
    """Numbers over examples, with no surface between them."""
    for name, color, shift in (("line", ORANGE, -0.16), ("cubic", BLUE, 0.16)):
        axes.bar(X + shift, results[f"fits/{name}/residuals"] ** 2 / 2, width=0.3, color=color)
    reference(axes, y=27 / 80, color=ORANGE, linestyle=DASHED)
    note(axes, -0.4, 0.36, "mean, line", color=ORANGE)
    note(axes, 1.5, 0.9, "cubic: all 0", color=BLUE, ha="right")
    axes.set_xticks(X, [f"({x}, {y})" for x, y in zip(X, Y, strict=True)])
    panel(axes, "losses at the minimum", x="example", ylim=(0, 1.0))


def _draw_norms(axes: Any, results: Arrays) -> None:
    for name, color, shift in (("line", ORANGE, -0.16), ("cubic", BLUE, 0.16)):
        axes.bar(X + shift, (results[f"fits/{name}/gradients"] ** 2).sum(axis=1), width=0.3, color=color)
    reference(axes, y=2.09, color=ORANGE, linestyle=DASHED)
    note(axes, -0.4, 2.2, r"tr $\Sigma$, line", color=ORANGE)
    note(axes, -0.4, 3.6, r"cubic: $\Sigma=0$", color=BLUE)
    axes.set_xticks(X, [f"({x}, {y})" for x, y in zip(X, Y, strict=True)])
    panel(axes, r"$\Vert g_i\Vert^2$ there", x="example", ylim=(0, 4.2))


def _draw_runs(axes: Any, results: Arrays) -> None:
    for name, color, line in (("line", ORANGE, DASHED), ("cubic", BLUE, "-")):
        excess, drawn = (results[f"fits/{name}/{what}"] for what in ("excess", "drawn"))
        axes.plot(np.arange(len(excess)), excess, color=color, linestyle=line)
        axes.errorbar(SHOWN, drawn[:, 0], 2 * drawn[:, 1], color=color, linestyle="none", marker="o", capsize=2)
    note(axes, 295, 0.5, "line: it stays", color=ORANGE, ha="right", va="bottom")
    note(axes, 135, 3e-4, "cubic: it falls", color=BLUE)
    panel(axes, "SGD, $M=1$, constant step", x="steps", y="excess loss", log="y", ylim=(1e-9, 2e2))
