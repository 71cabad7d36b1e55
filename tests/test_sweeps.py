"""Cells of a sweep are computed once, survive kills, are shared by processes, and come out labelled."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxsgd import designs, sweeps, training
from jaxsgd._core import files
from jaxsgd.training import _run
from tests.support.registry import network

KEY = jax.random.key(0)
GRID = {"a": [1, 2], "b": ["x", "y", "z"]}


def record(calls):
    def run(key, a, b):
        calls.append((a, b))
        return {
            "value": a * np.arange(3.0),
            "size": (("kind",), np.array([len(b), a])),
            "key": jax.random.key_data(key),
        }

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.npz")}


def test_labels_and_resumption(tmp_path) -> None:
    calls: list = []
    first = sweeps.sweep(record(calls), GRID, tmp_path, KEY)
    assert first["value"].dims == ("a", "b", "value_0")
    assert first["size"].dims == ("a", "b", "kind")
    np.testing.assert_array_equal(first["value"].sel(a=2, b="y"), [0.0, 2.0, 4.0])
    assert len(calls) == 6
    again = sweeps.sweep(record(calls), GRID, tmp_path, KEY)
    assert len(calls) == 6, "what is there is not computed again"
    assert first.identical(again)


def test_a_larger_grid_keeps_the_cells_and_their_keys(tmp_path) -> None:
    calls: list = []
    small = sweeps.sweep(record(calls), {"b": ["y"], "a": [2]}, tmp_path, KEY)
    large = sweeps.sweep(record(calls), GRID, tmp_path, KEY)
    assert len(calls) == 6
    np.testing.assert_array_equal(small["key"].sel(a=2, b="y"), large["key"].sel(a=2, b="y"))
    assert len(np.unique(large["key"].values.reshape(6, -1), axis=0)) == 6, "every cell has a key of its own"


def test_other_settings_and_keys_are_other_cells(tmp_path) -> None:
    calls: list = []
    sweeps.sweep(record(calls), GRID, tmp_path, KEY, settings={"steps": 10})
    sweeps.sweep(record(calls), GRID, tmp_path, KEY, settings={"steps": 20})
    sweeps.sweep(record(calls), GRID, tmp_path, jax.random.key(1), settings={"steps": 20})
    assert len(calls) == 18


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_cell_is_computed_again_and_said_so(tmp_path, damage, caplog) -> None:
    calls: list = []
    sweeps.sweep(record(calls), GRID, tmp_path, KEY)
    before = contents(tmp_path)
    path = sorted(tmp_path.glob("*.npz"))[2]
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == "truncated" else content[:40] + bytes([content[40] ^ 4]) + content[41:])
    with caplog.at_level(logging.WARNING):
        sweeps.sweep(record(calls), GRID, tmp_path, KEY)
    assert len(calls) == 7
    assert f"computing a cell again: {path} is damaged" in caplog.text
    assert contents(tmp_path) == before


def test_a_failing_cell_leaves_the_others(tmp_path) -> None:
    def run(key, a, b):
        if (a, b) == (2, "y"):
            raise RuntimeError("out of luck")
        return {"value": a}

    with pytest.raises(RuntimeError, match="out of luck"):
        sweeps.sweep(run, GRID, tmp_path, KEY, version="a")
    assert len(contents(tmp_path)) == 4
    calls: list = []
    mended = lambda key, a, b: (calls.append(a), {"value": a})[1]  # noqa: E731
    sweeps.sweep(mended, GRID, tmp_path, KEY, version="a")
    assert len(calls) == 2, "a version is whoever gives it to answer for"
    sweeps.sweep(mended, GRID, tmp_path, KEY, version="b")
    assert len(calls) == 8


def test_cells_of_edited_code_are_not_read_and_stay(tmp_path, caplog) -> None:
    """Catches numbers of the code before, under the name of that of today; and a recomputation in silence."""

    def code(power):
        loss = lambda x: x**power  # noqa: E731 - what the run refers to is edited, not the run
        return lambda key, a: {"value": loss(a)}

    with caplog.at_level(logging.WARNING):
        assert sweeps.sweep(code(2), {"a": [3]}, tmp_path, KEY)["value"].item() == 9
        assert caplog.text == ""
        assert sweeps.sweep(code(3), {"a": [3, 4]}, tmp_path, KEY)["value"].values.tolist() == [27, 64]
    assert "computing 1 of 2 cells anew: run, or what it refers to, is not the code" in caplog.text
    assert len(contents(tmp_path)) == 3
    caplog.clear()
    assert sweeps.sweep(code(2), {"a": [3]}, tmp_path, KEY)["value"].item() == 9
    assert caplog.text == "", "what the edit was undone to is there"


def test_progress_tells_the_time_left(tmp_path) -> None:
    seen: list = []
    slow = lambda key, a, b: (time.sleep(0.05), {"value": a})[1]  # noqa: E731
    sweeps.sweep(slow, GRID, tmp_path, KEY, progress=seen.append)
    assert [(p.done, p.total) for p in seen] == [(i, 6) for i in range(7)]
    assert seen[0].seconds_left is None
    assert 0.05 * 5 <= seen[1].seconds_left < 1.0
    assert seen[-1].seconds_left == 0
    assert str(sweeps.Progress(1, 2, None)) == "1 of 2 cells"


def train(key, batch_size, scale):
    loss_fn, params, data = network()
    return training.run_sgd(
        *(loss_fn, params, data, optax.sgd, designs.WithReplacement(batch_size), 4, key),
        num_runs=2,
        learning_rates=[0.1 * scale, 0.2 * scale],
        record_every=2,
    )


def test_runs_are_labelled_and_compile_once_for_each_shape(tmp_path) -> None:
    before = _run._advance._cache_size()
    with pytest.raises(ValueError, match="run must return the same coordinates learning_rate in all cells"):
        sweeps.sweep(train, {"batch_size": [2, 3], "scale": [1, 2]}, tmp_path, KEY)
    assert _run._advance._cache_size() == before + 2, "four cells of two shapes"
    table = sweeps.sweep(train, {"batch_size": [2, 3], "scale": [1]}, tmp_path, KEY)
    assert table["loss"].dims == ("batch_size", "scale", "learning_rate", "run", "step")
    np.testing.assert_array_equal(table["step"], [0, 2, 4])
    np.testing.assert_allclose(table["learning_rate"], [0.1, 0.2])
    assert table["loss"].sel(batch_size=3, learning_rate=0.2, step=4, scale=1).shape == (2,)
    assert _run._advance._cache_size() == before + 2


def test_without_vectorized_axes(tmp_path) -> None:
    def run(key, batch_size):
        loss_fn, params, data = network()
        return training.run_sgd(loss_fn, params, data, optax.sgd(0.1), designs.WithReplacement(batch_size), 2, key)

    assert sweeps.sweep(run, {"batch_size": [2]}, tmp_path, KEY)["loss"].dims == ("batch_size", "step")


def test_saved_as_netcdf(tmp_path) -> None:
    import xarray

    table = sweeps.sweep(lambda key, a: {"value": (("t",), np.arange(3.0) + a)}, {"a": [1, 2]}, tmp_path / "cells", KEY)
    table.to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "table.nc", engine="h5netcdf") as stored:
        assert stored.load().equals(table)


WORKER = """
import os, sys, time
import jax, numpy as np
from jaxsgd import sweeps
folder, seconds = sys.argv[1], float(sys.argv[2])

