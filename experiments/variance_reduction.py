"""A control variate removes nearly all gradient noise near its snapshot and adds noise far from it.

Command    python -m experiments variance_reduction
Run time   about 30 seconds on two cores
Expected   on digits, importance sampling leaves 99% of the noise at initialization and a tenth at the end,
           stratification by class a sixth at initialization and 95% at the end; SVRG with a snapshot of an epoch ago,
           and SAGA, have more noise than SGD while gradients change fast, and at most 0.3% of it at the end; near the
           snapshot SVRG's noise is as the squared distance to it, with the very first one 51 times that of SGD

Variances are exact: those of each design along full-batch gradient descent, over those of uniform sampling at the same
batch size, with replacement for importance sampling and without for all else. A step of SVRG takes two gradients of
every example in its batch, and a full one for each snapshot. Convexity is no protection: the logistic regression has
5.5 times the noise early on. That an old snapshot adds noise is what A. Defazio and L. Bottou ("On the ineffectiveness
of variance reduced optimization for deep learning", NeurIPS 2019) find in deep networks all along; this network is
small, its steps have no noise, and its snapshots become good ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsgd
from experiments._claims import Claims
from experiments._harness import Arrays, Seeded, progress
from experiments._models import mean_loss
from experiments._panels import BLUE, ORANGE, SKY, page, panel, reference
from jaxsgd import designs, estimators, problems, variance_reduction

METHODS = {
    "importance": {"color": SKY, "marker": "^", "linestyle": "-"},
    "stratified by class": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "SVRG, one epoch old": {"color": ORANGE, "marker": "s", "linestyle": "-"},
    "SAGA": {"color": ORANGE, "marker": "D", "linestyle": "--"},
}
NETWORK, LOGISTIC, LINEAR = "digits, network", "breast cancer, logistic", "diabetes, linear"
PANELS = (NETWORK, LOGISTIC)
PROBLEMS = {NETWORK: (ORANGE, "s"), LOGISTIC: (SKY, "^"), LINEAR: ("black", "o")}
CONVEX_RATE = 0.2  # the step size of the other two


class Config(Seeded):
    """Settings of the experiment."""

    num_examples: int = 1797
    """Digits used, in stored order."""
    hidden: int = 32
    """Width of the hidden layer of the network on digits."""
    batch_size: int = 32
    """Examples in a batch."""
    learning_rate: float = 0.5
    """Step size of the network's gradient descent."""
    num_steps: int = 2000
    """Steps of full-batch gradient descent."""
    num_points: int = 16
    """Steps at which variances are computed."""


QUICK = Config(num_examples=300, hidden=8, batch_size=10, learning_rate=1.0, num_steps=1000, num_points=10)
SUMMARY = (
    "of the noise on digits, importance sampling leaves {digits[importance][0]:.0%} at first and "
    "{digits[importance][2]:.0%} at the end, stratification {digits[stratified by class][0]:.0%} and "
    "{digits[stratified by class][2]:.0%}, SVRG {digits[SVRG, one epoch old][2]:.1%} at the end with a snapshot an "
    "epoch old, {ratio_with_snapshot_at_start[digits, network]:.0f} times it with the first"
)


def compute(config: Config) -> Arrays:
    """Exact variances along two runs, and between the last point of each and its first; of a line of points in a third.

    The third problem is a linear regression, whose last point is its minimum.
    """
    steps = np.unique(np.append(0, np.geomspace(1, config.num_steps, config.num_points - 1).round())).astype(int)
    fractions = np.geomspace(1e-3, 1, 13)
    design = designs.WithoutReplacement(config.batch_size)
    along, between = [], []
    *runs, (_, linear) = given(config).items()
    for name, problem in progress(runs, "problems"):
        rate = config.learning_rate if name == NETWORK else CONVEX_RATE
        age = len(problem.data["y"]) // config.batch_size
        path = follow(problem, design, rate, steps, age, jax.random.key(config.seed + 1))
        along.append(measure(problem, design, [(*path[t], path[max(t - age, 0)][0]) for t in steps.tolist()]))
        between.append(between_points(problem, design, path[config.num_steps][0], fractions))
    minimum = jnp.asarray(np.linalg.lstsq(*(np.asarray(linear.data[name]) for name in "xy"))[0])
    between.append(between_points(linear, design, minimum, fractions))
    laws, lines = np.array(along), np.array(between)
    return {
        "step": steps,
        "fraction": fractions,
        "ratio": laws[..., :4],
        "bias": laws[..., 4:],
        "between": lines[..., :2],
        "coefficient": lines[..., 2],
        "linear": of_linear_regression(linear, minimum),
    }


