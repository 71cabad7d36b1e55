"""Three ways to average floats, the rounding errors they really make, and the bounds on two of them."""

import math
from collections.abc import Iterable
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

WAYS = ("one by one", "pairwise", "XLA's mean")


def errors(rows: np.ndarray, sizes: Iterable[int]) -> np.ndarray:
    """The largest error over the rows of every way to average their first N numbers, shape (ways, sizes)."""
    running, found = np.add.accumulate(rows, axis=1), []
    for N in sizes:
        first = rows[:, :N]
        means = np.array([running[:, N - 1] / rows.dtype.type(N), pairwise(first), jnp.asarray(first).mean(axis=1)])
        found.append(np.max([errors_of(row, means[:, k]) for k, row in enumerate(first)], axis=0))
    return np.transpose(found)


def pairwise(rows: np.ndarray) -> np.ndarray:
    """The mean of every row, summed in pairs, pairs of pairs and so on."""
    count, width = rows.shape[1], 1 << max(rows.shape[1] - 1, 0).bit_length()
    rows = np.pad(rows, ((0, 0), (0, width - count)))
    while rows.shape[1] > 1:
        rows = rows[:, ::2] + rows[:, 1::2]
    return rows[:, 0] / rows.dtype.type(count)


def errors_of(values: np.ndarray, means: np.ndarray) -> np.ndarray:
    """|mean − exact mean| / mean |value|, the sums of the numbers as stored being exact."""
    total, scale = Fraction(math.fsum(values.tolist())), Fraction(math.fsum(np.abs(values).tolist()))
    return np.array([float(abs(Fraction(float(mean)) * len(values) - total) / scale) for mean in means])


def bounds(N: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """γ_k = ku/(1 − ku) for k roundings of an addend: N one by one, ⌈log₂ N⌉ + 1 in pairs, the division included."""
    deep = np.ceil(np.log2(N)) + 1
    return {"one by one": N * u / (1 - N * u), "pairwise": deep * u / (1 - deep * u)}
