"""Latents and masks that a person has drawn for them, and whether they fit a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class AnnotatedImages:
    """Images of a generator that a person has annotated.

    Args:
        latents: z of each image, float32 [A, z_dim].
        masks: integer class ids [A, H, W], of the interpreter's classes; pixels of `ignore_index` are not learned from.
            H and W are those of the images that the recipe makes, after a crop if it has one.

    Raises:
        ValueError: the two do not fit together.
    """

    latents: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        masks = torch.as_tensor(self.masks)
        if masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
            raise ValueError(f"masks must hold integer class ids, not {masks.dtype}")
        object.__setattr__(self, "masks", masks.long())
        object.__setattr__(self, "latents", torch.as_tensor(self.latents).float())
        if not bool(self.latents.isfinite().all()):
            raise ValueError("latents contain NaN or infinity")
        if self.latents.dim() != 2 or self.masks.dim() != 3 or len(self.latents) != len(self.masks):
            raise ValueError(
                f"latents must be [A, z_dim] and masks [A, H, W], "
                f"got {list(self.latents.shape)} and {list(self.masks.shape)}"
            )


def check_annotated(
    generator: FeatureGenerator, annotated: AnnotatedImages, schema: LabelSchema, recipe: Recipe
) -> None:
    """ValueError if latents, sizes or classes do not fit the generator, the recipe or the schema."""
    if annotated.latents.shape[1] != generator.z_dim:
        raise ValueError(f"latents have {annotated.latents.shape[1]} numbers, the generator's z has {generator.z_dim}")
    _check_masks(annotated.masks, schema.num_classes, schema.ignore_index)
    size = recipe.image_size(generator.img_size)
    if tuple(annotated.masks.shape[1:]) != size:
        raise ValueError(f"a mask is {tuple(annotated.masks.shape[1:])} pixels, the images are {size}")


def _check_masks(masks: Tensor, num_classes: int, ignore_index: int) -> None:
    found = set(masks.unique().tolist()) - {ignore_index}
    unknown = sorted(i for i in found if not 0 <= i < num_classes)
    if unknown:
        raise ValueError(
            f"the masks hold class {unknown}, but the schema has {num_classes} classes (0-{num_classes - 1}): "
            "add the class to the schema, or remap it"
        )
    if not found:
        raise ValueError(f"every pixel of the masks is {ignore_index} (ignored): there is nothing to learn from")
