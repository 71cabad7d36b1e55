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
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require
from experiments._harness import progress
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, problems, training

Settings = dict[str, float]

OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "SGD": (optax.sgd, (0.05, 0.15, 0.5, 1.5)),
    "momentum": (partial(optax.sgd, momentum=0.9), (0.005, 0.015, 0.05, 0.15)),
    "Adam": (optax.adam, (0.001, 0.003, 0.01, 0.03)),
}
PLAIN: Settings = {"scale": 1.0, "clip": np.inf, "penalty": 0.0, "momentum": 0.0, "rate": 0.1, "decay": 0.0}
ADAM: Settings = {"scale": 1.0, "penalty": 0.0, "epsilon": 0.0, "decay": 0.0, "rate": 0.01}
ROUNDING = 1e-12


def sgd_like(s: Settings) -> optax.GradientTransformation:
    """SGD on ``scale`` times the loss, with what may set a scale; a decay here is not multiplied by the rate."""
    return optax.chain(
        optax.scale(s["scale"]),
        optax.clip_by_global_norm(s["clip"]),
        optax.add_decayed_weights(s["penalty"]),
        optax.trace(s["momentum"]),
        optax.scale(-s["rate"]),
        optax.add_decayed_weights(-s["decay"]),
    )


def adam_like(s: Settings) -> optax.GradientTransformation:
    """Adam on ``scale`` times the loss; a penalty goes through its moments, a decay does not (AdamW)."""
    return optax.chain(
        optax.scale(s["scale"]),
        optax.add_decayed_weights(s["penalty"]),
        optax.scale_by_adam(eps=s["epsilon"]),
        optax.add_decayed_weights(s["decay"]),
        optax.scale(-s["rate"]),
    )


FAMILIES = {"sgd": (sgd_like, PLAIN), "adam": (adam_like, ADAM)}
# What is in force with the mean, and what with the sum has to be M times as large.
CASES: dict[str, tuple[str, Settings, tuple[str, ...]]] = {
    "SGD": ("sgd", {}, ()),
    "momentum": ("sgd", {"momentum": 0.9}, ()),
    "decay apart from the rate": ("sgd", {"decay": 0.01}, ()),
    "L2 penalty": ("sgd", {"penalty": 0.1}, ("penalty",)),
    "clipping": ("sgd", {"clip": 0.3}, ("clip",)),
    "Adam, ε = 0": ("adam", {}, ()),
    "AdamW, ε = 0": ("adam", {"decay": 0.1}, ()),
    "Adam, L2 penalty": ("adam", {"penalty": 0.01}, ("penalty",)),
    "Adam, ε > 0": ("adam", {"epsilon": 1e-8}, ("epsilon",)),
}


@dataclass(frozen=True)
class Config:
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


QUICK = Config(
    batch_sizes=(10, 1797),
    num_steps=40,
    num_runs=2,
    hidden=4,
    optimizers=("SGD",),
    compared_steps=20,
)
POINTS = 40


def compute(config: Config) -> dict[str, np.ndarray]:
    """Runs of the network, and of the sum and the mean."""
    results = {"batch_sizes": np.array(config.batch_sizes), "optimizers": np.array(config.optimizers)}
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        problem = problems.digits_mlp(key=jax.random.key(0), hidden=config.hidden)
        for name in config.optimizers:
            for M in progress(config.batch_sizes, name):
                results |= {f"{name}/{M}/{key}": value for key, value in trained(problem, name, M, config).items()}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for M in progress(config.compared_sizes, "sum and mean"):
            results |= {f"apart/{M}/{name}": value for name, value in apart(M, config.compared_steps).items()}
        results |= small_numbers()
    return results | {"compared_sizes": np.array(config.compared_sizes)}


