"""SVRG, SAGA and SAG against rational numbers, every batch, and loops in NumPy that share no code with the package."""

import itertools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import designs, estimators, problems, variance_reduction
from jaxsgd.variance_reduction import SAG, SAGA, SVRG, Inclusion
from tests.support.models import MODELS, QUICK
from tests.support.registry import LAWS, gradients_given, measured, quick, skewed
from tests.support.twins import assert_close, flat, flat_rows

F = Fraction
KEY = jax.random.key(7)
CURVATURES, CENTERS = (1, 2, 3), (3, 0, -1)
N = 6
# Two sets of gradients that are alike, the second with a mean of its own.
CONTROL = skewed(N, 3, seed=4)
GRADIENTS = 0.6 * CONTROL + 0.4 * skewed(N, 3, seed=5) + 0.3


def pair() -> tuple[jaxsgd.PerExampleGradients, jaxsgd.PerExampleGradients]:
    return measured(gradients_given(GRADIENTS)), measured(gradients_given(CONTROL))


def waves(leaf: jax.Array) -> jax.Array:
    """A direction without symmetries."""
    return jnp.asarray(np.cos(1 + np.arange(leaf.size)).reshape(leaf.shape), leaf.dtype)


def quadratic(theta: float) -> jaxsgd.PerExampleGradients:
    problem = problems.quadratics()
    return measured(problem._replace(params=jnp.asarray(theta)))


def rational(theta: Fraction) -> list[Fraction]:
    return [h * (theta - c) for h, c in zip(CURVATURES, CENTERS, strict=True)]


def moments_over_batches(design: Any, terms: np.ndarray, constant: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and variance of Σ w_i t_i + constant by a sum over every batch."""
    support = [(float(p), np.array([float(x) for x in w])) for p, w in design.support(len(terms))]
    values = np.array([w @ terms + constant for _, w in support])
    p = np.array([p for p, _ in support])
    mean = p @ values
    return mean, float(p @ np.sum((values - mean) ** 2, axis=1))


# ---- laws ----


@pytest.mark.parametrize("M", [1, 2, 3])
def test_three_quadratics_in_rationals(M: int) -> None:
    """Catches a snapshot's mean left out, a wrong sign, and a variance of ĝ(θ) in place of that of the differences."""
    now, before = rational(F(1)), rational(F(1, 2))
    factor = F(3 - M, M * 2)

    def variance(values: list[Fraction]) -> Fraction:
        return sum(v**2 for v in values) / 3 - (sum(values) / 3) ** 2

    differences = [a - b for a, b in zip(now, before, strict=True)]
    assert (differences, variance(differences), variance(now)) == ([F(1, 2), 1, F(3, 2)], F(1, 6), F(32, 3))
    g, h = quadratic(1.0), quadratic(0.5)
    design = designs.WithoutReplacement(M)
    law = variance_reduction.exact(design, g, h)
    assert_close(law.mean, 2.0, atol=1e-14)
    assert_close(law.variance, float(factor / 6), atol=1e-15)
    assert_close(estimators.exact(design, g).variance, float(factor * 32 / 3), atol=1e-13)
    covariance = sum(a * b for a, b in zip(now, before, strict=True)) / 3 - sum(now) * sum(before) / 9
    best = covariance / variance(before)
    assert best == F(8, 7)
    if M < 3:
        found = variance_reduction.optimal_coefficient(design, g, h)
        assert_close(found.value, 8 / 7, atol=1e-14)
        assert_close(found.variance, 0.0, atol=1e-28)


def test_linear_regression_formula() -> None:
    """d_i = x_i x_iᵀ δ, so SVRG's variance is c_M tr Cov(H_i δ), quadratic in the distance δ at any distance."""
    problem = problems.diabetes_regression()
    at = jnp.linspace(-0.3, 0.2, 10)
    delta = jnp.cos(jnp.arange(10.0))
    x = np.asarray(problem.data["x"])
    rows = x * (x @ np.asarray(delta))[:, None]
    spread = np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1))
    h = measured(problem._replace(params=at))
    for step, M in itertools.product((1e-4, 1.0, 50.0), (1, 16)):
        g = measured(problem._replace(params=at + step * delta))
        law = variance_reduction.exact(designs.WithoutReplacement(M), g, h)
        truth = (442 - M) / (M * 441) * spread * step**2
        assert_close(float(law.variance) / truth, 1.0, atol=1e-9)


