"""Folders of annotated images, one for each round of annotating -> what an interpreter is fitted on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsgan_datasets.annotations.folder import ANNOTATION_MANIFEST
from dsgan_datasets.annotations.formats import AnnotationFormat
from dsgan_datasets.annotations.kinds import kind_of
from dsgan_datasets.annotations.loading import Annotations, load_folder
from dsgan_datasets.annotations.mistakes import AnnotationError, listed
from dsgan_datasets.device import Device
from dsgan_datasets.files import is_file
from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import style_vectors
from dsgan_datasets.latents import Latents
from dsgan_datasets.recipe import FeatureLayout, Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema

#: Fields of the recipe that change how an image is computed, and not what it shows; the size is compared as pixels.
_SAME_IMAGES = ("compute_batch", "dtype", "compile", "size")

#: A folder of annotations, or the folders of several rounds.
Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class _Round(NamedTuple):
    """What a message calls a folder, and what was read from it."""

    name: str
    found: Annotations


def load_annotations(
    folder: Folders,
    generator: FeatureGenerator | str | os.PathLike[str] | None = None,
    *,
    format: AnnotationFormat | None = None,
    files: str | os.PathLike[str] | None = None,
    classes: LabelSchema | Sequence[str] | None = None,
    features: FeatureLayout | None = None,
    min_region: int = 0,
    min_class: int = 0,
    allow_missing: bool = False,
    device: Device = None,
    **recipe: Any,
) -> Annotations:
    """Read the annotations in a folder that `dsgan annotate export` wrote, or in DatasetGAN's published layout.

    An exported folder says what is annotated: masks, points, maps such as depth, or several of them. It may hold
    ``masks/NAME.png`` (class ids as palette or gray PNG, or RGB in exactly the colors of the classes),
    ``images/NAME.json`` (LabelMe: polygons and points), ``coco.json`` and ``coco_keypoints.json``, and
    ``depth/NAME.png`` or ``.npy`` for a map called depth. What no shape covers is class 0.

    The published layout is ``image_mask{i}.npy`` and ``latent_stylegan1.npy``, perhaps with ``avg_latent*.npy`` and
    classes.json; its images are those of psi 0.7 on the first 8 layers (7 of 256-pixel models), resized to the masks.

    Several folders are read as rounds, oldest first. They must be of one generator and one recipe, and their classes
    and points must have the same names; ids, colors and order are those of the first folder. An image that is annotated
    in several rounds counts once: the last annotation is taken, and a warning says so.

    Args:
        folder: where all this lies; or a list of such folders, of either layout.
        generator: the one exported from, or where `load_generator` finds it; it is then loaded with the features of the
            (first) export, and with the folder's average w if there is one. None checks nothing about it.
        format: "masks", "maps", "labelme", "coco" or "published", where the same labels are there in several formats;
            None takes what is there.
        files: annotations that lie elsewhere: a folder or a zip archive of PNG, .npy or LabelMe files, or a COCO file;
            labels that these cannot hold are looked for in the folder. With one folder only.
        classes: of the published layout, names in the order of ids, or a schema; None reads classes.json.
        features: of the published layout, the feature layout of a generator that is loaded here; None is the first
            that the architecture has.
        min_region: connected regions of fewer pixels take the class around them; 0 keeps all. At 512² 30 is a speck,
            at 64² it is an eye.
        min_class: a class with fewer pixels in an image becomes class 0, as published (30); 0 keeps all.
        allow_missing: read what is annotated, and leave out the images that are not, or lack one of several labels. A
            point without a mark is not in the image then.
        device: for a generator that is loaded here.
        recipe: fields of `Recipe` that were different from the above, for the published layout.

    Returns:
        latents, labels, targets, recipe and generator, ready for `fit_interpreter`.

    Raises:
        AnnotationError: lists every mistake of every file: an unknown class or point, a wrong size, a missing or extra
            file, an empty label, a point outside of the image, an image or a generator that is not the one exported; or
            rounds that do not fit together.
        CheckpointError: the generator cannot be loaded.

    Example:
        >>> found = load_annotations(["round-1", "round-2"], "demo-faces")  # doctest: +SKIP
        >>> fit_interpreter(found.generator, found.annotated, found.schema, recipe=found.recipe)  # doctest: +SKIP
    """
    folders = [Path(folder)] if isinstance(folder, str | os.PathLike) else [Path(each) for each in folder]
    _check_folders(folders, files)
    of_published: dict[str, Any] = {"classes": classes, "features": features, **recipe}
    mixed = len({_is_exported(path) for path in folders}) > 1
    rounds: list[_Round] = []
    errors: dict[str, AnnotationError] = {}
    for name, path in zip(_names(folders), folders, strict=True):
        own = {"classes": None, "features": None} if mixed and _is_exported(path) else of_published
        try:
            found = load_folder(
                path,
                generator,
                format=format,
                files=files,
                min_region=min_region,
                min_class=min_class,
                allow_missing=allow_missing,
                device=device,
                **own,
            )
        except AnnotationError as error:
            errors[name] = error
            continue
        generator = found.generator or generator  # loaded once
        rounds.append(_Round(name, found))
    if errors:
        raise _all_at_once(errors)
    return _with_notices(rounds[0].found if len(rounds) == 1 else _joined(rounds))


def _check_folders(folders: Sequence[Path], files: object) -> None:
    if not folders:
        raise ValueError("no folder of annotations given")
    if len({path.resolve() for path in folders}) < len(folders):
        raise ValueError(f"a folder of annotations is given twice: {listed(folders)}")
    if files is not None and len(folders) > 1:
        raise ValueError(
            "files are the annotations of one folder: with several folders, put them into each (masks/, images/*.json, "
            "or coco.json)"
        )


def _is_exported(folder: Path) -> bool:
    return is_file(folder / ANNOTATION_MANIFEST)


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names of the folders, or their paths if two have the same."""
    short = [path.resolve().name for path in folders]
    return short if len(set(short)) == len(short) else [str(path) for path in folders]