def run(key, cell):
    with open(folder + "/log", "a") as log:
        log.write(f"{cell} {os.getpid()}\\n")
    time.sleep(seconds)
    return {"value": jax.random.normal(key, (5,))}

table = sweeps.sweep(run, {"cell": list(range(8))}, folder + "/cells", jax.random.key(0))
np.save(folder + f"/result-{os.getpid()}.npy", table["value"].values)
"""


def worker(folder: Path, seconds: float) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(sweeps.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(seconds)], env=environment)


def test_two_processes_share_a_sweep_and_one_is_killed(tmp_path) -> None:
    """Every cell is computed once, but for that of the process that is killed, which another takes over at once."""
    first, second = worker(tmp_path, 0.4), worker(tmp_path, 0.4)
    log = tmp_path / "log"
    while not (log.exists() and f" {first.pid}\n" in log.read_text() and f" {second.pid}\n" in log.read_text()):
        assert first.poll() is None
        assert second.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert second.wait() == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    by_first = [cell for cell, pid in lines if int(pid) == first.pid]
    assert sorted(cell for cell, _ in lines) == sorted([*map(str, range(8)), by_first[-1]])
    shared = np.load(tmp_path / f"result-{second.pid}.npy")
    key = jax.random.key(0)
    run = lambda key, cell: {"value": jax.random.normal(key, (5,), np.float32)}  # noqa: E731
    alone = sweeps.sweep(run, {"cell": list(range(8))}, tmp_path / "alone", key)["value"].values
    assert shared.tobytes() == alone.tobytes()


def test_files_are_records(tmp_path) -> None:
    sweeps.sweep(record([]), GRID, tmp_path, KEY)
    for path in tmp_path.glob("*.npz"):
        assert "value" in files.read_record(path)
        assert "value" in np.load(path).files
