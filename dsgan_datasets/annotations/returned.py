"""An exported folder that came back from an annotator: checked against the generator and the images of the export."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch

from dsgan_datasets.annotations.folder import (
    ANNOTATION_MANIFEST,
    Array,
    Exported,
    ExportedImage,
    generator_fingerprint,
    hash_pixels,
)
from dsgan_datasets.annotations.formats import AnnotationFormat, annotation_sources
from dsgan_datasets.annotations.kinds import kind_of
from dsgan_datasets.annotations.material import Material
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings
from dsgan_datasets.device import Device
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import load_generator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.images import PictureError, open_picture
from dsgan_datasets.recipe import FeatureLayout

#: Levels of 0 … 255 by which an image may differ on average when another device generates it again.
_SAME_IMAGE = 4.0


def read_exported(
    folder: Path,
    generator: FeatureGenerator | str | os.PathLike[str] | None,
    asked: AnnotationFormat | None,
    files: Path | None,
    device: Device,
    found: Findings,
) -> Material:
    """A folder of `export_annotations`."""
    exported = Exported.read(folder)
    for target in exported.targets:
        try:
            kind_of(target)
        except ValueError as error:
            raise AnnotationError(folder, str(error)) from None
    if generator is not None:
        given = "the generator"
        if not isinstance(generator, FeatureGenerator):
            given = f"generator {os.fspath(generator)!r}"
            generator = load_generator(generator, device=device, features=cast(FeatureLayout, exported.features))
        if generator_fingerprint(generator) != exported.fingerprint:
            found.error(
                given,
                f"is not the one these images were exported from ({exported.generator!r}, fingerprint "
                f"{exported.fingerprint[:8]}…): give that one, its file or its converted directory",
            )
        if generator.features != exported.features:
            found.error(
                given,
                f"gives features {generator.features!r}, the export was for {exported.features!r}: load it with that "
                "layout; rounds that are fitted together need the same one",
            )
    images = {image.name: _read_image(folder, image, exported.size, found) for image in exported.images}
    if generator is not None and not found.mistakes:
        _check_rendering(generator, exported, images, found)
    sources = annotation_sources(folder, exported, asked, files, found)
    return Material(
        exported.targets,
        exported.recipe,
        exported.latents,
        images,
        sources,
        generator,
        exported.fingerprint,
        exported.size,
    )


@torch.no_grad()
def _check_rendering(
    generator: FeatureGenerator, exported: Exported, images: Mapping[str, Array | None], found: Findings
) -> None:
    """Labels fit the features only if latents and recipe still give the exported images."""
    latents = exported.latents.split(exported.recipe.compute_batch)
    made = (image for block in latents for image in synthesize(generator, exported.recipe, block)[0].cpu())
    for name, again in zip(images, made, strict=True):
        stored = images[name]
        expected = again.permute(1, 2, 0).numpy().astype(np.float32)
        if stored is None or stored.shape != expected.shape or np.abs(stored - expected).mean() > _SAME_IMAGE:
            found.error(
                name,
                f"its latent and the recipe in {ANNOTATION_MANIFEST} give another image: one of them was changed after "
                "the export; restore the file, or export again",
            )


def _read_image(folder: Path, image: ExportedImage, size: tuple[int, int], found: Findings) -> Array | None:
    """uint8 RGB [H, W, 3] of an exported image that was not changed."""
    file = image.file
    try:
        pixels = np.asarray(open_picture(folder / file, size=size, what="it").convert("RGB"))
    except FileNotFoundError:
        found.error(file, "the exported image is missing: restore it, the annotation belongs to exactly this image")
        return None
    except (OSError, PictureError) as error:
        found.error(file, f"cannot be read as a picture ({error}): restore the exported image")
        return None
    if hash_pixels(pixels) != image.sha256:
        found.error(
            file,
            f"is not the image that was exported (its pixels, {pixels.shape[1]}×{pixels.shape[0]}, have another "
            "SHA-256): restore it, and check that the annotation was drawn on that one",
        )
        return None
    return pixels
