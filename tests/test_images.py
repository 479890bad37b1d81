"""Pictures as files: what is encoded comes back, and equal pixels give equal bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dsgan_datasets.images import jpg, png, read_pixels

IMAGE = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(63).view(9, 7)


def test_images_are_stored_exactly_whatever_holds_them() -> None:
    rows = IMAGE.permute(1, 2, 0).numpy()
    content = png(IMAGE)
    assert np.array_equal(read_pixels(content, "RGB"), rows)
    assert png(rows) == content == png(Image.fromarray(rows))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_maps_of_ids_are_grayscale(dtype: torch.dtype) -> None:
    assert np.array_equal(read_pixels(png(IDS.to(dtype)), "L"), IDS.numpy())


def test_maps_of_16_bits_keep_them() -> None:
    levels = IDS.numpy().astype(np.uint16) * 1000
    assert np.array_equal(read_pixels(png(levels), "I;16"), levels)


def test_a_palette_colors_the_ids() -> None:
    with Image.open(io.BytesIO(png(IDS, palette=[(1, 2, 3), (4, 5, 6)]))) as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), IDS.numpy())
        colors = np.asarray(picture.convert("RGB"))
    assert colors[0, 1].tolist() == [4, 5, 6] and colors[8, 6].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="only a map of 8-bit ids"):
        png(IMAGE, palette=[(1, 2, 3)])


def test_jpeg_is_close_and_smaller_with_less_quality() -> None:
    smooth = torch.linspace(0, 255, 64).byte().expand(3, 64, 64)
    pixels = read_pixels(jpg(smooth, 90), "RGB").astype(int)
    assert abs(pixels - smooth.permute(1, 2, 0).numpy()).mean() < 3
    assert len(jpg(smooth, 30)) < len(jpg(smooth, 95))


@pytest.mark.parametrize("content", [b"", b"no picture", png(IMAGE)[:50], png(IDS)])
def test_what_is_not_such_a_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="a picture"):
        read_pixels(content, "RGB")


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not of shape \(5, 9, 7\)"):
        png(np.zeros((5, 9, 7), np.uint8))
