"""Windows that overlap and examples that come in groups are worth fewer, and rounding sets an end to larger batches.

Consecutive windows of a text have gradients with correlations ρ_k, so that a batch of M has the variance
(tr Σ/M) (1 + 2 Σ_k (1 − k/M) ρ_k); in groups of b with intraclass correlation ρ it is (tr Σ/M) (1 + (b−1)ρ). M over
the factor is the effective sample size. Rounding to bfloat16 adds an error that does not fall with M: beyond the M* at
which tr Σ/M equals it, larger batches gain little.

Command    python -m experiments dependence_and_precision
Run time   about 1 minute on two cores
Expected   drawn batches within 4.5 standard errors of both laws, and the law of independent draws rejected; windows
           drawn at random have the variance tr Σ/M, however much they overlap; at every point of a run M* is larger if
           the gradients of the examples are added up in float32 than if in bfloat16

The text is Python's own help on its syntax, ``pydoc_data.topics``. The model predicts a character from the two before
it; an example is a window of 32 characters, on a circle, so that all are alike. Laws are exact, with correlations from
the Gram matrix; points are batches really drawn, with two standard errors. The rounding error is the mean squared
distance to ḡ when the parameters are rounded at random to bfloat16, and all that follows is rounded as XLA does.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxsgd
from experiments._characters import LENGTH, gradients, loss_fn, mean_gradient, parameters, rounded, windows
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress
from experiments._panels import BLUE, COLORS, DASHED, MARKERS, ORANGE, SKY, note, page_of, panel, reference
from jaxsgd import designs, estimators, training

SUMS, LAWS = ("float32", "bfloat16"), (designs.CircularBlocks, designs.Blocks)


class Config(Seeded):
    """Settings of the experiment."""

    num_windows: int = 512
    """How many windows of each stride."""
    strides: tuple[int, ...] = (4, 16, 32)
    """Characters from one window to the next; windows have 32."""
    sizes: tuple[int, ...] = (1, 4, 16, 64)
    """Batch sizes of consecutive windows, and sizes of groups; batches of groups have the largest."""
    hidden: int = 16
    """Width of the embeddings and of the hidden layer."""
    steps: tuple[int, ...] = (0, 10, 100, 1000)
    """Steps of the run after which rounding is measured; the windows are after those before the last."""
    num_draws: int = 400
    """Batches drawn for every point."""
    num_roundings: int = 30
    """Random roundings of the parameters."""


QUICK = Config(num_windows=128, strides=(4, 32), sizes=(1, 4, 16), steps=(0, 30, 100), num_draws=200, num_roundings=8)
SUMMARY = (
    "{largest_size} consecutive windows that overlap by 7/8 are worth {effective_size:.1f} independent ones; drawn "
    "variances within {worst_z:.1f} standard errors; sums in bfloat16 end the use of batches at M* = {least_M:.0f} to "
    "{most_M:.0f}, in float32 beyond {least_M_float32:.0f}"
)


def compute(config: Config) -> Arrays:
    """Design effects by the laws and by drawing, and both noises along a run."""
    start_key, run_key, draw_key, round_key = jax.random.split(config.key(), 4)
    data, optimizer = windows(config.num_windows, LENGTH), optax.adam(1e-2)
    run = training.run_sgd(
        *(loss_fn, parameters(start_key, config.hidden), data, optimizer, designs.WithReplacement(32)),
        *(config.steps[-1], run_key),
        keep_params_at=config.steps,
        gradient="plain",
    )
    points = [jax.tree.map(lambda leaf, k=k: leaf[k], run.kept_params) for k in range(len(config.steps))]
    rounding = [measured(params, data, config, round_key) for params in progress(points, "rounding")]
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), points[-2])
    found: dict[str, Any] = {"steps": config.steps, "sizes": config.sizes, "strides": config.strides}
    found |= {name: [row[name] for row in rounding] for name in rounding[0]}
    for stride in progress(config.strides, "strides"):
        found |= {f"{stride}/{name}": value for name, value in dependent(exact, stride, config, draw_key).items()}
    return found


def dependent(params: Any, stride: int, config: Config, key: jax.Array) -> Arrays:
    """Design effects of consecutive, grouped and random windows: by the Gram matrix, by the library, and drawn."""
    data, N = windows(config.num_windows, stride), config.num_windows
    rows = gradients(params, data)
    g = jaxsgd.per_example_gradients(lambda theta, row: theta @ row)(jnp.zeros(rows.shape[1]), rows)  # gradients: rows
    gram = np.asarray(g.centered_gram())
    trace, largest = gram.trace() / N, config.sizes[-1]
    lagged = np.array([np.mean([gram[i, (i + k) % N] for i in range(N)]) for k in range(largest)]) / trace
    within = [np.mean([gram[s : s + b, s : s + b].sum() for s in range(0, N, b)]) / (b * trace) for b in config.sizes]
    rows = np.asarray(rows) - np.asarray(rows).mean(axis=0)

    def drawn(starts: np.ndarray, block: int) -> np.ndarray:
        """‖ĝ − ḡ‖² of batches that are made of blocks, in units of tr Σ/M: the mean, and its standard error."""
        places = (starts[..., None] + np.arange(block)).reshape(len(starts), -1) % N
        effects = np.array([np.sum(rows[batch].mean(axis=0) ** 2) for batch in places]) * places.shape[1] / trace
        return np.array([effects.mean(), effects.std(ddof=1) / np.sqrt(len(effects))])

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    sizes, draws = config.sizes, config.num_draws
    return {
        "lagged": lagged[1:],
        "intraclass": [(effect - 1) / (b - 1) if b > 1 else 0 for effect, b in zip(within, sizes, strict=True)],
        "library": [
            [estimators.design_effect(law(M), g) for M in sizes] for law in (designs.CircularBlocks, designs.Blocks)
        ],
        "consecutive": [drawn(rng.integers(N, size=(draws, 1)), M) for M in sizes],
        "grouped": [drawn(b * rng.integers(N // b, size=(draws, largest // b)), b) for b in sizes],
        "random": [drawn(rng.integers(N, size=(draws, M)), 1) for M in sizes],
    }


def measured(params: Any, data: Any, config: Config, key: jax.Array) -> dict[str, Any]:
    """tr Σ, ‖ḡ‖², and the mean squared error of the full gradient in bfloat16, added up in float32 and in bfloat16."""
    rows = gradients(params, data)
    mean = rows.mean(axis=0)
    keys = jax.random.split(key, config.num_roundings)
    errors = [np.asarray(rounding_errors(way, params, data, mean, keys)) for way in SUMS]
    return {
        "trace": jnp.sum((rows - mean[None]) ** 2) / len(rows),
        "squared_norm": jnp.sum(mean**2),
        "rounding": [np.mean(e) for e in errors],
        "rounding_error": [np.std(e, ddof=1) / np.sqrt(len(e)) for e in errors],
    }


@partial(jax.jit, static_argnums=0)
def rounding_errors(way: str, params: Any, data: Any, mean: Any, keys: Any) -> Any:
    """Squared distances to ḡ of the full gradient at randomly rounded parameters, one for each key."""

    def error(key: Any) -> Any:
        theta = rounded(key, params)
        found = gradients(theta, data).mean(axis=0) if way == "float32" else mean_gradient(theta, data)
        return jnp.sum((found - mean) ** 2)

    return jax.lax.map(error, keys)


def check(results: Arrays) -> Claims:
    """Confirm both laws, and that they are needed; and what rounding does along the run."""
    claims, worst = Claims(), 0.0
    sizes, strides = results["sizes"], results["strides"]
    for stride in strides:
        rows = {name: results[f"{stride}/{name}"] for name in ("library", "consecutive", "grouped", "random")}
        laws = effects(results, stride)
        for law, found, what in zip(laws, rows["library"], ("consecutive windows", "groups"), strict=True):
            claims.equal(found, law, f"the design effect of {what} must be {law}, got {{}}", atol=1e-9)
        for name, law in zip(("consecutive", "grouped", "random"), (*laws, np.ones(len(sizes))), strict=True):
            z = (rows[name][:, 0] - law) / rows[name][:, 1]
            claims.agree(z, f"the variance of {name} windows is", M=sizes)
            worst = max(worst, np.abs(z).max())
    closest = strides.min()
    for name in ("consecutive", "grouped"):
        mean, error = results[f"{closest}/{name}"][-1]
        claims.reject(
            (mean - 1) / error, f"that {name} windows are independent draws", enter=f"z_of_independent_{name}"
        )
    claims |= {
        "worst_z": worst,
        "largest_size": sizes[-1],
        "effective_size": sizes[-1] / effects(results, closest)[0][-1],
    }
    limits = results["trace"][:, None] / results["rounding"]
    claims.above(limits[:, 0] / limits[:, 1], 5, "M* must be larger with sums in float32, got a factor of {:.1f}")
    share = results["rounding"][:, 1] / results["squared_norm"]
    message = "the error of sums in bfloat16 must be a steady share of ‖ḡ‖², got a factor of {:.1f} between points"
    claims.below(share.max() / share.min(), 4, message)
    named = {f"largest_batches_{way}": limits[:, k] for k, way in enumerate(SUMS)}
    ends = {"least_M": limits[:, 1].min(), "most_M": limits[:, 1].max(), "least_M_float32": limits[:, 0].min()}
    return claims | named | ends | {"share_of_squared_norm": share}


def effects(results: Arrays, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """1 + 2 Σ_k (1 − k/M) ρ_k of consecutive windows, and 1 + (b−1)ρ of groups, for all sizes."""
    lagged, sizes = results[f"{stride}/lagged"], results["sizes"]
    consecutive = [1 + 2 * np.sum((1 - np.arange(1, M) / M) * lagged[: M - 1]) for M in sizes]
    return np.array(consecutive), 1 + (sizes - 1) * results[f"{stride}/intraclass"]


def draw(results: Arrays) -> Figure:
    """Design effects of consecutive windows and of groups, and the end of the use of larger batches."""
    return page_of(results, partial(_draw_effects, which=0), partial(_draw_effects, which=1), _draw_limits, ratio=0.95)


def _draw_effects(axes: Any, results: Arrays, which: int) -> None:
    sizes = results["sizes"]
    for stride, color, marker in zip(results["strides"], COLORS, MARKERS, strict=False):
        law = effects(results, stride)[which]
        mean, error = results[f"{stride}/{('consecutive', 'grouped')[which]}"].T
        axes.plot(sizes, law, color=color)
        axes.errorbar(sizes, mean, 2 * error, color=color, marker=marker, linestyle="none", capsize=2)
        note(
            axes,
            1.2 * sizes[-1],
            law[-1],
            f"every {stride} characters",
            color="black" if color == SKY else color,
            va="center",
        )
    if which == 0:
        mean, error = results[f"{results['strides'].min()}/random"].T
        axes.errorbar(sizes, mean, 2 * error, color="black", marker="D", mfc="white", linestyle="none", capsize=2)
    reference(axes, y=1, color="black")
    note(axes, 1.2 * sizes[-1], 0.97, ("at random", "independent")[which], va="top")
    title, x = (("consecutive windows", "batch size $M$ (windows)"), ("groups", "windows in a group, $b$"))[which]
    limits: dict[str, Any] = {"xlim": (0.8, 20 * sizes[-1]), "ylim": (0.7, 20)}
    panel(axes, title, x=x, y="" if which else r"variance $\div$ $\mathrm{tr}\,\Sigma/M$", log="xy", **limits)
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()


def _draw_limits(axes: Any, results: Arrays) -> None:
    steps, limits = 1 + results["steps"], results["trace"][:, None] / results["rounding"]
    for k, color in enumerate((BLUE, ORANGE)):
        axes.plot(steps, limits[:, k], color=color, marker=MARKERS[k])
        note(axes, steps[0], limits[0, k] * 1.6, f"$M^*$, sums\nin {SUMS[k]}", color=color, va="bottom")
    scale = results["trace"] / results["squared_norm"]
    axes.plot(steps, scale, color="black", linestyle=DASHED)
    note(axes, steps[-1], scale[-1] / 1.8, r"$\mathrm{tr}\,\Sigma/\Vert\bar g\Vert^2$", ha="right", va="top")
    panel(axes, "bfloat16 along a run", x="1 + step", y="batch size (windows)", log="xy", ylim=(1, 1e8))
