"""Keypoints from an ensemble of pixel regressors: a heat map for each point, and its maximum (DatasetGAN, section 4).

The paper describes heat maps regressed from the features that masks are read from, averaged over the members; no code
of it was released. What it leaves open is decided here: the sub-pixel maximum, and whether a point can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dsgan_datasets.checks import is_number
from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, Prediction
from dsgan_datasets.interpreters.ensemble import RegressionEnsemble, each_by_itself, scores
from dsgan_datasets.interpreters.reduce import Moments


class KeypointEnsemble(RegressionEnsemble):
    """M members that each regress two heat maps of every point, averaged over the members; an `Interpreter`.

    The first map of a point is a Gaussian at its place, whether it is hidden or visible, the second one the same if it
    is visible and 0 if it is hidden. Their ratio estimates how likely the point is visible, however low both maps are
    where the place is hard to tell. A point is at the maximum of its first map, between pixels: there the map agrees
    best with a Gaussian of the width that the members were fitted to.

    The uncertainty of a pixel is the disagreement of the members: the root mean square distance between the first maps
    of a member, as one vector over points, and their mean. Heat is 0 … 1, and so is it, about. The score of an image is
    that of `image_score`.

    Args:
        weights: the matrices of `EnsembleWeights` by name; of K points there are 2 K outputs, first maps first.
        sigma: standard deviation of the Gaussians that the members were fitted to, as a share of the longer side of the
            image.
        present: lowest maximum of a first map at which a point is in the image at all.
        visible: lowest share of the second map in the first, around the maximum, at which a point is visible.
        layout: the feature layout that it was fitted on; None if that is not known.
        channels: channels of each map of that layout, in order.

    Raises:
        ValueError: the matrices do not fit together, an odd number of outputs, or a number out of range.

    Example:
        >>> LabeledGenerator.from_pretrained("my-faces").labeler.interpreters[1].num_points  # doctest: +SKIP
        19
    """

    architecture: ClassVar[str] = "keypoint_ensemble"
    fields: ClassVar[tuple[str, ...]] = ("keypoints",)
    uncertainty_unit: ClassVar[str] = "heat"

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        sigma: float,
        present: float = 0.1,
        visible: float = 0.5,
        layout: str | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weights, layout=layout, channels=channels)
        if self.weights.num_outputs % 2:
            raise ValueError(f"two maps a point make an even number of outputs, w3 gives {self.weights.num_outputs}")
        for name, value in (("sigma", sigma), ("present", present), ("visible", visible)):
            if not is_number(value) or not 0 < value < 1:
                raise ValueError(f"{name} must be a number between 0 and 1, not {value!r:.40}")
        self.sigma, self.present, self.visible = float(sigma), float(present), float(visible)

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The ensemble of a config and its tensors; ValueError or KeyError if they do not fit together."""
        return cls(
            tensors,
            sigma=config["sigma"],
            present=config["present"],
            visible=config["visible"],
            layout=config["layout"],
            channels=config["channels"],
        )

    @property
    def num_points(self) -> int:
        """Number of points K."""
        return self.weights.num_outputs // 2

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about the ensemble."""
        own = {"points": self.num_points, "sigma": self.sigma, "present": self.present, "visible": self.visible}
        return {**super().config, **own}

    def predict(
        self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
    ) -> Prediction:
        """Points ("keypoints", float32 [N, K, 3], see `Keypoints`), uncertainty of every pixel, score of every image.

        Args:
            features: maps [N, C_l, h_l, w_l] with `channels`.
            frame: size to which every map is resized, and its labeled rows: points count from the first of them.
            options: share of the pixels that decides the score; `vote` must be as it is by default.

        Raises:
            ValueError: maps of other channels, rows outside the frame, or unknown options.
        """
        self.check_options(options)
        heat, uncertainty = self._reduce(features, frame, Moments(self.num_points))
        points = each_by_itself(self._points, heat)
        return Prediction({"keypoints": points}, uncertainty, scores(uncertainty, options.top_fraction))

    def _points(self, heat: Tensor) -> Tensor:
        """Points [N, K, 3] of maps [N, 2 K, H, W]."""
        return points_of(heat, self.sigma * max(heat.shape[2:]), self.present, self.visible)


def points_of(heat: Tensor, sigma: float, present: float, visible: float) -> Tensor:
    """Sub-pixel maxima and visibility of points.

    Args:
        heat: two maps a point, float32 [N, 2 K, H, W], first ones first; see `KeypointEnsemble`.
        sigma: of the Gaussians, pixels.
        present, visible: see `KeypointEnsemble`.

    Returns:
        float32 [N, K, 3] of (x, y, v), see `Keypoints`.

    Example:
        >>> heat = torch.zeros(1, 2, 4, 4)
        >>> heat[0, :, 1, 2] = 1.0
        >>> points_of(heat, 1.0, 0.1, 0.5)
        tensor([[[2.5000, 1.5000, 2.0000]]])
    """
    count, (height, width) = heat.shape[1] // 2, heat.shape[2:]
    flat = heat.flatten(2)
    peak, best = flat[:, :count].max(2)
    radius = max(1, math.ceil(2.5 * sigma))
    reach = torch.arange(-radius, radius + 1, device=heat.device)
    near = torch.exp(reach.float() ** 2 / (-2 * sigma**2))
    rows, columns = best[..., None] // width + reach, best[..., None] % width + reach  # [N, K, 2 radius + 1]
    # As far to one side as to the other, also at the edge of the image.
    in_rows, in_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = (in_rows & in_rows.flip(2))[..., :, None] & (in_columns & in_columns.flip(2))[..., None, :]
    places = (rows.clamp(0, height - 1) * width)[..., :, None] + columns.clamp(0, width - 1)[..., None, :]
    around = [
        maps.gather(2, places.flatten(2)).view_as(places).clamp_min(0) * inside * near * near[:, None]
        for maps in (flat[:, :count], flat[:, count:])
    ]
    total = around[0].sum((2, 3)).clamp_min(torch.finfo(torch.float32).tiny)
    # A Gaussian times one of the same width around the pixel has its mean halfway between the two.
    across = 2 * (around[0].sum(2) * reach).sum(2) / total
    down = 2 * (around[0].sum(3) * reach).sum(2) / total
    x = (best % width + 0.5 + across.clamp(-1, 1)).clamp(0, width)
    y = (best // width + 0.5 + down.clamp(-1, 1)).clamp(0, height)
    is_visible = around[1].sum((2, 3)) >= visible * total
    points = torch.stack([x, y, 1.0 + is_visible], 2)
    return torch.where((peak >= present)[..., None], points, 0.0)
