"""The command line: what it writes, and one line for every mistake, naming the thing; never a traceback."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd._core import files
from jaxsgd.report import _command_line, _figures, report, save_checkpoint
from jaxsgd.report._command_line import main

pytestmark = pytest.mark.usefixtures("without_type_checks")

MODULE = """
import jax, jax.numpy as jnp
from jaxsgd import Problem, problems

FIXED = problems.line_fit()
loss_fn, PARAMS, DATA = FIXED

def make_problem():
    return Problem(loss_fn, PARAMS, DATA)

def from_data(data):
    return loss_fn, PARAMS, data

def from_keyword(*, data):
    return loss_fn, PARAMS, data

def with_key(key, data=DATA):
    return Problem(loss_fn, {"m": jax.random.normal(key), "b": jnp.asarray(1.0)}, data)

def broken(data=None):
    return {}["missing"]

def two(a, b): return FIXED
def nothing(): return None
def vector(): return Problem(lambda p, e: p["m"] * jnp.ones(3), PARAMS, DATA)
def batched(): return Problem(lambda p, e: jnp.mean((e["y"] - p["m"] * e["x"]) ** 2, axis=0).sum(), PARAMS, DATA)
def integers(): return Problem(loss_fn, {"m": jnp.asarray(1), "b": jnp.asarray(1)}, DATA)
def function_in_params(): return Problem(loss_fn, {"m": jnp.asarray(1.0), "f": jnp.tanh}, DATA)
def ragged(): return Problem(loss_fn, PARAMS, DATA | {"y": DATA["y"][:3]})
def one(): return Problem(loss_fn, PARAMS, {k: v[:1] for k, v in DATA.items()})
def infinite(): return Problem(loss_fn, PARAMS, DATA | {"y": DATA["y"].at[2].set(jnp.nan)})
def bad_batch_loss(): return Problem(loss_fn, PARAMS, DATA, lambda params: 0.0)
def no_batch_loss(): return Problem(loss_fn, PARAMS, DATA, 3)
def stops(data=None): raise KeyboardInterrupt

class Stream:
    def __iter__(self):
        yield {k: v[:2] for k, v in DATA.items()}
        raise RuntimeError("the disk is gone")

def breaks_off(): return loss_fn, PARAMS, Stream()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a module and files, which is the working directory; what was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "pack" / "inner.py").write_text("from nets import *\n", encoding="utf-8")
    for name in ("my-model", "m.v2", "3d", "nets.v2"):
        (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "needs.py").write_text("import no_such_library\n", encoding="utf-8")
    (tmp_path / "wrong.py").write_text("x = (\n", encoding="utf-8")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    x, y = np.asarray([0.0, 1.0, 2.0, 3.0]), np.asarray([1.0, 3.0, 2.0, 5.0])
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.savez(tmp_path / "words.npz", x=x, y=np.asarray(["a"] * 4))
    np.savez(tmp_path / "pickled.npz", x=np.asarray([{}] * 4, object), y=y)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", x)
    np.save(tmp_path / "folder" / "y.npy", y)
    (tmp_path / "damaged.npz").write_bytes(b"PK damaged")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    yield tmp_path
    for name in ("nets", "pack", "pack.inner", "needs", "wrong", "ends"):
        sys.modules.pop(name, None)


@pytest.fixture
def without_figures(monkeypatch):
    """For tests that run many reports."""
    monkeypatch.setattr(_figures, "FIGURES", {})


