"""Steps against examples: exact recovery, standard errors and intervals held by simulation and by rational numbers."""

from fractions import Fraction

import numpy as np
import pytest

from jaxsgd.batch_size import _tradeoff

SIZES = np.array([1, 3, 10, 30, 100, 300, 1000])
NUM_FITS = 1000


def hyperbola(sizes, min_steps=120.0, critical=25.0):
    return min_steps * (1 + critical / np.asarray(sizes, float))


def noisy(spread, sizes=SIZES, seed=0, num_fits=NUM_FITS):
    """Steps with independent relative errors of mean zero."""
    drawn = np.random.default_rng(seed).standard_normal((num_fits, len(sizes)))
    return hyperbola(sizes) * (1 + spread * drawn)


def fits(spread, sizes=SIZES, **options):
    return [_tradeoff.fit_tradeoff(sizes, steps, **options) for steps in noisy(spread, sizes)]


def test_exact_recovery() -> None:
    """Every point is on the hyperbola of McCandlish et al., in both forms, and the fit finds it."""
    fit = _tradeoff.fit_tradeoff(SIZES, hyperbola(SIZES))
    np.testing.assert_allclose([fit.min_steps, fit.min_examples, fit.critical_batch_size], [120, 3000, 25], rtol=1e-11)
    np.testing.assert_allclose([fit.low, fit.high], 25, rtol=1e-7)  # a root of ε apart: residuals are roundings
    S, E = fit.steps(SIZES), fit.examples(SIZES)
    np.testing.assert_allclose((S / fit.min_steps - 1) * (E / fit.min_examples - 1), 1, rtol=1e-9)
    np.testing.assert_allclose(E, SIZES * S, rtol=1e-13)
    assert (fit.steps(25) / 240, fit.examples(25) / 6000) == pytest.approx((1, 1), rel=1e-12)
    assert np.abs(fit.relative_residuals).max() < 1e-13


def test_two_points_with_known_errors_are_the_line_through_them() -> None:
    """Rational: S(1) = 13, S(4) = 7 is 5 + 8/B; Var follows from the two relative errors by hand."""
    fit = _tradeoff.fit_tradeoff([1, 4], [13, 7], relative_errors=[0.1, 0.2])
    assert (fit.min_steps, fit.min_examples) == pytest.approx((5, 8), rel=1e-12)
    first, second = Fraction(13, 10) ** 2, Fraction(7, 5) ** 2  # variances of the two numbers of steps
    steps = first / 9 + second * 16 / 9  # S_min = (4 S(4) − S(1))/3
    examples = (first + second) * 16 / 9  # E_min = 4 (S(1) − S(4))/3
    covariance = -(first * 4 + second * 16) / 9
    expected = np.array([[steps, covariance], [covariance, examples]], float)
    np.testing.assert_allclose(fit.covariance, expected, rtol=1e-12)
    assert (fit.min_steps_error, fit.min_examples_error) == pytest.approx(np.sqrt(np.diag(expected)), rel=1e-12)


def test_fieller_ends_solve_their_equation() -> None:
    """At both ends Ê − BŜ is q of its standard deviations from 0."""
    fit = _tradeoff.fit_tradeoff([1, 4, 16], [13, 7, 5.6], relative_errors=[0.05, 0.05, 0.05])
    for end in (fit.low, fit.high):
        direction = np.array([-end, 1])
        z = direction @ [fit.min_steps, fit.min_examples] / np.sqrt(direction @ fit.covariance @ direction)
        assert abs(z) == pytest.approx(1.959963984540054, rel=1e-9)
    assert fit.low < fit.critical_batch_size < fit.high


def test_units_do_not_matter() -> None:
    """Examples in thousands, or steps in epochs, change the numbers by their unit only."""
    steps = noisy(0.1)[0]
    fit = _tradeoff.fit_tradeoff(SIZES, steps)
    other = _tradeoff.fit_tradeoff(SIZES * 1e9, steps / 7)
    np.testing.assert_allclose(other.min_steps * 7, fit.min_steps, rtol=1e-9)
    for name in ("critical_batch_size", "low", "high"):
        np.testing.assert_allclose(getattr(other, name) / 1e9, getattr(fit, name), rtol=1e-9)
    np.testing.assert_allclose(other.relative_residuals, fit.relative_residuals, rtol=0, atol=1e-9)


def test_infinite_batches_are_allowed() -> None:
    """1/c_M is infinite at M = N without replacement; the point says what S_min is."""
    sizes = np.append(SIZES, np.inf)
    fit = _tradeoff.fit_tradeoff(sizes, hyperbola(sizes))
    assert fit.steps(np.inf) == pytest.approx(120, rel=1e-11)


