"""Any mesh: what is computed here needs no word on how it is laid out, whatever kind of axes a mesh has.

The axes of a mesh are automatic, where the compiler lays out every result, or explicit, which ``jax.make_mesh`` makes
them: then the layout is part of an array's type, and each operation must say, or be able to tell, how its result is
laid out. The operations of a user's loss, transformed here, could not. So a public function is decorated with
:func:`on_any_mesh`: inside, axes are automatic; what it returns lies on the explicit mesh of its arguments again. No
number is moved for that. Under ``jax.jit`` and other transformations it is ``jax.sharding.auto_axes``.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

P = ParamSpec("P")
R = TypeVar("R")

WHOLE = PartitionSpec()  # type: ignore[no-untyped-call]


def on_any_mesh(function: Callable[P, R], *, per_example: bool = False) -> Callable[P, R]:
    """The function with automatic axes inside, whatever the mesh of its arguments, or of the context, has outside.

    Arrays it returns lie as they come out. Under a transformation, where that is not known in time, what is built and
    shaped like an argument (new parameters, a state) is laid out as that argument is, and all else is whole on every
    device; with ``per_example`` it is divided along its first axis as the examples of the arguments are.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        context = jax.sharding.get_abstract_mesh()
        known = [argument for argument in (*args, *kwargs.values()) if not isinstance(argument, Iterator)]
        meshes = [mesh for mesh in (context, *map(_mesh, jax.tree.leaves(known))) if mesh is not None]
        explicit = [mesh for mesh in meshes if _is_explicit(mesh)]
        if not explicit:
            return function(*args, **kwargs)

        leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=lambda node: isinstance(node, Iterator))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def of_arrays(*arrays: jax.Array) -> R:
            filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
            inner_args, inner_kwargs = jax.tree.unflatten(structure, filled.values())
            return function(*inner_args, **inner_kwargs)

        arrays = [leaves[i] for i in places]
        if any(isinstance(array, jax.core.Tracer) for array in (*arrays, jnp.zeros(()))):
            layouts = _Layouts(explicit[-1].abstract_mesh, known, arrays if per_example else ())
            return _transformed(of_arrays, arrays, layouts)
        return _at_once(of_arrays, arrays)

    return call


def automatic(tree: PyTree) -> PyTree:
    """The same arrays where they are, on a mesh with automatic axes."""
    return jax.tree.map(lambda leaf: _on_mesh(leaf, _automatic(leaf.sharding.mesh)) if _has_types(leaf) else leaf, tree)


def _at_once(function: Callable[..., R], arrays: Sequence[jax.Array]) -> R:
    """The function of arrays that have values: they get a mesh with automatic axes, and what comes out theirs."""
    context = jax.sharding.get_mesh()
    explicit = [mesh for mesh in (context, *map(_mesh, arrays)) if mesh is not None and _is_explicit(mesh)]
    meshes = {_automatic(mesh): mesh for mesh in explicit}
    if _is_explicit(context):
        with jax.set_mesh(_automatic(context)):
            found = function(*automatic(arrays))
    else:
        found = function(*automatic(arrays))
    return jax.tree.map(lambda leaf: _on_mesh(leaf, meshes[_mesh(leaf)]) if _mesh(leaf) in meshes else leaf, found)


def _transformed(function: Callable[..., R], arrays: Sequence[jax.Array], layouts: "_Layouts") -> R:
    """The function of arrays whose values are not known yet: evaluated twice, first for the shapes of its results."""
    result: Any = None

    def arrays_of(*arrays: jax.Array) -> dict[int, jax.Array]:
        nonlocal result
        result = function(*arrays)
        return {i: leaf for i, leaf in enumerate(jax.tree.leaves(result)) if isinstance(leaf, jax.Array)}

    whole = layouts.named(WHOLE)
    jax.eval_shape(layouts.automatic(arrays_of, whole), *arrays)
    of_all = layouts.of(result)
    out_sharding = {i: of_all[i] for i, leaf in enumerate(jax.tree.leaves(result)) if isinstance(leaf, jax.Array)}
    found = layouts.automatic(arrays_of, out_sharding)(*arrays)
    leaves, structure = jax.tree.flatten(result)
    return jax.tree.unflatten(structure, (dict(enumerate(leaves)) | found).values())


class _Layouts:
    """How results are to lie on a mesh with explicit axes, for these arguments."""

    def __init__(self, mesh: AbstractMesh, arguments: Sequence[Any], of_examples: Sequence[jax.Array]) -> None:
        self._mesh = mesh
        self._like = {
            _form(argument): [jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(argument)]
            for argument in reversed(arguments)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(argument))
        }
        split = [(array.shape[0], jax.typeof(array).sharding.spec[0]) for array in of_examples if array.ndim]
        self._examples = {count: axes for count, axes in reversed(split) if axes is not None}

    def automatic(self, function: Callable[..., Any], out_sharding: Any) -> Callable[..., Any]:
        """The function with automatic axes inside in place of the explicit ones."""
        kinds = zip(self._mesh.axis_names, self._mesh.axis_types, strict=True)
        explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
        return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out_sharding)

    def named(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self._mesh, spec)

    def of(self, result: Any) -> list[NamedSharding]:
        """One for every leaf of a result, which may be a tuple of things built and shaped like arguments."""
        alone = not isinstance(result, tuple) or _form(result) in self._like
        return [layout for part in ((result,) if alone else result) for layout in self._of_part(part)]

    def _of_part(self, part: Any) -> list[NamedSharding]:
        specs = self._like.get(_form(part), [self._of_leaf(leaf) for leaf in jax.tree.leaves(part)])
        return [self.named(spec) for spec in specs]

    def _of_leaf(self, leaf: Any) -> PartitionSpec:
        count = jnp.shape(leaf)[0] if isinstance(leaf, jax.Array) and leaf.ndim else None
        if count not in self._examples:
            return WHOLE
        return PartitionSpec(self._examples[count])  # type: ignore[no-untyped-call]


def _form(tree: PyTree) -> tuple[Any, tuple[Any, ...]]:
    return jax.tree.structure(tree), tuple(getattr(leaf, "shape", None) for leaf in jax.tree.leaves(tree))


def _mesh(leaf: Any) -> Any:
    """The mesh that an array lies on; None for one device and for what is no array."""
    if isinstance(leaf, jax.core.Tracer):
        return jax.typeof(leaf).sharding.mesh
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def _has_types(leaf: Any) -> bool:
    """Whether it is an array with values on a mesh with explicit axes."""
    mesh = _mesh(leaf)
    return isinstance(mesh, Mesh) and not isinstance(leaf, jax.core.Tracer) and _is_explicit(mesh)


def _is_explicit(mesh: Any) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _automatic(mesh: Mesh) -> Mesh:
    kinds = {AxisType.Explicit: AxisType.Auto}
    return Mesh(mesh.devices, mesh.axis_names, axis_types=tuple(kinds.get(kind, kind) for kind in mesh.axis_types))


def _on_mesh(leaf: Any, mesh: Mesh) -> Any:
    return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))
