"""How to obtain the factor of one parameter's gradient from the values of a traced graph, and who knows it.

A rule is a function of a value and the operation that produced it; modules of rules register theirs by the names of
primitives with :func:`rule`, and ask for the recipes of operands with :func:`recipe_of`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core.sums import accumulation_dtype
from jaxsgd.kernels.factors import Layout, OuterProducts, Rows
from jaxsgd.kernels.tracing._jaxpr import Operation, Value


class Scale(NamedTuple):
    """By what every example's gradient is multiplied, entry by entry: ``how`` of a value, moved by ``layout``.

    ``how`` is a key of ``HOW``.
    """

    value: Value
    how: str
    layout: Layout

    def of(self, array: Any, dtype: Any) -> Any:
        """The numbers, from the array of the value."""
        return self.layout(jnp.broadcast_to(HOW[self.how](array).astype(dtype), self.layout.base))


HOW: dict[str, Callable[[Any], Any]] = {
    "times": lambda array: array,
    "over": lambda array: 1 / array,
    "where": lambda mask: mask.astype(bool),
    "unless": lambda mask: ~mask.astype(bool),
}


@dataclass(frozen=True)
class Recipe:
    """How to obtain a factor: ``build`` applied to the arrays of ``values``, for one example.

    ``kind`` is the class of factor, and ``layout`` and ``sides`` are what is known of :class:`OuterProducts` before
    they are built: the layout, and the numbers of dimensions of the layout's base that are blocks, left and right
    sides.
    ``direct`` is a cheaper way from the arrays to the gradient, of the size of the layout's base, where there is one.
    ``scales`` are what the gradient is multiplied with after that, the same for every example.
    ``parts`` are the recipes of a :class:`Sum`, in place of all that.
    ``shared`` are values, the same for every example, which are added to the gradient.
    ``rule`` names the primitives that were understood, and ``why`` says why none was.
    """

    kind: type
    values: tuple[Value, ...]
    build: Callable[..., Any]
    layout: Layout = field(default=Layout(()))
    sides: tuple[int, int, int] = (0, 0, 0)
    direct: Callable[..., Any] | None = None
    scales: tuple[Scale, ...] = ()
    parts: tuple["Recipe", ...] = ()
    shared: tuple[Value, ...] = ()
    rule: str = ""
    why: str = ""

    def map(self, function: Callable[[Any], Any], **changes: Any) -> "Recipe":
        """This recipe with a function applied to the factor, which the direct way does not know of."""
        changes = {"direct": None} | changes
        return replace(self, build=lambda *arrays: function(self.build(*arrays)), **changes)

    def map_with(self, function: Callable[..., Any], *more: Value, **changes: Any) -> "Recipe":
        """This recipe with a function applied to the factor and to the arrays of more values."""
        build, count = self.build, len(self.values)
        changes = {"direct": None} | changes
        values = (*self.values, *more)
        return replace(self, values=values, build=lambda *a: function(build(*a[:count]), *a[count:]), **changes)

    def map_parts(self, function: Callable[["Recipe"], "Recipe"]) -> "Recipe":
        """This recipe of a sum with a function applied to the recipe of every part."""
        parts = tuple(map(function, self.parts))
        return replace(self, parts=parts, values=tuple(value for part in parts for value in part.values))

    def used_by_all(self) -> list[Value]:
        """The values outside of ``values`` that it takes, the same for every example."""
        inside = [value for part in self.parts for value in part.used_by_all()]
        return [*self.shared, *(scale.value for scale in self.scales), *inside]

    def moved(self, name: str, argument: Any) -> tuple[Scale, ...]:
        """The scales after one step of a layout."""
        return tuple(scale._replace(layout=scale.layout.then(name, argument)) for scale in self.scales)


class NoRule(Exception):  # noqa: N818 - not an error: the gradient stays dense, and this says why
    """Why a gradient has no factored form."""


Rule = Callable[[Value, Operation], Recipe]
_RULES: dict[str, Rule] = {}
_NAMED: set[str] = set()


def rule(*primitives: str, named: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of some primitives; ``named`` are those that tell how a parameter is used."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(primitives, function))
        if named:
            _NAMED.update(primitives)
        return function

    return register


def recipe_of(value: Value) -> Recipe:
    """The recipe for a value.

    Raises:
        NoRule: if no rule applies.
    """
    if is_zero(value):
        return zero(value)
    if value.operation is None:
        raise NoRule("an input itself")
    name = value.operation.name
    if name not in _RULES:
        raise NoRule(f"no rule for {name}")
    recipe = _RULES[name](value, value.operation)
    if name not in _NAMED:
        return recipe
    return replace(recipe, rule=f"{name} of {recipe.rule}" if recipe.rule else name)


def outer_products_of(value: Value) -> Recipe:
    """The same, where only outer products will do."""
    recipe = recipe_of(value)
    if recipe.kind is not OuterProducts:
        raise NoRule("rearranged rows of a table")
    return recipe


def rows_of(values: tuple[Value, ...], build: Callable[..., Rows], shape: tuple[int, ...], leading: int) -> Recipe:
    """The recipe of rows, with the layout that the same rows have as outer products."""
    layout = Layout((math.prod(shape[:leading]), math.prod(shape[leading:])))
    return Recipe(Rows, values, build, layout if layout.base == shape else layout.then("reshape", shape), (0, 1, 1))


def common_dtype(*arrays: Any) -> Any:
    """What arrays are put together in: what their sums are accumulated in, or complex numbers."""
    if any(jnp.iscomplexobj(array) for array in arrays):
        return np.result_type(*(array.dtype for array in arrays))
    return accumulation_dtype(*arrays)


def is_zero(value: Value) -> bool:
    """Whether it is known to be zero in every entry."""
    while True:
        if value.operation is not None and value.operation.name == "broadcast_in_dim":
            value = value.operation.inputs[0]
        elif value.outside is not None:
            value = value.outside
        else:
            break
    known = value.constant is not None and not isinstance(value.constant, jax.core.Tracer)
    return known and not np.any(value.constant)


def zero(value: Value) -> Recipe:
    """No positions at all: sums over them are zero."""
    shape, dtype = value.shape, value.aval.dtype
    layout = Layout((1, math.prod(shape))).then("reshape", shape)
    return Recipe(
        OuterProducts,
        (),
        lambda: OuterProducts(jnp.zeros((1, 0, 1), dtype), jnp.zeros((1, 0, math.prod(shape)), dtype), layout),
        layout,
        rule="unused",
    )
