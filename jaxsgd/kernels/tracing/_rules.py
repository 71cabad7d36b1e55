"""The rules: which operation produced a gradient, and what of it to keep.

:func:`find` walks back from the gradient of a parameter to the operation that produced it and keeps that operation's
operands instead of its result: for the weights of a dense layer, the layer's input and the gradient of its output. Each
rule is named after the primitive it understands. Where none applies the gradient itself is kept: slower, never wrong.

The obvious way is a rule for every kind of layer. Here no layer is known, only equations of the gradient, so that a few
rules serve a layer however it is written. *Producing* rules, of a product, a convolution, an addition of rows, make a
factor of the operands, and the walk ends. Rules *passing on*, of a transposition, a scale, a sum of two uses, go to the
operand and change what comes of it. A scan does either. All this happens to recipes, before an array is computed.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core.sums import accumulation_dtype
from jaxsgd.kernels.factors import Dense, Layout, OuterProducts, Rows, wide
from jaxsgd.kernels.tracing._convolution import convolution
from jaxsgd.kernels.tracing._jaxpr import Operation, Scan, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe


def find(value: Value) -> Recipe:
    """The recipe for a value: factored where a rule applies, else dense."""
    terms = _terms(value)
    shared = tuple(term for term in terms if not term.varies and not _is_zero(term))
    try:
        if not shared:
            return _find(value)
        varying = [_find(term) for term in terms if term.varies]
        recipe = functools.reduce(_added, varying, _zero(value))
    except NoRule as reason:
        return _dense(value, str(reason))
    return replace(recipe, shared=shared)


def _find(value: Value) -> Recipe:
    if value.operation is None:
        if _is_zero(value):
            return _zero(value)
        raise NoRule("an input itself")
    rule = _RULES.get(value.operation.name)
    if rule is None:
        raise NoRule(f"no rule for {value.operation.name}")
    recipe, name = rule(value, value.operation), value.operation.name
    return replace(recipe, rule=f"{name} of {recipe.rule}" if recipe.rule else name) if name in _NAMED else recipe


def _is_zero(value: Value) -> bool:
    known = value.constant is not None and not isinstance(value.constant, jax.core.Tracer)
    return known and not np.any(value.constant)


def _dense(value: Value, why: str) -> Recipe:
    return Recipe(Dense, (value,), lambda array: Dense(array, why), why=why)


def _zero(value: Value) -> Recipe:
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


# Rules that pass a factor on.


def _rearranged(name: str, argument: Callable[[Value, Operation], Any]) -> Callable[[Value, Operation], Recipe]:
    """The rule of a primitive that only moves entries: one more step of the layout."""

    def rule(value: Value, operation: Operation) -> Recipe:
        recipe = _outer_products_of(operation.inputs[0])
        layout = recipe.layout.then(name, argument(value, operation))
        return recipe.map(lambda factor: replace(factor, layout=layout), layout=layout, direct=recipe.direct)

    return rule


def _transpose(value: Value, operation: Operation) -> Recipe:
    """A transposition that exchanges the two sides of the outer products exchanges the factors instead."""
    recipe = _outer_products_of(operation.inputs[0])
    permutation = operation.params["permutation"]
    b, i, o = recipe.sides
    exchange = (*range(b), *range(b + i, b + i + o), *range(b, b + i))
    if recipe.layout.steps or permutation != exchange:
        return _rearranged("transpose", lambda *_: permutation)(value, operation)
    layout = Layout(tuple(recipe.layout.base[axis] for axis in permutation))
    return recipe.map(lambda f: OuterProducts(f.right, f.left, layout), layout=layout, sides=(b, o, i))


def _pad(value: Value, operation: Operation) -> Recipe:
    config = operation.params["padding_config"]
    if not _is_zero(operation.inputs[1]) or any(low < 0 or high < 0 for low, high, _ in config):
        raise NoRule("pad that is not an insertion of zeros")
    return _rearranged("pad", lambda *_: tuple(config))(value, operation)


def _passed(value: Value, operation: Operation) -> Recipe:
    del value
    return _find(operation.inputs[0])


def _broadcast(value: Value, operation: Operation) -> Recipe:
    source = operation.inputs[0]
    if _is_zero(source):
        return _zero(value)
    if math.prod(source.shape) != math.prod(value.shape):
        raise NoRule("broadcast")
    return _rearranged("reshape", lambda value, _: value.shape)(value, operation)


def _negated(value: Value, operation: Operation) -> Recipe:
    del value
    return _map_right(_find(operation.inputs[0]), lambda right: -right)


def _scaled(value: Value, operation: Operation) -> Recipe:
    """A product with, or a quotient by, a scalar scales one of the factors."""
    del value
    combine = jnp.multiply if operation.name == "mul" else jnp.divide
    for source, scale in (operation.inputs, operation.inputs[::-1]):
        scalar = _scalar(scale)
        if scalar is None or (operation.name == "div" and scale is not operation.inputs[1]):
            continue
        recipe = _find(source)
        if recipe.kind is Dense:
            break
        rest, side = recipe.build, "right" if recipe.kind is OuterProducts else "rows"

        def build(by: Any, *arrays: Any, rest: Any = rest, side: str = side) -> Any:
            factor = rest(*arrays)
            array = getattr(factor, side)
            return replace(factor, **{side: combine(array, by.astype(array.dtype))})

        return replace(recipe, values=(scalar, *recipe.values), build=build, direct=None)
    raise NoRule(f"{operation.name} entry by entry")


def _scalar(value: Value) -> Value | None:
    """The scalar that an array repeats, or None."""
    while value.shape != () and value.operation is not None and value.operation.name == "broadcast_in_dim":
        value = value.operation.inputs[0]
    return value if value.shape == () else None


def _sum_of_uses(value: Value, operation: Operation) -> Recipe:
    """The gradient of a parameter that is used more than once: positions of all uses side by side."""
    del value
    return _added(_find(operation.inputs[0]), _find(operation.inputs[1]))


def _added(first: Recipe, second: Recipe) -> Recipe:
    for recipe, other in ((first, second), (second, first)):
        if recipe.kind is OuterProducts and not recipe.values:
            return other
    rule = " + ".join(dict.fromkeys(rule for recipe in (first, second) for rule in recipe.rule.split(" + ")))
    if first.kind is Rows and second.kind is Rows:
        join = _joined(first, second, _joined_rows)
    else:
        first, second = _as_outer_products(first), _as_outer_products(second)
        if first.layout != second.layout or first.sides != second.sides:
            raise NoRule("a sum of uses that are laid out differently")
        join = _joined(first, second, _joined_positions)
    return replace(first, values=(*first.values, *second.values), build=join, direct=None, rule=rule)


def _joined(first: Recipe, second: Recipe, join: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    split = len(first.values)
    return lambda *arrays: join(first.build(*arrays[:split]), second.build(*arrays[split:]))


def _joined_rows(a: Rows, b: Rows) -> Rows:
    return Rows(_concatenated(a.indices, b.indices, 0), _concatenated(a.rows, b.rows, 0), a.shape)


def _joined_positions(a: OuterProducts, b: OuterProducts) -> OuterProducts:
    return OuterProducts(_concatenated(a.left, b.left, 1), _concatenated(a.right, b.right, 1), a.layout)


def _concatenated(first: Any, second: Any, axis: int) -> Any:
    if first.dtype != second.dtype:
        dtype = accumulation_dtype(first, second)
        first, second = first.astype(dtype), second.astype(dtype)
    return jnp.concatenate([first, second], axis=axis)


def _as_outer_products(recipe: Recipe) -> Recipe:
    """Rows of a table as outer products with unit vectors, to be joined with others."""
    if recipe.kind is OuterProducts:
        return recipe
    if recipe.kind is not Rows:
        raise NoRule("a sum with a dense part")
    num_rows = recipe.layout.base[0]

    def products(factor: Rows) -> OuterProducts:
        units = jax.nn.one_hot(factor.indices, num_rows, dtype=factor.rows.dtype)
        return OuterProducts(units[None], factor.rows[None], recipe.layout)

    return recipe.map(products, kind=OuterProducts, sides=(0, 1, 1))


def _outer_products_of(value: Value) -> Recipe:
    recipe = _find(value)
    if recipe.kind is not OuterProducts:
        raise NoRule("rearranged rows of a table")
    return recipe


def _map_right(recipe: Recipe, function: Callable[[Any], Any]) -> Recipe:
    side = "right" if recipe.kind is OuterProducts else "rows"
    return recipe.map(lambda factor: replace(factor, **{side: function(getattr(factor, side))}))


# Rules that produce a factor.


def _dot_general(value: Value, operation: Operation) -> Recipe:
    """A matrix product: contracted dimensions are positions, batch dimensions blocks, the rest the two sides."""
    (left_contract, right_contract), (left_batch, right_batch) = operation.params["dimension_numbers"]
    left, right = operation.inputs
    blocks = len(left_batch)

    def grouped(array: Any, batch: Any, contract: Any) -> Any:
        free = [axis for axis in range(array.ndim) if axis not in (*batch, *contract)]
        sizes = [math.prod(array.shape[axis] for axis in axes) for axes in (batch, contract, free)]
        return array.transpose((*batch, *contract, *free)).reshape(sizes)

    layout = Layout(value.shape)
    return Recipe(
        OuterProducts,
        (left, right),
        lambda a, b: OuterProducts(
            grouped(a, left_batch, left_contract), grouped(b, right_batch, right_contract), layout
        ),
        layout,
        (blocks, len(left.shape) - blocks - len(left_contract), len(right.shape) - blocks - len(right_contract)),
    )


def _reduce_sum(value: Value, operation: Operation) -> Recipe:
    """A sum over blocks turns them into positions."""
    recipe = _outer_products_of(operation.inputs[0])
    axes, (blocks, i, o) = operation.params["axes"], recipe.sides
    if recipe.layout.steps or any(axis >= blocks for axis in axes):
        raise NoRule("a sum over positions")
    shape = recipe.layout.base[:blocks]
    kept = [axis for axis in range(blocks) if axis not in axes]

    def merged(array: Any) -> Any:
        array = array.reshape(*shape, *array.shape[1:])
        array = array.transpose((*kept, *axes, *range(blocks, blocks + 2)))
        return array.reshape(math.prod(shape[axis] for axis in kept), -1, array.shape[-1])

    layout = Layout(value.shape)
    return recipe.map(
        lambda f: OuterProducts(merged(f.left), merged(f.right), layout), layout=layout, sides=(len(kept), i, o)
    )


def _scatter_add(value: Value, operation: Operation) -> Recipe:
    """Rows added to a table of zeros, as the gradient of an embedding does."""
    table, indices, updates = operation.inputs
    numbers, mode = operation.params["dimension_numbers"], operation.params["mode"]
    width = len(value.shape) - 1
    positions = len(updates.shape) - width
    if (
        numbers.inserted_window_dims != (0,)
        or numbers.scatter_dims_to_operand_dims != (0,)
        or numbers.update_window_dims != tuple(range(positions, len(updates.shape)))
        or updates.shape[positions:] != value.shape[1:]
    ):
        raise NoRule("scatter-add of anything but whole rows")
    num_rows, row = value.shape[0], math.prod(value.shape[1:])

    def build(indices: Any, updates: Any) -> Rows:
        flat = wide(indices.reshape(-1))
        if mode == jax.lax.GatherScatterMode.CLIP:
            flat = jnp.clip(flat, 0, num_rows - 1)
        inside = (flat >= 0) & (flat < num_rows)
        rows = jnp.where(inside[:, None], updates.reshape(-1, row), jnp.zeros((), updates.dtype))  # not 0 · NaN
        return Rows(jnp.where(inside, flat, num_rows), rows, value.shape)

    layout = Layout((num_rows, row)) if width == 1 else Layout(())
    return _added(_find(table), Recipe(Rows, (indices, updates), build, layout, (0, 1, 1)))


def _update_slice(value: Value, operation: Operation) -> Recipe:
    """Whole rows written into a table of zeros, as the gradient of a look-up of one row does."""
    table, rows, start, *_ = operation.inputs  # the other starts are clamped to 0, since rows are whole
    if _find(table).values or rows.shape[1:] != value.shape[1:]:
        raise NoRule("dynamic_update_slice of anything but whole rows")
    count, num_rows, row = rows.shape[0], value.shape[0], math.prod(value.shape[1:])

    def build(rows: Any, start: Any) -> Rows:
        first = jnp.clip(start, 0, num_rows - count)
        return Rows(first + jnp.arange(count, dtype=first.dtype), rows.reshape(count, row), value.shape)

    return Recipe(Rows, (rows, start), build, Layout((num_rows, row)), (0, 1, 1))


def _scan(value: Value, operation: Operation) -> Recipe:
    """Weights scanned over give one block for each iteration; weights used in each give its positions side by side."""
    assert isinstance(operation, Scan)
    if value in operation.ys:
        inner = _find(operation.body_ys[operation.ys.index(value)])
        return _stacked(operation, inner)
    place = operation.final.index(value)
    before, after = operation.body_carry[place], operation.body_final[place]
    terms = _terms(after)
    if before not in terms or terms.count(before) > 1:
        raise NoRule("a scan that does more than add to it")
    terms.remove(before)
    inner = _find(terms[0])
    for term in terms[1:]:
        inner = _added(inner, _find(term))
    return _added(_find(operation.initial[place]), _over_time(operation, inner))


def _terms(value: Value) -> list[Value]:
    """What a value is the sum of."""
    if value.operation is not None and value.operation.name in ("add_any", "add"):
        return [term for source in value.operation.inputs for term in _terms(source)]
    return [value]


def _lifted(scan: Scan, inner: Recipe, combine: Callable[[Any], Any], **changes: Any) -> Recipe:
    values = tuple(scan.stack(value) for value in inner.values)
    changes |= {"build": lambda *stacks: combine(jax.vmap(inner.build)(*stacks)), "direct": None}
    return replace(inner, values=values, **changes)


def _stacked(scan: Scan, inner: Recipe) -> Recipe:
    if inner.kind is not OuterProducts or not inner.values:
        raise NoRule("scanned rows of a table")
    layout = inner.layout.over(scan.length)
    b, i, o = inner.sides

    def combine(factor: Any) -> OuterProducts:
        left, right = (array.reshape(-1, *array.shape[2:]) for array in (factor.left, factor.right))
        return OuterProducts(left, right, layout)

    return _lifted(scan, inner, combine, layout=layout, sides=(b + 1, i, o))


def _over_time(scan: Scan, inner: Recipe) -> Recipe:
    if inner.kind is Rows:
        return _lifted(
            scan, inner, lambda f: Rows(f.indices.reshape(-1), f.rows.reshape(-1, f.rows.shape[-1]), f.shape)
        )
    if inner.kind is not OuterProducts:
        raise NoRule("a sum over time with a dense part")
    if not inner.values:
        return inner

    def side_by_side(array: Any) -> Any:
        array = jnp.moveaxis(array, 0, 1)
        return array.reshape(array.shape[0], -1, array.shape[-1])

    return _lifted(scan, inner, lambda f: OuterProducts(side_by_side(f.left), side_by_side(f.right), inner.layout))


_RULES: dict[str, Callable[[Value, Operation], Recipe]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": convolution,
    "scatter-add": _scatter_add,
    "dynamic_update_slice": _update_slice,
    "scan": _scan,
    "reduce_sum": _reduce_sum,
    "add_any": _sum_of_uses,
    "add": _sum_of_uses,
    "mul": _scaled,
    "div": _scaled,
    "neg": _negated,
    "transpose": _transpose,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _rearranged("reshape", lambda value, _: value.shape)),
    "rev": _rearranged("reverse", lambda _, operation: operation.params["dimensions"]),
    "broadcast_in_dim": _broadcast,
    "pad": _pad,
    "convert_element_type": _passed,
    "copy": _passed,
    "copy_p": _passed,
    "reduce_precision": _passed,
    "optimization_barrier": _passed,
}

# The primitives that tell how a parameter is used; the others only move or scale entries.
_NAMED = {"dot_general", "conv_general_dilated", "scatter-add", "dynamic_update_slice", "scan"}
