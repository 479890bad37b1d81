"""COCO's JSON (https://cocodataset.org/#format-data), polygons and run lengths -> class ids, and back.

CVAT, Label Studio, Roboflow and others write it. Later annotations are painted over earlier ones, and what none covers
is class 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from dsgan_datasets.annotations.folder import IGNORE, Array
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.annotations.png import wrong_size
from dsgan_datasets.annotations.shapes import paint, within_reach
from dsgan_datasets.polygons import polygons_to_mask
from dsgan_datasets.targets.segmentation import LabelSchema


def coco_file(
    images: Sequence[tuple[str, Sequence[tuple[int, Array]]]], size: tuple[int, int], schema: LabelSchema
) -> dict[str, Any]:
    """Annotations of all images; categories are numbered from 1, as COCO's are.

    Args:
        images: file name, and class id and polygon [P, 2] of each shape.
        size: (H, W) of all of them.
        schema: names of the classes.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, (_, shapes) in enumerate(images, 1):
        for category, polygon in shapes:
            (left, top), (right, bottom) = polygon.min(0).tolist(), polygon.max(0).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category + 1,
                    "segmentation": [polygon.flatten().tolist()],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(polygons_to_mask([polygon], size).sum()),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": file, "width": size[1], "height": size[0]} for i, (file, _) in enumerate(images, 1)
        ],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(schema.classes, 1)],
        "annotations": annotations,
    }


def coco_readers(
    content: Any, where: str, schema: LabelSchema, size: tuple[int, int], found: Findings
) -> dict[str, Callable[[Findings], Array | None]]:
    """Name of an image, without folder and ending -> what reads its class ids int64 [H, W].

    Args:
        content: the parsed file.
        where: what to call it in messages.
        schema: its class names are the names of the categories; `IGNORE` marks what is ignored.
        size: (H, W) that images must have.
        found: collects errors not tied to one image.
    """
    images, annotations, categories = (_objects(content, name) for name in ("images", "annotations", "categories"))
    if images is None or annotations is None or categories is None:
        found.error(where, "is not a COCO file, it needs lists of images, annotations and categories: export it again")
        return {}
    names = {c.get("id"): c.get("name") for c in categories if isinstance(c.get("id"), int | str)}
    for what, entries in (("categories", categories), ("images", images)):
        counts = Counter(repr(entry.get("id"))[:40] for entry in entries)
        if twice := [given for given, count in counts.items() if count > 1]:
            found.error(where, f"several {what} have the id {listed(twice)}: give each its own, or export it again")
    by_image = defaultdict(list)
    for annotation in annotations:
        image_id = annotation.get("image_id")
        by_image[image_id if isinstance(image_id, int | str) else None].append(annotation)
    readers: dict[str, Callable[[Findings], Array | None]] = {}
    for image in images:
        file, image_id = image.get("file_name"), image.get("id")
        stem = PureWindowsPath(file).stem if isinstance(file, str) else ""  # takes / and \ for separators
        if not stem or not isinstance(image_id, int | str) or stem in readers:
            found.error(where, f"image {file!r:.80}, id {image_id!r:.40}: needs an id, and a file name of its own")
            continue
        readers[stem] = partial(_read, image, by_image.pop(image_id, []), names, f"{where}, image {stem}", schema, size)
    for image_id, orphans in by_image.items():
        found.error(where, f"{len(orphans)} annotations are of image id {image_id!r:.40}, which is not in the file")
    return readers


def _objects(content: Any, name: str) -> list[dict[str, Any]] | None:
    part = content.get(name) if isinstance(content, dict) else None
    return part if isinstance(part, list) and all(isinstance(entry, dict) for entry in part) else None


def _read(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    names: Mapping[Any, Any],
    where: str,
    schema: LabelSchema,
    size: tuple[int, int],
    found: Findings,
) -> Array | None:
    before = len(found.mistakes)
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and (height, width) != size:
        found.error(where, wrong_size((height, width), size))
        return None
    painted = []
    unknown = set()
    for annotation in annotations:
        category = annotation.get("category_id")
        name = names.get(category) if isinstance(category, int | str) else None
        place = f"{where}, annotation {annotation.get('id')!r:.40} ({name!r:.40})"
        region = _region(annotation.get("segmentation"), size, place, found)
        if name not in (*schema.classes, IGNORE):
            unknown.add(repr(name if name is not None else category)[:40])
        elif region is not None:
            if not region.any():
                found.warning(place, "covers the center of no pixel, so it has no effect")
            painted.append((schema.ignore_index if name == IGNORE else schema.index(name), region))
    if unknown:
        found.error(
            where,
            f"unknown class {listed(sorted(unknown))}: rename it to one of {listed(schema.classes, 20)}, or {IGNORE}",
        )
    return None if len(found.mistakes) > before else paint(painted, size)


def _region(segmentation: Any, size: tuple[int, int], place: str, found: Findings) -> Array | None:
    """bool [H, W] of polygons or run lengths."""
    if isinstance(segmentation, list) and segmentation:
        polygons = [_polygon(numbers) for numbers in segmentation]
        if any(polygon is None for polygon in polygons):
            found.error(place, "a polygon is a flat list x, y, x, y, … of three points or more: draw it again")
            return None
        return polygons_to_mask([polygon for polygon in polygons if polygon is not None], size)
    if isinstance(segmentation, dict):
        try:
            return decode_rle(segmentation, size)
        except ValueError as error:
            found.error(place, f"{error}: export it again")
            return None
    found.error(place, "has no outline (a box?): draw a polygon or a mask, boxes label no pixels")
    return None


def _polygon(numbers: Any) -> Array | None:
    try:
        points = np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not within_reach(points):
        return None
    return points.reshape(-1, 2)


def decode_rle(encoded: Mapping[str, Any], size: tuple[int, int]) -> Array:
    """COCO's run lengths, compressed or not, as bool [H, W].

    Not left to pycocotools: for run lengths that are too short its decoder (2.0.11) returns uninitialized memory. They
    must be parsed and summed first, and then there is only one `repeat` left to do.

    Runs of 0 and 1 alternate, beginning with 0, down the columns. Compressed, a count is the difference to the one
    two before (from the fourth on), in groups of five bits from the lowest, each in a character from "0" on whose
    sixth bit is set if another follows; the fifth bit of the last is the sign.

    Args:
        encoded: ``{"size": [H, W], "counts": list or text}``.
        size: (H, W) expected.

    Raises:
        ValueError: malformed, or of another size.

    Example:
        >>> decode_rle({"size": [1, 2], "counts": [1, 1]}, (1, 2))
        array([[False,  True]])
    """
    if encoded.get("size") != list(size):
        raise ValueError(f"run lengths of size {encoded.get('size')!r:.40}, expected {list(size)}")
    counts = encoded.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("run lengths must be numbers from 0")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths add up to {sum(counts)}, the image has {size[0] * size[1]} pixels")
    values = np.arange(len(counts)) % 2 == 1
    mask: Array = np.repeat(values, counts).reshape(size[1], size[0]).T
    return mask


def _decompressed(text: str) -> list[int]:
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("compressed run lengths are damaged")
    return counts
