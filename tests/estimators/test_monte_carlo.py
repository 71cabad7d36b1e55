"""Batches really drawn, against their laws: fixed keys, and standard errors known before anything is drawn.

With R draws, Var(mean of ‖e‖²) = Var‖e‖²/R, and for the unbiased variance about the drawn mean,
Var = Var‖e‖²/R + 2 tr(C²)/(R(R−1)) with C = Cov ĝ. Both come from ``squared_error_law``, which
``test_estimators`` holds against enumeration. What a test accepts is matched by a control that it rejects.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxsgd import estimators
from jaxsgd._core import state_file
from jaxsgd.estimators import _monte_carlo
from tests.support.own_designs import Bernoulli
from tests.support.registry import DESIGNS, EX_B, PROBLEMS, gradients_given, measured, quick
from tests.support.twins import (
    assert_close,
    errors,
    expect,
    flat,
    law,
    line_gradients,
    loop_of,
    scalar_gradients,
    squared_norm,
)

MAX_Z = 4.5
R = 4096  # a multiple of the chunk sizes: one compilation each
every_design = pytest.mark.parametrize("design", DESIGNS)
SMALL_PROBLEMS = ["line_fit", "line_fit_at_optimum", "scalar_gradients", "tanh_network"]


def other(design: str) -> str:
    return next(name for name in DESIGNS if name != design)


def z_of_variance(drawn: Any, stated: estimators.SquaredErrorLaw) -> float:
    """For the unbiased variance about the drawn mean."""
    standard_error = np.sqrt(stated.variance / R + 2 * stated.squared_covariance / (R * (R - 1)))
    return float((drawn.variance - stated.mean[0]) / standard_error[0])


def z_of_mean(drawn: Any, target: Any, stated: estimators.SquaredErrorLaw) -> float:
    distance = ((flat(drawn.mean) - flat(target)) ** 2).sum()
    return float(stated.of_mean(R).z_scores(np.array([distance]))[0])


@pytest.mark.parametrize("name", quick(SMALL_PROBLEMS, {"scalar_gradients", "tanh_network"}))
@every_design
def test_monte_carlo_follows_the_law(name: str, design: str) -> None:
    """Catches a biased draw, a wrong divisor, a variance about another mean; the other design's law is rejected."""
    g = measured(PROBLEMS[name]())
    for M in (g.count // 2, g.count - 1):
        drawn = estimators.monte_carlo(DESIGNS[design](M), g, key=jax.random.key(11), num_draws=R)
        stated = estimators.squared_error_law(g, [M], design=design)
        assert abs(z_of_variance(drawn, stated)) < MAX_Z, f"M = {M}: {drawn.variance}, expected {stated.mean}"
        assert abs(z_of_mean(drawn, g.mean(), stated)) < MAX_Z, f"M = {M}: {drawn.mean}, expected {g.mean()}"
        if g.count < 2 * M:
            control = z_of_variance(drawn, estimators.squared_error_law(g, [M], design=other(design)))
            assert abs(control) > 2 * MAX_Z, "the other design's law must be rejected"


@every_design
def test_monte_carlo_rejects_a_biased_mean(design: str) -> None:
    """The control for the mean: a target that leaves out the first of seven examples."""
    g = measured(PROBLEMS["tanh_network"]())
    drawn = estimators.monte_carlo(DESIGNS[design](6), g, key=jax.random.key(12), num_draws=R)
    biased = g.weighted_sum(jnp.asarray([0.0] + [1 / 6] * 6))
    assert z_of_mean(drawn, biased, estimators.squared_error_law(g, [6], design=design)) > 2 * MAX_Z


@pytest.mark.parametrize(("p", "gold"), [(Fraction(1, 3), 80 / 3), (Fraction(1, 2), 40 / 3)])
def test_monte_carlo_of_a_design_of_ones_own(p: Fraction, gold: float) -> None:
    """Catches estimators that draw the two designs of the package only; here the total weight is random."""
    drawn = estimators.monte_carlo(Bernoulli(p), measured(gradients_given(EX_B)), key=jax.random.key(13), num_draws=R)
    support = {weights: probability for probability, weights in Bernoulli(p).support(6)}
    outcomes = list(errors(scalar_gradients(EX_B), support))
    fourth = float(expect(outcomes, lambda e: squared_norm(e) ** 2))
    standard_error = np.sqrt((fourth - gold**2) / R + 2 * gold**2 / (R * (R - 1)))
    assert abs(float(drawn.variance) - gold) < MAX_Z * standard_error
    assert abs(float(drawn.mean) - 7) < MAX_Z * np.sqrt(gold / R)
    without_mean = gold * 31 / (31 + 7**2)  # Σ alone in place of Σ + ḡḡᵀ
    assert abs(float(drawn.variance) - without_mean) > 2 * MAX_Z * standard_error


@every_design
def test_standard_error_is_that_of_the_draws(design: str) -> None:
    """Catches a standard deviation that is not divided by √R, or by too much.

    The squared standard error times R estimates Var‖e‖², and the errors are about the mean that the design states. One
    draw moves that estimate by (‖e‖² − μ)² − Var‖e‖². In a curve they are about ḡ, the same here.
    """
    g, gradients = measured(PROBLEMS["line_fit"]()), line_gradients(Fraction(1), Fraction(1))
    outcomes = list(errors(gradients, law(design, 4, 2)))
    mu = expect(outcomes, squared_norm)
    variance = expect(outcomes, lambda e: (squared_norm(e) - mu) ** 2)
    spread = float(expect(outcomes, lambda e: ((squared_norm(e) - mu) ** 2 - variance) ** 2)) ** 0.5
    drawn = estimators.monte_carlo(DESIGNS[design](2), g, key=jax.random.key(14), num_draws=R)
    curve = estimators.monte_carlo_curve(g, [2], key=jax.random.key(14), num_draws=R, design=design)
    control = float(expect(list(errors(gradients, law(other(design), 4, 2))), lambda e: (squared_norm(e) - mu) ** 2))
    for standard_error in (float(drawn.standard_error), float(curve.standard_error[0])):
        assert abs(standard_error**2 * R - float(variance)) < MAX_Z * spread / R**0.5
        assert abs(standard_error**2 * R - control) > 2 * MAX_Z * spread / R**0.5
        assert abs(standard_error**2 - float(variance)) > 2 * MAX_Z * spread / R**0.5


@every_design
def test_monte_carlo_equals_a_loop_over_the_same_draws(design: str) -> None:
    """Catches R in place of R − 1, which 4096 draws cannot show."""
    g, G, key = measured(PROBLEMS["tanh_network"]()), loop_of("tanh_network").gradients, jax.random.key(20)
    drawn = estimators.monte_carlo(DESIGNS[design](3), g, key=key, num_draws=8)
    orders = [np.asarray(DESIGNS[design](3).indices(jax.random.fold_in(key, r), 7)) for r in range(8)]
    batches = np.array([G[order].mean(axis=0) for order in orders])
    terms = ((batches - batches.mean(axis=0)) ** 2).sum(axis=1) * 8 / 7
    about_stated = ((batches - G.mean(axis=0)) ** 2).sum(axis=1)
    scale = loop_of("tanh_network").scale
    assert_close(flat(drawn.mean), batches.mean(axis=0), atol=1e-13 * scale, what="mean")
    assert_close(drawn.variance, terms.mean(), atol=1e-13 * scale**2, what="variance")
    of_products = 12.5 * float(drawn.covariance_norm) ** 2 / (8 * 7)
    error = np.sqrt(about_stated.var(ddof=1) / 8 + of_products)
    assert_close(drawn.standard_error, error, atol=1e-13 * scale**2, what="standard error")
    assert_close(drawn.mean_squared_error, about_stated.mean(), atol=1e-13 * scale**2, what="mean squared error")
    assert drawn.num_draws == 8


def test_monte_carlo_does_not_depend_on_the_chunk_size() -> None:
    """Catches keys that count from the start of a chunk, and a last chunk weighted like a full one."""
    g, scale = measured(PROBLEMS["tanh_network"]()), loop_of("tanh_network").scale ** 2
    design = DESIGNS["without_replacement"](3)
    whole, *others = (
        estimators.monte_carlo(design, g, key=jax.random.key(15), num_draws=15, chunk_size=chunk_size)
        for chunk_size in (15, 1, 7, 16)
    )
    for estimate in others:
        assert_close(estimate.variance, whole.variance, atol=1e-13 * scale)
        assert_close(estimate.standard_error, whole.standard_error, atol=1e-13 * scale)
        assert_close(flat(estimate.mean), flat(whole.mean), atol=1e-13 * scale**0.5)
    fresh = estimators.monte_carlo(design, g, key=jax.random.key(16), num_draws=15)
    assert abs(float(fresh.variance - whole.variance)) > 1e-6 * scale, "another key must draw other batches"


@pytest.mark.parametrize("name", ["line_fit", "scalar_gradients", "tanh_network", "diabetes_rows"])
@every_design
def test_curve_follows_the_law_at_every_batch_size(name: str, design: str) -> None:
    """Catches prefixes that are no batches of their size, and a mean or variance off by a factor."""
    g = measured(PROBLEMS[name]())
    curve = estimators.monte_carlo_curve(g, key=jax.random.key(17), num_draws=R, design=design, chunk_size=1024)
    right, wrong = (estimators.squared_error_law(g, design=d) for d in (design, other(design)))
    random = right.variance > 1e-12 * right.mean[0] ** 2
    z = (curve.variance - right.mean)[random] / np.sqrt(right.variance[random] / R)
    assert np.abs(z).max() < MAX_Z, f"z = {z}"
    z = right.of_mean(R).z_scores(curve.squared_mean_error)[random]
    assert np.abs(z).max() < MAX_Z, f"z of the mean = {z}"
    large = np.arange(g.count // 2, g.count - 1)  # N/2 < M < N
    control = (curve.variance - wrong.mean)[large] / np.sqrt(wrong.variance[large] / R)
    assert np.abs(control).min() > 2 * MAX_Z, "the other design's law must be rejected at every M > N/2"
    if design == "without_replacement":
        assert abs(curve.variance[-1]) < 1e-13 * g.count * right.mean[0]
        assert abs(curve.squared_mean_error[-1]) < 1e-13 * g.count * right.mean[0]


@every_design
def test_curve_equals_a_loop_over_the_same_orders(design: str) -> None:
    """Catches a recursion for ‖S_M‖² that drifts, and a batch size that is off by one."""
    g, G, key = measured(PROBLEMS["tanh_network"]()), loop_of("tanh_network").gradients, jax.random.key(18)
    curve = estimators.monte_carlo_curve(g, key=key, num_draws=20, design=design, chunk_size=6)
    orders = [np.asarray(DESIGNS[design](7).indices(jax.random.fold_in(key, r), 7)) for r in range(20)]
    batch_errors = np.array([[G[order[:M]].mean(axis=0) - G.mean(axis=0) for M in range(1, 8)] for order in orders])
    squared, scale = (batch_errors**2).sum(axis=2), loop_of("tanh_network").scale ** 2
    assert_close(curve.variance, squared.mean(axis=0), atol=1e-13 * scale, what="variance")
    assert_close(curve.standard_error, squared.std(axis=0, ddof=1) / 20**0.5, atol=1e-13 * scale, what="error")
    assert_close(
        curve.squared_mean_error, (batch_errors.mean(axis=0) ** 2).sum(axis=1), atol=1e-13 * scale, what="mean"
    )


@pytest.mark.parametrize("design", ["without_replacement"])
def test_curve_does_not_depend_on_the_chunk_size_nor_on_what_else_is_asked(design: str) -> None:
    g, seen = measured(PROBLEMS["line_fit"]()), []

    def progress(chunks: Iterable[int]) -> Iterable[int]:
        for chunk in chunks:
            seen.append(chunk)
            yield chunk

    whole, *others = (
        estimators.monte_carlo_curve(
            g, key=jax.random.key(19), num_draws=25, design=design, chunk_size=chunk_size, progress=progress
        )
        for chunk_size in (25, 1, 7, 26)
    )
    assert len(seen) == 1 + 25 + 4 + 1
    for curve in others:
        assert_close(curve.variance, whole.variance, atol=1e-13)
        assert_close(curve.squared_mean_error, whole.squared_mean_error, atol=1e-13)
    some = estimators.monte_carlo_curve(g, [3, 1], key=jax.random.key(19), num_draws=25, design=design)
    assert_close(some.variance, whole.variance[[2, 0]], atol=1e-13)
    assert_close(some.squared_mean_error, whole.squared_mean_error[[2, 0]], atol=1e-13)
    assert (some.batch_sizes.tolist(), some.num_draws, some.design) == ([3, 1], 25, design)


def test_z_scores_are_normal_for_a_chi_square() -> None:
    """Catches a score in standard deviations, which takes a squared error at +4σ for one at +8σ or more."""
    z = np.linspace(-1, 4, 11)
    for degrees, tolerance in ((1, 0.2), (4, 0.1), (30, 0.03)):
        observed = scipy.stats.chi2(degrees).ppf(scipy.stats.norm.cdf(z))
        mean, variance = np.full(11, float(degrees)), np.full(11, 2.0 * degrees)
        stated = estimators.SquaredErrorLaw(mean, variance, np.zeros(11))
        assert_close(stated.z_scores(observed), z, atol=tolerance)
        linear = (observed - mean) / np.sqrt(variance)
        assert np.abs(linear - z).max() > 5 * tolerance, "the control must be off"


def test_z_scores_are_zero_where_nothing_is_random() -> None:
    stated = estimators.squared_error_law(measured(PROBLEMS["line_fit"]()))
    assert stated.variance[-1] == 0
    assert stated.z_scores(np.full(4, 1e-30))[-1] == 0


class KilledError(BaseException):
    """Nothing is done about it."""


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_interrupted_draws_go_on_to_the_same_estimate(tmp_path, monkeypatch, how) -> None:
    """Bit for bit, and what was drawn is not drawn again. Catches a sum that forgets, and chunks that are moved."""
    g, design, path = measured(PROBLEMS["line_fit"]()), DESIGNS["with_replacement"](2), tmp_path / "draws.npz"
    options = {"key": jax.random.key(3), "num_draws": 50, "chunk_size": 8, "first_draw": 5}
    expected = estimators.monte_carlo(design, g, **options)
    draw, drawn = _monte_carlo._draw, []

    def some(design, population_size, key, draws):
        if len(drawn) == 4:
            raise KeyboardInterrupt if how == "interrupted" else KilledError
        drawn.append(int(draws[0]))
        return draw(design, population_size, key, draws)

    monkeypatch.setattr(_monte_carlo, "_draw", some)
    monkeypatch.setattr(state_file, "_SHARE", 0)  # write at every chance
    with pytest.raises((KeyboardInterrupt, KilledError)):
        estimators.monte_carlo(design, g, **options, checkpoint=path, checkpoint_every_seconds=1e-9)
    before = len(drawn)
    monkeypatch.setattr(_monte_carlo, "_draw", lambda *a: (drawn.append(int(a[-1][0])), draw(*a))[1])
    for _ in range(2):  # the second time there is nothing left to draw
        found = estimators.monte_carlo(design, g, **options, checkpoint=path)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert [draw for draw in drawn if draw < 2**31] == list(range(5, 55, 8)), "each once, but for the references"
    assert before == 4


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"key": jax.random.key(4)}, "key"),
        ({"num_draws": 21}, "num_draws"),
        ({"chunk_size": 7}, "chunk_size"),
        ({"first_draw": 1}, "first_draw"),
        ({"design": DESIGNS["with_replacement"](1)}, "design"),
        ({"g": measured(PROBLEMS["line_fit_at_optimum"]())}, "gradients"),
    ],
)
def test_draws_of_something_else_are_refused(tmp_path, change, what) -> None:
    given = {"design": DESIGNS["with_replacement"](2), "g": measured(PROBLEMS["line_fit"]()), "key": jax.random.key(3)}
    given |= {"num_draws": 20, "checkpoint": tmp_path / "draws.npz"}
    estimators.monte_carlo(**given)
    content = (tmp_path / "draws.npz").read_bytes()
    with pytest.raises(ValueError, match=f"draws.npz is of another run: {what} is .*; nothing is overwritten"):
        estimators.monte_carlo(**given | change)
    assert (tmp_path / "draws.npz").read_bytes() == content
