"""What several groups of error cases use."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsgd
from jaxsgd import designs, problems, training
from tests.support.own_designs import Bernoulli
from tests.support.registry import gradients_given, linear_loss, measured

KEY = jax.random.key(0)
ONE = jnp.asarray(1.0)
G = measured(problems.line_fit())
PAIR = measured(gradients_given([[1.0, 2.0], [3.0, 4.0]]))
TWO_BY_TWO = jnp.ones((2, 2))
LARGE = gradients_given([1.5e19, -1.5e19] * 2, jnp.float32)


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


# (exception, its message with " … " for what is left out, the call given tmp_path and monkeypatch)
Case = tuple[type[Exception], str, Callable[[Any, Any], Any]]


def trained(design: Any = None, optimizer: Any = None, **options: Any) -> Any:
    loss_fn, params, data = problems.line_fit()
    optimizer, design = optimizer or optax.sgd(0.1), design or designs.WithReplacement(2)
    arguments = {"num_steps": 2, "key": KEY} | options
    return training.run_sgd(loss_fn, params, data, optimizer, design, **arguments)


def recomputed() -> Any:
    return jaxsgd.per_example_gradients(linear_loss, memory_limit=100)(jnp.ones(3), jnp.ones((20, 3)))
