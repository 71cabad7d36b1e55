"""The numbers of a report are the library's, on whole data, on subsets, on streams, and on odd problems."""

import inspect
import math
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import Problem, designs, estimators, problems
from jaxsgd._core.tables import decimal
from jaxsgd.report import _figures, report
from jaxsgd.report._findings import advised
from jaxsgd.report._measure import grid
from tests.support.reports import KEY, LINE_LOSS, LINES, PROBLEM, Page, assert_close, said, strict


def test_numbers_are_the_library_s(whole):
    m = jaxsgd.gradient_moments(*PROBLEM)
    g = jaxsgd.per_example_gradients(PROBLEM.loss_fn)(PROBLEM.params, PROBLEM.data)
    T, G = float(m.trace_covariance(ddof=0)), float(m.squared_mean_norm)
    assert_close(whole.noise_scale, T / G)
    assert_close(whole.mean_loss, m.mean_loss)
    assert whole.batch_sizes.tolist() == list(range(1, 61))
    assert_close(whole.variance, estimators.variance_curve(m).variance)
    assert_close(whole.variance_with_replacement, estimators.variance_curve(m, design="with_replacement").variance)
    assert_close(whole.norms**2, g.squared_norms())
    M = whole.batch_size
    laws = {
        "WithReplacement": designs.WithReplacement(M),
        "WithoutReplacement": designs.WithoutReplacement(M),
        "Bernoulli": designs.Bernoulli(Fraction(M, 60)),
        "CircularBlocks": designs.CircularBlocks(M),
        "Importance": designs.Importance(estimators.optimal_probabilities(g), M),
        "Stratified": designs.Stratified.proportional(np.asarray(PROBLEM.data["y"]), M),
    }
    table = estimators.compare(laws, g)
    rows = {row.design: row for row in whole.designs}
    assert rows.keys() == laws.keys()
    for name, variance, effect in zip(table.names, table.variance, table.design_effect, strict=True):
        assert_close(rows[name].effect, effect)
        assert_close(rows[name].variance, variance)
        assert not rows[name].on_subset
    assert [row.effect for row in whole.designs] == sorted(row.effect for row in whole.designs)


def test_shares_of_the_parameters_add_up(whole):
    g = jaxsgd.per_example_gradients(PROBLEM.loss_fn)(PROBLEM.params, PROBLEM.data)
    assert [p.name for p in whole.parameters] == ["b", "w"]
    noise = [float(leaf.sum()) for leaf in jax.tree.leaves(g.variance(ddof=0))]
    signal = [float((leaf**2).sum()) for leaf in jax.tree.leaves(g.mean())]
    assert_close(np.asarray([p.of_trace for p in whole.parameters]), np.asarray(noise) / sum(noise))
    assert_close(np.asarray([p.of_mean for p in whole.parameters]), np.asarray(signal) / sum(signal))
    assert all(p.error <= whole.check.tolerance for p in whole.parameters)


@pytest.mark.slow
def test_a_subset_is_used_for_single_gradients_and_all_data_for_the_rest(whole, sampled):
    """Catches a noise scale of the subset, and numbers of the subset that do not say so."""
    assert_close(sampled.noise_scale, whole.noise_scale)
    assert_close(sampled.variance, whole.variance)
    assert (sampled.sample_size, sampled.num_examples, sampled.is_sampled) == (24, 60, True)
    assert_close(sampled.norms, whole.norms[sampled.indices])
    subset = jax.tree.map(lambda leaf: leaf[sampled.indices], PROBLEM.data)
    g = jaxsgd.per_example_gradients(PROBLEM.loss_fn)(PROBLEM.params, subset)
    rows = {row.design: row for row in sampled.designs}
    assert {name: row.on_subset for name, row in rows.items()} == {
        "WithReplacement": False,
        "WithoutReplacement": False,
        "Bernoulli": False,
        "Importance": True,
    }
    assert_close(rows["WithoutReplacement"].effect, 52 / 59)
    expected = estimators.design_effect(designs.Importance(estimators.optimal_probabilities(g), 8), g)
    assert_close(rows["Importance"].effect, expected)
    assert_close(rows["Importance"].variance, expected * sampled.trace_covariance / 8)
    assert "p ∝ gradient norm *" in said(sampled)
    assert "from 24 of them" in said(sampled)
    assert "from all 60 examples" in said(whole)
    assert "*" not in whole.text


