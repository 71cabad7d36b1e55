"""The gradient of the mean loss is the mean of the per-example gradients, to rounding, for any model.

Programs that differentiate the mean, average the gradients, or loop over examples differ by rounding, which is at most
N u for a sum one by one and u log₂ N for a sum in pairs. What differs by more is another loss or another θ: the loss of
the mean residual, steps taken one after another, 2x + 3x for 2x + 3x², a batch sum where a mean is meant.

Command    python -m experiments gradient_of_mean
Run time   about 15 seconds on two cores
Expected   agreement within 200 u Σ|g_i|/N in float32 and float64; rounding errors within both bounds up to N = 10⁶, and
           those of a sum one by one beyond the bound in pairs; −13, −29/3, −77/9, −8 for the square of the mean
           residual; steps one after another off by 12η² + 504η³ in m and 168η³ in b

Errors are in units of Σ|g_i|/N, coordinate by coordinate: ḡ itself may vanish. The reference of a sum of floats is
``math.fsum``, which rounds once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import require
from experiments._harness import progress
from experiments._models import mean_loss
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, estimators, problems

Model = Literal["line", "sigmoid", "tanh", "relu"]

DTYPES = ("float32", "float64")
TOLERANCE = 200  # in units in the last place, u
SUMS = ("one by one", "pairwise", "XLA's mean")
MODELS: tuple[Model, ...] = ("line", "sigmoid", "tanh", "relu")
PROGRAMS = ("mean of gradients", "Python loop", "jaxsgd", "by hand")


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    max_examples: int = 1_000_000
    """The longest sums."""
    num_sizes: int = 12
    """How many lengths of sums."""
    batch: int = 500
    """Examples in the comparison of programs."""
    hidden: int = 8
    """Width of the networks' hidden layer."""
    models: tuple[Model, ...] = MODELS
    """The line fit, and networks by their activation."""
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(max_examples=100_000, num_sizes=4, batch=50, hidden=3, models=("line", "relu"))


def compute(config: Config) -> dict[str, np.ndarray]:
    """Programs for the same gradient, rounding errors of sums, and what is not the same gradient."""
    return compare_programs(config) | rounding_errors(config) | impostors()


def compare_programs(config: Config) -> dict[str, np.ndarray]:
    """Largest distance of each program from the gradient of the mean loss; NaN where there is no such program."""
    distances = np.full((len(DTYPES), len(config.models), len(PROGRAMS)), np.nan)
    cases = [(d, m) for d in range(len(DTYPES)) for m in range(len(config.models))]
    for d, m in progress(cases, "programs"):
        loss_fn, params, data = _cast(model(config.models[m], config), DTYPES[d])
        gradients, mean = jax.jit(_gradients_and_mean, static_argnums=0)(loss_fn, params, data)
        scale = jax.tree.map(lambda leaf: np.abs(np.asarray(leaf, np.float64)).mean(axis=0), gradients)
        reference = jax.jit(jax.grad(mean_loss(loss_fn)))(params, data)
        found = {
            "mean of gradients": mean,
            "Python loop": loop(loss_fn, params, data),
            "jaxsgd": jaxsgd.per_example_gradients(loss_fn)(params, data).mean(),
        }
        if config.models[m] == "line":
            found["by hand"] = by_hand(params, data)
        for name, mean in found.items():
            distances[d, m, PROGRAMS.index(name)] = max(
                float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b)) / np.where(s > 0, s, 1)))
                for a, b, s in zip(*map(jax.tree.leaves, (mean, reference, scale)), strict=True)
            )
    return {"programs": distances, "models": np.array([MODELS.index(name) for name in config.models])}


def model(name: str, config: Config) -> jaxsgd.Problem:
    """A line through points of a noisy parabola, or a network on some of the digits, in float64."""
    if name == "line":
        x = np.random.default_rng(config.seed).normal(1, 1, config.batch)
        data = {"x": jnp.asarray(x), "y": jnp.asarray(1 + x**2)}
        return problems.line_fit()._replace(data=data)
    problem = problems.digits_mlp(key=jax.random.key(config.seed), hidden=config.hidden, activation=name)
    return problem._replace(data=jax.tree.map(lambda leaf: leaf[: config.batch], problem.data))


