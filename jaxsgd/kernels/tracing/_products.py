"""Rules of matrix products, which make the outer products, or multiply one of their sides."""

import math
from collections.abc import Sequence
from typing import Any

from jaxsgd._core.sums import einsum
from jaxsgd.kernels.factors import Layout, OuterProducts
from jaxsgd.kernels.tracing._jaxpr import Computed, Graph, Operation, Value, needed
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, common_dtype, outer_products_of, rule


@rule("dot_general", named=True)
def _dot_general(value: Value, operation: Operation) -> Recipe:
    """A matrix product: contracted dimensions are positions, batch dimensions blocks, the rest the two sides."""
    varying = [place for place in (0, 1) if operation.inputs[place].varies]
    if len(varying) == 1:
        try:
            return _side_times(value, operation, *varying)
        except NoRule:  # then it is a product like any other, which is no factor if it is larger than what comes of it
            if math.prod(operation.inputs[varying[0]].shape) >= math.prod(value.shape):
                raise
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


def _side_times(value: Value, operation: Operation, place: int) -> Recipe:
    """A product of the gradient with a matrix that all examples share: (Σ a bᵀ) M = Σ a (Mᵀb)ᵀ, of one side alone.

    So are the gradients of weights that are multiplied with each other before they meet an example.
    """
    contracts, batches = operation.params["dimension_numbers"]
    recipe = outer_products_of(operation.inputs[place])
    b, i, o = recipe.sides
    of_side = {"left": range(b, b + i), "right": range(b + i, b + i + o)}
    contract, theirs = contracts[place], contracts[1 - place]
    side = next((name for name, axes in of_side.items() if sorted(contract) == list(axes) and axes), None)
    if b or batches[0] or recipe.layout.steps or recipe.scales or side is None:
        raise NoRule("a product with one side in part")
    order = [theirs[contract.index(axis)] for axis in of_side[side]]
    matrix = operation.inputs[1 - place]
    free = [axis for axis in range(len(matrix.shape)) if axis not in theirs]
    layout = Layout(value.shape)

    def multiplied(factor: OuterProducts, matrix: Any) -> OuterProducts:
        rest = factor.right if side == "left" else factor.left
        own = factor.left if side == "left" else factor.right
        dtype = common_dtype(own, matrix)
        flat = matrix.transpose((*order, *free)).reshape(own.shape[-1], -1)
        product = einsum("bti,ij->btj", own.astype(dtype), flat.astype(dtype))
        left, right = (rest, product) if place == 0 else (product, rest)
        return OuterProducts(left, right, layout)

    kept, new = (o if side == "left" else i), len(free)
    sides = (0, kept, new) if place == 0 else (0, new, kept)
    return recipe.map_with(multiplied, matrix, layout=layout, sides=sides)


def sum_sides_first(graph: Graph, but: Sequence[Value]) -> None:
    """Compute sums over a side of scaled outer products from the sides, as the gradients of norms of weights take them.

    Σ_i S_io a_i b_o = (Sᵀa)_o b_o takes no outer product of an example. What ``but`` takes is left as it is.
    """
    others = set(needed(but, graph.effectful))
    for operation in graph.operations:
        if operation.name == "reduce_sum" and operation.outputs[0].varies and operation not in others:
            try:
                _sum_sides_first(operation)
            except NoRule:
                continue


def _sum_sides_first(operation: Operation) -> None:
    recipe, axes, (value,) = outer_products_of(operation.inputs[0]), set(operation.params["axes"]), operation.outputs
    b, i, o = recipe.sides
    left, right = set(range(i)), set(range(i, i + o))
    if b or recipe.layout.steps or not recipe.scales or not (left <= axes or right <= axes) or axes & left & right:
        raise NoRule("not a sum over a side")
    if axes not in (left, right, left | right):
        raise NoRule("a sum over one side and a part of the other")
    count = len(recipe.values)

    def sum_of_sides(*arrays: Any) -> Any:
        factor = recipe.build(*arrays[:count])
        a, b = factor.left[0], factor.right[0]
        scales = [scale.of(each, a.dtype) for scale, each in zip(recipe.scales, arrays[count:], strict=True)]
        S = math.prod(scales[1:], start=scales[0]).reshape(a.shape[1], b.shape[1])
        found = einsum("ti,io->to", a, S) * b if left <= axes else einsum("to,io->ti", b, S) * a
        return found.sum(axis=0 if axes != left | right else (0, 1)).reshape(value.shape).astype(value.aval.dtype)

    Computed(value, (*recipe.values, *(scale.value for scale in recipe.scales)), sum_of_sides)


@rule("reduce_sum")
def _reduce_sum(value: Value, operation: Operation) -> Recipe:
    """A sum over blocks turns them into positions."""
    try:
        recipe = outer_products_of(operation.inputs[0])
    except NoRule:
        raise NoRule("a sum over positions") from None
    axes, (blocks, i, o) = operation.params["axes"], recipe.sides
    if recipe.layout.steps or recipe.scales or any(axis >= blocks for axis in axes):
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
