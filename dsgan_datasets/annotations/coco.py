"""COCO's JSON (https://cocodataset.org/#format-data): polygons and run lengths -> class ids, keypoints -> points, and
back.

CVAT, Label Studio, Roboflow and others write it. Later annotations are painted over earlier ones, and what none covers
is class 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from dsgan_datasets.annotations.folder import IGNORE, Array
from dsgan_datasets.annotations.marks import OBJECT, Mark, corner_offset, placed
from dsgan_datasets.annotations.material import Source, Wanted
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.annotations.png import check_size
from dsgan_datasets.annotations.shapes import Canvas, within_reach
from dsgan_datasets.annotations.values import ImageNames, identity, whole
from dsgan_datasets.contents import ContentError, shown
from dsgan_datasets.polygons import polygons_to_mask
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: Diagonal steps of outlines that are traced from pixels for sure, when there are no other steps than these and
#: straight ones.
_MANY_DIAGONALS = 50
#: Outlines that are looked at to find out.
_MOST_LOOKED_AT = 20_000


def coco_file(files: Sequence[str], size: tuple[int, int], part: Part) -> dict[str, Any]:
    """Annotations of all images; categories are numbered from 1, as COCO's are.

    Args:
        files: names of the images.
        size: (H, W) of all of them.
        part: see `outlines_part` and `points_part`.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, entries in enumerate(part.annotations, 1):
        for category, entry in entries:
            number = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            annotations.append({**number, **entry, "iscrowd": 0})
    return {
        "images": [
            {"id": i, "file_name": file, "width": size[1], "height": size[0]} for i, file in enumerate(files, 1)
        ],
        "categories": [{"id": i, **entry} for i, entry in enumerate(part.categories, 1)],
        "annotations": annotations,
    }


class Part(NamedTuple):
    """What a COCO file holds of one kind of label: categories, and for each image (category from 1, annotation)."""

    categories: Sequence[Mapping[str, Any]]
    annotations: Sequence[Sequence[tuple[int, Mapping[str, Any]]]]


def outlines_part(images: Sequence[Sequence[tuple[int, Array]]], size: tuple[int, int], schema: LabelSchema) -> Part:
    """Class ids and polygons [P, 2] of each image, in their order."""
    return Part(
        [{"name": name, "supercategory": ""} for name in schema.classes],
        [
            [
                (
                    category + 1,
                    {
                        "segmentation": [polygon.flatten().tolist()],
                        "bbox": _box(polygon),
                        "area": float(polygons_to_mask([polygon], size).sum()),
                    },
                )
                for category, polygon in shapes
            ]
            for shapes in images
        ],
    )


def points_part(images: Sequence[Array], target: Keypoints) -> Part:
    """Points [K, 3] of each image; as annotation tools have them, with pixel centers at .5."""
    category = {
        "name": OBJECT,
        "supercategory": "",
        "keypoints": list(target.names),
        "skeleton": [[a + 1, b + 1] for a, b in target.skeleton],
    }
    annotations = []
    for points in images:
        there = points[points[:, 2] > 0]
        box = _box(there[:, :2]) if len(there) else [0.0, 0.0, 0.0, 0.0]
        entry = {
            "segmentation": [],
            "keypoints": [number for x, y, v in points.tolist() for number in (x, y, int(v))],
            "num_keypoints": len(there),
            "bbox": box,
            "area": box[2] * box[3],
        }
        annotations.append([(1, entry)])
    return Part([category], annotations)


def _box(points: Array) -> list[float]:
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return [left, top, right - left, bottom - top]


def is_coco(content: Any) -> bool:
    """Whether a parsed file is COCO's, perhaps one with mistakes in it."""
    return isinstance(content, dict) and "images" in content and ("annotations" in content or "categories" in content)


