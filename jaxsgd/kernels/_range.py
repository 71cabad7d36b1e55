"""Squares that are too small for the dtype: told by those of gradients that are larger by a power of two."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsgd._core import devices, units


def require_squares(g: Any, squares: Array) -> None:
    """Raise if the squares of gradients, or of their deviations, are less than the dtype holds.

    Args:
        g: gradients of finite norms.
        squares: of gradients or deviations: where the largest is far from the smallest numbers, nothing else is looked
            at, and nothing at all under a transformation.
    """
    if isinstance(squares, jax.core.Tracer) or float(squares.max(initial=0)) >= units.smallest_square(squares.dtype):
        return
    limits = jnp.finfo(squares.dtype)  # type: ignore[no-untyped-call]
    exponent = 1 - limits.minexp // 2
    own, larger = ((each.squared_norms(), each.squared_deviations()) for each in (g, g.times(2.0**exponent)))
    for few, more in zip(own, larger, strict=True):
        found, expected = (devices.on_host(each).astype(np.longdouble) for each in (few, more))
        lost = np.abs(np.ldexp(found, 2 * exponent) - expected)
        if lost.max() > 4 * float(limits.eps) * expected.max():
            raise ValueError(
                f"squared gradient norms underflow {squares.dtype}: scale the loss up, or use float64 parameters"
            )