def _gradients_and_mean(loss_fn: Any, params: Any, data: Any) -> tuple[Any, Any]:
    gradients = jax.vmap(jax.grad(loss_fn), (None, 0))(params, data)
    return gradients, jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)


def loop(loss_fn: Any, params: Any, data: Any) -> Any:
    """One gradient after another, added up in NumPy."""
    gradient, total = jax.jit(jax.grad(loss_fn)), jax.tree.map(np.zeros_like, params)
    data = jax.tree.map(np.asarray, data)
    count = len(jax.tree.leaves(data)[0])
    for i in range(count):
        total = jax.tree.map(
            lambda t, g: t + np.asarray(g), total, gradient(params, {k: v[i] for k, v in data.items()})
        )
    return jax.tree.map(lambda t: t / t.dtype.type(count), total)


def by_hand(params: Any, data: Any) -> Any:
    """−(2/N) Σ x (y − mx − b) and −(2/N) Σ (y − mx − b)."""
    x, y, m, b = map(np.asarray, (data["x"], data["y"], params["m"], params["b"]))
    return {"m": -2 * np.mean(x * (y - m * x - b)), "b": -2 * np.mean(y - m * x - b)}


def rounding_errors(config: Config) -> dict[str, np.ndarray]:
    """Errors of three ways to average the same per-example gradients of the line, (dtype, sum, N), over Σ|g_i|/N."""
    rng = np.random.default_rng(config.seed)
    x = rng.normal(1, 1, config.max_examples)
    rows = 2 * np.stack([x, np.ones_like(x)]) * (x + rng.exponential(1, len(x)))
    sizes = np.unique(np.round(np.geomspace(4, config.max_examples, config.num_sizes)).astype(int))
    errors = np.zeros((len(DTYPES), len(SUMS), len(sizes)))
    for d, dtype in enumerate(DTYPES):
        cast = rows.astype(dtype)
        running = np.add.accumulate(cast, axis=1)
        for n, N in enumerate(progress(sizes, dtype)):
            means = (
                running[:, N - 1] / cast.dtype.type(N),
                pairwise(cast[:, :N]),
                jnp.asarray(cast[:, :N]).mean(axis=1),
            )
            errors[d, :, n] = np.max(
                [errors_of(row, np.array(means)[:, k]) for k, row in enumerate(cast[:, :N])], axis=0
            )
    return {"sizes": sizes, "rounding": errors, "unit": np.array([np.finfo(dtype).eps / 2 for dtype in DTYPES])}


def pairwise(rows: np.ndarray) -> np.ndarray:
    """The mean of every row, summed in pairs, pairs of pairs and so on."""
    count, width = rows.shape[1], 1 << max(rows.shape[1] - 1, 0).bit_length()
    rows = np.pad(rows, ((0, 0), (0, width - count)))
    while rows.shape[1] > 1:
        rows = rows[:, ::2] + rows[:, 1::2]
    return rows[:, 0] / rows.dtype.type(count)


def errors_of(values: np.ndarray, means: np.ndarray) -> np.ndarray:
    """|mean − exact mean| / mean |value|, the sums of the numbers as stored being exact."""
    total, scale = Fraction(math.fsum(values.tolist())), Fraction(math.fsum(np.abs(values).tolist()))
    return np.array([float(abs(Fraction(float(mean)) * len(values) - total) / scale) for mean in means])


