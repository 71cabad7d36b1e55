"""What batches tell of a noise scale: unbiased estimates of ‖ḡ‖² and tr Σ, and what their errors depend on.

All of it is in units of a power of two near the gradients' size, since variances have their fourth powers.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsgd import kernels, moments
from jaxsgd._core import sums, units
from jaxsgd.noise import _u_statistics


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Evidence:
    """What the m examples of each of k batches tell; every attribute has an axis of k.

    Attributes:
        count: m.
        factor: f = 1/m − 1/N.
        squared_mean_norm: G, unbiased for ‖ḡ‖².
        trace: T, unbiased for tr Σ.
        squared_norm: ‖ĝ‖².
        deviation: S = Σ‖g_i − ĝ‖²/(m − 1).
        along_mean: λ̂, the sample variance of the g_i along ĝ.
        squared_covariance: Q, unbiased for tr Σ².
        covariance: of (G, T), shape (k, 2, 2); NaN where it is not known.
        largest_share: of tr Σ, that of the hundredth part of the examples with the largest ‖g_i − ĝ‖.
    """

    count: Any
    factor: Any
    squared_mean_norm: Any
    trace: Any
    squared_norm: Any
    deviation: Any
    along_mean: Any
    squared_covariance: Any
    covariance: Any
    largest_share: Any


_SQUARES = ("squared_mean_norm", "trace", "squared_norm", "deviation", "along_mean")
_FOURTH_POWERS = ("squared_covariance", "covariance")


def of(
    several: Sequence[kernels.PerExampleGradients | moments.GradientMoments], population_size: int | None
) -> tuple[Evidence, Array]:
    """The evidence of several batches in one unit, and the unit."""
    each = [_of_one(gradients, population_size) for gradients in several]
    unit = jnp.max(jnp.stack([unit for _, unit in each]))
    alike = [_in_unit(evidence, own / unit) for evidence, own in each]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *alike), unit


def _in_unit(evidence: Evidence, ratio: Array) -> Evidence:
    powers = dict.fromkeys(_SQUARES, 2) | dict.fromkeys(_FOURTH_POWERS, 4)
    return Evidence(**{name: value * ratio ** powers.get(name, 0) for name, value in vars(evidence).items()})


def _of_one(
    gradients: kernels.PerExampleGradients | moments.GradientMoments, population_size: int | None
) -> tuple[Evidence, Array]:
    if isinstance(gradients, moments.GradientMoments):
        return _of_moments(gradients, population_size)
    unit = kernels.unit(gradients)
    if gradients.count == population_size:
        return _of_population(gradients, unit), unit
    return _of_examples(gradients, unit, population_size), unit


def _of_moments(m: moments.GradientMoments, population_size: int | None) -> tuple[Evidence, Array]:
    count = int(m.count)
    S = m.trace_covariance(ddof=min(count - 1, 1))
    share, unit = _share(population_size), jnp.ones_like(S)
    return Evidence(
        count=jnp.asarray(count, S.dtype),
        factor=jnp.asarray(1 / count - share, S.dtype),
        squared_mean_norm=m.squared_mean_norm - (1 / count - share) * S,
        trace=(1 - share) * S,
        squared_norm=m.squared_mean_norm,
        deviation=S,
        along_mean=jnp.zeros_like(S),
        squared_covariance=jnp.zeros_like(S),
        covariance=jnp.full((2, 2), jnp.nan, S.dtype),
        largest_share=jnp.full_like(S, jnp.nan),
    ), unit


def _of_population(g: kernels.PerExampleGradients, unit: Array) -> Evidence:
    G, deviations = sums.squared_norm(g.mean()) / unit**2, g.squared_deviations() / unit**2
    T = deviations.mean().astype(G.dtype)
    zero = jnp.zeros_like(G)
    return Evidence(
        count=jnp.asarray(g.count, G.dtype),
        factor=zero,
        squared_mean_norm=G,
        trace=T,
        squared_norm=G,
        deviation=T,
        along_mean=zero,
        squared_covariance=zero,
        covariance=jnp.zeros((2, 2), G.dtype),
        largest_share=_largest_share(deviations),
    )


def _of_examples(g: kernels.PerExampleGradients, unit: Array, population_size: int | None) -> Evidence:
    pairs = _u_statistics.pair_sums(g, unit)
    spread = jnp.full((2, 2), jnp.inf, pairs.means.dtype)
    if g.count >= 4:
        unbiased = _u_statistics.sample_covariance(pairs, population_size)
        fallback = _u_statistics.jackknife_covariance(pairs, population_size)
        spread = jnp.where(_is_covariance(unbiased), unbiased, fallback)
    G, T, covariance = targets(pairs, spread, population_size)
    U, S = pairs.means
    return Evidence(
        count=jnp.asarray(g.count, G.dtype),
        factor=jnp.asarray(1 / g.count - _share(population_size), G.dtype),
        squared_mean_norm=G,
        trace=T,
        squared_norm=U + S / g.count,
        deviation=S,
        along_mean=pairs.along_mean,
        squared_covariance=pairs.squared_covariance,
        covariance=covariance,
        largest_share=_largest_share(g.squared_deviations() / unit**2),
    )


def num_largest(count: int) -> int:
    """How many examples are the hundredth part of so many: at least one."""
    return -(-count // 100)


def _largest_share(deviations: Float[Array, " m"]) -> Float[Array, ""]:
    largest, _ = jax.lax.top_k(deviations, num_largest(len(deviations)))
    return largest.sum() / deviations.sum()


def _share(population_size: int | None) -> float:
    return 0.0 if population_size is None else 1 / population_size


def targets(
    pairs: _u_statistics.PairSums, covariance: Array, population_size: int | None
) -> tuple[Array, Array, Array]:
    """The estimates of ‖ḡ‖² and tr Σ, and their covariance, from those of the U-statistics of K and D.

    ‖ĝ‖² − (1/m − 1/N) S is U_K + U_D/N, and (1 − 1/N) S is (1 − 1/N) U_D.
    """
    share = _share(population_size)
    change = jnp.asarray([[1.0, share], [0.0, 1 - share]], pairs.means.dtype)
    G, T = jnp.einsum("ij,j->i", change, pairs.means, precision="highest")
    return G, T, jnp.einsum("ij,jk,lk->il", change, covariance, change, precision="highest")


def _is_covariance(matrix: Float[Array, "2 2"]) -> Any:
    return (jnp.diag(matrix) > 0).all() & (matrix[0, 0] * matrix[1, 1] >= matrix[0, 1] ** 2)


def in_unit_of_gradients(covariance: Float[Array, "2 2"], unit: Array) -> Float[Array, "2 2"]:
    """The covariance of squares in the unit of the gradients themselves, of which it is a fourth power."""
    if units.leaves_range(covariance, unit, 4):
        warnings.warn(
            f"covariance is a fourth power of gradients that {covariance.dtype} does not hold, and is 0 or infinite: "
            "scale the loss, or use float64 parameters",
            stacklevel=2,
        )
    return covariance * unit**2 * unit**2
