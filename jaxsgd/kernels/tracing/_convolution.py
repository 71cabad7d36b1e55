"""The rule for the weights of a convolution: patches of the input against the gradient of the output."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core.sums import accumulation_dtype, einsum
from jaxsgd.kernels.factors import Layout, OuterProducts
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe


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

    def build(source: Any, other: Any) -> OuterProducts:
        source = source.transpose(numbers.lhs_spec)
        other = other.transpose(numbers.rhs_spec)
        patches = _patches(source, spatial, places, strides, dilations, padding)  # (kernel, c, e, *places)
        kernel, place = math.prod(spatial), math.prod(places)
        left = patches.reshape(kernel, groups, c // groups, e * place)
        left = left.transpose(1, 0, 2, 3).reshape(groups, kernel * (c // groups), e * place).swapaxes(1, 2)
        right = other.reshape(groups, o // groups, e, place)
        right = right.transpose(0, 2, 3, 1).reshape(groups, e * place, o // groups)
        return OuterProducts(left, right, layout)

    def gradient(source: Any, other: Any) -> Any:
        dtype = accumulation_dtype(source, other)
        source = source.transpose(numbers.lhs_spec).astype(dtype)
        other = other.transpose(numbers.rhs_spec).astype(dtype)
        return _correlation(_padded(source, spatial, places, strides, dilations, padding), other, *steps)

    steps = (spatial, strides, dilations)
    # (groups, *spatial, c, o) -> (c, groups · o, *spatial) -> the order that the operation returns, in one step
    rank, order = len(spatial), np.argsort(numbers.out_spec)
    canonical = ((rank + 1,), (0, rank + 2), *((1 + axis,) for axis in range(rank)))
    layout = Layout((groups, *spatial, c // groups, o // groups))
    layout = layout.then("transpose", tuple(axis for place in order for axis in canonical[place]))
    layout = layout.then("reshape", value.shape)
    direct = gradient if groups == 1 else None
    return Recipe(OuterProducts, (source, other), build, layout, (1, rank + 1, 1), direct)


def _padded(source: Any, spatial: list[int], places: list[int], strides: Any, dilations: Any, padding: Any) -> Any:
    """The source with what the convolution pads before it, and as far as it reaches: (c, e, *space)."""
    config = [(0, 0, 0), (0, 0, 0)]
    sizes = zip(source.shape[2:], spatial, places, strides, dilations, padding, strict=True)
    for size, k, p, stride, dilation, (low, _) in sizes:
        reach = (k - 1) * stride + (p - 1) * dilation + 1
        config.append((low, reach - size - low, 0))
    return jax.lax.pad(source, jnp.zeros((), source.dtype), config)


def _window(array: Any, axes: Sequence[int], k: Sequence[int], places: Any, strides: Any, dilations: Any) -> Any:
    """array[stride·k + dilation·p] along the axes, for every place p: what the kernel's entry k meets."""
    for axis, at, p, stride, dilation in zip(axes, k, places, strides, dilations, strict=True):
        first = at * stride
        array = jax.lax.slice_in_dim(array, first, first + (p - 1) * dilation + 1, dilation, axis)
    return array


def _patches(source: Any, spatial: list[int], places: list[int], strides: Any, dilations: Any, padding: Any) -> Any:
    """source[..., stride·k + dilation·p] for every k in ``spatial`` and p in ``places``: (kernel, c, e, *places).

    Channels come before places, so that whole rows are copied.
    """
    padded = _padded(source, spatial, places, strides, dilations, padding)
    axes = range(2, padded.ndim)
    return jnp.stack([_window(padded, axes, k, places, strides, dilations) for k in np.ndindex(*spatial)])


def _correlation(padded: Any, other: Any, spatial: list[int], strides: Any, dilations: Any) -> Any:
    """Σ_p padded[c, e, stride·k + dilation·p] other[o, e, p], for every k: (*spatial, c, o).

    Patches are copied along the last axis only; along the others they are slices of these, one product for each. With
    few channels these come first, so that rows of places are copied, else last, so that rows of channels are.
    """
    channels, last, places = padded.shape[0], spatial[-1], other.shape[2:]
    few = channels < _MANY_CHANNELS
    padded = padded if few else jnp.moveaxis(padded, 0, -1)  # (c, e, *space) or (e, *space, c)
    axis = padded.ndim - 1 if few else padded.ndim - 2
    along = (places[-1:], strides[-1:], dilations[-1:])
    rows = [_window(padded, (axis,), (k,), *along) for k in range(last)]
    row = jnp.concatenate(rows, axis=0 if few else -1)
    other = other.reshape(other.shape[0], -1)
    blocks = []
    for k in np.ndindex(*spatial[:-1]):
        start = 2 if few else 1
        window = _window(row, range(start, axis), k, places[:-1], strides[:-1], dilations[:-1])
        if few:
            blocks.append(einsum("cp,op->co", window.reshape(last * channels, -1), other))
        else:
            blocks.append(einsum("pc,op->co", window.reshape(-1, last * channels), other))
    return jnp.stack(blocks).reshape(*spatial, channels, other.shape[0])


_MANY_CHANNELS = 16
