"""Where arrays lie: on one device, on several, on those of other processes.

JAX's runtime does the distributing. This module reads how arrays are laid out, and asks for another layout where a pass
would otherwise move more than it has to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


@dataclass(frozen=True)
class Shards:
    """The equal parts in which the devices along some axes of a mesh hold the first axis of arrays.

    Attributes:
        mesh: all the devices.
        axes: the axes of the mesh that divide the first axis of the arrays.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many parts there are."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

    def split(self, tree: PyTree) -> PyTree:
        """The arrays with their first axis divided; those that lie so stay where they are."""
        return jax.tree.map(partial(self._place, first=self.axes), tree)

    def gathered(self, tree: PyTree) -> PyTree:
        """The arrays whole along the axes of the parts, and divided along the other axes of the mesh as before."""
        return jax.tree.map(self._place, tree)

    def zeros(self, shapes: PyTree) -> PyTree:
        """Zeros of these shapes for each part, along a new first axis."""
        sharding = _layout(self.mesh, self.axes)
        return jax.tree.map(lambda s: jnp.zeros((self.count, *s.shape), s.dtype, device=sharding), shapes)

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function(shared, own, carry)`` of each part on its own devices, where nothing is communicated.

        ``own`` is divided along its first axis, and ``carry`` and the result have a first axis of parts. The other axes
        of the mesh are left to the compiler. Nothing in here is a sum over devices: with ``check_vma=True``, ``grad``
        with respect to the shared parameters would be.
        """
        whole, parts = _layout(self.mesh).spec, _layout(self.mesh, self.axes).spec

        def of_part(shared: Any, own: Any, carry: Any) -> Any:
            found = function(shared, own, jax.tree.map(lambda leaf: leaf[0], carry))
            return jax.tree.map(lambda leaf: leaf[None], found)

        return jax.shard_map(
            of_part,
            mesh=self.mesh,
            in_specs=(whole, parts, parts),
            out_specs=parts,
            axis_names=set(self.axes),
            check_vma=False,
        )

    def _place(self, leaf: Any, first: tuple[str, ...] | None = None) -> Any:
        """An array divided by ``first`` along its first axis, and by no axis of the parts along the others."""
        sharding = _named(leaf)
        here = sharding is not None and sharding.mesh == self.mesh
        spec = [self._others(entry) for entry in sharding.spec] if here else []
        if first is not None:
            spec[:1] = [first]
        return _put(leaf, _layout(self.mesh, *spec))

    def _others(self, entry: Any) -> Any:
        return tuple(axis for axis in _names(entry) if axis not in self.axes) or None


def shards(data: PyTree) -> Shards | None:
    """The parts that the first axis of the arrays is in, as far as an array of the data says; None for one part.

    Under ``jax.jit`` there is nothing to be seen of that.
    """
    for leaf in jax.tree.leaves(data):
        sharding = _named(leaf)
        if sharding is not None and sharding.shard_shape(leaf.shape)[:1] != leaf.shape[:1]:
            return Shards(sharding.mesh, _names(sharding.spec[0]))
    return None


def beside(data: PyTree, tree: PyTree) -> PyTree:
    """The arrays on the devices that the data lie on: those that lie on one so far are copied to each."""
    mesh = mesh_of(data)
    if mesh is None:
        return tree

    whole = _layout(mesh)

    return jax.tree.map(lambda leaf: leaf if mesh_of(leaf) is not None else _put(leaf, whole), tree)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """``jax.device_put``, also of random keys, which it does not hand to other processes."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)


def mesh_of(tree: PyTree) -> Mesh | None:
    """The several devices that an array lies on, the first that does so; None if all lie on one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = _named(leaf)
        if sharding is not None and sharding.mesh.size > 1:
            mesh: Mesh = sharding.mesh
            return mesh
    return None


def is_shared(mesh: Mesh | None) -> bool:
    """Whether devices of other processes take part."""
    return mesh is not None and len(_processes(mesh)) > 1


def is_first(mesh: Mesh | None) -> bool:
    """Whether this process writes the files of all those that take part."""
    return mesh is None or jax.process_index() == min(_processes(mesh))


def agree(mesh: Mesh | None, number: int) -> bool:
    """Whether all processes that take part have the same number."""
    if mesh is None:
        return True
    one_each = _layout(mesh, mesh.axis_names)
    numbers = jax.make_array_from_callback((mesh.size,), one_each, lambda _: np.full(1, number, np.int32))
    return bool(numbers.min() == numbers.max())


def blocks(array: Any, numbers: int) -> Iterator[np.ndarray]:
    """The array on the host; where other processes hold parts of it, so many numbers at a time."""
    if not spans_processes(array):
        yield on_host(array)
        return
    rows = max(1, numbers * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield on_host(array[start : start + rows])


def on_host(array: Any) -> np.ndarray:
    """The whole array, also where other processes hold parts of it; then all of them must ask for it."""
    if spans_processes(array):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def in_one_place(array: Any) -> jax.Array:
    """The whole array on the default device, keys as keys; where other processes hold parts, all must ask for it."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        numbers = jnp.asarray(on_host(jax.random.key_data(array)))
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(array))
    return jnp.asarray(on_host(array))


def spans_processes(array: Any) -> bool:
    """Whether this process can see a part of the array only."""
    return isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated)


def _processes(mesh: Mesh) -> set[int]:
    return {device.process_index for device in mesh.devices.flat}


def _named(leaf: Any) -> Any:
    """The sharding of an array with values over the axes of a mesh; None for any other leaf."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def _layout(mesh: Mesh, *spec: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]


def _names(entry: Any) -> tuple[str, ...]:
    """The axes of a mesh that one entry of a partition specification names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)
