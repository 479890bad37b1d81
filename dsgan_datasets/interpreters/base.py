"""What every interpreter offers: features -> labels, and where it has one, their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from dsgan_datasets.recipe import Vote


class Frame(NamedTuple):
    """At what size, and in which rows, features are labeled.

    Attributes:
        size: (H, W) of the full frame, to which every map is resized (bilinear, align_corners=False).
        rows: (top, bottom) rows of the frame that are labeled; None for all.
    """

    size: tuple[int, int]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Prediction:
    """Labels of N images. What an interpreter cannot tell is None, never made up.

    Attributes:
        labels: field of the target ("mask") -> label, [N, ...], on the interpreter's device.
        uncertainty: float32 [N, H, W], in nats.
        uncertainty_score: float32 [N], in nats; the higher, the less certain the image.
    """

    labels: Mapping[str, Tensor]
    uncertainty: Tensor | None = None
    uncertainty_score: Tensor | None = None


@dataclass(frozen=True)
class LabelingOptions:
    """Fields of a recipe that an interpreter may heed; one that knows no such thing ignores the default and refuses
    others in `check_options`."""

    vote: Vote = "majority"
    top_fraction: float = 0.1


class Interpreter(Protocol):
    """Reads labels from the features of a frozen generator.

    Attributes:
        architecture: name in config.json, the key of its class in `loading.ARCHITECTURES`.
        layout: the feature layout that it was fitted on.
        channels: channels of each map of that layout, in order.
        num_classes: classes K of its mask, before any class map.
        has_uncertainty: whether predictions have an uncertainty and a score.
    """

    architecture: ClassVar[str]

    @property
    def layout(self) -> str: ...

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def has_uncertainty(self) -> bool: ...

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of it, with "architecture", "layout" and "channels"; it decides samples."""

    @property
    def device(self) -> torch.device: ...

    def check_options(self, options: LabelingOptions) -> None:
        """ValueError for options that this architecture does not have."""

    def predict(self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions) -> Prediction:
        """Labels of feature maps [N, C_l, h_l, w_l]; a sample's are the same in any company (see `parallel`)."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def to(self, device: torch.device | str) -> Self: ...
