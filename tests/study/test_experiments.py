"""Every experiment confirms its claim in its quick form, and the harness loses and half-writes nothing."""

import dataclasses
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import _claims, _harness
from jaxsgd import sources
from tests.support.controls import CONTROLS
from tests.support.registry import quick

STEMS = _harness.stems()
FAST = {"autodiff_at_kinks"}  # of the others `make test` checks what is stored
HEADLINE = "variance_vs_batch_size"
SMALL = ["--max-examples", "12", "--hidden", "3", "--batch-size", "4", "--steps", "1", "2", "--num-draws", "400"]


def test_the_readme_names_every_experiment() -> None:
    readme = (_harness.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert not [stem for stem in STEMS if f"`{stem}`" not in readme]


def confirms_its_claim_and_nothing_less(stem, results):
    """Every change in CONTROLS is found out by ``check``."""
    module = importlib.import_module(f"experiments.{stem}")
    module.check(results)
    for array, change, message in CONTROLS[stem]:
        with pytest.raises(_harness.UnconfirmedError, match=message):
            module.check(results | {array: change(results[array])})


@pytest.mark.parametrize("stem", STEMS)
def test_what_is_stored_confirms_the_claim_and_nothing_less(stem):
    confirms_its_claim_and_nothing_less(stem, sources.load(_harness.FIGURES / f"{stem}.npz"))


@pytest.mark.parametrize("stem", quick(STEMS, FAST))
def test_quick_run_confirms_the_claim_and_nothing_less(stem, tmp_path, capsys):
    """Four files, the same bytes when drawn again."""
    status = _harness.main([stem, "--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().err
    if said.startswith("not run: "):
        pytest.skip(said.strip())
    assert status == 0, said
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {f"{stem}{kind}" for kind in (".png", ".pdf", ".npz", ".json")}
    record = json.loads(before[f"{stem}.json"])
    assert record["claim"] == _harness.claim(stem)
    assert {"config", "findings", "seconds", "device", "versions"} <= record.keys()
    assert _harness.main([stem, "--redraw", "--out", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    confirms_its_claim_and_nothing_less(stem, sources.load(tmp_path / f"{stem}.npz"))


@pytest.mark.parametrize("stem", STEMS)
def test_every_setting_is_a_flag_with_help(stem, capsys):
    module = importlib.import_module(f"experiments.{stem}")
    with pytest.raises(SystemExit) as stop:
        _harness.main([stem, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for field in [*dataclasses.fields(module.Config), *dataclasses.fields(_harness.Options)]:
        flag = field.name.replace("_", "-")
        assert f"--{flag}" in text or f"--no-{flag}" in text  # what is on by default can be turned off


def test_headline_laws():
    with np.load(_harness.FIGURES / f"{HEADLINE}.npz") as results:
        N, trace = results["with_replacement/exact"].shape[1], results["trace_covariance"]
        M = np.arange(1, N + 1)
        expected = trace[:, None] * (N - M) / (M * (N - 1))
        np.testing.assert_allclose(results["without_replacement/exact"], expected, rtol=1e-12)
        np.testing.assert_allclose(results["with_replacement/exact"], trace[:, None] / M, rtol=1e-12)


def test_unconfirmed_claim_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_claims, "MAX_Z", 0.0)
    assert _harness.main([HEADLINE, *SMALL, "--out", str(tmp_path)]) == 1
    assert "claim not confirmed, nothing written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_interrupt_writes_nothing(tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"experiments.{HEADLINE}")

    def interrupted(results):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "draw", interrupted)
    assert _harness.main([HEADLINE, *SMALL, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "targets",
    [lambda rng: rng.integers(0, 3, 12), pytest.param(lambda rng: rng.normal(size=12), marks=pytest.mark.slow)],
    ids=["labels", "real"],
)
def test_own_data(tmp_path, targets, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=rng.normal(size=(12, 2, 2)), y=targets(rng))
    arguments = [HEADLINE, *SMALL, "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "out")]
    assert _harness.main(arguments) == 0
    assert "both laws hold at all 12 batch sizes, worst" in capsys.readouterr().out


def test_subset_of_own_data_is_announced(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=rng.normal(size=(20, 3)), y=rng.normal(size=20))
    arguments = [HEADLINE, *SMALL, "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "out")]
    assert _harness.main(arguments) == 0
    assert "all 12 batch sizes (a random subset of 20; see --max-examples)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((8, 2))}, "must hold arrays x and y, got x"),
        ({"x": np.ones((8, 2)), "y": np.ones(7)}, "data must have equally many examples in every array"),
        ({"x": np.ones((3, 2)), "y": np.ones(3)}, "data must have at least 4 examples, got 3"),
        ({"x": np.full((8, 2), np.nan), "y": np.ones(8)}, "x must be finite, got nan in example 0"),
        ({"x": np.ones((8, 2)), "y": np.array(["a"] * 8)}, "data must be numbers"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_data_is_refused_by_name(tmp_path, arrays, message, capsys):
    np.savez(tmp_path / "own.npz", **arrays)
    assert _harness.main([HEADLINE, *SMALL, "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.npz"], "there is no file or folder nowhere.npz"),
        (["--steps", "5", "5"], r"steps must be positive and increasing, got (5, 5)"),
        (["--batch-size", "13"], "batch_size must be at most the population size 12, got 13"),
        (["--num-draws", "1"], "num_draws must be at least 2, got 1"),
        (["--max-examples", "0"], "max_examples must be at least 1, got 0"),
        (["--redraw"], "there is no file"),
    ],
)
def test_bad_flags_are_refused_by_name(tmp_path, flags, message, capsys):
    assert _harness.main([HEADLINE, *SMALL, *flags, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_unknown_experiment_gets_a_suggestion(capsys):
    assert _harness.main(["variance_vs_batchsize"]) == 2
    assert "did you mean variance_vs_batch_size?" in capsys.readouterr().err


def test_listing_is_instant_and_shows_every_claim():
    code = "import sys; from experiments._harness import main; main([]); sys.exit('jax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=_harness.FOLDER.parent
    )
    assert result.returncode == 0, "listing must not import jax"
    for stem in STEMS:
        assert f"{stem}\n    {_harness.claim(stem)}" in result.stdout


@pytest.mark.parametrize("stem", STEMS)
def test_full_figure_is_stored_and_indexed(stem):
    for kind in (".png", ".pdf", ".npz", ".json"):
        assert (_harness.FIGURES / f"{stem}{kind}").exists()
    record = json.loads((_harness.FIGURES / f"{stem}.json").read_text(encoding="utf-8"))
    assert record["claim"] == _harness.claim(stem)
    assert f"[`{stem}`]" in (_harness.FOLDER.parent / "docs" / "experiments.md").read_text(encoding="utf-8")


def test_the_page_quotes_the_stored_numbers():
    record = json.loads((_harness.FIGURES / f"{HEADLINE}.json").read_text(encoding="utf-8"))
    page = (_harness.FOLDER.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    findings = record["findings"]
    for value in [*findings["trace_covariance"], *findings["squared_mean_norm"]]:
        assert f"{value:#.3g}" in page
    worst = max(abs(value) for name, value in findings.items() if "worst_z" in name)
    assert f"{worst:.1f} closed-form standard errors" in page
    assert f"off by {-findings['weakest_rejection_of_1/M']:.0f} standard errors" in page


def test_the_page_quotes_the_stored_speeds():
    ratios = json.loads((_harness.FIGURES / "kernel_speed.json").read_text(encoding="utf-8"))["findings"]["ratios"]
    page = (_harness.FOLDER.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    for workload, row in ratios.items():
        cells = [row["plain"], *(f"{value:.2f}×" for name, value in row.items() if name != "plain")]
        assert f"| {workload} | {' | '.join(cells)} |" in page


def test_the_page_has_the_table_of_replications():
    record = json.loads((_harness.FIGURES / "replications.json").read_text(encoding="utf-8"))
    page = (_harness.FOLDER.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    for case, row in record["findings"]["cases"].items():
        assert f"| {case} | {row['published']} | {row['ours']} | {row['changed']} |" in page
