"""Masks survive the way through polygons and run lengths."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dsgan_datasets.polygons import INSET, contours_to_mask, encode_rle, mask_to_polygons, polygons_to_mask
from dsgan_datasets.targets.instances import connected_components

NESTED = """
    ###########
    #.........#
    #.#######.#
    #.#.#...#.#
    #.##.##.#.#
    #.#######.#
    #....#....#
    #########.#
    #.#.#.#..##
    ###########"""

#: The right hole begins higher up, but its bridge must end at the left hole.
SLANTED = """
    ################
    ###########...##
    ###########...##
    ##.......##...##
    ##.......#...###
    ##.......#...###
    ##.......#...###
    ################"""


def drawing(text: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in line.strip()] for line in text.strip().splitlines()])


def blobs(seed: int, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    """Ellipses painted over each other, in and out: regions with holes in holes."""
    random = np.random.default_rng(seed)
    rows, columns = np.ogrid[: size[0], : size[1]]
    mask = np.zeros(size, dtype=bool)
    for inside in [True, False] * 8:
        y, x, a, b = random.random(4) * (*size, 16, 16)
        mask[((rows - y) / (a + 1)) ** 2 + ((columns - x) / (b + 1)) ** 2 < 1] = inside
    return mask


def regions(mask: np.ndarray) -> int:
    return len(np.unique(connected_components(torch.from_numpy(mask)).numpy()[mask]))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 0.98), st.integers(1, 14), st.integers(1, 14))
def test_noise_comes_back(seed: int, density: float, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    polygons = mask_to_polygons(mask)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    assert len(polygons) == regions(mask)


@pytest.mark.parametrize("mask", [*(blobs(seed) for seed in range(20)), drawing(NESTED), np.ones((3, 4), dtype=bool)])
def test_blobs_come_back(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    assert len(polygons) == regions(mask)
    # Rounded to the precision of a label file, the outlines enclose the same pixel centers.
    scale = np.array(mask.shape[::-1])
    rounded = [np.round(polygon / scale, 6) * scale for polygon in polygons]
    assert np.array_equal(polygons_to_mask(rounded, mask.shape), mask)


@pytest.mark.parametrize("mask", [*(blobs(seed) for seed in range(5)), drawing(NESTED), drawing(SLANTED)])
def test_bridges_run_inside_the_region(mask: np.ndarray) -> None:
    near = np.pad(mask, 1)  # pixels that touch the lattice point (y, x): y - 1 and y, x - 1 and x
    near = near[:-1, :-1] | near[1:, :-1] | near[:-1, 1:] | near[1:, 1:]
    for polygon in mask_to_polygons(mask):
        for (x, y), (to_x, to_y) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            assert (x == to_x) != (y == to_y)  # along pixel edges, and never in place
            left, right, top, bottom = min(x, to_x), max(x, to_x), min(y, to_y), max(y, to_y)
            assert near[top : bottom + 1, left : right + 1].all()


def test_outlines_are_few_points_along_the_edges() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:4, 2:5] = True
    (polygon,) = mask_to_polygons(mask)
    assert polygon.tolist() == [[2, 1], [5, 1], [5, 4], [2, 4]]
    mask[2, 3] = False
    (polygon,) = mask_to_polygons(mask)
    assert len(polygon) == 10  # two squares, and the bridge's two ends a second time
    assert mask_to_polygons(np.zeros((3, 3), dtype=bool)) == []


def filled_by_opencv(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As the loaders of YOLO fill: coordinates cut to whole numbers, the outline included."""
    cv2 = pytest.importorskip("cv2")
    picture = np.zeros(size, np.uint8)
    cv2.fillPoly(picture, [polygon.astype(np.float32).astype(np.int32)], 1)
    return picture > 0


def filled_by_pillow(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As LabelMe's own tools fill."""
    picture = Image.new("1", size[::-1])
    ImageDraw.Draw(picture).polygon([tuple(point) for point in polygon.tolist()], outline=1, fill=1)
    return np.asarray(picture)


def filled_by_coco(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rle = pytest.importorskip("pycocotools.mask")
    return rle.decode(rle.merge(rle.frPyObjects([polygon.ravel().tolist()], *size))) > 0


@pytest.mark.parametrize("fill", [filled_by_opencv, filled_by_pillow, filled_by_coco])
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 0.98), st.integers(1, 14), st.integers(2, 14), st.sampled_from([1, 2, 7]))
def test_other_programs_fill_outlines_moved_inward_to_the_mask(
    fill: Callable[..., np.ndarray], seed: int, density: float, height: int, width: int, scale: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    polygons = mask_to_polygons(mask, INSET)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    assert all(len(moved) >= len(plain) for moved, plain in zip(polygons, mask_to_polygons(mask), strict=True))
    large = mask.repeat(scale, 0).repeat(scale, 1)
    found = np.zeros(large.shape, dtype=bool)
    for polygon in polygons:
        found |= fill(polygon * scale, large.shape)
    assert np.array_equal(found, large)


@pytest.mark.parametrize("inset", [-0.1, 0.5, float("nan")])
def test_an_inset_is_less_than_half_a_pixel(inset: float) -> None:
    with pytest.raises(ValueError, match="inset must be a number of pixels"):
        mask_to_polygons(np.ones((2, 2), dtype=bool), inset)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    assert len(mask_to_polygons(np.eye(4, dtype=bool))) == 1


def test_fill_agrees_with_another_rasterizer_away_from_the_outline() -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        polygon = random.random((7, 2)) * 60 - 6
        picture = Image.new("L", (48 * 8, 40 * 8))  # eight times as large: its outline is thin
        ImageDraw.Draw(picture).polygon([tuple(point * 8) for point in polygon], fill=255)
        large = np.asarray(picture) > 0
        centers = large[4::8, 4::8]
        blocks = large.reshape(40, 8, 48, 8).mean((1, 3))
        sure = (blocks == 0) | (blocks == 1)
        assert np.array_equal(polygons_to_mask([polygon], (40, 48))[sure], centers[sure])


def test_run_lengths_come_back() -> None:
    rle = pytest.importorskip("pycocotools.mask")
    for mask in (blobs(3), np.zeros((4, 5), dtype=bool), np.ones((4, 5), dtype=bool)):
        encoded = encode_rle(mask)
        assert isinstance(encoded["counts"], str)
        assert np.array_equal(rle.decode(encoded).astype(bool), mask)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="bool array"):
        mask_to_polygons(np.zeros((3, 3)))


def traced(mask: np.ndarray) -> list[np.ndarray]:
    cv2 = pytest.importorskip("cv2")
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0] for contour in contours]


@pytest.mark.parametrize("seed", range(20))
def test_traced_outlines_give_the_mask_back(seed: int) -> None:
    """One region at a time, as a tool makes one annotation of it; holes, thin lines and single pixels included."""
    random = np.random.default_rng(seed)
    noise = random.random((24, 31)) < (0.3, 0.6, 0.9)[seed % 3]
    regions = connected_components(torch.from_numpy(noise.astype(np.int64))).numpy()
    for number in np.unique(regions[noise]):
        region = regions == number
        assert np.array_equal(contours_to_mask(traced(region), region.shape), region)


def test_memory_does_not_grow_with_edges_times_rows() -> None:
    """40,000 edges over 512 rows each: 20 million crossings, which would take a gigabyte at once."""
    corners = np.arange(40_000)
    zigzag = np.stack([corners % 512, 512 * (corners % 2)], axis=1)
    tracemalloc.start()
    try:
        mask = polygons_to_mask([zigzag], (512, 512))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 150e6 and mask.shape == (512, 512)
