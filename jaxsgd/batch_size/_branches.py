"""The critical batch size by branches of equal examples: how large a batch may be before the loss is higher.

From one state, branches with k times the batch size, and a learning rate that is larger as the optimizer's scaling has
it, are trained on the same number of examples each. Below the critical batch size they end at the same loss; the
largest batch that does within a tolerance is the local critical batch size.

Reference: W. Merrill, S. Arora, D. Groeneveld, H. Hajishirzi, "Critical batch size revisited: a simple empirical
approach to large-batch language model training", arXiv:2505.23971, 2025.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float, PyTree

from jaxsgd import designs, kernels, training
from jaxsgd._core import validate
from jaxsgd._core.tables import decimal, table

_POWERS = {"linear": 1.0, "square root": 0.5}


@dataclass(frozen=True)
class BranchedBatchSize:
    """Losses after equally many examples, and the largest batch without harm; ``print`` it for a table.

    Attributes:
        value: the largest batch size up to which the mean loss is within the tolerance of the smallest one's.
        low: the same, where that can be told with confidence; at least the smallest batch size.
        high: the smallest one that is told to be beyond; infinite where none is.
        batch_sizes: of the branches, increasing.
        learning_rates: of the branches.
        losses: mean losses at the end of every branch and run, shape (branches, runs).
        tolerance: by how much the loss may be higher.
        confidence_level: of the interval.
    """

    value: int
    low: int
    high: float
    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    losses: Float[np.ndarray, "b r"]
    tolerance: float
    confidence_level: float

    def __str__(self) -> str:
        rows = [("batch size", "learning rate", "loss", "±")]
        errors = self.losses.std(axis=1, ddof=1) / math.sqrt(self.losses.shape[1])
        for size, rate, loss, error in zip(
            self.batch_sizes, self.learning_rates, self.losses.mean(axis=1), errors, strict=True
        ):
            rows.append((str(size), decimal(rate), f"{loss:.4g}", f"{error:.1g}"))
        level = f"{100 * self.confidence_level:g} %"
        said = f"within {self.tolerance:g} up to a batch size of {self.value}, known up to {self.low}"
        return f"{table(rows, left=0)}\n{said}, not from {decimal(self.high)} on ({level})"


def branched_critical(
    loss_fn: kernels.Loss,
    params: PyTree,
    data: PyTree,
    optimizer: Any,
    key: Array,
    *,
    batch_size: int,
    learning_rate: float,
    num_examples: int,
    tolerance: float,
    multiples: Sequence[int] = (2, 4, 8, 16, 32),
    scaling: Literal["linear", "square root"] = "linear",
    opt_state: PyTree = None,
    num_runs: int = 8,
    eval_data: PyTree = None,
    confidence_level: float = 0.95,
) -> BranchedBatchSize:
    """The largest batch whose loss after equally many examples is that of small ones, within a tolerance.

    Cheaper than :func:`measure_critical`, by as much as one learning rate is cheaper than several, and right only as
    far as the scaling of the learning rate is (W. Merrill et al., arXiv:2505.23971, 2025).

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: θ where the branches begin, such as a checkpoint's.
        data: a pytree of arrays with N examples along the first axis of each, drawn with replacement.
        optimizer: a function that makes an Optax transformation from a learning rate.
        key: a JAX random key.
        batch_size: M of the first branch, well below the critical one.
        learning_rate: of the first branch.
        num_examples: that every branch is trained on, a multiple of all batches; of the largest, two at least.
        tolerance: by how much the mean loss may be higher, in units of the loss.
        multiples: k of the other branches, with batches of kM, increasing.
        scaling: the learning rate is k or √k times the first: of SGD, or of Adam and others that normalize.
        opt_state: of the optimizer at ``params``; by default a fresh one.
        num_runs: of every branch, at least two.
        eval_data: the examples of the mean loss; by default ``data``.
        confidence_level: of the interval.

    Raises:
        TypeError, ValueError: for arguments out of range, and where the first branch diverges.
    """
    validate.positive_integer(batch_size=batch_size, num_examples=num_examples)
    validate.positive(learning_rate=learning_rate, tolerance=tolerance)
    validate.one_of(tuple(_POWERS), scaling=scaling)
    validate.at_least(2, num_runs=num_runs)
    validate.fraction(confidence_level=confidence_level)
    k = np.asarray([1, *multiples])
    if k.dtype.kind != "i" or len(k) < 2 or not (np.diff(k) > 0).all():
        raise ValueError(f"multiples must be increasing integers from 2 on, got {multiples!r}")
    validate.at_least(int(2 * batch_size * k[-1]), num_examples=num_examples)
    sizes, rates = (batch_size * k).tolist(), (learning_rate * k ** _POWERS[scaling]).tolist()
    whole = math.lcm(*sizes)
    if num_examples % whole:
        raise ValueError(f"num_examples must be a multiple of all batch sizes, of {whole}, got {num_examples}")
    losses = np.empty((len(k), num_runs))
    for place, (size, rate) in enumerate(zip(sizes, rates, strict=True)):
        result = training.run_sgd(
            loss_fn,
            params,
            data,
            optimizer,
            designs.WithReplacement(size),
            num_examples // size,
            jax.random.fold_in(key, size),
            learning_rates=[rate],
            num_runs=num_runs,
            opt_state=opt_state,
            eval_data=eval_data,
            gradient="plain",
        )
        losses[place] = np.nan_to_num(np.asarray(result.metrics["loss"])[0, :, -1], nan=np.inf)
        if not np.isfinite(losses[0]).all():
            raise ValueError(f"learning_rate must be lower: with {rate:g} the branch of {size} examples diverged")
    value, low, high = _largest(sizes, losses, tolerance, confidence_level)
    return BranchedBatchSize(value, low, high, tuple(sizes), tuple(rates), losses, tolerance, confidence_level)


def _largest(
    sizes: list[int], losses: Float[np.ndarray, "b r"], tolerance: float, confidence_level: float
) -> tuple[int, int, float]:
    """The last batch size before a higher loss; the last that is surely no higher; the first that surely is."""
    num_runs = losses.shape[1]
    with np.errstate(invalid="ignore"):
        excess = losses.mean(axis=1) - losses[0].mean() - tolerance
        parts = losses.var(axis=1, ddof=1) / num_runs
        error = np.sqrt(parts + parts[0])
        # Welch's degrees of freedom
        freedom = (parts + parts[0]) ** 2 / (parts**2 + parts[0] ** 2) * (num_runs - 1)
        margin = scipy.special.stdtrit(np.nan_to_num(freedom, nan=1.0), (1 + confidence_level) / 2) * error
    margin = np.nan_to_num(margin)
    value, low, high = (_first(excess + shift > 0) for shift in (np.zeros(len(sizes)), margin, -margin))
    return sizes[value - 1], sizes[low - 1], float(sizes[high]) if high < len(sizes) else math.inf


def _first(beyond: Bool[np.ndarray, " b"]) -> int:
    """The first branch beyond, other than the smallest, or how many there are."""
    return next((place for place in range(1, len(beyond)) if beyond[place]), len(beyond))
