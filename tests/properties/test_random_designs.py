"""Random parameters and data of every dtype, random designs: what must hold of all of them.

The gradients are known by hand, c cos θ for the loss c sin θ, so nothing here trusts another differentiation.
"""

import itertools
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxsgd
from jaxsgd import designs, estimators
from tests.support.models import QUICK
from tests.support.registry import gradients_given, measured, network, skewed
from tests.support.twins import flat

DTYPES = ["float32", "float64", "bfloat16"]
KINDS = [*DTYPES, "int32", "bool"]


def some(count: int) -> Any:
    """Without shrinking, which compiles anew for every smaller example: minutes for one failure."""
    return settings(max_examples=count, deadline=None, derandomize=True, phases=[Phase.generate])


def float64(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


# Trees of arrays.


def shapes() -> Any:
    return st.lists(st.integers(0, 3), max_size=2).map(tuple)


def leaves(kinds: list[str], seed: int) -> Any:
    """An array of a random shape and dtype, with numbers that its dtype holds exactly."""

    def array(shape: tuple[int, ...], dtype: str) -> jax.Array:
        values = np.round(8 * skewed(*shape, seed=seed)) / 8 if shape else np.asarray(0.625)
        return jnp.asarray(values > 0.5 if dtype == "bool" else values, dtype)

    return st.builds(array, shapes(), st.sampled_from(kinds))


def trees(kinds: list[str], seed: int) -> Any:
    """Dicts, lists and tuples of such arrays, of which at least one has a number."""
    leaf = leaves(kinds, seed)
    nested = st.recursive(
        leaf, lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner)
    )
    return st.tuples(leaf.filter(lambda array: array.size), nested)


def batches(count: int) -> Any:
    """Trees of arrays with ``count`` examples; a scalar leaf becomes a vector."""

    def repeated(leaf: jax.Array) -> jax.Array:
        steps = np.arange(count).reshape(count, *[1] * leaf.ndim)
        rows = float64(leaf)[None] + steps * (3 if leaf.dtype == "int32" else 0.375)
        return jnp.asarray(rows % 2 > 0.9 if leaf.dtype == "bool" else rows, leaf.dtype)

    return trees(KINDS, 5).map(lambda tree: jax.tree.map(repeated, tree))


def number_of(example: Any) -> Any:
    """One number of an example, in float64: what it holds, each leaf with a weight of its own."""
    return sum((i + 1) * jnp.sum(leaf.astype(jnp.float64)) / 16 for i, leaf in enumerate(jax.tree.leaves(example)))


def coefficients(leaf: Any, number: Any, place: int) -> Any:
    """c of the loss, for every entry of one parameter: multiples of 1/4 times the number of the example."""
    return (jnp.arange(leaf.size).reshape(leaf.shape) % 5 + place + 1).astype(jnp.float64) / 4 * number


def sines(params: Any, example: Any) -> jax.Array:
    """Σ c sin θ, every product in the dtype of θ."""
    parts = [
        jnp.sum(coefficients(leaf, number_of(example), place).astype(leaf.dtype) * jnp.sin(leaf))
        for place, leaf in enumerate(jax.tree.leaves(params))
    ]
    return sum(part.astype(jnp.float64) for part in parts)


def rows_by_hand(params: Any, data: Any, count: int) -> list[np.ndarray]:
    """c cos θ in float64, one matrix for each parameter, without JAX."""
    numbers = sum(
        (i + 1) * float64(leaf).reshape(count, -1).sum(axis=1) / 16 for i, leaf in enumerate(jax.tree.leaves(data))
    )
    found = []
    for place, leaf in enumerate(jax.tree.leaves(params)):
        c = (np.arange(leaf.size) % 5 + place + 1) / 4
        found.append(numbers[:, None] * (c * np.cos(float64(leaf)).ravel())[None])
    return found


def rounding(dtype: Any) -> float:
    """Of the dtype, times 8: c, cos θ and their product are rounded, and what is summed has a float32 or better."""
    return 8 * max(float(jnp.finfo(dtype).eps), 1e-15)


