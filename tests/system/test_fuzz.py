"""Random files and random words on the command line: the right answer or one line of refusal, never anything else.

Every file is a whole one with random damage, or random bytes. Where a format has a checksum, what is read must be what
was written; where it has none, what the damaged file says, by a parser that shares nothing with the package's.
"""

import ast
import collections
import importlib
import io
import json
import logging
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from experiments import _harness
from experiments._journal import Journal
from jaxsgd import problems, report, sources, sweeps, tracking
from jaxsgd._core import files
from jaxsgd.report import _figures
from jaxsgd.report._command_line import main
from tests.study.test_experiments import HEADLINE, SMALL

pytestmark = pytest.mark.usefixtures("without_type_checks")

KEY = jax.random.key(0)
ARRAYS = {"x": np.arange(12.0).reshape(6, 2) / 7, "y": np.arange(6)}
PARAMS = {"w": jnp.arange(3.0) / 7, "b": jnp.asarray(0.3, jnp.bfloat16)}
RECORDS = [(0, {"loss": 2.5, "noise": float("inf")}), (100, {"loss": 0.1}), (2**53 + 1, {"loss": 1e-300})]


# Files.


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


def cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def flipped(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def overwritten_head(content: bytes, generator: random.Random) -> bytes:
    """A few of the first bytes, where headers are, changed to any others."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 20)):
        changed[generator.randrange(min(len(changed), 160))] = generator.randrange(256)
    return bytes(changed)


def respelled(content: bytes, generator: random.Random) -> bytes:
    """One letter, digit or bracket in place of another: what is text stays text."""
    changed, text = bytearray(content), b"0123456789-+.eE{}[]()\",:' _truefalsnNIity<>fiuOSV|\n"
    for _ in range(generator.randint(1, 3)):
        changed[generator.randrange(len(changed))] = generator.choice(text)
    return bytes(changed)


def with_more(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content) + 1)
    return content[:at] + generator.randbytes(generator.randint(1, 30)) + content[at:]


def with_less(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content))
    return content[:at] + content[at + generator.randint(1, 30) :]


def twice(content: bytes, generator: random.Random) -> bytes:
    return content + content


def noise(content: bytes, generator: random.Random) -> bytes:
    return generator.randbytes(generator.randrange(300))


def document(content: bytes, generator: random.Random) -> bytes:
    """A line of JSON with the words that a log or a journal has, and values of any kind."""

    def value(depth: int) -> Any:
        if depth == 0 or generator.random() < 0.5:
            return generator.choice([None, True, 0, 7, -1.5, 10**400, "", "nan", "1", "--quick", "all"])
        if generator.random() < 0.3:
            return [value(depth - 1) for _ in range(generator.randint(0, 3))]
        return {generator.choice(["step", "loss", "flags", "done", "stem"]): value(depth - 1) for _ in range(3)}

    known = {"flags": ["all", "--quick"], "done": value(2), "step": value(1), "loss": value(1)}
    return json.dumps(generator.choice([known, value(3)])).encode() + b"\n"


def nothing(content: bytes, generator: random.Random) -> bytes:
    """No damage: then there must be an answer."""
    return content


DAMAGES = [cut, flipped, overwritten_head, respelled, with_more, with_less, twice, noise, document, nothing]


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


# Command lines.

MODULE = """
import jax, jax.numpy as jnp
from jaxsgd import Problem, problems

loss_fn, PARAMS, DATA = problems.line_fit()
FIXED = problems.line_fit()

def make_problem(): return FIXED
def from_data(data): return loss_fn, PARAMS, data
def from_keyword(*, data=DATA): return Problem(loss_fn, PARAMS, data)
def broken(data=None): raise RuntimeError("of the user, in\\ntwo lines")
def nothing(): return None
def vector(): return Problem(lambda p, e: p["m"] * jnp.ones(3), PARAMS, DATA)
def infinite(): return Problem(loss_fn, PARAMS, DATA | {"y": DATA["y"].at[2].set(jnp.nan)})
def ragged(): return Problem(loss_fn, PARAMS, DATA | {"y": DATA["y"][:3]})
def module_whole(): return Problem(loss_fn, {"m": jnp.asarray(1.0), "f": jnp.tanh}, DATA)
"""
GOOD_TARGETS = ["nets:make_problem", "nets:FIXED", "nets.py:make_problem", "nets:from_data", "nets:from_keyword"]
BAD_TARGETS = ["nets:broken", "nets:nothing", "nets:vector", "nets:infinite", "nets:ragged", "nets:module_whole"]
BAD_TARGETS += ["nets:DATA", "nets", "", ":", "nets:", ":f", "none:f", "none.py:f", "nets.f:g", "nets:jax.numpy.zeros"]
BAD_TARGETS += ["needs:f", "wrong.py:f", "a b:c", "..:f", ".py:f", "nets::f", "ne\udcffts:f", "x" * 300 + ".py:f"]
VALUES: dict[str, list[str]] = {
    "--data": ["data.npz", "folder", "random.npz", "none.npz", "pickled.npz", "words.npz", "notes.txt", "", "nets.py"],
    "--out": ["out", "out/a", "notes.txt", "notes.txt/a", "", "x" * 300],
    "--checkpoint": ["params.npz", "data.npz", "random.npz", "none.npz", "folder", ""],
    "--seed": ["0", "7", "-1", "4294967296", "1.5", "x", ""],
    "--batch-size": ["1", "4", "0", "-1", "5", "2.5", "9" * 30, "x"],
    "--sample-size": ["2", "4", "1", "0", "9" * 30, "1e3"],
    "--chunk-size": ["1", "3", "9" * 30, "0", "-2", "many"],
    "--memory-limit": ["4096", "1", "0", "9" * 30, "1GB"],
    "--batchsize": ["3"],
    "--sed": ["3"],
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module and files of every kind, from which the command line is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(_figures, "FIGURES", {})
    (tmp_path / "nets.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "needs.py").write_text("import no_such_library", encoding="utf-8")
    (tmp_path / "wrong.py").write_text("x = (", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    _, params, data = problems.line_fit()
    np.savez(tmp_path / "data.npz", **data)
    np.savez(tmp_path / "words.npz", x=data["x"], y=np.asarray(["a"] * 4))
    np.savez(tmp_path / "pickled.npz", x=data["x"], y=np.asarray([{}] * 4, object))
    (tmp_path / "folder").mkdir()
    for name, array in data.items():
        np.save(tmp_path / "folder" / name, array)
    report.save_checkpoint("params.npz", params)
    yield tmp_path
    for name in ("nets", "needs", "wrong"):
        sys.modules.pop(name, None)


def command(generator: random.Random) -> list[str]:
    """Words of which most are good, so that many commands go through."""
    targets = GOOD_TARGETS * 6 + BAD_TARGETS
    words = [generator.choice(targets)] if generator.random() < 0.97 else []
    if words == ["nets:from_data"] and generator.random() < 0.9:
        words += ["--data", generator.choice(["data.npz", "folder", "random.npz"])]
    for name, values in generator.sample(sorted(VALUES.items()), generator.choice([0, 0, 1, 1, 2])):
        words += [name, generator.choice(values[:2] * 2 + values)]
    if generator.random() < 0.05:
        words.insert(generator.randrange(len(words) + 1), generator.choice(["data.npz", "--", "-x", "--out", "report"]))
    return [generator.choice(["report"] * 40 + ["reprot", "--report"]), *words]


def fuzz_commands(count: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> collections.Counter[str]:
    """Run commands; how many were refused, and how many wrote a report."""
    generator, outcomes = random.Random(0), collections.Counter()
    whole = {name: (folder / name).read_bytes() for name in ("data.npz", "params.npz")}
    for number in range(count):
        source = whole[generator.choice(sorted(whole))]
        (folder / "random.npz").write_bytes(generator.choice(DAMAGES)(source, generator))
        words = command(generator)
        where = f"command {number}: {words}"
        capsys.readouterr()
        try:
            status = main(words)
        except Exception as error:
            raise AssertionError(where) from error
        out, err = capsys.readouterr()
        if status:
            assert (status, out) == (1, ""), where
            assert err.startswith("error: "), where
            assert err.count("\n") == 1, where
            assert "Traceback" not in err, where
            outcomes["refused"] += 1
        else:
            assert err == "", where
            place = words[words.index("--out") + 1] if "--out" in words else "jaxsgd_report"
            written = json.loads((folder / place / "report.json").read_text(encoding="utf-8"))
            found = [written[name] for name in ("noise_scale", "trace_covariance", "squared_mean_norm", "num_examples")]
            assert found == pytest.approx([63 / 5, 63 / 4, 5 / 4, 4]), where
            outcomes["reports"] += 1
    return outcomes


def test_commands(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz_commands(40, workplace, capsys)
    assert outcomes["refused"] > 10
    assert outcomes["reports"] > 5


@pytest.mark.slow
def test_nine_hundred_commands(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz_commands(900, workplace, capsys)
    with capsys.disabled():
        print(f"\ncommands: 900, refused: {outcomes['refused']}, right reports: {outcomes['reports']}, other: 0")


# Flags of the experiments: a number that Python reads as such arrives, everything else is refused.

FLAGS: dict[str, list[str]] = {
    "--hidden": ["3", "0", "-1", "x", "2.5", ""],
    "--max-examples": ["12", "1", "0", "-3", "1e3"],
    "--batch-size": ["4", "13", "0", "-1", "9" * 30],
    "--num-draws": ["400", "1", "0", "many"],
    "--learning-rate": ["0.5", "0", "nan", "inf", "-1e300", "fast"],
    "--activation": ["relu", "gelu", ""],
    "--data": ["own.npz", "random.npz", "none.npz", "notes.txt", ""],
    "--seed": ["3", "-1", "9" * 30, "one"],
    "--hiden": ["3"],
    "--qick": [],
}
NUMBERS: dict[str, Callable[[str], Any]] = {"--learning-rate": float, "--activation": str, "--data": Path}


class ReachedError(ValueError):
    """The flags were understood."""


def flags(generator: random.Random) -> list[tuple[str, ...]]:
    names = generator.sample(sorted(FLAGS), generator.choice([1, 2, 3]))
    return [(name, generator.choice(FLAGS[name])) if FLAGS[name] else (name,) for name in names]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said where an experiment ends with status 2, or an empty string where it does not."""
    capsys.readouterr()
    try:
        status = _harness.main(words)
    except SystemExit as stop:  # of the parser, with its message in a box
        status = stop.code
    except Exception as error:
        raise AssertionError(words) from error
    out, err = capsys.readouterr()
    assert status in (0, 2), words
    assert (status == 2) == bool(err.strip()), words
    assert "Traceback" not in err, words
    assert not (status and out), words
    return err


def test_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, seen, generator = importlib.import_module(f"experiments.{HEADLINE}"), [], random.Random(0)

    def compute(config: Any) -> Any:
        seen.append(config)
        raise ReachedError("reached")

    monkeypatch.setattr(module, "compute", compute)
    outcomes = collections.Counter()
    for _ in range(100):
        given = flags(generator)
        seen.clear()
        said = refusal([HEADLINE, *(word for pair in given for word in pair)], capsys)
        if not seen:
            assert any(pair[0] in said or pair[0].strip("-") in said for pair in given), (given, said)
            outcomes["refused"] += 1
            continue
        assert said == "error: reached\n"
        for name, value in given:
            found, read = getattr(seen[0], name.strip("-").replace("-", "_")), NUMBERS.get(name, int)
            assert repr(found) == repr(read(value)), given
        outcomes["understood"] += 1
    assert min(outcomes["refused"], outcomes["understood"]) > 20


@pytest.mark.slow
def test_a_hundred_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rng, generator, outcomes = np.random.default_rng(0), random.Random(0), collections.Counter()
    np.savez(tmp_path / "own.npz", x=rng.normal(size=(12, 2)), y=rng.integers(0, 3, 12))
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    whole = (tmp_path / "own.npz").read_bytes()
    for _ in range(100):
        (tmp_path / "random.npz").write_bytes(generator.choice(DAMAGES)(whole, generator))
        given = flags(generator)
        chosen = [word for pair in given for word in pair]
        said = refusal([HEADLINE, *SMALL, *chosen, "--out", "out"], capsys)
        assert not said.startswith("error: ") or said.count("\n") == 1, (given, said)
        outcomes["refused" if said else "confirmed"] += 1
    with capsys.disabled():
        print(
            f"\nexperiments: 100, refused: {outcomes['refused']}, claims confirmed: {outcomes['confirmed']}, other: 0"
        )
