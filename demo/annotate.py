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
from dsgan_datasets.annotations.folder import read_targets
from dsgan_datasets.annotations.formats import KEYPOINTS_FILE
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
        weights: of train_annotator.py under "mask" and of train_point_annotator.py under "keypoints": for the labels
            that the folder asks for.

    Returns:
        What was written, in words.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the folder asks for other labels than there are weights for; classes, points or a size of images
            that the networks do not know; annotations that are there already.
    """
    targets = read_targets(folder)
    asked = {target.field for target in targets}
    if unknown := asked - set(OPTIONS):
        raise ValueError(f"{folder} asks for {', '.join(sorted(unknown))}; this annotates masks and keypoints")
    for field, option in OPTIONS.items():
        if field in asked and field not in weights:
            raise ValueError(f"{folder} asks for the label {field}: {option} is needed")
        if field in weights and field not in asked:
            raise ValueError(f"{folder} does not ask for the label {field}: leave {option} out, or export with it")
    files = sorted((folder / "images").glob("*.png"))
    if not files:
        raise ValueError(f"{folder / 'images'} holds no .png: `dsgan annotate export` makes the folder")
    writings: list[Writing] = []  # all is computed before anything is written
    for target in targets:
        if isinstance(target, LabelSchema):
            writings.append(_masks(folder, files, target, weights[target.field]))
        elif isinstance(target, Keypoints):
            writings.append(_points(folder, files, target, weights[target.field]))
    return [write() for write in writings]


def _masks(folder: Path, files: Sequence[Path], schema: LabelSchema, weights: Path) -> Writing:
    """Compute the masks of all images."""
    network, out = load_annotator(weights), folder / "masks"
    images = _images(files, network.resolution, "train_annotator.py")
    _check_names(folder, "classes", schema.classes, network.classes)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} already holds annotations, which are not replaced: move them away")
    masks = network.annotate(images).numpy()

    def write() -> str:
        out.mkdir(exist_ok=True)
        for path, mask in zip(files, masks, strict=True):
            with atomic_write(out / path.name) as file:
                file.write(png(mask, palette=schema.palette))
        return f"{len(files)} masks: {out.resolve()}"

    return write


def _points(folder: Path, files: Sequence[Path], keypoints: Keypoints, weights: Path) -> Writing:
    """Compute the points of all images."""
    network, out = load_point_annotator(weights), folder / KEYPOINTS_FILE
    images = _images(files, network.resolution, "train_point_annotator.py")
    _check_names(folder, "points", keypoints.names, network.names)
    if out.exists():
        raise ValueError(f"{out} is there already and is not replaced: move it away")
    points, _ = network.annotate(images)
    part = points_part(list(points.numpy()), keypoints)
    content = coco_file([file.name for file in files], (network.resolution, network.resolution), part)

    def write() -> str:
        write_json(out, content)
        return f"{len(keypoints.names)} points of {len(files)} images: {out.resolve()}"

    return write


def _images(files: Sequence[Path], side: int, trained_by: str) -> Tensor:
    """uint8 [N, 3, H, W]."""
    pictures = [open_picture(path).convert("RGB") for path in files]
    for path, picture in zip(files, pictures, strict=True):
        if picture.size != (side, side):
            size = "{}×{}".format(*picture.size)
            raise ValueError(
                f"{path} is {size} pixels; the annotator labels {side}×{side}: train one with {trained_by} --resolution"
            )
    return torch.from_numpy(np.stack([np.array(picture) for picture in pictures])).permute(0, 3, 1, 2)


def _check_names(folder: Path, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    if tuple(names) != tuple(known):
        raise ValueError(f"{folder} has the {what} {', '.join(names)}; the annotator knows {', '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `dsgan annotate export`")
    parser.add_argument("--annotator", type=Path, help="of masks: weights written by train_annotator.py")
    parser.add_argument("--points", type=Path, help="of keypoints: weights written by train_point_annotator.py")
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
