"""Label Studio's own JSON (https://labelstud.io/guide/export): brushes, polygons, boxes, ellipses and points.

Its COCO export turns brushes into outlines of pixels, and has no points; here they are exact. Positions are percent of
the image. A brush is a picture in RGBA, compressed with thi.ng's rle-pack, whose opaque pixels are the region
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.labelme import labels_of
from dsgan_datasets.annotations.material import Source, Wanted
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.annotations.png import check_size
from dsgan_datasets.annotations.values import ImageNames
from dsgan_datasets.contents import ContentError, shown

#: Corners of the polygon that stands for an ellipse.
_CORNERS = 128


def is_labelstudio(content: Any) -> bool:
    """Whether a parsed file is a list of Label Studio's tasks, perhaps with mistakes in it."""
    return isinstance(content, list) and any(
        isinstance(task, dict) and {"annotations", "data"} <= task.keys() for task in content
    )


def labelstudio_sources(
    content: Any, where: str, wanted: Wanted, size: tuple[int, int], names: ImageNames, found: Findings
) -> dict[str, Source]:
    """Name of an image -> what the annotation of its task says; tasks without one are not among them.

    Args:
        content: the parsed file.
        where: what to call it in messages.
        wanted: what is annotated, as for `labelme.read_labelme`.
        size: (H, W) that images must have.
        names: of the exported images.
        found: collects errors not tied to one image.
    """
    sources: dict[str, Source] = {}
    if not isinstance(content, list):
        found.error(where, "is not a list of tasks of Label Studio: export it as JSON")
        return sources
    for number, task in enumerate(content, 1):
        place = f"{where}, task {number}"
        parts = [task.get(key) for key in ("data", "annotations")] if isinstance(task, dict) else [None, None]
        if not isinstance(parts[0], dict) or not isinstance(parts[1], list):
            found.error(place, "is not a task with data and annotations: export it as JSON (not JSON-MIN)")
            continue
        done = [each for each in parts[1] if isinstance(each, dict) and not each.get("was_cancelled")]
        done = [each for each in done if each.get("result")]
        if not done:
            continue
        held = list(dict.fromkeys(name for value in parts[0].values() for name in names.find(value)))
        if len(held) != 1:
            given = f"holds the names of several images, {listed(held)}" if held else "names no exported image"
            found.error(place, f"its data {given}: {shown(parts[0])}. Upload the exported images themselves")
        elif len(done) > 1:
            found.error(place, f"has {len(done)} annotations of {held[0]}: keep one, and delete the others")
        elif held[0] in sources:
            found.error(place, f"annotates {held[0]}, as another task does: keep one of them")
        else:
            sources[held[0]] = Source(
                where, partial(_read, done[0]["result"], f"{where}, image {held[0]}", wanted, size)
            )
    return sources


def _read(result: Any, where: str, wanted: Wanted, size: tuple[int, int], found: Findings) -> dict[str, Array]:
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        found.error(where, "its result is not a list of regions: export it again")
        return {}
    words: dict[str, list[str]] = defaultdict(list)  # what was chosen for a region, such as that it is hidden
    for region in result:
        value = region.get("value")
        if isinstance(value, dict) and isinstance(value.get("choices"), list):
            words[shown(region.get("id"))] += map(str, value["choices"])
    before, shapes = found.count, []
    budget = _Budget(size)
    for number, region in enumerate(result, 1):
        kind, value = region.get("type"), region.get("value")
        if not isinstance(kind, str) or kind not in _SHAPES:
            if isinstance(value, dict) and kind not in _NO_REGIONS:
                found.warning(f"{where}, region {number}", f"a {shown(kind)} is not read, so it has no effect")
            continue
        sides = region.get("original_height"), region.get("original_width")
        if not check_size(*sides, size, f"{where}, region {number}", found):
            return {}
        if region.get("image_rotation"):
            found.error(f"{where}, region {number}", "the image was rotated: annotate it as it was exported")
            return {}
        labels = value.get(kind) if isinstance(value, dict) else None
        label = labels[0] if isinstance(labels, list) and len(labels) == 1 else labels
        try:
            shape = _SHAPES[kind](value, size, budget)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = str(error) if isinstance(error, ContentError) else "its numbers make no sense"
            found.error(f"{where}, region {number} ({shown(label)})", f"{reason}: draw it again, or remove it")
            continue
        meta = region.get("meta")
        noted = meta.get("text") if isinstance(meta, dict) else None
        said = [*words[shown(region.get("id"))], *(map(str, noted) if isinstance(noted, list) else ())]
        shapes.append({**shape, "label": label, "flags": dict.fromkeys(said, True)})
    return labels_of(shapes, where, wanted, size, found) if found.count == before else {}


#: Results that belong to a whole image or to other regions.
_NO_REGIONS = ("choices", "textarea", "rating", "number", "relation", "taxonomy")


