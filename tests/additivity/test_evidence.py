"""What a step's gradient can tell, and what it cannot: few parameters, coarse arithmetic, randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd.additivity import check_accumulation
from tests.support.registry import skewed

X, THETA = jnp.asarray(skewed(8, 3)), jnp.asarray(skewed(3, seed=1))


def loss(theta, x):
    return jnp.mean(jnp.tanh(x @ theta) ** 2)


def step_of(k, weights=None):
    """Σ c_j g_j over k microbatches."""
    weights = np.full(k, 1 / k) if weights is None else weights

    def step(theta, x):
        parts = jax.vmap(jax.grad(loss), (None, 0))(theta, x.reshape(k, -1, 3))
        return jnp.tensordot(jnp.asarray(weights, parts.dtype), parts, 1)

    return step


@pytest.mark.parametrize("k", [4, 8])
def test_no_more_parameters_than_microbatches(k) -> None:
    """Any gradient of three numbers is a combination of three others. Catches an explanation that fits everything."""
    found = check_accumulation(lambda theta, x: jnp.sin(7 * theta), loss, THETA, X, num_microbatches=k)
    assert (found.found, found.weights, found.whole_weights) == ("unknown", None, None)
    assert f"none of the usual mistakes; params of more than {k} numbers would tell more" in str(found)
    assert check_accumulation(step_of(k), loss, THETA, X, num_microbatches=k).passed


def test_a_known_mistake_with_few_parameters() -> None:
    """Catches the claim that the loss couples examples, where there is nothing that could show it."""
    found = check_accumulation(step_of(4, [0, 0, 0, 0.25]), loss, THETA, X, num_microbatches=4)
    assert found.found == "last microbatch, over their number"
    first = check_accumulation(step_of(4, [1 / 3, 1 / 3, 1 / 3, 0]), loss, THETA, X, num_microbatches=4)
    assert "couple" not in str(first) and "add up all gradients" in str(first)  # noqa: PT018


def test_one_cast_is_not_a_program_in_bfloat16() -> None:
    """Catches a bound that took all of the step for bfloat16: it let 15 % pass."""
    theta, x = THETA.astype(jnp.float32), X.astype(jnp.float32)
    cast = lambda theta, x: step_of(2)(theta.astype(jnp.bfloat16).astype(jnp.float32), x)  # noqa: E731
    found = check_accumulation(cast, loss, theta, x, num_microbatches=2)
    assert found.passed
    assert 1e-4 < found.error < found.rounding < 0.06
    assert "a step and a loss without bfloat16 inside would show smaller mistakes" in str(found)


def test_keys_in_the_batch() -> None:
    """Dropout whose masks are those of the examples, in whatever microbatch these are."""

    def dropped(theta, batch):
        masks = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3,)))(batch["key"])
        return loss(theta, jnp.where(masks, batch["x"], 0))

    def step(theta, batch):
        halves = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), batch)
        return jax.vmap(jax.grad(dropped), (None, 0))(theta, halves).mean(axis=0)

    batch = {"x": X, "key": jax.random.split(jax.random.key(0), 8)}
    assert check_accumulation(step, dropped, THETA, batch, num_microbatches=2).passed
    assert check_accumulation(lambda *a: 2 * step(*a), dropped, THETA, batch, num_microbatches=2).factor == 2
