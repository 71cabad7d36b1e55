"""Interruptions, damaged files, shared folders, wrong clocks: nothing is lost.

Each fault is a real one where the machine allows it. The long tests print how often each was tried.
"""

import itertools
import logging
import os
import random
import signal
import time
import zipfile

import jax
import numpy as np
import pytest

from jaxsgd import sweeps
from jaxsgd._core import files
from jaxsgd.training import _run
from tests.support.fault_jobs import CELLS
from tests.support.killing import cells, result_of, step_saved
from tests.support.small_runs import KEY, run, same_bits


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
