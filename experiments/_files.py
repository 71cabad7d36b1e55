"""Result files: written whole or not at all, and left as they are by a run that finds the same numbers.

Numbers are the same if they differ by what another machine's rounding can make of them: the last digits of a sum, and
with it of what is left where a difference vanishes. Times and versions are not compared: beside the arrays stand those
of the run that made them.
"""

import contextlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

RELATIVE, OF_THE_LARGEST, ABSOLUTE = 1e-6, 1e-7, 1e-9
COMPARED = ("claim", "config", "findings")
SUFFIXES = (".png", ".pdf", ".npz", ".json")


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: a reader sees the old file or the new one.

    Its permissions are those that the umask leaves, and both it and the folder are flushed to the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # what a killed run left there is written over
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interruption may come after the renaming
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # not on every system
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an ``.npz`` file: the same bytes for the same arrays, as NumPy dates all members 1980."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_record(base: Path) -> dict[str, Any] | None:
    """What is stored beside the arrays of a figure, if anything."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):  # if damaged, as if it were not there
        stored = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
        return stored if isinstance(stored, dict) else None
    return None


def pack_record(record: dict[str, Any]) -> bytes:
    """The content of a ``.json`` file."""
    return (json.dumps(record, indent=2) + "\n").encode()


def is_stored(base: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> bool:
    """Whether the four files of a figure are there, with the same claim, settings and numbers."""
    from jaxsgd import sources

    if not all(base.with_suffix(suffix).exists() for suffix in SUFFIXES):
        return False
    stored = read_record(base)
    if stored is None or any(not same(record[name], stored.get(name)) for name in COMPARED):
        return False
    try:
        return same(arrays, sources.load(base.with_suffix(".npz")))
    except ValueError:  # damaged
        return False


def same(found: Any, stored: Any) -> bool:
    """Whether two findings, or two dicts of arrays, are the same up to rounding."""
    if isinstance(found, dict):
        return (
            isinstance(stored, dict)
            and found.keys() == stored.keys()
            and all(same(value, stored[name]) for name, value in found.items())
        )
    if isinstance(found, list | tuple):
        return isinstance(stored, list) and len(found) == len(stored) and all(map(same, found, stored))
    if isinstance(found, np.ndarray):
        return _same_array(found, np.asarray(stored))
    if isinstance(found, float) and isinstance(stored, float):
        return math.isclose(found, stored, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or (found != found and stored != stored)
    return bool(found == stored)


def _same_array(found: np.ndarray, stored: np.ndarray) -> bool:
    if found.dtype != stored.dtype or found.shape != stored.shape:
        return False
    if found.dtype.kind != "f":
        return np.array_equal(found, stored)
    largest = np.max(np.abs(stored), where=np.isfinite(stored), initial=0)
    return np.allclose(found, stored, rtol=RELATIVE, atol=OF_THE_LARGEST * largest, equal_nan=True)
