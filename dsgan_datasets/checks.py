"""Checks of arguments that say what was given and what is allowed."""

from __future__ import annotations

import operator
from typing import Any


def integer(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """The value as an int (numpy's integers too); ValueError unless it is one in lowest … highest.

    Example:
        >>> integer("length", 2.5, 1)
        Traceback (most recent call last):
        ValueError: length must be an integer of at least 1, not 2.5
    """
    allowed = f"of at least {lowest}" if highest is None else f"in {lowest} … {highest}"
    try:
        number = operator.index(value)
    except TypeError:
        number = lowest - 1
    if isinstance(value, bool) or number < lowest or (highest is not None and number > highest):
        raise ValueError(f"{name} must be an integer {allowed}, not {value!r}")
    return number


def position(index: Any, length: int) -> int:
    """The place 0 … length - 1 that an index of a sequence names; negative ones count from the end.

    Raises:
        IndexError: there is no such place.

    Example:
        >>> position(-1, 100)
        99
    """
    number = operator.index(index)
    if not -length <= number < length:
        raise IndexError(f"index {number} is out of range for a dataset of {length} samples")
    return number % length
