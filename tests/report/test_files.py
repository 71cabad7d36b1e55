"""The files of a report and those it reads: whole, standard, and the same that were saved."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import Problem
from jaxsgd.report import load_checkpoint, save_checkpoint
from tests.support.reports import (
    assert_close,
    strict,
)


def test_json_holds_the_numbers(whole):
    written = strict(whole.to_json())
    for name in ("num_examples", "num_params", "noise_scale", "trace_covariance", "squared_mean_norm", "batch_size"):
        assert written[name] == getattr(whole, name)
    assert [row["effect"] for row in written["designs"]] == [row.effect for row in whole.designs]
    assert written["batch_loss"]["additivity"]["kind"] == "mean"
    for row in written["batch_size_table"]:
        assert row["variance"] == pytest.approx(whole.variance[row["batch_size"] - 1], rel=1e-12)
    assert written["settings"]["jaxsgd"] == jaxsgd.__version__


def test_files_are_written_into_a_new_folder(whole, page, tmp_path):
    """The same bytes for the same findings are test_command_line's."""
    paths = whole.write(tmp_path / "a" / "b")
    assert paths[-1].name == "report.html"
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert (tmp_path / "a" / "b" / "report.html").read_text(encoding="utf-8").split("<svg")[0] == page.split("<svg")[0]
    with np.load(tmp_path / "a" / "b" / "variance.npz") as arrays:
        assert_close(arrays["variance"], whole.variance)
    for path in paths:
        start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!DOCTYPE", ".json": b"{", ".npz": b"PK"}[path.suffix]
        assert path.read_bytes().startswith(start)


def test_a_checkpoint_of_names_that_end_alike_comes_back(tmp_path):
    """Catches w.npy filled with the values of w, whose member of the archive has this name."""
    params = {"w": jnp.arange(3.0), "w.npy": -jnp.arange(3.0)}
    save_checkpoint(tmp_path / "p.npz", params)
    loaded = load_checkpoint(tmp_path / "p.npz", jax.tree.map(jnp.zeros_like, params))
    assert {name: leaf.tolist() for name, leaf in loaded.items()} == {"w": [0, 1, 2], "w.npy": [0, -1, -2]}


def test_a_checkpoint_comes_back(tmp_path):
    params = {"a": [jnp.arange(3.0), jnp.ones((), jnp.bfloat16)], "b": {"w": jnp.ones((2, 0), jnp.float32)}}
    save_checkpoint(tmp_path / "p.npz", params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    loaded = load_checkpoint(tmp_path / "p.npz", zeros)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for mine, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert mine.dtype == theirs.dtype
        assert jnp.array_equal(mine, theirs)
    with np.load(tmp_path / "p.npz") as arrays:
        assert sorted(arrays.files) == ["a/0", "a/1", "b/w"]


def test_a_problem_unpacks_into_three():
    problem = Problem(max, 2.0, 3.0, min)
    loss_fn, params, data = problem
    assert (loss_fn, params, data, problem.batch_loss_fn) == (max, 2.0, 3.0, min)
    assert Problem(max, 2.0, 3.0).batch_loss_fn is None
    assert problem._replace(params=1.0).batch_loss_fn is min
    assert copy.copy(problem).batch_loss_fn is min
