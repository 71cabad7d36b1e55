"""What an experiment finds, entered as it is confirmed: where a claim fails, nothing is written."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np

MAX_Z = 4.5  # standard errors


class UnconfirmedError(AssertionError):
    """An experiment did not find what it claims."""


class MissingDataError(Exception):
    """An experiment needs data that are not installed; the message says which, and where they come from."""


def require(confirmed: bool | np.bool_, message: str) -> None:
    """Raise :class:`UnconfirmedError` unless ``confirmed``."""
    if not confirmed:
        raise UnconfirmedError(message)


def z_scores(samples: np.ndarray, expected: Any = 0.0, axis: int = 0) -> np.ndarray:
    """The mean of independent samples along an axis less what is expected, in standard errors."""
    error = samples.std(axis=axis, ddof=1) / np.sqrt(samples.shape[axis])
    return np.asarray((samples.mean(axis=axis) - expected) / error)


class Claims(dict[str, Any]):
    """The findings of an experiment by name; its methods confirm a claim and, given ``enter``, enter the number.

    A message is what the claim says, formatted with the number found: "growth must be tenfold, got {:.2f}". What is not
    a number is never confirmed.
    """

    @classmethod
    def of(cls, results: Any, *parts: Callable[[Self, Any], None]) -> Self:
        """What several functions of (claims, results) confirm, one after the other."""
        claims = cls()
        for part in parts:
            part(claims, results)
        return claims

    def require(self, confirmed: bool | np.bool_, message: str) -> None:
        """What is no number, or has a message of its own."""
        require(confirmed, message)

    def agree(self, z: Any, what: str, *, enter: str | None = None, **places: Any) -> None:
        """No z-score is larger than MAX_Z; the worst is the finding.

        ``what`` agrees, with its verb: "the variance without replacement is". By ``places``, the name and the labels of
        every axis of ``z``, the message says where the worst is.
        """
        z = np.asarray(z)
        worst = np.unravel_index(np.argmax(np.abs(z)), z.shape)
        at = [f"{name} = {labels[i]}" for (name, labels), i in zip(places.items(), worst, strict=False)]
        where = f" at {', '.join(at)}" if at else ""
        require(np.abs(z[worst]) <= MAX_Z, f"{what} {z[worst]:.1f} standard errors off{where}")
        self._enter(enter, z[worst])

    def reject(self, z: Any, what: str, *, enter: str | None = None, side: int = 1) -> None:
        """Every z-score is above MAX_Z, or below −MAX_Z with ``side=-1``; the weakest is the finding."""
        weakest = side * np.min(side * np.asarray(z))
        require(side * weakest > MAX_Z, f"{what} must be rejected, got z = {weakest:.1f}")
        self._enter(enter, weakest)

    def below(self, value: Any, limit: float, message: str, *, enter: str | None = None) -> None:
        """A number, or the largest of an array, is below a limit."""
        largest = np.max(value)
        require(largest < limit, message.format(largest))
        self._enter(enter, largest)

    def above(self, value: Any, limit: float, message: str, *, enter: str | None = None) -> None:
        """A number, or the least of an array, is above a limit."""
        least = np.min(value)
        require(least > limit, message.format(least))
        self._enter(enter, least)

    def equal(
        self, found: Any, truth: Any, message: str, *, rtol: float = 0, atol: float = 1e-12, enter: str | None = None
    ) -> None:
        """Numbers are what they must be, up to rounding."""
        require(np.allclose(found, truth, rtol=rtol, atol=atol), message.format(found))
        self._enter(enter, found)

    def _enter(self, name: str | None, value: Any) -> None:
        """``group.name`` is an entry of a group."""
        if name is not None:
            *group, last = name.split(".")
            (self.setdefault(group[0], {}) if group else self)[last] = value


def plain(value: Any) -> Any:
    """The same findings without NumPy, as JSON holds them."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, bool | int | float | None) else str(value)
