"""The rule for the weights of a convolution: patches of the input against the gradient of the output.

With L the input, R the gradient of the output and k the place in the kernel, it is a convolution whose "kernel" R is as
large as the output: grad[k] = Σ_p L[stride·k + dilation·p − low] R[p], with ``low`` zeros before L. The positions are
the places p.

In a transposed convolution zeros were put between the entries of L: L[s q − low] = x[q]. The places q are then fewer
than the places p. With p = s q + low − stride·k, and k counted from the last, the sum over q is one of the same kind,
of patches of R against x.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core.sums import accumulation_dtype, einsum
from jaxsgd.kernels.factors import Layout, OuterProducts
from jaxsgd.kernels.tracing._jaxpr import Operation, Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, rule


@rule("conv_general_dilated", named=True)
def _convolution(value: Value, operation: Operation) -> Recipe:
    """The weight gradient of a convolution, or of a transposed one of stride 1."""
    params = operation.params
    numbers = params["dimension_numbers"]
    spacing, dilations = params["lhs_dilation"], params["rhs_dilation"]
    transposed = any(step != 1 for step in spacing)
    if params["feature_group_count"] != 1:
        raise NoRule("convolution of this kind")
    if transposed and (params["batch_group_count"] != 1 or any(step != 1 for step in dilations)):
        raise NoRule("transposed convolution in groups, or with strides")
    spatial = [value.shape[axis] for axis in numbers.out_spec[2:]]
    strides, low = params["window_strides"], [before for before, _ in params["padding"]]
    specs = [(operation.inputs[0], numbers.lhs_spec), (operation.inputs[1], numbers.rhs_spec)]
    if transposed:
        dilations, specs = spacing, specs[::-1]
        low = [step * (size - 1) - before for step, size, before in zip(strides, spatial, low, strict=True)]
    (source, source_spec), (other, other_spec) = specs
    places = [other.shape[axis] for axis in other_spec[2:]]
    steps = (spatial, places, strides, dilations)
    groups = params["batch_group_count"]
    # In canonical order: source (c, e, *space), with c the axis that becomes the left side and e the one summed over;
    # other (o, e, *places); the result (*spatial, c, o), with o split into groups as c is.
    (c, e), o = (source.shape[axis] for axis in source_spec[:2]), other.shape[other_spec[0]]
    kernel, place = math.prod(spatial), math.prod(places)

    def build(source: Any, other: Any) -> OuterProducts:
        patches = _patches(source.transpose(source_spec), *steps, low)  # (kernel, c, e, *places)
        left = patches.reshape(kernel, groups, c // groups, e * place)
        left = left.transpose(1, 0, 2, 3).reshape(groups, kernel * (c // groups), e * place).swapaxes(1, 2)
        right = other.transpose(other_spec).reshape(groups, o // groups, e, place)
        right = right.transpose(0, 2, 3, 1).reshape(groups, e * place, o // groups)
        return OuterProducts(left, right, layout)

    def gradient(source: Any, other: Any) -> Any:
        dtype = accumulation_dtype(source, other)
        padded = _padded(source.transpose(source_spec).astype(dtype), *steps, low)
        return _correlation(padded, other.transpose(other_spec).astype(dtype), spatial, strides, dilations)

    # (groups, *spatial, c, o) -> (c, groups · o, *spatial) -> the order that the operation returns, in one step
    rank, order = len(spatial), np.argsort(numbers.out_spec)
    canonical = ((rank + 1,), (0, rank + 2), *((1 + axis,) for axis in range(rank)))
    layout = Layout((groups, *spatial, c // groups, o // groups))
    if transposed:
        canonical = ((rank + 2,), (0, rank + 1), *canonical[2:])
        layout = layout.then("reverse", tuple(range(1, rank + 1)))
    layout = layout.then("transpose", tuple(axis for place in order for axis in canonical[place]))
    layout = layout.then("reshape", value.shape)
    direct = gradient if groups == 1 else None
    return Recipe(OuterProducts, (source, other), build, layout, (1, rank + 1, 1), direct)


def _padded(source: Any, spatial: list[int], places: list[int], strides: Any, dilations: Any, low: list[int]) -> Any:
    """The source with what the convolution pads before it, and as far as it reaches: (c, e, *space)."""
    config = [(0, 0, 0), (0, 0, 0)]
    sizes = zip(source.shape[2:], spatial, places, strides, dilations, low, strict=True)
    for size, k, p, stride, dilation, before in sizes:
        reach = (k - 1) * stride + (p - 1) * dilation + 1
        config.append((before, reach - size - before, 0))
    return jax.lax.pad(source, jnp.zeros((), source.dtype), config)


def _window(array: Any, axes: Sequence[int], k: Sequence[int], places: Any, strides: Any, dilations: Any) -> Any:
    """array[stride·k + dilation·p] along the axes, for every place p: what the kernel's entry k meets."""
    for axis, at, p, stride, dilation in zip(axes, k, places, strides, dilations, strict=True):
        first = at * stride
        array = jax.lax.slice_in_dim(array, first, first + (p - 1) * dilation + 1, dilation, axis)
    return array


def _patches(source: Any, spatial: list[int], places: list[int], strides: Any, dilations: Any, low: list[int]) -> Any:
    """source[..., stride·k + dilation·p] for every k in ``spatial`` and p in ``places``: (kernel, c, e, *places).

    Channels come before places, so that whole rows are copied.
    """
    padded = _padded(source, spatial, places, strides, dilations, low)
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