MISTAKES = {
    "reprot nets:make_problem": "unknown command reprot, the only one is report",
    "--verison": "unknown option --verison; did you mean --version?",
    "report": "report needs a target, for example my_package.my_module:make_problem",
    "report nets:make_problem --batchsize 3": "unknown option --batchsize; did you mean --batch-size?",
    "report nets:make_problem --sample 3": "unknown option --sample; did you mean --sample-size?",
    "report nets:make_problem data.npz": "unexpected argument data.npz: there is one target, and options are named",
    "report nets:make_problem --seed x": "argument --seed: invalid int value: 'x'",
    "report nets:make_problem --seed -1": "--seed must be from 0 to 4294967295, got -1",
    "report nets:make_problem --data": "argument --data: expected one argument",
    "report nets:make_problem --out ''": "--out must be the name of a folder, got ''",
    "report nets:make_problem --data ''": "--data must be the name of a file or folder, got ''",
    "report nets:make_problem --checkpoint ''": "--checkpoint must be the name of a file or folder, got ''",
    f"report nets:make_problem --out {'a' * 300}": "aaa: File name too long",
    "report nets:make_problem --out notes.txt": "--out must be a folder, and notes.txt is a file",
    "report nets": "the target must be module:function, for example my_package.my_module:make_problem, got nets",
    "report nets:": "the target must be module:function",
    "report nest:make_problem": "there is no module nest; did you mean nets?",
    "report pack.iner:make_problem": "there is no module pack.iner; did you mean inner?",
    "report nets.inner:make_problem": "nets is a module, not a package: it has no inner",
    "report my-model:make_problem": "my-model is no name of a module; the file is given as my-model.py:make_problem",
    "report 3d:make_problem": "3d is no name of a module; the file is given as 3d.py:make_problem",
    "report m.v2:make_problem": "there is no module m; the file is given as m.v2.py:make_problem",
    "report nets.v2:make_problem": "nets is a module, … no v2; the file is given as nets.v2.py:make_problem",
    "report ./nets:make_problem": "./nets is no name of a module; the file is given as ./nets.py:make_problem",
    "report 'no model':make_problem": "no model is no name of a module",
    "report net.py:make_problem": "there is no file net.py; did you mean nets.py?",
    "report nets:make_problm": "nets has no make_problm; did you mean make_problem?",
    "report needs:make_problem": "needs does not import: ModuleNotFoundError: No module named 'no_such_library' ( … 1)",
    "report wrong:make_problem": "wrong does not import: SyntaxError: '(' was never closed ( … wrong.py, line 1)",
    "report ends:make_problem": "ends does not import: SystemExit: 0",
    "report nets:from_data": "nets:from_data needs its argument data: give --data FILE_OR_FOLDER",
    "report nets:make_problem --data data.npz": "nets:make_problem takes no data, and --data was given",
    "report nets:FIXED --data data.npz": "nets:FIXED is no function, and --data was given",
    "report nets:two": "nets:two must take no more than the data (and a key), and needs a, b",
    "report nets:broken": "nets:broken raised KeyError: 'missing' ( … nets.py, line ",
    "report nets:nothing": "nets:nothing must be a Problem(loss_fn, params, data), got None of type NoneType",
    "report nets:DATA": "nets:DATA must be a Problem(loss_fn, params, data), got {'x': ",
    "report nets:from_data --data dta.npz": "there is no file or folder dta.npz; did you mean data.npz?",
    "report nets:from_data --data notes.txt": "data must be an .npz, .npy or .parquet file or a folder of .npy files",
    "report nets:from_data --data damaged.npz": "damaged.npz is not a readable .npz file: ",
    "report nets:from_data --data pack": "the folder pack must hold .npy files, got none",
    "report nets:from_data --data pickled.npz": "pickled.npz is not a readable .npz file: Object arrays cannot",
    "report nets:from_data --data words.npz": "data must be numbers, but data['y'] has dtype <U1",
    "report nets:vector": "loss_fn must return a scalar for one example ( … ), got shape (3,)",
    "report nets:batched": "loss_fn failed on one example ( … and gives a number for a batch … written for a batch?",
    "report nets:integers": "params must be real floating-point arrays, but params['b'] has dtype int",
    "report nets:function_in_params": "params must be a pytree of arrays, but params['f'] is <PjitFunction",
    "report nets:ragged": "data must have equally many examples in every array, but data['x'] has 4, data['y'] has 3",
    "report nets:one": "the number of examples of data must be at least 2, got 1",
    "report nets:infinite": "gradients must be finite, got nan for example 2 in params['b']",
    "report nets:bad_batch_loss": "batch_loss_fn(params, batch) failed on a batch of 4 examples: TypeError",
    "report nets:no_batch_loss": "batch_loss_fn must be a function, got 3 of type int",
    "report nets:breaks_off": "RuntimeError: the disk is gone ( … nets.py, line ",
    "report nets:make_problem --batch-size 5": "batch_size must be at most the population size 4, got 5",
    "report nets:make_problem --batch-size 0": "batch_size must be at least 1, got 0",
    "report nets:make_problem --sample-size 1": "sample_size must be at least 2, got 1",
    "report nets:make_problem --chunk-size 0": "chunk_size must be at least 1, got 0",
    "report nets:make_problem --memory-limit 1": "memory_limit must be at least ",
    "report nets:make_problem --checkpoint no.npz": "there is no file or folder no.npz",
    "report nets:make_problem --checkpoint damaged.npz": "damaged.npz is not a readable .npz file",
    "report nets:make_problem --checkpoint data.npz": "checkpoint data.npz has an array 'x', which params lack",
}


