"""The sentences and the tables of a report as text, and its form for a terminal.

Numbers come from ``_findings`` and are only written down here, so that the page says what the terminal says.
"""

import math
import textwrap
from dataclasses import dataclass
from typing import Any

from jaxsgd._core.tables import decimal, percent, table
from jaxsgd.report._findings import BatchSizeRow, Findings, advised, batch_size_table, trusted

_INDENTED: dict[str, Any] = {"width": 110, "initial_indent": "  ", "subsequent_indent": "  "}
_MUCH_NOISE = 1.2  # of unshuffled data relative to independent draws: worth a word


@dataclass(frozen=True)
class Verdict:
    """One thing that was found out.

    Attributes:
        title: what about.
        value: the answer, in a word or a number.
        text: what it means, in a sentence or two.
        good: whether there is nothing to be done.
    """

    title: str
    value: str
    text: str
    good: bool = True


def verdicts(findings: Findings) -> tuple[Verdict, ...]:
    """What a reader wants to know first."""
    return (
        _batch_size(findings),
        _noise_scale(findings),
        _per_example(findings),
        _batch_loss(findings),
        *_order(findings),
    )


def as_text(findings: Findings) -> str:
    """The report for a terminal."""
    lines = [
        f"{findings.name}: {findings.num_examples} examples, {findings.num_params} parameters ({findings.dtype}), "
        f"mean loss {findings.mean_loss:.4g}",
        textwrap.fill(scope(findings), 110),
        "",
    ]
    for verdict in verdicts(findings):
        lines += [
            f"{'✓' if verdict.good else '!'} {verdict.title}: {verdict.value}",
            textwrap.fill(verdict.text, **_INDENTED),
        ]
    lines += [
        "",
        table(size_rows(findings), left=1),
        "",
        table(design_rows(findings), left=1),
        "",
        table(parameter_rows(findings), left=1),
    ]
    return "\n".join(lines)


def scope(findings: Findings) -> str:
    """What was computed from which examples."""
    if not findings.is_sampled:
        return f"Everything was computed from all {findings.num_examples} examples."
    return (
        f"Mean gradient, tr Σ and the variance at every batch size were computed from all {findings.num_examples} "
        "examples; intervals, norms, shares of the parameters and designs marked * from "
        f"{findings.sample_size} of them, drawn uniformly."
    )


def size_rows(findings: Findings) -> list[tuple[str, ...]]:
    """The table of batch sizes, with its head."""
    head = ("batch size", "noise", "noise / signal", "steps", "examples")
    return [head, *(_size_row(row, findings.squared_mean_norm) for row in batch_size_table(findings))]


def _size_row(row: BatchSizeRow, signal: float) -> tuple[str, ...]:
    relative = row.variance / signal if signal > 0 else math.inf
    numbers = decimal(row.variance), decimal(relative), f"{decimal(row.steps)}×", f"{decimal(row.examples)}×"
    return (str(row.batch_size), *numbers)


def design_rows(findings: Findings) -> list[tuple[str, ...]]:
    """A table of designs; an asterisk where the effect was found on the subset."""
    rows = [
        (row.name + (" *" if row.on_subset else ""), decimal(row.effect), decimal(row.variance))
        for row in findings.designs
    ]
    return [(f"how {findings.batch_size} examples are drawn", "relative noise", "noise"), *rows]


def parameter_rows(findings: Findings) -> list[tuple[str, ...]]:
    """A table of parameters."""
    rows = [
        (p.name, str(p.shape), p.rule, percent(p.of_trace), percent(p.of_mean), f"{p.error:.0e}")
        for p in findings.parameters
    ]
    return [("parameter", "shape", "rule", "of noise", "of signal", "error"), *rows]


