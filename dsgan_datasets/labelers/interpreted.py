"""A frozen generator and an interpreter of its features: DatasetGAN's source of labeled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dsgan_datasets.compatibility import check_class_map, check_recipe, check_uncertainty
from dsgan_datasets.device import Device
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import build_generator, generator_tensors, parse_config
from dsgan_datasets.generators.synthesis import compiled_if_asked, render
from dsgan_datasets.interpreters.base import Frame, Interpreter, LabelingOptions, check_channels
from dsgan_datasets.interpreters.loading import build_interpreter
from dsgan_datasets.labelers.base import LabelEdits, Part
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target


class InterpretedLabeler:
    """Labels what a generator makes by reading its features; a `Labeler`.

    Args:
        generator: frozen, with the feature layout that the interpreter was fitted on.
        interpreter: fitted on that generator's features.
        targets: what the labels mean, one for each that the interpreter predicts.

    Raises:
        ValueError: parts that do not fit together.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> InterpretedLabeler(labeled.generator, labeled.interpreter, labeled.targets).has_uncertainty
        True
    """

    kind: ClassVar[str] = "interpreted"

    def __init__(self, generator: FeatureGenerator, interpreter: Interpreter, targets: Sequence[Target]) -> None:
        if interpreter.layout is None:  # published classifiers do not say what they were fitted on
            interpreter = interpreter.with_layout(generator.features, generator.feature_channels)
        self.generator = generator
        self.interpreter = interpreter
        self.targets = tuple(targets)
        self._edits = LabelEdits(self.targets)
        if generator.features != interpreter.layout:
            raise ValueError(
                f"the interpreter was fitted on features in layout {interpreter.layout!r}, the generator gives "
                f"{generator.features!r}: load it with features={interpreter.layout!r}"
            )
        check_channels(interpreter.channels, generator.feature_channels)
        if generator.device != interpreter.device:
            raise ValueError(
                f"generator on {generator.device}, interpreter on {interpreter.device}: put both on one device"
            )

    @property
    def has_uncertainty(self) -> bool:
        """Whether the interpreter can tell how certain it is."""
        return self.interpreter.has_uncertainty

    @property
    def device(self) -> torch.device:
        """Where labels are computed."""
        return self.generator.device

    def check(self, recipe: Recipe) -> None:
        """ValueError if the recipe asks for what generator or interpreter cannot give."""
        check_recipe(recipe, self.generator, self.targets)
        check_uncertainty(recipe, self.has_uncertainty)
        self.interpreter.check_options(_options(recipe))
        for target in self.targets:
            if target.field == "mask":
                check_class_map(recipe, self.interpreter.num_classes, len(target.tally_names))

    def label(self, ws: Tensor, recipe: Recipe) -> dict[str, Tensor]:
        """Image, labels and uncertainty of style vectors; on a GPU nothing in here waits for it."""
        image, features = compiled_if_asked(render, recipe)(self.generator, recipe, ws)
        frame = Frame(recipe.frame_size(self.generator.img_size), recipe.rendering.crop)
        predicted = self.interpreter.predict(features, frame, _options(recipe))
        fields = {"image": image, **self._edits(predicted.labels, predicted.uncertainty, recipe)}
        if predicted.uncertainty is not None and predicted.uncertainty_score is not None:
            fields |= {"uncertainty": predicted.uncertainty, "uncertainty_score": predicted.uncertainty_score}
        return fields

    def parts(self) -> Mapping[str, Part]:
        """Generator and interpreter, by file stem."""
        return {
            "generator": Part(self.generator.config, generator_tensors(self.generator)),
            "interpreter": Part(self.interpreter.config, dict(self.interpreter.state_dict())),
        }

    def with_targets(self, targets: Sequence[Target]) -> InterpretedLabeler:
        """The same networks whose labels mean something else."""
        return InterpretedLabeler(self.generator, self.interpreter, targets)

    def to(self, device: torch.device | str) -> Self:
        """Move both to a device; returns the labeler itself."""
        self.generator.to(device)
        self.interpreter = self.interpreter.to(device)
        return self

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Part], targets: Sequence[Target], *, device: Device, provenance: Any, path: Path
    ) -> InterpretedLabeler:
        """The labeler of a checkpoint; `path` names it in errors."""
        interpreter = build_interpreter(
            parts["interpreter"].config,
            parts["interpreter"].tensors,
            device=device,
            source=path / "interpreter.safetensors",
        )
        generator = build_generator(
            parse_config(parts["generator"].config, path),
            parts["generator"].tensors,
            features=interpreter.layout,  # type: ignore[arg-type]  # checked by the generator
            device=device,
            provenance=provenance,
            path=path / "generator.safetensors",
        )
        return cls(generator, interpreter, targets)


def _options(recipe: Recipe) -> LabelingOptions:
    return LabelingOptions(recipe.labeling.vote, recipe.labeling.top_fraction)
