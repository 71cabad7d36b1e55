"""The 36 claims and questions of the source pages, in order of number, each settled by library code and exact numbers.

The docstring of a test is the sentence in our own words and the verdict; ``README.md`` has them as a table, with the
figure of each. S0, S1 and S2 are the three pages: a proof for one example, a question on averaged errors, a question on
averaged gradients.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import designs, estimators, problems, surfaces

F = Fraction
LINE = problems.line_fit()
POINTS = [(0, 1), (1, 3), (2, 2), (3, 5)]


def line_gradient(theta: Any, example: tuple[int, int]) -> np.ndarray:
    """The gradient of (y − mx − b)² as rational numbers, (∂m, ∂b)."""
    x, y = example
    residual = y - theta[0] * x - theta[1]
    return np.array([-2 * residual * x, -2 * residual], dtype=object)


def mean_loss(loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda params, data: jnp.mean(jax.vmap(loss_fn, (None, 0))(params, data))


def pair(tree: Any) -> list[float]:
    return [float(tree["m"]), float(tree["b"])]


def assert_trees_close(actual: Any, expected: Any, atol: float) -> None:
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


def test_claim_01_differentiation_is_linear() -> None:
    """The gradient of a sum is the sum of gradients, and constants come out: TRUE where both are differentiable."""
    rng = np.random.default_rng(0)
    f, g = (jnp.asarray(rng.normal(size=(5, 3))) for _ in range(2))

    def polynomial(coefficients: Any, x: Any) -> Any:
        return jnp.sum(coefficients * jnp.stack([x**k for k in range(5)]))

    x = jnp.asarray(rng.normal(size=3))
    of_f, of_g = (jax.grad(polynomial, 1)(coefficients, x) for coefficients in (f, g))
    of_sum = jax.grad(lambda x: 3 * polynomial(f, x) - 2 * polynomial(g, x))(x)
    np.testing.assert_allclose(of_sum, 3 * of_f - 2 * of_g, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_f, sum(k * f[k] * x ** max(k - 1, 0) for k in range(1, 5)), rtol=0, atol=1e-12)
    assert np.max(np.abs(of_f)) > 1


def test_claim_02_the_derivative_of_x2_plus_x3() -> None:
    """S0 prints 2x + 3x as the derivative of x² + x³: FALSE, a slip for 2x + 3x².

    The two agree at 0 and 1 only, so that a check at those points alone would pass the wrong one.
    """
    derivative = jax.grad(lambda x: x**2 + x**3)
    found = {x: float(derivative(float(x))) for x in (-1, 0, 1, 2)}
    assert found == {x: 2 * x + 3 * x**2 for x in found} == {-1: 1, 0: 0, 1: 5, 2: 16}
    assert {x for x in found if 2 * x + 3 * x == found[x]} == {0, 1}
    assert (2 * 2 + 3 * 2, 2 * -1 + 3 * -1) == (10, -5)


def test_claim_03_a_straight_line_is_not_a_linear_map() -> None:
    """x + 1 is a straight line and not linear: TRUE. Differentiation is linear all the same; functions need not be."""

    def f(x: Any) -> Any:
        return x + 1

    assert (f(2 + 3), f(2) + f(3)) == (6, 7)
    assert jax.grad(lambda x: f(x) ** 3 + f(x))(2.0) == jax.grad(lambda x: f(x) ** 3)(2.0) + jax.grad(f)(2.0) == 28


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_claim_04_a_network_being_nonlinear_in_its_input_does_not_matter(activation: str) -> None:
    """For a network the gradient of the sum may differ from the sum of gradients, inputs being different: FALSE.

    The summands are functions of the same parameters, in which inputs and targets are constants; differentiation is
    with respect to the parameters, and a finite sum of differentiable functions is all it takes.
    """
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    loss_fn, params, data = problems.mlp(x, y, key=jax.random.key(0), hidden=4, activation=activation)
    of_sum = jax.grad(lambda p: jnp.sum(jax.vmap(loss_fn, (None, 0))(p, data)))(params)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert_trees_close(of_sum, g.weighted_sum(jnp.ones(9)), 1e-12)
    assert_trees_close(of_sum, jax.tree.map(lambda leaf: leaf.sum(axis=0), g.materialize()), 1e-12)
    assert sum(line_gradient((1, 1), point) for point in POINTS).tolist() == [-4, -2]


@pytest.mark.parametrize(
    ("eta", "ends"),
    [
        (F(1, 20), [(F(1293, 1000), F(1121, 1000)), (F(6, 5), F(11, 10))]),
        (F(1, 200), [(1 + F(1, 50) + F(363, 10**6), 1 + F(1, 100) + F(21, 10**6)), (F(51, 50), F(101, 100))]),
    ],
)
def test_claim_05_all_gradients_are_at_the_same_point(eta: Fraction, ends: Any) -> None:
    """Averages and gradients commute at one point only: TRUE. A batch has several points: FALSE, θ is the one point.

    They would not commute at different θ, as in four steps one after another: these are off by 12η² + 504η³ in m, and
    by 168η³ in b.
    """
    one_by_one = together = np.array([F(1), F(1)], dtype=object)
    for point in POINTS:
        one_by_one = one_by_one - eta * line_gradient(one_by_one, point)
    together = together - eta * sum(line_gradient((1, 1), point) for point in POINTS)
    assert [tuple(one_by_one), tuple(together)] == ends
    assert tuple(one_by_one - together) == (12 * eta**2 + 504 * eta**3, 168 * eta**3)
    params = LINE.params
    for i in range(4):
        gradient = jax.grad(LINE.loss_fn)(params, {k: v[i] for k, v in LINE.data.items()})
        params = jax.tree.map(lambda p, g: p - float(eta) * g, params, gradient)
    np.testing.assert_allclose(pair(params), [float(end) for end in ends[0]], rtol=0, atol=1e-14)


def test_claim_06_differentiating_the_average_and_averaging_the_derivatives() -> None:
    """The average loss may be back-propagated instead of every example's (S1's question): TRUE for additive losses."""
    loss_fn, params, data = LINE
    of_mean = jax.grad(mean_loss(loss_fn))(params, data)
    mean_of = jaxsgd.per_example_gradients(loss_fn)(params, data).mean()
    total = {"m": 0.0, "b": 0.0}
    for i in range(4):
        gradient = jax.grad(loss_fn)(params, {k: v[i] for k, v in data.items()})
        total = {k: total[k] + float(gradient[k]) / 4 for k in total}
    assert pair(of_mean) == pair(mean_of) == pair(total) == [-1, -0.5]
    assert jaxsgd.check_additivity(mean_loss(loss_fn), params, data).kind == "mean"


def test_claim_07_the_hand_written_partial_derivatives_of_a_line_fit() -> None:
    """∂J/∂m = −(2/N) Σ x(y − mx − b) and ∂J/∂b = −(2/N) Σ (y − mx − b): TRUE.

    A line before them lacks brackets: as printed, the derivative of y alone is taken and mx + b subtracted from it.
    """
    gradient = jax.grad(mean_loss(LINE.loss_fn))
    for m, b in ((1, 1), (0, 0), (F(11, 10), F(11, 10)), (F(-3, 2), F(1, 4))):
        by_hand = sum(line_gradient((m, b), point) for point in POINTS) / F(4)
        found = gradient({"m": jnp.asarray(float(m)), "b": jnp.asarray(float(b))}, LINE.data)
        np.testing.assert_allclose(pair(found), by_hand.astype(float), rtol=0, atol=1e-14)

        def loss(m: Fraction, b: Fraction) -> Fraction:
            return sum((F(y) - m * x - b) ** 2 for x, y in POINTS) / 4

        h = F(1, 3)  # a central difference of a quadratic is exact for any step
        assert (loss(m + h, b) - loss(m - h, b)) / (2 * h) == by_hand[0]
        assert (loss(m, b + h) - loss(m, b - h)) / (2 * h) == by_hand[1]
    as_printed = sum(2 * (y - x - 1) * 0 - (x + 1) for x, y in POINTS)  # at m = b = 1, where ∂y/∂m = 0
    assert F(as_printed, 4) == F(-5, 2) != -1


def test_claim_09_sum_and_mean() -> None:
    """Can the sum of errors replace their mean? It IS the sum of gradients, N times the mean: CONDITIONAL.

    The minimum is the same, and SGD is the same with the learning rate divided by N. It is not where something else
    sets a scale: with an L2 penalty, clipping, or Adam's ε the two differ.
    """
    loss_fn, params, data = LINE
    of_sum = jax.grad(lambda p: 4 * mean_loss(loss_fn)(p, data))(params)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert pair(of_sum) == [4 * value for value in pair(g.mean())] == [-4, -2]
    for scale, factor in (("mean", 1), ("sum", 2), ("total", 4)):
        drawn = estimators.exact(designs.WithoutReplacement(2, scale=scale), g)
        np.testing.assert_allclose(pair(drawn.mean), [-factor, -factor / 2], rtol=0, atol=1e-14)
        np.testing.assert_allclose(float(drawn.variance), 5.25 * factor**2, rtol=0, atol=1e-13)
    of_mean, of_sum = g.mean(), g.weighted_sum(jnp.ones(4))

    def steps(optimizer: Any, for_sum: Any) -> bool:
        """Whether one step is the same, the second with the learning rate for the sum."""
        first, second = (o.update(u, o.init(params))[0] for o, u in ((optimizer, of_mean), (for_sum, of_sum)))
        return bool(np.allclose(pair(first), pair(second), rtol=1e-9, atol=0))

    assert steps(optax.sgd(0.1), optax.sgd(0.1 / 4))
    clip = optax.clip_by_global_norm(2.0)
    assert not steps(optax.chain(clip, optax.sgd(0.1)), optax.chain(clip, optax.sgd(0.1 / 4)))
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
        assert steps(optax.adam(0.1, eps=0.0), optax.adam(0.1, eps=0.0))
        assert not steps(optax.adam(0.1, eps=1e-3), optax.adam(0.1, eps=1e-3))
    x, y, penalty = (1, 2, 3), (1, 3, 2), F(1)
    xx, xy = sum(a * a for a in x), sum(a * b for a, b in zip(x, y, strict=True))
    assert [F(xy, 1) / (xx + n * penalty) for n in (0, 1, 3)] == [F(13, 14), F(13, 15), F(13, 17)]
    ridge_data = {"x": jnp.asarray([1.0, 2.0, 3.0]), "y": jnp.asarray([1.0, 3.0, 2.0])}

    def penalized(theta: Any, total: float) -> Any:
        residuals = ridge_data["y"] - theta * ridge_data["x"]
        return total * jnp.mean(residuals**2) + theta**2

    for total, minimum in ((3.0, 13 / 15), (1.0, 13 / 17)):
        assert abs(float(jax.grad(penalized)(minimum, total))) < 1e-14


def test_claim_25_gradients_are_taken_at_one_place_in_parameter_space() -> None:
    """Each example's gradient is at the same location, in the space of parameters: TRUE, by definition.

    It has the shape of the parameters, whatever the example's. There is a derivative with respect to the example too,
    of the example's shape; no step uses it.
    """
    loss_fn, params, data = problems.mlp(np.ones((3, 5)), np.array([0, 1, 1]), key=jax.random.key(0), hidden=2)
    example = {"x": data["x"][0], "y": data["y"][0]}
    of_params = jax.grad(loss_fn)(params, example)
    assert jax.tree.map(jnp.shape, of_params) == jax.tree.map(jnp.shape, params)
    of_input = jax.grad(lambda x: loss_fn(params, {"x": x, "y": example["y"]}))(example["x"])
    assert of_input.shape == (5,)
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], g.materialize()) == jax.tree.map(jnp.shape, params)
    elsewhere = [
        line_gradient(theta, point) for theta, point in zip([(1, 1), (1, 1), (0, 1), (1, 0)], POINTS, strict=True)
    ]
    assert (sum(elsewhere) / F(4)).tolist() != [-1, F(-1, 2)]


def test_claim_26_examples_are_not_at_places_of_their_own() -> None:
    """Each example ends up at a distant place of the error surface, the size of its gradient being the place: FALSE.

    All losses are evaluated at one θ; there are as many surfaces as examples. Gradients at one place differ in size,
    and equal gradients occur at different places.
    """
    here = surfaces.losses_along(*LINE, {"m": jnp.ones(1), "b": jnp.zeros(1)}, jnp.zeros((1, 1)))
    np.testing.assert_array_equal(here, [[0, 1, 1, 1]])
    g = jaxsgd.per_example_gradients(LINE.loss_fn)(LINE.params, LINE.data)
    assert g.squared_norms().tolist() == [0, 8, 20, 40]
    assert line_gradient((1, 1), (1, 3)).tolist() == line_gradient((0, 2), (1, 3)).tolist() == [-2, -2]


def test_claim_27_surfaces_of_single_examples_differ() -> None:
    """Every loss can be plotted on its own, and they may look very different: TRUE.

    Minima at 3, 0 and −1 with curvatures 1, 2 and 3 give a mean with its minimum at 0 = Σhc/Σh, not at the mean 2/3.
    """
    h, c = (1, 2, 3), (3, 0, -1)
    assert sum(a * b for a, b in zip(h, c, strict=True)) == 0 != F(sum(c), 3) == F(2, 3)
    data = {"h": jnp.asarray([1.0, 2.0, 3.0]), "c": jnp.asarray([3.0, 0.0, -1.0])}

    def loss_fn(theta: Any, example: Any) -> Any:
        return 0.5 * example["h"] * (theta - example["c"]) ** 2

    losses = surfaces.losses_along(
        loss_fn, jnp.zeros(()), data, jnp.ones(1), jnp.asarray([[3.0], [0.0], [-1.0], [2 / 3]])
    )
    assert jnp.argmin(losses[:3], axis=0).tolist() == [0, 1, 2]
    assert int(jnp.argmin(losses.mean(axis=1))) == 1
    slopes = [float(jaxsgd.per_example_gradients(loss_fn)(jnp.asarray(at), data).mean()) for at in (0.0, 2 / 3)]
    np.testing.assert_allclose(slopes, [0, 4 / 3], rtol=0, atol=1e-14)


def test_claim_28_the_average_direction_is_better() -> None:
    """The average of gradients points to the minimum, better than each: CONDITIONAL.

    −ḡ descends the mean loss, which −g_i need not; but neither need it point at the minimum. At (1, 1) a batch of M =
    1, 2, 3, 4 fails to descend with probability 1/2, 1/3, 1/4, 0.
    """
    g = jaxsgd.per_example_gradients(LINE.loss_fn)(LINE.params, LINE.data)
    failing = [1 - estimators.descent_probability(designs.WithoutReplacement(M), g) for M in (1, 2, 3, 4)]
    assert failing == [F(1, 2), F(1, 3), F(1, 4), 0]

    def loss(theta: Any) -> Fraction:
        return sum((F(y) - theta[0] * x - theta[1]) ** 2 for x, y in POINTS) / 4

    rows = [line_gradient((F(1), F(1)), point) for point in POINTS]
    mean = sum(rows) / F(4)
    changes = [loss(1 - step / 100) - loss((F(1), F(1))) for step in [*rows, mean]]
    assert changes == [0, F(-27, 1000), F(73, 1250), F(-267, 5000), F(-479, 40000)]
    directions = {"m": jnp.asarray([1.0, 0.0]), "b": jnp.asarray([0.0, 1.0])}
    steps = jnp.asarray(np.array([*rows, mean], dtype=float) / -100)
    after = surfaces.losses_along(*LINE, directions, steps).mean(axis=1)
    np.testing.assert_allclose(after - 0.75, [float(change) for change in changes], rtol=0, atol=1e-14)
    toward = np.array([F(1, 10), F(1, 10)], dtype=object)
    cosine_squared = (mean @ toward) ** 2 / (mean @ mean * (toward @ toward))
    assert cosine_squared == F(9, 10)
    assert mean @ toward < 0


def test_claim_29_the_surface_is_itself_an_average() -> None:
    """Gradients combine into a better approximation because the error surface is an average itself: TRUE.

    A batch's gradient is the gradient of the batch's surface, and the average over all batches is that of the data's.
    """
    loss_fn, params, data = LINE
    for M in (1, 2, 3, 4):
        batches = list(itertools.combinations(range(4), M))
        gradients = [
            jax.grad(mean_loss(loss_fn))(params, {k: v[jnp.asarray(s)] for k, v in data.items()}) for s in batches
        ]
        np.testing.assert_allclose(np.mean([pair(g) for g in gradients], axis=0), [-1, -0.5], rtol=0, atol=1e-14)
        exact = estimators.enumerate_batches(
            designs.WithoutReplacement(M), jaxsgd.per_example_gradients(loss_fn)(params, data)
        )
        np.testing.assert_allclose(pair(exact.mean), [-1, -0.5], rtol=0, atol=1e-14)
        spread = np.sum((np.array([pair(g) for g in gradients]) - [-1, -0.5]) ** 2) / len(batches)
        np.testing.assert_allclose(float(exact.variance), spread, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_claim_30_the_full_batch_is_a_sample_too(size: int) -> None:
    """Even the whole batch is an approximation, of the population: TRUE. Of M out of N independent examples, Σ_P/M.

    The full batch keeps Σ_P/N; with replacement it is Σ_P (1/N + (N−1)/(NM)), nearly twice that for the full batch.
    """
    variance, N = F(14, 3), size
    for M in range(1, N + 1):
        without = estimators.enumerate_data_sets(designs.WithoutReplacement(M), (0, 1, 5), N)
        assert (without.mean, without.total) == (2, variance / M)
        assert without.given_data == F(N - M, M * (N - 1)) * F(N - 1, N) * variance
        replaced = estimators.enumerate_data_sets(designs.WithReplacement(M), (0, 1, 5), N)
        assert (replaced.mean, replaced.total) == (2, variance * (F(1, N) + F(N - 1, N * M)))
        assert without.of_data == replaced.of_data == variance / N
        factors = estimators.population_factors(designs.WithoutReplacement(M), N)
        assert math.isclose(factors.total, 1 / M, rel_tol=1e-14)


def test_claim_33_the_proof_is_linearity() -> None:
    """What has the proof to do with linearity (S0)? For finite N it is nothing else: E over examples is a finite sum.

    So E ĝ = ∇ Σ E[w_i] L_i for any law of weights, biased or not: the gradient of the expected batch loss. An infinite
    population needs a theorem on limits as well.
    """
    loss_fn, params, data = LINE
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    laws: list[Any] = [
        designs.WithoutReplacement(3),
        designs.WithReplacement(2, scale="sum"),
        designs.Stratified([0, 1, 1, 1], [1, 2]),
        designs.Poisson([F(1, 2), F(1, 3), F(1, 4), F(1)], normalize="realized"),
    ]
    means = []
    for design in laws:
        support = list(design.support(4))
        weights = jnp.asarray([float(sum(p * w[i] for p, w in support)) for i in range(4)])
        of_expectation = jax.grad(lambda p, w=weights: jax.vmap(loss_fn, (None, 0))(p, data) @ w)(params)
        expectation = estimators.enumerate_batches(design, g).mean
        assert_trees_close(expectation, of_expectation, 1e-13)
        means.append(pair(expectation))
    np.testing.assert_allclose(means[0], [-1, -0.5], rtol=0, atol=1e-14)
    assert abs(means[3][0] + 1) > 0.1  # biased, and linear all the same


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_claim_36_equal_up_to_rounding(dtype: str) -> None:
    """The two agree in floating point: TRUE up to rounding, not bit by bit.

    A sum one by one is off by at most γ_N Σ|g_i|/N, γ_k = ku/(1 − ku), and one in pairs by γ of ⌈log₂ N⌉ + 1; the first
    breaks the second's bound.
    """
    N, unit = 100_000, np.finfo(dtype).eps / 2
    g = (np.random.default_rng(0).normal(size=N) ** 2).astype(dtype)
    exact, scale = math.fsum(g.tolist()), math.fsum(np.abs(g).tolist())
    in_pairs = np.pad(g, (0, 2**17 - N))
    while len(in_pairs) > 1:
        in_pairs = in_pairs[::2] + in_pairs[1::2]
    sums = {"one by one": np.add.accumulate(g)[-1], "in pairs": in_pairs[0]}
    means = {name: value / g.dtype.type(N) for name, value in sums.items()} | {"XLA": jnp.mean(jnp.asarray(g))}
    errors = {name: abs(float(mean) - exact / N) / (scale / N) for name, mean in means.items()}
    gamma = {terms: terms * unit / (1 - terms * unit) for terms in (18, N)}
    assert errors["in pairs"] <= gamma[18] < errors["one by one"] <= gamma[N]
    assert errors["XLA"] <= gamma[N]
    assert len({float(mean) for mean in means.values()}) > 1
