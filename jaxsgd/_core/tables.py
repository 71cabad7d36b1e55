"""Numbers and tables as text, for everything in the package that is printed."""

import math
from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[tuple[str, ...]], left: int = 3) -> str:
    """Rows in columns: the first ``left`` columns to the left, the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def si(number: int) -> str:
    """A number to three digits, with an SI prefix."""
    power = min(int(math.log10(max(number, 1)) // 3), 5)
    return f"{number / 1000**power:.3g}{' kMGTP'[power].strip()}"


def decimal(number: Any) -> str:
    """A number to three digits, with no exponent where it is easily read without."""
    if not math.isfinite(number):
        return "∞" if number > 0 else "–∞" if number < 0 else "–"
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(number)))
    return f"{number:.{max(digits, 0)}f}" if 1e-3 <= abs(number) < 1e6 else f"{number:.2e}"


def percent(share: float) -> str:
    """A share to a tenth of a percent."""
    return f"{100 * share:.1f} %"
