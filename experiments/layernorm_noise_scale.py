"""The scales of a GPT's normalization layers alone tell that its noise scale grows, and not by how much.

They are a fraction of a percent of the parameters, and their per-example gradients cost next to nothing, so that a
monitor of them alone can watch every step of a large run. On one run of a small network their noise scale and that of
all parameters rise together at first; later one says little of the other: the slope of their logarithms is far from 1,
and the number of the step alone predicts as well. G. Gray et al. found them proportional in larger models.

Command    python -m experiments layernorm_noise_scale
Run time   about 25 seconds on two cores
Expected   along 300 steps of Adam on text, logarithms of the two that correlate by more than 0.9, and a ratio that
           stays within a factor of 3 of its mean while the noise scale grows more than tenfold

A GPT of three blocks learns to continue English text, byte by byte. Two monitors watch the same run, one of all
parameters and one with ``where=`` (G. Gray, A. Tiwari, S. Bergsma, J. Hestness, "Normalization layer per-example
gradients are sufficient to predict gradient noise scale in transformers", NeurIPS 2024, who find a constant ratio in
larger models).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn import datasets

from experiments._claims import Claims
from experiments._harness import Arrays, Seeded
from experiments._models import gpt
from experiments._panels import BLUE, DASHED, mark, page_of, panel
from jaxsgd import designs, monitors, training

KINDS = ("all", "layernorm")
SETTLED = 20  # steps after which the averages are shown
LATE = 0.4  # of the run


class Config(Seeded):
    """Settings of the experiment."""

    length: int = 16
    """Bytes of text in an example."""
    width: int = 64
    """Width of the network."""
    num_examples: int = 2048
    """Pieces of the text, drawn at random."""
    batch_size: int = 64
    """Examples in a batch."""
    num_steps: int = 300
    """Of Adam."""
    record_every: int = 10
    """Steps between readings."""
    decay: float = 0.95
    """Of what the monitors average."""
    learning_rate: float = 1e-3
    """Of Adam."""


QUICK = Config(length=8, width=32, num_examples=512, batch_size=32, num_steps=120)
SUMMARY = (
    "{share_of_params:.2%} of the parameters have {ratio:.2f} times that of all within a factor of "
    "{largest_factor:.1f}, while it grows {growth:.0f}-fold; late in the run the slope is {late_slope:.2f}"
)


def compute(config: Config) -> Arrays:
    """One run, watched twice."""
    loss_fn, params, _ = gpt(config.length, 1, scanned=True, width=config.width)
    watch = (
        monitors.noise_scale(decay=config.decay, name="all"),
        monitors.noise_scale(decay=config.decay, name="layernorm", where=is_norm_scale),
    )
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
        run = partial(training.run_sgd, loss_fn, params, pieces(config), optax.adam(config.learning_rate))
        design = designs.WithReplacement(config.batch_size)
        result = run(design, config.num_steps, config.key(), monitors=watch, record_every=config.record_every)
    sizes = {path: leaf.size for path, leaf in leaves(params).items()}
    chosen = sum(size for path, size in sizes.items() if is_norm_scale(path))
    readings = {kind: np.asarray(result.metrics[f"{kind}/noise_scale"], np.float64) for kind in KINDS}
    num_params = [sum(sizes.values()), chosen]
    return {"steps": result.steps, "loss": result.metrics["loss"], "num_params": num_params} | readings


def is_norm_scale(path: str) -> bool:
    """Whether a parameter is the scale of a normalization layer, by its path in ``params``."""
    return "norm" in path and "['scale']" in path


def leaves(params: Any) -> dict[str, Any]:
    """Path → array."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def pieces(config: Config) -> dict[str, jax.Array]:
    """Pieces of the texts that describe scikit-learn's data sets: bytes, and those one further."""
    loaders = (datasets.load_breast_cancer, datasets.load_diabetes, datasets.load_digits, datasets.load_iris)
    text = np.frombuffer("".join(load().DESCR for load in loaders).encode(), np.uint8).astype(np.int32)
    starts = np.random.default_rng(config.seed).integers(0, len(text) - config.length, config.num_examples)
    windows = text[starts[:, None] + np.arange(config.length + 1)]
    return {"tokens": jnp.asarray(windows[:, :-1]), "next": jnp.asarray(windows[:, 1:])}


def check(results: Arrays) -> Claims:
    """Confirm that one noise scale predicts the other, and that there is something to predict."""
    claims, found = Claims(), np.stack([results[kind] for kind in KINDS])[:, results["steps"] >= SETTLED]
    claims.above(found, 0, "noise scales must be positive once averaged")
    logs = np.log(found)
    growth = np.exp(logs[0, -3:].mean() - logs[0, :3].mean())
    claims.above(growth, 3, "the noise scale must grow along the run, got a factor of {:.2f}", enter="growth")
    correlation = np.corrcoef(logs)[0, 1]
    claims.above(correlation, 0.9, "the logarithms must correlate by more than 0.9, got {:.3f}", enter="correlation")
    difference = logs[1] - logs[0]
    spread = np.exp(np.abs(difference - difference.mean()).max())
    message = "the ratio must stay within a factor of 3 of its mean, and is {:.2f} times off"
    claims.below(spread, 3, message, enter="largest_factor")
    share = results["num_params"][1] / results["num_params"][0]
    message = "the scales must be less than a hundredth of the parameters, got {:.2%}"
    claims.below(share, 0.01, message, enter="share_of_params")
    late = results["steps"][results["steps"] >= SETTLED] >= LATE * results["steps"][-1]
    slope = np.polyfit(logs[1, late], logs[0, late], 1)[0]
    claims.below(slope, 0.9, "late in the run a slope of 1 must be rejected, got {:.2f}", enter="late_slope")
    steps = np.log(results["steps"][results["steps"] >= SETTLED])
    return claims | {"ratio": np.exp(difference.mean()), "correlation_with_step": np.corrcoef(logs[0], steps)[0, 1]}


def draw(results: Arrays) -> Figure:
    """Both along the run, and one against the other."""
    return page_of(results, _draw_run, _draw_against, ratio=0.5)


def _draw_run(axes: Any, results: Arrays) -> None:
    settled = results["steps"] >= SETTLED
    labels, lines = ("all parameters", "LayerNorm scales"), ("-", DASHED)
    for place, (kind, label, line) in enumerate(zip(KINDS, labels, lines, strict=True)):
        values = results[kind][settled]
        axes.plot(results["steps"][settled], values, label=label, **mark(place, line=line), markevery=3)
    panel(axes, "a small GPT on text", x="step", y="noise scale $B$ (examples)", log="y", legend="best")


def _draw_against(axes: Any, results: Arrays) -> None:
    y, x = (results[kind][results["steps"] >= SETTLED] for kind in KINDS)
    grid = np.geomspace(x.min(), x.max(), 2)
    axes.plot(grid, grid * np.exp(np.log(y / x).mean()), color="black", linewidth=0.8, label="proportional")
    axes.plot(x, y, color=BLUE, marker="o", linestyle="none")
    panel(axes, x="$B$ of the LayerNorm scales", y="$B$ of all parameters", log="xy", legend="best")