def impostors() -> dict[str, np.ndarray]:
    """Gradients of other losses, at other θ, of other functions, and of another size; all with exact answers."""
    squares = [
        estimators.batch_loss_gradient(_square_of_mean, jnp.zeros(()), RESIDUAL_DATA, design) for design in DRAWS
    ]
    line = problems.line_fit()
    g = jaxsgd.per_example_gradients(line.loss_fn)(line.params, line.data)
    scales = ("mean", "sum", "total")
    rows = np.asarray(g.materialize()["m"])
    expected = [[designs.WithoutReplacement(M, scale=scale).mean_weights(4) @ rows for M in SIZES] for scale in scales]
    gradient = jax.jit(jax.grad(mean_loss(line.loss_fn)))
    rates = 1 / 20 / 2.0 ** np.arange(8)
    points = np.linspace(-1, 2, 25)
    slopes = np.stack([jax.vmap(jax.grad(lambda x: x**2 + x**3))(jnp.asarray(points)), 2 * points + 3 * points])
    return {
        "mean_residual": np.array([float(each.mean) for each in squares]),
        "mean_residual/additive": np.asarray(jax.grad(mean_loss(_square))(jnp.zeros(()), RESIDUAL_DATA)),
        "rates": rates,
        "sequential": np.array([_gap(gradient, rate, line) for rate in rates]),
        "points": points,
        "slopes": slopes,
        "scales": np.array(expected, float),
    }


SIZES = (1, 2, 3, 4)
DRAWS = tuple(designs.WithoutReplacement(M) for M in SIZES)
RESIDUAL_DATA = {"x": np.array([0.0, 1.0, 3.0, 4.0]), "y": np.array([1.0, 0.0, 2.0, 5.0])}


def _square(theta: Any, example: Any) -> Any:
    return (example["y"] - theta * example["x"]) ** 2


def _square_of_mean(theta: Any, batch: Any) -> Any:
    return jnp.mean(batch["y"] - theta * batch["x"]) ** 2


def _gap(gradient: Any, rate: float, line: jaxsgd.Problem) -> list[float]:
    """Where four steps end, one for each example, minus where one step with the sum of the four ends: (m, b)."""
    params = line.params
    for i in range(4):
        params = _step(params, gradient(params, {k: v[i : i + 1] for k, v in line.data.items()}), rate)
    together = _step(line.params, gradient(line.params, line.data), 4 * rate)
    return [float(params[name] - together[name]) for name in ("m", "b")]


def _step(params: Any, gradient: Any, rate: float) -> Any:
    return jax.tree.map(lambda p, g: np.asarray(p) - rate * np.asarray(g), params, gradient)


def _cast(problem: jaxsgd.Problem, dtype: str) -> jaxsgd.Problem:
    def cast(leaf: Any) -> Any:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(np.asarray(leaf, dtype)) if floating else leaf

    return jaxsgd.Problem(problem.loss_fn, jax.tree.map(cast, problem.params), jax.tree.map(cast, problem.data))


