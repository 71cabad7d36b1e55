"""Every way to be refused by ``report``: the exception, its message, and the call that gives it."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsgd import problems, report
from tests.support.error_helpers import ONE, Case


def checkpoint(path: Path, arrays: dict[str, Any]) -> Any:
    np.savez(path / "a.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return report.load_checkpoint(path / "a.npz", {"hidden": ONE})


CASES: list[Case] = [
    (
        ValueError,
        "params must have a name of its own for every leaf, and 'a/b' is that of two",
        lambda path, _: report.save_checkpoint(path / "p.npz", {"a/b": ONE, "a": {"b": ONE}}),
    ),
    (ValueError, "path must end in .npz, got best.zip", lambda *_: report.save_checkpoint("best.zip", ONE)),
    (
        ValueError,
        "checkpoint … a.npz has an array 'hiden', which params lack; did you mean hidden?",
        lambda path, _: checkpoint(path, {"hiden": ONE}),
    ),
    (ValueError, "checkpoint … a.npz lacks 'hidden' of params", lambda path, _: checkpoint(path, {})),
    (
        ValueError,
        "checkpoint … a.npz must have the shape () for 'hidden', got (2,)",
        lambda path, _: checkpoint(path, {"hidden": jnp.ones(2)}),
    ),
    (
        ValueError,
        "checkpoint … a.npz must have the dtype float64 for 'hidden', got float32",
        lambda path, _: checkpoint(path, {"hidden": jnp.ones((), jnp.float32)}),
    ),
    (
        FileNotFoundError,
        "there is no file … no.npz",
        lambda path, _: report.load_checkpoint(path / "no.npz", ONE),
    ),
    (
        TypeError,
        "problem must be a Problem(loss_fn, params, data), got 3 of type int",
        lambda *_: report.report(3),
    ),
    (
        ValueError,
        "batches of data must hold examples of shapes [()], got [(2,)]",
        lambda *_: report.report((lambda p, x: p * x.sum(), ONE, iter([jnp.ones(2), jnp.ones((2, 2))]))),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: report.report(problems.line_fit(), key=0),
    ),
]
