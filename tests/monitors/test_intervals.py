"""Monitors say how sure they are: the interval for the average noise scale, the effective number, groups of parameters.

The interval is compared with a plain computation from all measurements at once, which a monitor does not keep.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxsgd import designs, monitors, per_example_gradients, training
from jaxsgd.monitors import _series
from jaxsgd.problems import Problem
from tests.support.registry import gradients_given, linear_loss, measured, network

COUNT, SIZE = 30, 6


def batches(seed: int = 0, shift: float = 1.0, dtype: Any = float) -> Any:
    """Rows of 30 batches of 6, whose mean falls along the run."""
    rows = np.random.default_rng(seed).normal(size=(COUNT, SIZE, 2)) * [1.0, 2.0]
    return np.asarray(rows + shift * np.geomspace(4, 1, COUNT)[:, None, None], dtype)


def after(monitor: Any, several: Any) -> Any:
    """The state of a monitor after some batches, in one compiled loop."""
    start = monitor.init(jnp.zeros(several.shape[-1], several.dtype))

    def seen(state: Any, rows: Any) -> tuple[Any, None]:
        g = measured(gradients_given(rows, rows.dtype))
        return monitor.update(g.mean(), state, per_example_gradients=g)[1], None

    return jax.jit(lambda: jax.lax.scan(seen, start, jnp.asarray(several))[0])()


def pairs_of(several: np.ndarray) -> np.ndarray:
    """G and T of every batch."""
    T = several.var(axis=1, ddof=1).sum(axis=-1)
    return np.stack([np.sum(several.mean(axis=1) ** 2, axis=-1) - T / several.shape[1], T], axis=-1)


def weights(count: int, decay: float) -> np.ndarray:
    w = decay ** np.arange(count - 1, -1, -1)
    return w / w.sum()


def by_definition(x: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The averages, their covariance and the effective number, from all pairs at once."""
    w, t = weights(len(x), decay), np.arange(len(x))
    lines = [np.polynomial.polynomial.polyfit(t, x[:, k], 1, w=np.sqrt(w)) for k in (0, 1)]
    e = x - np.stack([np.polynomial.polynomial.polyval(t, line) for line in lines], axis=-1)
    number = 1 / np.sum(w**2)
    V = np.einsum("t,ti,tj->ij", w, e, e) * number / (number - 2)
    step = np.diff(x, axis=0)
    D = np.einsum("t,ti,tj->ij", w[1:] / w[1:].sum(), step, step) / 2
    G, T = w @ x
    along = np.array([1, -G / T])
    r = min(max(1 - (along @ D @ along) / (along @ V @ along), 0), 1)
    effective = 1 / np.sum(w[:, None] * w * r ** np.abs(t[:, None] - t))
    return np.array([G, T]), V / effective, float(effective)


def intervals(x: np.ndarray, decay: float) -> Any:
    """Ends and effective numbers from the pairs of many series, shape (r, t, 2)."""

    @jax.jit
    @jax.vmap
    def of_series(x: Any) -> Any:
        def step(state: Any, pair: Any) -> tuple[Any, None]:
            series, weight, totals = state
            averages = totals / jnp.where(weight > 0, weight, 1)
            series = _series.after(series, weight, averages, pair, decay)
            return (series, decay * weight + 1 - decay, decay * totals + (1 - decay) * pair), None

        start = (_series.empty(x.dtype), jnp.zeros(()), jnp.zeros(2))
        series, weight, totals = jax.lax.scan(step, start, x)[0]
        return _series.interval(series, weight, totals / weight, decay, 0.95)

    return of_series(jnp.asarray(x))


