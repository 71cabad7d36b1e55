"""Constant-step SGD on quadratic losses, exactly: stationary laws, stability thresholds, random and fixed orders.

On L_i(θ) = ½ (θ − c_i)ᵀH_i(θ − c_i) a step of SGD is a random affine map of θ, and so is an epoch. Two moments of the
map give the mean and the covariance of θ after any number of steps and in the stationary state, with the noise that
grows with the distance from the minimum (H_B differs between batches) included.

    step_law          independent batches of any design
    reshuffled_law    an epoch in a random order, a short last batch included
    fixed_order_law   an epoch in a given order

The approximations of the field stand beside them, to be compared: ``additive_noise`` (the noise of θ* everywhere) and
``ornstein_uhlenbeck`` (that, and continuous time). ``langevin_variance`` is the same for Langevin dynamics, and
``NoisyQuadratic`` a model of training with such noise, in closed form. Imports ``_affine``, ``_langevin``,
``_noisy_quadratic``, ``_quadratics``, ``designs``, ``_validate``, ``_validate_designs``, ``_validate_dynamics``.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from jaxsgd import _validate, _validate_designs, _validate_dynamics
from jaxsgd._affine import AffineLaw, StateLaw, identity_like, numbers, solve
from jaxsgd._langevin import langevin_variance
from jaxsgd._noisy_quadratic import NoisyQuadratic
from jaxsgd._quadratics import (
    Quadratics,
    fixed_order_law,
    mean_weights,
    reshuffled_law,
    rows,
    step_law,
    weighted_covariance,
)
from jaxsgd.designs import Design, Reshuffling

__all__ = [
    "AffineLaw",
    "NoisyQuadratic",
    "Quadratics",
    "StateLaw",
    "additive_noise",
    "fixed_order_law",
    "langevin_variance",
    "ornstein_uhlenbeck",
    "reshuffled_law",
    "reshuffling_bias",
    "simulate_epochs",
    "simulate_steps",
    "stability_threshold",
    "step_law",
]


def stability_threshold(quadratics: Quadratics, design: Design) -> Any:
    """η*, below which, and only there, SGD has a stationary covariance: ρ(E[A ⊗ A]) < 1 for A = I − ηH_B.

    As a map of symmetric matrices, E[A ⊗ A] = I − ηL + η²D with L V = H̄V + VH̄ and D V = E[H_B V H_B]. D and the
    inverse of L keep positive semidefinite matrices so; therefore V = E[AVAᵀ] + Q, that is LV = ηDV + Q/η, is solved by
    a positive definite V for every Q if and only if η ρ(L⁻¹D) < 1, and

        η* = 1 / λ_max(D, L),

    a generalized symmetric eigenvalue problem of size d². With one parameter η* = 2h̄/(h̄² + Var h_B), rational if the
    losses are; with all data in every batch 2/λ_max(H̄).

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
    _validate_dynamics.positive_definite(**{"the mean Hessian of a batch": H.astype(np.float64)})
    D = _kron(H, H) + covariance.reshape(d, d, d, d).transpose(0, 2, 1, 3).reshape(d * d, d * d)
    L = _kronecker_sum(H)
    if d == 1:
        return L.item() / D.item()
    largest = [d * d - 1, d * d - 1]
    return 1 / float(scipy.linalg.eigh(_floats(D), _floats(L), eigvals_only=True, subset_by_index=largest)[0])


def additive_noise(quadratics: Quadratics, design: Design, learning_rate: Any) -> np.ndarray:
    """The covariance if gradients were as noisy everywhere as at θ*: H̄V + VH̄ − ηH̄VH̄ = ηC, shape (d, d).

    C = Cov ĝ(θ*). An approximation, exact where all H_i are equal; it knows nothing of the threshold that batches set.

    >>> from fractions import Fraction
    >>> from jaxsgd import designs
    >>> losses = Quadratics.from_minima([1, 2, 3], [3, 0, -1])
    >>> additive_noise(losses, designs.WithoutReplacement(1), Fraction(1, 4)).item()
    Fraction(1, 2)
    """
    return _lyapunov(quadratics, design, learning_rate, second_order=True)


