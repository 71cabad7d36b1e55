"""Noise of steps along the sign of a gradient, as signSGD and Lion take them.

For a normal ĝ_j of mean μ_j and variance σ_j²/M, E sign(ĝ_j) = 1 − 2Φ(−√M μ_j/σ_j), which grows like √M up to M near
σ_j²/μ_j², the noise scale of that coordinate alone, and no more beyond: the best learning rate grows likewise.

Where |μ_j| is small against σ_j/√M, the sign responds to μ_j as a number does that is divided by σ_j: E sign(ĝ_j) ≈
√(2M/π) μ_j/σ_j. Up to a constant, which no noise scale depends on, that makes P = diag(1/σ_j) what the step multiplies
gradients by. So it is for Lion, the sign of an average over gradients, whose variance is that of one times the same
constant in every coordinate. It holds for batches below the noise scale of every coordinate.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxsgd._core import validate
from jaxsgd._core.sums import accumulated


def expected_sign(mean: PyTree, variance: PyTree, batch_size: Any) -> PyTree:
    """E sign(ĝ_j) = 1 − 2Φ(−√M μ_j/σ_j), for normal gradients of batches of M independent examples.

    Args:
        mean: μ, a pytree of arrays: of gradients ``g.mean()``.
        variance: σ², of one example, of the same shapes: ``g.variance(ddof=1)``. Where it is 0 the sign is that of μ.
        batch_size: M, positive.

    Returns:
        A pytree like both, between −1 and 1.

    Raises:
        ValueError: if M is not positive.

    References:
        J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for non-convex
        problems", ICML 2018.

    >>> [round(float(expected_sign(jnp.asarray(0.1), jnp.asarray(1.0), M)), 3) for M in (1, 4, 100, 400)]
    [0.08, 0.159, 0.683, 0.954]
    """
    validate.positive_if_known(batch_size=batch_size)

    def expected(m: Array, v: Array) -> Array:
        m = accumulated(m)
        v = v.astype(m.dtype)
        score = m * jnp.sqrt(jnp.asarray(batch_size, m.dtype) / (2 * jnp.where(v > 0, v, jnp.ones_like(v))))
        return jnp.where(v > 0, jax.lax.erf(score), jnp.sign(m))

    return jax.tree.map(expected, mean, variance)


def sign_metric(variance: PyTree, *, of: Literal["update", "decrease"] = "update") -> PyTree:
    """The metric of steps along signs, signSGD's and Lion's, in batches far below the noise scale of each coordinate.

    P = diag(1/σ_j), by which the mean sign answers the mean gradient, up to a constant that B does not depend on. A
    sign that does not vary answers to nothing, and has the smallest weight there is.

    Args:
        variance: σ², a pytree like ``params``: ``g.variance(ddof=1)``, better of other examples than those that the
            noise scale is of.
        of: "update", D = P², or "decrease", D = P, as :func:`optimizer_metric` has them.

    >>> [round(float(weight), 3) for weight in sign_metric(jnp.asarray([0.25, 1.0, 4.0]))]
    [4.0, 1.0, 0.25]
    """
    validate.one_of(("update", "decrease"), of=of)
    validate.floating_leaves(variance=variance)

    def weight(v: Array) -> Array:
        v = accumulated(jnp.asarray(v))
        least = jnp.asarray(jnp.finfo(v.dtype).tiny, v.dtype)  # type: ignore[no-untyped-call]
        inverse = 1 / jnp.where(v > least, v, jnp.ones_like(v))
        return jnp.where(v > least, inverse if of == "update" else jnp.sqrt(inverse), least)

    return jax.tree.map(weight, variance)
