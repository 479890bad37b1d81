"""How an ensemble is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsgan_datasets.checks import integer


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
        standardize: bring every feature to mean 0 and variance 1 first (published: unchanged); it folds into the first
            layer afterwards.
        anneal: let the learning rate fall to 0 along a cosine; otherwise it is constant.
        sigma: standard deviation of the Gaussian around a keypoint, as a share of the longer side of the image.
        dtype: in which the first layer is multiplied while training, "float32" or "bfloat16" (weights and all sums are
            float32); None takes bfloat16 where the hardware has it.
        seed: of initial weights and of all draws.

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
    standardize: bool = True
    anneal: bool = False
    sigma: float = 0.02
    dtype: Literal["float32", "bfloat16"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("members", "pixels_per_image", "steps"):
            integer(name, getattr(self, name), 1)
        integer("batch_pixels", self.batch_pixels, 2)  # batch normalization needs two
        if self.hidden is not None and (len(self.hidden) != 2 or min(self.hidden) < 1):
            raise ValueError(f"hidden must be the widths of two layers, not {self.hidden}")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"dtype must be float32, bfloat16 or None, not {self.dtype!r}")
        if not 0 <= self.class_balance <= 1:
            raise ValueError(f"class_balance must lie in 0 … 1, not {self.class_balance}")
        if not 0 < self.sigma < 1:
            raise ValueError(f"sigma must lie between 0 and 1, not {self.sigma}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
