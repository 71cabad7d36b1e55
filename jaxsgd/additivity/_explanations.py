"""What a step may have applied in place of the gradient of the whole batch, and how to say so.

The combinations of the gradients of microbatches that people have applied by mistake, the factors that they have left
in or out, and a sentence about each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core.tables import decimal
from jaxsgd.additivity._microbatches import Parts, Split


@dataclass(frozen=True)
class Candidate:
    """What a step may have applied.

    Attributes:
        found: its name.
        vector: the gradient.
        way: which of the ways of splitting makes the microbatches.
        weights: c, where it is Σ c_j g_j; None where it is a gradient of the loss itself.
    """

    found: str
    vector: np.ndarray
    way: int
    weights: np.ndarray | None = None

    @property
    def is_scaled(self) -> bool:
        """Whether a factor is looked for."""
        return self.found in ("whole batch", "mean of microbatches", "mean of microbatches by size")


class Factor(NamedTuple):
    """A factor that people have left in or out."""

    value: float
    what: str
    remedy: str


def candidates(parts: Parts, ways: Sequence[Split], gradients: Sequence[np.ndarray]) -> Iterator[Candidate]:
    """Everything that is looked for, the simplest first."""
    yield Candidate("whole batch", parts.whole, 0)
    for i, way in enumerate(ways):
        if sum(way.sizes) < parts.count:
            yield Candidate("without the remainder", parts.gradient(np.concatenate(way.parts)), i)
    for i, (way, of_way) in enumerate(zip(ways, gradients, strict=True)):
        for found, weights in _combinations(way).items():
            yield Candidate(found, weights @ of_way, i, weights)
        for found, some in {"all but the last": way.parts[:-1], "all but the first": way.parts[1:]}.items():
            yield Candidate(found, parts.gradient(np.concatenate(some)), i)


def _combinations(way: Split) -> dict[str, np.ndarray]:
    """Weights of the gradients of k microbatches."""
    k, sizes = len(way.parts), np.asarray(way.sizes, float)
    unit, ones = np.eye(k), np.ones(k)
    return {
        "mean of microbatches": ones / k,
        "mean of microbatches by size": sizes / sizes.sum(),
        "last microbatch": unit[-1],
        "first microbatch": unit[0],
        "last microbatch, over their number": unit[-1] / k,
        "first microbatch, over their number": unit[0] / k,
        "mean of all but the last": (ones - unit[-1]) / (k - 1),
        "mean of all but the first": (ones - unit[0]) / (k - 1),
        "sum of all but the last, over their number": (ones - unit[-1]) / k,
        "sum of all but the first, over their number": (ones - unit[0]) / k,
        "running average": 0.5 ** np.concatenate([[k - 1.0], np.arange(k - 1.0, 0, -1)]),
    }


def factors(parts: Parts, way: Split, shares: np.ndarray | None) -> list[Factor]:
    """The factors that are told by their value; ``shares`` are those of the microbatches in the normalizer."""
    k, n = float(len(way.parts)), float(parts.count)
    size = n / k
    once = "do not divide by it a second time"
    like_loss = "divide by it, as batch_loss_fn does"
    known = [
        Factor(1.0, "", ""),
        Factor(k, "the number of microbatches", "divide the sum over microbatches, or devices, by it"),
        Factor(1 / k, "1 over the number of microbatches", f"{once}, nor at all where gradients of sums are added"),
        Factor(n, "the number of examples", like_loss),
        Factor(1 / n, "1 over the number of examples", once),
        Factor(size, "the number of examples in a microbatch", like_loss),
        Factor(1 / size, "1 over the number of examples in a microbatch", once),
    ]
    for which, share in [] if shares is None else [("first", shares[0]), ("last", shares[-1])]:
        what = f"the normalizer of the whole batch over that of the {which} microbatch"
        known.append(
            Factor(1 / share, what, "divide all microbatches by the normalizer (tokens, weights) of the whole")
        )
    counts = _counts(parts)
    for what, count in counts.items():
        divide = f"divide by {what}, as batch_loss_fn does"
        known += [
            Factor(count, what, divide),
            Factor(
                count / k, f"{what} over the number of microbatches", f"{divide}, not by the number of microbatches"
            ),
            Factor(1 / count, f"1 over {what}", once),
            Factor(k / count, f"the number of microbatches over {what}", "divide neither twice nor by both"),
        ]
        known += [Factor(count / c, f"{what} over {of}", divide) for of, c in counts.items() if c != count]
    return known


def _counts(parts: Parts) -> dict[str, float]:
    """Numbers that a normalizer may be: of tokens, of those that a mask or a label keeps, of all entries."""
    counts: dict[str, float] = {}
    leaves = jax.tree_util.tree_leaves_with_path(parts.batch)
    for (path, leaf), axis in zip(leaves, parts.axes, strict=True):
        if axis is not None and (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool):
            name, values = f"batch{jax.tree_util.keystr(path)}", np.asarray(leaf, np.float64)
            if jnp.issubdtype(leaf.dtype, jnp.integer) and (values < 0).any():
                counts[f"the number of entries of {name} that are not negative"] = float((values >= 0).sum())
            elif jnp.issubdtype(leaf.dtype, jnp.integer):
                counts[f"the number of entries of {name} that are not 0"] = float((values != 0).sum())
            elif (values >= 0).all():
                counts[f"the sum of {name}"] = float(values.sum())
            counts[f"the number of entries of {name}"] = float(values.size)
    return {what: count for what, count in counts.items() if count > 1}


# What is said.

_SMALL = 1e-3  # of a gradient: mistakes with batches of equal examples may be as small


def equal(error: float, rounding: float, coarse: str | None) -> str:
    """A sentence about a step that is right; ``coarse`` is a dtype in it that is coarser than params."""
    finer = "params and batch of a finer dtype" if coarse is None else f"a step and a loss without {coarse} inside"
    finer = f"; {finer} would show smaller mistakes" if rounding > _SMALL else ""
    return (
        f"The step applies the gradient of the whole batch: the two differ by {error:.1e} of its norm, and rounding "
        f"may make {rounding:.1e}{finer}."
    )


def sentence(
    best: Candidate, way: Split, factor: float, known: Factor | None, shares: np.ndarray | None, error: float
) -> str:
    """A sentence about a step that is not, on which a person can act."""
    off = f"off by {decimal(error)} of the norm of the whole batch's gradient"
    if best.found == "unknown":
        what = f"no combination of those of {len(way.parts)} microbatches"
        if len(best.vector) <= len(way.parts):
            what = f"none of the usual mistakes; params of more than {len(way.parts)} numbers would tell more"
        return (
            f"The step's gradient is {off}, and {what}: see that it takes the same loss at the same params, and sums "
            "in no coarser dtype."
        )
    if best.found == "whole batch":
        if known is None:
            return (
                f"The step applies {factor:.6g} times the gradient of the whole batch, and {factor:.6g} is no number "
                "of microbatches, examples or entries: look for clipping, a loss scale or a learning rate in it."
            )
        return (
            f"The step applies {factor:.6g} times the gradient of the whole batch, and {factor:.6g} is {known.what}: "
            f"{known.remedy}."
        )
    return f"The step applies {_what(best, way, factor, known)}, {off}: {_remedy(best, way, shares)}."


def _what(best: Candidate, way: Split, factor: float, known: Factor | None) -> str:
    k, same = len(way.parts), len(set(way.sizes)) == 1
    sizes = f"{way.sizes[0]} examples each" if same else f"{_listed(way.sizes)} examples"
    of = f"of {k} microbatches{way.how} ({sizes})"
    words = {
        "mean of microbatches": f"the plain mean of the gradients {of}",
        "mean of microbatches by size": f"the mean of the gradients {of}, weighted by their sizes",
        "last microbatch": f"the gradient of the last {of}",
        "first microbatch": f"the gradient of the first {of}",
        "last microbatch, over their number": f"1/{k} of the gradient of the last {of}",
        "first microbatch, over their number": f"1/{k} of the gradient of the first {of}",
        "all but the last": f"the gradient of all but the last {of}",
        "all but the first": f"the gradient of all but the first {of}",
        "running average": f"a running average of the gradients {of}, in which the last weighs 1/2",
        "without the remainder": f"the gradient of {sum(way.sizes)} examples: {of}",
        "combination of microbatches": f"the gradients {of} with the weights {_listed(best.weights)}",
    }
    said = words.get(best.found, f"the {best.found} {of}")
    if factor == 1 or known is None:
        return said
    if best.found == "mean of microbatches" and factor == k:
        return said.replace("plain mean", "plain sum")
    return f"{factor:.6g} times {said}, where {factor:.6g} is {known.what}"


def _remedy(best: Candidate, way: Split, shares: np.ndarray | None) -> str:
    if best.found in _REMEDIES:
        return _REMEDIES[best.found]
    if "first" in best.found or "last" in best.found:
        return "see where the loop over microbatches begins and ends, and add up all gradients"
    divide_once = (
        "add the sums and their normalizers (tokens, weights, examples) over all microbatches and devices, and divide "
        "once"
    )
    if shares is None and len(best.vector) <= len(way.parts):
        return divide_once
    if shares is None:
        return (
            "the whole batch's gradient is no weighted sum of theirs, as for losses that couple examples; "
            "check_additivity(batch_loss_fn, params, batch) says which"
        )
    weights = np.abs(best.weights) if best.weights is not None else np.ones(1)
    missing = [str(j + 1) for j in np.flatnonzero(weights < _SMALL * weights.max())]
    if missing:
        return f"microbatches {', '.join(missing)} do not enter: see that the loop takes every one once"
    return (
        f"the whole batch gives them the weights {_listed(shares)}; {divide_once}, and clip or scale the sum, not each "
        "of them"
    )


_REMEDIES = {
    "last microbatch": "add the gradients up, which are overwritten",
    "last microbatch, over their number": "add the gradients up, which are overwritten",
    "running average": "add the gradients up, and divide once at the end",
    "without the remainder": "give the last examples to a microbatch too, weighted by its share",
}


def _listed(numbers: Any) -> str:
    if numbers is None:
        return ""
    shown = [str(number) if isinstance(number, int) else decimal(number) for number in numbers[:8]]
    return ", ".join(shown) + (", …" if len(numbers) > 8 else "")
