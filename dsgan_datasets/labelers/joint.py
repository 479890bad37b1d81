"""A generator that makes mask and image together: no interpreter, no fit, and no uncertainty."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from dsgan_datasets.checks import names
from dsgan_datasets.compatibility import check_class_map, check_recipe, check_uncertainty
from dsgan_datasets.device import Device
from dsgan_datasets.generators.base import FeatureGenerator, Provenance
from dsgan_datasets.generators.loading import build_generator, generator_tensors, load_generator, parse_config
from dsgan_datasets.generators.synthesis import compiled_if_asked, render_channels
from dsgan_datasets.labelers.base import LabelEdits, Part
from dsgan_datasets.recipe import Labeling, Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema

#: Where the mask is in a generator of four image channels, counted from 0.
MASK_CHANNEL = 3


class JointLabeler:
    """Reads the mask from the channels that a generator makes beside the colors; a `Labeler`.

    Of one channel, a pixel above 0 (of an image channel: above the middle between black and white) is class 1 and any
    other is class 0; of K channels the class is the largest logit
    (Li et al., SemanticGAN, arXiv 2104.05833). Where a recipe resizes or crops, the channels are resized (bilinear) and
    cropped as the image is, and compared afterwards.

    Args:
        generator: frozen, with extra channels.
        schema: what the class ids of the mask mean.

    Raises:
        ValueError: the generator has no channels beside the colors.

    Example:
        >>> JointLabeler(load_generator("demo-faces", device="cpu"), LabelSchema(("background", "face")))
        Traceback (most recent call last):
        ValueError: this generator makes colors only: fit an interpreter to it (`dsgan fit`)
    """

    kind: ClassVar[str] = "joint"

    def __init__(self, generator: FeatureGenerator, schema: LabelSchema) -> None:
        if not generator.extra_channels:
            raise ValueError("this generator makes colors only: fit an interpreter to it (`dsgan fit`)")
        self.generator = generator
        self.schema = schema
        self._edits = LabelEdits(self.targets)
        self._threshold = 0.0 if generator.extra_are_logits else sum(generator.image_range) / 2

    @property
    def targets(self) -> tuple[Target, ...]:
        """The mask."""
        return (self.schema,)

    @property
    def has_uncertainty(self) -> bool:
        """Always false: a single network cannot disagree with itself."""
        return False

    @property
    def scores(self) -> dict[str, str]:
        """Always empty."""
        return {}

    @property
    def has_probabilities(self) -> bool:
        """Always false: there are no members to ask."""
        return False

    @property
    def num_classes(self) -> int:
        """Classes of the mask, before any class map."""
        return num_classes(self.generator)

    @property
    def device(self) -> torch.device:
        """Where images and masks are computed."""
        return self.generator.device

    def check(self, recipe: Recipe) -> None:
        """ValueError if the recipe asks for what the generator cannot give, such as a filter by uncertainty."""
        check_recipe(recipe, self.generator, self.targets)
        check_uncertainty(recipe, self.has_uncertainty)
        check_class_map(recipe, self.num_classes, self.schema.num_classes)
        default = Labeling()
        if (recipe.vote, recipe.top_fraction) != (default.vote, default.top_fraction):
            raise ValueError(
                f"the mask comes from one network, so there is nothing to vote on: leave vote at {default.vote!r} "
                f"and top_fraction at {default.top_fraction}"
            )

    def label(self, ws: Tensor, recipe: Recipe, extras: Collection[str] = ()) -> dict[str, Tensor]:
        """Image uint8 [N, 3, H, W] and mask int64 [N, H, W] of style vectors."""
        image, logits = compiled_if_asked(render_channels, recipe)(self.generator, recipe, ws)
        mask = (logits[:, 0] > self._threshold).long() if logits.shape[1] == 1 else logits.argmax(1)
        return {"image": image, **self._edits({"mask": mask}, None, recipe)}

    def parts(self) -> Mapping[str, Part]:
        """The generator."""
        return {"generator": Part(self.generator.config, generator_tensors(self.generator))}

    def with_targets(self, targets: Sequence[Target]) -> JointLabeler:
        """The same network whose mask means something else."""
        return JointLabeler(self.generator, _only_schema(targets))

    def to(self, device: torch.device | str) -> Self:
        """Move the generator to a device; returns the labeler itself."""
        self.generator.to(device)
        return self

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, Part],
        targets: Sequence[Target],
        *,
        device: Device,
        provenance: Provenance | None,
        path: Path,
    ) -> JointLabeler:
        """The labeler of a checkpoint; `path` names it in errors."""
        generator = build_generator(
            parse_config(parts["generator"].config, path),
            parts["generator"].tensors,
            device=device,
            provenance=provenance,
            path=path / "generator.safetensors",
        )
        return cls(generator, _only_schema(targets))


def num_classes(generator: FeatureGenerator) -> int:
    """Classes of the mask that a generator's extra channels make: 2 for a single channel, else one for each."""
    return max(generator.extra_channels, 2)


