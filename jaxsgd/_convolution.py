"""The rule for the weights of a convolution: patches of the input against the gradient of the output.

Imports ``_factors``, ``_jaxpr`` and ``_recipe`` only.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._factors import Layout, Outer
from jaxsgd._jaxpr import Operation, Value
from jaxsgd._recipe import NoRule, Recipe


def convolution(value: Value, operation: Operation) -> Recipe:
    """The weight gradient of a convolution: patches of the input against the gradient of the output.

    With L the input, R the gradient of the output and k the place in the kernel, it is a convolution whose "kernel" R
    is as large as the output: grad[k] = Σ_p L[stride·k + dilation·p] R[p]. The positions are the places p.
    """
    source, other = operation.inputs
    params = operation.params
    numbers = params["dimension_numbers"]
    groups = params["batch_group_count"]
    if params["feature_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise NoRule("convolution of this kind")
    spatial = [value.shape[axis] for axis in numbers.out_spec[2:]]
    places = [other.shape[axis] for axis in numbers.rhs_spec[2:]]
    strides, dilations, padding = params["window_strides"], params["rhs_dilation"], params["padding"]
    # In canonical order: source (c, e, *space), with c the axis that becomes the left side and e the one summed over;
    # other (o, e, *places); the result (c, o, *spatial), with o split into groups as c is.
    c, e = (source.shape[axis] for axis in numbers.lhs_spec[:2])
    o = other.shape[numbers.rhs_spec[0]]

    def build(source: Any, other: Any) -> Outer:
        source = source.transpose(numbers.lhs_spec)
        other = other.transpose(numbers.rhs_spec)
        patches = _patches(source, spatial, places, strides, dilations, padding)  # (kernel, c, e, *places)
        kernel, place = math.prod(spatial), math.prod(places)
        left = patches.reshape(kernel, groups, c // groups, e * place)
        left = left.transpose(1, 0, 2, 3).reshape(groups, kernel * (c // groups), e * place).swapaxes(1, 2)
        right = other.reshape(groups, o // groups, e, place)
        right = right.transpose(0, 2, 3, 1).reshape(groups, e * place, o // groups)
        return Outer(left, right, layout)

    # (groups, *spatial, c, o) -> (c, groups · o, *spatial) -> the order that the operation returns, in one step
    rank, order = len(spatial), np.argsort(numbers.out_spec)
    canonical = ((rank + 1,), (0, rank + 2), *((1 + axis,) for axis in range(rank)))
    layout = Layout((groups, *spatial, c // groups, o // groups))
    layout = layout.then("transpose", tuple(axis for place in order for axis in canonical[place]))
    layout = layout.then("reshape", value.shape)
    return Recipe(Outer, (source, other), build, layout, (1, rank + 1, 1))


def _patches(source: Any, spatial: list[int], places: list[int], strides: Any, dilations: Any, padding: Any) -> Any:
    """source[..., stride·k + dilation·p] for every k in ``spatial`` and p in ``places``: (kernel, c, e, *places).

    Channels come before places, so that whole rows are copied.
    """
    reach = [
        (k - 1) * stride + (p - 1) * dilation + 1
        for k, p, stride, dilation in zip(spatial, places, strides, dilations, strict=True)
    ]
    config = [(0, 0, 0), (0, 0, 0)]
    for size, needed, (low, _) in zip(source.shape[2:], reach, padding, strict=True):
        config.append((low, needed - size - low, 0))
    padded = jax.lax.pad(source, jnp.zeros((), source.dtype), config)
    windows = []
    for k in np.ndindex(*spatial):
        start = [at * stride for at, stride in zip(k, strides, strict=True)]
        stop = [first + (p - 1) * step + 1 for first, p, step in zip(start, places, dilations, strict=True)]
        windows.append(jax.lax.slice(padded, (0, 0, *start), (*source.shape[:2], *stop), (1, 1, *dilations)))
    return jnp.stack(windows)
