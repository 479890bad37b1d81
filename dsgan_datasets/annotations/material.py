"""What lies in a folder of annotations, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import Findings
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Reads one mask int64 [H, W]. None: it noted why the mask cannot be used; if it noted nothing, nothing is annotated.
Reader = Callable[[Findings], Array | None]


@dataclass(frozen=True)
class Material:
    """Contents of a folder.

    Attributes:
        schema: the classes.
        recipe: of the images.
        latents: float32 [A, z_dim].
        images: name -> uint8 RGB [H, W, 3], or None if it is not there; in the order of the latents.
        readers: name -> what reads its mask.
        generator: of the images; None if none was given.
        fingerprint: of the generator of the images; None if it is not known.
    """

    schema: LabelSchema
    recipe: Recipe
    latents: Tensor
    images: Mapping[str, Array | None]
    readers: Mapping[str, Reader]
    generator: FeatureGenerator | None
    fingerprint: str | None
