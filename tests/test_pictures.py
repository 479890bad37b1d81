"""Pictures: images are enlarged smoothly, labels pixel by pixel; sheets show what there is."""

from __future__ import annotations

import numpy as np
import torch
from conftest import SCHEMA

from dsgan_datasets import LabeledGenerator, SampleBatch
from dsgan_datasets.pictures import contact_sheet, photo


def test_a_mask_keeps_its_pixels_over_a_smooth_image() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 32, 48), generator=random, dtype=torch.uint8)
    mask = torch.randint(0, 4, (32, 48), generator=random)
    mask[0, :8] = SCHEMA.ignore_index
    shown, plain = np.asarray(SCHEMA.draw(photo(image), mask, opacity=1)), np.asarray(photo(image))
    zoom = 192 // 48
    assert shown.shape == plain.shape == (32 * zoom, 48 * zoom, 3)
    ids = mask.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy()
    painted = (ids != 0) & (ids != SCHEMA.ignore_index)
    assert np.array_equal(shown[painted], np.array(SCHEMA.palette, np.uint8)[ids[painted]])
    assert np.array_equal(shown[~painted], plain[~painted])
    blocks = plain.reshape(32, zoom, 48, zoom, 3)
    assert (blocks != blocks[:, :1, :, :1]).any()  # not pixel by pixel


def test_a_large_image_stays_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 200, 300), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert np.array_equal(np.asarray(photo(image)), image.permute(1, 2, 0).numpy())


def test_a_sheet_needs_no_uncertainty(unfiltered: LabeledGenerator) -> None:
    batch = unfiltered.generate([0, 1], extras=("uncertainty",))
    certain = SampleBatch({k: v for k, v in batch.items() if "uncertainty" not in k})
    with_map, without = contact_sheet(batch, SCHEMA), contact_sheet(certain, unfiltered.targets)
    assert with_map.width > without.width and with_map.height == without.height
