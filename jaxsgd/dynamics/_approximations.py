"""When SGD on quadratics is stable, and what the field's approximations make of its stationary law.

Stability. As a map of symmetric matrices, for A = I − ηH_B, E[A ⊗ A] = I − ηL + η²D with L V = H̄V + VH̄ and
D V = E[H_B V H_B]. D and the inverse of L keep positive semidefinite matrices so; therefore V = E[AVAᵀ] + Q, that is
LV = ηDV + Q/η, is solved by a positive definite V for every Q if and only if η ρ(L⁻¹D) < 1, and η* = 1/λ_max(D, L), a
generalized symmetric eigenvalue problem of size d².

Bias of reshuffling. Over an epoch the errors of first order, Σ ĝ_b(θ*), have mean zero; of second order, batch b
multiplies what batch a < b did before by H_b, which adds η² Σ_{a<b} H_b ĝ_a. Batches of an epoch have Cov(H_b, ĝ_a) =
−(1/N) Σ H_i g_i/(N−1), whatever their sizes, and there are k(k−1)/2 pairs; to first order the epoch contracts by I −
ηkH̄, and the quotient is the bias. Each batch is unbiased at a fixed θ: the bias is due to θ having seen the epoch's
other batches.

The exact laws are affine maps; what stands here is what is said of them without iterating one.
"""

from typing import Any

import numpy as np
import scipy.linalg

from jaxsgd._core import validate
from jaxsgd.designs import Design, Reshuffling
from jaxsgd.dynamics._affine_map import floats, identity_like, numbers, solve
from jaxsgd.dynamics._quadratics import Quadratics, mean_weights, require_positive_definite, weighted_covariance


def stability_threshold(quadratics: Quadratics, design: Design) -> Any:
    """η*, below which, and only there, SGD has a stationary covariance: ρ(E[A ⊗ A]) < 1 for A = I − ηH_B.

    It is 1/λ_max(D, L), a generalized symmetric eigenvalue problem of size d², for L V = H̄V + VH̄ and D V = E[H_B V
    H_B]. With one parameter η* = 2h̄/(h̄² + Var h_B), rational if the losses are; with all data in every batch
    2/λ_max(H̄).

    Args:
        quadratics: the losses.
        design: any sampling design; H̄ stands for E H_B.

    Raises:
        ValueError: unless E H_B is positive definite.

    References:
        R. Mulayoff and T. Michaeli, "Exact mean square linear stability analysis for SGD", COLT 2024,
        arXiv:2306.07850.

    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> [str(stability_threshold(losses, designs.WithoutReplacement(M))) for M in (1, 2, 3)]
    ['6/7', '24/25', '1']
    """
    d = quadratics.linear.shape[1]
    H, covariance = _batch_hessian(quadratics, design)
    require_positive_definite(**{"the mean Hessian of a batch": H.astype(np.float64)})
    D = _kron(H, H) + covariance.reshape(d, d, d, d).transpose(0, 2, 1, 3).reshape(d * d, d * d)
    L = _kronecker_sum(H)
    if d == 1:
        return L.item() / D.item()
    largest = [d * d - 1, d * d - 1]
    return 1 / float(scipy.linalg.eigh(floats(D), floats(L), eigvals_only=True, subset_by_index=largest)[0])


def additive_noise(quadratics: Quadratics, design: Design, learning_rate: Any) -> np.ndarray:
    """The covariance if gradients were as noisy everywhere as at θ*: H̄V + VH̄ − ηH̄VH̄ = ηC, shape (d, d).

    C = Cov ĝ(θ*). It is an approximation, exact where all H_i are equal; it knows nothing of the threshold that batches
    set.

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> additive_noise(losses, designs.WithoutReplacement(1), Fraction(1, 4)).item()
    Fraction(1, 2)
    """
    return _lyapunov(quadratics, design, learning_rate, second_order=True)


