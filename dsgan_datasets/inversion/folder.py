"""Inverted photos -> a folder to annotate, from which `dsgan fit` learns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.annotations.coco import coco_file, points_part
from dsgan_datasets.annotations.export import without_folders
from dsgan_datasets.annotations.folder import Array, Exported, ExportedImage, as_targets, generator_fingerprint
from dsgan_datasets.annotations.formats import KEYPOINTS_FILE
from dsgan_datasets.annotations.writing import write_folder
from dsgan_datasets.arrays import npy
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.images import png
from dsgan_datasets.inversion.inverter import Inversion
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos, photo_facts
from dsgan_datasets.inversion.photos import Labels, Photos
from dsgan_datasets.inversion.sheets import inversion_sheet
from dsgan_datasets.pictures import as_png
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema


def export_photos(
    generator: FeatureGenerator,
    targets: Target | Sequence[Target],
    out: str | os.PathLike[str],
    photos: Photos,
    found: Inversion,
    *,
    recipe: Recipe,
    labeled: LabeledPhotos | None = None,
    labels: Labels | None = None,
    keep_untrusted: bool = False,
    name: str = "generator",
) -> Exported:
    """Write a folder of photos to annotate, as `export_annotations` does of draws; it appears when it is complete.

    `load_annotations` and `dsgan fit` take it as a round. Features are read where the inversions lie, and pixels that a
    reconstruction does not show are not learned from.

    Args:
        generator: of the inversion.
        targets: labels to annotate.
        out: folder to write; new, or empty.
        photos, found: photos and their inversion.
        recipe: of the inversion, and of samples to come.
        labeled: of the same photos; drafts their annotations.
        labels: of photos that are annotated already, see `read_labels`.
        keep_untrusted: write photos with a score above 1 too.
        name: what to call the generator.

    Raises:
        ValueError: no photo can be trusted, or something is at `out`.
        OSError: the folder cannot be written.

    Example:
        >>> export_photos(generator, schema, "photos-to-annotate", photos, found, recipe=Recipe())  # doctest: +SKIP
    """
    out = Path(out)
    rows = [row for row, trusted in enumerate(found.trusted.tolist()) if trusted or keep_untrusted]
    if not rows:
        raise ValueError(
            f"none of the {len(photos)} photos can be trusted (best score {float(found.scores.min()):.2f}, of at most "
            "1): do they show what the generator makes, aligned as it does?"
        )
    kept = [photos[row] for row in rows]
    drafts: dict[str, Tensor] = {}
    if labeled is not None:
        batch = labeled.batch(range(len(labeled)))
        drafts = {target.field: batch[target.field].cpu() for target in as_targets(targets) if target.field in batch}
    exported = Exported(
        generator=without_folders(name),
        fingerprint=generator_fingerprint(generator),
        features=generator.features,
        recipe=recipe.unfiltered().override(class_map=None, max_uncertainty=None),
        seed=0,
        size=photos.size,
        targets=as_targets(targets),
        images=tuple(
            ExportedImage(row, f"images/{photo.name}.png", photo=photo_facts(photo, float(found.scores[row])))
            for row, photo in zip(rows, kept, strict=True)
        ),
        latents=found.styles[rows],
        photo_license=photos.license,
    )
    own = {photo.name: labels[photo.name] for photo in kept if labels and photo.name in labels}
    more = {"inversions.png": as_png(inversion_sheet(photos, found, title=exported.generator))}
    for target in exported.targets:
        its = {name: fields[target.field] for name, fields in own.items() if target.field in fields}
        if its:
            more |= _FILES[target.kind](its, target, photos.size)
    images = torch.stack([photo.image for photo in kept])
    return write_folder(out, exported, images, drafts, how="photos", more=more)


def _mask_files(masks: Mapping[str, Array], schema: LabelSchema, size: tuple[int, int]) -> dict[str, bytes]:
    return {f"{schema.folder}/{name}.png": png(torch.from_numpy(mask)) for name, mask in masks.items()}


def _map_files(maps: Mapping[str, Array], target: DenseMap, size: tuple[int, int]) -> dict[str, bytes]:
    return {f"{target.folder}/{name}.npy": npy(values) for name, values in maps.items()}


def _point_files(points: Mapping[str, Array], target: Keypoints, size: tuple[int, int]) -> dict[str, bytes]:
    """All in one COCO file; of images none of whose points is in the frame there is nothing to say."""
    there = {name: its for name, its in points.items() if (its[:, 2] > 0).any()}
    content = coco_file([f"{name}.png" for name in there], size, points_part(list(there.values()), target))
    return {KEYPOINTS_FILE: json.dumps(content).encode()}


#: Kind of label -> files of an annotated folder that hold it: labels by name of the photo, target, (H, W).
_FILES: dict[str, Callable[[Mapping[str, Array], Any, tuple[int, int]], dict[str, bytes]]] = {
    LabelSchema.kind: _mask_files,
    DenseMap.kind: _map_files,
    Keypoints.kind: _point_files,
}
