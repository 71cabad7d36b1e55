"""Gradients that are not kept, or not computed all together, have the same statistics."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import kernels
from jaxsgd.kernels import _recomputed, _transform
from jaxsgd.kernels.factors import _dense
from jaxsgd.kernels.tracing import _trace
from tests.kernels.test_tracing import assert_close, case, flat, statistics
from tests.support.models import MODELS
from tests.support.registry import quick


def check_against_loop(found: dict[str, Any], name: str) -> None:
    expected, _, rows = case(name)
    scale = np.abs(rows).max()
    for statistic in expected:
        power = 1 if statistic in ("losses", "materialize", "mean", "weighted_sum", "inner_products") else 2
        assert_close(flat(found[statistic]), flat(expected[statistic]), max(scale**power, 1e-12) * rows.shape[1])


@pytest.mark.parametrize("chunk_size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 3, 4))])
@pytest.mark.parametrize(
    "name", quick(["tanh", "conv_same", "embedding", "weight_normalized", "partly_frozen"], {"conv_same"})
)
def test_recomputed_statistics_equal_the_kept(name: str, chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a chunk that is dropped or counted twice, a chunk's mean in place of the mean, a wrong last chunk."""
    loss_fn, params, batch, _ = MODELS[name]()
    sizes: list[int] = []

    def examples_within(*arguments: Any) -> int:
        sizes.append(arguments[-1])
        return min(chunk_size, arguments[-1])

    monkeypatch.setattr(_transform, "_examples_within", examples_within)
    monkeypatch.setattr(jaxsgd, "per_example_gradients", lambda f: kernels.per_example_gradients(f, memory_limit=1))
    found = statistics(loss_fn, params, batch)
    assert sizes == [5, 3]  # the batch, and the other batch of the Gram matrix
    check_against_loop(found, name)


def test_the_limit_decides() -> None:
    """Catches a limit that is ignored, or that counts something else than what is kept."""
    loss_fn, params, batch, _ = MODELS["tanh"]()
    kept = jaxsgd.per_example_gradients(loss_fn)(params, batch)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    assert type(kernels.per_example_gradients(loss_fn, memory_limit=needed)(params, batch)) is type(kept)
    for chunk_size in (1, 2, 3, 4):
        limit = needed // 5 * (chunk_size + 1) - 1
        g = kernels.per_example_gradients(loss_fn, memory_limit=limit)(params, batch)
        assert isinstance(g, _recomputed.RecomputedGradients)
        assert g.chunk_size == chunk_size
        assert f"{chunk_size} of 5 examples at a time" in g.explain()
        assert (g.count, g.num_params) == (5, kept.num_params)


def test_less_memory_is_used() -> None:
    """Catches factors that are kept while gradients are recomputed, as the compiled program's own account has it."""

    def loss_fn(params: jax.Array, example: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(params * example)) + jnp.sum(params**2)

    params, batch = jnp.ones((100, 100)), jnp.ones((64, 100, 100))
    limit = 5 * params.nbytes

    def temporary(gradients: Any) -> int:
        compiled = jax.jit(lambda p, b: gradients(p, b).gram()).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(jaxsgd.per_example_gradients(loss_fn)) >= 64 * params.nbytes
    assert temporary(jaxsgd.per_example_gradients(loss_fn, memory_limit=limit)) < 5 * limit


@pytest.mark.parametrize(
    "name",
    quick(["weight_normalized", "penalized_positions", "many_positions"], {"penalized_positions"}),
)
def test_dense_gradients_one_by_one_equal_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches gradients that are paired with another parameter, or left out of the sum."""
    monkeypatch.setattr(_trace, "_LARGE", 0)
    monkeypatch.setattr(_trace, "_LARGER", 0)
    loss_fn, params, batch, _ = MODELS[name]()

    def anew(params: Any, example: Any) -> jax.Array:  # another function, so that it is traced anew
        return loss_fn(params, example)

    calls: list[int] = []
    one_by_one = _trace.dense_one_by_one

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return one_by_one(*arguments)

    monkeypatch.setattr(_trace, "dense_one_by_one", counted)
    check_against_loop(statistics(anew, params, batch), name)
    assert calls


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 5, 8])
def test_so_many_at_a_time(at_a_time: int) -> None:
    """Catches a last group that is lost or comes first."""
    a, b = np.random.default_rng(0).normal(size=(2, 5, 2, 3))
    (dense,) = _dense.dense_one_by_one(lambda a, b: (a * b,), (jnp.asarray(a), jnp.asarray(b)), at_a_time, [""])
    np.testing.assert_allclose(dense.value, a * b, rtol=1e-15)
    np.testing.assert_allclose(dense.mean(), (a * b).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(dense.squared_norms(), ((a * b) ** 2).sum(axis=(1, 2)), rtol=1e-14)


PRODUCTS = ("mean", "squared_norms", "second_moment", "gram")
# A loop is counted as one turn.
LOOPS = {("positions", "second_moment"), ("used_twice", "second_moment"), ("used_twice", "gram")}


@pytest.mark.parametrize(
    ("name", "statistic"),
    [(n, s) for n in ("tanh", "positions", "used_twice") for s in PRODUCTS if (n, s) not in LOOPS],
)
def test_predicted_flops_are_those_of_the_compiled_program(name: str, statistic: str) -> None:
    """Catches a cost model that forgets a product, on which the choice between two forms would rest."""
    loss_fn, params, batch, _ = MODELS[name]()
    wide = jax.tree.map(lambda leaf: jnp.repeat(leaf, 8, axis=0), batch)
    g = jaxsgd.per_example_gradients(loss_fn)(params, wide)
    compiled = jax.jit(lambda g: getattr(g, statistic)()).lower(g).compile()
    counted = compiled.cost_analysis()["flops"]
    predicted = sum(getattr(factor.flops(), statistic) for factor in g.factors)
    assert math.isclose(predicted, counted, rel_tol=0.35), (predicted, counted)
