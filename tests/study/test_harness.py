"""What the experiments share: claims that enter what they find, files that are left alone, and public names only."""

import ast
import io
import json
import os
import sys
import types

import matplotlib as mpl
import numpy as np
import pytest

from experiments import _claims, _files, _harness, _panels
from experiments._claims import Claims, UnconfirmedError

MADE_UP = "made_up"
ONE = {"a": np.array([1.0, np.nan, np.inf]), "n": np.array(3), "name": np.array(["x"])}


class Config(_harness.Seeded):
    """Settings of a made-up experiment."""

    size: int = 3
    """How many numbers."""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Runs a made-up experiment that computes what it is told to, and says which of its files were written."""
    module = types.ModuleType(f"experiments.{MADE_UP}")
    module.Config, module.QUICK, module.SUMMARY = Config, Config(size=2), "the sum is {sum:.1f}"
    module.check = lambda results: Claims(sum=results["values"].sum())
    module.draw = lambda _: _panels.column()
    monkeypatch.setitem(sys.modules, f"experiments.{MADE_UP}", module)
    monkeypatch.setattr(_harness, "stems", lambda: [MADE_UP])
    monkeypatch.setattr(_harness, "claim", lambda _: "It adds up.")

    def go(values, *flags):
        module.compute = lambda config: {"values": values, "size": config.size}
        before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
        assert _harness.main([MADE_UP, *flags, "--out", str(tmp_path)]) == 0
        return {path.suffix for path in tmp_path.iterdir() if path.stat().st_ino != before.get(path)}

    go.module, go.record = module, lambda: json.loads((tmp_path / f"{MADE_UP}.json").read_text(encoding="utf-8"))
    return go


ALL = set(_files.SUFFIXES)


def test_a_run_that_finds_the_stored_numbers_writes_nothing(experiment, capsys):
    """Catches times, versions and the last digits of a sum, which differ between runs and machines."""
    values = np.array([1.0, 2.0, 3.0])
    assert experiment(values) == ALL
    assert experiment(values * (1 + 1e-12)) == set()
    out = capsys.readouterr().out
    assert out.count("made_up: the sum is 6.0\n") == 2
    assert out.endswith("the stored numbers, up to rounding; --redraw draws them anew\n")


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        (np.array([1.0, 2.0, 3.001]), []),
        (np.array([2.0, 1.0, 3.0]), []),
        (np.array([1, 2, 3]), []),
        (np.array([1.0, 2.0, 3.0]), ["--size", "4"]),
        (np.array([1.0, 2.0, 3.0]), ["--seed", "1"]),
    ],
    ids=["another number", "another order", "another type", "another setting", "another seed"],
)
def test_a_run_that_finds_something_else_writes_all(experiment, values, flags):
    experiment([1.0, 2.0, 3.0])
    assert experiment(values, *flags) >= {".npz", ".json"}


@pytest.mark.parametrize("suffix", _files.SUFFIXES)
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_lost_or_damaged_file_is_made_again(experiment, tmp_path, suffix, content):
    experiment([1.0])
    path = tmp_path / f"{MADE_UP}{suffix}"
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    experiment([1.0])
    if content is None or suffix in (".npz", ".json"):
        assert (path.read_bytes() == whole) == (suffix != ".json" or experiment.record()["seconds"] == 0.0)
        assert experiment([1.0]) == set()


def test_redrawing_enters_new_findings_and_keeps_whose_they_are(experiment):
    experiment([1.0, 2.0])
    before = experiment.record()
    assert experiment(None, "--redraw") == {".png", ".pdf"}
    experiment.module.check = lambda results: Claims(sum=results["values"].sum(), most=results["values"].max())
    assert experiment(None, "--redraw") == {".png", ".pdf", ".json"}
    assert experiment.record() == before | {"findings": {"sum": 3.0, "most": 2.0}}
    assert experiment([1.0, 2.0]) == set()


@pytest.mark.parametrize(
    ("found", "stored", "is_same"),
    [
        (1.0, 1.0 + 1e-9, True),
        (1.0, 1.0 + 1e-5, False),
        (1e-17, -3e-16, True),
        (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True),
        (float("nan"), 1.0, False),
        (3, 4, False),
        ((1.0, "a"), [1.0 + 1e-9, "a"], True),
        ([1.0], [1.0, 2.0], False),
        ([1.0], 1.0, False),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, False),
        ({"a": 1.0}, [1.0], False),
        (None, None, True),
        (ONE, {name: values.copy() for name, values in ONE.items()}, True),
        (ONE, ONE | {"a": np.array([1.0, 1.0, np.inf])}, False),
        (ONE, ONE | {"n": np.array(4)}, False),
        (ONE, ONE | {"a": np.array([1.0, np.nan])}, False),
        ({"a": np.array([1e3, 1e-17])}, {"a": np.array([1e3, 0.0])}, True),
        ({"a": np.array([1.0, 1e-3])}, {"a": np.array([1.0, 1.1e-3])}, False),
    ],
)
def test_same_up_to_rounding(found, stored, is_same):
    assert _files.same(found, stored) == is_same


@pytest.mark.parametrize("flags", [["--out", ""], ["--out="]])
@pytest.mark.parametrize("name", [MADE_UP, "study"])
def test_no_folder_is_refused(name, flags, tmp_path, monkeypatch, capsys):
    """Catches figures in whatever folder the command is run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_harness, "stems", lambda: [MADE_UP])
    monkeypatch.setattr(_harness, "run", lambda *_: pytest.fail("it was computed"))
    assert _harness.main([name, "--quick", *flags]) == 2
    assert capsys.readouterr().err == "error: --out must be the name of a folder, got ''\n"


