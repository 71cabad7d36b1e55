"""How many digits may cancel in the sums of squares of gradients.

Squares about a mean are cheapest as Σg² − nḡ², a difference of two sums. With κ = Σg² / (Σg² − nḡ²), the relative error
of the difference is up to 2κ times that of the sums: log₂ κ bits of the 24 of float32 are lost. As the difference is at
hand, so is κ, and one that is larger than a threshold in any entry is not used (:func:`difference`).

    CHEAP_CANCELLATION = 8    3 bits, 21 are left: beyond, the same from h = g − ĀᵀB̄, whose mean is small
    MAX_CANCELLATION = 64     6 bits, 18 are left: beyond, with h too, centered gradients formed one by one

The first is stricter because what follows it is cheap: two more matrix products. After the second come n outer products
that are not a matrix product any more, and 18 bits, a relative error of 4·10⁻⁶, are more than a sample of gradients
determines. That much is an argument for the order of the two; their values are choices. In float64 they are the same,
where 47 bits are left and fewer would do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

MAX_CANCELLATION = 64.0  # Σh² over Σ(h − h̄)²; see above
CHEAP_CANCELLATION = 8.0


def difference(larger: Array, smaller: Array, most: float, otherwise: Callable[[], Array]) -> Array:
    """Larger − smaller, unless some entry of it is less than larger / ``most``."""
    difference = larger - smaller
    return jax.lax.cond(jnp.any(larger > most * difference), otherwise, lambda: difference)
