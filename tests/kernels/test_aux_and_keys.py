"""Losses with auxiliary output, and with a key of their own for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import check_per_example, gradient_moments, per_example_gradients
from tests.support.registry import quick, skewed

N, KEY = 7, jax.random.key(4)
PARAMS = {"w": jnp.asarray(skewed(3, 2)), "b": jnp.asarray(skewed(2, seed=1))}
BATCH = {"x": jnp.asarray(skewed(N, 3, seed=2)), "y": jnp.arange(N)}


def plain(params, example):
    return jnp.sum(jnp.tanh(example["x"] @ params["w"] + params["b"]) ** 2)


def with_aux(params, example):
    """With the logits, an integer, what depends on no parameter, on no example, and what is none."""
    logits = jnp.tanh(example["x"] @ params["w"] + params["b"])
    aux = {"logits": logits, "label": example["y"], "norm": jnp.sum(example["x"] ** 2), "one": 1.0, "none": None}
    return jnp.sum(logits**2), aux


def noisy(params, example, key):
    mask = jax.random.bernoulli(key, 0.5, (3,))
    return plain(params, {"x": example["x"] * mask.astype(float)})


def noisy_with_aux(params, example, key):
    return noisy(params, example, key), jax.random.uniform(key)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


@pytest.mark.parametrize("limit", [None, 200, pytest.param(10**6, marks=pytest.mark.slow)])
def test_aux_of_every_example(limit) -> None:
    """As ``jax.grad`` gives it, with a leading axis. Catches an aux of the first example, and of a chunk."""
    g, aux = jax.jit(per_example_gradients(with_aux, memory_limit=limit, has_aux=True))(PARAMS, BATCH)
    grads, expected = jax.vmap(jax.grad(with_aux, has_aux=True), (None, 0))(PARAMS, BATCH)
    same(aux, expected)
    assert aux["label"].dtype == BATCH["y"].dtype
    same(g.materialize(), grads)
    same(g.losses(), jax.vmap(plain, (None, 0))(PARAMS, BATCH))
    assert [type(f).__name__ for f in g.factors] == [
        type(f).__name__ for f in per_example_gradients(plain, memory_limit=limit)(PARAMS, BATCH).factors
    ], "the factors do not depend on it"


def loop(keys):
    return [jax.grad(noisy)(PARAMS, jax.tree.map(lambda leaf, i=i: leaf[i], BATCH), k) for i, k in enumerate(keys)]


@pytest.fixture(scope="module")
def rows():
    """The gradients of one example after the other, each with the key of its index."""
    found = loop([jax.random.fold_in(KEY, i) for i in range(N)])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@pytest.mark.parametrize("limit", [None, 200])
def test_every_example_has_its_own_key(rows, limit) -> None:
    g = jax.jit(per_example_gradients(noisy, memory_limit=limit))(PARAMS, BATCH, key=KEY)
    same(g.materialize(), rows)
    assert not np.allclose(g.materialize()["b"], jax.tree.leaves(per_example_gradients(plain)(PARAMS, BATCH).mean())[0])


def test_key_and_aux() -> None:
    g, draws = per_example_gradients(noisy_with_aux, has_aux=True)(PARAMS, BATCH, key=KEY)
    same(draws, jnp.stack([jax.random.uniform(jax.random.fold_in(KEY, i)) for i in range(N)]))
    assert g.count == N


@pytest.mark.parametrize("kind", quick(["whole", "chunks", "host", "iterator"], {"chunks"}))
def test_moments_do_not_depend_on_how_data_come(rows, kind) -> None:
    """Example i has the key of i, whatever chunk it is in. Catches keys that start anew with every chunk."""
    host = jax.tree.map(np.asarray, BATCH)
    data = {
        "whole": BATCH,
        "chunks": BATCH,
        "host": host,
        "iterator": iter([jax.tree.map(lambda leaf, s=s: leaf[s], BATCH) for s in (slice(0, 3), slice(3, 7))]),
    }[kind]
    size = 3 if kind in ("chunks", "host") else None
    m = gradient_moments(noisy_with_aux, PARAMS, data, chunk_size=size, key=KEY, has_aux=True, per_coordinate=True)
    same(m.mean, jax.tree.map(lambda leaf: leaf.mean(axis=0), rows))
    same(m.variance(), jax.tree.map(lambda leaf: leaf.var(axis=0), rows))


@pytest.mark.slow
def test_the_check_takes_both() -> None:
    assert check_per_example(noisy_with_aux, PARAMS, BATCH, key=KEY, has_aux=True).passed
    assert check_per_example(with_aux, PARAMS, BATCH, has_aux=True).passed
