"""The problems are what they claim to be: exact numbers for the small ones, stored references for the real data."""

import gzip
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import problems
from jaxsgd._core import idx
from tests.support.registry import PROBLEMS, measured, skewed
from tests.support.twins import assert_close, average, flat, line_gradients, squared_norm

F = Fraction
KEY = jax.random.key(0)

# θ = (m, b), mean loss, gradients as (∂b, ∂m), and Σ as (Σ_bb, Σ_bm, Σ_mm).
LINE = [
    ((1, 1), F(3, 4), [(0, 0), (-2, -2), (2, 4), (-2, -6)], (F(11, 4), F(11, 2), 13)),
    ((0, 0), F(39, 4), [(-2, 0), (-6, -6), (-4, -8), (-10, -30)], (F(35, 4), F(63, 2), 129)),
    (
        (F(11, 10), F(11, 10)),
        F(27, 40),
        [(F(1, 5), 0), (F(-8, 5), F(-8, 5)), (F(13, 5), F(26, 5)), (F(-6, 5), F(-18, 5))],
        (F(27, 10), F(51, 10), F(266, 25)),
    ),
]


@pytest.mark.parametrize(("theta", "loss", "gradients", "covariance"), LINE)
def test_line_fit(theta: Any, loss: Fraction, gradients: Any, covariance: Any) -> None:
    """Catches other data, a missing factor 2, and parameters in another order."""
    problem = problems.line_fit(*map(float, theta))
    g = measured(problem)
    mean = average(gradients)
    centered = [tuple(a - b for a, b in zip(row, mean, strict=True)) for row in gradients]
    bb, bm, mm = (sum(row[i] * row[j] for row in centered) / 4 for i, j in ((0, 0), (0, 1), (1, 1)))
    assert (bb, bm, mm) == covariance
    assert line_gradients(*map(F, theta)) == [tuple(map(F, row)) for row in gradients]
    assert_close(g.losses().mean(), float(loss), atol=1e-14)
    for i, name in enumerate(("b", "m")):
        assert_close(g.materialize()[name], [float(row[i]) for row in gradients], atol=1e-13)
        assert_close(g.variance(ddof=0)[name], float((bb, mm)[i]), atol=1e-12)
    assert_close(g.mean()["m"], float(mean[1]), atol=1e-14)
    assert_close(g.squared_deviations().sum(), float(sum(map(squared_norm, centered))), atol=1e-12)


def test_line_fit_is_at_one_by_default() -> None:
    m = jaxsgd.gradient_moments(*problems.line_fit())
    assert (float(m.squared_mean_norm), float(m.trace_covariance(ddof=0))) == (5 / 4, 63 / 4)


def test_diabetes_reference_numbers() -> None:
    """Catches a missing ½, a divisor of N − 1 in the scaling, and targets that are not scaled."""
    loss_fn, params, data = problems.diabetes_regression()
    m = jaxsgd.gradient_moments(loss_fn, params, data)
    assert (int(m.count), params.shape) == (442, (10,))
    assert_close(m.mean_loss, 0.5, atol=0.5e-8)
    assert_close(m.squared_mean_norm, 1.4588995679, atol=1.4e-8)
    assert_close(m.trace_covariance(ddof=0), 9.61849854825, atol=9.6e-8)
    assert_close(m.trace_covariance(ddof=0) / m.squared_mean_norm, 6.59298197071, atol=6.5e-8)


def test_diabetes_reference_numbers_at_the_minimum() -> None:
    loss_fn, _, data = problems.diabetes_regression()
    solution = np.linalg.lstsq(np.asarray(data["x"]), np.asarray(data["y"]))[0]
    m = jaxsgd.gradient_moments(loss_fn, jnp.asarray(solution), data)
    assert_close(m.squared_mean_norm, 0, atol=1e-26)
    assert_close(m.trace_covariance(ddof=0), 4.40872797707, atol=4.4e-8)
    assert_close(m.mean_loss, 0.24112578889, atol=2.4e-9)


def test_digits_shapes() -> None:
    loss_fn, params, data = problems.digits_mlp(key=KEY)
    assert (data["x"].shape, data["y"].shape) == ((1797, 64), (1797,))
    assert (float(data["x"].min()), float(data["x"].max())) == (0, 1)
    assert sorted(set(data["y"].tolist())) == list(range(10))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4810
    assert params["hidden"]["w"].shape == (64, 64)
    assert params["output"]["w"].shape == (64, 10)
    assert callable(loss_fn)


NUMPY_ACTIVATIONS = {
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
}


def forward(params: Any, x: np.ndarray, activation: str) -> np.ndarray:
    hidden, output = (jax.tree.map(np.asarray, params[layer]) for layer in ("hidden", "output"))
    return NUMPY_ACTIVATIONS[activation](x @ hidden["w"] + hidden["b"]) @ output["w"] + output["b"]


