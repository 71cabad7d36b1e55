"""The noise scale against enumeration over all batches, dense Hessians, leave-one-out loops and simulated coverage."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import moments, problems
from jaxsgd.noise import _u_statistics
from jaxsgd.noise_scale import noise_scale_law
from tests.support.registry import gradients_given, measured


def given(rows: Any) -> jaxsgd.PerExampleGradients:
    """Per-example gradients that are the rows."""
    return measured(gradients_given(rows, rows.dtype))


LINE = measured(problems.line_fit())
ROWS = np.asarray(jax.random.normal(jax.random.key(3), (6, 2))) + np.array([1.0, 0.5])
SIX = given(ROWS)
THREE = given(ROWS[:3])


def batches(g: Any, size: int, *, replace: bool = False) -> list[Any]:
    """All batches, each as likely as any other."""
    chosen = itertools.product(range(g.count), repeat=size) if replace else itertools.combinations(range(g.count), size)
    return [g.take(np.array(some)) for some in chosen]


def parts(estimate: jaxsgd.NoiseScale) -> list[float]:
    return [float(estimate.squared_mean_norm), float(estimate.trace_covariance)]


def test_of_a_whole_population_it_is_exact() -> None:
    for gradients in (LINE, moments.of(LINE)):
        estimate = jaxsgd.noise_scale(gradients, population_size=4)
        np.testing.assert_allclose([float(estimate.value), *parts(estimate)], [63 / 5, 5 / 4, 63 / 4], rtol=1e-13)
    assert float(jaxsgd.noise_scale(LINE, population_size=4).low) == float(
        jaxsgd.noise_scale(LINE, population_size=4).high
    )


@pytest.mark.parametrize("size", [2, 3, 4])
def test_unbiased_without_replacement(size: int) -> None:
    found = [parts(jaxsgd.noise_scale(g, population_size=4)) for g in batches(LINE, size)]
    np.testing.assert_allclose(np.mean(found, axis=0), [5 / 4, 63 / 4], rtol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_unbiased_for_independent_examples(size: int) -> None:
    found = [parts(jaxsgd.noise_scale(g)) for g in batches(LINE, size, replace=True)]
    np.testing.assert_allclose(np.mean(found, axis=0), [5 / 4, 63 / 4], rtol=1e-12)


def test_without_a_population_it_is_that_of_what_the_population_is_a_sample_of() -> None:
    found = [parts(jaxsgd.noise_scale(g)) for g in batches(LINE, 3)]
    np.testing.assert_allclose(np.mean(found, axis=0), [-4, 21], rtol=1e-12)


@pytest.mark.parametrize("population", [LINE, SIX], ids=["line", "six"])
def test_the_law_of_its_parts_is_that_over_all_batches(population: Any) -> None:
    N = population.count
    for size in range(2, N + 1):
        found = np.array([parts(jaxsgd.noise_scale(g, population_size=N)) for g in batches(population, size)])
        law = noise_scale_law(population, size)
        np.testing.assert_allclose([law.squared_mean_norm, law.trace_covariance], found.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(law.covariance, np.cov(found.T, ddof=0), rtol=1e-10, atol=1e-12)
        (V_G, C), (_, V_T) = np.cov(found.T, ddof=0)
        G, T = found.mean(axis=0)
        np.testing.assert_allclose(law.bias, T / G * (V_G / G**2 - C / (G * T)), rtol=1e-9, atol=1e-12)
        expected = (T / G) ** 2 * (V_G / G**2 + V_T / T**2 - 2 * C / (G * T))
        np.testing.assert_allclose(law.variance, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [4, 5])
def test_covariances_estimated_without_replacement_are_unbiased(size: int) -> None:
    estimates = [_u_statistics.sample_covariance(_u_statistics.pair_sums(g), 6) for g in batches(SIX, size)]
    np.testing.assert_allclose(
        np.mean(estimates, axis=0), _u_statistics.batch_covariance(_u_statistics.pair_sums(SIX), size), rtol=1e-10
    )


def test_covariances_estimated_from_independent_examples_are_unbiased() -> None:
    sums = [_u_statistics.pair_sums(g) for g in batches(THREE, 4, replace=True)]
    means = np.array([s.means for s in sums])
    estimated = np.mean([_u_statistics.sample_covariance(s, None) for s in sums], axis=0)
    np.testing.assert_allclose(estimated, np.cov(means.T, ddof=0), rtol=1e-10)
    jackknife = np.mean([_u_statistics.jackknife_covariance(s, None) for s in sums], axis=0)
    assert (np.diag(jackknife) > np.diag(estimated)).all()


def test_fourth_powers_are_unbiased() -> None:
    found = [_u_statistics.mean_fourth_power(_u_statistics.pair_sums(g)) for g in batches(THREE, 4, replace=True)]
    mean = ROWS[:3].mean(axis=0)
    along = mean @ np.cov(ROWS[:3].T, ddof=0) @ mean
    np.testing.assert_allclose(np.mean(found, axis=0), [(mean @ mean) ** 2, along], rtol=1e-10)


def test_of_many_examples_some_pairs_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    g = given(jax.random.normal(jax.random.key(0), (81, 5)) + 1)
    of_all = _u_statistics.pair_sums(g)
    monkeypatch.setattr(_u_statistics, "MAX_GRAM", 40)
    _u_statistics.pair_sums.clear_cache()
    of_some = _u_statistics.pair_sums(g)
    _u_statistics.pair_sums.clear_cache()
    np.testing.assert_array_equal(of_all.means, of_some.means)
    np.testing.assert_array_equal(of_all.shared_one, of_some.shared_one)
    ratios = [of_some.shared_both / of_all.shared_both, of_some.squared_covariance / of_all.squared_covariance]
    for ratio in ratios:
        assert (np.diag(np.atleast_2d(ratio)) > 0.8).all()
        assert (np.diag(np.atleast_2d(ratio)) < 1.25).all()


def test_jackknife_leaves_out_one_at_a_time() -> None:
    g, N = SIX.take(slice(0, 5)), 6
    whole = jaxsgd.noise_scale(g, population_size=N)
    without = [float(jaxsgd.noise_scale(g.take(np.delete(np.arange(5), i)), population_size=N).value) for i in range(5)]
    estimate = jaxsgd.noise_scale(g, population_size=N, interval="jackknife")
    np.testing.assert_allclose(estimate.value, 5 * whole.value - 4 * np.mean(without), rtol=1e-10)
    error = np.sqrt(4 / 5 * (1 - 5 / 6) * np.sum((without - np.mean(without)) ** 2))
    np.testing.assert_allclose(estimate.high - estimate.low, 2 * 1.959963985 * error, rtol=1e-8)


def test_under_vmap_it_is_one_by_one() -> None:
    data = jax.random.normal(jax.random.key(0), (3, 10, 2)) + 1

    def low(rows: Any) -> Any:
        return jaxsgd.noise_scale(given(rows)).low

    np.testing.assert_allclose(jax.vmap(low)(data), [low(rows) for rows in data], rtol=1e-12)


def test_float32_is_as_good() -> None:
    rows = np.asarray(jax.random.normal(jax.random.key(0), (64, 30))) * 1e-3 + 1.0
    exact, rounded = (jaxsgd.noise_scale(given(jnp.asarray(rows, dtype))) for dtype in (jnp.float64, jnp.float32))
    np.testing.assert_allclose(
        [float(rounded.value), float(rounded.low), float(rounded.high)],
        [float(exact.value), float(exact.low), float(exact.high)],
        rtol=1e-3,
    )


def test_diversity_is_one_more() -> None:
    value = jaxsgd.noise_scale(LINE, population_size=4).value
    norms, mean = LINE.squared_norms(), LINE.mean()
    np.testing.assert_allclose(norms.mean() / sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(mean)), 1 + value)


# Two batches.


@pytest.mark.parametrize(("small", "big"), [(1, 2), (1, 4), (2, 3)])
def test_two_batches_are_unbiased(small: int, big: int) -> None:
    pairs = list(itertools.product(batches(LINE, small), batches(LINE, big)))
    for population_size, expected in ((4, [5 / 4, 63 / 4]), (None, [-4, 21])):
        found = [
            parts(
                jaxsgd.two_batch_noise_scale(
                    a.mean(), b.mean(), small_size=small, big_size=big, population_size=population_size
                )
            )
            for a, b in pairs
        ]
        np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=1e-11)


def test_single_examples_against_their_batch_are_the_per_example_form() -> None:
    g = LINE.take(slice(0, 3))
    found = [
        parts(jaxsgd.two_batch_noise_scale(LINE.take(np.array([i])).mean(), g.mean(), small_size=1, big_size=3))
        for i in range(3)
    ]
    np.testing.assert_allclose(np.mean(found, axis=0), parts(jaxsgd.noise_scale(g)), rtol=1e-12)


# With curvature.


def dense(problem: problems.Problem) -> tuple[float, float]:
    """ḡᵀHḡ and tr HΣ from the whole matrices."""
    loss_fn, params, data = problem
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def losses(theta: Any) -> Any:
        return jax.vmap(lambda example: loss_fn(unflatten(theta), example))(data)

    H = jax.hessian(lambda theta: losses(theta).mean())(flat)
    G = jax.jacobian(losses)(flat)
    mean = G.mean(axis=0)
    return float(mean @ H @ mean), float(np.trace(H @ np.cov(G.T, ddof=0)))


def test_one_step_on_the_line() -> None:
    law = jaxsgd.hessian_noise_scale(*problems.line_fit())
    found = [law.gradient_curvature, law.noise_curvature, law.value, law.max_learning_rate]
    np.testing.assert_allclose(found, [21 / 2, 259 / 2, 37 / 3, 5 / 42], rtol=1e-13)
    rates = [float(law.learning_rate(M)) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(rates, [1 / 112, 15 / 644, 45 / 896, 5 / 42], rtol=1e-13)
    decreases = [float(law.decrease(M)) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(decreases, [5 / 896, 75 / 5152, 225 / 7168, 25 / 336], rtol=1e-13)
    losses = [float(law.expected_loss(M, 1 / 20)) for M in (1, 2, 3, 4)]
    np.testing.assert_allclose(losses, [69 / 80, 1811 / 2400, 2587 / 3600, 1121 / 1600], rtol=1e-13)


def test_one_step_is_exact_for_quadratics() -> None:
    """The mean loss after a step, averaged over all batches."""
    loss_fn, params, data = problems.line_fit()
    law = jaxsgd.hessian_noise_scale(loss_fn, params, data)
    for size in (1, 2, 3):
        after = []
        for g in batches(LINE, size):
            moved = jax.tree.map(lambda p, step: p - step / 20, params, g.mean())
            after.append(float(jax.vmap(lambda x, theta=moved: loss_fn(theta, x))(data).mean()))
        np.testing.assert_allclose(law.expected_loss(size, 1 / 20), np.mean(after), rtol=1e-12)


@pytest.mark.parametrize(
    "num_examples", [pytest.param(5, marks=pytest.mark.slow, id="by_example"), pytest.param(60, id="by_parameter")]
)
def test_curvature_is_that_of_the_whole_matrices(num_examples: int) -> None:
    data = jax.random.normal(jax.random.key(0), (num_examples, 3))
    params = {"a": jnp.ones((3, 2)) * 0.3, "b": jnp.asarray([1.0, -2.0])}
    problem = problems.Problem(
        lambda p, x: (jnp.tanh(x @ p["a"]) @ p["b"] - x[0] * p["a"][0, 0] ** 2 - 3) ** 2, params, data
    )
    law = jaxsgd.hessian_noise_scale(*problem)
    np.testing.assert_allclose([law.gradient_curvature, law.noise_curvature], dense(problem), rtol=1e-10)
    probed = jaxsgd.hessian_noise_scale(*problem, num_probes=400, key=jax.random.key(1))
    error = float(probed.standard_error)
    gap = abs(float(probed.noise_curvature) - float(law.noise_curvature))
    assert gap < 4 * error < abs(float(law.noise_curvature))


def test_published_numbers_of_diabetes() -> None:
    problem = problems.diabetes_regression()
    s, law = jaxsgd.noise_scale(measured(problem), population_size=442), jaxsgd.hessian_noise_scale(*problem)
    found = [s.squared_mean_norm, s.trace_covariance, s.value, law.gradient_curvature, law.noise_curvature, law.value]
    expected = [1.4588995679, 9.61849854825, 6.59298197071, 5.23768987471, 19.6096575903, 3.74395163886]
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    np.testing.assert_allclose(law.max_learning_rate, 0.278538745668, rtol=1e-8)


@pytest.mark.parametrize("unit", [2.0**-34, 2.0**34])
def test_the_interval_does_not_depend_on_the_unit_of_the_loss(unit: float) -> None:
    """In float32, of which fourth powers of such gradients are 0 or infinite."""
    values = jnp.asarray(np.random.default_rng(0).normal(1, 1, size=(64, 3)), jnp.float32)

    def estimate(unit: float) -> jaxsgd.NoiseScale:
        g = jaxsgd.per_example_gradients(lambda params, x: params @ x)(jnp.zeros(3, jnp.float32), values * unit)
        return jaxsgd.noise_scale(g)

    ordinary = estimate(1.0)
    with pytest.warns(UserWarning, match="covariance is a fourth power of gradients that float32 does not hold"):
        other = estimate(unit)
    for field in ("value", "low", "high"):
        assert float(getattr(ordinary, field)) == float(getattr(other, field))
    assert float(other.trace_covariance) == float(ordinary.trace_covariance) * unit**2