def coco_sources(
    content: Any, where: str, wanted: Wanted, size: tuple[int, int], names: ImageNames, found: Findings
) -> dict[str, Source]:
    """Name of an image, without folder and ending -> what its annotations say.

    Images that are listed without an annotation are not among them: tools list all images of a task.

    Args:
        content: the parsed file.
        where: what to call it in messages.
        wanted: what is annotated, of the kinds in `READERS`.
        size: (H, W) that images must have.
        names: of the exported images.
        found: collects errors not tied to one image.
    """
    images = annotated_images(content, where, found)
    if images is None:
        return {}
    read = CocoReader(content, where, wanted, lambda _: size, found)
    sources: dict[str, Source] = {}
    files: dict[str, str] = {}
    for image in images:
        if name := _name(image.file, names, where, found):
            if name in files:
                found.error(
                    where, f"images {shown(files[name])} and {shown(image.file)} are both {name}: remove one of them"
                )
                continue
            files[name] = image.file
            sources[name] = Source(where, partial(read, image, name))
    return sources


class CocoImage(NamedTuple):
    """An image that a file annotates.

    Attributes:
        file: its name.
        entry: what the file says of it.
        annotations: of it, at least one.
    """

    file: str
    entry: Mapping[str, Any]
    annotations: Sequence[Mapping[str, Any]]


def annotated_images(content: Any, where: str, found: Findings) -> list[CocoImage] | None:
    """The images of a parsed file that have annotations; None, with the reason noted, if it is not such a file.

    Args:
        content: the parsed file.
        where: what to call it in messages.
        found: collects errors.
    """
    images, annotations, categories = (_objects(content, name) for name in ("images", "annotations", "categories"))
    if images is None or annotations is None or categories is None:
        found.error(where, "is not a COCO file, it needs lists of images, annotations and categories: export it again")
        return None
    if any("segments_info" in annotation for annotation in annotations):
        found.error(where, "is panoptic COCO, which keeps its masks elsewhere: export it as COCO with instances")
        return None
    for what, entries in (("categories", categories), ("images", images)):
        counts = Counter(identity(entry.get("id")) for entry in entries)
        if twice := [shown(given) for given, count in counts.items() if count > 1 and given is not None]:
            found.error(where, f"several {what} have the id {listed(twice)}: give each its own, or export it again")
    by_image = defaultdict(list)
    for annotation in annotations:
        by_image[identity(annotation.get("image_id"))].append(annotation)
    annotated = []
    for image in images:
        file, image_id = image.get("file_name"), identity(image.get("id"))
        its = by_image.pop(image_id, [])
        if not isinstance(file, str) or not file.strip() or image_id is None:
            found.error(
                where,
                f"image {shown(file)}, id {shown(image.get('id'))}: needs a file name, and a number or text as id",
            )
        elif its:
            annotated.append(CocoImage(file, image, its))
    for image_id, orphans in by_image.items():
        given = shown(orphans[0].get("image_id"))
        reason = "is not a number or text" if image_id is None else "is not in the file"
        found.error(where, f"annotations of image id {given}, which {reason} ({len(orphans)} in all): export it again")
    return annotated


class CocoReader:
    """Reads the labels of images of one file, whose habits (what its coordinates count from) hold for all of it.

    Args:
        content: the parsed file, in which `annotated_images` found no mistake.
        where: what to call it in messages.
        wanted: what is annotated, of the kinds in `READERS`.
        size: id of an image, see `identity` -> (H, W) that it must have.
        found: collects warnings about the whole file.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        where: str,
        wanted: Wanted,
        size: Callable[[int | str | None], tuple[int, int]],
        found: Findings,
    ) -> None:
        by_id = {identity(category.get("id")): category for category in content["categories"]}
        shared = _File(where, by_id, content["annotations"], size)
        self._where, self._size, self._fields = where, size, wanted.fields
        self._readers = {target.field: READERS[target.kind](shared, target) for target in wanted.targets}

    def __call__(self, image: CocoImage, name: str, found: Findings) -> dict[str, Array]:
        """Labels of an image by field; `name` is what messages call it."""
        size = self._size(identity(image.entry.get("id")))
        where = f"{self._where}, image {name}"
        return _read(image.entry, image.annotations, where, size, self._readers, self._fields, found)


def _name(file: str, names: ImageNames, where: str, found: Findings) -> str:
    """The exported image that a file name is of; the name as it is if that is none, "" if there are several."""
    held = names.find(file)
    if len(held) > 1:
        found.error(where, f"image {shown(file)} holds the names of several images, {listed(held)}: rename it")
        return ""
    return held[0] if held else file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or file


def _objects(content: Any, name: str) -> list[dict[str, Any]] | None:
    part = content.get(name) if isinstance(content, dict) else None
    return part if isinstance(part, list) and all(isinstance(entry, dict) for entry in part) else None


@dataclass(frozen=True)
class _File:
    """The parts of a file that all images share: categories by id, all annotations, and (H, W) by id of the image."""

    where: str
    categories: Mapping[int | str | None, Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    size_of: Callable[[int | str | None], tuple[int, int]]

    def category(self, annotation: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of an annotation; empty if it has none that is in the file."""
        category = identity(annotation.get("category_id"))
        return {} if category is None else self.categories.get(category, {})


