"""Rules of loops and branches: what is kept are the operands of every iteration, and of the branch that is taken."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd.kernels.factors import OuterProducts, Rows
from jaxsgd.kernels.tracing._jaxpr import Cond, Operation, Scan, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, recipe_of, rule
from jaxsgd.kernels.tracing._sums import added, terms_of


@rule("scan", named=True)
def _scan(value: Value, operation: Operation) -> Recipe:
    """Weights scanned over give one block for each iteration; weights used in each give its positions side by side."""
    assert isinstance(operation, Scan)
    if value in operation.ys:
        inner = recipe_of(operation.body_ys[operation.ys.index(value)])
        return _stacked(operation, inner)
    place = operation.final.index(value)
    before, after = operation.body_carry[place], operation.body_final[place]
    terms = terms_of(after)
    if terms.count(before) != 1:
        raise NoRule("a scan that does more than add to it")
    terms.remove(before)
    if not terms:
        return recipe_of(operation.initial[place])
    inner = added([recipe_of(term) for term in terms])
    return added([recipe_of(operation.initial[place]), _over_time(operation, inner)])


def _lifted(scan: Scan, inner: Recipe, combine: Callable[[Any], Any], **changes: Any) -> Recipe:
    """The recipe of a value of the body for all iterations, with the scales that these share."""
    if inner.parts:
        raise NoRule("a sum of parts in a loop")
    outside = [scale.value.outside for scale in inner.scales]
    scales = tuple(scale._replace(value=v) for scale, v in zip(inner.scales, outside, strict=True) if v is not None)
    if len(scales) < len(outside):
        raise NoRule("scales of each iteration")
    values = tuple(scan.stack(value) for value in inner.values)
    changes |= {"build": lambda *stacks: combine(jax.vmap(inner.build)(*stacks)), "direct": None}
    return replace(inner, values=values, scales=scales, **changes)


def _stacked(scan: Scan, inner: Recipe) -> Recipe:
    if inner.kind is not OuterProducts or not inner.values:
        raise NoRule("scanned rows of a table")
    if inner.scales:
        raise NoRule("scaled weights that are scanned over")
    layout = inner.layout.over(scan.length)
    b, i, o = inner.sides

    def combine(factor: Any) -> OuterProducts:
        left, right = (array.reshape(-1, *array.shape[2:]) for array in (factor.left, factor.right))
        return OuterProducts(left, right, layout)

    return _lifted(scan, inner, combine, layout=layout, sides=(b + 1, i, o))


def _over_time(scan: Scan, inner: Recipe) -> Recipe:
    if not inner.values:
        return inner
    if inner.kind is Rows:

        def joined(f: Rows) -> Rows:
            rows = f.rows.reshape(-1, f.rows.shape[-1])
            return replace(f, indices=f.indices.reshape(-1), rows=rows, are_distinct=False)

        return _lifted(scan, inner, joined)

    def side_by_side(array: Any) -> Any:
        array = jnp.moveaxis(array, 0, 1)
        return array.reshape(array.shape[0], -1, array.shape[-1])

    return _lifted(scan, inner, lambda f: OuterProducts(side_by_side(f.left), side_by_side(f.right), inner.layout))


@rule("cond", named=True)
def _cond(value: Value, operation: Operation) -> Recipe:
    """What is kept of the branch that is taken; of the others, positions of zeros."""
    if not isinstance(operation, Cond):
        raise NoRule("a choice between platforms")
    place = operation.outputs.index(value)
    recipes = [recipe_of(branch.outputs[place]) for branch in operation.branches]
    return added([_of_branch(operation, k, recipe) for k, recipe in enumerate(recipes)])


def _of_branch(cond: Cond, branch: int, recipe: Recipe) -> Recipe:
    if recipe.scales or recipe.parts:
        raise NoRule("scales of a branch")
    if not recipe.values:
        return recipe
    sides = ("left", "right") if recipe.kind is OuterProducts else ("rows",)

    def where_taken(factor: Any, index: Any) -> Any:
        """Zero where it is not: what is not computed there may have been divided by."""
        kept = {side: getattr(factor, side) for side in sides}
        taken = index.astype(int) == branch
        return replace(factor, **{side: jnp.where(taken, a, jnp.zeros((), a.dtype)) for side, a in kept.items()})

    inside = replace(recipe, values=tuple(cond.of_branch(branch, value) for value in recipe.values))
    return inside.map_with(where_taken, cond.index)
