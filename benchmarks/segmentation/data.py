"""Renders with exact masks: read from their shards, reduced to the students' size, split."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets import LabelSchema

# The demo's own reduction of renders and its stand-in annotator; examples are no package.
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "demo_faces"))
from annotator import CLASSES as MERGED_CLASSES
from train_annotator import MERGE, halve_image, halve_mask

IGNORE = 255
SIDE = 128  # of the renders
VALIDATION = 240  # the last training renders; 10,000 are left to train on


class Labelled(NamedTuple):
    """Images uint8 [N, 3, H, W] and masks uint8 [N, H, W]."""

    images: Tensor
    masks: Tensor

    def __getitem__(self, rows: object) -> Labelled:  # type: ignore[override]
        return Labelled(self.images[rows], self.masks[rows])  # type: ignore[index]

    def to(self, device: str) -> Labelled:
        return Labelled(self.images.to(device), self.masks.to(device))

    @property
    def count(self) -> int:
        return len(self.images)


def read_renders(shards: list[Path], schema: LabelSchema, size: int) -> Labelled:
    """All renders of some shards, in their order, with the classes of a schema.

    Raises:
        ValueError: no shard, a shard that is not one of the domain's, or a schema or size that renders cannot have.
    """
    if not shards:
        raise ValueError("no shards to read: --domain takes the folder with train-*.tar, test-*.tar and classes.json")
    lookup = class_lookup(shards[0].parent, schema, size)
    images, masks = [], []
    for shard in tqdm(shards, "reading renders", unit="shard", delay=2, leave=False):
        for image, mask in _pairs(shard):
            if image.shape != (SIDE, SIDE, 3) or mask.shape != (SIDE, SIDE) or mask.max() >= len(lookup):
                raise ValueError(f"{shard}: an image {image.shape} with mask {mask.shape} and class {mask.max()}")
            mask = lookup[mask]
            images.append(image if size == SIDE else halve_image(image))
            masks.append(mask if size == SIDE else halve_mask(mask))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Labelled(pixels, torch.from_numpy(np.stack(masks)))


def class_lookup(domain: Path, schema: LabelSchema, size: int) -> np.ndarray:
    """Class id of a render -> class id of the schema, uint8 [number of rendered classes].

    Raises:
        ValueError: the schema is neither the renders' own nor the merged one of the demo.
    """
    names = tuple(entry["name"] for entry in json.loads((domain / "classes.json").read_text())["classes"])
    if size not in (SIDE // 2, SIDE):
        raise ValueError(f"renders come at {SIDE // 2} and {SIDE} pixels, not {size}")
    if schema.classes == MERGED_CLASSES:
        return MERGE
    if schema.classes == names and size == SIDE:
        return np.arange(len(names), dtype=np.uint8)
    raise ValueError(
        f"the checkpoint has the classes {', '.join(schema.classes)}; renders of {size} pixels can have "
        f"{', '.join(MERGED_CLASSES)}" + (f", or {', '.join(names)}" if size == SIDE else "")
    )


def _pairs(shard: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image [128, 128, 3] and mask [128, 128] of each key; the two files of a key follow each other."""
    held: dict[str, np.ndarray] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            file = tar.extractfile(member)
            if file is None or kind not in ("jpg", "seg.png"):
                continue
            held[f"{key}.{kind}"] = np.asarray(Image.open(io.BytesIO(file.read())))  # mode P: the class itself
            if len(held) == 2:
                if set(held) != {f"{key}.jpg", f"{key}.seg.png"}:
                    raise ValueError(f"{shard}: {sorted(held)} follow each other, expected the two files of one key")
                yield held[f"{key}.jpg"], held[f"{key}.seg.png"]
                held = {}
    if held:
        raise ValueError(f"{shard} ends after {sorted(held)}, expected the two files of each key")
