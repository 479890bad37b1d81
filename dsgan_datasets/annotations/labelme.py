"""LabelMe's JSON files (https://github.com/wkentaro/labelme, versions 3 to 6) -> class ids, and back.

A file lists shapes; a later one is painted over an earlier one, and what no shape covers is class 0.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsgan_datasets.annotations.folder import IGNORE, Array, hash_pixels
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.annotations.png import wrong_size
from dsgan_datasets.annotations.shapes import paint, within_reach
from dsgan_datasets.images import open_picture
from dsgan_datasets.polygons import polygons_to_mask
from dsgan_datasets.targets.segmentation import LabelSchema


def labelme_file(image: str, size: tuple[int, int], shapes: Sequence[tuple[str, Array]]) -> dict[str, Any]:
    """A file as LabelMe 5 writes it, with its image beside it.

    Args:
        image: name of the image file.
        size: (H, W).
        shapes: label and polygon [P, 2] of (x, y).
    """
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": label,
                "points": polygon.astype(float).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for label, polygon in shapes
        ],
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def read_labelme(
    path: Path, where: str, schema: LabelSchema, size: tuple[int, int], sha256: str | None, found: Findings
) -> Array | None:
    """Class ids int64 [H, W] of a LabelMe file, or None with the reasons among the mistakes.

    Args:
        path: the file.
        where: what to call it in messages.
        schema: its class names are the labels; `IGNORE` marks what is ignored.
        size: (H, W) of the image.
        sha256: of the image's pixels, checked if the file has the image in it.
        found: collects mistakes and warnings.
    """
    before = len(found.mistakes)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        found.error(where, f"is not valid JSON ({error!s:.120}): save it from LabelMe again")
        return None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        found.error(where, "is not a LabelMe file, it has no list of shapes: save it from LabelMe again")
        return None
    if odd := [number for number, shape in enumerate(shapes, 1) if not isinstance(shape, dict)]:
        found.error(f"{where}, shape {odd[0]}", "is not a shape: remove it, or save the file from LabelMe again")
        return None
    _check_image(content, path, where, size, sha256, found)
    _check_labels([shape.get("label") for shape in shapes], where, schema, found)
    painted = []
    for number, shape in enumerate(shapes, 1):
        label = shape.get("label")
        place = f"{where}, shape {number} ({label!r:.40})"
        region = _region(shape, size, place, found)
        if region is not None and label in (*schema.classes, IGNORE):
            if not region.any():
                found.warning(place, "covers the center of no pixel, so it has no effect")
            painted.append((schema.ignore_index if label == IGNORE else schema.index(label), region))
    return None if len(found.mistakes) > before else paint(painted, size)


def _check_image(
    content: Mapping[str, Any], path: Path, where: str, size: tuple[int, int], sha256: str | None, found: Findings
) -> None:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if isinstance(height, int) and isinstance(width, int) and (height, width) != size:
        found.error(where, wrong_size((height, width), size))
        return
    drawn_on = content.get("imagePath")
    if isinstance(drawn_on, str) and Path(drawn_on.replace("\\", "/")).stem != path.stem:
        found.error(where, f"was drawn on {drawn_on!r:.80}: name the annotation like the image it belongs to")
    embedded = content.get("imageData")
    if isinstance(embedded, str) and sha256 is not None:
        pixels = _decoded(embedded)
        if pixels is None or hash_pixels(np.asarray(pixels.convert("RGB"))) != sha256:
            found.error(
                where,
                "the picture inside it (imageData) is not the exported image: annotate the exported image itself",
            )


def _check_labels(labels: Sequence[Any], where: str, schema: LabelSchema, found: Findings) -> None:
    unknown = Counter(repr(label)[:40] for label in labels if label not in (*schema.classes, IGNORE))
    for label, count in unknown.items():
        shapes = "1 shape" if count == 1 else f"{count} shapes"
        found.error(
            where,
            f"{shapes} with the unknown class {label}: rename it to one of {listed(schema.classes, 20)}, or {IGNORE}",
        )


def _region(shape: Mapping[str, Any], size: tuple[int, int], place: str, found: Findings) -> Array | None:
    """bool [H, W] of the pixels whose centers a shape covers."""
    kind = shape.get("shape_type", "polygon")
    points = _points(shape.get("points"))
    needed = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind) if isinstance(kind, str) else None
    if needed is None:
        found.error(place, f"a {kind!r:.30} has no area: draw a polygon, rectangle, circle or mask instead")
        return None
    if points is None or len(points) < needed:
        found.error(place, f"a {kind} needs {needed} points (x, y) of plain numbers: draw it again, or remove it")
        return None
    if kind == "polygon":
        return polygons_to_mask([points], size)
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return polygons_to_mask([np.array([(left, top), (right, top), (right, bottom), (left, bottom)])], size)
    if kind == "circle":
        center, edge = points[:2]
        rows, columns = np.indices(size) + 0.5
        inside: Array = np.hypot(columns - center[0], rows - center[1]) <= math.dist(center, edge)
        return inside
    return _mask_region(shape.get("mask"), points, size, place, found)


def _mask_region(encoded: Any, points: Array, size: tuple[int, int], place: str, found: Findings) -> Array | None:
    """A mask drawn with LabelMe's AI tool: a PNG that lies with its corner at the first point."""
    picture = _decoded(encoded) if isinstance(encoded, str) else None
    if picture is None:
        found.error(place, "its mask cannot be read as a PNG: draw it again, or remove it")
        return None
    part = np.asarray(picture.convert("L")) > 0
    region = np.zeros(size, dtype=bool)
    left, top = (round(float(v)) for v in points.min(0))
    bottom, right = top + part.shape[0], left + part.shape[1]
    if top < 0 or left < 0 or bottom > size[0] or right > size[1]:
        found.error(place, f"its mask, {part.shape[1]}×{part.shape[0]} at ({left}, {top}), reaches beyond the image")
        return None
    region[top:bottom, left:right] = part
    return region


def _points(value: Any) -> Array | None:
    """float64 [P, 2], or None if the value is not a list of points."""
    try:
        points = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return points if points.ndim == 2 and points.shape[1] == 2 and within_reach(points) else None


def _decoded(encoded: str) -> Image.Image | None:
    """A picture in base64, or None if it cannot be read."""
    try:
        return open_picture(base64.b64decode(encoded, validate=True), formats=("PNG", "JPEG"))
    except ValueError:
        return None
