"""Every way to be refused by ``sources``: the exception, its message, and the call that gives it."""

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxsgd import sources
from tests.support.error_helpers import Case, without, written


def empty(path: Path) -> Path:
    (path / "empty").mkdir(exist_ok=True)
    return path / "empty"


def pickled(path: Path) -> Path:
    np.save(path, np.array([{}], object), allow_pickle=True)
    return path


def without_pyarrow(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return without("pyarrow", lambda: sources.load(written(path / "a.parquet", b"PAR1")), monkeypatch)


def damaged_parquet(path: Path, _: Any) -> Any:
    return sources.load(written(path / "a.parquet", b"PAR1 damaged"))


def words_in_parquet(path: Path, _: Any) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"s": ["a", "b"]}), path / "words.parquet")
    return next(sources.batches(sources.load(path / "words.parquet")))


class Ragged:
    """A source whose examples differ in length."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> np.ndarray:
        return np.ones(2 + operator.index(index))


def one_byte_more(folder: Path, _: Any) -> Any:
    np.save(folder / "a.npy", np.ones(3))
    return sources.load(written(folder / "a.npy", (folder / "a.npy").read_bytes() + b"0"))


CASES: list[Case] = [
    (ValueError, "a.npy is not a readable .npy file: its 153 bytes are not the (3,) numbers that", one_byte_more),
    (FileNotFoundError, "there is no file or folder ", lambda path, _: sources.load(path / "none.npz")),
    (ValueError, "must hold .npy files, got none", lambda path, _: sources.load(empty(path))),
    (
        ValueError,
        "data must be an .npz, .npy or .parquet file or a folder of .npy files, got … a.csv",
        lambda path, _: sources.load(written(path / "a.csv", b"1,2")),
    ),
    (
        ValueError,
        "a.npy is not a readable .npy file: ",
        lambda path, _: sources.load(written(path / "a.npy", b"1,2")),
    ),
    (
        ValueError,
        "a.npy is not a readable .npy file: ",
        lambda path, _: sources.load(pickled(path / "a.npy")),
    ),
    (ImportError, "needs pyarrow: pip install 'jaxsgd[parquet]'", without_pyarrow),
    (ValueError, "a.parquet is not a readable .parquet file: ", damaged_parquet),
    (ValueError, "column s must hold numbers, or equally many in every row, got string", words_in_parquet),
    (
        ValueError,
        "examples of data must have the structure and the shapes of example 0, (2,), got (3,) in example 1",
        lambda *_: next(sources.batches(Ragged())),
    ),
]
