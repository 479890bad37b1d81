"""A folder with what an annotator made of it -> latents and masks to fit an interpreter on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.annotations import published
from dsgan_datasets.annotations.coco import coco_readers
from dsgan_datasets.annotations.folder import (
    CLASSES,
    MANIFEST,
    Array,
    Exported,
    generator_fingerprint,
    hash_pixels,
    read_classes,
    read_json,
)
from dsgan_datasets.annotations.labelme import read_labelme
from dsgan_datasets.annotations.mistakes import AnnotationError, Findings, listed
from dsgan_datasets.annotations.png import read_picture
from dsgan_datasets.annotations.regions import absorb_specks, drop_rare
from dsgan_datasets.checks import integer
from dsgan_datasets.device import Device
from dsgan_datasets.fitting.pixel_ensemble import AnnotatedImages
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import load_generator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Kinds of annotations.
AnnotationFormat = Literal["masks", "labelme", "coco", "published"]
#: Where each of them lies in an exported folder.
PLACES: dict[AnnotationFormat, str] = {"masks": "masks/*", "labelme": "images/*.json", "coco": "coco.json"}

#: Names that file managers of Windows and macOS leave in folders.
_LEFT_BY_SYSTEMS = frozenset({"Thumbs.db", "desktop.ini", "Icon\r"})

#: Levels of 0 … 255 by which an image may differ on average when another device makes it again.
_SAME_IMAGE = 4.0

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

    annotated: AnnotatedImages
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


@dataclass(frozen=True)
class _Material:
    """What lies in a folder, of whatever layout: for each image its name, its pixels and what reads its mask."""

    schema: LabelSchema
    recipe: Recipe
    latents: Tensor
    images: Mapping[str, Array | None]
    readers: Mapping[str, _Reader]
    generator: FeatureGenerator | None


def load_annotations(
    folder: str | os.PathLike[str],
    generator: FeatureGenerator | str | os.PathLike[str] | None = None,
    *,
    format: AnnotationFormat | None = None,
    files: str | os.PathLike[str] | None = None,
    classes: LabelSchema | Sequence[str] | None = None,
    min_region: int = 0,
    min_class: int = 0,
    allow_missing: bool = False,
    device: Device = None,
    **recipe: Any,
) -> Annotations:
    """Read what an annotator made of a folder that `dsgan annotate export` wrote, or of DatasetGAN's published layout.

    An exported folder may hold ``masks/NAME.png`` (class ids as palette or gray PNG, or RGB in exactly the colors of
    the classes), ``images/NAME.json`` (LabelMe) or ``coco.json``; what no shape covers is class 0. The published layout
    is ``image_mask{i}.npy`` and ``latent_stylegan1.npy``, perhaps with ``avg_latent*.npy`` and classes.json; its images
    are those of psi 0.7 on the first 8 layers (7 of 256-pixel models), resized to the masks.

    Args:
        folder: where all this lies.
        generator: the one exported from, or where `load_generator` finds it; it is then loaded with the features of the
            recipe, and with the folder's average w if there is one. None checks nothing about it.
        format: "masks", "labelme", "coco" or "published"; None takes the kind that is there.
        files: annotations that lie elsewhere: a folder of PNG or LabelMe files, or a COCO file.
        classes: of the published layout, names in the order of ids, or a schema; None reads classes.json.
        min_region: connected regions of fewer pixels take the class around them; 0 keeps all. At 512² 30 is a speck,
            at 64² it is an eye.
        min_class: a class with fewer pixels in an image becomes class 0, as published (30); 0 keeps all.
        allow_missing: read what is annotated, and leave out the images that are not.
        device: for a generator that is loaded here.
        recipe: fields of `Recipe` that were different from the above, for the published layout.

    Returns:
        latents, masks, schema, recipe and generator, ready for `fit_interpreter`.

    Raises:
        AnnotationError: lists every mistake of every file: an unknown class, a wrong size, a missing or extra file, an
            empty mask, an image or a generator that is not the one exported.
        CheckpointError: the generator cannot be loaded.

    Example:
        >>> found = load_annotations("to-annotate", "demo-faces")  # doctest: +SKIP
        >>> fit_interpreter(found.generator, found.annotated, found.schema, recipe=found.recipe)  # doctest: +SKIP
    """
    folder = Path(folder)
    integer("min_region", min_region, 0)
    integer("min_class", min_class, 0)
    if format is not None and format not in get_args(AnnotationFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(AnnotationFormat))}, not {format!r}")
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the one that `dsgan annotate export` wrote")
    found = Findings()
    if format == "published" or (not (folder / MANIFEST).is_file() and published.is_published(folder)):
        material = _published(folder, generator, classes, recipe, device, found)
    else:
        if classes is not None or recipe:
            given = "classes" if classes is not None else next(iter(recipe))
            raise ValueError(f"{given}: classes and recipe are those of the export; edit {CLASSES}, or export again")
        material = _exported(folder, generator, format, None if files is None else Path(files), device, found)
    _check_names(material, found, allow_missing=allow_missing)
    masks: dict[str, Array] = {}
    for name in material.images:
        mask = material.readers[name](found) if name in material.readers else None
        if mask is not None:
            cleaned = absorb_specks(mask, min_region, material.schema.ignore_index)
            masks[name] = drop_rare(cleaned, min_class)
            _check_empty(name, masks[name], material.schema, found)
    if found.mistakes:
        raise AnnotationError(folder, *found.mistakes)
    rows = [i for i, name in enumerate(material.images) if name in masks]
    stacked = torch.from_numpy(np.stack(list(masks.values())))
    _warn_absent(stacked, material.schema, found)
    return Annotations(
        AnnotatedImages(material.latents[rows], stacked),
        material.schema,
        material.recipe,
        tuple(masks),
        _stacked([material.images[name] for name in masks]),
        material.generator,
        tuple(found.warnings),
    )


def _exported(
    folder: Path,
    generator: FeatureGenerator | str | os.PathLike[str] | None,
    asked: AnnotationFormat | None,
    files: Path | None,
    device: Device,
    found: Findings,
) -> _Material:
    """A folder of `export_annotations`."""
    exported = Exported.read(folder)
    if generator is not None:
        given = "the generator"
        if not isinstance(generator, FeatureGenerator):
            given = f"generator {os.fspath(generator)!r}"
            generator = load_generator(generator, device=device, features=exported.recipe.features)
        if generator_fingerprint(generator) != exported.fingerprint:
            found.wrong(
                given,
                f"is not the one these images were exported from ({exported.generator!r}, fingerprint "
                f"{exported.fingerprint[:8]}…): give that one, its file or its converted directory",
            )
        if generator.features != exported.recipe.features:
            found.wrong(
                given,
                f"gives features {generator.features!r}, the recipe reads {exported.recipe.features!r}: load it so",
            )
    images = {image.name: _read_image(folder, image.file, image.sha256, found) for image in exported.images}
    if generator is not None and not found.mistakes:
        _check_rendering(generator, exported, images, found)
    kind, files = _kind(folder, exported, asked, files)
    readers = _readers(folder, exported, kind, files, found)
    return _Material(exported.schema, exported.recipe, exported.latents, images, readers, generator)


@torch.no_grad()
def _check_rendering(
    generator: FeatureGenerator, exported: Exported, images: Mapping[str, Array | None], found: Findings
) -> None:
    """Masks belong to the features that are read only if latents and recipe still give the exported images."""
    latents = exported.latents.split(exported.recipe.compute_batch)
    made = (image for block in latents for image in synthesize(generator, exported.recipe, block)[0].cpu())
    for name, again in zip(images, made, strict=True):
        stored = images[name]
        expected = again.permute(1, 2, 0).numpy().astype(np.float32)
        if stored is None or stored.shape != expected.shape or np.abs(stored - expected).mean() > _SAME_IMAGE:
            found.wrong(
                name,
                f"its latent and the recipe in {MANIFEST} give another image: the entries or the recipe were changed "
                "after the export; restore the file, or export again",
            )


def _kind(
    folder: Path, exported: Exported, asked: AnnotationFormat | None, files: Path | None
) -> tuple[AnnotationFormat, Path]:
    """Which annotations to read, and the folder or file where they are."""
    if files is not None:
        if not files.exists():
            raise AnnotationError(folder, f"{files}: no such file or folder with annotations")
        guess: AnnotationFormat = "coco" if files.is_file() else "labelme" if any(files.glob("*.json")) else "masks"
        return asked or guess, files
    places = {kind: folder / pattern.partition("/*")[0] for kind, pattern in PLACES.items()}
    if asked is not None:
        return asked, places[asked]
    there = [kind for kind, pattern in PLACES.items() if any(folder.glob(pattern))]
    if len(there) > 1 and "labelme" in there and _only_drafts(folder, exported):
        there.remove("labelme")  # drafts that nobody looked at, as the work was done in another tool
    if len(there) == 1:
        return there[0], places[there[0]]
    if there:
        raise AnnotationError(
            folder, f"there are annotations of several kinds: say which with format, one of {', '.join(there)}"
        )
    raise AnnotationError(
        folder,
        "nothing is annotated yet: put masks/NAME.png, images/NAME.json (LabelMe) or coco.json here, or say with files "
        "(--files) where they are",
    )


def _readers(
    folder: Path, exported: Exported, kind: AnnotationFormat, files: Path, found: Findings
) -> dict[str, _Reader]:
    """Name of an image -> what reads its mask."""
    schema, size = exported.schema, exported.size

    def where(path: Path) -> str:
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    if kind == "coco":
        content = read_json(files.parent, files.name)
        return dict(coco_readers(content, where(files), schema, size, found))
    if kind == "labelme":
        hashes = {image.name: image.sha256 for image in exported.images}
        drafts = {image.name: image.draft for image in exported.images}
        paths = sorted(files.glob("*.json"))
        untouched = [p.stem for p in paths if drafts.get(p.stem) == hashlib.sha256(p.read_bytes()).hexdigest()]
        if untouched:
            found.warnings.append(
                f"{len(untouched)} of {len(paths)} annotations are unchanged drafts of the interpreter: "
                f"{listed(untouched)}"
            )
        return {p.stem: partial(read_labelme, p, where(p), schema, size, hashes.get(p.stem)) for p in paths}
    readers: dict[str, _Reader] = {}
    for path in sorted(p for p in files.glob("*") if not p.name.startswith(".") and p.name not in _LEFT_BY_SYSTEMS):
        if path.suffix.lower() == ".png":
            readers[path.stem] = partial(read_picture, path, where(path), schema, size)
        else:
            found.wrong(where(path), "is no PNG file, and other formats change colors: save the mask as PNG")
    return readers


def _only_drafts(folder: Path, exported: Exported) -> bool:
    drafts = {image.draft for image in exported.images}
    return all(hashlib.sha256(p.read_bytes()).hexdigest() in drafts for p in folder.glob(PLACES["labelme"]))


def _published(
    folder: Path,
    generator: FeatureGenerator | str | os.PathLike[str] | None,
    classes: LabelSchema | Sequence[str] | None,
    overrides: Mapping[str, Any],
    device: Device,
    found: Findings,
) -> _Material:
    """A folder in the published layout."""
    latents, average, files = published.read_latents(folder), published.average_in(folder), published.mask_files(folder)
    sizes = [mask.shape for mask in map(published.load_mask, files.values()) if mask is not None]
    if not sizes:
        raise AnnotationError(folder, "no file image_mask0.npy, … holds class ids [H, W]")
    size = max(sizes, key=sizes.count)
    if generator is not None and not isinstance(generator, FeatureGenerator):
        generator = load_generator(generator, device=device, avg_latent=average, features=overrides.get("features"))
    recipe = published.published_recipe(generator, (size[0], size[1])).override(**overrides)
    if generator is not None:
        published.check_average(generator, average, folder, found)
        if latents.shape[1] != generator.z_dim:
            found.wrong("latents", f"have {latents.shape[1]} numbers, the generator's z has {generator.z_dim}")
    schema = _schema(folder, classes, files)
    images = {f"image_mask{i}": _published_image(folder, i, size) for i in range(len(latents))}
    readers = {
        path.stem: partial(published.read_mask, path, path.name, schema, (size[0], size[1])) for path in files.values()
    }
    return _Material(schema, recipe, latents, images, readers, generator)


def _schema(folder: Path, classes: LabelSchema | Sequence[str] | None, files: Mapping[int, Path]) -> LabelSchema:
    if isinstance(classes, LabelSchema):
        return classes
    if classes is not None:
        return LabelSchema(tuple(classes))
    if not (folder / CLASSES).is_file():
        highest = max(int(mask.max()) for mask in map(published.load_mask, files.values()) if mask is not None)
        raise AnnotationError(
            folder,
            f"what the class ids mean is not said; the masks hold ids up to {highest}. Give the names in their order "
            f'(--classes background,eye,…), or write {CLASSES}: {{"classes": [{{"name": "background"}}, …]}}',
        )
    return read_classes(folder)


def _published_image(folder: Path, number: int, size: Sequence[int]) -> Array | None:
    """The picture beside a mask, if there is one of its size; only to be looked at."""
    for path in folder.glob(f"image_{number}.*"):
        try:
            with Image.open(path) as picture:
                resized = picture.convert("RGB").resize((size[1], size[0]))
        except OSError:
            continue
        return np.asarray(resized)
    return None


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


def _stacked(images: Sequence[Array | None]) -> Tensor | None:
    there = [image for image in images if image is not None]
    return torch.from_numpy(np.stack(there)).permute(0, 3, 1, 2) if len(there) == len(images) else None


def _check_names(material: _Material, found: Findings, *, allow_missing: bool) -> None:
    images, readers = material.images, material.readers
    missing = [name for name in images if name not in readers]
    if not allow_missing or len(missing) == len(images):
        for name in missing:
            found.wrong(
                name, "has no annotation: annotate it too, or leave it out with allow_missing (--allow-missing)"
            )
    for name in sorted(readers.keys() - images.keys()):
        found.wrong(
            name,
            f"no such image was exported ({listed(list(images), 3)}): name the annotation like its image, or remove it",
        )


def _check_empty(name: str, mask: Array, schema: LabelSchema, found: Findings) -> None:
    if not ((mask != 0) & (mask != schema.ignore_index)).any():
        found.wrong(
            name,
            f"the mask is empty: every pixel is {schema.classes[0]!r} or ignored. Annotate it, or remove its "
            "annotation and leave it out with allow_missing (--allow-missing)",
        )


def _warn_absent(masks: Tensor, schema: LabelSchema, found: Findings) -> None:
    present = set(masks.unique().tolist())
    if absent := [name for i, name in enumerate(schema.classes) if i not in present]:
        found.warnings.append(
            f"no image has the class {', '.join(absent)}, so it cannot be learned: annotate images that show it, or "
            "leave it out of the classes when you export"
        )
