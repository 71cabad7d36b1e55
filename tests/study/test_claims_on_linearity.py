"""Claims 1 to 9: the gradient of a sum, of a mean, of a line fit. ``test_claims`` says what they are claims of."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import designs, estimators, problems
from tests.support.claims import LINE, POINTS, F, assert_trees_close, line_gradient, mean_loss, pair


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


def test_claim_08_the_mean_error_is_ambiguous() -> None:
    """Compute the average error of a batch and backpropagate it: CONDITIONAL, right for losses, wrong for residuals.

    The loss of the mean residual has an expected gradient that goes from that of the mean square (M = 1) to that of the
    squared mean (M = N): −13, −29/3, −77/9, −8.
    """
    data = {"x": jnp.array([0.0, 1.0, 3.0, 4.0]), "y": jnp.array([1.0, 0.0, 2.0, 5.0])}
    expected = {1: -13, 2: -29 / 3, 3: -77 / 9, 4: -8}
    for M, of_residuals in expected.items():
        design, theta = designs.WithoutReplacement(M), jnp.asarray(0.0)
        losses = estimators.batch_loss_gradient(lambda t, b: jnp.mean((b["y"] - t * b["x"]) ** 2), theta, data, design)
        found = estimators.batch_loss_gradient(lambda t, b: jnp.mean(b["y"] - t * b["x"]) ** 2, theta, data, design)
        np.testing.assert_allclose([losses.mean, found.mean], [-13, of_residuals], rtol=1e-13)


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
