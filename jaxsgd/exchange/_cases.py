"""Closed-form cases of gradient and expectation, on both sides of the line.

The derivatives of F and the expectations of ∂L are formulas here, so that programs can be held against them; the usual
losses, in ``_losses``, are integrated numerically.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Vector = Float[Array, " n"] | Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Case:
    """A loss L(θ, X) of one real parameter, with everything about it in closed form at one θ.

    Attributes:
        name: what it is.
        loss_fn: L, ``loss_fn(theta, x) -> scalar``, as a person would program it.
        quantile: the law of X, as the inverse of its distribution function: ``quantile(U)`` for U uniform in (0, 1).
        theta: where the derivative is taken.
        expectation: F(θ) = E L(θ, X).
        derivative: the left and the right derivative of F at ``theta``; F is differentiable there if they agree.
        expected_gradient: E ∂L(θ, X) at ``theta``, of the derivative that ``jax.grad`` returns; NaN if E|∂L| = ∞.
        second_moment: E (∂L)² at ``theta``: the gradients of minibatches have finite variance if it is finite.
        condition: the condition of :mod:`jaxsgd.exchange` that holds, or what fails.
        holds: whether gradient and expectation may be exchanged at ``theta``.
    """

    name: str
    loss_fn: Callable[[Any, Any], Any]
    quantile: Callable[[Any], Any]
    theta: float
    expectation: Callable[[float], float]
    derivative: tuple[float, float]
    expected_gradient: float
    second_moment: float
    condition: str

    @property
    def holds(self) -> bool:
        """Whether F is differentiable at θ, with derivative E ∂L."""
        left, right = self.derivative
        return left == right == self.expected_gradient

    def gradients(self, uniforms: Vector) -> Float[Array, " n"]:
        """∂L(θ, x) by ``jax.grad`` at the quantiles of given probabilities."""
        x = jnp.asarray(self.quantile(uniforms))
        return jax.vmap(jax.grad(self.loss_fn), in_axes=(None, 0))(jnp.asarray(self.theta, x.dtype), x)

    def losses(self, uniforms: Vector, theta: float | None = None) -> Float[Array, " n"]:
        """L(θ, x) at the quantiles of given probabilities, at ``theta`` or another θ."""
        x = jnp.asarray(self.quantile(uniforms))
        at = jnp.asarray(self.theta if theta is None else theta, x.dtype)
        return jax.vmap(self.loss_fn, in_axes=(None, 0))(at, x)


def _uniform(u: Any) -> Any:
    return u


def _normal(u: Any) -> Any:
    return jax.scipy.special.ndtri(u)


def _cauchy(u: Any) -> Any:
    return jnp.tan(jnp.pi * (u - 0.5))


def _exponential(u: Any) -> Any:
    return -jnp.log1p(-u)


def _student_2(u: Any) -> Any:
    """Student's t with two degrees of freedom: mean 0, infinite variance."""
    return (2 * u - 1) / jnp.sqrt(2 * u * (1 - u))


def _three_atoms(u: Any) -> Any:
    """−1, 0, 1 with probabilities ¼, ½, ¼."""
    return jnp.floor(2 * u + 0.5) - 1