class _LabelReader(Protocol):
    """Reads one kind of label."""

    def takes(self, annotation: Mapping[str, Any]) -> bool:
        """Whether an annotation is surely of this kind."""

    def read(
        self, annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], where: str, found: Findings
    ) -> Array | None:
        """The label of an (H, W) image; None if it has none, or with the mistakes noted."""


def _read(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    where: str,
    size: tuple[int, int],
    readers: Mapping[str, _LabelReader],
    fields: Collection[str],
    found: Findings,
) -> dict[str, Array]:
    """Each annotation goes to all that take it, and else to the first of the readers, which says what is wrong; of
    these, readers of some fields are asked."""
    if not check_size(image.get("height"), image.get("width"), size, where, found):
        return {}
    its: dict[str, list[Mapping[str, Any]]] = {field: [] for field in readers}
    for annotation in annotations:
        takers = [field for field, reader in readers.items() if reader.takes(annotation)]
        for field in takers or [next(iter(readers))]:
            its[field].append(annotation)
    labels = {}
    for field, reader in readers.items():
        if field in fields and its[field] and (label := reader.read(its[field], size, where, found)) is not None:
            labels[field] = label
    return labels


class _MaskReader:
    """Outlines and run lengths -> class ids int64 [H, W]; later ones over earlier ones."""

    def __init__(self, file: _File, schema: LabelSchema) -> None:
        self._file, self._schema = file, schema
        self._traced: bool | None = None

    def takes(self, annotation: Mapping[str, Any]) -> bool:
        return self._file.category(annotation).get("name") in (*self._schema.classes, IGNORE)

    def read(
        self, annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], where: str, found: Findings
    ) -> Array | None:
        before, schema, file = found.count, self._schema, self._file
        if self._traced is None:
            self._traced = _style(file, found)
        canvas = Canvas(size)
        unknown = set()
        for annotation in annotations:
            name = self._file.category(annotation).get("name")
            place = f"{where}, annotation {shown(annotation.get('id'))} ({shown(name)})"
            if name not in (*schema.classes, IGNORE):
                unknown.add(shown(name if name is not None else annotation.get("category_id")))
                continue
            try:
                region = _region(annotation, canvas, self._traced)
            except ContentError as error:
                found.error(place, str(error))
                if canvas.full:
                    break
                continue
            if region is None:
                found.warning(
                    place, "has no outline (a box labels no pixels), so it has no effect: draw a polygon or a mask"
                )
            elif not canvas.paint(schema.ignore_index if name == IGNORE else schema.index(name), region):
                found.warning(place, "covers the center of no pixel, so it has no effect")
        if unknown:
            found.error(
                where,
                f"unknown class {listed(sorted(unknown))}: rename it to one of {listed(schema.classes, 20)}, or "
                f"{IGNORE}",
            )
        return None if found.count > before else canvas.mask