@pytest.mark.parametrize("coefficient", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("name", LAWS)
def test_exact_equals_the_sum_over_every_batch(name: str, coefficient: float) -> None:
    """Every design of the package; those of the scale of a sum or a total too."""
    design, (g, h) = LAWS[name](N), pair()
    scale = float(design.scale_factor(N))
    terms = GRADIENTS - coefficient * CONTROL
    mean, variance = moments_over_batches(design, terms, coefficient * scale * CONTROL.mean(axis=0))
    law = variance_reduction.exact(design, g, h, coefficient=coefficient)
    assert_close(flat(law.mean), mean, atol=1e-8 if "realized" in name or "hajek" in name else 1e-12)
    assert_close(law.variance, variance, atol=1e-8 * scale**2)
    if np.allclose(design.mean_weights(N), scale / N, rtol=1e-12):
        assert_close(flat(law.mean), scale * GRADIENTS.mean(axis=0), atol=1e-12 * scale)


@pytest.mark.parametrize("name", LAWS)
def test_the_optimal_coefficient_is_optimal(name: str) -> None:
    """A little more and a little less are both worse, and by the same: the bottom of a parabola."""
    design, (g, h) = LAWS[name](N), pair()
    best = variance_reduction.optimal_coefficient(design, g, h)

    def variance(beta: float) -> float:
        return float(variance_reduction.exact(design, g, h, coefficient=beta).variance)

    below, at, above = (variance(float(best.value) + step) for step in (-0.1, 0.0, 0.1))
    assert_close(best.variance, at, atol=1e-12 * max(at, 1))
    assert min(below, above) > at + 1e-6
    assert abs(above - below) < 1e-6 * (above - at)
    assert at <= min(variance(0.0), variance(1.0))


@pytest.mark.slow
def test_a_coefficient_of_one_can_be_worse_than_none() -> None:
    """A control that points the other way, and one that is too large."""
    design, (g, h) = designs.WithoutReplacement(2), pair()
    plain = float(estimators.exact(design, g).variance)
    for scale, sign in ((-1.0, -1), (5.0, 1)):
        control = h.scaled(jnp.full(N, scale))
        assert float(variance_reduction.exact(design, g, control).variance) > plain
        best = variance_reduction.optimal_coefficient(design, g, control)
        assert np.sign(float(best.value)) == sign
        assert float(best.variance) < plain


# ---- SAG ----


@pytest.mark.parametrize("name", LAWS)
def test_inclusion_is_the_law_of_who_is_in_the_batch(name: str) -> None:
    """Mean and covariance of I/N against the support of the design, where repeats count once."""
    design, inclusion = LAWS[name](N), Inclusion(LAWS[name](N))
    support = [(float(p), np.array([float(x != 0) for x in w]) / N) for p, w in design.support(N)]
    p, u = np.array([p for p, _ in support]), np.array([u for _, u in support])
    mean = p @ u
    covariance = (u - mean).T @ ((u - mean) * p[:, None])
    assert_close(inclusion.mean_weights(N), mean, atol=1e-14)
    assert_close(inclusion.weight_covariance(N).dense(N), covariance, atol=1e-14)
    assert inclusion.support_size(N) == len(list(inclusion.support(N)))
    if name in ("with_replacement", "poisson"):
        drawn = inclusion.weights(KEY, N)
        assert_close(drawn, np.where(np.asarray(design.weights(KEY, N)) != 0, 1 / N, 0), atol=0)


@pytest.mark.parametrize("name", LAWS)
def test_law_of_sag(name: str) -> None:
    """E v and tr Cov v against every batch, and the bias −(1/N) Σ (1 − π_i)(g_i − h_i)."""
    design, (g, h) = LAWS[name](N), pair()
    law = variance_reduction.exact(Inclusion(design), g, h)
    mean, variance = moments_over_batches(Inclusion(design), GRADIENTS - CONTROL, CONTROL.mean(axis=0))
    assert_close(flat(law.mean), mean, atol=1e-14)
    assert_close(law.variance, variance, atol=1e-14)
    pi = design.inclusion_probabilities(N)
    bias = -(1 - pi) @ (GRADIENTS - CONTROL) / N
    assert_close(flat(law.mean) - GRADIENTS.mean(axis=0), bias, atol=1e-14)


def test_bias_of_sag_on_three_quadratics() -> None:
    """A table of zeros gives −(1 − 1/3)·2 = −4/3, one of gradients at 1/2 −2/3·(2 − 1) = −2/3; SAGA has none."""
    g = quadratic(1.0)
    for table, mean in ((quadratic(0.0), F(2, 3)), (quadratic(0.5), F(4, 3))):
        before = F(0) if mean == F(2, 3) else F(1)
        assert mean == before + F(1, 3) * (2 - before)
        law = variance_reduction.exact(Inclusion(designs.WithoutReplacement(1)), g, table)
        assert_close(law.mean, float(mean), atol=1e-15)
        saga = variance_reduction.exact(designs.WithoutReplacement(1), g, table)
        assert_close(saga.mean, 2.0, atol=1e-15)
        assert_close(float(saga.variance), 9 * float(law.variance), atol=1e-14)


# ---- differences in factored form ----


@pytest.mark.parametrize(
    "name",
    quick(
        ["tanh", "embedding", "penalized", "penalized_embedding", "weight_normalized", "conv_1d_first_axes"],
        {"embedding", "penalized"},
    ),
)
def test_differences_of_factored_gradients(name: str) -> None:
    """Outer products, rows of a table, shared parts and dense ones, against the difference of the gradients formed."""
    loss_fn, params, batch, _ = MODELS[name]()
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * waves(leaf), params)
    gradients = jaxsgd.per_example_gradients(loss_fn)

    def compute(params: Any, moved: Any, batch: Any) -> Any:
        g, h = gradients(params, batch), gradients(moved, batch)
        d, table = g.minus(h, 0.7), g.minus(h.scaled(jnp.ones(h.count)), 0.7)
        found = [(each.squared_norms(), each.squared_deviations(), each.total_deviation()) for each in (d, table)]
        return (
            g.materialize(),
            h.materialize(),
            d.materialize(),
            table.mean(),
            d.losses(),
            g.losses(),
            h.losses(),
            found,
        )

    g, h, d, mean, losses, own, others, found = jax.jit(compute, compiler_options=QUICK)(params, moved, batch)
    truth = flat_rows(g) - 0.7 * flat_rows(h)
    scale = np.abs(truth).max() ** 2 * truth.shape[1]
    assert_close(flat_rows(d), truth, atol=1e-13 * scale)
    assert_close(flat(mean), truth.mean(axis=0), atol=1e-13 * scale)
    assert_close(losses, own - 0.7 * others, atol=1e-13)
    deviations = np.sum((truth - truth.mean(axis=0)) ** 2, axis=1)
    for norms, squares, total in found:
        assert_close(norms, np.sum(truth**2, axis=1), atol=1e-12 * scale)
        assert_close(squares, deviations, atol=1e-12 * scale)
        assert_close(total, deviations.sum(), atol=1e-12 * scale)


