"""Folders, archives, COCO files and shards of photos -> aligned images, one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args, overload

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from dsgan_datasets.annotations.coco import is_coco
from dsgan_datasets.annotations.files import File, files_in
from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.png import read_picture
from dsgan_datasets.annotations.values import identity
from dsgan_datasets.contents import ContentError, parse_json, shown
from dsgan_datasets.images import PictureError, open_picture
from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.shards.manifest import MANIFEST
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.targets.segmentation import LabelSchema

#: Formats of photos, as Pillow calls them, and endings that photos have.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
#: A photo may have more pixels than a picture of ours.
_MOST_PIXELS = 2**27

#: How photos are brought into the frame: the middle of each, or of a COCO file each of its boxes, or by its keypoints.
Align = Literal["center", "boxes", "keypoints"]


@dataclass(frozen=True)
class Photo:
    """One photo as the generator would have seen it.

    Attributes:
        name: what it is called: path without ending, and the number of the annotation it was cropped by.
        image: uint8 RGB [3, H, W], aligned.
        alignment: where the frame lies in the photo; None of photos that were not changed.
    """

    name: str
    image: Tensor
    alignment: Alignment | None = None


#: Reads a photo; its error continues a sentence that begins with the photo's name.
Reader = Callable[[], Photo]


class Photos(Sequence[Photo]):
    """Photos that are read when they are asked for; get them from `read_photos`.

    Args:
        readers: name -> what reads the photo, in order.
        size: (H, W) of aligned images.
        license: of the photos, as far as it is known.
    """

    def __init__(self, readers: Mapping[str, Reader], size: tuple[int, int], license: str = "unspecified") -> None:
        self._readers = dict(readers)
        self.names = tuple(self._readers)
        self.size = size
        self.license = license

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Photo: ...

    @overload
    def __getitem__(self, number: slice) -> Photos: ...

    def __getitem__(self, number: int | slice) -> Photo | Photos:
        """A photo by its number, or some of the photos."""
        if isinstance(number, slice):
            return Photos({name: self._readers[name] for name in self.names[number]}, self.size, self.license)
        return self._readers[self.names[number]]()

    def __iter__(self) -> Iterator[Photo]:
        """The photos in order."""
        return (read() for read in self._readers.values())


def read_photos(
    where: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    align: Align = "center",
    margin: float = 0.0,
    template: Mapping[str, Sequence[float]] | None = None,
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
    text = os.fspath(where)
    if "://" in text or (Path(text) / MANIFEST).exists():
        if align != "center":
            raise ValueError(f"align={align} needs the boxes or keypoints of a COCO file; {text} holds shards")
        return _of_shards(text, size, license)
    place, found = Path(text), Findings()
    if not place.exists():
        raise ValueError(f"{place}: no such folder or file with photos")
    if place.suffix.lower() == ".json":
        readers = _of_coco(place, size, align, margin, template, found)
    elif align != "center":
        raise ValueError(
            f"align={align} needs the boxes or keypoints of a COCO file: give its .json instead of {place}"
        )
    else:
        readers = _of_files(place, size)
    usable = {name: read for name, read in readers.items() if found.guarded(name, read) is not None}
    if found.mistakes and not skip:
        raise AnnotationError(place, *found.mistakes, "or leave such photos out: skip (--skip)")
    if not usable:
        raise AnnotationError(place, *(found.mistakes or [f"there are no photos (*{', *'.join(_ENDINGS)})"]))
    if warn is not None:
        for mistake in found.mistakes:
            warn(f"left out: {mistake}")
    return Photos(usable, size, license or "unspecified")


def _of_files(place: Path, size: tuple[int, int]) -> dict[str, Reader]:
    files = [file for file in files_in(place) if file.suffix in _ENDINGS or place.is_file()]
    names: dict[str, File] = {}
    for file in files:
        name = _name(file.path)
        if name in names:
            raise AnnotationError(place, f"{file.path} and {names[name].path} have the same name: rename one of them")
        names[name] = file
    return {
        name: partial(_photo, file.read, name, partial(Alignment.center, size=size)) for name, file in names.items()
    }


def _name(path: str) -> str:
    """A photo's name, which is that of files too: its path without ending and slashes."""
    return str(PurePosixPath(path).with_suffix("")).replace("/", "-").replace("\\", "-")


