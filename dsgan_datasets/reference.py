"""The pixel classifiers as the paper writes them: resize every map, concatenate, classify every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble


def pixel_features(features: Sequence[Tensor], size: tuple[int, int], rows: tuple[int, int] | None = None) -> Tensor:
    """Maps [N, C_l, h_l, w_l] resized to `size`, concatenated and cropped to `rows`: [N, C, H, W]."""
    resized = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features]
    top, bottom = rows or (0, size[0])
    return torch.cat(resized, 1)[:, :, top:bottom]


def logits(
    ensemble: PixelEnsemble,
    features: Sequence[Tensor],
    size: tuple[int, int],
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """What `PixelEnsemble.logits` returns, [M, N, K, H, W], computed in float64."""
    w1, b1, w2, b2, w3, b3 = (getattr(ensemble, name).double() for name in ("w1", "b1", "w2", "b2", "w3", "b3"))
    pixels = pixel_features([f.double() for f in features], size, rows).movedim(1, -1)  # [N, H, W, C]
    members = []
    for m in range(ensemble.num_members):
        hidden = (pixels @ w1[:, m] + b1[m]).relu()
        hidden = (hidden @ w2[m] + b2[m]).relu()
        members.append(hidden @ w3[m] + b3[m])
    return torch.stack(members).movedim(-1, 2)
