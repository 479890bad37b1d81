"""LabelMe's JSON files (https://github.com/wkentaro/labelme, versions 3 to 7) -> class ids and points, and back.

Descendants such as X-AnyLabeling write them, too.

A file lists shapes; a later one is painted over an earlier one, and what no shape covers is class 0.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dsgan_datasets.annotations.files import File
from dsgan_datasets.annotations.folder import IGNORE, Array, hash_pixels
from dsgan_datasets.annotations.marks import ABSENT, HIDDEN, Mark, placed, visibility
from dsgan_datasets.annotations.material import Wanted
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.annotations.png import check_size
from dsgan_datasets.annotations.shapes import Canvas, within_reach
from dsgan_datasets.annotations.values import ImageNames
from dsgan_datasets.contents import ContentError, parse_json, shown
from dsgan_datasets.images import open_picture
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema


def labelme_file(image: str, size: tuple[int, int], shapes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A file as LabelMe 5 writes it, with its image beside it.

    Args:
        image: name of the image file.
        size: (H, W).
        shapes: see `polygon_shapes` and `point_shapes`.
    """
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def polygon_shapes(outlines: Sequence[tuple[int, Array]], schema: LabelSchema) -> list[dict[str, Any]]:
    """Shapes of class ids and polygons [P, 2] of (x, y)."""
    return [_shape("polygon", schema.classes[i], polygon) for i, polygon in outlines]


def point_shapes(points: Array, target: Keypoints) -> list[dict[str, Any]]:
    """Shapes of points [K, 3]: (x, y, visibility); what is hidden or not in the image has the flag that says so."""
    return [
        {
            **_shape("point", name, np.array([(x, y)])),
            "flags": {HIDDEN[0]: visibility == 1, ABSENT[0]: visibility == 0},
        }
        for name, (x, y, visibility) in zip(target.names, points.tolist(), strict=True)
    ]


def _shape(kind: str, label: str, points: Array) -> dict[str, Any]:
    return {
        "label": label,
        "points": points.astype(float).tolist(),
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }


def is_labelme(content: Any) -> bool:
    """Whether a parsed file is LabelMe's, perhaps one with mistakes in it."""
    return isinstance(content, dict) and ("shapes" in content or "imagePath" in content)


def read_labelme(
    file: File,
    name: str,
    sha256: str,
    names: ImageNames,
    wanted: Wanted,
    size: tuple[int, int],
    found: Findings,
) -> dict[str, Array]:
    """The labels that a LabelMe file holds; those of which it has no shape, or which have mistakes, are not among them.

    Args:
        file: to read.
        name: of the image that it belongs to.
        sha256: of the image's pixels, checked if the file has the image in it.
        names: of all exported images.
        wanted: what is annotated, of the kinds in `READERS`; a shape belongs to the first that takes its type.
        size: (H, W) of the image.
        found: collects mistakes and warnings.
    """
    where = file.name
    content = parse_json(file.read())
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        found.error(where, "is not a LabelMe file, it has no list of shapes: save it from LabelMe again")
        return {}
    if odd := [number for number, shape in enumerate(shapes, 1) if not isinstance(shape, dict)]:
        found.error(f"{where}, shape {odd[0]}", "is not a shape: remove it, or save the file from LabelMe again")
        return {}
    before = found.count
    _check_image(content, name, where, sha256, names, size, found)
    usable = found.count == before
    labels = labels_of(shapes, where, wanted, size, found)
    return labels if usable else {}


def labels_of(
    shapes: Sequence[Mapping[str, Any]],
    where: str,
    wanted: Wanted,
    size: tuple[int, int],
    found: Findings,
) -> dict[str, Array]:
    """The labels that shapes like LabelMe's are; see `read_labelme`.

    A mask may be an array, bool [H, W], beside LabelMe's own text.
    """
    targets = wanted.targets
    its: dict[str, list[tuple[int, Any]]] = {target.field: [] for target in targets}
    for number, shape in enumerate(shapes, 1):
        kind = shape.get("shape_type") or "polygon"  # old files have none
        taker, label = next((t for t in targets if READERS[t.kind].takes(kind)), targets[0]), shape.get("label")
        meant = None if label in taker.tally_names else next((t for t in targets if label in t.tally_names), None)
        if meant is None:
            its[taker.field].append((number, shape))
        else:
            how = READERS[meant.kind].drawn
            found.error(f"{where}, shape {number} ({shown(label)})", f"is drawn as {shown(kind)}: draw it as {how}")
    labels = {
        target.field: READERS[target.kind].read(its[target.field], where, target, size, found)
        for target in targets
        if its[target.field] and target.field in wanted.fields
    }
    return {field: label for field, label in labels.items() if label is not None}


