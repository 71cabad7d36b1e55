"""The gradient of a batch loss on parts of one batch, and how far rounding may take a sum of such gradients.

Parts of a batch are sliced along the axis of every leaf that holds the examples; leaves without one are part of each.

Rounding: for every dtype in which the loss computes, or a step that can be traced in a coarser one (known from their
jaxprs, so that float32 parameters do not hide bfloat16 arithmetic), let ε be its unit and R the change of a gradient
when every number in params and batch is changed by ±ε/2, as if each was rounded once more. D operations in this dtype
over l arrays round D/l numbers for every number so changed, and rounding errors are independent and add in squares
(Higham and Mary, SIAM J. Sci. Comput. 41, 2019): √(Σ (D/l) R²), the sum over dtypes. Adding k microbatches in the
coarsest dtype adds √k ε/2 of the norm, and the sums inside the gradient, of F operations for each number of it and
accumulated in float32 at least, √F ε'/2. Of a combination Σ c_j g_j the errors are √Σ c_j² times that of one
microbatch, and two programs for the same differ by √2 times as much.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params
from jaxtyping import Array, PyTree

from jaxsgd._core import validate
from jaxsgd.additivity._subset_losses import nudged
from jaxsgd.batch_losses import BatchLoss

_MANY_SIZES = 12
Axes = tuple[int | None, ...]  # where each leaf of a batch has its examples
Operations = Counter[Any]  # how many are made in each floating-point dtype


@dataclass(frozen=True)
class Split:
    """A way of making microbatches.

    Attributes:
        how: in words, after "microbatches".
        parts: the examples of each.
    """

    how: str
    parts: tuple[np.ndarray, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many examples each microbatch has."""
        return tuple(len(part) for part in self.parts)


