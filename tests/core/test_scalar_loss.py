"""An error inside a loss is shown as it is; that the loss was written for a batch is said where the shapes say so."""

import jax
import jax.numpy as jnp
import pytest

from jaxsgd import check_per_example, gradient_moments, per_example_gradients

X = jnp.arange(6.0).reshape(3, 2)


class Model:
    def __call__(self, params, x):
        return self.missing(params @ x)


class OwnError(ValueError):
    """A user's."""


def own_check(params, x):
    if x.ndim != 3:
        raise OwnError("x must be an image")
    return jnp.sum(x * params)


INSIDE = {
    "attribute": (lambda p, x: Model()(p, x), AttributeError, "'Model' object has no attribute 'missing'"),
    "key": (lambda p, x: {"w": p}["weights"] @ x, KeyError, "weights"),
    "own": (own_check, OwnError, "x must be an image"),
    "value": (lambda p, x: float(p @ x), jax.errors.ConcretizationTypeError, "Abstract tracer value"),
    "arguments": (lambda p: p.sum(), TypeError, "positional argument"),
}


@pytest.mark.parametrize("case", INSIDE)
@pytest.mark.parametrize("call", [lambda f, *a: per_example_gradients(f)(*a), gradient_moments, check_per_example])
def test_errors_inside_the_model_are_shown_first(case, call) -> None:
    """Their own type and message, and then what was given. Catches a question about batches in their place."""
    loss_fn, kind, message = INSIDE[case]
    with pytest.raises(kind, match=message) as info:
        call(loss_fn, jnp.ones(2), X)
    assert type(info.value) is kind
    assert info.value.__notes__[-1] == "loss_fn failed so on one example (example: (2,))"
    assert "batch" not in str(info.value)


BATCHED = {
    "an axis too many": lambda p, x: jnp.mean(jnp.sum(x * p[None], axis=1)),
    "a map over examples": lambda p, x: jnp.mean(jax.vmap(lambda row: row @ p)(x)),
    "unpacked shape": lambda p, x: jnp.sum(x @ p) / len(x[:, 0]),
}


@pytest.mark.parametrize("loss_fn", BATCHED.values(), ids=BATCHED)
def test_a_loss_of_a_batch_is_recognized(loss_fn) -> None:
    with pytest.raises(ValueError, match=r"gives a number for a batch(?s:.*)was it written for a batch\?"):
        per_example_gradients(loss_fn)(jnp.ones(2), X)