class ShapesReader(NamedTuple):
    """How a kind of label is read from shapes.

    Attributes:
        drawn: as what the tool draws it.
        takes: whether a type of shape belongs to this kind.
        read: numbered shapes, the file's name, target and (H, W) -> label; None if mistakes were noted.
    """

    drawn: str
    takes: Callable[[Any], bool]
    read: Callable[[Sequence[tuple[int, Any]], str, Any, tuple[int, int], Findings], Array | None]


def _read_mask(
    shapes: Sequence[tuple[int, Any]], where: str, schema: LabelSchema, size: tuple[int, int], found: Findings
) -> Array | None:
    """Class ids int64 [H, W]; the class names are the labels, and `IGNORE` marks what is ignored."""
    before = found.count
    _check_labels([shape.get("label") for _, shape in shapes], where, schema, found)
    canvas = Canvas(size)
    for number, shape in shapes:
        label = shape.get("label")
        if label not in (*schema.classes, IGNORE):
            continue
        place = f"{where}, shape {number} ({shown(label)})"
        try:
            painted = canvas.paint(
                schema.ignore_index if label == IGNORE else schema.index(label), _region(shape, canvas)
            )
        except ContentError as error:
            found.error(place, str(error))
            if canvas.full:
                break
            continue
        if not painted:
            found.warning(place, "covers the center of no pixel, so it has no effect")
    return canvas.mask if found.count == before else None


def _read_points(
    shapes: Sequence[tuple[int, Any]], where: str, target: Keypoints, size: tuple[int, int], found: Findings
) -> Array | None:
    """Points [K, 3]; LabelMe counts from the corner of the first pixel, as `Keypoints` does."""
    before, marks = found.count, []
    for number, shape in shapes:
        kind, place = shape.get("shape_type") or "polygon", f"shape {number}"
        label = shape.get("label")
        if kind != "point":
            found.error(
                f"{where}, {place} ({shown(label)})",
                f"a {shown(kind)} marks no point, and this folder asks for points only: draw a point, or remove it",
            )
            continue
        points = _points(shape.get("points"))
        if points is None or len(points) != 1:
            found.error(
                f"{where}, {place} ({shown(label)})",
                "a point is one pair (x, y) of plain numbers: draw it again, or remove it",
            )
            continue
        try:
            (x, y), group = points[0].tolist(), shape.get("group_id")
            instance = None if group is None else f"group {shown(group)}"
            _check_flags(shape.get("flags"), f"{where}, {place} ({shown(label)})", found)
            marks.append(Mark(label, x, y, _visibility(shape), place, instance))
        except ContentError as error:
            found.error(f"{where}, {place} ({shown(label)})", str(error))
    return None if found.count > before else placed(marks, target, size, where, found)


def _check_flags(flags: Any, where: str, found: Findings) -> None:
    """A warning for flags that say nothing of a point: they may be misspelled.

    Raises:
        ContentError: flags that cannot be read.
    """
    if not isinstance(flags, dict | None):
        raise ContentError(f'its flags are {shown(flags)}, not an object such as {{"{HIDDEN[0]}": true}}')
    known = (*HIDDEN, *ABSENT)
    if strange := [name for name, value in (flags or {}).items() if value and str(name).strip().lower() not in known]:
        found.warning(
            where,
            f"the flag {listed(strange)} says nothing of a point; those that do are {', '.join(known)}: correct it if "
            "it was meant to be one of them",
        )


def _visibility(shape: Mapping[str, Any]) -> int:
    """0, 1 or 2 of a point: visible unless a flag, an attribute or the description says something else."""
    words = [str(shape.get("description") or "")]
    for extra in (shape.get("flags"), shape.get("attributes")):
        for name, value in extra.items() if isinstance(extra, dict) else ():
            words.append(name if value is True or str(value).lower() == "true" else str(value))
    return visibility(words)


#: Kinds of shapes -> points that they need. Those without a line of their own in `_region` are filled as polygons:
#: LabelMe's oriented rectangle, and what X-AnyLabeling and others call it.
_CORNERS = {
    "polygon": 3,
    "rectangle": 2,
    "circle": 2,
    "mask": 2,
    **dict.fromkeys(("oriented_rectangle", "rotation", "rotated_rectangle", "rotated_rect", "quadrilateral", "obb"), 3),
}
#: Kind of label -> how it is read.
READERS: dict[str, ShapesReader] = {
    Keypoints.kind: ShapesReader("a point (Create Point)", lambda kind: kind == "point", _read_points),
    LabelSchema.kind: ShapesReader(
        "an outline (Create Polygons)", lambda kind: isinstance(kind, str) and kind in _CORNERS, _read_mask
    ),
}