def load_joint(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    label_channel: int | None = None,
    avg_latent: Tensor | None = None,
    device: Device = None,
) -> JointLabeler:
    """Load a generator that makes its masks itself. No code from the file is run.

    Args:
        path: a generator with four image channels of which the last is a binary mask (StyleGAN2 or 3), or a
            SemanticGAN checkpoint; what else `load_generator` reads is refused.
        classes: a name for each class, in the order of their ids; None is class_0, class_1, …
        label_channel: 3 if the fourth image channel is a mask, which a file does not say: it may as well be
            transparency. None for a SemanticGAN, which says itself what its masks are.
        avg_latent: as for `load_generator`; SemanticGAN checkpoints do not hold the average w.
        device: where to put it; None is the current CUDA device if there is one, else the CPU.

    Raises:
        CheckpointError: the file cannot be used.
        ValueError: it makes no masks, it is not known whether it does, or the number of classes is another.

    Example:
        >>> labeler = load_joint("lesions.pkl", classes=("background", "lesion"), label_channel=3)  # doctest: +SKIP
        >>> labeled = LabeledGenerator(labeler, Recipe())  # doctest: +SKIP
    """
    return joint_labeler(load_generator(path, device=device, avg_latent=avg_latent), classes, label_channel)


def joint_labeler(
    generator: FeatureGenerator, classes: Sequence[str] | None = None, label_channel: int | None = None
) -> JointLabeler:
    """`load_joint` of a generator that is loaded already."""
    if label_channel is not None and generator.extra_are_logits:
        raise ValueError("this generator says itself which of its outputs are masks: leave label_channel out")
    if label_channel is not None and (not generator.extra_channels or label_channel != MASK_CHANNEL):
        raise ValueError(
            f"label_channel is {label_channel!r}, but this generator has {generator.img_channels} image channels: only "
            f"the fourth of four (label_channel={MASK_CHANNEL}) can be a mask"
        )
    if generator.extra_channels and not generator.extra_are_logits and label_channel is None:
        raise ValueError(
            "the fourth channel of this generator may be a mask or transparency: if it is a mask, pass "
            f"label_channel={MASK_CHANNEL} (`--label-channel` to dsgan convert)"
        )
    count = num_classes(generator)
    schema = LabelSchema(tuple(f"class_{i}" for i in range(count)) if classes is None else names("classes", classes))
    labeler = JointLabeler(generator, schema)
    if schema.num_classes != count:
        raise ValueError(f"the masks have {count} classes, got {schema.num_classes} names: {', '.join(schema.classes)}")
    return labeler


def _only_schema(targets: Sequence[Target]) -> LabelSchema:
    if len(targets) != 1 or not isinstance(targets[0], LabelSchema):
        raise ValueError(f"a joint generator labels with one mask, not with {[target.kind for target in targets]}")
    return targets[0]
