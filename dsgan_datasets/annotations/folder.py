"""The folder that an annotator works in: the exported images and what identifies them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.annotations.mistakes import AnnotationError
from dsgan_datasets.checkpoints.migrations import recipe_v1_to_v2
from dsgan_datasets.checkpoints.tensors import digest_tensors, fingerprint
from dsgan_datasets.checks import integer
from dsgan_datasets.contents import LONGEST_JSON, ContentError, parse_json, read_bounded, shown
from dsgan_datasets.files import atomic_write, is_file
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import generator_tensors
from dsgan_datasets.images import MOST_PIXELS
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets import target_from_dict
from dsgan_datasets.targets.base import AnyTarget, Target
from dsgan_datasets.targets.segmentation import LabelSchema, schema_of

Array = np.ndarray[Any, np.dtype[Any]]

#: Version 1 had a flat recipe, with the feature layout in it.
FORMAT_VERSION = 2
ANNOTATION_MANIFEST, CLASSES, LATENTS = "annotations.json", "classes.json", "latents.npy"
#: Descriptions of the labels that are not masks, as a list; the classes of masks are in `CLASSES`.
TARGETS = "targets.json"
#: Label of pixels that no loss should count, LabelMe's own name for them; reserved, no class can have it.
IGNORE = "__ignore__"
_LONGEST_LATENTS = 2**28  # bytes


@dataclass(frozen=True)
class ExportedImage:
    """One image to annotate.

    Attributes:
        index: number of its draw, or of the photo.
        file: path within the folder.
        sha256: of its pixels, see `hash_pixels`.
        uncertainty_score: of the interpreter that drafted its annotation, nats; None without one.
        draft: SHA-256 of the LabelMe file that was drafted for it, None without one.
        photo: of a photo, how well it was inverted and where its frame lies in it, as JSON; None of a draw.
    """

    index: int
    file: str
    sha256: str = ""
    uncertainty_score: float | None = None
    draft: str | None = None
    photo: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What its annotation is called: the file's name without ending."""
        return Path(self.file).stem


@dataclass(frozen=True)
class Exported:
    """What was exported, and from what; annotations.json, classes.json, targets.json and latents.npy hold it.

    Attributes:
        generator: name under which the generator was loaded.
        fingerprint: of that generator, see `generator_fingerprint`.
        features: layout of its features, on which an interpreter will be fitted.
        recipe: how the images were made.
        seed: of their draws.
        size: (H, W) of the images.
        targets: labels to annotate.
        images: in the order of `latents`.
        latents: z of each image, float32 [A, z_dim]; of photos their styles, [A, num_ws, w_dim].
        photo_license: of photos; None if the images are draws of the generator.
    """

    generator: str
    fingerprint: str
    features: str
    recipe: Recipe
    seed: int
    size: tuple[int, int]
    targets: tuple[Target, ...]
    images: tuple[ExportedImage, ...]
    latents: Tensor
    photo_license: str | None = None

    @property
    def schema(self) -> LabelSchema:
        """Classes to annotate; ValueError if there are none."""
        return schema_of(self.targets)

    def write(self, folder: Path) -> None:
        """Write the files, annotations.json last."""
        latents = io.BytesIO()
        np.save(latents, self.latents.numpy(), allow_pickle=False)
        write_bytes(folder / LATENTS, latents.getvalue())
        write_targets(folder, self.targets)
        manifest = {
            "format_version": FORMAT_VERSION,
            "generator": {"name": self.generator, "fingerprint": self.fingerprint, "features": self.features},
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "size": list(self.size),
            "labels": [target.field for target in self.targets],
            "latents_sha256": hashlib.sha256(latents.getvalue()).hexdigest(),
            "images": [{k: v for k, v in asdict(image).items() if v is not None} for image in self.images],
        }
        if self.photo_license is not None:
            manifest["photo_license"] = self.photo_license
        write_json(folder / ANNOTATION_MANIFEST, manifest)

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """Inverse of `write`.

        Raises:
            AnnotationError: a file is missing, damaged, or does not belong to the others.
        """
        stored = _object(folder, ANNOTATION_MANIFEST, read_json(folder, ANNOTATION_MANIFEST))
        if (version := stored.get("format_version")) not in (1, FORMAT_VERSION):
            raise AnnotationError(
                folder,
                f"{ANNOTATION_MANIFEST}: format_version is {shown(version)}, this version of dsgan_datasets reads 1 "
                f"and {FORMAT_VERSION}: import with the version that exported",
            )
        targets = read_targets(folder)
        _check_fields(folder, stored.get("labels", []), targets)
        try:
            if version == 1:
                stored = _from_1(stored)
            images = tuple(ExportedImage(**entry) for entry in stored["images"])
            latents, digest = _read_latents(folder), stored["latents_sha256"]
            found = cls(
                generator=str(stored["generator"]["name"]),
                fingerprint=str(stored["generator"]["fingerprint"]),
                features=str(stored["generator"]["features"]),
                recipe=Recipe.from_dict(stored["recipe"]),
                seed=int(stored["seed"]),
                size=_size(stored["size"]),
                targets=targets,
                images=images,
                latents=latents[0],
                photo_license=_license(stored),
            )
            names = [image.name for image in images]
            outside = [
                image.file for image in images if not (folder / image.file).resolve().is_relative_to(folder.resolve())
            ]
        except AnnotationError:
            raise
        except Exception as error:  # a stranger's values may make anything at all fail
            raise AnnotationError(
                folder, f"{ANNOTATION_MANIFEST} is damaged ({error!r:.200}): restore it from the export"
            ) from error
        if outside or len(set(names)) != len(names) or not names:
            raise AnnotationError(
                folder, f"{ANNOTATION_MANIFEST} is damaged: images are missing, listed twice or outside"
            )
        styles = 2 if found.photo_license is None else 3
        if latents[1] != digest or len(found.latents) != len(images) or found.latents.dim() != styles:
            raise AnnotationError(
                folder, f"{LATENTS} is not the one that was exported: restore it, the masks are useless without it"
            )
        return found


