"""What every interpreter offers: features -> labels and, where it has one, their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, get_args

import torch
from torch import Tensor

from dsgan_datasets.recipe import Vote


class Frame(NamedTuple):
    """At what size, and in which rows, features are labeled.

    Attributes:
        size: (H, W) of the full frame, to which every map is resized (bilinear, align_corners=False).
        rows: (top, bottom) rows of the frame that are labeled; None for all.

    Example:
        >>> Frame((512, 512), (64, 448)).shape
        (384, 512)
    """

    size: tuple[int, int]
    rows: tuple[int, int] | None = None

    @property
    def kept(self) -> tuple[int, int]:
        """(top, bottom) of the labeled rows, also where these are all."""
        return self.rows or (0, self.size[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the labels."""
        top, bottom = self.kept
        return bottom - top, self.size[1]

    def check(self) -> None:
        """ValueError if the rows lie outside the frame."""
        top, bottom = self.kept
        if not 0 <= top < bottom <= self.size[0]:
            raise ValueError(f"rows {self.rows} must lie inside the frame: 0 <= top < bottom <= {self.size[0]}")


@dataclass(frozen=True)
class Prediction:
    """Labels of N images. What an interpreter does not know is None.

    Attributes:
        labels: field of the target ("mask") -> label, [N, ...], on the interpreter's device.
        uncertainty: float32 [N, H, W], in nats.
        uncertainty_score: float32 [N], in nats; the higher, the less certain the image.
        probabilities: of the classes of the mask, mean over the members, float16 [N, K, H, W]; only if asked for.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> z = sample_latents([0], labeled.generator.z_dim, seed=0)
        >>> _, features = labeled.generator.synthesis(labeled.generator.mapping(z))
        >>> found = labeled.interpreter.predict(features, Frame((64, 64)))
        >>> found.labels["mask"].shape, found.uncertainty_score.shape
        (torch.Size([1, 64, 64]), torch.Size([1]))
    """

    labels: Mapping[str, Tensor]
    uncertainty: Tensor | None = None
    uncertainty_score: Tensor | None = None
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class LabelingOptions:
    """How labels are made from the same weights, as a recipe says, and what is made beside them.

    An interpreter that has no use for an option accepts its default only, see `Interpreter.check_options`.

    Attributes:
        vote: "majority" of the members' classes (ties go to the lowest class) or argmax of the "mean" probability.
        top_fraction: share of the pixels that decides the score of an image, in (0, 1].
        probabilities: also the probabilities of the classes; they change nothing else.

    Example:
        >>> LabelingOptions(vote="mean").top_fraction
        0.1
    """

    vote: Vote = "majority"
    top_fraction: float = 0.1
    probabilities: bool = False


DEFAULT_OPTIONS = LabelingOptions()


def check_voting(options: LabelingOptions) -> None:
    """ValueError for a vote that there is not, or a share of pixels outside (0, 1]."""
    if options.vote not in get_args(Vote):
        raise ValueError(f"vote must be {' or '.join(map(repr, get_args(Vote)))}, not {options.vote!r}")
    if not 0 < options.top_fraction <= 1:
        raise ValueError(f"top_fraction must lie in (0, 1], not {options.top_fraction}")


class Interpreter(Protocol):
    """Reads labels from the features of a frozen generator.

    Attributes:
        architecture: name in config.json, the key of its class in `loading.ARCHITECTURES`.
        fields: of the labels that it predicts, such as ("mask",).
        layout: the feature layout that it was fitted on; None where that is not recorded (published classifiers).
        channels: channels of each map of that layout, in order. A single number is the total of all maps where the
            channels of each are not recorded; see `check_channels`.
        has_uncertainty: whether predictions have an uncertainty and a score.
        has_probabilities: whether predictions have the probabilities of the classes, if asked for.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> reader: Interpreter = labeled.interpreter
        >>> reader.fields, reader.has_uncertainty
        (('mask',), True)
    """

    architecture: ClassVar[str]

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def layout(self) -> str | None: ...

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def has_uncertainty(self) -> bool: ...

    @property
    def has_probabilities(self) -> bool: ...

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about it, which decides samples: with "architecture", "layout" and "channels", and with
        "classes", the classes K of its masks before any class map, if it predicts masks."""

    @property
    def device(self) -> torch.device: ...

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The interpreter of a config and its tensors, on their device; ValueError or KeyError if they do not fit."""

    def with_layout(self, layout: str, channels: Sequence[int]) -> Self:
        """The same weights for maps of this layout, once it is known; ValueError if the channels do not fit."""

    def check_options(self, options: LabelingOptions) -> None:
        """ValueError for options that this architecture does not have."""

    def predict(self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions) -> Prediction:
        """Labels of feature maps [N, C_l, h_l, w_l]. On one machine a sample's labels are bit-identical whatever else
        is in the batch on a CPU, and for batches of one size on a GPU.

        Raises:
            ValueError: maps of other channels than `channels`, rows outside the frame, or unknown options.
        """

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def to(self, device: torch.device | str) -> Self: ...


def check_channels(fitted: Sequence[int], given: Sequence[int]) -> None:
    """Refuse maps that an interpreter was not fitted on.

    Args:
        fitted: `Interpreter.channels`; a single number is compared with the total.
        given: channels of each map that it is to read.

    Raises:
        ValueError: they differ; the message names both.

    Example:
        >>> check_channels((512, 512, 256), [512, 256, 512])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: the interpreter was fitted on maps of [512, 512, 256] channels, these have [512, 256, 512]: ...
    """
    fitted, given = list(fitted), list(given)
    if given != fitted and [sum(given)] != fitted:
        raise ValueError(
            f"the interpreter was fitted on maps of {fitted} channels, these have {given}: they come from another "
            "generator or feature layout"
        )
