"""Heavy-ball momentum on quadratics: exact laws against closed forms, enumeration and SGD at the rate η/(1 − β)."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from jaxsgd import designs, dynamics
from tests.dynamics.test_dynamics import moments_of, planar, sgd

F = Fraction
EQUAL = dynamics.Quadratics.from_minima([2, 2, 2, 2], [3, 0, -1, 7])
ETA, BETA = F(1, 10), F(3, 4)


def heavy_ball(quadratics: dynamics.Quadratics, state: np.ndarray, weights: Any, eta: Any, beta: Any) -> np.ndarray:
    """One step, Δ' = βΔ − ηĝ(θ) and θ' = θ + Δ'."""
    theta, change = state[: len(state) // 2], state[len(state) // 2 :]
    change = beta * change + (sgd(quadratics, theta, weights, eta) - theta)
    return np.concatenate([theta + change, change])


def test_the_law_is_that_of_the_enumerated_batches() -> None:
    """Catches a wrong block, and a noise that θ and Δ do not share; the Hessians do not commute."""
    losses, design = planar(4), designs.WithoutReplacement(2)
    points = [np.zeros(4, dtype=int) * F(1), *(np.eye(4, dtype=int) * F(1))]
    maps = []
    for probability, weights in design.support(4):
        moved = [heavy_ball(losses, point, weights, ETA, BETA) for point in points]
        maps.append((probability, np.stack([*(p - moved[0] for p in moved[1:]), moved[0]], axis=1)))
    law = dynamics.momentum_law(losses, design, ETA, BETA)
    mean, covariance = moments_of(maps)
    assert (law.mean == mean).all()
    assert (law.covariance == covariance).all()


@pytest.mark.parametrize("beta", [F(1, 2), F(9, 10)])
@pytest.mark.parametrize("M", [1, 3])
def test_closed_form_with_equal_hessians(beta: Fraction, M: int) -> None:
    """Var θ = ηC / (h (1 − β) (2 − ηh/(1 + β))), in rational numbers."""
    h, C = 2, 4 * F(np.var([3, 0, -1, 7]) * 16) / 16 / M
    found = dynamics.momentum_law(EQUAL, designs.WithReplacement(M), ETA, beta).stationary()
    assert found.covariance[0, 0] == ETA * C / (h * (1 - beta) * (2 - ETA * h / (1 + beta)))
    assert list(found.mean) == [F(9, 4), 0]


def theta_variance(quadratics: dynamics.Quadratics, M: int, rate: Any, beta: Any) -> Any:
    """Of θ, at the rate η(1 − β) with momentum, and at η without."""
    design = designs.WithReplacement(M)
    if not beta:
        return np.diag(dynamics.step_law(quadratics, design, rate).stationary().covariance)
    law = dynamics.momentum_law(quadratics, design, rate * (1 - beta), beta).stationary()
    return np.diag(law.covariance)[: quadratics.linear.shape[1]]


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_to_first_order_momentum_is_sgd_at_a_larger_rate(beta: float) -> None:
    """The stationary variances differ by a part that is of the order η, and by none that 1/(1 − β) would make."""
    losses = planar(5).floats()
    off = [theta_variance(losses, 1, rate, beta) / theta_variance(losses, 1, rate, 0) - 1 for rate in (0.002, 0.001)]
    np.testing.assert_allclose(off[0] / off[1], 2, rtol=0.02)
    assert (np.abs(off[1]) < 0.02).all()
    assert (off[1] < 0).all()  # quieter, beyond first order


def test_the_batch_size_is_not_multiplied() -> None:
    """Catches M/(1 − β) as the effective batch: at the same η/(1 − β) that would have a tenth of the variance."""
    rate, beta = F(1, 10_000), F(9, 10)
    found = theta_variance(EQUAL, 4, rate, beta)[0] / theta_variance(EQUAL, 4, rate, 0)[0]
    assert abs(found - 1) < F(1, 5_000)
    assert abs(theta_variance(EQUAL, 40, rate, 0)[0] / theta_variance(EQUAL, 4, rate, 0)[0] - F(1, 10)) < F(1, 1000)


def test_progress_is_that_of_sgd_at_a_larger_rate() -> None:
    """The slower of the two modes of each parameter contracts by 1 − ηh/(1 − β), to first order."""
    eta, beta, h = F(1, 1000), F(9, 10), 2
    law = dynamics.momentum_law(EQUAL, designs.WithReplacement(1), eta, beta)
    slow, fast = sorted(np.linalg.eigvals(law.mean[:, :-1].astype(float)).real, reverse=True)
    assert slow == pytest.approx(float(1 - eta * h / (1 - beta)), abs=float(20 * (eta * h / (1 - beta)) ** 2))
    assert slow * fast == pytest.approx(float(beta), rel=1e-12)


def test_floating_point_and_rational_numbers_agree() -> None:
    exact = dynamics.momentum_law(EQUAL, designs.WithoutReplacement(2), ETA, BETA).stationary()
    for losses, beta in ((EQUAL.floats(), BETA), (EQUAL, float(BETA))):
        found = dynamics.momentum_law(losses, designs.WithoutReplacement(2), ETA, beta).stationary()
        np.testing.assert_allclose(found.covariance, exact.covariance.astype(float), rtol=1e-10)
