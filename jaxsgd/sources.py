"""Data sets as they lie on a disk or in another library, read a batch at a time.

What the streaming functions take as ``data`` is one of

    arrays     a pytree of arrays with N examples along the first axis of each, memory-mapped ones included
    source     an object with ``len()`` and ``source[indices]``, as the sources of grain, array_record and PyTorch:
               asked for ``source.__getitems__(indices)`` where it has that, for ``source[indices]`` with a NumPy vector
               otherwise, and one by one where it takes a single index only
    batches    an iterator of batches, or an object with ``iter()`` alone, such as a data loader

and :func:`load` makes one of the first two of a file or a folder.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxsgd._core import files, validate

__all__ = ["Kind", "batches", "kind", "load", "take"]

Kind = Literal["arrays", "source", "batches"]


def load(path: Any) -> Any:
    """Open a data set on disk.

    Args:
        path: an ``.npz`` archive (a dict of arrays, read whole), an ``.npy`` file (memory-mapped), a folder of such (a
            dict of memory-mapped arrays, by the names of the files), or a ``.parquet`` file with numeric columns (a
            source of dicts of columns, read by row group; needs pyarrow).

    Returns:
        A pytree of arrays or a source: what :func:`jaxsgd.gradient_moments` takes as ``data``.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it is of another kind, damaged, or holds Python objects; nothing is ever unpickled.
        ImportError: for ``.parquet`` without pyarrow.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir():
        arrays = sorted(path.glob("*.npy"))
        if not arrays:
            raise ValueError(f"the folder {path} must hold .npy files, got none")
        return {file.stem: _mapped(file) for file in arrays}
    if path.suffix == ".npy":
        return _mapped(path)
    if path.suffix == ".npz":
        return files.read_arrays(path)
    if path.suffix == ".parquet":
        return _Parquet(path)
    raise ValueError(f"data must be an .npz, .npy or .parquet file or a folder of .npy files, got {path}")


def kind(data: Any) -> Kind:
    """Which of the three kinds of data this is; a pytree of arrays if in doubt."""
    if isinstance(data, Iterator):
        return "batches"
    leaves = jax.tree.leaves(data)
    if len(leaves) != 1 or leaves[0] is not data or isinstance(data, np.ndarray | jax.Array):
        return "arrays"
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return "source"
    return "batches" if isinstance(data, Iterable) else "arrays"


def batches(data: Any, batch_size: int | None = None) -> Iterator[PyTree]:
    """The examples of any of the three kinds in order, ``batch_size`` at a time; the last batch may be shorter.

    Args:
        data: arrays, a source, or batches, which come as they are.
        batch_size: all at once by default.

    Yields:
        Pytrees of arrays (NumPy's, unless the data are JAX's).

    Raises:
        TypeError, ValueError: if arrays differ in length, a source is empty or its examples differ in structure or
            shape, or ``batch_size`` is not a positive integer.

    >>> [batch.tolist() for batch in batches(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    if kind(data) == "batches":
        for batch in data:
            yield jax.tree.map(_as_array, batch)
        return
    is_source = kind(data) == "source"
    population_size = len(data) if is_source else validate.leading_axis(data=data)
    validate.positive_integer(**{"the number of examples": population_size})
    batch_size = population_size if batch_size is None else batch_size
    validate.positive_integer(batch_size=batch_size)
    for start in range(0, population_size, batch_size):
        stop = min(start + batch_size, population_size)
        if is_source:
            yield take(data, np.arange(start, stop))
        else:
            yield jax.tree.map(lambda a, i=start, j=stop: a[i:j], data)


def take(data: Any, indices: Int[np.ndarray, " m"]) -> PyTree:
    """Some examples of arrays or of a source, in the order of ``indices``, as one batch.

    >>> take({"x": np.arange(5) ** 2}, np.asarray([1, 4]))["x"].tolist()
    [1, 16]
    """
    if kind(data) == "arrays":
        return jax.tree.map(lambda leaf: leaf[indices], data)
    if hasattr(data, "__getitems__"):
        return _stack(data.__getitems__(indices.tolist()), indices)
    try:
        batch = jax.tree.map(_as_array, data[indices])
        if all(np.shape(leaf)[:1] == indices.shape for leaf in jax.tree.leaves(batch)):
            return batch
    except (TypeError, IndexError, KeyError, ValueError):
        pass  # it takes one index at a time; what is wrong otherwise shows there again
    return _stack([data[i] for i in indices.tolist()], indices)


def _stack(examples: Any, indices: np.ndarray) -> PyTree:
    trees = [jax.tree.map(_as_array, example) for example in examples]
    shapes = [jax.tree.map(np.shape, tree) for tree in trees]
    for index, found in zip(indices, shapes, strict=True):
        if found != shapes[0]:
            raise ValueError(
                f"examples of data must have the structure and the shapes of example {indices[0]}, {shapes[0]}, "
                f"got {found} in example {index}"
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _as_array(leaf: Any) -> Any:
    """Numbers of another library as NumPy's."""
    return leaf if isinstance(leaf, np.ndarray | jax.Array) else np.asarray(leaf)


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        if path.stat().st_size != array.offset + array.nbytes:  # there is no checksum; this much can be known
            raise ValueError(f"its {path.stat().st_size} bytes are not the {array.shape} numbers that its header says")
        return array
    except Exception as error:  # a damaged header fails in as many ways as there are parsers
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error


class _Parquet:
    """The numeric columns of a parquet file; one row group is in memory at a time."""

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise ImportError(f"reading {path} needs pyarrow: pip install 'jaxsgd[parquet]'") from error
        self._path = path
        try:
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self._group: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, indices: Any) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        parts = [self._rows(group, indices[groups == group]) for group in np.unique(groups).tolist()]
        order = np.argsort(np.argsort(groups, kind="stable"), kind="stable")
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def _rows(self, group: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        if self._group[0] != group:
            self._group = group, self._columns(group)
        return {name: column[indices - self._starts[group]] for name, column in self._group[1].items()}

    def _columns(self, group: int) -> dict[str, np.ndarray]:
        from pyarrow import ArrowException

        try:
            table = self._file.read_row_group(group)
            table.validate(full=True)
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        if table.num_rows != self._starts[group + 1] - self._starts[group]:
            raise self._unreadable(ValueError(f"row group {group} has {table.num_rows} rows, not as many as it says"))
        return {name: self._column(name, table[name]) for name in table.column_names}

    def _column(self, name: str, column: Any) -> np.ndarray:
        values = column.to_numpy()
        if values.dtype == object:  # a list of numbers in every row
            lengths = {np.size(value) for value in values}
            if len(lengths) == 1:
                values = np.stack([np.asarray(value) for value in values])
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"{self._path}: column {name} must hold numbers, or equally many in every row, got {column.type}"
            )
        return values

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(f"{self._path} is not a readable .parquet file: {error}")
