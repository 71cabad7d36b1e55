"""Real text that comes with Python itself: the topics of its ``help()``, some 64,000 words of English and of code.

What is kept of it is what is kept of Wikipedia in text8 (M. Mahoney, 2006): small letters, and a space between words.
The wording of the documentation changes a little from one release of Python to the next.
"""

import importlib
import re

import numpy as np

NUM_SYMBOLS = 27  # a space and the letters


def windows(length: int) -> np.ndarray:
    """Pieces of the text and the symbol after each, 0 for a space, 1 to 26 for a to z, shape (pieces, length + 1)."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    text = " ".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(" ".join(re.findall("[a-z]+", text.lower())).encode(), np.uint8)
    symbols = np.where(codes == ord(" "), 0, codes - (ord("a") - 1))
    begins = np.arange(0, len(symbols) - length, length)
    return symbols[begins[:, None] + np.arange(length + 1)]
