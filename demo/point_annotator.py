"""A small U-Net that finds keypoints and depth; it annotates generated images of the demo in place of a person.

Shapes: N images, K keypoints, H = W = `resolution` pixels, 64 or 128; keypoints and depth as in `render_points`.

    annotator = load_point_annotator("points.safetensors")
    points, depth = annotator.annotate(images)  # uint8 [N, 3, 64, 64] -> float32 [N, K, 3], [N, 1, 64, 64]
"""

from __future__ import annotations

from pathlib import Path

import torch
from annotator import WIDTHS, read_weights, readable, write_weights
from render_points import BACKGROUND
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.students import UNet
from dsgan_datasets.students.heads import centers


class PointAnnotator(UNet):
    """Keypoints and depth of images of a half-trained generator.

    The outputs of a pixel are, of each point, the logit of being its place and that of being visible there, and depth
    and figure.

    Args:
        names: of the keypoints.
        resolution: H = W of the images, pixels.
        widths: channels at full, half, ... resolution, each a multiple of 4 (default: `annotator.WIDTHS`).

    Attributes:
        report: how it was trained and how good it was found to be.

    Example:
        >>> points, depth = PointAnnotator(("nose", "chin"), 64).annotate(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        >>> points.shape, depth.shape
        (torch.Size([1, 2, 3]), torch.Size([1, 1, 64, 64]))
    """

    def __init__(self, names: tuple[str, ...], resolution: int, widths: tuple[int, ...] | None = None) -> None:
        widths = tuple(widths or WIDTHS[resolution])
        super().__init__(2 * len(names) + 2, widths)
        self.names, self.resolution, self.widths = names, resolution, widths
        self.report: dict[str, object] = {}

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log probability of places [N, K, H, W], logits of visibility [N, K], depth and logit of the figure [N, H, W],
        of images float [N, 3, H, W] in [-1, 1]."""
        k = len(self.names)
        places, visible, more = self(x).split([k, k, 2], 1)
        places = places.flatten(2).log_softmax(2).view_as(places)
        return places, (places.exp() * visible).sum((2, 3)), more[:, 0], more[:, 1]

    @torch.inference_mode()
    def annotate(self, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Points [N, K, 3] and depth [N, 1, H, W] of images uint8 [N, 3, H, W] (RGB).

        Raises:
            ValueError: images of another dtype or shape.
        """
        expected = [len(images), 3, self.resolution, self.resolution]
        if images.dtype != torch.uint8 or list(images.shape) != expected:
            raise ValueError(f"got images {images.dtype} {list(images.shape)}, expected torch.uint8 {expected}")
        points, depths = [], []
        for part in tqdm(images.split(batch_size), "annotating", unit="batch", delay=2, leave=False):
            places, visible, depth, figure = self.read(part.float() / 127.5 - 1)
            seen = (visible > 0).float() + 1
            points.append(torch.cat([centers(places.exp()), seen[..., None]], 2))
            depths.append(torch.where(figure > 0, depth.clamp(-1, 1.5), BACKGROUND))
        return torch.cat(points).clone(), torch.cat(depths)[:, None].clone()


def save_point_annotator(annotator: PointAnnotator, path: Path, report: dict[str, object]) -> None:
    """Write the weights, with the report in their metadata."""
    stored = {"points": annotator.names, "resolution": annotator.resolution, "widths": annotator.widths, **report}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(annotator, path, stored)


def load_point_annotator(path: Path) -> PointAnnotator:
    """The network that `save_point_annotator` stored, in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not such a network.
    """
    with readable(path, "train_point_annotator.py"):
        report, weights = read_weights(path)
        if "classes" in report:
            raise ValueError("it annotates masks: give it as --annotator")
        resolution = int(report["resolution"])
        if resolution not in WIDTHS:
            raise ValueError(f"its images have {resolution} pixels, not {' or '.join(map(str, WIDTHS))}")
        annotator = PointAnnotator(tuple(report["points"]), resolution, tuple(report["widths"]))
        annotator.load_state_dict(weights)
    annotator.report = report
    return annotator.eval().requires_grad_(False)