def test_what_a_terminal_cannot_show_is_spelled(experiment, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii", write_through=True))
    experiment.module.SUMMARY = "‖ḡ‖² = {sum:.1f}\x1b[2J ✓"
    experiment([1.0, 2.0])
    assert buffer.getvalue().startswith(b"made_up: ||g||^2 = 3.0\\x1b[2J +\n")


def test_the_umask_says_who_may_read_a_file(tmp_path):
    before = os.umask(0o027)
    try:
        _files.write(tmp_path / "x", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_an_interrupted_writer_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    _files.write(path, b"old")

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_files.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _files.write(path, b"new")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"result.json": b"old"}
    (tmp_path / ".result.json.tmp").write_bytes(b"half of what a killed writer")
    _files.write(path, b"new")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"result.json": b"new"}


@pytest.mark.parametrize("stem", _harness.stems())
def test_stored_arrays_are_packed_the_same_again(stem):
    """Catches a date in the archive."""
    path = _harness.FIGURES / f"{stem}.npz"
    with np.load(path) as arrays:
        assert _files.pack_arrays(dict(arrays)) == path.read_bytes()


def test_claims_enter_what_they_confirm():
    claims = Claims(N=6)
    claims.agree([[0.5, -2.0], [1.0, 0.0]], "variances are", enter="worst_z.variance")
    claims.agree(1.0, "the mean is", enter="worst_z.mean")
    claims.reject([9.0, 7.0], "another law", enter="weakest")
    claims.reject([-9.0, -7.0], "another law", enter="weakest_below", side=-1)
    claims.below([1.0, 2.0], 3, "it must be less than 3, got {}", enter="largest")
    claims.above([1.0, 2.0], 0, "it must be positive, got {}", enter="least")
    claims.equal(np.array([1, 2]), [1, 2 + 1e-13], "they must be 1 and 2, got {}", enter="both")
    claims.require(True, "never")
    assert _claims.plain(claims) == {
        "N": 6,
        "worst_z": {"variance": -2.0, "mean": 1.0},
        "weakest": 7.0,
        "weakest_below": -7.0,
        "largest": 2.0,
        "least": 1.0,
        "both": [1, 2],
    }


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            lambda c: c.agree([1.0, -5.0], "variances are", M=[3, 4]),
            r"variances are -5\.0 standard errors off at M = 4",
        ),
        (
            lambda c: c.agree([[0.0, 5.0]], "it is", step=[7], M=[3, 4]),
            "it is 5.0 standard errors off at step = 7, M = 4",
        ),
        (lambda c: c.agree(4.6, "it is"), "it is 4.6 standard errors off$"),
        (lambda c: c.reject([9.0, 4.0], "another law"), "another law must be rejected, got z = 4.0"),
        (lambda c: c.reject([9.0, -9.0], "another law"), "got z = -9.0"),
        (lambda c: c.reject([-9.0, 9.0], "another law", side=-1), "got z = 9.0"),
        (lambda c: c.below([1.0, 3.0], 3, "less than 3, got {:.1f}"), "less than 3, got 3.0"),
        (lambda c: c.above([0.0, 3.0], 0, "positive, got {:.1f}"), "positive, got 0.0"),
        (lambda c: c.equal([1.0, 2.0], [1, 2.1], "1 and 2, got {}"), r"1 and 2, got \[1.0, 2.0\]"),
        (lambda c: c.require(np.False_, "something else"), "something else"),
    ],
)
def test_unconfirmed_claims_say_what_was_found(claim, message):
    with pytest.raises(UnconfirmedError, match=message):
        claim(Claims())


