"""Design effects, the table of designs, allocations, and Monte Carlo estimates that continue."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import designs, estimators, moments, problems
from jaxsgd.designs import _importance
from tests.support.registry import EX_B, LAWS, PROBLEMS, gradients_given, measured, quick, skewed, take
from tests.support.twins import assert_close, flat

G = measured(gradients_given(EX_B))
OF_EACH_KIND = {"hajek_skip", "stratified", "importance", "reshuffling", "circular_blocks", "groups_realized", "total"}
TO_MERGE = ["without_replacement", "poisson", "hajek_skip", "groups_realized", "total"]


def test_the_table_has_the_numbers_of_the_functions() -> None:
    """Catches a bias against ḡ where the design estimates a total, and rows in another order than the names."""
    laws = {name: LAWS[name](6) for name in ("poisson", "hajek_skip", "total", "sum", "stratified_unweighted")}
    table = estimators.compare(laws, G)
    assert table.names == tuple(laws)
    for i, design in enumerate(laws.values()):
        estimate = estimators.exact(design, G)
        assert_close(table.variance[i], float(estimate.variance), atol=0)
        assert_close(table.design_effect[i], estimators.design_effect(design, G), atol=1e-15)
        bias = abs(float(estimate.mean) - 7 * float(design.scale_factor(6)))
        assert_close(table.bias[i], bias, atol=1e-14)
    unbiased = dict(zip(table.names, table.bias < 1e-12, strict=True))
    assert unbiased == {
        "poisson": True, "hajek_skip": False, "total": True, "sum": True, "stratified_unweighted": False,
    }  # fmt: skip
    lines = str(table).splitlines()
    assert [line.split()[0] for line in lines] == ["design", *laws]
    assert f"{table.variance[1]:.4g}" in lines[2]


def test_design_effect_does_not_depend_on_the_scale() -> None:
    for scale in ("sum", "total"):
        scaled = estimators.design_effect(designs.Blocks(2, scale=scale), G)
        assert_close(scaled, estimators.design_effect(designs.Blocks(2), G), atol=1e-14)


def test_design_effect_without_anything_to_compare_with() -> None:
    assert np.isnan(estimators.design_effect(designs.WithoutReplacement(6), G, relative_to="without_replacement"))
    equal = measured(take(problems.line_fit(), [2] * 4))
    assert np.isnan(estimators.design_effect(designs.WithReplacement(2), equal))


@pytest.mark.parametrize("seed", range(6))
def test_neyman_is_the_best_allocation(seed: int) -> None:
    """Against every allocation there is. Catches rounding of m_h ∝ N_h S_h, which is not always best."""
    rng = np.random.default_rng(seed)
    strata = np.sort(rng.integers(0, 3, 12))
    strata[:3] = [0, 1, 2]
    g = measured(gradients_given(skewed(12, 2, seed=seed) * rng.integers(1, 9, 3)[strata][:, None]))
    sizes = np.bincount(strata)
    every = [m for m in itertools.product(*(range(1, n + 1) for n in sizes)) if sum(m) == 6]
    best = min(float(estimators.exact(designs.Stratified(strata, m), g).variance) for m in every)
    chosen = designs.Stratified.neyman(strata, estimators.stratum_deviations(g, strata), 6)
    assert float(estimators.exact(chosen, g).variance) == pytest.approx(best, rel=1e-12)


def test_proportional_allocations() -> None:
    def of(sizes: list[int], batch_size: int) -> tuple[int, ...]:
        return designs.Stratified.proportional(np.repeat(range(len(sizes)), sizes), batch_size).batch_sizes

    assert of([20, 30, 50], 10) == (2, 3, 5)
    assert of([20, 30, 50], 100) == (20, 30, 50)
    assert of([1, 1, 98], 10) == (1, 1, 8)
    assert of([3], 2) == (2,)


def test_neyman_without_any_deviation_is_proportional() -> None:
    """Catches a stratum of no spread that gets all, or a division by 0; filled strata pass their share on."""
    strata = np.repeat([0, 1], [2, 8])
    assert designs.Stratified.neyman(strata, [0.0, 0.0], 5).batch_sizes == (1, 4)
    assert designs.Stratified.neyman(strata, [9.0, 0.0], 5).batch_sizes == (2, 3)


@pytest.mark.parametrize("name", quick(TO_MERGE, {"without_replacement", "hajek_skip"}))
@pytest.mark.parametrize("cut", [13, pytest.param(2, marks=pytest.mark.slow), pytest.param(38, marks=pytest.mark.slow)])
def test_two_parts_merged_equal_the_whole(name: str, cut: int) -> None:
    """Catches draws that are used twice, and variances averaged without the distance of the means."""
    g, key, design = measured(PROBLEMS["tanh_network"]()), jax.random.key(30), LAWS[name](7)
    whole = estimators.monte_carlo(design, g, key=key, num_draws=40, chunk_size=16)
    first = estimators.monte_carlo(design, g, key=key, num_draws=cut, chunk_size=16)
    second = estimators.monte_carlo(design, g, key=key, num_draws=40 - cut, first_draw=cut, chunk_size=16)
    scale = float(whole.variance)
    for merged in (estimators.merge(first, second), estimators.merge(second, first)):
        assert merged.num_draws == 40
        assert_close(merged.variance, whole.variance, atol=1e-13 * scale)
        assert_close(merged.standard_error, whole.standard_error, atol=1e-13 * scale)
        assert_close(merged.mean_squared_error, whole.mean_squared_error, atol=1e-13 * scale)
        assert_close(flat(merged.mean), flat(whole.mean), atol=1e-13 * scale**0.5)
    averaged = (cut * float(first.variance) + (40 - cut) * float(second.variance)) / 40
    assert abs(averaged - float(whole.variance)) > 1e-4 * scale, "the control: a plain average is another number"


def test_merging_is_associative() -> None:
    """Four parts, in any order, make the whole."""
    g, key = measured(PROBLEMS["tanh_network"]()), jax.random.key(31)
    design = LAWS["bernoulli_realized_skip"](7)
    parts = [estimators.monte_carlo(design, g, key=key, num_draws=8, first_draw=8 * i, chunk_size=8) for i in range(4)]
    whole = estimators.monte_carlo(design, g, key=key, num_draws=32, chunk_size=8)
    a, b, c, d = parts
    for merged in (
        estimators.merge(estimators.merge(a, b), estimators.merge(c, d)),
        estimators.merge(d, estimators.merge(b, estimators.merge(c, a))),
    ):
        assert_close(merged.variance, whole.variance, atol=1e-13 * float(whole.variance))
        assert_close(merged.standard_error, whole.standard_error, atol=1e-13 * float(whole.variance))


@pytest.mark.parametrize("name", quick(LAWS, OF_EACH_KIND))
def test_monte_carlo_of_every_law(name: str) -> None:
    """Against the exact estimate, in standard errors known from the support; 1.2 times the variance is rejected."""
    design = LAWS[name](6)
    exact = estimators.exact(design, G)
    drawn = estimators.monte_carlo(design, G, key=jax.random.key(32), num_draws=4096, chunk_size=4096)
    outcomes = [(float(p), sum(float(w) * x for w, x in zip(v, EX_B, strict=True))) for p, v in design.support(6)]
    mean = sum(p * x for p, x in outcomes)
    squares = [(p, (x - mean) ** 2) for p, x in outcomes]
    variance = sum(p * s for p, s in squares)
    standard_error = np.sqrt(sum(p * (s - variance) ** 2 for p, s in squares) / 4096 + 2 * variance**2 / 4096**2)
    assert abs(float(drawn.variance - exact.variance)) < 4.5 * standard_error + 1e-12
    assert abs(float(drawn.mean - exact.mean)) < 4.5 * np.sqrt(variance / 4096) + 1e-12
    if variance > 0:
        assert abs(float(drawn.variance) - 1.2 * variance) > 4.5 * standard_error
        assert abs(float(drawn.mean) - mean) < abs(float(drawn.mean) - mean - 0.5 * np.sqrt(variance))


def test_monte_carlo_does_not_trust_the_mean_that_a_design_states() -> None:
    """Catches a variance about a stated mean that is wrong."""

    class Wrong(designs.WithoutReplacement):
        def mean_weights(self, population_size: int) -> np.ndarray:
            return np.full(population_size, 2.0 / population_size)

    right, wrong = (
        estimators.monte_carlo(kind(2), G, key=jax.random.key(33), num_draws=64)
        for kind in (designs.WithoutReplacement, Wrong)
    )
    assert_close(wrong.variance, right.variance, atol=1e-12 * float(right.variance))
    assert_close(wrong.mean, right.mean, atol=1e-12)
    assert float(wrong.mean_squared_error) > float(right.mean_squared_error) + 40


@pytest.mark.parametrize("name", quick(LAWS, OF_EACH_KIND))
def test_edge_cases(name: str) -> None:
    """One example, ḡ = 0, Σ = 0, repeated rows, more parameters than examples; float32."""
    for problem in ("one_example", "line_fit_at_optimum", "equal_rows", "repeated_rows"):
        g = measured(PROBLEMS[problem]())
        variance = float(estimators.exact(LAWS[name](g.count), g).variance)
        assert 0 <= variance < np.inf
    wide = measured(gradients_given(skewed(4, 50), jnp.float32))
    estimate = estimators.exact(LAWS[name](4), wide)
    assert estimate.variance.dtype == estimate.mean.dtype == jnp.float32
    truth = estimators.exact(LAWS[name](4), measured(gradients_given(np.asarray(skewed(4, 50), np.float32))))
    assert_close(estimate.variance, truth.variance, atol=1e-5 * float(truth.variance) + 1e-9)


def test_certain_and_impossible_examples() -> None:
    """π_i = 1 adds nothing to the variance; π_i = 0 is allowed where the gradient is zero."""
    g = measured(gradients_given([3.0, 0.0, 5.0]))
    for design in (designs.Poisson([1.0, 0.0, 0.5]), designs.Importance([0.5, 0.0, 0.5], 2)):
        exact, enumerated = estimators.exact(design, g), estimators.enumerate_batches(design, g)
        assert_close(exact.variance, enumerated.variance, atol=1e-14)
        assert_close(exact.mean, 8 / 3, atol=1e-15)
    for seed in range(20):
        assert designs.Importance([0.5, 0.0, 0.5], 5).weights(jax.random.key(seed), 3)[1] == 0


@pytest.mark.parametrize("N", [1, 2, 5, 20_000])
def test_importance_draws_have_the_stated_chances_in_float32(N: int) -> None:
    """Catches cumulative sums in float32, which move the chances of single examples by a percent."""
    p = np.random.default_rng(N).exponential(size=N)
    p = p / p.sum()
    thresholds, others = _importance._alias_table(designs.Importance(p, 1).probabilities)
    kept = np.clip(np.asarray(thresholds, np.float32).astype(float), 0, 1)
    stated = (kept + np.bincount(others, weights=1 - kept, minlength=N)) / N
    assert_close(stated / p.mean(), p / p.mean(), atol=1e-5)
    cumulative = np.diff(np.cumsum(p).astype(np.float32).astype(float), prepend=0)
    assert N < 20_000 or np.abs(cumulative / p.mean() - p / p.mean()).max() > 1e-4, "the control must be off"


def test_skipping_never_draws_an_empty_batch() -> None:
    """With p = 0.01 and three examples, 97 of 100 draws are empty."""
    keys = jax.random.split(jax.random.key(34), 200)
    for empty, least in (("skip", 1), ("zero", 0)):
        drawn = jax.vmap(lambda key, empty=empty: designs.Bernoulli(0.01, empty=empty).weights(key, 3))(keys)
        assert int((drawn > 0).sum(axis=1).min()) == least
    always = designs.Bernoulli(1.0, empty="error")
    assert_close(always.weights(jax.random.key(0), 3), [1 / 3] * 3, atol=1e-16)
    assert designs.Poisson([0.5, 1.0], empty="error").support_size(2) == 2


def test_large_populations_need_no_matrix() -> None:
    """N = 10⁵: a Gram matrix would have 10¹⁰ entries. Each against the same number from the raw gradients."""
    N, rng = 100_000, np.random.default_rng(0)
    rows = rng.normal(1, 1, (N, 2))
    g, labels = measured(gradients_given(rows)), rng.integers(0, 10, N)
    pi = rng.uniform(0.01, 0.1, N)
    squares = (rows**2).sum(axis=1)
    poisson = np.sum((1 - pi) / pi * squares) / N**2
    assert_close(estimators.exact(designs.Poisson(pi), g).variance, poisson, atol=1e-10 * poisson)
    p = squares**0.5 / np.sum(squares**0.5)
    importance = (np.sum(squares / p) / N**2 - (rows.mean(axis=0) ** 2).sum()) / 50
    assert_close(estimators.exact(designs.Importance(p, 50), g).variance, importance, atol=1e-10 * importance)
    sizes = np.bincount(labels)
    spread = [rows[labels == h].var(axis=0, ddof=1).sum() for h in range(10)]
    stratified = sum((n / N) ** 2 * (1 - 5 / n) * s / 5 for n, s in zip(sizes, spread, strict=True))
    assert_close(
        estimators.exact(designs.Stratified(labels, [5] * 10), g).variance, stratified, atol=1e-10 * stratified
    )
    blocks = rows.reshape(1000, 100, 2).mean(axis=1).var(axis=0).sum()
    assert_close(estimators.exact(designs.Blocks(100), g).variance, blocks, atol=1e-10 * blocks)
    systematic = rows.reshape(100, 1000, 2).mean(axis=0).var(axis=0).sum()
    assert_close(estimators.exact(designs.Systematic(100), g).variance, systematic, atol=1e-10 * systematic)
    distinct = estimators.exact(designs.DistinctUnits(1000), moments.of(g))
    assert 0.98 < float(distinct.variance) / (rows.var(axis=0).sum() / 1000) < 1
