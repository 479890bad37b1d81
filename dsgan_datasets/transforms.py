"""Transforms that know about labels; everything else comes from torchvision.transforms.v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from dsgan_datasets.checks import is_number
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema


class RandomHorizontalFlip(nn.Module):
    """Mirror an image and its labels together, and exchange left and right parts.

    A stock flip leaves the class ids alone: a mirrored left eye stays "left eye" on the right side of the face.

    Args:
        targets: the labels, or the one label (such as a `LabelSchema`), that say what a mirror does to them.
        p: probability of a flip.

    Raises:
        ValueError: p out of range.

    Example:
        >>> flip = RandomHorizontalFlip(LabelSchema(("none", "left", "right"), flip_pairs=((1, 2),)), p=1.0)
        >>> flip({"image": torch.zeros(3, 1, 2), "mask": torch.tensor([[1, 0]])})["mask"]
        tensor([[0, 2]])
    """

    def __init__(self, targets: Target | Sequence[Target], p: float = 0.5) -> None:
        super().__init__()
        if not is_number(p) or not 0 <= p <= 1:
            raise ValueError(f"p is a probability, a number in 0 … 1, not {p!r:.80}")
        self.targets: tuple[Target, ...] = tuple(targets) if isinstance(targets, Sequence) else (targets,)
        if strangers := [target for target in self.targets if not hasattr(target, "mirror")]:
            raise ValueError(f"targets must be labels such as labeled.targets or a LabelSchema, not {strangers!r:.80}")
        self.p = p

    def forward(self, *inputs: Any) -> Any:
        """A dict with "image" [..., H, W] and the field of each target; or the image and each label as arguments.

        Every other tv_tensor in the dict is mirrored too. All of it is mirrored, or nothing.
        """
        if torch.rand(()) >= self.p:
            return inputs[0] if len(inputs) == 1 else inputs
        if len(inputs) == 1:
            return self._mirrored(inputs[0])
        image, *values = inputs
        fields = [target.field for target in self.targets]
        mirrored = self._mirrored({"image": image, **dict(zip(fields, values, strict=True))})
        return tuple(mirrored[name] for name in ("image", *fields))

    def _mirrored(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if "image" not in given:
            raise ValueError(f'the dict needs an "image", whose width says where points go; it has {", ".join(given)}')
        height, width = functional.get_size(given["image"])
        labels: dict[str, Any] = {}
        for target in self.targets:
            if target.field in given:
                labels |= _mirrored(target, given, (height, width))
            if isinstance(target, LabelSchema) and "probabilities" in given:
                labels["probabilities"] = _mirrored_probabilities(target, given["probabilities"])
        others = {
            name: functional.horizontal_flip(value)
            for name, value in given.items()
            if name not in labels and (name == "image" or isinstance(value, tv_tensors.TVTensor))
        }
        return {**given, **others, **labels}


def _mirrored(target: Target, given: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The entries of a label, mirrored: a tensor as samples hold it, or what the target's `wrap` makes of it."""
    if not isinstance(given[target.field], tv_tensors.TVTensor):
        return {target.field: target.mirror(given[target.field], size)}
    try:
        label = target.unwrap(given, size).as_subclass(Tensor)
    except KeyError as error:
        raise ValueError(
            f"{target.field} is a tv_tensor without {error} beside it: pass all that wrap(…) gave"
        ) from None
    return target.wrap(target.mirror(label, size), size)


def _mirrored_probabilities(schema: LabelSchema, values: Tensor) -> Tensor:
    """Of the classes of a mirrored mask, [..., K, H, W]."""
    swapped = schema.swap_sides(torch.arange(values.shape[-3], device=values.device))
    mirrored = values.as_subclass(Tensor).flip(-1).index_select(-3, swapped)
    return tv_tensors.wrap(mirrored, like=values) if isinstance(values, tv_tensors.TVTensor) else mirrored
