"""Close-ups of a face: its eyes, mouth and nose, found by a small network, enlarged and put side by side.

A face of 128 pixels has irises of five. People see at once what is wrong with them; a discriminator of whole images
hardly does. Local discriminators look at such parts alone (GFP-GAN, section 3.4 of https://arxiv.org/abs/2101.04061).

Shapes: N images, H = W pixels; images are float [N, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from point_annotator import PointAnnotator
from torch import Tensor
from torch.nn import functional as F

from dsgan_datasets.students.heads import centers

#: What is shown: the middle of some points, and the side of the window in 128ths of the image's.
PARTS = (
    (("left_eye_inner", "left_eye_outer"), 20),
    (("right_eye_inner", "right_eye_outer"), 20),
    (("left_mouth_corner", "right_mouth_corner"), 30),
    (("nose_tip",), 28),
)


class Closeups:
    """Two by two close-ups of each image, in a picture of the image's size.

    Args:
        locator: finds the points, in images that are scaled to its resolution.
        dtype: precision in which it does.

    Raises:
        ValueError: it does not find all points that are needed.

    Example:
        >>> names = sorted({name for names, _ in PARTS for name in names})
        >>> closeups = Closeups(PointAnnotator(tuple(names), 64))
        >>> [tuple(x.shape) for x in closeups([torch.zeros(2, 3, 128, 128)])]
        [(2, 3, 128, 128)]
    """

    def __init__(self, locator: PointAnnotator, dtype: torch.dtype = torch.float32) -> None:
        missing = {name for names, _ in PARTS for name in names} - set(locator.names)
        if missing:
            raise ValueError(
                f"close-ups need the points {', '.join(sorted(missing))}, too; the network of --points finds "
                f"{', '.join(locator.names)}"
            )
        self.locator, self.dtype = locator.eval().requires_grad_(False), dtype
        self.rows = [[locator.names.index(name) for name in names] for names, _ in PARTS]

    def __call__(self, images: Sequence[Tensor], random: torch.Generator | None = None) -> list[Tensor]:
        """Close-ups of batches of images, differentiable by the images; nothing is drawn from `random`."""
        return [self._of(x) for x in images]

    def _of(self, images: Tensor) -> Tensor:
        n, side = len(images), images.shape[3] // 2
        parts = []
        for middle, (_, window) in zip(self._middles(images.detach()).unbind(1), PARTS, strict=True):
            zoom = (torch.eye(2, device=images.device) * (window / 128)).expand(n, 2, 2)
            grid = F.affine_grid(torch.cat([zoom, middle[..., None]], 2), [n, 3, side, side], align_corners=False)
            parts.append(F.grid_sample(images, grid, padding_mode="border", align_corners=False))
        return torch.cat([torch.cat(parts[:2], 3), torch.cat(parts[2:], 3)], 2)

    @torch.no_grad()
    def _middles(self, images: Tensor) -> Tensor:
        """[N, 4, 2], from -1 to 1."""
        side = self.locator.resolution
        x = F.interpolate(images, size=(side, side), mode="area").contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            places = self.locator.read(x)[0]
        # Of an image with NaN they are NaN, too, and sampling at NaN ends the process.
        points = centers(places.float().exp()).nan_to_num() * (2 / side) - 1
        return torch.stack([points[:, rows].mean(1) for rows in self.rows], 1)
