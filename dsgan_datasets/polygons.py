"""Bool masks <-> polygons along the pixel edges, and COCO's run lengths; both give the mask back exactly.

Coordinates are those of images: x to the right, y down; pixel (row, column) is the unit square at (column, row).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dsgan_datasets._deprecation import moved

__getattr__ = moved(__name__, {"tight_box": "dsgan_datasets.targets.instances:tight_box"})

Array = np.ndarray[Any, np.dtype[Any]]

#: Pixels by which outlines for other programs are moved inward: see `mask_to_polygons`.
INSET = 0.01

#: (row, column) of a step to the east, south, west, north.
_STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
#: Crossings of edges and rows that are looked at together.
_PART = 2**18


def mask_to_polygons(mask: Array, inset: float = 0.0) -> list[Array]:
    """The outlines of a mask's 8-connected regions, one polygon each, along the edges of pixels.

    Polygon formats have no holes. A hole is joined to the outline on its left by a bridge: a horizontal line within the
    region that is traversed in both directions, and so encloses nothing. Filled by pixel centers, as `polygons_to_mask`
    does, the polygons are exactly the mask.

    Many programs fill polygons in another way: they cut coordinates to whole numbers, and color each pixel that the
    outline touches. Filled so, an outline along the edges takes in a row to the right and one below. Moved inward by a
    little (`inset`), it gives the mask back exactly in both ways, also in a picture that is enlarged.

    Args:
        mask: bool [H, W].
        inset: pixels by which the outlines are moved into the region, in [0, 1/2).

    Returns:
        arrays [P, 2] of (x, y), each x in 0 … W and y in 0 … H; the last point is joined to the first. int64, or
        float64 with an inset. Clockwise as seen on the screen, ordered by the region's first pixel. Where pixels touch
        at a corner only, and along a bridge, an outline meets itself; with an inset, it crosses the corner diagonally.

    Raises:
        ValueError: not a bool array of two dimensions, or another inset.

    Example:
        >>> mask_to_polygons(np.array([[True, True, True]]))
        [array([[0, 0],
               [3, 0],
               [3, 1],
               [0, 1]])]
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"a mask is a bool array [H, W], got {mask.dtype} {list(mask.shape)}")
    if not 0 <= inset < 0.5:
        raise ValueError(f"inset must be a number of pixels in [0, 1/2), not {inset!r}")
    points, following = _outlines(mask)
    points, following = _bridged(points, following)
    loops = [_corners(points[cycle]) for cycle in _cycles(following)]
    return [_moved_inward(loop, mask, inset) for loop in loops] if inset else loops


def polygons_to_mask(polygons: Sequence[Array], size: tuple[int, int]) -> Array:
    """The pixels whose centers lie inside a polygon by the even-odd rule; of several polygons, the union.

    Args:
        polygons: arrays [P, 2] of (x, y), integers or floats, from `mask_to_polygons` or anywhere; parts beyond the
            picture are cut off.
        size: (H, W).

    Returns:
        bool [H, W].

    Example:
        >>> polygons_to_mask([np.array([(0, 0), (2, 0), (0, 2)])], (2, 2)).astype(int)
        array([[1, 0],
               [0, 0]])
    """
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        inside, rows = _filled(np.asarray(polygon, dtype=np.float64), size)
        mask[rows] |= inside
    return mask


def contours_to_mask(contours: Sequence[Array], size: tuple[int, int]) -> Array:
    """The region whose border pixels were traced, as OpenCV's ``findContours`` does it; holes have contours, too.

    Such a point is the index of a pixel, not a corner of one: filled as a polygon, the region would lose its right and
    lower border, and its holes.

    Args:
        contours: arrays [P, 2] of whole (x, y) within the picture, all of one region; every step runs along a row, a
            column or a diagonal.
        size: (H, W).

    Returns:
        bool [H, W].

    Example:
        >>> contours_to_mask([np.array([(0, 0), (1, 0), (1, 1), (0, 1)])], (2, 3)).astype(int)
        array([[1, 1, 0],
               [1, 1, 0]])
    """
    mask = np.zeros(size, dtype=bool)
    for contour in contours:
        inside, rows = _filled(contour + 0.5, size)
        mask[rows] ^= inside
    for contour in contours:
        start = np.asarray(contour, dtype=np.int64)
        step = np.roll(start, -1, axis=0) - start
        lengths = np.abs(step).max(1)
        for part, edge, place in _expanded(np.maximum(lengths, 1)):
            x, y = (start[part][edge] + place[:, None] * np.sign(step[part][edge])).T
            mask[y, x] = True
    return mask


