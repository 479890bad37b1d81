"""Points that somebody marked, from whatever file -> the points of a target, in its order and its pixels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.contents import ContentError, shown
from dsgan_datasets.targets.keypoints import Keypoints

#: Name of what the points are of, as CVAT and COCO need one: the one thing that an image shows.
OBJECT = "skeleton"
#: Words that say of a point that it is hidden, or not in the image; the first of each are LabelMe's check boxes.
HIDDEN, ABSENT = ("hidden", "occluded"), ("absent", "outside")


class Mark(NamedTuple):
    """One point of one image.

    Attributes:
        name: as the file has it.
        x: pixels from the left edge, with pixel centers at .5.
        y: from the upper edge.
        visibility: 0 not in the image, 1 hidden, 2 visible.
        place: where in the file it is.
        instance: what tells instances apart, if the file does.
    """

    name: Any
    x: float
    y: float
    visibility: int
    place: str
    instance: str | None = None


def visibility(words: Iterable[str]) -> int:
    """What was written beside a point -> 0 not in the image, 1 hidden, 2 visible: also if nothing is.

    Raises:
        ContentError: it is said to be both hidden and absent.

    Example:
        >>> visibility(["Occluded "]), visibility(["a remark"])
        (1, 2)
    """
    said = {word.strip().lower() for word in words}
    hidden, absent = (not said.isdisjoint(known) for known in (HIDDEN, ABSENT))
    if hidden and absent:
        raise ContentError(
            f"is marked {HIDDEN[0]} and {ABSENT[0]}: {HIDDEN[0]} is in the image behind something, {ABSENT[0]} is not "
            "in it; keep one"
        )
    return 0 if absent else 1 if hidden else 2


def placed(marks: Sequence[Mark], target: Keypoints, size: tuple[int, int], where: str, found: Findings) -> Array:
    """float32 [K, 3]: (x, y, visibility) of each point; x = y = 0 if it is not in the image, and all NaN if no mark
    says anything about it.

    Args:
        marks: of one image.
        target: its names are the names of the marks.
        size: (H, W) of the image.
        where: file, and image if the file has several.
        found: notes unknown and doubled points, and points outside of the image.
    """
    numbers = {name: number for number, name in enumerate(target.names)}
    points: Array = np.full((len(numbers), 3), np.nan, dtype=np.float32)
    its: dict[str, list[Mark]] = defaultdict(list)
    unknown: Counter[str] = Counter()
    for mark in marks:
        if isinstance(mark.name, str) and mark.name in numbers:
            its[mark.name].append(mark)
        else:
            unknown[shown(mark.name)] += 1
    if unknown:
        found.error(
            where,
            f"unknown {'point' if len(unknown) == 1 else 'points'} {listed(list(unknown))}: rename to one of "
            f"{listed(target.names, 30)}, or remove",
        )
    if _several_instances(its.values(), where, found):
        return points
    for name, (mark, *more) in its.items():
        if more:
            found.error(
                where,
                f"the point {shown(name)} is there {len(more) + 1} times ({listed([m.place for m in (mark, *more)])}): "
                "keep one, and give the others their own names",
            )
        elif mark.visibility == 0:
            points[numbers[name]] = 0
        elif not (0 <= mark.x <= size[1] and 0 <= mark.y <= size[0]):
            found.error(
                where,
                f"the point {shown(name)} ({mark.place}) is at ({mark.x:g}, {mark.y:g}), outside of the image of "
                f"{size[1]}×{size[0]} pixels: move it inside, or mark it as not in the image (visibility 0)",
            )
        else:
            points[numbers[name]] = (mark.x, mark.y, mark.visibility)
    return points


def _several_instances(its: Iterable[Sequence[Mark]], where: str, found: Findings) -> bool:
    """Whether points are doubled because they are of several instances, which is noted."""
    doubled = [marks for marks in its if len(marks) > 1]
    instances = list(dict.fromkeys(mark.instance for marks in doubled for mark in marks))
    several = bool(doubled) and all(len({mark.instance for mark in marks}) == len(marks) for marks in doubled)
    if several:
        found.error(
            where,
            f"has the points of several instances ({listed(instances)}), and an image has one set of points: keep the "
            "points of one instance",
        )
    return several


def corner_offset(coordinates: Array, where: str, found: Findings) -> float:
    """What to add to the coordinates of a COCO file, all of them, so that pixel centers are at .5: the one place where
    this is decided.

    COCO's own files and tools of its kind number pixels: the point (3, 5) is somewhere in the pixel of column 3 and row
    5, and so at its center, (3.5, 5.5). Annotation tools write what was clicked on, which is rarely whole, counted from
    the corner of the first pixel as `Keypoints` does.

    Args:
        coordinates: x and y of the points that are in their images, [N].
        where: the file.
        found: a warning if they are taken for numbers of pixels.
    """
    if not len(coordinates) or (coordinates % 1).any():
        return 0.0
    found.warning(
        where,
        "all coordinates of points are whole numbers, so they were taken for numbers of pixels, and the points for "
        "pixel centers (half a pixel was added): look at the result",
    )
    return 0.5
