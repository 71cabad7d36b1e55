"""How to obtain the factor of one parameter's gradient from the values of a traced graph."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxsgd.kernels.factors import Layout
from jaxsgd.kernels.tracing._jaxpr import Value


@dataclass(frozen=True)
class Recipe:
    """How to obtain a factor: ``build`` applied to the arrays of ``values``, for one example.

    ``kind`` is the class of factor, and ``layout`` and ``sides`` are what is known of :class:`OuterProducts` before
    they are built: the layout, and the numbers of dimensions of the layout's base that are blocks, left and right
    sides.
    ``direct`` is a cheaper way from the arrays to the gradient, of the size of the layout's base, where there is one.
    ``shared`` are values, the same for every example, which are added to the gradient.
    ``rule`` names the primitives that were understood, and ``why`` says why none was.
    """

    kind: type
    values: tuple[Value, ...]
    build: Callable[..., Any]
    layout: Layout = field(default=Layout(()))
    sides: tuple[int, int, int] = (0, 0, 0)
    direct: Callable[..., Any] | None = None
    shared: tuple[Value, ...] = ()
    rule: str = ""
    why: str = ""

    def map(self, function: Callable[[Any], Any], **changes: Any) -> "Recipe":
        """This recipe with a function applied to the factor, which the direct way does not know of."""
        changes = {"direct": None} | changes
        return replace(self, build=lambda *arrays: function(self.build(*arrays)), **changes)


class NoRule(Exception):  # noqa: N818 - not an error: the gradient stays dense, and this says why
    """Why a gradient has no factored form."""