def test_differences_keep_the_factored_form() -> None:
    """Catches a fallback to n × P numbers where the factors would do."""
    problem = problems.mlp(skewed(6, 30), np.arange(6) % 3, key=KEY, hidden=40)
    g = measured(problem)
    h = measured(problem._replace(params=jax.tree.map(lambda leaf: leaf * 1.1, problem.params)))
    assert [type(factor).__name__ for factor in g.minus(h).factors] == [type(f).__name__ for f in g.factors]
    assert sum(leaf.size for leaf in jax.tree.leaves(g.minus(h))) < 6 * g.num_params / 4
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(SAGA(problem.loss_fn, None)._rows(*problem[1:]))) < 6 * g.num_params
    )


@pytest.mark.slow
def test_no_digit_cancels_near_the_snapshot_in_float32() -> None:
    """At a distance of 1e-5 the variance of differences is 1e-10 of that of gradients, below float32's digits."""
    x, y = skewed(64, 12), np.arange(64) % 3
    problem = problems.mlp(x, y, key=KEY, hidden=16)
    change = jax.tree.map(lambda leaf: 1e-5 * waves(leaf), problem.params)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problem.params)
    moved = jax.tree.map(lambda leaf, d: leaf + d.astype(jnp.float32), single, change)
    data = {"x": problem.data["x"].astype(jnp.float32), "y": problem.data["y"]}
    exact_params = [jax.tree.map(lambda leaf: leaf.astype(jnp.float64), p) for p in (single, moved)]
    exact_data = {"x": data["x"].astype(jnp.float64), "y": data["y"]}
    gradients, design = jaxsgd.per_example_gradients(problem.loss_fn), designs.WithoutReplacement(4)
    g, h = (flat_rows(gradients(p, exact_data).materialize()) for p in exact_params)
    d = g - h - (g - h).mean(axis=0)
    truth = 60 / (4 * 63) * np.mean(np.sum(d**2, axis=1))
    law = variance_reduction.exact(design, gradients(moved, data), gradients(single, data))
    assert law.variance.dtype == jnp.float32
    print("F32", float(law.variance) / truth - 1)
    assert abs(float(law.variance) / truth - 1) < 0.02
    gram = [gradients(a, data).gram(gradients(b, data)) for a, b in [(moved, moved), (moved, single), (single, single)]]
    K = np.asarray(gram[0] - gram[1] - gram[1].T + gram[2])
    naive = 60 / (4 * 63) * (np.trace(K) / 64 - K.sum() / 64**2)
    print("NAIVE", naive / truth - 1)
    assert abs(naive / truth - 1) > 1, "the control: from Gram matrices, the digits are gone"


