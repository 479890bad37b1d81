"""Photos with masks of their own -> an interpreter: inverted, and fitted where the inversions lie."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets import LabeledGenerator, fit_interpreter
from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.interpreters import Interpreter
from dsgan_datasets.inversion import Inversion, Photo, Photos, export_photos

from .data import Labeled


def as_photos(names: Sequence[str], images: Tensor) -> Photos:
    """Images in memory."""
    readers = {name: partial(Photo, name, image) for name, image in zip(names, images, strict=True)}
    return Photos(readers, (images.shape[2], images.shape[3]))


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of N images in decibels, [N]."""
    return 10 * torch.log10(255**2 / (images.float() - others.float()).square().mean((1, 2, 3)))


def taught(labeled: LabeledGenerator, photos: Labeled, found: Inversion) -> tuple[Interpreter, dict[str, Any]]:
    """An interpreter of the masks of photos, like the checkpoint's, by the way of `dsgan invert` and `dsgan fit`.

    Args:
        labeled: whose generator and recipe; its own interpreter says only which architecture.
        photos: of the generator's size.
        found: their inversion.

    Returns:
        Beside the interpreter, how well the photos were found.
    """
    names = [f"{row:03d}" for row in range(photos.count)]
    labels = {name: {"mask": mask.long().numpy()} for name, mask in zip(names, photos.masks, strict=True)}
    generator, schema, recipe = labeled.generator, labeled.schema, labeled.recipe
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "photos")
        export_photos(generator, schema, out, as_photos(names, photos.images), found, recipe=recipe, labels=labels)
        read = load_annotations(out, generator)
    facts = {
        "photos": photos.count,
        "of_them_trusted": int(found.trusted.sum()),
        "psnr_median": round(float(psnr(found.images, photos.images).median()), 2),
        "pixels_not_learned_from": round(float((read.masks == schema.ignore_index).float().mean()), 4),
    }
    architecture = labeled.interpreter.architecture
    return fit_interpreter(generator, read.annotated, schema, recipe=read.recipe, architecture=architecture), facts
