"""A domain that is not faces: scans of a chest with nodules and metal, and a StyleGAN2 that draws them.

A GAN cannot be trained in a test, so the weights of this one are made. Its constant holds bumps; the style of its first
layer mixes them, and so says where nodules lie and whether there are any; its last two layers cut the bumps off into
shapes with an edge. All that an image shows comes from w, through the features, as in a trained one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets import LabelSchema, save_generator
from dsgan_datasets.generators import StyleGAN2, StyleGAN2Config

Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 32
#: Rows that hold the patient: above and below, scans are empty.
CROP = (4, 28)
SCHEMA = LabelSchema(("air", "tissue", "lung", "nodule", "implant"))
AIR, TISSUE, LUNG, NODULE, IMPLANT = range(5)
#: Gray values of 8 bits, and the step up or down to them from what lies below.
LEVELS = {AIR: 10, LUNG: 60, TISSUE: 110, NODULE: 160, IMPLANT: 250}
#: Between which gray values a nodule is, in a lung or over its edge; how far others may be from their level.
NODULE_BAND, NEAR = (148, 222), 12
#: Values of a scanner that become black and white: 16-bit scans hold more.
WINDOW = (1000, 3550)

_Z, _CHANNELS = 8, 16


class _Shape:
    """What is cut out of a mixture of bumps.

    Args:
        rows: of the constant, that are mixed.
        cut: height at which the bumps are cut off, as a share of that of one in the middle of a plane.
        step: by how much the image becomes brighter inside.
    """

    def __init__(self, rows: tuple[int, ...], cut: float, step: int) -> None:
        self.rows, self.cut, self.step = rows, cut, step


_SHAPES = (
    _Shape((0,), 0.5, LEVELS[TISSUE] - LEVELS[AIR]),
    _Shape((1, 2), 0.42, LEVELS[LUNG] - LEVELS[TISSUE]),
    _Shape((3, 4), 0.42, LEVELS[LUNG] - LEVELS[TISSUE]),
    _Shape((5, 6), 0.455, LEVELS[NODULE] - LEVELS[LUNG]),
    _Shape((7, 8), 0.455, LEVELS[NODULE] - LEVELS[LUNG]),
    _Shape((9,), 0.47, LEVELS[IMPLANT] - LEVELS[LUNG]),  # white over the lung, too
)
#: Row of the constant -> weight of its style, by which number of w, and its bias. Mixtures keep their length, so that a
#: bump is there or not, by the sign, and lies between two cells.
_STYLES = {
    **dict.fromkeys((1, 3), (0, 0.175, 0.7)),
    **dict.fromkeys((2, 4), (1, 0.175, 0.7)),
    **{row: (row - 3, 1.0, -0.8) for row in range(5, 9)},
    9: (6, 1.0, -1.3),
}


def _constant() -> Tensor:
    """Bumps, [16, 4, 4]: the body, two cells of each lung, nodules in these, and an implant below."""
    rows = torch.zeros(_CHANNELS, 4, 4)
    rows[0, 1:3, 1:3] = 1
    rows[0, 1:3, ::3] = 0.62
    rows[0, ::3, 1:3] = 0.5
    for lung, nodules, column in ((1, 5, 1), (3, 7, 2)):
        rows[lung, :2, column] = torch.tensor([0.5, 1])
        rows[lung + 1, 2:, column] = torch.tensor([1, 0.5])
        rows[nodules, 1, column] = rows[nodules + 1, 2, column] = 1
    rows[9, 2:, 1:3] = torch.tensor([[0.5], [0.6]])
    return rows


@torch.no_grad()
def scan_generator() -> StyleGAN2:
    """The generator, gray, 32×32."""
    config = StyleGAN2Config(
        z_dim=_Z,
        w_dim=_Z,
        img_resolution=SIDE,
        img_channels=1,
        channels=dict.fromkeys((4, 8, 16, SIDE), _CHANNELS),
        mapping_layers=1,
        mapping_lr_multiplier=1.0,
    )
    generator = StyleGAN2(config)
    for tensor in generator.state_dict().values():
        tensor.zero_()
    generator.mapping_network.fc0.weight.copy_(torch.eye(_Z) * math.sqrt(_Z))  # w = √2 lrelu(z)
    network = generator.synthesis_network
    layers = network.layers()
    for layer in layers:
        layer.affine.bias.fill_(1)
        layer.weight[..., 1, 1] = torch.eye(_CHANNELS)
    first, cutting, joining, head = layers[0], layers[-2], layers[-1], network.b32.torgb
    network.b4.const.copy_(_constant())
    for row, (number, weight, bias) in _STYLES.items():
        first.affine.weight[row, number], first.affine.bias[row] = weight * math.sqrt(_Z), bias
    for layer in (first, cutting, joining):
        layer.weight.zero_()
    head.affine.bias.fill_(1)
    head.bias.fill_(LEVELS[AIR] / 127.5 - 1)
    edge, height = 0.4, math.sqrt(2) ** (len(layers) - 2)  # each layer multiplies by √2
    for channel, shape in enumerate(_SHAPES):
        first.weight[channel, list(shape.rows), 1, 1] = 1
        # lrelu(x - low) - lrelu(x - high) is flat, rises between the two, and is flat again
        for side, sign in ((0, 1), (1, -1)):
            cutting.weight[2 * channel + side, channel, 1, 1] = 1
            cutting.bias[2 * channel + side] = -shape.cut * height + sign * edge / 2
            joining.weight[channel, 2 * channel + side, 1, 1] = sign
        outside, inside = 0.2 * math.sqrt(2) * edge, math.sqrt(2) * edge
        rise = shape.step / 127.5 / (inside - outside)
        head.weight[0, channel] = rise * math.sqrt(_CHANNELS)
        head.bias -= rise * outside
    joining.noise_const.normal_(generator=torch.Generator().manual_seed(0))
    joining.noise_strength.fill_(0.004)  # grain
    generator.freeze()
    return generator


def save_scan_generator(folder: Path) -> Path:
    """The generator as a file that `load_generator` reads."""
    save_generator(scan_generator(), folder, license="CC0-1.0")
    return folder


def annotated(image: Array) -> Array:
    """Class ids [H, W] of a gray image: what an expert sees, by a rule; partial volumes and glare are ignored."""
    gray = image.astype(int)
    mask = np.full(gray.shape, SCHEMA.ignore_index)
    for kind in (AIR, LUNG, TISSUE):
        mask[abs(gray - LEVELS[kind]) <= NEAR] = kind
    mask[(gray >= NODULE_BAND[0]) & (gray <= NODULE_BAND[1])] = NODULE
    mask[gray > LEVELS[IMPLANT] - NEAR] = IMPLANT
    metal = np.pad(mask == IMPLANT, 1)
    beside = np.stack([metal[y : y + gray.shape[0], x : x + gray.shape[1]] for y in range(3) for x in range(3)]).any(0)
    mask[beside & (mask != IMPLANT)] = SCHEMA.ignore_index
    return mask


def scanned(image: Array) -> Array:
    """The 16-bit scan uint16 [H, W] that becomes this gray image in `WINDOW`; black and white are beyond it."""
    low, high = WINDOW
    values = low + image.astype(np.float64) * (high - low) / 255
    values[image == 0], values[image == 255] = low // 2, 2 * high
    return values.round().astype(np.uint16)
