"""Checks of arguments that say what was given and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from numbers import Real
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
    if is_boolean(value) or number < lowest or (highest is not None and number > highest):
        raise ValueError(f"{name} must be an integer {allowed}, not {value!r}")
    return number


def boolean(name: str, value: Any, allowed: str = "True or False") -> bool:
    """The value as a bool (numpy's and torch's too); ValueError unless it is one.

    Example:
        >>> boolean("same_epoch", "no")
        Traceback (most recent call last):
        ValueError: same_epoch must be True or False, not 'no'
    """
    if not is_boolean(value):
        raise ValueError(f"{name} must be {allowed}, not {value!r:.80}")
    return bool(value)


def names(name: str, value: Any) -> tuple[str, ...]:
    """The value as a tuple of strings; ValueError unless it is a list, or another collection, of them.

    Example:
        >>> names("extras", "latent")
        Traceback (most recent call last):
        ValueError: extras must be a list of names, not 'latent'
    """
    if not isinstance(value, str | bytes | Mapping) and isinstance(value, Iterable) and not hasattr(value, "dtype"):
        found = tuple(value)
        if all(isinstance(each, str) for each in found):
            return found
    raise ValueError(f"{name} must be a list of names, not {value!r:.80}")


def refuse_unused(why: str, arguments: Mapping[str, Any]) -> None:
    """ValueError if an argument was given, that is not None, where it changes nothing.

    Example:
        >>> refuse_unused("a pose is of one object", {"instances": "components", "min_instance_area": None})
        Traceback (most recent call last):
        ValueError: instances has no effect here, as a pose is of one object: leave it out
    """
    if said := [name for name, value in arguments.items() if value is not None]:
        has, it = ("has", "it") if len(said) == 1 else ("have", "them")
        raise ValueError(f"{', '.join(said)} {has} no effect here, as {why}: leave {it} out")


def is_number(value: object) -> bool:
    """Whether this is a real number, of Python or NumPy, and not a bool."""
    return isinstance(value, Real) and not is_boolean(value)


def is_boolean(value: Any) -> bool:
    """Whether this is Python's True or False, or one of NumPy's or torch's, which Python takes for an index too."""
    return isinstance(value, bool) or (
        str(getattr(value, "dtype", "")) in ("bool", "torch.bool") and getattr(value, "ndim", 0) == 0
    )


def position(index: Any, length: int) -> int:
    """The place 0 … length - 1 that an index of a sequence names; negative ones count from the end.

    Raises:
        TypeError: not an integer.
        IndexError: there is no such place.

    Example:
        >>> position(-1, 100)
        99
    """
    try:
        number = operator.index(index)
    except TypeError:
        raise TypeError(
            f"an index must be an integer, not {index!r:.80}; for several samples pass a list to a "
            "torch.utils.data.Subset or a sampler"
        ) from None
    if not -length <= number < length:
        raise IndexError(f"index {number} is out of range for a dataset of {length} samples")
    return number % length


def one_line(text: str, longest: int = 1500) -> str:
    r"""A message as one line of printable characters, shortened in the middle if need be.

    It may quote a stranger's file, which may hold megabytes, line breaks or the control sequences of a terminal.

    Example:
        >>> one_line("Label\tof a tool")
        'Label\\tof a tool'
    """
    for _ in range(2):  # first so that little is escaped, then because escapes are longer
        if len(text) > longest:
            text = f"{text[: longest * 2 // 3]} […] {text[-longest // 4 :]}"
        text = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text
