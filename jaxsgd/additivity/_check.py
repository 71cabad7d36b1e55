"""The diagnosis: what form a loss of a batch has, from its values on subsets of the batch.

The subsets and the rounding errors are those of ``_subset_losses``, the distances from the forms those of
``_set_functions``. Here the forms are put in order, the first that holds is the answer, and it is said in words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsgd._core import validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.additivity import _set_functions
from jaxsgd.additivity._set_functions import Family, Fit
from jaxsgd.additivity._subset_losses import Trial, example_rows, relative_size
from jaxsgd.batch_losses import BatchLoss

_COARSE = 0.05  # rounding errors above this share of the loss leave no hypothesis to reject

_ADVICE = {
    "mean": "Nothing to do: average microbatch gradients of equal size; minibatch gradients are unbiased.",
    "sum": "Add microbatch gradients, do not average them; times N/M, the gradient of a minibatch of M out of N "
    "examples is unbiased. An offset, such as a weight penalty, enters once: not once per microbatch, nor times N/M.",
    "weighted_sum": "Treat it as a sum of the weighted losses with a divisor that does not depend on the batch, such "
    "as the total weight of the data set: then microbatch gradients add up, and minibatch gradients are unbiased.",
    "ratio": "Return numerator and normalizer apart: add both over all microbatches and devices, and divide once at "
    "the end; or divide by a constant, such as the mean normalizer of the data set times the number of examples.",
    "pairwise": "Divide the sum over pairs by their number M(M−1)/2, without the pairs of an example with itself: "
    "that is unbiased for M ≥ 2; microbatches leave out the pairs across them, so use one large batch.",
    "coupled": "Do not accumulate or average gradients of parts of a batch: fix the batch size as part of the loss, "
    "take statistics over all devices and microbatches, or find a form that adds (an auxiliary variable, a running "
    "average).",
}

_BIAS = {
    "mean": "the gradient of a uniform minibatch is unbiased at every size",
    "sum": "unbiased for M/N times the gradient of the sum (a known factor), but for an offset, which is not scaled",
    "weighted_sum": "unbiased, at a fixed batch size, up to a factor that is the same for all batches",
    "ratio": "biased, by O(1/M): the normalizer varies with the batch",
    "pairwise": "",
    "coupled": "biased in general: a minibatch estimates another function than the full batch",
}

_PAIR_BIAS = {
    "m(m-1)": "unbiased for M ≥ 2: every pair is equally likely to be in the batch",
    "m^2": "biased, by O(1/M): the pairs of an example with itself weigh 1/M, in the full batch 1/N",
    "1": "unbiased only after scaling pairs by N(N−1)/(M(M−1)) and single examples by N/M",
    "counted pairs": "biased: the number of pairs that count varies with the batch, and may be zero (with two classes "
    "of which all cross pairs count, unbiased among the batches that hold both)",
}


@dataclass(frozen=True)
class Discrepancy:
    """How far the batch loss is from one hypothesis, relative to the root mean square over the subsets.

    Attributes:
        hypothesis: the form.
        loss: distance of the loss.
        gradient: distance of the gradient, all parameters together.
        by_parameter: the part of ``gradient`` that each parameter has, by path; the squares add up.
        holds: whether both are within rounding errors.
    """

    hypothesis: str
    loss: float
    gradient: float
    by_parameter: dict[str, float]
    holds: bool


@dataclass(frozen=True)
class Additivity:
    """What :func:`check_additivity` found; ``print`` it for a report.

    Attributes:
        kind: "mean", "sum", "weighted_sum", "ratio", "pairwise" or "coupled".
        unbiased: whether the gradient of a uniform minibatch of one fixed size is unbiased for the gradient of the
            full batch times a known constant.
        discrepancies: by hypothesis: "mean", "sum", "sum with offset", "size factor" (c(|S|) Σ a_i), "ratio",
            "ratio in θ" (a normalizer that depends on the parameters), and "pairs / m(m-1)", "pairs / m^2",
            "pairs / 1", "pairs / counted pairs".
        loss_rounding: what rounding errors may make of the discrepancies of the loss.
        gradient_rounding: what rounding errors may make of the discrepancies of the gradient.
        microbatch_errors: for 2, 4 and 8 microbatches, ‖average of their gradients − gradient‖ / ‖gradient‖.
        offset_loss: R, for a sum with an offset; 0 otherwise.
        offset_gradient: ‖∇R‖, for a sum with an offset; 0 otherwise.
        weights: path of the leaf of ``batch`` in which every example's part is proportional, if there is one.
        normalizer: for "pairwise", "m(m-1)", "m^2", "1" or "counted pairs"; for "ratio", "constant in θ" or "in θ".
        order_matters: whether the loss changes when the same examples are reordered.
        notes: what was left out, and why.
    """

    kind: str
    unbiased: bool
    discrepancies: dict[str, Discrepancy]
    loss_rounding: float
    gradient_rounding: float
    microbatch_errors: dict[int, float]
    offset_loss: float = 0.0
    offset_gradient: float = 0.0
    weights: str | None = None
    normalizer: str | None = None
    order_matters: bool = False
    notes: tuple[str, ...] = ()

    @property
    def bias(self) -> str:
        """Whether minibatch gradients are biased, in one sentence."""
        return _PAIR_BIAS[self.normalizer or ""] if self.kind == "pairwise" else _BIAS[self.kind]

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        return _ADVICE[self.kind]

    def __str__(self) -> str:
        rows = [
            f"  {name:<24}{each.loss:>9.1e}{each.gradient:>10.1e}  {'holds' if each.holds else ''}".rstrip()
            for name, each in self.discrepancies.items()
        ]
        errors = ", ".join(f"{error:.2g} for {parts}" for parts, error in self.microbatch_errors.items())
        details = [f"normalizer: {self.normalizer}"] if self.normalizer else []
        details += [f"weights: {self.weights}"] if self.weights else []
        if self.offset_loss or self.offset_gradient:
            details.append(f"offset: loss {self.offset_loss:.4g}, norm of its gradient {self.offset_gradient:.4g}")
        return "\n".join(
            [
                f"kind: {self.kind}",
                *details,
                f"minibatch gradients: {self.bias}",
                f"relative error of averaging the gradients of microbatches: {errors}",
                f"what to do: {self.advice}",
                "distance from             loss  gradient",
                *rows,
                f"  {'(rounding errors)':<24}{self.loss_rounding:>9.1e}{self.gradient_rounding:>10.1e}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


@on_any_mesh
def check_additivity(
    batch_loss_fn: Callable[..., Any], params: PyTree, batch: PyTree, *, key: Array | None = None
) -> Additivity:
    """Say whether a loss of a batch is a mean or a sum of per-example losses, a ratio, a sum over pairs, or none.

    The loss and its gradient are evaluated on subsets of the batch, and compared with every form of the table in
    ``help(jaxsgd.additivity)``. A form holds if its distance is no more than rounding errors may be; the first that
    holds is the answer. Sizes at which the loss fails or is not finite are left out, with a note.

    Args:
        batch_loss_fn: ``batch_loss_fn(params, batch) -> scalar`` or ``(scalar, aux)``, for batches of several sizes;
            ``batch_loss_fn(params, batch, key)`` if ``key`` is given.
        params: pytree of floating-point arrays, where the loss is evaluated: any point away from special ones.
        batch: pytree of arrays with at least four examples along the first axis of each.
        key: for a loss with randomness. A loss that draws one number per row depends on the order of the batch and
            is "coupled": put one key per example into the batch instead.

    Raises:
        TypeError: if the arguments are no function, arrays or key, or the loss is not a real number.
        ValueError: if the batch has fewer than four examples, or equal ones only, or the loss fails on it, is not
            finite, differs between two evaluations, or is computed too coarsely to tell.

    >>> import jax, jax.numpy as jnp
    >>> batch = {"x": jnp.arange(1.0, 9.0), "tokens": jnp.asarray([1.0, 3, 8, 2, 5, 1, 4, 2])}
    >>> def token_mean(theta, batch):
    ...     return jnp.sum(batch["tokens"] * (theta - batch["x"]) ** 2) / jnp.sum(batch["tokens"])
    >>> result = check_additivity(token_mean, jnp.asarray(1.0), batch)
    >>> result.kind, result.unbiased, {k: round(error, 3) for k, error in result.microbatch_errors.items()}
    ('ratio', False, {2: 0.039, 4: 0.007, 8: 0.034})
    >>> check_additivity(lambda theta, x: jnp.mean((theta - x) ** 2), jnp.asarray(1.0), batch["x"]).kind
    'mean'
    """
    validate.floating_leaves(params=params)
    validate.at_least(4, **{"the number of examples in batch": validate.leading_axis(batch=batch)})
    if key is not None:
        validate.random_key(key=key)
    loss = BatchLoss.of(batch_loss_fn, params, batch, key)
    rows = example_rows(batch)
    if np.all(rows == rows[:1]):
        raise ValueError(f"batch must hold different examples, got {len(rows)} equal ones, where all forms agree")
    params, batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), (params, batch))
    trial = Trial(loss, params, batch, key)
    _check_values(trial)
    return _diagnose(trial)


def _check_values(trial: Trial) -> None:
    """Raise unless the loss is finite, is the same when evaluated twice, and is fine enough to tell its form."""
    if not trial.families:
        reasons = "; ".join(trial.notes)
        raise ValueError(f"batch_loss_fn must be finite on some subsets of the batch, got none: {reasons}")
    first, second = trial.repeated()
    if not abs(first - second) <= trial.unit * max(abs(first), abs(second)):
        raise ValueError(
            f"batch_loss_fn must give the same loss for the same arguments, got {first} and then {second}; "
            "its randomness must come from a key"
        )
    if trial.notes:  # some subsets are left out
        _check_finite_on_batch(trial)
    for name, value in zip(("loss", "gradient"), trial.rounding, strict=True):
        if not value <= _COARSE:
            raise ValueError(
                f"rounding errors may be {value:.1g} of the {name} of batch_loss_fn, and must be at most {_COARSE:g} "
                "to tell its form: use params of a finer dtype, or other values of them"
            )


def _check_finite_on_batch(trial: Trial) -> None:
    """Raise, naming what in the batch is not finite, unless its loss has a finite value and gradient."""
    found = jax.jit(jax.value_and_grad(trial.loss))(trial.params, trial.batch, trial.key)
    if all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found)):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(trial.batch):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
            example = int(np.argwhere(~np.isfinite(np.asarray(leaf)))[0][0])
            where = f"batch{jax.tree_util.keystr(path)} itself is not, in example {example}"
            raise ValueError(f"batch_loss_fn must be finite, with a finite gradient, on the whole batch, and {where}")
    raise ValueError(f"batch_loss_fn must be finite, with a finite gradient, on the whole batch, got {found[0]}")


_FORMS: dict[str, Callable[[Family], Fit]] = {
    "mean": _set_functions.mean,
    "sum": _set_functions.total,
    "sum with offset": partial(_set_functions.total, offset=True),
    "size factor": _set_functions.size_factor,
    "ratio": _set_functions.ratio,
    "ratio in θ": _set_functions.ratio_in_params,
    "pairs / m(m-1)": partial(_set_functions.pairs, normalizer="m(m-1)"),
    "pairs / m^2": partial(_set_functions.pairs, normalizer="m^2"),
    "pairs / 1": partial(_set_functions.pairs, normalizer="1"),
    "pairs / counted pairs": _set_functions.pair_ratio,
}

_KINDS = {"sum with offset": "sum", "size factor": "weighted_sum", "ratio in θ": "ratio"}


def _diagnose(trial: Trial) -> Additivity:
    discrepancies = {name: _discrepancy(name, trial) for name in _FORMS}
    order_matters = trial.order_matters()
    form = "coupled" if order_matters else next((name for name, each in discrepancies.items() if each.holds), "coupled")
    _, _, normalizer = form.partition(" / ")
    kind = "pairwise" if normalizer else _KINDS.get(form, form)
    offset = _offset(trial) if form == "sum with offset" else (0.0, np.zeros(trial.families[0].gradient.shape[1]))
    weights = trial.weight_leaf(offset) if kind in ("mean", "sum") else None
    kind = "weighted_sum" if kind == "sum" and weights else kind
    if kind == "ratio":
        normalizer = "in θ" if form == "ratio in θ" else "constant in θ"
    additive = kind in ("mean", "sum", "weighted_sum") and not np.any(offset[1])
    return Additivity(
        kind=kind,
        unbiased=additive or normalizer == "m(m-1)",
        discrepancies=discrepancies,
        loss_rounding=trial.rounding[0],
        gradient_rounding=trial.rounding[1],
        microbatch_errors=trial.microbatch_errors(),
        offset_loss=float(offset[0]),
        offset_gradient=float(np.linalg.norm(offset[1])),
        weights=weights,
        normalizer=normalizer or None,
        order_matters=order_matters,
        notes=tuple(_notes(trial, kind, order_matters, discrepancies)),
    )


def _discrepancy(name: str, trial: Trial) -> Discrepancy:
    """The largest distance over the families of subsets."""
    fits = [_FORMS[name](family) for family in trial.families]
    sizes = [relative_size((fit.loss, fit.gradient), family) for fit, family in zip(fits, trial.families, strict=True)]
    loss, gradient = (float(max(size[k] for size in sizes)) for k in range(2))
    worst = max(range(len(sizes)), key=lambda i: sizes[i][1])
    by_parameter = {
        path: relative_size((fits[worst].loss, fits[worst].gradient[:, columns]), trial.families[worst])[1]
        for path, columns in trial.parameters().items()
    }
    within = loss <= trial.rounding[0] and gradient <= trial.rounding[1]
    return Discrepancy(name, loss, gradient, by_parameter, within and any(fit.testable for fit in fits))


def _offset(trial: Trial) -> tuple[float, np.ndarray]:
    """R, and ∇R, or 0 for what rounding errors alone may be."""
    family = trial.families[0]
    loss, gradient = _set_functions.offset(family)
    scales = family.scales()
    small = np.linalg.norm(gradient) <= trial.rounding[1] * scales[1]
    return (
        0.0 if abs(loss) <= trial.rounding[0] * scales[0] else loss,
        np.zeros_like(gradient) if small else gradient,
    )


def _notes(trial: Trial, kind: str, order_matters: bool, discrepancies: dict[str, Discrepancy]) -> list[str]:
    notes = trial.notes
    if order_matters:
        notes.append(
            "the order of the examples matters: weights, noise or partners go by the row of the batch; for noise, put "
            "one key per example into the batch"
        )
    alone = [name for name, each in discrepancies.items() if each.gradient <= trial.rounding[1]]
    if kind == "coupled" and alone and not order_matters:
        notes.append(f"the gradient alone has the form: {alone[0]}")
    return notes
