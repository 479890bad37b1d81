"""Trained networks with more layers or channels, which compute at first what they did before.

A finer resolution needs a discriminator that begins as the coarse one, and a transition in steps.

A new, random block at the front of the discriminator gets the training stuck: the generator finds noise faster than the
discriminator learns to see it, the loss of the discriminator settles at 2 ln 2, and the images never recover. So the
grown discriminator computes at first exactly what the coarse one computed on the halved image, learns the finer images
by itself, with a penalty that rises in steps, and then gives the generator's new block time before everything trains
as usual. The idea of growing is that of Progressive GAN (https://arxiv.org/abs/1710.10196, section 3).

More channels at no change of the output are the idea of Net2Net (https://arxiv.org/abs/1511.05641, section 2). Its new
channels are copies; here they are random and not used yet.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from discriminator import SLOPE, Discriminator
from torch import Tensor

#: Channels that carry the colors through the new block: +r, -r, +g, -g, +b, -b.
_CARRIERS = 6


class Phase(NamedTuple):
    """A part of the transition.

    Attributes:
        images: its length.
        generator_rate: factor of the generator's learning rate; 0 leaves the generator as it is.
        gamma: factor of the weight of R1.
        new_block_only: whether only the generator's new blocks train.
    """

    images: int
    generator_rate: float
    gamma: float
    new_block_only: bool = False


#: What worked from 64² to 128² at batches of 16 (demo/README.md tells what did not).
TRANSITION = (
    Phase(8_000, 0, 0),
    *(Phase(7_200, 0, gamma) for gamma in (0.01, 0.04, 0.16, 0.64)),
    Phase(15_000, 0.5, 0.64, new_block_only=True),
    Phase(15_000, 0.2, 0.64),
    Phase(24_000, 0.5, 1),
)
#: After the transition.
AS_USUAL = Phase(0, 1, 1)


def phase_at(images: int) -> tuple[Phase, int]:
    """(phase, images since its beginning) after `images` images of the transition.

    Example:
        >>> phase_at(8_000) == (Phase(7_200, 0, 0.01), 0)
        True
    """
    for phase in TRANSITION:
        if images < phase.images:
            return phase, images
        images -= phase.images
    return AS_USUAL, images


def describe_phase(images: int) -> str:
    """What is done after `images` images of the transition, in words; empty after it.

    Example:
        >>> describe_phase(0), describe_phase(10**6)
        ('growing 1/8: discriminator alone', '')
    """
    phase, _ = phase_at(images)
    if phase is AS_USUAL:
        return ""
    what = "new layers" if phase.new_block_only else "all layers, slowly"
    number = TRANSITION.index(phase) + 1
    return f"growing {number}/{len(TRANSITION)}: {what if phase.generator_rate else 'discriminator alone'}"


def extend(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """Make the layers of a new generator compute what those of a start with as many channels or fewer compute.

    The channels of the start come first and take nothing from the new ones; these are random and learn at once, as do
    the weights of zero by which they are read.

    Args:
        tensors: those of the new generator, changed in place.
        start: those of the start, which may lack the finest layers.
    """
    for name, tensor in start.items():
        own = tensors[name]
        if own.dim() > 1:
            own[: len(tensor)] = 0
        # The weights of colors, which are not normalized, are divided by the root of their number when they are used.
        scale = math.sqrt(own[0].numel() / tensor[0].numel()) if name.endswith("torgb.weight") else 1.0
        own[tuple(map(slice, tensor.shape))] = tensor * scale


def grow_discriminator(discriminator: Discriminator, coarse: Mapping[str, Tensor], channels: Mapping[int, int]) -> None:
    """Make a discriminator compute what a coarser one computes on the blurred, halved image.

    Args:
        discriminator: changed in place; what the new blocks do not need for this stays random, with no effect yet.
        coarse: tensors of the coarser one, whose resolution lies below.
        channels: resolution -> channels of `discriminator`.

    Raises:
        ValueError: a new block has fewer than 6 channels, which carry the three colors with both signs.
    """
    tensors = dict(coarse)
    fine = max(channels)
    resolution = next(r for r in sorted(channels) if f"b{r}.fromrgb.weight" in tensors)
    while resolution < fine:
        resolution *= 2
        if channels[resolution] < _CARRIERS:
            raise ValueError(f"growing needs {_CARRIERS} channels at {resolution}², there are {channels[resolution]}")
        old_weight = tensors.pop(f"b{resolution // 2}.fromrgb.weight")[:, :, 0, 0]
        old_bias = tensors.pop(f"b{resolution // 2}.fromrgb.bias")
        tensors |= _new_block(f"b{resolution}", channels[resolution], old_weight, old_bias)
    own = discriminator.state_dict()
    if own.keys() != tensors.keys() or any(own[name].shape != tensor.shape for name, tensor in tensors.items()):
        raise ValueError("the discriminator to grow from has other layers or channels")
    discriminator.load_state_dict(tensors)


def _new_block(name: str, n: int, old_weight: Tensor, old_bias: Tensor) -> dict[str, Tensor]:
    """A block whose output is the coarse fromrgb (with its activation) of the halved image.

    A leaky ReLU is undone by its mirror image: lrelu(a) - lrelu(-a) = (1 + slope) a. The layers' equalized learning
    rates, gain / sqrt(fan_in), are divided out.
    """
    n_out = len(old_weight)
    undo = 1 / (1 + SLOPE)
    signs = torch.tensor([1.0, -1.0])
    block = {
        "fromrgb.weight": torch.randn(n, 3, 1, 1),
        "fromrgb.bias": torch.zeros(n),
        "conv0.weight": torch.randn(n, n, 3, 3),
        "conv0.bias": torch.zeros(n),
        "conv1.weight": torch.zeros(n_out, n, 3, 3),
        "conv1.bias": old_bias * math.sqrt(2),
        "skip.weight": torch.zeros(n_out, n, 1, 1),
    }
    fromrgb, conv0, conv1 = block["fromrgb.weight"], block["conv0.weight"], block["conv1.weight"]
    fromrgb[:_CARRIERS] = 0
    conv0[:_CARRIERS] = 0
    for color in range(3):
        pair = slice(2 * color, 2 * color + 2)
        fromrgb[pair, color, 0, 0] = signs * math.sqrt(3) / math.sqrt(2)
        conv0[pair, pair, 1, 1] = torch.outer(signs, signs) * undo * math.sqrt(9 * n) / math.sqrt(2)
        weight = old_weight[:, color] * math.sqrt(2) / math.sqrt(3)  # as the coarse fromrgb applied it
        conv1[:, pair, 1, 1] = torch.outer(weight, signs) * undo * math.sqrt(9 * n)
    return {f"{name}.{key}": tensor for key, tensor in block.items()}
