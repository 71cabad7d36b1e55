"""Per-example gradients against a loop over examples, and under every transformation."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import kernels
from jaxsgd.kernels._statistic import statistic
from jaxsgd.problems import Problem
from tests.support.registry import PROBLEMS, gradients_given, network, quick, skewed, take
from tests.support.twins import Loop, assert_close, flat, flat_rows, loop, loop_of


def direction_like(params: Any) -> Any:
    """Numbers that differ from one parameter to the next, so that a swapped pair shows."""
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(
        jnp.cos(jnp.arange(a.size, dtype=a.dtype) + i).reshape(a.shape) for i, a in enumerate(leaves)
    )


def weights_for(count: int) -> np.ndarray:
    return np.cos(np.arange(count)) + 0.3


def statistics(g: jaxsgd.PerExampleGradients, params: Any) -> dict[str, Any]:
    """Every statistic, as the package computes it."""
    return {
        "losses": g.losses(),
        "mean": g.mean(),
        "squared_norms": g.squared_norms(),
        "squared_deviations": g.squared_deviations(),
        "weighted_deviation": g.weighted_deviation(jnp.asarray(weights_for(g.count) ** 2)),
        "scaled": g.scaled(jnp.asarray(weights_for(g.count))).materialize(),
        "inner_products": g.inner_products(direction_like(params)),
        "weighted_sum": g.weighted_sum(jnp.asarray(weights_for(g.count))),
        "second_moment": g.second_moment(),
        "variance": g.variance(ddof=0),
        "variance_ddof_1": g.variance(ddof=1) if g.count > 1 else g.variance(ddof=0),
        "gram": g.gram(),
        "materialize": g.materialize(),
    }


def expected_statistics(twin: Loop, params: Any) -> dict[str, np.ndarray]:
    """The same from the loop, with the power of the gradients' scale that each grows with."""
    losses, G = twin
    centered, count = G - G.mean(axis=0), len(G)
    shares = weights_for(count) ** 2 / np.sum(weights_for(count) ** 2)
    return {
        "losses": losses,
        "mean": G.mean(axis=0),
        "squared_norms": np.array([row @ row for row in G]),
        "squared_deviations": np.array([row @ row for row in centered]),
        "weighted_deviation": np.array([weights_for(count) ** 2 @ ((G - shares @ G) ** 2).sum(axis=1)]),
        "scaled": np.array([w * row for w, row in zip(weights_for(count), G, strict=True)]),
        "inner_products": np.array([row @ flat(direction_like(params)) for row in G]),
        "weighted_sum": sum(w * row for w, row in zip(weights_for(count), G, strict=True)),
        "second_moment": (G**2).mean(axis=0),
        "variance": (centered**2).sum(axis=0) / count,
        "variance_ddof_1": (centered**2).sum(axis=0) / max(count - 1, 1),
        "gram": np.array([[a @ b for b in G] for a in G]),
        "materialize": G,
    }


LINEAR = {"mean", "inner_products", "weighted_sum", "materialize", "scaled"}


def check(actual: dict[str, Any], twin: Loop, params: Any) -> None:
    for name, expected in expected_statistics(twin, params).items():
        flatten = flat_rows if name in ("materialize", "gram", "scaled") else flat
        scale = np.abs(twin.losses).mean() if name == "losses" else twin.scale ** (1 if name in LINEAR else 2)
        assert_close(flatten(actual[name]), expected, atol=1e-12 * len(twin.losses) * scale, what=name)


def measure(problem: Problem, params: Any) -> dict[str, Any]:
    return statistics(jaxsgd.per_example_gradients(problem.loss_fn)(params, problem.data), params)


@pytest.mark.parametrize("name", quick(PROBLEMS, PROBLEMS.keys() - {"classifier", "tanh_network"}))
def test_statistics_equal_the_loop(name: str) -> None:
    """Catches a wrong axis, a swapped parameter, a missing divisor, an uncentered deviation."""
    problem = PROBLEMS[name]()
    check(measure(problem, problem.params), loop_of(name), problem.params)


@pytest.mark.parametrize("name", ["line_fit", "odd_leaves"])
def test_statistics_equal_the_loop_under_jit(name: str) -> None:
    """Catches a check or a Python number that needs concrete values."""
    problem = PROBLEMS[name]()
    check(jax.jit(lambda params: measure(problem, params))(problem.params), loop_of(name), problem.params)


def check_vmap_over_params(name: str, transform: Callable[[Any], Any]) -> None:
    problem = PROBLEMS[name]()
    moved = jax.tree.map(lambda a: a + 0.1, problem.params)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), problem.params, moved)
    result = transform(jax.vmap(lambda params: measure(problem, params)))(both)
    for i, params in enumerate((problem.params, moved)):
        check(jax.tree.map(lambda a, i=i: a[i], result), loop(problem._replace(params=params)), params)


@pytest.mark.parametrize("name", quick(PROBLEMS, {"line_fit", "equal_rows"}))
def test_statistics_equal_the_loop_under_jit_of_vmap_over_params(name: str) -> None:
    """Catches a reduction over an axis counted from the wrong end, which a second batch axis moves."""
    check_vmap_over_params(name, jax.jit)


