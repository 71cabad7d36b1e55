"""The noise scale from the mean gradients of two batches, without those of single examples.

Since E‖ĝ_M‖² = ‖ḡ‖² + c_M tr Σ,

    tr Σ ≈ (‖ĝ_s‖² − ‖ĝ_b‖²)/(c_s − c_b),    ‖ḡ‖² ≈ (c_s ‖ĝ_b‖² − c_b ‖ĝ_s‖²)/(c_s − c_b)

are unbiased, with c_M = 1/M for an infinite population (McCandlish et al., 2018, appendix A.1) and (N − M)/(M(N − 1))
for batches without replacement of N examples. With 1/M in place of c_M they are unbiased too, whatever the two sizes:
for tr S² and ‖ḡ‖² − tr S²/N, as if the N examples were drawn from an infinite population themselves.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsgd._core import sums, units, validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.noise._estimate import NoiseScale


@on_any_mesh
def two_batch_noise_scale(
    small_gradient: PyTree,
    big_gradient: PyTree,
    *,
    small_size: int,
    big_size: int,
    population_size: int | None = None,
) -> NoiseScale:
    """Estimate the noise scale from the mean gradients of two batches, of which one may be a part of the other.

    ``trace_covariance`` and ``squared_mean_norm`` are unbiased, as E‖ĝ_M‖² = ‖ḡ‖² + c_M tr Σ tells them apart by the
    two sizes. One pair says next to nothing: average the two over many pairs, then divide.
    ``monitors.two_batch_noise_scale`` does so along a run.

    Args:
        small_gradient: ĝ_s, a pytree like ``params``.
        big_gradient: ĝ_b, of the same structure.
        small_size: the number of examples in the small batch.
        big_size: the number of examples in the big batch.
        population_size: N; infinite by default.

    Returns:
        :class:`NoiseScale` without an interval.

    Raises:
        TypeError, ValueError: if a size is out of its range, or the gradients are not finite, of other parameters, or
            too small or large to be squared.

    References:
        S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", arXiv:1812.06162,
        2018, appendix A.1.

    >>> estimate = two_batch_noise_scale(jnp.asarray([3.0]), jnp.asarray([2.0]), small_size=1, big_size=4)
    >>> round(float(estimate.trace_covariance), 3), round(float(estimate.squared_mean_norm), 3)
    (6.667, 2.333)
    """
    validate.positive_integer(small_size=small_size)
    validate.at_least(small_size + 1, big_size=big_size)
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, "the population size", batch_size=big_size)
    layouts = [
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (small_gradient, big_gradient)
    ]
    if layouts[0] != layouts[1]:
        raise ValueError(
            "big_gradient must be of the same parameters as small_gradient, with the same structure and shapes"
        )
    validate.floating_leaves(small_gradient=small_gradient, big_gradient=big_gradient)
    validate.finite_if_known(small_gradient=small_gradient, big_gradient=big_gradient)
    units.require_squares("small_gradient and big_gradient", small_gradient, big_gradient)
    small, big = (sums.squared_norm(gradient) for gradient in (small_gradient, big_gradient))
    c_small, c_big = (variance_factor(size, population_size) for size in (small_size, big_size))
    trace, signal = (small - big) / (c_small - c_big), (c_small * big - c_big * small) / (c_small - c_big)
    unknown = jnp.full((), jnp.nan, signal.dtype)
    return NoiseScale(
        value=trace / signal,
        low=unknown,
        high=unknown,
        trace_covariance=trace,
        squared_mean_norm=signal,
        covariance=jnp.full((2, 2), unknown),
        count=jnp.asarray(big_size),
        largest_share=unknown,
    )


def variance_factor(batch_size: int, population_size: int | None) -> float:
    """c_M: 1/M, or (N − M)/(M(N − 1)) for M of N without replacement.

    Raises:
        TypeError, ValueError: if M, or N if it is not None, is not a positive integer, or M > N.
    """
    validate.positive_integer(batch_size=batch_size)
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, "the population size", batch_size=batch_size)
    if population_size is None:
        return 1 / batch_size
    return (population_size - batch_size) / (batch_size * max(population_size - 1, 1))
