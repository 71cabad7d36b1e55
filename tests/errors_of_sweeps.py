"""Every way to be refused by ``sweeps``: the exception, its message, and the call that gives it."""

from typing import Any

import numpy as np

from jaxsgd import sweeps
from tests.support.error_helpers import KEY, Case, without


def swept(grid: Any, run: Any = lambda key, **_: {"value": 1.0}, folder: Any = "unused") -> Any:
    return sweeps.sweep(run, grid, folder, KEY)


CASES: list[Case] = [
    (ValueError, "grid must map at least one name to its values, got {}", lambda *_: swept({})),
    (ValueError, "grid must not have the name 'key'", lambda *_: swept({"key": [1]})),
    (ValueError, "grid must have a non-empty list of values for a, got []", lambda *_: swept({"a": []})),
    (TypeError, "grid must hold numbers, strings and booleans, got None for a", lambda *_: swept({"a": [None]})),
    (ValueError, "grid must hold different values, got [1, 1] for a", lambda *_: swept({"a": [1, 1]})),
    (
        TypeError,
        "run must return a RunResult or a non-empty dict of arrays, got 3",
        lambda folder, _: swept({"a": [1]}, lambda key, a: 3, folder / "3"),
    ),
    (
        ValueError,
        "run must name the 1 dimensions of value, got ('x', 'y')",
        lambda folder, _: swept({"a": [1]}, lambda key, a: {"value": (("x", "y"), [1.0])}, folder / "xy"),
    ),
    (
        ValueError,
        "run must return arrays of one shape in all cells, got value of shapes",
        lambda folder, _: swept({"a": [1, 2]}, lambda key, a: {"value": np.ones(a)}, folder / "shapes"),
    ),
    (
        ValueError,
        "run must not return dimensions with names of the grid, got a",
        lambda folder, _: swept({"a": [1]}, lambda key, a: {"value": (("a",), [1.0])}, folder / "names"),
    ),
    (
        ValueError,
        "run must return the same coordinates x in all cells",
        lambda folder, _: swept({"a": [1, 2]}, lambda key, a: {"x": (("x",), [a])}, folder / "coordinates"),
    ),
    (
        ImportError,
        "sweep needs xarray: pip install 'jaxsgd[experiments]'",
        lambda _, monkeypatch: without("xarray", lambda: swept({"a": [1]}), monkeypatch),
    ),
]
