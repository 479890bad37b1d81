"""Old names keep working for a while: one warning that gives the new name and the version in which the old one goes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

#: The version that drops everything deprecated in this one.
REMOVED_IN = "0.4"


def warn_renamed(old: str, new: str, *, removed_in: str = REMOVED_IN, stacklevel: int = 2) -> None:
    """Warn that `old` is now called `new`; `stacklevel` counts as for `warnings.warn`, from the caller of this function.

    Example:
        >>> warn_renamed("Recipe(psi=…)", "Recipe(truncation_psi=…)")  # doctest: +SKIP
    """
    warnings.warn(
        f"{old} is deprecated and will be removed in version {removed_in}: use {new}",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def renamed_arguments(given: Mapping[str, Any], new_names: Mapping[str, str], *, stacklevel: int = 2) -> dict[str, Any]:
    """Keyword arguments under their new names, with a warning for each old one.

    Args:
        given: keyword arguments, some perhaps under old names.
        new_names: old name -> new name.

    Raises:
        TypeError: an argument is given under both of its names.

    Example:
        >>> renamed_arguments({"psi": 0.7}, {"psi": "truncation_psi"})  # doctest: +SKIP
        {'truncation_psi': 0.7}
    """
    result: dict[str, Any] = {}
    for name, value in given.items():
        new = new_names.get(name, name)
        if new != name:
            if new in given:
                raise TypeError(f"{new} was given twice, also under its old name {name}")
            warn_renamed(f"the argument {name}", new, stacklevel=stacklevel + 1)
        result[new] = value
    return result


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that moved or were renamed.

    Args:
        module: name of the module that had them.
        names: old name -> "new.module:new_name".

    Example:
        >>> __getattr__ = moved(__name__, {"Annotated": "dsgan_datasets.fitting.annotated:AnnotatedImages"})
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = names[name].partition(":")
        warn_renamed(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return __getattr__
