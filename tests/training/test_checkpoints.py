"""The state of a run is written as time passes, though nothing is recorded, and not so often that it slows the run."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxsgd._core import files, state_file
from tests.support.runs import assert_same_bits, run


class Clock:
    """Ten seconds pass between two looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


class KilledError(BaseException):
    """Nothing is done about it, as nothing is about SIGKILL."""


@pytest.mark.parametrize(("seconds", "step"), [(5.0, 16), (30.0, 12), (float("inf"), 0)])
def test_a_run_that_rarely_records_is_written_as_time_passes(tmp_path, monkeypatch, seconds, step) -> None:
    """Catches a run of hours that is killed before its second record and begins anew."""
    options = {"num_steps": 20, "record_every": 20, "chunk_size": 4, "num_runs": 2}
    path, expected = tmp_path / "run.npz", run(**options)

    def kill(step, _):
        if step == 20:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(state_file, "time", SimpleNamespace(monotonic=Clock()))
        patched.setattr(state_file, "_SHARE", 0)
        with pytest.raises(KilledError):
            run(**options, checkpoint=path, checkpoint_every_seconds=seconds, progress=kill)
    assert int(files.read_record(path)["step"]) == step
    seen = []
    again = run(**options, checkpoint=path, progress=lambda step, _: seen.append(step))
    assert seen == list(range(step + 4, 21, 4))
    assert_same_bits(expected, again)


def test_a_state_that_takes_long_to_write_is_written_rarely(tmp_path, monkeypatch) -> None:
    """Every look takes ten seconds, so does writing, and no more than a twentieth of the time is spent on that."""
    monkeypatch.setattr(state_file, "time", SimpleNamespace(monotonic=Clock()))
    file = state_file.StateFile(tmp_path / "x.npz", {}, 1.0)
    assert file.is_due()
    file.write({"a": np.ones(1)})
    assert [file.is_due() for _ in range(22)] == [False] * 19 + [True] * 3
