"""Random files: the right answer or one line of refusal, never anything else.

Every file is a whole one with random damage, or random bytes. Where a format has a checksum, what is read must be what
was written; where it has none, what the damaged file says, by a parser that shares nothing with the package's.
"""

import ast
import collections
import io
import json
import logging
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from experiments._journal import Journal
from jaxsgd import report, sources, sweeps, tracking
from jaxsgd._core import files
from tests.support.damages import DAMAGES

pytestmark = pytest.mark.usefixtures("without_type_checks")

KEY = jax.random.key(0)
ARRAYS = {"x": np.arange(12.0).reshape(6, 2) / 7, "y": np.arange(6)}
PARAMS = {"w": jnp.arange(3.0) / 7, "b": jnp.asarray(0.3, jnp.bfloat16)}
RECORDS = [(0, {"loss": 2.5, "noise": float("inf")}), (100, {"loss": 0.1}), (2**53 + 1, {"loss": 1e-300})]


class Subject(NamedTuple):
    """A whole file, the function that reads it, and whether what it gave of a damaged one is right."""

    name: str
    whole: bytes
    read: Callable[[Path], Any]
    is_right: Callable[[bytes, Any], bool]


def same(found: Any, expected: Any) -> bool:
    """Names, dtypes, shapes and bits."""
    return found.keys() == expected.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in ((np.asarray(found[name]), np.asarray(expected[name])) for name in found)
    )


