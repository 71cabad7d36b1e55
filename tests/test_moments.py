"""Streamed moments against the loop, for every way to cut and to deliver the data."""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsgd
from jaxsgd import moments
from jaxsgd.problems import Problem
from tests.support.registry import PROBLEMS, gradients_given, linear_loss, network, quick, skewed
from tests.support.twins import Loop, assert_close, flat, loop, loop_of

TOLERANCE = 1e-12  # of the gradients' scale, in float64
merge = jax.jit(moments.merge)


def check(m: jaxsgd.GradientMoments, twin: Loop, tolerance: float = TOLERANCE) -> None:
    losses, G = twin
    centered, square = G - G.mean(axis=0), twin.scale**2
    total = (centered**2).sum()
    assert int(m.count) == len(G)
    assert_close(flat(m.mean), G.mean(axis=0), atol=tolerance * twin.scale, what="mean")
    assert_close(m.mean_loss, losses.mean(), atol=tolerance * np.abs(losses).mean(), what="mean loss")
    assert_close(m.trace_covariance(ddof=0), total / len(G), atol=tolerance * square, what="trace covariance")
    assert_close(m.squared_norms_mean, (G**2).sum(axis=1).mean(), atol=tolerance * square, what="mean squared norm")
    assert_close(m.squared_mean_norm, (G.mean(axis=0) ** 2).sum(), atol=tolerance * square, what="squared mean norm")
    if m.coordinate_sums is not None:
        assert_close(flat(m.variance(ddof=0)), G.var(axis=0), atol=tolerance * square, what="variance")
    if len(G) > 1:
        assert_close(m.trace_covariance(ddof=1), total / (len(G) - 1), atol=tolerance * square, what="ddof 1")


@pytest.mark.parametrize("name", quick(PROBLEMS, PROBLEMS.keys() - {"classifier", "tanh_network"}))
def test_every_chunk_size_equals_the_loop(name: str) -> None:
    """Catches a dropped last chunk, a chunk counted twice, a merge that forgets the difference of the means."""
    problem, twin = PROBLEMS[name](), loop_of(name)
    N = len(twin.losses)
    few = name in ("tanh_network", "classifier", "diabetes_rows")  # slow to compile, and two cuts say enough
    for chunk_size in (None, 3) if few else (None, *sorted({1, 3, N - 1, N, N + 1} - {0})):
        check(jaxsgd.gradient_moments(*problem, chunk_size=chunk_size, per_coordinate=True), twin)


@pytest.mark.parametrize("name", PROBLEMS)
def test_moments_of_gradients_equal_the_loop(name: str) -> None:
    loss_fn, params, data = PROBLEMS[name]()
    check(moments.of(jaxsgd.per_example_gradients(loss_fn)(params, data)), loop_of(name))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, 6), max_size=6), seed=st.integers(0, 3), offset=st.sampled_from([0.0, 100.0]))
def test_merge_of_any_split_equals_the_whole(cuts: set[int], seed: int, offset: float) -> None:
    """Catches weights of a merge that are right for equal halves only."""
    problem = gradients_given(skewed(7, 2, seed=seed) * [1, 5] + offset)
    edges = [0, *sorted(cuts), 7]
    parts = [
        jaxsgd.gradient_moments(problem.loss_fn, problem.params, problem.data[start:stop], per_coordinate=True)
        for start, stop in itertools.pairwise(edges)
    ]
    check(functools.reduce(merge, parts), loop(problem))
    check(functools.reduce(merge, parts[::-1]), loop(problem))


def test_merge_without_jit_and_without_coordinates() -> None:
    problem = PROBLEMS["repeated_rows"]()
    first, second = (jax.tree.map(lambda a, s=s: a[s], problem.data) for s in (slice(0, 2), slice(2, 6)))
    a, b = (jaxsgd.gradient_moments(problem.loss_fn, problem.params, part) for part in (first, second))
    merged = moments.merge(a, b)
    assert merged.coordinate_sums is None
    check(merged, loop(problem))


def as_numpy(data: Any) -> Any:
    return jax.tree.map(np.asarray, data)


def memory_mapped(data: Any, folder: Path) -> Any:
    def to_file(path: Any, leaf: Any) -> np.memmap:
        name = folder / f"{jax.tree_util.keystr(path, simple=True)}.npy"
        np.save(name, np.asarray(leaf))
        return np.load(name, mmap_mode="r")

    return jax.tree_util.tree_map_with_path(to_file, data)


def batches(data: Any, sizes: tuple[int, ...]) -> Iterator[Any]:
    edges = np.cumsum((0, *sizes))
    for start, stop in itertools.pairwise(edges):
        yield jax.tree.map(lambda a, s=slice(start, stop): a[s], data)


def test_numpy_memory_mapped_and_iterated_data_equal_the_loop(tmp_path: Path) -> None:
    """Catches a slice on the host that is cut again on the device, and an iterator taken for a pytree."""
    problem, twin = network(), loop_of("tanh_network")
    loss_fn, params, data = problem
    check(jaxsgd.gradient_moments(loss_fn, params, as_numpy(data), chunk_size=3), twin)
    check(jaxsgd.gradient_moments(loss_fn, params, memory_mapped(data, tmp_path), chunk_size=3), twin)
    for sizes in ((1, 3, 3), (3, 3, 1), (7,)):
        check(jaxsgd.gradient_moments(loss_fn, params, batches(data, sizes)), twin)
        check(jaxsgd.gradient_moments(loss_fn, params, batches(as_numpy(data), sizes)), twin)


