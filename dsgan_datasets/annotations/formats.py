"""An exported folder -> which annotations lie there, and what reads them."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Literal

from dsgan_datasets.annotations.coco import coco_readers
from dsgan_datasets.annotations.folder import Exported, read_json
from dsgan_datasets.annotations.labelme import read_labelme
from dsgan_datasets.annotations.material import Reader
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.png import read_picture

#: Kinds of annotations.
AnnotationFormat = Literal["masks", "labelme", "coco", "published"]
#: Where each of them lies in an exported folder.
PLACES: dict[AnnotationFormat, str] = {"masks": "masks/*", "labelme": "images/*.json", "coco": "coco.json"}

#: Names that file managers of Windows and macOS leave in folders.
_LEFT_BY_SYSTEMS = frozenset({"Thumbs.db", "desktop.ini", "Icon\r"})


def find_annotations(
    folder: Path, exported: Exported, asked: AnnotationFormat | None, files: Path | None
) -> tuple[AnnotationFormat, Path]:
    """Which annotations to read, and the folder or file where they are.

    Raises:
        AnnotationError: there are none, or of several kinds.
    """
    if files is not None:
        if not files.exists():
            raise AnnotationError(folder, f"{files}: no such file or folder with annotations")
        guess: AnnotationFormat = "coco" if files.is_file() else "labelme" if any(files.glob("*.json")) else "masks"
        return asked or guess, files
    places = {kind: folder / pattern.partition("/*")[0] for kind, pattern in PLACES.items()}
    if asked is not None:
        return asked, places[asked]
    there = [kind for kind, pattern in PLACES.items() if any(folder.glob(pattern))]
    if len(there) > 1 and "labelme" in there and _only_drafts(folder, exported):
        there.remove("labelme")  # untouched drafts, as the work was done in another tool
    if len(there) == 1:
        return there[0], places[there[0]]
    if there:
        raise AnnotationError(
            folder, f"there are annotations of several kinds: choose with format (--format), one of {', '.join(there)}"
        )
    raise AnnotationError(
        folder,
        "nothing is annotated yet: put masks/NAME.png, images/NAME.json (LabelMe) or coco.json here, or pass "
        "files (--files)",
    )


def annotation_readers(
    folder: Path, exported: Exported, kind: AnnotationFormat, files: Path, found: Findings
) -> dict[str, Reader]:
    """Name of an image -> what reads its mask."""
    schema, size = exported.schema, exported.size

    def where(path: Path) -> str:
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    if kind == "coco":
        content = read_json(files.parent, files.name)
        return dict(coco_readers(content, where(files), schema, size, found))
    if kind == "labelme":
        hashes = {image.name: image.sha256 for image in exported.images}
        drafts = {image.name: image.draft for image in exported.images}
        paths = sorted(files.glob("*.json"))
        untouched = [p.stem for p in paths if drafts.get(p.stem) == hashlib.sha256(p.read_bytes()).hexdigest()]
        if untouched:
            found.warnings.append(
                f"{len(untouched)} of {len(paths)} annotations are unchanged drafts of the interpreter: "
                f"{listed(untouched)}"
            )
        return {p.stem: partial(read_labelme, p, where(p), schema, size, hashes.get(p.stem)) for p in paths}
    readers: dict[str, Reader] = {}
    for path in sorted(p for p in files.glob("*") if not p.name.startswith(".") and p.name not in _LEFT_BY_SYSTEMS):
        if path.suffix.lower() == ".png":
            readers[path.stem] = partial(read_picture, path, where(path), schema, size)
        else:
            found.error(where(path), "is not a PNG file, and other formats change colors: save the mask as PNG")
    return readers


def _only_drafts(folder: Path, exported: Exported) -> bool:
    drafts = {image.draft for image in exported.images}
    return all(hashlib.sha256(p.read_bytes()).hexdigest() in drafts for p in folder.glob(PLACES["labelme"]))
