"""Monitors measure what they say, on their schedule, and average numerators and denominators apart."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from jaxsgd import designs, monitors, noise_scale, per_example_gradients, training
from jaxsgd.problems import Problem
from jaxsgd.training import _run
from tests.support.registry import gradients_given, linear_loss, measured, network

KEY = jax.random.key(3)
ROWS = [[1.0, 2.0], [3.0, -1.0], [0.0, 4.0], [2.0, 2.5], [5.0, 1.0], [-1.0, 0.5]]


def watched(monitor, g, times=1, **extra):
    """The readings after updates with the same gradients."""
    updates = g.mean()
    state = monitor.init(updates)
    for _ in range(times):
        out, state = monitor.update(updates, state, None, per_example_gradients=g, **extra)
        assert out is updates
    return {name: float(value) for name, value in monitors.readings(state).items()}


def batch(rows):
    return measured(gradients_given(rows))


def test_noise_moments_are_unbiased_exactly() -> None:
    """Over all ordered pairs with replacement: E S = tr Σ, E G = ‖ḡ‖². Catches M for M − 1, ‖ĝ‖² for G."""
    rows = np.array(ROWS)
    trace, signal = np.sum(np.var(rows, axis=0)), np.sum(rows.mean(axis=0) ** 2)
    found = [watched(monitors.noise_scale(), batch(rows[list(pair)])) for pair in itertools.product(range(6), repeat=2)]
    np.testing.assert_allclose(np.mean([f["trace_covariance"] for f in found]), trace, rtol=1e-12)
    np.testing.assert_allclose(np.mean([f["squared_mean_norm"] for f in found]), signal, rtol=1e-12)
    assert abs(np.mean([f["noise_scale"] for f in found]) - trace / signal) > 0.1, "the ratio is not unbiased"


def test_two_batch_estimators_are_unbiased_and_those_of_the_paper() -> None:
    """The formulas with B_small and B_big as McCandlish et al. print them; unbiased over all batches of four."""
    rows = np.array(ROWS)[:3]
    trace, signal = np.sum(np.var(rows, axis=0)), np.sum(rows.mean(axis=0) ** 2)
    found = []
    for four in itertools.product(range(3), repeat=4):
        r = watched(monitors.two_batch_noise_scale(), batch(rows[list(four)]))
        groups = rows[list(four)].reshape(2, 2, 2).mean(axis=1)
        small, big = np.mean(np.sum(groups**2, axis=1)), np.sum(groups.mean(axis=0) ** 2)
        np.testing.assert_allclose(r["two_batch/trace_covariance"], (small - big) / (1 / 2 - 1 / 4), atol=1e-12)
        np.testing.assert_allclose(r["two_batch/squared_mean_norm"], (4 * big - 2 * small) / (4 - 2), atol=1e-12)
        found.append([r["two_batch/trace_covariance"], r["two_batch/squared_mean_norm"]])
    np.testing.assert_allclose(np.mean(found, axis=0), [trace, signal], rtol=1e-12)


def test_groups_of_one_are_the_per_example_form() -> None:
    g = batch(ROWS)
    first, second = (
        watched(monitors.noise_scale(), g),
        watched(monitors.two_batch_noise_scale(num_groups=6, name=""), g),
    )
    assert first.keys() == second.keys()
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-12)


def test_given_group_gradients() -> None:
    """What data-parallel devices have at hand, without per-example gradients."""
    rows = np.array(ROWS)
    monitor = monitors.two_batch_noise_scale(group_size=3, name="")
    groups = jnp.asarray(rows.reshape(2, 3, 2).mean(axis=1))
    _, state = monitor.update(groups.mean(axis=0), monitor.init(groups[0]), group_gradients=groups)
    expected = watched(monitors.two_batch_noise_scale(num_groups=2, name=""), batch(rows))
    np.testing.assert_allclose(list(monitors.readings(state).values()), list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize("centered", [True, False])
def test_numerator_and_denominator_are_averaged_apart(centered) -> None:
    """Weights fall by decay; the quotient is of averages. Catches an average of quotients, and a start at zero."""
    monitor = monitors.noise_scale(decay=0.5, centered=centered)
    state, sums = monitor.init(jnp.zeros(2)), []
    for i in range(3):
        g = batch(ROWS[2 * i : 2 * i + 2])
        _, state = monitor.update(g.mean(), state, per_example_gradients=g)
        rows = np.array(ROWS[2 * i : 2 * i + 2])
        S = np.sum(np.var(rows, axis=0, ddof=1))
        sums.append((S, np.sum(rows.mean(axis=0) ** 2) - S / 2))
    S, G = np.average(sums, axis=0, weights=[0.25, 0.5, 1.0])
    found = monitors.readings(state)
    np.testing.assert_allclose(
        [found["trace_covariance"], found["squared_mean_norm"], found["noise_scale"]], [S, G, S / G], rtol=1e-12
    )


def test_statistics_of_the_gradient_tests() -> None:
    """Example batch {1, 2, 3} of the line fit at (1, 1): 23/5, 112/25 and 3/25; the first is the sum of the others."""
    rows = [[0.0, 0.0], [-2.0, -2.0], [4.0, 2.0], [-6.0, -2.0]]
    found = watched(monitors.gradient_tests(), batch([rows[1], rows[2], rows[3]]))
    np.testing.assert_allclose(
        [found[f"{name}_statistic"] for name in ("norm", "inner_product", "orthogonality")],
        [23 / 5, 112 / 25, 3 / 25],
        rtol=1e-12,
    )


def test_signal_to_noise() -> None:
    rows = np.array(ROWS)
    S, mean = rows.var(axis=0, ddof=1), rows.mean(axis=0)
    found = watched(monitors.gradient_snr(per_coordinate=True), batch(rows))
    np.testing.assert_allclose(found["gradient_snr"], np.sum(mean**2 - S / 6) / S.sum(), rtol=1e-12)
    np.testing.assert_allclose(found["mean_coordinate_snr"], np.mean((mean**2 - S / 6) / S), rtol=1e-12)
    np.testing.assert_allclose(watched(monitors.gradient_snr(), batch(rows))["gradient_snr"], found["gradient_snr"])


def test_coordinates_without_noise_are_left_out() -> None:
    rows = np.array(ROWS) * [1, 0] + [0, 1.0]
    S, mean = rows.var(axis=0, ddof=1)[0], rows.mean(axis=0)[0]
    found = watched(monitors.gradient_snr(per_coordinate=True), batch(rows))
    np.testing.assert_allclose(found["mean_coordinate_snr"], (mean**2 - S / 6) / S, rtol=1e-12)


def test_cosine() -> None:
    found = watched(monitors.full_gradient_cosine(), batch([[3.0, 4.0]]), full_gradient=lambda: jnp.asarray([1.0, 0.0]))
    np.testing.assert_allclose([found["full_gradient_cosine"], found["full_gradient_norm"]], [3 / 5, 1], rtol=1e-12)


def test_where_looks_at_some_parameters() -> None:
    loss_fn, params, data = network()
    g = per_example_gradients(loss_fn)(params, data)
    for where, part in [
        (lambda path: path == "['hidden']['w']", "w"),
        (lambda path: path.endswith("['hidden']['b']"), "b"),
    ]:
        found = watched(monitors.noise_scale(where=where), g)
        rows = np.asarray(g.materialize()["hidden"][part]).reshape(7, -1)
        np.testing.assert_allclose(found["trace_covariance"], rows.var(axis=0, ddof=1).sum(), rtol=1e-10)
    every = watched(monitors.gradient_tests(where=lambda path: True), g)
    np.testing.assert_allclose(list(every.values()), list(watched(monitors.gradient_tests(), g).values()))


def test_too_few_examples_measure_nothing() -> None:
    found = watched(monitors.noise_scale(), batch(ROWS[:1]))
    assert all(np.isnan(value) for value in found.values())


def test_a_mean_gradient_of_zero_is_not_clipped() -> None:
    assert watched(monitors.noise_scale(), batch([[1.0, 2.0], [-1.0, -2.0]]))["noise_scale"] == pytest.approx(-2.0)


@pytest.mark.parametrize("every", [1, 3])
def test_schedule(every) -> None:
    """Catches a monitor that measures at other steps; its own calls count where no step is given."""
    monitor = monitors.noise_scale(every=every, decay=0.5)
    state, g = monitor.init(jnp.zeros(2)), batch(ROWS)
    weights = []
    for _ in range(7):
        _, state = monitor.update(g.mean(), state, per_example_gradients=g)
        weights.append(float(state.weight))
    measured_at = np.flatnonzero(np.diff([0.0, *weights])).tolist()
    assert measured_at == list(range(0, 7, every))


@pytest.mark.slow
def test_skipped_steps_stay_branches_in_many_runs() -> None:
    """Catches a schedule that depends on the run: then both branches would be computed at each step."""
    loss_fn, params, data = network()

    def conditionals(jaxpr):
        found = 0
        for equation in jaxpr.eqns:
            found += equation.primitive.name == "cond"
            for inner in jaxprs_in_params(equation.params):
                found += conditionals(inner)
        return found

    def count(*some):
        run = lambda key: training.run_sgd(  # noqa: E731
            loss_fn,
            params,
            data,
            optax.sgd,
            designs.WithReplacement(3),
            4,
            key,
            num_runs=2,
            learning_rates=[0.1],
            monitors=some,
        )
        traced = []
        original = _run._advance

        def spy(plan, *arguments):
            traced.append(original.trace(plan, *arguments).jaxpr.jaxpr)
            return original(plan, *arguments)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(_run, "_advance", spy)
            run(KEY)
        return conditionals(traced[0])

    assert count(monitors.noise_scale(every=4)) == count() + 2, "whether a step is due, and whether the monitor's is"


def test_in_a_chain_and_beside_it() -> None:
    """A monitor in the user's chain is read as one of ``monitors`` is; names tell two of a kind apart."""
    loss_fn, params, data = network()
    inside = optax.chain(monitors.noise_scale(name="inside"), optax.sgd(0.1))
    result = training.run_sgd(
        loss_fn,
        params,
        data,
        inside,
        designs.WithReplacement(3),
        6,
        KEY,
        monitors=[monitors.noise_scale()],
        record_every=2,
    )
    np.testing.assert_array_equal(result.metrics["inside/noise_scale"], result.metrics["noise_scale"])
    assert np.isnan(result.metrics["noise_scale"][0])
    assert np.isfinite(result.metrics["noise_scale"][1:]).all()


