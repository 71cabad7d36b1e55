"""The command line among files, names and terminals that are not as nice as its own."""

import io
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxsgd
from jaxsgd.report import _figures, main
from tests.support.registry import quick

MODEL = """
import json, numpy
import {sibling}
from jaxsgd import problems
assert json.dumps([1]) == "[1]" and numpy.ones(1).sum() == 1, "the model's own imports are the real ones"
def make_problem():
    return problems.line_fit(*{sibling}.START)
"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A folder that is the working directory, and imports that leave no trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", sys.modules)
    monkeypatch.setattr(_figures, "FIGURES", {})
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        if name.startswith(("_target_", "beside_", "my_model")):
            del sys.modules[name]
    assert all(sys.modules[name] is module for name, module in before.items() if name in ("numpy", "json", "jaxsgd"))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", ["numpy", "json", "jaxsgd", "my_model", "jax", "matplotlib", "this"])
def test_a_model_file_of_any_name(name, tmp_path, capsys) -> None:
    """Its siblings are importable, also beside a ``json.py``, and shadow nothing that is installed."""
    folder, sibling = tmp_path / "models", f"beside_{name}"
    folder.mkdir()
    for module in ("json", "numpy", "zlib", "importlib"):
        (folder / f"{module}.py").write_text("raise ImportError('this shadows a module')\n")
    (folder / f"{sibling}.py").write_text("START = 0.0, 0.0\n")
    (folder / f"{name}.py").write_text(MODEL.format(sibling=sibling))
    for _ in range(2):
        assert main(["report", f"{folder / name}.py:make_problem", "--out", "out"]) == 0, capsys.readouterr().err
    assert "mean loss 9.75" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_file_of_any_name_in_a_process_of_its_own(tmp_path) -> None:
    """Where nothing but what the command needs is imported before the file is. Catches an import that comes later."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "beside.py").write_text("START = 0.0, 0.0\n")
    for name in ("numpy", "json", "jaxsgd", "html", "difflib", "matplotlib"):
        (tmp_path / "models" / f"{name}.py").write_text(MODEL.format(sibling="beside"))
    for name in ("numpy", "jaxsgd"):
        done = process(f"models/{name}.py:make_problem")
        assert (done.returncode, done.stderr) == (0, b"")


def process(target: str, *program: str, **environment: str) -> subprocess.CompletedProcess:
    root = str(Path(jaxsgd.__file__).parents[1])
    command = [sys.executable, "-W", "error", *(program or ("-m", "jaxsgd")), "report", target, "--out", "out"]
    return subprocess.run(command, capture_output=True, check=False, env={"PYTHONPATH": root} | environment)


@pytest.fixture
def hidden(tmp_path) -> Path:
    """The working folder, with files that are called as libraries are, one of which is the model."""
    for name in ("json", "numpy", "optax", "typing"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this hides a library')\n")
    (tmp_path / "beside.py").write_text("START = 0.0, 0.0\n")
    (tmp_path / "jax.py").write_text(MODEL.format(sibling="beside"))
    return tmp_path


def test_the_command_works_where_files_hide_libraries(hidden) -> None:
    """As an installer writes it, from the entry that the package's metadata has."""
    with (Path(jaxsgd.__file__).parents[1] / "pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["jaxsgd"].partition(":")
    (hidden / "bin").mkdir()
    script = hidden / "bin" / "jaxsgd"
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    done = process("jax.py:make_problem", str(script))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"jax.py:make_problem: 4 examples" in done.stdout


@pytest.mark.parametrize("name", quick(["jax", "json", "numpy", "optax", "typing"], {"typing"}))
def test_a_file_that_hides_a_library_from_the_module_is_named(name, hidden) -> None:
    for path in hidden.glob("*.py"):
        if path.stem not in (name, "beside"):
            path.unlink()
    done = process(f"{name}.py:make_problem")
    assert done.returncode == 1
    said = done.stderr.decode().splitlines()[-1]
    assert said.startswith(f"ImportError: {name}.py in {hidden} must not hide the libraries of these names, which are ")


def test_a_file_that_fails_later_is_named_at_once(tmp_path) -> None:
    """Catches a report that is lost when it draws, with Matplotlib, which reads fonts with its ``json``."""
    (tmp_path / "json.py").write_text("x = 1\n")
    done = process("json:make_problem")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1].startswith(f"ImportError: json.py in {tmp_path} must not hide")


NAMES = """
import jax.numpy as jnp
from jaxsgd import Problem
def loss_fn(params, x): return (params["w\\x1b[2J\\r"] - x) ** 2
def make_problem(): return Problem(loss_fn, {"w\\x1b[2J\\r": jnp.asarray(1.0)}, jnp.asarray([1.0, 2.0, 4.0]))
def fails(): raise ValueError("erases\\x1b[2J the \\x9b screen")
"""


@pytest.mark.usefixtures("without_type_checks")
def test_control_characters_of_names_are_not_obeyed(tmp_path, capsys) -> None:
    """Of a parameter, of the file and in an error of the user's."""
    (tmp_path / "a\x1b[31m.py").write_text(NAMES)
    assert main(["report", "a\x1b[31m.py:make_problem", "--out", "o\x07ut"]) == 0
    out = capsys.readouterr().out
    assert r"w\x1b[2J\r" in out
    assert r"a\x1b[31m.py:make_problem: 3 examples" in out
    assert r"wrote o\x07ut/" in out
    assert main(["report", "a\x1b[31m.py:fails"]) == 1
    assert main(["report", "no\x1b[2Jthing.py:fails"]) == 1
    assert main(["report", "--ou\x1b[2J"]) == 1
    err = capsys.readouterr().err
    assert r"erases\x1b[2J the \x9b screen" in err
    assert r"there is no file no\x1b[2Jthing.py" in err
    assert not set(out + err) & {chr(code) for code in [*range(10), *range(11, 32), *range(127, 160)]}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_letters(encoding, tmp_path, monkeypatch) -> None:
    """Catches a report that is computed and written, and then ends in a UnicodeEncodeError."""
    (tmp_path / "my_model_too.py").write_text("from jaxsgd import problems\nmake_problem = problems.line_fit\n")
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
    assert main(["report", "my_model_too:make_problem", "--out", "out"]) == 0
    shown = buffer.getvalue().decode(encoding)
    assert "+ Batch size: " in shown
    assert "tr Sigma/||g||" in shown
    assert "θ" not in shown


@pytest.mark.usefixtures("without_type_checks")
def test_a_folder_of_any_length(tmp_path) -> None:
    (tmp_path / "my_model_too.py").write_text("from jaxsgd import problems\nmake_problem = problems.line_fit\n")
    assert main(["report", "my_model_too:make_problem", "--out", "a" * 255]) == 0
    assert "report.html" in os.listdir("a" * 255)