def given(config: Config) -> dict[str, problems.Problem]:
    """The three problems, each at the start of its run."""
    digits = problems.digits_mlp(key=config.key(), hidden=config.hidden)
    digits = digits.take(slice(config.num_examples))
    return {NETWORK: digits, LOGISTIC: problems.breast_cancer_logistic(), LINEAR: problems.diabetes_regression()}


def gradients(problem: problems.Problem, params: Any) -> jaxsgd.PerExampleGradients:
    """All per-example gradients of a problem at one point."""
    return jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data)


def follow(problem: problems.Problem, design: Any, rate: float, steps: Any, age: int, key: Any) -> dict[int, Any]:
    """Parameters and SAGA's table after each of the steps, and ``age`` steps before, of full-batch descent."""
    saga = variance_reduction.SAGA(problem.loss_fn, design)

    @jax.jit
    def advance(count: Any, state: Any) -> Any:
        def step(_: Any, state: Any) -> Any:
            params, table = state
            gradient = jax.grad(mean_loss(problem.loss_fn))(params, problem.data)
            _, table = saga.estimate(params, table, problem.data)
            return jax.tree.map(lambda leaf, g: leaf - rate * g, params, gradient), table

        return jax.lax.fori_loop(0, count, step, state)

    found, now = {}, 0
    state = problem.params, jax.jit(saga.init)(key, problem.params, problem.data)
    for stop in np.unique(np.concatenate([steps, np.maximum(steps - age, 0)])).tolist():
        state, now = advance(stop - now, state), stop
        found[stop] = state
    return found


def measure(problem: problems.Problem, design: Any, points: list[Any]) -> np.ndarray:
    """At every (params, state, snapshot), four ratios of variances, and three errors over the mean norm of gradients.

    Of the methods; and the biases of SAGA and of SAG, and how far the latter is from its formula.
    """
    labels, M = np.asarray(problem.data["y"]).astype(int), design.batch_size
    stratified = designs.Stratified.proportional(labels, M)

    @jax.jit
    def laws(params: Any, state: Any, snapshot: Any) -> Any:
        g, h = gradients(problem, params), gradients(problem, snapshot)
        of_saga = variance_reduction.exact(design, g, state.table)
        of_sag = variance_reduction.exact(variance_reduction.Inclusion(design), g, state.table)
        of_others = estimators.exact(stratified, g), variance_reduction.exact(design, g, h), of_saga
        plain = estimators.exact(design, g).variance
        ratios = [law.variance / plain for law in of_others]
        mean = g.mean()
        stated = jax.tree.map(lambda a, b: a + (1 - M / g.count) * (b - a), mean, state.table.mean())
        errors = distance(of_saga.mean, mean), distance(of_sag.mean, mean), distance(of_sag.mean, stated)
        return g, [*ratios, *(error / jnp.sqrt(g.squared_norms()).mean() for error in errors)]

    def with_importance(*point: Any) -> list[float]:
        g, found = laws(*point)
        importance = designs.Importance(estimators.optimal_probabilities(g), M)
        return [estimators.design_effect(importance, g), *map(float, found)]

    return np.array([with_importance(*point) for point in points])


def between_points(problem: problems.Problem, design: Any, last: Any, fractions: np.ndarray) -> np.ndarray:
    """SVRG's variance ratio with snapshots on the way back to the start; with the best coefficient; the coefficient."""
    g = gradients(problem, last)
    plain = estimators.exact(design, g).variance

    @jax.jit
    def at(fraction: Any) -> Any:
        h = gradients(problem, jax.tree.map(lambda a, b: a + fraction * (b - a), last, problem.params))
        best = variance_reduction.optimal_coefficient(design, g, h)
        svrg = variance_reduction.exact(design, g, h).variance
        return jnp.stack([svrg / plain, best.variance / plain, best.value])

    return np.stack([at(fraction) for fraction in fractions])


def of_linear_regression(problem: problems.Problem, params: Any) -> np.ndarray:
    """SVRG's ratio, tr Cov H_i δ / tr Cov g_i with H_i δ = x_i x_iᵀ δ and δ the way from a point to the start."""
    x, y = (np.asarray(problem.data[name]) for name in "xy")
    delta = np.asarray(params - problem.params)
    far, own = x * (x @ delta)[:, None], x * (x @ np.asarray(params) - y)[:, None]
    return np.var(far, axis=0).sum() / np.var(own, axis=0).sum()


