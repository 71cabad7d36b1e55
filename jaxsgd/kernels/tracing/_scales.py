"""Rules of what multiplies a gradient: numbers of an example, arrays that all examples share, and masks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from jaxsgd.kernels.factors import Layout, OuterProducts
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._moves import repeated
from jaxsgd.kernels.tracing._recipe import HOW, NoRule, Recipe, Scale, is_zero, outer_products_of, recipe_of, rule


@rule("neg")
def _negated(value: Value, operation: Operation) -> Recipe:
    del value
    return _map_side(recipe_of(operation.inputs[0]), lambda side: -side)


@rule("mul", "div")
def _scaled(value: Value, operation: Operation) -> Recipe:
    """By a number, which scales one of the sides, or entry by entry by an array that does not vary."""
    for source, by in (operation.inputs, operation.inputs[::-1]):
        if not source.varies or (operation.name == "div" and by is not operation.inputs[1]):
            continue
        how = "times" if operation.name == "mul" else "over"
        scalar = _scalar(by)
        if scalar is not None:
            combine = jnp.multiply if how == "times" else jnp.divide
            recipe = _of_shape(source, value.shape)
            return _map_side(recipe, lambda side, s, combine=combine: combine(side, _like(s, side)), scalar)
        if not by.varies:
            return _by_entries(_of_shape(source, value.shape), value.shape, by, how)
    raise NoRule(f"{operation.name} entry by entry")


@rule("select_n")
def _masked(value: Value, operation: Operation) -> Recipe:
    """Zero by a mask that does not vary, or altogether in some examples."""
    mask, *cases = operation.inputs
    if len(cases) != 2 or not any(map(is_zero, cases)):
        raise NoRule("select_n with anything but zeros")
    source, how = (cases[1], "where") if is_zero(cases[0]) else (cases[0], "unless")
    scalar = _scalar(mask)
    if scalar is not None:

        def zeroed(side: Any, mask: Any) -> Any:
            return jnp.where(HOW[how](mask), side, jnp.zeros((), side.dtype))

        both = _of_shape(source, value.shape)  # both sides, as 0 times what is not finite would not be 0
        return _map_side(_map_side(both, zeroed, scalar, side="left"), zeroed, scalar)
    if mask.varies:
        raise NoRule("select_n by a mask of each example")
    return _by_entries(_of_shape(source, value.shape), value.shape, mask, how)


def _of_shape(source: Value, shape: tuple[int, ...]) -> Recipe:
    """The recipe of an operand, repeated along axes of length one where the result is larger."""
    return recipe_of(source) if source.shape == shape else repeated(source, shape, tuple(range(len(source.shape))))


def _by_entries(recipe: Recipe, shape: tuple[int, ...], by: Value, how: str) -> Recipe:
    """Times an array: where that is the same along one side of the outer products, it scales the other."""
    if not recipe.values or 0 in shape:
        return recipe
    if recipe.parts:
        return recipe.map_parts(lambda part: _by_entries(part, shape, by, how))
    if jnp.issubdtype(by.aval.dtype, jnp.complexfloating):
        raise NoRule("scales that are complex")
    if recipe.kind is not OuterProducts or recipe.layout.steps:
        return replace(recipe, scales=(*recipe.scales, Scale(by, how, Layout(shape))))
    (b, i, o), base = recipe.sides, recipe.layout.base
    axes, numbers = _varied(by), Scale(by, how, Layout(base))
    for side, own, others in (("right", b + i, range(b, b + i)), ("left", b, range(b + i, b + i + o))):
        if axes & set(others):
            continue
        end = len(base) if side == "right" else b + i

        def scaled(array: Any, by: Any, own: int = own, end: int = end) -> Any:
            scales = numbers.of(by, array.dtype)
            some = tuple(slice(None) if axis < b or own <= axis < end else 0 for axis in range(len(base)))
            return array * scales[some].reshape(array.shape[0], 1, array.shape[2])

        return _map_side(recipe, scaled, by, side=side)
    return replace(recipe, scales=(*recipe.scales, numbers))


def _varied(value: Value) -> set[int]:
    """The axes along which an array may be more than a repetition."""
    if value.operation is not None and value.operation.name == "broadcast_in_dim":
        (source, *_), places = value.operation.inputs, value.operation.params["broadcast_dimensions"]
        return {int(place) for place, size in zip(places, source.shape, strict=True) if size > 1}
    return {axis for axis, size in enumerate(value.shape) if size > 1}


def _scalar(value: Value) -> Value | None:
    """The scalar that an array repeats, or None."""
    while value.shape != () and value.operation is not None and value.operation.name == "broadcast_in_dim":
        value = value.operation.inputs[0]
    return value if value.shape == () else None


def _like(number: Any, side: Any) -> Any:
    return number if jnp.iscomplexobj(number) else number.astype(side.dtype)


def _map_side(recipe: Recipe, function: Callable[..., Any], *by: Value, side: str = "right") -> Recipe:
    """A function of one side of outer products, or of the rows of a table, and of the arrays of more values."""
    if recipe.parts:
        return recipe.map_parts(lambda part: _map_side(part, function, *by, side=side))
    side = side if recipe.kind is OuterProducts else "rows"
    return recipe.map_with(
        lambda factor, *arrays: replace(factor, **{side: function(getattr(factor, side), *arrays)}), *by
    )


# Complex numbers, as of weights in a Fourier basis.


@rule("conj")
def _conjugated(value: Value, operation: Operation) -> Recipe:
    del value
    recipe = _unscaled(operation.inputs[0])
    return recipe.map(lambda f: replace(f, left=jnp.conj(f.left), right=jnp.conj(f.right)))


@rule("real")
def _real(value: Value, operation: Operation) -> Recipe:
    """Re abᵀ = Re a Re bᵀ − Im a Im bᵀ, of twice the positions."""
    del value
    return _part(operation.inputs[0], lambda a, b: (a.real, b.real, a.imag, -b.imag))


@rule("imag")
def _imaginary(value: Value, operation: Operation) -> Recipe:
    """Im abᵀ = Re a Im bᵀ + Im a Re bᵀ."""
    del value
    return _part(operation.inputs[0], lambda a, b: (a.real, b.imag, a.imag, b.real))


@rule("convert_element_type")
def _converted(value: Value, operation: Operation) -> Recipe:
    """Another precision, unless digits were lost on the way to it; of complex numbers, their real part."""
    (source,), after = operation.inputs, value.aval.dtype
    if not jnp.issubdtype(after, jnp.inexact) or (_is_wider(after, source.aval.dtype) and _was_narrowed(source)):
        raise NoRule("a gradient that is rounded on the way")
    if jnp.issubdtype(source.aval.dtype, jnp.complexfloating) and not jnp.issubdtype(after, jnp.complexfloating):
        return _real(value, operation)
    return recipe_of(source)


@rule("reduce_precision")
def _rounded(value: Value, operation: Operation) -> Recipe:
    """To what the type holds anyway, as ``jax.checkpoint`` does."""
    params, held = operation.params, jnp.finfo(value.aval.dtype)  # type: ignore[no-untyped-call]
    if params["exponent_bits"] < held.nexp or params["mantissa_bits"] < held.nmant:
        raise NoRule("a gradient that is rounded on the way")
    return recipe_of(operation.inputs[0])


def _was_narrowed(value: Value) -> bool:
    """Whether a value was converted to fewer digits, and only moved since."""
    while value.operation is not None and len(value.operation.inputs) == 1:
        (source,) = value.operation.inputs
        if value.operation.name == "convert_element_type" and _is_wider(source.aval.dtype, value.aval.dtype):
            return True
        value = source
    return False


def _is_wider(first: Any, second: Any) -> bool:
    """Whether a type has more digits, or larger numbers, than another."""
    if not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in (first, second)):
        return not jnp.issubdtype(second, jnp.inexact)
    a, b = jnp.finfo(first), jnp.finfo(second)  # type: ignore[no-untyped-call]
    return bool(a.nmant > b.nmant or a.nexp > b.nexp)


def _part(source: Value, parts: Callable[[Any, Any], tuple[Any, Any, Any, Any]]) -> Recipe:
    def built(factor: OuterProducts) -> OuterProducts:
        a, b, c, d = parts(factor.left, factor.right)
        return OuterProducts(jnp.concatenate([a, c], axis=1), jnp.concatenate([b, d], axis=1), factor.layout)

    return _unscaled(source).map(built)


def _unscaled(source: Value) -> Recipe:
    recipe = outer_products_of(source)
    if recipe.scales:
        raise NoRule("a complex gradient that was scaled")
    return recipe
