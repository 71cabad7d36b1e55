"""Data sets as they lie on a disk or in another library, read a batch at a time.

What the streaming functions take as ``data`` is one of

    arrays     a pytree of arrays with N examples along the first axis of each, memory-mapped ones included
    source     an object with ``len()`` and ``source[i]`` for ONE i, as the map-style data sets of grain, array_record
               and PyTorch; asked for ``source.__getitems__(indices)``, a list of examples, where it has that
    batches    an iterator of batches, or an object with ``iter()`` alone, such as a data loader

and :func:`load` makes one of the first two of a file or a folder.

What a loop over ``source[i]`` gives is the truth: a data set that transforms its example (divides it by its maximum,
clips its norm, augments it) is never asked for several at once, unless it offers ``__getitems__``. That is one call of
Python for each example, and some 10 μs to stack it: where examples are read many times, stack them once. A long pass
shows its progress through whatever shows that of an iterator: ``gradient_moments(loss_fn, params, tqdm(batches(source,
256), total=...))``.

The sources of this module may be read by several threads, by processes forked while they are open, and by spawned
workers, to which they are sent as their path: each opens the file for itself. (JAX warns of ``os.fork()`` since its own
threads do not survive it: a forked worker must not call JAX, and need not in order to read.)
"""

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxsgd._core import arrays, files, validate
from jaxsgd._core.meshes import on_any_mesh

