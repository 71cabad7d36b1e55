"""When may gradient and expectation be exchanged: ∇ E L(θ, X) = E ∇L(θ, X)?

Each of these suffices, at a point θ:

    a   X takes finitely many values, as an example of a data set does, and each L(·, x) is differentiable at θ. This
        is the linearity of the derivative, and nothing else is needed.
    b   Near θ each L(·, x) is differentiable with |∂L| ≤ κ(x) and E κ < ∞: differentiation under the integral sign by
        dominated convergence (R. L. Schilling, Measures, Integrals and Martingales, Cambridge, 2005, theorem 11.5).
    c   Near θ, |L(θ, x) − L(θ', x)| ≤ κ(x) |θ − θ'| with E κ < ∞, and L(·, X) is differentiable at θ with probability
        one: the difference quotients are dominated. For machine learning the useful one, as it allows kinks, if not at
        θ itself (A. Shapiro, D. Dentcheva, A. Ruszczyński, Lectures on Stochastic Programming, SIAM, 2009, chapter 7).
    d   For a pathwise derivative of f(X(θ)): f Lipschitz, differentiable at X(θ) with probability one, and X(θ)
        Lipschitz with an integrable constant (P. Glasserman, Monte Carlo Methods in Financial Engineering, Springer,
        2004, section 7.2.2). A case of c.
    e   L(·, X) continuous, differentiable but for countably many θ, |∂L| ≤ Γ with E Γ < ∞, and not kinked at θ itself
        (P. L'Ecuyer, Management Science 36, 1990, and 41, 1995). Continuity is essential.
    f   L(·, x) absolutely continuous and E|∂L| integrable over θ: then F' = E ∂L for almost every θ, by Fubini
        (E. Talvila, American Mathematical Monthly 108, 2001, also for when this is necessary). ∂L may be unbounded.
    g   L(·, x) convex and F finite: ∂F = E ∂L, of subdifferentials, so that only P(kink at θ) = 0 is left to ask
        (R. T. Rockafellar and R. J.-B. Wets, 1982; D. P. Bertsekas, JOTA 12, 1973).
    h   Where the law of X depends on θ, E[f ∇ log p] needs a support that does not (S. Mohamed, M. Rosca, M. Figurnov
        and A. Mnih, JMLR 21(132), 2020, section 4).

The variance is another question: exchange takes first moments, a variance that falls as 1/M takes E|∂L|² < ∞.

``CASES`` are closed forms on both sides; ``LOSSES`` the usual losses; ``KINKS`` what ``jax.grad`` returns at kinks.
Imports ``_validate`` only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd import _validate
from jaxsgd._exchange_cases import CASES, Case, cantor
from jaxsgd._kinks import KINKS, Kink
from jaxsgd._typical_losses import LOSSES, TypicalLoss

__all__ = ["CASES", "KINKS", "LOSSES", "Case", "Kink", "TypicalLoss", "cantor", "derivatives", "midpoints"]


def midpoints(num_points: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Points u in (0, 1) and weights that integrate over a uniform U, with many points near both ends.

    The midpoint rule in t for u = t²(3 − 2t): a quantile function that grows without bound at 0 or 1 is tamed. The
    error is O(1/n²) for smooth integrands, O(1/n) across a jump.

    >>> u, weights = midpoints(1000)
    >>> round(float(np.sum(weights / np.sqrt(u))), 4)  # ∫ du/√u = 2, with a pole at 0
    2.0
    """
    _validate.positive_integer(num_points=num_points)
    t = (np.arange(num_points) + 0.5) / num_points
    return t**2 * (3 - 2 * t), 6 * t * (1 - t) / num_points


def derivatives(
    loss_fn: Callable[[Any, Any], Any],
    quantile: Callable[[Any], Any],
    theta: float,
    *,
    num_points: int = 2**18,
    step: float = 1e-2,
) -> Float[Array, "2 2"]:
    """The first two derivatives of the expectation, and the expectations of the first two derivatives, by quadrature.

    The derivatives of F(θ) = E L(θ, X) are central differences of its quadrature; those of L are ``jax.grad``'s.

    Returns:
        [[F', F''], [E ∂L, E ∂²L]] at ``theta``.

    >>> loss = next(loss for loss in LOSSES if loss.name == "absolute")
    >>> print(np.round(np.asarray(derivatives(loss.loss_fn, loss.quantile, 0.0), float), 2) + 0.0)  # F'' = 2p
    [[0.  0.8]
     [0.  0. ]]
    """
    u, weights = midpoints(num_points)
    dtype = jnp.zeros(()).dtype
    below_one = 1 - float(np.finfo(np.dtype(dtype)).epsneg)  # rounded to 1, a point would have an infinite quantile
    x = jnp.asarray(quantile(jnp.minimum(jnp.asarray(u, dtype), jnp.asarray(below_one, dtype))))

    def mean(fn: Callable[[Any, Any], Any], at: Any) -> Any:
        return jnp.sum(jnp.asarray(weights, dtype) * jax.vmap(fn, in_axes=(None, 0))(at, x))

    first = jax.grad(loss_fn)

    def found(at: Any) -> Any:
        low, middle, high = (mean(loss_fn, at + shift) for shift in (-step, 0.0, step))
        of_mean = jnp.stack([(high - low) / (2 * step), (high - 2 * middle + low) / step**2])
        return jnp.stack([of_mean, jnp.stack([mean(first, at), mean(jax.grad(first), at)])])

    return jax.jit(found)(jnp.asarray(theta, dtype))
