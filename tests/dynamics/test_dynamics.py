"""SGD on quadratics: gold numbers, exact equality with enumeration in rational arithmetic, and simulated runs."""

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import designs, dynamics, problems
from tests.support.registry import LAWS, RATIOS, ROUNDED
from tests.support.twins import assert_close

F = Fraction
KEY = jax.random.key(0)
EX_D = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
WITHOUT, WITH, RESHUFFLING = designs.WithoutReplacement, designs.WithReplacement, designs.Reshuffling


def rational(*shape: int, seed: int) -> np.ndarray:
    """Small rational numbers, unequal and of mean about 1/2."""
    drawn = np.random.default_rng(seed).integers(-3, 7, size=shape)
    return np.array([F(int(v), 4) for v in drawn.ravel()], dtype=object).reshape(shape)


def planar(N: int = 5) -> dynamics.Quadratics:
    """Two parameters, least squares: no two Hessians commute, and the mean loss has one minimum."""
    return dynamics.Quadratics.from_least_squares(rational(N, 2, seed=3), rational(N, seed=4))


def sgd(quadratics: dynamics.Quadratics, theta: Any, weights: Sequence[Any], eta: Any) -> Any:
    """One step, example by example."""
    gradient = sum(w * (H @ theta - q) for w, H, q in zip(weights, quadratics.hessians, quadratics.linear, strict=True))
    return theta - eta * gradient


def as_map(quadratics: dynamics.Quadratics, epoch: Sequence[Sequence[Any]], eta: Any) -> np.ndarray:
    """[A b] of the steps of an epoch, found by following 0 and the unit vectors."""
    d = quadratics.linear.shape[1]
    points = [np.zeros(d, dtype=int) * F(1), *(np.eye(d, dtype=int) * F(1))]
    for weights in epoch:
        points = [sgd(quadratics, theta, weights, eta) for theta in points]
    return np.stack([*(p - points[0] for p in points[1:]), points[0]], axis=1)


