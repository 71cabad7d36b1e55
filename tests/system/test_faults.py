"""Kills, interruptions, full and read-only disks, damaged files, shared folders, wrong clocks: nothing is lost.

Each fault is a real one where the machine allows it. The long tests print how often each was tried.
"""

import contextlib
import errno
import itertools
import logging
import os
import random
import resource
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxsgd import designs, report, sweeps, tracking, training
from jaxsgd._core import files
from jaxsgd.report import _command_line, _figures
from jaxsgd.training import _run
from tests.support import fault_jobs
from tests.support.fault_jobs import CELLS
from tests.support.killing import cells, left_behind, result_of, step_saved
from tests.support.registry import network

KEY = jax.random.key(0)
PROBLEM, OPTIMIZER = network(), optax.sgd(0.1)  # the same in all tests, compiled once


def run(**options):
    options = {"record_every": 3, "chunk_size": 3} | options
    steps = options.pop("num_steps", 12)
    return training.run_sgd(*PROBLEM, OPTIMIZER, designs.WithoutReplacement(3), steps, KEY, **options)


def same_bits(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_interrupted_at_the_first_record(tmp_path, monkeypatch):
    """Catches a state without records that cannot be saved, and hides the interruption."""
    expected = run()
    with monkeypatch.context() as patched:
        patched.setattr(_run, "_measure", Interrupting(_run._measure))
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()
    assert same_bits(run(checkpoint=tmp_path / "run.npz"), expected)


class Interrupting:
    """A compiled function that is interrupted whenever it is called."""

    def __init__(self, function):
        self.trace = function.trace

    def __call__(self, *_):
        raise KeyboardInterrupt


def test_interrupted_while_packing(monkeypatch):
    """Catches an archive that cannot be closed, and says so in place of the interruption."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile, "_get_compressor", stop)
    with pytest.raises(KeyboardInterrupt):
        files.pack_arrays({"a": np.ones(3)})


def test_interrupted_after_the_renaming(tmp_path, monkeypatch):
    """Catches an error of the clearing up that takes the place of the interruption."""
    replace = os.replace

    def then_stop(*arguments):
        replace(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", then_stop)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path):
    """The lock of a writer at work, which is another open file, keeps its temporary file."""
    left, busy, other = (f".{name}.{digit * 16}.tmp" for name, digit in (("x", "0"), ("x", "1"), ("x.y", "2")))
    (tmp_path / left).write_bytes(b"half of")
    (tmp_path / other).write_bytes(b"of another file")
    with (tmp_path / busy).open("wb") as file:
        assert files._lock(file.fileno())
        files.write_bytes(tmp_path / "x", b"whole")
        assert sorted(os.listdir(tmp_path)) == [busy, other, "x"]
    files.write_bytes(tmp_path / "x", b"whole")
    assert sorted(os.listdir(tmp_path)) == [other, "x"]


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


# Damaged files.

DAMAGES = {
    "emptied": lambda content, rng: b"",
    "truncated": lambda content, rng: content[: rng.randrange(len(content))],
    "flipped": lambda content, rng: flipped(content, rng.randrange(len(content)), rng.randrange(8)),
    "overwritten": lambda content, rng: rng.randbytes(len(content)),
    "extended": lambda content, rng: content + b"\0",
}


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_kept(name, tmp_path):
    """Neither continued nor overwritten: a person may have a copy, or may want to know what damaged it."""
    path, expected = tmp_path / "run.npz", run()
    run(checkpoint=path)
    damaged = DAMAGES[name](path.read_bytes(), random.Random(0))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"run.npz is damaged: .*; nothing is overwritten: to start anew, remove it"):
        run(checkpoint=path)
    assert path.read_bytes() == damaged
    path.unlink()
    assert same_bits(run(checkpoint=path), expected)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cell_is_computed_again_and_said_so(name, tmp_path, caplog):
    cell = lambda key, a: {"value": jax.random.normal(key, (3,))}  # noqa: E731
    truth = sweeps.sweep(cell, {"a": [1, 2]}, tmp_path, KEY)
    path = sorted(tmp_path.glob("*.npz"))[0]
    content = path.read_bytes()
    path.write_bytes(DAMAGES[name](content, random.Random(0)))
    with caplog.at_level(logging.WARNING):
        assert sweeps.sweep(cell, {"a": [1, 2]}, tmp_path, KEY).identical(truth)
    assert f"computing a cell again: {path} is damaged" in caplog.text
    assert path.read_bytes() == content


@pytest.mark.slow
def test_damage_is_found_ten_thousand_times(tmp_path, capsys):
    run(checkpoint=tmp_path / "run.npz")
    content, generator = (tmp_path / "run.npz").read_bytes(), random.Random(0)
    path = tmp_path / "damaged.npz"
    for damage in itertools.islice(itertools.cycle(DAMAGES.values()), 10_000):
        path.write_bytes(damage(content, generator))
        with pytest.raises(ValueError, match="is damaged"):
            files.read_record(path)
    with capsys.disabled():
        print("\ndamaged checkpoints: 10000, found: 10000")


# Two at once.


def test_two_runs_do_not_share_a_checkpoint(nursery, tmp_path):
    first = nursery.start("train", tmp_path)
    while step_saved(tmp_path) < 0:
        assert nursery.poll(first) is None, (tmp_path / "output").read_text()
        time.sleep(0.002)
    os.kill(first, signal.SIGSTOP)  # or it may be done before the other begins
    second = nursery.start("train", tmp_path)
    assert nursery.wait(second) == 1
    assert f"checkpoint must not be in use by another run, got {tmp_path}/run.npz" in (tmp_path / "output").read_text()
    os.kill(first, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    assert nursery.wait(first) == -signal.SIGKILL
    assert nursery.wait(nursery.start("train", tmp_path)) == 0, "the lock is gone with its holder"


@pytest.mark.slow
def test_two_sweeps_share_a_folder_and_are_killed(nursery, undisturbed, tmp_path, capsys):
    """Two at a time, either of which is killed at a random moment, 50 times."""
    (truth, seconds), generator, kills, finished = undisturbed("sweep"), random.Random(0), 0, 0
    while kills < 50:
        place = tmp_path / str(finished)
        before: dict[str, bytes] = {}
        ends = [1, 1]
        while ends != [0, 0]:
            pair = [nursery.start("sweep", place) for _ in range(2)]
            if kills < 50:
                time.sleep(generator.uniform(0, seconds))
                victim = generator.choice(pair)
                if nursery.poll(victim) is None:
                    os.kill(victim, signal.SIGKILL)
            ends = [nursery.wait(pid) for pid in pair]
            assert set(ends) <= {0, -signal.SIGKILL}, (place / "output").read_text()
            kills += sum(end != 0 for end in ends)
            now = cells(place)
            assert before.items() <= now.items()
            before = now
        assert result_of(place) == truth
        assert len(cells(place)) == CELLS
        finished += 1
    with capsys.disabled():
        print(f"\nSIGKILL of one of two sweeps in a folder: {kills} times, {finished} folders finished, lost: 0")


# Clocks.


def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    """Catches a time left below zero, and steps at a time that grow without bound."""
    expected = run(chunk_size=None, num_steps=40, record_every=40)
    for name in ("time", "perf_counter", "monotonic"):
        ticks = itertools.count()
        monkeypatch.setattr(time, name, lambda ticks=ticks: -10.0 * next(ticks))
    seen, steps = [], []
    sweeps.sweep(lambda key, a: {"value": a}, {"a": [1, 2, 3]}, tmp_path, KEY, progress=seen.append)
    assert [progress.seconds_left for progress in seen] == [None, 0, 0, 0]
    found = run(chunk_size=None, num_steps=40, record_every=40, progress=lambda step, _: steps.append(step))
    assert steps == list(range(1, 41))
    assert same_bits(found, expected)
