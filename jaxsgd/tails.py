"""How heavy the tails of a sample are, and why an index below 2 need not mean that a variance is infinite."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd._core import units, validate
from jaxsgd._core.meshes import on_any_mesh

__all__ = ["hill_index", "kesten_index", "stable_index"]


@on_any_mesh
def stable_index(samples: Float[Array, "n ..."], *, block_size: int) -> Float[Array, ""]:
    """The index α of a strictly stable law, from how fast sums of its samples grow: α < 2 are heavy tails.

    With Y the sums of K consecutive samples, 1/α̂ = (mean log|Y| − mean log|X|)/log K, since Y is distributed as
    K^(1/α) X. For vectors, |·| is the norm. It is unbiased for 1/α if the law is symmetric and strictly stable.

    If it is not stable, it says nothing about tails: for any law of mean 0 with a finite standard deviation σ, as K
    grows, 1/α̂ → ½ + (log σ + E log|Z| − E log|X|)/log K with Z standard normal, E log|Z| = −(γ + log 2)/2. A mixture
    of normal samples of different scale has all its moments and α̂ < 1: pooling the coordinates of a gradient makes
    such a mixture.

    Args:
        samples: n samples along the first axis, n a multiple of ``block_size``, of mean 0.
        block_size: K, at least 2.

    Raises:
        TypeError, ValueError: if ``samples`` is no array of floating-point numbers, n is no multiple of
            ``block_size``, or a sample is not finite.

    References:
        M. Mohammadi, A. Mohammadpour, H. Ogata, "On estimating the tail index and the spectral measure of multivariate
        α-stable distributions", Metrika 78, 2015, corollary 2.4, used for gradients by U. Şimşekli, L. Sagun, M.
        Gürbüzbalaban, ICML 2019.

    >>> import jax
    >>> samples = jax.random.normal(jax.random.key(0), (100_000,))
    >>> round(float(stable_index(samples, block_size=100)), 1)
    2.0
    """
    validate.at_least(2, block_size=block_size)
    validate.floating_leaves(samples=samples)
    validate.leading_axis(samples=samples)
    if samples.shape[0] % block_size:
        raise ValueError(f"the number of samples must be a multiple of {block_size}, got {samples.shape[0]}")
    validate.finite_if_known(samples=samples)
    rows = samples.reshape(samples.shape[0], -1) / units.near(samples)  # or squares may leave their range
    sums = rows.reshape(-1, block_size, rows.shape[1]).sum(axis=1)
    growth = _log_norms(sums).mean() - _log_norms(rows).mean()
    return np.log(block_size) / growth


@on_any_mesh
def hill_index(samples: Float[Array, " n"], *, num_largest: int) -> Float[Array, ""]:
    """Hill's estimate of the index of a Pareto tail from the k largest of n numbers.

    With X_(1) ≥ X_(2) ≥ …, α̂ = k/Σ_{i≤k} log(X_(i)/X_(k+1)). For Pareto numbers, k/α̂ has exactly the law Gamma(k,
    1/α), of mean k/α and variance k/α².

    Args:
        samples: numbers, the k + 1 largest of which are positive.
        num_largest: k, less than n.

    Raises:
        TypeError, ValueError: if ``samples`` is no vector of floating-point numbers, k is not in 1..n−1, a number is
            not finite, or the k + 1 largest are not positive.

    References:
        B. M. Hill, "A simple general approach to inference about the tail of a distribution", Ann. Statist. 3, 1975.

    >>> round(float(hill_index(jnp.asarray([1.0, 2.0, 4.0, 8.0]), num_largest=2)), 4)
    0.9618
    """
    validate.positive_integer(num_largest=num_largest)
    validate.floating_leaves(samples=samples)
    validate.vector(validate.leading_axis(samples=samples), samples=samples)
    validate.at_most(samples.shape[0] - 1, num_largest=num_largest)
    validate.finite_if_known(samples=samples)
    largest = jnp.sort(samples)[::-1][: num_largest + 1]
    validate.positive_if_known(**{f"the {num_largest + 1} largest of samples": largest})
    return num_largest / jnp.sum(jnp.log(largest[:-1] / largest[-1]))


def kesten_index(curvatures: Any, learning_rate: float) -> float:
    """The tail index of SGD with one example at a time on quadratics ½h_i(θ − c_i)²: κ with E|1 − ηh|^κ = 1.

    A step multiplies the distance to the minimum by 1 − ηh. If that is sometimes larger than 1 in size but log|1 − ηh|
    < 0 on the average, the stationary distribution has a power tail of index κ: moments below κ are finite, others are
    not. κ = 2 at the largest learning rate with a stationary variance.

    Args:
        curvatures: the h_i, each as likely as the others, shape (n,).
        learning_rate: η.

    Returns:
        κ; infinite where no factor is larger than 1 in size, so that θ stays bounded; 0 where log|1 − ηh| ≥ 0 on the
        average, so that there is no stationary distribution.

    Raises:
        ValueError: if there are no curvatures, one is not finite, or the learning rate is not positive.

    References:
        H. Kesten, "Random difference equations and renewal theory for products of random matrices", Acta Math. 131,
        1973.
        M. Gürbüzbalaban, U. Şimşekli, L. Zhu, "The heavy-tail phenomenon in SGD", ICML 2021.

    >>> round(kesten_index([0.5, 4.0], 0.55), 9)
    2.314123268
    """
    h = np.asarray(curvatures, np.float64)
    validate.finite_vector(curvatures=h)
    validate.positive(learning_rate=learning_rate)
    validate.finite(**{"the largest of learning_rate · curvatures": [learning_rate * np.abs(h).max()]})
    factors = np.abs(1 - learning_rate * h)
    with np.errstate(divide="ignore"):
        logs = np.log(factors)
    if factors.max() <= 1:
        return float("inf")
    if logs.mean() >= 0:
        return 0.0

    def excess(index: float) -> float:
        return float(np.mean(np.exp(index * logs)) - 1)

    low, high = 0.0, 1.0
    while excess(high) < 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


def _log_norms(rows: Float[Array, "n p"]) -> Float[Array, " n"]:
    return jnp.log(jnp.sum(rows**2, axis=1)) / 2
