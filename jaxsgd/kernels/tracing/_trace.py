"""From the loss of one example to the factored gradients of a batch.

The loss of ONE example is differentiated and traced, ``_rules`` finds for every parameter the operands that its
gradient is made of, and those operands, not the gradients, are computed for the whole batch under ``vmap``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsgd._core.sums import accumulation_dtype, examples_at_a_time, total, varying_like
from jaxsgd.kernels.factors import Dense, Factor, Sum, WithSharedPart, dense_one_by_one
from jaxsgd.kernels.tracing._jaxpr import Operation, Value, evaluate, trace
from jaxsgd.kernels.tracing._products import sum_sides_first
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
    operands = list(dict.fromkeys(value for recipe in together for value in recipe.values))
    of_each = [value for value in operands if value.varies]
    arrays = _of_all(lambda example: of_one([*results, *of_each], example, graph.effectful), batch)
    losses, arrays = returned.unflatten(arrays[: len(results)]), arrays[len(results) :]
    of_all = [value for value in operands if not value.varies]
    of_all += [value for recipe in together for value in recipe.used_by_all()]
    known = dict(zip(of_each, arrays, strict=True)) | dict(zip(of_all, evaluate(of_all, known_params), strict=True))
    factors = {recipe: _built(recipe, known, count) for recipe in together}
    if alone:
        whys = [recipe.why for recipe in alone.values()]
        found = dense_one_by_one(lambda example: tuple(of_one(list(alone), example)), (batch,), 1, whys)
        factors |= zip(alone.values(), found, strict=True)
    return losses, tuple(factors[recipe] for recipe in recipes), tuple(recipe.rule or "none" for recipe in recipes)


def _of_all(function: Callable[[Any], list[Any]], batch: PyTree) -> list[Any]:
    """A function of every example together; one after the other where a primitive has no rule for a batch."""
    try:
        return list(jax.vmap(function)(batch))
    except NotImplementedError:
        return list(jax.lax.map(function, batch))


def _are_better_alone(dense: list[Recipe], count: int) -> bool:
    """Whether to compute dense gradients for one example after the other.

    On a CPU, where each is large enough to keep it busy and its cache does not hold all.
    """
    largest = max((math.prod(recipe.values[0].shape) for recipe in dense), default=0)
    return jax.default_backend() == "cpu" and largest > _LARGE and count * largest > _LARGER


def _built(recipe: Recipe, known: dict[Value, Any], count: int) -> Factor:
    """The factor of ``count`` examples, from arrays of all of them, or one for all where a value does not vary."""
    arrays = [known[value] for value in recipe.values]
    in_axes = [0 if value.varies else None for value in recipe.values]
    if recipe.parts:
        parts = tuple(_built(part, known, count) for part in recipe.parts)
        formed = any(isinstance(part, Dense) for part in parts) or _size(parts) > count * math.prod(parts[0].shape)
        factor: Factor = Dense(total([part.materialize() for part in parts]), _SMALLER) if formed else Sum(parts)
    else:
        factor = _formed_if_smaller(recipe, arrays, in_axes, count)
    if recipe.scales:
        dtype = accumulation_dtype(
            *(leaf for leaf in jax.tree.leaves(factor) if jnp.issubdtype(leaf.dtype, jnp.floating))
        )
        scales = [scale.of(known[scale.value], dtype) for scale in recipe.scales]
        factor = factor.stretched(math.prod(scales[1:], start=scales[0]))
    if recipe.shared:
        factor = WithSharedPart(factor, sum(known[value] for value in recipe.shared))
    return factor


def _size(parts: tuple[Factor, ...]) -> int:
    return sum(array.size for array in jax.tree.leaves(parts))


def _formed_if_smaller(recipe: Recipe, arrays: list[Any], in_axes: list[int | None], count: int) -> Factor:
    """What the recipe builds; where the gradients are smaller than their factors, the gradients."""
    pairs = list(zip(arrays, in_axes, strict=True))
    one = jax.eval_shape(lambda: recipe.build(*(array if axis is None else array[0] for array, axis in pairs)))
    if recipe.kind is Dense or not recipe.values or not one.is_larger_than_formed():
        return jax.vmap(recipe.build, in_axes, axis_size=count)(*arrays)

    def gradient(*arrays: Any) -> tuple[Any]:
        if recipe.direct is None:
            return (recipe.build(*arrays).block(),)
        return (recipe.layout(recipe.direct(*arrays)),)

    if recipe.direct is None and count * one.block_size() <= _LARGER:  # they stay in the cache, without a loop
        (formed,) = jax.vmap(gradient, in_axes, axis_size=count)(*arrays)
        return Dense(formed, _SMALLER, 2 * count * one.work_to_form())
    whole = tuple(jnp.broadcast_to(a, (count, *a.shape)) if axis is None else a for a, axis in pairs)
    work = one.work_to_form()
    (dense,) = dense_one_by_one(gradient, whole, examples_at_a_time(work), [_SMALLER], 2 * count * work)
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
    sum_sides_first(graph, but=graph.outputs[: returned.num_leaves])
    return graph, [find(value) for value in graph.outputs[returned.num_leaves :]], returned


_SMALLER = "smaller than its factors"

# Heuristics, on which no statistic depends but by rounding. One gradient must be worth a turn of a loop: 2**14 numbers
# are 64 KiB in float32, more than what is nearest to a core holds. And all must be more than a cache keeps until they
# are reduced: 2**20 numbers are 4 MiB. Caches differ, and these two numbers do not ask for the machine's own.
_LARGE, _LARGER = 2**14, 2**20  # numbers