def test_statistics_equal_the_loop_under_vmap_alone() -> None:
    """Catches a kernel that is right only once it is inlined into another."""
    check_vmap_over_params("line_fit", lambda f: f)


def test_gradients_pass_through_jit_and_scan_as_a_pytree() -> None:
    """Catches a field that is not registered, or a static field that does not hash."""
    problem = PROBLEMS["repeated_rows"]()
    g = jax.jit(jaxsgd.per_example_gradients(problem.loss_fn))(problem.params, problem.data)
    last, means = jax.lax.scan(lambda carry, _: (carry, carry.mean()), g, None, length=2)
    twin = loop(problem)
    check(statistics(last, problem.params), twin, problem.params)
    for i in range(2):
        mean = flat(jax.tree.map(lambda a, i=i: a[i], means))
        assert_close(mean, twin.gradients.mean(axis=0), atol=1e-12 * twin.scale)


def test_count_and_num_params() -> None:
    problem = PROBLEMS["odd_leaves"]()
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    assert (g.count, g.num_params) == (6, 2 * 3 + 4 + 1 + 0 + 2)


def counting_loss() -> tuple[Callable[..., jax.Array], list[int]]:
    traces: list[int] = []

    def loss_fn(params: jax.Array, example: jax.Array) -> jax.Array:
        traces.append(1)
        return jnp.sum(params * example) ** 2

    return loss_fn, traces


def test_compiles_once() -> None:
    """Catches a transformation that is compiled anew whenever per_example_gradients(loss_fn) is written anew."""
    loss_fn, _ = counting_loss()
    before = kernels.trace_batch._cache_size()
    for start in range(4):
        jaxsgd.per_example_gradients(loss_fn)(jnp.ones(2), jnp.ones((5, 2)) + start)
    assert kernels.trace_batch._cache_size() == before + 1
    jaxsgd.per_example_gradients(loss_fn)(jnp.ones(2), jnp.ones((6, 2)))
    assert kernels.trace_batch._cache_size() == before + 2, "another shape must be seen to compile"


def test_a_statistic_compiles_once_however_its_arguments_are_passed() -> None:
    """Catches a program for arguments by name and another by place, and a check that sees tracers."""
    traces, checked = [], []

    def check(g: Any, weights: Any, other: Any) -> None:
        checked.append((type(g), type(weights), other))

    @statistic(check)
    def weighted(g: Any, weights: Any, other: Any = None) -> Any:
        """Is shown by help()."""
        traces.append(other)
        return g * weights

    calls = (
        weighted(2.0, np.ones(3)),
        weighted(2.0, np.ones(3), None),
        weighted(2.0, weights=np.ones(3)),
        weighted(2.0, np.ones(3), other=None),
    )
    assert [call.tolist() for call in calls] == [[2.0, 2.0, 2.0]] * 4
    assert traces == [None]
    assert checked == [(float, np.ndarray, None)] * 4
    assert (weighted.__doc__, str(inspect.signature(weighted))[:11]) == ("Is shown by help().", "(g: Any, we")
    for wrong in ((2.0,), (2.0, 1.0, None, None)):
        with pytest.raises(TypeError, match="argument"):
            weighted(*wrong)


def test_traces_the_loss_no_more_than_once_a_call_and_never_under_jit() -> None:
    """Catches statistics that go back to the loss, and checks that trace it more often than they must."""
    loss_fn, traces = counting_loss()
    gradients, batch = jaxsgd.per_example_gradients(loss_fn), jnp.ones((5, 2))
    statistics(gradients(jnp.ones(2), batch), jnp.ones(2))
    first = len(traces)
    statistics(gradients(jnp.ones(2) + 1, batch), jnp.ones(2))
    assert len(traces) <= first + 1  # the check that the loss is scalar
    compiled = jax.jit(gradients)
    compiled(jnp.ones(2), batch)
    first = len(traces)
    compiled(jnp.ones(2) + 1, batch)
    assert len(traces) == first


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_gradients_accumulate_in_float32(dtype: Any) -> None:
    """Catches sums in the parameters' dtype: 400 numbers near 2 add up to 3 digits at best in bfloat16."""
    problem = gradients_given(skewed(400, 3) + 2, dtype)
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    G = np.asarray(problem.data, np.float64)
    squares = (G**2).sum(axis=1)
    assert g.mean().dtype == g.squared_norms().dtype == g.gram().dtype == jnp.float32
    assert_close(g.mean(), G.mean(axis=0), atol=1e-6 * np.abs(G).mean())
    assert_close(g.squared_norms(), squares, atol=1e-6 * squares.max())
    assert_close(g.gram(), G @ G.T, atol=1e-6 * squares.max())
    assert_close(g.variance(ddof=0), G.var(axis=0), atol=1e-6 * squares.mean())
    in_place = np.asarray((problem.data * problem.data).sum(axis=1), np.float64)
    assert np.abs(in_place - squares).max() > 1e-4 * squares.max(), "the control must be off by rounding"