def splits(count: int, k: int) -> list[Split]:
    """The ways in which people make k microbatches of so many examples."""
    rows, size, rest = np.arange(count), count // k, count % k
    short = [
        Split(" of which the last is short", tuple(np.split(rows, range(each, count, each))))
        for each in _usual([each for each in range(size + 1, count) if -(-count // each) == k])
    ]
    if rest == 0:
        strided = Split(f" of every {k}th example", tuple(rows[start::k] for start in range(k)))
        return [Split("", tuple(np.split(rows, k))), *([strided] if k < count else []), *short]
    even = Split(" of nearly equal size", tuple(np.array_split(rows, k)))
    longer = Split(" of which the last is longer", tuple(np.split(rows, range(size, size * k, size))))
    dropped = Split(f" that leave out the last {rest} examples", tuple(np.split(rows[: count - rest], k)))
    different = {way.sizes: way for way in (longer, even, *reversed(short))}  # of two that are the same, the first
    return [*reversed(different.values()), dropped]


def _usual(sizes: list[int]) -> list[int]:
    """Of many sizes the least, powers of two and multiples of ten; a dozen at most."""
    some = [size for size in sizes if size == sizes[0] or size & (size - 1) == 0 or size % 10 == 0]
    return (sizes if len(sizes) <= _MANY_SIZES else some)[:_MANY_SIZES]


def example_axes(in_axes: Any, batch: PyTree) -> Axes:
    """The axis of every leaf that ``in_axes``, a prefix of the batch, names.

    Raises:
        ValueError: if it is no prefix, or names an axis that a leaf does not have.
    """
    try:
        tree = jax.tree.broadcast(in_axes, batch, is_leaf=lambda leaf: leaf is None)
    except ValueError as error:
        raise ValueError(f"in_axes must be an axis, None, or a pytree prefix of batch, got {in_axes!r}") from error
    axes = tuple(jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None))
    for axis, (path, leaf) in zip(axes, jax.tree_util.tree_leaves_with_path(batch), strict=True):
        if axis is not None and not (isinstance(axis, int) and 0 <= axis < np.ndim(leaf)):
            raise ValueError(
                f"in_axes must name an axis of examples of batch{jax.tree_util.keystr(path)}, of shape "
                f"{np.shape(leaf)}, or be None where all examples share it, got {axis!r}"
            )
    return axes


def count_examples(batch: PyTree, axes: Axes) -> int:
    """How many examples a batch has, or an error."""
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(batch)]
    some = {
        path: jax.ShapeDtypeStruct(leaf.shape[axis:], leaf.dtype)  # type: ignore[no-untyped-call]
        for (path, leaf), axis in zip(leaves, axes, strict=True)
        if axis is not None
    }
    return validate.leading_axis(batch=some)


@dataclass(frozen=True)
class Parts:
    """A batch loss at one θ, on parts of one batch."""

    loss: BatchLoss
    params: PyTree
    batch: PyTree
    axes: Axes
    count: int

    def gradient(self, rows: np.ndarray) -> np.ndarray:
        """The gradient on some of the examples, as a vector."""
        return self._gradient(self.params, self.batch, rows)

    @cached_property
    def whole(self) -> np.ndarray:
        """The gradient on all of them."""
        return self.gradient(np.arange(self.count))

    def _gradient(self, params: PyTree, batch: PyTree, rows: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return flat(_gradient_on(self.loss, self.axes, params, batch, jnp.asarray(rows)))

    def rounding(self, step: Operations, k: int) -> Callable[[np.ndarray, np.ndarray], float]:
        """A function of some examples and their gradient: what rounding may make of it in a sum over k microbatches.

        Args:
            step: the operations of another program for the same.
            k: how many microbatches are added.
        """
        numbers = self._operations | {dtype: count for dtype, count in step.items() if self.is_coarser(dtype)}
        unit_of_sums = min(coarsest(*self._operations), coarsest(jnp.float32))
        of_sums = (k**0.5 * coarsest(*numbers) + self._operations_per_number**0.5 * unit_of_sums) / 2
        arrays = len(jax.tree.leaves(self.params))
        changed = {dtype: [nudged(tree, coarsest(dtype)) for tree in (self.params, self.batch)] for dtype in numbers}

        def of(rows: np.ndarray, gradient: np.ndarray) -> float:
            square = 0.0
            for dtype, (params, batch) in changed.items():
                response = np.linalg.norm(self._gradient(params, batch, rows) - gradient) / 2
                square += float(numbers[dtype] / arrays * response**2)
            return float(square**0.5 + of_sums * np.linalg.norm(gradient))

        return of

    def is_coarser(self, dtype: Any) -> bool:
        """Whether a dtype is coarser than all in the loss."""
        return coarsest(dtype) > coarsest(*self._operations)

    def coarser_than_params(self, step: Operations) -> str | None:
        """The coarsest of the dtypes of the step and of the loss, if it is coarser than all of params."""
        coarse = max({*self._operations, *step}, key=coarsest)
        of_params = coarsest(*(leaf.dtype for leaf in jax.tree.leaves(self.params)))
        return str(coarse) if coarsest(coarse) > of_params else None

    @cached_property
    def _operations(self) -> Operations:
        """Of the loss and its gradient; the copy of each parameter is one more."""
        jaxpr = jax.make_jaxpr(jax.value_and_grad(self.loss))(self.params, self.batch).jaxpr
        return operations(jaxpr) + Counter(leaf.dtype for leaf in jax.tree.leaves(self.params))

    @cached_property
    def _operations_per_number(self) -> float:
        rows = jnp.arange(self.count)
        step = _gradient_on.lower(self.loss, self.axes, self.params, self.batch, rows)
        counted = (step.cost_analysis() or {}).get("flops", 0.0)  # a backend may not count; then one for each example
        return float(max(counted / self.whole.size, self.count))


@partial(jax.jit, static_argnums=(0, 1))
def _gradient_on(loss: BatchLoss, axes: Axes, params: PyTree, batch: PyTree, rows: Array) -> PyTree:
    leaves, structure = jax.tree.flatten(batch)
    some = [leaf if axis is None else jnp.take(leaf, rows, axis=axis) for leaf, axis in zip(leaves, axes, strict=True)]
    return jax.grad(loss)(params, jax.tree.unflatten(structure, some))


def flat(tree: PyTree) -> np.ndarray:
    """All numbers of a pytree as a vector of float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def coarsest(*dtypes: Any) -> float:
    """The unit of the coarsest of floating-point dtypes."""
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)  # type: ignore[no-untyped-call]


def operations(jaxpr: Jaxpr) -> Operations:
    """How many operations on arrays a program makes in each dtype of real numbers, a scan's as often as it turns."""
    total: Operations = Counter()
    for equation in jaxpr.eqns:
        inner = [operations(each) for each in jaxprs_in_params(equation.params)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for found in inner or [Counter(dict.fromkeys(floating_dtypes(equation), 1))]:
            total += Counter({dtype: times * count for dtype, count in found.items()})
    return total


def floating_dtypes(equation: Any) -> set[Any]:
    """The floating-point dtypes of an equation's results."""
    dtypes = {getattr(variable.aval, "dtype", None) for variable in equation.outvars}
    return {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.floating)}


def traced(function: Any, *arguments: Any) -> Operations:
    """The operations of a function, as far as JAX can trace it."""
    try:
        return operations(jax.make_jaxpr(function)(*arguments).jaxpr)
    except Exception:  # a step may look at values, or count its calls
        return Counter()
