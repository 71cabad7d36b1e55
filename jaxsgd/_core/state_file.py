"""The state of a computation in one file, from which it goes on as if it had never stopped."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxsgd._core import devices, files

_SHARE = 20  # a state that takes a second to write is written every 20 seconds at most


class StateFile:
    """The file of one computation, named by its settings: that of another, or a damaged one, is refused.

    Of several processes that share the computation, the first writes it. Processes that do not are kept from writing
    the same file, by a lock on an empty file beside it.
    """

    def __init__(
        self, path: str | Path, settings: dict[str, Any], every_seconds: float = math.inf, mesh: Any = None
    ) -> None:
        self.path, self.settings, self.mesh, self.every_seconds = Path(path), settings, mesh, every_seconds
        self._written, self._cost = time.monotonic(), 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from the file."""
        if not devices.is_first(self.mesh):
            yield
            return
        with files.locked(files.beside(self.path, ".lock")) as held:
            if not held:
                raise ValueError(f"checkpoint must not be in use by another run, got {self.path}")
            yield

    def read(self) -> dict[str, np.ndarray] | None:
        """What was written, or None if nothing was."""
        try:
            return files.read_record(self.path, self.settings) if self.path.exists() else None
        except ValueError as error:
            raise ValueError(f"{error}; nothing is overwritten: to start anew, remove it") from error

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Write the state; it is whole, or what it was."""
        if devices.is_first(self.mesh):
            started = time.monotonic()
            files.write_bytes(self.path, files.pack_record(arrays, self.settings))
            self._written = time.monotonic()
            self._cost = self._written - started

    def is_due(self) -> bool:
        """Whether it is time to write again; never where processes share the computation, as their clocks differ."""
        if devices.is_shared(self.mesh):
            return False
        return time.monotonic() - self._written >= max(self.every_seconds, _SHARE * self._cost)
