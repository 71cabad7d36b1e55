"""What a step's gradient can tell, and what it cannot: few parameters, coarse arithmetic, randomness."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd.additivity import _microbatches, check_accumulation
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


@pytest.mark.parametrize("k", [3, 4])
def test_no_more_parameters_than_microbatches(k) -> None:
    """Any gradient of three numbers is a combination of three others. Catches an explanation that fits everything."""
    found = check_accumulation(lambda theta, x: jnp.sin(7 * theta), loss, THETA, X[: 2 * k], num_microbatches=k)
    assert (found.found, found.weights, found.whole_weights) == ("unknown", None, None)
    assert f"none of the usual mistakes; params of more than {k} numbers would tell more" in str(found)
    assert check_accumulation(step_of(k), loss, THETA, X[: 2 * k], num_microbatches=k).passed


@pytest.mark.parametrize("sizes", [(5, 5, 2), (4, 4, 3), (3, 3, 5), (4, 4, 4), (8, 4), (10, 1), (6, 5)])
def test_microbatches_of_any_size_that_leaves_less_for_the_last(sizes) -> None:
    """Catches "no combination of those of 3 microbatches" where the size was chosen, and their number follows."""
    x, ends = jnp.asarray(skewed(sum(sizes), 5)), np.cumsum((0, *sizes))
    theta, k = jnp.asarray(skewed(5, seed=1)), len(sizes)
    step = lambda theta, x: sum(jax.grad(loss)(theta, x[a:b]) for a, b in itertools.pairwise(ends)) / k  # noqa: E731
    found = check_accumulation(step, loss, theta, x, num_microbatches=k)
    if len(set(sizes)) == 1:
        assert found.passed
    else:
        assert (found.found, found.sizes) == ("mean of microbatches", sizes)


def test_many_sizes_are_tried_as_far_as_they_are_usual() -> None:
    tried = {way.sizes for way in _microbatches.splits(1000, 2)}
    assert {(500, 500), (512, 488), (600, 400)} <= tried
    assert len(tried) < 16


def test_the_simplest_factor_is_named() -> None:
    """4 is the number of microbatches. Catches the normalizer of one of them, of which rounding made 4.0000001."""
    theta, x = THETA.astype(jnp.float32), jnp.asarray(skewed(12, 3), jnp.float32)
    step = lambda theta, x: 4 * step_of(4)(theta, x)  # noqa: E731
    found = check_accumulation(step, loss, theta, x, num_microbatches=4)
    assert "4 is the number of microbatches" in str(found)


def test_a_microbatch_that_does_not_enter() -> None:
    x, theta = jnp.asarray(skewed(8, 6)), jnp.asarray(skewed(6, seed=1))

    def step(theta, x):
        parts = jax.vmap(jax.grad(loss), (None, 0))(theta, x.reshape(4, 2, 6))
        return (2 * parts[0] + parts[2] + parts[3]) / 4

    found = check_accumulation(step, loss, theta, x, num_microbatches=4)
    assert "microbatches 2 do not enter" in str(found)


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
