"""What a negative control of an experiment is made of."""

from collections.abc import Callable
from typing import Any

import numpy as np

Control = tuple[str, Callable[[np.ndarray], np.ndarray], str]


def changed(at: Any, change: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of some entries only."""

    def apply(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[at] = change(values[at])
        return values

    return apply
