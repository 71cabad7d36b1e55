"""Every way to be refused by ``_core``: the exception, its message, and the call that gives it."""

import importlib
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import noise
from jaxsgd._core import files, libraries, preconditioners
from tests.support.error_helpers import ONE, Case, written


def stored(folder: Path, write: Callable[[Path], Any]) -> Any:
    write(folder / "a.npz")
    return files.read_arrays(folder / "a.npz")


def write_pickle(path: Path) -> None:
    np.savez(path, a=np.array([{}], dtype=object))


def write_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(2))


def damaged(folder: Path) -> Any:
    (folder / "a.npz").write_bytes(files.pack_record({"a": np.ones(3)}, {})[:-1])
    return files.read_record(folder / "a.npz")


def of_another_run(folder: Path) -> Any:
    (folder / "a.npz").write_bytes(files.pack_record({"a": np.ones(3)}, {"num_steps": 3}))
    return files.read_record(folder / "a.npz", {"num_steps": 4})


def one_hidden(folder: Path, _: Any) -> Any:
    """The directory at the end says that the comment of its first entry, which has none, is as long as the second."""
    content = bytearray(files.pack_arrays({"a": np.ones(1), "b": np.ones(1)}))
    first, second = (at.start() for at in re.finditer(b"PK\1\2", content))
    content[first + 32] = content.find(b"PK\5\6") - second
    return files.read_arrays(written(folder / "a.npz", bytes(content)))


def no_array_inside(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "not an array")
    return files.read_arrays(folder / "a.npz")


def twice_in_one(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive, warnings.catch_warnings(action="ignore"):
        for value in (1.0, 2.0):
            with archive.open("w.npy", "w") as member:
                np.save(member, np.asarray(value))
    return files.read_arrays(folder / "a.npz")


def hidden_library(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "optax.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "optax")
    importlib.reload(libraries)


def state_of(optimizer: Any, params: Any = None, *, steps: int = 1) -> Any:
    """The state of an optimizer after some steps along the same gradient."""
    params = {"w": jnp.ones(2)} if params is None else params
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in integers
        for _ in range(steps):
            _, state = optimizer.update(params, state, params)
    return state


CASES: list[Case] = [
    (
        ValueError,
        "metric must be positive and finite, got 0.0 at (1,) in metric['w']",
        lambda *_: preconditioners.weights({"w": jnp.asarray([1.0, 0.0])}),
    ),
    (
        ValueError,
        "metric must be positive and finite, got nan at () in metric",
        lambda *_: preconditioners.weights(float("nan")),
    ),
    (
        ValueError,
        "metric must not be a state of Lion, whose signs depend on variances that it does not hold: pass "
        "metric=noise.sign_metric(g.variance(ddof=1))",
        lambda *_: preconditioners.weights(state_of(optax.lion(0.1))),
    ),
    (
        ValueError,
        "metric must be the state of one of Adam, AMSGrad, RMSProp and Adagrad, which divide coordinates, got a state "
        "with 0 of them",
        lambda *_: preconditioners.weights(state_of(optax.sgd(0.1))),
    ),
    (
        ValueError,
        "state must be the state of one of Adam, … got a state with 2 of them",
        lambda *_: noise.optimizer_metric(state_of(optax.chain(optax.scale_by_rms(), optax.scale_by_rss()))),
    ),
    (
        ValueError,
        "state must be the state of one of Adam, … got a state of ScaleByBeliefState",
        lambda *_: noise.optimizer_metric(state_of(optax.adabelief(0.1))),
    ),
    (
        ValueError,
        "metric must be the state of an optimizer of all parameters, got one with some masked",
        lambda *_: preconditioners.weights(
            state_of(optax.masked(optax.adam(0.1), {"a": True, "b": False}), {"a": ONE, "b": ONE})
        ),
    ),
    (
        ValueError,
        "metric must be the state of an optimizer after a step: all second moments are 0",
        lambda *_: preconditioners.weights(state_of(optax.adam(0.1), steps=0)),
    ),
    (
        ImportError,
        "optax.py in … must not hide the libraries of these names, which are needed: rename the files, or run `jaxsgd`",
        partial(hidden_library, "from optax import adam"),
    ),
    (ImportError, "optax.py in … must not hide the libraries", partial(hidden_library, "adam = None")),
    (OSError, "File name too long: … aaa", lambda folder, _: files.write_bytes(folder / ("a" * 300), b"")),
    (
        ValueError,
        "names of arrays must be such as archives can hold, got 'a\\x00b'",
        lambda *_: files.pack_arrays({"a\0b": np.ones(1)}),
    ),
    (
        ValueError,
        "a.npz is not a readable .npz file: it has 2 members, of which only 1 have a name of their own",
        lambda folder, _: twice_in_one(folder),
    ),
    (ValueError, "a.npz is damaged: its … bytes do not have the checksum", lambda folder, _: damaged(folder)),
    (
        ValueError,
        "a.npz is of another run: num_steps is 3 there, and 4 here",
        lambda folder, _: of_another_run(folder),
    ),
    (FileNotFoundError, "there is no file", lambda folder, _: files.read_record(folder / "none.npz")),
    (ValueError, "its member notes.txt is not an array", lambda folder, _: no_array_inside(folder)),
    (ValueError, "a.npz is not a readable .npz file: it has 1 members, and says that it has 2", one_hidden),
    (FileNotFoundError, "there is no file … nowhere.npz", lambda folder, _: files.read_arrays(folder / "nowhere.npz")),
    (ValueError, "a.npz is not a readable .npz file: Object arrays", lambda folder, _: stored(folder, write_pickle)),
    (ValueError, "a.npz is not a readable .npz file: it holds one array", lambda f, _: stored(f, write_one_array)),
]
