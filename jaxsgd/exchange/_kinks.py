"""What automatic differentiation returns at kinks, ties and overflows, against the truth.

Automatic differentiation acts on programs: programs of the same function can differ at a kink (J. Bolte and E. Pauwels,
"A mathematical model for automatic differentiation in machine learning", NeurIPS 2020).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Kink:
    """A program at a point where its derivative needs care.

    Attributes:
        program: its text.
        fn: itself, of one real number.
        at: the point.
        returned: what ``jax.grad`` returns there (jax 0.10 to 0.12).
        truth: the least and the largest subgradient of the function; equal where it has a derivative.
    """

    program: str
    fn: Callable[[Any], Any]
    at: int | float
    returned: int | float
    truth: tuple[int | float, int | float]

    @property
    def is_subgradient(self) -> bool:
        """Whether what is returned lies among the subgradients."""
        return self.truth[0] <= self.returned <= self.truth[1]


def _ramp(x: Any) -> Any:
    return jnp.where(x >= 0, x, 0.0)


def _zero_sum(x: Any) -> Any:
    return jnp.maximum(x, 0.0) - jnp.maximum(jnp.maximum(x, 0.0), 0.0)


def _masked_sqrt(x: Any) -> Any:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


KINKS: tuple[Kink, ...] = (
    Kink("relu(x)", jax.nn.relu, 0, 0, (0, 1)),
    Kink("maximum(x, 0)", lambda x: jnp.maximum(x, 0.0), 0, 0.5, (0, 1)),
    Kink("where(x > 0, x, 0)", lambda x: jnp.where(x > 0, x, 0.0), 0, 0, (0, 1)),
    Kink("where(x >= 0, x, 0)", _ramp, 0, 1, (0, 1)),
    Kink("maximum(maximum(x, 0), 0)", lambda x: jnp.maximum(jnp.maximum(x, 0.0), 0.0), 0, 0.25, (0, 1)),
    Kink("abs(x)", jnp.abs, 0, 1, (-1, 1)),
    Kink("abs(-x)", lambda x: jnp.abs(-x), 0, -1, (-1, 1)),
    Kink("clip(x, 0, 1)", lambda x: jnp.clip(x, 0.0, 1.0), 0, 0.5, (0, 1)),
    Kink("relu6(x)", jax.nn.relu6, 6, 0, (0, 1)),
    Kink("hard_tanh(x)", jax.nn.hard_tanh, 1, 1, (0, 1)),
    Kink("leaky_relu(x)", jax.nn.leaky_relu, 0, 1, (0.01, 1)),
    Kink("elu(x)", jax.nn.elu, 0, 1, (1, 1)),
    Kink("relu(1 - x)", lambda x: jax.nn.relu(1 - x), 1, 0, (-1, 0)),
    Kink("maximum(0, 1 - x)", lambda x: jnp.maximum(0.0, 1 - x), 1, -0.5, (-1, 0)),
    Kink("maximum(0.9x, -0.1x)", lambda x: jnp.maximum(0.9 * x, -0.1 * x), 0, 0.4, (-0.1, 0.9)),
    Kink("where(x >= 0, 0.9x, -0.1x)", lambda x: jnp.where(x >= 0, 0.9 * x, -0.1 * x), 0, 0.9, (-0.1, 0.9)),
    Kink("maximum(x, 0) - maximum(-x, 0)", lambda x: jnp.maximum(x, 0.0) - jnp.maximum(-x, 0.0), 0, 1, (1, 1)),
    Kink("relu(x) - relu(-x)", lambda x: jax.nn.relu(x) - jax.nn.relu(-x), 0, 0, (1, 1)),
    Kink("w(x) - w(-x), w = where(x >= 0, x, 0)", lambda x: _ramp(x) - _ramp(-x), 0, 2, (1, 1)),
    Kink("maximum(x, 0) - maximum(maximum(x, 0), 0)", _zero_sum, 0, 0.25, (0, 0)),
    Kink("where(x == 0, 0, x)", lambda x: jnp.where(x == 0, 0.0, x), 0, 0, (1, 1)),
    Kink("where(x == 0.5, 0.25, x**2)", lambda x: jnp.where(x == 0.5, 0.25, x**2), 0.5, 0, (1, 1)),
    Kink("sqrt(x**2)", lambda x: jnp.sqrt(x**2), 0, NAN, (-1, 1)),
    Kink("sqrt(x)**2", lambda x: jnp.sqrt(x) ** 2, 0, NAN, (1, 1)),
    Kink("sqrt(x)", jnp.sqrt, 0, INF, (INF, INF)),
    Kink("norm([x, 0])", lambda x: jnp.linalg.norm(jnp.stack([x, 0 * x])), 0, NAN, (-1, 1)),
    Kink("norm([x, 0])**2", lambda x: jnp.linalg.norm(jnp.stack([x, 0 * x])) ** 2, 0, NAN, (0, 0)),
    Kink("std([x, 0])", lambda x: jnp.std(jnp.stack([x, 0 * x])), 0, NAN, (-0.5, 0.5)),
    Kink("where(x > 0, sqrt(x), 0)", lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0), 0, NAN, (0, INF)),
    Kink("where(x > 0, sqrt(where(x > 0, x, 1)), 0)", _masked_sqrt, 0, 0, (0, INF)),
    Kink("where(x == 0, 1, sin(x)/x)", lambda x: jnp.where(x == 0, 1.0, jnp.sin(x) / x), 0, NAN, (0, 0)),
    Kink("x log(x)", lambda x: x * jnp.log(x), 0, NAN, (-INF, -INF)),
    Kink("xlogy(x, x)", lambda x: jax.scipy.special.xlogy(x, x), 0, NAN, (-INF, -INF)),
    Kink("power(abs(x), 1.5)", lambda x: jnp.power(jnp.abs(x), 1.5), 0, 0, (0, 0)),
    Kink("log(sigmoid(x))", lambda x: jnp.log(jax.nn.sigmoid(x)), -1000, NAN, (1, 1)),
    Kink("log_sigmoid(x)", jax.nn.log_sigmoid, -1000, 1, (1, 1)),
    Kink("log(1 + exp(x))", lambda x: jnp.log(1 + jnp.exp(x)), 1000, NAN, (1, 1)),
    Kink("softplus(x)", jax.nn.softplus, 1000, 1, (1, 1)),
    Kink("max([x, 1, 0])", lambda x: jnp.max(jnp.stack([x, x * 0 + 1, x * 0])), 1, 0.5, (0, 1)),
    Kink("sort([x, 1])[-1]", lambda x: jnp.sort(jnp.stack([x, x * 0 + 1]))[-1], 1, 0, (0, 1)),
)
