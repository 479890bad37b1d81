"""Feature maps -> logits by a small convolutional network: reduce each map, fuse coarse to fine, look at neighbors.

The maps of one size are a level. With f the maps of a level, x' the level before it and up(·) bilinear resizing,

    x = relu(P f + b + up(C x'))            P, C: 1×1 convolutions, both at the size of what they read
    x = relu(x + D x)                       D: a 3×3 convolution; a level has a few of these

and the logits are a 1×1 convolution of the last level. BigDatasetGAN (arXiv 2201.04684) replaces DatasetGAN's pixel
classifiers by a network of this kind. Members are independent networks; side by side they are one with groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.operations import conv2d, product_of_columns

#: Brings [N, C, h, w] of one level to the size of level i, and after the last level to that of the frame.
Resize = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class Level:
    """What M members do with the maps of one size.

    Attributes:
        project: [M, c, C], of all maps of the level together.
        bias: [M, c].
        carry: [M, c, c of the coarser level]; None for the coarsest.
        mix: 3×3 convolutions [D, M, c, c, 3, 3], one after the other.
        mix_bias: [D, M, c].
    """

    project: Tensor
    bias: Tensor
    carry: Tensor | None
    mix: Tensor
    mix_bias: Tensor


@dataclass(frozen=True, eq=False)
class FusionWeights:
    """M networks.

    Attributes:
        levels: coarse to fine.
        head: [M, K, c of the finest level].
        head_bias: [M, K].

    Raises:
        ValueError: tensors that do not fit together.

    Example:
        >>> z = torch.zeros
        >>> level = Level(z(2, 4, 9), z(2, 4), None, z(1, 2, 4, 4, 3, 3), z(1, 2, 4))
        >>> FusionWeights((level,), z(2, 3, 4), z(2, 3)).num_classes
        3
    """

    levels: tuple[Level, ...]
    head: Tensor
    head_bias: Tensor

    def __post_init__(self) -> None:
        if not self.levels or self.head.dim() != 3 or 0 in self.head.shape:
            raise ValueError(f"head must be [M, K, c] after one level or more, got {list(self.head.shape)}")
        members, classes, _ = self.head.shape
        expected: dict[str, tuple[int, ...]] = {}
        below = None
        for i, level in enumerate(self.levels):
            if level.project.dim() != 3 or 0 in level.project.shape or level.mix.dim() != 6:
                raise ValueError(
                    f"project_{i} must be [M, c, C] and mix_{i} [D, M, c, c, 3, 3], got {list(level.project.shape)} "
                    f"and {list(level.mix.shape)}"
                )
            _, width, channels = level.project.shape
            expected |= {f"project_{i}": (members, width, channels), f"bias_{i}": (members, width)}
            if below is not None:
                expected[f"carry_{i}"] = (members, width, below)
            expected |= {f"mix_{i}": (len(level.mix), members, width, width, 3, 3)}
            expected |= {f"mix_bias_{i}": (len(level.mix), members, width)}
            below = width
        assert below is not None
        expected |= {"head": (members, classes, below), "head_bias": (members, classes)}
        named = self.named()
        if missing := [name for name in expected if name not in named]:
            raise ValueError(f"no tensor {missing[0]}")
        for name, tensor in named.items():
            if tuple(tensor.shape) != expected.get(name):
                raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(expected.get(name, ()))}")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> FusionWeights:
        """From tensors by name, others are ignored; KeyError for a missing one."""
        levels: list[Level] = []
        while (i := len(levels)) == 0 or f"project_{i}" in tensors:
            levels.append(
                Level(
                    tensors[f"project_{i}"],
                    tensors[f"bias_{i}"],
                    tensors[f"carry_{i}"] if i else None,
                    tensors[f"mix_{i}"],
                    tensors[f"mix_bias_{i}"],
                )
            )
        return cls(tuple(levels), tensors["head"], tensors["head_bias"])

    def named(self) -> dict[str, Tensor]:
        """Name -> tensor."""
        found: dict[str, Tensor] = {}
        for i, level in enumerate(self.levels):
            found |= {f"project_{i}": level.project, f"bias_{i}": level.bias}
            if level.carry is not None:
                found[f"carry_{i}"] = level.carry
            found |= {f"mix_{i}": level.mix, f"mix_bias_{i}": level.mix_bias}
        return found | {"head": self.head, "head_bias": self.head_bias}

    def map(self, function: Callable[[Tensor], Tensor]) -> FusionWeights:
        """The networks with a function applied to each tensor."""
        return FusionWeights.of({name: function(tensor) for name, tensor in self.named().items()})

    def in_precision(self, dtype: torch.dtype) -> FusionWeights:
        """All layers in this precision but the last, whose result decides the labels."""
        return FusionWeights.of({k: v if k.startswith("head") else v.to(dtype) for k, v in self.named().items()})

    def member(self, number: int) -> FusionWeights:
        """One of the networks (views, no copies)."""
        one = slice(number, number + 1)
        return FusionWeights.of(
            {name: t[:, one] if name.startswith("mix") else t[one] for name, t in self.named().items()}
        )

    @property
    def num_members(self) -> int:
        """Number of networks M."""
        return len(self.head)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.head.shape[1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels c of each level, of a member."""
        return tuple(level.project.shape[1] for level in self.levels)

    @property
    def convolutions(self) -> tuple[int, ...]:
        """3×3 convolutions D of each level."""
        return tuple(len(level.mix) for level in self.levels)

    @property
    def in_channels(self) -> tuple[int, ...]:
        """Channels C that each level reads."""
        return tuple(level.project.shape[2] for level in self.levels)


