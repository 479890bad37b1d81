"""How well predicted labels agree with annotated ones: one measure for each kind of label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.fit_report import Figures
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: Distances, as shares of an object's size, within which a keypoint counts as found.
PCK_AT = (0.05, 0.10)


class Quality(Protocol):
    """How well labels of some images agree, all images together.

    Example:
        >>> found: Quality = ConfusionMatrix(torch.tensor([[3, 1], [0, 4]]))
        >>> found.score, found.figures(LabelSchema(("background", "face"))).summary
        (0.775, {'mean IoU': 0.775, 'pixel accuracy': 0.875})
    """

    @classmethod
    def compare(cls, annotated: Tensor, predicted: Tensor, target: Any) -> Tensor:
        """What one image adds, of one shape for all; labels without a batch axis, on one device."""

    @classmethod
    def pooled(cls, compared: Tensor, target: Any) -> Self:
        """Of what A images gave, [A, ...] on the CPU."""

    @property
    def score(self) -> float:
        """One number by which interpreters of the same labels are compared; higher is better."""

    def figures(self, target: Any) -> Figures:
        """The numbers with their names, as reports show them."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Agreement of predicted masks with annotated ones, pixels of all images pooled.

    Args:
        confusion: number of pixels, int64 [K, K] on the CPU; rows are annotated classes, columns predicted ones.

    Example:
        >>> ConfusionMatrix(torch.tensor([[6, 2], [0, 2]])).iou
        tensor([0.7500, 0.5000], dtype=torch.float64)
    """

    confusion: Tensor

    @classmethod
    def compare(cls, annotated: Tensor, predicted: Tensor, target: LabelSchema) -> Tensor:
        """See `Quality`."""
        return count_pairs(annotated, predicted, target.num_classes, target.ignore_index)

    @classmethod
    def pooled(cls, compared: Tensor, target: LabelSchema) -> Self:
        """See `Quality`."""
        return cls(compared.sum(0))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that have the annotated class."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, float64 [K]; NaN for a class that occurs in neither."""
        counts = self.confusion.double()
        both = counts.diagonal()
        return both / (counts.sum(0) + counts.sum(1) - both)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return self.iou.nanmean().item()

    @property
    def score(self) -> float:
        """`mean_iou`."""
        return self.mean_iou

    def figures(self, target: LabelSchema) -> Figures:
        """Mean IoU and pixel accuracy, and IoU of each class."""
        summary = {"mean IoU": self.mean_iou, "pixel accuracy": self.pixel_accuracy}
        return Figures.of(summary, {"IoU": _by(target.classes, self.iou)})


