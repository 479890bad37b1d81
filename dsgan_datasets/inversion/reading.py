"""Folders, archives, COCO files and shards -> photos, and the labels that came with them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dsgan_datasets.annotations.coco import annotated_images, is_coco
from dsgan_datasets.annotations.files import File, files_in
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.values import identity, whole
from dsgan_datasets.checks import is_number
from dsgan_datasets.contents import ContentError, parse_json
from dsgan_datasets.files import exists, is_file
from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.inversion.labels import CocoLabels, ObjectOf, ShardLabels, photo_name
from dsgan_datasets.inversion.photos import Photo, Photos, Reader, upright
from dsgan_datasets.shards.manifest import MANIFEST
from dsgan_datasets.shards.source import ShardSource

#: Endings that photos have.
_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
#: Endings of other pictures, which somebody may take for photos: of the web, of cameras, of programs, of scanners.
_OTHER_PICTURES = (
    *(".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".ico"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
    *(".psd", ".xcf", ".tga", ".exr", ".hdr", ".ppm", ".pgm", ".pnm"),
    *(".dcm", ".dicom", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".svs"),
)

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
    warn: Callable[[str], object] | None = warnings.warn,
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
        template: of keypoints: name of a keypoint -> (x, y) in the generator's images, in pixels.
        category: of the annotations that are aligned by, where the COCO file has others too, such as parts of what they
            show; None takes all annotations.
        skip: leave out photos that cannot be used.
        license: of the photos; None is that of the shards, or "unspecified".
        warn: is called with a sentence about each photo that is left out, and one about pictures of other formats,
            which are passed over; None is silent.

    Raises:
        AnnotationError: lists what is wrong with each photo that cannot be used: damaged, transparent, of 16 bits, too
            small; or there are none, or only pictures of other formats.
        ValueError: arguments that do not fit together.

    Example:
        >>> photos = read_photos("my-photos", labeled.image_size)  # doctest: +SKIP
        >>> photos[0].image.shape  # doctest: +SKIP
        torch.Size([3, 64, 64])
    """
    if align not in get_args(Align):
        raise ValueError(f"align must be one of {', '.join(get_args(Align))}, not {align!r:.40}")
    _check_margin(margin, align)
    _check_template(template, align, size)
    if category is not None and align == "center":
        raise ValueError("a category says which annotations are aligned by: give it with align=boxes or keypoints")
    text = os.fspath(where)
    if "://" in text or exists(Path(text) / MANIFEST):
        if align != "center":
            raise ValueError(f"align={align} needs the boxes or keypoints of a COCO file; {text} holds shards")
        return _of_shards(text, size, license)
    place, found = Path(text), Findings()
    if not exists(place):
        raise ValueError(f"{place}: no such folder or file with photos")
    labels, others = None, ""
    if place.suffix.lower() == ".json":
        readers, labels = _of_coco(place, size, align, margin, template, category, found)
    elif align != "center":
        raise ValueError(
            f"align={align} needs the boxes or keypoints of a COCO file: give its .json instead of {place}"
        )
    else:
        readers, others = _of_files(place, size)
    usable = {name: read for name, read in readers.items() if found.guarded(name, read) is not None}
    if found.mistakes and not skip:
        raise AnnotationError(place, *found.mistakes, way_out="or leave such photos out: skip (--skip)")
    if not usable:
        nothing = others or _none(labels is not None, align, category)
        raise AnnotationError(place, *(found.mistakes or [nothing]))
    if warn is not None:
        if others:
            warn(f"{place}: {others}")
        for mistake in found.mistakes:
            warn(f"left out: {mistake}")
    left_out = readers.keys() - usable.keys()
    return Photos(usable, size, license or "unspecified", labels=labels, left_out=left_out)


def _check_margin(margin: float, align: Align) -> None:
    if not is_number(margin) or not -0.5 < margin <= 100:
        raise ValueError(
            f"margin must be a share of the box's longer side, above -0.5 and at most 100, not {margin!r:.40}"
        )
    if margin and align != "boxes":
        raise ValueError(
            f"margin is of boxes, and changes nothing with align={align}: leave it out, or use align=boxes"
        )


def _check_template(template: Mapping[str, Sequence[float]] | None, align: Align, size: tuple[int, int]) -> None:
    if template is None:
        if align == "keypoints":
            raise ValueError(
                "align=keypoints needs a template, which says where the keypoints lie in the generator's images: "
                'template={"nose": [32, 36], …} (template: --template)'
            )
        return
    if align != "keypoints":
        raise ValueError(f"template is of keypoints, and changes nothing with align={align}: use align=keypoints")
    if not isinstance(template, Mapping) or len(template) < 2:
        raise ValueError('template must name two keypoints or more, such as {"nose": [32, 36], "chin": [32, 60]}')
    height, width = size
    for name, point in template.items():
        try:
            x, y = map(float, point)
        except (TypeError, ValueError):
            raise ValueError(f"template: {name} must be [x, y] in pixels, not {point!r:.40}") from None
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"template: {name} must lie in the generator's images, which have {width}×{height} pixels, not at "
                f"({x:g}, {y:g})"
            )


