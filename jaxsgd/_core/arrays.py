"""Arrays of other libraries as JAX takes them: in this machine's byte order, whole, and in integers that it has."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def readable(**named: Any) -> PyTree:
    """A pytree whose leaves of other libraries JAX reads for what they are; or raise, naming the leaf and the remedy.

    Args:
        **named: one pytree of arrays.
    """
    ((name, tree),) = named.items()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = [_readable(leaf, name, f"{name}{jax.tree_util.keystr(path)}") for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def _readable(leaf: Any, name: str, where: str) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    refuse_tables(leaf, name, "arrays")
    leaf = native(unmasked(leaf, name))
    fitting(leaf, name, where)
    return leaf


def refuse_tables(data: Any, name: str, kinds: str) -> None:
    """Raise for what has ``len()`` and brackets that mean something else than the examples."""
    module = type(data).__module__.split(".")[0]
    if module in ("pandas", "polars") and hasattr(data, "columns"):
        raise TypeError(
            f"{name} must be {kinds}, got a {module} frame, whose brackets choose columns: pass "
            f"{{name: {name}[name].to_numpy() for name in {name}.columns}}"
        )
    if module == "scipy" and hasattr(data, "toarray"):
        raise TypeError(f"{name} must be dense arrays, got a sparse {type(data).__name__}: pass {name}.toarray()")


def unmasked(leaf: Any, name: str) -> Any:
    """An array without its mask, if nothing is masked."""
    if not isinstance(leaf, np.ma.MaskedArray):
        return leaf
    if np.ma.is_masked(leaf):
        raise ValueError(f"{name} must have no masked entries: fill them in, or leave the examples out")
    return leaf.data


def native(leaf: Any) -> Any:
    """An array in the byte order of this machine, which is all that JAX takes."""
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf


def fitting(leaf: Any, name: str, where: str) -> None:
    """Raise if an integer is none of those that JAX has without x64, where it would be another one without a word."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "iu" or leaf.size == 0:
        return
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if dtype == leaf.dtype:
        return
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    for value in (leaf.min(), leaf.max()):
        if not least <= int(value) <= most:
            raise ValueError(
                f"{name} must be integers from {least} to {most}, as JAX has without jax_enable_x64, but {where} has "
                f"{value}"
            )
