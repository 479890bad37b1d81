"""Folders, archives, COCO files and shards -> photos, and the labels that came with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dsgan_datasets.annotations.coco import is_coco
from dsgan_datasets.annotations.files import File, files_in
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.values import identity
from dsgan_datasets.contents import ContentError, parse_json, shown
from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.inversion.labels import CocoLabels, ObjectOf, ShardLabels, photo_name
from dsgan_datasets.inversion.photos import Photo, Photos, Reader, upright
from dsgan_datasets.shards.manifest import MANIFEST
from dsgan_datasets.shards.source import ShardSource

#: Endings that photos have.
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

#: How photos are brought into the frame: the middle of each, or of a COCO file each of its boxes, or by its keypoints.
Align = Literal["center", "boxes", "keypoints"]


def read_photos(
    where: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    align: Align = "center",
    margin: float = 0.0,
    template: Mapping[str, Sequence[float]] | None = None,
    category: str | None = None,
    skip: bool = False,
    license: str | None = None,
    warn: Callable[[str], None] | None = None,
) -> Photos:
    """The photos of a folder, a zip archive, a COCO file or shards, each aligned as the generator saw such photos.

    Photos are turned upright as their EXIF data says. A gray photo is repeated to three channels. All are opened once,
    so that what cannot be used is known before hours of work.

    Args:
        where: folder (searched at any depth), zip archive or single photo; COCO's JSON, whose files lie beside it; or
            folder or URL of shards, whose images are taken as they are.
        size: (H, W) of the generator's images.
        align: "center" takes the largest crop in the middle of each photo; "boxes" a crop around each box of a COCO
            file; "keypoints" turns, scales and shifts each annotated object so that its keypoints meet the `template`.
        margin: of boxes, see `Alignment.box`.
        template: name of a keypoint -> (x, y) in the generator's images, in pixels.
        category: of the annotations that are aligned by, where the COCO file has others too, such as parts of what they
            show; None takes all annotations.
        skip: leave out photos that cannot be used.
        license: of the photos; None is that of the shards, or "unspecified".
        warn: is called with a sentence about each that is left out.

    Raises:
        AnnotationError: lists what is wrong with each photo that cannot be used: damaged, transparent, of 16 bits, too
            small; or there are none.
        ValueError: arguments that do not fit together.

    Example:
        >>> photos = read_photos("my-photos", labeled.image_size)  # doctest: +SKIP
        >>> photos[0].image.shape  # doctest: +SKIP
        torch.Size([3, 64, 64])
    """
    if align not in get_args(Align):
        raise ValueError(f"align must be one of {', '.join(get_args(Align))}, not {align!r:.40}")
    if (align == "keypoints") != (template is not None):
        raise ValueError("a template says where keypoints lie in the generator's images: give it with align=keypoints")
    if category is not None and align == "center":
        raise ValueError("a category says which annotations are aligned by: give it with align=boxes or keypoints")
    text = os.fspath(where)
    if "://" in text or (Path(text) / MANIFEST).exists():
        if align != "center":
            raise ValueError(f"align={align} needs the boxes or keypoints of a COCO file; {text} holds shards")
        return _of_shards(text, size, license)
    place, found = Path(text), Findings()
    if not place.exists():
        raise ValueError(f"{place}: no such folder or file with photos")
    labels = None
    if place.suffix.lower() == ".json":
        readers, labels = _of_coco(place, size, align, margin, template, category, found)
    elif align != "center":
        raise ValueError(
            f"align={align} needs the boxes or keypoints of a COCO file: give its .json instead of {place}"
        )
    else:
        readers = _of_files(place, size)
    usable = {name: read for name, read in readers.items() if found.guarded(name, read) is not None}
    if found.mistakes and not skip:
        *others, last = found.mistakes
        raise AnnotationError(place, *others, f"{last}. Or leave such photos out: skip (--skip)")
    if not usable:
        raise AnnotationError(place, *(found.mistakes or [f"there are no photos (*{', *'.join(_ENDINGS)})"]))
    if warn is not None:
        for mistake in found.mistakes:
            warn(f"left out: {mistake}")
    left_out = readers.keys() - usable.keys()
    return Photos(usable, size, license or "unspecified", labels=labels, left_out=left_out)


def _of_files(place: Path, size: tuple[int, int]) -> dict[str, Reader]:
    files = [file for file in files_in(place) if file.suffix in _ENDINGS or place.is_file()]
    names: dict[str, File] = {}
    for file in files:
        name = photo_name(file.path)
        if name in names:
            raise AnnotationError(place, f"{file.path} and {names[name].path} have the same name: rename one of them")
        names[name] = file
    return {
        name: partial(_photo, file.read, name, partial(Alignment.center, size=size)) for name, file in names.items()
    }


def _photo(read: Callable[[], bytes], name: str, align: Callable[[tuple[int, int]], Alignment]) -> Photo:
    picture = upright(read())
    alignment = align((picture.height, picture.width))
    return Photo(name, alignment.image(picture), alignment)


def _of_shards(where: str, size: tuple[int, int], license: str | None) -> Photos:
    source = ShardSource(where)
    if source.image_size != size:
        (height, width), (rows, columns) = size, source.image_size
        raise ValueError(
            f"the images in {where} are {columns}×{rows}, the generator's are {width}×{height}: shards are taken as "
            "they are; export them as a folder, which is scaled"
        )

    def read(number: int, name: str) -> Photo:
        return Photo(name, source.batch([number]).image[0])

    names = [f"{number:09d}" for number in range(len(source))]
    readers = {name: partial(read, number, name) for number, name in enumerate(names)}
    return Photos(readers, size, license or source.license, labels=ShardLabels(source))


def _of_coco(
    place: Path,
    size: tuple[int, int],
    align: Align,
    margin: float,
    template: Mapping[str, Sequence[float]] | None,
    category: str | None,
    found: Findings,
) -> tuple[dict[str, Reader], CocoLabels]:
    """Photos that a COCO file names, each once, or each of its annotations; and what that file says of them."""
    try:
        (file,) = files_in(place)
        content = parse_json(file.read())
    except ContentError as error:
        raise AnnotationError(place, f"it {error}") from None
    if not is_coco(content):
        raise AnnotationError(place, 'it is not COCO\'s JSON, an object with "images" and "annotations"')
    try:
        paths = {identity(image["id"]): str(image["file_name"]) for image in content["images"]}
        annotated = [(identity(each["image_id"]), each) for each in content.get("annotations", ())]
        keypoints = {identity(each["id"]): each.get("keypoints", ()) for each in content.get("categories", ())}
        names = {identity(each["id"]): each.get("name") for each in content.get("categories", ())}
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(place, f"it is not COCO's JSON: {shown(error)} is missing or of another kind") from None
    folder = place.parent.resolve()
    readers: dict[str, Reader] = {}
    shown_by: dict[str, ObjectOf] = {}

    def add(name: str, image: Any, how: Callable[[tuple[int, int]], Alignment], annotation: Any = None) -> None:
        file = found.guarded(name, partial(_inside, folder, paths[image]))
        if file is not None:
            readers[name] = partial(_photo, partial(_content, file), name, how)
            shown_by[name] = ObjectOf(image, annotation)

    labels = CocoLabels(place.name, content, shown_by)
    if align == "center":
        for image, path in paths.items():
            add(photo_name(path), image, partial(Alignment.center, size=size))
        return readers, labels
    if category is not None and category not in names.values():
        raise AnnotationError(place, f"it has no category {category!r:.60}; it has: {listed(list(names.values()))}")
    for image, annotation in annotated:
        if image not in paths or category not in (None, names.get(identity(annotation.get("category_id")))):
            continue
        name = f"{photo_name(paths[image])}-{identity(annotation.get('id'))}"
        if align == "boxes":
            how = found.guarded(name, partial(_box, annotation, size, margin))
        else:
            assert template is not None
            points = keypoints.get(identity(annotation.get("category_id")), ())
            how = found.guarded(name, partial(_similarity, annotation, size, points, template))
        if how is not None:
            add(name, image, how, annotation)
    return readers, labels


def _inside(folder: Path, path: str) -> Path:
    file = (folder / path).resolve()
    if not file.is_relative_to(folder):
        raise ContentError("lies outside the folder of the COCO file: move it there")
    return file


def _content(path: Path) -> bytes:
    (file,) = files_in(path)
    return file.read()


def _box(annotation: Mapping[str, Any], size: tuple[int, int], margin: float) -> Callable[[tuple[int, int]], Alignment]:
    try:
        left, top, width, height = map(float, annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        raise ContentError("has no bbox [x, y, width, height]: add it, or align by center") from None
    box = (left, top, left + width, top + height)
    return lambda photo_size: Alignment.box(box, photo_size, size, margin=margin)


def _similarity(
    annotation: Mapping[str, Any], size: tuple[int, int], names: Sequence[str], template: Mapping[str, Sequence[float]]
) -> Callable[[tuple[int, int]], Alignment]:
    if unknown := [name for name in template if name not in names]:
        raise ContentError(f"has no keypoint {listed(unknown)}; its category has: {listed(names) or 'none'}")
    try:
        points = np.array(annotation["keypoints"], dtype=np.float64).reshape(len(names), 3)
    except (KeyError, TypeError, ValueError):
        raise ContentError(f"has no keypoints [x, y, v] for each of {listed(names)}: add them") from None
    rows = [list(names).index(name) for name in template]
    there = np.where(points[rows, 2:] > 0, points[rows, :2], np.nan)
    here = np.array([template[name] for name in template], dtype=np.float64)
    return lambda photo_size: Alignment.keypoints(there, here, photo_size, size)
