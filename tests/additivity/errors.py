"""Every way to be refused by ``additivity``: the exception, its message, and the call that gives it."""

from typing import Any

import jax.numpy as jnp

import jaxsgd
from tests.support.error_helpers import FOUR, Case, additivity_of


def changing(counter: list[float]) -> Any:
    """A loss that reads a number of Python's, which a trace would hide."""

    def loss(theta: Any, batch: Any) -> Any:
        counter[0] += 1
        return theta * jnp.mean(batch["x"]) * counter[0]

    return loss


def undefined() -> Any:
    """A batch loss that is not finite on some subsets, nor on the whole."""
    return additivity_of(
        lambda t, b: jnp.mean(jnp.log(b["x"]) * t), batch={"x": jnp.asarray([-1.0, 1.0, 2.0, 3.0, 4.0])}
    )


def accumulated(step: Any = lambda t, b: jnp.mean(b["x"]), batch: Any = None, **options: Any) -> Any:
    """Of a loss t · mean x, whose gradient does not depend on t."""
    loss = options.pop("loss", lambda t, b: t * jnp.mean(b["x"]))
    options = {"num_microbatches": 2} | options
    return jaxsgd.check_accumulation(step, loss, jnp.asarray(1.0), FOUR if batch is None else batch, **options)


def drifting(counter: list[float]) -> Any:
    """A step that gives another gradient each time."""

    def step(theta: Any, batch: Any) -> Any:
        del theta
        counter[0] += 0.1
        return jnp.sin(counter[0]) * jnp.mean(batch["x"])

    return step


CASES: list[Case] = [
    (TypeError, "step_gradients must be a function, got 3 of type int", lambda *_: accumulated(3)),
    (ValueError, "num_microbatches must be at least 2, got 1", lambda *_: accumulated(num_microbatches=1)),
    (
        ValueError,
        "num_microbatches must be at most the number of examples 4, got 5",
        lambda *_: accumulated(num_microbatches=5),
    ),
    (
        ValueError,
        "in_axes must be an axis, None, or a pytree prefix of batch, got [0]",
        lambda *_: accumulated(in_axes=[0]),
    ),
    (
        ValueError,
        "in_axes must name an axis of examples of batch['temperature'], of shape (), or be None where all examples "
        "share it, got 0",
        lambda *_: accumulated(batch=FOUR | {"temperature": 2.0}),
    ),
    (
        ValueError,
        "what step_gradients(params, batch) returns must have the structure of params",
        lambda *_: accumulated(lambda t, b: (t, b)),
    ),
    (
        ValueError,
        "the gradient of step_gradients must be finite, got nan",
        lambda *_: accumulated(lambda t, b: jnp.asarray(jnp.nan)),
    ),
    (
        ValueError,
        "of the gradient of batch_loss_fn, whose norm is … and must be at most 0.25 of it",
        lambda *_: accumulated(loss=lambda t, b: jnp.mean(jnp.sin(1e15 * t * b["x"]))),
    ),
    (
        ValueError,
        "step_gradients must give the same gradient for the same arguments, got two that differ by",
        lambda *_: accumulated(drifting([0.0])),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, … on the whole batch, and batch['x'] itself is not, in example 2",
        lambda *_: additivity_of(batch={"x": FOUR["x"].at[2].set(jnp.inf)}),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, with a finite gradient, on the whole batch, got nan",
        lambda *_: undefined(),
    ),
    (
        ValueError,
        "the number of examples in batch must be at least 4, got 3",
        lambda *_: additivity_of(batch={"x": FOUR["x"][:3]}),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got 3 of type int", lambda *_: additivity_of(key=3)),
    (
        ValueError,
        "batch must hold different examples, got 4 equal ones, where all forms agree",
        lambda *_: additivity_of(batch={"x": jnp.ones(4)}),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite on some subsets of the batch, got none: loss … is not finite on 30 of 30",
        lambda *_: additivity_of(lambda t, b: jnp.log(-t) * jnp.mean(b["x"])),
    ),
    (
        ValueError,
        "batch_loss_fn must give the same loss for the same arguments, got … its randomness must come from a key",
        lambda *_: additivity_of(changing([0.0])),
    ),
    (
        ValueError,
        "of the loss of batch_loss_fn, and must be at most 0.05 to tell its form",
        lambda *_: additivity_of(lambda t, b: jnp.mean(jnp.sin(1e15 * t * b["x"]))),
    ),
]
