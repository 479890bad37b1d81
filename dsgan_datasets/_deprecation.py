"""Old names keep working for a while: one warning that gives the new name and the version in which the old one goes."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

#: The version that drops everything deprecated in this one.
REMOVED_IN = "0.4"


def warn_renamed(old: str, new: str, *, removed_in: str = REMOVED_IN, stacklevel: int = 2) -> None:
    """Warn that `old` is now called `new`; `stacklevel` counts as for `warnings.warn`, from this function's caller.

    Example:
        >>> warn_renamed("Recipe(psi=…)", "Recipe(truncation_psi=…)")  # doctest: +SKIP
    """
    warnings.warn(
        f"{old} is deprecated and will be removed in version {removed_in}: use {new}",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def outside_level() -> int:
    """The `stacklevel` that makes `warn_renamed` blame the first caller outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    return level


def renamed_arguments(
    given: Mapping[str, Any], new_names: Mapping[str, str], *, stacklevel: int | None = None
) -> dict[str, Any]:
    """Keyword arguments under their new names, with a warning for each old one.

    Args:
        given: keyword arguments, some perhaps under old names.
        new_names: old name -> new name.
        stacklevel: see `warn_renamed`; None blames the first caller outside of this package.

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
            level = outside_level() if stacklevel is None else stacklevel + 1
            warn_renamed(f"the argument {name}", new, stacklevel=level)
        result[new] = value
    return result


def renamed_keywords(**new_names: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Decorator of a function whose keyword arguments were renamed: old names work, with a warning.

    Args:
        new_names: old name = new name.

    Example:
        >>> @renamed_keywords(repeat="same_epoch")
        ... def stream(*, same_epoch: bool = False) -> bool:
        ...     return same_epoch
        >>> stream(repeat=True)  # doctest: +SKIP
        True
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            if not new_names.keys().isdisjoint(kwargs):
                kwargs = renamed_arguments(kwargs, new_names)  # type: ignore[assignment]
            return function(*args, **kwargs)

        return call

    return decorate


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
