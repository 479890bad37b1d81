"""Annotate a folder of `dsgan annotate export` with a network that was trained on the masks of the renders.

dsgan annotate export runs/faces/best to-annotate --num-samples 16 --truncation-psi 1 --classes demo/classes.json
python demo/annotate.py to-annotate --annotator annotator.safetensors
dsgan fit runs/faces/best to-annotate my-faces
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from annotator import load_annotator
from tqdm import tqdm

from dsgan_datasets.annotations import read_classes
from dsgan_datasets.files import atomic_write
from dsgan_datasets.images import open_picture, png


def annotate(folder: Path, annotator: Path) -> int:
    """Write masks/NAME.png for images/NAME.png; returns how many.

    Raises:
        ValueError: the folder was not exported with these classes and images of this size, or already holds masks.
    """
    network, schema = load_annotator(annotator), read_classes(folder)
    images = sorted((folder / "images").glob("*.png"))
    side = network.resolution
    pictures = [open_picture(path).convert("RGB") for path in images]
    for path, picture in zip(images, pictures, strict=True):  # before the classes, which depend on it
        if picture.size != (side, side):
            size = "{}×{}".format(*picture.size)
            raise ValueError(
                f"{path} is {size} pixels; the annotator labels {side}×{side}: train one with --resolution"
            )
    if schema.classes != network.classes:
        raise ValueError(
            f"{folder} has the classes {', '.join(schema.classes)}; the annotator knows {', '.join(network.classes)}"
        )
    masks = folder / "masks"
    if masks.is_dir() and any(masks.iterdir()):
        raise ValueError(f"{masks} already holds annotations, which are not replaced: move them away")
    masks.mkdir(exist_ok=True)
    for path, picture in zip(tqdm(images, "annotating", unit="image", delay=2, leave=False), pictures, strict=True):
        pixels = torch.from_numpy(np.array(picture))
        mask = network.annotate(pixels.permute(2, 0, 1)[None])[0].numpy()
        with atomic_write(masks / path.name) as file:
            file.write(png(mask, palette=schema.palette))
    return len(images)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `dsgan annotate export`")
    parser.add_argument("--annotator", type=Path, required=True, help="weights written by train_annotator.py")
    args = parser.parse_args(arguments)
    try:
        count = annotate(args.folder, args.annotator)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} masks: {args.folder.resolve() / 'masks'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
