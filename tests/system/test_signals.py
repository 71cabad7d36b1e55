"""Asked to stop or killed, at any moment: what was done is there, and the same call goes on to the same result.

SIGTERM is what SLURM, Kubernetes and ``timeout`` send first, SIGHUP what a terminal sends that is closed, SIGINT is
Ctrl-C, and nothing is told of SIGKILL. The long tests print how often each was tried.
"""

import contextlib
import signal

import jax
import optax
import pytest

from experiments import _harness
from jaxsgd import designs, estimators, per_example_gradients, problems, report, sweeps, training
from jaxsgd.report import _command_line
from tests.support.killing import Draws, Experiments, RareRuns, Reports, Runs, Sweeps, killed

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]
SUBJECTS = [RareRuns, Runs, Sweeps, Draws, Reports, Experiments]
COUNT = 30


@pytest.mark.parametrize(
    ("subject", "how"),
    [
        (RareRuns, signal.SIGTERM),
        (Sweeps, signal.SIGHUP),
        (Runs, signal.SIGKILL),
        pytest.param(Draws, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(Reports, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(Experiments, signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_stopped_once(nursery, undisturbed, subject, how, tmp_path):
    assert killed(nursery, undisturbed, subject, tmp_path, 1, how) >= 1


LINE, KEY = problems.line_fit(), jax.random.key(0)


def heard(*_, **__):
    """Stands where work is done: whether signals would interrupt it."""
    heard.by = [signal.getsignal(number) is not signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGHUP)]
    raise KeyboardInterrupt


def run(folder, monkeypatch):
    options = {"progress": heard, "checkpoint": folder / "run.npz"}
    training.run_sgd(*LINE, optax.sgd(0.1), designs.WithReplacement(2), 3, KEY, **options)


def draws(folder, monkeypatch):
    g = per_example_gradients(LINE.loss_fn)(LINE.params, LINE.data)
    monkeypatch.setattr(estimators._monte_carlo, "_more", heard)
    estimators.monte_carlo(designs.WithReplacement(2), g, key=KEY, num_draws=3, checkpoint=folder / "draws.npz")


def written_report(folder, monkeypatch):
    monkeypatch.setattr(_command_line, "report", heard)
    assert report.main(["report", f"{__file__}:LINE", "--out", str(folder)]) == 130


def experiment(folder, monkeypatch):
    monkeypatch.setattr(_harness, "run", heard)
    assert _harness.main(["exchange", "--out", str(folder)]) == 130


def cell(folder, monkeypatch):
    sweeps.sweep(heard, {"a": [1]}, folder, KEY)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("work", [run, draws, written_report, experiment, cell])
def test_all_that_may_take_long_is_interrupted_by_signals(work, tmp_path, monkeypatch):
    """And by nothing afterward. Catches work that a scheduler ends where it is."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with contextlib.suppress(KeyboardInterrupt):
        work(tmp_path, monkeypatch)
    assert heard.by == [True, True]
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.slow
@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_stopped_at_random_moments(nursery, undisturbed, subject, how, tmp_path, capsys):
    finished = killed(nursery, undisturbed, subject, tmp_path, COUNT, how)
    with capsys.disabled():
        print(f"\n{how.name} at random moments, {subject.job}: {COUNT} times, {finished} finished, lost: 0")