def check_statistics(params: Any, data: Any, count: int) -> None:
    g = jax.jit(jaxsgd.per_example_gradients(sines), compiler_options=QUICK)(params, data)
    rows = rows_by_hand(params, data, count)
    worst = rounding(max((leaf.dtype for leaf in jax.tree.leaves(params)), key=lambda dtype: jnp.finfo(dtype).eps))
    found = [jax.tree.leaves(tree) for tree in (g.mean(), g.variance(), g.second_moment(), g.materialize())]
    for mean, variance, second, each, expected, leaf in zip(*found, rows, jax.tree.leaves(params), strict=True):
        largest, bound = np.abs(expected).max(initial=0.0), rounding(leaf.dtype)
        for what, actual, truth, scale in (
            ("row", float64(each).reshape(count, -1), expected, largest),
            ("mean", float64(mean).ravel(), expected.mean(axis=0), largest),
            ("variance", float64(variance).ravel(), expected.var(axis=0), largest**2),
            ("second_moment", float64(second).ravel(), np.mean(expected**2, axis=0), largest**2),
        ):
            error = np.abs(actual - truth).max(initial=0.0)
            assert error <= bound * scale, f"{what} of {leaf.dtype} {leaf.shape} is off by {error}, of {scale}"
    whole = np.concatenate(rows, axis=1)
    norms = np.sum(whole**2, axis=1)
    deviations = np.sum((whole - whole.mean(axis=0)) ** 2)
    assert np.abs(float64(g.squared_norms()) - norms).max() <= 2 * worst * norms.max()
    assert np.abs(float64(g.gram()) - whole @ whole.T).max() <= 2 * worst * norms.max()
    assert abs(float64(g.total_deviation()) - deviations) <= 2 * worst * norms.sum()


def sized(count: int) -> Any:
    return st.tuples(trees(DTYPES, 1), batches(count), st.just(count))


@some(6)
@given(st.integers(1, 4).flatmap(sized))
def test_statistics_of_any_tree_and_dtype_equal_those_by_hand(case: Any) -> None:
    check_statistics(*case)


@pytest.mark.slow
@some(150)
@given(st.integers(1, 5).flatmap(sized))
def test_statistics_of_more_trees(case: Any) -> None:
    check_statistics(*case)


# Designs.

fractions = st.fractions(Fraction(1, 6), 1, max_denominator=6)
positive = st.integers(1, 5)


def surjective(N: int) -> Any:
    """Labels of N examples, all of which are used."""
    return st.lists(st.integers(0, 2), min_size=N, max_size=N).map(
        lambda found: [sorted(set(found)).index(label) for label in found]
    )


def made(kind: Any, *arguments: Any) -> Any:
    """A function that makes a design: outside of the strategy, since the checks of types draw at random."""
    return st.tuples(*arguments).map(lambda found: partial(kind, *found))


def stratified(N: int) -> Any:
    def allocated(labels: list[int]) -> Any:
        sizes = st.tuples(*(st.integers(1, labels.count(label)) for label in range(max(labels) + 1)))
        return made(designs.Stratified, st.just(labels), sizes.map(list))

    return surjective(N).flatmap(allocated)


def any_design(N: int) -> Any:
    """A random design without bias for N examples."""
    sizes, chances = st.integers(1, N), st.lists(fractions, min_size=N, max_size=N)
    odds = st.lists(positive, min_size=N, max_size=N)
    return st.one_of(
        made(designs.WithReplacement, st.integers(1, 3)),
        made(designs.WithoutReplacement, sizes),
        made(designs.DistinctUnits, st.integers(1, 3)),
        made(designs.Reshuffling, sizes),
        made(designs.Bernoulli, fractions),
        made(designs.Poisson, chances),
        made(designs.Importance, odds.map(lambda o: [Fraction(i, sum(o)) for i in o]), st.integers(1, 3)),
        made(designs.ConditionalPoisson, odds, sizes),
        stratified(N),
        made(designs.Groups, surjective(N)),
        made(designs.CircularBlocks, sizes),
    )


@st.composite
def populations(draw: Any) -> Any:
    """Integer gradients, which rationals and floats hold alike, and a design for them."""
    N = draw(st.integers(2, 5))
    rows = draw(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=N, max_size=N))
    return rows, draw(any_design(N))


def check_design(rows: list[tuple[int, int]], make: Callable[[], designs.SamplingDesign]) -> None:
    """Σ p w is 1/N in rationals, Σ p (w − 1/N)(w − 1/N)ᵀ is what is stated, and so is E‖ĝ − ḡ‖², all from the list."""
    N, design = len(rows), make()
    law = [(Fraction(p), [Fraction(w) for w in weights]) for p, weights in design.support(N)]
    assert sum(p for p, _ in law) == 1
    assert [sum(p * w[i] for p, w in law) for i in range(N)] == [Fraction(1, N)] * N
    covariance = [
        [sum(p * (w[i] - Fraction(1, N)) * (w[j] - Fraction(1, N)) for p, w in law) for j in range(N)] for i in range(N)
    ]
    assert design.weight_covariance(N).entries(N).tolist() == covariance
    products = [[a * c + b * d for c, d in rows] for a, b in rows]
    variance = sum(covariance[i][j] * products[i][j] for i, j in itertools.product(range(N), repeat=2))
    g = measured(gradients_given(np.asarray(rows, float)))
    found = estimators.exact(design, g)
    scale = 1e-13 * max(np.diag(products))
    assert abs(float(found.variance) - float(variance)) <= scale
    np.testing.assert_allclose(flat(found.mean), np.mean(rows, axis=0), rtol=0, atol=1e-13 * 9)


