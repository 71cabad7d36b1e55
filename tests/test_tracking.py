"""Lines are whole whatever happens, and writers follow one Protocol."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxsgd import tracking


def test_writers_follow_the_protocol(tmp_path) -> None:
    for writer in (
        tracking.NullWriter(),
        tracking.JSONLinesWriter(tmp_path / "a.jsonl"),
        tracking.TensorBoardWriter(tmp_path),
    ):
        assert isinstance(writer, tracking.MetricWriter)
        with writer:
            writer.write_scalars(1, {"loss": 0.5})
            writer.flush()


def test_lines(tmp_path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    with tracking.JSONLinesWriter(path) as writer:
        writer.write_scalars(0, {"loss": 1 / 3, "scale": math.nan})
    with tracking.JSONLinesWriter(path) as writer:
        writer.write_scalars(10, {"loss": -math.inf})
    (zero, first), (ten, second) = tracking.read_json_lines(path)
    assert (zero, ten, first["loss"], second) == (0, 10, 1 / 3, {"loss": -math.inf})
    assert math.isnan(first["scale"])
    assert all(json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())


@pytest.mark.parametrize("cut", [1, 10, 22])
def test_a_piece_of_a_line_is_not_read_and_is_removed(tmp_path, cut) -> None:
    path = tmp_path / "run.jsonl"
    with tracking.JSONLinesWriter(path) as writer:
        writer.write_scalars(0, {"loss": 1.0})
        writer.write_scalars(1, {"loss": 2.0})
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(tracking.read_json_lines(path)) == [(0, {"loss": 1.0})]
    with tracking.JSONLinesWriter(path) as writer:
        writer.write_scalars(2, {"loss": 3.0})
    assert list(tracking.read_json_lines(path)) == [(0, {"loss": 1.0}), (2, {"loss": 3.0})]


def test_closing_twice_is_harmless(tmp_path) -> None:
    writer = tracking.JSONLinesWriter(tmp_path / "run.jsonl")
    writer.close()
    writer.close()


WRITES = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tracking", sys.argv[1])
tracking = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tracking)
writer = tracking.JSONLinesWriter(sys.argv[2])
for step in range(10**9):
    writer.write_scalars(step, {"loss": 1 / 3, "other": 2 / 3})
"""


def test_killed_writers_leave_whole_lines(tmp_path) -> None:
    """Two processes append to one file and are killed: every line is whole, and each counts up without a gap."""
    path = tmp_path / "run.jsonl"
    command = [sys.executable, "-c", WRITES, str(Path(tracking.__file__)), str(path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    while not path.exists() or os.path.getsize(path) < 50_000:
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_bytes().endswith(b"\n")
    steps = sorted(step for step, _ in tracking.read_json_lines(path))
    assert len(steps) > 500
    assert set(steps) == set(range(steps[-1] + 1))


def test_a_writer_that_opens_the_file_takes_no_line_of_another(tmp_path) -> None:
    """What is being written while a file is opened is no piece of a line that was left behind."""
    path, opened = tmp_path / "run.jsonl", 0
    process = subprocess.Popen([sys.executable, "-c", WRITES, str(Path(tracking.__file__)), str(path)])
    try:
        while not path.exists() or os.path.getsize(path) < 200_000:
            assert process.poll() is None
            tracking.JSONLinesWriter(path).close()
            opened += 1
    finally:
        process.kill()
        process.wait()
    steps = [step for step, _ in tracking.read_json_lines(path)]
    assert opened > 3
    assert steps == list(range(len(steps)))


def test_tensorboard_reads_what_was_written(tmp_path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401 - the format's checksum, as a sign of the format

    with tracking.TensorBoardWriter(tmp_path) as writer:
        writer.write_scalars(7, {"loss": 0.25})
    (path,) = tmp_path.glob("events*")
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    assert found == [(7, "loss", 0.25)]
