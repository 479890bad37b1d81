"""What other programs write for one and the same thing: names of images, ids and whole numbers, each made one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

#: Longer names of files are of no image.
_LONGEST_NAME = 4096
#: Digits of a number in text; more would be no id and no size.
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:\.0*)?")
_LONG = 10**15


class ImageNames:
    """Recognizes the exported images in the file names of tools that rename what is uploaded to them.

    Args:
        names: of the images, without folder and ending.

    Example:
        >>> ImageNames(["000000000", "000000031"]).find(r"images\\a1b2c3d4-000000031.png")
        ('000000031',)
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        longest_first = sorted(self._names, key=lambda name: (-len(name), name))
        # [^\\W_] is a letter or a digit
        self._pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])")

    def find(self, given: object) -> tuple[str, ...]:
        """The images whose names a file name holds between characters that are neither letters nor digits.

        The name without folder and ending counts first; then the last part of the path that holds any. Separators of
        Windows, percent signs and queries (``?d=folder%5Cname.png``) are understood.

        Returns:
            one name, if all is well; none, or all of them if it holds several.
        """
        if not isinstance(given, str) or len(given) > _LONGEST_NAME:
            return ()
        for part in reversed(re.split(r"[/\\?&=]", unquote(given))):
            stem = part.rpartition(".")[0] or part
            if exact := self._names.intersection((part, stem)):
                return tuple(exact)
            if held := tuple(dict.fromkeys(match[0] for match in self._pattern.finditer(part))):
                return held
        return ()


def identity(value: Any) -> int | str | None:
    """An id, the same whether it was written as 1, 1.0, "1" or "1.0"; None if the value is not an id.

    Example:
        >>> [identity(value) for value in (1, 1.0, " 1 ", "1.0", "a", True, 1.5)]
        [1, 1, 1, 1, 'a', None, None]
    """
    number = whole(value)
    if number is not None:
        # Longer ones stay text, also because a stranger can choose integers whose hashes are all the same.
        return number if abs(number) < _LONG else str(number)
    return value.strip() if isinstance(value, str) else None


def whole(value: Any) -> int | None:
    """A whole number, whether it was written as 128, 128.0, "128" or "128.0"; else None."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(float(value))
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    return int(value) if isinstance(value, float) and value.is_integer() else None
