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

from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded
from experiments._panels import DASHED, ORANGE, SKY, mark, page_of, panel
from jaxsgd import designs, estimators, problems

VALUES = (0, 1, 5)  # of variance 14/3
DESIGNS = {"without": designs.WithoutReplacement, "with": designs.WithReplacement}
CURVES = ("without/total", "without/given", "with/total", "with/given", "augmented")
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
BATCH_SIZE = "batch size $M$ (examples)"


class Config(Seeded):
    """Settings of the experiment."""

    enumerated: int = 5
    """Size of the data sets that are enumerated."""
    data_set_size: int = 100
    """Size of the data sets that are drawn."""
    num_draws: int = 2000
    """How many data sets are drawn, each with one batch of every size and design."""
    hidden: int = 8
    """Width of the hidden layer."""


QUICK = Config(enumerated=3, data_set_size=30, num_draws=500, hidden=4)
SUMMARY = (
    "exact for all 3^{enumerated} data sets and batches; on digits the full batch of {data_set_size} keeps "
    "{full_batch_total:.4f} tr Σ, worst deviation {worst_z:.1f} standard errors"
)


def compute(config: Config) -> Arrays:
    """All data sets and batches of a small population; drawn ones of the digits; augmented batches of one data set."""
    weight_key, draw_key, data_key, augment_key = jax.random.split(config.key(), 4)
    problem = problems.digits_mlp(key=weight_key, hidden=config.hidden)
    drawn = resample(problem, config, draw_key) | augment(problem, config, data_key, augment_key)
    exact = {f"exact/{name}": enumerate_all(design, config.enumerated) for name, design in DESIGNS.items()}
    return exact | drawn | {"num_draws": config.num_draws}


def enumerate_all(design: Any, size: int) -> np.ndarray:
    """Mean, variance given the data and variance of the data, for M = 1..N: numerators and denominators, (N, 3, 2)."""
    found = [estimators.enumerate_data_sets(design(M), VALUES, size) for M in range(1, size + 1)]
    return np.array([[part.as_integer_ratio() for part in (f.mean, f.given_data, f.of_data)] for f in found])


def resample(problem: jaxsgd.Problem, config: Config, key: Array) -> dict[str, Any]:
    """Data sets of independent digits, batches of every size from each, and their laws."""
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    N, R = config.data_set_size, config.num_draws
    trace = float(g.squared_deviations().mean())
    errors = _data_sets(_rows(g), N, jax.random.split(key, R))
    found: dict[str, Any] = {"trace_population": trace}
    for curve, drawn in zip(CURVES, errors, strict=False):
        found |= summary(curve, np.asarray(drawn) / trace)
    for name, design in DESIGNS.items():
        factors = [estimators.population_factors(design(M), N) for M in range(1, N + 1)]
        found[f"{name}/total/law"] = [f.total for f in factors]
        found[f"{name}/given/law"] = [f.given_data for f in factors]
    exact = estimators.squared_error_law(g, np.arange(1, N + 1), design="with_replacement")  # M independent examples
    return found | {"without/total/error": np.sqrt(exact.variance / R) / trace}


def augment(problem: jaxsgd.Problem, config: Config, data_key: Array, key: Array) -> dict[str, Any]:
    """Batches of one data set, every example moved at random, and the two parts of their law."""
    N = config.data_set_size
    chosen = problem.take(designs.WithoutReplacement(N).indices(data_key, len(problem.data["x"]))).data
    padded = jnp.pad(chosen["x"].reshape(N, 8, 8), ((0, 0), (1, 1), (1, 1)))
    moved = jnp.stack([padded[:, 1 + i : 9 + i, 1 + j : 9 + j].reshape(N, 64) for i, j in SHIFTS], axis=1)
    data = {"x": moved.reshape(-1, 64), "y": jnp.repeat(chosen["y"], len(SHIFTS))}
    rows = _rows(jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, data)).reshape(N, len(SHIFTS), -1)
    means = rows.mean(axis=1)
    own = float(jnp.mean(jnp.sum((rows - means[:, None]) ** 2, axis=2)))
    between = float(jnp.mean(jnp.sum(means**2, axis=1)))
    laws = [designs.WithoutReplacement(M) for M in range(1, N + 1)]
    c = np.array([float(law.variance_factor(N)) for law in laws])
    noise = np.array([estimators.population_factors(law, N).total for law in laws])
    errors = np.asarray(_augmented(rows, jax.random.split(key, config.num_draws))) / between
    return summary("augmented", errors) | {"augmented/law": c + noise * own / between, "augmented/without_noise": c}


def summary(curve: str, errors: np.ndarray) -> Arrays:
    """Mean squared errors over the draws, and their standard errors."""
    error = errors.std(axis=0, ddof=1) / np.sqrt(len(errors))
    return {f"{curve}/drawn": errors.mean(axis=0), f"{curve}/error": error}


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