__all__ = ["Kind", "batches", "kind", "load", "rows", "take"]

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
    arrays.refuse_tables(data, "data", "arrays, a source or batches")
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
        TypeError, ValueError: if arrays differ in length, a source is empty or shorter than its ``len()``, its examples
            differ in structure or shape, a memory-mapped file has shrunk, a loader yields fewer batches than it did
            before, or ``batch_size`` is not a positive integer.

    >>> [batch.tolist() for batch in batches(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    if kind(data) == "batches":
        yield from _passing(data)
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
            yield jax.tree.map(lambda a, i=start, j=stop: rows(a, slice(i, j)), data)


@on_any_mesh
def take(data: Any, indices: Int[np.ndarray, " m"]) -> PyTree:
    """Some examples of arrays or of a source, in the order of ``indices``, as one batch.

    Raises:
        ValueError: if an index is negative or not below the number of examples; if examples of a source differ in
            structure or shape, or it has fewer than its ``len()``.

    >>> take({"x": np.arange(5) ** 2}, np.asarray([1, 4]))["x"].tolist()
    [1, 16]
    """
    is_source = kind(data) == "source"
    population_size = len(data) if is_source else validate.leading_axis(data=data)
    indices = np.asarray(indices)
    outside = indices[(indices < 0) | (indices >= population_size)]
    if outside.size:
        raise ValueError(f"indices must be from 0 to {population_size - 1}, got {outside[0]}")
    if not is_source:
        return jax.tree.map(lambda leaf: rows(leaf, indices), data)
    if isinstance(data, _Parquet):
        return data.rows(indices)
    return _stack(list(_examples(data, indices.tolist())), indices)


def _examples(source: Any, indices: list[int]) -> Iterable[Any]:
    """The examples of a source, one by one unless it offers several."""
    if hasattr(source, "__getitems__"):
        examples = source.__getitems__(indices)
        if len(examples) != len(indices):
            raise ValueError(f"data.__getitems__ must give {len(indices)} examples for as many, got {len(examples)}")
        return examples
    return (_example(source, index) for index in indices)


def _example(source: Any, index: int) -> Any:
    try:
        return source[index]
    except (IndexError, KeyError) as error:
        raise ValueError(
            f"data says that it has {len(source)} examples, but data[{index}] fails: {type(error).__name__}: {error}"
        ) from error


_PASSED: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()  # how many batches of a loader came


def _passing(data: Any) -> Iterator[PyTree]:
    """The batches of a loader, counted: an iterator that is spent, or a file that was cut, is no smaller data set."""
    count = 0
    for batch in data:
        count += 1
        yield jax.tree.map(_as_array, batch)
    if isinstance(data, Iterator):
        return
    try:
        before = _PASSED.setdefault(data, count)
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return
    if count < before:
        raise ValueError(f"data must yield the same batches in every pass, got {before} batches before and {count} now")


def _stack(examples: list[Any], indices: np.ndarray) -> PyTree:
    flat: list[tuple[list[Any], Any]] = [jax.tree.flatten(example) for example in examples]
    rows_of = [[_as_array(leaf) for leaf in leaves] for leaves, _ in flat]
    structure, shapes = flat[0][1], [array.shape for array in rows_of[0]]
    for index, (_, its_structure), mine in zip(indices, flat, rows_of, strict=True):
        its_shapes = [array.shape for array in mine]
        if (its_structure, its_shapes) != (structure, shapes):
            raise ValueError(
                f"examples of data must have the structure and the shapes of example {indices[0]}, "
                f"{structure.unflatten(shapes)}, got {its_structure.unflatten(its_shapes)} in example {index}"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples[0]):
        if isinstance(leaf, int | float) and path and isinstance(path[-1], jax.tree_util.SequenceKey):
            raise TypeError(
                f"examples of data must be arrays, but data[{indices[0]}]{jax.tree_util.keystr(path[:-1])} is a list "
                "of numbers: make it an array (for a Hugging Face data set, data.with_format('numpy'))"
            )
    return structure.unflatten(np.stack(column) for column in zip(*rows_of, strict=True))


@on_any_mesh
def rows(leaf: Any, some: Any) -> Any:
    """Some rows of an array, in the byte order of this machine, which is all that JAX takes.

    Raises:
        ValueError: if it has masked entries, or integers that JAX has with x64 alone; or if it is memory-mapped and its
            file no longer has all the bytes, reading which would end the process.
    """
    leaf = arrays.unmasked(leaf, "data")
    mapped = getattr(leaf, "_mmap", None)
    if mapped is not None and mapped.size() < len(mapped):
        raise ValueError(f"data are no longer whole: the file {leaf.filename} has shrunk while it was read")
    found = arrays.native(leaf[some])
    arrays.fitting(found, "data", "data")
    return found


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
    """The numeric columns of a parquet file; one row group for each thread that reads is in memory at a time.

    A ``ParquetFile`` must not be used by two threads, nor by a process forked from the one that opened it: each thread
    of each process has its own, which it opens when it first reads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = threading.local()
        metadata = self._file().metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *counts])

    def __reduce__(self) -> tuple[Any, ...]:
        return _Parquet, (self._path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, indices: Any) -> dict[str, np.ndarray]:
        return self.rows(np.asarray(indices))

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows, as columns; the row groups that they lie in are read one after the other."""
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        parts = [self._rows(group, indices[groups == group]) for group in np.unique(groups).tolist()]
        order = np.argsort(np.argsort(groups, kind="stable"), kind="stable")
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def _file(self) -> Any:
        """The file, as this thread of this process has opened it."""
        if getattr(self._own, "process", None) != os.getpid():
            self._own.process, self._own.file, self._own.group = os.getpid(), self._opened(), (-1, {})
        return self._own.file

    def _opened(self) -> Any:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise ImportError(f"reading {self._path} needs pyarrow: pip install 'jaxsgd[parquet]'") from error
        try:
            return parquet.ParquetFile(self._path, page_checksum_verification=True)
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _rows(self, group: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        file = self._file()
        if self._own.group[0] != group:
            self._own.group = group, self._columns(file, group)
        return {name: column[indices - self._starts[group]] for name, column in self._own.group[1].items()}

    def _columns(self, file: Any, group: int) -> dict[str, np.ndarray]:
        from pyarrow import ArrowException

        try:
            table = file.read_row_group(group, use_threads=False)  # whose threads a fork would not have
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