class _Budget:
    """Runs that the brushes of one image may have: a small file can claim very many."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._left = 8 * size[0] * size[1] + 2**20

    def spend(self, runs: int) -> None:
        self._left -= runs
        if self._left < 0:
            raise ContentError("the brushes have more runs than a picture of this size has room for")


def _polygon(value: Mapping[str, Any], size: tuple[int, int], budget: _Budget) -> dict[str, Any]:
    return {"shape_type": "polygon", "points": _pixels(value["points"], size)}


def _point(value: Mapping[str, Any], size: tuple[int, int], budget: _Budget) -> dict[str, Any]:
    return {"shape_type": "point", "points": _pixels([(value["x"], value["y"])], size)}


def _box(value: Mapping[str, Any], size: tuple[int, int], budget: _Budget) -> dict[str, Any]:
    """A rectangle, turned around its first corner."""
    (corner,) = _pixels([(value["x"], value["y"])], size)
    ((width, height),) = _pixels([(value["width"], value["height"])], size)
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)])
    return {"shape_type": "polygon", "points": (corners @ _turned(value) + corner).tolist()}


def _ellipse(value: Mapping[str, Any], size: tuple[int, int], budget: _Budget) -> dict[str, Any]:
    """An ellipse, turned around its center."""
    (center,) = _pixels([(value["x"], value["y"])], size)
    (radii,) = _pixels([(value["radiusX"], value["radiusY"])], size)
    angles = np.arange(_CORNERS) * 2 * math.pi / _CORNERS
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    return {"shape_type": "polygon", "points": (circle * radii @ _turned(value) + center).tolist()}


def _brush(value: Mapping[str, Any], size: tuple[int, int], budget: _Budget) -> dict[str, Any]:
    if value["format"] != "rle":
        raise ContentError(f"a brush of the format {shown(value['format'])}, not rle")
    height, width = size
    pixels = decode_brush(value["rle"], 4 * height * width, budget.spend).reshape(height, width, 4)
    return {"shape_type": "mask", "points": [(0, 0), (width, height)], "mask": pixels[..., 3] > 0}


#: Type of a region -> its shape as LabelMe would have it.
_SHAPES = {
    "polygonlabels": _polygon,
    "rectanglelabels": _box,
    "ellipselabels": _ellipse,
    "keypointlabels": _point,
    "brushlabels": _brush,
}


def _pixels(percent: Any, size: tuple[int, int]) -> list[tuple[float, float]]:
    return [(float(x) * size[1] / 100, float(y) * size[0] / 100) for x, y in percent]


def _turned(value: Mapping[str, Any]) -> Array:
    """Matrix for rows (x, y) that turns them clockwise by the region's rotation, in degrees."""
    angle = math.radians(float(value.get("rotation") or 0))
    return np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])


def decode_brush(packed: Any, count: int, spend: Any = lambda runs: None) -> Array:
    """The numbers in rle-pack's bytes.

    32 bits hold how many numbers there are, 5 the bits of each, less one, 4 × 4 the bits of four sizes of runs, less
    one. Then, for each run: one bit that says whether one number fills it, two that choose a size, the length less one,
    and the number or the numbers.

    Args:
        packed: list of bytes.
        count: of numbers expected.
        spend: is told of runs in between; it may raise an error if there are too many.

    Returns:
        int64 [count].

    Raises:
        ContentError: damaged, or of another count.
    """
    if not isinstance(packed, list) or len(packed) > 2 * count + 64:
        raise ContentError("a brush must be a list of bytes, and no longer than its picture")
    try:
        content = bytes(packed)
    except (TypeError, ValueError):
        raise ContentError("a brush must be a list of bytes") from None
    bits, end = np.unpackbits(np.frombuffer(content, np.uint8)), 8 * len(content)

    def read(at: int, width: int) -> int:
        if at + width > end:
            raise ContentError("the brush ends early")
        part = content[at >> 3 : (at + width + 7) >> 3]
        return (int.from_bytes(part, "big") >> (-(at + width) % 8)) & ((1 << width) - 1)

    if read(0, 32) != count:
        raise ContentError(f"the brush has {read(0, 32)} numbers, its picture {count}")
    width, sizes, at = read(32, 5) + 1, [read(37 + 4 * i, 4) + 1 for i in range(4)], 53
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    numbers, done, runs = np.zeros(count, dtype=np.int64), 0, 0
    while done < count:
        size = sizes[read(at + 1, 2)]
        length, filled = read(at + 3, size) + 1, read(at, 1)
        at += 3 + size
        if done + length > count:
            raise ContentError("the brush is longer than its picture")
        if filled:
            numbers[done : done + length] = read(at, width)
            at += width
        else:
            if at + length * width > end:
                raise ContentError("the brush ends early")
            numbers[done : done + length] = bits[at : at + length * width].reshape(length, width) @ weights
            at += length * width
        done, runs = done + length, runs + 1
        if runs % 4096 == 0:
            spend(4096)
    return numbers