def bounds(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """γ_k = ku/(1 − ku) for k roundings of an addend: N one by one, ⌈log₂ N⌉ + 1 in pairs, the division included."""
    N, u = results["sizes"], results["unit"][:, None]
    deep = np.ceil(np.log2(N)) + 1
    return {"one by one": N * u / (1 - N * u), "pairwise": deep * u / (1 - deep * u)}


def gaps(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far steps one after another end from one step with their sum, in m and in b.

    To first order a step i before a step j adds η² H_j g_i. In b these cancel for the order and the θ chosen here.
    """
    return 12 * rates**2 + 504 * rates**3, 168 * rates**3


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm that the programs agree to rounding, within its bounds, and that each impostor differs as it should."""
    findings: dict[str, Any] = {}
    for dtype, unit, distances in zip(DTYPES, results["unit"], results["programs"], strict=True):
        worst = float(np.nanmax(distances))
        findings[f"{dtype}/programs"] = worst
        require(worst < TOLERANCE * unit, f"programs differ by {worst:.1e} Σ|g|/N in {dtype}")
    missing = np.isnan(results["programs"]).sum(axis=(0, 1)).tolist()
    networks = int(np.sum(results["models"] != MODELS.index("line")))
    require(missing == [0, 0, 0, 2 * networks], f"all programs must have been run: {missing} results are missing")
    return findings | check_rounding(results) | check_impostors(results)


def check_rounding(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Both bounds hold; the pairwise one, and equality, do not hold for a sum one by one."""
    limit, errors = bounds(results), results["rounding"]
    for s, (name, bound) in enumerate(zip(SUMS, ("one by one", "pairwise", "one by one"), strict=True)):
        excess = float(np.max(errors[:, s] / limit[bound]))
        require(excess <= 1, f"the rounding error of the sum {name} is {excess:.1f} times its bound")
    require(np.all(np.any(errors[:, 0] != errors[:, 1], axis=1)), "equality of two orders bit by bit must be rejected")
    control = errors[:, 0, -1] / limit["pairwise"][:, -1]
    require(np.all(control > 1), f"the pairwise bound must be rejected for a sum one by one, got {control} of it")
    return {"one_by_one/pairwise_bound": control.tolist(), "rounding": errors[:, :, -1].tolist()}


def check_impostors(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Each differs from the gradient of the mean loss, by the numbers worked out by hand."""
    found = results["mean_residual"]
    law = np.array([-13, -29 / 3, -77 / 9, -8])
    require(np.allclose(found, law, rtol=0, atol=1e-12), f"the mean residual must have gradients {law}, got {found}")
    additive = float(results["mean_residual/additive"])
    require(abs(additive + 13) < 1e-12, f"the mean of squares must have the gradient −13, got {additive}")
    gap, (in_m, in_b) = results["sequential"], gaps(results["rates"])
    require(np.all(gap > 1e-10), "that sequential steps end at the same place must be rejected")
    require(
        np.allclose(gap[0], [0.093, 0.021], rtol=0, atol=1e-14),
        f"the gap at η = 1/20 must be 93/1000, 21/1000: {gap[0]}",
    )
    require(np.allclose(gap.T, [in_m, in_b], rtol=0, atol=1e-14), "the gap must be 12η² + 504η³ in m and 168η³ in b")
    right, wrong = results["slopes"]
    same = results["points"][np.isclose(right, wrong, rtol=0, atol=1e-12)]
    require(np.array_equal(same, [0, 1]), f"2x + 3x must equal the derivative at 0 and 1 only, got {same}")
    require(np.isclose(wrong[-1], 10) and np.isclose(right[-1], 16), "at x = 2 the two must be 10 and 16")
    scales = {"mean": [-1] * 4, "sum": [-1, -2, -3, -4], "total": [-4] * 4}
    for (name, law_of_scale), expected in zip(scales.items(), results["scales"], strict=True):
        require(
            np.allclose(expected, law_of_scale, rtol=0, atol=1e-12), f"the batch {name} must have means {law_of_scale}"
        )
    return {"mean_residual": found.tolist(), "gap_at_1/20": gap[0].tolist(), "agree_at": same.tolist()}


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    times, (single, double) = findings["one_by_one/pairwise_bound"][0], (findings[f"{d}/programs"] for d in DTYPES)
    return (
        f"programs agree to {single:.0e} Σ|g|/N in float32 and {double:.0e} in float64; a sum one by one has "
        f"{times:.0f} times the pairwise bound in float32"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Programs and roundings above, impostors below."""
    figure = page(nrows=2, ncols=3, height_to_width_ratio=0.8)
    panels = figure.subplots(2, 3)
    for axes, panel in zip(panels.flat, _panels(), strict=True):
        panel(axes, results)
    return figure


def _panels() -> Iterator[Callable[[Any, dict[str, np.ndarray]], None]]:
    yield from (_draw_programs, _draw_rounding, _draw_sequential, _draw_mean_residual, _draw_scales, _draw_slopes)


def _draw_programs(axes: Any, results: dict[str, np.ndarray]) -> None:
    markers, models = (*MARKERS, "D"), [MODELS[m] for m in results["models"]]
    for d, dtype in enumerate(DTYPES):
        for p, name in enumerate(PROGRAMS):
            places = np.arange(len(models)) + 0.14 * (p - 1.5)
            values = np.maximum(results["programs"][d, :, p], 1e-18)
            style = {"color": (*COLORS, "black")[p], "marker": markers[p], "linestyle": "none"}
            axes.plot(places, values, label=name if d == 0 else None, **style)
        axes.axhline(results["unit"][d], color="black", linewidth=0.7, linestyle=":")
        axes.text(len(models) - 0.5, results["unit"][d] / 2, f"$u$ of {dtype}", fontsize="small", ha="right", va="top")
    axes.text(0.3, 1e-18, "equal", fontsize="small", va="center")
    axes.set(
        yscale="log", ylim=(3e-19, 3e1), ylabel=r"distance $\div$ $\Sigma|g_i|/N$", title="programs for one gradient"
    )
    axes.set_xticks(np.arange(len(models)), models)
    axes.legend(fontsize="small", ncols=2, columnspacing=0.8, loc="upper center", handlelength=1)


def _draw_rounding(axes: Any, results: dict[str, np.ndarray]) -> None:
    limits, N = bounds(results), results["sizes"]
    for s, name in enumerate(SUMS):
        axes.plot(N, results["rounding"][0, s], color=COLORS[s], marker=MARKERS[s], linestyle="none", label=name)
        if name in limits:
            axes.plot(N, limits[name][0], color=COLORS[s], linestyle="-" if s else (0, (3, 1.5)))
    axes.text(N[-1], limits["one by one"][0, -1], r"$\gamma_N$", ha="right", va="bottom", color=COLORS[0])
    axes.text(N[-1], 4e-7, r"$\gamma_{\log_2 N}$", ha="right", va="center", color=COLORS[1])
    axes.set(xscale="log", yscale="log", xlabel="examples $N$", ylabel=r"rounding error $\div$ $\Sigma|g_i|/N$")
    axes.set(title="sums in float32", ylim=(1e-9, 30))
    axes.legend(fontsize="small", loc="upper left")


def _draw_sequential(axes: Any, results: dict[str, np.ndarray]) -> None:
    rates = results["rates"]
    for k, name in enumerate((r"$m$: $12\eta^2+504\eta^3$", r"$b$: $168\eta^3$")):
        axes.plot(
            rates, np.abs(results["sequential"][:, k]), color=COLORS[k], marker=MARKERS[k], linestyle="none", label=name
        )
        axes.plot(rates, gaps(rates)[k], color=COLORS[k])
    axes.set(xscale="log", yscale="log", xlabel=r"step size $\eta$", ylabel="distance of the end points")
    axes.set(title="one example after another")
    axes.legend(fontsize="small", loc="upper left")


def _draw_mean_residual(axes: Any, results: dict[str, np.ndarray]) -> None:
    axes.plot(SIZES, results["mean_residual"], color=COLORS[1], marker="s", label="of the mean residual")
    axes.axhline(float(results["mean_residual/additive"]), color=COLORS[0], label="of the mean loss")
    axes.set(
        xlabel="batch size $M$ (examples)",
        ylabel="expected gradient",
        title="square of the mean residual",
        ylim=(-14, -4),
    )
    axes.set_xticks(SIZES)
    axes.legend(fontsize="small", loc="upper left")


def _draw_scales(axes: Any, results: dict[str, np.ndarray]) -> None:
    names = ("batch mean", "batch sum", r"$N/M\cdot$ batch sum")
    for k, name in enumerate(names):
        axes.plot(SIZES, results["scales"][k], color=COLORS[k], marker=MARKERS[k], label=name)
    axes.set(xlabel="batch size $M$ (examples)", ylabel="expected gradient", title="mean or sum", ylim=(-4.3, 1.5))
    axes.set_xticks(SIZES)
    axes.legend(fontsize="small", loc="upper left")


def _draw_slopes(axes: Any, results: dict[str, np.ndarray]) -> None:
    points, (right, wrong) = results["points"], results["slopes"]
    axes.plot(points, right, color=COLORS[0], label="$2x+3x^2$")
    axes.plot(points, wrong, color=COLORS[1], linestyle=(0, (3, 1.5)), label="$2x+3x$")
    same = np.isclose(right, wrong)
    axes.plot(points[same], right[same], color="black", marker="o", linestyle="none", label="equal at 0 and 1")
    axes.set(xlabel="$x$", ylabel="derivative", title="$x^2+x^3$")
    axes.legend(fontsize="small", loc="upper left")
