"""What lies in a folder of annotations, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import Findings
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target

#: Field of a target -> label of one image, such as "mask" -> int64 [H, W].
Labels = Mapping[str, Array]


class Wanted(NamedTuple):
    """What is read from a file that may hold labels of several kinds.

    Attributes:
        targets: what the file may hold, and so whose shapes are no mistake in it.
        fields: of the targets that are read from it; others are taken from elsewhere.
    """

    targets: tuple[Target, ...]
    fields: frozenset[str]


@dataclass(frozen=True)
class Source:
    """What one file says about one image.

    Attributes:
        file: what to call it in messages.
        read: gives the labels that it holds. A field that is not among them is not annotated in this file, or cannot be
            used, and the reason is noted.
    """

    file: str
    read: Callable[[Findings], Labels]


@dataclass(frozen=True)
class Material:
    """Contents of a folder.

    Attributes:
        targets: what is annotated.
        recipe: of the images.
        latents: float32 [A, z_dim], or styles [A, num_ws, w_dim].
        images: name -> uint8 RGB [H, W, 3], or None if it is not there; in the order of the latents.
        sources: name -> the files that annotate it.
        generator: of the images; None if none was given.
        fingerprint: of the generator of the images; None if it is not known.
        size: (H, W) of the images.
        unlike: name -> pixels of a photo that its reconstruction does not show, bool [H, W]; features there are of
            something else.
        photo_license: of photos; None if the images are draws of the generator.
    """

    targets: tuple[Target, ...]
    recipe: Recipe
    latents: Tensor
    images: Mapping[str, Array | None]
    sources: Mapping[str, Sequence[Source]]
    generator: FeatureGenerator | None
    fingerprint: str | None
    size: tuple[int, int]
    unlike: Mapping[str, Array] = field(default_factory=dict)
    photo_license: str | None = None
