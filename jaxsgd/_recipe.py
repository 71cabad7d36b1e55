"""How to obtain the factor of one parameter's gradient from the values of a traced graph.

Imports ``_factors``, ``_sparse`` and ``_jaxpr`` only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxsgd._factors import Dense, Layout, Outer
from jaxsgd._jaxpr import Value
from jaxsgd._sparse import Sparse

Factor = Dense | Outer | Sparse


@dataclass(frozen=True)
class Recipe:
    """How to obtain a factor: ``build`` applied to the arrays of ``values``, for one example.

    ``kind`` is the class of factor, and ``layout`` and ``blocks`` are what is known of an :class:`Outer` before it is
    built: the layout, and the numbers of dimensions of the layout's base that are blocks, left and right sides.
    """

    kind: type
    values: tuple[Value, ...]
    build: Callable[..., Any]
    layout: Layout = field(default=Layout(()))
    sides: tuple[int, int, int] = (0, 0, 0)

    def map(self, function: Callable[[Any], Any], **changes: Any) -> "Recipe":
        """This recipe with a function applied to the factor."""
        return replace(self, build=lambda *arrays: function(self.build(*arrays)), **changes)


class NoRule(Exception):  # noqa: N818 - not an error: the gradient stays dense, and this says why
    """Why a gradient has no factored form."""
