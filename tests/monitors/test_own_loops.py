"""Monitors in the training loops that people have: the numbers are those of ``run_sgd``, whoever calls ``update``."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from jaxsgd import designs, monitors, per_example_gradients, training
from tests.support.registry import skewed

KEY = jax.random.key(5)
X, Y = jnp.asarray(skewed(12, 3)), jnp.asarray(skewed(12, seed=1))
PARAMS = {"w": jnp.asarray([0.3, -1.0, 0.5]), "b": jnp.asarray(0.2)}
DESIGN, NUM_STEPS = designs.Reshuffling(4), 6


def predict(w, b, x):
    return jnp.tanh(x @ w) + b


def loss_fn(params, example):
    x, y = example
    return (predict(params["w"], params["b"], x) - y) ** 2


def watched():
    return monitors.noise_scale(every=2, decay=0.5)


def batches():
    """Those of the first run of ``run_sgd``."""
    draws = designs.batches(DESIGN, len(X))
    state, key = draws.start(), jax.random.fold_in(KEY, 0)
    for step in range(NUM_STEPS):
        state, draw = draws(state, key, step)
        yield draw.take((X, Y))


@pytest.fixture(scope="module")
def expected():
    """What ``run_sgd`` shows after the last step, and where it ends."""
    result = training.run_sgd(
        loss_fn, PARAMS, (X, Y), optax.adam(0.1), DESIGN, NUM_STEPS, KEY, monitors=[watched()], record_every=NUM_STEPS
    )
    readings = {name: values[-1] for name, values in result.metrics.items() if name != "loss"}
    assert len(readings) == 6
    return readings, result.params


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


@pytest.fixture(autouse=True)
def default_promotion():
    """Flax and Optax promote dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("lazily", [False, True])
def test_train_state(expected, lazily) -> None:
    """``apply_gradients`` hands nothing on to ``update``; a function saves the steps at which nothing is measured."""

    @jax.jit
    def train_step(state, batch):
        g = per_example_gradients(loss_fn)(state.params, batch)
        state = monitors.observe(state, per_example_gradients=(lambda: g) if lazily else g)
        return state.apply_gradients(grads=g.mean())

    tx = monitors.observed(optax.chain(watched(), optax.adam(0.1)))
    state = TrainState.create(apply_fn=predict, params=PARAMS, tx=tx)
    for batch in batches():
        state = train_step(state, batch)
    assert_same(monitors.readings(state), expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), state.params, expected[1])


def test_nnx_optimizer(expected) -> None:
    class Net(nnx.Module):
        def __init__(self):
            self.w, self.b = nnx.Param(PARAMS["w"]), nnx.Param(PARAMS["b"])

    net = Net()
    optimizer = nnx.Optimizer(net, optax.chain(watched(), optax.adam(0.1)), wrt=nnx.Param)

    @nnx.jit
    def train_step(net, optimizer, batch):
        definition, params = nnx.split(net, nnx.Param)

        def loss(params, example):
            model = nnx.merge(definition, params)
            return (predict(model.w[...], model.b[...], example[0]) - example[1]) ** 2

        g = per_example_gradients(loss)(params, batch)
        optimizer.update(net, g.mean(), per_example_gradients=g)

    for batch in batches():
        train_step(net, optimizer, batch)
    assert_same(monitors.readings(optimizer.opt_state), expected[0])


def test_equinox_and_optax(expected) -> None:
    class Net(eqx.Module):
        w: jax.Array
        b: jax.Array
        activation: object = jnp.tanh

        def __call__(self, x):
            return self.activation(x @ self.w) + self.b

    net, optimizer = Net(**PARAMS), optax.chain(watched(), optax.adam(0.1))

    @eqx.filter_jit
    def train_step(net, state, batch):
        params, static = eqx.partition(net, eqx.is_inexact_array)

        def loss(params, example):
            return (eqx.combine(params, static)(example[0]) - example[1]) ** 2

        g = per_example_gradients(loss)(params, batch)
        updates, state = optimizer.update(g.mean(), state, params, per_example_gradients=g)
        return eqx.apply_updates(net, updates), state

    state = optimizer.init(eqx.filter(net, eqx.is_inexact_array))
    for batch in batches():
        net, state = train_step(net, state, batch)
    assert_same(monitors.readings(state), expected[0])


def of_batches(some):
    """The readings of a monitor that was shown gradients one after the other, without any optimizer."""
    monitor = monitors.noise_scale(decay=0.5)
    state = monitor.init(PARAMS)
    for g in some:
        state = monitors.observe(state, per_example_gradients=g)
    return monitors.readings(state)


@pytest.mark.parametrize("inside", [False, True])
def test_multi_steps(inside) -> None:
    """In front of ``MultiSteps`` every microbatch is measured, inside it the last of each step, with its own mean.

    Catches the mean of all microbatches, which ``MultiSteps`` hands on as the updates, beside the terms of the last.
    """
    monitor = monitors.noise_scale(decay=0.5)
    optimizer = (
        optax.MultiSteps(optax.chain(monitor, optax.sgd(0.1)), every_k_schedule=3)
        if inside
        else optax.chain(monitor, optax.MultiSteps(optax.sgd(0.1), every_k_schedule=3).gradient_transformation())
    )

    @jax.jit
    def train_step(params, state, batch):
        g = per_example_gradients(loss_fn)(params, batch)
        updates, state = optimizer.update(g.mean(), state, params, per_example_gradients=g)
        return optax.apply_updates(params, updates), state, g

    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    for batch in batches():
        params, state, g = train_step(params, state, batch)
        seen.append(g)
    assert_same(monitors.readings(state), of_batches(seen[2::3] if inside else seen))
    assert not np.allclose(params["w"], PARAMS["w"])