def test_differences_under_jit_and_gradients_that_are_not_kept() -> None:
    loss_fn, params, data = problems.line_fit()
    gradients = jaxsgd.per_example_gradients(loss_fn)
    moved = {"m": params["m"] + 1, "b": params["b"]}

    def compute(beta: Any) -> Any:
        return variance_reduction.exact(
            designs.WithReplacement(2), gradients(moved, data), gradients(params, data), coefficient=beta
        ).variance

    inside = jax.jit(compute)(jnp.asarray(0.5))
    assert_close(inside, float(compute(0.5)), atol=1e-12)
    best = jax.jit(
        lambda: variance_reduction.optimal_coefficient(
            designs.WithReplacement(2), gradients(moved, data), gradients(params, data)
        )
    )()
    assert float(best.variance) <= float(inside)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_importance_sampling_of_gradients_of_very_different_sizes(dtype: Any) -> None:
    """Late in training, p_i ∝ ‖g_i‖ spans 25 orders of magnitude: catches means in which the scales 1/p_i cancel."""
    x, residuals = skewed(40, 5) + 1, np.logspace(-16 if dtype == jnp.float32 else -25, 0, 40)
    data = {"x": jnp.asarray(x, dtype), "r": jnp.asarray(residuals, dtype)}
    g = jaxsgd.per_example_gradients(lambda w, e: e["r"] * (e["x"] @ w))(jnp.zeros(5, dtype), data)
    assert [type(factor).__name__ for factor in g.factors] == ["OuterProducts"]
    rows = flat_rows(g.materialize())
    norms = np.linalg.norm(rows, axis=1)
    truth = norms.mean() ** 2 - np.sum(rows.mean(axis=0) ** 2)
    variance = estimators.exact(designs.Importance(estimators.optimal_probabilities(g), 1), g).variance
    assert_close(float(variance) / truth, 1.0, atol=1e-4 if dtype == jnp.float32 else 1e-12)


# ---- runs ----

RUNS: dict[str, Any] = {
    "without": lambda: designs.WithoutReplacement(2),
    "with": lambda: designs.WithReplacement(5),
    "importance": lambda: designs.Importance([F(1, 10), F(2, 10), F(3, 10), F(4, 10)], 3),
    "stratified": lambda: designs.Stratified([0, 0, 1, 1], [1, 1]),
    "poisson": lambda: designs.Poisson([F(1, 3), F(1, 2), F(1, 4), F(1, 1)]),
    "bernoulli": lambda: designs.Bernoulli(F(1, 3)),
    "reshuffling": lambda: designs.Reshuffling(3, drop_last=False),
    "sum": lambda: designs.WithoutReplacement(2, scale="sum"),
}
X, Y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0, 5.0])
STEPS, RATE = 25, 0.02


def line_rows(theta: np.ndarray) -> np.ndarray:
    """∂L/∂b and ∂L/∂m of (y − mx − b)² for the four points, for θ = (b, m)."""
    residuals = Y - theta[1] * X - theta[0]
    return np.stack([-2 * residuals, -2 * X * residuals], axis=1)


