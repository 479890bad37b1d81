"""What a `LabeledGenerator` schedules: latents -> image, labels and, where there is one, uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target


@dataclass(frozen=True)
class Part:
    """A network of a labeler as a checkpoint stores it: what builds it, and its tensors."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Labeler(Protocol):
    """A source of labeled images that scheduling, filter and checkpoints know nothing more about.

    Attributes:
        kind: name in config.json: "interpreted" or "joint".
        generator: gives the style vectors (z_dim, c_dim, num_ws, mean_w) and the resolution.
        targets: its labels, in order.
        has_uncertainty: whether `label` gives "uncertainty" and "uncertainty_score".
    """

    kind: ClassVar[str]

    @property
    def generator(self) -> FeatureGenerator: ...

    @property
    def targets(self) -> tuple[Target, ...]: ...

    @property
    def has_uncertainty(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...

    def check(self, recipe: Recipe) -> None:
        """ValueError if the recipe asks for what this labeler cannot give."""

    def label(self, ws: Tensor, recipe: Recipe) -> dict[str, Tensor]:
        """Fields of style vectors [N, num_ws, w_dim]: "image" uint8 [N, 3, H, W], each target's field, and if it has
        them "uncertainty" [N, H, W] and "uncertainty_score" [N]. On a GPU nothing in here waits for the device."""

    def parts(self) -> Mapping[str, Part]:
        """File stem -> network, in the order in which a checkpoint lists them."""

    def to(self, device: torch.device | str) -> Self: ...
