"""Outputs of a network for every pixel -> labels, and the loss of them: one class for each kind of label."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: Width of a point in what a student is taught, as a share of the longer side, and pixels around the likeliest one of
#: which the predicted point is the mean.
_SIGMA, _WINDOW = 1 / 64, 2


class Head(Protocol):
    """What a network has to give for one kind of label. Targets and labels are of this kind.

    Outputs are float32 [N, c, h, w]; labels belong to (H, W) images, of which the network may see smaller ones.

    Example:
        >>> head: Head = HEADS["segmentation"]
        >>> head.channels(LabelSchema(("background", "face")))
        2
    """

    def channels(self, target: Any) -> int:
        """Outputs of each pixel, c."""

    def loss(self, outputs: Tensor, labels: Tensor, target: Any, size: tuple[int, int]) -> Tensor:
        """What training minimizes, a scalar, for labels [N, ...] of (H, W) images."""

    def predict(self, outputs: Tensor, target: Any, size: tuple[int, int]) -> Tensor:
        """Labels [N, ...] of (H, W) images."""


class MaskHead:
    """A `Head`: logits of the classes."""

    def channels(self, target: LabelSchema) -> int:
        """See `Head`."""
        return target.num_classes

    def loss(self, outputs: Tensor, labels: Tensor, target: LabelSchema, size: tuple[int, int]) -> Tensor:
        """See `Head`."""
        masks = F.interpolate(labels[:, None].float(), outputs.shape[2:], mode="nearest-exact")[:, 0].long()
        return segmentation_loss(outputs, masks, target.ignore_index)

    def predict(self, outputs: Tensor, target: LabelSchema, size: tuple[int, int]) -> Tensor:
        """See `Head`."""
        return F.interpolate(outputs, size, mode="bilinear", align_corners=False).argmax(1)


class PointHead:
    """A `Head`: of each point the logit of being its place, and there the logits of its three states."""

    def channels(self, target: Keypoints) -> int:
        """See `Head`."""
        return 4 * target.num_points

    def loss(self, outputs: Tensor, labels: Tensor, target: Keypoints, size: tuple[int, int]) -> Tensor:
        """See `Head`."""
        places, states = self._read(outputs, target)
        height, width = outputs.shape[2:]
        sigma = _SIGMA * max(height, width)
        down, across = (
            torch.exp(-((torch.arange(side, device=outputs.device) + 0.5 - at[..., None]) ** 2) / (2 * sigma**2))
            for side, at in ((height, labels[..., 1] * height / size[0]), (width, labels[..., 0] * width / size[1]))
        )
        there = down[..., :, None] * across[..., None, :]
        inside = (labels[..., 2] > 0)[..., None, None]
        there = there / there.sum((2, 3), keepdim=True).clamp_min(1e-6) * inside
        return F.cross_entropy(states, labels[..., 2].long()) - (there * places).sum() / inside.sum().clamp_min(1)

    def predict(self, outputs: Tensor, target: Keypoints, size: tuple[int, int]) -> Tensor:
        """See `Head`."""
        places, states = self._read(outputs, target)
        height, width = outputs.shape[2:]
        scale = torch.tensor([size[1] / width, size[0] / height], device=outputs.device)
        state = states.argmax(1)[..., None]
        return torch.cat([centers(places.exp()) * scale, state], 2) * (state > 0)

    def _read(self, outputs: Tensor, target: Keypoints) -> tuple[Tensor, Tensor]:
        """Log probability of places [N, K, h, w], and logits of states [N, 3, K]."""
        logits, states = outputs.split([target.num_points, 3 * target.num_points], 1)
        places = logits.flatten(2).log_softmax(2).view_as(logits)
        states = states.unflatten(1, (3, target.num_points))
        return places, (places.exp()[:, None] * states).sum((3, 4))


class MapHead:
    """A `Head`: values from 0 to 1, of the range of the map."""

    def channels(self, target: DenseMap) -> int:
        """See `Head`."""
        return target.num_channels

    def loss(self, outputs: Tensor, labels: Tensor, target: DenseMap, size: tuple[int, int]) -> Tensor:
        """See `Head`."""
        values = F.interpolate(
            (labels - target.low) / (target.high - target.low), outputs.shape[2:], mode="nearest-exact"
        )
        known = ~values.isnan()
        return ((outputs - values.nan_to_num(0)).abs() * known).sum() / known.sum().clamp_min(1)

    def predict(self, outputs: Tensor, target: DenseMap, size: tuple[int, int]) -> Tensor:
        """See `Head`."""
        values = F.interpolate(outputs.clamp(0, 1), size, mode="bilinear", align_corners=False)
        return target.low + (target.high - target.low) * values


#: Kind of label -> what a network has to give for it.
HEADS: dict[str, Head] = {LabelSchema.kind: MaskHead(), Keypoints.kind: PointHead(), DenseMap.kind: MapHead()}


def centers(places: Tensor) -> Tensor:
    """x and y [N, K, 2] of the mean place around the likeliest pixel, of probabilities [N, K, H, W]."""
    height, width = places.shape[2:]
    best = places.flatten(2).argmax(2)
    x, y = (torch.arange(side, dtype=places.dtype, device=places.device) for side in (width, height))
    near = ((x - (best % width)[..., None]).abs() <= _WINDOW)[:, :, None, :]
    near = near & ((y - (best // width)[..., None]).abs() <= _WINDOW)[:, :, :, None]
    kept = places * near
    total = kept.sum((2, 3))
    return torch.stack([(kept.sum(2) * (x + 0.5)).sum(2) / total, (kept.sum(3) * (y + 0.5)).sum(2) / total], 2)


def segmentation_loss(logits: Tensor, masks: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy plus soft Dice loss over the classes of the batch (Milletari et al. 2016), which keeps small parts.

    Args:
        logits: of the classes, float32 [N, K, H, W].
        masks: class ids [N, H, W]; or soft ones, probabilities [N, K, H, W], in place of a one in the class.
        ignore_index: id of pixels that count in neither.

    Example:
        >>> logits = torch.tensor([[[[9.0]], [[-9.0]]]])
        >>> segmentation_loss(logits, torch.tensor([[[0]]])) < segmentation_loss(logits, torch.tensor([[[1]]]))
        tensor(True)
    """
    if masks.is_floating_point():
        # With squares, as the usual form is lowest where probabilities are 0 and 1, not where both are equal.
        p, area = logits.softmax(1), masks.sum((0, 2, 3))
        dice = 2 * (p * masks).sum((0, 2, 3)) / (p.square().sum((0, 2, 3)) + masks.square().sum((0, 2, 3))).clamp_min(1)
        weight = area / area.clamp_min(1)  # a class that hardly any pixel may be hardly counts
        return F.cross_entropy(logits, masks) + ((1 - dice) * weight).sum() / weight.sum().clamp_min(1)
    counted = masks != ignore_index
    truth = F.one_hot(masks * counted, logits.shape[1]).permute(0, 3, 1, 2) * counted[:, None]
    p = logits.softmax(1) * counted[:, None]
    area = truth.sum((0, 2, 3))
    dice = 2 * (p * truth).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + area).clamp_min(1)
    entropy = F.cross_entropy(logits, masks, ignore_index=ignore_index, reduction="sum") / counted.sum().clamp_min(1)
    return entropy + (1 - dice)[area > 0].sum() / (area > 0).sum().clamp_min(1)
