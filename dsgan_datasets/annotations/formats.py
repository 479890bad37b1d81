"""An exported folder -> which annotations lie there, or in what else was handed over, and what reads them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from dsgan_datasets.annotations.coco import READERS as COCO
from dsgan_datasets.annotations.coco import coco_sources, is_coco
from dsgan_datasets.annotations.files import File, files_in
from dsgan_datasets.annotations.folder import ANNOTATION_MANIFEST, Array, Exported
from dsgan_datasets.annotations.kinds import kind_of
from dsgan_datasets.annotations.kinds.maps import read_map
from dsgan_datasets.annotations.labelme import READERS as LABELME
from dsgan_datasets.annotations.labelme import is_labelme, read_labelme
from dsgan_datasets.annotations.labelstudio import is_labelstudio, labelstudio_sources
from dsgan_datasets.annotations.material import Source, Wanted
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.png import read_picture
from dsgan_datasets.annotations.values import ImageNames
from dsgan_datasets.contents import ContentError, parse_json
from dsgan_datasets.contents import kind_of as kind_of_file
from dsgan_datasets.files import exists, is_file
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.segmentation import LabelSchema

#: Formats of annotations: pictures of masks, maps such as depth, JSON of LabelMe, COCO and Label Studio, DatasetGAN's
#: layout.
AnnotationFormat = Literal["masks", "maps", "labelme", "coco", "labelstudio", "published"]
#: COCO files of an exported folder: tools export outlines and keypoints apart from each other.
KEYPOINTS_FILE = "coco_keypoints.json"
COCO_FILES = ("coco.json", KEYPOINTS_FILE)
#: Export of Label Studio in its own format.
LABELSTUDIO_FILE = "labelstudio.json"

_AS_COCO = "CVAT, Label Studio and others export COCO, which is read"


class _Picture(NamedTuple):
    """How a kind of label is read from one file for each image, which holds nothing else.

    Attributes:
        format: of these files.
        endings: of their names.
        read: file, target, (H, W) and findings -> label.
    """

    format: AnnotationFormat
    endings: tuple[str, ...]
    read: Callable[[File, Any, tuple[int, int], Findings], Array | None]


#: Kind of label -> how it is read from files of its own; other kinds are in LabelMe's or COCO's alone.
PICTURES: dict[str, _Picture] = {
    LabelSchema.kind: _Picture("masks", (".png",), read_picture),
    DenseMap.kind: _Picture("maps", (".png", ".npy"), read_map),
}


@dataclass(frozen=True)
class _Place:
    """Where annotations of one format lie, or may lie.

    Attributes:
        format: of them.
        path: folder or file.
        patterns: of the files in an exported folder.
        wanted: what can be annotated there.
        example: what a file is called.
    """

    format: AnnotationFormat
    path: Path
    patterns: tuple[str, ...]
    wanted: Wanted
    example: str

    @property
    def fields(self) -> frozenset[str]:
        """Of the labels that are read there."""
        return self.wanted.fields


#: Reads files of one format: files, wanted, the export, names of its images, findings.
_ReadFiles = Callable[[Sequence[File], Wanted, Exported, ImageNames, Findings], dict[str, list[Source]]]


def annotation_sources(
    folder: Path, exported: Exported, asked: AnnotationFormat | None, given: Path | None, found: Findings
) -> dict[str, list[Source]]:
    """Name of an image -> the files that annotate it; those that are not annotated are not among them.

    Args:
        folder: of the export.
        exported: what it says of the images.
        asked: format of annotations; None takes those that are there.
        given: folder, zip archive or file with them; None looks for them in `folder`.
        found: collects mistakes.

    Raises:
        AnnotationError: there are no annotations, or the same labels in several formats.
    """

    def name(path: Path) -> str:
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    if given is not None and not exists(given):
        raise AnnotationError(folder, f"{given}: no such file or folder with annotations")
    places = _places(folder, exported.targets)
    if given is None:
        files = _at_home(folder, exported, asked, name)
    elif is_file(given / ANNOTATION_MANIFEST):  # the exported folder itself, or a copy that an annotator gave back
        if Exported.read(given).images != exported.images:
            raise AnnotationError(folder, f"{given} is an export of other images: give the annotations of these images")
        files = _at_home(given, exported, asked, name)
    else:
        files = _handed_over(folder, exported, places, asked, given, name)
        beside = _beside(places, [place for place, _ in files], asked)
        rest = [place for place in beside if _is_there(place, folder)]
        files += [(place, _files_at(place, name, folder)) for place in rest]
    names = ImageNames(image.name for image in exported.images)
    sources: dict[str, list[Source]] = {}
    for place, its in files:
        read = _READ.get(place.format, _pictures)
        for image, more in read(its, place.wanted, exported, names, found).items():
            sources.setdefault(image, []).extend(more)
    return sources


def _at_home(
    folder: Path, exported: Exported, asked: AnnotationFormat | None, name: Callable[[Path], str]
) -> list[tuple[_Place, list[File]]]:
    """The files of an exported folder, where an export says that they are put."""
    chosen = _there(folder, exported, _places(folder, exported.targets), asked, name)
    return [(place, _files_at(place, name, folder)) for place in chosen]


def _places(folder: Path, targets: Sequence[Target]) -> list[_Place]:
    """Where annotations of these targets may lie in an exported folder."""
    places = [
        _Place(
            PICTURES[target.kind].format,
            folder / target.folder,
            (f"{target.folder}/**/*.*",),
            _all_of((target,)),
            " or ".join(f"{target.folder}/NAME{ending}" for ending in PICTURES[target.kind].endings),
        )
        for target in targets
        if target.kind in PICTURES
    ]
    shapes = tuple(target for target in targets if target.kind in LABELME)
    outlines = tuple(target for target in targets if target.kind in COCO)
    if shapes:
        wanted = _all_of(shapes)
        places.append(_Place("labelme", folder / "images", ("images/**/*.json",), wanted, "images/NAME.json (LabelMe)"))
        places.append(_Place("labelstudio", folder, (LABELSTUDIO_FILE,), wanted, LABELSTUDIO_FILE))
    if outlines:
        places.append(_Place("coco", folder, COCO_FILES, _all_of(outlines), "coco.json"))
    return places


def _is_there(place: _Place, folder: Path) -> bool:
    return any(path for pattern in place.patterns for path in folder.glob(pattern))


def _without(places: Iterable[_Place], fields: Collection[str]) -> list[_Place]:
    """The places for all other fields."""
    kept = [replace(place, wanted=place.wanted._replace(fields=place.fields - set(fields))) for place in places]
    return [place for place in kept if place.fields]


def _beside(places: Iterable[_Place], given: Sequence[_Place], asked: AnnotationFormat | None) -> list[_Place]:
    """The places of a folder that count beside files which lie elsewhere: for the labels that those cannot hold, and
    for some of those that they can hold, as they may hold the others alone."""
    taken = {field for place in given for field in place.fields}
    some = [place for place in places if asked is None and any(place.fields < other.fields for other in given)]
    return [*some, *_without((place for place in places if place not in some), taken)]


def _all_of(targets: tuple[Target, ...]) -> Wanted:
    return Wanted(targets, frozenset(target.field for target in targets))


def _there(
    folder: Path,
    exported: Exported,
    places: Sequence[_Place],
    asked: AnnotationFormat | None,
    name: Callable[[Path], str],
) -> list[_Place]:
    """The places that hold annotations; of several for the same labels the one that was asked for."""
    wanted = [place for place in places if place.format == asked]
    fields = {field for place in wanted for field in place.fields}
    there = [place for place in (*wanted, *_without(places, fields)) if _is_there(place, folder)]
    if asked is not None and not any(place.format == asked for place in there):
        there = []
    rivals = [place for place in there if any(place.fields == other.fields for other in there if other is not place)]
    drafted = [place for place in rivals if place.format == "labelme"]
    if drafted and _only_drafts(folder, exported):  # untouched, as the work was done in another tool
        there.remove(drafted[0])
        rivals = [place for place in rivals if sum(place.fields == other.fields for other in there) > 1]
    if rivals:
        raise AnnotationError(
            folder,
            "there are annotations of several kinds: choose with format (--format), one of "
            f"{', '.join(place.format for place in rivals)}",
        )
    if there:
        return there
    ours = ("images", "cvat", "drafts")
    others = [
        file.name
        for file in _files_in(folder, name, folder)
        if file.suffix in (".json", ".zip", ".xml") and "/" in file.path and not file.path.startswith(ours)
    ] + [name(path) for path in sorted(folder.glob("*.zip"))]
    *examples, last = [place.example for place in places if asked in (None, place.format)] or [f"files of {asked}"]
    put = f"{', '.join(examples)} or {last}" if examples else last
    raise AnnotationError(
        folder,
        f"nothing is annotated yet: put {put} here, or pass files (--files)"
        f"{f'; here is {listed(others, 4)}' if others else ''}",
    )


def _handed_over(
    folder: Path,
    exported: Exported,
    places: Sequence[_Place],
    asked: AnnotationFormat | None,
    given: Path,
    name: Callable[[Path], str],
) -> list[tuple[_Place, list[File]]]:
    """The files that lie elsewhere, by what they annotate."""
    files = _files_in(given, name, folder)
    pictures = [place for place in places if place.format in ("masks", "maps")]
    endings = {ending for place in pictures for ending in PICTURES[place.wanted.targets[0].kind].endings}
    kind = asked or _kind(folder, name(given), files, endings)
    fitting = [place for place in places if (place in pictures if kind == "pictures" else place.format == kind)]
    if not fitting:
        labels = ", ".join(kind_of(target).noun for target in exported.targets)
        raise AnnotationError(folder, f"{name(given)} holds {kind}, and this folder asks for {labels}: give those")
    if len(fitting) == 1:
        return [(fitting[0], files)]
    by_folder = [
        (place, [file for file in files if place.path.name in PurePosixPath(file.path).parts[:-1]]) for place in fitting
    ]
    if not any(its for _, its in by_folder):
        folders = " and ".join(place.path.name for place in fitting)
        raise AnnotationError(
            folder, f"{name(given)} holds pictures, which may be of several labels: put them into folders {folders}"
        )
    return [(place, its) for place, its in by_folder if its]


def _files_at(place: _Place, name: Callable[[Path], str], folder: Path) -> list[File]:
    """All files of a folder; of the exported folder itself only those that the place names."""
    if place.path != folder:
        return _files_in(place.path, name, folder)
    there = [folder / file for file in place.patterns if is_file(folder / file)]
    return [file for path in there for file in _files_in(path, name, folder)]


def _files_in(given: Path, name: Callable[[Path], str], folder: Path) -> list[File]:
    try:
        return files_in(given, name)
    except ContentError as error:
        raise AnnotationError(folder, f"{name(given)} {error}") from None


def _kind(
    folder: Path, where: str, files: Sequence[File], endings: Collection[str]
) -> AnnotationFormat | Literal["pictures"]:
    """What was handed over, by its content."""
    documents = [file for file in files if file.suffix == ".json"]
    pictures = [file for file in files if file.suffix in (endings or (".png",))]
    if len(files) == 1 and not pictures:
        documents = list(files)  # whatever its name
    problem = ""
    for file in documents:
        try:
            content = parse_json(file.read())
        except ContentError as error:
            problem = problem or f"{file.name} {error}. {_AS_COCO}"
            continue
        except OSError as error:
            raise AnnotationError(folder, f"{file.name}: cannot be read: {error.strerror}") from error
        if is_coco(content):
            return "coco"
        if is_labelme(content):
            return "labelme"
        if is_labelstudio(content):
            return "labelstudio"
        problem = (
            problem or f"{file.name} is neither COCO, LabelMe nor Label Studio, but {_described(content)}. {_AS_COCO}"
        )
    if pictures:
        return "pictures"
    counted = Counter(file.suffix or "none" for file in files)
    there = listed([f"{count} of {ending}" for ending, count in counted.most_common()]) or "nothing"
    wanted = " or ".join(f"*{ending}" for ending in (".json", *sorted(endings or (".png",))))
    raise AnnotationError(
        folder, problem or f"{where} holds no annotations ({wanted}), but files of these endings: {there}"
    )


def _described(content: Any) -> str:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return f"a list of objects with {listed(sorted(content[0]), 6)}"
    if isinstance(content, dict):
        return f"an object with {listed(sorted(content), 6) or 'nothing'}"
    return f"a {type(content).__name__}"


def _documents(
    known: Callable[[Any], bool],
    read: Callable[[Any, str, Wanted, tuple[int, int], ImageNames, Findings], Mapping[str, Source]],
    files: Sequence[File],
    wanted: Wanted,
    exported: Exported,
    names: ImageNames,
    found: Findings,
) -> dict[str, list[Source]]:
    """Files each of which annotates many images; others beside them are passed over."""
    sources: dict[str, list[Source]] = {}
    documents = [file for file in files if file.suffix == ".json"] or list(files)
    for file in documents:
        content = found.guarded(file.name, lambda file=file: parse_json(file.read()))  # type: ignore[misc]
        if content is None or (len(documents) > 1 and not known(content)):
            continue
        for name, source in read(content, file.name, wanted, exported.size, names, found).items():
            sources.setdefault(name, []).append(source)
    return sources


def _labelme(
    files: Sequence[File], wanted: Wanted, exported: Exported, names: ImageNames, found: Findings
) -> dict[str, list[Source]]:
    documents = [file for file in files if file.suffix == ".json"]
    assigned, others = _assigned(documents, names, found)
    for file in others:
        try:
            content = parse_json(file.read())
        except (ContentError, OSError):
            content = None
        if is_labelme(content):
            held = names.find(content.get("imagePath"))  # LabelMe opens this one, whatever the file is called
            drawn_on = held[0] if len(held) == 1 and held[0] not in assigned else PurePosixPath(file.path).stem
            assigned[drawn_on] = file
        else:
            found.warning(file.name, "is not a LabelMe file, and was passed over")
    images = {image.name: image for image in exported.images}
    drafts = {image.draft for image in exported.images}
    untouched = [
        name
        for name, file in assigned.items()
        if found.guarded(file.name, lambda file=file: hashlib.sha256(file.read()).hexdigest()) in drafts - {None}  # type: ignore[misc]
    ]
    if untouched:
        found.warnings.append(
            f"{len(untouched)} of {len(assigned)} annotations are unchanged drafts of the interpreter: "
            f"{listed(untouched)}"
        )
    return {
        name: [
            Source(
                file.name,
                partial(
                    read_labelme,
                    file,
                    name,
                    images[name].sha256 if name in images else "",
                    names,
                    wanted,
                    exported.size,
                ),
            )
        ]
        for name, file in assigned.items()
    }


def _pictures(
    files: Sequence[File], wanted: Wanted, exported: Exported, names: ImageNames, found: Findings
) -> dict[str, list[Source]]:
    (target,) = wanted.targets
    _, endings, read = PICTURES[target.kind]
    assigned, others = _assigned([file for file in files if file.suffix in endings], names, found)
    for file in others:
        assigned[PurePosixPath(file.path).stem] = file
    allowed = " or ".join(ending[1:].upper() if ending == ".png" else ending for ending in endings)
    passed = []
    for file in (file for file in files if file.suffix not in endings):
        held = names.find(file.path)
        if held and held[0] not in assigned:  # an annotation, perhaps, and all that there is
            kind = found.guarded(file.name, lambda file=file: kind_of_file(file.read()))  # type: ignore[misc]
            but = f" but {kind}" if kind else ""
            found.error(
                file.name,
                f"is not a {allowed} file{but}, and other formats change values: save the {kind_of(target).noun} as "
                f"{allowed}",
            )
        else:
            passed.append(file.name)
    if passed:
        found.warnings.append(f"files that are not {allowed} were passed over: {listed(passed, 4)}")

    def labels(file: File, found: Findings) -> dict[str, Array]:
        label = read(file, target, exported.size, found)
        return {} if label is None else {target.field: label}

    return {name: [Source(file.name, partial(labels, file))] for name, file in assigned.items()}


#: Format -> what reads its files; others are files of their own for each image.
_READ: dict[AnnotationFormat, _ReadFiles] = {
    "coco": partial(_documents, is_coco, coco_sources),
    "labelstudio": partial(_documents, is_labelstudio, labelstudio_sources),
    "labelme": _labelme,
}


def _assigned(files: Sequence[File], names: ImageNames, found: Findings) -> tuple[dict[str, File], list[File]]:
    """Image -> its file; and the files whose names are of no image.

    A file that is called exactly like its image counts before copies and pictures beside it.
    """
    assigned: dict[str, File] = {}
    others: list[File] = []
    exact: set[str] = set()
    for file in files:
        held = names.find(file.path)
        if not held:
            others.append(file)
        elif len(held) > 1:
            found.error(file.name, f"holds the names of several images, {listed(held)}: rename it")
        else:
            (name,) = held
            named = PurePosixPath(file.path).stem == name
            if name in assigned and named == (name in exact):
                found.error(file.name, f"is of the image {name}, as is {assigned[name].name}: keep one of them")
            elif name in assigned:
                kept, left = (file, assigned[name]) if named else (assigned[name], file)
                assigned[name] = kept
                found.warning(left.name, f"was passed over, as {kept.name} is of the same image")
            else:
                assigned[name] = file
            if named:
                exact.add(name)
    return assigned, others


def _only_drafts(folder: Path, exported: Exported) -> bool:
    drafts = {image.draft for image in exported.images}
    files = [file for file in files_in(folder / "images") if file.suffix == ".json"]
    return all(hashlib.sha256(file.read()).hexdigest() in drafts for file in files)
