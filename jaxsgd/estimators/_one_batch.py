"""The variance of a minibatch gradient estimated from that one batch, and higher moments from a whole population.

They are survey sampling's formulas for means, coordinate by coordinate or as a trace: no design is asked for its law.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels
from jaxsgd._core import devices, sums, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.rational import quotient


@on_any_mesh
def with_replacement_variance(g_batch: kernels.PerExampleGradients) -> Float[Array, ""]:
    """An unbiased estimate of tr Cov ĝ from one batch of M independent uniform draws, with its repeats: tr s²/M.

    s² is the sample covariance with divisor M − 1. E s² = Σ, the population covariance with divisor N, and Cov ĝ is
    Σ/M. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g_batch: the gradients of the batch, at least two.

    Raises:
        ValueError: if there are fewer than two examples, or a gradient is not finite.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, section 2.8.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> round(float(with_replacement_variance(kernels.per_example_gradients(loss_fn)(params, data))), 6)
    5.25
    """
    _at_least_two(g_batch)
    return g_batch.total_deviation() * quotient(1, g_batch.count * (g_batch.count - 1))


@on_any_mesh
def without_replacement_variance(g_batch: kernels.PerExampleGradients, *, population_size: int) -> Float[Array, ""]:
    """An unbiased estimate of tr Cov ĝ from one batch of M distinct examples out of N: (1 − M/N) tr s²/M.

    Here E s² = S², with divisor N − 1, not Σ, and Cov ĝ = (1 − M/N) S²/M. It is 0 for the whole population.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g_batch: the gradients of the batch, at least two.
        population_size: N.

    Raises:
        TypeError: if ``population_size`` is not an integer.
        ValueError: if there are fewer than two examples, or more than N, or a gradient is not finite.

    References:
        W. G. Cochran, *Sampling Techniques*, 3rd ed., Wiley 1977, theorem 2.4.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> round(float(without_replacement_variance(g, population_size=8)), 6)
    2.625
    """
    _at_least_two(g_batch)
    _within(g_batch, population_size)
    return with_replacement_variance(g_batch) * float(1 - Fraction(g_batch.count, int(population_size)))


@on_any_mesh
def horvitz_thompson_variance(
    g_batch: kernels.PerExampleGradients,
    inclusion_probabilities: Float[Array | np.ndarray, " m"],
    joint_inclusion_probabilities: Float[Array | np.ndarray, "m m"],
    *,
    population_size: int,
) -> Float[Array, ""]:
    """An unbiased estimate of tr Cov ĝ for ĝ = (1/N) Σ_{i∈s} g_i/π_i from one batch s of any design.

        v = (1/N²) Σ_{i,j∈s} (π_ij − π_i π_j) / (π_ij π_i π_j) ⟨g_i, g_j⟩,    π_ii = π_i.

    It is unbiased, since the pair i, j is in s with probability π_ij, which cancels, if every pair of the population
    has π_ij > 0. It may be negative. Where the coefficients do not sum to 0, as for simple random samples they do, it
    grows with ‖ḡ‖², and is known to ε of that.

    Args:
        g_batch: the gradients of the batch.
        inclusion_probabilities: π_i of its M examples, shape (M,).
        joint_inclusion_probabilities: π_ij of its pairs, shape (M, M); the diagonal is not read.
        population_size: N.

    Raises:
        TypeError: if ``population_size`` is not an integer.
        ValueError: if there are more than N examples, shapes do not match, a gradient is not finite, or a probability
            is not in (0, 1]; where some π_ij = 0 (systematic samples, contiguous blocks) there is no unbiased estimate.

    References:
        D. G. Horvitz and D. J. Thompson, J. Amer. Statist. Assoc. 47, 1952, doi:10.1080/01621459.1952.10483446.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> halves, quarters = jnp.full(4, 0.5), jnp.full((4, 4), 0.25)
    >>> round(float(horvitz_thompson_variance(g, halves, quarters, population_size=8)), 6)
    2.125
    """
    first, joint = _probabilities(g_batch, inclusion_probabilities, joint_inclusion_probabilities, population_size)
    products = first[:, None] * first[None, :]
    coefficients = (joint - products) / (joint * products)
    mean = g_batch.precise_mean()
    K, along = (
        devices.on_host(each).astype(np.float64) for each in (g_batch.centered_gram(), g_batch.centered_products(mean))
    )
    total = np.sum(coefficients * K) + 2 * np.sum(coefficients.sum(axis=1) * along)
    total += coefficients.sum() * float(sums.squared_norm(mean))  # 0 for simple random samples
    return _as_result(total, g_batch, population_size)


@on_any_mesh
def sen_yates_grundy_variance(
    g_batch: kernels.PerExampleGradients,
    inclusion_probabilities: Float[Array | np.ndarray, " m"],
    joint_inclusion_probabilities: Float[Array | np.ndarray, "m m"],
    *,
    population_size: int,
) -> Float[Array, ""]:
    """An unbiased estimate of tr Cov ĝ for ĝ = (1/N) Σ_{i∈s} g_i/π_i under a design of fixed size, by differences.

        v = (1/N²) Σ_{i<j∈s} (π_i π_j − π_ij)/π_ij ‖g_i/π_i − g_j/π_j‖²

    It is 0 where all g_i/π_i are equal, and never negative where π_ij ≤ π_i π_j for all pairs. It is unbiased for
    designs of fixed size only, if every pair of the population has π_ij > 0. Arguments and errors are those of
    :func:`horvitz_thompson_variance`. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    References:
        A. R. Sen, J. Indian Soc. Agric. Statist. 5, 1953. F. Yates and P. M. Grundy, J. Roy. Statist. Soc. B 15,
        1953, doi:10.1111/j.2517-6161.1953.tb00140.x.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> pairs = jnp.full((4, 4), 4 * 3 / (8 * 7))
    >>> round(float(sen_yates_grundy_variance(g, jnp.full(4, 0.5), pairs, population_size=8)), 6)
    2.625
    """
    first, joint = _probabilities(g_batch, inclusion_probabilities, joint_inclusion_probabilities, population_size)
    products = first[:, None] * first[None, :]
    K = devices.on_host(g_batch.scaled(jnp.asarray(1 / first)).centered_gram()).astype(np.float64)
    distances = np.diag(K)[:, None] + np.diag(K)[None, :] - 2 * K
    return _as_result(np.sum((products - joint) / joint * distances) / 2, g_batch, population_size)


class CentralMoments(NamedTuple):
    """E (ĝ − ḡ)³ and E (ĝ − ḡ)⁴, coordinate by coordinate, pytrees like ``params``."""

    third: Any
    fourth: Any


@on_any_mesh
def without_replacement_central_moments(g: kernels.PerExampleGradients, *, batch_size: int) -> CentralMoments:
    """Third and fourth central moments of the minibatch gradient, M distinct examples out of N, exactly.

    With μ_k = (1/N) Σ (g_i − ḡ)^k in each coordinate,

        E (ĝ − ḡ)³ = (N−M)(N−2M) / (M²(N−1)(N−2)) μ₃
        E (ĝ − ḡ)⁴ = (N−M) / (M³(N−1)(N−2)(N−3)) [(N² − 6NM + N + 6M²) μ₄ + 3N(M−1)(N−M−1) μ₂²]

    At M = N/2 the third moment is 0 for all data: a batch and the rest of the population have opposite errors.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        g: the gradients of the whole population, at least four; N·P numbers are held.
        batch_size: M.

    Returns:
        :class:`CentralMoments`.

    Raises:
        TypeError: if ``batch_size`` is not an integer.
        ValueError: if N < 4, M is not in 1..N, a gradient is not finite, or float32 does not hold its fourth power.

    References:
        P. V. Sukhatme, Sankhyā 6, 1944; for k ≤ 4 after L. Isserlis, Proc. R. Soc. A 132, 1931.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> moments = without_replacement_central_moments(g, batch_size=3)
    >>> round(float(moments.third["b"]), 6), round(float(moments.fourth["b"]), 6)
    (-0.083333, 0.152006)
    """
    kernels.require_finite(g)
    validate.at_least(4, **{"the number of examples": g.count})
    validate.positive_integer(batch_size=batch_size)
    validate.at_most(g.count, "the population size", batch_size=batch_size)
    N, M = g.count, int(batch_size)
    third = Fraction((N - M) * (N - 2 * M), M**2 * (N - 1) * (N - 2))
    common = Fraction(N - M, M**3 * (N - 1) * (N - 2) * (N - 3))
    kurtosis, square = common * (N * N - 6 * N * M + N + 6 * M * M), common * 3 * N * (M - 1) * (N - M - 1)
    unit = kernels.unit(g)
    third_moments, fourth_moments = _central_moments(g, unit, float(third), float(kurtosis), float(square))
    largest = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(fourth_moments) if leaf.size])
    if units.leaves_range(largest, unit, 4):
        raise ValueError(
            f"fourth powers of gradients leave {unit.dtype}: scale the loss so that norms are near 1, got some near "
            f"{float(unit):.3g}, or use float64 parameters"
        )
    return CentralMoments(
        third=jax.tree.map(lambda leaf: leaf * unit**2 * unit, third_moments),
        fourth=jax.tree.map(lambda leaf: leaf * unit**2 * unit**2, fourth_moments),
    )


@jax.jit
def _central_moments(
    g: kernels.PerExampleGradients, unit: Array, third: Any, kurtosis: Any, square: Any
) -> tuple[PyTree, PyTree]:
    """Multiples of the mean powers of the deviations, in a unit."""

    def moments(leaf: Array) -> tuple[Array, Array]:
        d = (leaf - leaf.mean(axis=0, keepdims=True)) / unit.astype(leaf.dtype)
        d = d - d.mean(axis=0, keepdims=True)  # of the rounding of a large mean, which a third moment shows
        a, b, c = (jnp.asarray(number, d.dtype) for number in (third, kurtosis, square))
        return a * jnp.mean(d**3, axis=0), b * jnp.mean(d**4, axis=0) + c * jnp.mean(d**2, axis=0) ** 2

    pairs = jax.tree.map(moments, g.materialize())
    both: tuple[PyTree, PyTree] = jax.tree.transpose(g.structure, jax.tree.structure((0, 0)), pairs)
    return both


def _at_least_two(g_batch: kernels.PerExampleGradients) -> None:
    kernels.require_finite(g_batch)
    validate.at_least(2, **{"the number of examples": g_batch.count})


def _within(g_batch: kernels.PerExampleGradients, population_size: int) -> None:
    validate.positive_integer(population_size=population_size)
    validate.at_most(population_size, "the population size", batch_size=g_batch.count)


def _probabilities(
    g_batch: kernels.PerExampleGradients, inclusion: Any, joint: Any, population_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """π_i and π_ij in float64, with π_ii = π_i."""
    kernels.require_finite(g_batch)
    _within(g_batch, population_size)
    validate.vector(g_batch.count, inclusion_probabilities=inclusion)
    shape = (g_batch.count, g_batch.count)
    if jnp.shape(joint) != shape:
        raise ValueError(f"joint_inclusion_probabilities must have shape {shape}, got {jnp.shape(joint)}")
    first, both = np.asarray(inclusion, np.float64), np.array(joint, np.float64)
    np.fill_diagonal(both, first)
    for name, values in {"inclusion_probabilities": first, "joint_inclusion_probabilities": both}.items():
        bad = np.argwhere(~((values > 0) & (values <= 1)))
        if bad.size:
            at = tuple(map(int, bad[0]))
            raise ValueError(
                f"{name} must be above 0 and at most 1, or no unbiased estimate exists, got {values[at]} at {at}"
            )
    return first, both


def _as_result(total: Any, g_batch: kernels.PerExampleGradients, population_size: int) -> Float[Array, ""]:
    return jnp.asarray(total / population_size**2, g_batch.squared_norms().dtype)
