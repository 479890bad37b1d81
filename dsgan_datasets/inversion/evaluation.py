"""Do the labels that photos get agree with those that a person gave them?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.fitting.quality import ConfusionMatrix
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.pictures import photo, sheet

#: Photos on the picture.
_SHOWN = 24


def compare_masks(source: LabeledPhotos, masks: Mapping[str, Array]) -> ConfusionMatrix:
    """Agreement of the labels of photos with masks of their own, all photos together.

    Args:
        source: labeled photos.
        masks: name of a photo -> class ids int64 [H, W] in its frame, see `read_masks`; of some photos or of all.

    Raises:
        ValueError: no labeled photo has a mask.

    Example:
        >>> compare_masks(photos, read_masks("masks", photos.photos, photos.schema)).mean_iou  # doctest: +SKIP
        0.62
    """
    rows = [row for row, name in enumerate(source.names) if name in masks]
    if not rows:
        raise ValueError("none of the photos that can be trusted has a mask: name masks like their photos")
    schema = source.schema
    compared = [
        ConfusionMatrix.compare(torch.from_numpy(masks[source.names[row]]), sample.mask.cpu(), schema)
        for row, sample in zip(rows, source.stream(rows), strict=True)
    ]
    return ConfusionMatrix.pooled(torch.stack(compared), schema)


def comparison_sheet(source: LabeledPhotos, masks: Mapping[str, Array], *, title: str = "") -> Image.Image:
    """The first 24 photos with masks: photo | its own mask | the labels of its inversion."""
    schema = source.schema
    rows = [row for row, name in enumerate(source.names) if name in masks][:_SHOWN]
    pictures, captions = [], []
    for row, sample in zip(rows, source.stream(rows), strict=True):
        name, shown = source.names[row], photo(sample.image)
        own, found = torch.from_numpy(masks[name]), sample.mask.cpu()
        counted = own != schema.ignore_index
        pictures.append([shown, *(schema.draw(shown, each, source.image_size) for each in (own, found))])
        captions.append(f"{name:.24}   {(own == found)[counted].double().mean():.0%} of the pixels agree")
    return sheet(pictures, captions, f"{title}   (photo | its mask | by inversion)", schema)