@pytest.mark.parametrize("activation", problems.ACTIVATIONS)
def test_network_losses_equal_a_numpy_forward_pass(activation: str) -> None:
    """Catches an activation under another name, a missing bias, a missing ½, a sum in place of a mean."""
    x, labels, targets = np.linspace(-2, 3, 24).reshape(6, 2, 2), np.array([0, 2, 1, 3, 3, 0]), np.arange(12.0)
    rows = np.arange(6)
    for y in (labels, targets.reshape(6, 2), targets[:6]):
        loss_fn, params, data = problems.mlp(x, y, key=KEY, hidden=5, activation=activation)
        params = jax.tree.map(lambda a: a + 0.1, params)  # biases too
        predicted = forward(params, x.reshape(6, 4), activation)
        if y is labels:
            expected = np.log(np.exp(predicted).sum(axis=1)) - predicted[rows, labels]
        else:
            expected = ((predicted - y.reshape(6, -1)) ** 2).sum(axis=1) / 2
        losses = jax.jit(jax.vmap(loss_fn, in_axes=(None, 0)))(params, data)
        assert_close(losses, expected, atol=1e-12 * np.abs(expected).max(), what=f"losses for {y.dtype}")


def test_initial_weights_have_variance_one_over_fan_in() -> None:
    """Catches a scale of 1/fan-out, or 1/√fan-in for the variance: 4096 draws know it to 2%."""
    params = problems.digits_mlp(key=KEY, hidden=256).params
    for layer, fan_in in (("hidden", 64), ("output", 256)):
        weights = np.asarray(params[layer]["w"])
        assert abs(weights.var() * fan_in - 1) < 4.5 * (2 / weights.size) ** 0.5
        assert not np.asarray(params[layer]["b"]).any()


def test_the_key_decides_the_weights() -> None:
    """Catches a layer that reuses the other's key."""
    first, same, other = (problems.digits_mlp(key=jax.random.key(s), hidden=64).params for s in (1, 1, 2))
    assert (flat(first) == flat(same)).all()
    assert (flat(first) != flat(other)).sum() == 64 * 64 + 64 * 10
    assert np.abs(flat(first["hidden"]["w"])[:640] - flat(first["output"]["w"])).min() > 1e-9


def test_networks_of_a_kind_share_their_loss() -> None:
    """Catches a new function for every problem, and with it a new compilation."""
    first, second = (problems.mlp(np.ones((3, 2)), np.ones(3), key=KEY, hidden=h) for h in (2, 5))
    assert first.loss_fn is second.loss_fn


def test_breast_cancer() -> None:
    """At θ = 0 every loss is log 2, and the gradient −(y − ½)(x, 1)."""
    loss_fn, params, data = problems.breast_cancer_logistic()
    assert (data["x"].shape, params["w"].shape, params["b"].shape) == ((569, 30), (30,), ())
    assert_close(data["x"].mean(axis=0), np.zeros(30), atol=1e-12)
    assert_close(data["x"].var(axis=0), np.ones(30), atol=1e-12)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert_close(g.losses(), np.full(569, np.log(2)), atol=1e-14)
    x, y = np.asarray(data["x"]), np.asarray(data["y"])
    assert sorted(set(y.tolist())) == [0, 1]
    assert_close(g.materialize()["w"], -(y - 0.5)[:, None] * x, atol=1e-13)
    assert_close(g.materialize()["b"], -(y - 0.5), atol=1e-13)


def test_arrays_take_the_default_dtype() -> None:
    """Catches NumPy's float64 where JAX computes in float32."""
    for precise, dtype in ((True, "float64"), (False, "float32")):
        with jax.enable_x64(precise):
            real = (problems.diabetes_regression(), problems.breast_cancer_logistic())
            for problem in (problems.line_fit(), problems.quadratics(), *real):
                leaves = jax.tree.leaves((problem.params, problem.data))
                assert {str(leaf.dtype) for leaf in leaves} == {dtype}
            network = problems.mlp(np.ones((3, 2)), np.array([0, 1, 1]), key=KEY)
            assert {str(leaf.dtype) for leaf in jax.tree.leaves(network.params)} == {dtype}
            assert {str(leaf.dtype) for leaf in jax.tree.leaves(network.data)} == {dtype, dtype.replace("float", "int")}


