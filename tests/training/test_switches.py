"""Runs under the switches that readers turn on: no promotion of dtypes, and a look at every result for NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import designs, monitors, training
from tests.support.registry import network

KEY = jax.random.key(0)
MONITORS = {
    "noise_scale": monitors.noise_scale(every=2),
    "two_batch": monitors.two_batch_noise_scale(),
    "gradient_snr": monitors.gradient_snr(per_coordinate=True),
    "gradient_tests": monitors.gradient_tests(),
    "full_gradient_cosine": monitors.full_gradient_cosine(),
}


@pytest.fixture(autouse=True)
def debug_nans():
    """Tests have strict promotion anyway."""
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    with jax.debug_nans(True):
        yield


@pytest.mark.parametrize("name", ["noise_scale", *(pytest.param(n, marks=pytest.mark.slow) for n in [*MONITORS][1:])])
def test_a_monitor_that_has_measured_nothing_yet(name) -> None:
    """Its readings are NaN at the start, by design; and ``optax.adam`` promotes dtypes inside."""
    loss_fn, params, data = network()
    params, data = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, data))
    result = training.run_sgd(
        loss_fn, params, data, optax.adam(0.1), designs.WithReplacement(4), 3, KEY, monitors=[MONITORS[name]]
    )
    readings = [np.asarray(values) for metric, values in result.metrics.items() if metric != "loss"]
    assert readings
    for values in readings:
        assert np.isnan(values[0])
        assert not np.isnan(values[-1])  # an upper end may be infinite


def test_readings_on_the_host() -> None:
    monitor = monitors.noise_scale()
    found = monitors.readings(monitor.init({"w": jnp.zeros(2, jnp.float32)}))
    assert all(np.isnan(value) for value in found.values())


def test_a_loss_that_turns_to_nan_is_still_found() -> None:
    """Catches a switch that is turned off for more than readings."""
    with pytest.raises(FloatingPointError, match="nan"):
        training.run_sgd(
            lambda p, x: jnp.sqrt(p - x),
            jnp.asarray(1.5),
            jnp.ones(3),
            optax.sgd(4.0),
            designs.WithReplacement(2),
            3,
            KEY,
        )
