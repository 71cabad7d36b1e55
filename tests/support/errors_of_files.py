"""Error cases of files that are read and written: the exception, its message, and the call that gives it."""

import operator
import re
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import problems, report, sources, tracking
from jaxsgd._core import files
from tests.support.error_helpers import ONE, Case, trained


def checkpoint(path: Path, arrays: dict[str, Any]) -> Any:
    np.savez(path / "a.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return report.load_checkpoint(path / "a.npz", {"hidden": ONE})


def empty(path: Path) -> Path:
    (path / "empty").mkdir(exist_ok=True)
    return path / "empty"


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pickled(path: Path) -> Path:
    np.save(path, np.array([{}], object), allow_pickle=True)
    return path


def without_pyarrow(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    return sources.load(written(path / "a.parquet", b"PAR1"))


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


def stored(folder: Path, write: Callable[[Path], Any]) -> Any:
    write(folder / "a.npz")
    return files.read_arrays(folder / "a.npz")


def write_pickle(path: Path) -> None:
    np.savez(path, a=np.array([{}], dtype=object))


def write_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(2))


def damaged(folder: Path) -> Any:
    (folder / "a.npz").write_bytes(files.pack_record({"a": np.ones(3)}, {})[:-1])
    return files.read_record(folder / "a.npz")


def of_another_run(folder: Path) -> Any:
    (folder / "a.npz").write_bytes(files.pack_record({"a": np.ones(3)}, {"num_steps": 3}))
    return files.read_record(folder / "a.npz", {"num_steps": 4})


def in_use(folder: Path) -> Any:
    with files.locked(folder / ".busy.npz.lock"):
        return trained(checkpoint=folder / "busy.npz")


def damaged_checkpoint(folder: Path) -> Any:
    (folder / "run.npz").write_bytes(b"PK")
    return trained(checkpoint=folder / "run.npz")


def one_hidden(folder: Path, _: Any) -> Any:
    """The directory at the end says that the comment of its first entry, which has none, is as long as the second."""
    content = bytearray(files.pack_arrays({"a": np.ones(1), "b": np.ones(1)}))
    first, second = (at.start() for at in re.finditer(b"PK\1\2", content))
    content[first + 32] = content.find(b"PK\5\6") - second
    return files.read_arrays(written(folder / "a.npz", bytes(content)))


def one_byte_more(folder: Path, _: Any) -> Any:
    np.save(folder / "a.npy", np.ones(3))
    return sources.load(written(folder / "a.npy", (folder / "a.npy").read_bytes() + b"0"))


def damaged_line(content: bytes, folder: Path, _: Any) -> Any:
    return list(tracking.read_json_lines(written(folder / "run.jsonl", content + b"\n")))


def no_array_inside(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "not an array")
    return files.read_arrays(folder / "a.npz")


CASES: list[Case] = [
    (ValueError, "a.npz is damaged: its … bytes do not have the checksum", lambda folder, _: damaged(folder)),
    (
        ValueError,
        "a.npz is of another run: num_steps is 3 there, and 4 here",
        lambda folder, _: of_another_run(folder),
    ),
    (FileNotFoundError, "there is no file", lambda folder, _: files.read_record(folder / "none.npz")),
    (ValueError, "path must end in .npz, got best.zip", lambda *_: report.save_checkpoint("best.zip", ONE)),
    (
        ValueError,
        "checkpoint … a.npz has an array 'hiden', which params lack; did you mean hidden?",
        lambda path, _: checkpoint(path, {"hiden": ONE}),
    ),
    (ValueError, "checkpoint … a.npz lacks 'hidden' of params", lambda path, _: checkpoint(path, {})),
    (
        ValueError,
        "checkpoint … a.npz must have the shape () for 'hidden', got (2,)",
        lambda path, _: checkpoint(path, {"hidden": jnp.ones(2)}),
    ),
    (
        ValueError,
        "checkpoint … a.npz must have the dtype float64 for 'hidden', got float32",
        lambda path, _: checkpoint(path, {"hidden": jnp.ones((), jnp.float32)}),
    ),
    (
        FileNotFoundError,
        "there is no file … no.npz",
        lambda path, _: report.load_checkpoint(path / "no.npz", ONE),
    ),
    (
        TypeError,
        "problem must be a Problem(loss_fn, params, data), got 3 of type int",
        lambda *_: report.report(3),
    ),
    (
        TypeError,
        "batch_loss_fn must be a function, got 3 of type int",
        lambda *_: report.report((*problems.line_fit(), 3)),
    ),
    (
        ValueError,
        "batches of data must hold examples of shapes [()], got [(2,)]",
        lambda *_: report.report((lambda p, x: p * x.sum(), ONE, iter([jnp.ones(2), jnp.ones((2, 2))]))),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: report.report(problems.line_fit(), key=0),
    ),
    # Files.
    (ValueError, "checkpoint must not be in use by another run, got … busy.npz", lambda folder, _: in_use(folder)),
    (
        ValueError,
        "run.npz is damaged: its 2 bytes … nothing is overwritten: to start anew, remove it",
        lambda folder, _: damaged_checkpoint(folder),
    ),
    (ValueError, "its member notes.txt is not an array", lambda folder, _: no_array_inside(folder)),
    (ValueError, "a.npz is not a readable .npz file: it has 1 members, and says that it has 2", one_hidden),
    (ValueError, "a.npy is not a readable .npy file: its 153 bytes are not the (3,) numbers that", one_byte_more),
    *(
        (ValueError, "run.jsonl is damaged in line 1: ", partial(damaged_line, content))
        for content in (
            b'{"step": 1.5}',
            b'{"step": true}',
            b'{"step": 1, "loss": true}',
            b'{"step": 1, "loss": "1_0"}',
        )
    ),
    (
        ValueError,
        "run.jsonl is damaged in line 2: b'{'",
        lambda folder, _: list(tracking.read_json_lines(written(folder / "run.jsonl", b'{"step": 1}\n{\n'))),
    ),
    (FileNotFoundError, "none.jsonl", lambda folder, _: list(tracking.read_json_lines(folder / "none.jsonl"))),
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
    (FileNotFoundError, "there is no file … nowhere.npz", lambda folder, _: files.read_arrays(folder / "nowhere.npz")),
    (ValueError, "a.npz is not a readable .npz file: Object arrays", lambda folder, _: stored(folder, write_pickle)),
    (ValueError, "a.npz is not a readable .npz file: it holds one array", lambda f, _: stored(f, write_one_array)),
]
