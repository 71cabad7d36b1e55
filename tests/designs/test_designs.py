"""Sampling designs against every ordered way to draw a batch, in rational arithmetic, and against real draws."""

import dataclasses
import itertools
from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxsgd import designs
from tests.support.registry import DESIGNS
from tests.support.twins import Law, assert_close, law

SIZES = [
    (name, N, M)
    for name in DESIGNS
    for N in range(1, 7)
    for M in range(1, N + 1 + (name == "with_replacement" and N < 6))
]
every_size = pytest.mark.parametrize(("name", "N", "M"), SIZES)


def support_of(name: str, N: int, M: int) -> Law:
    """The law that the design states; repeated values would be lost, and change the number of them."""
    return {weights: probability for probability, weights in DESIGNS[name](M).support(N)}


@every_size
def test_support_is_the_law_of_ordered_draws(name: str, N: int, M: int) -> None:
    """Catches equal probabilities for multisets, whose numbers of orders differ, and a missing batch."""
    assert support_of(name, N, M) == law(name, N, M)
    assert sum(support_of(name, N, M).values()) == 1


@every_size
def test_support_size_counts_the_support(name: str, N: int, M: int) -> None:
    design = DESIGNS[name](M)
    assert design.support_size(N) == len(list(design.support(N))) == len(law(name, N, M))


def exact_moments(law: Law) -> tuple[list[Fraction], list[list[Fraction]]]:
    """E w and Cov w."""
    N = len(next(iter(law)))
    mean = [sum(p * w[i] for w, p in law.items()) for i in range(N)]
    second = [[sum(p * w[i] * w[j] for w, p in law.items()) for j in range(N)] for i in range(N)]
    return mean, [[second[i][j] - mean[i] * mean[j] for j in range(N)] for i in range(N)]


@every_size
def test_moments_are_those_of_the_law(name: str, N: int, M: int) -> None:
    """Catches 1/N in place of 1/(N − 1), and inclusion probabilities that are not M/N."""
    mean, covariance = exact_moments(law(name, N, M))
    design = DESIGNS[name](M)
    assert mean == [Fraction(1, N)] * N
    assert_close(design.mean_weights(N), [float(x) for x in mean], atol=1e-15)
    identity, common = design.weight_covariance(N)
    stated = identity * np.eye(N) - common
    assert_close(stated, [[float(x) for x in row] for row in covariance], atol=1e-15)


@every_size
def test_covariance_formula_is_exact(name: str, N: int, M: int) -> None:
    """Cov w = c (I/N − 11ᵀ/N²), as an identity of rational numbers, with c the factor of the docstrings."""
    factor = Fraction(1, M) if name == "with_replacement" else Fraction(N - M, M * max(N - 1, 1))
    formula = [[factor * (Fraction(i == j, N) - Fraction(1, N**2)) for j in range(N)] for i in range(N)]
    assert exact_moments(law(name, N, M))[1] == formula
    if name == "without_replacement":
        assert DESIGNS[name](M).variance_factor(N) == factor


def drawn_weights(name: str, N: int, M: int, num_draws: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(5), num_draws)
    return np.asarray(jax.vmap(lambda key: DESIGNS[name](M).weights(key, N))(keys))


def p_value(weights: np.ndarray, law: Law) -> float:
    """Of the χ² test that the drawn batches follow the law; 0 if a drawn batch is impossible under it."""
    M = round(1 / min(w for vector in law for w in vector if w))
    observed = Counter(tuple(Fraction(round(w * M), M) for w in row) for row in weights.tolist())
    if observed.keys() - law.keys():
        return 0.0
    expected = [float(p) * len(weights) for p in law.values()]
    assert min(expected) >= 20, "too few draws for a χ² test"
    return float(scipy.stats.chisquare([observed[w] for w in law], expected).pvalue)


