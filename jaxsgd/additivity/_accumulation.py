"""Does a step that splits its batch apply the gradient of the whole batch? And if not, what does it apply?

Microbatches that are accumulated, and devices that average, apply some combination Σ c_j g_j of the gradients of parts
of the batch. Which one is found by comparing the step's gradient with a short list of combinations that people have
applied by mistake, times any factor; factors are told by their value: the number of microbatches, of examples, of
tokens. What the parts should weigh is known too, from the whole batch's gradient: it is Σ α_j g_j with α_j the share of
part j in the normalizer, whatever that is, if the loss is a mean, a sum or a ratio, and no such sum if it is coupled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd._core import devices, validate
from jaxsgd.additivity import _explanations
from jaxsgd.additivity._explanations import Candidate
from jaxsgd.additivity._microbatches import Operations, Parts, Split, count_examples, example_axes, flat, splits, traced
from jaxsgd.batch_losses import BatchLoss

_COARSE = 0.25  # rounding errors above this share of the gradient would hide what is looked for


@dataclass(frozen=True)
class Accumulation:
    """What :func:`check_accumulation` found; ``print`` it for a sentence.

    Attributes:
        error: ‖s − g‖/‖g‖ for the gradient s of the step and g of the whole batch.
        rounding: how large rounding may make it.
        found: what s is a multiple of: "whole batch", "mean of microbatches", ..., or "unknown".
        factor: the multiple.
        sizes: how many examples are in each of the microbatches that explain s.
        weights: what s gives the gradient of each, c with s = Σ c_j g_j; None where that is not known.
        whole_weights: what the whole batch gives them, α with g = Σ α_j g_j; None where there are no such weights, or
            no more parameters than microbatches, to which any weights would fit.
        sentence: what to know, and what to do.
    """

    error: float
    rounding: float
    found: str
    factor: float
    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    whole_weights: tuple[float, ...] | None
    sentence: str

    @property
    def passed(self) -> bool:
        """Whether the step applies the gradient of the whole batch, up to rounding."""
        return self.error <= self.rounding

    def __str__(self) -> str:
        return self.sentence


def check_accumulation(
    step_gradients: Callable[[PyTree, PyTree], PyTree],
    batch_loss_fn: Callable[..., Any],
    params: PyTree,
    batch: PyTree,
    *,
    num_microbatches: int,
    in_axes: Any = 0,
) -> Accumulation:
    """Say whether a step that accumulates, or is data-parallel, applies the gradient of the loss of the whole batch.

    Args:
        step_gradients: your own ``step_gradients(params, batch)``, the gradient that is applied: it splits the batch.
        batch_loss_fn: what the step is meant to differentiate, ``batch_loss_fn(params, batch) -> scalar`` or
            ``(scalar, aux)``, for batches of any size.
        params: pytree of floating-point arrays, any point away from special ones.
        batch: pytree of arrays; examples that differ in length or weight show more. Randomness is told only from keys
            in it, one for each example.
        num_microbatches: how many microbatches, or devices, the step makes of the batch.
        in_axes: the axis of the examples, as ``jax.vmap`` takes it for ``batch``: None for leaves, Python numbers among
            them, that all examples share.

    Returns:
        :class:`Accumulation`: by how much the two differ, how much of that may be rounding, and what explains it.

    Raises:
        TypeError, ValueError: if the arguments are no functions or arrays, if the step's gradient is not like params,
            if a gradient is not finite, all of it is rounding, or it differs from call to call.

    >>> import jax, jax.numpy as jnp
    >>> def token_mean(theta, batch):
    ...     return jnp.mean((theta[None] - batch["x"]) ** 2, where=batch["mask"])
    >>> def step(theta, batch):  # the mean over microbatches of means over tokens
    ...     parts = jax.tree.map(lambda leaf: leaf.reshape(2, 2, -1), batch)
    ...     return jax.vmap(jax.grad(token_mean), (None, 0))(theta, parts).mean(axis=0)
    >>> x, mask = jnp.arange(12.0).reshape(4, 3) ** 2, jnp.arange(3)[None] < jnp.asarray([3, 3, 1, 1])[:, None]
    >>> found = check_accumulation(step, token_mean, jnp.ones(3), {"x": x, "mask": mask}, num_microbatches=2)
    >>> found.passed, found.found, [round(share, 2) for share in found.whole_weights]
    (False, 'mean of microbatches', [0.75, 0.25])
    """
    validate.floating_leaves(params=params)
    validate.at_least(2, num_microbatches=num_microbatches)
    if not callable(step_gradients):
        raise TypeError(f"step_gradients must be a function, got {validate.describe(step_gradients)}")
    axes = example_axes(in_axes, batch)
    count = count_examples(batch, axes)
    validate.at_most(count, "the number of examples", num_microbatches=num_microbatches)
    own_params, own_batch = jax.tree.map(devices.in_one_place, (params, batch))
    loss = BatchLoss.of(batch_loss_fn, own_params, own_batch, count=count)
    parts = Parts(loss, own_params, own_batch, axes, count)
    _finite(batch_loss_fn=parts.whole)

    step = _Step(step_gradients, params, batch)
    applied = step.gradient()
    _finite(step_gradients=applied)
    trial = _Trial(parts, applied, splits(count, num_microbatches), step.operations())
    norm = np.linalg.norm(parts.whole)
    if not trial.rounding() <= _COARSE * norm:
        raise ValueError(
            f"rounding errors may be {trial.rounding():.2g} of the gradient of batch_loss_fn, whose norm is "
            f"{norm:.2g}, and must be at most {_COARSE:g} of it: use params and batch of a finer dtype, or other values"
        )
    result = trial.result()
    if result.found == "unknown":
        difference = np.linalg.norm(step.gradient() - applied)
        if not difference <= trial.rounding():
            raise ValueError(
                "step_gradients must give the same gradient for the same arguments, got two that differ by "
                f"{difference:.2g}; bind the key of its randomness, or turn dropout off"
            )
    return result


def _finite(**named: np.ndarray) -> None:
    for name, gradient in named.items():
        if not np.isfinite(gradient).all():
            raise ValueError(f"the gradient of {name} must be finite, got {gradient[~np.isfinite(gradient)][0]}")


@dataclass(frozen=True)
class _Step:
    """The step to be checked, called as its owner calls it."""

    function: Callable[[PyTree, PyTree], PyTree]
    params: PyTree
    batch: PyTree

    def gradient(self) -> np.ndarray:
        """The gradient that is applied; of copies of the arguments, which a step may donate."""
        params, batch = jax.tree.map(
            lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, (self.params, self.batch)
        )
        with jax.default_matmul_precision("highest"):
            gradient = self.function(params, batch)
        shapes = [leaf.shape for leaf in jax.tree.leaves(self.params)]
        validate.like_params(
            jax.tree.structure(self.params), shapes, **{"what step_gradients(params, batch) returns": gradient}
        )
        return flat(gradient)

    def operations(self) -> Operations:
        """What it computes, as far as that can be seen."""
        return traced(self.function, self.params, self.batch)


class _Trial:
    """The gradient of a step against everything it may be."""

    def __init__(self, parts: Parts, applied: np.ndarray, ways: list[Split], operations: Operations) -> None:
        self.parts, self.applied, self.ways, self._operations = parts, applied, ways, operations
        self.gradients = [np.stack([parts.gradient(rows) for rows in way.parts]) for way in ways]
        errors = parts.rounding(operations, len(ways[0].parts))
        self._of_part = max(map(errors, ways[0].parts, self.gradients[0]))
        self._of_whole = max(errors(np.arange(parts.count), parts.whole), self._of_part / len(ways[0].parts) ** 0.5)

    def rounding(self, weights: np.ndarray | None = None) -> float:
        """By how much rounding errors let two programs differ for Σ c_j g_j, or for the whole batch."""
        return float(2**0.5 * (self._of_whole if weights is None else np.linalg.norm(weights) * self._of_part))

    def result(self) -> Accumulation:
        """What explains the step's gradient."""
        whole, norm = self.parts.whole, float(np.linalg.norm(self.parts.whole))
        error, rounding = float(np.linalg.norm(self.applied - whole)) / norm, self.rounding() / norm
        best, factor = Candidate("whole batch", whole, 0), 1.0
        if error > rounding:
            best, factor = self._nearest() or self._combined() or (Candidate("unknown", self.applied, 0), 1.0)
        shares, split = self._shares(best.way), self.ways[best.way]
        what = next((each for each in self._factors(best) if each.value == factor), None)
        if error > rounding:
            sentence = _explanations.sentence(best, split, factor, what, shares, error)
        else:
            sentence = _explanations.equal(error, rounding, self.parts.coarser_than_params(self._operations))
        return Accumulation(
            error=error,
            rounding=rounding,
            found=best.found,
            factor=factor,
            sizes=split.sizes,
            weights=None if best.weights is None else tuple((factor * best.weights).tolist()),
            whole_weights=None if shares is None else tuple(shares.tolist()),
            sentence=sentence,
        )

    def _nearest(self) -> tuple[Candidate, float] | None:
        """Of the candidates that rounding lets the step's gradient be, the nearest."""
        matches: list[tuple[float, Candidate, float]] = []
        for candidate in _explanations.candidates(self.parts, self.ways, self.gradients):
            factor = self._factor(candidate)
            distance = float(np.linalg.norm(self.applied - factor * candidate.vector))
            allowed = abs(factor) * self.rounding(candidate.weights)
            if distance <= allowed and not any(self._is_multiple(candidate, other) for _, other, _ in matches):
                matches.append((distance, candidate, factor))
        return min(matches, key=lambda match: match[0])[1:] if matches else None

    def _is_multiple(self, candidate: Candidate, other: Candidate) -> bool:
        """Whether rounding lets it be another one, simpler since it came first."""
        factor = float(candidate.vector @ other.vector) / max(float(other.vector @ other.vector), _TINY)
        distance = np.linalg.norm(candidate.vector - factor * other.vector)
        return bool(distance <= self.rounding(candidate.weights))

    def _factor(self, candidate: Candidate) -> float:
        """The multiple of the candidate that the step's gradient is, if any is told by its value; otherwise 1."""
        square = float(candidate.vector @ candidate.vector)
        if not candidate.is_scaled or square == 0:
            return 1.0
        factor = float(self.applied @ candidate.vector) / square
        tolerance = self.rounding(candidate.weights) / square**0.5
        for each in self._factors(candidate):  # the simplest first
            if abs(factor / each.value - 1) <= tolerance:
                return each.value
        return factor if candidate.weights is None and len(candidate.vector) > 1 else 1.0

    def _factors(self, candidate: Candidate) -> list[_explanations.Factor]:
        return _explanations.factors(self.parts, self.ways[candidate.way], self._shares(candidate.way))

    def _combined(self) -> tuple[Candidate, float] | None:
        """Some other combination of the gradients of microbatches."""
        for i, gradients in enumerate(self.gradients):
            weights = self._combination(self.applied, gradients)
            if weights is not None:
                return Candidate("combination of microbatches", self.applied, i, weights), 1.0
        return None

    def _shares(self, way: int) -> np.ndarray | None:
        """What the whole batch's gradient gives those of the microbatches; None if it is no sum of theirs."""
        return self._combination(self.parts.whole, self.gradients[way])

    def _combination(self, vector: np.ndarray, gradients: np.ndarray) -> np.ndarray | None:
        """c with vector = Σ c_j g_j; None if there is none or, as for k gradients of k numbers, always one."""
        if len(vector) <= len(gradients) or not np.isfinite(gradients).all():
            return None
        weights, _, rank, _ = np.linalg.lstsq(gradients.T, vector)
        distance = np.linalg.norm(vector - weights @ gradients)
        within = distance <= max(self.rounding(), self.rounding(weights))
        return weights if within and rank == len(gradients) else None


_TINY = 1e-300