def test_estimates_are_centered_and_standard_errors_are_their_spread() -> None:
    """Catches weights 1/S² from the data, which at a spread of 15% are low by 20 standard errors."""
    found = fits(0.15)
    for name, true in (("min_steps", 120.0), ("min_examples", 3000.0)):
        values = np.array([getattr(fit, name) for fit in found])
        error = values.std(ddof=1) / np.sqrt(NUM_FITS)
        assert abs(values.mean() - true) < 4 * error, f"{name}: {(values.mean() - true) / error:.1f} standard errors"
        claimed = np.array([getattr(fit, f"{name}_error") ** 2 for fit in found])
        # the sample variance of nearly normal estimates has relative standard error √(2/R)
        assert abs(claimed.mean() / values.var(ddof=1) - 1) < 0.12
    naive = [_unweighted_by_fit(steps) for steps in noisy(0.15)]
    values = np.array(naive)
    assert (values.mean() - 120) / (values.std(ddof=1) / np.sqrt(NUM_FITS)) < -6, "the control"


def _unweighted_by_fit(steps):
    """S_min with weights 1/S², the data's own."""
    X = np.stack([np.ones(len(SIZES)), 1 / SIZES], axis=1) / steps[:, None]
    return np.linalg.lstsq(X, np.ones(len(SIZES)))[0][0]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_cover_as_often_as_they_say(known: bool, level: float) -> None:
    """Within binomial error; normal quantiles with five degrees of freedom would cover 89%, not 95%."""
    spread = 0.05
    errors = np.full(len(SIZES), spread) if known else None
    covered = np.mean([f.low <= 25 <= f.high for f in fits(spread, relative_errors=errors, confidence_level=level)])
    assert abs(covered - level) < 4 * np.sqrt(level * (1 - level) / NUM_FITS), f"covers {covered:.3f}"


def test_small_batches_alone_bound_the_critical_size_from_below_only() -> None:
    """All in the range where doubling the batch halves the steps: S_min is not significant, and the data say so."""
    sizes = np.array([1, 1.5, 2, 3, 4]) / 10
    found = fits(0.05, sizes)
    unbounded = [fit for fit in found if fit.high == np.inf]
    assert 0.5 < len(unbounded) / NUM_FITS < 1
    covered = np.mean([fit.low <= 25 <= fit.high for fit in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / NUM_FITS), f"covers {covered:.3f}"
    negative = [fit for fit in found if fit.min_steps <= 0]
    assert negative
    assert all(fit.critical_batch_size == fit.high == np.inf for fit in negative)


def test_large_batches_alone_bound_it_from_above_only() -> None:
    sizes = np.array([1000, 2000, 3000, 5000, 10000])
    found = fits(0.05, sizes)
    assert np.mean([fit.low == 0 for fit in found]) > 0.5
    assert any(fit.min_examples < 0 and fit.critical_batch_size == 0 for fit in found)
    covered = np.mean([fit.low <= 25 <= fit.high for fit in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / NUM_FITS), f"covers {covered:.3f}"


def test_steps_that_no_hyperbola_explains() -> None:
    """Steps that fall faster than 1/B leave S_min significantly negative: no finite size is consistent."""
    sizes = np.array([1.0, 2.0, 3.0, 4.0])
    fit = _tradeoff.fit_tradeoff(sizes, 10 / sizes - 1, relative_errors=np.full(4, 1e-3))
    assert (fit.low, fit.critical_batch_size, fit.high) == (np.inf, np.inf, np.inf)
    rising = _tradeoff.fit_tradeoff(sizes, 10 - 5 / sizes, relative_errors=np.full(4, 1e-3))
    assert (rising.low, rising.critical_batch_size, rising.high) == (0, 0, 0)


def test_steps_to_target_is_exact_for_exponential_decay() -> None:
    """log L is linear in the steps, so any records give the same; a plain linear interpolation does not."""
    for every in (1, 7, 30):
        steps = np.arange(0, 121, every)
        losses = 3 * np.exp(-steps / 40)
        assert _tradeoff.steps_to_target(steps, losses, 1.0) == pytest.approx(40 * np.log(3), rel=1e-12)
    assert abs(np.interp(-1.0, -losses, steps) - 40 * np.log(3)) > 1


def test_steps_to_target_at_the_edges() -> None:
    steps = [0, 10, 20, 30]
    losses = [[1, 1, 1, 1], [4, 2, 4, 1], [4, 3, 3, 3], [4, np.inf, np.nan, np.nan], [4, np.inf, 1, 1], [4, 4, 2, 1]]
    found = _tradeoff.steps_to_target(steps, losses, 2.0)
    np.testing.assert_allclose(found, [0, 10, np.inf, np.inf, 20, 20])
    assert _tradeoff.steps_to_target([5], [1.0], 2.0) == 5
    shaped = _tradeoff.steps_to_target(steps, np.reshape(losses, (2, 3, 4)), 2.0)
    np.testing.assert_array_equal(shaped, found.reshape(2, 3))