def _none(coco: bool, align: Align, category: str | None) -> str:
    """What to say where there are no photos."""
    if not coco:
        return f"there are no photos (*{', *'.join(_ENDINGS)})"
    if align == "center":
        return "it lists no images: export it again"
    of_category = "" if category is None else f" of category {category!r:.60}"
    return f"it has no annotations{of_category} to align by: add some, or align by center"


def _of_files(place: Path, size: tuple[int, int]) -> tuple[dict[str, Reader], str]:
    """Photos by their names; and what to say of pictures that are passed over, "" if there are none."""
    names: dict[str, File] = {}
    files, others = files_in(place), []
    alone = is_file(place) and [file.path for file in files] == [place.name]  # else it is an archive
    for file in files:
        if alone or file.suffix in _ENDINGS:
            name = photo_name(file.path)
            if name in names:
                raise AnnotationError(
                    place, f"{file.path} and {names[name].path} have the same name: rename one of them"
                )
            names[name] = file
        elif file.path.lower().endswith(_OTHER_PICTURES):
            others.append(file.path)
    readers: dict[str, Reader] = {
        name: partial(_photo, file.read, name, partial(Alignment.center, size=size)) for name, file in names.items()
    }
    return readers, _passed_over(others)


def _passed_over(others: Sequence[str]) -> str:
    if not others:
        return ""
    what, them = ("1 picture", "it") if len(others) == 1 else (f"{len(others)} pictures", "them")
    return (
        f"{what} of other formats passed over: {listed(others, 3)}. Photos are *{', *'.join(_ENDINGS)}: convert {them} "
        "(scans: choose a window of gray values and save it with 8 bits)"
    )


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
    # A file whose ids are wrong would give a box to another photo, which nobody may skip.
    looked_at = {"images": content["images"]} if align == "center" else content
    faults = Findings()
    annotated_images({"annotations": [], "categories": [], **looked_at}, place.name, faults)
    if faults.mistakes:
        raise AnnotationError(place, *faults.mistakes)
    images = {identity(image["id"]): image for image in content["images"]}
    folder = place.parent.resolve()
    readers: dict[str, Reader] = {}
    shown_by: dict[str, ObjectOf] = {}

    def add(name: str, image: Any, how: Callable[[tuple[int, int]], Alignment], annotation: Any = None) -> None:
        file = found.guarded(name, partial(_inside, folder, images[image]["file_name"]))
        if file is not None:
            readers[name] = partial(_photo, partial(_content, file), name, how)
            shown_by[name] = ObjectOf(image, annotation)

    labels = CocoLabels(place.name, content, shown_by)
    if align == "center":
        for image, entry in images.items():
            add(photo_name(entry["file_name"]), image, partial(Alignment.center, size=size))
        return readers, labels
    categories = {identity(each.get("id")): each for each in content.get("categories", ())}
    names = [each.get("name") for each in categories.values()]
    if category is not None and category not in names:
        raise AnnotationError(place, f"it has no category {category!r:.60}; it has: {listed(names) or 'none'}")
    for annotation in content.get("annotations", ()):
        image = identity(annotation.get("image_id"))
        its = categories.get(identity(annotation.get("category_id")), {})
        if category not in (None, its.get("name")):
            continue
        name = f"{photo_name(images[image]['file_name'])}-{identity(annotation.get('id'))}"
        if align == "boxes":
            how = found.guarded(name, partial(_box, annotation, size, margin))
        else:
            assert template is not None
            how = found.guarded(name, partial(_similarity, annotation, size, its.get("keypoints", ()), template))
        if how is not None:
            add(name, image, partial(_as_annotated, how, images[image]), annotation)
    return readers, labels


def _as_annotated(
    how: Callable[[tuple[int, int]], Alignment], image: Mapping[str, Any], photo_size: tuple[int, int]
) -> Alignment:
    """An alignment of a photo of the size that it had when it was annotated."""
    width, height = whole(image.get("width")), whole(image.get("height"))
    if None not in (width, height) and (height, width) != photo_size:
        raise ContentError(
            f"has {photo_size[1]}×{photo_size[0]} pixels, upright, and {width}×{height} in the COCO file: its boxes "
            "and keypoints are of another size; use the photo that was annotated"
        )
    return how(photo_size)


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
    if width <= 0 or height <= 0:
        raise ContentError(f"has a bbox of {width:g}×{height:g} pixels: correct it, or leave the photo out")
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
