"""Named clusters of generator features (Segmentation in Style, arXiv 2107.12518): masks without a classifier.

A pixel belongs to the cluster with the nearest center, and has the class that a person gave to that cluster. As in the
paper only one feature map is read, resized bilinearly to the frame. |f − c|² = |f|² − 2 f·c + |c|², of which only the
last two terms depend on the cluster. They are linear in f, so they are computed at the resolution of the map and then
resized: one small matrix product instead of a distance at every pixel of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.interpreters.base import Frame, LabelingOptions, Prediction, check_channels
from dsgan_datasets.operations import product_of_columns, without_autocast
from dsgan_datasets.parallel import parallel_map

#: Clusters that are resized to the frame at a time: bounds the memory for large frames and many clusters.
_RESIZED_AT_ONCE = 32
_DEFAULTS = LabelingOptions()


class ClusterInterpreter(nn.Module):
    """Labels a pixel with the class of the nearest cluster center; an `Interpreter` without uncertainty.

    Args:
        centers: float32 [K, C], K clusters of standardized features.
        mean, std: float32 [C], of the features of the map: (f − mean) / std is compared with the centers.
        classes: class id of each cluster, int64 [K]; several clusters may share one. None: each is a class of its own.
        layout: the feature layout that the generator must give.
        channels: channels of each map of that layout, in order.
        map: which of these maps is read, from 0.
        num_classes: classes of the mask; None for as many as `classes` uses. A class may be without a cluster.

    Raises:
        ValueError: shapes or class ids that do not fit together.

    Example:
        >>> centers = torch.tensor([[-1.0], [1.0]])
        >>> halves = ClusterInterpreter(
        ...     centers, torch.zeros(1), torch.ones(1), layout="convs", channels=[1], map=0
        ... )
        >>> halves.predict([torch.tensor([[[[-3.0, 0.5]]]])], Frame((1, 2)), LabelingOptions()).labels["mask"]
        tensor([[[0, 1]]])
    """

    architecture: ClassVar[str] = "clusters"
    fields: ClassVar[tuple[str, ...]] = ("mask",)
    has_uncertainty: ClassVar[bool] = False
    has_probabilities: ClassVar[bool] = False

    centers: Tensor
    mean: Tensor
    std: Tensor
    classes: Tensor

    def __init__(
        self,
        centers: Tensor,
        mean: Tensor,
        std: Tensor,
        classes: Tensor | None = None,
        *,
        layout: str,
        channels: Sequence[int],
        map: int,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layout, str):
            raise ValueError(f"layout must be the name of a feature layout, not {layout!r:.60}")
        self.layout = layout
        self.channels = tuple(integer("channels", c, 1) for c in channels)
        self.map = integer("map", map, 0, len(self.channels) - 1)
        if centers.dim() != 2 or not len(centers):
            raise ValueError(f"centers must be [K, C], got {list(centers.shape)}")
        k, c = centers.shape
        classes = torch.arange(k, device=centers.device) if classes is None else classes
        shapes = {"mean": (mean, (c,)), "std": (std, (c,)), "classes": (classes, (k,))}
        for name, (tensor, shape) in shapes.items():
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
        if c != self.channels[self.map]:
            raise ValueError(f"centers have {c} features, map {self.map} has {self.channels[self.map]} channels")
        if not bool((std > 0).all()):
            raise ValueError("std must be positive")
        if classes.is_floating_point() or int(classes.min()) < 0:
            raise ValueError("classes must hold class ids from 0")
        self.num_classes = integer(
            "num_classes", int(classes.max()) + 1 if num_classes is None else num_classes, int(classes.max()) + 1, 255
        )
        self.register_buffer("centers", centers.detach().float().contiguous())
        self.register_buffer("mean", mean.detach().float().contiguous())
        self.register_buffer("std", std.detach().float().contiguous())
        self.register_buffer("classes", classes.detach().long().contiguous(), persistent=False)  # it is in the config

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The interpreter of a config and its tensors; ValueError or KeyError if they do not fit together."""
        return cls(
            tensors["centers"],
            tensors["mean"],
            tensors["std"],
            torch.tensor(config["class_ids"], device=tensors["centers"].device),
            layout=config["layout"],
            channels=config["channels"],
            map=config["map"],
            num_classes=config["classes"],
        )

    def with_classes(self, classes: Sequence[int] | Tensor, num_classes: int) -> ClusterInterpreter:
        """The same clusters with other names.

        Args:
            classes: class id of each cluster, [K].
            num_classes: classes of the mask.

        Raises:
            ValueError: not one class per cluster, or one outside 0 … num_classes - 1.
        """
        return self._changed(class_ids=classes, num_classes=num_classes)

    def with_layout(self, layout: str, channels: Sequence[int]) -> ClusterInterpreter:
        """The same clusters, for maps of this layout.

        Raises:
            ValueError: the map that is read would have other channels.
        """
        return self._changed(layout=layout, channels=channels)

    def _changed(self, **changes: Any) -> ClusterInterpreter:
        """The same clusters with other arguments."""
        own = {"class_ids": self.classes, "num_classes": self.num_classes, "map": self.map}
        own |= {"layout": self.layout, "channels": self.channels}
        arguments = {**own, **changes}
        class_ids = torch.as_tensor(arguments.pop("class_ids"), device=self.device)
        return ClusterInterpreter(self.centers, self.mean, self.std, class_ids, **arguments)

    @property
    def num_clusters(self) -> int:
        """Number of clusters K."""
        return len(self.centers)

    @property
    def device(self) -> torch.device:
        """Where labels are computed."""
        return self.centers.device

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about it."""
        return {
            "architecture": self.architecture,
            "layout": self.layout,
            "channels": list(self.channels),
            "map": self.map,
            "clusters": self.num_clusters,
            "classes": self.num_classes,
            "class_ids": self.classes.tolist(),
        }

    def check_options(self, options: LabelingOptions) -> None:
        """ValueError for options other than the defaults: one cluster wins, and nothing votes."""
        if options != _DEFAULTS:
            raise ValueError(
                f"clusters have neither members that vote nor an uncertainty: leave vote at {_DEFAULTS.vote!r} "
                f"and top_fraction at {_DEFAULTS.top_fraction}, not {options.vote!r} and {options.top_fraction}"
            )

    @torch.no_grad()
    def predict(self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = _DEFAULTS) -> Prediction:
        """Class of every pixel ("mask", int64 [N, H, W]); neither uncertainty nor score.

        Args:
            features: maps [N, C_l, h_l, w_l] with `channels`.
            frame: size to which the map is resized, and its labeled rows.
            options: the defaults.

        Raises:
            ValueError: maps of other channels, rows outside the frame, or other options.
        """
        self.check_options(options)
        frame.check()
        check_channels(self.channels, [f.shape[1] for f in features])
        return Prediction({"mask": self.classes[self.clusters(features[self.map], frame)]})

    @without_autocast
    @torch.no_grad()
    def clusters(self, feature_map: Tensor, frame: Frame) -> Tensor:
        """Nearest cluster of every pixel, int64 [N, H, W], of the map [N, C, h, w]; ties go to the lowest number."""
        weight = self.centers / self.std
        bias = (
            -(weight * self.mean).sum(1) - self.centers.square().sum(1) / 2
        )  # (2 f̂·c − |c|²) / 2 with f̂ = (f − mean) / std

        def nearest(maps: Tensor) -> Tensor:
            pixels = maps.float().flatten(2)
            closeness = product_of_columns(weight, pixels).unflatten(2, maps.shape[2:]) + bias[:, None, None]
            best = found = None
            for first in range(0, self.num_clusters, _RESIZED_AT_ONCE):
                part = closeness[:, first : first + _RESIZED_AT_ONCE]
                resized = F.interpolate(part, size=frame.size, mode="bilinear", align_corners=False)
                value, number = resized[:, :, slice(*frame.kept)].max(1)
                number = number + first
                if best is not None and found is not None:
                    number = torch.where(value > best, number, found)
                    value = torch.maximum(value, best)
                best, found = value, number
            assert found is not None
            return found

        if self.device.type != "cpu":
            return nearest(feature_map)
        rows = [feature_map[i : i + 1] for i in range(len(feature_map))]
        return torch.cat(parallel_map(nearest, rows, self.device)) if rows else nearest(feature_map)
