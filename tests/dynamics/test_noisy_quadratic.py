"""The noisy quadratic against its recursion in rational numbers, against ``step_law``, and against a fine search."""

from fractions import Fraction

import numpy as np
import pytest

from jaxsgd import designs, dynamics

F = Fraction
MODEL = dynamics.NoisyQuadratic((1.0, 0.5, 0.25), (0.5, 2.0, 1.0), (3.0, 1.0, 2.0))


def recursion(model, batch_size, rate, num_steps):
    """E θ_i² after every step, by E θ²(t+1) = (1 − αh)² E θ²(t) + α² c/B, exactly."""
    moments = [F(value) for value in model.second_moments]
    states = [moments]
    for _ in range(num_steps):
        both = zip(model.curvatures, model.noise, moments, strict=True)
        moments = [(1 - rate * F(h)) ** 2 * m + rate**2 * F(c) / batch_size for h, c, m in both]
        states.append(moments)
    return states


@pytest.mark.parametrize(("batch_size", "rate"), [(1, F(1, 8)), (7, F(3, 2)), (64, F(1))])
def test_closed_form_is_the_recursion(batch_size: int, rate: Fraction) -> None:
    """Loss and noise scale after each of twelve steps; α = 1 makes the first coordinate forget at once."""
    steps = np.arange(13)
    loss = MODEL.expected_loss(batch_size, float(rate), steps)
    scale = MODEL.noise_scale(batch_size, float(rate), steps)
    h = [F(value) for value in MODEL.curvatures]
    noise = sum(a * F(c) for a, c in zip(h, MODEL.noise, strict=True))
    for t, moments in enumerate(recursion(MODEL, batch_size, rate, 12)):
        expected = sum(a * m for a, m in zip(h, moments, strict=True)) / 2
        curvature = sum(a**3 * m for a, m in zip(h, moments, strict=True))
        assert loss[t] == pytest.approx(float(expected), rel=1e-13)
        assert scale[t] == pytest.approx(float(noise / curvature), rel=1e-12)


def test_equal_hessians_make_least_squares_a_noisy_quadratic() -> None:
    """h = 2 and minima ±1: gradients at the minimum have variance 4, and B draws with replacement 4/B."""
    losses = dynamics.Quadratics.from_minima([2, 2], [1, -1])
    model = dynamics.NoisyQuadratic((2.0,), (4.0,), (9.0,))
    for size in (1, 3):
        law = dynamics.step_law(losses, designs.WithReplacement(size), F(1, 5))
        state = law.iterate(np.array([F(3)]), 4)
        expected = state.second_moment(np.array([F(0)])).item()  # E θ², and ½ h E θ² is the loss
        assert model.expected_loss(size, 0.2, 4) == pytest.approx(float(expected), rel=1e-13)


def test_shapes_broadcast() -> None:
    loss = MODEL.expected_loss(2, np.array([[0.1], [0.2]]), np.arange(3))
    assert loss.shape == (2, 3)
    assert loss[1, 2] == pytest.approx(float(MODEL.expected_loss(2, 0.2, 2)), rel=1e-14)
    assert MODEL.steps_to(1.0, np.inf, np.full((2, 3), 0.3)).shape == (2, 3)


def test_steps_to_are_where_the_loss_is_the_target() -> None:
    """And infinite exactly where the stationary loss ½ Σ h_i v_i is not below it."""
    rates = np.geomspace(0.001, 1.9, 30)
    steps = MODEL.steps_to(0.5, 2, rates)
    stationary = MODEL.expected_loss(2, rates, np.inf)
    h, c = np.array(MODEL.curvatures), np.array(MODEL.noise)
    by_hand = 0.5 * (rates[:, None] * c / (2 * (2 - rates[:, None] * h))).sum(axis=1)
    np.testing.assert_allclose(stationary, by_hand, rtol=1e-13)
    np.testing.assert_array_equal(np.isinf(steps), by_hand >= 0.5)
    assert 5 < np.isfinite(steps).sum() < 30
    found = MODEL.expected_loss(2, rates, np.where(np.isfinite(steps), steps, 0))
    np.testing.assert_allclose(found[np.isfinite(steps)], 0.5, rtol=1e-9)
    assert MODEL.steps_to(100.0, 2, 0.1) < 1e-12, "there from the start"


@pytest.mark.parametrize("batch_size", [1.0, 30.0, np.inf])
def test_fewest_steps_is_the_minimum_of_a_fine_grid(batch_size: float) -> None:
    model = dynamics.NoisyQuadratic.of_dimension(20)
    steps, rate = model.fewest_steps(0.3, batch_size)
    fine = model.steps_to(0.3, batch_size, np.linspace(1e-4, 1.99999, 3000))
    assert fine.min() * (1 - 1e-4) < steps < fine.min() * (1 + 1e-6)
    assert model.steps_to(0.3, batch_size, rate) == pytest.approx(steps, rel=1e-12)


def test_scaling_is_perfect_and_then_ends() -> None:
    """In c/B alone: half the noise is twice the batch. Small batches: examples count; large ones: steps count."""
    model = dynamics.NoisyQuadratic.of_dimension(50)
    halved = dynamics.NoisyQuadratic(model.curvatures, tuple(c / 2 for c in model.noise), model.second_moments)
    assert halved.fewest_steps(0.2, 4)[0] == pytest.approx(model.fewest_steps(0.2, 8)[0], rel=1e-9)
    small, twice, large, infinite = (model.fewest_steps(0.2, B)[0] for B in (0.05, 0.1, 1e5, np.inf))
    assert small / twice == pytest.approx(2, rel=0.02)
    assert large / infinite == pytest.approx(1, rel=0.02)
