"""Every way to be refused by ``training``: the exception, its message, and the call that gives it."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import designs, problems, training
from jaxsgd._core import devices, files
from tests.support.error_helpers import KEY, ONE, Case, trained
from tests.support.registry import linear_loss


def trained_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of several processes that do not read the same checkpoint."""
    monkeypatch.setattr(devices, "agree", lambda mesh, number: False)
    return trained(checkpoint=path / "run.npz")


class Unhashable(designs.WithReplacement):
    """A design that no compilation can be kept for."""

    __hash__ = None  # type: ignore[assignment]


def in_use(folder: Path) -> Any:
    with files.locked(folder / ".busy.npz.lock"):
        return trained(checkpoint=folder / "busy.npz")


def damaged_checkpoint(folder: Path) -> Any:
    (folder / "run.npz").write_bytes(b"PK")
    return trained(checkpoint=folder / "run.npz")


CASES: list[Case] = [
    (
        ValueError,
        "eval_data must have the structure of data, PyTreeDef({'x': *, 'y': *}), got PyTreeDef([*])",
        lambda *_: trained(eval_data=[jnp.ones(3)]),
    ),
    (
        ValueError,
        "the loss of all eval_data must be finite at the start, got nan, and that of example 1 is not",
        lambda *_: trained(eval_data=jax.tree.map(lambda x: x.at[1].set(jnp.nan), problems.line_fit().data)),
    ),
    (ValueError, "checkpoint must be in a folder that all processes of the run share, got … run.npz", trained_apart),
    (ValueError, "num_steps must be at least 1, got 0", lambda *_: trained(num_steps=0)),
    (
        ValueError,
        "checkpoint_every_seconds must be positive, got 0",
        lambda *_: trained(checkpoint_every_seconds=0),
    ),
    (ValueError, "record_every must be at least 1, got 0", lambda *_: trained(record_every=0)),
    (TypeError, "key must be a key such as jax.random.key(0), got 0", lambda *_: trained(key=0)),
    (TypeError, "design must have a method weights(key, population_size), got 3", lambda *_: trained(3)),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: trained(designs.WithoutReplacement(5)),
    ),
    (ValueError, "gradient must be one of factored, plain, got 'exact'", lambda *_: trained(gradient="exact")),
    (TypeError, "optimizer must be an Optax transformation, or a function that", lambda *_: trained(optimizer=0.1)),
    (
        ValueError,
        "optimizer must be an Optax transformation, such as optax.sgd(0.1); a function … needs learning_rates",
        lambda *_: trained(optimizer=optax.sgd),
    ),
    (
        TypeError,
        "optimizer must make an Optax transformation from a learning rate, got ",
        lambda *_: trained(optimizer=lambda rate: rate, learning_rates=[0.1]),
    ),
    (
        ValueError,
        "optimizer must be a function of the learning rate, or have the hyperparameter learning_rate in its state",
        lambda *_: trained(learning_rates=[0.1]),
    ),
    (
        ValueError,
        "learning_rates must be a non-empty vector of finite numbers, got 0.1",
        lambda *_: trained(optimizer=optax.sgd, learning_rates=0.1),
    ),
    (TypeError, "design must be hashable, as frozen dataclasses", lambda *_: trained(Unhashable(2))),
    (
        ValueError,
        "eval_fn must name its metrics by strings other than those of the run, got 'loss'",
        lambda *_: trained(eval_fn=lambda p: {"loss": p["m"]}),
    ),
    (
        ValueError,
        "eval_fn must return one number or a dict of numbers, got … for eval",
        lambda *_: trained(eval_fn=lambda p: jnp.ones(2)),
    ),
    (
        ValueError,
        "the loss of all data must be finite at the start, got nan, and that of example 1 is not",
        lambda *_: training.run_sgd(
            *(linear_loss, ONE, jnp.asarray([1.0, np.nan]), optax.sgd(0.1), designs.WithReplacement(1), 2, KEY)
        ),
    ),
    (TypeError, "num_steps must be an integer, got 3.0", lambda *_: trained(num_steps=3.0)),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (2,) and dtype uint32",
        lambda *_: trained(key=jax.random.PRNGKey(0)),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got 'a' of type str", lambda *_: trained(key="a")),
    (ValueError, "checkpoint must not be in use by another run, got … busy.npz", lambda folder, _: in_use(folder)),
    (
        ValueError,
        "run.npz is damaged: its 2 bytes … nothing is overwritten: to start anew, remove it",
        lambda folder, _: damaged_checkpoint(folder),
    ),
    (
        TypeError,
        "keep_params_at must be a non-empty sequence of step numbers, got []",
        lambda *_: trained(keep_params_at=[]),
    ),
    (TypeError, "a non-empty sequence of step numbers, got [0.5]", lambda *_: trained(keep_params_at=[0.5])),
    (
        TypeError,
        "keep_params_at must be a non-empty sequence of step numbers, got 2",
        lambda *_: trained(keep_params_at=2),
    ),
    (
        ValueError,
        "keep_params_at must increase, from 0 at least to num_steps = 2 at most, got (0, 3)",
        lambda *_: trained(keep_params_at=[0, 3]),
    ),
    (ValueError, "keep_params_at must increase, from 0 … got (-1, 1)", lambda *_: trained(keep_params_at=[-1, 1])),
    (ValueError, "keep_params_at must increase, from 0 … got (1, 1)", lambda *_: trained(keep_params_at=[1, 1])),
    (
        ValueError,
        "opt_state must be one of this optimizer, PyTreeDef … got PyTreeDef",
        lambda *_: trained(opt_state=optax.adam(0.1).init(problems.line_fit().params)),
    ),
    (
        ValueError,
        "opt_state must be one of these parameters: () at [0].mu['b'], got (3,)",
        lambda *_: trained(
            optimizer=optax.adam(0.1), opt_state=optax.adam(0.1).init({"m": jnp.ones(()), "b": jnp.ones(3)})
        ),
    ),
    (
        ValueError,
        "eval_data must have equally many examples in every array, but",
        lambda *_: trained(eval_data={"x": jnp.ones(2), "y": jnp.ones(3)}),
    ),
]