def test_multi_steps_in_a_train_state() -> None:
    """What is observed stays, whichever of the two states ``MultiSteps`` keeps."""
    inner = monitors.observed(optax.chain(monitors.noise_scale(decay=0.5), optax.sgd(0.1)))
    tx = optax.MultiSteps(inner, every_k_schedule=3).gradient_transformation()
    state, seen = TrainState.create(apply_fn=predict, params=PARAMS, tx=tx), []
    for batch in batches():
        seen.append(per_example_gradients(loss_fn)(state.params, batch))
        state = monitors.observe(state, per_example_gradients=seen[-1])
        state = state.apply_gradients(grads=seen[-1].mean())
    assert_same(monitors.readings(state), of_batches(seen))


@pytest.mark.parametrize("wrapped", [lambda many: many, lambda many: many.gradient_transformation()])
def test_what_wraps_multi_steps(wrapped) -> None:
    """``observed`` around ``MultiSteps`` reaches the monitors inside. Catches a request to do what was done."""
    inner = optax.chain(monitors.noise_scale(decay=0.5), optax.sgd(0.1))
    optimizer = monitors.observed(wrapped(optax.MultiSteps(inner, every_k_schedule=2)))
    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    for batch in batches():
        seen.append(per_example_gradients(loss_fn)(params, batch))
        state = monitors.observe(state, per_example_gradients=seen[-1])
        updates, state = optimizer.update(seen[-1].mean(), state, params)
        params = optax.apply_updates(params, updates)
    assert_same(monitors.readings(state), of_batches(seen))


def test_behind_clipping() -> None:
    """The gradient that is measured is that of the batch. Catches ‖clipped‖² in place of ‖ĝ‖²."""
    g = per_example_gradients(loss_fn)(PARAMS, (X, Y))
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), monitors.noise_scale(decay=0.5))
    _, state = optimizer.update(g.mean(), optimizer.init(PARAMS), PARAMS, per_example_gradients=g)
    assert_same(monitors.readings(state), of_batches([g]))


def test_every_monitor_can_be_observed() -> None:
    """In one chain, from one call; each as if ``update`` had been given the same."""
    chain = optax.chain(
        monitors.noise_scale(),
        monitors.two_batch_noise_scale(),
        monitors.gradient_snr(per_coordinate=True),
        monitors.gradient_tests(),
        monitors.full_gradient_cosine(),
    )
    g = per_example_gradients(loss_fn)(PARAMS, (X[:4], Y[:4]))
    shown = {"per_example_gradients": g, "full_gradient": per_example_gradients(loss_fn)(PARAMS, (X, Y)).mean}
    _, state = chain.update(g.mean(), chain.init(PARAMS), PARAMS, **shown)
    optimizer = monitors.observed(chain)
    observed = monitors.observe(optimizer.init(PARAMS), **shown)
    _, observed = optimizer.update(g.mean(), observed, PARAMS)
    assert_same(monitors.readings(observed), monitors.readings(state))
    given = monitors.observe(optimizer.init(PARAMS), grad=g.mean(), **shown)
    assert_same(monitors.readings(given), monitors.readings(state))


def test_group_gradients_can_be_observed() -> None:
    groups = jnp.asarray([[1.0, 2.0], [3.0, 2.0]])
    chain = optax.chain(monitors.two_batch_noise_scale(group_size=2), monitors.full_gradient_cosine())
    state = monitors.observe(chain.init(groups[0]), group_gradients=groups, full_gradient=jnp.asarray([2.0, 2.0]))
    found = monitors.readings(state)
    assert float(found["two_batch/noise_scale"]) == pytest.approx(4 / 7)
    assert float(found["full_gradient_cosine"]) == pytest.approx(1.0)


def test_weighted_terms_have_their_own_mean() -> None:
    """Without ``grad``, ĝ is the mean of the m terms that were drawn. Catches the mean over all places."""
    g = per_example_gradients(loss_fn)(PARAMS, (X, Y))
    drawn = jnp.arange(12) % 3 == 0
    terms = monitors.Terms(g.scaled(jnp.where(drawn, 0.25, 0.0)), 4.0, drawn)
    some = per_example_gradients(loss_fn)(PARAMS, (X[::3], Y[::3]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), terms.mean(), some.mean())


def test_under_a_mesh(expected) -> None:
    """A loop under ``jax.set_mesh``, on as many devices as there are."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    optimizer = optax.chain(watched(), optax.adam(0.1))

    @jax.jit
    def train_step(params, state, batch):
        batch = jax.lax.with_sharding_constraint(batch, split)
        g = per_example_gradients(loss_fn)(params, batch)
        updates, state = optimizer.update(g.mean(), state, params, per_example_gradients=g)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        params, state = PARAMS, optimizer.init(PARAMS)
        for batch in batches():
            params, state = train_step(params, state, batch)
        assert_same(monitors.readings(state), expected[0])