def ornstein_uhlenbeck(quadratics: Quadratics, design: Design, learning_rate: Any) -> np.ndarray:
    """The covariance of SGD's diffusion approximation with the noise of θ*: H̄V + VH̄ = ηC, shape (d, d).

    C = Cov ĝ(θ*). V is the limit of small η, and proportional to η times the variance factor of the design: η c_M, not
    η/M, is what linear scaling has to hold fixed.

    References:
        S. Mandt, M. Hoffman and D. Blei, "Stochastic gradient descent as approximate Bayesian inference", JMLR 18,
        2017. S. Smith and Q. Le, "A Bayesian perspective on generalization and stochastic gradient descent", ICLR 2018.

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> ornstein_uhlenbeck(losses, designs.WithoutReplacement(1), Fraction(1, 4)).item()
    Fraction(3, 8)
    """
    return _lyapunov(quadratics, design, learning_rate, second_order=False)


def reshuffling_bias(quadratics: Quadratics, design: Reshuffling, learning_rate: Any) -> np.ndarray:
    """Where epochs of random reshuffling end on average, less θ*, to first order in η, shape (d,).

        −η (k−1)/(2(N−1)) H̄⁻¹ (1/N) Σ H_i g_i(θ*),    for k batches in an epoch,

    so −η Cov(g, h)/(2h̄) for one parameter and batches of one. Each batch is unbiased at a fixed θ: the bias is due to
    θ having seen the epoch's other batches.

    References:
        K. Mishchenko, A. Khaled and P. Richtárik, "Random reshuffling: simple analysis with vast improvements",
        NeurIPS 2020, and B. Ying, K. Yuan, S. Vlaski and A. Sayed, "Stochastic learning under random reshuffling with
        constant step-sizes", IEEE TSP 67, 2019, for the orders in η.

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> reshuffling_bias(losses, designs.Reshuffling(1), Fraction(1, 256)).item()
    Fraction(-1, 512)
    """
    validate.positive(learning_rate=learning_rate)
    N = quadratics.population_size
    factor = numbers([learning_rate, design.scale_factor(N)])
    k = len(design.batch_sizes(N))
    products = (quadratics.hessians * quadratics.gradients(quadratics.minimum())[:, None]).sum(axis=(0, 2)) / N
    return -solve(quadratics.mean_hessian, products) * factor[0] * factor[1] * (k - 1) / (2 * max(N - 1, 1))


def _lyapunov(quadratics: Quadratics, design: Design, learning_rate: Any, *, second_order: bool) -> np.ndarray:
    """V of (L − ηH̄ ⊗ H̄) vec V = η vec C, or without the second-order term."""
    validate.positive(learning_rate=learning_rate)
    eta = numbers(learning_rate).item()
    quadratics = quadratics if quadratics.linear.dtype == object and not isinstance(eta, float) else quadratics.floats()
    eta = eta if quadratics.linear.dtype == object else float(eta)
    N, d = quadratics.linear.shape
    C = weighted_covariance(design.weight_covariance(N), quadratics.gradients(quadratics.minimum()))
    H, _ = _batch_hessian(quadratics, design)
    operator = _kronecker_sum(H) - eta * _kron(H, H) if second_order else _kronecker_sum(H)
    return numbers(solve(operator, eta * C.reshape(d * d)).reshape(d, d))


def _batch_hessian(quadratics: Quadratics, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """E H_B, shape (d, d), and Cov(vec H_B), shape (d², d²), of H_B = Σ w_i H_i."""
    N, d = quadratics.linear.shape
    flat = quadratics.hessians.reshape(N, d * d)
    mean = (mean_weights(quadratics, design) @ flat).reshape(d, d)
    return mean, weighted_covariance(design.weight_covariance(N), flat)


def _kron(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """A ⊗ B, for rational numbers too."""
    d = len(A)
    return (A[:, None, :, None] * B[None, :, None, :]).reshape(d * d, d * d)


def _kronecker_sum(H: np.ndarray) -> np.ndarray:
    """L = H ⊗ I + I ⊗ H, the matrix of V ↦ HV + VH."""
    I = identity_like(H)
    return _kron(H, I) + _kron(I, H)
