"""A batch that a monitor raises saves steps over the batch it begins with, and none over a constant one that was tuned.

At equal examples, a constant batch of every size is run with its own best learning rate, and beside it ramps: they
begin with the smallest batch and follow the noise scale that a monitor reads in the run itself, or a quarter of it,
with one learning rate that is tuned as well. What counts is the loss of examples that were not trained on, and the
number of steps. "Do not decay the learning rate, increase the batch size" (S. Smith, P.-J. Kindermans, C. Ying, Q. Le,
ICLR 2018) is the third party: constant batches whose learning rate falls to 0 along a straight line.

Command    python -m experiments batch_size_schedule
Run time   about ten minutes on two cores; --task clothes or text for others
Expected   on the digits, ramps that take a fifth of the steps of the batch they begin with or fewer, and end no higher;
           that end where the best constant batch ends, within a tenth, after more than 1.5 times its steps; and no
           lower than the best falling rate

Learning rates are tuned on seeds of their own. Left: losses against steps, every point with the rate that is best for
it, with 95 % intervals over seeds; right: the batch sizes that the ramps chose, and those they followed.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import scipy.special
from matplotlib.figure import Figure

from experiments import _tasks
from experiments._branches import OPTIMIZERS
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress, table
from experiments._panels import DASHED, mark, page, panel
from experiments._schedules import Ended, best_rate, constant, ramp

RATES = {"SGD": 0.4, "AdamW": 0.016}  # about which they are tuned


class Config(Seeded):
    """Settings of the experiment."""

    task: Literal["digits", "clothes", "text"] = "digits"
    """What is trained: digits, clothes or text."""
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """SGD and AdamW, or one of them."""
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    """Constant ones; ramps go from the first to the last."""
    shares: tuple[float, ...] = (1.0, 0.25)
    """Of the noise scale that a ramp follows."""
    num_examples: int = 65536
    """That are trained on, with repetitions."""
    num_stretches: int = 16
    """After each of which a ramp may double its batch."""
    num_rates: int = 5
    """That are tried first, each twice the one before."""
    num_tuning: int = 3
    """Seeds by which learning rates are chosen."""
    num_seeds: int = 10
    """Others, that tell how good they are."""


QUICK = Config(optimizers=("SGD",), batch_sizes=(8, 64, 512), num_examples=16384, num_tuning=1, num_seeds=4)
KINDS = ("constant", "decayed", "ramp")
SUMMARY = (
    "ramps take {steps_of_first:.0%} of the steps of the batch they begin with, and end at {loss_of_first:.2f} times "
    "its held-out loss; they take {steps_of_best:.1f} times those of the best constant batch or more, and end at "
    "{loss_of_best:.2f} times its loss"
)


def compute(config: Config) -> Arrays:
    """One row for each optimizer and schedule."""
    task, rows = _tasks.named(config.task), []
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for optimizer in config.optimizers:
            for name, run in progress(list(schedules(task, optimizer, config).items()), optimizer):
                rows.append({"optimizer": optimizer, "schedule": name} | tuned(run, RATES[optimizer], config))
    return table(rows)


def schedules(task: Any, optimizer: str, config: Config) -> dict[str, Callable[[Any, np.ndarray], list[Ended]]]:
    """By name, what makes one run for each learning rate, from a key."""
    found: dict[str, Any] = {}
    for decayed in (False, True):
        for size in config.batch_sizes:

            def of_size(key: Any, rates: np.ndarray, size: int = size, decayed: bool = decayed) -> list[Ended]:
                return constant(task, optimizer, size, rates, config, key, decayed=decayed)

            found[f"{'decayed' if decayed else 'constant'} {size}"] = of_size
    for share in config.shares:

        def ramps(key: Any, rates: np.ndarray, share: float = share) -> list[Ended]:
            return [ramp(task, optimizer, share, rate, config, key) for rate in rates.tolist()]

        found[f"ramp {share:g}"] = ramps
    return found


def tuned(run: Callable[[Any, np.ndarray], list[Ended]], middle: float, config: Config) -> dict[str, Any]:
    """The best rate by some seeds, and what it does for others."""
    keys = [jax.random.fold_in(config.key(), seed) for seed in range(config.num_tuning + config.num_seeds)]

    def held_out(rates: np.ndarray) -> np.ndarray:
        losses = [[each.held_out for each in run(key, rates)] for key in keys[: config.num_tuning]]
        return np.nan_to_num(np.array(losses), nan=np.inf).mean(axis=0)

    rates = middle * 2.0 ** (np.arange(config.num_rates) - config.num_rates // 2)
    rate, (lowest, highest) = best_rate(held_out, rates)
    ended = [run(key, np.array([rate]))[0] for key in keys[config.num_tuning :]]
    return {"rate": rate, "lowest_rate": lowest, "highest_rate": highest} | {
        name: [getattr(each, name) for each in ended] for name in Ended._fields
    }


def check(results: Arrays) -> Claims:
    """Confirm what ramps save over their first batch; refute that they save over the best constant one."""
    claims, cases = Claims(), {}
    inside = (results["lowest_rate"] < results["rate"]) & (results["rate"] < results["highest_rate"])
    claims.require(np.all(inside), "the best learning rate must lie inside those tried")
    for optimizer in dict.fromkeys(results["optimizer"].tolist()):
        losses = {kind: {k: results["held_out"][k].mean() for k in of(results, optimizer, kind)} for kind in KINDS}
        rivals = {"first": of(results, optimizer, "constant")[0]}
        rivals |= {"best": min(losses["constant"], key=losses["constant"].__getitem__)}
        rivals |= {"decayed": min(losses["decayed"], key=losses["decayed"].__getitem__)}
        for name, rival in rivals.items():
            for ramp_ in of(results, optimizer, "ramp"):
                steps = results["steps"][ramp_].mean() / results["steps"][rival].mean()
                found = [steps, *over(results["held_out"][ramp_], results["held_out"][rival])]
                cases[f"{optimizer}, {results['schedule'][ramp_]} over {name}: {results['schedule'][rival]}"] = found
    claims["cases"] = {name: [float(f"{number:.3g}") for number in values] for name, values in cases.items()}
    of_first, of_best, of_decayed = (
        np.array([values for name, values in cases.items() if f"over {rival}" in name]) for rival in rivals
    )
    message = "ramps must take a quarter of the steps of the batch they begin with, got {:.2f} times"
    claims.below(of_first[:, 0], 0.25, message, enter="steps_of_first")
    message = "ramps must not end above the batch they begin with, got {:.2f} times its loss"
    claims.below(of_first[:, 1], 1.0, message, enter="loss_of_first")
    message = "that ramps take fewer steps than the best constant batch must be rejected, got {:.2f} times"
    claims.above(of_best[:, 0], 1.5, message, enter="steps_of_best")
    message = "ramps must end within a tenth of the best constant batch, got {:.2f} times its loss"
    claims.below(of_best[:, 1], 1.1, message, enter="loss_of_best")
    message = "that ramps end below the best falling rate must be rejected, got an interval up to {:.2f}"
    claims.above(of_decayed[:, 3], 1.0, message, enter="loss_of_decayed")
    return claims


def of(results: Arrays, optimizer: str, kind: str) -> list[int]:
    """The rows of an optimizer's schedules of a kind."""
    names = np.char.startswith(results["schedule"].astype(str), kind)
    return [int(k) for k in np.flatnonzero(names & (results["optimizer"] == optimizer))]


