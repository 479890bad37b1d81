"""Masks of all classes <-> a list of polygons, painted one over the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.contents import ContentError
from dsgan_datasets.polygons import INSET, contours_to_mask, mask_to_polygons, polygons_to_mask, rows_crossed
from dsgan_datasets.targets.instances import connected_components


def mask_to_shapes(mask: Array, tolerance: float = 0.0) -> list[tuple[int, Array]]:
    """Polygons that give the mask when they are painted in order over a picture of class 0.

    What lies inside something else comes after it, so that no polygon needs a hole: an eye is painted over the face.

    Args:
        mask: class ids [H, W].
        tolerance: pixels; how far an outline may lie from the edges of its pixels: fewer points for a person to move. 0
            keeps every pixel.

    Returns:
        (class id, float64 [P, 2] of (x, y)), larger ones first.

    Example:
        >>> [(i, len(polygon)) for i, polygon in mask_to_shapes(np.array([[1, 1, 1], [1, 2, 1], [1, 1, 1]]))]
        [(1, 4), (2, 4)]
    """
    labels = connected_components(torch.from_numpy(mask.astype(np.int64))).numpy()
    shapes: list[tuple[int, int, Array]] = []
    for first in np.unique(labels):
        region = labels == first
        rows, columns = region.any(1).nonzero()[0], region.any(0).nonzero()[0]
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        category = int(mask.flat[first])
        if category == 0 and _at_edge(region):
            continue  # unpainted pixels are class 0 anyway
        filled = _without_holes(region[top:bottom, left:right])
        for polygon in mask_to_polygons(filled, INSET):
            outline = simplified(polygon.astype(np.float64), tolerance)
            shapes.append((int(filled.sum()), category, outline + np.array((left, top))))
    shapes.sort(key=lambda shape: -shape[0])
    return [(category, outline) for _, category, outline in shapes]


def within_reach(points: Array) -> bool:
    """True if all coordinates are numbers that a picture can have; far beyond, areas overflow."""
    return bool((np.abs(points) < 1e6).all())


def _at_edge(region: Array) -> bool:
    return bool(region[0].any() or region[-1].any() or region[:, 0].any() or region[:, -1].any())


def _without_holes(region: Array) -> Array:
    """The region and all that it surrounds."""
    labels = connected_components(torch.from_numpy(np.pad(region, 1).astype(np.int64))).numpy()
    filled: Array = (labels != 0)[1:-1, 1:-1]  # the outside is the region of the first pixel
    return filled


def simplified(polygon: Array, tolerance: float) -> Array:
    """A closed polygon with fewer corners, none of which left out is farther than `tolerance` from it (Douglas and
    Peucker, "Algorithms for the reduction of the number of points…", 1973).

    Args:
        polygon: [P, 2].
        tolerance: in the polygon's unit; 0 returns it as it is.

    Raises:
        ImportError: shapely is not installed, and the tolerance is not 0.
    """
    if tolerance <= 0 or len(polygon) <= 4:
        return polygon
    closed = shapely().LineString(np.concatenate([polygon, polygon[:1]]))
    result: Array = np.asarray(closed.simplify(tolerance, preserve_topology=False).coords)[:-1]
    return result if len(result) >= 3 else polygon


def shapely() -> Any:
    """The package; an ImportError that says how to install it."""
    try:
        import shapely
    except ModuleNotFoundError as error:
        raise ImportError("drafts of annotations need shapely: pip install 'dsgan_datasets[annotate]'") from error
    return shapely


class Canvas:
    """A mask that shapes are painted on: later ones over earlier ones, class 0 below all.

    Its work is bounded: a small file can hold outlines of a million corners, or a million shapes of the whole picture.

    Args:
        size: (H, W).

    Attributes:
        mask: class ids int64 [H, W].
        shapes: how many were painted.
        full: there were too many: nothing more can be painted.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.mask: Array = np.zeros(size, dtype=np.int64)
        self.shapes, self.full = 0, False
        pixels = size[0] * size[1]
        self._left = {"shapes": 20_000, "pixels": 400 * pixels + 2**22, "crossings": 32 * pixels + 2**22}

    def paint(self, category: int, region: Array) -> bool:
        """Paint a region, bool [H, W]; whether it has a pixel."""
        self.shapes += 1
        rows = np.flatnonzero(region.any(1))
        if not len(rows):
            return False
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        self._spend(shapes=1, pixels=(part.stop - part.start) * region.shape[1])
        self.mask[part][region[part]] = category
        return True

    def polygons(self, polygons: Sequence[Array]) -> Array:
        """`polygons_to_mask` of this size, or a ContentError if all shapes so far take too much work."""
        self._spend_outlines(polygons)
        return polygons_to_mask(polygons, self._size)

    def contours(self, contours: Sequence[Array]) -> Array:
        """`contours_to_mask`, likewise."""
        self._spend_outlines(contours)
        return contours_to_mask(contours, self._size)

    def circle(self, center: Array, radius: float) -> Array:
        """The pixels whose centers lie within a circle, likewise."""
        self._spend(shapes=1, pixels=self.mask.size)
        rows, columns = np.indices(self._size) + 0.5
        inside: Array = np.hypot(columns - center[0], rows - center[1]) <= radius
        return inside

    @property
    def _size(self) -> tuple[int, int]:
        height, width = self.mask.shape
        return height, width

    def _spend_outlines(self, polygons: Sequence[Array]) -> None:
        height, width = self._size
        for polygon in polygons:
            first, last = rows_crossed(polygon, height)
            crossings = int(np.maximum(last - first, 0).sum()) + len(polygon)
            self._spend(shapes=1, pixels=width * int(last.max() - first.min()), crossings=crossings)

    def _spend(self, **amounts: int) -> None:
        for what, amount in amounts.items():
            self._left[what] -= amount
            if self._left[what] < 0:
                self.full = True
                raise ContentError(
                    f"draws more {_WORK[what]} than a picture of this size has room for: simplify it, or paint a mask"
                )


_WORK = {
    "shapes": "shapes (10,000)",
    "pixels": "large shapes over each other (the picture 200 times over)",
    "crossings": "corners (each pixel is crossed 32 times)",
}
