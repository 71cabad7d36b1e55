"""The speed experiments can fail, and the memory they report is that of the process it is said to be."""

import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import _harness, _models, _peak_memory, _timing, kernel_speed, streaming_speed, sweep_speed

MADE_UP = {
    "models": np.array(["logistic regression"]),
    "names": np.array([*streaming_speed.PLAIN, streaming_speed.EVERY_COORDINATE, streaming_speed.TRACE]),
    "ratio": np.array([[1.0, 1.1, 1.4, 1.2]]),
    "milliseconds": np.array([[10.0, 11.0, 14.0, 12.0]]),
    "error": np.array([1e-6]),
    "memory_sizes": np.array([10, 40]),
    "data_bytes": np.array([[1000, 4000]]),
    "peak_bytes": np.array([[9000, 9200]]),
    "peak_bytes_held": np.array([[10000, 13000]]),
    "hold_to_speed": np.array(True),
}


def test_streaming_findings():
    findings = streaming_speed.check(MADE_UP)
    assert findings["within_target_ratio"]
    assert findings["growth_share_of_added_data"] == {"logistic regression": round(200 / 3000, 3)}
    assert "costs 1.40 to 1.40 plain passes" in _harness.summary(streaming_speed, findings)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("error", [2e-4], "the same mean gradient, got a relative error of 2.0e-04"),
        ("peak_bytes", [[9000, 9900]], "peak memory must not grow with the data, got 0.30"),
        ("peak_bytes_held", [[10000, 10200]], "holding the data must show, got 0.07"),
        ("ratio", [[1.0, 1.1, 1.6, 1.2]], "a pass costs 1.60 passes"),
    ],
)
def test_streaming_check_can_fail(array, value, message):
    with pytest.raises(_harness.UnconfirmedError, match=message):
        streaming_speed.check(MADE_UP | {array: np.array(value)})


def test_a_pass_over_the_target_is_reported_where_it_is_not_held():
    slow = {"ratio": np.array([[1.0, 1.1, 1.6, 1.2]]), "hold_to_speed": np.array(False)}
    assert not streaming_speed.check(MADE_UP | slow)["within_target_ratio"]