def _all_at_once(errors: Mapping[str, AnnotationError]) -> AnnotationError:
    if len(errors) == 1:
        return next(iter(errors.values()))
    mistakes = [f"{name}: {mistake}" for name, error in errors.items() for mistake in error.mistakes]
    return AnnotationError(", ".join(errors), *mistakes)


def _joined(rounds: Sequence[_Round]) -> Annotations:
    """All rounds as one, in the classes of the first."""
    mistakes = [mistake for later in rounds[1:] for mistake in _disagreements(rounds[0], later)]
    if mistakes:
        raise AnnotationError(", ".join(each.name for each in rounds), *mistakes)
    first, drawn = rounds[0].found, [each.found for each in rounds if not each.found.are_photos]
    generator = next((each.found.generator for each in rounds if each.found.generator is not None), None)
    last = {z.numpy().tobytes(): number for number, each in enumerate(rounds) for z in each.found.latents}
    kept = [
        torch.tensor([last[z.numpy().tobytes()] == number for z in each.found.latents])
        for number, each in enumerate(rounds)
    ]
    mixed = 0 < len(drawn) < len(rounds)
    latents = torch.cat(
        [
            (_styles(each, generator) if mixed else each.found.latents)[rows]
            for each, rows in zip(rounds, kept, strict=True)
        ]
    )
    labels = {
        target.field: torch.cat(
            [_translated(each.found, target)[rows] for each, rows in zip(rounds, kept, strict=True)]
        )
        for target in first.targets
    }
    images = [each.found.images for each in rounds]
    return Annotations(
        annotated=AnnotatedImages(latents, labels),
        targets=first.targets,
        recipe=(drawn or [first])[0].recipe,
        names=tuple(
            f"{each.name}/{name}"
            for each, rows in zip(rounds, kept, strict=True)
            for name, keep in zip(each.found.names, rows.tolist(), strict=True)
            if keep
        ),
        images=None
        if any(image is None for image in images)
        else torch.cat([image[rows] for image, rows in zip(images, kept, strict=True) if image is not None]),
        generator=generator,
        warnings=(
            *(f"{each.name}: {warning}" for each in rounds for warning in each.found.warnings),
            *_annotated_again(rounds, kept, last),
        ),
        fingerprint=next((each.found.fingerprint for each in rounds if each.found.fingerprint), None),
        size=first.size,
        photo_licenses=tuple(dict.fromkeys(license for each in rounds for license in each.found.photo_licenses)),
    )


