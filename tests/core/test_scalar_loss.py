"""An error inside a loss is shown as it is; that the loss was written for a batch is said where the shapes say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import check_per_example, gradient_moments, per_example_gradients

KEY = jax.random.key(0)
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


def of_batch(loss_fn, *arguments, **named):
    return per_example_gradients(loss_fn)(*arguments, **named)


CALLERS = [of_batch, gradient_moments, check_per_example]
INSIDE = {
    "attribute": (lambda p, x: Model()(p, x), AttributeError, "'Model' object has no attribute 'missing'"),
    "key": (lambda p, x: {"w": p}["weights"] @ x, KeyError, "weights"),
    "own": (own_check, OwnError, "x must be an image"),
    "value": (lambda p, x: float(p @ x), jax.errors.ConcretizationTypeError, "Abstract tracer value"),
}


@pytest.mark.parametrize("case", INSIDE)
@pytest.mark.parametrize("call", CALLERS)
def test_errors_inside_the_model_are_shown_first(case, call) -> None:
    """Their own type and message, and then what was given. Catches a question about batches in their place."""
    loss_fn, kind, message = INSIDE[case]
    with pytest.raises(kind, match=message) as info:
        call(loss_fn, jnp.ones(2), X)
    assert type(info.value) is kind
    assert info.value.__notes__[-1] == "loss_fn failed so on one example (example: (2,))"
    assert "batch" not in str(info.value)


CALLS = {
    "a key too many": (lambda p, x: p @ x, KEY, r"loss_fn\(params, example, key\): too many .*; leave key out"),
    "no key": (lambda p, x, key: p @ x, None, r"loss_fn\(params, example\): missing .* 'key'; .* by key=\.\.\."),
    "no example": (lambda p: p.sum(), None, r"loss_fn\(params, example\): too many positional arguments"),
    "a setting": (
        lambda p, x, *, rate: rate * p @ x,
        None,
        r"loss_fn\(params, example\): missing .* 'rate'; .* functools\.partial",
    ),
}


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("call", CALLERS)
def test_what_a_loss_cannot_be_called_with(case, call) -> None:
    loss_fn, key, message = CALLS[case]
    with pytest.raises(TypeError, match=rf"loss_fn must be called as {message}"):
        call(loss_fn, jnp.ones(2), X, key=key)


@pytest.mark.filterwarnings("ignore:Python iterable type")
@pytest.mark.parametrize(
    "examples",
    [
        [{"x": np.ones(3), "y": np.float32(1)}, {"x": np.ones(3), "y": np.float32(2)}],
        [(np.ones(3), np.ones(2)), (np.zeros(3), np.zeros(2))],
        iter([{"x": np.ones(3)}]),
    ],
    ids=["scalars", "unequal lengths", "an iterator"],
)
def test_examples_one_by_one(examples) -> None:
    with pytest.raises((TypeError, ValueError), match=r"batch .*; examples one by one are stacked by jax\.tree\.map"):
        per_example_gradients(lambda p, example: p)(jnp.ones(()), examples)


BATCHED = {
    "an axis too many": lambda p, x: jnp.mean(jnp.sum(x * p[None], axis=1)),
    "a map over examples": lambda p, x: jnp.mean(jax.vmap(lambda row: row @ p)(x)),
    "unpacked shape": lambda p, x: jnp.sum(x @ p) / len(x[:, 0]),
}


@pytest.mark.parametrize("loss_fn", BATCHED.values(), ids=BATCHED)
def test_a_loss_of_a_batch_is_recognized(loss_fn) -> None:
    with pytest.raises(ValueError, match=r"gives a number for a batch(?s:.*)was it written for a batch\?"):
        per_example_gradients(loss_fn)(jnp.ones(2), X)
