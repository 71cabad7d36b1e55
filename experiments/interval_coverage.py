"""The interval of the noise scale, asked for 95 %, holds B in 90 % of batches from 8 examples on, or says why not.

Of normal gradients, of t with 8 degrees of freedom and of Laplace's law with Σ = I it holds B in 93 % or more; of
normal ones whose variances fall as 1/k, with the mean along the largest, in 90 %. Where the norms are lognormal, so
that a few examples carry tr Σ, it holds B less often, and tells so: the hundredth part of the examples has more than
0.1 + 3/m of it.

Command    python -m experiments interval_coverage
Run time   about a minute on two cores
Expected   the coverage of "score" no more than three standard errors below what is said above at every m from 8 on
           and B from m/5 to 5m, that of the jackknife and of Fieller's interval with estimated variances below it; a
           warning for lognormal norms in most batches from m = 64 on, and for normal ones in none

Batches of independent gradients are drawn from laws with a known noise scale.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded
from experiments._panels import DASHED, mark, note, page_of, panel, reference, series

LEVEL, FLAT, STEEP = 0.95, 0.93, 0.90
INTERVALS = ("score", "fieller", "jackknife")
RATIOS = (0.2, 1.0, 5.0)  # B/m
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "normal": lambda _, shape: np.ones(shape),
    "t8": lambda r, shape: np.sqrt(6 / r.chisquare(8, shape)),
    "Laplace": lambda r, shape: np.sqrt(r.exponential(size=shape)),
    "steep": lambda _, shape: np.ones(shape),
    "lognormal": lambda r, shape: np.exp(r.normal(size=shape) - 1),  # so that the mean of its square is 1
}


class Config(Seeded):
    """Settings of the experiment."""

    dimension: int = 20
    """Parameters of the model."""
    num_batches: int = 1000
    """How many batches of each law are drawn."""
    max_size: int = 256
    """The largest batch; the others are 4, 8, 16, 64."""


QUICK = Config(num_batches=300, max_size=64)
SUMMARY = (
    "intervals of {level:.0%} hold B in {flat:.1%} of the batches or more where Σ = I, in {steep:.1%} where variances "
    "fall; of lognormal norms, in {lognormal:.1%}, and a warning comes in {told:.0%}"
)


def compute(config: Config) -> Arrays:
    """Shares of batches, of shape (laws, ratios, sizes)."""
    rng = np.random.default_rng(config.seed)
    sizes = [*(m for m in (4, 8, 16, 64) if m < config.max_size), config.max_size]
    shape = (len(LAWS), len(RATIOS), len(sizes))
    held = {name: np.zeros(shape) for name in INTERVALS}
    told = np.zeros(shape)
    for i, law in enumerate(LAWS):
        for j, ratio in enumerate(RATIOS):
            for k, m in enumerate(sizes):
                rows = gradients(rng, law, ratio * m, (config.num_batches, m, config.dimension))
                low, high, share = (np.asarray(found) for found in _intervals(rows))
                for name, lower, upper in zip(INTERVALS, low.T, high.T, strict=True):
                    held[name][i, j, k] = np.mean((lower <= ratio * m) & (upper >= ratio * m))
                told[i, j, k] = np.mean(share > 0.1 + 3 / m)
    return held | {"told": told, "sizes": sizes, "num_batches": config.num_batches}


def gradients(rng: np.random.Generator, law: str, B: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Batches from a law with noise scale B."""
    P = shape[-1]
    variances = 1 / np.arange(1, P + 1) if law == "steep" else np.ones(P)
    direction = np.eye(P)[0] if law == "steep" else np.full(P, P**-0.5)
    noise = LAWS[law](rng, shape[:2])[..., None] * rng.normal(size=shape)
    return noise * np.sqrt(variances) + direction * np.sqrt(variances.sum() / B)