def moments_of(maps: Iterable[tuple[Any, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """E F and Cov F of maps with probabilities."""
    maps = list(maps)
    mean = sum(p * F for p, F in maps)
    return mean, sum(p * np.multiply.outer(F - mean, F - mean) for p, F in maps)


def epoch_weights(order: Sequence[int], sizes: Sequence[int]) -> list[list[Fraction]]:
    ends = list(itertools.accumulate(sizes))
    batches = [order[end - m : end] for end, m in zip(ends, sizes, strict=True)]
    return [[F(i in batch, len(batch)) for i in range(len(order))] for batch in batches]


def assert_equal(actual: np.ndarray, expected: Any) -> None:
    """The same rational numbers."""
    assert actual.dtype == object
    assert all(isinstance(value, Fraction) for value in actual.ravel())
    assert actual.tolist() == np.asarray(expected, dtype=object).tolist()


# design, stationary variance at η = 1/4, with additive noise, of the diffusion, and the stability threshold.
ONE_PARAMETER = [
    (WITHOUT(1), F(9, 17), F(1, 2), F(3, 8), F(6, 7)),
    (WITHOUT(2), F(9, 71), F(1, 8), F(3, 32), F(24, 25)),
    (WITH(2), F(9, 35), F(1, 4), F(3, 16), F(12, 13)),
    (WITH(3), F(9, 53), F(1, 6), F(1, 8), F(18, 19)),
    (WITHOUT(3), 0, 0, 0, 1),
]


@pytest.mark.parametrize(("design", "exact", "additive", "diffusion", "threshold"), ONE_PARAMETER)
def test_one_parameter(design: Any, exact: Any, additive: Any, diffusion: Any, threshold: Any) -> None:
    state = dynamics.step_law(EX_D, design, F(1, 4)).stationary()
    assert_equal(state.mean, [0])
    assert_equal(state.covariance, [[exact]])
    assert_equal(dynamics.additive_noise(EX_D, design, F(1, 4)), [[additive]])
    assert_equal(dynamics.ornstein_uhlenbeck(EX_D, design, F(1, 4)), [[diffusion]])
    assert dynamics.stability_threshold(EX_D, design) == threshold


def test_two_parameters_with_equal_hessians() -> None:
    """Catches a second-order term of the wrong sign; with equal Hessians the additive form is exact."""
    q = [[u, v] for u in (1, -1) for v in (2, -2, 0, 0)]
    losses = dynamics.Quadratics([[[2, 1], [1, 2]]] * 8, q)
    discrete = [[F(54, 455), F(-2, 35)], [F(-2, 35), F(89, 455)]]
    assert_equal(dynamics.additive_noise(losses, WITH(1), F(1, 4)), discrete)
    assert_equal(dynamics.step_law(losses, WITH(1), F(1, 4)).stationary().covariance, discrete)
    continuous = [[F(3, 32), F(-1, 16)], [F(-1, 16), F(5, 32)]]
    assert_equal(dynamics.ornstein_uhlenbeck(losses, WITH(1), F(1, 4)), continuous)
    assert losses.excess_loss(np.array(discrete)) == F(9, 35)


@pytest.mark.parametrize("name", LAWS)
def test_step_law_is_that_of_the_enumerated_batches(name: str) -> None:
    """Every design of the package, on two parameters: E F and Cov F from E w and Cov w, and batch by batch."""
    N = 4
    losses, design = planar(N), LAWS[name](N)
    law = dynamics.step_law(losses, design, F(1, 8))
    mean, covariance = moments_of((p, as_map(losses, [w], F(1, 8))) for p, w in design.support(N))
    if name in ROUNDED:
        assert_close(law.mean, mean.astype(float), atol=1e-9 if name in RATIOS else 1e-14)
        assert_close(law.covariance, covariance.astype(float), atol=1e-9 if name in RATIOS else 1e-14)
    else:
        assert_equal(law.mean, mean)
        assert_equal(law.covariance, covariance)
    floating = dynamics.step_law(losses.floats(), design, 0.125)
    assert floating.mean.dtype == floating.covariance.dtype == np.float64
    assert_close(floating.covariance, covariance.astype(float), atol=1e-9 if name in RATIOS else 1e-14)


@pytest.mark.parametrize("design", [WITHOUT(1), WITHOUT(3), WITHOUT(5), WITH(1), WITH(4)])
def test_second_moment_matrix_is_a_mixture(design: Any) -> None:
    """All data with probability 1 − c, one example with probability c."""
    losses, eta = planar(), F(1, 8)
    c = F(1, design.batch_size) if isinstance(design, designs.WithReplacement) else design.variance_factor(5)
    eye = np.eye(2, dtype=int) * F(1)
    full = np.kron(eye - eta * losses.mean_hessian, eye - eta * losses.mean_hessian)
    single = sum(np.kron(eye - eta * H, eye - eta * H) for H in losses.hessians) / 5
    assert_equal(dynamics.step_law(losses, design, eta).second_moment_matrix, (1 - c) * full + c * single)


@pytest.mark.parametrize("design", [WITHOUT(2), WITH(2), designs.Stratified([0, 0, 1, 1, 1], [1, 1], weighted=False)])
def test_stationary_law_is_left_as_it_is(design: Any) -> None:
    """In rational arithmetic; and other starts come to it. The unweighted strata are biased: the mean is not θ*."""
    losses = planar()
    law = dynamics.step_law(losses, design, F(1, 8))
    state = law.stationary()
    again = law.apply(state)
    assert_equal(again.mean, state.mean)
    assert_equal(again.covariance, state.covariance)
    assert (state.mean.tolist() == losses.minimum().tolist()) == (not isinstance(design, designs.Stratified))
    late = dynamics.step_law(losses.floats(), design, 0.125).iterate(np.array([5.0, -3.0]), 800)
    assert_close(late.mean, state.mean.astype(float), atol=1e-12)
    assert_close(late.covariance, state.covariance.astype(float), atol=1e-12)


@pytest.mark.parametrize("design", [WITHOUT(1), WITHOUT(2), WITHOUT(5), WITH(2), designs.Bernoulli(F(1, 2))])
def test_threshold_is_where_the_spectral_radius_reaches_one(design: Any) -> None:
    losses = planar()
    threshold = dynamics.stability_threshold(losses, design)

    def radius(factor: float) -> float:
        return dynamics.step_law(losses, design, factor * threshold).spectral_radius()

    assert_close(radius(1), 1, atol=1e-12)
    assert radius(0.999) < 1 < radius(1.001)


def test_thresholds_rise_with_the_batch_size() -> None:
    """To that of gradient descent at M = N; a threshold from H̄ alone would be that for every M."""
    losses = planar()
    found = [dynamics.stability_threshold(losses, WITHOUT(M)) for M in range(1, 6)]
    descent = 2 / np.linalg.eigvalsh(losses.mean_hessian.astype(float))[-1]
    assert found == sorted(found)
    assert_close(found[-1], descent, atol=1e-12)
    assert found[0] < 0.6 * descent


ORDERS = {(0, 1, 2): -21, (0, 2, 1): -9, (1, 0, 2): -18, (1, 2, 0): 6, (2, 0, 1): 3, (2, 1, 0): 15}


@pytest.mark.parametrize(("order", "end"), ORDERS.items())
def test_epochs_in_a_fixed_order_end_off_the_minimum(order: Any, end: int) -> None:
    state = dynamics.fixed_order_law(EX_D, order, F(1, 4)).stationary()
    assert_equal(state.mean, [F(end, 29)])
    assert_equal(state.covariance, [[0]])


@pytest.mark.parametrize(("M", "sizes"), [(1, (1,) * 5), (2, (2, 2, 1)), (5, (5,)), (7, (5,))])
def test_fixed_order_is_its_steps_one_by_one(M: int, sizes: Any) -> None:
    order = (3, 0, 4, 1, 2)
    law = dynamics.fixed_order_law(planar(), order, F(1, 8), batch_size=M)
    assert_equal(law.mean, as_map(planar(), epoch_weights(order, sizes), F(1, 8)))


@pytest.mark.parametrize(
    ("N", "design"),
    [
        (4, RESHUFFLING(1)),
        (4, RESHUFFLING(2)),
        (5, RESHUFFLING(2)),
        (5, RESHUFFLING(2, drop_last=False)),
        (4, RESHUFFLING(3, drop_last=False, scale="sum")),
        (3, RESHUFFLING(3)),
    ],
)
def test_reshuffled_law_is_that_of_the_enumerated_orders(N: int, design: Any) -> None:
    """Recursion over sets against all N! orders, in rational arithmetic."""
    losses, eta, sizes = planar(N), F(1, 8), design.batch_sizes(N)
    scale = design.scale_factor(N)
    orders = list(itertools.permutations(range(N)))
    expected = moments_of(
        (F(1, len(orders)), as_map(losses, epoch_weights(order, sizes), eta * scale)) for order in orders
    )
    law = dynamics.reshuffled_law(losses, design, eta)
    assert_equal(law.mean, expected[0])
    assert_equal(law.covariance, expected[1])


def test_reshuffling_moves_the_mean_and_shrinks_the_variance() -> None:
    ends = dynamics.reshuffled_law(EX_D, RESHUFFLING(1), F(1, 4)).stationary()
    assert_equal(ends.mean, [F(-4, 29)])
    assert_equal(ends.second_moment(EX_D.minimum()), [[F(1098, 5887)]])


def test_many_examples_in_floating_point() -> None:
    """Ten examples, 3,628,800 orders. Catches rounding that grows: with equal Hessians the law is known."""
    c = np.arange(10.0) ** 2
    law = dynamics.reshuffled_law(dynamics.Quadratics.from_minima(np.ones(10), c), RESHUFFLING(1), 0.5)
    powers = 0.5 ** np.arange(10)  # θ after the epoch is 2⁻¹⁰ θ + ½ Σ 2⁻ᵏ c, the last example first
    assert_close(law.mean[0], [0.5**10, 0.5 * c.mean() * powers.sum()], atol=1e-12)
    spread = 0.25 * c.var() * (powers @ powers - powers.sum() ** 2 / 10) * 10 / 9
    assert_close(law.covariance[0, 1, 0, 1], spread, atol=1e-9)
    assert_close(law.covariance[0, 0, 0, 0], 0, atol=1e-20)


def slope(law: Any) -> float:
    """log₂ of how much E δ² of Example D falls when η is halved from 1/128 to 1/256."""
    first, second = (law(F(1, k)).stationary().second_moment(EX_D.minimum()).item() for k in (128, 256))
    return math.log2(first / second)


def test_orders_in_the_learning_rate() -> None:
    """Independent batches 1, random reshuffling and a fixed order 2; the variance of reshuffling 3."""
    assert_close(slope(lambda eta: dynamics.step_law(EX_D, WITH(1), eta)), 1.0066, atol=5e-5)
    assert_close(slope(lambda eta: dynamics.reshuffled_law(EX_D, RESHUFFLING(1), eta)), 2.127, atol=5e-4)
    assert_close(slope(lambda eta: dynamics.fixed_order_law(EX_D, (0, 1, 2), eta)), 2.007, atol=5e-4)
    ends = [dynamics.reshuffled_law(EX_D, RESHUFFLING(1), F(1, k)).stationary() for k in (128, 256)]
    assert_close(math.log2(ends[0].covariance.item() / ends[1].covariance.item()), 3.016, atol=5e-4)
    assert_close(float(ends[1].mean.item() * 256), -0.50098, atol=5e-6)


@pytest.mark.parametrize(
    ("N", "design"),
    [
        (5, RESHUFFLING(1)),
        (4, RESHUFFLING(2)),
        (5, RESHUFFLING(2)),
        (5, RESHUFFLING(2, drop_last=False)),
        (5, RESHUFFLING(2, drop_last=False, scale="total")),
    ],
)
def test_first_order_bias_of_reshuffling(N: int, design: Any) -> None:
    """The exact mean less the formula falls as η², two and three batches of equal and unequal sizes."""
    losses = planar(N)
    minimum, scale = losses.minimum(), design.scale_factor(N)
    rest = []
    for k in (512, 1024):
        exact = dynamics.reshuffled_law(losses, design, F(1, k) / scale).stationary().mean - minimum
        formula = dynamics.reshuffling_bias(losses, design, F(1, k) / scale)
        rest.append(np.abs((exact - formula).astype(float)).max())
        assert np.all(np.abs(exact - formula) < abs(formula) / 5)
    assert 1.8 < math.log2(rest[0] / rest[1]) < 2.2


def test_first_order_bias_of_example_d() -> None:
    assert_equal(dynamics.reshuffling_bias(EX_D, RESHUFFLING(1), F(1, 4)), [F(-1, 8)])
    assert_equal(dynamics.reshuffling_bias(EX_D, RESHUFFLING(3), F(1, 4)), [0])


def test_linear_scaling_of_descent() -> None:
    """Four steps of η and one of 4η differ where the gradient changes on the way."""
    losses = dynamics.Quadratics([2], [0])
    small, large = (dynamics.step_law(losses, WITHOUT(1), eta) for eta in (F(1, 10), F(4, 10)))
    start = np.array([F(1)], dtype=object)
    assert_equal(small.iterate(start, 4).mean, [F(256, 625)])
    assert_equal(large.iterate(start, 1).mean, [F(1, 5)])
    assert_equal(small.then(small).then(small.then(small)).mean, [[F(256, 625), 0]])


def test_composition_of_random_maps_is_two_steps() -> None:
    """Both maps random: catches a dropped product of the two covariances."""
    law = dynamics.step_law(planar(), WITHOUT(2), F(1, 8))
    other = dynamics.step_law(planar(), WITH(1), F(1, 4))
    start = np.array([F(1), F(-2)], dtype=object)
    composed = law.then(other)
    expected = moments_of(
        (p * q, as_map(planar(), [[F(1, 8) * x for x in w], [F(1, 4) * x for x in v]], 1))
        for p, w in WITHOUT(2).support(5)
        for q, v in WITH(1).support(5)
    )
    assert_equal(composed.mean, expected[0])
    assert_equal(composed.covariance, expected[1])
    twice, composed = other.apply(law.iterate(start, 1)), composed.iterate(start, 1)
    assert_equal(composed.mean, twice.mean)
    assert_equal(composed.covariance, twice.covariance)


def fourth(design: Any, eta: float, start: float, num_steps: int) -> list[float]:
    """E θᵏ, k = 0..4, of Example D after steps with the design's batches, by the binomial theorem."""
    moments = [start**k for k in range(5)]
    maps = [(float(p), as_map(EX_D, [w], F(eta))[0].astype(float)) for p, w in design.support(3)]
    for _ in range(num_steps):
        moments = [
            sum(p * math.comb(k, j) * a**j * b ** (k - j) * moments[j] for p, (a, b) in maps for j in range(k + 1))
            for k in range(5)
        ]
    return moments


@pytest.mark.parametrize("design", [WITHOUT(1), WITH(2), designs.Bernoulli(0.5)])
def test_simulated_steps_follow_the_exact_law(design: Any) -> None:
    """Mean and second moment within four standard errors; the diffusion's variance is rejected."""
    R, T, eta = 20_000, 12, 0.25
    drawn = dynamics.simulate_steps(EX_D, design, eta, key=KEY, num_runs=R, num_steps=T, start=[2.0])[:, 0]
    state = dynamics.step_law(EX_D, design, eta).iterate(np.array([2.0]), T)
    raw = fourth(design, eta, 2.0, T)
    second = state.second_moment(np.zeros(1)).item()
    assert_close(second, raw[2], atol=1e-12)
    error = math.sqrt((raw[4] - raw[2] ** 2) / R)
    assert abs(float(jnp.mean(drawn)) - state.mean.item()) < 4 * math.sqrt(state.covariance.item() / R)
    assert abs(float(jnp.mean(drawn**2)) - second) < 4 * error
    assert abs(float(jnp.mean(drawn**2)) - dynamics.ornstein_uhlenbeck(EX_D, design, eta).item()) > 8 * error


@pytest.mark.parametrize("drop_last", [True, False])
def test_simulated_epochs_follow_the_exact_law(drop_last: bool) -> None:
    """With two parameters; a law of independent batches is rejected."""
    losses, design, eta, R, T = planar(), RESHUFFLING(2, drop_last=drop_last), 0.25, 20_000, 6
    drawn = np.asarray(dynamics.simulate_epochs(losses, design, eta, key=KEY, num_runs=R, num_epochs=T))
    law = dynamics.reshuffled_law(losses, design, eta)
    state = law.iterate(losses.minimum().astype(float), T)
    z = (drawn.mean(axis=0) - state.mean) / np.sqrt(np.diag(state.covariance) / R)
    assert np.abs(z).max() < 4
    squares = (drawn - state.mean) ** 2
    error = squares.std(axis=0) / math.sqrt(R)
    assert np.all(np.abs(squares.mean(axis=0) - np.diag(state.covariance)) < 4 * error)
    independent = dynamics.step_law(losses, WITHOUT(2), eta).iterate(losses.minimum().astype(float), T * 2)
    assert np.all(np.diag(independent.covariance) - squares.mean(axis=0) > 8 * error)


def test_simulated_full_batches_are_gradient_descent() -> None:
    start = np.array([[1.0, 2.0], [-1.0, 0.5]])
    losses, expected = planar().floats(), start
    for _ in range(7):
        expected = expected - 0.1 * (expected @ losses.mean_hessian - losses.linear.mean(axis=0))
    options = {"key": KEY, "num_runs": 2, "start": start}
    assert_close(dynamics.simulate_steps(losses, WITHOUT(5), 0.1, num_steps=7, **options), expected, atol=1e-13)
    assert_close(dynamics.simulate_epochs(losses, RESHUFFLING(5), 0.1, num_epochs=7, **options), expected, atol=1e-13)
    assert_close(dynamics.simulate_steps(losses, WITHOUT(5), 0.1, num_steps=0, **options), start, atol=0)


def test_runs_are_independent_of_how_many_there_are_and_compile_once() -> None:
    """Another learning rate or length compiles nothing; θ* is where runs begin."""
    from jaxsgd.dynamics._simulation import _runs

    before = _runs._cache_size()
    for eta, steps in ((0.1, 3), (0.2, 5), (0.3, 3)):
        found = dynamics.simulate_steps(planar(), WITHOUT(3), eta, key=KEY, num_runs=3, num_steps=steps)
        assert found.shape == (3, 2)
    assert _runs._cache_size() == before + 1
    assert len(np.unique(np.asarray(found)[:, 0])) == 3


def test_problem_and_losses_are_the_same() -> None:
    """Example D and the diabetes data: gradients and Hessians as JAX finds them."""
    loss_fn, params, data = problems.quadratics()
    assert_close(jax.vmap(jax.grad(loss_fn), (None, 0))(params, data), [-3, 0, 3], atol=1e-14)
    assert_close(jax.vmap(jax.hessian(loss_fn), (None, 0))(params, data), [1, 2, 3], atol=1e-14)
    loss_fn, _, data = problems.diabetes_regression()
    losses = dynamics.Quadratics.from_least_squares(np.asarray(data["x"]), np.asarray(data["y"]))
    theta = jnp.linspace(-1.0, 1.0, 10)
    assert_close(jax.vmap(jax.grad(loss_fn), (None, 0))(theta, data), losses.gradients(np.asarray(theta)), atol=1e-12)
    assert_close(
        losses.mean_hessian, jax.hessian(lambda t: jax.vmap(loss_fn, (None, 0))(t, data).mean())(theta), atol=1e-12
    )
    assert_close(np.linalg.eigvalsh(losses.mean_hessian)[-1], 4.02421075015, atol=1e-10)
    assert_close(losses.gradients(losses.minimum()).mean(axis=0), np.zeros(10), atol=1e-14)


def test_numbers_stay_as_they_are_given() -> None:
    """Integers of NumPy are rational; one float makes everything floating-point; minima and linear terms agree."""
    exact = dynamics.Quadratics(np.array([1, 2]), [F(1, 3), 0])
    assert exact.hessians.shape == (2, 1, 1)
    assert exact.linear.tolist() == [[F(1, 3)], [F(0)]]
    assert dynamics.Quadratics([1, 2], [0.5, 1]).hessians.dtype == np.float64
    assert dynamics.step_law(exact, WITH(1), 0.5).mean.dtype == np.float64
    assert dynamics.step_law(exact, WITH(1), np.int64(1)).mean.dtype == object
    assert dynamics.additive_noise(exact, designs.Bernoulli(0.5), F(1, 2)).dtype == np.float64
    assert dynamics.ornstein_uhlenbeck(exact, WITH(1), 0.5).dtype == np.float64
    losses = planar()
    minima = rational(5, 2, seed=8)
    other = dynamics.Quadratics.from_minima(losses.hessians, minima)
    assert_equal(other.linear, [(H @ c).tolist() for H, c in zip(losses.hessians, minima, strict=True)])