def _from_1(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What format 2 says of a manifest of format 1."""
    recipe = stored["recipe"]
    generator = {**stored["generator"], "features": recipe.get("features", "convs")}
    images = [
        {"uncertainty_score" if key == "score" else key: value for key, value in entry.items()}
        for entry in stored["images"]
    ]
    return {**stored, "images": images, "generator": generator, "recipe": recipe_v1_to_v2(recipe, {})}


def generator_fingerprint(generator: FeatureGenerator) -> str:
    """SHA-256 (hex) of a generator's weights and shape, the same from whatever file it was read."""
    return fingerprint(digest_tensors(generator_tensors(generator)), generator.config)


def hash_pixels(image: Array) -> str:
    """SHA-256 (hex) of uint8 RGB pixels [H, W, 3], row by row: the same however a file compresses them."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def read_classes(folder: Path) -> LabelSchema:
    """The schema in classes.json of a folder, or an AnnotationError.

    Example:
        >>> tmp.mkdir()
        >>> _ = (tmp / "classes.json").write_text('{"classes": [{"name": "background"}, {"name": "face"}]}')
        >>> read_classes(tmp).classes
        ('background', 'face')
    """
    try:
        schema = LabelSchema.from_dict(_object(folder, CLASSES, read_json(folder, CLASSES)))
        check_names(schema)
        return schema
    except AnnotationError:
        raise
    except Exception as error:  # a stranger's values may make anything at all fail
        hint = 'it holds {"classes": [{"name": "background"}, {"name": "eye"}, …]}'
        raise AnnotationError(folder, f"{CLASSES} is not a list of classes ({error!r:.200}): {hint}") from error


def write_targets(folder: Path, targets: Sequence[Target]) -> None:
    """classes.json, if there are masks, and targets.json, if there is something else."""
    others = []
    for target in targets:
        if isinstance(target, LabelSchema):
            write_json(folder / CLASSES, target.to_dict())
        else:
            others.append(target.to_dict())
    if others:
        write_json(folder / TARGETS, others)


def read_targets(folder: Path) -> tuple[Target, ...]:
    """What is to be annotated in a folder, masks first, or an AnnotationError."""
    described = is_file(folder / TARGETS)
    schema = [read_classes(folder)] if is_file(folder / CLASSES) or not described else []
    if not described:
        return tuple(schema)
    try:
        return as_targets([*schema, *targets_from(read_json(folder, TARGETS))])
    except ValueError as error:
        raise error if isinstance(error, AnnotationError) else AnnotationError(folder, f"{TARGETS}: {error}") from error


def _check_fields(folder: Path, exported: Any, targets: Sequence[Target]) -> None:
    """AnnotationError if the file that describes a label is lost: its annotations would be passed over in silence.

    Labels that were described after the export are fine.
    """
    lost = set(map(str, exported if isinstance(exported, list) else [])) - {target.field for target in targets}
    if lost:
        where = CLASSES if "mask" in lost else TARGETS
        raise AnnotationError(
            folder,
            f"{where} is missing, or lacks {', '.join(sorted(lost))}, to be annotated here: restore it from the export",
        )


def targets_from(content: Any) -> list[Target]:
    """The targets of a parsed targets.json: a list of their JSON forms.

    Raises:
        ValueError: something else, or a target that makes no sense.
    """
    if not isinstance(content, list):
        raise ValueError(f"it holds {shown(content)}, expected a list of labels, such as {_EXAMPLE}")
    try:
        return [check_keys(target_from_dict(entry), entry) for entry in content]
    except ValueError:
        raise
    except Exception as error:  # a stranger's values may make anything at all fail
        raise ValueError(f"its labels make no sense ({error!r:.200}): {_EXAMPLE}") from error


def check_keys(target: AnyTarget, described: Mapping[str, Any]) -> AnyTarget:
    """The target itself, as a person described it; ValueError for a key that looks like one of its own, misspelled.

    Other keys, such as a comment, have no meaning and do no harm.
    """
    known = target.to_dict()
    for key in described.keys() - known.keys():
        if similar := get_close_matches(str(key), known, 1, 0.8):
            raise ValueError(
                f"{target.field} is described with {shown(key)}; rename it to {similar[0]!r}, or remove it"
            )
    return target


def as_targets(given: Target | Sequence[Target]) -> tuple[Target, ...]:
    """Labels that can be annotated together.

    Raises:
        ValueError: none, something else, two for one field, or a class called `IGNORE`.
    """
    targets = tuple(given) if isinstance(given, Sequence) else (given,)
    if not targets or not all(isinstance(target, Target) for target in targets):
        raise ValueError(f"targets must be labels to annotate, such as LabelSchema or Keypoints, not {given!r:.80}")
    fields = [target.field for target in targets]
    if doubled := sorted({field for field in fields if fields.count(field) > 1}):
        raise ValueError(f"{', '.join(doubled)} is described twice: keep one description of each label")
    for target in targets:
        if isinstance(target, LabelSchema):
            check_names(target)
    return targets


_EXAMPLE = '[{"kind": "keypoints", "names": ["left_eye", "right_eye"], "flip_pairs": [[0, 1]]}]'


def check_names(schema: LabelSchema) -> None:
    """Raise a ValueError if a class has the name that marks ignored pixels."""
    if IGNORE in schema.classes:
        raise ValueError(f"a class cannot be called {IGNORE}, which marks ignored pixels: choose another name")


def read_json(folder: Path, name: str) -> Any:
    """Content of a JSON file in a folder, or an AnnotationError."""
    try:
        return parse_json(_read(folder, name, LONGEST_JSON))
    except ContentError as error:
        raise AnnotationError(folder, f"{name} {error}, or restore it from the export") from None


def _read(folder: Path, name: str, at_most: int) -> bytes:
    try:
        return read_bounded(folder / name, at_most)
    except FileNotFoundError:
        raise AnnotationError(
            folder, f"{name} is missing: restore it, it is written by `dsgan annotate export` and `dsgan invert`"
        ) from None
    except ContentError as error:
        raise AnnotationError(folder, f"{name} {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


def _object(folder: Path, name: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise AnnotationError(folder, f"{name} holds a {type(content).__name__}, expected an object {{…}}")
    return content


def _license(stored: Mapping[str, Any]) -> str | None:
    license = stored.get("photo_license")
    return license if license is None else str(license)


def _size(value: Any) -> tuple[int, int]:
    height, width = (integer("a side of the images", side, 1) for side in value)
    if height * width > MOST_PIXELS:
        raise ValueError(f"images of {width}×{height} pixels; they have at most {MOST_PIXELS}")
    return height, width


def _read_latents(folder: Path) -> tuple[Tensor, str]:
    """Latents and the SHA-256 of their file."""
    content = _read(folder, LATENTS, _LONGEST_LATENTS)
    return load_latents(folder, LATENTS, content, axes=(2, 3)), hashlib.sha256(content).hexdigest()


def load_latents(folder: Path, name: str, content: bytes, axes: Sequence[int] = (2,)) -> Tensor:
    """Latents [A, z_dim] as float32 from the bytes of an .npy file, or an AnnotationError; `axes` are how many an array
    may have: 3 for styles."""
    try:
        latents = np.load(io.BytesIO(content), allow_pickle=False)
        if latents.ndim not in axes or latents.dtype.kind != "f" or not np.isfinite(latents).all():
            raise ValueError(f"it holds {latents.dtype} {list(latents.shape)}, expected finite floats [A, z_dim]")
    except Exception as error:  # a damaged file may raise anything at all
        # what NumPy says of a damaged file is to allow pickles, which run code
        why = "it is not a plain .npy file" if "pickle" in str(error) else f"{error!s:.200}"
        raise AnnotationError(folder, f"{name} does not hold latents ({why}): restore it from the export") from error
    return torch.from_numpy(latents.astype(np.float32))
