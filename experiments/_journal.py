"""Which experiments a round over all of them has finished, so that after an interruption only the others are run."""

import hashlib
import json
from pathlib import Path

from experiments import _files


class Journal:
    """The finished experiments of one unfinished round, in a file beside their figures.

    An experiment counts as finished while its files are those it was entered with and the round has the same flags.
    The file is there during a round only: the next one begins anew.
    """

    def __init__(self, folder: Path, flags: list[str]) -> None:
        self.folder, self.path, self.flags = folder, folder / ".unfinished.json", flags
        self.done: dict[str, str] = {}
        if self.path.exists():
            try:
                stored = json.loads(self.path.read_text(encoding="utf-8"))
                self.done = dict(stored["done"]) if stored["flags"] == flags else {}
            except (ValueError, TypeError, KeyError, RecursionError):  # damaged: begin anew
                self.done = {}

    def __contains__(self, stem: str) -> bool:
        return self.done.get(stem) == self._digest(stem)

    def enter(self, stem: str) -> None:
        """Note that the files of an experiment are there."""
        self.done[stem] = self._digest(stem)
        _files.write(self.path, json.dumps({"flags": self.flags, "done": self.done}).encode())

    def close(self) -> None:
        """The round is complete."""
        self.path.unlink(missing_ok=True)

    def _digest(self, stem: str) -> str:
        digest = hashlib.sha256()
        for suffix in _files.SUFFIXES:
            path = self.folder / f"{stem}{suffix}"
            digest.update(path.read_bytes() if path.exists() else suffix.encode())
        return digest.hexdigest()
