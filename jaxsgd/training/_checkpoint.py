"""The state of a run in one file, from which it goes on as if it had never stopped."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core import devices, files
from jaxsgd.training._step import Carry

Record = tuple[int, dict[str, np.ndarray]]  # a step, and the metrics there
Kept = list[list[np.ndarray]]  # the leaves of θ at every step where it is kept

_METRICS, _KEPT = "metrics/", "kept/"
_NUMBERS_AT_A_TIME = 2**24
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Checkpoint:
    """The file of one run, named by its settings: another run's, or a damaged one, is refused.

    Of several processes that share a run, the first writes it, and all read it. Processes that do not are kept from
    writing the same file.
    """

    def __init__(self, path: Path, settings: dict[str, Any], mesh: Any = None) -> None:
        self.path, self.settings, self.mesh = path, settings, mesh

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from the file, by a lock on an empty file beside it."""
        if not devices.is_first(self.mesh):
            yield
            return
        with files.locked(self.path.with_name(f".{self.path.name}.lock")) as held:
            if not held:
                raise ValueError(f"checkpoint must not be in use by another run, got {self.path}")
            yield

    def save(self, step: int, carry: Carry, records: list[Record], kept: Kept) -> None:
        """Write the state before a step, and what was recorded and kept so far."""
        arrays = {f"carry/{i}": _stored(leaf) for i, leaf in enumerate(jax.tree.leaves(carry))}
        arrays |= {f"{_METRICS}{name}": np.stack([found[name] for _, found in records]) for name in records[0][1]}
        arrays |= {f"{_KEPT}{i}": _viewed(np.stack(leaf)) for i, leaf in enumerate(zip(*kept, strict=True))}
        arrays |= {"step": np.asarray(step), "steps": np.asarray([step for step, _ in records])}
        if devices.is_first(self.mesh):
            files.write_bytes(self.path, files.pack_record(arrays, self.settings))

    def load(self, like: Carry) -> tuple[int, Carry, list[Record], Kept] | None:
        """What was saved, or None if nothing was."""
        try:
            arrays = files.read_record(self.path, self.settings) if self.path.exists() else None
        except ValueError as error:
            raise ValueError(f"{error}; nothing is overwritten: to start anew, remove it") from error
        if not devices.agree(self.mesh, -1 if arrays is None else int(arrays["step"])):
            raise ValueError(f"checkpoint must be in a folder that all processes of the run share, got {self.path}")
        if arrays is None:
            return None
        leaves = [_restored(arrays[f"carry/{i}"], leaf) for i, leaf in enumerate(jax.tree.leaves(like))]
        metrics = {name.removeprefix(_METRICS): values for name, values in arrays.items() if name.startswith(_METRICS)}
        records = [
            (step, {name: np.asarray(values[place]) for name, values in metrics.items()})
            for place, step in enumerate(arrays["steps"].tolist())
        ]
        kept = [
            list(_viewed_as(arrays[f"{_KEPT}{i}"], leaf.dtype))
            for i, leaf in enumerate(jax.tree.leaves(like.params))
            if f"{_KEPT}{i}" in arrays
        ]
        carry = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return int(arrays["step"]), carry, records, [list(leaves) for leaves in zip(*kept, strict=True)]


def digest(tree: Any) -> str:
    """A hash of the structure of a pytree and of every bit of its arrays."""
    found = hashlib.sha256(_ADDRESS.sub("", str(jax.tree.structure(tree))).encode())
    for leaf in jax.tree.leaves(tree):
        leaf = _plain(leaf)
        for i, block in enumerate(map(_viewed, devices.blocks(leaf, _NUMBERS_AT_A_TIME))):
            if i == 0:
                found.update(f"{block.dtype} {leaf.shape}".encode())
            found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()[:16]


def program_digest(program: Any) -> str:
    """A hash of a jaxpr: of every operation, and of the arrays that are constants of it."""
    return digest([_ADDRESS.sub("", str(program.jaxpr)).encode().hex(), *program.consts])


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, str):
        return np.frombuffer(bytes.fromhex(leaf), np.uint8)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _stored(leaf: Any) -> np.ndarray:
    """An array as NumPy stores it: keys as their data, dtypes that NumPy does not have as bytes."""
    leaf = _plain(leaf)
    return _viewed(devices.on_host(leaf))


def _viewed(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _viewed_as(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array again that was viewed as numbers that NumPy has."""
    return array.view(dtype) if np.dtype(dtype).kind == "V" else array


def _restored(array: np.ndarray, like: Any) -> Any:
    """The array again, as ``like`` is."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        found = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    else:
        found = jnp.asarray(_viewed_as(array, like.dtype))
    return found if devices.mesh_of(like) is None else jax.device_put(found, like.sharding)
