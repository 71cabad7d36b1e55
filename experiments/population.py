"""Even the full batch is a sample: over data sets and batches, M of N independent examples have variance Σ_P/M.

It splits into c_M (N−1)/N · Σ_P given the data set, which vanishes at M = N, and Σ_P/N of the data set, which no batch
removes. With replacement it is Σ_P (1/N + (N−1)/(NM)); augmenting every example anew adds W̄/M, full batch included.

Command    python -m experiments population
Run time   about 15 seconds on two cores
Expected   equal as rational numbers, for all 3⁵ data sets of a population of three values and all their batches; on
           digits, drawn variances within 4.5 standard errors at every batch size, and rejected where a term is left out

The digits are the population, and data sets of 100 are drawn from them. Augmentation moves a digit by one pixel to the
left, right, up or down, or leaves it.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, estimators, problems

MAX_Z = 4.5
VALUES = (0, 1, 5)  # of variance 14/3
DESIGNS = {"without": designs.WithoutReplacement, "with": designs.WithReplacement}
CURVES = ("without/total", "without/given", "with/total", "with/given", "augmented")
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    enumerated: int = 5
    """Size of the data sets that are enumerated."""
    data_set_size: int = 100
    """Size of the data sets that are drawn."""
    num_draws: int = 2000
    """How many data sets are drawn, each with one batch of every size and design."""
    hidden: int = 8
    """Width of the hidden layer."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(enumerated=3, data_set_size=30, num_draws=500, hidden=4)


def compute(config: Config) -> dict[str, np.ndarray]:
    """All data sets and batches of a small population; drawn ones of the digits; augmented batches of one data set."""
    weight_key, draw_key, data_key, augment_key = jax.random.split(jax.random.key(config.seed), 4)
    problem = problems.digits_mlp(key=weight_key, hidden=config.hidden)
    drawn = resample(problem, config, draw_key) | augment(problem, config, data_key, augment_key)
    exact = {f"exact/{name}": enumerate_all(design, config.enumerated) for name, design in DESIGNS.items()}
    return exact | drawn | {"num_draws": np.array(config.num_draws)}


def enumerate_all(design: Any, size: int) -> np.ndarray:
    """Mean, variance given the data and variance of the data, for M = 1..N: numerators and denominators, (N, 3, 2)."""
    found = [estimators.enumerate_data_sets(design(M), VALUES, size) for M in range(1, size + 1)]
    return np.array([[part.as_integer_ratio() for part in (f.mean, f.given_data, f.of_data)] for f in found])


def resample(problem: jaxsgd.Problem, config: Config, key: Array) -> dict[str, np.ndarray]:
    """Data sets of independent digits, batches of every size from each, and their laws."""
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    N, R = config.data_set_size, config.num_draws
    trace = float(g.squared_deviations().mean())
    errors = dict(zip(CURVES[:4], map(np.asarray, _data_sets(_rows(g), N, jax.random.split(key, R))), strict=True))
    factors = {name: [estimators.population_factors(d(M), N) for M in range(1, N + 1)] for name, d in DESIGNS.items()}
    laws = {f"{name}/total": np.array([f.total for f in each]) for name, each in factors.items()}
    laws |= {f"{name}/given": np.array([f.given_data for f in each]) for name, each in factors.items()}
    exact = estimators.squared_error_law(g, np.arange(1, N + 1), design="with_replacement")  # M independent examples
    found = {f"{name}/{what}": value for name in errors for what, value in summary(errors[name] / trace).items()}
    found |= {f"{name}/law": law for name, law in laws.items()}
    return found | {"without/total/error": np.sqrt(exact.variance / R) / trace, "trace_population": np.array(trace)}


def augment(problem: jaxsgd.Problem, config: Config, data_key: Array, key: Array) -> dict[str, np.ndarray]:
    """Batches of one data set, every example moved at random, and the two parts of their law."""
    N = config.data_set_size
    chosen = designs.WithoutReplacement(N).indices(data_key, len(problem.data["x"]))
    images, labels = problem.data["x"][chosen].reshape(N, 8, 8), problem.data["y"][chosen]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)))
    moved = jnp.stack([padded[:, 1 + i : 9 + i, 1 + j : 9 + j].reshape(N, 64) for i, j in SHIFTS], axis=1)
    data = {"x": moved.reshape(-1, 64), "y": jnp.repeat(labels, len(SHIFTS))}
    rows = _rows(jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, data)).reshape(N, len(SHIFTS), -1)
    means = rows.mean(axis=1)
    own = float(jnp.mean(jnp.sum((rows - means[:, None]) ** 2, axis=2)))
    between = float(jnp.mean(jnp.sum(means**2, axis=1)))
    c = np.array([float(designs.WithoutReplacement(M).variance_factor(N)) for M in range(1, N + 1)])
    noise = np.array([estimators.population_factors(designs.WithoutReplacement(M), N).total for M in range(1, N + 1)])
    errors = np.asarray(_augmented(rows, jax.random.split(key, config.num_draws)))
    found = {f"augmented/{what}": value for what, value in summary(errors / between).items()}
    return found | {"augmented/law": c + noise * own / between, "augmented/without_noise": c}