def _check_image(
    content: Mapping[str, Any],
    name: str,
    where: str,
    sha256: str,
    names: ImageNames,
    size: tuple[int, int],
    found: Findings,
) -> None:
    if not check_size(content.get("imageHeight"), content.get("imageWidth"), size, where, found):
        return
    drawn_on = content.get("imagePath")
    if isinstance(drawn_on, str) and name not in names.find(drawn_on):
        found.error(where, f"was drawn on {shown(drawn_on)}: name the annotation like the image it belongs to")
    embedded = content.get("imageData")
    if isinstance(embedded, str) and embedded:
        try:
            same = hash_pixels(np.asarray(_decoded(embedded, size=size).convert("RGB"))) == sha256
        except ContentError:
            same = False
        if not same:
            found.error(
                where,
                "the picture inside it (imageData) is not the exported image: annotate the exported image itself",
            )


def _check_labels(labels: Sequence[Any], where: str, schema: LabelSchema, found: Findings) -> None:
    unknown = Counter(shown(label) for label in labels if label not in (*schema.classes, IGNORE))
    for label, count in unknown.items():
        shapes = "1 shape" if count == 1 else f"{count} shapes"
        found.error(
            where,
            f"{shapes} with the unknown class {label}: rename it to one of {listed(schema.classes, 20)}, or {IGNORE}",
        )


def _region(shape: Mapping[str, Any], canvas: Canvas) -> Array:
    """bool [H, W] of the pixels whose centers a shape covers, as LabelMe and its descendants fill it.

    Raises:
        ContentError: it cannot be read.
    """
    kind = shape.get("shape_type") or "polygon"  # old files have none
    if kind in _WITHOUT_AREA:
        raise ContentError(f"a {shown(kind)} has no area: draw a polygon, rectangle, circle or mask instead")
    if not isinstance(kind, str) or kind not in _CORNERS:
        raise ContentError(f"a {shown(kind)} is not a shape that is read: draw a {_ALLOWED} instead")
    points = _points(shape.get("points"))
    if points is None or len(points) < _CORNERS[kind]:
        raise ContentError(
            f"a {kind} needs {_CORNERS[kind]} points (x, y) of plain numbers: draw it again, or remove it"
        )
    if kind == "mask":
        return _mask_region(shape.get("mask"), points, canvas.mask.shape)
    if kind == "circle":
        return canvas.circle(points[0], math.dist(points[0], points[1]))
    if kind == "rectangle" and len(points) == 2:  # X-AnyLabeling gives all four corners
        (left, top), (right, bottom) = points.min(0), points.max(0)
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return canvas.polygons([points])


_WITHOUT_AREA = ("line", "linestrip", "point", "points")
_ALLOWED = "polygon, rectangle, oriented rectangle, circle or mask"


def _mask_region(encoded: Any, points: Array, size: tuple[int, ...]) -> Array:
    """A mask drawn with LabelMe's AI tool: a PNG that lies with its corner at the first point."""
    height, width = size
    if isinstance(encoded, np.ndarray):
        return encoded
    if not isinstance(encoded, str):
        raise ContentError("its mask is missing: draw it again, or remove it")
    part = np.asarray(_decoded(encoded, most_pixels=height * width).convert("L")) > 0
    region = np.zeros((height, width), dtype=bool)
    left, top = (round(float(v)) for v in points.min(0))
    bottom, right = top + part.shape[0], left + part.shape[1]
    if top < 0 or left < 0 or bottom > height or right > width:
        raise ContentError(f"its mask, {part.shape[1]}×{part.shape[0]} at ({left}, {top}), reaches beyond the image")
    region[top:bottom, left:right] = part
    return region


def _points(value: Any) -> Array | None:
    """float64 [P, 2], or None if the value is not a list of points."""
    try:
        points = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return points if points.ndim == 2 and points.shape[1] == 2 and within_reach(points) else None


def _decoded(encoded: str, **expected: Any) -> Image.Image:
    """A PNG in base64, see `open_picture`; a ContentError if it cannot be read."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise ContentError("the picture in it is not base64 text: draw it again, or remove it") from None
    try:
        return open_picture(content, what="the picture in it", **expected)
    except ValueError as error:
        raise ContentError(f"{error}: draw it again, or remove it") from None
