"""Every way to be refused by ``tracking``: the exception, its message, and the call that gives it."""

from functools import partial
from pathlib import Path
from typing import Any

from jaxsgd import tracking
from tests.support.error_helpers import Case, without, written


def damaged_line(content: bytes, folder: Path, _: Any) -> Any:
    return list(tracking.read_json_lines(written(folder / "run.jsonl", content + b"\n")))


CASES: list[Case] = [
    (
        ImportError,
        "TensorBoardWriter needs tensorboardX: pip install 'jaxsgd[tracking]'",
        lambda folder, monkeypatch: without("tensorboardX", lambda: tracking.TensorBoardWriter(folder), monkeypatch),
    ),
    *(
        (ValueError, "run.jsonl is damaged in line 1: ", partial(damaged_line, content))
        for content in (
            b'{"step": 1.5}',
            b'{"step": true}',
            b'{"step": 1, "loss": true}',
            b'{"step": 1, "loss": "1_0"}',
        )
    ),
    (
        ValueError,
        "run.jsonl is damaged in line 2: b'{'",
        lambda folder, _: list(tracking.read_json_lines(written(folder / "run.jsonl", b'{"step": 1}\n{\n'))),
    ),
    (FileNotFoundError, "none.jsonl", lambda folder, _: list(tracking.read_json_lines(folder / "none.jsonl"))),
]