def summary(errors: np.ndarray) -> dict[str, np.ndarray]:
    """Mean squared errors over the draws, and their standard errors."""
    return {"drawn": errors.mean(axis=0), "error": errors.std(axis=0, ddof=1) / np.sqrt(len(errors))}


def _rows(g: jaxsgd.PerExampleGradients) -> Array:
    """g_i − ḡ, shape (n, P)."""
    leaves = [leaf.reshape(g.count, -1) for leaf in jax.tree.leaves(g.materialize())]
    rows = jnp.concatenate(leaves, axis=1)
    return rows - rows.mean(axis=0, keepdims=True)


def _prefix_means(rows: Array) -> Array:
    return jnp.cumsum(rows, axis=0) / jnp.arange(1.0, len(rows) + 1)[:, None]


@partial(jax.jit, static_argnums=1)
def _data_sets(rows: Array, size: int, keys: Array) -> tuple[Array, ...]:
    """‖ĝ − ḡ_P‖² and ‖ĝ − ḡ_data‖² of one data set for each key, shape (R, N): without, then with replacement."""

    def one(key: Array) -> tuple[Array, ...]:
        data_key, order_key, draws_key = jax.random.split(key, 3)
        data = rows[jax.random.randint(data_key, (size,), 0, len(rows))]
        orders = (jax.random.permutation(order_key, size), jax.random.randint(draws_key, (size,), 0, size))
        batches = [_prefix_means(data[order]) for order in orders]
        centers = (0.0, data.mean(axis=0, keepdims=True))
        return tuple(jnp.sum((batch - center) ** 2, axis=1) for batch in batches for center in centers)

    return jax.lax.map(one, keys)


