"""What the members of an ensemble learn from labels of one kind: targets of pixels, a loss, and the interpreter.

Everything else about training (features, draws, optimizer) is the same for all kinds: `pixels` and `pixel_ensemble`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.interpreters.ensemble import Ensemble
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.interpreters.map_ensemble import MapEnsemble
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: A Gaussian is 0 in less than a hundredth of its height from here on, standard deviations.
_REACH = 3.0


class PixelTask(Protocol):
    """One kind of label, as something to be learned pixel by pixel.

    Attributes:
        outputs: of a member.
        hidden: usual widths of its hidden layers.
        strata: group of each pixel of the A images, int64 [A, H, W]: pixels of rare groups are drawn more often; -1
            for pixels that are not learned from.
        choice_balance: likewise, for the choice of `pixels_per_image` in each image: 0 takes pixels as they come.
        is_continuous: whether values are learned, which are brought to mean 0 and variance 1 meanwhile.
    """

    outputs: int
    hidden: tuple[int, int]
    strata: Tensor
    choice_balance: float
    is_continuous: bool

    def learned(self, image: int, places: Tensor) -> Tensor:
        """What is learned at P places of the flattened image, [P, ...]."""

    def loss(self, outputs: Tensor, learned: Tensor) -> Tensor:
        """Mean over pixels and members, of outputs [M, P, K] and what is learned there, [M, P, ...]."""

    def log_prior(self, strata: Tensor) -> Tensor | float:
        """Logarithm of how often each output is to be expected by the groups of some pixels, [K]; 0 if that says
        nothing."""

    def interpreter(self, weights: Mapping[str, Tensor], **layout: Any) -> Ensemble:
        """The interpreter whose members have these weights."""


class Classes:
    """Masks: the class of each pixel, by cross-entropy; groups are the classes, ignored pixels teach nothing.

    Args:
        labels: int64 [A, H, W].
        target: their classes.
        settings: of the training.
    """

    choice_balance = 0.0
    is_continuous = False

    def __init__(self, labels: Tensor, target: LabelSchema, settings: FitSettings) -> None:
        self.outputs = target.num_classes
        # As published: wider for many classes.
        self.hidden = (128, 32) if self.outputs < 32 else (256, 128)
        self.strata = labels.masked_fill(labels == target.ignore_index, -1)

    def learned(self, image: int, places: Tensor) -> Tensor:
        """Class ids int64 [P]."""
        return self.strata[image].flatten()[places]

    def loss(self, outputs: Tensor, learned: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs.flatten(0, 1), learned.flatten())

    def log_prior(self, strata: Tensor) -> Tensor:
        """Of the classes."""
        counts = torch.bincount(strata, minlength=self.outputs).clamp(min=1)
        return (counts / counts.sum()).log()

    def interpreter(self, weights: Mapping[str, Tensor], **layout: Any) -> PixelEnsemble:
        """Members that vote."""
        return PixelEnsemble(weights, **layout)


class Heat:
    """Keypoints: two heat maps a point, by mean square error (see `KeypointEnsemble`).

    A hidden point has heat in the first map only; a point that is not in the image has none. Groups are the
    neighborhoods of the points and the rest: nearly all pixels are cold, and would drown the others.

    Args:
        labels: float32 [A, K, 3].
        target: their names.
        settings: of the training; `sigma`.
        size: (H, W) of the images.
    """

    hidden = (128, 64)
    is_continuous = False

    def __init__(self, labels: Tensor, target: Keypoints, settings: FitSettings, size: tuple[int, int]) -> None:
        self.outputs, self.labels, self.width = 2 * target.num_points, labels, size[1]
        self.share, self.sigma = settings.sigma, settings.sigma * max(size)
        self.choice_balance = settings.class_balance
        cold = torch.full((), target.num_points)
        strata = []
        for image in range(len(labels)):
            heat = self.learned(image, torch.arange(size[0] * size[1]))[:, : target.num_points]
            hottest, point = heat.max(1)
            strata.append(torch.where(hottest > torch.tensor(-0.5 * _REACH**2).exp(), point, cold).view(size))
        self.strata = torch.stack(strata)

    def learned(self, image: int, places: Tensor) -> Tensor:
        """Heat float32 [P, 2 K], 0 … 1."""
        x, y, v = self.labels[image].unbind(1)
        columns, rows = places % self.width + 0.5, places // self.width + 0.5
        distances = (columns[:, None] - x) ** 2 + (rows[:, None] - y) ** 2
        heat = torch.exp(distances / (-2 * self.sigma**2))
        return torch.cat([heat * (v > 0), heat * (v == 2)], 1)

    def loss(self, outputs: Tensor, learned: Tensor) -> Tensor:
        """Square error, summed over the maps."""
        return (outputs - learned).square().sum(2).mean()

    def log_prior(self, strata: Tensor) -> float:
        """Nothing: no classes compete."""
        return 0.0

    def interpreter(self, weights: Mapping[str, Tensor], **layout: Any) -> KeypointEnsemble:
        """Members that regress heat."""
        return KeypointEnsemble(weights, sigma=self.share, **layout)


class Values:
    """Dense maps: shares of their range, by mean square error; unknown values teach nothing.

    Args:
        labels: float32 [A, C, H, W], NaN where unknown.
        target: their range.
        settings: of the training.
    """

    hidden = (128, 32)
    choice_balance = 0.0
    is_continuous = True

    def __init__(self, labels: Tensor, target: DenseMap, settings: FitSettings) -> None:
        self.target, self.outputs = target, target.num_channels
        self.shares = (labels - target.low) / (target.high - target.low)
        self.strata = torch.where(labels.isnan().all(1), -1, 0)

    def learned(self, image: int, places: Tensor) -> Tensor:
        """Shares of the range float32 [P, C]; NaN where unknown."""
        return self.shares[image].flatten(1)[:, places].t()

    def loss(self, outputs: Tensor, learned: Tensor) -> Tensor:
        """Square error of what is known."""
        known = ~learned.isnan()
        return torch.where(known, outputs - learned.nan_to_num(), 0).square().sum() / known.sum().clamp_min(1)

    def log_prior(self, strata: Tensor) -> float:
        """Nothing: no classes compete."""
        return 0.0

    def interpreter(self, weights: Mapping[str, Tensor], **layout: Any) -> MapEnsemble:
        """Members that regress values."""
        target = self.target
        return MapEnsemble(weights, field=target.field, low=target.low, high=target.high, **layout)


#: Kind of target -> its task, of labels [A, ...], target, settings and (H, W) of the images.
TASKS: dict[str, Callable[[Tensor, Any, FitSettings, tuple[int, int]], PixelTask]] = {
    LabelSchema.kind: lambda labels, target, settings, size: Classes(labels, target, settings),
    Keypoints.kind: Heat,
    DenseMap.kind: lambda labels, target, settings, size: Values(labels, target, settings),
}
