"""Runs of SVRG, SAGA and SAG against loops in NumPy that share no code with the package."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import designs, problems
from jaxsgd.variance_reduction import SAG, SAGA, SVRG
from tests.support.models import QUICK
from tests.support.registry import gradients_given, skewed
from tests.support.twins import assert_close, flat

F = Fraction
KEY = jax.random.key(7)


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
    problem = gradients_given(skewed(6, 3), jnp.float32)
    for estimator in (SVRG(problem.loss_fn, designs.Bernoulli(0.5), 3), SAG(problem.loss_fn, designs.Bernoulli(0.5))):
        state = estimator.init(KEY, problem.params, problem.data)

        def step(state: Any, _: Any, estimator: Any = estimator) -> Any:
            gradient, state = estimator.estimate(problem.params, state, problem.data)
            return state, gradient

        _, gradients = jax.lax.scan(step, state, length=4)
        assert gradients.dtype == jnp.float32