def saved(save: Callable[..., Any], *arrays: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def npy_says(content: bytes) -> np.ndarray:
    """The array of an ``.npy`` file, by the description of the format alone."""
    assert content[:6] == b"\x93NUMPY"
    wide = content[6] > 1
    (length,) = struct.unpack_from("<I" if wide else "<H", content, 8)
    start = 8 + (4 if wide else 2)
    header = ast.literal_eval(content[start : start + length].decode("utf-8" if content[6] == 3 else "latin1"))
    order = "F" if header["fortran_order"] else "C"
    flat = np.frombuffer(content[start + length :], np.dtype(header["descr"]))
    return flat.reshape(header["shape"], order=order)  # refuses a byte too many, and one too few


def lines_say(content: bytes) -> list[Any]:
    """The whole lines of a log of metrics."""
    found = [json.loads(line) for line in content.split(b"\n")[:-1]]
    assert all(type(line["step"]) is int for line in found)
    assert all(
        type(value) in (int, float) or value in ("inf", "-inf", "nan") for line in found for value in line.values()
    )
    return [(line["step"], {name: float(value) for name, value in line.items() if name != "step"}) for line in found]


def json_lines(folder: Path) -> bytes:
    with tracking.JSONLinesWriter(folder / "lines") as writer:
        for step, scalars in RECORDS:
            writer.write_scalars(step, scalars)
    return (folder / "lines").read_bytes()


def in_parquet(folder: Path, **options: Any) -> bytes:
    table = pa.table({"x": list(ARRAYS["x"]), "y": ARRAYS["y"]})
    parquet.write_table(table, folder / "table", row_group_size=3, write_page_checksum=True, **options)
    return (folder / "table").read_bytes()


def parquet_says(content: bytes) -> dict[str, np.ndarray]:
    table = parquet.read_table(io.BytesIO(content), page_checksum_verification=True)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return {name: np.stack(list(c)) if c.dtype == object else c for name, c in columns.items()}


def loaded(path: Path) -> Any:
    return next(sources.batches(sources.load(path)))


def of_folder(path: Path) -> Any:
    np.save(path.parent / "other.npy", ARRAYS["y"])
    return sources.load(path.parent)[path.stem]


def cell(key: jax.Array, a: int) -> Any:
    return {"value": np.asarray(jax.random.normal(key, (3,)))}


def swept(path: Path) -> Any:
    return sweeps.sweep(cell, {"a": [1]}, path.parent, KEY)["value"].values


def journal(folder: Path) -> Journal:
    return Journal(folder, ["all", "--quick"])


def finished(path: Path) -> bool:
    return "stem" in journal(path.parent)


def journal_says(content: bytes, found: bool) -> bool:
    """Nothing counts as finished but what was entered."""
    return not found or json.loads(content)["done"]["stem"] == Journal(Path("nowhere"), [])._digest("stem")


def subjects(folder: Path) -> list[Subject]:
    cells = folder / "cells"
    truth = sweeps.sweep(cell, {"a": [1]}, cells, KEY)["value"].values
    (path,) = cells.glob("*.npz")
    record = files.pack_record(ARRAYS, {"steps": 3})
    report.save_checkpoint(folder / "params.npz", PARAMS)
    started = journal(folder)
    started.enter("stem")
    packed = {"savez": saved(np.savez, **ARRAYS), "pack_arrays": files.pack_arrays(ARRAYS)}
    plain = {
        "c.npy": saved(np.save, ARRAYS["x"]),
        "f.npy": saved(np.save, np.asfortranarray(ARRAYS["x"])),
        "i.npy": saved(np.save, ARRAYS["y"].astype(np.int16)),
    }
    lists = {"plain.parquet": in_parquet(folder), "zipped.parquet": in_parquet(folder, compression="gzip")}
    as_written = lambda content, found: same(found, ARRAYS)  # noqa: E731
    return [
        *(Subject(f"{name}.npz", content, loaded, as_written) for name, content in packed.items()),
        *(Subject(n, c, loaded, lambda c, f: same({"": f}, {"": npy_says(c)})) for n, c in plain.items()),
        Subject("x.npy", plain["c.npy"], of_folder, lambda c, f: same({"": f}, {"": npy_says(c)})),
        *(Subject(n, c, loaded, lambda c, f: same(f, parquet_says(c))) for n, c in lists.items()),
        Subject("record.npz", record, files.read_record, lambda content, found: content == record),
        Subject(
            "params.npz",
            (folder / "params.npz").read_bytes(),
            lambda path: report.load_checkpoint(path, PARAMS),
            lambda content, found: same(found, PARAMS),
        ),
        Subject(
            "run.jsonl",
            json_lines(folder),
            lambda path: list(tracking.read_json_lines(path)),
            lambda content, found: repr(found) == repr(lines_say(content)),
        ),
        Subject(path.name, path.read_bytes(), swept, lambda content, found: found.tobytes() == truth.tobytes()),
        Subject(".unfinished.json", started.path.read_bytes(), finished, journal_says),
    ]


def fuzz_files(count: int, folder: Path) -> collections.Counter[str]:
    """Damage files and read them; how many were refused, and how many read."""
    generator, outcomes = random.Random(0), collections.Counter()
    (folder / "whole").mkdir()
    found = subjects(folder / "whole")
    for number in range(count):
        subject, damage = found[number % len(found)], generator.choice(DAMAGES)
        path = folder / subject.name.split(".")[0] / subject.name
        path.parent.mkdir(exist_ok=True)
        content = damage(subject.whole, generator)
        path.write_bytes(content)
        where = f"file {number}, {subject.name}, {damage.__name__}"
        try:
            answer = subject.read(path)
        except ValueError as error:
            named = str(path) in str(error) or "the number of examples must be" in str(error)
            if type(error) is not ValueError or not named or content == subject.whole:
                raise AssertionError(where) from error
            outcomes["refused"] += 1
        else:
            assert subject.is_right(content, answer), f"{where}: read {answer}"
            outcomes["read"] += 1
    return outcomes


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """A sweep says that it computes a damaged cell again."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_damaged_files(tmp_path: Path) -> None:
    outcomes = fuzz_files(160, tmp_path)
    assert outcomes["refused"] > 60
    assert outcomes["read"] > 20


@pytest.mark.slow
def test_nine_thousand_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz_files(9000, tmp_path)
    with capsys.disabled():
        print(f"\ndamaged files: 9000, refused: {outcomes['refused']}, read rightly: {outcomes['read']}, wrong: 0")