def _photo(read: Callable[[], bytes], name: str, align: Callable[[tuple[int, int]], Alignment]) -> Photo:
    picture = upright(read())
    alignment = align((picture.height, picture.width))
    return Photo(name, alignment.image(picture), alignment)


def upright(content: bytes) -> Image.Image:
    """The RGB picture of a file, turned as its EXIF data says.

    Raises:
        ContentError: it cannot be used; the message continues a sentence that begins with the photo's name.
    """
    try:
        picture = open_picture(content, formats=_FORMATS, most_pixels=_MOST_PIXELS)
    except PictureError as error:
        raise ContentError(error.reason) from None
    if picture.mode.startswith(("I", "F")):
        raise ContentError(f"has more than 8 bits a channel (mode {picture.mode}): save it with 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if int(np.asarray(picture.getchannel("A")).min()) < 255:
            raise ContentError("is transparent in places: put it on a background first")
    return ImageOps.exif_transpose(picture).convert("RGB")


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
    return Photos(
        {name: partial(read, number, name) for number, name in enumerate(names)}, size, license or source.license
    )


def _of_coco(
    place: Path,
    size: tuple[int, int],
    align: Align,
    margin: float,
    template: Mapping[str, Sequence[float]] | None,
    found: Findings,
) -> dict[str, Reader]:
    """Photos that a COCO file names: each once, or each of its annotations."""
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
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(place, f"it is not COCO's JSON: {shown(error)} is missing or of another kind") from None
    folder = place.parent.resolve()
    readers: dict[str, Reader] = {}

    def add(name: str, path: str, how: Callable[[tuple[int, int]], Alignment]) -> None:
        file = found.guarded(name, partial(_inside, folder, path))
        if file is not None:
            readers[name] = partial(_photo, partial(_content, file), name, how)

    if align == "center":
        for path in paths.values():
            add(_name(path), path, partial(Alignment.center, size=size))
        return readers
    for image, annotation in annotated:
        if image not in paths:
            continue
        name = f"{_name(paths[image])}-{identity(annotation.get('id'))}"
        if align == "boxes":
            how = found.guarded(name, partial(_box, annotation, size, margin))
        else:
            assert template is not None
            names = keypoints.get(identity(annotation.get("category_id")), ())
            how = found.guarded(name, partial(_similarity, annotation, size, names, template))
        if how is not None:
            add(name, paths[image], how)
    return readers


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


def read_masks(place: Path, photos: Photos, schema: LabelSchema) -> dict[str, Array]:
    """Masks of whole photos -> masks of their frames.

    Args:
        place: folder of PNG files with the names and sizes of the photos, as `load_annotations` reads them.
        photos: which are covered.
        schema: the classes.

    Returns:
        name of a photo that has a mask -> class ids int64 [H, W]; pixels beyond the photo are ignored.

    Raises:
        AnnotationError: lists every mistake; also masks of no photo.
    """
    found = Findings()
    files = {_name(file.path): file for file in files_in(place) if file.suffix == ".png"}
    masks: dict[str, Array] = {}
    for number, name in enumerate(photos.names):
        if name in files:
            alignment = photos[number].alignment
            size = photos.size if alignment is None else alignment.photo_size
            if (mask := read_picture(files[name], schema, size, found)) is not None:
                masks[name] = mask if alignment is None else alignment.mask(mask, schema.ignore_index)
    for name in sorted(files.keys() - set(photos.names)):
        found.error(files[name].name, "is a mask of no photo: name it like its photo, or remove it")
    if found.mistakes:
        raise AnnotationError(place, *found.mistakes)
    return masks
