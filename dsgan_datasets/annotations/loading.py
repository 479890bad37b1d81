"""One folder of annotated images -> latents and labels to fit an interpreter on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.annotations.folder import ANNOTATION_MANIFEST, CLASSES, Array
from dsgan_datasets.annotations.formats import AnnotationFormat
from dsgan_datasets.annotations.kinds import Cleaning, kind_of
from dsgan_datasets.annotations.material import Material, Source
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.published import is_published, read_published
from dsgan_datasets.annotations.returned import read_exported
from dsgan_datasets.checks import integer
from dsgan_datasets.device import Device
from dsgan_datasets.files import is_file, is_folder
from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import FeatureLayout, Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema, schema_of


@dataclass(frozen=True)
class Annotations:
    """What `fit_interpreter` needs, read by `load_annotations`.

    Attributes:
        annotated: latents float32 [A, z_dim], and the labels of each target, [A, ...].
        targets: what the labels mean.
        recipe: how the images were generated, and so how their features must be.
        names: what each image is called.
        size: (H, W) of the images.
        images: uint8 RGB [A, 3, H, W]; None if the folder holds none.
        generator: with the feature layout of the annotations; None if none was given.
        warnings: what an annotator should check, one sentence each.
        fingerprint: of the generator that the images are of; None if neither the folder nor the caller says which.
        photo_licenses: of the photos among the images; empty if all are draws of the generator.

    Example:
        >>> from dsgan_datasets.annotations import export_annotations, load_annotations
        >>> from PIL import Image
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> _ = export_annotations(generator, LabelSchema(("background", "face")), tmp, num_samples=1, select="random")
        >>> (tmp / "masks").mkdir()
        >>> mask = Image.new("L", (64, 64))
        >>> mask.paste(1, (16, 16, 48, 48))
        >>> mask.save(tmp / "masks" / "000000000.png")
        >>> found = load_annotations(tmp, generator)
        >>> found.names, found.masks.sum(), found.size
        (('000000000',), tensor(1024), (64, 64))
    """

    annotated: AnnotatedImages
    targets: tuple[Target, ...]
    recipe: Recipe
    names: tuple[str, ...]
    size: tuple[int, int]
    images: Tensor | None = None
    generator: FeatureGenerator | None = None
    warnings: tuple[str, ...] = ()
    fingerprint: str | None = None
    photo_licenses: tuple[str, ...] = ()

    @property
    def are_photos(self) -> bool:
        """Whether the latents are styles, to which the recipe's sampling does not apply."""
        return self.latents.dim() == 3

    @property
    def latents(self) -> Tensor:
        """float32 [A, z_dim], or styles [A, num_ws, w_dim]."""
        return self.annotated.latents

    @property
    def schema(self) -> LabelSchema:
        """The classes of the masks; ValueError if there are none."""
        return schema_of(self.targets)

    @property
    def masks(self) -> Tensor:
        """int64 class ids [A, H, W]; ValueError if there are none."""
        return self.annotated.masks


