"""A round over all experiments that was interrupted, or in which one failed, redoes only what is missing."""

import json
import multiprocessing
import sys
import time
from pathlib import Path

import pytest

from experiments import _claims, _harness, _workers
from experiments._journal import Journal

STEMS = ["first", "second", "third"]


@pytest.fixture
def rounds(tmp_path, monkeypatch):
    """Rounds over three made-up experiments; what fails, and how, is given for each."""
    started = []

    def run(stem, _):
        started.append(stem)
        if stem in failing:
            raise failing[stem]
        for kind in (".png", ".pdf", ".npz", ".json"):
            (tmp_path / f"{stem}{kind}").write_text(stem)
        return stem

    failing: dict[str, BaseException] = {}
    monkeypatch.setattr(_harness, "run", run)
    monkeypatch.setattr(_harness, "stems", lambda: STEMS)
    monkeypatch.setattr(_harness, "claim", lambda stem: f"{stem} holds.")

    def go(*flags, **errors):
        started.clear()
        failing.clear()
        failing.update(errors)
        return _harness.main(["all", *flags, "--out", str(tmp_path)]), list(started)

    return go


def journal(folder: Path) -> Path:
    return folder / ".unfinished.json"


def test_a_complete_round_leaves_no_journal_and_the_next_begins_anew(rounds, tmp_path):
    assert rounds() == (0, STEMS)
    assert not journal(tmp_path).exists()
    assert rounds() == (0, STEMS)


def test_after_an_interruption_only_the_rest_is_run(rounds, capsys):
    assert rounds(second=KeyboardInterrupt()) == (130, ["first", "second"])
    assert "the same command goes on from here" in capsys.readouterr().err
    assert rounds() == (0, ["second", "third"])
    output = capsys.readouterr().out
    assert "finished before the interruption: first\n[2/3] second holds." in output


def test_a_failure_does_not_stop_the_others(rounds, capsys):
    errors = {"first": _harness.UnconfirmedError("not so"), "second": ValueError("bad")}
    assert rounds(**errors) == (1, STEMS)
    error = capsys.readouterr().err
    assert "claim not confirmed, nothing written: not so" in error
    assert "failed: first, second; the same command runs only these again" in error
    assert rounds() == (0, ["first", "second"])


def test_data_that_are_not_installed_are_no_failure(rounds, tmp_path, capsys):
    missing = _claims.MissingDataError("install the images")
    assert rounds(second=missing) == (0, STEMS)
    assert "not run: install the images" in capsys.readouterr().err
    assert not journal(tmp_path).exists()
    assert _harness.main(["second", "--out", str(tmp_path)]) == 2


def test_a_changed_or_lost_file_is_made_again(rounds, tmp_path):
    rounds(third=KeyboardInterrupt())
    (tmp_path / "first.npz").write_text("changed")
    (tmp_path / "second.png").unlink()
    assert rounds() == (0, STEMS)


def test_other_flags_begin_anew(rounds):
    rounds("--quick", third=KeyboardInterrupt())
    assert rounds() == (0, STEMS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": {}}', '{"flags": 3, "done": {"first": 1}}'])
def test_a_damaged_journal_is_not_believed(rounds, tmp_path, content):
    journal(tmp_path).write_text(content)
    assert rounds() == (0, STEMS)


@pytest.mark.parametrize("done", [3, None, "first", ["first"], {"first": 1}])
def test_a_journal_with_other_values_is_not_believed(tmp_path, done):
    journal(tmp_path).write_text(json.dumps({"flags": ["all"], "done": done}))
    assert "first" not in Journal(tmp_path, ["all"])


def test_flags_of_one_experiment_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        _harness.main(["all", "--hidden", "3"])
    assert stop.value.code == 2
    assert "--hidden" in capsys.readouterr().err


def test_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(_harness, "stems", lambda: ["first", "loop_speed", "weeks"])
    monkeypatch.setattr(_harness, "LONG", ("weeks",))
    monkeypatch.setattr(_harness, "claim", lambda stem: f"{stem} holds.")
    started = []
    monkeypatch.setattr(_harness, "run", lambda stem, _: started.append(stem) or stem)
    groups = {"study": ["first"], "long": ["weeks"], "benchmarks": ["loop_speed"]}
    for group, expected in (groups | {"all": ["first", "loop_speed", "weeks"]}).items():
        started.clear()
        assert _harness.main([group, "--jobs", "1", "--out", str(tmp_path)]) == 0
        assert started == expected


def attempt(stem: str, flags: list[str]) -> int:
    """An experiment that fails if it is told to."""
    print(f"{stem} ran")
    if stem in flags:
        print("claim not confirmed", file=sys.stderr)
        return 1
    return 0


def test_side_by_side():
    found = sorted(_workers.attempts(attempt, STEMS, ["second"], 2))
    assert found == [
        ("first", 0, "first ran\n", ""),
        ("second", 1, "second ran\n", "claim not confirmed\n"),
        ("third", 0, "third ran\n", ""),
    ]


def sleeping(stem: str, flags: list[str]) -> int:
    time.sleep(0 if stem == "first" else 100)
    return 0


@pytest.mark.slow
def test_a_signal_to_one_process_ends_those_beside_it():
    """A scheduler tells the first only. Catches a wait until they have finished what nobody will collect."""
    started = time.monotonic()
    running = _workers.attempts(sleeping, STEMS, [], 2)
    assert next(running)[0] == "first"
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
    assert time.monotonic() - started < 90
    assert not multiprocessing.active_children()


def test_side_by_side_what_finished_first_is_shown_first(monkeypatch, tmp_path, capsys):
    def attempts(attempt, names, flags, jobs):
        assert (jobs, flags) == (2, ["--quick", "--out", str(tmp_path)])
        for stem in reversed(names):
            yield stem, 0, f"{stem} ran\n", ""

    monkeypatch.setattr(_workers, "attempts", attempts)
    monkeypatch.setattr(_harness, "stems", lambda: STEMS)
    monkeypatch.setattr(_harness, "claim", lambda stem: f"{stem} holds.")
    assert _harness.main(["study", "--quick", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("[1/3] third holds.\nthird ran\n[2/3] second holds.\nsecond ran\n")
    assert not journal(tmp_path).exists()


def test_interrupted_side_by_side(monkeypatch, tmp_path, capsys):
    def attempts(*_):
        yield "first", 0, "", ""
        raise KeyboardInterrupt

    monkeypatch.setattr(_workers, "attempts", attempts)
    monkeypatch.setattr(_harness, "stems", lambda: STEMS)
    monkeypatch.setattr(_harness, "claim", lambda stem: f"{stem} holds.")
    assert _harness.main(["study", "--out", str(tmp_path)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert journal(tmp_path).exists()


def test_no_jobs_are_refused(capsys):
    assert _harness.main(["study", "--jobs", "0"]) == 2
    assert "jobs must be at least 1, got 0" in capsys.readouterr().err
