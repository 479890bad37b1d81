"""What named parts of a label (classes of a mask, points) have in common: names, and pairs that a mirror exchanges."""

from __future__ import annotations

import operator
import re
from typing import Any

from dsgan_datasets.checks import names

#: Control characters, and halves of characters, which no file in UTF-8 can hold.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def part_names(part: str, given: Any) -> tuple[str, ...]:
    """The names of the parts of a label.

    Args:
        part: what they name, such as "class".
        given: a list of different words.

    Raises:
        ValueError: not such a list, an empty one, or names that cannot be written to a file or shown.
    """
    try:
        found = names(part, given)
    except ValueError:
        raise ValueError(f"{part} names must be words, in a list, got {given!r:.80}") from None
    if not all(found):
        raise ValueError(f"{part} names must be words, got {given!r:.80}")
    if broken := [name for name in found if _UNWRITABLE.search(name)]:
        raise ValueError(
            f"{part} names must be text that can be written and shown, got {', '.join(map(ascii, broken))}: rename "
            "them, and save the file as UTF-8"
        )
    if not found or len(set(found)) < len(found):
        repeated = sorted({name for name in found if found.count(name) > 1})
        raise ValueError(f"there must be at least one {part}, and no name twice; repeated: {repeated}")
    return found


def index_of(part: str, known: tuple[str, ...], name: str, plural: str) -> int:
    """The id of a name.

    Raises:
        ValueError: no such name; the message lists those that there are.
    """
    if name not in known:
        raise ValueError(f"no {part} {name!r}; the {plural} are: {', '.join(known)}")
    return known.index(name)


def id_pairs(field: str, part: str, given: Any, count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of ids 0 … count - 1.

    Args:
        field: what the pairs are called, such as "flip_pairs".
        part: what the ids number, such as "class".
        given: the pairs.
        count: how many parts there are.

    Raises:
        ValueError: something else, an id out of range, or a pair of a part with itself.
    """
    try:
        found = tuple((operator.index(a), operator.index(b)) for a, b in given)
    except (TypeError, ValueError):
        raise ValueError(f"{field} must be pairs of {part} ids, not {given!r:.80}") from None
    if any(not 0 <= i < count for pair in found for i in pair) or any(a == b for a, b in found):
        raise ValueError(f"{field} {given!r:.80}: a pair is two different {part} ids 0-{count - 1}")
    return found


def flip_pairs(part: str, given: Any, count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of ids that trade places in a mirror; a ValueError unless each id is in at most one of them."""
    pairs = id_pairs("flip_pairs", part, given, count)
    swapped = [i for pair in pairs for i in pair]
    if len(set(swapped)) != len(swapped):
        raise ValueError(f"flip_pairs {given!r:.80}: each {part} id 0-{count - 1} may be in at most one pair")
    return pairs
