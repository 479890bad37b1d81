"""Kind of label and architecture -> what trains interpreters of it on annotated images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.convolutional import ConvolutionalTrainer
from dsgan_datasets.fitting.pixel_ensemble import PixelTrainer
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.interpreters.base import Interpreter
from dsgan_datasets.interpreters.convolutional import ConvolutionalInterpreter
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.interpreters.map_ensemble import MapEnsemble
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema


class Trainer(Protocol):
    """Annotated images, read once, and what trains interpreters on any of them."""

    @property
    def random(self) -> torch.Generator:
        """Of all draws of the training."""

    @property
    def ways(self) -> int:
        """Number of `trials`."""

    def trials(self, images: Tensor, description: str) -> Sequence[Interpreter]:
        """Interpreters for some of the images, int64 numbers: one for each way to train, of which held-out images
        choose one.

        Raises:
            ValueError: they hold nothing to learn from, or the training diverged.
        """

    def train(self, trial: int | None = None) -> Interpreter:
        """An interpreter for all images, trained in the way number `trial`; None where none was chosen.

        Raises:
            ValueError: as `trials`.
        """

    def reported(self, interpreter: Any, trial: int | None = None) -> Mapping[str, str | float | None]:
        """The settings of such an interpreter that its config does not say, as a card shows them."""


#: Made of the generator, the annotated images, the target, their recipe and settings.
MakeTrainer = Callable[[FeatureGenerator, AnnotatedImages, Any, Recipe, Any], Trainer]

#: (kind of target, architecture) -> its trainer. The first architecture of a kind is the usual one.
TRAINERS: dict[tuple[str, str], MakeTrainer] = {
    (LabelSchema.kind, PixelEnsemble.architecture): PixelTrainer.of,
    (LabelSchema.kind, ConvolutionalInterpreter.architecture): ConvolutionalTrainer.of,
    (Keypoints.kind, KeypointEnsemble.architecture): PixelTrainer.of,
    (DenseMap.kind, MapEnsemble.architecture): PixelTrainer.of,
}


def architectures(target: Target) -> list[str]:
    """Architectures that learn a kind of label, the usual one first."""
    return [name for kind, name in TRAINERS if kind == target.kind]


def trainer_for(target: Target, architecture: str | None = None) -> MakeTrainer:
    """The trainer of a kind of label; None is the usual architecture.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    known = {name: TRAINERS[target.kind, name] for name in architectures(target)}
    if not known:
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in TRAINERS))
        raise ValueError(f"labels of kind {target.kind!r} cannot be learned; those that can: {kinds}")
    if architecture is not None and architecture not in known:
        raise ValueError(
            f"no interpreter {architecture!r:.40} learns {target.field}; those that do: {', '.join(known)}"
        )
    return known[architecture or next(iter(known))]
