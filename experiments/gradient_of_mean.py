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

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments import _impostors, _sums
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress
from experiments._panels import BLUE, DASHED, ORANGE, mark, note, page_of, panel, reference, series
from jaxsgd import problems

Model = Literal["line", "sigmoid", "tanh", "relu"]

DTYPES = ("float32", "float64")
TOLERANCE = 200  # in units in the last place, u
MODELS: tuple[Model, ...] = ("line", "sigmoid", "tanh", "relu")
PROGRAMS = ("mean of gradients", "Python loop", "jaxsgd", "by hand")

EQUAL = 1e-19  # where 0 is on a logarithmic axis


class Config(Seeded):
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


QUICK = Config(max_examples=100_000, num_sizes=4, batch=50, hidden=3, models=("line", "relu"))
SUMMARY = (
    "programs agree to {float32/programs:.0e} Σ|g|/N in float32 and {float64/programs:.0e} in float64; a sum one by "
    "one has {one_by_one/pairwise_bound[0]:.0f} times the pairwise bound in float32"
)


def compute(config: Config) -> Arrays:
    """Programs for the same gradient, rounding errors of sums, and what is not the same gradient."""
    return compare_programs(config) | rounding_errors(config) | _impostors.gradients()


def compare_programs(config: Config) -> Arrays:
    """Largest distance of each program from the gradient of the mean loss; NaN where there is no such program."""
    distances = np.full((len(DTYPES), len(config.models), len(PROGRAMS)), np.nan)
    cases = [(d, m) for d in range(len(DTYPES)) for m in range(len(config.models))]
    for d, m in progress(cases, "programs"):
        loss_fn, params, data = _cast(model(config.models[m], config), DTYPES[d])
        gradients, mean = jax.jit(_gradients_and_mean, static_argnums=0)(loss_fn, params, data)
        scale = jax.tree.map(lambda leaf: np.abs(np.asarray(leaf, np.float64)).mean(axis=0), gradients)
        reference = jax.jit(jax.grad(_impostors.mean_loss, argnums=1), static_argnums=0)(loss_fn, params, data)
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
    problem = problems.digits_mlp(key=config.key(), hidden=config.hidden, activation=name)
    return problem.take(slice(config.batch))


def _gradients_and_mean(loss_fn: Any, params: Any, data: Any) -> tuple[Any, Any]:
    gradients = jax.vmap(jax.grad(loss_fn), (None, 0))(params, data)
    return gradients, jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)


def loop(loss_fn: Any, params: Any, data: Any) -> Any:
    """One gradient after another, added up in NumPy."""
    gradient, total = jax.jit(jax.grad(loss_fn)), jax.tree.map(np.zeros_like, params)
    data = jax.tree.map(np.asarray, data)
    count = len(jax.tree.leaves(data)[0])
    for i in range(count):
        each = gradient(params, {name: values[i] for name, values in data.items()})
        total = jax.tree.map(lambda t, g: t + np.asarray(g), total, each)
    return jax.tree.map(lambda t: t / t.dtype.type(count), total)


def by_hand(params: Any, data: Any) -> Any:
    """−(2/N) Σ x (y − mx − b) and −(2/N) Σ (y − mx − b)."""
    x, y, m, b = map(np.asarray, (data["x"], data["y"], params["m"], params["b"]))
    return {"m": -2 * np.mean(x * (y - m * x - b)), "b": -2 * np.mean(y - m * x - b)}


def rounding_errors(config: Config) -> Arrays:
    """Errors of three ways to average the same per-example gradients of the line, (dtype, sum, N), over Σ|g_i|/N."""
    rng = np.random.default_rng(config.seed)
    x = rng.normal(1, 1, config.max_examples)
    rows = 2 * np.stack([x, np.ones_like(x)]) * (x + rng.exponential(1, len(x)))
    sizes = np.unique(np.round(np.geomspace(4, config.max_examples, config.num_sizes)).astype(int))
    errors = [_sums.errors(rows.astype(dtype), progress(sizes, dtype)) for dtype in DTYPES]
    return {"sizes": sizes, "rounding": errors, "unit": [np.finfo(dtype).eps / 2 for dtype in DTYPES]}


