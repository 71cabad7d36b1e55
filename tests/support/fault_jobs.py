"""Work to be killed: ``python fault_jobs.py`` forks a process for every line ``job folder`` it reads.

It imports everything once and computes nothing itself, so a process is at work a moment after it is asked for, and may
be killed at any. The answers are lines too: ``job folder`` → the process's id; ``poll ID`` and ``wait ID`` → its exit
status (negative for a signal), or ``None`` while it runs.
"""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

STEPS, RECORD_EVERY, CELLS, LONG, DRAWS = 4000, 100, 12, 32768, 60_000
TIMED = "variance_vs_batch_size.json"  # says how long it took


class Nursery:
    """The other end: starts jobs, and knows how they ended."""

    def __init__(self, compiled: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "JAX_COMPILATION_CACHE_DIR": str(compiled),  # or most of the time of a job goes into compiling
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.ask("") == "ready"

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, job, folder):
        return int(self.ask(f"{job} {folder}"))

    def poll(self, pid):
        answer = self.ask(f"poll {pid}")
        return None if answer == "None" else int(answer)

    def wait(self, pid):
        return int(self.ask(f"wait {pid}"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def sweep(folder: Path) -> None:
    """Cells of 30 kB that take a moment."""
    import time

    import jax

    from jaxsgd import sweeps
    from jaxsgd._core import files

    def run(key, cell):
        with (folder / "log").open("a") as log:
            log.write(f"{cell} {os.getpid()}\n")
        time.sleep(0.02)
        return {"value": jax.random.normal(key, (4000,))}

    table = sweeps.sweep(run, {"cell": list(range(CELLS))}, folder / "cells", jax.random.key(0))
    files.write_bytes(folder / "result/result.npz", files.pack_arrays({"value": table["value"].values}))


def train(folder: Path) -> None:
    """A run with a checkpoint, a log of metrics and 40 records."""
    from jaxsgd import tracking

    with tracking.JSONLinesWriter(folder / "run.jsonl") as writer:
        _train(folder, STEPS, record_every=RECORD_EVERY, writer=writer)


def train_rarely(folder: Path) -> None:
    """A long run that records at its first step and its last only, and says how far it is."""
    made = os.open(folder / "made", os.O_WRONLY | os.O_CREAT)
    _train(
        *(folder, LONG),
        checkpoint_every_seconds=0.1,
        chunk_size=512,
        progress=lambda step, _: os.pwrite(made, b"%9d" % step, 0),
    )


def _train(folder: Path, num_steps: int, **options) -> None:
    import jax
    import numpy as np
    import optax

    from jaxsgd import designs, problems, training
    from jaxsgd._core import files

    rng = np.random.default_rng(0)
    problem = problems.mlp(rng.normal(size=(50, 8)), rng.integers(0, 3, 50), key=jax.random.key(0), hidden=8)
    design = designs.Reshuffling(10, drop_last=False)
    arguments = (*problem, optax.adam(0.01), design, num_steps, jax.random.key(1))
    result = training.run_sgd(*arguments, checkpoint=folder / "run.npz", **options)
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result))}
    files.write_bytes(folder / "result/result.npz", files.pack_arrays(arrays))


def monte_carlo(folder: Path) -> None:
    """Draws that are written along the way."""
    import jax
    import numpy as np

    import jaxsgd
    from jaxsgd import designs, estimators, problems
    from jaxsgd._core import files

    g = jaxsgd.per_example_gradients(problems.line_fit().loss_fn)(*problems.line_fit()[1:3])
    options = {"checkpoint": folder / "draws.npz", "checkpoint_every_seconds": 0.1, "chunk_size": 100}
    design = designs.WithoutReplacement(2)
    found = estimators.monte_carlo(design, g, key=jax.random.key(0), num_draws=DRAWS, **options)
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(found))}
    files.write_bytes(folder / "result/result.npz", files.pack_arrays(arrays))


def experiment(folder: Path) -> None:
    """The headline experiment, small."""
    from experiments import _harness
    from tests.study.test_experiments import HEADLINE, SMALL

    status = _harness.main([HEADLINE, *SMALL, "--out", str(folder / "result")])
    if status:
        sys.exit(status)


def line():
    """A problem to report on."""
    from jaxsgd import problems

    return problems.line_fit()


def report(folder: Path) -> None:
    """A report on four examples, with all its figures."""
    from jaxsgd.report import _command_line

    status = _command_line.main(["report", f"{__file__}:line", "--out", str(folder / "result")])
    if status:
        sys.exit(status)


def fork(job: str, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):  # which nohup, for one, has ignored
        signal.signal(number, signal.SIG_DFL)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        globals()[job](folder)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def main() -> None:
    import matplotlib.figure  # noqa: F401
    import optax  # noqa: F401
    import xarray  # noqa: F401

    import jaxsgd  # noqa: F401

    warnings.simplefilter("ignore")  # that JAX must not be forked while it runs: it does not
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended: dict[int, int] = {}
    for line in sys.stdin:
        name, _, rest = line.strip().partition(" ")
        if name in ("poll", "wait"):
            pid = int(rest)
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG if name == "poll" else 0)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            print(ended.get(pid), flush=True)
        else:
            print(fork(name, Path(rest)) if name else "ready", flush=True)


if __name__ == "__main__":
    main()