@pytest.mark.parametrize("words", MISTAKES, ids=lambda words: words[:60])
def test_mistake(words: str, capsys, folder: Path) -> None:
    before = sorted(folder.rglob("*.npz"))
    assert main(shlex.split(words)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    at = 0
    for part in MISTAKES[words].split(" … "):
        assert part in err[at:], f"expected {part!r} in {err!r}"
        at = err.index(part, at)
    assert sorted(folder.rglob("*.npz")) == before
    assert not (folder / "jaxsgd_report").exists()


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "words",
    [
        "nets:make_problem",
        "nets.py:make_problem",
        "pack.inner:make_problem",
        "nets:FIXED",
        "nets:from_data --data data.npz",
        "nets:from_data --data folder",
        "nets:from_keyword --data data.npz",
    ],
)
def test_every_way_to_name_a_problem_and_its_data(words: str, capsys, folder: Path) -> None:
    assert main(["report", *words.split(), "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Noise scale: 12.6" in out  # 63/4 over 5/4
    written = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["noise_scale"] == pytest.approx(63 / 5)


@pytest.mark.usefixtures("without_figures")
def test_a_key_and_a_seed(capsys, folder: Path) -> None:
    """Catches a seed that the target does not get."""
    found = []
    for seed in (1, 2):
        assert main(f"report nets:with_key --seed {seed} --out out".split()) == 0
        found.append(json.loads((folder / "out" / "report.json").read_text(encoding="utf-8")))
    assert found[0]["mean_loss"] != found[1]["mean_loss"]


@pytest.mark.usefixtures("without_figures")
def test_a_checkpoint_is_where_gradients_are_taken(folder: Path) -> None:
    save_checkpoint("best.npz", {"m": jnp.asarray(1.1), "b": jnp.asarray(1.1)})
    assert main(["report", "nets:make_problem", "--checkpoint", "best.npz", "--out", "out"]) == 0
    written = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["squared_mean_norm"] == pytest.approx(0, abs=1e-12)  # the minimum


@pytest.mark.usefixtures("without_figures")
def test_several_checkpoints_are_pooled(folder: Path) -> None:
    """The last is looked at; the advice is that of the ratio of averages, each from examples of its own."""
    for name, m in {"early": 0.5, "late": 1.0}.items():
        save_checkpoint(f"{name}.npz", {"m": jnp.asarray(m), "b": jnp.asarray(1.0)})
    assert (
        main(["report", "nets:make_problem", "--checkpoint", "early.npz", "--checkpoint", "late.npz", "--out", "out"])
        == 0
    )
    written = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert main(["report", "nets:make_problem", "--checkpoint", "late.npz", "--out", "last"]) == 0
    last = json.loads((folder / "last" / "report.json").read_text(encoding="utf-8"))
    assert written["squared_mean_norm"] == last["squared_mean_norm"]
    assert last["pooled"] is None
    import nets

    loss_fn, _, data = nets.make_problem()
    rows = np.array_split(np.arange(len(data["x"])), 2)
    several = [
        jaxsgd.per_example_gradients(loss_fn)(
            {"m": jnp.asarray(m), "b": jnp.asarray(1.0)}, jax.tree.map(lambda leaf, each=each: leaf[each], data)
        )
        for m, each in zip((0.5, 1.0), rows, strict=True)
    ]
    expected = jaxsgd.noise_scale(several)
    assert written["pooled"]["num_checkpoints"] == 2
    assert written["pooled"]["value"] == pytest.approx(float(expected.value), rel=1e-6)
    text = next(verdict["text"] for verdict in written["verdicts"] if verdict["title"] == "Noise scale")
    assert "Over 2 checkpoints: " in text


@pytest.mark.slow
def test_the_python_function_writes_the_same(folder: Path) -> None:
    assert main(["report", "nets:FIXED", "--out", "out"]) == 0
    import nets

    key, _ = jax.random.split(jax.random.key(0))
    report(nets.FIXED, name="nets:FIXED", key=key).write("other")
    for path in (folder / "out").iterdir():
        assert path.read_bytes() == (folder / "other" / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("without_figures")
def test_control_c_leaves_nothing_half_written(capsys, monkeypatch, folder: Path) -> None:
    assert main(["report", "nets:make_problem", "--out", "out"]) == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    replace, calls = files.os.replace, []

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(files.os, "replace", interrupted)
    assert main(["report", "nets:make_problem", "--out", "out", "--batch-size", "1"]) == 130
    assert capsys.readouterr().err.startswith("interrupted: ")
    after = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert after.keys() == before.keys()
    assert sum(after[name] != before[name] for name in before) <= 1
    assert main(["report", "nets:stops"]) == 130


@pytest.mark.usefixtures("without_figures")
def test_a_full_disk_is_one_line(capsys, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert main(["report", "nets:make_problem", "--out", "out"]) == 1
    assert capsys.readouterr().err == "error: out/variance.npz: No space left on device\n"
    assert list(Path("out").iterdir()) == []


def test_out_of_memory_says_what_helps(capsys, monkeypatch) -> None:
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(_command_line, "report", exhausted)
    assert main(["report", "nets:make_problem"]) == 1
    assert "smaller --sample-size, --chunk-size or --memory-limit take less" in capsys.readouterr().err


def test_a_failure_of_the_package_is_shown_as_it_is(monkeypatch) -> None:
    """Catches a bug of ours that is reported as the user's."""

    monkeypatch.setattr(_command_line, "report", eval("lambda *_, **__: {}['bug']"))  # a line in no file of a user's
    with pytest.raises(KeyError, match="bug"):
        main(["report", "nets:make_problem"])


def test_the_traceback_of_a_mistake_is_there_for_the_asking() -> None:
    with pytest.raises(ValueError, match="batch_size must be at most"):
        main(["report", "nets:make_problem", "--batch-size", "5", "--traceback"])


def test_help(capsys) -> None:
    assert main([]) == 0
    with pytest.raises(SystemExit) as info:
        main(["report", "--help"])
    assert info.value.code == 0
    assert "--data FILE_OR_FOLDER" in capsys.readouterr().out


def run(*words: str) -> subprocess.CompletedProcess:
    root = str(Path(jaxsgd.__file__).parent.parent)
    command = [sys.executable, "-W", "error", "-m", "jaxsgd", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": root})


def test_as_a_process() -> None:
    """The exit code, and nothing on standard error but one line, with warnings as errors."""
    done = run("report", "nets:make_problem", "--out", "notes.txt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --out must be a folder, and notes.txt is a file\n"


@pytest.mark.slow
def test_as_a_process_that_succeeds() -> None:
    done = run("report", "nets:make_problem", "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote out/report.html" in done.stdout