@pytest.mark.parametrize(
    "design",
    [
        designs.WithReplacement(4, scale="sum"),
        designs.Importance([Fraction(i, 21) for i in range(1, 7)], 4),
        designs.Reshuffling(4, drop_last=False),
        designs.DistinctUnits(5),
    ],
    ids=str,
)
def test_terms_of_every_kind_of_draw(design) -> None:
    """S is the sample variance of the m weighted terms, G of ĝ; gathered, padded and weighted draws alike."""
    problem = Problem(linear_loss, jnp.zeros(2), jnp.asarray(ROWS))
    key, last = jax.random.fold_in(KEY, 0), 1
    if isinstance(design, designs.Reshuffling):
        w = np.asarray(design.epoch_weights(jax.random.fold_in(key, 0), 6)[last])
        counts = (w != 0).astype(int)
    else:
        w = np.asarray(design.weights(jax.random.fold_in(key, last), 6))
        counts = (w != 0).astype(int)
        if hasattr(design, "indices"):
            counts = np.bincount(design.indices(jax.random.fold_in(key, last), 6), minlength=6)
    m, rows = counts.sum(), np.array(ROWS)
    terms = np.concatenate([[m * w[i] / counts[i] * rows[i]] * counts[i] for i in range(6) if counts[i]])
    S = terms.var(axis=0, ddof=1)
    some = [monitors.noise_scale(decay=0.0), monitors.noise_scale(decay=0.0, centered=True, name="centered")]
    some += [monitors.gradient_tests(), monitors.gradient_snr(decay=0.0, per_coordinate=True)]
    found = training.run_sgd(*problem, optax.sgd(0.0), design, last + 1, KEY, monitors=some).metrics
    g = terms.mean(axis=0)
    for name in ("", "centered/"):
        np.testing.assert_allclose(found[f"{name}trace_covariance"][-1], S.sum(), rtol=1e-12)
        np.testing.assert_allclose(found[f"{name}squared_mean_norm"][-1], np.sum(g**2) - S.sum() / m, rtol=1e-10)
    along = np.var(terms @ g, ddof=1) / m / np.sum(g**2) ** 2
    np.testing.assert_allclose(found["inner_product_statistic"][-1], along, rtol=1e-10)
    np.testing.assert_allclose(found["mean_coordinate_snr"][-1], np.mean((g**2 - S / m) / S), rtol=1e-10)


def test_equal_monitors_share_compilations() -> None:
    assert monitors.noise_scale(every=2) is monitors.noise_scale(every=2)
    assert monitors.noise_scale(every=2) is not monitors.noise_scale(every=3)


def test_a_batch_that_is_not_finite_is_forgotten_with_the_step_that_is_not_made() -> None:
    """As the module says: inside ``apply_if_finite`` the state is that before."""
    tx = optax.apply_if_finite(optax.chain(monitors.noise_scale(), optax.sgd(0.1)), max_consecutive_errors=5)
    good = measured(gradients_given([[1.0, 2.0], [3.0, 5.0], [4.0, 1.0]]))
    state = tx.init(good.mean())
    for g in (good, measured(gradients_given([[jnp.nan, 1.0]] * 2)), good):
        _, state = tx.update(g.mean(), state, per_example_gradients=g)
    read = monitors.readings(state)
    np.testing.assert_allclose(read["noise_scale"], noise_scale(good).value, rtol=1e-6)
