"""Every way to be refused by ``problems``: the exception, its message, and the call that gives it."""

from typing import Any

import jax
import numpy as np

from jaxsgd import problems
from tests.support.error_helpers import KEY, Case, without


def network(x: Any = ((1.0, 2.0), (3.0, 4.0)), y: Any = (0, 1), **options: Any) -> Any:
    return problems.mlp(np.asarray(x), np.asarray(y), key=KEY, **options)


CASES: list[Case] = [
    (ValueError, "hidden must be at least 1, got 0", lambda *_: network(hidden=0)),
    (ValueError, "activation must be one of sigmoid, tanh, relu, got 'gelu'", lambda *_: network(activation="gelu")),
    (TypeError, "y must be integers or real numbers, got dtype bool", lambda *_: network(y=(True, False))),
    (ValueError, "x must be finite, got nan in example 1", lambda *_: network(((1.0, 2.0), (3.0, np.nan)))),
    (ValueError, "y must be finite, got inf in example 0", lambda *_: network(y=(np.inf, 1.0))),
    (ValueError, "y must be a vector of labels, got shape (2, 1)", lambda *_: network(y=((0,), (1,)))),
    (ValueError, "y must be labels 0, 1, 2, ..., got -1", lambda *_: network(y=(0, -1))),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (3,) and dtype key<fry>",
        lambda *_: problems.digits_mlp(key=jax.random.split(KEY, 3)),
    ),
    (
        ImportError,
        "this problem's data comes with scikit-learn: pip install 'jaxsgd[experiments]'",
        lambda _, monkeypatch: without("sklearn", problems.diabetes_regression, monkeypatch),
    ),
]
