"""Averages over pairs of examples (U-statistics of degree two), and how they vary from sample to sample.

For a symmetric kernel A, U_A = (1/(m(m − 1))) Σ_{i≠j} A_ij. Two kernels are what a noise scale is made of:

    K_ij = ⟨g_i, g_j⟩             U_K is unbiased for ‖ḡ‖²
    D_ij = ½ ‖g_i − g_j‖²         U_D is the sample variance Σ‖g_i − ĝ‖²/(m − 1)

With A and B shifted to have mean 0 over pairs, r_i = Σ_{j≠i} A_ij, R = Σ r_i^A r_i^B and W = Σ_{i≠j} A_ij B_ij, the
products of two pairs sum to W where they share both examples, to R − W where they share one, and to −2W − 4(R − W)
where they share none (each pair counted in both orders; the total is 0). That is all a covariance needs. Two random
pairs of N share both, one or no example in a known number of cases, and the average over each case in a sample is
unbiased for that in the population (W. Hoeffding, "A class of statistics with asymptotically normal distribution", Ann.
Math. Stat. 19, 1948; A. J. Lee, *U-Statistics*, 1990).
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd import kernels
from jaxsgd._core import sums
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd._core.rational import quotient

MAX_GRAM = 2048
"""From how many examples at most all products of pairs are formed; of more, those of as many chosen at random."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairSums:
    """Sums over the pairs of m examples; the first entry of each axis of two is for K, the second for D.

    They are fourth powers: in float32, of gradients in a unit near their size (``kernels.unit``).

    Attributes:
        count: m.
        means: U, shape (2,).
        shared_one: R, shape (2, 2).
        shared_both: W, shape (2, 2).
        along_mean: the sample variance of the g_i in the direction of their mean, ⟨g_i, ĝ⟩/‖ĝ‖.
        squared_covariance: an estimate of tr Σ² that is unbiased up to ``MAX_GRAM`` independent examples, from four.
    """

    count: int = field(metadata={"static": True})
    means: Float[Array, "2"]
    shared_one: Float[Array, "2 2"]
    shared_both: Float[Array, "2 2"]
    along_mean: Float[Array, ""]
    squared_covariance: Float[Array, ""]


@jax.jit
@on_any_mesh
def pair_sums(g: kernels.PerExampleGradients, unit: Any = 1.0) -> PairSums:
    """The sums over all pairs of the g_i/``unit``, from norms, from products with the mean and, for W, a Gram matrix.

    With d_i = g_i − ĝ, p_i = ⟨d_i, ĝ⟩, q_i = ‖d_i‖² and C_ij = ⟨d_i, d_j⟩,

        K_ij = ‖ĝ‖² + p_i + p_j + C_ij,    D_ij = ½ (q_i + q_j) − C_ij,

    and, as the d_i sum to 0, the rows are r_i^K = (m − 2) p_i − (q_i − q̄) and r_i^D = ½ m (q_i − q̄) after the shift.
    """
    m, mean = g.count, g.precise_mean()

    def in_units(products: Array) -> Array:
        return products / jnp.asarray(unit, products.dtype) ** 2

    p, q = in_units(g.centered_products(mean)), in_units(g.squared_deviations())
    variance = q.sum() / (m - 1)
    squared_mean_norm = in_units(sums.squared_norm(mean).astype(q.dtype))
    spread = q - q.mean()
    rows = jnp.stack([(m - 2) * p - spread, m / 2 * spread])

    chosen = jnp.arange(m) if m <= MAX_GRAM else jax.random.permutation(jax.random.key(0), m)[:MAX_GRAM]
    some = g if m <= MAX_GRAM else g.take(chosen)
    n = some.count
    both = p[chosen][:, None] + p[chosen][None]
    halves = (q[chosen][:, None] + q[chosen][None]) / 2
    C = in_units(_products_of_deviations(some, mean if m > n else None)) + variance / m  # of mean 0, as the next two
    pairs = jnp.stack([C + both, halves - variance - C + variance / m])
    different = 1 - jnp.eye(n, dtype=q.dtype)
    pairs = pairs * different[None]
    scale = m * (m - 1) / (n * (n - 1))
    return PairSums(
        count=m,
        means=jnp.stack([squared_mean_norm - variance / m, variance]),
        shared_one=jnp.einsum("ai,bi->ab", rows, rows, precision="highest"),
        shared_both=scale * jnp.einsum("aij,bij->ab", pairs, pairs, precision="highest"),
        along_mean=jnp.sum(p**2) / (m - 1) / squared_mean_norm,
        squared_covariance=_squared_covariance(jnp.sum(different * C**2), jnp.sum(spread**2), n, is_all=m == n),
    )


