"""The usual losses: may gradient and expectation be exchanged, and the second derivative?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class TypicalLoss:
    """A loss of one prediction θ, with a law of the target under which the answers show.

    For a data set of N examples the gradient may always be exchanged where no example has a kink at θ. The rest is
    about a continuous distribution of examples.

    Attributes:
        name: of the loss.
        loss_fn: ``loss_fn(theta, target) -> scalar``.
        quantile: the law of the target, as the inverse of its distribution function.
        needs: what the distribution must satisfy for the gradient to be exchanged.
        gradient: whether E ∂L = F' under this law, at ``theta``.
        second: whether E ∂²L = F'' there, with automatic second derivatives.
        caveat: what automatic differentiation returns where care is needed.
        theta: the prediction.
    """

    name: str
    loss_fn: Callable[[Any, Any], Any]
    quantile: Callable[[Any], Any]
    needs: str
    gradient: bool
    second: bool
    caveat: str = ""
    theta: float = 0.4


def _normal(u: Any) -> Any:
    return jax.scipy.special.ndtri(u)


def _label(u: Any) -> Any:
    """0 or 1, 1 with probability 0.3."""
    return (u > 0.7).astype(u.dtype)


def _binary(theta: Any, y: Any) -> Any:
    return jax.nn.softplus(theta) - y * theta


def _log_loss(theta: Any, y: Any) -> Any:
    return -y * jnp.log(theta) - (1 - y) * jnp.log1p(-theta)


def _focal(theta: Any, y: Any) -> Any:
    loss = _binary(theta, y)
    return (1 - jnp.exp(-loss)) ** 2 * loss


def _huber(theta: Any, y: Any) -> Any:
    r = jnp.abs(theta - y)
    return jnp.where(r <= 1, 0.5 * r**2, r - 0.5)


def _log_cosh(theta: Any, y: Any) -> Any:
    r = theta - y
    return r + jax.nn.softplus(-2 * r) - jnp.log(2.0)


def _pinball(theta: Any, y: Any) -> Any:
    return jnp.maximum(0.9 * (y - theta), 0.1 * (theta - y))


def _straight_through(theta: Any, y: Any) -> Any:
    value = theta + y
    return 0.5 * (value + jax.lax.stop_gradient(jnp.round(value) - value)) ** 2


LOSSES: tuple[TypicalLoss, ...] = (
    TypicalLoss("squared", lambda t, y: 0.5 * (t - y) ** 2, _normal, "E|y| < ∞", True, True),
    TypicalLoss("cross-entropy of logits", _binary, _label, "nothing: |∂L| ≤ 1", True, True),
    TypicalLoss(
        "cross-entropy of probabilities", _log_loss, _label, "p bounded away from 0", True, True, "log 0 is −∞"
    ),
    TypicalLoss("focal, γ = 2", _focal, _label, "nothing: |∂L| is bounded", True, True, "NaN for 0 < γ < 1 at p = 1"),
    TypicalLoss("Huber", _huber, _normal, "nothing: |∂L| ≤ δ", True, True),
    TypicalLoss("log-cosh", _log_cosh, _normal, "nothing: |∂L| ≤ 1", True, True, "overflows if cosh is computed"),
    TypicalLoss("squared hinge", lambda t, y: 0.5 * jax.nn.relu(1 - t * y) ** 2, _normal, "E y² < ∞", True, True),
    TypicalLoss(
        "hinge", lambda t, y: jax.nn.relu(1 - t * y), _normal, "P(θy = 1) = 0", True, False, "0 or −½ at the kink"
    ),
    TypicalLoss("absolute", lambda t, y: jnp.abs(t - y), _normal, "P(y = θ) = 0", True, False, "+1 at 0"),
    TypicalLoss("pinball", _pinball, _normal, "P(y = θ) = 0", True, False, "0.4 or 0.9 at 0, for τ = 0.9"),
    TypicalLoss(
        "ε-insensitive", lambda t, y: jax.nn.relu(jnp.abs(t - y) - 0.1), _normal, "P(|y − θ| = ε) = 0", True, False
    ),
    TypicalLoss("maximum", jnp.maximum, _normal, "P(tie) = 0", True, False, "ties share the gradient"),
    TypicalLoss(
        "relu network",
        lambda t, y: 0.5 * (jax.nn.relu(t + y) - 1) ** 2,
        _normal,
        "P(kink) = 0 and an integrable Lipschitz constant",
        True,
        False,
        "relu'(0) = 0",
    ),
    TypicalLoss("0–1", lambda t, y: (y > t).astype(t.dtype), _normal, "never", False, False, "0 everywhere"),
    TypicalLoss(
        "straight-through rounding",
        _straight_through,
        lambda u: 0.3 * u,
        "never: it is not the derivative",
        False,
        False,
        "a surrogate by design",
    ),
)