@pytest.mark.parametrize(("N", "M"), [(4, 2), (3, 2), (5, 3), (2, 1)])
@pytest.mark.parametrize("name", DESIGNS)
def test_draws_follow_the_law(name: str, N: int, M: int) -> None:
    """Catches an example that is never drawn, repeats where there are none, and one draw used twice."""
    weights = drawn_weights(name, N, M, 6000)
    assert p_value(weights, law(name, N, M)) > 1e-4
    if M > 1:
        other = next(iter(DESIGNS.keys() - {name}))
        assert p_value(weights, law(other, N, M)) < 1e-12, "the other design's law must be rejected"


def test_too_many_repeats_are_rejected() -> None:
    """A control for the χ² test itself: of equally likely subsets, one is drawn a third more often."""
    weights = drawn_weights("without_replacement", 4, 2, 6000)
    rare = (weights == [0.5, 0.5, 0, 0]).all(axis=1)
    assert (
        p_value(np.concatenate([weights, weights[rare][: len(weights) // 18]]), law("without_replacement", 4, 2)) < 1e-6
    )


@every_size
def test_weights_are_shares_of_the_indices(name: str, N: int, M: int) -> None:
    """Catches weights and indices that come from different draws."""
    design, key = DESIGNS[name](M), jax.random.key(N)
    indices = design.indices(key, N)
    assert indices.shape == (M,)
    assert_close(design.weights(key, N), np.bincount(indices, minlength=N) / M, atol=1e-15)


@pytest.mark.parametrize("N", [1, 2, 7, 100])
def test_indices_without_replacement_are_distinct_and_nested(N: int) -> None:
    """Catches a batch that is not a prefix of the order that larger batches share."""
    key = jax.random.key(8)
    order = designs.WithoutReplacement(N).indices(key, N).tolist()
    assert sorted(order) == list(range(N))
    for M in {1, N // 2, N - 1} - {0}:
        assert designs.WithoutReplacement(M).indices(key, N).tolist() == order[:M]


@pytest.mark.parametrize("name", DESIGNS)
def test_designs_are_values(name: str) -> None:
    """Catches a design that cannot be a static argument, or whose printed form is no caption."""
    first, same, other = DESIGNS[name](3), DESIGNS[name](3), DESIGNS[name](4)
    assert first == same
    assert hash(first) == hash(same)
    assert first != other
    assert eval(repr(first), vars(designs)) == first
    assert repr(first) == f"{type(first).__name__}(batch_size=3)"
    assert isinstance(first, designs.Design)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.batch_size = 5


def test_designs_of_different_kinds_differ() -> None:
    """Catches equality by field alone, with which two designs would share one compilation."""
    for a, b in itertools.combinations(DESIGNS.values(), 2):
        assert a(3) != b(3)


@pytest.mark.parametrize("name", DESIGNS)
def test_one_compilation_as_a_static_argument(name: str) -> None:
    traces = []

    def draw(design: designs.Design, key: jax.Array) -> jax.Array:
        traces.append(design)
        return design.weights(key, 5)

    compiled = jax.jit(draw, static_argnums=0)
    for seed in range(3):
        compiled(DESIGNS[name](2), jax.random.key(seed))
    assert len(traces) == 1
    compiled(DESIGNS[name](3), jax.random.key(0))
    assert len(traces) == 2


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", DESIGNS)
def test_batch_size_from_a_numpy_array(name: str) -> None:
    """Catches fixed-width integers in the exact arithmetic: 2⁶⁴ ordered draws overflow them."""
    (M,) = np.array([64])
    N = 2 if name == "with_replacement" else 65
    design = DESIGNS[name](M)
    assert sum(probability for probability, _ in design.support(N)) == 1
    assert design == DESIGNS[name](64)
    assert repr(design) == repr(DESIGNS[name](64))


@pytest.mark.parametrize("name", DESIGNS)
def test_weights_take_the_default_dtype(name: str) -> None:
    assert DESIGNS[name](2).weights(jax.random.key(0), 4).dtype == jnp.zeros(()).dtype
