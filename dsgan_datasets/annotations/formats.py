"""An exported folder -> which annotations lie there, or in what else was handed over, and what reads them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dsgan_datasets.annotations.coco import coco_readers, is_coco
from dsgan_datasets.annotations.files import File, files_in
from dsgan_datasets.annotations.folder import ANNOTATION_MANIFEST, Exported
from dsgan_datasets.annotations.labelme import is_labelme, read_labelme
from dsgan_datasets.annotations.material import Reader
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.png import read_picture
from dsgan_datasets.annotations.values import ImageNames
from dsgan_datasets.contents import ContentError, kind_of, parse_json

#: Kinds of annotations.
AnnotationFormat = Literal["masks", "labelme", "coco", "published"]
#: Where each of them lies in an exported folder.
PLACES: dict[AnnotationFormat, str] = {"masks": "masks/**/*.*", "labelme": "images/**/*.json", "coco": "coco.json"}

_AS_COCO = "CVAT, Label Studio and others export COCO, which is read"


def annotation_readers(
    folder: Path, exported: Exported, asked: AnnotationFormat | None, given: Path | None, found: Findings
) -> dict[str, Reader]:
    """Name of an image -> what reads its mask; those that are not annotated are not among them, or give None.

    Args:
        folder: of the export.
        exported: what it says of the images.
        asked: kind of annotations; None takes the kind that is there.
        given: folder, zip archive or file with them; None looks for them in `folder`.
        found: collects mistakes.

    Raises:
        AnnotationError: there are no annotations, or of several kinds.
    """

    def name(path: Path) -> str:
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    if given is not None and not given.exists():
        raise AnnotationError(folder, f"{given}: no such file or folder with annotations")
    if given is None or (given / ANNOTATION_MANIFEST).is_file():  # the exported folder itself
        kind, given = _place(folder, exported, asked, name)
        files = _files_in(given, name, folder)
    else:
        files = _files_in(given, name, folder)
        kind = asked or _kind(folder, name(given), files)
    names = ImageNames(image.name for image in exported.images)
    if kind == "coco":
        return _coco(files, exported, names, found)
    if kind == "labelme":
        return _labelme(files, exported, names, found)
    return _masks(files, exported, names, found)


def _files_in(given: Path, name: Callable[[Path], str], folder: Path) -> list[File]:
    try:
        return files_in(given, name)
    except ContentError as error:
        raise AnnotationError(folder, f"{name(given)} {error}") from None


def _place(
    folder: Path, exported: Exported, asked: AnnotationFormat | None, name: Callable[[Path], str]
) -> tuple[AnnotationFormat, Path]:
    """The kind of annotations that lies in the exported folder, and where."""
    places = {kind: folder / pattern.partition("/")[0] for kind, pattern in PLACES.items()}
    there = [kind for kind, pattern in PLACES.items() if any(folder.glob(pattern)) and asked in (None, kind)]
    if len(there) > 1 and "labelme" in there and _only_drafts(folder, exported):
        there.remove("labelme")  # untouched drafts, as the work was done in another tool
    if len(there) == 1:
        return there[0], places[there[0]]
    if there:
        raise AnnotationError(
            folder, f"there are annotations of several kinds: choose with format (--format), one of {', '.join(there)}"
        )
    ours = ("images", "cvat", "drafts")
    others = [
        file.name
        for file in _files_in(folder, name, folder)
        if file.suffix in (".json", ".zip", ".xml") and "/" in file.path and not file.path.startswith(ours)
    ] + [name(path) for path in sorted(folder.glob("*.zip"))]
    raise AnnotationError(
        folder,
        "nothing is annotated yet: put masks/NAME.png, images/NAME.json (LabelMe) or coco.json here, or pass "
        f"files (--files){f'; here is {listed(others, 4)}' if others else ''}",
    )


def _kind(folder: Path, where: str, files: Sequence[File]) -> AnnotationFormat:
    """What was handed over, by its content."""
    documents = [file for file in files if file.suffix == ".json"]
    pictures = [file for file in files if file.suffix == ".png"]
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
        problem = problem or f"{file.name} is neither COCO nor LabelMe, but {_described(content)}. {_AS_COCO}"
    if pictures:
        return "masks"
    endings = Counter(file.suffix or "none" for file in files)
    there = listed([f"{count} of {ending}" for ending, count in endings.most_common()]) or "nothing"
    raise AnnotationError(
        folder, problem or f"{where} holds no annotations (*.json or *.png), but files of these endings: {there}"
    )


def _described(content: Any) -> str:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        tool = "tasks of Label Studio" if {"annotations", "data"} <= content[0].keys() else "a list of objects"
        return f"{tool} with {listed(sorted(content[0]), 6)}"
    if isinstance(content, dict):
        return f"an object with {listed(sorted(content), 6) or 'nothing'}"
    return f"a {type(content).__name__}"


def _coco(files: Sequence[File], exported: Exported, names: ImageNames, found: Findings) -> dict[str, Reader]:
    readers: dict[str, Reader] = {}
    documents = [file for file in files if file.suffix == ".json"] or list(files)
    for file in documents:
        content = found.guarded(file.name, lambda file=file: parse_json(file.read()))  # type: ignore[misc]
        if content is None or (len(documents) > 1 and not is_coco(content)):
            continue
        more = coco_readers(content, file.name, exported.schema, exported.size, names, found)
        if both := sorted(readers.keys() & more.keys()):
            found.error(file.name, f"annotates {listed(both)}, as another file does: give one of them (--files)")
        readers |= more
    return readers


def _labelme(files: Sequence[File], exported: Exported, names: ImageNames, found: Findings) -> dict[str, Reader]:
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
    schema, size = exported.schema, exported.size
    return {
        name: _guarded(
            file,
            partial(read_labelme, file, name, images[name].sha256 if name in images else "", names, schema, size),
        )
        for name, file in assigned.items()
    }


def _masks(files: Sequence[File], exported: Exported, names: ImageNames, found: Findings) -> dict[str, Reader]:
    assigned, others = _assigned([file for file in files if file.suffix == ".png"], names, found)
    for file in others:
        assigned[PurePosixPath(file.path).stem] = file
    passed = []
    for file in (file for file in files if file.suffix != ".png"):
        held = names.find(file.path)
        if held and held[0] not in assigned:  # an annotation, perhaps, and all that there is
            kind = found.guarded(file.name, lambda file=file: kind_of(file.read()))  # type: ignore[misc]
            but = f" but {kind}" if kind else ""
            found.error(file.name, f"is not a PNG file{but}, and other formats change colors: save the mask as PNG")
        else:
            passed.append(file.name)
    if passed:
        found.warnings.append(f"files that are not PNG were passed over: {listed(passed, 4)}")
    return {
        name: _guarded(file, partial(read_picture, file, exported.schema, exported.size))
        for name, file in assigned.items()
    }


def _guarded(file: File, read: Reader) -> Reader:
    """It notes whatever goes wrong as a mistake of the file."""
    return lambda found: found.guarded(file.name, partial(read, found))


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