@torch.no_grad()
def _styles(each: _Round, generator: FeatureGenerator | None) -> Tensor:
    """Styles [A, num_ws, w_dim] of a round of photos or of draws."""
    if each.found.are_photos:
        return each.found.latents
    if generator is None:
        raise AnnotationError(
            each.name, "draws and photos are joined by their styles, which the generator makes: give the generator"
        )
    return style_vectors(generator, each.found.recipe, Latents.of(each.found.recipe, each.found.latents)).cpu()


def _annotated_again(rounds: Sequence[_Round], kept: Sequence[Tensor], last: Mapping[bytes, int]) -> list[str]:
    """A sentence for each round whose labels a later one replaces."""
    sentences = []
    for each, rows in zip(rounds, kept, strict=True):
        again = (~rows).nonzero()[:, 0].tolist()
        if again:
            by = {rounds[last[each.found.latents[i].numpy().tobytes()]].name for i in again}
            sentences.append(
                f"{each.name}: {listed([each.found.names[i] for i in again])}: annotated again in "
                f"{listed(sorted(by))}, whose labels count"
            )
    return sentences


def _disagreements(first: _Round, later: _Round) -> list[str]:
    """Why two rounds cannot be fitted together, with the way out."""
    a, b = first.found, later.found
    mistakes = []
    if a.fingerprint and b.fingerprint and a.fingerprint != b.fingerprint:
        mistakes.append(
            f"{later.name}: its images are of another generator (fingerprint {b.fingerprint[:8]}…) than those of "
            f"{first.name} ({a.fingerprint[:8]}…): fit each of them to its own generator"
        )
    if different := _different_fields(a, b):
        fields = "; ".join(f"{name} {there} instead of {here}" for name, (here, there) in different.items())
        mistakes.append(
            f"{later.name}: its images were made in another way than those of {first.name} ({fields}), so their "
            f"features differ: export with `dsgan annotate export --after {first.name}`, which takes the same recipe"
        )
    for one, other in ((first, later), (later, first)):
        if lacking := [t.field for t in other.found.targets if t.field not in _by_field(one.found)]:
            mistakes.append(
                f"{one.name}: has no {listed(lacking)}, which {other.name} has, and rounds that are fitted together "
                "have the same labels: annotate it there, or fit each of them to its own labels"
            )
    for field, target in _by_field(a).items():
        if field in _by_field(b):
            mistakes += kind_of(target).disagreements(target, _by_field(b)[field], (first.name, later.name))
    return mistakes


def _by_field(found: Annotations) -> dict[str, Target]:
    return {target.field: target for target in found.targets}


def _different_fields(a: Annotations, b: Annotations) -> dict[str, tuple[Any, Any]]:
    """Fields in which the recipes of the images differ -> the two values."""

    def fields(found: Annotations) -> dict[str, Any]:
        recipe: Recipe = found.recipe
        stored = recipe.to_dict()
        decisive = {**({} if a.are_photos or b.are_photos else stored["sampling"]), **stored["rendering"]}
        height, width = found.size
        return {**{k: v for k, v in decisive.items() if k not in _SAME_IMAGES}, "size": f"{width}×{height}"}

    here, there = fields(a), fields(b)
    return {name: (here[name], there[name]) for name in here if here[name] != there[name]}


def _translated(found: Annotations, target: Target) -> Tensor:
    """Labels as those of another target of the same field."""
    own = _by_field(found)[target.field]
    return kind_of(target).translated(found.annotated.of(target.field), own, target)


def _with_notices(found: Annotations) -> Annotations:
    """With warnings about what an annotator should check in all rounds together."""
    notices = [
        notice
        for target in found.targets
        for notice in kind_of(target).noticed(found.annotated.of(target.field), target, found.names)
    ]
    return dataclasses.replace(found, warnings=(*found.warnings, *notices))
