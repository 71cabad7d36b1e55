"""Ratios of signal to noise, coordinate by coordinate, against exact numbers and enumeration."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

import jaxsgd
from jaxsgd import moments, problems, signal_to_noise
from tests.support.registry import gradients_given, measured

LINE = measured(problems.line_fit())


def given(rows: Any) -> jaxsgd.PerExampleGradients:
    return measured(gradients_given(rows))


@pytest.mark.parametrize("gradients", [LINE, moments.gradient_moments(*problems.line_fit(), per_coordinate=True)])
def test_coordinates_of_the_line(gradients: Any) -> None:
    ratios = signal_to_noise.coordinate_snr(gradients, population_size=4)
    np.testing.assert_allclose([ratios["m"], ratios["b"]], [1 / 13, 1 / 11], rtol=1e-12)


def test_coordinates_are_unbiased_part_by_part() -> None:
    parts = []
    for chosen in itertools.combinations(range(4), 2):
        g = LINE.take(np.array(chosen))
        s = jax.tree.map(lambda v: v * 3 / 4, g.variance(ddof=1))
        r = signal_to_noise.coordinate_snr(g, population_size=4)
        parts.append([float(r[k] * s[k]) if float(s[k]) else 0.0 for k in ("m", "b")])
    assert np.isfinite(parts).all()
    same = [i for i, chosen in enumerate(itertools.combinations(range(4), 2)) if chosen == (1, 3)]
    parts[same[0]][1] = 4.0  # ∂/∂b is −2 in both, so the ratio is 4/0
    np.testing.assert_allclose(np.mean(parts, axis=0), [1, 1 / 4], rtol=1e-12)


def test_evidence_of_noise_without_signal_is_that_of_f_statistics() -> None:
    """E 1 − F(1, m − 1) = −2/(m − 3), and not 0."""
    m, P = 12, 20_000
    evidence = float(signal_to_noise.early_stopping_evidence(given(jax.random.normal(jax.random.key(0), (m, P)))))
    error = np.sqrt(2 * (m - 1) ** 2 * (m - 2) / ((m - 3) ** 2 * (m - 5)) / P)
    assert abs(evidence + 2 / (m - 3)) < 4 * error < 2 / (m - 3)
    rows = jax.random.normal(jax.random.key(0), (m, 100))
    by_hand = 1 - m * np.mean(np.mean(rows, axis=0) ** 2 / np.var(rows, axis=0, ddof=1))
    np.testing.assert_allclose(signal_to_noise.early_stopping_evidence(given(rows)), by_hand, rtol=1e-12)
