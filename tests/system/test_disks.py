"""Full disks, limits on file sizes, read-only folders: what was there stays, and one line says what is wrong.

Each disk is a real one where the machine allows it.
"""

import contextlib
import errno
import os
import resource
import subprocess
from pathlib import Path

import jax
import pytest

from jaxsgd import report, sweeps, tracking
from jaxsgd._core import files
from jaxsgd.report import _command_line, _figures
from tests.support import fault_jobs
from tests.support.killing import left_behind
from tests.support.small_runs import KEY, run, same_bits

# Full disks.


@contextlib.contextmanager
def mounted(folder, size):
    """A small disk of its own, or skip where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        failed = subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        failed = True
    if failed:
        pytest.skip("mounting a disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def limited(folder, size):
    """A limit on the size of files, which the system enforces where the next byte is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {"disk": (mounted, errno.ENOSPC), "file": (limited, errno.EFBIG)}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_keeps_the_old_file(kind, tmp_path):
    where, number = FULL[kind]
    with where(tmp_path, 2**16) as folder:
        files.write_bytes(folder / "x", b"old")
        with pytest.raises(OSError, match=r"'.*x'") as info:
            files.write_bytes(folder / "x", bytes(2**17))
        assert info.value.errno == number
        assert (folder / "x").read_bytes() == b"old"
        assert os.listdir(folder) == ["x"]


def test_a_sweep_on_a_full_disk_goes_on_when_there_is_room(tmp_path):
    calls = []

    def cell(key, a):
        calls.append(a)
        return {"value": jax.random.bits(key, (2000,))}

    grid = {"a": list(range(8))}
    truth = sweeps.sweep(cell, grid, tmp_path / "roomy", KEY)
    calls.clear()
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", 2**16) as folder:
        with pytest.raises(OSError, match="No space left on device: ") as info:
            sweeps.sweep(cell, grid, folder, KEY)
        assert info.value.errno == errno.ENOSPC
        done = {path.name: path.read_bytes() for path in folder.glob("*.npz")}
        assert 1 < len(done) == len(calls) - 1 < 7
        assert not left_behind(folder)
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        assert sweeps.sweep(cell, grid, folder, KEY).identical(truth)
        assert len(calls) == 9, "only the cell that found no room is computed again"
        assert done.items() <= {path.name: path.read_bytes() for path in folder.glob("*.npz")}.items()


@pytest.mark.parametrize("kind", FULL)
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(kind, tmp_path):
    """The disk fills up in the middle of a run; the last checkpoint is whole, and the lines of the log are."""
    expected = run()
    (tmp_path / "disk").mkdir()
    number = FULL[kind][1]
    with contextlib.ExitStack() as full:
        folder = full.enter_context(mounted(tmp_path / "disk", 2**16)) if kind == "disk" else tmp_path / "disk"
        options = {"checkpoint": folder / "run.npz"}

        def fill(step, _):
            if step == 6 and kind == "disk":
                (folder / "other").write_bytes(
                    bytes(2**16 - sum(path.stat().st_blocks for path in folder.iterdir()) * 512)
                )
            elif step == 6:
                full.enter_context(limited(folder, 1000))

        with tracking.JSONLinesWriter(folder / "run.jsonl") as writer, pytest.raises(OSError, match="run") as info:
            run(**options, writer=writer, progress=fill)
        assert info.value.errno == number
        assert int(files.read_record(folder / "run.npz")["step"]) in (3, 6)
        assert not left_behind(folder)
        if kind == "disk":
            (folder / "other").unlink()
        else:
            full.pop_all().close()
        with tracking.JSONLinesWriter(folder / "run.jsonl") as writer:
            assert same_bits(run(**options, writer=writer), expected)
        assert dict(tracking.read_json_lines(folder / "run.jsonl")).keys() == {0, 3, 6, 9, 12}


def reported(folder, capsys):
    """The exit status of a report on a tiny problem, and what it said of an error."""
    capsys.readouterr()
    status = _command_line.main(["report", f"{Path(fault_jobs.__file__)}:line", "--out", str(folder)])
    return status, capsys.readouterr().err


@pytest.fixture
def one_figure(monkeypatch):
    """Two large files for all figures, which take seconds to draw."""
    drawn = {kind: bytes(20_000) for kind in ("png", "pdf")} | {"svg": b"<svg/>"}
    name = next(iter(_figures.FIGURES))
    monkeypatch.setattr(_figures, "draw_all", lambda found, kinds: {name: drawn})


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("kind", FULL)
def test_a_report_on_a_full_disk_is_one_line_and_a_rerun_is_whole(kind, tmp_path, capsys, one_figure):
    """The page is written last, so it is not there, or that of the report before."""
    (tmp_path / "disk").mkdir()
    assert reported(tmp_path / "truth", capsys) == (0, "")
    truth = {path.name: path.read_bytes() for path in (tmp_path / "truth").iterdir()}
    with FULL[kind][0](tmp_path / "disk", 32_768 if kind == "disk" else 19_000) as folder:
        status, said = reported(folder, capsys)
        assert (status, said.count("\n")) == (1, 1)
        assert said.startswith(f"error: {folder}/{next(iter(_figures.FIGURES))}.")
        assert said.endswith(f": {os.strerror(FULL[kind][1])}\n")
        assert {path.name: path.read_bytes() for path in folder.iterdir()}.items() <= truth.items()
        assert not (folder / "report.html").exists()
        if kind == "disk":
            subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
            assert reported(folder, capsys) == (0, "")
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == truth


# Folders that cannot be written to.


@contextlib.contextmanager
def read_only(folder):
    if os.getuid() == 0:
        with mounted(folder, 2**16):
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield folder
    else:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@contextlib.contextmanager
def a_file_in_its_place(folder):
    folder.rmdir()
    folder.write_text("not a folder")
    yield folder


@pytest.mark.parametrize("place", [read_only, a_file_in_its_place])
def test_nothing_is_computed_that_could_not_be_written(place, tmp_path):
    (tmp_path / "out").mkdir()
    with place(tmp_path / "out") as folder:
        with pytest.raises(OSError, match="out"):
            sweeps.sweep(lambda key, a: pytest.fail("it was computed"), {"a": [1]}, folder, KEY)
        for path in (folder / "run.npz", folder / "new/run.npz"):
            with pytest.raises(OSError, match="out"):
                run(checkpoint=path, progress=lambda *_: pytest.fail("a step was made"))
        with pytest.raises(OSError, match="out"):
            files.write_bytes(folder / "x", b"content")
        with pytest.raises(OSError, match="out"):
            tracking.JSONLinesWriter(folder / "run.jsonl")


@pytest.mark.parametrize("place", [read_only, a_file_in_its_place])
def test_a_report_that_could_not_be_written_is_refused_before_any_work(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "report", lambda *_, **__: pytest.fail("it was computed"))
    (tmp_path / "out").mkdir()
    with place(tmp_path / "out") as folder:
        for path in (folder, folder / "new"):
            status, said = reported(path, capsys)
            assert (status, said.count("\n")) == (1, 1)
            assert said.startswith("error: ")
            assert "out" in said
