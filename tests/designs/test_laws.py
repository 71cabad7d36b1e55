"""Every design of the package against its own support, summed in rational arithmetic, and against its own draws.

``test_design_numbers`` ties the supports to numbers worked out elsewhere.
"""

import dataclasses
import functools
import itertools
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxsgd
from jaxsgd import designs, estimators
from tests.support.models import MODELS
from tests.support.registry import LAWS, PROBLEMS, RATIOS, ROUNDED, gradients_given, measured, quick, skewed, take
from tests.support.twins import Law, assert_close, flat, loop_of

POPULATIONS = (1, 2, 4, 5)
every_law = pytest.mark.parametrize("name", LAWS)
every_population = pytest.mark.parametrize("N", POPULATIONS)


@functools.cache
def law(name: str, N: int) -> Law:
    """The stated law; repeated values would be lost, and change the number of them."""
    return {weights: probability for probability, weights in LAWS[name](N).support(N)}


def expectation(name: str, N: int, f: Any) -> Any:
    return sum(probability * f(np.array(w, dtype=object)) for w, probability in law(name, N).items())


@every_population
@every_law
def test_support_is_a_law(name: str, N: int) -> None:
    """Catches probabilities that do not sum to one, batches listed twice, and a wrong number of them."""
    probabilities = list(law(name, N).values())
    assert sum(probabilities) == 1
    assert all(isinstance(p, Fraction) and p > 0 for p in probabilities)
    assert LAWS[name](N).support_size(N) == len(list(LAWS[name](N).support(N))) == len(probabilities)


@every_population
@every_law
def test_moments_are_those_of_the_support(name: str, N: int) -> None:
    """Catches a wrong inclusion probability, a divisor N in place of N − 1, a forgotten empty batch."""
    mean = expectation(name, N, lambda w: w)
    covariance = expectation(name, N, lambda w: np.outer(w, w)) - np.outer(mean, mean)
    stated = LAWS[name](N).weight_covariance(N)
    scale = float(max(np.abs(mean).max(), 1)) ** 2
    assert_close(LAWS[name](N).mean_weights(N), mean.astype(float), atol=1e-15 * scale if name not in RATIOS else 1e-14)
    if name in ROUNDED:
        assert_close(stated.dense(N), covariance.astype(float), atol=1e-13)
    else:
        assert (stated.entries(N) == covariance).all()
        assert all(isinstance(entry, Fraction) for entry in stated.entries(N).ravel())
        assert_close(stated.dense(N), covariance.astype(float), atol=1e-15 * scale)


@every_population
@every_law
def test_inclusion_probabilities_are_those_of_the_support(name: str, N: int) -> None:
    """Catches π_i π_j where examples are dependent."""
    joint = expectation(name, N, lambda w: np.outer(w > 0, w > 0).astype(int)).astype(float)
    assert_close(LAWS[name](N).joint_inclusion_probabilities(N), joint, atol=1e-14)
    assert_close(LAWS[name](N).inclusion_probabilities(N), np.diagonal(joint), atol=1e-14)
    if "with_replacement" not in name and "importance" not in name and name != "total":
        assert LAWS[name](N).expected_batch_size(N) == pytest.approx(np.trace(joint), rel=1e-14)


def drawn_weights(name: str, N: int, num_draws: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(21), num_draws)
    return np.asarray(jax.jit(jax.vmap(lambda key: LAWS[name](N).weights(key, N)))(keys))


