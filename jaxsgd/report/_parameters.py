"""Parameters in a file, by name: one array for each leaf, so that any program can write or read it.

It is a format of files and knows nothing of reports; checkpoints come from the user's own training.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd._core import files, validate
from jaxsgd.report._target import did_you_mean


def save_checkpoint(path: Any, params: PyTree) -> None:
    """Write parameters as an ``.npz`` file with one array for each leaf, named by its path: ``hidden/w``.

    Names are dictionary keys, attribute names and positions, joined by slashes; a single array is ``params``. The file
    is written whole or not at all. ``np.savez(path, **{"hidden/w": ...})`` writes one that is read as well.

    Args:
        path: where to, with the ending ``.npz``.
        params: a pytree of floating-point arrays.

    Raises:
        TypeError, ValueError: if a leaf is not a floating-point array, two have the same name, or the path does not
            end in ``.npz``.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/step_100.npz"
    >>> save_checkpoint(path, {"hidden": {"w": jnp.arange(3.0)}})
    >>> load_checkpoint(path, {"hidden": {"w": jnp.zeros(3)}})["hidden"]["w"].tolist()
    [0.0, 1.0, 2.0]
    """
    validate.floating_leaves(params=params)
    if not str(path).endswith(".npz"):
        raise ValueError(f"path must end in .npz, got {path}")
    arrays = {name: np.asarray(leaf) for name, leaf in _named(params).items()}
    files.write_bytes(Path(path), files.pack_arrays(arrays))


def load_checkpoint(path: Any, params: PyTree) -> PyTree:
    """Read what :func:`save_checkpoint` wrote into the structure of ``params``, whose values are not used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or its arrays are not those of ``params``, by name, shape and dtype.
    """
    validate.floating_leaves(params=params)
    arrays = files.read_arrays(Path(path))
    expected = _named(params)
    for name in sorted(arrays.keys() - expected.keys()):
        raise ValueError(f"checkpoint {path} has an array {name!r}, which params lack{did_you_mean(name, expected)}")
    for name in sorted(expected.keys() - arrays.keys()):
        raise ValueError(f"checkpoint {path} lacks {name!r} of params")
    return jax.tree.unflatten(
        jax.tree.structure(params), [_fitted(path, name, arrays[name], leaf) for name, leaf in expected.items()]
    )


def name_of(path: Any) -> str:
    """The name of a leaf: its path, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "params"


def _named(params: PyTree) -> dict[str, Any]:
    """The leaves by name, each of its own."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = name_of(path)
        if name in named:
            raise ValueError(f"params must have a name of its own for every leaf, and {name!r} is that of two")
        named[name] = leaf
    return named


def _fitted(path: Any, name: str, array: np.ndarray, leaf: Any) -> Any:
    if array.dtype.kind == "V" and array.dtype.itemsize == leaf.dtype.itemsize:
        array = array.view(leaf.dtype)  # NumPy's files know bfloat16 only by its size
    if array.shape != leaf.shape:
        raise ValueError(f"checkpoint {path} must have the shape {leaf.shape} for {name!r}, got {array.shape}")
    if array.dtype != leaf.dtype:
        raise ValueError(f"checkpoint {path} must have the dtype {leaf.dtype} for {name!r}, got {array.dtype}")
    return jnp.asarray(array)
