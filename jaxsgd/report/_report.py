"""A report: the findings, with their forms for a terminal, a program and a reader.

It holds no number of its own and computes none; :func:`jaxsgd.report.report` fills it.
"""

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxsgd._core import files
from jaxsgd.report import _figures, _html, _text
from jaxsgd.report._findings import Findings, batch_size_table

_ARRAYS = ("batch_sizes", "variance", "variance_with_replacement", "norms", "indices", "check", "explanation")


@dataclass(frozen=True)
class Report(Findings):
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
            "batch_size_table": batch_size_table(self),
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