def encode_rle(mask: Array) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths, ready for JSON; ``pycocotools.mask.decode`` reads it.

    Args:
        mask: bool [H, W].

    Returns:
        ``{"size": [H, W], "counts": text}``.

    Raises:
        ImportError: pycocotools is not installed.

    Example:
        >>> encode_rle(np.array([[False, True]]))
        {'size': [1, 2], 'counts': '11'}
    """
    try:
        from pycocotools import mask as rle
    except ModuleNotFoundError as error:
        raise ImportError("COCO run lengths need pycocotools: pip install 'dsgan_datasets[coco]'") from error
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))  # it takes columns first
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _outlines(mask: Array) -> tuple[Array, list[int]]:
    """Every pixel edge between inside and outside, walked with the inside to the right.

    Returns:
        Where the edges start, int64 [P, 2] of (x, y), ordered by row, then column; and which edge follows on each.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    neighbors = padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2]  # north, east, south, west
    corners = (0, 0), (0, 1), (1, 1), (1, 0)  # of a pixel: where its edge towards that neighbor starts
    leaves = np.zeros((height + 1, width + 1, 4), dtype=bool)  # whether an edge leaves a lattice point, by direction
    for direction, (neighbor, (down, right)) in enumerate(zip(neighbors, corners, strict=True)):
        leaves[down : down + height, right : right + width, direction] = mask & ~neighbor
    rows, columns, directions = leaves.nonzero()
    number = np.full(leaves.shape, -1)
    number[leaves] = np.arange(len(rows))
    end_rows, end_columns = (np.stack([rows, columns], 1) + _STEPS[directions]).T
    following = np.full(len(rows), -1)
    # Where two pixels touch at a corner, the turn to the left leads to the other one: tried last, it wins.
    for turn in (1, 0, 3):  # right, straight on, left
        candidate = number[end_rows, end_columns, (directions + turn) % 4]
        following = np.where(candidate >= 0, candidate, following)
    return np.stack([columns, rows], 1), following.tolist()


def _bridged(points: Array, following: list[int]) -> tuple[Array, list[int]]:
    """The same outlines with each hole joined to the outline that touches its first point, or that lies left of it.

    Left of a hole's first point lies the region, up to the point before in the order of rows and columns. That one
    belongs to a loop that begins earlier, the region's own in the end: so everything joins up, and nothing is crossed.
    Where the first point touches another outline, that one leaves it upward, and so begins earlier too.
    """
    firsts = [cycle[0] for cycle in _cycles(following)]
    copied = list(range(len(points)))
    for first in firsts:
        if points[following[first], 0] == points[first, 0]:  # the first step goes down, not east: a hole
            # Both ends are doubled; then left -> hole's copy -> … -> hole -> left's copy -> …
            touching = first + 1 < len(points) and (points[first + 1] == points[first]).all()
            left = first + 1 if touching else first - 1
            copied += [first, left]
            following += [following[first], following[left]]
            following[first], following[left] = len(copied) - 1, len(copied) - 2
    return points[copied], following


def _cycles(following: list[int]) -> list[list[int]]:
    """The cycles of a permutation, each from its lowest element, ordered by that."""
    seen = [False] * len(following)
    cycles = []
    for first in range(len(following)):
        cycle, step = [], first
        while not seen[step]:
            seen[step] = True
            cycle.append(step)
            step = following[step]
        if cycle:
            cycles.append(cycle)
    return cycles


