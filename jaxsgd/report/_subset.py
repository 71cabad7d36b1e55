"""A uniformly random subset of any kind of data, together with a pass over all of it.

A stream can be read once only, so its subset must be kept while the moments of all its examples are computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxsgd import sources
from jaxsgd._core import validate


@dataclass(frozen=True)
class Subset:
    """Examples of a data set.

    Attributes:
        examples: a pytree of arrays, as a batch.
        indices: which examples of the data they are, increasing, shape (n,).
    """

    examples: PyTree
    indices: Int[np.ndarray, " n"]


def draw(data: Any, size: int, key: Array) -> Subset:
    """A uniform subset of arrays or of a source; all of them, in order, if there are no more than ``size``."""
    count = len(data) if sources.kind(data) == "source" else validate.leading_axis(data=data)
    validate.positive_integer(**{"the number of examples": count})
    indices = np.arange(count)
    if count > size:
        indices = np.sort(_generator(key).choice(count, size, replace=False, shuffle=False))
    return Subset(sources.take(data, indices), indices)


class Reservoir:
    """A uniform subset of a stream of unknown length, kept while it passes (J. S. Vitter, ACM TOMS 11, 1985).

    ``passing(batches)`` yields the batches unchanged; afterwards ``subset()`` has ``size`` of the examples, or all if
    there were fewer. Example t, counted from 0, is kept at place j uniform in 0..t if j < ``size``.
    """

    def __init__(self, size: int, key: Array) -> None:
        self._size = size
        self._generator = _generator(key)
        self._kept: Any = None
        self._indices = np.zeros(0, int)
        self._shapes: list[tuple[int, ...]] = []
        self._seen = 0

    def passing(self, batches: Iterator[PyTree]) -> Iterator[PyTree]:
        """The batches, one by one."""
        for batch in batches:
            yield batch
            self._look_at(batch)  # after whoever asked for it found no fault with it

    def subset(self) -> Subset:
        """The subset of what has passed."""
        order = np.argsort(self._indices)
        return Subset(jax.tree.map(lambda leaf: leaf[order], self._kept), self._indices[order])

    def _look_at(self, batch: PyTree) -> None:
        count = validate.leading_axis(batch=batch)
        shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(batch)]
        if self._seen and shapes != self._shapes:
            raise ValueError(f"batches of data must hold examples of shapes {self._shapes}, got {shapes}")
        self._shapes = shapes
        times = np.arange(self._seen, self._seen + count)
        fills = times < self._size
        places = np.where(fills, times, self._generator.integers(0, times + 1))
        self._seen += count
        if fills.any():
            new = jax.tree.map(lambda leaf: leaf[: fills.sum()], batch)
            self._kept = jax.tree.map(_joined, self._kept, new) if self._indices.size else new
            self._indices = np.concatenate([self._indices, times[fills]])
        rows = np.flatnonzero(~fills & (places < self._size))
        last = {int(places[row]): int(row) for row in rows}  # of several for one place, the last stays
        if last:
            where, what = np.asarray(list(last)), np.asarray(list(last.values()))
            self._kept = jax.tree.map(lambda old, leaf: _replaced(old, where, leaf[what]), self._kept, batch)
            self._indices[where] = times[what]


def _joined(old: Any, new: Any) -> Any:
    return jnp.concatenate([old, new]) if isinstance(new, jax.Array) else np.concatenate([old, new])


def _replaced(old: Any, places: np.ndarray, new: Any) -> Any:
    if isinstance(old, jax.Array):
        return old.at[places].set(new)
    changed = np.array(old)
    changed[places] = new
    return changed


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