def _density(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def _undominated(theta: Any, x: Any) -> Any:
    return theta**3 / x**2 * jnp.exp(-(theta**2) / x)


def _undominated_second(theta: float) -> float:
    """a² ∫₁^∞ e^{−2au} (3u − 2au²)² du with a = θ², where u = 1/x."""
    a, c = theta**2, 2 * theta**2

    def upper(k: int) -> float:
        return math.exp(-c) * math.factorial(k) / c ** (k + 1) * sum(c**j / math.factorial(j) for j in range(k + 1))

    return a**2 * (9 * upper(2) - 12 * a * upper(3) + 4 * a**2 * upper(4))


def _power(p: float, theta: float) -> dict[str, Any]:
    slope = theta**p - (1 - theta) ** p
    second = p**2 * (theta ** (2 * p - 1) + (1 - theta) ** (2 * p - 1)) / (2 * p - 1) if p > 0.5 else math.inf
    return {
        "loss_fn": lambda t, x: jnp.abs(t - x) ** p,
        "quantile": _uniform,
        "theta": theta,
        "expectation": lambda t: (t ** (p + 1) + (1 - t) ** (p + 1)) / (p + 1),
        "derivative": (slope, slope),
        "expected_gradient": slope,
        "second_moment": second,
    }


def _exponential_growth(theta: float) -> dict[str, Any]:
    slope = 1 / (1 - theta) ** 2
    return {
        "loss_fn": lambda t, x: jnp.exp(t * x),
        "quantile": _exponential,
        "theta": theta,
        "expectation": lambda t: 1 / (1 - t),
        "derivative": (slope, slope),
        "expected_gradient": slope,
        "second_moment": 2 / (1 - 2 * theta) ** 3 if theta < 0.5 else math.inf,
    }


def _huber(theta: float) -> float:
    """F of the Huber loss with δ = 1 under N(0, 1), by parts from its derivative and its value at 0."""
    a, b = theta - 1, theta + 1
    inside = (1 + theta**2) * (_cdf(b) - _cdf(a)) + (theta - 1) * _density(b) - (1 + theta) * _density(a)
    below = (theta - 0.5) * _cdf(a) + _density(a)
    above = -(theta + 0.5) * (1 - _cdf(b)) + _density(b)
    return 0.5 * inside + below + above


def _huber_slope(theta: float) -> float:
    a, b = theta - 1, theta + 1
    return _cdf(a) - (1 - _cdf(b)) + theta * (_cdf(b) - _cdf(a)) + _density(b) - _density(a)


def _huber_second(theta: float) -> float:
    """E clip(θ − X, −1, 1)²."""
    a, b = theta - 1, theta + 1
    inside = (1 + theta**2) * (_cdf(b) - _cdf(a)) + (theta - 1) * _density(b) - (1 + theta) * _density(a)
    return inside + _cdf(a) + 1 - _cdf(b)


def cantor(theta: Any) -> Any:
    """Cantor's function on [0, 1]: continuous, rises from 0 to 1, with derivative 0 almost everywhere."""
    rest, value, weight, flat = theta, jnp.zeros_like(theta), 0.5, jnp.zeros_like(theta, dtype=bool)
    for _ in range(32):
        digit = jnp.clip(jnp.floor(3 * rest), 0, 2)
        value = value + jnp.where(flat | (digit == 0), 0.0, weight)
        flat, rest, weight = flat | (digit == 1), 3 * rest - digit, weight / 2
    return value


CASES: tuple[Case, ...] = (
    Case(
        "smooth, dominated",
        _undominated,
        _uniform,
        0.5,
        lambda t: t * math.exp(-(t**2)),
        (0.5 * math.exp(-0.25),) * 2,
        0.5 * math.exp(-0.25),
        _undominated_second(0.5),
        "b",
    ),
    Case(
        "smooth, not dominated",
        _undominated,
        _uniform,
        0.0,
        lambda t: t * math.exp(-(t**2)),
        (1.0, 1.0),
        0.0,
        0.0,
        "not dominated: sup |∂L| over θ is of the order 1/x",
    ),
    Case(
        "cosine of Cauchy data",
        lambda t, x: jnp.cos(t * x),
        _cauchy,
        0.0,
        lambda t: math.exp(-abs(t)),
        (1.0, -1.0),
        0.0,
        0.0,
        "not dominated: F has a kink where no L has one",
    ),
    Case(
        "indicator",
        lambda t, x: (x < t).astype(t.dtype),
        _uniform,
        0.5,
        lambda t: t,
        (1.0, 1.0),
        0.0,
        0.0,
        "L is not continuous in θ",
    ),
    Case("|θ − x|^¾", **_power(0.75, 0.3), condition="f"),
    Case("|θ − x|^¼", **_power(0.25, 0.3), condition="f"),
    Case(
        "absolute error",
        lambda t, x: jnp.abs(t - x),
        _uniform,
        0.3,
        lambda t: t**2 - t + 0.5,
        (-0.4, -0.4),
        -0.4,
        1.0,
        "c, g",
    ),
    Case(
        "absolute error, Cauchy data",
        lambda t, x: jnp.abs(t - x) - jnp.abs(x),
        _cauchy,
        0.7,
        lambda t: (2 * t * math.atan(t) - math.log1p(t**2)) / math.pi,
        (2 / math.pi * math.atan(0.7),) * 2,
        2 / math.pi * math.atan(0.7),
        1.0,
        "c",
    ),
    Case(
        "absolute error, atom at θ",
        lambda t, x: jnp.abs(t - x),
        _three_atoms,
        0.0,
        lambda t: 0.5 + abs(t) / 2 if abs(t) < 1 else abs(t),
        (-0.5, 0.5),
        0.5,
        1.0,
        "P(L differentiable at θ) = ½",
    ),
    Case("e^{θx}", **_exponential_growth(0.25), condition="b"),
    Case("e^{θx}, infinite variance", **_exponential_growth(0.6), condition="b"),
    Case(
        "relu",
        lambda t, x: jax.nn.relu(t - x),
        _uniform,
        0.4,
        lambda t: t**2 / 2,
        (0.4, 0.4),
        0.4,
        0.4,
        "c, g",
    ),
    Case(
        "second derivative of relu",
        jax.grad(lambda t, x: jax.nn.relu(t - x)),
        _uniform,
        0.4,
        lambda t: t,
        (1.0, 1.0),
        0.0,
        0.0,
        "∂L is not continuous in θ",
    ),
    Case(
        "hinge",
        lambda t, x: jax.nn.relu(1 - t * x),
        lambda u: 2 * u,
        1.0,
        lambda t: 1 - t if t <= 0.5 else 1 / (4 * t),
        (-0.25, -0.25),
        -0.25,
        1 / 6,
        "c, g",
    ),
    Case(
        "moving support, pathwise",
        lambda t, u: t * u,
        _uniform,
        2.0,
        lambda t: t / 2,
        (0.5, 0.5),
        0.5,
        1 / 3,
        "b",
    ),
    Case(
        "moving support, score",
        lambda t, u: jax.lax.stop_gradient(t) * u * jax.lax.stop_gradient(t) / t,  # x p_θ(x) / p_θ₀(x), x = θ₀u
        _uniform,
        2.0,
        lambda t: t / 2,
        (0.5, 0.5),
        -0.5,
        1 / 3,
        "h fails: the support moves with θ",
    ),
    Case(
        "pinball, τ = 0.9",
        lambda t, x: jnp.maximum(0.9 * (x - t), -0.1 * (x - t)),
        _normal,
        0.4,
        lambda t: _density(t) + t * _cdf(t) - 0.9 * t,
        (_cdf(0.4) - 0.9,) * 2,
        _cdf(0.4) - 0.9,
        0.01 * _cdf(0.4) + 0.81 * (1 - _cdf(0.4)),
        "c, g",
    ),
    Case(
        "squared error, infinite variance",
        lambda t, x: 0.5 * t**2 - t * x,
        _student_2,
        0.4,
        lambda t: 0.5 * t**2,
        (0.4, 0.4),
        0.4,
        math.inf,
        "b",
    ),
    Case(
        "Huber",
        lambda t, x: jnp.where(jnp.abs(t - x) <= 1, 0.5 * (t - x) ** 2, jnp.abs(t - x) - 0.5),
        _normal,
        0.4,
        _huber,
        (_huber_slope(0.4),) * 2,
        _huber_slope(0.4),
        _huber_second(0.4),
        "b",
    ),
)
