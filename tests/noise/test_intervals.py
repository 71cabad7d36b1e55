"""Intervals for the noise scale: what defines them, how often they hold B, several batches, groups of parameters."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsgd
from jaxsgd import moments, noise, problems
from jaxsgd.noise import _u_statistics
from tests.support.registry import gradients_given, measured, skewed


def given(rows: Any) -> jaxsgd.PerExampleGradients:
    """Per-example gradients that are the rows."""
    return measured(gradients_given(rows, rows.dtype))


def sample(key: int, count: int = 40, shift: float = 1.0) -> Any:
    return np.asarray(jax.random.normal(jax.random.key(key), (count, 3))) * np.array([1.0, 2.0, 0.5]) + shift


# One batch.


def test_squared_covariance_is_unbiased() -> None:
    """For gradients of any law: over all batches of 4 and 5 independent draws from three. Catches (1 − 1/m)² of it."""
    rows = skewed(3, 2)
    truth = np.sum(np.cov(rows.T, ddof=0) ** 2)
    for size in (4, 5):
        draws = itertools.product(range(3), repeat=size)
        found = [_u_statistics.pair_sums(given(rows[np.array(some)])).squared_covariance for some in draws]
        # where a batch has no more than two values the estimate may be below 0, and is cut off there
        assert float(np.mean(found)) == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("population_size", [None, 60])
@pytest.mark.parametrize("shift", [3.0, 1.0, 0.2])
@pytest.mark.parametrize("interval", ["score", "fieller"])
def test_intervals_end_where_the_ratio_is_refused(interval: Any, shift: float, population_size: Any) -> None:
    """The condition that defines them, evaluated on both sides of each end by SciPy."""
    g = given(sample(5, shift=shift))
    s = jaxsgd.noise_scale(g, interval=interval, population_size=population_size)
    pairs = _u_statistics.pair_sums(g)
    G, T, f = float(s.squared_mean_norm), float(s.trace_covariance), 1 / 40 - (1 / 60 if population_size else 0)
    (V_G, C), (_, V_T) = np.asarray(s.covariance)
    S, norm = float(pairs.means[1]), float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g.mean())))
    along, Q = float(pairs.along_mean), float(pairs.squared_covariance)

    def accepted(B: float) -> bool:
        rho = 1 / B
        if interval == "fieller":
            return bool((G - rho * T) ** 2 <= 1.959963985**2 * (V_G - 2 * rho * C + rho**2 * V_T))
        of_signal = 4 * f * max((rho * T + f * S) * along - f * Q, rho * T * along)
        of_trace = (norm / T) ** 2 * V_T
        variance = 2 * f**2 * Q + of_signal + of_trace
        freedom = variance**2 / ((of_signal**2 + of_trace**2) / 39)
        return bool(abs(G - rho * T) <= stats.t.ppf(0.975, freedom) * np.sqrt(variance))

    ends = [end for end in (float(s.low), float(s.high)) if 0 < end < np.inf]
    assert len(ends) == (2 if shift > 0.5 else len(ends)) >= 1
    for end in ends:
        assert accepted(end * 1.0001) != accepted(end * 0.9999)
    assert G < 0 or accepted(T / G)


def test_few_examples_tell_nothing() -> None:
    for count in (2, 3):
        s = jaxsgd.noise_scale(given(sample(0)[:count]))
        assert (float(s.low), float(s.high)) == (0, np.inf)


def test_without_noise_it_is_zero() -> None:
    s = jaxsgd.noise_scale(given(np.ones((5, 2))))
    assert float(s.value) == float(s.low) == float(s.high) == 0


def test_the_mean_gradient_that_cannot_be_told_from_zero() -> None:
    g = given(jax.random.normal(jax.random.key(1), (50, 4)))
    s = jaxsgd.noise_scale(g)
    assert float(s.high) == np.inf
    assert str(s).endswith("the mean gradient cannot be told from 0")
    assert "cannot" not in str(jaxsgd.noise_scale(given(sample(0) + 9)))


NUM_SAMPLES = 2000


def off(share: Any, level: float) -> float:
    """How many binomial standard errors a share of the samples is above the level."""
    return float((share - level) / np.sqrt(level * (1 - level) / NUM_SAMPLES))


@pytest.mark.parametrize("B", [20.0, pytest.param(200.0, marks=pytest.mark.slow)])
def test_coverage_is_nominal(B: float) -> None:
    """Of 100 normal gradients with Σ = I, for B below and above; the other intervals are controls."""
    mean = jnp.full((1, 20), B**-0.5)

    @jax.jit
    def covered(keys: Any) -> Any:
        def one(key: Any) -> Any:
            g = given(mean + jax.random.normal(key, (100, 20)))
            found = [jaxsgd.noise_scale(g, confidence_level=level) for level in (0.95, 0.8)]
            found += [jaxsgd.noise_scale(g, interval=interval) for interval in ("fieller", "jackknife")]
            return jnp.stack([(s.low <= B) & (s.high >= B) for s in found])

        return jax.lax.map(one, keys, batch_size=100).sum(axis=0)

    shares = np.asarray(covered(jax.random.split(jax.random.key(0), NUM_SAMPLES))) / NUM_SAMPLES
    assert -3 <= off(shares[0], 0.95) <= 5
    assert -3 <= off(shares[1], 0.8) <= 5
    if B == 200:
        np.testing.assert_allclose(shares[2:], [0.90, 0.71], atol=0.015)


def test_coverage_in_a_finite_population() -> None:
    """Half of a population, which the interval for an infinite one covers in vain too often."""
    rows = jax.random.normal(jax.random.key(2), (128, 20)) + 20**-0.5
    B = float(jaxsgd.noise_scale(given(rows), population_size=128).value)

    @jax.jit
    def covered(keys: Any) -> Any:
        def one(key: Any) -> Any:
            g = given(jax.random.permutation(key, rows)[:64])
            found = [jaxsgd.noise_scale(g, population_size=N) for N in (128, None)]
            return jnp.stack([(s.low <= B) & (s.high >= B) for s in found])

        return jax.lax.map(one, keys, batch_size=100).sum(axis=0)

    shares = np.asarray(covered(jax.random.split(jax.random.key(8), NUM_SAMPLES))) / NUM_SAMPLES
    assert -3 <= off(shares[0], 0.95) <= 5
    assert off(shares[1], 0.95) > 6


SHAPES = {
    "normal": lambda key, z: z,
    "t8": lambda key, z: z * jnp.sqrt(6 / (2 * jax.random.gamma(key, 4.0, z.shape[:1]))[:, None]),
    "Laplace": lambda key, z: z * jnp.sqrt(jax.random.exponential(key, z.shape[:1]))[:, None],
}
CASES = [("normal", "flat", 8, 1.0), ("normal", "decaying", 8, 1.0)]
SLOW = [
    (shape, spectrum, m, ratio)
    for shape in SHAPES
    for spectrum in ("flat", "decaying")
    for m in (8, 32)
    for ratio in (0.2, 1.0, 5.0)
    if (shape, spectrum, m, ratio) not in CASES
]


@pytest.mark.parametrize(
    ("shape", "spectrum", "m", "ratio"), CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
)
def test_coverage_where_it_is_stated(shape: str, spectrum: str, m: int, ratio: float) -> None:
    """At least .93 of elliptical laws with Σ = I, .90 with the spectrum 1/k and the mean along its top, from m = 8."""
    variances = np.ones(50) if spectrum == "flat" else 1 / np.arange(1, 51)
    direction = np.full(50, 50**-0.5) if spectrum == "flat" else np.eye(50)[0]
    B = ratio * m
    mean = direction * np.sqrt(variances.sum() / B)

    @jax.jit
    def covered(keys: Any) -> Any:
        def one(key: Any) -> Any:
            first, second = jax.random.split(key)
            rows = SHAPES[shape](second, jax.random.normal(first, (m, 50))) * np.sqrt(variances)[None] + mean[None]
            s = jaxsgd.noise_scale(given(rows))
            return (s.low <= B) & (s.high >= B)

        return jax.lax.map(one, keys, batch_size=500).mean()

    share = float(covered(jax.random.split(jax.random.key(0), NUM_SAMPLES)))
    stated = 0.93 if spectrum == "flat" else 0.90
    assert off(share, stated) > -3


@pytest.mark.parametrize("count", [64, 512])
def test_heavy_tails_are_told(count: int) -> None:
    """Lognormal norms, whose intervals hold B in 74 and 89 % of cases. Catches a warning that everything gets."""
    keys = jax.random.split(jax.random.key(1), 40)

    @jax.jit
    def shares(key: Any) -> Any:
        rows = jax.random.normal(key, (count, 20)) + 1.0
        heavy = rows * jnp.exp(jax.random.normal(jax.random.fold_in(key, 1), (count, 1)))
        return jnp.stack([jaxsgd.noise_scale(given(each)).largest_share for each in (rows, heavy)])

    found = np.asarray(jax.lax.map(shares, keys))
    told = (found > 0.1 + 3 / count).mean(axis=0)
    assert told[0] == 0
    assert told[1] > 0.75
    rows = np.ones((100, 2)) + np.eye(100, 2) * 50
    words = str(jaxsgd.noise_scale(given(rows)))
    assert words.endswith("; 50% of the noise is that of 1 of them, and more may change it")


# Several batches.


def test_several_batches_have_the_ratio_of_averages() -> None:
    batches = [given(sample(i, count, shift)) for i, (count, shift) in enumerate([(20, 1.0), (30, 0.5), (40, 0.8)])]
    alone = [jaxsgd.noise_scale(g) for g in batches]
    T, G = (np.mean([float(getattr(s, name)) for s in alone]) for name in ("trace_covariance", "squared_mean_norm"))
    pooled = jaxsgd.noise_scale(batches)
    np.testing.assert_allclose([pooled.trace_covariance, pooled.squared_mean_norm, pooled.value], [T, G, T / G])
    assert int(pooled.count) == 90
    streamed = jaxsgd.noise_scale([moments.of(g) for g in batches])
    np.testing.assert_allclose(streamed.value, pooled.value)
    np.testing.assert_allclose(jaxsgd.noise_scale(batches[::-1]).low, pooled.low)
    one, same = jaxsgd.noise_scale(batches[:1]), alone[0]
    np.testing.assert_allclose([one.value, one.low, one.high], [same.value, same.low, same.high])


def test_several_batches_in_different_units() -> None:
    """As late and early in a run: the average is that of the gradients themselves. Catches one unit for each."""
    rows = [sample(0), sample(1) * 2.0**-12]
    T = np.mean([each.var(axis=0, ddof=1).sum() for each in rows])
    assert float(jaxsgd.noise_scale([given(each) for each in rows]).trace_covariance) == pytest.approx(T)


@pytest.mark.parametrize("changes", [pytest.param(False, marks=pytest.mark.slow), True])
def test_coverage_of_several_batches(changes: bool) -> None:
    """Eight batches of 16, of one B or of B that vary. Catches an interval without the spread between them."""
    spread = 0.25 if changes else 0.0

    @jax.jit
    def covered(keys: Any) -> Any:
        def one(key: Any) -> Any:
            shifts = 0.3 * jnp.exp(spread * jax.random.normal(jax.random.fold_in(key, 1), (8,)))
            rows = jax.random.normal(key, (8, 16, 20)) + shifts[:, None, None]
            s = jaxsgd.noise_scale([given(rows[i]) for i in range(8)])
            B = 1 / (0.3**2 * np.exp(2 * spread**2))
            return (s.low <= B) & (s.high >= B)

        return jax.lax.map(one, keys, batch_size=100).mean()

    share = float(covered(jax.random.split(jax.random.key(0), 1000)))
    assert share > (0.90 if changes else 0.94)


# Groups.


@pytest.fixture(scope="module")
def digits() -> jaxsgd.PerExampleGradients:
    problem = problems.digits_mlp(key=jax.random.key(0), hidden=8)
    return jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.take(slice(0, 64)).data)


def test_groups_add_up(digits: jaxsgd.PerExampleGradients) -> None:
    scales = jaxsgd.noise_scale(digits, by=2)
    assert list(scales) == ["hidden/b", "hidden/w", "output/b", "output/w"]
    for name in ("trace_covariance", "squared_mean_norm"):
        parts = [float(getattr(each, name)) for each in scales.values()]
        assert sum(parts) == pytest.approx(float(getattr(scales.total, name)))
    rows = jax.vmap(jnp.ravel)(digits.materialize()["output"]["w"])
    alone = jaxsgd.noise_scale(given(rows))
    found = scales["output/w"]
    np.testing.assert_allclose([found.value, found.low, found.high], [alone.value, alone.low, alone.high], rtol=1e-6)
    words = str(scales).splitlines()
    assert words[0].split() == ["parameters", "noise", "scale", "from", "to", "share", "of", "tr", "Σ"]
    assert words[-1].startswith("all")


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (1, ["hidden", "output"]),
        (["output/w", "hidden"], ["hidden", "the rest", "output/w"]),
        (lambda name: name.rpartition("/")[2] if "w" in name else None, ["w"]),
    ],
    ids=["depth", "prefixes", "function"],
)
def test_groups_are_named(digits: jaxsgd.PerExampleGradients, by: Any, names: list[str]) -> None:
    pooled = jaxsgd.noise_scale([digits, digits], by=by)
    assert list(pooled) == names
    assert isinstance(pooled, noise.NoiseScales)


def test_a_prefix_is_one_of_whole_names() -> None:
    """Catches "layer1" for "layer10"."""
    params = {f"layer{i}": np.ones(2) for i in (1, 10)}
    g = jaxsgd.per_example_gradients(lambda p, x: x @ (p["layer1"] + p["layer10"]))(params, sample(0)[:, :2])
    assert list(jaxsgd.noise_scale(g, by=["layer1"])) == ["layer1", "the rest"]
