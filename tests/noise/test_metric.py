"""Noise scales under the metric of an optimizer: against the formula, and against what Optax makes of a gradient."""

from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import estimators, moments, monitors, noise
from tests.support.registry import gradients_given, measured, skewed

PARAMS = {"w": jnp.asarray(skewed(3, 2)), "b": jnp.asarray(skewed(2, seed=1))}
DATA = {"x": jnp.asarray(skewed(12, 3, seed=2)), "y": jnp.asarray(skewed(12, 2, seed=3))}
METRIC = {"w": jnp.asarray(skewed(3, 2, seed=4)) + 1, "b": jnp.asarray(skewed(2, seed=5)) + 1}


def loss_fn(params: Any, example: Any) -> jax.Array:
    return jnp.sum((jnp.tanh(example["x"] @ params["w"] + params["b"]) - example["y"]) ** 2)


G = jaxsgd.per_example_gradients(loss_fn)(PARAMS, DATA)
ROWS = np.concatenate([np.asarray(leaf).reshape(12, -1) for leaf in jax.tree.leaves(G.materialize())], axis=1)
D = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(METRIC)])
SIGMA, MEAN = np.cov(ROWS.T, ddof=0), ROWS.mean(axis=0)
B_D = np.trace(np.diag(D) @ SIGMA) / (MEAN @ np.diag(D) @ MEAN)
WEIGHED = measured(gradients_given(ROWS * np.sqrt(D)))


def numbers(found: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(found)])


def test_of_a_whole_population_it_is_the_formula() -> None:
    """B_D = tr(DΣ)/ḡᵀDḡ, in NumPy. Catches D in place of its root, or the root in place of D."""
    found = noise.noise_scale(G, population_size=12, metric=METRIC)
    np.testing.assert_allclose(found.value, B_D, rtol=1e-11)
    assert abs(np.trace(SIGMA) / (MEAN @ MEAN) / B_D - 1) > 0.01


def test_moments_of_every_coordinate_are_enough() -> None:
    problem = gradients_given(ROWS)
    m = jaxsgd.gradient_moments(problem.loss_fn, problem.params, problem.data, per_coordinate=True)
    found = noise.noise_scale(m, population_size=12, metric=jnp.asarray(D))
    np.testing.assert_allclose(found.value, B_D, rtol=1e-11)
    curve = estimators.variance_curve(m, [1, 4], metric=jnp.asarray(D))
    np.testing.assert_allclose(curve.variance, np.trace(np.diag(D) @ SIGMA) * np.array([1, 8 / 44]), rtol=1e-11)


@pytest.mark.slow
def test_the_curve_of_gradients_is_in_the_metric() -> None:
    curve = estimators.variance_curve(G, [1, 4], metric=METRIC)
    np.testing.assert_allclose(curve.variance, np.trace(np.diag(D) @ SIGMA) * np.array([1, 8 / 44]), rtol=1e-11)
    np.testing.assert_allclose(
        moments.of(G, metric=METRIC).squared_norms_mean, moments.of(WEIGHED).squared_norms_mean, rtol=1e-11
    )


@pytest.mark.parametrize("interval", ["score", pytest.param("jackknife", marks=pytest.mark.slow)])
def test_estimate_and_interval_are_those_of_the_weighed_gradients(interval: Any) -> None:
    found = noise.noise_scale(G, metric=METRIC, interval=interval)
    np.testing.assert_allclose(numbers(found), numbers(noise.noise_scale(WEIGHED, interval=interval)), rtol=1e-8)


@pytest.mark.slow
def test_groups_and_several_batches_are_in_the_metric_too() -> None:
    batches = [G.take(slice(6)), G.take(slice(6, None))]
    weighed = [WEIGHED.take(slice(6)), WEIGHED.take(slice(6, None))]
    pooled = noise.noise_scale(batches, metric=METRIC, by=1)
    np.testing.assert_allclose(numbers(pooled.total), numbers(noise.noise_scale(weighed)), rtol=1e-8)
    of_w = G.only(lambda path: "w" in path).in_metric([METRIC["w"]])
    np.testing.assert_allclose(
        numbers(noise.noise_scale(G, metric=METRIC, by=1)["w"]), numbers(noise.noise_scale(of_w)), rtol=1e-8
    )


def test_the_unit_of_the_metric_changes_no_number() -> None:
    """Bit for bit, in float32, where weights are of the order of 2**-40 or 2**40; catches a unit taken before it."""
    with jax.enable_x64(False):
        g = measured(gradients_given(np.float32(ROWS), jnp.float32))
        found = [noise.noise_scale(g, metric=jnp.asarray(np.float32(D) * scale)) for scale in (1.0, 2.0**-40, 2.0**40)]
    for each in found[1:]:
        assert [float(x) for x in (each.value, each.low, each.high)] == [
            float(x) for x in (found[0].value, found[0].low, found[0].high)
        ]


