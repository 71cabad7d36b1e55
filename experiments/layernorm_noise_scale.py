"""The scales of a GPT's normalization layers alone tell how its noise scale grows, if not exactly by how much.

They are a fraction of a percent of the parameters, and their per-example gradients cost next to nothing, so that a
monitor of them alone can watch every step of a large run. Their noise scale is not that of all parameters, but follows
it.

Command    python -m experiments layernorm_noise_scale
Run time   about 25 seconds on two cores
Expected   along 300 steps of Adam on text, logarithms of the two that correlate by more than 0.9, and a ratio that
           stays within a factor of 3 of its mean while the noise scale grows more than tenfold

A GPT of three blocks learns to continue English text, byte by byte. Two monitors watch the same run, one of all
parameters and one with ``where=`` (G. Gray, A. Tiwari, S. Bergsma, J. Hestness, "Normalization layer per-example
gradients are sufficient to predict gradient noise scale in transformers", NeurIPS 2024, who find a constant ratio in
larger models).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn import datasets

from experiments._claims import require
from experiments._models import gpt
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, monitors, training

KINDS = ("all", "layernorm")


@dataclass(frozen=True)
class Config:
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
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(length=8, width=32, num_examples=512, batch_size=32, num_steps=120)


def compute(config: Config) -> dict[str, np.ndarray]:
    """One run, watched twice."""
    loss_fn, params, _ = gpt(config.length, 1, scanned=True, width=config.width)
    watch = (
        monitors.noise_scale(decay=config.decay, name="all"),
        monitors.noise_scale(decay=config.decay, name="layernorm", where=is_norm_scale),
    )
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
        result = training.run_sgd(
            loss_fn,
            params,
            pieces(config),
            optax.adam(config.learning_rate),
            designs.WithReplacement(config.batch_size),
            config.num_steps,
            jax.random.key(config.seed),
            monitors=watch,
            record_every=config.record_every,
        )
    sizes = {path: leaf.size for path, leaf in leaves(params).items()}
    chosen = sum(size for path, size in sizes.items() if is_norm_scale(path))
    return {
        "steps": np.asarray(result.steps),
        "loss": np.asarray(result.metrics["loss"]),
        "num_params": np.array([sum(sizes.values()), chosen]),
    } | {kind: np.asarray(result.metrics[f"{kind}/noise_scale"], np.float64) for kind in KINDS}


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


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm that one noise scale predicts the other, and that there is something to predict."""
    settled = results["steps"] >= 20
    found = {kind: results[kind][settled] for kind in KINDS}
    require(all((values > 0).all() for values in found.values()), "noise scales must be positive once averaged")
    logs = {kind: np.log(values) for kind, values in found.items()}
    growth = float(np.exp(logs["all"][-3:].mean() - logs["all"][:3].mean()))
    require(growth > 3, f"the noise scale must grow along the run, got a factor of {growth:.2f}")
    correlation = float(np.corrcoef(logs["all"], logs["layernorm"])[0, 1])
    require(correlation > 0.9, f"the logarithms must correlate by more than 0.9, got {correlation:.3f}")
    difference = logs["layernorm"] - logs["all"]
    spread = float(np.exp(np.abs(difference - difference.mean()).max()))
    require(spread < 3, f"the ratio must stay within a factor of 3 of its mean, and is {spread:.2f} times off")
    share = float(results["num_params"][1] / results["num_params"][0])
    require(share < 0.01, f"the scales must be less than a hundredth of the parameters, got {share:.2%}")
    return {
        "correlation": correlation,
        "ratio": float(np.exp(difference.mean())),
        "largest_factor": spread,
        "growth": growth,
        "share_of_params": share,
    }


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    return (
        f"{findings['share_of_params']:.2%} of the parameters have {findings['ratio']:.2f} times that of all "
        f"within a factor of {findings['largest_factor']:.1f}, while it grows {findings['growth']:.0f}-fold"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Both along the run, and one against the other."""
    figure = page(ncols=2, height_to_width_ratio=0.5)
    along, against = figure.subplots(1, 2)
    settled = results["steps"] >= 20
    steps = results["steps"][settled]
    lines = ("-", (0, (3, 1.5)))
    for place, (kind, label) in enumerate(zip(KINDS, ("all parameters", "LayerNorm scales"), strict=True)):
        style = {"color": COLORS[place], "marker": MARKERS[place], "linestyle": lines[place], "markevery": 3}
        along.plot(steps, results[kind][settled], label=label, **style)
    along.set(yscale="log", xlabel="step", ylabel="noise scale $B$ (examples)", title="a small GPT on text")
    along.legend(fontsize="small")
    x, y = results["layernorm"][settled], results["all"][settled]
    grid = np.geomspace(x.min(), x.max(), 2)
    against.plot(grid, grid * np.exp(np.log(y / x).mean()), color="black", linewidth=0.8, label="proportional")
    against.plot(x, y, color=COLORS[0], marker=MARKERS[0], linestyle="none")
    against.set(xscale="log", yscale="log", xlabel="$B$ of the LayerNorm scales", ylabel="$B$ of all parameters")
    against.legend(fontsize="small")
    return figure