def count_pairs(annotated: Tensor, predicted: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Confusion matrix int64 [K, K], rows annotated, columns predicted; pixels ignored in either do not count.

    Args:
        annotated, predicted: class ids of equal shape.

    Example:
        >>> annotated, predicted = torch.tensor([0, 0, 1, 255]), torch.tensor([0, 1, 1, 1])
        >>> count_pairs(annotated, predicted, num_classes=2, ignore_index=255).tolist()
        [[1, 1], [0, 1]]
    """
    counted = (annotated != ignore_index) & (predicted != ignore_index)
    pairs = annotated[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu()


@dataclass(frozen=True)
class PointErrors:
    """Distances of predicted keypoints from annotated ones, as shares of the size of the object.

    The size of an object is the square root of the area of the box around its points that are in the image, hidden or
    visible. Where that box is empty, nothing is measured.

    Args:
        errors: float64 [A, K] on the CPU: infinite for points that were not predicted, NaN for points that are not in
            the image.
        states: annotated and predicted v, float64 [A, K, 2].

    Example:
        >>> PointErrors(torch.tensor([[0.02, 0.08, 0.3]]), torch.full((1, 3, 2), 2.0)).pck(0.1)
        tensor([1., 1., 0.], dtype=torch.float64)
    """

    errors: Tensor
    states: Tensor

    @classmethod
    def compare(cls, annotated: Tensor, predicted: Tensor, target: Keypoints) -> Tensor:
        """See `Quality`."""
        inside = annotated[:, 2] > 0
        size = box_of(annotated).sides.prod().sqrt()
        error = (annotated[:, :2] - predicted[:, :2]).double().norm(dim=1) / size
        error = error.masked_fill(predicted[:, 2] == 0, torch.inf).masked_fill(~inside | (size == 0), torch.nan)
        return torch.stack([error, annotated[:, 2].double(), predicted[:, 2].double()], 1).cpu()

    @classmethod
    def pooled(cls, compared: Tensor, target: Keypoints) -> Self:
        """See `Quality`."""
        return cls(compared[..., 0], compared[..., 1:])

    @property
    def known(self) -> Tensor:
        """Points that are measured, bool [A, K]."""
        return ~self.errors.isnan()

    def pck(self, share: float) -> Tensor:
        """Share of the measured points that lie within this share of the size (PCK), float64 [K]; NaN without any."""
        return (self.errors <= share).double().sum(0) / self.known.sum(0)

    @property
    def mean_errors(self) -> Tensor:
        """Mean error of each point, where one was predicted, float64 [K]; NaN without any."""
        return self.errors.masked_fill(~self.errors.isfinite(), torch.nan).double().nanmean(0)

    @property
    def visibility(self) -> float:
        """Share of all points, also those not in the image, whose v is as annotated."""
        return (self.states[..., 0] == self.states[..., 1]).double().mean().item()

    @property
    def score(self) -> float:
        """Mean PCK at the smallest distance."""
        return self.pck(PCK_AT[0]).nanmean().item()

    def figures(self, target: Keypoints) -> Figures:
        """Means over points, and for each point."""
        columns = {f"PCK {share:.0%}": self.pck(share) for share in PCK_AT} | {"mean error": self.mean_errors}
        summary = {name: values.nanmean().item() for name, values in columns.items()}
        summary["visibility"] = self.visibility
        return Figures.of(summary, {name: _by(target.names, values) for name, values in columns.items()})


class Box(NamedTuple):
    """A box around points: lowest and highest (x, y), float64 [2] each."""

    low: Tensor
    high: Tensor

    @property
    def sides(self) -> Tensor:
        """Width and height, float64 [2]."""
        return self.high - self.low


def box_of(points: Tensor) -> Box:
    """The box around the points [K, 3] that are in the image; an empty one if there are none."""
    inside, places = points[:, 2:] > 0, points[:, :2].double()
    low = places.masked_fill(~inside, torch.inf).amin(0)
    high = places.masked_fill(~inside, -torch.inf).amax(0)
    return Box(low.clamp(max=high.clamp_min(0)), high.clamp_min(0))


@dataclass(frozen=True)
class MapErrors:
    """Errors of predicted values, pixels of all images pooled.

    Args:
        sums: of each channel: number of known pixels, sum of absolute errors and of square errors, float64 [C, 3].

    Example:
        >>> MapErrors(torch.tensor([[4.0, 2.0, 4.0]])).rmse
        tensor([1.], dtype=torch.float64)
    """

    sums: Tensor

    @classmethod
    def compare(cls, annotated: Tensor, predicted: Tensor, target: DenseMap) -> Tensor:
        """See `Quality`."""
        error = (predicted - annotated).double().flatten(1)
        known = ~error.isnan()
        error = error.nan_to_num(0)
        return torch.stack([known.sum(1).double(), error.abs().sum(1), error.square().sum(1)], 1).cpu()

    @classmethod
    def pooled(cls, compared: Tensor, target: DenseMap) -> Self:
        """See `Quality`."""
        return cls(compared.sum(0))

    @property
    def mae(self) -> Tensor:
        """Mean absolute error of each channel, in the unit of the map, float64 [C]; NaN without known pixels."""
        return (self.sums[:, 1] / self.sums[:, 0]).double()

    @property
    def rmse(self) -> Tensor:
        """Root mean square error of each channel, in the unit of the map, float64 [C]; NaN without known pixels."""
        return (self.sums[:, 2] / self.sums[:, 0]).sqrt().double()

    @property
    def score(self) -> float:
        """Root mean square error over channels, negative."""
        return -self.rmse.square().nanmean().sqrt().item()

    def figures(self, target: DenseMap) -> Figures:
        """Means over channels, and for each channel if there are several; in the unit of the map."""
        unit = f" ({target.unit})" if target.unit else ""
        columns = {f"MAE{unit}": self.mae, f"RMSE{unit}": self.rmse}
        summary = {name: values.nanmean().item() for name, values in columns.items()}
        several = columns if target.num_channels > 1 else {}
        return Figures.of(summary, {name: _by(target.channels, values) for name, values in several.items()})


def _by(names: tuple[str, ...], values: Tensor) -> Mapping[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


#: Kind of target -> how its labels are compared.
QUALITIES: dict[str, type[Quality]] = {
    LabelSchema.kind: ConfusionMatrix,
    Keypoints.kind: PointErrors,
    DenseMap.kind: MapErrors,
}