OPTIMIZERS: dict[str, Any] = {
    "adam": optax.adam(1.0, b1=0.0),
    "adamw": optax.adamw(1.0, b1=0.0, weight_decay=0.0, mask={"w": True, "b": False}),
    "amsgrad": optax.amsgrad(1.0, b1=0.0),
    "rmsprop": optax.rmsprop(1.0),
    "rmsprop with bias correction": optax.rmsprop(1.0, bias_correction=True),
    "adagrad": optax.adagrad(1.0),
    "chain": optax.chain(optax.clip(1e9), optax.scale_by_adam(b1=0.0), optax.scale_by_learning_rate(lambda step: 1.0)),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(1.0, b1=0.0, b2=0.9, eps=0.3, eps_root=0.2),
    "injected rmsprop": optax.inject_hyperparams(optax.rmsprop)(1.0, eps=0.3),
    "MultiSteps": optax.MultiSteps(optax.adam(1.0, b1=0.0), every_k_schedule=1),
}


def updated(optimizer: Any, steps: int = 3) -> tuple[Any, Any, Any]:
    """A gradient, what the optimizer makes of it at learning rate 1, and its state then."""
    state, gradient, update = optimizer.init(PARAMS), G.mean(), None
    with jax.numpy_dtype_promotion("standard"):
        for step in range(steps):
            gradient = jax.tree.map(lambda leaf, s=step: leaf * (1 + s), G.mean())
            update, state = optimizer.update(gradient, state, PARAMS)
    return gradient, update, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_metric_is_what_the_optimizer_divides_by(name: str) -> None:
    """Without momentum the update is −P g, so that P² and P follow from two of Optax's arrays."""
    gradient, update, state = updated(OPTIMIZERS[name])
    P = -numbers(update) / numbers(gradient)
    np.testing.assert_allclose(numbers(noise.optimizer_metric(state)), P**2, rtol=1e-9)
    np.testing.assert_allclose(numbers(noise.optimizer_metric(state, of="decrease")), P, rtol=1e-9)


def test_settings_that_the_state_does_not_hold_are_arguments() -> None:
    gradient, update, state = updated(optax.adam(1.0, b1=0.0, b2=0.9, eps=0.3, eps_root=0.2))
    metric = noise.optimizer_metric(state, b2=0.9, eps=0.3, eps_root=0.2)
    np.testing.assert_allclose(numbers(metric), (numbers(update) / numbers(gradient)) ** 2, rtol=1e-9)
    _, _, state = updated(OPTIMIZERS["inject_hyperparams"])
    given, injected = (noise.optimizer_metric(state, **eps) for eps in ({"eps": 0.5}, {}))
    assert (numbers(given) < numbers(injected)).all()


def test_a_state_is_its_metric_of_updates() -> None:
    _, _, state = updated(OPTIMIZERS["rmsprop"])
    expected = G.in_metric(noise.optimizer_metric(state)).squared_norms()
    np.testing.assert_array_equal(G.in_metric(state).squared_norms(), expected)


def test_under_jit_a_metric_is_not_looked_at() -> None:
    traced = jax.jit(lambda d: G.in_metric(d).total_deviation())(METRIC)
    np.testing.assert_allclose(traced, WEIGHED.total_deviation(), rtol=1e-11)


def test_the_mean_sign_of_a_normal_gradient() -> None:
    mean, deviation = np.array([-0.5, 0.1, 2.0]), np.array([1.0, 3.0, 0.5])
    for M in (1, 9):
        found = noise.expected_sign(jnp.asarray(mean), jnp.asarray(deviation**2), M)
        truth = [1 - 2 * NormalDist().cdf(-(M**0.5) * m / s) for m, s in zip(mean, deviation, strict=True)]
        np.testing.assert_allclose(found, truth, rtol=1e-12)
    sure = noise.expected_sign(jnp.asarray([-3.0, 0.0]), jnp.zeros(2), 4)
    assert sure.tolist() == [-1, 0]


def test_the_metric_of_signs_is_their_response_to_small_means() -> None:
    """d E sign(ĝ_j)/dμ_j at 0, squared, up to one constant for all coordinates; none where nothing varies."""
    variance = jnp.asarray([0.25, 1.0, 9.0])
    slope = 1e6 * np.asarray(noise.expected_sign(1e-6 * jnp.ones(3), variance, 16))
    metric = np.asarray(noise.sign_metric(variance))
    np.testing.assert_allclose(metric / metric[0], (slope / slope[0]) ** 2, rtol=1e-9)
    np.testing.assert_allclose(noise.sign_metric(variance, of="decrease"), np.sqrt(metric), rtol=1e-12)
    least = noise.sign_metric(jnp.asarray([0.0, 1.0]))
    assert 0 < float(least[0]) < 1e-300


@jax.numpy_dtype_promotion("standard")  # which Optax is written for
def test_monitors_read_what_they_are_shown() -> None:
    """A monitor that is shown gradients in the metric of a live state reads the noise scale in it, under jit too."""
    params, data = PARAMS, DATA
    optimizer = monitors.observed(optax.chain(monitors.noise_scale(decay=0.0), optax.adam(1e-2)))

    @jax.jit
    def step(params, state, data):
        g = jaxsgd.per_example_gradients(loss_fn)(params, data)
        state = monitors.observe(state, per_example_gradients=g.in_metric(noise.optimizer_metric(state)))
        updates, state = optimizer.update(g.mean(), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    _, state = optimizer.update(g.mean(), state, params)
    expected = jaxsgd.noise_scale(g, metric=state)
    _, state = step(params, state, data)
    found = monitors.readings(state)
    np.testing.assert_allclose(found["noise_scale"], expected.value, rtol=1e-5)
    np.testing.assert_allclose(found["trace_covariance"], expected.trace_covariance, rtol=1e-5)
