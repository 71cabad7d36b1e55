"""Kills jobs of ``fault_jobs`` at random moments, and says of each kind what must not be lost."""

import os
import random
import signal
import time
from pathlib import Path
from typing import ClassVar

from jaxsgd import tracking
from jaxsgd._core import files
from tests.support.fault_jobs import CELLS, DRAWS, LONG, RECORD_EVERY, STEPS, TIMED

ASKED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # to stop: what was done is written first


def left_behind(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def result_of(folder: Path) -> dict[str, bytes]:
    """What a job was to make, byte for byte."""
    paths = [path for path in sorted(folder.glob("result/*")) if not path.name.startswith(".") and path.name != TIMED]
    return {path.name: path.read_bytes() for path in paths}


def cells(folder: Path) -> dict[str, bytes]:
    """The bytes of every finished cell, all of which must be whole."""
    found = {}
    for path in (folder / "cells").glob("*.npz"):
        files.read_record(path)
        found[path.name] = path.read_bytes()
    return found


def step_saved(folder: Path) -> int:
    return saved(folder / "run.npz", "step")


def saved(path: Path, name: str) -> int:
    return int(files.read_record(path)[name]) if path.exists() else -1


class Subject:
    """A job, the folder it works in, and what must hold after every kill and at the end."""

    job: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, how: int | None) -> None:
        """After it was killed by a signal, or has ended by itself."""

    def check_end(self) -> None:
        """After it has ended by itself."""


class Sweeps(Subject):
    """Finished cells stay as they are, and only one cell can be computed twice for each kill."""

    job = "sweep"

    def __init__(self, folder: Path) -> None:
        self.folder, self.before, self.kills = folder, {}, 0

    def check(self, how: int | None) -> None:
        self.kills += 1
        now = cells(self.folder)
        assert self.before.items() <= now.items(), "a finished cell is lost or has changed"
        self.before = now

    def check_end(self) -> None:
        log = self.folder / "log"
        starts = [line.split()[0] for line in log.read_text().splitlines()]
        assert len(set(starts)) == len(cells(self.folder)) == CELLS
        assert len(starts) <= CELLS + self.kills, "more was computed again than was at work"


class Runs(Subject):
    """The step of the checkpoint never goes back, and the log of metrics holds every record."""

    job = "train"

    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, -1

    def check(self, how: int | None) -> None:
        step = step_saved(self.folder)
        assert step >= self.step, "a checkpoint is lost"
        self.step = step
        if step >= 0:
            recorded = files.read_record(self.folder / "run.npz")["steps"].tolist()
            assert recorded in (list(range(0, step, RECORD_EVERY)), list(range(0, step + 1, RECORD_EVERY)))
            assert set(recorded) <= self.logged(), "a record is lost"

    def logged(self) -> set[int]:
        return {at for at, _ in tracking.read_json_lines(self.folder / "run.jsonl")}

    def check_end(self) -> None:
        assert self.step <= step_saved(self.folder) == STEPS
        assert self.logged() == set(range(0, STEPS + 1, RECORD_EVERY))


class Counted(Subject):
    """What counts up in the state file never goes back; asked to stop, no step that was made is made again."""

    file: ClassVar[str]
    counter: ClassVar[str]
    total: ClassVar[int]

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, -1

    def check(self, how: int | None) -> None:
        count = saved(self.folder / self.file, self.counter)
        assert count >= self.count, "what was written is lost"
        if how in ASKED:
            made = self.folder / "made"
            assert not made.exists() or count >= int(made.read_text() or -1), "what was made before it stopped is lost"
        self.count = count

    def check_end(self) -> None:
        assert saved(self.folder / self.file, self.counter) == self.total


class RareRuns(Counted):
    """A run that records at its first step and its last only."""

    job, file, counter, total = "train_rarely", "run.npz", "step", LONG


class Draws(Counted):
    job, file, counter, total = "monte_carlo", "draws.npz", "next_draw", DRAWS


class Reports(Subject):
    """Whatever is there of a report is whole, as every result is."""

    job = "report"


class Experiments(Subject):
    """Whatever is there of the figures is whole, as every result is."""

    job = "experiment"


def killed(nursery, undisturbed, subject: type[Subject], folder: Path, count: int, how: int = signal.SIGKILL) -> int:
    """Kill jobs at random moments and start them again, until ``count`` were killed; how often one was finished.

    Whatever was finished must equal, bit for bit, what was never killed.
    """
    generator = random.Random(int(how))
    truth, seconds = undisturbed(subject.job)
    finished, kills = 0, 0
    while True:
        place = folder / str(finished)
        checks, status = subject(place), None
        while status != 0:
            pid, started = nursery.start(subject.job, place), time.monotonic()
            if kills < count:
                moment = started + generator.uniform(0, seconds)
                while nursery.poll(pid) is None and time.monotonic() < moment:
                    time.sleep(0.005)
                if nursery.poll(pid) is None:
                    os.kill(pid, how)
            status = nursery.wait(pid)
            assert status in (0, 130 if how == signal.SIGINT else -how), (place / "output").read_text()
            kills += status != 0
            if status == 0:  # a machine may have less to do than when the first was measured
                seconds = min(seconds, time.monotonic() - started + 0.1)
            assert result_of(place).items() <= truth.items(), "it went on to another result"
            checks.check(how if status else None)
        checks.check_end()
        assert result_of(place) == truth, "it is not all there"
        assert not left_behind(place), "a file was left half-written"
        finished += 1
        assert finished < 20 * (count + 1), "no signal has any effect"
        if kills >= count:
            return finished