def weights_of_step(design: Any, step: int) -> np.ndarray:
    if isinstance(design, designs.Reshuffling):
        epoch = design.epoch_weights(jax.random.fold_in(KEY, step // 2), 4)
        return np.asarray(epoch)[step % 2]
    return np.asarray(design.weights(jax.random.fold_in(KEY, step), 4))


def loop(method: str, design: Any) -> np.ndarray:
    """θ after every step, in NumPy."""
    theta, path = np.array([0.0, 0.0]), []
    table, snapshot, scale = line_rows(theta), theta, float(design.scale_factor(4))
    for step in range(STEPS):
        w = weights_of_step(design, step)
        if method == "SVRG" and step % 7 == 0:
            snapshot = theta
        old = line_rows(snapshot) if method == "SVRG" else table
        g = line_rows(theta)
        v = w @ (g - old) + scale * old.mean(axis=0)
        table = np.where((w != 0)[:, None], g, table)
        theta = theta - RATE * (table.mean(axis=0) if method == "SAG" else v)
        path.append(theta)
    return np.array(path)


def run(method: str, design: Any) -> tuple[np.ndarray, Any]:
    """The same with the library, in one scan."""
    loss_fn, params, data = problems.line_fit(0.0, 0.0)
    estimator: Any = {
        "SVRG": lambda: SVRG(loss_fn, design, refresh_every=7),
        "SAGA": lambda: SAGA(loss_fn, design),
        "SAG": lambda: SAG(loss_fn, design),
    }[method]()
    optimizer = optax.sgd(RATE)

    def step(carry: Any, _: Any) -> Any:
        params, state, opt_state = carry
        gradient, state = estimator.estimate(params, state, data)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, state, opt_state), (params["b"], params["m"])

    start = params, estimator.init(KEY, params, data), optimizer.init(params)
    go = jax.jit(lambda start: jax.lax.scan(step, start, length=STEPS), compiler_options=QUICK)
    (_, state, _), path = go(start)
    return np.stack(path, axis=1), state


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("SAGA", "importance"),
        ("SVRG", "reshuffling"),
        ("SAG", "bernoulli"),
        *(pytest.param("SAGA", name, marks=pytest.mark.slow) for name in ("without", "with", "poisson", "reshuffling")),
        *(pytest.param("SVRG", name, marks=pytest.mark.slow) for name in ("with", "bernoulli", "sum")),
        *(pytest.param("SAG", name, marks=pytest.mark.slow) for name in ("with", "stratified")),
    ],
)
def test_a_run_is_the_loop(method: str, name: str) -> None:
    """Catches rows replaced before they are used, counted twice, or of the wrong example; a snapshot renewed late."""
    path, state = run(method, RUNS[name]())
    expected = loop(method, RUNS[name]())
    assert_close(path, expected, atol=1e-10 * np.abs(expected).max())
    assert int(state.step) == STEPS
    if method != "SVRG":
        assert_close(flat(state.mean), flat(state.table.mean()), atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("method", [SVRG, SAGA, SAG])
def test_law_of_a_state_is_that_of_its_next_estimate(method: Any) -> None:
    """In the middle of a run, against all six pairs of four examples."""
    loss_fn, params, data = problems.line_fit(0.5, 0.0)
    moved, design = problems.line_fit(0.9, -0.3).params, designs.WithoutReplacement(2)
    estimator = method(loss_fn, design, *([10] if method is SVRG else []))
    state = estimator.init(KEY, params, data)
    estimate = jax.jit(estimator.estimate, compiler_options=QUICK)
    _, state = estimate(params, state, data)
    law = estimator.law(moved, state, data)
    keys = jax.random.split(KEY, 60)
    values = np.round([flat(estimate(moved, state._replace(key=key), data)[0]) for key in keys], 9)
    distinct = np.unique(values, axis=0)
    assert len(distinct) == 6
    assert_close(flat(law.mean), distinct.mean(axis=0), atol=1e-8)
    assert_close(law.variance, np.sum((distinct - distinct.mean(axis=0)) ** 2) / 6, atol=1e-7)
    bias = np.abs(flat(law.mean) - line_rows(np.array([-0.3, 0.9])).mean(axis=0)).max()
    assert bias > 0.1 if method is SAG else bias < 1e-12


def test_constant_steps_converge_where_sgd_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of SGD stays at the minimum of the mean, (11/10, 11/10); that of SAGA vanishes on the way there."""
    monkeypatch.setitem(globals(), "STEPS", 5000)
    path, _ = run("SAGA", designs.WithoutReplacement(1))
    assert np.abs(path[-50:] - 1.1).max() < 1e-9
    theta, sgd = np.array([0.0, 0.0]), []
    for i in np.random.default_rng(0).integers(4, size=STEPS):
        theta = theta - RATE * line_rows(theta)[i]
        sgd.append(theta)
    assert np.abs(np.array(sgd[-50:]) - 1.1).max() > 0.05


def test_float32_states_keep_their_dtypes() -> None:
    """Under scan, a dtype that changes is an error; estimates have the dtypes of the parameters."""
    problem = gradients_given(GRADIENTS, jnp.float32)
    for estimator in (SVRG(problem.loss_fn, designs.Bernoulli(0.5), 3), SAG(problem.loss_fn, designs.Bernoulli(0.5))):
        state = estimator.init(KEY, problem.params, problem.data)

        def step(state: Any, _: Any, estimator: Any = estimator) -> Any:
            gradient, state = estimator.estimate(problem.params, state, problem.data)
            return state, gradient

        _, gradients = jax.lax.scan(step, state, length=4)
        assert gradients.dtype == jnp.float32