@pytest.mark.parametrize(
    "claim",
    [
        lambda c, x: c.agree(x, "it is"),
        lambda c, x: c.reject(x, "it"),
        lambda c, x: c.below(x, 1e9, ""),
        lambda c, x: c.above(x, -1e9, ""),
        lambda c, x: c.equal(x, x, ""),
    ],
)
def test_what_is_not_a_number_is_never_confirmed(claim):
    with pytest.raises(UnconfirmedError):
        claim(Claims(), np.array([9.0, np.nan]))


def test_settings_are_frozen_and_seeded():
    config = Config(seed=3)
    assert (config.seed, config.size, config) == (3, 3, Config(seed=3, size=3))
    with pytest.raises(AttributeError):
        config.size = 4
    assert config.key() == _harness.Seeded.key(config)
    assert config.key() != Config().key()


def test_table():
    found = _harness.table([{"M": 1, "z": 0.5}, {"M": 2, "z": 1.5}], prefix="of/")
    assert {name: values.tolist() for name, values in found.items()} == {"of/M": [1, 2], "of/z": [0.5, 1.5]}


def test_panels_draw_every_result_once():
    with mpl.rc_context(_panels.SETTINGS):
        results = {"x": np.arange(3.0), "y": np.arange(1.0, 4.0)}

        def left(axes, results):
            _panels.series(axes, results["x"], {"first": results["y"], "second": results["x"]})
            _panels.reference(axes, y=1, x=2, color="black")
            _panels.note(axes, 0, 1, "here")
            _panels.panel(axes, "left", x="steps", y="loss", log="y", legend="upper left", xlim=(0, 3))

        def right(axes, results):
            axes.plot(results["x"], results["y"], **_panels.mark(3, line=_panels.DASHED, hollow=True))
            _panels.panel(axes, x="steps")

        first, second = _panels.page_of(results, left, right, ratio=0.5).axes
    lines = first.get_lines()
    assert [line.get_color() for line in lines] == [_panels.BLUE, _panels.ORANGE, "black", "black"]
    assert [line.get_marker() for line in lines] == ["o", "s", "None", "None"]
    assert (first.get_title(), first.get_xlabel(), first.get_ylabel(), first.get_yscale()) == (
        "left",
        "steps",
        "loss",
        "log",
    )
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["first", "second"]
    assert (first.texts[0].get_text(), first.get_xlim()) == ("here", (0, 3))
    (line,) = second.get_lines()
    assert (line.get_color(), line.get_marker(), line.get_markerfacecolor()) == ("black", "D", "white")
    assert (second.get_xscale(), second.get_legend()) == ("linear", None)


@pytest.mark.parametrize("path", sorted(_harness.FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_experiments_take_public_names_only(path):
    """Catches ``jaxsgd._core``, ``from jaxsgd.training import _run`` and ``training._run``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    places = [f"{node.module}." if isinstance(node, ast.ImportFrom) else "" for node in imports]
    imported = {place + alias.name for place, node in zip(places, imports, strict=True) for alias in node.names}
    ours = {name for name in imported if name.split(".")[0] == "jaxsgd"}
    modules = {name.split(".")[-1] for name in ours}
    reached = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    }
    assert not {name for name in ours if "._" in name} | reached


@pytest.mark.parametrize("stem", _harness.stems())
def test_no_script_is_long(stem):
    assert len((_harness.FOLDER / f"{stem}.py").read_text(encoding="utf-8").splitlines()) <= 300
