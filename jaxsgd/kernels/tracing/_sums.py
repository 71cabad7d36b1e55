"""The rule of sums: a parameter that is used more than once."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd.kernels.factors import OuterProducts, Rows, Sum
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, common_dtype, recipe_of, rule


@rule("add_any", "add")
def _sum_of_uses(value: Value, operation: Operation) -> Recipe:
    del operation
    terms = terms_of(value)
    if any(term.shape != value.shape for term in terms):
        raise NoRule("a sum of arrays of different shapes")
    return added([_times(recipe_of(term), count) for term, count in Counter(terms).items()])


def _times(recipe: Recipe, count: int) -> Recipe:
    """The recipe of a term that occurs so many times."""
    if count == 1 or recipe.kind is not OuterProducts:
        return added([recipe] * count)
    return recipe.map(lambda factor: replace(factor, right=count * factor.right))


def terms_of(value: Value) -> list[Value]:
    """What a value is the sum of, in order."""
    terms: list[Value] = []
    open_ = [value]
    while open_ and len(terms) < _MOST_TERMS:
        value = open_.pop()
        if value.operation is not None and value.operation.name in ("add_any", "add"):
            open_ += reversed(value.operation.inputs)
        else:
            terms.append(value)
    return terms + open_[::-1]  # what is left over is no sum that can be taken apart


def added(recipes: Sequence[Recipe]) -> Recipe:
    """The recipe of a sum: positions of all uses side by side; of those that are scaled differently, part by part.

    Raises:
        NoRule: if these are laid out differently.
    """
    groups: dict[Any, list[Recipe]] = {}
    for recipe in recipes:
        if recipe.parts:
            raise NoRule("a sum of sums")
        if recipe.values or recipe.kind is not OuterProducts:
            groups.setdefault(recipe.scales, []).append(recipe)
    if len(groups) <= 1:
        return _side_by_side(next(iter(groups.values()), recipes))
    parts = [_side_by_side(group) for group in groups.values()]
    if any((each.kind, each.layout, each.sides) != (OuterProducts, parts[0].layout, parts[0].sides) for each in parts):
        raise NoRule("a sum of uses that are laid out and scaled differently")
    values = tuple(value for part in parts for value in part.values)
    return Recipe(Sum, values, parts[0].build, parts=tuple(parts), rule=_rules_of(parts))


def _rules_of(recipes: Sequence[Recipe]) -> str:
    return " + ".join(dict.fromkeys(rule for recipe in recipes for rule in recipe.rule.split(" + ") if rule))


def _side_by_side(recipes: Sequence[Recipe]) -> Recipe:
    if len(recipes) == 1 or not recipes[0].values:
        return recipes[0]
    used, rules = list(recipes), _rules_of(recipes)
    join: Callable[[Sequence[Any]], Any] = _joined_rows
    if any(recipe.kind is not Rows for recipe in used):
        used, join = [_as_outer_products(recipe) for recipe in used], _joined_positions
    first = used[0]
    if any((each.layout, each.sides) != (first.layout, first.sides) for each in used):
        raise NoRule("a sum of uses that are laid out differently")

    def build(*arrays: Any) -> Any:
        built, begin = [], 0
        for recipe in used:
            end = begin + len(recipe.values)
            built.append(recipe.build(*arrays[begin:end]))
            begin = end
        return join(built)

    values = tuple(value for recipe in used for value in recipe.values)
    return replace(first, values=values, build=build, direct=None, rule=rules)


def _joined_rows(factors: Sequence[Rows]) -> Rows:
    indices, rows = _concatenated([f.indices for f in factors], 0), _concatenated([f.rows for f in factors], 0)
    return replace(factors[0], indices=indices, rows=rows, are_distinct=False)


def _joined_positions(factors: Sequence[OuterProducts]) -> OuterProducts:
    left, right = _concatenated([f.left for f in factors], 1), _concatenated([f.right for f in factors], 1)
    return OuterProducts(left, right, factors[0].layout)


def _concatenated(arrays: Sequence[Any], axis: int) -> Any:
    if len({array.dtype for array in arrays}) > 1:
        dtype = common_dtype(*arrays)
        arrays = [array.astype(dtype) for array in arrays]
    return jnp.concatenate(arrays, axis=axis)


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


_MOST_TERMS = 100_000  # of a sum; doubling a value again and again would be endless