@pytest.mark.parametrize("chunk_size", [3, 4, 12, 13])
def test_plain_passes_are_the_mean_gradient(chunk_size):
    """Catches a last chunk that is left out, or weighted as a whole one."""
    loss_fn, params, data = _models.mlp((5, 3), 13)
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        truth = jax.grad(lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, data).mean())(params)
        passes = streaming_speed.plain_passes((loss_fn, params, data), chunk_size)
        assert list(passes) == list(streaming_speed.PLAIN)
        assert all(_timing.relative_error(run(), truth) < 1e-6 for run in passes.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "SVM"], "models must be among logistic regression, MLP 784-512-10, got SVM"),
        (["--chunk-size", "0"], "chunk_size must be at least 1, got 0"),
        (["--memory-sizes", "5"], "memory_sizes must be positive and increasing, got (5,)"),
        (["--memory-sizes", "5", "5"], "memory_sizes must be positive and increasing, got (5, 5)"),
    ],
)
def test_bad_flags_are_refused_by_name(tmp_path, flags, message, capsys):
    assert _harness.main(["streaming_speed", "--quick", *flags, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_chunks_cover_the_data_set():
    chunks = list(_peak_memory.chunks((4, 3), 11, 5))
    assert [len(chunk["x"]) for chunk in chunks] == [5, 5, 1]
    assert all(chunk["x"].shape[1] == 4 and chunk["y"].max() < 3 for chunk in chunks)


ALLOCATES = """
import numpy as np
from experiments._peak_memory import own_peak_bytes
before = own_peak_bytes()
block = np.ones(25_000_000)
del block
print(own_peak_bytes() - before)
"""


@pytest.mark.slow
def test_the_peak_is_of_this_process():
    """It rises by what is allocated, and stays; a peak inherited from this larger process would hide it."""
    held = np.ones(50_000_000)
    command = [sys.executable, "-c", ALLOCATES]
    result = subprocess.run(command, cwd=_harness.FOLDER.parent, capture_output=True, text=True, check=True)
    assert 0.9 < int(result.stdout) / 200_000_000 < 1.1
    del held


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_kernel_speed_check_can_fail(factor):
    ratio = np.array([[1.0, 1.3 * factor, 1.0, 1.0]])
    results = {
        "workloads": np.array(["MLP"]),
        "device": np.array("cpu"),
        "names": np.array(["plain", *kernel_speed.STATISTICS]),
        "ratio": ratio,
        "milliseconds": ratio,
        "compile_seconds": ratio,
        "error": np.array([1e-6]),
        "peers": np.array([], dtype=str),
        "hold_to_speed": np.array(True),
    }
    if factor == 1.0:
        assert kernel_speed.check(results)["throughput"]["MLP"]["mean + squared norms"] == round(1 / 1.3, 2)
        with pytest.raises(_harness.UnconfirmedError, match="got a relative error"):
            kernel_speed.check(results | {"error": np.array([2e-4])})
    else:
        with pytest.raises(_harness.UnconfirmedError, match=r"mean \+ squared norms cost 1\.56 plain gradients on MLP"):
            kernel_speed.check(results)


def test_large_workloads_are_for_accelerators(monkeypatch):
    """By default a CPU runs none of them, and an accelerator all."""
    module = importlib.import_module("experiments.kernel_speed")

    class Elsewhere:
        platform, device_kind = "gpu", "made up"

    class StoppedError(Exception):
        pass

    def stop(workloads, _):
        raise StoppedError(*workloads)

    monkeypatch.setattr(module, "progress", stop)
    for where, expected in [(jax.devices("cpu")[0], module.WORKLOADS), (Elsewhere(), module.ALL_WORKLOADS)]:
        monkeypatch.setattr(module, "device", lambda _, where=where: where)
        monkeypatch.setattr(module.jax, "default_device", lambda _: jax.numpy_rank_promotion("allow"))
        with pytest.raises(StoppedError) as stopped:
            module.compute(module.Config(peers=False))
        assert set(stopped.value.args) == set(expected) - {module.QUICK_WORKLOAD}


def test_the_page_quotes_the_peers() -> None:
    """Catches a table that was not renewed with the measurement."""
    page = (_harness.FOLDER.parent / "docs" / "experiments.md").read_text(encoding="utf-8").splitlines()
    peers = json.loads((_harness.FIGURES / "kernel_speed.json").read_text(encoding="utf-8"))["findings"]["peers"]
    offered = {workload: row for workload, row in peers.items() if isinstance(row, dict)}
    assert offered
    for workload, row in offered.items():
        for name, found in row.items():
            statistic = name.split(": ")[1]
            lines = [line for line in page if line.startswith(f"| {workload} | {statistic} |")]
            assert statistic == "mean" or f"| {found['ratio']:.2f}× ({found['milliseconds']:.0f} ms) |" in lines[0]


SWEPT = {
    "difference": np.array([1e-7, 1e-7]),
    "same_bits": np.array([True]),
    "compilations": np.array([1, 1]),
    "final_loss": np.ones((2, 1, 3)),
    "loop_microseconds": np.array([60.0, 70.0]),
    "sweep_microseconds": np.array([10.0, 12.0]),
    "watching": np.array([[1.1, 1.25, 1.02]]),
    "batch_sizes": np.array([1, 2]),
    "cell_seconds": np.array([1.0, 2.0]),
    "models": np.array(["MLP"]),
    "num_cells": np.array(40),
    "num_steps": np.array(100),
    "hold_to_speed": np.array(True),
}


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("loop_microseconds", [40.0, 50.0], "the loop must take 5 times as long, got 4.1"),
        ("watching", [[1.0, 1.31, 1.0]], "watching every step cost 1.31 plain steps"),
        ("watching", [[1.0, 1.1, 1.04]], "watching every 16th step cost 1.040 plain steps"),
        ("compilations", [1, 2], r"each batch size must compile once, got \[1, 2\]"),
    ],
)
def test_sweep_speed_check_can_fail(array, value, message):
    assert sweep_speed.check(SWEPT)["speedup"] == 5.9
    with pytest.raises(_harness.UnconfirmedError, match=message):
        sweep_speed.check(SWEPT | {array: np.array(value)})


def test_the_loop_of_sweep_speed_is_one_run_of_the_sweep():
    """Catches a loop with less to do: it arrives at the same parameters."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        problem = sweep_speed.problems.digits_mlp(key=jax.random.key(0), hidden=8)
        *_, difference = sweep_speed._against_loop(problem, 4, sweep_speed.QUICK)
    assert difference < 1e-5