def distance(a: Any, b: Any) -> jax.Array:
    """‖a − b‖ of two pytrees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum((x - y) ** 2) for x, y in pairs])))


def check(results: Arrays) -> Claims:
    """Confirm who helps when, SVRG's law near and far, and what is biased; reject that it helps everywhere."""
    claims = Claims()
    of_saga, of_sag, of_formula = np.moveaxis(results["bias"], -1, 0)
    claims.below(of_saga, 1e-12, "SAGA must be unbiased, got a bias of {:.1e}")
    claims.below(of_formula, 1e-12, "SAG must have the bias −(1 − M/N)(ḡ − h̄), off by {:.1e}")
    claims.above(of_sag.max(), 0.01, "that SAG is unbiased must be rejected, got {:.1e}", enter="largest_bias_of_sag")
    check_snapshots(claims, results)
    check_along_runs(claims, results["ratio"])
    claims["coefficient_with_snapshot_at_start"] = results["coefficient"][:, -1]
    return claims


def check_snapshots(claims: Claims, results: Arrays) -> None:
    """SVRG's variance is as the squared distance to the snapshot near it and on a line; far from it, above SGD's."""
    fraction, svrg, best = results["fraction"], *np.moveaxis(results["between"], -1, 0)
    gap = np.abs(svrg[2] / (results["linear"] * fraction**2) - 1)
    message = "on a linear regression SVRG must have the variance of H_i δ, got {:.1e} off"
    claims.below(gap, 1e-7, message, enter="linear_regression_gap")
    slopes = (np.diff(np.log(svrg)) / np.diff(np.log(fraction)))[:, 0]
    claims.equal(slopes, 2, "near the snapshot noise must be as δ², got δ^{}", atol=0.02, enter="slopes_near")
    bend = np.abs(svrg[0, -1] / svrg[0, 0] * fraction[0] ** 2 - 1)
    claims.above(bend, 0.2, "noise as δ² far from the snapshot must be rejected on the network, got {:.0%} off")
    far = claims["ratio_with_snapshot_at_start"] = dict(zip(PROBLEMS, svrg[:, -1], strict=True))
    for name in PANELS:
        claims.above(far[name], 2, f"that SVRG is never noisier than SGD must be rejected on {name}, got {{:.2f}}")
    worse = best / np.minimum(1, svrg)
    claims.below(worse, 1 + 1e-9, "the best coefficient must not add noise, got {:.3f} times that of others")


def check_along_runs(claims: Claims, ratio: np.ndarray) -> None:
    """Importance sampling helps late, stratification early; old gradients first add noise, and then leave little."""
    importance, stratified = ratio[0, :, 0], ratio[0, :, 1]
    claims.above(importance[0], 0.9, "importance sampling must be useless at initialization, got {:.2f}")
    claims.below(importance[-1], 0.5, "importance sampling must help later, got {:.2f}")
    claims.below(stratified[0], 0.5, "stratification must help at initialization, got {:.2f}")
    claims.above(stratified[-1], 0.7, "what stratification does must fade, got {:.2f}")
    claims.below(ratio[:, -1, 2:], 0.05, "SVRG and SAGA must leave little noise at the end, got {:.3f}")
    for name, worst in zip(PANELS, ratio[:, :, 2:].max(axis=1), strict=True):
        message = f"old gradients must add noise while new ones change fast on {name}, got {{:.2f}}"
        claims.above(worst, 1, message)
    ends = np.stack([ratio[:, 0], ratio.max(axis=1), ratio[:, -1]], axis=-1)
    claims["ratio_at_start_most_and_end"] = {
        f"{name}, {method}": ends[i, k] for i, name in enumerate(PANELS) for k, method in enumerate(METHODS)
    }
    claims["digits"] = dict(zip(METHODS, ends[0], strict=True))


def draw(results: Arrays) -> Figure:
    """Variance ratios along training on two problems, and against the distance of the snapshot on three."""
    figure = page(ncols=3, height_to_width_ratio=0.95)
    *left, right = figure.subplots(1, 3, sharey=True)
    for axes, name, ratios in zip(left, PANELS, results["ratio"], strict=True):
        for (method, style), values in zip(METHODS.items(), ratios.T, strict=True):
            seen = values > 0
            axes.plot(results["step"][seen] + 1, values[seen], **style, label=method)
        panel(axes, name, x="1 + step of gradient descent")
    for (name, (color, marker)), values in zip(PROBLEMS.items(), results["between"], strict=True):
        right.plot(results["fraction"], values[:, 0], color=color, marker=marker, label=name)
        right.plot(results["fraction"], values[:, 1], color=color, linestyle=":")
    right.plot([], [], color="0.4", linestyle=":", label=r"best coefficient $\beta^*$")
    panel(right, "SVRG at the end of the run", x="snapshot: part of the way back to the start")
    for axes in figure.axes:
        reference(axes, y=1, color="0.6", linewidth=0.6, linestyle="-", zorder=0)
        panel(axes, log="xy", ylim=(3e-7, 3e3))
        axes.title.set_fontsize("small")
    left[0].set_ylabel(r"variance $\div$ that of uniform sampling")
    left[0].legend(loc="lower left")
    right.legend(loc="upper left", labelspacing=0.3)
    return figure