def _cast(problem: jaxsgd.Problem, dtype: str) -> jaxsgd.Problem:
    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)

    return problem._replace(params=jax.tree.map(cast, problem.params), data=jax.tree.map(cast, problem.data))


def check(results: Arrays) -> Claims:
    """Confirm that the programs agree to rounding, within its bounds, and that each impostor differs as it should."""
    return Claims.of(results, check_programs, check_rounding, check_impostors)


def check_programs(claims: Claims, results: Arrays) -> None:
    """No program is missing, and none is further from the others than rounding allows."""
    for dtype, unit, distances in zip(DTYPES, results["unit"], results["programs"], strict=True):
        message = f"programs differ by {{:.1e}} Σ|g|/N in {dtype}"
        claims.below(np.nanmax(distances), TOLERANCE * unit, message, enter=f"{dtype}/programs")
    missing = np.isnan(results["programs"]).sum(axis=(0, 1)).tolist()
    networks = int(np.sum(results["models"] != MODELS.index("line")))
    claims.require(missing == [0, 0, 0, 2 * networks], f"all programs must have been run: {missing} are missing")


def check_rounding(claims: Claims, results: Arrays) -> None:
    """Both bounds hold; the pairwise one, and equality, do not hold for a sum one by one."""
    limit, errors = _sums.bounds(results["sizes"], results["unit"][:, None]), results["rounding"]
    for s, (name, bound) in enumerate(zip(_sums.WAYS, ("one by one", "pairwise", "one by one"), strict=True)):
        excess = np.max(errors[:, s] / limit[bound])
        claims.require(excess <= 1, f"the rounding error of the sum {name} is {excess:.1f} times its bound")
    differ = np.any(errors[:, 0] != errors[:, 1], axis=1)
    claims.require(np.all(differ), "equality of two orders bit by bit must be rejected")
    control = errors[:, 0, -1] / limit["pairwise"][:, -1]
    claims.above(control, 1, "the pairwise bound must be rejected for a sum one by one, got {:.2f} of it")
    claims |= {"one_by_one/pairwise_bound": control, "rounding": errors[:, :, -1]}


def check_impostors(claims: Claims, results: Arrays) -> None:
    """Each differs from the gradient of the mean loss, by the numbers worked out by hand."""
    law = [-13, -29 / 3, -77 / 9, -8]
    message = f"the mean residual must have gradients {law}, got {{}}"
    claims.equal(results["mean_residual"], law, message, enter="mean_residual")
    claims.equal(results["mean_residual/additive"], -13, "the mean of squares must have the gradient −13, got {}")
    gap = results["sequential"]
    claims.above(gap, 1e-10, "that sequential steps end at the same place must be rejected")
    message = "the gap at η = 1/20 must be 93/1000, 21/1000: {}"
    claims.equal(gap[0], [0.093, 0.021], message, atol=1e-14, enter="gap_at_1/20")
    claims.equal(
        gap.T, _impostors.gaps(results["rates"]), "the gap must be 12η² + 504η³ in m and 168η³ in b", atol=1e-14
    )
    right, wrong = results["slopes"]
    same = results["points"][np.isclose(right, wrong, rtol=0, atol=1e-12)]
    claims.require(np.array_equal(same, [0, 1]), f"2x + 3x must equal the derivative at 0 and 1 only, got {same}")
    claims["agree_at"] = same
    claims.equal([wrong[-1], right[-1]], [10, 16], "at x = 2 the two must be 10 and 16, got {}", rtol=1e-5)
    scales = {"mean": [-1] * 4, "sum": [-1, -2, -3, -4], "total": [-4] * 4}
    for (name, law_of_scale), expected in zip(scales.items(), results["scales"], strict=True):
        claims.equal(expected, law_of_scale, f"the batch {name} must have means {law_of_scale}")


def draw(results: Arrays) -> Figure:
    """Programs and roundings above, impostors below."""
    above = _draw_programs, _draw_rounding, _draw_sequential
    return page_of(results, *above, _draw_mean_residual, _draw_scales, _draw_slopes, nrows=2, ratio=0.8)


