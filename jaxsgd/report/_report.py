"""The report: what is measured, put together and written."""

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxsgd._core import files, validate
from jaxsgd.problems import Problem
from jaxsgd.report import _figures, _html, _measure, _text
from jaxsgd.report._parameters import load_checkpoint


@dataclass(frozen=True)
class Report(_measure.Findings):
    """What was measured, with its forms for a terminal, a program and a reader; ``print`` shows the first."""

    @property
    def text(self) -> str:
        """A summary for a terminal."""
        return _text.as_text(self)

    def to_json(self) -> str:
        """All numbers, strictly JSON: infinite ones are the strings "inf" and "-inf", unknown ones null."""
        numbers = {
            **{name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _ARRAYS},
            "sample_size": self.sample_size,
            "verdicts": [asdict(verdict) for verdict in _text.verdicts(self)],
            "batch_size_table": _sizes(self),
        }
        return json.dumps(_plain(numbers), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """One page with its figures, which needs nothing else."""
        drawn = _figures.draw_all(self, ("svg",))
        return _html.as_html(self, {name: formats["svg"] for name, formats in drawn.items()})

    def files(self) -> dict[str, bytes]:
        """The content of every file that :meth:`write` writes, by name: the same bytes for the same findings."""
        drawn = _figures.draw_all(self, ("png", "pdf", "svg"))
        page = _html.as_html(self, {name: formats["svg"] for name, formats in drawn.items()})
        curves = {name: getattr(self, name) for name in ("batch_sizes", "variance", "variance_with_replacement")}
        images = {f"{name}.{end}": drawn[name][end] for name in drawn for end in ("png", "pdf")}
        return images | {
            "variance.npz": files.pack_arrays(curves | {"norms": self.norms, "indices": self.indices}),
            "report.json": self.to_json().encode(),
            "report.html": page.encode(),
        }

    def write(self, folder: Any) -> tuple[Path, ...]:
        """Write all files into a folder, each whole or not at all, the page last; return their paths."""
        contents = self.files()
        for name, content in contents.items():
            files.write_bytes(Path(folder) / name, content)
        return tuple(Path(folder) / name for name in contents)

    def __str__(self) -> str:
        return self.text


def report(
    problem: Any,
    *,
    name: str = "problem",
    key: Array | None = None,
    checkpoint: Any = None,
    batch_size: int | None = None,
    sample_size: int = 2048,
    chunk_size: int = 256,
    memory_limit: int = 2**30,
) -> Report:
    """Measure the gradients of a model on its data, at one θ.

    One pass over all data gives ḡ and tr Σ, hence the noise scale of the data set and the variance at every batch size,
    exactly; memory does not grow with the data. A uniformly random subset gives what needs the gradients of single
    examples; it is all data if they are no more than ``sample_size``, and the report says which is which.

    Args:
        problem: a :class:`jaxsgd.Problem`, or a tuple ``(loss_fn, params, data)`` or with a fourth, ``batch_loss_fn``.
            ``data`` is what :func:`jaxsgd.gradient_moments` takes: arrays, a source, or an iterable of batches.
        name: the heading.
        key: draws the subset, and goes to a ``batch_loss_fn`` with a third argument; ``jax.random.key(0)`` by default.
        checkpoint: a file of :func:`save_checkpoint`, whose parameters are taken instead of the problem's.
        batch_size: where designs are compared; the advice by default.
        sample_size: the most examples whose gradients are looked at one by one, at least 2.
        chunk_size: how many examples are differentiated at a time.
        memory_limit: how many bytes the factored gradients of the subset may take; beyond, they are computed anew.

    Raises:
        TypeError, ValueError: as :func:`jaxsgd.gradient_moments`; if the batch loss fails or is no real number; if
            there are fewer than two examples, or the checkpoint is not one of these parameters.
        FileNotFoundError: if there is no such checkpoint.

    Guarantees:
        - the same numbers and bytes for the same arguments, on the same machine.

    References:
        S. McCandlish, J. Kaplan, D. Amodei et al., "An empirical model of large-batch training", arXiv:1812.06162.

    >>> from jaxsgd import problems
    >>> found = report(problems.line_fit(), name="a line")
    >>> round(found.noise_scale, 3), found.batch_size, [row.name for row in found.designs][-1]
    (12.6, 2, 'independent draws')
    """
    loss_fn, params, data, batch_loss_fn = as_problem(problem)
    key = jax.random.key(0) if key is None else key
    validate.random_key(key=key)
    if checkpoint is not None:
        params = load_checkpoint(checkpoint, params)
    options = _measure.Options(name, key, batch_size, sample_size, chunk_size, memory_limit)
    return Report(**vars(_measure.measure(loss_fn, params, data, batch_loss_fn, options)))


def as_problem(problem: Any, what: str = "problem") -> tuple[Any, Any, Any, Any]:
    """The four parts of a problem, or of a tuple of three or four of them."""
    if isinstance(problem, Problem):
        return *problem, problem.batch_loss_fn
    if isinstance(problem, tuple) and len(problem) in (3, 4):
        return *problem, *[None] * (4 - len(problem))
    raise TypeError(f"{what} must be a Problem(loss_fn, params, data), got {validate.describe(problem)}")


_ARRAYS = ("batch_sizes", "variance", "variance_with_replacement", "norms", "indices", "check", "explanation")


def _sizes(found: Report) -> list[dict[str, Any]]:
    """The table of batch sizes as numbers."""
    sizes = [int(row[0]) for row in _text.size_rows(found)[1:]]
    variances = [found.variance_at(M) for M in sizes]
    return [
        {"batch_size": M, "variance": v, "steps": found.steps(M), "examples": found.examples(M)}
        for M, v in zip(sizes, variances, strict=True)
    ]


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value.item() if isinstance(value, np.generic) else value
