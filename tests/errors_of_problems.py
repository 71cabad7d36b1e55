"""Every way to be refused by ``problems``: the exception, its message, and the call that gives it."""

import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import problems
from tests.support.error_helpers import KEY, Case, without

LINE = problems.line_fit()


def network(x: Any = ((1.0, 2.0), (3.0, 4.0)), y: Any = (0, 1), **options: Any) -> Any:
    return problems.mlp(np.asarray(x), np.asarray(y), key=KEY, **options)


def idx(folder: Path, content: bytes, labels: bytes = b"\0\0\x08\x01\0\0\0\0") -> Any:
    """Fashion-MNIST from files that hold this."""
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(content)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return problems.fashion_mnist(folder)


CASES: list[Case] = [
    (
        FileNotFoundError,
        "there is no train-images-idx3-ubyte.gz: install Debian's package dataset-fashion",
        lambda folder, _: problems.fashion_mnist(folder / "nowhere"),
    ),
    (ValueError, "is damaged or not compressed by gzip: ", lambda folder, _: idx(folder, b"images")),
    (ValueError, "is no IDX file: it begins with b'PNG!'", lambda folder, _: idx(folder, gzip.compress(b"PNG!"))),
    (
        ValueError,
        "is damaged: 10 bytes are to hold an array of shape [2], got 9",
        lambda folder, _: idx(folder, gzip.compress(b"\0\0\x08\x01\0\0\0\x02a")),
    ),
    (
        ValueError,
        "must be of images of 28 × 28 and as many labels, got (0,), (0,)",
        lambda folder, _: idx(folder, gzip.compress(b"\0\0\x08\x01\0\0\0\0")),
    ),
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
    (
        TypeError,
        "rows must be integers, booleans or a slice, got an array of shape (1,) and dtype float64",
        lambda *_: LINE.take([1.0]),
    ),
    (TypeError, "rows must be integers, booleans or a slice, got an array of shape ()", lambda *_: LINE.take(1)),
    (ValueError, "rows must choose at least one example, got none", lambda *_: LINE.take(slice(4, None))),
    (ValueError, "rows must lie between 0 and 3, the last example, got -1", lambda *_: LINE.take([0, -1])),
    (ValueError, "rows must lie between 0 and 3, the last example, got 4", lambda *_: LINE.take(jnp.asarray([4, 0]))),
    (ValueError, "rows must have shape (4,), got (3,)", lambda *_: LINE.take([True, False, True])),
    (
        TypeError,
        "data must be a pytree of arrays, but data is 'digits.npz' of type str",
        lambda *_: LINE._replace(data="digits.npz").take([0]),
    ),
    (TypeError, "loss_fn must be a function, got 3", lambda *_: problems.mean_loss(3, *LINE[1:])),
]