def over(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """How many times a loss is another one, seed by seed: the geometric mean and its 95 % interval."""
    logs = np.log(ours / theirs)
    margin = scipy.special.stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / np.sqrt(len(logs))
    return tuple(float(np.exp(logs.mean() + side * margin)) for side in (0, -1, 1))


def draw(results: Arrays) -> Figure:
    """A row for each optimizer."""
    names = dict.fromkeys(results["optimizer"].tolist())
    figure = page(nrows=len(names), ncols=2, height_to_width_ratio=0.5)
    for (left, right), optimizer in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        _draw_losses(left, results, optimizer)
        _draw_sizes(right, results, optimizer)
    for axes, place in ((left, "outside lower left"), (right, "outside lower right")):
        figure.legend(*axes.get_legend_handles_labels(), loc=place, ncols=3)
    return figure


def _draw_losses(axes: Any, results: Arrays, optimizer: str) -> None:
    labels = ("constant batch", "its rate falls to 0", "ramp")
    for place, (kind, label) in enumerate(zip(KINDS, labels, strict=True)):
        rows = of(results, optimizer, kind)
        losses, steps = results["held_out"][rows], results["steps"][rows].mean(axis=1)
        margin = scipy.special.stdtrit(losses.shape[1] - 1, 0.975) * losses.std(axis=1, ddof=1) / losses.shape[1] ** 0.5
        style = mark(place, line="none" if kind == "ramp" else "-", hollow=kind == "decayed")
        x = steps * (1.04 if kind == "decayed" else 1)
        axes.errorbar(x, losses.mean(axis=1), margin, **style, label=label, elinewidth=0.6, capsize=1.5)
    panel(axes, optimizer, x="steps", y="held-out loss (nats)", log="x")


def _draw_sizes(axes: Any, results: Arrays, optimizer: str) -> None:
    for place, row in enumerate(of(results, optimizer, "ramp")):
        sizes, style = results["sizes"][row], mark(place, line="none")
        x = np.arange(sizes.shape[1]) + 0.5 + 0.2 * (place - 0.5)
        share = float(str(results["schedule"][row]).split()[1])
        label = "ramp, $M$ follows $B$" if share == 1 else f"ramp, $M$ follows {share:g} $B$"
        axes.plot(x, np.exp(np.log(sizes).mean(axis=0)), **style, label=label)
        axes.vlines(x, sizes.min(axis=0), sizes.max(axis=0), color=style["color"], linewidth=0.8)
    read = results["read"][of(results, optimizer, "ramp")[0]]
    axes.plot(
        x, np.median(np.where(read > 0, read, np.inf), axis=0), color="gray", linestyle=DASHED, label="$B$, median"
    )
    panel(axes, optimizer, x="stretch of the run", y="examples", log="y")
