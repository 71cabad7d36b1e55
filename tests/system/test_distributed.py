"""Two processes under ``jax.distributed``, each with its own part of the data: the numbers of one process.

The processes are real, and meet on the loopback device; ``one_of_two`` is what each of them does.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.one_of_two import LOST_AFTER
from tests.system.test_sharding import QUICKLY_COMPILED

ROOT = Path(__file__).parents[2]


def in_two_processes(what: str, folder: Path, **environment: str) -> list[tuple[int, str, float]]:
    """The exit status of both, what they said, and when they ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"log{index}" for index in range(2)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY_COMPILED} | environment
    processes = []
    for index, log in enumerate(logs):
        command = [sys.executable, "-m", "tests.support.one_of_two", str(index), port, what, str(folder)]
        with log.open("w") as file:
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
    ended: dict[int, float] = {}
    try:
        deadline = time.monotonic() + 120
        while len(ended) < 2 and time.monotonic() < deadline:
            ended |= {i: time.monotonic() for i, p in enumerate(processes) if i not in ended and p.poll() is not None}
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(ended) == 2, "".join(log.read_text() for log in logs)
    return [(process.returncode, logs[i].read_text(), ended[i]) for i, process in enumerate(processes)]


def assert_well(outcomes: list[tuple[int, str, float]]) -> None:
    assert [status for status, _, _ in outcomes] == [0, 0], "\n".join(said for _, said, _ in outcomes)


def test_two_processes_measure_what_one_does(tmp_path: Path, what_is_compiled: dict[str, str]) -> None:
    assert_well(in_two_processes("measure", tmp_path, **what_is_compiled))


@pytest.mark.slow
def test_two_processes_give_every_example_its_key(tmp_path: Path) -> None:
    assert_well(in_two_processes("draw_keys", tmp_path))


@pytest.mark.slow
def test_two_processes_estimate_what_one_does(tmp_path: Path) -> None:
    assert_well(in_two_processes("estimate", tmp_path))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_a_rerun_resumes(tmp_path: Path) -> None:
    """With an error that says so, soon; and the resumed run is that of two processes that lived, bit for bit."""
    survivor, killed = in_two_processes("train_and_die", tmp_path / "killed")
    assert killed[0] == -signal.SIGKILL
    assert survivor[0] != 0
    assert survivor[2] - killed[2] < LOST_AFTER + 5
    assert "Connection closed by peer" in survivor[1] or "another task died" in survivor[1]
    assert (tmp_path / "killed" / "run.npz").exists()
    assert_well(in_two_processes("train", tmp_path / "killed"))
    assert_well(in_two_processes("train", tmp_path / "lived"))
    ends = [(tmp_path / run / f"params{i}").read_bytes() for run in ("killed", "lived") for i in range(2)]
    assert len(set(ends)) == 1


@pytest.mark.slow
def test_a_checkpoint_that_one_process_does_not_see_is_refused(tmp_path: Path) -> None:
    """Catches processes that start from different steps, and wait for each other for ever."""
    assert_well(in_two_processes("train", tmp_path))
    for status, said, _ in in_two_processes("train_apart", tmp_path):
        assert status != 0
        assert "checkpoint must be in a folder that all processes of the run share" in said


@pytest.mark.slow
def test_two_processes_share_the_cells_of_a_sweep(tmp_path: Path) -> None:
    assert_well(in_two_processes("share_a_sweep", tmp_path))
    cells = "".join(path.read_text() for path in tmp_path.glob("cells of *"))
    assert sorted(cells.split()) == ["1", "2", "3", "4", "5"]
    assert (tmp_path / "table0").read_bytes() == (tmp_path / "table1").read_bytes()
