"""From the loss of one example to the factored gradients of a batch.

The loss of ONE example is differentiated and traced, ``_rules`` finds for every parameter the operands that its
gradient is made of, and those operands, not the gradients, are computed for the whole batch under ``vmap``.

Imports ``_factors``, ``_jaxpr``, ``_recipe`` and ``_rules`` only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsgd._factors import Dense, Outer, examples_at_a_time
from jaxsgd._jaxpr import evaluate, trace
from jaxsgd._recipe import Factor, Recipe
from jaxsgd._rules import find


def loss_and_factors(
    loss_fn: Callable[[Any, Any], Any], params: PyTree, batch: PyTree
) -> tuple[Any, tuple[Factor, ...]]:
    """Return the losses of a batch of examples, shape (n,), and for every parameter the factor of its gradients."""
    graph, recipes = _plan(loss_fn, params, batch)
    num_params = len(jax.tree.leaves(params))
    known_params = dict(zip(graph.inputs, jax.tree.leaves(params), strict=False))

    def one(example: PyTree) -> list[Any]:
        known = known_params | dict(zip(graph.inputs[num_params:], jax.tree.leaves(example), strict=True))
        values = [graph.outputs[0], *(value for recipe in recipes for value in recipe.values)]
        return evaluate(values, known, graph.effectful)

    losses, *arrays = jax.vmap(one)(batch)
    factors = []
    for recipe in recipes:
        mine, arrays = arrays[: len(recipe.values)], arrays[len(recipe.values) :]
        factors.append(_built(recipe, mine, len(losses)))
    return losses, tuple(factors)


def _built(recipe: Recipe, arrays: list[Any], count: int) -> Factor:
    """The factor of ``count`` examples; where the gradients are smaller than their factors, the gradients."""
    if recipe.kind is not Outer or not recipe.values:
        return jax.vmap(recipe.build, axis_size=count)(*arrays)
    one = jax.eval_shape(recipe.build, *(jax.eval_shape(lambda array: array[0], array) for array in arrays))
    (b, t, i), o = one.left.shape, one.right.shape[2]
    if t == 1 or t * (i + o) < i * o:
        return jax.vmap(recipe.build)(*arrays)

    def gradient(arrays: list[Any]) -> Any:
        return recipe.build(*arrays).block()

    value = jax.lax.map(gradient, arrays, batch_size=examples_at_a_time(b * t * (i + o)))
    return Dense(value, "smaller than its factors")


def _plan(loss_fn: Callable[[Any, Any], Any], params: PyTree, batch: PyTree) -> tuple[Any, list[Recipe]]:
    shape = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype))  # type: ignore[no-untyped-call]
    example = jax.eval_shape(lambda b: jax.tree.map(lambda leaf: leaf[0], b), batch)
    graph = trace(jax.value_and_grad(loss_fn), shape(params), example)
    return graph, [find(value) for value in graph.outputs[1:]]
