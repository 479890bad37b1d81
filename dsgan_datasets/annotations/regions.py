"""Masks cleaned of specks that a mouse left behind."""

from __future__ import annotations

import numpy as np
import torch

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.targets.instances import connected_components


def absorb_specks(mask: Array, min_region: int, ignore_index: int = 255) -> Array:
    """Give every connected region (8 neighbors) of fewer pixels the class that most of its border pixels see.

    Smallest regions first, so that neighboring specks grow together; ignored pixels stay ignored. Of equally frequent
    classes the lowest is taken, and a picture that is one region stays as it is.

    Args:
        mask: class ids [H, W].
        min_region: pixels.
        ignore_index: id of ignored pixels.

    Example:
        >>> absorb_specks(np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]]), min_region=2)[1, 1]
        np.int64(1)
    """
    mask = mask.copy()
    if min_region <= 1:
        return mask
    labels = connected_components(torch.from_numpy(mask.astype(np.int64))).numpy()
    numbers, firsts, areas = np.unique(labels, return_index=True, return_counts=True)
    for k in np.argsort(areas, kind="stable"):
        own = int(mask.flat[firsts[k]])
        if areas[k] >= min_region:
            break
        if own == ignore_index:
            continue
        rows, columns = (labels == numbers[k]).nonzero()
        around = _around(rows, columns, mask.shape)
        outside = around[labels.flat[around] != numbers[k]]
        seen = mask.flat[outside]
        seen = seen[seen != ignore_index]
        if len(seen):
            mask[rows, columns] = np.bincount(seen).argmax()
    return mask


def _around(rows: Array, columns: Array, shape: tuple[int, ...]) -> Array:
    """Flat places above, below, left and right of pixels, within the picture; one for each side of each pixel."""
    places = []
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        r, c = rows + down, columns + right
        inside = (r >= 0) & (r < shape[0]) & (c >= 0) & (c < shape[1])
        places.append((r * shape[1] + c)[inside])
    return np.concatenate(places)


def drop_rare(mask: Array, min_class: int) -> Array:
    """Make class 0 of every class that has fewer pixels in the whole picture, as DatasetGAN's published code does (30).

    Args:
        mask: class ids [H, W].
        min_class: pixels.

    Example:
        >>> drop_rare(np.array([[1, 2, 2]]), min_class=2)
        array([[0, 2, 2]])
    """
    ids, place, counts = np.unique(mask, return_inverse=True, return_counts=True)
    kept: Array = np.where(counts < min_class, 0, ids)[place.reshape(mask.shape)]
    return kept
