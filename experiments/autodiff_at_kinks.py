"""At kinks, automatic differentiation returns what the program says, which may be no derivative of the function at all.

It is additive all the same: the gradient of the mean is the mean of the gradients, right or wrong together.

Command    python -m experiments autodiff_at_kinks
Run time   about 5 seconds on two cores
Expected   forty programs return what is listed; a third of them something that is no subgradient, or NaN; of
           relu(θ) and −relu(−θ), whose mean is θ/2, both ways of averaging say 0 instead of 1/2

Each row is a program at a point: the bar spans the subgradients of the function, the marker is what ``jax.grad``
returns.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import Claims
from experiments._harness import Arrays, Settings
from experiments._panels import BLUE, ORANGE, column
from jaxsgd import exchange

SHOWN, MISSING = 2.6, 3.1  # where infinity is drawn, and NaN; everything finite lies within


class Config(Settings):
    """Settings of the experiment: there is nothing to set."""


QUICK = Config()
SUMMARY = (
    "of {programs} programs {no_subgradient} return no subgradient, {not_a_number} of them NaN; the gradient of a mean "
    "is the mean of gradients all the same"
)


def compute(_: Config) -> Arrays:
    """Every program's derivative, two ways to average those at 0, and a batch with one bad example."""
    kinks = exchange.KINKS
    returned = [float(jax.grad(kink.fn)(float(kink.at))) for kink in kinks]
    at_zero = [kink.fn for kink, value in zip(kinks, returned, strict=True) if kink.at == 0 and np.isfinite(value)]
    cancelling = [jax.nn.relu, lambda theta: -jax.nn.relu(-theta)]
    examples = jnp.array([0.0, 1.0, 4.0])

    def root(theta: Any, x: Any) -> Any:
        return jnp.where(x > 0, jnp.sqrt(theta * x), 0.0)

    return {
        "programs": [f"{kink.program}  at {kink.at:g}" for kink in kinks],
        "returned": returned,
        "listed": np.array([kink.returned for kink in kinks], float),
        "truth": np.array([kink.truth for kink in kinks], float),
        "averages": [averages(at_zero), averages(cancelling)],
        "one_by_one": jax.vmap(jax.grad(root), in_axes=(None, 0))(1.0, examples),
        "batch": jax.grad(lambda theta: root(theta, examples).mean())(1.0),
    }


def averages(functions: list[Any]) -> tuple[float, float]:
    """At 0, the derivative of the mean of functions, and the mean of their derivatives."""
    of_mean = jax.grad(lambda theta: jnp.mean(jnp.stack([function(theta) for function in functions])))(0.0)
    return float(of_mean), float(np.mean([float(jax.grad(function)(0.0)) for function in functions]))


def is_subgradient(results: Arrays) -> np.ndarray:
    """Which programs return a subgradient of their function."""
    low, high = results["truth"].T
    return (low <= results["returned"]) & (results["returned"] <= high)


def check(results: Arrays) -> Claims:
    """Confirm every listed value, that averages agree, and that agreeing is not being right."""
    claims, programs, returned = Claims(), results["programs"], results["returned"]
    differs = ~np.isclose(returned, results["listed"], rtol=0, atol=0, equal_nan=True)
    names = f"{', '.join(programs[differs])}: {returned[differs]}"
    claims.require(not differs.any(), f"JAX returns something else than is listed for {names}")
    gap = np.abs(np.diff(results["averages"]))
    claims.below(gap, 1e-12, "the gradient of the mean must be the mean of the gradients, got {:.1e}")
    both = results["averages"][1]
    claims.require(np.all(both == 0), f"the mean θ/2 must show that both can be wrong, got {both} instead of 0")
    right = is_subgradient(results)
    numbers = np.isfinite(returned)
    claims.require(not right[numbers].all() and right.any(), "some programs must be wrong, and some right")
    bad = np.isnan([*results["one_by_one"], results["batch"]]).tolist()
    claims.require(bad == [True, False, False, True], f"one example must spoil the batch, got {bad}")
    return claims | {
        "programs": len(right),
        "no_subgradient": (~right).sum(),
        "not_a_number": np.isnan(returned).sum(),
        "wrong": programs[~right],
    }


def draw(results: Arrays) -> Figure:
    """One row for each program, right ones above wrong ones."""
    figure = column(height_to_width_ratio=1.55)
    axes = figure.subplots()
    right, returned = is_subgradient(results), results["returned"]
    order = np.argsort(~right, kind="stable")
    rows = np.arange(len(order))
    low, high = np.clip(results["truth"][order], -SHOWN, SHOWN).T
    axes.hlines(rows, low - 0.04, high + 0.04, color="0.75", linewidth=3.5, label="subgradients")
    place = np.nan_to_num(np.clip(returned[order], -SHOWN, SHOWN), nan=MISSING)
    fine, missing = right[order], np.isnan(returned[order])
    axes.plot(place[fine], rows[fine], "o", color=BLUE, label="returned, a subgradient")
    wrong = ~fine & ~missing
    axes.plot(place[wrong], rows[wrong], "X", color=ORANGE, markersize=4.5, label="returned, not a subgradient")
    axes.plot(place[missing], rows[missing], "P", color=ORANGE, markersize=4, label="returned, NaN")
    axes.set_yticks(rows, [name.replace("-", "−") for name in results["programs"][order]], fontsize=4.6)
    ticks = {-SHOWN: r"$-\infty$", -1: "$-1$", 0: "0", 1: "1", 2: "2", SHOWN: r"$\infty$", MISSING: "NaN"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(ylim=(len(rows) - 0.3, -0.7), xlim=(-SHOWN - 0.2, MISSING + 0.2), xlabel="derivative")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