def test_steps_and_examples_are_those_of_the_formula():
    """B = 63/5, N = 4: 1 + B (N − M)/(M (N − 1)) and M/B times that."""
    found = report(problems.line_fit())
    for M in range(1, 5):
        steps = 1 + Fraction(63, 5) * Fraction(4 - M, 3 * M)
        assert found.steps(M) == pytest.approx(float(steps), rel=1e-12)
        assert found.examples(M) == pytest.approx(float(steps * M / Fraction(63, 5)), rel=1e-12)
        assert found.variance_at(M) == pytest.approx(float(Fraction(63, 4) * Fraction(4 - M, 3 * M)), rel=1e-12)


@pytest.mark.parametrize(
    ("noise_scale", "population_size", "size"),
    [
        (0.0, 9, 1),
        (0.3, 9, 1),
        (36.4, 1797, 32),
        (64.0, 10**9, 32),  # 64 less a millionth: the signal would be less than the noise
        (64.1, 10**9, 64),
        (64.1, 500, 32),  # 500 · 64.1/(499 + 64.1) = 56.9
        (math.inf, 100, 64),
        (12.6, 4, 2),
    ],
)
def test_the_advice_is_the_largest_power_of_two_up_to_where_noise_equals_signal(noise_scale, population_size, size):
    assert advised(noise_scale, population_size) == size


def test_batch_sizes_of_large_data_are_a_grid():
    sizes = grid(10**6)
    assert (sizes[0], sizes[-1]) == (1, 10**6)
    assert len(sizes) < 1001
    assert (np.diff(sizes) > 0).all()


def test_streams_give_what_arrays_give(whole):
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 13], PROBLEM.data) for i in range(0, 60, 13)]
    streamed = report((PROBLEM.loss_fn, PROBLEM.params, iter(batches)), key=KEY, batch_size=whole.batch_size)
    assert_close(streamed.noise_scale, whole.noise_scale)
    assert streamed.indices.tolist() == list(range(60))
    assert_close(streamed.norms, whole.norms)
    assert [row.design for row in streamed.designs] == [row.design for row in whole.designs]


@pytest.mark.slow
def test_gradients_that_are_not_kept_give_the_same(whole):
    limited = report(PROBLEM, key=KEY, memory_limit=2_000, batch_size=whole.batch_size)
    assert "computed anew" in limited.explanation
    assert_close(limited.norms, whole.norms)
    assert_close([r.effect for r in limited.designs], [r.effect for r in whole.designs])
    assert_close([p.of_trace for p in limited.parameters], [p.of_trace for p in whole.parameters])


