"""Names of a package whose modules are imported when they are first asked for, so that the package stays cheap."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazily(names: Mapping[str, Sequence[str]], otherwise: Callable[[str], Any]) -> Callable[[str], Any]:
    """A package's `__getattr__` for names whose modules are imported when they are first asked for.

    Args:
        names: module -> the names that it has.
        otherwise: `__getattr__` for all other names.

    Example:
        >>> __getattr__ = lazily({"dsgan_datasets.students": ["train_student"]}, moved(__name__, {}))  # doctest: +SKIP
    """
    modules = {name: module for module, its in names.items() for name in its}

    def __getattr__(name: str) -> Any:
        return getattr(importlib.import_module(modules[name]), name) if name in modules else otherwise(name)

    return __getattr__
