"""Grids of runs that can be interrupted, continued and shared by several processes, with labelled results.

Every cell of the grid is one file, written whole or not at all and named by its configuration. A sweep computes the
cells whose file is missing or damaged, so to continue one is to run it again. A process that works on a cell holds a
lock on it, which the operating system takes back when the process ends, however it ends; so several processes may be
given the same sweep, each takes what no other has, and all return the whole result. That holds under
``jax.distributed`` too, for cells whose data lie on devices of one process; a cell that all processes compute together
is not one to be shared.

What can be vectorized is best left to one cell: ``training.run_sgd`` with ``learning_rates`` and ``num_runs`` makes all
their runs at once. The grid is for what changes shapes, such as the batch size. Cells of equal shapes share one
compilation, as calls of ``run_sgd`` do. The key of a cell is ``fold_in`` of the sweep's and of a number made from the
configuration, so a cell has the same one in every grid.

A cell belongs to the code that computed it: ``run``, the functions and classes of yours that it refers to, and the
numbers, words, arrays and containers of these in their globals, closures and defaults. After an edit the cells are
computed anew, which is said in the log, beside those of the code before, which stay and are found again if the edit is
undone. Comments, docstrings and the code of installed packages are no part of it, nor are files and environment
variables, nor what objects hold that are neither of these nor of a class of yours: ``settings`` are for that. Bytecode
is what is compared, so another version of Python computes anew.

Ctrl-C, SIGTERM and SIGHUP stop a sweep (:mod:`jaxsgd.shell`); the cell at work is the only one to be computed again.

Guarantees of :func:`sweep`:
    - killed at any point and run again, the result is the same as that of an uninterrupted sweep, bit for bit.
    - a cell is computed once, by one process.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxsgd import shell, training
from jaxsgd._core import devices, files, validate
from jaxsgd._core.code import code_digest

__all__ = ["Progress", "sweep"]

SECONDS_BETWEEN_LOOKS = 0.2  # at the cells that other processes work on

_log = logging.getLogger(__name__)
_DIMS = "dimensions of "


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        done: how many cells are there.
        total: of how many.
        seconds_left: for those that are not, at the pace of this process so far; None before its first cell.
    """

    done: int
    total: int
    seconds_left: float | None

    def __str__(self) -> str:
        """One line.

        >>> print(Progress(done=3, total=8, seconds_left=75.2))
        3 of 8 cells, 1:15 left
        """
        if self.seconds_left is None:
            return f"{self.done} of {self.total} cells"
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"{self.done} of {self.total} cells, {minutes}:{seconds:02} left"


def sweep(
    run: Callable[..., Any],
    grid: Mapping[str, Sequence[Any]],
    folder: str | Path,
    key: Array,
    *,
    settings: Mapping[str, Any] | None = None,
    version: str | None = None,
    progress: Callable[[Progress], Any] | None = None,
) -> Any:
    """Compute ``run(**configuration, key=cell_key)`` for every cell of a grid, or read what is there.

    Args:
        run: a function of the cell's configuration, by name, and ``key``. It returns a ``training.RunResult``, whose
            metrics are kept, or a dict of arrays, each alone or as ``(dimension names, array)``.
        grid: name → values: numbers, strings or booleans.
        folder: where the cells are kept.
        key: a JAX random key, from which each cell has its own, the same in every grid.
        settings: everything else that the results depend on, for JSON: cells that were computed with other settings, or
            another key, are not those of this sweep.
        version: a name for what ``run`` computes, in place of its code: while it stays, an edit computes nothing anew.
        progress: called with a :class:`Progress` at the start and after every cell.

    Returns:
        An ``xarray.Dataset`` with the dimensions of the grid, then those of the results. Of a ``RunResult``:
        ``learning_rate`` (with coordinates), ``run`` and ``step`` (with coordinates), where there are any.

    Raises:
        ImportError: if xarray is not installed.
        TypeError, ValueError: if the grid is empty or holds other values, names are taken, or shapes of results differ.

    >>> import tempfile
    >>> grid = {"a": [1, 2], "b": [10, 20, 30]}
    >>> table = sweep(lambda key, a, b: {"sum": a + b}, grid, tempfile.mkdtemp(), jax.random.key(0))
    >>> table["sum"].sel(a=2).values.tolist()
    [12, 22, 32]
    """
    xarray = _xarray()
    validate.random_key(key=key)
    _check_grid(grid)
    fixed: dict[str, Any] = {"key": hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes()).hexdigest()[:16]}
    fixed |= {"settings": dict(settings or {})}
    names = list(grid)
    code = code_digest(run) if version is None else hashlib.sha256(version.encode()).hexdigest()[:16]
    configurations = [dict(zip(names, values, strict=True)) for values in itertools.product(*grid.values())]
    cells = [Cell(Path(folder), configuration, fixed, code) for configuration in configurations]
    with shell.interruptible():
        _compute(run, cells, key, progress or (lambda _: None))
    return _collected(xarray, grid, [cell.read() for cell in cells])


