"""One of two processes that share data, started by ``test_distributed``: index, port, what to do, and a folder."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsgd
from jaxsgd import designs, estimators, problems, sweeps, training
from tests import conftest  # noqa: F401 - the strict switches
from tests.support.registry import linear_loss, network, skewed

N = 24
LOST_AFTER = 10  # seconds without a sign of life, after which JAX takes a process for dead


def data() -> Any:
    return {"x": skewed(N, 3), "y": skewed(N, 2, seed=1)}


def problem() -> tuple[Any, Any]:
    loss_fn, params, _ = problems.mlp(data()["x"], data()["y"], key=jax.random.key(1), hidden=4)
    return loss_fn, params


def shared(local: Any, index: int, axes: AxisType = AxisType.Auto) -> Any:
    """The data of both processes, of which each gives its own half."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axes,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    mine = slice(index * N // 2, (index + 1) * N // 2)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(split, leaf[mine]), local)


def assert_close(found: Any, truth: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-10, atol=1e-12)


def measure(index: int, folder: Path) -> None:
    """Moments and messages are those of one process."""
    loss_fn, rows = linear_loss, skewed(N, 3)
    parts, params = shared(rows, index), jax.numpy.ones(3)
    assert not parts.is_fully_addressable
    truth = jaxsgd.gradient_moments(loss_fn, params, jax.numpy.asarray(rows), per_coordinate=True)
    assert_close(jaxsgd.gradient_moments(loss_fn, params, parts, chunk_size=4, per_coordinate=True), truth)
    explicit = shared(rows, index, AxisType.Explicit)
    assert_close(jaxsgd.gradient_moments(loss_fn, params, explicit, chunk_size=4, per_coordinate=True), truth)
    with jax.set_mesh(explicit.sharding.mesh):
        g = jax.jit(jaxsgd.per_example_gradients(loss_fn))(params, explicit)
        assert_close(g.total_deviation(), truth.sum_squared_deviations)
        assert_close(jaxsgd.noise_scale(g).trace_covariance, truth.trace_covariance(ddof=1))
    rows[17, 1] = np.inf
    message = "got inf for example 17 in params"
    with pytest.raises(ValueError, match=message):
        jaxsgd.gradient_moments(loss_fn, params, shared(rows, index), chunk_size=4, per_coordinate=True)


def noisy(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    return linear_loss(params, x) * jax.random.uniform(key)


def draw_keys(index: int, folder: Path) -> None:
    """Every example has the key of its number among all. Catches processes that each count their own from 0."""
    key, rows, params = jax.random.key(3), skewed(N, 3), jax.numpy.ones(3)
    whole = jax.numpy.asarray(rows)
    truth = jaxsgd.gradient_moments(noisy, params, whole, key=key, per_coordinate=True)
    norms = np.asarray(jaxsgd.per_example_gradients(noisy)(params, whole, key=key).squared_norms())
    mine = slice(index * N // 2, (index + 1) * N // 2)
    assert not np.allclose(
        norms[: N // 2] / (rows[: N // 2] ** 2).sum(1), norms[N // 2 :] / (rows[N // 2 :] ** 2).sum(1)
    )
    for axes in (AxisType.Auto, AxisType.Explicit):
        parts = shared(rows, index, axes)
        for chunk_size in (4, 5):
            found = jaxsgd.gradient_moments(noisy, params, parts, key=key, chunk_size=chunk_size, per_coordinate=True)
            assert_close(found, truth)
        with jax.set_mesh(parts.sharding.mesh):
            found = jax.jit(jaxsgd.per_example_gradients(noisy))(params, parts, key=key).squared_norms()
        (local,) = found.addressable_shards
        assert_close(local.data, norms[mine])


def estimate(index: int, folder: Path) -> None:
    """Estimates and curves are those of one process."""
    loss_fn, params = problem()
    whole, parts = jax.tree.map(jax.numpy.asarray, data()), shared(data(), index)

    def estimates(data: Any) -> Any:
        g = jaxsgd.per_example_gradients(loss_fn)(params, data)
        importance = designs.Importance(estimators.optimal_probabilities(g), 3)
        without = designs.WithoutReplacement(3)
        return (
            estimators.exact(importance, g),
            estimators.monte_carlo(without, g, key=jax.random.key(0), num_draws=10),
            estimators.variance_curve(g).variance,
            estimators.monte_carlo_curve(g, key=jax.random.key(0), num_draws=4).squared_mean_error,
        )

    assert_close(estimates(parts), estimates(whole))


def train(index: int, folder: Path, dies: bool = False) -> None:
    """A run with a checkpoint; one of the processes may be killed in the middle of it."""

    def progress(step: int, num_steps: int) -> None:
        if dies and index == 1 and step == 30:
            os.kill(os.getpid(), signal.SIGKILL)

    loss_fn, params = problem()
    design = designs.WithoutReplacement(6)
    arguments = (optax.sgd(0.01, momentum=0.9), design, 60, jax.random.key(0))
    result = training.run_sgd(
        loss_fn,
        params,
        shared(data(), index),
        *arguments,
        record_every=10,
        checkpoint=folder / "run.npz",
        progress=progress,
    )
    one = training.run_sgd(loss_fn, params, data(), *arguments, record_every=10)
    assert_close(result, one)
    (folder / f"params{index}").write_bytes(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result)))


def train_and_die(index: int, folder: Path) -> None:
    train(index, folder, dies=True)


def train_apart(index: int, folder: Path) -> None:
    """A checkpoint that only the first of the processes sees."""
    train(index, folder if index == 0 else folder / "elsewhere")


def share_a_sweep(index: int, folder: Path) -> None:
    """Every cell is computed by one of the processes, on data of its own."""

    def cell(key: jax.Array, batch_size: int) -> Any:
        with (folder / f"cells of {index}").open("a") as file:
            print(batch_size, file=file)
        design = designs.WithoutReplacement(batch_size)
        return training.run_sgd(*network(), optax.sgd(0.01), design, 5, key)

    table = sweeps.sweep(cell, {"batch_size": [1, 2, 3, 4, 5]}, folder / "cells", jax.random.key(0))
    (folder / f"table{index}").write_bytes(table["loss"].values.tobytes())


if __name__ == "__main__":
    index, port, what, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=LOST_AFTER)
    globals()[what](index, folder)
