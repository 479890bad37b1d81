"""A folder with what an annotator made of it -> latents and masks to fit an interpreter on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.annotations.folder import Array, Exported, generator_fingerprint, hash_pixels
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.png import read_picture
from dsgan_datasets.device import Device
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import load_generator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.schema import LabelSchema
from dsgan_datasets.training import Annotated

#: Kinds of annotations, and where each lies in the folder.
AnnotationFormat = Literal["masks"]
PLACES: dict[AnnotationFormat, str] = {"masks": "masks/*.png"}

#: Reads one mask, or notes why it cannot be used.
_Reader = Callable[[Findings], Array | None]


@dataclass(frozen=True)
class Annotations:
    """What `fit_interpreter` needs, read by `load_annotations`.

    Attributes:
        annotated: latents float32 [A, z_dim] and masks int64 [A, H, W].
        schema: the classes of the masks.
        recipe: how the images were made, and so how features must be made.
        names: what each image is called.
        images: uint8 RGB [A, 3, H, W]; None if the folder holds none.
        generator: with the recipe's feature layout; None if none was given.
        warnings: what an annotator should look at, one sentence each.
    """

    annotated: Annotated
    schema: LabelSchema
    recipe: Recipe
    names: tuple[str, ...]
    images: Tensor | None = None
    generator: FeatureGenerator | None = None
    warnings: tuple[str, ...] = ()

    @property
    def latents(self) -> Tensor:
        """float32 [A, z_dim]."""
        return self.annotated.latents

    @property
    def masks(self) -> Tensor:
        """int64 class ids [A, H, W]."""
        return self.annotated.masks


def load_annotations(
    folder: str | os.PathLike[str],
    generator: FeatureGenerator | str | os.PathLike[str] | None = None,
    *,
    format: AnnotationFormat | None = None,
    device: Device = None,
) -> Annotations:
    """Read the annotations of a folder that `dsgan annotate export` wrote.

    Args:
        folder: the exported folder, with masks in it.
        generator: the one exported from, or where `load_generator` finds it; it is then loaded with the features of the
            exported recipe. None checks nothing about it.
        format: which annotations, if there are several kinds; None takes the kind that is there.
        device: for a generator that is loaded here.

    Returns:
        latents, masks, schema, recipe and generator, ready for `fit_interpreter`.

    Raises:
        AnnotationError: lists every mistake of every file: an unknown class, a wrong size, a missing or extra file, an
            empty mask, an image or a generator that is not the one exported.

    Example:
        >>> found = load_annotations("to-annotate", "demo-faces")  # doctest: +SKIP
        >>> fit_interpreter(found.generator, found.annotated, found.schema, recipe=found.recipe)  # doctest: +SKIP
    """
    folder = Path(folder)
    exported = Exported.read(folder)
    found = Findings()
    loaded = _checked_generator(exported, generator, device, found)
    images = {image.name: _read_image(folder, image.file, image.sha256, found) for image in exported.images}
    readers = _readers(folder, _format(folder, format), exported)
    _check_names(readers, images, found)
    masks = {name: readers[name](found) for name in images if name in readers}
    for name, mask in masks.items():
        _check_empty(name, mask, exported.schema, found)
    if found.mistakes:
        raise AnnotationError(folder, *found.mistakes)
    names = tuple(masks)
    stacked = torch.from_numpy(np.stack([masks[name] for name in names]))  # type: ignore[misc]
    _warn_absent(stacked, exported.schema, found)
    pixels = torch.from_numpy(np.stack([images[name] for name in names]))  # type: ignore[misc]
    return Annotations(
        Annotated(exported.latents, stacked),
        exported.schema,
        exported.recipe,
        names,
        pixels.permute(0, 3, 1, 2),
        loaded,
        tuple(found.warnings),
    )


def _format(folder: Path, asked: AnnotationFormat | None) -> AnnotationFormat:
    """The kind of annotations to read."""
    if asked is not None:
        if asked not in get_args(AnnotationFormat):
            raise ValueError(f"format must be one of {', '.join(get_args(AnnotationFormat))}, not {asked!r}")
        return asked
    there = [kind for kind, place in PLACES.items() if any(folder.glob(place))]
    if len(there) == 1:
        return there[0]
    if there:
        raise AnnotationError(folder, f"there are annotations of several kinds: say which, format={' or '.join(there)}")
    places = ", ".join(f"{place} ({kind})" for kind, place in PLACES.items())
    raise AnnotationError(folder, f"nothing is annotated yet: there are none of {places}")


def _readers(folder: Path, kind: AnnotationFormat, exported: Exported) -> dict[str, _Reader]:
    """Name of an image -> what reads its mask."""
    schema, size = exported.schema, exported.size
    return {
        path.stem: partial(read_picture, path, str(path.relative_to(folder)), schema, size)
        for path in sorted(folder.glob(PLACES[kind]))
    }


def _checked_generator(
    exported: Exported,
    generator: FeatureGenerator | str | os.PathLike[str] | None,
    device: Device,
    found: Findings,
) -> FeatureGenerator | None:
    if generator is None:
        return None
    name = exported.generator
    if not isinstance(generator, FeatureGenerator):
        name, generator = (
            os.fspath(generator),
            load_generator(generator, device=device, features=exported.recipe.features),
        )
    if generator_fingerprint(generator) != exported.fingerprint:
        found.wrong(
            f"generator {name!r}",
            f"is not the one these images were exported from ({exported.generator!r}, fingerprint "
            f"{exported.fingerprint[:8]}…): give that one, its file or its converted directory",
        )
    return generator


def _read_image(folder: Path, file: str, sha256: str, found: Findings) -> Array | None:
    """uint8 RGB [H, W, 3] of an exported image that nobody has changed."""
    try:
        with Image.open(folder / file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        found.wrong(file, "the exported image is missing: restore it, the annotation belongs to exactly this image")
        return None
    except Exception as error:  # a damaged file may raise anything at all
        found.wrong(file, f"is no picture that can be read ({error!r:.120}): restore the exported image")
        return None
    if hash_pixels(pixels) != sha256:
        found.wrong(
            file,
            f"is not the image that was exported (its pixels, {pixels.shape[1]}×{pixels.shape[0]}, have another "
            "SHA-256): restore it, and check that the annotation was drawn on that one",
        )
        return None
    return pixels


def _check_names(readers: Mapping[str, object], images: Mapping[str, object], found: Findings) -> None:
    for name in sorted(images.keys() - readers.keys()):
        found.wrong(name, "has no annotation: annotate it too")
    for name in sorted(readers.keys() - images.keys()):
        found.wrong(
            name,
            f"no such image was exported ({listed(list(images), 3)}): name the annotation like its image, or remove it",
        )


def _check_empty(name: str, mask: Array | None, schema: LabelSchema, found: Findings) -> None:
    if mask is not None and not ((mask != 0) & (mask != schema.ignore_index)).any():
        found.wrong(
            name, f"the mask is empty: every pixel is {schema.classes[0]!r} or ignored. Annotate it, or leave it out"
        )


def _warn_absent(masks: Tensor, schema: LabelSchema, found: Findings) -> None:
    present = set(masks.unique().tolist())
    if absent := [name for i, name in enumerate(schema.classes) if i not in present]:
        found.warnings.append(
            f"no image has the class {', '.join(absent)}: it cannot be learned. Annotate an image that shows it, or "
            "take it out of classes.json"
        )
