"""What the error cases of several rooms use."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import designs, estimators, problems, training
from tests.support.own_designs import Bernoulli
from tests.support.registry import gradients_given, linear_loss, measured

# (exception, its message with " … " for what is left out, the call given tmp_path and monkeypatch)
Case = tuple[type[Exception], str, Callable[[Any, Any], Any]]

KEY = jax.random.key(0)
ONE = jnp.asarray(1.0)
G = measured(problems.line_fit())
PAIR = measured(gradients_given([[1.0, 2.0], [3.0, 4.0]]))
NOT_FINITE = measured(gradients_given([1.0, np.nan]))
TWO_BY_TWO = jnp.ones((2, 2))
LARGE = gradients_given([1.5e19, -1.5e19] * 2, jnp.float32)
FOUR = {"x": jnp.asarray([1.0, 2.0, 4.0, 7.0])}


class Broken(Bernoulli):
    """A design whose support is the list ``p``, of (probability, weights)."""

    def support_size(self, population_size: int) -> int:
        return len(self.p)

    def support(self, population_size: int) -> Iterator[Any]:
        yield from self.p

    def __repr__(self) -> str:
        return "Broken"


def gradients(loss_fn: Any = linear_loss, params: Any = ONE, batch: Any = (1.0, 2.0)) -> Any:
    batch = jnp.asarray(batch) if isinstance(batch, tuple) else batch
    return jaxsgd.per_example_gradients(loss_fn)(params, batch)


def two_leaves(params: Any, example: Any) -> Any:
    return params["a"] * example["x"] + params["b"] * jnp.log(example["x"])


def bad_data(**options: Any) -> Any:
    """The moments of data with log(0) in example 5, for the parameter b."""
    x = jnp.arange(5.0, -1.0, -1.0)
    data = iter([{"x": x[:4]}, {"x": x[4:]}]) if options.pop("iterate", False) else {"x": x}
    return jaxsgd.gradient_moments(two_leaves, {"a": ONE, "b": ONE}, data, **options)


def random_loss() -> Any:
    """A loss that draws a number of NumPy's."""
    generator = np.random.default_rng(0)
    return lambda p, x: jnp.sum(p * x) * generator.random()


def additivity_of(
    loss_fn: Any = lambda t, b: jnp.mean((t - b["x"]) ** 2), params: Any = ONE, batch: Any = None, **key: Any
) -> Any:
    return jaxsgd.check_additivity(loss_fn, params, FOUR if batch is None else batch, **key)


def batch_loss_over(design: Any = None, loss_fn: Any = lambda t, x: t * jnp.max(x), **options: Any) -> Any:
    """The gradient of the loss of a batch of 1, 2 and 4, over a design."""
    design = designs.WithoutReplacement(2) if design is None else design
    return estimators.batch_loss_gradient(loss_fn, ONE, jnp.asarray([1.0, 2.0, 4.0]), design, **options)


def trained(design: Any = None, optimizer: Any = None, **options: Any) -> Any:
    loss_fn, params, data = problems.line_fit()
    optimizer, design = optimizer or optax.sgd(0.1), design or designs.WithReplacement(2)
    arguments = {"num_steps": 2, "key": KEY} | options
    return training.run_sgd(loss_fn, params, data, optimizer, design, **arguments)


def recomputed() -> Any:
    return jaxsgd.per_example_gradients(linear_loss, memory_limit=100)(jnp.ones(3), jnp.ones((20, 3)))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def without(module: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A call where an optional package is not installed."""
    monkeypatch.setitem(sys.modules, module, None)
    return call()
