"""Where the metrics of a run are written: a Protocol of three methods, and writers for files and TensorBoard.

The signature is that of ``clu.metric_writers``, so those are writers too.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

__all__ = ["JSONLinesWriter", "MetricWriter", "NullWriter", "TensorBoardWriter", "read_json_lines"]


@runtime_checkable
class MetricWriter(Protocol):
    """Takes numbers with names, at steps."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write the numbers of one step."""

    def flush(self) -> None:
        """Make sure that what was written is stored."""

    def close(self) -> None:
        """Flush, and write no more."""


class _Closing:
    """Writers are context managers, which close them."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Flush, and write no more."""


class NullWriter(_Closing):
    """Writes nothing."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Do nothing."""


class JSONLinesWriter(_Closing):
    """Appends one line for each step to a file, ``{"step": 100, "loss": 0.25}``.

    A line is handed to the operating system in one piece, so a process that is killed leaves whole lines, and processes
    that write to one file do not mix theirs. A piece of a line that a full disk or a power failure left behind is
    removed when the file is opened again, while no other process is writing. What is not finite is written as
    ``"nan"``, ``"inf"`` or ``"-inf"``, since JSON has no such numbers.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> with JSONLinesWriter(path) as writer:
    ...     writer.write_scalars(0, {"loss": 2.5})
    ...     writer.write_scalars(100, {"loss": math.inf})
    >>> path.read_text().splitlines()
    ['{"step": 0, "loss": 2.5}', '{"step": 100, "loss": "inf"}']
    >>> list(read_json_lines(path))
    [(0, {'loss': 2.5}), (100, {'loss': inf})]
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        with _locked(self._file):  # what another process writes meanwhile would look like a piece of a line
            whole = _length_of_whole_lines(path)
            if whole < path.stat().st_size:
                os.ftruncate(self._file, whole)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Append one line."""
        line = {"step": int(step)} | {name: _plain(value) for name, value in scalars.items()}
        rest = (json.dumps(line, allow_nan=False) + "\n").encode()
        with _locked(self._file):
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def flush(self) -> None:
        """Have the disk store what was written."""
        os.fsync(self._file)

    def close(self) -> None:
        """Flush, and write no more."""
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The steps and numbers that :class:`JSONLinesWriter` wrote, but for a last line that is not whole.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, if it is damaged.
    """
    *lines, _ = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            scalars = json.loads(line)
            step = scalars.pop("step")
            if type(step) is not int:  # a truth value is an integer, too
                raise ValueError("no step")
            scalars = {name: _number(value) for name, value in scalars.items()}
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is damaged in line {number}: {line[:80]!r}") from error
        yield step, scalars


class TensorBoardWriter(_Closing):
    """Writes event files for TensorBoard, with the package tensorboardX.

    Raises:
        ImportError: if tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError("TensorBoardWriter needs tensorboardX: pip install 'jaxsgd[tracking]'") from error
        self._writer: Any = tensorboardX.SummaryWriter(str(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write one event for each number."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), int(step))

    def flush(self) -> None:
        """Have the events written."""
        self._writer.flush()

    def close(self) -> None:
        """Flush, and write no more."""
        self._writer.close()


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Wait until no other writer is at work on the file; where the system has no such locks, do not."""
    try:
        import fcntl  # not on every system

        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _plain(value: Any) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _number(value: Any) -> float:
    """What :func:`_plain` wrote; neither other words nor truth values."""
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("inf", "-inf", "nan")):
        raise ValueError("no number")
    return float(value)


def _length_of_whole_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