def check(results: Arrays) -> Claims:
    """Confirm the exact laws and the drawn variances, and reject each law with a term left out."""
    N, enumerated = len(results["without/given/law"]), len(results["exact/with"])
    claims = Claims(num_draws=results["num_draws"], data_set_size=N, enumerated=enumerated)
    check_enumeration(claims, results)
    M = np.arange(1, N + 1)

    def z_scores(curve: str, law: np.ndarray) -> np.ndarray:
        """Drawn minus stated variance in standard errors; 0 where both are 0 but for rounding."""
        difference, error = results[f"{curve}/drawn"] - law, results[f"{curve}/error"]
        return np.divide(difference, error, out=np.zeros_like(difference), where=error > 1e-15)

    for curve in CURVES:
        claims.agree(z_scores(curve, results[f"{curve}/law"]), f"{curve} is", enter=f"{curve}/worst_z", M=M)
    claims["worst_z"] = max(abs(claims[f"{curve}/worst_z"]) for curve in CURVES)
    full = results["without/given/drawn"][-1]
    claims.below(full, 1e-20, "the full batch must be exact for its data set, got {:.1e} tr Σ")
    wrong = {
        "without/total": ("variance given the data set as the total", results["without/given/law"]),
        "with/total": ("1/M with replacement", 1 / M),
        "augmented": ("no variance from augmentation", results["augmented/without_noise"]),
    }
    for curve, (what, law) in wrong.items():
        claims.reject(z_scores(curve, law)[N // 2 :], what, enter=f"weakest_rejection/{curve}")
    for curve, name in (("without/total", "total"), ("augmented", "augmented")):
        claims[f"full_batch_{name}"] = results[f"{curve}/drawn"][-1]
    return claims


def check_enumeration(claims: Claims, results: Arrays) -> None:
    """The parts are the closed forms, as rational numbers."""
    variance, N = Fraction(14, 3), len(results["exact/with"])
    for name in DESIGNS:
        for M, row in enumerate(results[f"exact/{name}"], start=1):
            mean, given_data, of_data = (Fraction(int(a), int(b)) for a, b in row)
            factor = Fraction(N - M, M * (N - 1)) if name == "without" else Fraction(1, M)
            here, law = f"{name} replacement, M = {M}:", factor * Fraction(N - 1, N) * variance
            claims.require(mean == 2, f"{here} the mean must be 2, got {mean}")
            if name == "without":
                claims.require(given_data + of_data == variance / M, f"M = {M}: the total must be {variance / M}")
            claims.require(given_data == law, f"{here} given the data must be {law}, got {given_data}")
            claims.require(of_data == variance / N, f"{here} of the data must be {variance / N}")


def draw(results: Arrays) -> Figure:
    """The enumerated parts, drawn data sets of digits, augmented batches."""
    return page_of(results, _draw_exact, _draw_data_sets, _draw_augmented, ratio=0.95)


def _draw_exact(axes: Any, results: Arrays) -> None:
    N = len(results["exact/with"])
    M = np.arange(1, N + 1)
    for name, offset, hatch in (("without", -0.2, None), ("with", 0.2, "/////")):
        parts = results[f"exact/{name}"][:, :, 0] / results[f"exact/{name}"][:, :, 1]
        style = {"width": 0.36, "edgecolor": "black", "linewidth": 0.5, "hatch": hatch}
        axes.bar(M + offset, parts[:, 2], color=SKY, label=None if hatch else "of the data set", **style)
        label = f"given the data, {name} replacement"
        axes.bar(M + offset, parts[:, 1], bottom=parts[:, 2], color="white", label=label, **style)
    for m in M:
        axes.plot([m - 0.42, m + 0.42], [14 / 3 / m] * 2, color=ORANGE, label=r"$\Sigma_P/M$" if m == 1 else None)
    title, shown = f"all $3^{N}$ data sets of {N}", {"ylim": (0, 8), "xticks": M}
    panel(axes, title, x=BATCH_SIZE, y="variance (squared gradient)", legend="upper right", **shown)


def _draw_data_sets(axes: Any, results: Arrays) -> None:
    names = ("total, without replacement", "given the data, without", "total, with replacement", "given the data, with")
    for place, (curve, name) in enumerate(zip(CURVES, names, strict=False)):
        _draw_curve(axes, results, curve, name, filled=place < 2, part=place % 2)
    N = len(results["with/total/law"])
    axes.plot([1, N], [1 / N, 1], color="black", linewidth=0.8, linestyle=":", label="of the data set")
    ratio = r"$M\cdot$ variance $\div$ $\mathrm{tr}\,\Sigma_P$"
    panel(axes, f"data sets of {N} digits", x=BATCH_SIZE, y=ratio, ylim=(-0.05, 3.3), legend="upper left")


def _draw_augmented(axes: Any, results: Arrays) -> None:
    label = r"moved by a pixel: $c_M\,\mathrm{tr}\,\Sigma+\bar W/M$"
    _draw_curve(axes, results, "augmented", label, filled=True, part=0)
    law = results["augmented/without_noise"]
    M = np.arange(1, len(law) + 1)
    axes.plot(M, M * law, color="black", linestyle=DASHED, label=r"without $\bar W/M$")
    title, ratio = f"augmented batches of {len(law)} digits", r"$M\cdot$ variance $\div$ $\mathrm{tr}\,\Sigma$"
    panel(axes, title, x=BATCH_SIZE, y=ratio, ylim=(-0.05, 2.2), legend="upper right")


def _draw_curve(axes: Any, results: Arrays, curve: str, label: str, *, filled: bool, part: int) -> None:
    law, drawn, error = (results[f"{curve}/{what}"] for what in ("law", "drawn", "error"))
    M, style = np.arange(1, len(law) + 1), mark(part, line="-" if filled else DASHED)
    start = 1 if filled else 1 + len(law) / 16  # so that no point hides another
    shown = np.unique(np.round(np.arange(start, len(law) + 1, max((len(law) - 1) / 8, 1))).astype(int)) - 1
    face = {"markerfacecolor": style["color"] if filled else "white"}
    points = mark(part, line="none") | face | {"markeredgewidth": 0.7, "elinewidth": 0.7, "zorder": 3}
    axes.plot(M, M * law, **style | {"marker": ""})
    axes.errorbar(M[shown], (M * drawn)[shown], 2 * (M * error)[shown], **points)
    axes.plot([], [], **style | face, label=label)
