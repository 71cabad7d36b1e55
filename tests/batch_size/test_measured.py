"""The critical batch size by branches: of quadratics, where steps are known in closed form, and of what goes wrong."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import batch_size, designs, training
from jaxsgd.batch_size import _branches, _measured

RATES = 2.0 ** np.arange(-3, 1)


def loss_fn(params, example):
    """A quadratic whose examples have minima of their own, with its mean loss shifted to ½‖θ‖²."""
    return 0.5 * jnp.sum((params - example) ** 2) - 0.5 * jnp.sum(example**2)


def noisy(sigma: float, dimension: int = 20, count: int = 64) -> jax.Array:
    """Minima that average to 0, with covariance σ² I."""
    drawn = np.random.default_rng(0).normal(size=(count, dimension))
    drawn -= drawn.mean(axis=0)
    values, vectors = np.linalg.eigh(drawn.T @ drawn / count)
    return jnp.asarray(sigma * drawn @ vectors @ np.diag(values**-0.5) @ vectors.T)


def expected_loss(steps, rate, size, dimension, start, sigma):
    """½ E‖θ‖² after steps of SGD with replacement: exact, as all curvatures are 1."""
    contraction = (1 - rate) ** 2
    noise = rate**2 * sigma**2 * dimension / size
    return 0.5 * (contraction**steps * start + noise * (1 - contraction**steps) / (1 - contraction))


def test_fewest_steps_are_those_of_the_closed_form() -> None:
    """At each batch size the best of the tried rates, and the steps it takes, are those of the exact recursion."""
    dimension, sigma, target = 20, 2.0, 0.05
    data, theta = noisy(sigma, dimension), jnp.full(dimension, 1.0)
    measured = batch_size.measure_critical(
        loss_fn,
        theta,
        data,
        optax.sgd,
        jax.random.key(0),
        target=target,
        learning_rates=(0.1, 0.2, 0.4),
        batch_sizes=(8, 32, 128),
        num_runs=16,
    )
    start = float(jnp.sum(theta**2))
    for trial in measured.trials:
        steps = np.arange(4000)
        exact = []
        for rate in trial.learning_rates:
            losses = expected_loss(steps, rate, trial.batch_size, dimension, start, sigma)
            exact.append(batch_size.steps_to_target(steps, losses, target))
        assert trial.fewest_steps == pytest.approx(min(exact), rel=0.08)
        assert trial.learning_rates[0] < trial.best_rate < trial.learning_rates[-1]
    fit = measured.tradeoff
    assert fit.low <= fit.critical_batch_size <= fit.high  # infinite, as a curvature of 1 needs one step without noise
    assert "critical batch size" in str(measured)
    assert len(str(measured).splitlines()) == 5


def race(fastest: float, limit_of_rate: float = np.inf):
    """Runs whose steps to the loss 1 are least at one rate, and that diverge beyond another."""

    def run(num_steps, learning_rates, record_every, stop_when):
        steps, losses = np.arange(num_steps + 1), []
        for rate in learning_rates:
            needed = 50 * (1 + np.log2(rate / fastest) ** 2)
            diverges = rate > limit_of_rate
            losses.append(np.where(diverges & (steps > 0), np.nan, 2 * 0.5 ** (steps / needed)))
        losses = np.asarray(losses)[:, None]
        last = next((k for k in range(num_steps + 1) if stop_when(k, {"loss": losses[..., k]})), num_steps)
        return SimpleNamespace(steps=steps[: last + 1], metrics={"loss": losses[..., : last + 1]})

    return run


@pytest.mark.parametrize("fastest", [2.0**-9, 2.0**-2, 2.0**7])
def test_grids_are_widened_until_the_best_rate_is_inside(fastest: float) -> None:
    trial = _measured._tried(race(fastest), 8, RATES, 1.0, 10_000, 5)
    assert trial.best_rate == pytest.approx(fastest)
    assert trial.fewest_steps == pytest.approx(50, abs=1)
    assert (trial.widened > 0) == (fastest != 2.0**-2)
    np.testing.assert_allclose(np.diff(np.log2(trial.learning_rates)), 1)


def test_rates_that_diverge_lead_to_lower_ones() -> None:
    trial = _measured._tried(race(2.0**-6, limit_of_rate=2.0**-5.5), 8, RATES, 1.0, 10_000, 5)
    assert trial.best_rate == pytest.approx(2.0**-6)


def test_the_largest_batch_without_harm() -> None:
    """Losses of known means: the value follows the means, the interval their errors."""
    noise = np.random.default_rng(0).normal(size=(5, 8))
    noise -= noise.mean(axis=1, keepdims=True)
    means = np.array([1.0, 1.0, 1.005, 1.05, 1.5])[:, None]
    sizes = [8, 16, 32, 64, 128]
    assert _branches._largest(sizes, means + 1e-5 * noise, 0.01, 0.95) == (32, 32, 64.0)
    value, low, high = _branches._largest(sizes, means + 0.15 * noise, 0.01, 0.95)
    assert (value, low, high) == (32, 8, 128.0)
    diverged = means + 1e-5 * noise
    diverged[3, 0] = np.inf
    assert _branches._largest(sizes, diverged, 0.01, 0.95)[0] == 32
    assert _branches._largest(sizes, 1 + 1e-5 * noise, 0.01, 0.95) == (128, 128, np.inf)


def test_branches_follow_the_linear_rule_on_a_quadratic() -> None:
    """Equal examples at ηk and kM: harmless while kη is small against 1, and not where the step is 1 long or more."""
    data, theta = noisy(0.3), jnp.full(20, 1.0)
    found = batch_size.branched_critical(
        loss_fn,
        theta,
        data,
        optax.sgd,
        jax.random.key(1),
        batch_size=1,
        learning_rate=0.03,
        num_examples=128,
        tolerance=0.05,
        multiples=(2, 4, 64),
        num_runs=16,
    )
    exact = [
        expected_loss(128 / M, rate, M, 20, 20.0, 0.3)
        for M, rate in zip(found.batch_sizes, found.learning_rates, strict=True)
    ]
    errors = found.losses.std(axis=1, ddof=1) / 4
    assert np.all(np.abs(found.losses.mean(axis=1) - exact) < 5 * errors + 1e-6)
    assert found.learning_rates == pytest.approx((0.03, 0.06, 0.12, 1.92))
    assert (found.low, found.value, found.high) == (4, 4, 64.0)
    assert "up to a batch size of 4" in str(found)


def test_a_state_of_the_optimizer_is_gone_on_with() -> None:
    """Two runs, one after the other, are one run."""
    data, design, key = noisy(0.5), designs.WithReplacement(4), jax.random.key(0)
    optimizer = optax.adam(0.05)
    first = training.run_sgd(loss_fn, jnp.ones(20), data, optimizer, design, 5, key)
    second = training.run_sgd(loss_fn, first.params, data, optimizer, design, 5, key, opt_state=first.opt_state)
    fresh = training.run_sgd(loss_fn, first.params, data, optimizer, design, 5, key)
    assert int(second.opt_state[0].count) == 10
    assert not np.allclose(second.params, fresh.params)

    rated = training.run_sgd(
        loss_fn, first.params, data, optax.adam, design, 5, key, opt_state=first.opt_state, learning_rates=[0.05, 0.5]
    )
    np.testing.assert_allclose(rated.params[0], second.params, rtol=1e-6)


def test_a_run_stops_at_the_record_that_says_so(tmp_path) -> None:
    arguments = (loss_fn, jnp.ones(20), noisy(0.1), optax.sgd(0.1), designs.WithReplacement(4), 100, jax.random.key(0))
    options = {"record_every": 5, "checkpoint": tmp_path / "run", "stop_when": lambda _, m: m["loss"] < 1}
    stopped = training.run_sgd(*arguments, **options)
    whole = training.run_sgd(*arguments, record_every=5)
    assert stopped.steps[-1] < 100
    assert stopped.metrics["loss"][-1] < 1 <= stopped.metrics["loss"][-2]
    np.testing.assert_array_equal(stopped.metrics["loss"], whole.metrics["loss"][: len(stopped.steps)])
    again = training.run_sgd(*arguments, **options)
    np.testing.assert_array_equal(again.steps, stopped.steps)


def test_losses_are_those_of_other_examples() -> None:
    data = noisy(1.0)
    arguments = (loss_fn, jnp.ones(20), data, optax.sgd(0.1), designs.WithReplacement(4), 3, jax.random.key(0))
    found, plain = training.run_sgd(*arguments, eval_data=data[:3]), training.run_sgd(*arguments)
    expected = jax.vmap(loss_fn, (None, 0))(plain.params, data[:3]).mean()
    np.testing.assert_allclose(found.metrics["loss"][-1], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.params, plain.params)
