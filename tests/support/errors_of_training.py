"""Error cases of runs, monitors and sweeps: the exception, its message, and the call that gives it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsgd import designs, monitors, problems, sweeps, tracking, training
from jaxsgd._core import devices
from tests.support.error_helpers import KEY, ONE, Case, G, gradients, streamed, trained
from tests.support.registry import linear_loss

LINE = problems.line_fit()


def trained_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of several processes that do not read the same checkpoint."""
    monkeypatch.setattr(devices, "agree", lambda mesh, number: False)
    return trained(checkpoint=path / "run.npz")


def on_explicit_axes() -> Any:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    batch = jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec("data")))
    return jax.jit(lambda batch: gradients(batch=batch).squared_norms())(batch)


def swept(grid: Any, run: Any = lambda key, **_: {"value": 1.0}, folder: Any = "unused") -> Any:
    return sweeps.sweep(run, grid, folder, KEY)


def monitored(monitor: Any, g: Any = G, **extra: Any) -> Any:
    return monitor.update(g.mean(), monitor.init(g.mean()), **extra)


def without(module: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, module, None)
    return call()


class Unhashable(designs.WithReplacement):
    """A design that no compilation can be kept for."""

    __hash__ = None  # type: ignore[assignment]


def twice(monitor: Any) -> Any:
    return monitors.readings((monitor.init(ONE), monitor.init(ONE)))


