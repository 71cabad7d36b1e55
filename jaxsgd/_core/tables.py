"""Numbers and tables as text."""

import math


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns: the first three to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def si(number: int) -> str:
    """A number to three digits, with an SI prefix."""
    power = min(int(math.log10(max(number, 1)) // 3), 5)
    return f"{number / 1000**power:.3g}{' kMGTP'[power].strip()}"
