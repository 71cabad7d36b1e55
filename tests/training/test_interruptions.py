"""A run that is interrupted, killed or changed: it goes on to the same bits, or is refused."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsgd
from jaxsgd import designs, tracking
from tests.support.registry import network
from tests.support.runs import ALL_MONITORS, assert_same_bits, run, with_optax


@with_optax
def test_an_interruption_loses_nothing(tmp_path) -> None:
    """Stopped by Ctrl-C between records; what follows is bitwise the uninterrupted run, and written only once."""
    options = {"num_steps": 20, "record_every": 6, "chunk_size": 4, "num_runs": 2, "optimizer": optax.adam(0.1)}
    monitored = {"monitors": ALL_MONITORS[:2], "design": designs.Reshuffling(3, drop_last=False)}
    expected = run(**options, **monitored)

    def stop(step, _):
        if step == 10:
            raise KeyboardInterrupt

    path, log = tmp_path / "run.npz", tmp_path / "run.jsonl"
    with tracking.JSONLinesWriter(log) as writer, pytest.raises(KeyboardInterrupt):
        run(**options, **monitored, checkpoint=path, progress=stop, writer=writer)
    seen = []
    with tracking.JSONLinesWriter(log) as writer:
        progress = lambda step, _: seen.append(step)  # noqa: E731
        again = run(**options, **monitored, checkpoint=path, progress=progress, writer=writer)
    assert seen == [12, 16, 18, 20]
    assert_same_bits(expected, again)
    assert [step for step, _ in tracking.read_json_lines(log)] == [0, 6, 12, 18, 20]
    assert_same_bits(expected, run(**options, **monitored, checkpoint=path))  # nothing is left to do


def test_checkpoints_keep_every_kind_of_array(tmp_path) -> None:
    """bfloat16 parameters and random keys in the optimizer's state. Catches a dtype that NumPy stores as bytes."""
    problem = network()._replace(params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), network().params))
    loss_fn = problem.loss_fn
    problem = problem._replace(
        loss_fn=lambda p, e: loss_fn(jax.tree.map(lambda a: a.astype(float), p), e).astype(jnp.float32)
    )
    noise = optax.GradientTransformation(
        lambda p: jax.random.key(3),
        lambda g, k, p=None: (
            jax.tree.map(lambda a: a + jax.random.normal(k, a.shape, a.dtype), g),
            jax.random.fold_in(k, 1),
        ),
    )
    optimizer = optax.chain(noise, optax.sgd(0.01))
    path = tmp_path / "run.npz"
    options = {"num_steps": 6, "record_every": 2, "chunk_size": 2}

    def stop(step, _):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(problem, optimizer, **options, checkpoint=path, progress=stop)
    assert_same_bits(run(problem, optimizer, **options), run(problem, optimizer, **options, checkpoint=path))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"key": jax.random.key(8)}, "key is"),
        ({"num_steps": 6}, "num_steps is 5 there, and 6 here"),
        ({"design": designs.WithoutReplacement(2)}, r"design is WithoutReplacement\(batch_size=3\) there"),
        ({"optimizer": optax.sgd(0.2)}, "program is"),
        ({"problem": network("sigmoid")}, "evaluation is"),
        ({"problem": network()._replace(data=jax.tree.map(lambda a: a + 1, network().data))}, "data is"),
        ({"keep_params_at": [0, 2]}, r"keep_params_at is None there, and \[0, 2\] here"),
        ({"num_runs": 1}, "evaluation is|key is|num_runs is"),
        ({"eval_fn": lambda p: p["hidden"]["b"][0]}, "evaluation is"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, what) -> None:
    path = tmp_path / "run.npz"
    run(checkpoint=path)
    with pytest.raises(ValueError, match=f"run.npz is of another run: ({what})"):
        run(checkpoint=path, **change)


KILLED = """
import sys, jax, optax
from jaxsgd import designs, problems, training, tracking
folder, N = sys.argv[1], int(sys.argv[2])
loss_fn, params, data = problems.digits_mlp(key=jax.random.key(0), hidden=8)
with tracking.JSONLinesWriter(folder + "/run.jsonl") as writer:
    result = training.run_sgd(
        loss_fn, params, data, optax.adam, designs.Reshuffling(100, drop_last=False), N, jax.random.key(1), num_runs=2,
        learning_rates=[0.01, 0.1], record_every=N // 20, keep_params_at=range(0, N + 1, N // 50), writer=writer,
        checkpoint=folder + "/run.npz",
    )
from jaxsgd._core import files
from pathlib import Path
import numpy as np
arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result))}
files.write_bytes(Path(folder + "/result.npz"), files.pack_arrays(arrays))
"""


def start(folder: Path, num_steps: int) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(jaxsgd.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(num_steps)], env=environment)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def killed_and_resumed(folder: Path, num_steps: int, kills: int) -> None:
    """Kill at random moments after a new checkpoint, resume, compare with the uninterrupted run."""
    uninterrupted = start(folder / "whole", num_steps)
    generator, cut = random.Random(0), folder / "cut"
    for _ in range(kills):
        before = stamp(cut / "run.npz")
        process = start(cut, num_steps)
        while process.poll() is None and stamp(cut / "run.npz") == before:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was not killed in time: give it more steps"
    assert not (cut / "result.npz").exists()
    assert start(cut, num_steps).wait() == uninterrupted.wait() == 0
    assert (cut / "result.npz").read_bytes() == (folder / "whole" / "result.npz").read_bytes()
    lines = [dict(tracking.read_json_lines(folder / name / "run.jsonl")) for name in ("cut", "whole")]
    assert str(lines[0]) == str(lines[1])  # among them NaN, which is not equal to itself


@pytest.mark.slow
def test_killed_and_resumed(tmp_path) -> None:
    killed_and_resumed(tmp_path, num_steps=6_000, kills=1)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path) -> None:
    killed_and_resumed(tmp_path, num_steps=60_000, kills=6)
