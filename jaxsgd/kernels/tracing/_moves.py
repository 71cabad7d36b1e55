"""Rules of primitives that move the entries of a gradient, drop some or put zeros between them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd.kernels.factors import Layout, OuterProducts, Rows
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, is_zero, outer_products_of, recipe_of, rows_of, rule, zero
from jaxsgd.kernels.tracing._sums import added


@rule("copy", "copy_p", "optimization_barrier")
def _passed(value: Value, operation: Operation) -> Recipe:
    if len(operation.inputs) == 1:
        return recipe_of(operation.inputs[0])
    return recipe_of(operation.inputs[operation.outputs.index(value)])


def _moved(recipe: Recipe, name: str, argument: Any) -> Recipe:
    """One more step of the layout, and of those of the scales."""
    layout = recipe.layout.then(name, argument)
    return recipe.map(
        lambda factor: replace(factor, layout=layout),
        layout=layout,
        direct=recipe.direct,
        scales=recipe.moved(name, argument),
    )


@rule("reshape", "squeeze", "expand_dims")
def _reshape(value: Value, operation: Operation) -> Recipe:
    return _moved(outer_products_of(operation.inputs[0]), "reshape", value.shape)


@rule("rev")
def _reverse(value: Value, operation: Operation) -> Recipe:
    del value
    return _moved(outer_products_of(operation.inputs[0]), "reverse", operation.params["dimensions"])


@rule("transpose")
def _transpose(value: Value, operation: Operation) -> Recipe:
    """A transposition that exchanges the two sides of the outer products exchanges the factors instead."""
    del value
    recipe = outer_products_of(operation.inputs[0])
    permutation = operation.params["permutation"]
    b, i, o = recipe.sides
    exchange = (*range(b), *range(b + i, b + i + o), *range(b, b + i))
    if recipe.layout.steps or permutation != exchange:
        return _moved(recipe, "transpose", permutation)
    layout = Layout(tuple(recipe.layout.base[axis] for axis in permutation))
    scales = recipe.moved("transpose", permutation)
    return recipe.map(lambda f: OuterProducts(f.right, f.left, layout), layout=layout, sides=(b, o, i), scales=scales)


@rule("pad")
def _pad(value: Value, operation: Operation) -> Recipe:
    """Zeros around a gradient, or around some rows of it, as of those at indices that are known beforehand."""
    source, config = operation.inputs[0], operation.params["padding_config"]
    if not is_zero(operation.inputs[1]) or any(low < 0 or high < 0 for low, high, _ in config):
        raise NoRule("pad that is not an insertion of zeros")
    try:
        return _moved(outer_products_of(source), "pad", tuple(config))
    except NoRule:
        if not source.shape or any(any(each) for each in config[1:]):
            raise
    (low, _, between), *_ = config
    indices = low + np.arange(source.shape[0]) * (between + 1)

    def build(rows: Any) -> Rows:
        return Rows(jnp.asarray(indices, jnp.int32), rows.reshape(len(indices), -1), value.shape, are_distinct=True)

    return replace(rows_of((source,), build, value.shape, 1), rule="pad")


@rule("broadcast_in_dim")
def _broadcast(value: Value, operation: Operation) -> Recipe:
    source = operation.inputs[0]
    if math.prod(source.shape) != math.prod(value.shape):
        return repeated(source, value.shape, tuple(map(int, operation.params["broadcast_dimensions"])))
    return _moved(outer_products_of(source), "reshape", value.shape)


def repeated(source: Value, shape: tuple[int, ...], places: Sequence[int]) -> Recipe:
    """An array of each example, repeated along the first or the last axes: its outer product with ones."""
    own = {place for place, size in zip(places, source.shape, strict=True) if size > 1}
    first = min(own, default=len(shape))
    if own != set(range(first, first + len(own))) or (first > 0 and first + len(own) < len(shape)):
        raise NoRule("broadcast along axes between others")
    split = 1 if not own else first or len(own)
    layout, sizes = Layout(shape), (math.prod(shape[:split]), math.prod(shape[split:]))

    def build(array: Any) -> OuterProducts:
        numbers = array.reshape(1, 1, -1)
        ones = [_unfolded(jnp.ones((1, 1, size), array.dtype)) for size in sizes]
        left, right = (ones[0], ones[1] * numbers) if first > 0 else (ones[0] * numbers, ones[1])
        return OuterProducts(left, right, layout)

    return Recipe(OuterProducts, (source,), build, layout, (0, split, len(shape) - split), rule="broadcast")


def _unfolded(array: Any) -> Any:
    """A constant that the compiler does not compute with, which takes it longer than the program."""
    return jax.lax.optimization_barrier(array)  # type: ignore[no-untyped-call]


@rule("slice")
def _slice(value: Value, operation: Operation) -> Recipe:
    """A part of the gradient, as of weights that were put together, is the outer products of parts of the sides."""
    params = operation.params
    strides = params["strides"] or (1,) * len(value.shape)
    spans = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    return _of_sides(operation.inputs[0], value, lambda side, axis, k: jax.lax.slice_in_dim(side, *spans[k], axis))


@rule("split")
def _split(value: Value, operation: Operation) -> Recipe:
    along, place = operation.params["axis"], operation.outputs.index(value)
    begin = sum(operation.params["sizes"][:place])

    def part(side: Any, axis: int, k: int) -> Any:
        return jax.lax.slice_in_dim(side, begin, begin + value.shape[along], 1, axis) if k == along else side

    return _of_sides(operation.inputs[0], value, part)


@rule("concatenate")
def _concatenate(value: Value, operation: Operation) -> Recipe:
    """Gradients next to each other, as of weights that were split: the sum of each with zeros around it."""
    along, begin, parts = operation.params["dimension"], 0, []
    for source in operation.inputs:
        end = begin + source.shape[along]
        parts.append(_between_zeros(source, along, begin, value))
        begin = end
    return added(parts)


def _between_zeros(source: Value, along: int, begin: int, value: Value) -> Recipe:
    after = value.shape[along] - begin - source.shape[along]

    def padded(side: Any, axis: int, k: int) -> Any:
        config = [(begin, after, 0) if at == axis and k == along else (0, 0, 0) for at in range(side.ndim)]
        return jax.lax.pad(side, jnp.zeros((), side.dtype), config)

    return _of_sides(source, value, padded)


def _of_sides(source: Value, value: Value, change: Callable[[Any, int, int], Any]) -> Recipe:
    """Outer products whose sides are changed along their own axes: ``change`` of a side, its axis, and the gradient's.

    Only where every axis of the gradient is one of a block or a side.
    """
    recipe = outer_products_of(source)
    if not recipe.values:
        return zero(value)
    if recipe.layout.steps or recipe.scales:
        raise NoRule("a part of what was rearranged or scaled")
    (b, i, _), base, shape, layout = recipe.sides, recipe.layout.base, value.shape, Layout(value.shape)

    def changed(side: Any, axes: range) -> Any:
        """A side (blocks, t, own axes) of shape (b, t, i) with its axes apart, and back."""
        own = [base[k] for k in axes]
        side = jnp.moveaxis(side, 1, 0).reshape(side.shape[1], *base[:b], *own)
        for at, k in enumerate((*range(b), *axes), start=1):
            side = change(side, at, k)
        own = [shape[k] for k in axes]
        return jnp.moveaxis(side.reshape(side.shape[0], math.prod(shape[:b]), math.prod(own)), 0, 1)

    def built(factor: OuterProducts) -> OuterProducts:
        left, right = changed(factor.left, range(b, b + i)), changed(factor.right, range(b + i, len(base)))
        return OuterProducts(left, right, layout)

    return recipe.map(built, layout=layout)
