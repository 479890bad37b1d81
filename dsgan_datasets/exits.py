"""Generators that are open when the interpreter exits are closed while modules are still there."""

from __future__ import annotations

import atexit
import os
from collections.abc import Generator
from contextlib import suppress
from typing import TypeVar
from weakref import WeakSet

Item = TypeVar("Item")

_open: WeakSet[Generator[object, None, None]] = WeakSet()


def closed_at_exit(generator: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The generator, which Python would otherwise end too late: what it needs to clean up is gone by then.

    Example:
        >>> next(closed_at_exit(number for number in (1, 2)))
        1
    """
    _open.add(generator)
    return generator


def _close() -> None:
    for generator in list(_open):
        with suppress(ValueError):  # a thread that outlives the main one is running it
            generator.close()


atexit.register(_close)
# A child has copies of its parent's generators, whose threads it has not.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open.clear)