class _PointsReader:
    """Keypoints -> points [K, 3]; those of a category may be in another order than the target's."""

    def __init__(self, file: _File, target: Keypoints) -> None:
        self._file, self._target = file, target
        self._offset: float | None = None

    def takes(self, annotation: Mapping[str, Any]) -> bool:
        return bool(annotation.get("keypoints"))

    def read(
        self, annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], where: str, found: Findings
    ) -> Array | None:
        its = [annotation for annotation in annotations if self.takes(annotation)]
        for annotation in annotations:
            if not self.takes(annotation):
                place = f"{where}, annotation {shown(annotation.get('id'))}"
                found.warning(place, "has no keypoints, so it has no effect: mark the points of a skeleton")
        if not its:
            return None
        before, marks = found.count, []
        if self._offset is None:
            self._offset = self._offset_of_file(found)
        for number, annotation in enumerate(its, 1):
            marks += self._marks(
                annotation, self._offset, f"annotation {shown(annotation.get('id', number))}", where, found
            )
        if found.count > before:
            return None
        points = placed(marks, self._target, size, where, found)
        return None if found.count > before else points

    def _offset_of_file(self, found: Findings) -> float:
        each = map(_keypoints, self._file.annotations)
        there = [numbers[:, :2][numbers[:, 2] > 0] for numbers in each if numbers is not None]
        coordinates = np.concatenate(there).flatten() if there else np.zeros(0)
        return corner_offset(coordinates, self._file.where, found)

    def _marks(
        self, annotation: Mapping[str, Any], offset: float, place: str, where: str, found: Findings
    ) -> list[Mark]:
        numbers, names = _keypoints(annotation), self._file.category(annotation).get("keypoints")
        if not isinstance(names, list) or not names:
            found.error(f"{where}, {place}", "its category names no keypoints: export it as COCO keypoints")
        elif numbers is None:
            found.error(
                f"{where}, {place}",
                "keypoints are a flat list x, y, v, x, y, v, … of numbers whose v are 0, 1 or 2: export it again",
            )
        elif len(numbers) != len(names):
            found.error(
                f"{where}, {place}",
                f"has {len(numbers)} keypoints, and its category names {len(names)}: export it again",
            )
        else:
            return [
                Mark(name, x + offset, y + offset, int(v), place, place)
                for name, (x, y, v) in zip(names, numbers.tolist(), strict=True)
            ]
        return []


#: Kind of label -> how it is read.
READERS: dict[str, Callable[[_File, Any], _LabelReader]] = {
    Keypoints.kind: _PointsReader,
    LabelSchema.kind: _MaskReader,
}


