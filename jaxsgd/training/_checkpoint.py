"""What a run keeps in its state file: the carry, the records, the parameters kept; arrays by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core import devices
from jaxsgd._core.fingerprints import plain, viewed
from jaxsgd._core.state_file import StateFile
from jaxsgd.training._step import Carry

Record = tuple[int, dict[str, np.ndarray]]  # a step, and the metrics there
Kept = list[list[np.ndarray]]  # the leaves of θ at every step where it is kept

_METRICS, _KEPT = "metrics/", "kept/"


class Checkpoint(StateFile):
    """The state of one run, which of several processes that share it all read."""

    def save(self, step: int, carry: Carry, records: list[Record], kept: Kept) -> None:
        """Write the state before a step, and what was recorded and kept so far."""
        arrays = {f"carry/{i}": _stored(leaf) for i, leaf in enumerate(jax.tree.leaves(carry))}
        arrays |= {f"{_METRICS}{name}": np.stack([found[name] for _, found in records]) for name in records[0][1]}
        arrays |= {f"{_KEPT}{i}": viewed(np.stack(leaf)) for i, leaf in enumerate(zip(*kept, strict=True))}
        arrays |= {"step": np.asarray(step), "steps": np.asarray([step for step, _ in records])}
        self.write(arrays)

    def load(self, like: Carry) -> tuple[int, Carry, list[Record], Kept] | None:
        """What was saved, or None if nothing was."""
        arrays = self.read()
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


def _stored(leaf: Any) -> np.ndarray:
    """An array as NumPy stores it: keys as their data, dtypes that NumPy does not have as bytes."""
    return viewed(devices.on_host(plain(leaf)))


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