@jax.jit
def _augmented(rows: Array, keys: Array) -> Array:
    """‖ĝ − ḡ‖² of batches of every size without replacement, each example in one of its versions, shape (R, N)."""

    def one(key: Array) -> Array:
        order_key, version_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(rows))
        versions = jax.random.randint(version_key, order.shape, 0, rows.shape[1])
        return jnp.sum(_prefix_means(rows[order, versions]) ** 2, axis=1)

    return jax.lax.map(one, keys)


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm the exact laws and the drawn variances, and reject each law with a term left out."""
    check_enumeration(results)
    findings: dict[str, Any] = {"num_draws": int(results["num_draws"])}
    for curve in CURVES:
        z = z_scores(results, curve, results[f"{curve}/law"])
        worst = int(np.argmax(np.abs(z)))
        findings[f"{curve}/worst_z"] = float(z[worst])
        require(abs(z[worst]) <= MAX_Z, f"{curve} is {z[worst]:.1f} standard errors off at M = {worst + 1}")
    N = len(results["without/given/law"])
    full = results["without/given/drawn"][-1]
    require(full < 1e-20, f"the full batch must be exact for its data set, got {full:.1e} tr Σ")
    M = np.arange(1, N + 1)
    wrong = {
        "without/total": ("variance given the data set as the total", results["without/given/law"]),
        "with/total": ("1/M with replacement", 1 / M),
        "augmented": ("no variance from augmentation", results["augmented/without_noise"]),
    }
    for curve, (name, law) in wrong.items():
        z = z_scores(results, curve, law)[N // 2 :].min()
        findings[f"weakest_rejection/{curve}"] = float(z)
        require(z > MAX_Z, f"{name} must be rejected at every M > N/2, got z = {z:.1f}")
    return findings | {
        "data_set_size": N,
        "enumerated": len(results["exact/with"]),
        "full_batch_total": float(results["without/total/drawn"][-1]),
        "full_batch_augmented": float(results["augmented/drawn"][-1]),
    }


def check_enumeration(results: dict[str, np.ndarray]) -> None:
    """The parts are the closed forms, as rational numbers."""
    variance, N = Fraction(14, 3), len(results["exact/with"])
    for name in DESIGNS:
        for M, row in enumerate(results[f"exact/{name}"], start=1):
            mean, given_data, of_data = (Fraction(int(a), int(b)) for a, b in row)
            factor = Fraction(N - M, M * (N - 1)) if name == "without" else Fraction(1, M)
            require(mean == 2, f"{name} replacement, M = {M}: the mean must be 2, got {mean}")
            if name == "without":
                require(given_data + of_data == variance / M, f"M = {M}: the total must be {variance / M}")
            law = factor * Fraction(N - 1, N) * variance
            require(given_data == law, f"{name} replacement, M = {M}: given the data must be {law}, got {given_data}")
            require(of_data == variance / N, f"{name} replacement, M = {M}: of the data must be {variance / N}")


def z_scores(results: dict[str, np.ndarray], curve: str, law: np.ndarray) -> np.ndarray:
    """Drawn minus stated variance in standard errors; 0 where both are 0 but for rounding."""
    difference, error = results[f"{curve}/drawn"] - law, results[f"{curve}/error"]
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 1e-15)


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    worst = max(abs(findings[f"{curve}/worst_z"]) for curve in CURVES)
    return (
        f"exact for all 3^{findings['enumerated']} data sets and batches; on digits the full batch of "
        f"{findings['data_set_size']} keeps {findings['full_batch_total']:.4f} tr Σ, worst deviation {worst:.1f} "
        "standard errors"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """The enumerated parts, drawn data sets of digits, augmented batches."""
    figure = page(ncols=3, height_to_width_ratio=0.95)
    exact, drawn, augmented = figure.subplots(1, 3)
    _draw_exact(exact, results)
    _draw_data_sets(drawn, results)
    _draw_augmented(augmented, results)
    return figure


def _draw_exact(axes: Any, results: dict[str, np.ndarray]) -> None:
    N = len(results["exact/with"])
    M = np.arange(1, N + 1)
    for name, offset, hatch in (("without", -0.2, None), ("with", 0.2, "/////")):
        parts = results[f"exact/{name}"][:, :, 0] / results[f"exact/{name}"][:, :, 1]
        style = {"width": 0.36, "edgecolor": "black", "linewidth": 0.5, "hatch": hatch}
        axes.bar(M + offset, parts[:, 2], color=COLORS[2], label=None if hatch else "of the data set", **style)
        label = f"given the data, {name} replacement"
        axes.bar(M + offset, parts[:, 1], bottom=parts[:, 2], color="white", label=label, **style)
    for m in M:
        axes.plot([m - 0.42, m + 0.42], [14 / 3 / m] * 2, color=COLORS[1], label=r"$\Sigma_P/M$" if m == 1 else None)
    axes.set(ylabel="variance (squared gradient)", title=f"all $3^{N}$ data sets of {N}", ylim=(0, 8), xticks=M)
    axes.set_xlabel("batch size $M$ (examples)")
    axes.legend(fontsize="small", loc="upper right")


def _draw_data_sets(axes: Any, results: dict[str, np.ndarray]) -> None:
    names = ("total, without replacement", "given the data, without", "total, with replacement", "given the data, with")
    for position, (curve, name) in enumerate(zip(CURVES, names, strict=False)):
        _draw_curve(axes, results, curve, name, filled=position < 2, part=position % 2)
    N = len(results["with/total/law"])
    axes.plot([1, N], [1 / N, 1], color="black", linewidth=0.8, linestyle=":", label="of the data set")
    axes.set(
        ylabel=r"$M\cdot$ variance $\div$ $\mathrm{tr}\,\Sigma_P$", title=f"data sets of {N} digits", ylim=(-0.05, 3.3)
    )
    axes.legend(fontsize="small", loc="upper left")


def _draw_augmented(axes: Any, results: dict[str, np.ndarray]) -> None:
    _draw_curve(
        axes, results, "augmented", r"moved by a pixel: $c_M\,\mathrm{tr}\,\Sigma+\bar W/M$", filled=True, part=0
    )
    law = results["augmented/without_noise"]
    M = np.arange(1, len(law) + 1)
    label = r"without $\bar W/M$"
    axes.plot(M, M * law, color="black", linestyle=(0, (3, 1.5)), label=label)
    axes.set(ylabel=r"$M\cdot$ variance $\div$ $\mathrm{tr}\,\Sigma$", title=f"augmented batches of {len(law)} digits")
    axes.set_ylim(-0.05, 2.2)
    axes.legend(fontsize="small", loc="upper right")


def _draw_curve(axes: Any, results: dict[str, Any], curve: str, label: str, *, filled: bool, part: int) -> None:
    law = results[f"{curve}/law"]
    M, color = np.arange(1, len(law) + 1), COLORS[part]
    start = 1 if filled else 1 + len(law) / 16  # so that no point hides another
    shown = np.unique(np.round(np.arange(start, len(law) + 1, max((len(law) - 1) / 8, 1))).astype(int)) - 1
    style = {"color": color, "linestyle": "-" if filled else (0, (3, 1.5))}
    face = color if filled else "white"
    axes.plot(M, M * law, **style)
    axes.errorbar(
        M[shown],
        (M * results[f"{curve}/drawn"])[shown],
        2 * (M * results[f"{curve}/error"])[shown],
        marker=MARKERS[part],
        markerfacecolor=face,
        markeredgewidth=0.7,
        elinewidth=0.7,
        color=color,
        linestyle="none",
        zorder=3,
    )
    axes.plot([], [], marker=MARKERS[part], markerfacecolor=face, label=label, **style)
    axes.set_xlabel("batch size $M$ (examples)")