@pytest.mark.parametrize(("count", "decay"), [(3, 0.95), (12, 0.5), (30, 0.95), (30, 0.8)])
@pytest.mark.parametrize("shift", [1.0, 0.1])
def test_intervals_end_where_the_ratio_is_refused(count: int, decay: float, shift: float) -> None:
    """The condition that defines them on both sides of each end, by NumPy and SciPy from all that was measured.

    Catches a covariance about the average, weights of one step before, a quantile of another number of degrees.
    """
    several = batches(shift=shift)[:count]
    found = monitors.readings(after(monitors.noise_scale(decay=decay), several))
    (G, T), V, effective = by_definition(pairs_of(several), decay)
    np.testing.assert_allclose(found["num_effective"], effective, rtol=1e-8)
    quantile = stats.t.ppf(0.975, max(effective - 2, 1))

    def accepted(B: float) -> bool:
        along = np.array([1, -1 / B])
        return bool(quantile**2 * (along @ V @ along) >= (G - T / B) ** 2)

    low, high = float(found["noise_scale_low"]), float(found["noise_scale_high"])
    assert low < high
    for end in (low, high):
        if 0 < end < np.inf:
            assert accepted(end * 1.0001) != accepted(end * 0.9999)
    assert accepted(1e9) == (high == np.inf)
    assert accepted(1e-9) == (low == 0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("r", [0.0, 0.4, 0.9, 1.0])
def test_effective_number_is_that_of_the_sum_over_pairs(decay: float, r: float) -> None:
    """The closed form; where decay and correlation are the same too, and in float32."""
    for count in (1, 2, 5, 200):
        w, t = weights(count, decay), np.arange(count)
        expected = 1 / np.sum(w[:, None] * w * r ** np.abs(t[:, None] - t))
        for dtype, rtol in ((jnp.float64, 1e-10), (jnp.float32, 1e-3)):
            found = _series.effective_number(count, decay, jnp.asarray(r, dtype))
            np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_autocorrelation_is_measured(r: float) -> None:
    """The number that a series of known autocorrelation is worth, in the mean over 200 of them, for a long memory.

    In closed form (1 + d)/(1 − d) · (1 − rd)/(1 + rd), 14 % of which the estimate may be off: its bias is of the order
    of 1/number, and below 0 nothing is taken for an autocorrelation. Catches a number from the weights alone.
    """
    decay, count = 0.99, 600
    noise = np.random.default_rng(0).normal(size=(200, count))
    for t in range(1, count):
        noise[:, t] = r * noise[:, t - 1] + np.sqrt(1 - r**2) * noise[:, t]
    x = np.stack([1 + noise, np.full_like(noise, 50)], axis=-1)

    expected = (1 + decay) / (1 - decay) * (1 - r * decay) / (1 + r * decay)
    assert float(np.median(intervals(x, decay)[2])) == pytest.approx(expected, rel=0.14)


def test_few_measurements_tell_nothing() -> None:
    """Two, or any number of which only the last counts; and none at all."""
    for decay, count in ((0.95, 2), (0.0, COUNT), (0.3, COUNT)):
        found = monitors.readings(after(monitors.noise_scale(decay=decay), batches()[:count]))
        assert (float(found["noise_scale_low"]), float(found["noise_scale_high"])) == (0, np.inf)
        assert 1 <= float(found["num_effective"]) <= 2.1
    nothing = monitors.readings(monitors.noise_scale().init(jnp.zeros(2)))
    assert len(nothing) == 6
    assert all(np.isnan(value) for value in nothing.values())


def test_a_measurement_below_zero_is_one_as_any_other() -> None:
    """Where the mean gradient is 0, half of them are; the interval has no upper end, and a lower one."""
    several = batches(shift=0.0)
    assert 5 < np.sum(pairs_of(several)[:, 0] < 0) < 25
    found = monitors.readings(after(monitors.noise_scale(decay=0.9), several))
    np.testing.assert_allclose(found["squared_mean_norm"], weights(COUNT, 0.9) @ pairs_of(several)[:, 0], rtol=1e-10)
    assert float(found["noise_scale_high"]) == np.inf
    assert 0 < float(found["noise_scale_low"]) < np.inf


def test_without_noise_it_is_zero() -> None:
    found = monitors.readings(after(monitors.noise_scale(centered=True), np.ones((5, SIZE, 2))))
    for end in ("", "_low", "_high"):
        assert float(found[f"noise_scale{end}"]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("exponent", [-45, 45])
def test_the_unit_of_the_loss_changes_no_interval(exponent: int) -> None:
    """In float32, bit for bit, where fourth powers of gradients leave its range."""
    with jax.enable_x64(False):
        monitor = monitors.noise_scale(centered=True)
        one, other = (
            monitors.readings(after(monitor, several))
            for several in (batches(dtype=np.float32), np.ldexp(batches(dtype=np.float32), exponent))
        )
    for name in ("noise_scale", "noise_scale_low", "noise_scale_high", "num_effective"):
        np.testing.assert_array_equal(one[name], other[name])


def test_batches_without_replacement() -> None:
    """With ``population_size`` the parts are unbiased for those of the N rows, over all batches of 2 of 4."""
    rows = batches()[0][:4]
    some = [rows[[i, j]] for i in range(4) for j in range(i)]
    for monitor in (monitors.noise_scale, monitors.two_batch_noise_scale):
        found = [
            monitors.readings(after(monitor(population_size=4, name=""), np.asarray(batch)[None])) for batch in some
        ]
        truth = {"trace_covariance": rows.var(axis=0).sum(), "squared_mean_norm": np.sum(rows.mean(axis=0) ** 2)}
        for name, expected in truth.items():
            np.testing.assert_allclose(np.mean([each[name] for each in found]), expected, rtol=1e-10)


# Groups of parameters.

HIDDEN_W, HIDDEN_B, OUTPUT_W = "['hidden']['w']", "['hidden']['b']", "['output']['w']"
GROUPS: dict[str, Any] = {
    "depth": (monitors.noise_scale, 1, {"hidden": "['hidden']", "output": "['output']"}),
    "prefixes": (
        monitors.noise_scale,
        ["hidden/w", "output"],
        {"hidden/w": HIDDEN_W, "output": "['output']", "the rest": HIDDEN_B},
    ),
    "function": (monitors.noise_scale, lambda name: "weights" if name.endswith("w") else None, {"weights": "['w']"}),
    "two_batch": (
        monitors.two_batch_noise_scale,
        2,
        {"hidden/w": HIDDEN_W, "hidden/b": HIDDEN_B, "output/w": OUTPUT_W},
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_are_monitors_of_their_own(kind: str) -> None:
    """Each reading is that of a monitor with ``where``; those of all are of all, in a group or not."""
    make, by, groups = GROUPS[kind]
    loss_fn, params, data = network()
    alone = [make(where=lambda path, part=part: part in path, name=f"alone {name}") for name, part in groups.items()]
    several = optax.chain(make(by=by, name="of"), make(name="all"), *alone)

    @jax.jit
    def run() -> Any:
        def seen(state: Any, key: Any) -> tuple[Any, None]:
            chosen = jax.random.choice(key, 7, (4,))
            g = per_example_gradients(loss_fn)(params, jax.tree.map(lambda leaf: leaf[chosen], data))
            return several.update(g.mean(), state, per_example_gradients=g)[1], None

        keys = jax.random.split(jax.random.key(0), 8)
        return monitors.readings(jax.lax.scan(seen, several.init(params), keys)[0])

    found = run()
    names = [name.removeprefix("all/") for name in found if name.startswith("all/")]
    assert len(names) == 6
    for name in names:
        np.testing.assert_allclose(found[f"of/{name}"], found[f"all/{name}"], rtol=1e-7)
        for group in groups:
            np.testing.assert_allclose(found[f"of/{group}/{name}"], found[f"alone {group}/{name}"], rtol=1e-7)


def test_groups_of_what_is_looked_at() -> None:
    """``where`` and ``by`` together: groups of some parameters, whose sum is their total."""
    loss_fn, params, data = network()
    monitor = monitors.noise_scale(by=2, where=lambda path: "hidden" in path)
    g = per_example_gradients(loss_fn)(params, data)
    found = monitors.readings(monitor.update(g.mean(), monitor.init(params), per_example_gradients=g)[1])
    assert {name.rpartition("/")[0] for name in found} == {"", "hidden/w", "hidden/b"}
    both = found["hidden/w/trace_covariance"] + found["hidden/b/trace_covariance"]
    np.testing.assert_allclose(found["trace_covariance"], both, rtol=1e-12)


def test_groups_of_given_group_gradients() -> None:
    """What devices have at hand, without per-example gradients."""
    groups = {"a": jnp.asarray([[1.0, 2.0], [3.0, 2.0]]), "b": jnp.asarray([[1.0], [5.0]])}
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), groups)
    monitor = monitors.two_batch_noise_scale(group_size=2, by=1, name="")
    found = monitors.readings(monitor.update(mean, monitor.init(mean), group_gradients=groups)[1])
    np.testing.assert_allclose([found[f"{name}/trace_covariance"] for name in "ab"], [4, 16], rtol=1e-12)
    np.testing.assert_allclose(found["trace_covariance"], 20, rtol=1e-12)


# In runs.


def test_in_many_runs_and_inside_of_multi_steps() -> None:
    """Readings of runs side by side are those of each alone; ``MultiSteps`` keeps what belongs to the series too."""
    problem = Problem(linear_loss, jnp.zeros(2), jnp.asarray(batches().reshape(-1, 2)))
    watch = [monitors.noise_scale(every=2, by=lambda _: "all"), monitors.two_batch_noise_scale()]
    fixed = (*problem, optax.sgd(0.1), designs.WithReplacement(4), 12)

    def run(key: Any, **more: Any) -> Any:
        return training.run_sgd(*fixed, key, monitors=watch, record_every=4, **more).metrics

    key = jax.random.key(5)
    one, many = run(key), run(key, num_runs=2)
    for name, values in one.items():
        np.testing.assert_allclose(many[name][0], values, rtol=1e-8)
    assert not np.allclose(many["noise_scale_low"][1][1:], one["noise_scale_low"][1:])
    inner = optax.chain(monitors.noise_scale(), optax.sgd(0.1))
    optimizer = optax.MultiSteps(inner, every_k_schedule=2)
    state = optimizer.init(jnp.zeros(2))
    with jax.numpy_dtype_promotion("standard"):  # which MultiSteps is written for
        for rows in batches()[:12]:
            g = measured(gradients_given(rows))
            _, state = optimizer.update(g.mean(), state, jnp.zeros(2), per_example_gradients=g)
    expected = monitors.readings(after(monitors.noise_scale(), batches()[:12][1::2]))
    for name, value in monitors.readings(state).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("growth", [1.0, 8.0])
@pytest.mark.parametrize("r", [0.0, 0.5])
def test_coverage_is_nominal(growth: float, r: float) -> None:
    """The share of 2000 series whose interval, asked for 95 %, holds the ratio of the averages of what is true.

    ‖ḡ‖² is constant or falls to an eighth, errors are of its size, and depend on those before or not. The interval that
    takes them for independent is the control.
    """
    decay, count, runs = 0.95, 80, 2000
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(runs, count))
    for t in range(1, count):
        noise[:, t] = r * noise[:, t - 1] + np.sqrt(1 - r**2) * noise[:, t]
    signal = np.geomspace(growth, 1, count)
    x = np.stack([signal * (1 + noise), 50 * (1 + 0.1 * rng.normal(size=noise.shape))], axis=-1)
    w = weights(count, decay)
    B = 50 / (w @ signal)

    low, high, _ = intervals(x, decay)
    held = float(np.mean((low <= B) & (high >= B)))
    assert held >= (0.94 if r == 0 else 0.91)
    if growth > 1:  # then errors were larger before, and they count as much
        return
    assert held <= 0.97
    number = 1 / np.sum(w**2)
    G, T = np.einsum("t,rtk->kr", w, x)
    error = (G - T / B) / np.sqrt(np.var(x[:, :, 0] - signal - (x[:, :, 1] - 50) / B, axis=1) / number)
    independent = np.mean(np.abs(error) <= stats.t.ppf(0.975, number - 2))
    assert (independent < 0.85) == (r > 0)
