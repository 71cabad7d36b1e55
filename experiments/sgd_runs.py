"""The sum of a batch's losses with the rate η/M takes the steps of their mean with η, unless something sets a scale.

L2 penalties, weight decay that this rate multiplies, gradient clipping and Adam's ε do: with the sum they have to be M
times as large. Adam, which divides the scale out, keeps its rate, and AdamW its decay. Against steps large batches do
better, against examples small ones, with every optimizer.

Command    python -m experiments sgd_runs
Run time   about 35 seconds on two cores
Expected   equal parameters after each of 100 steps up to rounding, bit for bit if M is a power of 2; with a penalty of
           1, least squares through (1, 1), (2, 3), (3, 2) ends at 13/15 with the sum and at 13/17 with the mean; after
           equally many steps the loss falls with M, after two epochs it is lowest for small M

Three columns: the mean loss of a network on the digits against steps (above) and against examples (below), each with
the best of four learning rates; medians of the runs, and bands from the lowest to the highest. Right: how far the
parameters of the sum, with η/M (Adam: η), and of the mean are apart on the breast-cancer data, M = 10, relative to
their length; gray lines, up to rounding, where nothing sets a scale or it is M times as large with the sum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Settings, progress
from experiments._panels import DOTTED, SKY, mark, note, page, panel, reference
from experiments._scaled_losses import FAMILIES, SCALED, Numbers, for_sum, variants
from jaxsgd import designs, problems, training

OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "SGD": (optax.sgd, (0.05, 0.15, 0.5, 1.5)),
    "momentum": (partial(optax.sgd, momentum=0.9), (0.005, 0.015, 0.05, 0.15)),
    "Adam": (optax.adam, (0.001, 0.003, 0.01, 0.03)),
}
ROUNDING, POINTS = 1e-12, 40
# The family and, of its settings, what is not the usual with the mean.
CASES: dict[str, tuple[str, Numbers]] = {
    "SGD": ("sgd", {}),
    "momentum": ("sgd", {"momentum": 0.9}),
    "decay apart from the rate": ("sgd", {"decay": 0.01}),
    "L2 penalty": ("sgd", {"penalty": 0.1}),
    "clipping": ("sgd", {"clip": 0.3}),
    "Adam, ε = 0": ("adam", {}),
    "AdamW, ε = 0": ("adam", {"decay": 0.1}),
    "Adam, L2 penalty": ("adam", {"penalty": 0.01}),
    "Adam, ε > 0": ("adam", {"epsilon": 1e-8}),
}


HEIGHTS = {"clipping": 2, "L2 penalty": 0.5, "Adam, L2 penalty": 0.15, "Adam, ε > 0": 2}  # of names, over the curves'


class Config(Settings):
    """Settings of the experiment."""

    batch_sizes: tuple[int, ...] = (1, 10, 100, 1797)
    """Batch sizes of the network, randomly reshuffled."""
    num_steps: int = 200
    """At least how many steps are made."""
    num_examples: int = 3594
    """At least how many examples are used, two epochs."""
    num_runs: int = 5
    """Runs of each learning rate; two with all examples in every batch, which are the same."""
    hidden: int = 16
    """The width of the digits network."""
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Which optimizers."""
    compared_sizes: tuple[int, ...] = (8, 10)
    """Batch sizes at which sum and mean are compared: a power of 2 and one that is not."""
    compared_steps: int = 100
    """For how many steps."""


QUICK = Config(batch_sizes=(10, 1797), num_steps=40, num_runs=2, hidden=4, optimizers=("SGD",), compared_steps=20)
SUMMARY = (
    "sum and mean agree to {largest_of_all:.0e}, and differ by {with_a_scale[L2 penalty]:.2f} with a penalty, "
    "{with_a_scale[clipping]:.2f} with clipping and {with_a_scale[Adam, ε > 0]:.0e} with Adam's ε; large batches are "
    "ahead after equally many steps, small ones after equally many examples"
)


def compute(config: Config) -> Arrays:
    """Runs of the network, and of the sum and the mean."""
    results: dict[str, Any] = {name: getattr(config, name) for name in ("batch_sizes", "optimizers", "compared_sizes")}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        with jax.enable_x64(False):
            problem = problems.digits_mlp(key=jax.random.key(0), hidden=config.hidden)
            for name in config.optimizers:
                for M in progress(config.batch_sizes, name):
                    results |= trained(problem, name, M, config)
        for M in progress(config.compared_sizes, "sum and mean"):
            results |= apart(M, config.compared_steps)
        return results | small_numbers()