LIMITED = """
import resource, sys
import jax, numpy as np
from jaxsgd import sources
from jaxsgd.report import report

loss_fn = lambda params, example: (example["x"] @ params) ** 2
data = sources.load(sys.argv[1])
params = jax.numpy.ones(data["x"].shape[1])
report((loss_fn, params, {"x": data["x"][:4096]}), chunk_size=2048, sample_size=512).files()

used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData"))) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 64 * 2**20, resource.RLIM_INFINITY))
found = report((loss_fn, params, data), chunk_size=2048, sample_size=512)
assert found.num_examples == len(data["x"]) and len(found.files()) == 11
try:
    np.array(data["x"])
except MemoryError:
    print("held to the limit")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_report_on_a_data_set_larger_than_the_memory_allowed(tmp_path):
    """128 MiB of examples with 64 MiB to spare; holding them at once must fail, or the limit would mean nothing."""
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (65536, 512))
    rows[:] = np.linspace(0.1, 1, 65536, dtype=np.float32)[:, None]
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "held to the limit", done.stderr[-2000:]


# Batch losses


def test_the_form_of_the_batch_loss(whole):
    assert (whole.batch_loss.additivity.kind, whole.batch_loss.agrees) == ("mean", True)
    assert whole.batch_loss.gradient_difference < 1e-12


@pytest.mark.parametrize(
    ("batch_loss_fn", "kind", "agrees"),
    [
        (lambda p, b: LINE_LOSS(p, b) + 0.1 * (p["m"] ** 2 + p["b"] ** 2), "mean", False),
        (lambda p, b: b["x"].shape[0] * LINE_LOSS(p, b), "sum", True),
        pytest.param(lambda p, b: 2 * LINE_LOSS(p, b), "mean", False, marks=pytest.mark.slow),
        pytest.param(
            lambda p, b, key: LINE_LOSS(p, b) * (1 + jax.random.uniform(key)), "mean", True, marks=pytest.mark.slow
        ),
    ],
    ids=["penalty", "sum", "factor", "key"],
)
def test_a_batch_loss_of_other_terms_is_noticed(batch_loss_fn, kind, agrees):
    """A penalty that the loss of an example lacks: every number would be about another loss."""
    found = report(Problem(*LINES, batch_loss_fn))
    assert (found.batch_loss.additivity.kind, found.batch_loss.agrees) == (kind, agrees)
    assert ("give every example's loss the same terms" in said(found)) is not agrees
    assert (found.batch_loss.gradient_difference is None) is ("key" in inspect.signature(batch_loss_fn).parameters)


def test_a_form_that_cannot_be_told_is_no_failure():
    problem = problems.line_fit()
    data = jax.tree.map(lambda leaf: leaf[:3], problem.data)
    found = report(
        (problem.loss_fn, problem.params, data, lambda p, b: jax.vmap(problem.loss_fn, (None, 0))(p, b).mean())
    )
    assert "must be at least 4, got 3" in found.batch_loss.note
    assert "! Batch loss: not told" in said(found)


# Odd problems: every form of the report is made


def given(params, example):
    """A loss whose gradient is the example."""
    return params * example


@pytest.mark.parametrize(
    ("gradients", "B"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([-1.5, -0.5, 0.5, 1.5], math.inf),
        ([-1.5, -0.5, 0.5, 1.5 + 4e-9], 1.25e18),
        ([1.0, 1.001, 1.002, 1.003], 1.25e-6),
    ],
    ids=["none", "equal", "no mean", "hardly a mean", "hardly any noise"],
)
def test_odd_problems(gradients, B):
    found = report((given, jnp.asarray(1.0), jnp.asarray(gradients)))
    assert found.noise_scale == pytest.approx(B, rel=0.01)
    page = found.to_html()
    assert Page(page).tags.count("svg") == len(_figures.FIGURES)
    written = strict(found.to_json())
    assert written["noise_scale"] == ("inf" if math.inf == B else pytest.approx(B, rel=0.01))
    assert "nan" not in found.text.lower() + Page(page).text.lower()


def test_unshuffled_data_are_noticed(whole):
    """Three blocks of alike examples: the card is there, and gone when they are shuffled."""
    assert "Stored order: shuffle" in said(whole)
    order = np.random.default_rng(1).permutation(60)
    shuffled = report((PROBLEM.loss_fn, PROBLEM.params, jax.tree.map(lambda leaf: leaf[order], PROBLEM.data)))
    assert "Stored order" not in shuffled.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1, "0.100"),
        (0.00123, "0.00123"),
        (1e-4, "1.00e-04"),
        (12.6, "12.6"),
        (1797.3, "1797"),
        (123456.0, "123456"),
        (2e6, "2.00e+06"),
        (-2.5, "-2.50"),
        (math.inf, "∞"),
        (math.nan, "–"),
    ],
)
def test_numbers_for_readers(value, text):
    assert decimal(value) == text
