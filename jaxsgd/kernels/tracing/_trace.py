"""From the loss of one example to the factored gradients of a batch.

The loss of ONE example is differentiated and traced, ``_rules`` finds for every parameter the operands that its
gradient is made of, and those operands, not the gradients, are computed for the whole batch under ``vmap``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jaxsgd._core.sums import examples_at_a_time, varying_like
from jaxsgd.kernels.factors import Dense, Factor, OuterProducts, WithSharedPart, dense_one_by_one
from jaxsgd.kernels.tracing._jaxpr import Operation, Value, evaluate, trace
from jaxsgd.kernels.tracing._recipe import Recipe
from jaxsgd.kernels.tracing._rules import find


def loss_and_factors(
    loss_fn: Callable[[Any, Any], Any], params: PyTree, batch: PyTree, *, has_aux: bool = False
) -> tuple[Any, tuple[Factor, ...], tuple[str, ...]]:
    """The losses of n examples, shape (n,), and for every parameter the factor of its gradients and the rule.

    As in ``jax.value_and_grad``, ``has_aux`` is of a loss that returns (loss, aux), and makes (losses, aux) of losses.
    """
    params = varying_like(batch, params)
    graph, recipes, returned = _plan(loss_fn, params, batch, has_aux)
    num_params = len(jax.tree.leaves(params))
    known_params = dict(zip(graph.inputs, jax.tree.leaves(params), strict=False))

    def of_one(values: list[Value], example: PyTree, effectful: Sequence[Operation] = ()) -> list[Any]:
        known = known_params | dict(zip(graph.inputs[num_params:], jax.tree.leaves(example), strict=True))
        return evaluate(values, known, effectful)

    count = len(jax.tree.leaves(batch)[0])
    dense = [recipe for recipe in recipes if recipe.kind is Dense]
    alone = {recipe.values[0]: recipe for recipe in dense} if _are_better_alone(dense, count) else {}
    together = [recipe for recipe in recipes if recipe not in alone.values()]
    results = graph.outputs[: returned.num_leaves]
    values = [*results, *(value for recipe in together for value in recipe.values)]
    arrays = jax.vmap(lambda example: of_one(values, example, graph.effectful))(batch)
    losses, arrays = returned.unflatten(arrays[: len(results)]), arrays[len(results) :]
    factors: dict[Recipe, Factor] = {}
    shared = [value for recipe in together for value in recipe.shared]
    known = known_params | dict(zip(shared, evaluate(shared, known_params), strict=True))
    for recipe in together:
        mine, arrays = arrays[: len(recipe.values)], arrays[len(recipe.values) :]
        base = _built(recipe, mine, count)
        factors[recipe] = WithSharedPart(base, sum(known[value] for value in recipe.shared)) if recipe.shared else base
    if alone:
        whys = [recipe.why for recipe in alone.values()]
        found = dense_one_by_one(lambda example: tuple(of_one(list(alone), example)), (batch,), 1, whys)
        factors |= zip(alone.values(), found, strict=True)
    return losses, tuple(factors[recipe] for recipe in recipes), tuple(recipe.rule or "none" for recipe in recipes)


def _are_better_alone(dense: list[Recipe], count: int) -> bool:
    """Whether to compute dense gradients for one example after the other.

    On a CPU, where each is large enough to keep it busy and its cache does not hold all.
    """
    largest = max((math.prod(recipe.values[0].shape) for recipe in dense), default=0)
    return jax.default_backend() == "cpu" and largest > _LARGE and count * largest > _LARGER


def _built(recipe: Recipe, arrays: list[Any], count: int) -> Factor:
    """The factor of ``count`` examples; where the gradients are smaller than their factors, the gradients."""
    if recipe.kind is not OuterProducts or not recipe.values:
        return jax.vmap(recipe.build, axis_size=count)(*arrays)
    one = jax.eval_shape(lambda arrays: recipe.build(*(array[0] for array in arrays)), arrays)
    (b, t, i), o = one.left.shape, one.right.shape[2]
    if t == 1 or t * (i + o) < i * o:
        return jax.vmap(recipe.build)(*arrays)

    def gradient(*arrays: Any) -> tuple[Any]:
        if recipe.direct is None:
            return (recipe.build(*arrays).block(),)
        return (recipe.layout(recipe.direct(*arrays)),)

    products = b * t * i * o
    at_a_time = examples_at_a_time(products)
    (dense,) = dense_one_by_one(gradient, tuple(arrays), at_a_time, [_SMALLER], 2 * count * products)
    return dense


def _plan(
    loss_fn: Callable[[Any, Any], Any], params: PyTree, batch: PyTree, has_aux: bool
) -> tuple[Any, list[Recipe], Any]:
    """The graph of loss and gradient of one example, how to keep each gradient, and the structure of the loss."""
    # Values in place of shapes: where only some axes of a mesh are manual, shapes alone are not enough for JAX.
    strong = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), params)  # no weak types
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    graph = trace(jax.value_and_grad(loss_fn, has_aux=has_aux), strong, first)
    returned: Any = jax.tree.structure(jax.eval_shape(loss_fn, strong, first) if has_aux else 0.0)
    return graph, [find(value) for value in graph.outputs[returned.num_leaves :]], returned


_SMALLER = "smaller than its factors"

# Heuristics, on which no statistic depends but by rounding. One gradient must be worth a turn of a loop: 2**14 numbers
# are 64 KiB in float32, more than what is nearest to a core holds. And all must be more than a cache keeps until they
# are reduced: 2**20 numbers are 4 MiB. Caches differ, and these two numbers do not ask for the machine's own.
_LARGE, _LARGER = 2**14, 2**20  # numbers