def _keypoints(annotation: Mapping[str, Any]) -> Array | None:
    """float64 [K, 3]: (x, y, visibility), or None if they are something else; what is not in the image is at 0."""
    try:
        numbers = np.array(annotation.get("keypoints"), dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    if numbers.ndim == 1 and numbers.size % 3 == 0:
        numbers = numbers.reshape(-1, 3)
    if numbers.ndim != 2 or numbers.shape[1] != 3 or not numbers.size:
        return None
    numbers[numbers[:, 2] == 0] = 0
    return numbers if np.isin(numbers[:, 2], (0, 1, 2)).all() and within_reach(numbers) else None


def _region(annotation: Mapping[str, Any], canvas: Canvas, traced: bool) -> Array | None:
    """bool [H, W] of polygons or run lengths; None if there is no outline.

    Raises:
        ContentError: it cannot be read.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        height, width = canvas.mask.shape
        try:
            return decode_rle(segmentation, (height, width))
        except ValueError as error:
            raise ContentError(f"{error}: export it again") from None
    if isinstance(segmentation, list):
        polygons = list(map(_polygon, _nested(segmentation)))
        if all(polygon is not None for polygon in polygons):
            kept = [polygon for polygon in polygons if polygon is not None]
            traced = traced and all(_points_are_pixels(polygon, canvas.mask.shape) for polygon in kept)
            return canvas.contours(kept) if traced else canvas.polygons(kept)
    raise ContentError("a polygon is a flat list x, y, x, y, … of three points or more: draw it again")


def _nested(segmentation: list[Any]) -> list[Any]:
    """A list of polygons; some tools leave out the outer list if there is only one."""
    return [segmentation] if isinstance(segmentation[0], int | float) else segmentation


def _polygon(numbers: Any) -> Array | None:
    """float64 [P, 2] of a list x, y, x, y, …, or of pairs; None if it is something else."""
    try:
        points = np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    if points.ndim == 2 and points.shape[1] == 2:
        points = points.flatten()
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not within_reach(points):
        return None
    return points.reshape(-1, 2)


def _style(file: _File, found: Findings) -> bool:
    """Whether all outlines of a file were traced from masks, so that their points are pixels, not corners of pixels.

    Label Studio and others make polygons of brush strokes so (OpenCV's findContours). Read as they are, small parts
    would lose half of their pixels. Steps along rows, columns and diagonals alone, many of them, give it away; whole
    coordinates alone are worth a warning.
    """
    given = ((a.get("segmentation"), identity(a.get("image_id"))) for a in file.annotations)
    polygons = (
        (polygon, file.size_of(image))
        for segmentation, image in given
        if isinstance(segmentation, list) and segmentation
        for polygon in map(_polygon, _nested(segmentation))
        if polygon is not None
    )
    diagonals, straight, polygon = 0, True, None
    for polygon, size in islice(polygons, _MOST_LOOKED_AT):
        if not _points_are_pixels(polygon, size):
            return False
        step = np.abs(np.roll(polygon, -1, axis=0) - polygon)
        diagonal = (step[:, 0] == step[:, 1]) & (step[:, 0] > 0)
        diagonals += int(diagonal.sum())
        straight = straight and bool((diagonal | (step == 0).any(1)).all())
    traced = straight and diagonals >= _MANY_DIAGONALS
    if traced:
        found.warning(
            file.where,
            "its outlines were traced from masks (every step runs along pixels), so the pixels on them were counted as "
            "inside. Run lengths (RLE) or mask pictures would be exact: look at the result",
        )
    elif polygon is not None:
        found.warning(
            file.where,
            "all coordinates are whole numbers within the picture. If the outlines were traced from brush strokes, "
            "each region lost its right and lower border: export run lengths (RLE) or mask pictures instead",
        )
    return traced


def _points_are_pixels(polygon: Array, size: tuple[int, ...]) -> bool:
    """Whether all points are whole numbers of a column and a row that the picture has."""
    height, width = size
    return not (polygon % 1).any() and polygon.min() >= 0 and bool((polygon <= (width - 1, height - 1)).all())


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
    sides = encoded.get("size")
    if not isinstance(sides, list) or tuple(map(whole, sides)) != size:
        raise ValueError(f"run lengths of size {shown(sides)}, expected {list(size)}")
    pixels, counts = size[0] * size[1], encoded.get("counts")
    if not isinstance(counts, str | list) or len(counts) > 8 * (pixels + 2):
        raise ValueError("run lengths must be a list or a text, and not more than the image has pixels")
    lengths = _decompressed(counts) if isinstance(counts, str) else _listed_lengths(counts)
    if (lengths < 0).any() or (lengths > pixels).any():
        raise ValueError("run lengths must be numbers from 0, of pixels that the image has")
    if lengths.sum() != pixels:
        raise ValueError(f"run lengths add up to {lengths.sum()}, the image has {pixels} pixels")
    mask: Array = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(size[1], size[0]).T
    return mask


def _listed_lengths(counts: list[Any]) -> Array:
    try:
        lengths = np.array(counts)
    except (ValueError, OverflowError):
        lengths = np.array("")
    numbers = lengths.ndim == 1 and lengths.dtype.kind in "if" and not any(n is True for n in counts)
    if not numbers or (lengths % 1 != 0).any():
        raise ValueError("run lengths must be whole numbers")
    return lengths.astype(np.int64)


def _decompressed(text: str) -> Array:
    """The counts of a compressed text, all at once: it may be long."""
    try:
        bits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        bits = np.array([-1])
    last = bits & 32 == 0
    ends = np.flatnonzero(last)  # of the characters of each count
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    widths = ends - starts + 1
    if not last[-1:].all() or (bits < 0).any() or (bits > 63).any() or (widths > 7).any():  # 7 hold every int32
        raise ValueError("compressed run lengths are damaged")
    if not len(bits):
        return bits
    places = np.arange(len(bits)) - np.repeat(starts, widths)
    counts: Array = np.add.reduceat((bits & 31) << 5 * places, starts)
    counts -= ((bits[ends] & 16) > 0) * (32 << 5 * places[ends])
    for parity in (1, 2):  # differences to the one two before, from the fourth on
        counts[parity::2] = counts[parity::2].cumsum()
    return counts
