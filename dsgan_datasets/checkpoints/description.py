"""What a labeled checkpoint is, read from its config.json alone: no weights are touched."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgan_datasets.checkpoints import directory
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.checkpoints.tensors import fingerprint
from dsgan_datasets.recipe import Calibration, Recipe
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class Description:
    """A labeled checkpoint without its weights; make one with `describe`.

    Attributes:
        path: its directory.
        generator: config of the generator.
        interpreter: config of the interpreter.
        schema: its classes.
        stored_recipe: the recipe it was saved with.
        recipe: that recipe with the changes that were asked for.
        calibration: what `calibrate` measured; None if it does not belong to `recipe`.
        weights: SHA-256 (hex) of the tensors, by file stem.
        license: of weights and samples.
        source: where the generator came from, as stored; None if that is not known.
        fit: how the interpreter was fitted; None if that is not known.
    """

    path: Path
    generator: Mapping[str, Any]
    interpreter: Mapping[str, Any]
    schema: LabelSchema
    stored_recipe: Recipe
    recipe: Recipe
    calibration: Calibration | None
    weights: Mapping[str, str]
    license: str
    source: Mapping[str, Any] | None
    fit: FitReport | None

    @property
    def fingerprint(self) -> str:
        """The `fingerprint` that a `LabeledGenerator` of this checkpoint and this recipe has."""
        return sample_fingerprint(self.weights, self.generator, self.interpreter, self.schema, self.recipe)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.recipe.image_size(self.generator["img_resolution"])


def sample_fingerprint(
    weights: Mapping[str, str],
    generator: Mapping[str, Any],
    interpreter: Mapping[str, Any],
    schema: LabelSchema,
    recipe: Recipe,
) -> str:
    """SHA-256 (hex) of everything that decides a sample beside seed and index.

    Of a schema that is what it does to masks: the class map, and `ignore_index` if the recipe ignores pixels.
    """
    classes: object = schema.class_map
    if recipe.max_uncertainty is not None:
        classes = {"class_map": schema.class_map, "ignore_index": schema.ignore_index}
    return fingerprint(weights, generator, interpreter, classes, recipe.to_dict())


def describe(name_or_path: str | os.PathLike[str], **recipe_overrides: Any) -> Description:
    """Read config.json of a labeled checkpoint; registering a dataset needs no more.

    Args:
        name_or_path: a path, the name of a built-in checkpoint, or "hf://org/name".
        recipe_overrides: fields of `Recipe` to change, as for `LabeledGenerator.from_pretrained`.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an override that is unknown or out of range.

    Example:
        >>> describe("demo-faces").schema.num_classes
        12
    """
    path = directory.find(name_or_path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected a checkpoint directory with config.json")
    config = directory.read_config(path)
    if "generator" in config and "interpreter" not in config and "recipe" not in config:
        raise CheckpointError(
            f"{path} is a generator without an interpreter: it makes no labels until one is fitted to it"
        )
    parts = {
        name: directory.section(config, name, path)
        for name in ("generator", "interpreter", "schema", "recipe", "weights")
    }
    later = {name: directory.section(config, name, path) for name in ("calibration", "fit") if config.get(name)}
    try:
        schema, stored = LabelSchema.from_dict(parts["schema"]), Recipe.from_dict(parts["recipe"])
        calibration = Calibration(**later["calibration"]) if "calibration" in later else None
        fit = FitReport.from_dict(later["fit"]) if "fit" in later else None
        stored.image_size(parts["generator"]["img_resolution"])
        found = sample_fingerprint(parts["weights"], parts["generator"], parts["interpreter"], schema, stored)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path / 'config.json'}: {error!r}") from error
    if calibration is not None and calibration.threshold != stored.threshold:
        raise CheckpointError(
            f"{path / 'config.json'}: calibration found threshold {calibration.threshold}, "
            f"the recipe has {stored.threshold}"
        )
    if (expected := str(config.get("fingerprint"))) != found:
        raise CheckpointError(
            f"{path / 'config.json'} was changed or damaged: it says fingerprint {expected[:16]}…, "
            f"but its content gives {found[:16]}…. Copy the checkpoint again; a recipe is changed with options "
            "(--psi 0.9, truncation_psi=0.9), not in the file"
        )
    if isinstance(names := recipe_overrides.get("require"), Collection):
        names = [names] if isinstance(names, str) else names
        recipe_overrides["require"] = tuple(schema.index(c) if isinstance(c, str) else c for c in names)
    recipe = stored.override(**recipe_overrides)
    if recipe.override(compute_batch=stored.compute_batch) != stored:
        calibration = None  # its acceptance rate was that of another filter
    return Description(
        path=path,
        generator=parts["generator"],
        interpreter=parts["interpreter"],
        schema=schema,
        stored_recipe=stored,
        recipe=recipe,
        calibration=calibration,
        weights=parts["weights"],
        license=str(config.get("license") or "unspecified"),
        source=config.get("source"),
        fit=fit,
    )