def _corners(loop: Array) -> Array:
    """Without points that are passed straight on, or twice in a row."""
    loop = loop[(loop != np.roll(loop, 1, axis=0)).any(1)]
    arriving, leaving = (np.sign(step) for step in (loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop))
    turns: Array = (arriving != leaving).any(1)
    return loop[turns]


def _moved_inward(loop: Array, mask: Array, by: float) -> Array:
    """An outline moved into the region, which lies to its right."""
    arriving, leaving = (np.sign(step) for step in (loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop))
    right_before, right_after = (np.stack([-step[:, 1], step[:, 0]], axis=1) for step in (arriving, leaving))
    moved = loop + by * (right_before + right_after)
    columns, rows = np.floor(moved).astype(int).T.clip(0, np.array(mask.shape)[::-1, None] - 1)
    # Not where pixels touch at a corner only, and where a bridge turns back: there one side ends, and the next begins.
    plain = mask[rows, columns] & (arriving != -leaving).any(1)
    ends = np.where(plain[:, None], moved, loop + by * (right_before - arriving))
    begins = np.where(plain[:, None], moved, loop + by * (right_after + leaving))
    both = np.stack([ends, begins], axis=1).reshape(-1, 2)
    result: Array = both[np.stack([np.ones_like(plain), ~plain], axis=1).reshape(-1)]
    return result


def _filled(polygon: Array, size: tuple[int, int]) -> tuple[Array, slice]:
    """One polygon, even-odd: the edges that a line from the left crosses on its way to a pixel's center are counted.

    Returns:
        bool [R, W] and which rows of the picture these are.
    """
    height, width = size
    start, end = polygon, np.roll(polygon, -1, axis=0)
    # Rows whose center r + 1/2 lies in [upper end, lower end): half-open, so that a corner is crossed once.
    first, last = rows_crossed(polygon, height)
    crossing = first < last
    start, end, first, last = start[crossing], end[crossing], first[crossing], last[crossing]
    if not len(first):
        return np.zeros((0, width), dtype=bool), slice(0, 0)
    top, bottom = int(first.min()), int(last.max())
    odd = np.zeros((bottom - top) * (width + 1), dtype=bool)
    for part, edge, place in _expanded(last - first):
        rows = first[part][edge] + place
        (x, y), (next_x, next_y) = start[part][edge].T, end[part][edge].T
        columns = np.clip(np.ceil(x + (rows + 0.5 - y) * (next_x - x) / (next_y - y) - 0.5), 0, width).astype(int)
        odd ^= np.bincount((rows - top) * (width + 1) + columns, minlength=len(odd)) % 2 == 1
    inside: Array = np.logical_xor.accumulate(odd.reshape(-1, width + 1), axis=1)[:, :width]
    return inside, slice(top, bottom)


def rows_crossed(polygon: Array, height: int) -> tuple[Array, Array]:
    """First row whose center each edge of a polygon crosses, and the one after the last, int64 [P] each.

    Example:
        >>> triangle = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> first, stop = rows_crossed(triangle, height=4)
        >>> first.tolist(), stop.tolist()
        ([0, 0, 0], [0, 4, 4])
    """
    y, next_y = polygon[:, 1], np.roll(polygon[:, 1], -1)
    first, last = (
        np.clip(np.ceil(bound - 0.5), 0, height).astype(np.int64)
        for bound in (np.minimum(y, next_y), np.maximum(y, next_y))
    )
    return first, last


def _expanded(counts: Array) -> Iterator[tuple[slice, Array, Array]]:
    """`counts[e]` places for each edge e, in parts of bounded length: memory must not grow with edges × rows.

    Yields:
        edges of the part; then for each place the edge, counted within the part, and the number 0 … counts[e] - 1.
    """
    ends = counts.cumsum()
    begin = 0
    while begin < len(counts):
        done = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, done + _PART, side="right")), begin + 1)
        part, some = slice(begin, end), counts[begin:end]
        edge = np.repeat(np.arange(end - begin), some)
        yield part, edge, np.arange(int(some.sum())) - np.repeat(some.cumsum() - some, some)
        begin = end
