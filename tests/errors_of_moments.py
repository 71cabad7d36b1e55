"""Every way to be refused by ``moments``: the exception, its message, and the call that gives it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import designs, estimators, moments, problems
from tests.support.error_helpers import LARGE, ONE, TWO_BY_TWO, Case, G, bad_data, gradients, random_loss
from tests.support.registry import linear_loss, measured


def remembering() -> Any:
    """A loss that adds up what it returned before."""
    seen: list[Any] = []

    def loss(p: Any, x: Any) -> Any:
        seen.append(jnp.sum(p * x) + sum(seen))
        return seen[-1]

    return loss


def merged(first: bool, second: bool) -> Any:
    a, b = (jaxsgd.gradient_moments(*problems.line_fit(), per_coordinate=each) for each in (first, second))
    return moments.merge(a, b)


def too_many() -> Any:
    half = dataclasses.replace(jaxsgd.gradient_moments(*problems.line_fit()), count=jnp.asarray(2**62))
    return moments.merge(half, half)


CASES: list[Case] = [
    (
        ValueError,
        "the number of examples must be at most what int64 counts, 9223372036854775807, got 9223372036854775808",
        lambda *_: too_many(),
    ),
    (
        ValueError,
        "loss_fn must give the same loss for the same arguments, got … and then … must come from a key",
        lambda *_: jaxsgd.gradient_moments(random_loss(), ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "loss_fn must be a function of its arguments alone: it uses a value that an earlier call of it left behind",
        lambda *_: jaxsgd.gradient_moments(remembering(), ONE, jnp.ones(3)),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype object",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.array([[1], [2]], object)),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype datetime64[s]",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.array([1, 2], "datetime64[s]")),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype [('a', '<f4')]",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.zeros(3, [("a", "f4")])),
    ),
    (
        TypeError,
        "data must be a pytree of arrays, but data[0] is 1.0 of type float",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, [1.0, 2.0]),
    ),
    (
        ValueError,
        "data must have at least one array, got None",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, None),
    ),
    (
        ValueError,
        "data must have equally many examples in every array, but data['x'] has 3, data['y'] has 2",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, {"x": np.ones(3), "y": np.ones(2)}),
    ),
    (TypeError, "chunk_size must be an integer, got '3'", lambda *_: bad_data(chunk_size="3")),
    (
        ValueError,
        "batches of data must have the structure of the first",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, iter([jnp.ones(2), {"x": jnp.ones(2)}])),
    ),
    (
        TypeError,
        "params must be a pytree of arrays, but params is 1.0 of type float",
        lambda *_: jaxsgd.gradient_moments(linear_loss, 1.0, TWO_BY_TWO),
    ),
    (
        ValueError,
        "data must have examples along the first axis of every array, but data is a scalar",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, ONE),
    ),
    (
        ValueError,
        "data must have at least one example, got 0",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, jnp.ones((0, 2))),
    ),
    (
        TypeError,
        "loss_fn must return a real floating-point number, got dtype int64",
        lambda *_: jaxsgd.gradient_moments(lambda *_: jnp.asarray(1), ONE, TWO_BY_TWO),
    ),
    # Every gradient is finite, and its squared norm, but the sum is not: an infinite variance must not pass.
    (ValueError, "overflow", lambda *_: moments.of(measured(LARGE))),
    (ValueError, "overflow", lambda *_: jaxsgd.gradient_moments(*LARGE)),
    (ValueError, "overflow", lambda *_: jaxsgd.gradient_moments(*LARGE[:2], iter([LARGE.data, LARGE.data]))),
    (
        ValueError,
        "chunk_size must be None for an iterator of batches, got 2",
        lambda *_: bad_data(iterate=True, chunk_size=2),
    ),
    (
        ValueError,
        "data must have at least one batch, got an empty iterator",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, iter([])),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: moments.of(gradients(batch=(1.0,))).trace_covariance(ddof=1),
    ),
    (TypeError, "ddof must be an integer, got 0.5", lambda *_: moments.of(G).trace_covariance(ddof=0.5)),
    (
        ValueError,
        "variance must be asked for: gradient_moments(..., per_coordinate=True)",
        lambda *_: moments.of(G).variance(),
    ),
    (
        ValueError,
        "second must have per-coordinate sums if and only if first does",
        lambda *_: merged(True, False),
    ),
    (
        ValueError,
        "metric must be None for moments that are not per coordinate: per_coordinate=True",
        lambda *_: jaxsgd.noise_scale(moments.of(G), metric=G.mean()),
    ),
    (
        ValueError,
        "metric must have the shapes of params, but metric['m'] has shape (2,), not ()",
        lambda *_: merged(True, True).in_metric({"m": jnp.ones(2), "b": ONE}),
    ),
    # Through those who call it.
    (
        TypeError,
        "g must be per-example gradients or their moments, got None of type NoneType",
        lambda *_: estimators.exact(designs.WithReplacement(1), None),
    ),
]