def p_value(weights: np.ndarray, law: Law, tilt: float = 1.0) -> float:
    """Of the χ² test that drawn batches follow the law, with the odds of every second batch multiplied by ``tilt``."""
    values = np.array([[float(x) for x in w] for w in law])
    distance = np.abs(weights[:, None] - values[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-12, "a batch was drawn that is impossible under the law"
    expected = np.array([float(p) for p in law.values()])
    expected[::2] *= tilt
    expected *= len(weights) / expected.sum()
    observed = np.bincount(distance.argmin(axis=1), minlength=len(expected))
    rare = expected < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return float(scipy.stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue)


@pytest.mark.parametrize("N", [4, 5])
@every_law
def test_draws_follow_the_law(name: str, N: int) -> None:
    """Catches a draw that is not the stated law; the control is a law with other odds for every second batch."""
    if len(law(name, N)) == 1:
        pytest.skip("nothing is random")
    weights = drawn_weights(name, N, 4000)
    assert p_value(weights, law(name, N)) > 1e-4
    assert p_value(weights, law(name, N), tilt=1.5) < 1e-6


@every_law
def test_draws_have_the_default_dtype_and_do_not_recompile(name: str) -> None:
    """Catches shapes that depend on the size of a random batch."""
    design, traces = LAWS[name](5), []

    def draw(design: Any, key: jax.Array) -> jax.Array:
        traces.append(design)
        return design.weights(key, 5)

    compiled = jax.jit(draw, static_argnums=0)
    sizes = {int((compiled(LAWS[name](5), jax.random.key(seed)) > 0).sum()) for seed in range(8)}
    assert len(traces) == 1
    assert compiled(design, jax.random.key(0)).dtype == jnp.zeros(()).dtype
    if "bernoulli" in name or ("poisson" in name and "conditional" not in name):
        assert len(sizes) > 1, "the control: sizes must have differed"


@every_law
def test_designs_are_values(name: str) -> None:
    """Catches a design that cannot be a static argument, or whose printed form is no caption."""
    first, same = LAWS[name](5), LAWS[name](5)
    assert first == same
    assert hash(first) == hash(same)
    assert eval(repr(first), vars(designs) | {"Fraction": Fraction}) == first
    assert isinstance(first, designs.Design)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.scale = "total"


def test_designs_of_different_kinds_differ() -> None:
    """Catches equality by field alone, with which two designs would share one compilation."""
    for (_, a), (_, b) in itertools.combinations(LAWS.items(), 2):
        if repr(a(5)) != repr(b(5)):
            assert a(5) != b(5)


def test_long_vectors_are_shortened_in_print() -> None:
    assert repr(designs.Poisson(np.linspace(0.5, 1, 1000))) == "Poisson(probabilities=(0.5, ..., 1.0))"


@pytest.mark.parametrize(
    "problem", quick(PROBLEMS, PROBLEMS.keys() - {"classifier", "diabetes_rows", "tanh_network", "odd_leaves"})
)
def test_exact_equals_enumeration(problem: str) -> None:
    """Catches a contraction that is right for scalar gradients, equal group sizes or a zero mean only."""
    given = PROBLEMS[problem]()
    g = measured(take(given, range(6)) if len(loop_of(problem).losses) > 6 else given)
    scale = float(g.squared_norms().mean())
    for name, build in LAWS.items():
        design = build(g.count)
        exact, enumerated = estimators.exact(design, g), estimators.enumerate_batches(design, g)
        size = float(design.scale_factor(g.count))
        assert_close(exact.variance, enumerated.variance, atol=1e-13 * scale * size**2, what=name)
        assert_close(flat(exact.mean), flat(enumerated.mean), atol=1e-13 * scale**0.5 * size, what=name)


@every_law
def test_nothing_cancels_where_gradients_are_nearly_equal(name: str) -> None:
    """Catches Σ‖g‖² − N‖ḡ‖²: with a mean 10⁷ times the deviations, it is off by 1% of the variance, or more."""
    deviations = skewed(6, 2)
    rows = deviations + 1e7
    design = LAWS[name](6)
    exact = float(estimators.exact(design, measured(gradients_given(rows))).variance)
    C = design.weight_covariance(6).entries(6)
    G = [[Fraction(x) for x in row] for row in rows.tolist()]
    truth = sum(Fraction(C[i, j]) * sum(map(Fraction.__mul__, G[i], G[j])) for i in range(6) for j in range(6))
    if name in RATIOS:  # their covariance is itself rounded: its row sums are known exactly
        d = [[x - 10**7 for x in row] for row in G]
        sums = [Fraction(x) for x in design.weight_covariance(6).row_sums.tolist()]
        both = sum(Fraction(C[i, j]) * sum(map(Fraction.__mul__, d[i], d[j])) for i in range(6) for j in range(6))
        one = 2 * 10**7 * sum(s * sum(row) for s, row in zip(sums, d, strict=True))
        truth = both + one + 2 * 10**14 * sum(sums)
    assert exact >= 0
    assert_close(exact, float(truth), atol=1e-6 * float(truth) + 1e-15)


@every_law
def test_exact_under_jit(name: str) -> None:
    g = measured(gradients_given(skewed(6, 2)))
    compiled = jax.jit(lambda g: estimators.exact(LAWS[name](6), g).variance)(g)
    assert_close(compiled, estimators.exact(LAWS[name](6), g).variance, atol=1e-14 * float(compiled) + 1e-16)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (17, 1, 40), pytest.param((9, 200, 16, 33), marks=pytest.mark.slow)])
