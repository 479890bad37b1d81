"""Latents and labels that a person has drawn for them, and whether they fit a generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target


@dataclass(frozen=True, init=False, eq=False)
class AnnotatedImages:
    """Images of a generator that a person has annotated.

    Args:
        latents: z of each image, float32 [A, z_dim]; or its style vectors [A, num_ws, w_dim], such as those that
            photos were inverted to.
        labels: field of the target ("mask", "keypoints", …) -> labels [A, ...] of its kind; or the masks alone. Masks
            are integer class ids [A, H, W], of the interpreter's classes; pixels of `ignore_index` are not learned
            from. H and W are those of the images that the recipe makes, after a crop if it has one.
        masks: the masks, where there is nothing else.

    Integers are kept as int64, numbers as float32.

    Raises:
        ValueError: they do not fit together.

    Example:
        >>> masks, points = torch.zeros(2, 8, 8, dtype=torch.int64), torch.zeros(2, 5, 3)
        >>> AnnotatedImages(torch.zeros(2, 16), {"mask": masks, "keypoints": points}).masks.shape
        torch.Size([2, 8, 8])
    """

    latents: Tensor
    labels: Mapping[str, Tensor]

    def __init__(
        self, latents: Tensor, labels: Tensor | Mapping[str, Tensor] | None = None, *, masks: Tensor | None = None
    ) -> None:
        given = masks if labels is None else labels
        if given is None or (labels is not None and masks is not None):
            raise ValueError("give the labels of the images, or masks alone, and not both")
        by_field = given if isinstance(given, Mapping) else {"mask": given}
        object.__setattr__(self, "latents", torch.as_tensor(latents).float())
        object.__setattr__(self, "labels", {field: _as_label(field, values) for field, values in by_field.items()})
        if not bool(self.latents.isfinite().all()):
            raise ValueError("latents contain NaN or infinity")
        for field, values in self.labels.items() or {"labels": torch.empty(0)}.items():
            is_mask = field == "mask"
            wrong = values.dim() != 3 if is_mask else values.dim() < 2
            if self.latents.dim() not in (2, 3) or wrong or len(values) != len(self.latents):
                kind = "masks [A, H, W]" if is_mask else f"{field} [A, ...]"
                raise ValueError(
                    f"latents must be [A, z_dim] or [A, num_ws, w_dim], and {kind}; "
                    f"got {list(self.latents.shape)} and {list(values.shape)}"
                )

    def __len__(self) -> int:
        """Number of images A."""
        return len(self.latents)

    def __getitem__(self, rows: Tensor | slice) -> AnnotatedImages:
        """Some of the images: int64 [B] or bool [A], or a slice."""
        return AnnotatedImages(self.latents[rows], {field: values[rows] for field, values in self.labels.items()})

    @property
    def masks(self) -> Tensor:
        """int64 class ids [A, H, W]; ValueError if the images have no masks."""
        return self.of("mask")

    def of(self, field: str) -> Tensor:
        """The labels of one field, [A, ...]; ValueError names those that there are."""
        if field not in self.labels:
            raise ValueError(f"the annotated images have no {field}; their labels are: {', '.join(self.labels)}")
        return self.labels[field]


def _as_label(field: str, values: Tensor) -> Tensor:
    values = torch.as_tensor(values)
    is_number = values.is_floating_point()
    if values.is_complex() or values.dtype == torch.bool or (is_number and field == "mask"):
        needed = "masks must hold integer class ids" if field == "mask" else f"{field} must hold numbers"
        raise ValueError(f"{needed}, not {values.dtype}")
    return values.float() if is_number else values.long()


def check_annotated(generator: FeatureGenerator, annotated: AnnotatedImages, target: Target, recipe: Recipe) -> None:
    """ValueError if latents or the labels of a target do not fit the generator, the recipe or the target."""
    z, styles = (generator.z_dim,), (generator.num_ws, generator.w_dim)
    if (given := tuple(annotated.latents.shape[1:])) not in (z, styles):
        numbers, of_styles = ("×".join(map(str, shape)) for shape in (given, styles))
        raise ValueError(
            f"latents have {numbers} numbers; the generator's z has {generator.z_dim}, its style vectors {of_styles}"
        )
    size = recipe.image_size(generator.img_size)
    for number, value in enumerate(annotated.of(target.field)):
        try:
            target.check(value, size)
        except ValueError as error:
            raise ValueError(f"annotated image {number}: {error}") from error
    if not target.tally(annotated.of(target.field)).any():
        raise ValueError(f"the {target.field} of every image is ignored: there is nothing to learn from")
