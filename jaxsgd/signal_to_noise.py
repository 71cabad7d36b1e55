"""The signal-to-noise ratio of a gradient, coordinate by coordinate."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels, moments
from jaxsgd._core import validate
from jaxsgd._core.meshes import on_any_mesh

__all__ = ["coordinate_snr", "early_stopping_evidence"]


@on_any_mesh
def coordinate_snr(
    gradients: kernels.PerExampleGradients | moments.GradientMoments, *, population_size: int | None = None
) -> PyTree:
    """ḡ_j²/Σ_jj for every parameter j, the GSNR, a pytree like ``params``; its reciprocals are noise scales.

    From m examples, ĝ_j² is biased by Var ĝ_j, so (ĝ_j² − (1/m − 1/N) s_j²)/((1 − 1/N) s_j²) is taken: both parts are
    unbiased, and the quotient may be negative. Where the m examples are all there is, it is exact. It is
    infinite or NaN where a coordinate has no noise. Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        gradients: of the examples; moments must have been asked for ``per_coordinate``.
        population_size: N, of the population that the examples are from without replacement; infinite by default.

    References:
        J. Liu, G. Jiang, Y. Bai, T. Chen, H. Wang, "Understanding why neural networks generalize well through GSNR of
        parameters", ICLR 2020.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit()
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> [round(float(1 / ratio), 4) for ratio in coordinate_snr(g, population_size=4).values()]
    [11.0, 13.0]
    """
    count, mean, variance = _sample(gradients)
    share = 0.0
    if population_size is not None:
        validate.positive_integer(population_size=population_size)
        validate.at_most(population_size, **{"the number of examples": count})
        share = 1 / population_size

    def ratio(m: Array, s: Array) -> Array:
        return (m.astype(s.dtype) ** 2 - (1 / count - share) * s) / ((1 - share) * s)

    return jax.tree.map(ratio, mean, variance)


@on_any_mesh
def early_stopping_evidence(gradients: kernels.PerExampleGradients | moments.GradientMoments) -> Float[Array, ""]:
    """1 − (m/P) Σ_j ĝ_j²/s_j², which is positive where a batch of m looks like noise without signal: stop there.

    Each m ĝ_j²/s_j² is the square of a t statistic. Without signal, for normal gradients, its mean is (m − 1)/(m − 3),
    not 1 (the F distribution with 1 and m − 1 degrees of freedom), so the evidence is −2/(m − 3) on the average.
    Rounding takes ε mean/noise (:mod:`jaxsgd.kernels`).

    Args:
        gradients: of at least two independent examples; moments must have been asked for ``per_coordinate``.

    References:
        M. Mahsereci, L. Balles, C. Lassner, P. Hennig, "Early stopping without a validation set", arXiv:1703.09580,
        2017.

    >>> from jaxsgd import problems
    >>> loss_fn, params, data = problems.line_fit(0.0, 0.0)
    >>> g = kernels.per_example_gradients(loss_fn)(params, data)
    >>> bool(early_stopping_evidence(g) > 0)
    False
    """
    count, mean, variance = _sample(gradients)
    pairs = zip(jax.tree.leaves(mean), jax.tree.leaves(variance), strict=True)
    squares: list[Any] = [(m.astype(s.dtype) ** 2 / s).reshape(-1) for m, s in pairs]
    return 1 - count * jnp.concatenate(squares).mean()


def _sample(gradients: kernels.PerExampleGradients | moments.GradientMoments) -> tuple[int, PyTree, PyTree]:
    """m, ĝ and the sample variances s_j² with divisor m − 1."""
    count = int(gradients.count)
    validate.at_least(2, **{"the number of examples": count})
    if isinstance(gradients, kernels.PerExampleGradients):
        kernels.require_finite(gradients)
    return count, gradients.mean() if callable(gradients.mean) else gradients.mean, gradients.variance(ddof=1)
