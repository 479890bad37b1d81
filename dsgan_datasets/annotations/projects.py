"""What annotation tools need to begin: labels, drafts to correct, and instructions."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dsgan_datasets.annotations.coco import Part, coco_file, outlines_part, points_part
from dsgan_datasets.annotations.folder import write_bytes, write_json
from dsgan_datasets.annotations.kinds import Project, kind_of
from dsgan_datasets.annotations.labelme import labelme_file, point_shapes, polygon_shapes
from dsgan_datasets.annotations.shapes import mask_to_shapes
from dsgan_datasets.images import png
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: Field -> drafted labels [A, ...] of all images.
Drafts = Mapping[str, Tensor]


def projects(targets: Sequence[Target], drafts: Drafts) -> list[Project]:
    """What an annotator is given, for each target."""
    return [kind_of(target).project(target, drafts.get(target.field)) for target in targets]


def write_projects(folder: Path, given: Sequence[Project]) -> None:
    """labels.txt and, if points have check boxes, label_flags.json for LabelMe; cvat/labels.json for CVAT's label
    constructor."""
    if labels := list(dict.fromkeys(label for project in given for label in project.labels)):
        write_bytes(folder / "labels.txt", "".join(f"{label}\n" for label in labels).encode())
    if flags := {pattern: list(names) for project in given for pattern, names in project.flags.items()}:
        write_json(folder / LABEL_FLAGS, flags)
    if cvat := [entry for project in given for entry in project.cvat]:
        (folder / "cvat").mkdir(exist_ok=True)
        write_json(folder / "cvat" / "labels.json", cvat)


#: LabelMe's file of check boxes.
LABEL_FLAGS = "label_flags.json"


class _Drafted(NamedTuple):
    """Drafted labels of one target in the formats of annotation tools.

    Attributes:
        shapes: LabelMe's, of each image.
        part: of a COCO file.
        files: folder, ending, and the content for each image, of files that hold nothing else.
    """

    shapes: Sequence[Sequence[dict[str, Any]]] = ()
    part: Part | None = None
    files: tuple[str, str, Sequence[bytes]] | None = None


def _drafted_masks(schema: LabelSchema, masks: Tensor) -> _Drafted:
    """Outlines are simplified by half a pixel, and more from 256 pixels on: fewer points to move by hand."""
    size = (masks.shape[1], masks.shape[2])
    outlines = [mask_to_shapes(mask, tolerance=max(0.5, max(size) / 512)) for mask in masks.numpy()]
    return _Drafted(
        [polygon_shapes(each, schema) for each in outlines],
        outlines_part(outlines, size, schema),
        ("drafts", ".png", [png(mask, palette=schema.palette) for mask in masks]),
    )


def _drafted_points(target: Keypoints, points: Tensor) -> _Drafted:
    each = list(points.double().numpy())
    return _Drafted([point_shapes(its, target) for its in each], points_part(each, target))


def _drafted_maps(target: DenseMap, maps: Tensor) -> _Drafted:
    ending = f".{target.extension.rpartition('.')[2]}"
    return _Drafted(files=(f"drafts-{target.folder}", ending, [target.encode(each) for each in maps]))


#: Kind of label -> its drafts.
DRAFTED: dict[str, Callable[[Any, Tensor], _Drafted]] = {
    LabelSchema.kind: _drafted_masks,
    Keypoints.kind: _drafted_points,
    DenseMap.kind: _drafted_maps,
}


def write_drafts(
    folder: Path,
    names: Sequence[str],
    targets: Sequence[Target],
    given: Sequence[Project],
    drafts: Drafts,
    size: tuple[int, int],
) -> list[str | None]:
    """An interpreter's labels for LabelMe, CVAT and painting programs.

    Args:
        folder: to write to.
        names: of the images.
        targets: the labels.
        given: project of each of them.
        drafts: of some of them.
        size: (H, W) of the images.

    Returns:
        SHA-256 of the LabelMe file of each image, None if there is none.
    """
    shapes: list[list[dict[str, Any]]] = [[] for _ in names]
    for target, project in zip(targets, given, strict=True):
        if target.field not in drafts:
            continue
        drafted = DRAFTED[target.kind](target, drafts[target.field])
        for its, more in zip(shapes, drafted.shapes, strict=False):
            its += more
        if drafted.part is not None:
            coco = coco_file([f"{name}.png" for name in names], size, drafted.part)
            write_json(folder / "cvat" / _import_name(project), coco)
        if drafted.files is not None:
            where, ending, contents = drafted.files
            (folder / where).mkdir()
            for name, content in zip(names, contents, strict=True):
                write_bytes(folder / where / f"{name}{ending}", content)
    return [_write_labelme(folder, name, its, size) if its else None for name, its in zip(names, shapes, strict=True)]


def _write_labelme(folder: Path, name: str, shapes: Sequence[dict[str, Any]], size: tuple[int, int]) -> str:
    file = labelme_file(f"{name}.png", size, shapes)
    content = (json.dumps(file, indent=2, ensure_ascii=False) + "\n").encode()
    write_bytes(folder / "images" / f"{name}.json", content)
    return hashlib.sha256(content).hexdigest()


def _import_name(project: Project) -> str:
    """What a COCO file of drafts is called, which CVAT imports."""
    return f"{Path(project.coco_file).stem}_import.json"


def write_readme(
    folder: Path,
    given: Sequence[Project],
    size: tuple[int, int],
    generator: str,
    rounds: Sequence[str],
    *,
    drafted: bool,
) -> None:
    """README.txt: what an annotator does next.

    Args:
        folder: to write to.
        given: of each label.
        size: (H, W) of the images.
        generator: its name.
        rounds: names of the folders to fit together: earlier ones, and this one.
        drafted: whether an interpreter has drafted the annotations.
    """
    known = len(rounds) > 1 or not drafted  # drafts come from an interpreter, and that from annotations of some folder
    fit = shlex.join(["dsgan", "fit", generator, *([] if known else ["EARLIER"]), *rounds, "OUT"])
    together = (
        ""
        if known
        else "\nEARLIER is the folder that the interpreter was fitted to (several: all of them, oldest first; none\n"
        f"if you do not have it). Fitted to {rounds[-1]} alone, an interpreter would know less than before.\n"
    )
    tasks = "\n\n".join(project.task for project in given)
    parts = "\n\n".join(project.parts for project in given)
    text = f"""Images to annotate: images/*.png ({size[1]}x{size[0]} pixels; all of them: contact_sheet.png)

{"An interpreter has drafted the annotations: correct them." if drafted else "Annotate each image."}

{tasks}

{_ways(given, drafted)}
{parts}

Then, in this folder, see what was understood, as often as you like:

    dsgan annotate check .

and, when it finds no mistake, fit an interpreter where the generator is:

    {fit}
{together}
Keep annotations.json, latents.npy and the images as they are: they tie your work to the generator.
"""
    write_bytes(folder / "README.txt", text.encode())


def _ways(given: Sequence[Project], drafted: bool) -> str:
    """How to annotate: tools for shapes and points, and files that hold nothing else."""
    ways = []
    if any(project.labels for project in given):
        flags = f" --labelflags {LABEL_FLAGS}" if any(project.flags for project in given) else ""
        ways.append(
            [
                "LabelMe   pip install labelme",
                f"          labelme images --labels labels.txt --validatelabel exact{flags}",
                "Save each image: its .json then lies beside it.",
            ]
        )
    if exports := [project for project in given if project.cvat_format]:
        ways.append(
            [
                "CVAT      New task > Labels > Raw: paste cvat/labels.json; upload images/*.png",
                *(
                    f"then Actions > Upload annotations > {project.cvat_format}: cvat/{_import_name(project)}"
                    for project in exports
                    if drafted
                ),
                "When done: Export task dataset, and put the .json of its folder annotations here:",
                *(f"{project.cvat_format} as {project.coco_file}" for project in exports),
            ]
        )
    ways += [list(project.files) for project in given if project.files]
    lines = [
        f"{f'{number}.' if not row else '  '} {line}"
        for number, way in enumerate(ways, 1)
        for row, line in enumerate([*way, ""])
    ]
    once = "in ONE of these ways" if len(given) == 1 else "each label in ONE of the ways that have it"
    return "\n".join([f"How to do it, {once}:", "", *map(str.rstrip, lines)])