def grouped(maps: Sequence[Tensor], levels: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """The maps of each level as one, [N, C, h, w].

    Args:
        maps: [N, C_l, h_l, w_l], coarse to fine.
        levels: how many maps each level has.
        dtype: of the result.

    Raises:
        ValueError: maps of one level differ in size.
    """
    made, first = [], 0
    for count in levels:
        together = maps[first : first + count]
        if len({f.shape[2:] for f in together}) > 1:
            sizes = [tuple(f.shape[2:]) for f in together]
            raise ValueError(f"maps {first} to {first + count - 1} must be of one size, got {sizes}")
        made.append(torch.cat([f.to(dtype) for f in together], 1).contiguous())
        first += count
    return made


def bilinear(levels: Sequence[Tensor], size: tuple[int, int]) -> Resize:
    """Resizing of whole maps: to the size of each level, and in the end to that of the frame."""
    sizes = [tuple(level.shape[2:]) for level in levels] + [tuple(size)]

    def resize(x: Tensor, number: int) -> Tensor:
        if tuple(x.shape[2:]) == sizes[number]:
            return x
        return F.interpolate(x, size=sizes[number], mode="bilinear", align_corners=False)

    return resize


def logits(weights: FusionWeights, levels: Sequence[Tensor], resize: Resize) -> Tensor:
    """Logits of every member, float32 [N, M, K, H, W].

    Operands have the precision of the levels; the last product, which decides the labels, is float32.

    Args:
        weights: in the precision of the levels, all but `head` and `head_bias`.
        levels: [N, C, h, w], as `grouped` gives them.
        resize: between the levels, and to the frame; such as `bilinear`.
    """
    members = weights.num_members
    x: Tensor | None = None
    for number, (level, maps) in enumerate(zip(weights.levels, levels, strict=True)):
        reduced = product_of_columns(level.project.flatten(0, 1), maps.flatten(2)) + level.bias.flatten()[:, None]
        fused = reduced.unflatten(2, maps.shape[2:])
        if x is not None and level.carry is not None:
            kernel = level.carry.flatten(0, 1)[:, :, None, None]
            fused = fused + resize(conv2d(x, kernel, groups=members), number)
        x = fused.relu()
        for mix, bias in zip(level.mix, level.mix_bias, strict=True):
            x = (x + conv2d(x, mix.flatten(0, 1), bias.flatten(), padding=1, groups=members)).relu()
    assert x is not None
    head = weights.head.flatten(0, 1)[:, :, None, None]
    found = conv2d(x.float(), head, weights.head_bias.flatten(), groups=members)
    framed = resize(found, len(levels))
    return framed.view(len(framed), members, weights.num_classes, *framed.shape[2:])
