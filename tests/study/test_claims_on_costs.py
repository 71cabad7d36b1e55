"""Claims 22 to 30: costs that are no sums, and their surfaces. ``test_claims`` says what they are claims of."""

import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import batch_losses, designs, estimators, problems, surfaces
from tests.support.claims import (
    EX_B,
    LINE,
    POINTS,
    F,
    line_gradient,
    mean_loss,
    pair,
)


def test_claim_22_only_fixed_multipliers_can_be_pulled_out() -> None:
    """A multiplier free of the parameters can be pulled out: CONDITIONAL on its not being random.

    The number of tokens of a batch correlates with its content: 5/3, 73/44, 7/4 instead of 7/4; the expected number
    does not.
    """
    data = {"loss": jnp.array([2.0, 3.0, 16.0]), "tokens": jnp.array([1.0, 3.0, 8.0])}
    for M, expected in ((1, 5 / 3), (2, 73 / 44), (3, 7 / 4)):
        design, theta = designs.WithoutReplacement(M), jnp.asarray(1.0)
        ratio = estimators.batch_loss_gradient(
            lambda t, b: t * batch_losses.token_mean(b["loss"], b["tokens"]), theta, data, design
        )
        fixed = estimators.batch_loss_gradient(lambda t, b: t * jnp.mean(b["loss"]) / 4, theta, data, design)
        np.testing.assert_allclose([ratio.mean, fixed.mean], [expected, 7 / 4], rtol=1e-14)


def test_claim_23_other_combinations_than_sums() -> None:
    """It fails for any cost that combines examples other than by addition: MOSTLY TRUE, not an equivalence.

    Sums over pairs are unbiased from M = 2 on, the logarithm of a product is a sum, CVaR and log-mean-exp are minima of
    sums over one more variable. A product of all losses is none of these: 5/2, 35/6, 25/2, 24.
    """
    theta, four = jnp.asarray(1.0), jnp.array([1.0, 2.0, 3.0, 4.0])

    def mean(loss, M, values=four) -> float:
        return float(estimators.batch_loss_gradient(loss, theta, values, designs.WithoutReplacement(M)).mean)

    products = [mean(lambda t, b: t * batch_losses.product_of_losses(b), M) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(products, [5 / 2, 35 / 6, 25 / 2, 24], rtol=1e-14)
    logarithms = [mean(lambda t, b: t * jnp.log(batch_losses.product_of_losses(b)) / len(b), M) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(logarithms, np.log(24) / 4, rtol=1e-14)
    six = jnp.array(EX_B, float)
    pairs = [
        mean(lambda t, b: t * batch_losses.different_pairs(b, lambda x, y: (x - y) ** 2 / 2), M, six) for M in (2, 3, 6)
    ]
    np.testing.assert_allclose(pairs, 186 / 5, rtol=1e-14)
    tails = [mean(lambda t, b: t * batch_losses.cvar(b, 0.5), M, six) for M in (2, 4, 6)]
    np.testing.assert_allclose(tails, [32 / 3, 341 / 30, 35 / 3], rtol=1e-14)
    bounds = [mean(lambda t, b: t * batch_losses.cvar_bound(b, jnp.asarray(7.0), 0.5), M, six) for M in (2, 4, 6)]
    np.testing.assert_allclose(bounds, 35 / 3, rtol=1e-14)


def test_claim_24_such_costs_are_common() -> None:
    """It would be an unusual cost that is not a sum: FALSE of practice.

    Batch normalization, contrastive losses, CVaR, AUC, Dice and token means are none, as the diagnosis finds from the
    losses alone.
    """
    x = jnp.array([0.3, -1.1, 2.0, 0.7, -0.4, 1.2, 0.1, -0.8])
    batch = {"x": x, "y": jnp.sin(3 * x), "n": jnp.array([1.0, 3.0, 8.0, 2.0, 5.0, 4.0, 7.0, 6.0])}
    losses = {
        "mean": lambda t, b: jnp.mean((t * b["x"] - b["y"]) ** 2),
        "ratio": lambda t, b: batch_losses.token_mean((t * b["x"] - b["y"]) ** 2, b["n"]),
        "coupled": lambda t, b: batch_losses.normalized_squared_error(t, b["x"] + t * b["y"], b["y"]),
    }
    for kind, loss in losses.items():
        assert jaxsgd.check_additivity(loss, jnp.asarray(0.8), batch).kind == kind


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
