"""Masks are cleaned, and turned into polygons that paint them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotation_folders import equal, names, write_masks
from conftest import SCHEMA

from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.annotations.regions import absorb_specks, drop_rare
from dsgan_datasets.annotations.shapes import Canvas, mask_to_shapes, simplified
from dsgan_datasets.images import png


def test_specks_take_the_class_around_them(folder: Path) -> None:
    masks = write_masks(folder)
    specked = masks.copy()
    specked[0, 9, 2], specked[0, 0, 0] = 3, 1
    name = names(folder)[0]
    (folder / "masks" / f"{name}.png").write_bytes(png(specked[0], palette=SCHEMA.palette))
    assert equal(load_annotations(folder), specked)
    assert equal(load_annotations(folder, min_region=3), masks)


def test_specks_and_ignored_pixels() -> None:
    mask = np.array([[1, 1, 1, 1], [1, 255, 2, 1], [1, 1, 1, 1]])
    assert absorb_specks(mask, 5).tolist() == [[1, 1, 1, 1], [1, 255, 1, 1], [1, 1, 1, 1]]
    assert absorb_specks(np.full((2, 2), 3), 30).tolist() == [[3, 3], [3, 3]]


def test_rare_classes_are_dropped_as_published() -> None:
    mask = np.array([[1, 2, 0, 2], [1, 1, 0, 0]])
    assert drop_rare(mask, 3).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_shapes_paint_the_mask_back(seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 4, (17, 23))
    mask[4:10, 5:15] = 2  # something larger, with something inside
    mask[6:8, 8:11] = 0
    shapes = mask_to_shapes(mask)
    canvas = Canvas(mask.shape)
    assert all(canvas.paint(i, canvas.polygons([polygon])) for i, polygon in shapes)
    assert np.array_equal(canvas.mask, mask)


def test_simplified_outlines_stay_within_the_tolerance() -> None:
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([50 + 30 * np.cos(angles), 50 + 30 * np.sin(angles)], 1)
    few = simplified(circle, 0.5)
    assert 8 <= len(few) < 60
    ends = np.roll(few, -1, axis=0)
    t = np.linspace(0, 1, 50)[:, None, None]
    along = (few + t * (ends - few)).reshape(-1, 2)
    gaps = np.linalg.norm(circle[:, None] - along[None], axis=2).min(1)
    assert gaps.max() < 0.55 and len(simplified(circle, 0.0)) == 400