@some(60)
@given(populations())
def test_designs_with_random_numbers_have_the_law_they_state(case: Any) -> None:
    check_design(*case)


@pytest.mark.slow
@some(3000)
@given(populations())
def test_more_designs(case: Any) -> None:
    check_design(*case)


def test_a_wrong_law_is_found_out() -> None:
    """The control: a design that states the covariance of another batch size, or is biased."""

    class Larger(designs.WithoutReplacement):
        def _covariance(self, population_size: int) -> Any:
            return designs.WithoutReplacement(self.batch_size + 1)._covariance(population_size)

    rows = [(1, 2), (3, 5), (-4, 0)]
    check_design(rows, partial(designs.WithoutReplacement, 1))
    for wrong in (partial(Larger, 1), partial(designs.WithoutReplacement, 1, scale="total")):
        with pytest.raises(AssertionError):
            check_design(rows, wrong)


@some(20)
@given(st.lists(st.integers(-9, 9), min_size=4, max_size=6), st.integers(2, 3))
def test_variance_estimates_from_a_batch_are_unbiased(values: list[int], M: int) -> None:
    """Over all batches; the numbers of one batch as NumPy finds them."""
    N, rows = len(values), np.asarray(values, float)
    g = measured(gradients_given(rows))
    estimates = [
        float(estimators.without_replacement_variance(g.take(np.asarray(batch)), population_size=N))
        for batch in itertools.combinations(range(N), M)
    ]
    by_hand = [(1 - M / N) * rows[list(batch)].var(ddof=1) / M for batch in itertools.combinations(range(N), M)]
    np.testing.assert_allclose(estimates, by_hand, rtol=0, atol=1e-12 * 81)
    truth = float(estimators.exact(designs.WithoutReplacement(M), g).variance)
    assert abs(np.mean(estimates) - truth) <= 1e-12 * 81


# Invariances.

NETWORK = network()
COUNT = len(jax.tree.leaves(NETWORK.data)[0])


def scaled_loss(params: Any, example: Any) -> jax.Array:
    loss = NETWORK.loss_fn(params, {name: leaf for name, leaf in example.items() if name != "scale"})
    return loss * example["scale"]


@jax.jit
def statistics(data: Any) -> Any:
    g = jaxsgd.per_example_gradients(scaled_loss)(NETWORK.params, data)
    rows = {"norms": g.squared_norms(), "losses": g.example_losses, "deviations": g.squared_deviations()}
    totals = {"mean": g.mean(), "variance": g.variance(), "total": g.total_deviation()}
    ones = jnp.ones(g.count, g.squared_norms().dtype)
    return rows, totals, g.gram(), g.weighted_sum(ones)


def close(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * float(np.abs(b).max()))


@some(20)
@given(st.permutations(range(COUNT)), st.floats(-100, 100).filter(lambda c: abs(c) > 1e-3))
def test_order_and_scale(order: list[int], c: float) -> None:
    """Rows go with their examples; totals do not care; and a loss c times as large has c² times the variance."""
    data = NETWORK.data | {"scale": jnp.ones(COUNT)}
    rows, totals, gram, total = statistics(data)
    close(total, jax.tree.map(lambda mean: COUNT * mean, totals["mean"]))
    at = np.asarray(order)
    moved = statistics(jax.tree.map(lambda leaf: leaf[at], data))
    close(moved, (jax.tree.map(lambda row: row[at], rows), totals, gram[at][:, at], total))
    scaled = statistics(data | {"scale": jnp.full(COUNT, c)})
    squares = {"norms": c**2, "losses": c, "deviations": c**2}
    close(scaled[0], {name: row * squares[name] for name, row in rows.items()})
    close(scaled[1]["mean"], jax.tree.map(lambda leaf: leaf * c, totals["mean"]))
    close(scaled[1]["variance"], jax.tree.map(lambda leaf: leaf * c**2, totals["variance"]))
    close((scaled[1]["total"], scaled[2]), (totals["total"] * c**2, gram * c**2))


@some(15)
@given(st.integers(-1000, 1000), st.integers(2, 4))
def test_a_constant_added_to_all_gradients_and_examples_repeated(constant: int, times: int) -> None:
    """Neither changes tr Σ; the first moves the mean, by itself."""
    rows = skewed(6, 2)
    g, moved = (measured(gradients_given(r)) for r in (rows, rows + constant))
    repeated = measured(gradients_given(np.tile(rows, (times, 1))))
    T = float(g.total_deviation()) / 6
    assert abs(float(moved.total_deviation()) / 6 - T) <= 1e-12 * max(abs(constant), 1)
    assert abs(float(repeated.total_deviation()) / (6 * times) - T) <= 1e-12
    close(moved.mean(), g.mean() + constant)
    close(repeated.mean(), g.mean())
