"""Runs of SGD on a small network, and comparisons of what they give."""

import jax
import numpy as np
import optax
import pytest

from jaxsgd import designs, monitors, training
from tests.support.registry import network

KEY = jax.random.key(7)
with_optax = pytest.mark.usefixtures("optax_promotes")  # of the conftest


def run(problem=None, optimizer=None, design=None, num_steps=5, key=KEY, **options):
    loss_fn, params, data = problem or network()
    return training.run_sgd(
        loss_fn,
        params,
        data,
        optimizer or optax.sgd(0.1),
        design or designs.WithoutReplacement(3),
        num_steps,
        key,
        **options,
    )


def assert_close(first, second, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), first, second)


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        a, b = (jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


ALL_MONITORS = (
    monitors.noise_scale(),
    monitors.noise_scale(every=3, name="third", centered=True, where=lambda path: "hidden" in path),
    monitors.two_batch_noise_scale(num_groups=3),
    monitors.gradient_snr(per_coordinate=True, every=2),
    monitors.gradient_tests(),
    monitors.full_gradient_cosine(every=2),
)