def trained(problem: jaxsgd.Problem, name: str, batch_size: int, config: Config) -> dict[str, np.ndarray]:
    """Steps, and the loss of every run at them, with the learning rate whose median is lowest at the end."""
    optimizer, rates = OPTIMIZERS[name]
    N = len(problem.data["y"])
    num_steps = max(config.num_steps, config.num_examples // batch_size)
    result = training.run_sgd(
        *problem,
        optimizer,
        designs.Reshuffling(batch_size),
        num_steps,
        jax.random.key(1),
        learning_rates=rates,
        num_runs=2 if batch_size == N else config.num_runs,
        record_every=max(num_steps // POINTS, 1),
    )
    losses = np.nan_to_num(np.asarray(result.metrics["loss"]), nan=np.inf)
    best = int(np.median(losses[..., -1], axis=1).argmin())
    return {"steps": np.asarray(result.steps), "losses": losses[best], "rate": np.array(rates[best])}


def variants(problem: jaxsgd.Problem, family: str, settings: list[Settings], M: int, num_steps: int) -> np.ndarray:
    """The parameters after every step of an optimizer with each of several settings, on the same batches.

    Runs with several learning rates are side by side and see the same batches; here the number of a setting is in
    place of the rate. Shape (settings, steps + 1, d).
    """
    make, default = FAMILIES[family]
    table = {name: jnp.asarray([(default | chosen)[name] for chosen in settings]) for name in default}

    def coordinates(params: Any) -> dict[str, Any]:
        return {str(i): value for i, value in enumerate(jax.flatten_util.ravel_pytree(params)[0])}

    result = training.run_sgd(
        *problem,
        lambda number: make({name: column[number.astype(int)] for name, column in table.items()}),
        designs.WithoutReplacement(M),
        num_steps,
        jax.random.key(0),
        learning_rates=np.arange(len(settings)),
        eval_fn=coordinates,
        record_every=1,
    )
    d = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    return np.stack([np.asarray(result.metrics[str(i)]) for i in range(d)], axis=-1)


def for_sum(family: str, settings: Settings, factor: float, scaled: tuple[str, ...] = ()) -> Settings:
    """The settings with a loss ``factor`` times as large: the rate of SGD over it, and what is ``scaled`` times it."""
    full = FAMILIES[family][1] | settings
    slower = {"rate": full["rate"] / factor} if family == "sgd" else {}
    return settings | {"scale": factor} | slower | {name: factor * full[name] for name in scaled}


def apart(M: int, num_steps: int) -> dict[str, np.ndarray]:
    """For every case the distance of the sum's parameters from the mean's over that from the start, at every step.

    Two rows: as it is, and with what sets a scale M times as large.
    """
    problem, found = problems.breast_cancer_logistic(), {}
    for family in FAMILIES:
        cases = {name: (settings, scaled) for name, (kind, settings, scaled) in CASES.items() if kind == family}
        settings = []
        for chosen, scaled in cases.values():
            settings += [chosen, for_sum(family, chosen, M), for_sum(family, chosen, M, scaled)]
        settings.append({"scale": float(M)})  # with the rate of the mean
        theta = variants(problem, family, settings, M, num_steps)[:, 1:]
        for place, name in enumerate(cases):
            mean, *sums = theta[3 * place : 3 * place + 3]
            found[name] = np.array([relative(s - mean, mean) for s in sums])
        if family == "sgd":
            found["same rate"] = relative(theta[-1] - theta[0], theta[0])
    return found


def relative(difference: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient of the norms along the last axis."""
    return np.linalg.norm(difference, axis=-1) / np.linalg.norm(whole, axis=-1)


def small_numbers() -> dict[str, np.ndarray]:
    """Where least squares with an L2 penalty ends, and first steps of the line fit, which are rational numbers."""
    through_origin = jaxsgd.Problem(
        lambda theta, example: (example[1] - theta * example[0]) ** 2,
        jnp.asarray(0.0),
        (jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([1.0, 3.0, 2.0])),
    )
    total = {"scale": 3.0, "rate": 0.02}
    settings = [total, total | {"penalty": 2.0}, {"rate": 0.06, "penalty": 2.0}]  # the penalty λθ² has gradient 2λθ
    ends = variants(through_origin, "sgd", settings, 3, 200)[:, -1, 0]
    steps = {}
    for family, extra in (("sgd", {"clip": 1.0}), ("adam", {"epsilon": 1.0, "rate": 0.1})):
        plain = [{}, for_sum("sgd", {}, 4)] if family == "sgd" else []
        chosen = [*plain, extra, for_sum(family, extra, 4)]
        steps[f"first/{family}"] = variants(problems.line_fit(), family, chosen, 4, 1)[:, 1, ::-1]  # (m, b)
    return {"penalized": ends, **steps}


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm equality where nothing sets a scale, the exact numbers, and the two orders of batch sizes."""
    return check_apart(results) | check_numbers(results) | check_runs(results)


def check_apart(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Sum and mean are one run where nothing sets a scale or it is M times as large, and otherwise are not."""
    equal, different = {}, {}
    for M in results["compared_sizes"]:
        limit = 0.0 if M & (M - 1) == 0 else ROUNDING
        for name, (_, _, scaled) in CASES.items():
            as_it_is, repaired = results[f"apart/{M}/{name}"]
            if scaled:
                off = as_it_is.max()
                require(off > 1e3 * ROUNDING, f"that sum and mean agree with {name} must be rejected, off by {off:.1e}")
                different[name] = max(off, different.get(name, 0.0))
            off = repaired.max()
            require(off <= limit, f"sum and mean must agree with {name} at M = {M}, off by {off:.1e}")
            equal[M] = max(off, equal.get(M, 0.0))
        require(results[f"apart/{M}/same rate"].min() > 0.1, "that sum and mean agree with one rate must be rejected")
    return {
        "largest_difference": {str(M): float(value) for M, value in equal.items()},
        "with_a_scale": {name: float(value) for name, value in different.items()},
    }


def check_numbers(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """The exact numbers of small problems."""
    ends = results["penalized"]
    require(
        np.allclose(ends, [13 / 14, 13 / 15, 13 / 17], rtol=1e-12, atol=0),
        f"least squares must end at 13/14, with a penalty at 13/15 (sum) and 13/17 (mean), got {ends}",
    )
    unit = np.array([2, 1]) / np.sqrt(5)  # of −ḡ = (1, 1/2)
    expected = 1 + np.array([[0.1, 0.05], [0.1, 0.05], 0.1 * unit, 0.025 * unit])
    require(
        np.allclose(results["first/sgd"], expected, rtol=1e-14, atol=0),
        f"first steps must be (1, 1/2)/10, and with clipping a quarter as long for the sum, got {results['first/sgd']}",
    )
    expected = np.array([[21 / 20, 31 / 30], [27 / 25, 16 / 15]])
    require(
        np.allclose(results["first/adam"], expected, rtol=1e-12, atol=0),
        f"with ε = 1 Adam must step to (21/20, 31/30), with the sum to (27/25, 16/15), got {results['first/adam']}",
    )
    return {"penalized": ends.tolist()}


def check_runs(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """After equally many steps large batches are ahead, after equally many examples small ones; bands shrink with M."""
    sizes, findings = results["batch_sizes"], {}
    for name in results["optimizers"]:
        by_steps, by_examples, spread = (np.array(column) for column in zip(*compared(results, name), strict=True))
        require(np.all(np.diff(by_steps) < 0), f"{name}: after equally many steps the loss must fall with M")
        ahead = by_examples.argmin() < len(sizes) / 2 and by_examples[-1] > 2 * by_examples.min()
        require(ahead, f"{name}: after equally many examples small batches must be ahead, got {by_examples}")
        require(spread[-1] < 1e-3 < spread[0] / 10, f"{name}: only runs on all data must be equal, got {spread}")
        findings[str(name)] = {
            "rates": [float(results[f"{name}/{M}/rate"]) for M in sizes],
            "after_equal_steps": by_steps.round(3).tolist(),
            "after_equal_examples": by_examples.round(3).tolist(),
        }
    return findings


def compared(results: dict[str, np.ndarray], name: str) -> list[tuple[float, float, float]]:
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


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    differences = findings["with_a_scale"]
    return (
        f"sum and mean agree to {max(findings['largest_difference'].values()):.0e}, and differ by "
        f"{differences['L2 penalty']:.2f} with a penalty, {differences['clipping']:.2f} with clipping and "
        f"{differences['Adam, ε > 0']:.0e} with Adam's ε; large batches are ahead after equally many steps, small "
        "ones after equally many examples"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Losses against steps and examples for each optimizer, and the distance of sum and mean."""
    names = results["optimizers"]
    figure = page(ncols=len(names) + 1, nrows=2, height_to_width_ratio=1.0)
    grid = figure.add_gridspec(2, len(names) + 1, width_ratios=[*([1] * len(names)), 1.35])
    for row, unit in enumerate(("steps", "examples")):
        first = None
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[row, column], sharey=first, sharex=first)
            first = axes if first is None else first
            draw_losses(axes, results, str(name), unit)
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("mean loss")
            if row == 0:
                axes.set_title(name)
        if row == 0 and first is not None:
            first.legend(fontsize="small", loc="lower left", handlelength=1.6, labelspacing=0.3)
    draw_apart(figure.add_subplot(grid[:, -1]), results)
    return figure


def draw_losses(axes: Any, results: dict[str, np.ndarray], name: str, unit: str) -> None:
    """Medians and bands of one optimizer, for every batch size."""
    for k, M in enumerate(results["batch_sizes"]):
        t, losses = results[f"{name}/{M}/steps"][1:], results[f"{name}/{M}/losses"][:, 1:]
        x = t * (M if unit == "examples" else 1)
        color, marker = (*COLORS, "black")[k % 4], (*MARKERS, "D")[k % 4]
        axes.fill_between(x, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.25, linewidth=0)
        axes.plot(x, np.median(losses, axis=0), marker=marker, markevery=0.25, color=color, label=f"$M={M}$")
    axes.set(xscale="log", yscale="log", xlabel=unit)


def draw_apart(axes: Any, results: dict[str, np.ndarray]) -> None:
    """The distance of sum and mean after every step, at the last of the batch sizes compared."""
    M, place = results["compared_sizes"][-1], 0
    for name, (_, _, scaled) in CASES.items():
        as_it_is, repaired = results[f"apart/{M}/{name}"]
        steps = np.arange(1, len(repaired) + 1)
        axes.plot(steps, np.maximum(repaired, 1e-17), color="0.6", linewidth=0.7)
        if scaled:
            color, marker = (*COLORS, "black")[place], (*MARKERS, "D")[place]
            axes.plot(steps, np.maximum(as_it_is, 1e-17), color=color, marker=marker, markevery=0.2, label=name)
            place += 1
    axes.axhline(np.finfo(float).eps, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
    axes.text(steps[-1], 3 * np.finfo(float).eps, "rounding", ha="right", va="bottom", fontsize="small")
    axes.set(
        yscale="log",
        xlabel="steps",
        ylabel=r"$\Vert\theta_{\rm sum}-\theta_{\rm mean}\Vert\,/\,\Vert\theta_{\rm mean}\Vert$",
    )
    axes.set_ylim(1e-17, 10)
    axes.set_title("sum of a batch against its mean")
    axes.legend(fontsize="small", loc="center right", bbox_to_anchor=(1, 0.34), handlelength=1.8)