ROWS: dict[str, Any] = {
    "list": [3, 0, 3],
    "range": range(1, 3),
    "numpy": np.array([2, 1], np.uint8),
    "jax": jnp.asarray([0, 0]),
    "mask": np.array([True, False, False, True, False, False, False]),
    "mask_of_jax": jnp.arange(7) % 2 == 1,
    "slice": slice(None, None, 2),
    "slice_from_the_end": slice(-2, None),
    "longer_slice": slice(1, 1000),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_some_of_the_examples(rows: Any) -> None:
    """Catches a mask that is taken for the numbers 0 and 1, and a part that is lost on the way."""
    problem = PROBLEMS["tanh_network"]()._replace(batch_loss_fn=max)
    taken = problem.take(rows)
    assert (taken.loss_fn, taken.params, taken.batch_loss_fn) == (problem.loss_fn, problem.params, max)
    for name, leaf in problem.data.items():
        every = np.asarray(leaf).tolist()
        expected = every[rows] if isinstance(rows, slice) else None
        if expected is None and np.asarray(rows).dtype == bool:
            expected = [row for row, chosen in zip(every, rows, strict=True) if chosen]
        elif expected is None:
            expected = [every[row] for row in rows]
        assert np.asarray(taken.data[name]).tolist() == expected
        assert taken.data[name].dtype == leaf.dtype


def test_examples_of_any_kind_are_taken() -> None:
    """Random keys and integers among the data; NumPy's arrays stay NumPy's, on the host."""
    problem = PROBLEMS["odd_leaves"]()
    taken = problem.take([5, 2])
    keys, every = (jax.random.key_data(of.data["key"]) for of in (taken, problem))
    assert np.array_equal(keys, np.asarray(every)[[5, 2]])
    assert taken.data["label"].tolist() == [2, 3]
    assert isinstance(problems.Problem(min, 1.0, np.arange(4)).take([1]).data, np.ndarray)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_mean_loss_is_the_mean_of_the_losses(name: str) -> None:
    loss_fn, params, data = PROBLEMS[name]()
    losses = np.asarray(measured(PROBLEMS[name]()).losses(), np.float64)
    assert_close(problems.mean_loss(loss_fn, params, data), losses.mean(), atol=1e-13 * np.abs(losses).max() + 1e-300)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 9000])
def test_the_mean_loss_of_any_number_of_examples(size: int) -> None:
    """About blocks of 4096. Catches a rest that is left out, and means of unequal blocks that count alike."""
    x = skewed(size)
    loss_fn = lambda params, example: params * example  # noqa: E731
    mean = problems.mean_loss(loss_fn, jnp.asarray(2.0), jnp.asarray(x))
    assert_close(mean, 2 * x.mean(), atol=1e-12)
    slope = jax.jit(jax.grad(partial(problems.mean_loss, loss_fn)))(jnp.asarray(2.0), jnp.asarray(x))
    assert_close(slope, x.mean(), atol=1e-12)
    assert size <= 4096 or abs(mean - 2 * np.mean([x[:4096].mean(), x[4096:].mean()])) > 1e-6, "the control"


def test_the_mean_loss_keeps_no_more_than_a_block() -> None:
    """Catches a pass over all examples at once, whose memory grows with their number."""

    def loss_fn(params: jax.Array, example: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(params * example))

    def bytes_of(function: Any, size: int) -> int:
        shapes = jax.ShapeDtypeStruct((64,), float), jax.ShapeDtypeStruct((size,), float)
        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    at_once = lambda params, data: jnp.sort(jax.vmap(loss_fn, in_axes=(None, 0))(params, data)).mean()  # noqa: E731
    in_blocks = partial(problems.mean_loss, loss_fn)
    assert bytes_of(in_blocks, 64 * 4096) - bytes_of(in_blocks, 16 * 4096) <= 8 * 48 * 4096
    assert bytes_of(at_once, 64 * 4096) > bytes_of(at_once, 16 * 4096)


def idx_file(path: Path, array: np.ndarray) -> None:
    """Written as the format's authors have it: big-endian, the shape after the type."""
    kind = {"uint8": 8, "float32": 13}[array.dtype.name]
    header = bytes([0, 0, kind, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(array.dtype.newbyteorder(">")).tobytes()))


def test_images_are_read_from_their_four_files(tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    written = {}
    for part, count in {"train": 5, "t10k": 3}.items():
        images, labels = r.integers(0, 256, (count, 28, 28), np.uint8), r.integers(0, 10, count, np.uint8)
        idx_file(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        idx_file(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
        written[part] = images, labels
    found = problems.fashion_mnist(tmp_path)
    for part, (images, labels) in zip(found, written.values(), strict=True):
        np.testing.assert_allclose(part["x"], images / 255, rtol=1e-6)
        np.testing.assert_array_equal(part["y"], labels)
    numbers = r.normal(size=(2, 3)).astype(np.float32)
    idx_file(tmp_path / "numbers.gz", numbers)
    np.testing.assert_array_equal(idx.read(tmp_path / "numbers.gz"), numbers)


@pytest.mark.skipif(not Path(problems.FASHION_MNIST).is_dir(), reason="Fashion-MNIST is not installed")
def test_the_clothes_that_are_installed() -> None:
    train, test = problems.fashion_mnist()
    assert train["x"].shape == (60000, 28, 28)
    assert test["x"].shape == (10000, 28, 28)
    assert np.bincount(train["y"]).tolist() == [6000] * 10
    assert (float(train["x"].min()), float(train["x"].max())) == (0, 1)
    assert float(train["x"].mean()) == pytest.approx(0.2860, abs=1e-4), "as published with the data"
