"""The layout in which DatasetGAN's annotations were published: numpy files in one folder.

image_mask0.npy image_mask1.npy …   class ids [H, W]
latent_stylegan1.npy                z of each image, [A, 512]
avg_latent_stylegan1.npy            average w, equal rows [18, 512]; may lie elsewhere
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.annotations.folder import CLASSES, Array, generator_fingerprint, load_latents, read_classes
from dsgan_datasets.annotations.material import Material, Source
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.contents import read_bounded
from dsgan_datasets.device import Device
from dsgan_datasets.files import is_file
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.dialects import read_average
from dsgan_datasets.generators.loading import load_generator
from dsgan_datasets.images import MOST_PIXELS, PictureError, open_picture
from dsgan_datasets.recipe import FeatureLayout, Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Bytes of a file of class ids.
_LONGEST_MASK = 2**27
_MASK = re.compile(r"image_mask(\d+)\.npy")


def is_published(folder: Path) -> bool:
    """Whether a folder has this layout."""
    return any(folder.glob("image_mask*.npy"))


def read_published(
    folder: Path,
    generator: FeatureGenerator | str | os.PathLike[str] | None,
    classes: LabelSchema | Sequence[str] | None,
    features: FeatureLayout | None,
    overrides: Mapping[str, Any],
    device: Device,
    found: Findings,
) -> Material:
    """A folder in the published layout."""
    latents, average, files = read_latents(folder), average_in(folder), mask_files(folder)
    sizes = [mask.shape for mask in map(load_mask, files.values()) if mask is not None]
    if not sizes:
        raise AnnotationError(folder, "no file image_mask0.npy, … holds class ids [H, W]")
    size = max(sizes, key=sizes.count)
    if generator is not None and not isinstance(generator, FeatureGenerator):
        generator = load_generator(generator, device=device, avg_latent=average, features=features)
    recipe = published_recipe(generator, (size[0], size[1])).override(**overrides)
    if generator is not None:
        check_average(generator, average, folder, found)
        if latents.shape[1] != generator.z_dim:
            found.error("latents", f"have {latents.shape[1]} numbers, the generator's z has {generator.z_dim}")
    schema = _schema(folder, classes, files)
    images = {f"image_mask{i}": _published_image(folder, i, size) for i in range(len(latents))}
    sources = {
        path.stem: [Source(path.name, partial(read_mask, path, path.name, schema, (size[0], size[1])))]
        for path in files.values()
    }
    fingerprint = None if generator is None else generator_fingerprint(generator)
    return Material((schema,), recipe, latents, images, sources, generator, fingerprint, (size[0], size[1]))


def _schema(folder: Path, classes: LabelSchema | Sequence[str] | None, files: Mapping[int, Path]) -> LabelSchema:
    if isinstance(classes, LabelSchema):
        return classes
    if classes is not None:
        return LabelSchema(tuple(classes))
    if not is_file(folder / CLASSES):
        highest = max(int(mask.max()) for mask in map(load_mask, files.values()) if mask is not None)
        raise AnnotationError(
            folder,
            f"there are no class names; the masks hold ids up to {highest}. Give the names in their order "
            f'(--classes background,eye,…), or write {CLASSES}: {{"classes": [{{"name": "background"}}, …]}}',
        )
    return read_classes(folder)


def _published_image(folder: Path, number: int, size: Sequence[int]) -> Array | None:
    """The picture beside a mask, if there is one, resized to the mask; only to be shown."""
    for path in folder.glob(f"image_{number}.*"):
        try:
            picture = open_picture(path, formats=("PNG", "JPEG"))
        except (OSError, PictureError):
            continue
        return np.asarray(picture.convert("RGB").resize((size[1], size[0])))
    return None


def mask_files(folder: Path) -> dict[int, Path]:
    """Number -> file of each mask."""
    named = ((_MASK.fullmatch(path.name), path) for path in folder.glob("image_mask*.npy"))
    return {int(match[1]): path for match, path in sorted(named, key=lambda pair: pair[1].name) if match}


def read_latents(folder: Path) -> Tensor:
    """z of each image, float32 [A, z_dim].

    Raises:
        AnnotationError: there is no such file, several, or one that holds no z.
    """
    files = sorted(folder.glob("latent*.npy"))
    if len(files) != 1:
        raise AnnotationError(
            folder, f"expected one file latent*.npy, found {listed([f.name for f in files]) or 'none'}: put it there"
        )
    return load_latents(folder, files[0].name, files[0].read_bytes())


def average_in(folder: Path) -> Tensor | None:
    """Average w [w_dim] of the folder; None if it has none.

    Raises:
        CheckpointError: a file of that name that holds something else.
    """
    files = sorted(folder.glob("avg_latent*.npy"))
    return read_average(files[0]) if files else None


def published_recipe(generator: FeatureGenerator | None, size: tuple[int, int]) -> Recipe:
    """Psi 0.7 on the first 8 layers (7 of 256-pixel models) and, as size, that of the masks."""
    cutoff = 7 if generator is not None and generator.img_resolution == 256 else 8
    return Recipe(truncation_psi=0.7, truncation_cutoff=cutoff, size=size)


def check_average(generator: FeatureGenerator, average: Tensor | None, folder: Path, found: Findings) -> None:
    """A generator truncates towards the average that the images were made with."""
    if average is None or generator.mean_w is None:
        return  # without one, truncation itself says so
    mean = generator.mean_w.cpu()
    if mean.shape != average.shape or not torch.allclose(mean, average.to(mean), rtol=1e-4, atol=1e-5):
        found.error(
            "avg_latent",
            f"the generator has another average w than the one in {folder}: load it with that one "
            "(avg_latent=…, `dsgan convert --avg-latent`)",
        )


def read_mask(path: Path, where: str, schema: LabelSchema, size: tuple[int, int], found: Findings) -> dict[str, Array]:
    """The mask, class ids int64 [H, W], of an .npy file; without it the reason is among the mistakes."""
    mask = load_mask(path)
    if mask is None:
        found.error(where, "is not an .npy file of class ids [H, W]: pickled objects are not read; save integers")
        return {}
    if mask.shape != size:
        found.wrong_size(where, (mask.shape[0], mask.shape[1]), size)
        return {}
    ids = np.unique(mask)
    unknown = [int(i) for i in ids if not 0 <= i < schema.num_classes and i != schema.ignore_index]
    if unknown:
        found.error(
            where,
            f"holds unknown class {listed(unknown)}; the classes are 0-{schema.num_classes - 1}: name it there",
        )
        return {}
    return {schema.field: mask}


def load_mask(path: Path) -> Array | None:
    """int64 [H, W] of an .npy file; None if it holds something else."""
    try:
        mask = np.load(io.BytesIO(read_bounded(path, _LONGEST_MASK)), allow_pickle=False).squeeze()
    except Exception:  # a damaged file may raise anything at all
        return None
    if mask.size > MOST_PIXELS or mask.ndim != 2 or mask.dtype.kind not in "uif" or (mask != np.round(mask)).any():
        return None
    ids: Array = mask.astype(np.int64)
    return ids