def _draw_programs(axes: Any, results: Arrays) -> None:
    models = [MODELS[m] for m in results["models"]]
    for d, dtype in enumerate(DTYPES):
        for p, name in enumerate(PROGRAMS):
            places = np.arange(len(models)) + 0.14 * (p - 1.5)
            values = results["programs"][d, :, p]
            axes.plot(
                places, np.where(values == 0, EQUAL, values), label=name if d == 0 else None, **mark(p, line="none")
            )
        reference(axes, y=results["unit"][d], color="black")
        note(axes, len(models) - 0.65, results["unit"][d] / 2, f"$u$ of {dtype}", ha="right", va="top")
    axes.axhspan(EQUAL / 10, 10 * EQUAL, color="0.93", zorder=0)
    note(axes, len(models) - 0.65, EQUAL, "equal bit by bit", ha="right", va="center")
    axes.set_xticks(np.arange(len(models)), models)
    legend = {"ncols": 2, "columnspacing": 0.8, "loc": "upper center", "handlelength": 1}
    label = r"distance $\div$ $\Sigma|g_i|/N$"
    panel(axes, "programs for one gradient", y=label, log="y", ylim=(EQUAL / 10, 3e1), legend=legend)
    axes.set_yticks([EQUAL, *(10.0**k for k in range(-16, 1, 4))], ["0", *(f"$10^{{{k}}}$" for k in range(-16, 1, 4))])


def _draw_rounding(axes: Any, results: Arrays) -> None:
    limits, N = _sums.bounds(results["sizes"], results["unit"][:, None]), results["sizes"]
    for s, name in enumerate(_sums.WAYS):
        axes.plot(N, results["rounding"][0, s], **mark(s, line="none"), label=name)
        if name in limits:
            axes.plot(N, limits[name][0], color=mark(s)["color"], linestyle="-" if s else DASHED)
    axes.text(N[-1], limits["one by one"][0, -1], r"$\gamma_N$", ha="right", va="bottom", color=BLUE)
    axes.text(N[-1], 4e-7, r"$\gamma_{\log_2 N}$", ha="right", va="center", color=ORANGE)
    label = r"rounding error $\div$ $\Sigma|g_i|/N$"
    panel(axes, "sums in float32", x="examples $N$", y=label, log="xy", ylim=(1e-9, 30), legend="upper left")


def _draw_sequential(axes: Any, results: Arrays) -> None:
    rates, ends = results["rates"], np.abs(results["sequential"]).T
    for k, name in enumerate((r"$m$: $12\eta^2+504\eta^3$", r"$b$: $168\eta^3$")):
        axes.plot(rates, ends[k], **mark(k, line="none"), label=name)
        axes.plot(rates, _impostors.gaps(rates)[k], color=mark(k)["color"])
    label = "distance of the end points"
    panel(axes, "one example after another", x=r"step size $\eta$", y=label, log="xy", legend="upper left")


def _draw_mean_residual(axes: Any, results: Arrays) -> None:
    axes.plot(_impostors.SIZES, results["mean_residual"], **mark(1), label="of the mean residual")
    axes.axhline(results["mean_residual/additive"], color=BLUE, label="of the mean loss")
    _expected_gradients(axes, "square of the mean residual", (-14, -4))


def _draw_scales(axes: Any, results: Arrays) -> None:
    names = ("batch mean", "batch sum", r"$N/M\cdot$ batch sum")
    series(axes, _impostors.SIZES, dict(zip(names, results["scales"], strict=True)))
    _expected_gradients(axes, "mean or sum", (-4.3, 1.5))


def _expected_gradients(axes: Any, title: str, limits: tuple[float, float]) -> None:
    labels = {"x": "batch size $M$ (examples)", "y": "expected gradient"}
    panel(axes, title, **labels, ylim=limits, xticks=_impostors.SIZES, legend="upper left")


def _draw_slopes(axes: Any, results: Arrays) -> None:
    points, (right, wrong) = results["points"], results["slopes"]
    axes.plot(points, right, color=BLUE, label="$2x+3x^2$")
    axes.plot(points, wrong, color=ORANGE, linestyle=DASHED, label="$2x+3x$")
    same = np.isclose(right, wrong)
    axes.plot(points[same], right[same], color="black", marker="o", linestyle="none", label="equal at 0 and 1")
    panel(axes, "$x^2+x^3$", x="$x$", y="derivative", legend="upper left")