def test_strata_and_groups_of_every_size(sizes: tuple[int, ...]) -> None:
    """Catches padding that is counted, and strata that are returned in the order of their lengths."""
    assignment = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = skewed(len(assignment), 3) * (1 + assignment[:, None])
    g = measured(gradients_given(rows))
    for design in (designs.Stratified(assignment, [1] * len(sizes)), designs.Groups(assignment)):
        K, C = rows @ rows.T, design.weight_covariance(len(rows)).dense(len(rows))
        assert_close(estimators.exact(design, g).variance, np.sum(C * K), atol=1e-12 * np.sum(np.abs(C * K)))
    deviations = [
        np.sqrt(max(rows[assignment == h].var(axis=0, ddof=min(1, n - 1)).sum(), 0)) for h, n in enumerate(sizes)
    ]
    assert_close(estimators.stratum_deviations(g, assignment), deviations, atol=1e-13 * max(deviations))


@pytest.mark.parametrize("model", quick(["embedding", "conv_small_output", "recurrent", "used_twice"], {"used_twice"}))
def test_structured_designs_of_gradients_in_every_form(model: str) -> None:
    """Against ⟨Cov w, K⟩. Catches a factor whose examples are not along its first axis, or that does not batch."""
    loss_fn, params, batch, _ = MODELS[model]()
    g = jax.jit(jaxsgd.per_example_gradients(loss_fn))(params, batch)
    K, N = np.asarray(g.gram(), dtype=np.float64), g.count
    tolerance = 1e-4 if g.squared_norms().dtype == jnp.float32 else 1e-11
    for name in ("stratified", "groups", "circular_blocks", "importance", "poisson_skip", "conditional_poisson"):
        C = LAWS[name](N).weight_covariance(N).dense(N)
        exact = estimators.exact(LAWS[name](N), g).variance
        assert_close(exact, np.sum(C * K), atol=tolerance * float(np.sum(np.abs(C * K))), what=name)


@pytest.mark.parametrize(("N", "M"), [(7, 3), (300, 7), (1030, 600)])
def test_circular_blocks_of_every_size(N: int, M: int) -> None:
    """Catches windows that stop at the end of the data, or of a chunk."""
    rows = np.cumsum(skewed(N, 3), axis=0)
    windows = np.array([rows[np.arange(r, r + M) % N].mean(axis=0) for r in range(N)])
    truth = windows.var(axis=0).sum()
    exact = estimators.exact(designs.CircularBlocks(M), measured(gradients_given(rows))).variance
    assert_close(exact, truth, atol=1e-11 * truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sum", "total"])
def test_scales_multiply_everything(name: str) -> None:
    """A sum is M times the mean, a total N times; for random sizes, M is the size that the design is made for."""
    key, N = jax.random.key(3), 6
    for law_name in LAWS.keys() - {"sum", "total"}:
        design = LAWS[law_name](N)
        scaled = dataclasses.replace(design, scale=name)
        factor = {"sum": float(design.nominal_batch_size(N)), "total": 6.0}[name]
        assert_close(scaled.weights(key, N), factor * design.weights(key, N), atol=1e-13)
        assert_close(scaled.mean_weights(N), factor * design.mean_weights(N), atol=1e-14)
        dense = design.weight_covariance(N).dense(N)
        assert_close(scaled.weight_covariance(N).dense(N), factor**2 * dense, atol=1e-13)
    assert_close(designs.Bernoulli(0.5, scale="sum").weights(key, N).max(), 1, atol=0)
    assert_close(designs.WithoutReplacement(2, scale="sum").weights(key, N).sum(), 2, atol=0)


def test_vectors_may_be_lists_arrays_or_of_numpy_integers() -> None:
    """Catches a design that is unhashable, or differs, according to how its law was written down."""
    labels = [0, 1, 0, 1]
    for same in (np.array(labels), jnp.array(labels), tuple(labels), np.array(labels, dtype=np.int8)):
        assert designs.Groups(same) == designs.Groups(labels)
        assert designs.Stratified(same, np.array([1, 2])) == designs.Stratified(labels, [1, 2])
    assert designs.Poisson(np.array([0.5, 0.25])) == designs.Poisson([0.5, 0.25])
    assert hash(designs.Poisson(jnp.array([0.5, 0.25]))) == hash(designs.Poisson((0.5, 0.25)))
    assert designs.ConditionalPoisson([1, np.int64(2)], 1).odds == (Fraction(1), Fraction(2))