def _batch_size(findings: Findings) -> Verdict:
    M = advised(trusted(findings.noise_scale, findings.pooled), findings.num_examples)
    if not 0 < findings.noise_scale < math.inf:
        why = "all gradients are equal" if findings.noise_scale == 0 else "the mean gradient is zero"
        return Verdict("Batch size", str(M), f"There is no trade-off at this point: {why}.")
    text = (
        f"The largest power of two up to where noise equals signal takes {_cost(findings, M)}; "
        f"{_next(findings, M)}. "
        "In measurements that was right for SGD to a factor of 2, but up to 9 times too large late in a run, and with "
        "Adam mostly 2 to 9 times too small: jaxsgd.batch_size.measure_critical measures it from a checkpoint."
    )
    return Verdict("Batch size", str(M), text)


def _cost(findings: Findings, M: int) -> str:
    steps, examples = decimal(findings.steps(M)), decimal(findings.examples(M))
    return f"{steps} times the fewest steps and {examples} times the fewest examples"


def _next(findings: Findings, M: int) -> str:
    """What one size up or down would change."""
    other = 2 * M if findings.num_examples >= 2 * M else max(M // 2, 1)
    return f"at {other} it would be {decimal(findings.steps(other))} and {decimal(findings.examples(other))} times"


def _noise_scale(findings: Findings) -> Verdict:
    text = (
        f"tr Σ/‖ḡ‖² = {decimal(findings.trace_covariance)}/{decimal(findings.squared_mean_norm)}, exact for these data."
    )
    low, high = findings.population_interval
    if math.isnan(low):
        return Verdict("Noise scale", decimal(findings.noise_scale), text)
    level = f"{100 * findings.confidence_level:g} % confidence, from {findings.sample_size} examples"
    if math.isinf(high):
        found = f"at least {decimal(low)} ({level}): the mean gradient cannot be told from zero"
    else:
        found = f"{decimal(findings.population_noise_scale)}, between {decimal(low)} and {decimal(high)} ({level})"
    text += f" In what the data were drawn from: {found}." + _over_checkpoints(findings)
    return Verdict("Noise scale", decimal(findings.noise_scale), text, good=math.isfinite(high))


def _over_checkpoints(findings: Findings) -> str:
    """What the noise scale is over several checkpoints."""
    if findings.pooled is None:
        return ""
    value, low, high = map(decimal, (findings.pooled.value, *findings.pooled.interval))
    return f" Over {findings.pooled.num_checkpoints} checkpoints: {value}, between {low} and {high}."


def _per_example(findings: Findings) -> Verdict:
    check = findings.check
    factored = sum(p.rule != "none" for p in check.parameters)
    text = (
        f"Every statistic {'equals' if check.passed else 'DIFFERS FROM'} the loop over {check.num_examples} examples "
        f"to {check.largest_error:.1e}; rounding allows {check.tolerance:.1e}. "
        f"{factored} of {len(check.parameters)} parameters are kept in factored form."
    )
    return Verdict("Per-example gradients", "exact" if check.passed else "wrong", text, good=check.passed)


def _batch_loss(findings: Findings) -> Verdict:
    found = findings.batch_loss
    if found is None:
        return Verdict("Batch loss", "not given", "Give the problem a batch_loss_fn to have its form told.")
    if found.additivity is None:
        return Verdict("Batch loss", "not told", _sentence(found.note), good=False)
    text = f"{_sentence(found.additivity.bias)} {found.additivity.advice}"
    if not found.agrees:
        text += (
            f" But its gradient is {decimal(100 * (found.gradient_difference or 0))} % away from that of loss_fn, "
            "which everything else here is about: give every example's loss the same terms."
        )
    good = found.additivity.unbiased and found.agrees
    return Verdict("Batch loss", found.additivity.kind.replace("_", " "), text, good=good)


def _order(findings: Findings) -> list[Verdict]:
    """Whether neighbors in the stored order are alike."""
    for row in findings.designs:
        if row.design == "CircularBlocks" and row.effect > _MUCH_NOISE:
            text = (
                f"Batches of {findings.batch_size} consecutive examples have {decimal(row.effect)} times the noise of "
                "independent draws: neighbors are alike. Shuffle the data."
            )
            return [Verdict("Stored order", "shuffle", text, good=False)]
    return []


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