def test_float32_in_float32_out() -> None:
    """Catches a float64 constant that turns every statistic into float64."""
    problem = gradients_given(skewed(5, 3), jnp.float32)
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    dtypes = jax.tree.map(lambda a: a.dtype, statistics(g, problem.params))
    assert set(jax.tree.leaves(dtypes)) == {jnp.dtype("float32")}


def test_float32_and_float64_parameters_side_by_side() -> None:
    """Catches a sum over parameters that takes the dtype of the first."""

    def loss_fn(params: Any, example: jax.Array) -> jax.Array:
        return params["a"].astype(jnp.float64) * example + params["b"] * example

    params = {"a": jnp.asarray(1.0, jnp.float32), "b": jnp.asarray(1.0)}
    with jax.numpy_dtype_promotion("standard"):
        g = jaxsgd.per_example_gradients(loss_fn)(params, jnp.asarray([0.0, 1.0, 2.0]))
        assert g.squared_norms().dtype == g.gram().dtype == jnp.float64
        assert_close(g.gram(), [[0, 0, 0], [0, 2, 4], [0, 4, 8]], atol=0)
        assert jax.tree.map(lambda a: a.dtype.name, g.mean()) == {"a": "float32", "b": "float64"}


def matrix_products(closed: Any) -> list[Any]:
    """The precision of every matrix product of a traced function, those in nested jits too."""
    found = []
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for value in equation.params.values():
            found += matrix_products(value) if hasattr(value, "jaxpr") else []
    return found


@pytest.mark.parametrize("name", ["line_fit", "tanh_network", "odd_leaves"])
def test_matrix_products_ask_for_the_highest_precision(name: str) -> None:
    """Catches products that a GPU would round to 10 bits; on a CPU the numbers do not show it."""
    problem = PROBLEMS[name]()
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    precisions = matrix_products(jax.make_jaxpr(lambda g: statistics(g, problem.params))(g))
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    assert len(precisions) >= 3  # inner products, weighted sum, Gram matrix
    assert set(precisions) == {highest}
    square = jnp.ones((2, 2))
    assert matrix_products(jax.make_jaxpr(jnp.matmul)(square, square)) == [None], "the control"


@pytest.mark.parametrize("some", [slice(1, 4), np.array([5, 0, 5]), jnp.array([2])], ids=["slice", "numpy", "jax"])
@pytest.mark.parametrize("memory_limit", [None, 600, 1000])
def test_take_gives_the_gradients_of_some_examples(some: Any, memory_limit: int | None) -> None:
    """Catches a part that is shared by all examples and indexed all the same, and chunks larger than what is taken."""
    problem = PROBLEMS["odd_leaves"]()
    g = jaxsgd.per_example_gradients(problem.loss_fn, memory_limit=memory_limit)(problem.params, problem.data)
    rows = loop_of("odd_leaves").gradients[some]
    taken = g.take(some)
    assert (taken.count, type(taken)) == (len(rows), type(g))
    assert_close(flat_rows(taken.materialize()), rows, atol=1e-12 * np.abs(rows).max())
    assert_close(flat(taken.mean()), rows.mean(axis=0), atol=1e-12 * np.abs(rows).max())


def test_gram_against_another_batch() -> None:
    """Catches a transposed or self-only Gram matrix."""
    problem = network()
    first, second = take(problem, [0, 1, 2, 3, 4]), take(problem, [6, 5, 0])
    g, h = (jaxsgd.per_example_gradients(p.loss_fn)(p.params, p.data) for p in (first, second))
    G, H = loop(first).gradients, loop(second).gradients
    assert_close(g.gram(h), G @ H.T, atol=1e-12 * loop(problem).scale ** 2)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_gradient_of_the_mean_is_the_mean_of_the_gradients(activation: str) -> None:
    """The linearity of differentiation, for three programs; the loss of the mean residual is not among them."""
    problem, twin = network(activation), loop(network(activation))

    def mean_loss(params: Any) -> jax.Array:
        return jnp.mean(jax.vmap(problem.loss_fn, in_axes=(None, 0))(params, problem.data))

    tolerance = 1e-12 * twin.scale
    by_hand = twin.gradients.sum(axis=0) / len(twin.gradients)
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    assert_close(flat(jax.grad(mean_loss)(problem.params)), by_hand, atol=tolerance, what="gradient of the mean")
    assert_close(flat(g.mean()), by_hand, atol=tolerance, what="mean of the gradients")

    def loss_of_mean_residual(params: Any) -> jax.Array:
        zero = jnp.zeros(2)
        predict = jax.grad(lambda y, x: -problem.loss_fn(params, {"x": x, "y": y}))  # prediction − y, at y = 0
        residuals = jax.vmap(predict, in_axes=(None, 0))(zero, problem.data["x"]) - problem.data["y"]
        return 0.5 * jnp.sum(residuals.mean(axis=0) ** 2)

    control = flat(jax.grad(loss_of_mean_residual)(problem.params))
    assert np.abs(control - by_hand).max() > 1e-2 * twin.scale, "the control must differ"
