"""Folders to annotate, and what annotators make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, SCHEMA, small_labeled

from dsgan_datasets.annotations import AnnotationError, Annotations, export_annotations, load_annotations
from dsgan_datasets.annotations.coco import coco_file
from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.labelme import labelme_file
from dsgan_datasets.annotations.shapes import mask_to_shapes
from dsgan_datasets.images import png

GENERATOR = GOLDEN / "sg2ada_fullsnapshot16.pkl"
SIZE = (16, 16)


def blocks(seed: int) -> Array:
    """A mask [16, 16] with every class of SCHEMA, one inside another, and a region that touches the edge."""
    mask = np.zeros(SIZE, dtype=np.int64)
    mask[2:14, 1:15] = 1
    mask[4 + seed % 3 : 10, 4:12] = 2
    mask[6:8, 6:10] = 0
    mask[12:, 12:] = 3
    return mask


def export_to(folder: Path) -> Path:
    """Three images to annotate, of the small StyleGAN2."""
    labeled = small_labeled()
    export_annotations(
        labeled.generator, SCHEMA, folder, num=3, candidates=12, recipe=labeled.recipe, name=str(GENERATOR)
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
        shapes = [(SCHEMA.classes[i], polygon) for i, polygon in mask_to_shapes(mask)]
        write(folder / "images" / f"{name}.json", labelme_file(f"{name}.png", SIZE, shapes))
    return masks


def write_coco(folder: Path) -> Array:
    masks = np.stack([blocks(i) for i in range(3)])
    images = [(f"{name}.png", mask_to_shapes(mask)) for name, mask in zip(names(folder), masks, strict=True)]
    write(folder / "coco.json", coco_file(images, SIZE, SCHEMA))
    return masks


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
