"""Asked to stop or killed, at any moment: what was done is there, and the same call goes on to the same result.

SIGTERM is what SLURM, Kubernetes and ``timeout`` send first, SIGHUP what a terminal sends that is closed, SIGINT is
Ctrl-C, and nothing is told of SIGKILL. The long tests print how often each was tried.
"""

import signal

import pytest

from tests.support.killing import Draws, Experiments, RareRuns, Reports, Runs, Sweeps, killed

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]
SUBJECTS = [RareRuns, Runs, Sweeps, Draws, Reports, Experiments]
COUNT = 30


@pytest.mark.parametrize(
    ("subject", "how"),
    [
        (RareRuns, signal.SIGTERM),
        (Draws, signal.SIGHUP),
        (Sweeps, signal.SIGTERM),
        (Runs, signal.SIGKILL),
        pytest.param(Reports, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(Experiments, signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_stopped_once(nursery, undisturbed, subject, how, tmp_path):
    assert killed(nursery, undisturbed, subject, tmp_path, 1, how) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_stopped_at_random_moments(nursery, undisturbed, subject, how, tmp_path, capsys):
    finished = killed(nursery, undisturbed, subject, tmp_path, COUNT, how)
    with capsys.disabled():
        print(f"\n{how.name} at random moments, {subject.job}: {COUNT} times, {finished} finished, lost: 0")
