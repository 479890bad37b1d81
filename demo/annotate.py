"""Annotate a folder of `dsgan annotate export` with networks that were trained on the labels of the renders.

dsgan annotate export runs/faces/best to-annotate --num-samples 16 --truncation-psi 1 \\
    --classes demo/classes.json --keypoints demo/keypoints.json
python demo/annotate.py to-annotate --annotator annotator.safetensors --points points.safetensors
dsgan fit runs/faces/best to-annotate my-faces
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from annotator import load_annotator
from point_annotator import load_point_annotator
from torch import Tensor

from dsgan_datasets import Keypoints, LabelSchema
from dsgan_datasets.annotations.coco import coco_file, points_part
from dsgan_datasets.annotations.folder import Exported, hash_pixels
from dsgan_datasets.annotations.formats import COCO_FILES, KEYPOINTS_FILE, LABELSTUDIO_FILE
from dsgan_datasets.files import atomic_write, write_json
from dsgan_datasets.images import open_picture, png

#: Label -> where its weights are named.
OPTIONS = {"mask": "--annotator", "keypoints": "--points"}
#: Writes what was computed, and says what it wrote.
Writing = Callable[[], str]


def annotate(folder: Path, weights: Mapping[str, Path]) -> list[str]:
    """Write masks/NAME.png for images/NAME.png, and the points of all images to coco_keypoints.json.

    Args:
        folder: written by `dsgan annotate export`.
        weights: of train_annotator.py under "mask", of train_point_annotator.py under "keypoints": for labels that the
            folder asks for. A label without weights is left to somebody else.

    Returns:
        What was written, and what was not, in words.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: not such a folder, or one whose images were changed; weights for a label that it does not ask for;
            classes, points or a size of images that the networks do not know; annotations that are there already.
    """
    exported = Exported.read(folder)
    targets = {target.field: target for target in exported.targets}
    for field in weights:
        if field not in targets:
            raise ValueError(f"{folder} asks for {', '.join(targets)}, not for {field}: leave {OPTIONS[field]} out")
    if not weights:
        raise ValueError(f"nothing to annotate with: {' or '.join(OPTIONS.values())} is needed")
    images = _images(folder, exported)
    writings: list[Writing] = []  # all is computed before anything is written
    for field, path in weights.items():
        target = targets[field]
        if isinstance(target, LabelSchema):
            writings.append(_masks(folder, exported, images, target, path))
        elif isinstance(target, Keypoints):
            writings.append(_points(folder, exported, images, target, path))
    left = [field for field in targets if field not in weights]
    return [*(write() for write in writings), *(f"{field}: left to be annotated" for field in left)]


def _masks(folder: Path, exported: Exported, images: Tensor, schema: LabelSchema, weights: Path) -> Writing:
    """Compute the masks of all images."""
    network, out = load_annotator(weights), folder / "masks"
    _check_size(exported, network.resolution, "train_annotator.py")
    _check_names("classes", schema.classes, network.classes)
    _check_free(folder, "masks/*", COCO_FILES[0])
    masks = network.annotate(images).numpy()

    def write() -> str:
        out.mkdir(exist_ok=True)
        for image, mask in zip(exported.images, masks, strict=True):
            with atomic_write(out / f"{image.name}.png") as file:
                file.write(png(mask, palette=schema.palette))
        return f"{len(masks)} masks: {out.resolve()}"

    return write


def _points(folder: Path, exported: Exported, images: Tensor, keypoints: Keypoints, weights: Path) -> Writing:
    """Compute the points of all images."""
    network, out = load_point_annotator(weights), folder / KEYPOINTS_FILE
    _check_size(exported, network.resolution, "train_point_annotator.py")
    _check_names("points", keypoints.names, network.names)
    _check_free(folder, KEYPOINTS_FILE)
    points, _ = network.annotate(images)
    part = points_part(list(points.numpy()), keypoints)
    content = coco_file([Path(image.file).name for image in exported.images], exported.size, part)

    def write() -> str:
        write_json(out, content)
        return f"{len(keypoints.names)} points of {len(points)} images: {out.resolve()}"

    return write


def _images(folder: Path, exported: Exported) -> Tensor:
    """uint8 [N, 3, H, W], as they were exported."""
    found = []
    for image in exported.images:
        pixels = np.array(open_picture(folder / image.file))
        if hash_pixels(pixels) != image.sha256:
            raise ValueError(f"{folder / image.file} is not the image that was exported: export it again")
        found.append(pixels)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def _check_size(exported: Exported, side: int, trained_by: str) -> None:
    if exported.size != (side, side):
        height, width = exported.size
        raise ValueError(
            f"the images are {width}×{height} pixels, the annotator labels {side}×{side}: {trained_by} --resolution "
            "trains one for 64 or 128"
        )


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    if tuple(names) == tuple(known):
        return
    if sorted(names) == sorted(known):
        raise ValueError(f"the folder has the same {what} as the annotator, but in another order: {', '.join(known)}")
    raise ValueError(f"the folder has the {what} {', '.join(names)}; the annotator knows {', '.join(known)}")


def _check_free(folder: Path, *patterns: str) -> None:
    """Nobody has annotated this label yet, nor, in files that may hold any, another one."""
    for pattern in (*patterns, "images/*.json", LABELSTUDIO_FILE):
        if found := next(folder.glob(pattern), None):
            raise ValueError(f"{found} holds annotations already, which are not replaced: move it away")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `dsgan annotate export`")
    text = "weights of train_annotator.py: write masks/, if the folder asks for masks"
    parser.add_argument("--annotator", type=Path, metavar="FILE", help=text)
    text = "weights of train_point_annotator.py: write coco_keypoints.json, if it asks for keypoints"
    parser.add_argument("--points", type=Path, metavar="FILE", help=text)
    parser.epilog = "Annotations that are there already are never replaced."
    args = parser.parse_args(arguments)
    try:
        given = {"mask": args.annotator, "keypoints": args.points}
        written = annotate(args.folder, {field: path for field, path in given.items() if path})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
