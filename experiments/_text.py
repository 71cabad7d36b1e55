"""Real text that comes with Python itself: the topics of its ``help()``, some 700 kB of English with code.

It is the documentation's text, whose wording changes a little from one release of Python to the next.
"""

import importlib

import numpy as np


def windows(length: int, *, stride: int | None = None) -> np.ndarray:
    """Pieces of the text as bytes below 128, and the byte after each, shape (pieces, length + 1).

    Args:
        length: of a piece.
        stride: from the beginning of one to that of the next; by default they do not overlap.
    """
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    text = "\n".join(topics[name] for name in sorted(topics))
    symbols = np.frombuffer(text.encode("ascii", "replace"), np.uint8)
    begins = np.arange(0, len(symbols) - length, stride or length)
    return symbols[begins[:, None] + np.arange(length + 1)]