@jax.jit
def _intervals(rows: Array) -> tuple[Array, Array, Array]:
    """Ends of the intervals, and the share of the largest examples."""

    def one(batch: Array) -> tuple[Array, Array, Array]:
        g = jaxsgd.per_example_gradients(lambda params, row: row @ params)(batch[0], batch)
        each = [jaxsgd.noise_scale(g, confidence_level=LEVEL, interval=name) for name in INTERVALS]  # type: ignore[arg-type]
        low, high = (jax.numpy.stack([getattr(found, end) for found in each]) for end in ("low", "high"))
        return low, high, each[0].largest_share

    return jax.lax.map(one, rows)


def check(results: Arrays) -> Claims:
    """Confirm coverage and warnings; refute that the other intervals cover as well, and that nobody need be warned."""
    names, score, enough = list(LAWS), results["score"], np.asarray(results["sizes"]) >= 8
    sizes, R = np.asarray(results["sizes"]), int(results["num_batches"])
    claims = Claims(level=LEVEL, batch_sizes=sizes.tolist(), num_batches=R)
    flat, steep, heavy = score[:3][..., enough], score[names.index("steep")][..., enough], names.index("lognormal")
    for found, stated, name in ((flat, FLAT, "flat"), (steep, STEEP, "steep")):
        allowed = stated - 3 * (stated * (1 - stated) / R) ** 0.5
        message = f"intervals must hold B in {stated:.0%} of the batches, got {{:.3f}} of the {name} ones"
        claims.above(found, allowed, message, enter=name)
    least = float(score[heavy][..., enough].min())
    claims.below(least, FLAT, "of lognormal norms B must be held less often, got {:.3f}", enter="lognormal")
    told = results["told"]
    claims.above(
        told[heavy][:, sizes >= 64], 0.6, "lognormal norms must be told in most batches, got {:.2f}", enter="told"
    )
    claims.below(told[0][:, enough], 0.01, "normal ones must not be told, got {:.3f}", enter="false_alarms")
    for name in INTERVALS[1:]:
        least = float(results[name][:3][..., enough].min())
        claims.below(
            least, FLAT - 0.03, f"the interval {name} must hold B less often, got {{:.3f}}", enter=f"{name}.flat"
        )
    return claims


def draw(results: Arrays) -> Figure:
    """Laws with Σ = I; the worst of each interval; heavy tails and the warning."""
    return page_of(results, _draw_laws, _draw_intervals, _draw_heavy, ratio=0.95)


def _draw_laws(axes: Any, results: Arrays) -> None:
    worst = results["score"].min(axis=1)
    labels = {"normal": "normal", "t8": "$t_8$", "Laplace": "Laplace", "steep": "normal, variances $1/k$"}
    series(axes, results["sizes"], {label: worst[list(LAWS).index(name)] for name, label in labels.items()})
    _finish(axes, results, "least over $B$ from $m/5$ to $5m$", low=0.8)
    for stated, of in ((FLAT, r"stated, $\Sigma = I$"), (STEEP, "stated, $1/k$")):
        reference(axes, y=stated, linestyle="-", linewidth=0.4)
        note(axes, 256, stated - 0.004, of, va="top", ha="right", color="gray")


def _draw_intervals(axes: Any, results: Arrays) -> None:
    series(axes, results["sizes"], {name: results[name][:3].min(axis=(0, 1)) for name in INTERVALS})
    _finish(axes, results, r"least over laws with $\Sigma = I$", low=0.0, legend="lower left")


def _draw_heavy(axes: Any, results: Arrays) -> None:
    at = list(LAWS).index("lognormal")
    axes.plot(results["sizes"], results["score"][at].min(axis=0), **mark(0), label="hold $B$")
    axes.plot(results["sizes"], results["told"][at].min(axis=0), **mark(1, line=DASHED, hollow=True), label="are told")
    _finish(axes, results, "lognormal norms", low=0.0)


def _finish(axes: Any, results: Arrays, title: str, low: float, legend: str = "lower right") -> None:
    reference(axes, y=LEVEL)
    sizes = [int(m) for m in results["sizes"]]
    ticks = {"xticks": sizes, "xticklabels": sizes, "ylim": (low, 1.01)}
    panel(axes, title, x="examples $m$", y="share of the batches", log="x", legend=legend, **ticks)
    axes.minorticks_off()
