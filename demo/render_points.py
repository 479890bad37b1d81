"""Renders of the demo's domain with their exact keypoints and depth.

Shapes: N images, K keypoints, H = W pixels. Keypoints are float32 [N, K, 3] = (x, y, v) in pixels of these images,
depths float32 [N, 1, H, W] in head heights from the head's center towards the camera, NaN where it is not known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from images import tar_files
from renders import MERGED, SIDE, read_renders
from torch import Tensor

from dsgan_datasets import DenseMap, Keypoints
from dsgan_datasets.images import read_pixels

#: Of a pixel that shows the background: as far away as the range goes. No part of a head is nearly as far.
BACKGROUND = -1.5
DEPTH = DenseMap("depth", low=BACKGROUND, high=1.5, unit="head heights")


class Renders(NamedTuple):
    """Renders and all that is known of them.

    Attributes:
        images: uint8 [N, 3, H, W].
        masks: uint8 [N, H, W], of the classes `renders.MERGED`.
        points: [N, K, 3].
        depths: [N, 1, H, W]; NaN in all pixels of a render whose depth is not known.
    """

    images: Tensor
    masks: Tensor
    points: Tensor
    depths: Tensor

    def part(self, rows: slice) -> Renders:
        """Some of them."""
        return Renders(*(values[rows] for values in self))


def keypoints_of_domain(domain: Path) -> Keypoints:
    """Names, skeleton and flip pairs of the points.

    Raises:
        FileNotFoundError: the domain has no keypoints.json.
        ValueError: it does not describe points.
    """
    path = domain / "keypoints.json"
    try:
        stored = json.loads(path.read_text())
        return Keypoints(tuple(stored["names"]), skeleton=stored["skeleton"], flip_pairs=stored["flip_pairs"])
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path} does not hold names, skeleton and flip_pairs of points ({error!r})") from error


def read(domain: Path, split: str, side: int) -> Renders:
    """All renders of "train" or "test", with their points, and the depth of those that have it.

    Raises:
        FileNotFoundError: the renders have no points.
        ValueError: there are no renders, or files that do not belong together.
    """
    shards = sorted(domain.glob(f"{split}-*.tar"))
    if not shards:
        raise ValueError(f"no {split}-*.tar in {domain}: the folder of renders is needed")
    images, masks = read_renders(shards, MERGED, side)
    path = domain / f"keypoints-{split}.jsonl"
    try:
        rows = [json.loads(line)["keypoints"] for line in path.read_text().splitlines()]
        points = torch.tensor(rows, dtype=torch.float32).unflatten(1, (-1, 3))
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the keypoints of a render in each line ({error!r})") from error
    if len(points) != len(images):
        raise ValueError(f"{path} holds the keypoints of {len(points)} renders; there are {len(images)}")
    points[..., :2] *= side / SIDE
    depths = torch.full((len(images), 1, side, side), torch.nan)
    known = [_depth(data, side) for tar in sorted(domain.glob(f"depth-{split}-*.tar")) for data in _pngs(tar)]
    if known:
        depths[: len(known)] = torch.from_numpy(np.stack(known))[:, None]
    return Renders(images, masks, points, depths)


def _pngs(tar: Path) -> list[bytes]:
    return [data for _, _, data in tar_files(tar, ("depth.png",))]


def _depth(data: bytes, side: int) -> np.ndarray:
    """Head heights [side, side]; where pixels are halved, the mean of what is not background, if that is most."""
    levels = read_pixels(data, "I;16").astype(np.float32)
    scale = SIDE // side
    blocks = levels.reshape(side, scale, side, scale).swapaxes(1, 2).reshape(side, side, -1)
    known = blocks > 0
    depth = (np.where(known, blocks, 1).sum(2) - (~known).sum(2)) / known.sum(2).clip(1)
    return np.where(2 * known.sum(2) >= scale * scale, (depth - 1) / 65534 * 3 - 1.5, BACKGROUND).astype(np.float32)
