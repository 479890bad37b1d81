"""A frozen generator and an interpreter of its features: DatasetGAN's source of labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
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

#: File stem of the first interpreter; that of another one has its label behind.
_STEM = "interpreter"


class InterpretedLabeler:
    """Labels what a generator makes by reading its features; a `Labeler`.

    Several interpreters read the same feature maps, made once: masks and keypoints of one sample.

    Args:
        generator: frozen, with the feature layout that the interpreters were fitted on.
        interpreter: fitted on that generator's features; or several, which predict different labels.
        targets: what the labels mean, one for each that is predicted.

    The uncertainty of the first interpreter is that of the sample ("uncertainty", "uncertainty_score"), by which the
    recipe filters and ignores pixels; that of any other has the name of its label in front ("keypoints_uncertainty",
    "keypoints_uncertainty_score").

    Raises:
        ValueError: parts that do not fit together.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> InterpretedLabeler(labeled.generator, labeled.interpreter, labeled.targets).has_uncertainty
        True
    """

    kind: ClassVar[str] = "interpreted"

    def __init__(
        self,
        generator: FeatureGenerator,
        interpreter: Interpreter | Sequence[Interpreter],
        targets: Sequence[Target],
    ) -> None:
        if not hasattr(generator, "features"):
            raise ValueError(f"generator must be what load_generator gives, not {generator!r:.80}")
        several = tuple(interpreter) if isinstance(interpreter, list | tuple) else (interpreter,)
        if not several or any(not hasattr(each, "layout") for each in several):
            raise ValueError(
                f"interpreter must be what load_interpreter gives, or several of it, not {interpreter!r:.80}"
            )
        if not isinstance(targets, Sequence):
            raise ValueError(f"targets must be a list of labels, such as [schema], not {targets!r:.80}")
        self.generator = generator
        # Published classifiers do not say what they were fitted on.
        self.interpreters: tuple[Interpreter, ...] = tuple(
            each.with_layout(generator.features, generator.feature_channels) if each.layout is None else each
            for each in several
        )
        self.targets = tuple(targets)
        self._edits = LabelEdits(self.targets)
        for each in self.interpreters:
            _check_fits(generator, each)
        predicted = [field for each in self.interpreters for field in each.fields]
        if sorted(predicted) != sorted(target.field for target in self.targets):
            raise ValueError(
                f"the interpreters predict {', '.join(predicted)}; the targets are "
                f"{', '.join(target.field for target in self.targets)}: give one target for each label, and each label "
                "from one interpreter"
            )

    @property
    def interpreter(self) -> Interpreter:
        """The first interpreter."""
        return self.interpreters[0]

    @property
    def has_uncertainty(self) -> bool:
        """Whether the first interpreter can tell how certain it is."""
        return self.interpreter.has_uncertainty

    @property
    def scores(self) -> dict[str, str]:
        """Field of a label -> field of its uncertainty score, of the labels that have one."""
        return {
            interpreter.fields[0]: _prefix(number, interpreter) + "uncertainty_score"
            for number, interpreter in enumerate(self.interpreters)
            if interpreter.has_uncertainty
        }

    @property
    def has_probabilities(self) -> bool:
        """Whether an interpreter can tell the probabilities of the classes of its mask."""
        return any(interpreter.has_probabilities for interpreter in self.interpreters)

    @property
    def device(self) -> torch.device:
        """Where labels are computed."""
        return self.generator.device

    def check(self, recipe: Recipe) -> None:
        """ValueError if the recipe asks for what generator or interpreters cannot give."""
        check_recipe(recipe, self.generator, self.targets)
        check_uncertainty(recipe, self.has_uncertainty, list(self.scores)[self.has_uncertainty :])
        _check_options(self.interpreters, _options(recipe))
        for interpreter in self.interpreters:
            if "mask" in interpreter.fields:
                named = next(len(target.tally_names) for target in self.targets if target.field == "mask")
                check_class_map(recipe, interpreter.config["classes"], named)

    def label(self, ws: Tensor, recipe: Recipe, extras: Collection[str] = ()) -> dict[str, Tensor]:
        """Image, labels, uncertainty and extras of style vectors; on a GPU nothing in here waits for it."""
        image, features = compiled_if_asked(render, recipe)(self.generator, recipe, ws)
        frame = Frame(recipe.frame_size(self.generator.img_size), recipe.rendering.crop)
        fields, certainties = {"image": image}, {}
        for number, interpreter in enumerate(self.interpreters):
            soft = "probabilities" in extras and interpreter.has_probabilities
            options = dataclasses.replace(_options(recipe), probabilities=soft)
            predicted = interpreter.predict(features, frame, options)
            labels = dict(predicted.labels)
            if predicted.probabilities is not None:
                labels["probabilities"] = predicted.probabilities
            fields |= self._edits(labels, None if number else predicted.uncertainty, recipe)
            prefix = _prefix(number, interpreter)
            if predicted.uncertainty is not None and predicted.uncertainty_score is not None:
                certainties[f"{prefix}uncertainty"] = predicted.uncertainty
                certainties[f"{prefix}uncertainty_score"] = predicted.uncertainty_score
        return {**fields, **certainties}

    def parts(self) -> Mapping[str, Part]:
        """Generator and interpreters, by file stem: "interpreter" is the first, "interpreter_keypoints" another."""
        parts = {"generator": Part(self.generator.config, generator_tensors(self.generator))}
        for number, interpreter in enumerate(self.interpreters):
            stem = f"{_STEM}_{interpreter.fields[0]}" if number else _STEM
            parts[stem] = Part(interpreter.config, dict(interpreter.state_dict()))
        return parts

    def with_targets(self, targets: Sequence[Target]) -> InterpretedLabeler:
        """The same networks whose labels mean something else."""
        return InterpretedLabeler(self.generator, self.interpreters, targets)

    def to(self, device: torch.device | str) -> Self:
        """Move all parts to a device; returns the labeler itself."""
        self.generator.to(device)
        self.interpreters = tuple(interpreter.to(device) for interpreter in self.interpreters)
        return self

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Part], targets: Sequence[Target], *, device: Device, provenance: Any, path: Path
    ) -> InterpretedLabeler:
        """The labeler of a checkpoint; `path` names it in errors."""
        first = parts[_STEM]  # a KeyError names it
        others = {stem: part for stem, part in parts.items() if stem.startswith(f"{_STEM}_")}
        interpreters = [
            build_interpreter(part.config, part.tensors, device=device, source=path / f"{stem}.safetensors")
            for stem, part in {_STEM: first, **others}.items()
        ]
        generator = build_generator(
            parse_config(parts["generator"].config, path),
            parts["generator"].tensors,
            features=interpreters[0].layout,  # type: ignore[arg-type]  # checked by the generator
            device=device,
            provenance=provenance,
            path=path / "generator.safetensors",
        )
        return cls(generator, interpreters, targets)


def _prefix(number: int, interpreter: Interpreter) -> str:
    """What stands before "uncertainty" in the fields of an interpreter's samples."""
    return f"{interpreter.fields[0]}_" if number else ""


def _check_fits(generator: FeatureGenerator, interpreter: Interpreter) -> None:
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


def _check_options(interpreters: Sequence[Interpreter], options: LabelingOptions) -> None:
    """ValueError for options that no interpreter has: one of masks votes, one of depth beside it has nothing to."""
    refused = []
    for interpreter in interpreters:
        try:
            interpreter.check_options(options)
        except ValueError as error:
            refused.append(error)
    if len(refused) == len(interpreters):
        raise refused[0]


def _options(recipe: Recipe) -> LabelingOptions:
    return LabelingOptions(recipe.labeling.vote, recipe.labeling.top_fraction)
