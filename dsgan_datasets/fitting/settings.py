"""How interpreters are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dsgan_datasets.checks import integer
from dsgan_datasets.device import has_fast_bfloat16

#: Levels up to so many pixels have the full width, larger ones half of it.
_FULL_WIDTH = 64


@dataclass(frozen=True)
class ConvolutionalSettings:
    """How a convolutional interpreter is trained; seed and precision are those of `FitSettings`.

    Args:
        members: number of networks M.
        width: channels of a member at levels up to 64 px; larger levels have half.
        convolutions: 3×3 convolutions of a level.
        steps: optimizer steps (AdamW); None takes what held-out images prefer, up to `max_steps`.
        max_steps: most steps that are tried.
        tries: how often held-out images are looked at until then, evenly spaced.
        batch_images: images a step, for each member.
        region: pixels along each side of the part of the images that a step sees; smaller images are seen as a whole.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        channel_dropout: share of the feature channels that a step leaves out, in [0, 1).
        noise: standard deviation of noise on the features, which have 1.
        dice: weight of the soft Dice loss beside cross-entropy; it keeps small parts without drawing them larger.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> ConvolutionalSettings(members=3).members
        3
    """

    members: int = 5
    width: int = 32
    convolutions: int = 1
    steps: int | None = None
    max_steps: int = 480
    tries: int = 8
    batch_images: int = 4
    region: int = 128
    learning_rate: float = 6e-3
    weight_decay: float = 1e-2
    channel_dropout: float = 0.2
    noise: float = 0.2
    dice: float = 1.0

    def __post_init__(self) -> None:
        for name in ("members", "max_steps", "tries", "batch_images", "region"):
            integer(name, getattr(self, name), 1)
        integer("width", self.width, 2, 4096)
        integer("convolutions", self.convolutions, 0, 64)
        if self.steps is not None:
            integer("steps", self.steps, 1)
        if not 0 <= self.channel_dropout < 1:
            raise ValueError(f"channel_dropout must lie in [0, 1), not {self.channel_dropout}")
        for name in ("weight_decay", "noise", "dice"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")

    def width_of(self, side: int) -> int:
        """Channels of a level of so many pixels: large ones hold edges rather than parts."""
        return self.width if side <= _FULL_WIDTH else max(1, self.width // 2)

    @property
    def looked_at(self) -> list[int]:
        """After which steps held-out images are labeled."""
        return sorted({max(1, self.max_steps * i // self.tries) for i in range(1, self.tries + 1)})


@dataclass(frozen=True)
class FitSettings:
    """How an ensemble is trained, whatever its members learn.

    Args:
        members: number of networks M.
        hidden: widths of the hidden layers; None is what suits the labels: for masks (128, 32) up to 31 classes and
            (256, 128) from 32, as published.
        pixels_per_image: pixels drawn from each image; more than an image has means all of them.
        steps: optimizer steps (Adam).
        batch_pixels: pixels per step, for each member.
        learning_rate: of Adam; at the start, if it is annealed.
        class_balance: pixels of a class of frequency p are drawn with weight p ** -class_balance: 0 draws pixels as
            they come (as published), 1 draws every class equally often. Small parts need some of it. The neighborhood
            of each keypoint counts as a class.
        prior: share of what `class_balance` does to the frequencies of classes that is taken back after the training,
            from the biases of the last layer, 0 … 1: else small parts are drawn too large. With 0 (published) nothing
            is, with 1 the members believe in the frequencies of the annotated masks.
        standardize: bring every feature to mean 0 and variance 1 first (published: unchanged); it folds into the first
            layer afterwards.
        anneal: let the learning rate fall to 0 along a cosine; otherwise it is constant.
        sigma: standard deviation of the Gaussian around a keypoint, as a share of the longer side of the image.
        dtype: in which the first layer is multiplied while training, "float32" or "bfloat16" (weights and all sums are
            float32); None takes bfloat16 where the hardware has it.
        seed: of initial weights and of all draws.
        convolutional: what is different for a convolutional interpreter, which has `dtype` and `seed` in common.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> FitSettings(members=5).steps
        1500
    """

    members: int = 10
    hidden: tuple[int, int] | None = None
    pixels_per_image: int = 4096
    steps: int = 1500
    batch_pixels: int = 256
    learning_rate: float = 1e-3
    class_balance: float = 0.5
    prior: float = 0.5
    standardize: bool = True
    anneal: bool = False
    sigma: float = 0.02
    dtype: Literal["float32", "bfloat16"] | None = None
    seed: int = 0
    convolutional: ConvolutionalSettings = ConvolutionalSettings()

    def __post_init__(self) -> None:
        for name in ("members", "pixels_per_image", "steps"):
            integer(name, getattr(self, name), 1)
        integer("batch_pixels", self.batch_pixels, 2)  # batch normalization needs two
        if self.hidden is not None and (len(self.hidden) != 2 or min(self.hidden) < 1):
            raise ValueError(f"hidden must be the widths of two layers, not {self.hidden}")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"dtype must be float32, bfloat16 or None, not {self.dtype!r}")
        for name in ("class_balance", "prior"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 … 1, not {getattr(self, name)}")
        if not 0 < self.sigma < 1:
            raise ValueError(f"sigma must lie between 0 and 1, not {self.sigma}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")

    def product_dtype(self, device: torch.device) -> torch.dtype:
        """The precision asked for, or bfloat16 where the hardware multiplies in it."""
        if self.dtype is not None:
            return torch.float32 if self.dtype == "float32" else torch.bfloat16
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