def ornstein_uhlenbeck(quadratics: Quadratics, design: Design, learning_rate: Any) -> np.ndarray:
    """The covariance of SGD's diffusion approximation with the noise of θ*: H̄V + VH̄ = ηC, shape (d, d).

    C = Cov ĝ(θ*). The limit of small η, and proportional to η times the variance factor of the design: η c_M, not η/M,
    is what linear scaling has to hold fixed.

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

    so −η Cov(g, h)/(2h̄) for one parameter and batches of one. Over an epoch the errors of first order, Σ ĝ_b(θ*), have
    mean zero; of second order, batch b multiplies what batch a < b did before by H_b, which adds η² Σ_{a<b} H_b ĝ_a.
    Batches of an epoch have Cov(H_b, ĝ_a) = −(1/N) Σ H_i g_i/(N−1), whatever their sizes, and there are k(k−1)/2 pairs;
    to first order the epoch contracts by I − ηkH̄, and the quotient is the bias. Each batch is unbiased at a fixed θ:
    the bias is due to θ having seen the epoch's other batches.

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
    _validate_designs.positive(learning_rate=learning_rate)
    N = quadratics.population_size
    factor = numbers([learning_rate, design.scale_factor(N)])
    k = len(design.batch_sizes(N))
    products = (quadratics.hessians * quadratics.gradients(quadratics.minimum())[:, None]).sum(axis=(0, 2)) / N
    return -solve(quadratics.mean_hessian, products) * factor[0] * factor[1] * (k - 1) / (2 * max(N - 1, 1))


def simulate_steps(
    quadratics: Quadratics,
    design: Design,
    learning_rate: float,
    *,
    key: Array,
    num_runs: int,
    num_steps: int,
    start: Any = None,
) -> Float[Array, "r d"]:
    """θ after a number of steps of SGD, in independent runs, shape (num_runs, d).

    Args:
        quadratics: the losses.
        design: any sampling design; a batch of its own for every step of every run.
        learning_rate: η.
        key: for the batches.
        num_runs: how many runs.
        num_steps: how many steps of each.
        start: θ before the first step, shape (d,) for all runs or (num_runs, d); by default the minimum θ*.
    """
    _validate.at_least(0, num_steps=num_steps)
    return _simulate(quadratics, design, learning_rate, "weights", key, num_runs, num_steps, start)


def simulate_epochs(
    quadratics: Quadratics,
    design: Reshuffling,
    learning_rate: float,
    *,
    key: Array,
    num_runs: int,
    num_epochs: int,
    start: Any = None,
) -> Float[Array, "r d"]:
    """θ after a number of epochs of randomly reshuffled SGD, in independent runs, shape (num_runs, d).

    Args:
        quadratics: the losses.
        design: the batch size, and whether a short last batch is used or dropped.
        learning_rate: η.
        key: for the orders.
        num_runs: how many runs.
        num_epochs: how many epochs of each.
        start: θ before the first epoch, shape (d,) for all runs or (num_runs, d); by default the minimum θ*.
    """
    _validate.at_least(0, num_epochs=num_epochs)
    return _simulate(quadratics, design, learning_rate, "epoch_weights", key, num_runs, num_epochs, start)


def _simulate(
    quadratics: Quadratics,
    design: Any,
    learning_rate: float,
    method: str,
    key: Array,
    num_runs: int,
    num_rounds: int,
    start: Any,
) -> Float[Array, "r d"]:
    _validate_designs.positive(learning_rate=learning_rate)
    _validate.random_key(key=key)
    _validate.positive_integer(num_runs=num_runs)
    d = quadratics.linear.shape[1]
    begin = np.asarray(quadratics.minimum() if start is None else start, dtype=np.float64)
    begin = begin if begin.ndim == 2 else np.tile(begin, (num_runs, 1))
    _validate_dynamics.shape((num_runs, d), start=begin)
    R = jnp.asarray(_floats(rows(quadratics)), float)
    return _runs(design, method, R, jnp.asarray(begin, float), jnp.asarray(learning_rate, float), key, num_rounds)


@partial(jax.jit, static_argnames=("design", "method"))
def _runs(
    design: Any,
    method: str,
    R: Float[Array, "n f"],
    start: Float[Array, "r d"],
    learning_rate: Float[Array, ""],
    key: Array,
    num_rounds: Any,
) -> Float[Array, "r d"]:
    """Every run from its own key, the rounds of a run from ``fold_in(key, t)``; one compilation for any length."""
    N, d = R.shape[0], start.shape[1]

    def step(theta: Array, weights: Array) -> tuple[Array, None]:
        F = jnp.reshape(weights @ R, (d, d + 1))
        return theta + learning_rate * (F[:, :-1] @ theta + F[:, -1]), None

    def one_run(run_key: Array, theta: Array) -> Array:
        def one_round(t: Array, theta: Array) -> Array:
            batches = jnp.reshape(getattr(design, method)(jax.random.fold_in(run_key, t), N), (-1, N))
            return jax.lax.scan(step, theta, batches)[0]

        return jax.lax.fori_loop(0, num_rounds, one_round, theta)

    return jax.vmap(one_run)(jax.random.split(key, start.shape[0]), start)


def _lyapunov(quadratics: Quadratics, design: Design, learning_rate: Any, *, second_order: bool) -> np.ndarray:
    """V of (L − ηH̄ ⊗ H̄) vec V = η vec C, or without the second-order term."""
    _validate_designs.positive(learning_rate=learning_rate)
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


def _floats(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
