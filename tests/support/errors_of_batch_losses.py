"""Error cases of losses of batches: the exception, its message, and the call that gives it."""

from fractions import Fraction
from typing import Any

import jax.numpy as jnp

import jaxsgd
from jaxsgd import designs, estimators
from tests.support.error_helpers import KEY, ONE, Broken, Case
from tests.support.own_designs import Bernoulli

X = {"x": jnp.asarray([1.0, 2.0, 4.0, 7.0])}


def check(
    loss_fn: Any = lambda t, b: jnp.mean((t - b["x"]) ** 2), params: Any = ONE, batch: Any = None, **key: Any
) -> Any:
    return jaxsgd.check_additivity(loss_fn, params, X if batch is None else batch, **key)


def over(design: Any = None, loss_fn: Any = lambda t, x: t * jnp.max(x), data: Any = None, **options: Any) -> Any:
    design = designs.WithoutReplacement(2) if design is None else design
    data = jnp.asarray([1.0, 2.0, 4.0]) if data is None else data
    return estimators.batch_loss_gradient(loss_fn, ONE, data, design, **options)


def thirds(population_size: int) -> Any:
    return ((1.0, (Fraction(1, 3),) + (Fraction(0),) * (population_size - 1)),)


class Two(Broken):
    """Claims two draws."""

    batch_size = 2


def changing(counter: list[float]) -> Any:
    """A loss that reads a number of Python's, which a trace would hide."""

    def loss(theta: Any, batch: Any) -> Any:
        counter[0] += 1
        return theta * jnp.mean(batch["x"]) * counter[0]

    return loss


def undefined() -> Any:
    """A batch loss that is not finite on some subsets, nor on the whole."""
    return check(lambda t, b: jnp.mean(jnp.log(b["x"]) * t), batch={"x": jnp.asarray([-1.0, 1.0, 2.0, 3.0, 4.0])})


CASES: list[Case] = [
    (
        ValueError,
        "batch_loss_fn must be finite, … on the whole batch, and batch['x'] itself is not, in example 2",
        lambda *_: check(batch={"x": X["x"].at[2].set(jnp.inf)}),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, with a finite gradient, on the whole batch, got nan",
        lambda *_: undefined(),
    ),
    (
        ValueError,
        "the number of examples in batch must be at least 4, got 3",
        lambda *_: check(batch={"x": X["x"][:3]}),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got 3 of type int", lambda *_: check(key=3)),
    (TypeError, "batch_loss_fn must be a function, got 3 of type int", lambda *_: check(3)),
    (
        ValueError,
        "batch_loss_fn(params, batch, key) failed on a batch of 4 examples: TypeError: … positional arguments",
        lambda *_: check(key=KEY),
    ),
    (
        ValueError,
        "batch_loss_fn(params, batch) failed on a batch of 3 examples: TypeError: ",
        lambda *_: over(loss_fn=lambda t, x: x.reshape(2, 2)),
    ),
    (
        ValueError,
        "batch_loss_fn must return one scalar, or (scalar, aux), got an array of shape (4,) and dtype … for 4 examples",
        lambda *_: check(lambda t, b: t * b["x"]),
    ),
    (
        TypeError,
        "batch_loss_fn must return a real floating-point number, got dtype int64",
        lambda *_: check(lambda t, b: jnp.asarray(3)),
    ),
    (
        ValueError,
        "batch must hold different examples, got 4 equal ones, where all forms agree",
        lambda *_: check(batch={"x": jnp.ones(4)}),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite on some subsets of the batch, got none: loss … is not finite on 30 of 30",
        lambda *_: check(lambda t, b: jnp.log(-t) * jnp.mean(b["x"])),
    ),
    (
        ValueError,
        "batch_loss_fn must give the same loss for the same arguments, got … its randomness must come from a key",
        lambda *_: check(changing([0.0])),
    ),
    (
        ValueError,
        "of the loss of batch_loss_fn, and must be at most 0.05 to tell its form",
        lambda *_: check(lambda t, b: jnp.mean(jnp.sin(1e15 * t * b["x"]))),
    ),
    (ValueError, "key must be None unless batches are drawn: give num_draws as well", lambda *_: over(key=KEY)),
    (TypeError, "key must be a key such as jax.random.key(0), got None", lambda *_: over(num_draws=5)),
    (ValueError, "num_draws must be at least 2, got 1", lambda *_: over(key=KEY, num_draws=1)),
    (
        TypeError,
        "design must have a method indices(key, population_size), got Bernoulli",
        lambda *_: over(Bernoulli(Fraction(1, 2)), key=KEY, num_draws=3),
    ),
    (
        ValueError,
        "max_batches must be at least 3 to enumerate WithoutReplacement(batch_size=2), got 2",
        lambda *_: over(max_batches=2),
    ),
    (
        ValueError,
        "design must have no empty batch, on which a batch loss has no value, got Bernoulli",
        lambda *_: over(Bernoulli(Fraction(1, 2))),
    ),
    (
        ValueError,
        "design must have weights n/2 that tell how often an example was drawn, got Broken",
        lambda *_: over(Two(thirds(3))),
    ),
    (
        ValueError,
        "the support of Broken must sum to one, got a sum of 0.5",
        lambda *_: over(Broken(((Fraction(1, 2), (1, 0, 0)),))),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, with a finite gradient, on every batch and on all data",
        lambda *_: over(loss_fn=lambda t, x: jnp.log(t * jnp.var(x)), design=designs.WithReplacement(2)),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 5",
        lambda *_: over(designs.WithoutReplacement(5)),
    ),
]
