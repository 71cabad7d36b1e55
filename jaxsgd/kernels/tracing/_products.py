"""Rules of matrix products, which make the outer products, or multiply one of their sides."""

import math
from typing import Any

from jaxsgd._core.sums import accumulation_dtype, einsum
from jaxsgd.kernels.factors import Layout, OuterProducts
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, outer_products_of, rule


@rule("dot_general", named=True)
def _dot_general(value: Value, operation: Operation) -> Recipe:
    """A matrix product: contracted dimensions are positions, batch dimensions blocks, the rest the two sides."""
    for place in (0, 1):
        if operation.inputs[place].varies and not operation.inputs[1 - place].varies:
            try:
                return _side_times(value, operation, place)
            except NoRule:  # then it is a product like any other
                break
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
        dtype = accumulation_dtype(own, matrix)
        flat = matrix.transpose((*order, *free)).reshape(own.shape[-1], -1)
        product = einsum("bti,ij->btj", own.astype(dtype), flat.astype(dtype))
        left, right = (rest, product) if place == 0 else (product, rest)
        return OuterProducts(left, right, layout)

    kept, new = (o if side == "left" else i), len(free)
    sides = (0, kept, new) if place == 0 else (0, new, kept)
    return recipe.map_with(multiplied, matrix, layout=layout, sides=sides)


@rule("reduce_sum")
def _reduce_sum(value: Value, operation: Operation) -> Recipe:
    """A sum over blocks turns them into positions."""
    recipe = outer_products_of(operation.inputs[0])
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