def test_a_mix_of_numpy_and_jax_arrays_equals_the_loop() -> None:
    problem = PROBLEMS["odd_leaves"]()
    mixed = problem.data | {"x": np.asarray(problem.data["x"]), "label": np.asarray(problem.data["label"])}
    check(jaxsgd.gradient_moments(problem.loss_fn, problem.params, mixed, chunk_size=4), loop(problem))


@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
def test_at_most_two_compilations(convert: Any) -> None:
    """Catches a start that is compiled in, and a first total whose types differ from the later ones."""

    def loss_fn(params: jax.Array, example: jax.Array) -> jax.Array:
        return linear_loss(params, example)

    data = convert(skewed(23, 2))
    before = moments._add_chunk._cache_size()
    for _ in range(2):
        jaxsgd.gradient_moments(loss_fn, jnp.ones(2), data, chunk_size=5)
    assert moments._add_chunk._cache_size() == before + 2  # chunks of 5, and the last of 3


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_one_pass(chunk_size: int | None) -> None:
    """Catches a second pass, and examples that pad a chunk."""
    seen: list[int] = []

    def loss_fn(params: jax.Array, example: Any) -> jax.Array:
        jax.debug.callback(lambda i: seen.append(int(i)), example["i"])
        return params * example["x"]

    data = {"x": jnp.asarray(skewed(10)), "i": jnp.arange(10)}
    jaxsgd.gradient_moments(loss_fn, jnp.asarray(1.0), data, chunk_size=chunk_size)
    jax.effects_barrier()
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("chunk_size", [None, 7, 64])
def test_float32_with_a_mean_a_thousand_times_the_noise(chunk_size: int | None) -> None:
    """Catches mean(g²) − mean(g)², which keeps no digit here; tried in float32, it is rejected."""
    problem = gradients_given(skewed(500, 3) + 1000, jnp.float32)
    truth = np.asarray(problem.data, np.float64).var(axis=0).sum()
    m = jaxsgd.gradient_moments(*problem, chunk_size=chunk_size)
    assert m.trace_covariance(ddof=0).dtype == jnp.float32
    assert_close(m.trace_covariance(ddof=0), truth, atol=1e-4 * truth)
    textbook = ((problem.data**2).mean(axis=0) - problem.data.mean(axis=0) ** 2).sum()
    assert abs(float(textbook) - truth) > 1e-3 * truth, "the control must be off"


def layer_loss(weights: jax.Array, example: Any) -> jax.Array:
    """The gradient is the outer product of two vectors of the example."""
    return example["b"] @ (weights @ example["a"])


@pytest.mark.parametrize("chunk_size", [None, 1000, 64])
@pytest.mark.parametrize("kind", ["dense", "outer products"])
def test_a_million_float32_examples_with_a_mean_a_thousand_times_the_noise(kind: str, chunk_size: int | None) -> None:
    """Catches sums over chunks, or over examples, whose rounding grows with their number."""
    rng = np.random.default_rng(0)
    a = (1000 + rng.exponential(size=(10**6, 3))).astype(np.float32)
    if kind == "dense":
        G, problem = a.astype(np.float64), gradients_given(a, jnp.float32)
    else:
        b = (1 + 1e-3 * rng.normal(size=(10**6, 2))).astype(np.float32)
        G = b.astype(np.float64)[:, :, None] * a.astype(np.float64)[:, None, :]
        problem = Problem(layer_loss, jnp.zeros((2, 3), jnp.float32), {"a": a, "b": b})
    m = jaxsgd.gradient_moments(*problem, chunk_size=chunk_size, per_coordinate=True)
    assert m.trace_covariance(ddof=0).dtype == jnp.float32
    np.testing.assert_allclose(m.mean, G.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(m.trace_covariance(ddof=0), G.var(axis=0).sum(), rtol=1e-5)
    np.testing.assert_allclose(m.variance(ddof=0), G.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_moments_accumulate_in_float32(dtype: Any) -> None:
    """Catches a total that starts in the parameters' dtype: it would stop growing after a few hundred examples."""
    problem = gradients_given(skewed(400, 2) + 2, dtype)
    G = np.asarray(problem.data, np.float64)
    m = jaxsgd.gradient_moments(*problem, chunk_size=16, per_coordinate=True)
    assert m.mean.dtype == m.sum_squared_deviations.dtype == m.mean_loss.dtype == jnp.float32
    assert_close(m.mean, G.mean(axis=0), atol=1e-6 * np.abs(G).mean())
    assert_close(m.variance(ddof=1), G.var(axis=0, ddof=1), atol=1e-5 * G.var())


def test_ddof_is_always_named() -> None:
    """Catches a divisor that a caller cannot see."""
    m = jaxsgd.gradient_moments(*PROBLEMS["repeated_rows"](), per_coordinate=True)
    with pytest.raises(TypeError, match="positional argument"):
        m.trace_covariance(1)
    with pytest.raises(TypeError, match="positional argument"):
        m.variance(1)
    ratio = m.trace_covariance(ddof=1) / m.trace_covariance(ddof=0)
    assert_close(ratio, 6 / 5, atol=1e-14)
    assert_close(flat(m.variance(ddof=1)).sum(), m.trace_covariance(ddof=1), atol=1e-12 * float(m.squared_norms_mean))
