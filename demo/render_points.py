"""Renders of the demo's domain with their exact keypoints and depth, or samples of a labeled generator like them.

Shapes: N images, K keypoints, H = W pixels. Keypoints are float32 [N, K, 3] = (x, y, v) in pixels of these images,
depths float32 [N, 1, H, W] in head heights from the head's center towards the camera, NaN where it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from images import tar_files
from renders import MERGED, RENDERED, SIDE, class_lookup, halve_image, halve_mask, read_renders
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets import DenseMap, Keypoints, LabeledGenerator
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
    if not path.is_file():
        raise FileNotFoundError(f"{path} is needed: names, skeleton and flip_pairs of the points")
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored["names"], list):
            raise TypeError("names is not a list")
        return Keypoints(tuple(stored["names"]), skeleton=stored["skeleton"], flip_pairs=stored["flip_pairs"])
    except (ValueError, TypeError, LookupError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"{error!s:.80}"
        raise ValueError(f"{path} does not hold names, skeleton and flip_pairs of points ({reason})") from error


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
    keys = [key for shard in shards for key, _, _ in tar_files(shard, ("jpg",))]
    points = _read_points(domain / f"keypoints-{split}.jsonl", keys, len(keypoints_of_domain(domain).names))
    points[..., :2] *= side / SIDE
    depths = torch.full((len(images), 1, side, side), torch.nan)
    rows = {key: row for row, key in enumerate(keys)}
    for tar in sorted(domain.glob(f"depth-{split}-*.tar")):
        for key, _, data in tar_files(tar, ("depth.png",)):
            if key not in rows:
                raise ValueError(f"{tar} holds the depth of {key}, of which there is no render")
            depths[rows[key], 0] = torch.from_numpy(_depth(data, side))
    return Renders(images, masks, points, depths)


def open_stream(checkpoint: str, side: int) -> tuple[LabeledGenerator, tuple[str, ...]]:
    """A labeled generator whose samples can take the place of renders, and the names of its points.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: its samples have neither `side` nor twice as many pixels, or lack points or the demo's classes.
    """
    source = LabeledGenerator.from_pretrained(checkpoint, device="cpu")
    points = next((target for target in source.targets if isinstance(target, Keypoints)), None)
    if points is None:
        raise ValueError(
            f"{checkpoint} labels no keypoints: --stream takes a checkpoint that does, such as demo-faces-128"
        )
    if source.schema.classes not in (MERGED, RENDERED):
        raise ValueError(
            f"{checkpoint} labels other classes than those of the demo: {', '.join(source.schema.classes)}"
        )
    height, width = source.image_size
    if height != width or height not in (side, 2 * side):
        raise ValueError(f"samples of {checkpoint} have {height}×{width} pixels, expected {side} or {2 * side}")
    return source, points.names


def sample(source: LabeledGenerator, count: int, side: int, seed: int = 0) -> Renders:
    """Samples of a stream that `open_stream` opened, in place of renders.

    All that is known of them comes from the annotations of its interpreter: no exact label of a render is used.
    """
    height, _ = source.image_size
    merged = source.schema.classes == MERGED
    lookup = np.arange(len(MERGED), dtype=np.uint8) if merged else class_lookup(MERGED, SIDE)
    images, masks, places = [], [], []
    drawn = source.stream(range(count), seed=seed)
    for drawn_sample in tqdm(drawn, "sampling", total=count, unit="sample", mininterval=2, leave=False):
        image, mask = drawn_sample.image.permute(1, 2, 0).numpy(), lookup[drawn_sample.mask.numpy()]
        images.append(image if height == side else halve_image(image))
        masks.append(mask if height == side else halve_mask(mask))
        places.append(drawn_sample["keypoints"].float())
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    found = torch.stack(places)
    found[..., :2] *= side / height
    depths = torch.full((count, 1, side, side), torch.nan)
    return Renders(pixels, torch.from_numpy(np.stack(masks)), found, depths)


def _read_points(path: Path, keys: Sequence[str], num_points: int) -> Tensor:
    """[N, K, 3] in pixels of a render, one line for each render, in their order."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is needed: the keypoints of one render in each line")
    lines = path.read_bytes().splitlines()
    if len(lines) != len(keys):
        raise ValueError(f"{path} has {len(lines)} lines; there are {len(keys)} renders")
    rows = []
    for number, (line, key) in enumerate(zip(lines, keys, strict=True), start=1):
        try:
            stored = json.loads(line)
            row = torch.tensor(stored["keypoints"], dtype=torch.float32)
            if stored["key"] != key:
                raise ValueError(f"key {stored['key']!r}, but this render is {key}")
            if row.shape != (3 * num_points,):
                raise ValueError(f"expected x, y, v of {num_points} points, one after the other")
            if not row.isfinite().all() or not torch.isin(row[2::3], torch.tensor([0.0, 1.0, 2.0])).all():
                raise ValueError("x and y must be finite, v 0, 1 or 2")
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
            raise ValueError(f"{path}, line {number}: {reason}") from error
        rows.append(row.view(num_points, 3))
    return torch.stack(rows)


def _depth(data: bytes, side: int) -> np.ndarray:
    """Head heights [side, side]; where pixels are halved, the mean of what is not background, if that is most."""
    levels = read_pixels(data, "I;16").astype(np.float32)
    scale = SIDE // side
    blocks = levels.reshape(side, scale, side, scale).swapaxes(1, 2).reshape(side, side, -1)
    known = blocks > 0
    depth = (np.where(known, blocks, 1).sum(2) - (~known).sum(2)) / known.sum(2).clip(1)
    return np.where(2 * known.sum(2) >= scale * scale, (depth - 1) / 65534 * 3 - 1.5, BACKGROUND).astype(np.float32)
