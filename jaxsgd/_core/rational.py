"""Exact arithmetic: numbers that stay rational where they are given so, alone and in vectors."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np

from jaxsgd._core import validate

Number = Fraction | float
Numbers = Any  # a vector of numbers: of dtype float64, or object where they are rational


def as_numbers(**named: Any) -> tuple[Number, ...]:
    """A vector as a tuple: of ``Fraction`` if all entries are rational, else of ``float``."""
    ((name, values),) = named.items()
    if isinstance(values, Sequence) and all(isinstance(v, Rational) for v in values):
        validate.finite_vector(**{name: np.asarray(values, dtype=object)})
        return tuple(map(Fraction, values))
    array = np.asarray(values, dtype=np.float64)
    validate.finite_vector(**{name: array})
    return tuple(array.tolist())


def as_number(value: Any) -> Number:
    """A number as ``Fraction`` if it is rational, else as ``float``."""
    return Fraction(value) if isinstance(value, Rational) else float(value)


def as_array(numbers: Sequence[Number]) -> Numbers:
    """A vector to calculate with: of dtype object where it holds rational numbers, else float64."""
    rational = any(isinstance(number, Fraction) for number in numbers)
    return np.array(numbers, dtype=object if rational else np.float64)


def reciprocals(numbers: Numbers) -> Numbers:
    """1/x, and 0 where x = 0."""
    positive = numbers > 0
    return np.where(positive, 1 / np.where(positive, numbers, 1 + 0 * numbers), 0 * numbers)


def quotient(numerator: int | Fraction, denominator: int | Fraction) -> float:
    """The float next to a quotient: for compiled code, which takes no integer of Python's beyond 2³¹ without x64.

    A coefficient is put together from integers and fractions of any size, in which nothing is rounded or cancels, and
    is rounded once, here.
    """
    return float(Fraction(numerator) / denominator)


def prod(numbers: Iterable[Fraction]) -> Fraction:
    """The product of rational numbers."""
    return math.prod(numbers, start=Fraction(1))
