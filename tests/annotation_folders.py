"""Folders to annotate, and what annotators make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_labeled

from dsgan_datasets.annotations import AnnotationError, Annotations, export_annotations, load_annotations
from dsgan_datasets.annotations.coco import coco_file, outlines_part, points_part
from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.labelme import labelme_file, point_shapes, polygon_shapes
from dsgan_datasets.annotations.shapes import mask_to_shapes
from dsgan_datasets.images import png
from dsgan_datasets.targets import DenseMap, Keypoints, Target

GENERATOR = GOLDEN / "sg2ada_fullsnapshot16.pkl"
SIZE = (16, 16)


def export_command(out: Path) -> list[str]:
    """Words of `dsgan` that export three images into a folder."""
    options = ["--num-samples", "3", "--candidates", "8", "--device", "cpu"]
    return ["annotate", "export", str(GENERATOR), str(out), *options]


def blocks(seed: int) -> Array:
    """A mask [16, 16] with every class of SCHEMA, one inside another, and a region that touches the edge."""
    mask = np.zeros(SIZE, dtype=np.int64)
    mask[2:14, 1:15] = 1
    mask[4 + seed % 3 : 10, 4:12] = 2
    mask[6:8, 6:10] = 0
    mask[12:, 12:] = 3
    return mask


#: Points and depth beside the masks of SCHEMA.
POINTS = Keypoints(("nose", "left_eye", "right_eye"), skeleton=((0, 1), (0, 2)), flip_pairs=((1, 2),))
DEPTH = DenseMap("depth", -1, 1, unit="m")


def places(seed: int) -> Array:
    """Points [3, 3] in an image of SIZE: one is hidden, and one of them in one image is not there."""
    points = np.array([(8.25, 9.5, 2), (12.5, 5.0 + seed % 3, 2), (4.0, 5.25, 1)], dtype=np.float32)
    if seed == 1:
        points[0] = 0
    return points


def ramp(seed: int) -> Array:
    """Depth [1, 16, 16] that a 16-bit PNG holds exactly, with an unknown part."""
    values = torch.linspace(-1, 1, SIZE[0] * SIZE[1]).roll(seed).view(1, *SIZE).clone()
    values[:, :2, :3] = torch.nan
    depth: Array = DEPTH.rounded(values).numpy()
    return depth


def export_to(folder: Path, *targets: Target) -> Path:
    """Three images to annotate, of the small StyleGAN2; masks if nothing else is named."""
    labeled = small_labeled()
    export_annotations(
        labeled.generator,
        targets or SCHEMA,
        folder,
        num_samples=3,
        candidates=12,
        recipe=labeled.recipe,
        name=str(GENERATOR),
    )
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "images").glob("*.png"))


def write_masks(folder: Path) -> Array:
    """Right masks as palette PNG; [3, 16, 16]."""
    masks = np.stack([blocks(i) for i in range(3)])
    (folder / "masks").mkdir()
    for name, mask in zip(names(folder), masks, strict=True):
        (folder / "masks" / f"{name}.png").write_bytes(png(mask, palette=SCHEMA.palette))
    return masks


def write_labelme(folder: Path) -> Array:
    masks = np.stack([blocks(i) for i in range(3)])
    for name, mask in zip(names(folder), masks, strict=True):
        shapes = polygon_shapes(mask_to_shapes(mask), SCHEMA)
        write(folder / "images" / f"{name}.json", labelme_file(f"{name}.png", SIZE, shapes))
    return masks


def write_coco(folder: Path) -> Array:
    masks = np.stack([blocks(i) for i in range(3)])
    part = outlines_part([mask_to_shapes(mask) for mask in masks], SIZE, SCHEMA)
    write(folder / "coco.json", coco_file([f"{name}.png" for name in names(folder)], SIZE, part))
    return masks


def write_labelme_points(folder: Path) -> Array:
    points = np.stack([places(i) for i in range(3)])
    for name, its in zip(names(folder), points, strict=True):
        write(folder / "images" / f"{name}.json", labelme_file(f"{name}.png", SIZE, point_shapes(its, POINTS)))
    return points


def write_coco_points(folder: Path) -> Array:
    points = np.stack([places(i) for i in range(3)])
    files = [f"{name}.png" for name in names(folder)]
    write(folder / "coco_keypoints.json", coco_file(files, SIZE, points_part(list(points), POINTS)))
    return points


def write_depth(folder: Path) -> Array:
    """PNG files, but one."""
    maps = np.stack([ramp(i) for i in range(3)])
    (folder / "depth").mkdir()
    for i, (name, depth) in enumerate(zip(names(folder), maps, strict=True)):
        if i:
            (folder / "depth" / f"{name}.png").write_bytes(DEPTH.encode(torch.from_numpy(depth)))
        else:
            np.save(folder / "depth" / f"{name}.npy", depth[0].astype(np.float64))
    return maps


def packed(numbers: Array, *, literal: bool = False) -> list[int]:
    """rle-pack's bytes: runs of equal numbers, or all numbers one by one in runs of 16."""
    bits = f"{len(numbers):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (2, 4, 8, 16))
    if literal:
        for i in range(0, len(numbers), 16):
            part = numbers[i : i + 16]
            bits += f"001{len(part) - 1:04b}" + "".join(f"{n:08b}" for n in part)
    else:
        for number, same in groupby(numbers.tolist()):
            bits += f"111{len(list(same)) - 1:016b}{number:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def region(kind: str, label: str, **value: Any) -> dict[str, Any]:
    sides = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {**sides, "id": label, "type": kind, "value": {**value, kind: [label]}}


def brush(mask: Array, label: str, **how: bool) -> dict[str, Any]:
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[mask] = (0, 20, 30, 255)
    return region("brushlabels", label, format="rle", rle=packed(pixels.flatten(), **how))


def keypoint(label: str, x: float, y: float) -> dict[str, Any]:
    return region("keypointlabels", label, x=100 * x / SIZE[1], y=100 * y / SIZE[0], width=0.3)


def labelstudio_task(name: str, *result: dict[str, Any]) -> dict[str, Any]:
    annotations = [{"id": 1, "was_cancelled": True, "result": [{}]}, {"id": 2, "result": list(result)}]
    return {"id": 3, "data": {"image": f"/data/upload/1/ab12cd34-{name}.png"}, "annotations": annotations}


def write_labelstudio(folder: Path) -> tuple[Array, Array]:
    """Masks of SCHEMA by brush, and POINTS, in one file."""
    masks = np.stack([blocks(i) for i in range(3)])
    points = np.stack([places(i) for i in range(3)])
    tasks = []
    for name, mask, its in zip(names(folder), masks, points, strict=True):
        regions = [brush(mask == i, SCHEMA.classes[i], literal=i == 2) for i in (1, 2, 3)]
        for label, (x, y, v) in zip(POINTS.names, its.tolist(), strict=True):
            regions.append(keypoint(label, x, y))
            if v != 2:
                regions.append({"id": label, "type": "choices", "value": {"choices": ["hidden" if v else "absent"]}})
        tasks.append(labelstudio_task(name, *regions))
    write(folder / "labelstudio.json", [*tasks, labelstudio_task("other")])
    return masks, points


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def change(path: Path, edit: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def mistakes(folder: Path, generator: object = None, **options: object) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        load_annotations(folder, generator, **options)  # type: ignore[arg-type]
    assert str(folder) in str(caught.value) and all(m in str(caught.value) for m in caught.value.mistakes)
    return list(caught.value.mistakes)


def equal(found: Annotations, masks: Array) -> bool:
    return np.array_equal(found.masks.numpy(), masks)