def trained(problem: jaxsgd.Problem, name: str, batch_size: int, config: Config) -> dict[str, Any]:
    """Steps, and the loss of every run at them, with the learning rate whose median is lowest at the end."""
    optimizer, rates = OPTIMIZERS[name]
    num_steps = max(config.num_steps, config.num_examples // batch_size)
    settings = optimizer, designs.Reshuffling(batch_size), num_steps, jax.random.key(1)
    runs = 2 if batch_size == len(problem.data["y"]) else config.num_runs
    every = max(num_steps // POINTS, 1)
    result = training.run_sgd(*problem, *settings, learning_rates=rates, num_runs=runs, record_every=every)
    losses = np.nan_to_num(np.asarray(result.metrics["loss"]), nan=np.inf)
    best = int(np.median(losses[..., -1], axis=1).argmin())
    found = {"steps": result.steps, "losses": losses[best], "rate": rates[best]}
    return {f"{name}/{batch_size}/{key}": value for key, value in found.items()}


def apart(M: int, num_steps: int) -> Arrays:
    """For every case the distance of the sum's parameters from the mean's over their length, at every step.

    Two rows: as it is, and with what sets a scale M times as large.
    """
    problem, found = problems.breast_cancer_logistic(), {}
    for family in FAMILIES:
        cases = {name: numbers for name, (kind, numbers) in CASES.items() if kind == family}
        chosen: list[Numbers] = []
        for numbers in cases.values():
            chosen += [numbers, for_sum(family, numbers, M), for_sum(family, numbers, M, scaled=True)]
        chosen.append({"scale": float(M)})  # with the rate of the mean
        theta = variants(problem, family, chosen, M, num_steps)[:, 1:]
        for name, (mean, *sums) in zip(cases, theta[:-1].reshape(len(cases), 3, *theta.shape[1:]), strict=True):
            found[f"apart/{M}/{name}"] = np.array([relative(s - mean, mean) for s in sums])
        if family == "sgd":
            found[f"apart/{M}/same rate"] = relative(theta[-1] - theta[0], theta[0])
    return found


def relative(difference: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient of the norms along the last axis."""
    return np.linalg.norm(difference, axis=-1) / np.linalg.norm(whole, axis=-1)


def small_numbers() -> Arrays:
    """Where least squares with an L2 penalty ends, and first steps of the line fit, which are rational numbers."""
    x, y = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([1.0, 3.0, 2.0])
    least_squares = jaxsgd.Problem(lambda theta, e: (e[1] - theta * e[0]) ** 2, jnp.asarray(0.0), (x, y))
    total = {"scale": 3.0, "rate": 0.02}
    penalized = [total, total | {"penalty": 2.0}, {"rate": 0.06, "penalty": 2.0}]  # the penalty λθ² has gradient 2λθ
    clipped, damped = {"clip": 1.0}, {"epsilon": 1.0, "rate": 0.1}
    of_sgd = [{}, for_sum("sgd", {}, 4), clipped, for_sum("sgd", clipped, 4)]
    of_adam = [damped, for_sum("adam", damped, 4)]
    return {  # the line's parameters as (m, b)
        "penalized": variants(least_squares, "sgd", penalized, 3, 200)[:, -1, 0],
        "first/sgd": variants(problems.line_fit(), "sgd", of_sgd, 4, 1)[:, 1, ::-1],
        "first/adam": variants(problems.line_fit(), "adam", of_adam, 4, 1)[:, 1, ::-1],
    }


def check(results: Arrays) -> Claims:
    """Confirm equality where nothing sets a scale, the exact numbers, and the two orders of batch sizes."""
    return Claims.of(results, check_apart, check_numbers, check_runs)


def check_apart(claims: Claims, results: Arrays) -> None:
    """Sum and mean are one run where nothing sets a scale or it is M times as large, and otherwise are not."""
    sizes, different, equal = results["compared_sizes"], {}, []
    for name, (_, numbers) in CASES.items():
        as_it_is, repaired = np.transpose([results[f"apart/{M}/{name}"].max(axis=1) for M in sizes])
        if SCALED & numbers.keys():
            message = f"that sum and mean agree with {name} must be rejected, off by {{:.1e}}"
            claims.above(as_it_is, 1e3 * ROUNDING, message)
            different[name] = as_it_is.max()
        for M, off in zip(sizes, repaired, strict=True):
            limit = 0.0 if M & (M - 1) == 0 else ROUNDING
            claims.require(off <= limit, f"sum and mean must agree with {name} at M = {M}, off by {off:.1e}")
        equal.append(repaired)
    off = [results[f"apart/{M}/same rate"].min() for M in sizes]
    claims.above(off, 0.1, "that sum and mean agree with one rate must be rejected, off by {:.1e}")
    claims["largest_difference"] = dict(zip(sizes, np.max(equal, axis=0), strict=True))
    claims |= {"largest_of_all": np.max(equal), "with_a_scale": different}


def check_numbers(claims: Claims, results: Arrays) -> None:
    """The exact numbers of small problems."""
    equal = partial(claims.equal, rtol=1e-12, atol=0)
    message = "least squares must end at 13/14, with a penalty at 13/15 (sum) and 13/17 (mean), got {}"
    equal(results["penalized"], [13 / 14, 13 / 15, 13 / 17], message, enter="penalized")
    unit = np.array([2, 1]) / np.sqrt(5)  # of −ḡ = (1, 1/2)
    truth = 1 + np.array([[0.1, 0.05], [0.1, 0.05], 0.1 * unit, 0.025 * unit])
    message = "first steps must be (1, 1/2)/10, and with clipping a quarter as long for the sum, got {}"
    equal(results["first/sgd"], truth, message, rtol=1e-14)
    message = "with ε = 1 Adam must step to (21/20, 31/30), with the sum to (27/25, 16/15), got {}"
    equal(results["first/adam"], [[21 / 20, 31 / 30], [27 / 25, 16 / 15]], message)


def check_runs(claims: Claims, results: Arrays) -> None:
    """After equally many steps large batches are ahead, after equally many examples small ones; bands shrink with M."""
    sizes = results["batch_sizes"]
    for name in results["optimizers"]:
        by_steps, by_examples, spread = np.transpose(compared(results, name))
        claims.require(np.all(np.diff(by_steps) < 0), f"{name}: after equally many steps the loss must fall with M")
        ahead = by_examples.argmin() < len(sizes) / 2 and by_examples[-1] > 2 * by_examples.min()
        claims.require(ahead, f"{name}: after equally many examples small batches must be ahead, got {by_examples}")
        equal = spread[-1] < 1e-3 < spread[0] / 10
        claims.require(equal, f"{name}: only runs on all data must be equal, got {spread}")
        claims[name] = {
            "rates": [results[f"{name}/{M}/rate"] for M in sizes],
            "after_equal_steps": by_steps.round(3),
            "after_equal_examples": by_examples.round(3),
        }


def compared(results: Arrays, name: str) -> list[tuple[float, float, float]]:
    """For every batch size: the median loss after as many steps and after as many examples as all have, the spread."""
    sizes = results["batch_sizes"]
    steps = min(results[f"{name}/{M}/steps"][-1] for M in sizes)
    examples = min(M * results[f"{name}/{M}/steps"][-1] for M in sizes)
    found = []
    for M in sizes:
        t, losses = results[f"{name}/{M}/steps"], results[f"{name}/{M}/losses"]
        middle = np.log(np.median(losses, axis=0))
        spread = np.ptp(losses[:, -1]) / losses[:, -1].mean()
        found.append((*np.exp(np.interp([steps, examples / M], t, middle)), spread))
    return found


def draw(results: Arrays) -> Figure:
    """Losses against steps and examples for each optimizer, and the distance of sum and mean."""
    names = results["optimizers"]
    figure = page(ncols=len(names) + 1, nrows=2, height_to_width_ratio=1.0)
    grid = figure.add_gridspec(2, len(names) + 1, width_ratios=[*([1] * len(names)), 1.35])
    for row, unit in enumerate(("steps", "examples")):
        first = None
        for place, name in enumerate(names):
            axes = figure.add_subplot(grid[row, place], sharey=first, sharex=first)
            first = axes if first is None else first
            _draw_losses(axes, results, str(name), unit)
            axes.tick_params(labelleft=place == 0)
            panel(axes, "" if row else name, x=unit, y="" if place else "mean loss", log="xy")
    _draw_apart(figure.add_subplot(grid[:, -1]), results)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _draw_losses(axes: Any, results: Arrays, name: str, unit: str) -> None:
    """Medians and bands of one optimizer, for every batch size."""
    for place, M in enumerate(results["batch_sizes"]):
        t, losses = results[f"{name}/{M}/steps"][1:], results[f"{name}/{M}/losses"][:, 1:]
        x, style = t * (M if unit == "examples" else 1), mark(place % 4)
        axes.fill_between(x, losses.min(axis=0), losses.max(axis=0), color=style["color"], alpha=0.25, linewidth=0)
        axes.plot(x, np.median(losses, axis=0), **style, markevery=0.25, label=f"$M={M}$")


def _draw_apart(axes: Any, results: Arrays) -> None:
    """The distance of sum and mean after every step, at the last of the batch sizes compared."""
    M, place = results["compared_sizes"][-1], 0
    for name, (_, numbers) in CASES.items():
        as_it_is, repaired = np.maximum(results[f"apart/{M}/{name}"], 1e-17)
        steps = np.arange(1, len(repaired) + 1)
        axes.plot(steps, repaired, color="0.6", linewidth=0.7)
        if SCALED & numbers.keys():
            axes.plot(steps, as_it_is, **mark(place), markevery=0.2)
            factor, color = HEIGHTS[name], mark(place)["color"]
            style = {"va": "bottom" if factor > 1 else "top", "color": "black" if color == SKY else color}
            note(axes, steps[-1], factor * as_it_is[-1], name, ha="right", **style)
            place += 1
    rounding = np.finfo(float).eps
    reference(axes, y=rounding, color="black", linewidth=0.8, linestyle=DOTTED)
    note(axes, steps[-1], 3 * rounding, "rounding", ha="right", va="bottom")
    distance = r"$\Vert\theta_{\rm sum}-\theta_{\rm mean}\Vert\,/\,\Vert\theta_{\rm mean}\Vert$"
    panel(axes, "sum of a batch against its mean", x="steps", y=distance, log="y", ylim=(1e-17, 20))
