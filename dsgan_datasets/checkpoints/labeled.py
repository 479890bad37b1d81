"""A labeled checkpoint: what its config.json says, and on demand the labeler that its tensors make.

Opening one reads JSON only, which is all that registering a dataset needs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from dsgan_datasets.checkpoints import directory
from dsgan_datasets.checkpoints.calibration_report import Calibration
from dsgan_datasets.checkpoints.card import PICTURES, image_size, model_card
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.checkpoints.migrations import changed
from dsgan_datasets.checkpoints.tensors import fingerprint
from dsgan_datasets.compatibility import class_ids
from dsgan_datasets.device import Device
from dsgan_datasets.files import is_folder
from dsgan_datasets.generators.loading import read_provenance
from dsgan_datasets.labelers.base import Labeler, Part
from dsgan_datasets.labelers.loading import LABELERS
from dsgan_datasets.recipe import Recipe, RecipeOverrides
from dsgan_datasets.targets.base import Target, target_from_dict
from dsgan_datasets.targets.segmentation import schema_of

#: Sections that `Checkpoint` understands; others are kept as they are.
_SECTIONS = (
    "fingerprint",
    "parts_sha256",
    "license",
    "labeler",
    "parts",
    "targets",
    "recipe",
    "calibration",
    "provenance",
    "fit",
)


@dataclass(frozen=True)
class Checkpoint:
    """A labeled checkpoint without its tensors; make one with `Checkpoint.open`.

    Attributes:
        labeler_kind: "interpreted" or "joint".
        parts: file stem -> config of the network.
        weights: file stem -> SHA-256 (hex) of its tensors.
        targets: what its labels mean.
        recipe: how samples are made, with the changes that were asked for.
        path: its directory; None if it was not read from one.
        stored_recipe: the recipe that it was saved with.
        calibration: what `calibrate` measured; None if it does not belong to `recipe`.
        license: of weights and samples.
        provenance: where the generator came from, as stored; None if that is not known.
        fit: how the interpreter was fitted; None if that is not known.
        more: sections of a newer version, kept as they are.

    Example:
        >>> found = Checkpoint.open("demo-faces")
        >>> found.labeler_kind, sorted(found.parts), found.license
        ('interpreted', ['generator', 'interpreter'], 'CC0-1.0')
    """

    labeler_kind: str
    parts: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, str]
    targets: tuple[Target, ...]
    recipe: Recipe
    path: Path | None = None
    stored_recipe: Recipe | None = None
    calibration: Calibration | None = None
    license: str = "unspecified"
    provenance: Mapping[str, Any] | None = None
    fit: FitReport | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schema(self) -> Any:
        """What the class ids of its masks mean; ValueError if it has no masks."""
        return schema_of(self.targets)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and labels."""
        return self.recipe.image_size(image_size(self.parts["generator"]))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a sample besides seed and index: equal prints, equal samples.

        Of the targets that is how they round values, and what stands where the recipe ignores pixels, if it does.
        Names and colors decide nothing.
        """
        parts = {name: [self.weights[name], config] for name, config in self.parts.items()}
        ignored = None
        if self.recipe.labeling.max_uncertainty is not None:
            ignored = [target.ignored_as for target in self.targets]
        rounding = [target.rounding for target in self.targets if target.rounding is not None]
        return fingerprint(2, self.labeler_kind, parts, ignored, self.recipe.decisions(), *rounding)

    def to_dict(self) -> dict[str, Any]:
        """Content of config.json."""
        return {
            "fingerprint": self.fingerprint,
            "license": self.license,
            "labeler": self.labeler_kind,
            "parts": {name: {"config": dict(c), "sha256": self.weights[name]} for name, c in self.parts.items()},
            "targets": [target.to_dict() for target in self.targets],
            "recipe": self.recipe.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "provenance": None if self.provenance is None else dict(self.provenance),
            "fit": None if self.fit is None else self.fit.to_dict(),
            **self.more,
        }

    @classmethod
    def open(cls, name_or_path: str | os.PathLike[str], **recipe_overrides: Unpack[RecipeOverrides]) -> Checkpoint:
        """Read config.json of a labeled checkpoint.

        Args:
            name_or_path: a path, the name of a built-in checkpoint, or "hf://org/name".
            recipe_overrides: fields of `Recipe` to change, as for `LabeledGenerator.from_pretrained`.

        Raises:
            CheckpointError: there is no such checkpoint, or its config.json is damaged.
            ValueError: an override that is unknown or out of range.

        Example:
            >>> Checkpoint.open("demo-faces").schema.num_classes
            12
        """
        path = directory.find(name_or_path)
        if not is_folder(path):
            raise CheckpointError(
                f"{path} is a file; expected a checkpoint directory with config.json. If it is a generator, it has no "
                "labels yet: annotate some of its images (`dsgan annotate export`), then fit to them (`dsgan fit`)"
            )
        config = directory.read_config(path)
        where = str(path / "config.json")
        if "labeler" not in config:
            raise CheckpointError(
                f"{path} holds a generator without labels: annotate some of its images (`dsgan annotate export`), then "
                "fit an interpreter to them (`dsgan fit`)"
            )
        stored = cls.from_dict(config, path)
        if (expected := str(config.get("fingerprint"))) != stored.fingerprint and not config.get("migrated_from"):
            raise CheckpointError(changed(where, expected, stored.fingerprint))
        recipe = stored.recipe.override(**class_ids(recipe_overrides, stored.targets))
        calibration = stored.calibration
        if recipe.override(compute_batch=stored.recipe.compute_batch) != stored.recipe:
            calibration = None  # its acceptance rate was that of another filter
        return dataclasses.replace(stored, recipe=recipe, calibration=calibration)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], path: Path) -> Checkpoint:
        """Inverse of `to_dict`; `path` is its directory. The fingerprint is not compared.

        Raises:
            CheckpointError: a section is missing or damaged.
        """
        where = str(path / "config.json")
        kind = config.get("labeler")
        if not isinstance(kind, str) or kind not in LABELERS:
            raise CheckpointError(f"{where}: unknown kind of labeler {kind!r:.40}; known: {', '.join(LABELERS)}")
        stored = directory.section(config, "parts", path)
        try:
            parts = {name: dict(part["config"]) for name, part in stored.items()}
            weights = {name: str(part["sha256"]) for name, part in stored.items()}
            recipe = Recipe.from_dict(directory.section(config, "recipe", path))
            found = cls(
                labeler_kind=kind,
                parts=parts,
                weights=weights,
                targets=tuple(target_from_dict(target) for target in config["targets"]),
                recipe=recipe,
                path=path,
                stored_recipe=recipe,
                calibration=Calibration.from_dict(config["calibration"]) if config.get("calibration") else None,
                license=str(config.get("license") or "unspecified"),
                provenance=config.get("provenance"),
                fit=FitReport.from_dict(config["fit"]) if config.get("fit") else None,
                more={
                    name: value
                    for name, value in config.items()
                    if name not in (*_SECTIONS, "format_version", "migrated_from")
                },
            )
            _ = found.image_size, found.fingerprint  # both must be computable
            return found
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            why = f"{error!s:.300}" if type(error) is ValueError else f"{error!r:.300}"
            raise CheckpointError(f"{where}: {why}") from error

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each part, read and compared with the recorded digests.

        Raises:
            CheckpointError: a file is missing, damaged, or not the one that was recorded.
        """
        assert self.path is not None
        path = self.path
        return {name: directory.read_tensors(path / f"{name}.safetensors", sha) for name, sha in self.weights.items()}

    def build(self, device: Device = None) -> Labeler:
        """The labeler, on a device.

        Raises:
            CheckpointError: files are missing, damaged, or do not belong together.
        """
        assert self.path is not None
        tensors = self.tensors()
        parts = {name: Part(config, tensors[name]) for name, config in self.parts.items()}
        provenance = read_provenance({"provenance": self.provenance}, self.path)
        try:
            labeler: Labeler = LABELERS[self.labeler_kind].from_parts(
                parts, self.targets, device=device, provenance=provenance, path=self.path
            )
        except KeyError as error:
            raise CheckpointError(f"{self.path / 'config.json'}: part {error} is missing") from error
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: {error}") from error
        return labeler

    def write(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, Mapping[str, Tensor]],
        card: str | None,
        pictures: Mapping[str, bytes],
    ) -> None:
        """Write the directory; each file appears whole or not at all."""
        config = self.to_dict()
        shown = {name: pictures.get(name) for name in PICTURES}
        directory.write(Path(path), config, tensors, card or model_card(config, pictures), shown)
