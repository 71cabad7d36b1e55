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


class Numbers:
    """A source of so many examples, each one number, as it says."""

    def __init__(self, says: int, has: int) -> None:
        self.says, self.examples = says, list(range(has))

    def __len__(self) -> int:
        return self.says

    def __getitem__(self, index: int) -> Any:
        return {"x": np.float64(self.examples[index])}


class Several(Numbers):
    """Offers several examples at once, and forgets one."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices[1:]]


class Listed(Numbers):
    """Examples as lists, as data sets of words have them."""

    def __getitem__(self, index: int) -> Any:
        return {"x": [1.0, 2.0]}


class Spent:
    """A loader that can be gone through once."""

    def __init__(self) -> None:
        self.left = iter([np.ones(2), np.ones(2)])

    def __iter__(self) -> Any:
        return self.left


def read(data: Any) -> list[Any]:
    return list(sources.batches(data))


def read_twice(data: Any) -> Any:
    return read(data), read(data)


def shrunk(folder: Path, _: Any) -> Any:
    np.save(folder / "long.npy", np.ones(4096))
    data = sources.load(folder / "long.npy")
    with (folder / "long.npy").open("r+b") as file:
        file.truncate(1024)
    return read(data)


def frame() -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"x": [1.0, 2.0]})


def sparse() -> Any:
    from scipy.sparse import csr_array

    return csr_array(np.eye(2))


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
    (ValueError, "indices must be from 0 to 4, got -1", lambda *_: sources.take(np.arange(5), np.array([-1]))),
    (ValueError, "data.__getitems__ must give 3 examples for as many, got 2", lambda *_: read(Several(3, 3))),
    (
        ValueError,
        "data says that it has 3 examples, but data[2] fails: IndexError: list index out of range",
        lambda *_: read(Numbers(3, 2)),
    ),
    (
        ValueError,
        "data must yield the same batches in every pass, got 2 batches before and 0 now",
        lambda *_: read_twice(Spent()),
    ),
    (
        TypeError,
        "examples of data must be arrays, but data[0]['x'] is a list of numbers: make it an array",
        lambda *_: read(Listed(2, 2)),
    ),
    (
        TypeError,
        "data must be arrays, a source or batches, got a pandas frame, whose brackets choose columns: pass "
        "{name: data[name].to_numpy() for name in data.columns}",
        lambda *_: read(frame()),
    ),
    (TypeError, "data must be dense arrays, got a sparse csr_array: pass data.toarray()", lambda *_: read(sparse())),
    (
        ValueError,
        "data must have no masked entries: fill them in, or leave the examples out",
        lambda *_: read(np.ma.masked_equal(np.arange(3.0), 1)),
    ),
    (ValueError, "data are no longer whole: the file … long.npy has shrunk while it was read", shrunk),
]