def load_folder(
    folder: Path,
    generator: FeatureGenerator | str | os.PathLike[str] | None,
    *,
    format: AnnotationFormat | None,
    files: str | os.PathLike[str] | None,
    classes: LabelSchema | Sequence[str] | None,
    features: FeatureLayout | None,
    min_region: int,
    min_class: int,
    allow_missing: bool,
    device: Device,
    **recipe: Any,
) -> Annotations:
    """The annotations of one folder; arguments and errors as for `load_annotations`."""
    integer("min_region", min_region, 0)
    integer("min_class", min_class, 0)
    if format is not None and format not in get_args(AnnotationFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(AnnotationFormat))}, not {format!r}")
    if not is_folder(folder):
        raise ValueError(f"no folder {folder}: give the one that `dsgan annotate export` wrote")
    found = Findings()
    if format == "published" or (not is_file(folder / ANNOTATION_MANIFEST) and is_published(folder)):
        material = read_published(folder, generator, classes, features, recipe, device, found)
    else:
        given = {"classes": classes, "features": features, **recipe}
        if changed := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"{changed[0]}: classes, features and recipe are those of the export; edit {CLASSES}, or export again"
            )
        material = read_exported(folder, generator, format, None if files is None else Path(files), device, found)
    cleaning = Cleaning(min_region, min_class, allow_missing)
    labels, missing = _labels(material, cleaning, found)
    _check_names(material, missing, found, allow_missing=allow_missing)
    if found.mistakes:
        raise AnnotationError(folder, *found.mistakes)
    rows = [i for i, name in enumerate(material.images) if name in labels]
    stacked = {
        target.field: torch.from_numpy(np.stack([its[target.field] for its in labels.values()]))
        for target in material.targets
    }
    if material.unlike:
        unlike = torch.from_numpy(np.stack([material.unlike[name] for name in labels]))
        stacked |= {target.field: target.ignore(stacked[target.field], unlike) for target in material.targets}
    return Annotations(
        annotated=AnnotatedImages(material.latents[rows], stacked),
        targets=material.targets,
        recipe=material.recipe,
        names=tuple(labels),
        size=material.size,
        images=_stacked([material.images[name] for name in labels]),
        generator=material.generator,
        warnings=tuple(found.warnings),
        fingerprint=material.fingerprint,
        photo_licenses=() if material.photo_license is None else (material.photo_license,),
    )


def _labels(
    material: Material, cleaning: Cleaning, found: Findings
) -> tuple[dict[str, dict[str, Array]], dict[str, list[str]]]:
    """The labels of each image that has all of them, by field; and which of them other images lack."""
    labels: dict[str, dict[str, Array]] = {}
    missing: dict[str, list[str]] = {}
    for name in material.images:
        before = found.count
        given = _given(name, material.sources.get(name, ()), found)
        if found.count > before:
            continue
        if lacking := [kind_of(target).noun for target in material.targets if target.field not in given]:
            missing[name] = lacking
            continue
        settled = {
            target.field: kind_of(target).settled(given[target.field], target, name, cleaning, found)
            for target in material.targets
        }
        if found.count == before:
            labels[name] = {field: label for field, label in settled.items() if label is not None}
    return labels, missing


def _stacked(images: Sequence[Array | None]) -> Tensor | None:
    there = [image for image in images if image is not None]
    return torch.from_numpy(np.stack(there)).permute(0, 3, 1, 2) if len(there) == len(images) else None


def _given(name: str, sources: Sequence[Source], found: Findings) -> dict[str, Array]:
    """The labels of an image, from all files that hold some of them."""
    labels: dict[str, Array] = {}
    files: dict[str, str] = {}
    for source in sources:
        given = found.guarded(source.file, partial(source.read, found)) or {}
        for field, label in given.items():
            if field in labels:
                found.error(
                    name,
                    f"{files[field]} and {source.file} both annotate its {field}: keep one of them, choose with format "
                    "(--format), or pass one (--files)",
                )
            labels[field], files[field] = label, source.file
    return labels


def _check_names(
    material: Material, missing: Mapping[str, Sequence[str]], found: Findings, *, allow_missing: bool
) -> None:
    """Every image needs an annotation, and every annotation should be of an image: it may be the missing one."""
    images, sources = material.images, material.sources
    unread = bool(found.count) and len(missing) == len(images)  # the file of all of them: that is the mistake
    for name, lacking in missing.items():
        partly = len(lacking) < len(material.targets)
        what = f"has no {' and no '.join(lacking)}" if partly else "has no annotation"
        if not unread and (not allow_missing or len(missing) == len(images)):
            found.error(name, f"{what}: annotate it too, or leave it out with allow_missing (--allow-missing)")
        elif partly:
            found.warning(name, f"{what}, so it was left out: annotate that, too")
    for name in sorted(sources.keys() - images.keys()):
        note = found.error if missing else found.warning
        note(
            name,
            f"no such image was exported ({listed(list(images), 3)}): name the annotation like its image, or remove it",
        )