def _check_grid(grid: Any) -> None:
    """Raise unless it is a mapping of names to non-empty sequences of different plain values."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"grid must map at least one name to its values, got {grid!r}")
    for name, values in grid.items():
        if name == "key":
            raise ValueError("grid must not have the name 'key', which is that of the cell's random key")
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ValueError(f"grid must have a non-empty list of values for {name}, got {values!r}")
        for value in values:
            if not isinstance(value, str | int | float):
                raise TypeError(f"grid must hold numbers, strings and booleans, got {value!r} for {name}")
        if len(set(values)) < len(values):
            raise ValueError(f"grid must hold different values, got {values!r} for {name}")


class Cell:
    """One configuration and its file."""

    def __init__(self, folder: Path, configuration: dict[str, Any], fixed: dict[str, Any], code: str) -> None:
        self.configuration = configuration
        self.settings = {"configuration": configuration, **fixed}
        self.stem = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:24]
        self.settings["code"] = code
        name = f"{self.stem}-{code}"
        self.path, self.lock_path = folder / f"{name}.npz", folder / "locks" / name

    def is_there_of_other_code(self) -> bool:
        """Whether the code of ``run`` has been edited since the cell was computed, as far as it is computed."""
        return not self.path.exists() and any(self.path.parent.glob(f"{self.stem}*.npz"))

    def is_there(self) -> bool:
        """Whether the cell is computed; a damaged file is not, and is said so."""
        try:
            self.read()
        except FileNotFoundError:
            return False
        except ValueError as error:
            _log.warning("computing a cell again: %s", error)
            return False
        return True

    def read(self) -> dict[str, np.ndarray]:
        """The results of the cell."""
        return files.read_record(self.path, self.settings)

    def compute(self, run: Callable[..., Any], key: Array) -> None:
        """Run the cell and write its file."""
        own = hashlib.sha256(json.dumps(self.configuration, sort_keys=True).encode()).digest()
        found = run(**self.configuration, key=jax.random.fold_in(key, int.from_bytes(own[:4], "big")))
        files.write_bytes(self.path, files.pack_record(_arrays(found), self.settings))

    def locked(self) -> contextlib.AbstractContextManager[bool]:
        """Hold the cell, unless another process does: whether it is held."""
        return files.locked(self.lock_path)


def _compute(run: Callable[..., Any], cells: list[Cell], key: Array, progress: Callable[[Progress], Any]) -> None:
    """Compute what is not there, and wait for what others compute."""
    missing = [cell for cell in cells if not cell.is_there()]
    edited = sum(cell.is_there_of_other_code() for cell in missing)
    if edited:
        _log.warning(
            "computing %d of %d cells anew: run, or what it refers to, is not the code that computed those in %s, "
            "which stay",
            *(edited, len(cells), cells[0].path.parent),
        )
    seconds, computed = 0.0, 0

    def report() -> None:
        pace = seconds / computed if computed else None
        progress(Progress(len(cells) - len(missing), len(cells), None if pace is None else pace * len(missing)))

    report()
    while missing:
        before = len(missing)
        for cell in list(missing):
            shell.stop_if_asked()
            with cell.locked() as held:
                if not held:
                    continue
                if not cell.is_there():
                    started = time.perf_counter()
                    cell.compute(run, key)
                    elapsed = max(time.perf_counter() - started, 0.0)  # a clock may be set back
                    seconds, computed = seconds + elapsed, computed + 1
            missing.remove(cell)
            report()
        if len(missing) == before:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _arrays(found: Any) -> dict[str, np.ndarray]:
    """The results of a cell as arrays, with the names of their dimensions where there are any."""
    if isinstance(found, training.RunResult):
        found = _labelled(found)
    if not isinstance(found, Mapping) or not found:
        raise TypeError(f"run must return a RunResult or a non-empty dict of arrays, got {found!r}")
    arrays: dict[str, np.ndarray] = {}
    for name, value in found.items():
        dims, array = value if isinstance(value, tuple) else (None, value)
        arrays[name] = devices.on_host(array)
        if dims is not None:
            if isinstance(dims, str) or len(dims) != arrays[name].ndim:
                raise ValueError(f"run must name the {arrays[name].ndim} dimensions of {name}, got {dims!r}")
            arrays[_DIMS + name] = np.asarray(dims, dtype=str)
    return arrays


def _labelled(result: training.RunResult) -> dict[str, Any]:
    """The metrics of a run, with their dimensions, and the coordinates of these."""
    found: dict[str, Any] = {"step": (("step",), result.steps)}
    leading: tuple[str, ...] = ()
    if result.learning_rates is not None:
        found["learning_rate"], leading = (("learning_rate",), result.learning_rates), ("learning_rate",)
    for name, value in result.metrics.items():
        runs = ("run",) if value.ndim == len(leading) + 2 else ()
        found[name] = ((*leading, *runs, "step"), value)
    return found


def _collected(xarray: Any, grid: Mapping[str, Sequence[Any]], cells: list[dict[str, np.ndarray]]) -> Any:
    """The cells side by side."""
    shape = tuple(len(values) for values in grid.values())
    coordinates: dict[str, Any] = {name: list(values) for name, values in grid.items()}
    variables: dict[str, Any] = {}
    for name in cells[0]:
        if name.startswith(_DIMS):
            continue
        values: list[Any] = [cell.get(name) for cell in cells]
        shapes = {None if value is None else value.shape for value in values}
        if len(shapes) > 1:
            raise ValueError(f"run must return arrays of one shape in all cells, got {name} of shapes {shapes}")
        default = [f"{name}_{axis}" for axis in range(cells[0][name].ndim)]
        dims = cells[0].get(_DIMS + name, np.asarray(default, dtype=str)).tolist()
        for dim in dims:
            if dim in grid:
                raise ValueError(f"run must not return dimensions with names of the grid, got {dim}")
        if dims == [name]:
            if not all(np.array_equal(value, values[0]) for value in values):
                raise ValueError(f"run must return the same coordinates {name} in all cells")
            coordinates[name] = values[0]
        else:
            stacked = np.stack(values)
            variables[name] = ([*grid, *dims], stacked.reshape(*shape, *stacked.shape[1:]))
    return xarray.Dataset(variables, coordinates)


def _xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise ImportError("sweep needs xarray: pip install 'jaxsgd[experiments]'") from error
    return xarray
