"""Labels of photos: those of the COCO file or the shards that they came in, or of files beside them.

They are labels of whole photos, which are brought into the frame as their photo was.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from dsgan_datasets.annotations.coco import READERS as COCO
from dsgan_datasets.annotations.coco import CocoImage, CocoReader, annotated_images, is_coco
from dsgan_datasets.annotations.files import File, files_in
from dsgan_datasets.annotations.folder import IGNORE, Array
from dsgan_datasets.annotations.formats import PICTURES
from dsgan_datasets.annotations.kinds import kind_of
from dsgan_datasets.annotations.material import Wanted
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.values import identity
from dsgan_datasets.contents import ContentError, parse_json, shown
from dsgan_datasets.files import exists, is_file
from dsgan_datasets.inversion.alignment import Alignment
from dsgan_datasets.inversion.photos import Photo, Photos
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: What to do where a label has another size than its photo.
_SIZE_ADVICE = "label the whole photo, upright and at its own size; the label is cropped and scaled together with it"
#: Labels of photos: name -> field -> label in the frame.
Found = dict[str, dict[str, Array]]


def read_labels(
    photos: Photos,
    targets: Sequence[Target],
    place: str | os.PathLike[str] | None = None,
    *,
    warn: Callable[[str], object] | None = warnings.warn,
) -> Found:
    """Labels of photos, brought into their frames.

    Args:
        photos: which are asked for.
        targets: what the labels mean; classes and points go by their names.
        place: files beside the photos: a COCO file (outlines, run lengths and keypoints); or a folder or zip archive
            of files with the names of the photos, in folders called like the labels (``masks/``, ``keypoints/``,
            ``depth/``) or, if there is one kind of label only, anywhere. They are PNG files of class ids or colors,
            16-bit PNG or .npy files of maps, and JSON files [[x, y, v], …] of points, in pixels of the whole photo.
            None takes what came with the photos: annotations of their COCO file, or labels of their shards.
        warn: is called with a sentence about what should be checked, such as categories of a COCO file that are none of
            the labels; None is silent.

    Returns:
        name of a photo -> field of a target -> its label: class ids int64 [H, W], ignored beyond the photo; points
        float32 [K, 3]; values float32 [C, H, W], unknown beyond the photo. Photos and fields without labels are left
        out.

    Raises:
        AnnotationError: lists every mistake; also labels of no photo.

    Example:
        >>> read_labels(photos, labeled.targets, "photo-masks")["face-1"]["mask"].shape  # doctest: +SKIP
        (64, 64)
    """
    found = Findings(size_advice=_SIZE_ADVICE)
    if place is not None:
        labels = _of_place(Path(place), photos, targets, found)
    else:
        labels = photos.labels(photos, targets, found) if photos.labels is not None else {}
    if found.mistakes:
        raise AnnotationError("the labels of the photos" if place is None else Path(place), *found.mistakes)
    for warning in found.warnings:
        if warn is not None:
            warn(warning)
    return {name: its for name, its in labels.items() if its}


def photo_name(path: str) -> str:
    """A photo's name, which is that of files too: its path without ending and slashes.

    Example:
        >>> photo_name("holiday/beach.jpg")
        'holiday-beach'
    """
    return str(PurePosixPath(path).with_suffix("")).replace("/", "-").replace("\\", "-")


class ObjectOf(NamedTuple):
    """What of a COCO file a photo shows.

    Attributes:
        image: id.
        annotation: that it was aligned by; None shows the image as a whole.
    """

    image: int | str | None
    annotation: Mapping[str, Any] | None = None


class CocoLabels:
    """What a COCO file says of its photos, as far as its categories are classes, or have the points, of a target.

    Args:
        where: what messages call it.
        content: the parsed file.
        shown_by: name of a photo -> what of the file it shows.
    """

    def __init__(self, where: str, content: Mapping[str, Any], shown_by: Mapping[str, ObjectOf]) -> None:
        self._where, self._content, self._shown_by = where, content, shown_by

    def __call__(self, photos: Photos, targets: Sequence[Target], found: Findings) -> Found:
        """Labels of photos by their names; which annotations are no labels is noted."""
        categories = self._content.get("categories")
        by_id = {identity(each.get("id")): each for each in categories or () if isinstance(each, Mapping)}
        readable = tuple(target for target in targets if target.kind in COCO)
        asked = tuple(target for target in readable if _knows(by_id.values(), target))
        # mistakes of a file from which nothing is read are none
        images = annotated_images(self._content, self._where, found if asked else Findings()) if readable else None
        if not images:
            return {}
        by_image = {identity(image.entry.get("id")): image for image in images}
        annotated = {
            name: photos[number]
            for number, name in enumerate(photos.names)
            if name in self._shown_by and self._shown_by[name].image in by_image
        }
        sizes = {self._shown_by[name].image: _size(photo, photos) for name, photo in annotated.items()}
        wanted = Wanted(asked, frozenset(target.field for target in asked))
        # images that are not among the photos only tell what coordinates count from
        read = CocoReader(self._content, self._where, wanted, lambda image: sizes.get(image, (2**31, 2**31)), found)
        interest = _Interest(by_id, readable, asked, [each.annotation for each in self._shown_by.values()])
        labels: Found = {}
        for name, photo in annotated.items():
            image, own = self._shown_by[name]
            its = interest.of(by_image[image], own)
            if its.annotations:
                given = found.guarded(name, partial(read, its, name, found)) or {}
                labels[name] = _in_frame(given, asked, photo, found)
        self._note(interest, labels, readable, found)
        return labels

    def _note(self, interest: _Interest, labels: Found, targets: Sequence[Target], found: Findings) -> None:
        """Say which categories are no labels: photos would otherwise lose theirs without a word."""
        left = Counter(interest.left.values())
        theirs = listed([f"{name} ({count}×)" for name, count in left.most_common()], 20)
        ours = "; ".join(f"{target.field} has {target.summary}" for target in targets)
        if labels and left:
            found.warning(self._where, f"categories that are none of the labels were left out: {theirs}; {ours}")
        elif left:
            found.error(
                self._where,
                f"none of its categories is one of the labels: it has {theirs}; {ours}. Rename them alike, or, to take "
                "the photos without labels, give their folder in place of this file",
            )
        elif not labels and interest.seen:
            places = listed(sorted(interest.seen), 20)
            found.warning(self._where, f"holds no labels: photos are aligned by its categories ({places}), and {ours}")


def _knows(categories: Iterable[Mapping[str, Any]], target: Any) -> bool:
    """Whether categories are classes of a target, or have its points."""
    if isinstance(target, Keypoints):
        points = [each["keypoints"] for each in categories if isinstance(each.get("keypoints"), list)]
        return any(sorted(map(str, names)) == sorted(target.names) for names in points)
    return any(each.get("name") in target.classes for each in categories)


class _Interest:
    """Tells annotations that are labels from those that only say where an object is, and from all others.

    Args:
        by_id: the categories.
        readable: what the file may hold.
        targets: what it does hold, and is read.
        aligned_by: annotations that photos were aligned by: others of their categories say where other objects are.

    Attributes:
        left: categories of the annotations that are neither, by the identity of the annotation.
        seen: categories that only say where objects are.
    """

    def __init__(
        self,
        by_id: Mapping[Any, Mapping[str, Any]],
        readable: Sequence[Target],
        targets: Sequence[Target],
        aligned_by: Iterable[Mapping[str, Any] | None],
    ) -> None:
        self._by_id = by_id
        self._classes = {name for each in targets if isinstance(each, LabelSchema) for name in (*each.classes, IGNORE)}
        self._points = any(isinstance(target, Keypoints) for target in targets)
        self._names_points = any(isinstance(target, Keypoints) for target in readable)
        categories = {self._name(annotation) for annotation in aligned_by if annotation is not None}
        self._places = categories - self._classes
        self.left: dict[int, str] = {}
        self.seen: set[str] = set()

    def of(self, image: CocoImage, own: Mapping[str, Any] | None) -> CocoImage:
        """An image with those of its annotations that are labels; `own` is the one it was aligned by."""
        kept = []
        for annotation in image.annotations:
            name = self._name(annotation)
            of_place = name in self._places
            if self._counts(annotation, name, own, of_place):
                kept.append(annotation)
            elif of_place:
                self.seen.add(name)
            else:
                self.left[id(annotation)] = name + self._points_of(annotation)
        return image._replace(annotations=kept)

    def _counts(self, annotation: Mapping[str, Any], name: str, own: Mapping[str, Any] | None, of_place: bool) -> bool:
        if annotation.get("keypoints") and name not in self._classes:
            return self._points and (own is None or annotation is own)
        # an outline of another class is a mistake, which the reader names: its pixels would become class 0
        return name in self._classes or (bool(self._classes and annotation.get("segmentation")) and not of_place)

    def _points_of(self, annotation: Mapping[str, Any]) -> str:
        points = self._by_id.get(identity(annotation.get("category_id")), {}).get("keypoints")
        if not self._names_points or not isinstance(points, list) or not points:
            return ""
        return f" with the points {listed(list(map(shown, points)), 20)}"

    def _name(self, annotation: Mapping[str, Any]) -> str:
        category = annotation.get("category_id")
        return str(self._by_id.get(identity(category), {}).get("name", shown(category)))


class ShardLabels:
    """The labels of shards, as far as they are those of a target.

    Args:
        source: the shards; its samples are the photos, called by their numbers.
    """

    def __init__(self, source: ShardSource) -> None:
        self._source = source

    def __call__(self, photos: Photos, targets: Sequence[Target], found: Findings) -> Found:
        """Labels of photos by their names."""
        theirs = {target.field: target for target in self._source.targets}
        taken = []
        for target in targets:
            own = theirs.get(target.field)
            if own is None or own.kind != target.kind:
                continue
            if problems := kind_of(target).disagreements(target, own, ("the labels", "the shards")):
                found.warning(target.field, f"of the shards was not taken: {problems[0]}")
            else:
                taken.append((target, own))
        labels: Found = {}
        for name in photos.names if taken else ():
            sample = self._source.batch([int(name)])
            labels[name] = {
                target.field: kind_of(target).translated(sample[target.field], own, target)[0].numpy()
                for target, own in taken
            }
        return labels


def _of_place(place: Path, photos: Photos, targets: Sequence[Target], found: Findings) -> Found:
    """Labels of files that were given beside the photos."""
    if not exists(place):
        raise AnnotationError(place, "no such folder or file with labels: give a folder, a zip archive or a COCO file")
    try:
        files = files_in(place)
    except ContentError as error:
        raise AnnotationError(place, f"it {error}") from None
    if is_file(place) and len(files) == 1:
        return _of_coco_file(place, files[0], photos, targets, found)
    labels: Found = {}
    known = {target: _READERS[target.kind] for target in targets if target.kind in _READERS}
    nouns = ", ".join(f"{target.folder}/" for target in known)
    for target, (endings, read) in known.items():
        its = [file for file in files if target.folder in PurePosixPath(file.path).parts[:-1]]
        its = its or (files if len(known) == 1 else [])
        named = {_within(file, target.folder): file for file in its if file.suffix in endings}
        others = {_within(file, target.folder): file for file in its if file.suffix not in endings}
        for name in sorted(others.keys() & set(photos.names) - named.keys()) if named else ():
            found.warning(
                others[name].name,
                f"was not read: a {kind_of(target).noun} is a file that ends in {' or '.join(endings)}: save it as one",
            )
        for name in sorted(named.keys() - set(photos.names) - photos.left_out):
            found.error(
                named[name].name, f"is a {kind_of(target).noun} of no photo: name it like its photo, or remove it"
            )
        for number, name in enumerate(photos.names):
            if name in named:
                photo = photos[number]
                reader = partial(read, named[name], target, _size(photo, photos), found)
                label = found.guarded(named[name].name, reader)
                if label is not None:
                    labels.setdefault(name, {}).update(_in_frame({target.field: label}, [target], photo, found))
    if not labels and not found.mistakes:
        raise AnnotationError(place, f"holds no labels of the photos: put files with their names into {nouns}")
    return labels


def _within(file: File, folder: str) -> str:
    """The name of the photo that a file belongs to, by its path in the folder of its labels."""
    parts = PurePosixPath(file.path).parts
    return photo_name("/".join(parts[parts.index(folder) + 1 :]) if folder in parts[:-1] else file.path)


def _of_coco_file(place: Path, file: File, photos: Photos, targets: Sequence[Target], found: Findings) -> Found:
    content = found.guarded(file.name, lambda: parse_json(file.read()))
    if content is None:
        return {}
    if not is_coco(content):
        raise AnnotationError(
            place, "it is neither a folder nor a zip archive of labels, nor COCO's JSON with images and annotations"
        )
    try:
        shown_by = {photo_name(str(image["file_name"])): ObjectOf(identity(image["id"])) for image in content["images"]}
    except (KeyError, TypeError):
        raise AnnotationError(place, "an image of this COCO file has no id or no file_name: export it again") from None
    if not shown_by.keys() & set(photos.names):
        raise AnnotationError(
            place, f"none of its images is one of the photos ({listed(photos.names, 3)}): name them alike"
        )
    labels = CocoLabels(file.name, content, shown_by)(photos, targets, found)
    if not labels and not found.mistakes:
        ours = "; ".join(f"{target.field} has {target.summary}" for target in targets)
        raise AnnotationError(place, f"none of its annotations is a label of the photos: {ours}")
    return labels


def _size(photo: Photo, photos: Photos) -> tuple[int, int]:
    """(H, W) of a whole photo."""
    return photos.size if photo.alignment is None else photo.alignment.photo_size


def _in_frame(
    labels: Mapping[str, Array], targets: Iterable[Target], photo: Photo, found: Findings
) -> dict[str, Array]:
    """Labels of a whole photo as those of its frame."""
    if photo.alignment is None:
        return dict(labels)
    framed = {}
    for target in targets:
        if target.field in labels:
            move = _MOVES[target.kind]
            moved = found.guarded(photo.name, partial(move, labels[target.field], target, photo.alignment))
            if moved is not None:
                framed[target.field] = moved
    return framed


def _mask(mask: Array, schema: LabelSchema, alignment: Alignment) -> Array:
    return alignment.mask(mask, schema.ignore_index)


def _points(points: Array, target: Keypoints, alignment: Alignment) -> Array:
    """Points that lie outside of the frame are not in the image."""
    height, width = alignment.size
    places = alignment.to_frame(points[:, :2])
    x, y = places.T
    outside = (points[:, 2] > 0) & ((x < 0) | (x > width) | (y < 0) | (y > height))
    moved = np.concatenate([places, points[:, 2:]], 1)
    moved[outside | ~(points[:, 2] > 0)] = 0
    return moved.astype(np.float32)


def _map(values: Array, target: DenseMap, alignment: Alignment) -> Array:
    if target.signed and alignment.is_turned:
        raise ContentError(
            f"is turned, and {', '.join(target.channels[i] for i in target.signed)} of {target.field} are directions, "
            "which would have to be turned too: align by boxes or center"
        )
    return np.stack([alignment.mask(channel, np.nan) for channel in values]).astype(np.float32)


#: Kind of label -> how it is brought into the frame.
_MOVES: dict[str, Callable[[Array, Any, Alignment], Array]] = {
    LabelSchema.kind: _mask,
    Keypoints.kind: _points,
    DenseMap.kind: _map,
}


def _read_points(file: File, target: Keypoints, size: tuple[int, int], found: Findings) -> Array | None:
    try:
        points: Array = target.decode(file.read(), size).numpy()
    except ValueError as error:
        found.error(file.name, f"{error}: write [[x, y, v], …] with a row for each point")
        return None
    return points


#: Kind of label -> endings of its files, and what reads one.
_READERS: dict[str, tuple[tuple[str, ...], Callable[[File, Any, tuple[int, int], Findings], Array | None]]] = {
    **{kind: (picture.endings, picture.read) for kind, picture in PICTURES.items()},
    Keypoints.kind: ((".json",), _read_points),
}