def _squared_covariance(of_products: Array, of_norms: Array, n: int, *, is_all: bool) -> Float[Array, ""]:
    """From Σ_{i≠j} (C_ij + S/n)² and Σ (q_i − q̄)², in which the terms in S² of the unbiased estimate have canceled.

    That is the average of ⟨g_i − g_k, g_j − g_l⟩²/4 over different examples, in the form of Y. Himeno and T. Yamada (J.
    Multivar. Anal. 130, 2014). Deviations from the mean of more examples need no correction.
    """
    if not is_all:
        return of_products / (n * (n - 1))
    if n < 4:
        return jnp.full_like(of_products, jnp.nan)
    return jnp.maximum(of_products / (n * (n - 3)) - of_norms * quotient(2, n * (n - 2) * (n - 3)), 0)


def _products_of_deviations(some: kernels.PerExampleGradients, mean: PyTree | None) -> Float[Array, "n n"]:
    """⟨g_i − ĝ, g_j − ĝ⟩ of some examples, from those about their own mean, in which no digit cancels, and δ to ĝ."""
    own = kernels.centered_gram(some)
    if mean is None:
        return own
    delta = jax.tree.map(jnp.subtract, some.precise_mean(), mean)
    along = some.inner_products(delta)
    along = along - along.mean()
    return own + along[:, None] + along[None] + sums.squared_norm(delta).astype(own.dtype)


def sample_covariance(pairs: PairSums, population_size: int | None) -> Float[Array, "2 2"]:
    """An unbiased estimate of the covariance of the two means, from the sample itself: E U_A U_B − E U_A · E U_B.

    U_A U_B estimates the first. The second is the average of A_ij B_kl over all pairs of the population, N(N − 1)(N −
    2)(N − 3) of which share no example, 4N(N − 1)(N − 2) share one and 2N(N − 1) both. At m = N it is 0.
    """
    m, N = pairs.count, population_size
    of_all, share_one, share_both = Fraction(1, falling(m, 4)), Fraction(0), Fraction(0)
    if N is not None:
        of_all = Fraction((N - 2) * (N - 3), falling(m, 4) * falling(N, 2))
        share_one = Fraction(N - 2, falling(m, 3) * falling(N, 2))
        share_both = Fraction(1, falling(m, 2) * falling(N, 2))
    W, once = pairs.shared_both, pairs.shared_one - pairs.shared_both
    return W * float(2 * (of_all - share_both)) + once * float(4 * (of_all - share_one))


def jackknife_covariance(pairs: PairSums, population_size: int | None) -> Float[Array, "2 2"]:
    """The covariance of the two means by leaving out one example at a time: never negative, on the average too large.

    Without example i, U is (m(m − 1) U − 2 r_i)/((m − 1)(m − 2)) for the unshifted rows, so (m − 1)/m times the sum of
    squares is 4 R/(m(m − 1)(m − 2)²); for a sample without replacement, 1 − m/N of it.

    References:
        B. Efron, C. Stein, "The jackknife estimate of variance", Ann. Statist. 9, 1981.
    """
    m = pairs.count
    share = 0 if population_size is None else Fraction(m, population_size)
    return pairs.shared_one * quotient(4 * (1 - share), m * (m - 1) * (m - 2) ** 2)


@on_any_mesh
def mean_fourth_power(pairs: PairSums) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Unbiased estimates of ‖ḡ‖⁴ and ḡᵀΣḡ from independent examples, in the unit of the pairs.

    ‖ḡ‖⁴ = E K₁₂K₃₄ and ḡᵀΣḡ = E K₁₂K₁₃ − E K₁₂K₃₄, each an average over different examples. With K shifted by its mean
    U, which changes neither but the first by U², the pairs are those of the module's docstring.
    """
    m = pairs.count
    W, once = pairs.shared_both[0, 0], pairs.shared_one[0, 0] - pairs.shared_both[0, 0]
    share_none = -(W * quotient(2, falling(m, 4)) + once * quotient(4, falling(m, 4)))
    return pairs.means[0] ** 2 + share_none, once * quotient(1, falling(m, 3)) - share_none


def batch_covariance(pairs: PairSums, batch_size: int) -> Float[Array, "2 2"]:
    """The exact covariance over batches of M without replacement of the population that the pairs are of."""
    M, N = batch_size, pairs.count
    both, one, none = (Fraction(falling(M, k), falling(N, k)) if k <= N else Fraction(0) for k in (2, 3, 4))
    W, once = pairs.shared_both, pairs.shared_one - pairs.shared_both
    once_each, twice = (quotient(4 * (one - none), falling(M, 2) ** 2), quotient(2 * (both - none), falling(M, 2) ** 2))
    return W * twice + once * once_each


def falling(n: int, k: int) -> int:
    """The product n (n − 1) … (n − k + 1)."""
    product = 1
    for i in range(k):
        product *= n - i
    return product