CASES: list[Case] = [
    (ValueError, "checkpoint must be in a folder that all processes of the run share, got … run.npz", trained_apart),
    (
        ValueError,
        "arrays under jax.jit must lie on a mesh with automatic axes, as of jax.make_mesh(shape, names, "
        "axis_types=(AxisType.Auto,) * 1), got (Explicit,)",
        lambda *_: on_explicit_axes(),
    ),
    (ValueError, "num_steps must be at least 1, got 0", lambda *_: trained(num_steps=0)),
    (ValueError, "record_every must be at least 1, got 0", lambda *_: trained(record_every=0)),
    (TypeError, "key must be a key such as jax.random.key(0), got 0", lambda *_: trained(key=0)),
    (TypeError, "design must have a method weights(key, population_size), got 3", lambda *_: trained(3)),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: trained(designs.WithoutReplacement(5)),
    ),
    (ValueError, "gradient must be one of factored, plain, got 'exact'", lambda *_: trained(gradient="exact")),
    (TypeError, "optimizer must be an Optax transformation, or a function that", lambda *_: trained(optimizer=0.1)),
    (
        ValueError,
        "optimizer must be an Optax transformation, such as optax.sgd(0.1); a function … needs learning_rates",
        lambda *_: trained(optimizer=optax.sgd),
    ),
    (
        TypeError,
        "optimizer must make an Optax transformation from a learning rate, got ",
        lambda *_: trained(optimizer=lambda rate: rate, learning_rates=[0.1]),
    ),
    (
        ValueError,
        "optimizer must be a function of the learning rate, or have the hyperparameter learning_rate in its state",
        lambda *_: trained(learning_rates=[0.1]),
    ),
    (
        ValueError,
        "learning_rates must be a non-empty vector of finite numbers, got 0.1",
        lambda *_: trained(optimizer=optax.sgd, learning_rates=0.1),
    ),
    (TypeError, "design must be hashable, as frozen dataclasses", lambda *_: trained(Unhashable(2))),
    (
        ValueError,
        "eval_fn must name its metrics by strings other than those of the run, got 'loss'",
        lambda *_: trained(eval_fn=lambda p: {"loss": p["m"]}),
    ),
    (
        ValueError,
        "eval_fn must return one number or a dict of numbers, got … for eval",
        lambda *_: trained(eval_fn=lambda p: jnp.ones(2)),
    ),
    (ValueError, "every must be at least 1, got 0", lambda *_: monitors.noise_scale(every=0)),
    (ValueError, "decay must be at least 0 and below 1, got 1.0", lambda *_: monitors.noise_scale(decay=1.0)),
    (ValueError, "num_groups must be at least 2, got 1", lambda *_: monitors.two_batch_noise_scale(num_groups=1)),
    (ValueError, "terms must be given to _NoiseScale", lambda *_: monitored(monitors.noise_scale())),
    (
        ValueError,
        "where must accept at least one parameter, got none",
        lambda *_: monitored(monitors.noise_scale(where=lambda path: False), per_example_gradients=G),
    ),
    (
        ValueError,
        "where must be None where gradients are computed anew, with a memory_limit",
        lambda *_: monitored(
            monitors.noise_scale(where=lambda path: True), streamed(), per_example_gradients=streamed()
        ),
    ),
    (
        ValueError,
        "num_groups must divide a fixed batch size, got 3 for a batch size that is 4",
        lambda *_: monitored(monitors.two_batch_noise_scale(num_groups=3), per_example_gradients=G),
    ),
    (
        ValueError,
        "group_size must be given to two_batch_noise_scale with group_gradients",
        lambda *_: monitored(monitors.two_batch_noise_scale(), group_gradients=G.materialize()),
    ),
    (
        ValueError,
        "full_gradient must be given to full_gradient_cosine",
        lambda *_: monitored(monitors.full_gradient_cosine()),
    ),
    (ValueError, "name must tell monitors apart, got 'noise_scale' twice", lambda *_: twice(monitors.noise_scale())),
    (ValueError, "grid must map at least one name to its values, got {}", lambda *_: swept({})),
    (ValueError, "grid must not have the name 'key'", lambda *_: swept({"key": [1]})),
    (ValueError, "grid must have a non-empty list of values for a, got []", lambda *_: swept({"a": []})),
    (TypeError, "grid must hold numbers, strings and booleans, got None for a", lambda *_: swept({"a": [None]})),
    (ValueError, "grid must hold different values, got [1, 1] for a", lambda *_: swept({"a": [1, 1]})),
    (
        TypeError,
        "run must return a RunResult or a non-empty dict of arrays, got 3",
        lambda folder, _: swept({"a": [1]}, lambda key, a: 3, folder / "3"),
    ),
    (
        ValueError,
        "run must name the 1 dimensions of value, got ('x', 'y')",
        lambda folder, _: swept({"a": [1]}, lambda key, a: {"value": (("x", "y"), [1.0])}, folder / "xy"),
    ),
    (
        ValueError,
        "run must return arrays of one shape in all cells, got value of shapes",
        lambda folder, _: swept({"a": [1, 2]}, lambda key, a: {"value": np.ones(a)}, folder / "shapes"),
    ),
    (
        ValueError,
        "run must not return dimensions with names of the grid, got a",
        lambda folder, _: swept({"a": [1]}, lambda key, a: {"value": (("a",), [1.0])}, folder / "names"),
    ),
    (
        ValueError,
        "run must return the same coordinates x in all cells",
        lambda folder, _: swept({"a": [1, 2]}, lambda key, a: {"x": (("x",), [a])}, folder / "coordinates"),
    ),
    (
        ImportError,
        "sweep needs xarray: pip install 'jaxsgd[experiments]'",
        lambda _, monkeypatch: without("xarray", lambda: swept({"a": [1]}), monkeypatch),
    ),
    (
        ImportError,
        "TensorBoardWriter needs tensorboardX: pip install 'jaxsgd[tracking]'",
        lambda folder, monkeypatch: without("tensorboardX", lambda: tracking.TensorBoardWriter(folder), monkeypatch),
    ),
    (
        ValueError,
        "the loss of all data must be finite at the start, got nan, and that of example 1 is not",
        lambda *_: training.run_sgd(
            *(linear_loss, ONE, jnp.asarray([1.0, np.nan]), optax.sgd(0.1), designs.WithReplacement(1), 2, KEY)
        ),
    ),
    (TypeError, "num_steps must be an integer, got 3.0", lambda *_: trained(num_steps=3.0)),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (2,) and dtype uint32",
        lambda *_: trained(key=jax.random.PRNGKey(0)),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got 'a' of type str", lambda *_: trained(key="a")),
    (
        TypeError,
        "keep_params_at must be a non-empty sequence of step numbers, got []",
        lambda *_: trained(keep_params_at=[]),
    ),
    (TypeError, "a non-empty sequence of step numbers, got [0.5]", lambda *_: trained(keep_params_at=[0.5])),
    (
        TypeError,
        "keep_params_at must be a non-empty sequence of step numbers, got 2",
        lambda *_: trained(keep_params_at=2),
    ),
    (
        ValueError,
        "keep_params_at must increase, from 0 at least to num_steps = 2 at most, got (0, 3)",
        lambda *_: trained(keep_params_at=[0, 3]),
    ),
    (ValueError, "keep_params_at must increase, from 0 … got (-1, 1)", lambda *_: trained(keep_params_at=[-1, 1])),
    (ValueError, "keep_params_at must increase, from 0 … got (1, 1)", lambda *_: trained(keep_params_at=[1, 1])),
    (
        TypeError,
        "rows must be integers, booleans or a slice, got an array of shape (1,) and dtype float64",
        lambda *_: LINE.take([1.0]),
    ),
    (TypeError, "rows must be integers, booleans or a slice, got an array of shape ()", lambda *_: LINE.take(1)),
    (ValueError, "rows must choose at least one example, got none", lambda *_: LINE.take(slice(4, None))),
    (ValueError, "rows must lie between 0 and 3, the last example, got -1", lambda *_: LINE.take([0, -1])),
    (ValueError, "rows must lie between 0 and 3, the last example, got 4", lambda *_: LINE.take(jnp.asarray([4, 0]))),
    (ValueError, "rows must have shape (4,), got (3,)", lambda *_: LINE.take([True, False, True])),
    (
        TypeError,
        "data must be a pytree of arrays, but data is 'digits.npz' of type str",
        lambda *_: LINE._replace(data="digits.npz").take([0]),
    ),
    (TypeError, "loss_fn must be a function, got 3", lambda *_: problems.mean_loss(3, *LINE[1:])),
]
