"""Transforms that know about labels; everything else comes from torchvision.transforms.v2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from dsgan_datasets.targets.segmentation import LabelSchema


class RandomHorizontalFlip(nn.Module):
    """Mirror image and mask together, and exchange left and right parts.

    A stock flip leaves the class ids alone: a mirrored left eye stays "left eye" on the right side of the face.

    Args:
        schema: its `flip_pairs` say which classes trade places.
        p: probability of a flip.

    Example:
        >>> flip = RandomHorizontalFlip(LabelSchema(("none", "left", "right"), flip_pairs=((1, 2),)), p=1.0)
        >>> flip(torch.zeros(3, 1, 2), torch.tensor([[1, 0]]))[1]
        tensor([[0, 2]])
    """

    def __init__(self, schema: LabelSchema, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability, not {p}")
        self.schema = schema
        self.p = p

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image [..., H, W] and mask [H, W], both mirrored or neither."""
        if torch.rand(()) >= self.p:
            return image, mask
        mirrored = functional.horizontal_flip(mask)
        swapped = self.schema.swap_sides(mirrored)
        return functional.horizontal_flip(image), swapped.as_subclass(type(mask)) if type(
            mask
        ) is not Tensor else swapped
