"""Random changes of a batch that leave its labels true: on any device, from torch's global random state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets import LabelSchema


@dataclass(frozen=True)
class Strength:
    """Half-widths of the uniform distributions that each image's change is drawn from."""

    degrees: float
    log_scale: float
    shift: float  # of the image's width
    contrast: float  # logarithm, also of gamma and saturation
    tint: float
    noise: float
    patches: int


STRENGTHS = {
    "weak": Strength(degrees=5, log_scale=0.08, shift=0.04, contrast=0.1, tint=0.03, noise=0.0, patches=0),
    "strong": Strength(degrees=20, log_scale=0.3, shift=0.12, contrast=0.5, tint=0.15, noise=0.05, patches=2),
}


def augment(images: Tensor, masks: Tensor, strength: str, schema: LabelSchema) -> tuple[Tensor, Tensor]:
    """Network inputs float [N, 3, H, W] in [-1, 1] and masks, both moved alike.

    Args:
        images: uint8 [N, 3, H, W].
        masks: class ids [N, H, W], or soft ones: probabilities of the classes, float [N, K, H, W].
        strength: of the changes.
        schema: which classes trade places in a mirror.
    """
    s = STRENGTHS[strength]
    x, masks = _mirror(images.float() / 255, masks if masks.is_floating_point() else masks.long(), schema)
    x, masks = _move(x, masks, s)
    x = _recolor(x, s)
    for _ in range(s.patches):
        x = _cover(x)
    x = x + torch.randn_like(x) * _uniform(x, 0, s.noise)
    return (x.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last), masks


def network_input(images: Tensor) -> Tensor:
    """uint8 images as they are, float in [-1, 1]."""
    return images.float() / 127.5 - 1


def _uniform(x: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """One number an image (and channel), [N, channels, 1, 1]."""
    return low + (high - low) * torch.rand(len(x), channels, 1, 1, device=x.device)


def _mirror(x: Tensor, masks: Tensor, schema: LabelSchema) -> tuple[Tensor, Tensor]:
    chosen = torch.rand(len(x), device=x.device) < 0.5
    mirrored = masks.flip(-1)
    if masks.is_floating_point():
        mirrored = mirrored[:, schema.swap_sides(torch.arange(masks.shape[1], device=masks.device))]
    else:
        mirrored = schema.swap_sides(mirrored)
    chosen = chosen[:, None, None, None]
    of_masks = chosen if masks.dim() == 4 else chosen[:, 0]
    return torch.where(chosen, x.flip(3), x), torch.where(of_masks, mirrored, masks)


def _move(x: Tensor, masks: Tensor, s: Strength) -> tuple[Tensor, Tensor]:
    """Rotate, scale and shift; what comes in from outside repeats the border, in the mask too."""
    angle = _uniform(x, -1, 1).flatten() * math.radians(s.degrees)
    scale = torch.exp(_uniform(x, -s.log_scale, s.log_scale, 2)[..., 0, 0])
    shift = _uniform(x, -2 * s.shift, 2 * s.shift, 2)[..., 0, 0]  # the grid is 2 wide
    rows = [scale[:, 0] * angle.cos(), -scale[:, 1] * angle.sin(), shift[:, 0]]
    rows += [scale[:, 0] * angle.sin(), scale[:, 1] * angle.cos(), shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if masks.is_floating_point():
        return x, F.grid_sample(masks, grid, mode="bilinear", padding_mode="border", align_corners=False)
    moved = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return x, moved[:, 0].long()


def _recolor(x: Tensor, s: Strength) -> Tensor:
    x = x.clamp(1e-3, 1) ** torch.exp(_uniform(x, -s.contrast, s.contrast))
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * torch.exp(_uniform(x, -s.contrast, s.contrast))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * torch.exp(_uniform(x, -s.contrast, s.contrast))
    return x + _uniform(x, -s.tint, s.tint, channels=3)


def _cover(x: Tensor) -> Tensor:
    """Fill a rectangle of up to a seventh of the width with one color, in a third of the images."""
    at = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]
    rows = (at.view(1, 1, -1, 1) - _uniform(x, 0, 1)).abs() < _uniform(x, 0.02, 0.07)
    columns = (at.view(1, 1, 1, -1) - _uniform(x, 0, 1)).abs() < _uniform(x, 0.02, 0.07)
    chosen = _uniform(x, 0, 1) < 0.33
    return torch.where(rows & columns & chosen, _uniform(x, 0, 1, channels=3), x)
