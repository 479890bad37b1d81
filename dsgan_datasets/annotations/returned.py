"""An exported folder that came back from an annotator: checked against the generator and the images of the export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F

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
#: Levels by which a photo may differ from its reconstruction around a pixel that is learned from (root mean square).
_UNLIKE = 24.0


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
    unlike: dict[str, Array] = {}
    if generator is not None and not found.mistakes:
        made = _rendered(generator, exported)
        if exported.photo_license is None:
            _check_rendering(made, images, found)
        else:
            unlike = {
                name: unlike_pixels(image, again)
                for (name, image), again in zip(images.items(), made, strict=True)
                if image is not None
            }
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
        unlike,
        exported.photo_license,
    )


def unlike_pixels(photo: Array, reconstruction: Array) -> Array:
    """Where a reconstruction does not show what its photo does, bool [H, W]: by the mean difference around a pixel.

    Args:
        photo, reconstruction: uint8 [H, W, 3].
    """
    difference = torch.from_numpy(photo.astype(np.float32) - reconstruction.astype(np.float32)).square().mean(2)
    side = 2 * (min(photo.shape[:2]) // 32) + 1  # a sixteenth of the image
    around = F.avg_pool2d(difference[None, None], side, 1, side // 2, count_include_pad=False)[0, 0]
    unlike: Array = (around > _UNLIKE**2).numpy()
    return unlike


def _rendered(generator: FeatureGenerator, exported: Exported) -> Iterator[Array]:
    """What latents and recipe give, uint8 [H, W, 3] each."""
    for block in exported.latents.split(exported.recipe.compute_batch):
        yield from synthesize(generator, exported.recipe, block)[0].cpu().permute(0, 2, 3, 1).numpy()


def _check_rendering(made: Iterator[Array], images: Mapping[str, Array | None], found: Findings) -> None:
    """Labels fit the features only if latents and recipe still give the exported images."""
    for name, again in zip(images, made, strict=True):
        stored, expected = images[name], again.astype(np.float32)
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
