"""How the entries of a sum of outer products become the gradient of a parameter of any shape."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@dataclass(frozen=True)
class Layout:
    """How an array of shape ``base`` becomes the gradient: steps that move entries or insert zeros, never mix them.

    Squares, norms and inner products can therefore be taken before or after.
    """

    base: tuple[int, ...]
    steps: tuple[tuple[str, Any], ...] = ()

    def then(self, name: str, argument: Any) -> "Layout":
        """This layout with one more step."""
        return Layout(self.base, (*self.steps, (name, argument)))

    def over(self, length: int) -> "Layout":
        """This layout under one more leading axis."""
        return Layout((length, *self.base), (("each", self.steps),) if self.steps else ())

    def __call__(self, array: Array) -> Array:
        """Lay out one array, of any shape with the size of ``base``."""
        return _lay_out(self.steps, array.reshape(self.base))

    def adjoint(self, array: Array) -> Array:
        """Read an array of the gradient's shape back into the shape ``base``."""
        if not self.steps:
            return array.reshape(self.base)
        base = jax.ShapeDtypeStruct(self.base, array.dtype)  # type: ignore[no-untyped-call]
        (out,) = jax.linear_transpose(self, base)(array)
        return out


def _lay_out(steps: tuple[tuple[str, Any], ...], array: Array) -> Array:
    for name, argument in steps:
        match name:
            case "transpose":
                array = array.transpose(argument)
            case "reshape":
                array = array.reshape(argument)
            case "reverse":
                array = jax.lax.rev(array, argument)
            case "pad":
                array = jax.lax.pad(array, jnp.zeros((), array.dtype), argument)
            case "each":
                array = jax.vmap(partial(_lay_out, argument))(array)
    return array
