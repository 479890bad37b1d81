"""Kind of label and architecture -> what trains interpreters of it on annotated images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.pixel_ensemble import PixelTrainer
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.interpreters.base import Interpreter
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

    def train(self, images: Tensor | None = None, description: str = "training the interpreter") -> Interpreter:
        """An interpreter for some of the images, int64 numbers, or all of them.

        Raises:
            ValueError: they hold nothing to learn from, or the training diverged.
        """


#: Made of the generator, the annotated images, the target, their recipe and settings.
MakeTrainer = Callable[[FeatureGenerator, AnnotatedImages, Any, Recipe, Any], Trainer]

#: (kind of target, architecture) -> its trainer. The first architecture of a kind is the usual one.
TRAINERS: dict[tuple[str, str], MakeTrainer] = {
    (LabelSchema.kind, PixelEnsemble.architecture): PixelTrainer.of,
    (Keypoints.kind, KeypointEnsemble.architecture): PixelTrainer.of,
    (DenseMap.kind, MapEnsemble.architecture): PixelTrainer.of,
}


def trainer_for(target: Target, architecture: str | None = None) -> MakeTrainer:
    """The trainer of a kind of label; None is the usual architecture.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    known = {name: make for (kind, name), make in TRAINERS.items() if kind == target.kind}
    if not known:
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in TRAINERS))
        raise ValueError(f"labels of kind {target.kind!r} cannot be learned; those that can: {kinds}")
    if architecture is not None and architecture not in known:
        raise ValueError(
            f"no interpreter {architecture!r:.40} learns {target.field}; those that do: {', '.join(known)}"
        )
    return known[architecture or next(iter(known))]
