"""Random words on the command lines: the right answer or one line of refusal, never anything else."""

import collections
import importlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import _harness
from jaxsgd import problems, report
from jaxsgd.report import _figures
from jaxsgd.report._command_line import main
from tests.study.test_experiments import HEADLINE, SMALL
from tests.support.damages import DAMAGES

pytestmark = pytest.mark.usefixtures("without_type_checks")


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
