"""Photo -> the frame in which a generator saw such photos, and back: crops by boxes, similarities by keypoints.

Points are (x, y) in pixels from the upper left corner, so that the center of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.contents import ContentError

#: Pixels of the photo for one of the frame, at least: fewer are a blur that the generator never saw.
_LEAST_SCALE = 0.5


@dataclass(frozen=True)
class Alignment:
    """Where a frame lies in a photo.

    Args:
        matrix: (a, b, c, d, e, f): the point (x, y) of the frame is (a·x + b·y + c, d·x + e·y + f) in the photo.
        size: (H, W) of the frame.
        photo_size: (H, W) of the photo, upright.

    Raises:
        ContentError: the photo is too small for that, or the frame lies beside it; the message continues a sentence
            that begins with its name.

    Example:
        >>> alignment = Alignment.center((200, 300), (64, 64))
        >>> alignment.to_photo([(0, 0), (64, 64)]).tolist()
        [[50.0, 0.0], [250.0, 200.0]]
    """

    matrix: tuple[float, float, float, float, float, float]
    size: tuple[int, int]
    photo_size: tuple[int, int]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.matrix)) or self.scale < 1e-6:
            raise ContentError("has boxes or keypoints that span no area: correct them, or leave the photo out")
        if self.scale < _LEAST_SCALE:
            height, width = self.size
            raise ContentError(
                f"is too small: its crop has {round(width * self.scale)}×{round(height * self.scale)} pixels, and the "
                f"generator's images {width}×{height}; it takes at least half of that: use a larger photo"
            )
        corners = self.to_photo([(0, 0), (self.size[1], 0), (0, self.size[0]), (self.size[1], self.size[0])])
        if (corners.max(0) <= 0).any() or (corners.min(0) >= self.photo_size[::-1]).any():
            raise ContentError(
                f"has boxes or keypoints outside of the photo, which has {self.photo_size[1]}×{self.photo_size[0]} "
                "pixels: correct them, or leave the photo out"
            )

    @classmethod
    def center(cls, photo_size: tuple[int, int], size: tuple[int, int]) -> Alignment:
        """The largest crop of the frame's shape in the middle of the photo."""
        height, width = photo_size
        return cls.box((0, 0, width, height), photo_size, size, inside=True)

    @classmethod
    def box(
        cls,
        box: tuple[float, float, float, float],
        photo_size: tuple[int, int],
        size: tuple[int, int],
        *,
        margin: float = 0.0,
        inside: bool = False,
    ) -> Alignment:
        """A crop around a box.

        Args:
            box: left, top, right, bottom.
            photo_size, size: (H, W) of photo and frame.
            margin: what is added on each side, as a share of the box's longer side; may be negative, above -0.5.
            inside: take the largest crop of the frame's shape inside the box, instead of the smallest around it.
        """
        left, top, right, bottom = box
        more = 2 * margin * max(right - left, bottom - top)
        scales = (right - left + more) / size[1], (bottom - top + more) / size[0]
        scale = min(scales) if inside else max(scales)
        x, y = (left + right - scale * size[1]) / 2, (top + bottom - scale * size[0]) / 2
        return cls((scale, 0.0, x, 0.0, scale, y), size, photo_size)

    @classmethod
    def keypoints(cls, points: Array, template: Array, photo_size: tuple[int, int], size: tuple[int, int]) -> Alignment:
        """The similarity (shift, turn, scale) that takes points of the frame to those of the photo, by least squares.

        Args:
            points: in the photo, [P, 2]; points that are NaN are left out.
            template: where they lie in the frame, [P, 2].

        Raises:
            ContentError: fewer than two points.
        """
        known = np.isfinite(points).all(1) & np.isfinite(template).all(1)
        if known.sum() < 2:
            raise ContentError("shows fewer than two of the keypoints that it is aligned by: leave the photo out")
        # As complex numbers, a similarity is p = u·t + v.
        there, here = (np.asarray(each, np.float64)[known] @ np.array([1, 1j]) for each in (points, template))
        centered = here - here.mean()
        u = (centered.conj() @ (there - there.mean())) / max(float((abs(centered) ** 2).sum()), 1e-12)
        v = there.mean() - u * here.mean()
        return cls((u.real, -u.imag, v.real, u.imag, u.real, v.imag), size, photo_size)

    @property
    def scale(self) -> float:
        """Pixels of the photo along one pixel of the frame."""
        a, b, _, d, e, _ = self.matrix
        return math.sqrt(abs(a * e - b * d))

    def to_photo(self, points: Array | Sequence[Sequence[float]]) -> Array:
        """Points [P, 2] of the frame, in the photo."""
        a, b, c, d, e, f = self.matrix
        moved: Array = np.asarray(points, np.float64) @ np.array([[a, d], [b, e]]) + np.array([c, f])
        return moved

    def to_frame(self, points: Array | Sequence[Sequence[float]]) -> Array:
        """Points [P, 2] of the photo, in the frame."""
        a, b, c, d, e, f = self.matrix
        moved: Array = (np.asarray(points, np.float64) - np.array([c, f])) @ np.linalg.inv(np.array([[a, d], [b, e]]))
        return moved

    def image(self, photo: Image.Image) -> Tensor:
        """The frame of an upright RGB photo, uint8 [3, H, W]; beyond the photo its border is continued."""
        height, width = self.photo_size
        # Averaged first: what is sampled far apart would flicker.
        small = [max(1, round(side / max(1.0, self.scale))) for side in (height, width)]
        reduced = photo.resize((small[1], small[0]), Image.Resampling.BOX)
        pixels = torch.from_numpy(np.array(reduced)).permute(2, 0, 1).float()
        places = torch.from_numpy(self._photo_points() / np.array([width, height]) * 2 - 1).float()  # as -1 … 1
        sampled = F.grid_sample(pixels[None], places[None], padding_mode="border", align_corners=False)[0]
        return sampled.round().clamp(0, 255).to(torch.uint8)

    @property
    def is_turned(self) -> bool:
        """Whether rows of the frame are not rows of the photo."""
        return abs(self.matrix[1]) + abs(self.matrix[3]) > 1e-9

    def mask(self, mask: Array, fill: float) -> Array:
        """The frame of ids or values [H, W] of the photo's pixels; `fill` beyond it."""
        return self._picked(mask, self._photo_points(), self.photo_size, fill)

    def in_photo(self, mask: Array, fill: int) -> Array:
        """Inverse of `mask`: a map of ids of the frame, in the photo's pixels; `fill` outside the frame."""
        return self._picked(mask, self.to_frame(_centers(self.photo_size)), self.size, fill)

    def _picked(self, mask: Array, points: Array, size: tuple[int, int], fill: float) -> Array:
        """Ids at some points of a map of that size."""
        x, y = (np.floor(each).astype(np.int64) for each in (points[..., 0], points[..., 1]))
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
        picked: Array = np.where(inside, mask[y.clip(0, size[0] - 1), x.clip(0, size[1] - 1)], fill)
        return picked

    def _photo_points(self) -> Array:
        """Where the centers of the frame's pixels lie in the photo, [H, W, 2]."""
        return self.to_photo(_centers(self.size))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"matrix": list(self.matrix), "size": list(self.size), "photo_size": list(self.photo_size)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Alignment:
        """Inverse of `to_dict`; KeyError, TypeError or ValueError for anything else."""
        a, b, c, d, e, f = map(float, data["matrix"])
        (height, width), (rows, columns) = data["size"], data["photo_size"]
        return cls((a, b, c, d, e, f), (int(height), int(width)), (int(rows), int(columns)))


def _centers(size: tuple[int, int]) -> Array:
    """Centers of the pixels of a picture, [H, W, 2]."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x, y], 2) + 0.5
