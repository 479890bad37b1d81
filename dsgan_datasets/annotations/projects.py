"""What annotation tools need to begin: labels, drafts to correct, and instructions."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from dsgan_datasets.annotations.coco import coco_file
from dsgan_datasets.annotations.folder import IGNORE, Array, write_bytes, write_json
from dsgan_datasets.annotations.labelme import labelme_file
from dsgan_datasets.annotations.shapes import mask_to_shapes
from dsgan_datasets.images import png
from dsgan_datasets.targets.segmentation import IGNORED_COLOR, LabelSchema


def write_projects(folder: Path, schema: LabelSchema) -> None:
    """labels.txt for LabelMe and cvat/labels.json for CVAT's label constructor."""
    write_bytes(folder / "labels.txt", "".join(f"{name}\n" for name in (*schema.classes, IGNORE)).encode())
    labels = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "attributes": []}
        for name, color in zip((*schema.classes, IGNORE), (*schema.palette, IGNORED_COLOR), strict=True)
    ]
    (folder / "cvat").mkdir(exist_ok=True)
    write_json(folder / "cvat" / "labels.json", labels)


def write_drafts(folder: Path, names: Sequence[str], masks: Array, schema: LabelSchema) -> list[str]:
    """An interpreter's masks [A, H, W] for LabelMe, CVAT and painting programs; SHA-256 of each LabelMe file.

    Outlines are simplified by half a pixel, and more from 256 pixels on: fewer points to move by hand.
    """
    size = (masks.shape[1], masks.shape[2])
    shapes = [mask_to_shapes(mask, tolerance=max(0.5, max(size) / 512)) for mask in masks]
    (folder / "drafts").mkdir(exist_ok=True)
    hashes = []
    for name, outlines, mask in zip(names, shapes, masks, strict=True):
        file = labelme_file(f"{name}.png", size, [(schema.classes[i], polygon) for i, polygon in outlines])
        content = (json.dumps(file, indent=2, ensure_ascii=False) + "\n").encode()
        write_bytes(folder / "images" / f"{name}.json", content)
        write_bytes(folder / "drafts" / f"{name}.png", png(mask, palette=schema.palette))
        hashes.append(hashlib.sha256(content).hexdigest())
    named = [(f"{name}.png", outlines) for name, outlines in zip(names, shapes, strict=True)]
    write_json(folder / "cvat" / "coco_import.json", coco_file(named, size, schema))
    return hashes


def write_readme(
    folder: Path, schema: LabelSchema, size: tuple[int, int], generator: str, rounds: Sequence[str], *, drafted: bool
) -> None:
    """README.txt: what an annotator does next.

    Args:
        folder: to write to.
        schema: the classes to annotate.
        size: (H, W) of the images.
        generator: its name.
        rounds: names of the folders to fit together: earlier ones, and this one.
        drafted: whether an interpreter has drafted the annotations.
    """
    start = "Correct the drafts that an interpreter made" if drafted else "Draw the parts"
    known = len(rounds) > 1 or not drafted  # drafts come from an interpreter, and that from annotations of some folder
    fit = shlex.join(["dsgan", "fit", generator, *([] if known else ["EARLIER"]), *rounds, "OUT"])
    together = (
        ""
        if known
        else "\nEARLIER is the folder that the interpreter was fitted to (several: all of them, oldest first; none\n"
        f"if you do not have it). Fitted to {rounds[-1]} alone, an interpreter would know less than before.\n"
    )
    classes = "\n".join(f"    {i:3d}  {name}" for i, name in enumerate(schema.classes))
    upload = "\n   then Actions > Upload annotations > COCO 1.0: cvat/coco_import.json" if drafted else ""
    paint = "copy the folder drafts to masks and correct it" if drafted else "make a folder masks"
    text = f"""Images to annotate: images/*.png ({size[1]}x{size[0]} pixels; all of them: contact_sheet.png)

{start}, in ONE of three ways.
What no shape covers is "{schema.classes[0]}". Where shapes overlap, the later one counts: draw large parts first.
"{IGNORE}" marks what you cannot tell.

1. LabelMe   pip install labelme
             labelme images --labels labels.txt --validatelabel exact
   Save each image: its .json then lies beside it.

2. CVAT      New task > Labels > Raw: paste cvat/labels.json; upload images/*.png{upload}
   When done: Export task dataset > COCO 1.0; put its instances_default.json here as coco.json.

3. Any painting program: {paint}.
   masks/NAME.png belongs to images/NAME.png and has its size: a palette or gray PNG of class ids, or RGB in
   exactly the colors of classes.json (white is ignored).

Classes (names and colors: classes.json):
{classes}

Then, in this folder, see what was understood, as often as you like:

    dsgan annotate check .

and, when it finds no mistake, fit an interpreter where the generator is:

    {fit}
{together}
Keep annotations.json, latents.npy and the images as they are: they tie your work to the generator.
"""
    write_bytes(folder / "README.txt", text.encode())
