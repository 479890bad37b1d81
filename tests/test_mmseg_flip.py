"""Labels stay on the image through flips, crops and changes of color order."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA

from dsgan_datasets import LabeledGenerator, write_shards

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmseg.registry import DATASETS, MODELS  # noqa: E402
from mmseg_support import (  # noqa: E402
    LOADING,
    PACK,
    bgr,
    dataset,
    index_of,
    shards,
)

checkpoint = mmseg_support.checkpoint
scope = mmseg_support.scope
real = mmseg_support.real


def placed(item: Any, sample: Any, size: int) -> list[tuple[bool, int, int]]:
    """(mirrored, top, left) of every crop of the sample that the image is."""
    found = []
    for mirrored, top, left in itertools.product((False, True), range(17 - size), range(17 - size)):
        image = bgr(sample).flip(2) if mirrored else bgr(sample)
        if torch.equal(image[:, top : top + size, left : left + size], item["inputs"]):
            found.append((mirrored, top, left))
    return found


@pytest.mark.parametrize("loading", [[], LOADING], ids=["as loaded", "with loading steps"])
@pytest.mark.parametrize("flip", ["DSGANRandomFlip", "RandomFlip"])
def test_labels_stay_on_the_image_through_flip_and_crop(
    checkpoint: str, unfiltered: LabeledGenerator, flip: str, loading: list[Any]
) -> None:
    """Ours and the stock flip with the pairs that our warning names."""
    options = {"checkpoint": checkpoint} if flip == "DSGANRandomFlip" else {"swap_seg_labels": [(1, 2)]}
    crop = {"type": "RandomCrop", "crop_size": (12, 12)}
    pipeline = [*loading, crop, {"type": flip, "prob": 0.5, **options}, PACK]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        data = DATASETS.build(dataset(checkpoint, pipeline=pipeline))
    seen = set()
    for item in data.__getitems__(range(20)):
        sample = next(unfiltered.generate([index_of(item["data_samples"].img_path)]).rows())
        ((mirrored, top, left),) = placed(item, sample, 12)
        mask = SCHEMA.swap_sides(sample.mask.flip(1)) if mirrored else sample.mask
        assert torch.equal(item["data_samples"].gt_sem_seg.data[0], mask[top : top + 12, left : left + 12])
        assert mirrored == item["data_samples"].flip
        seen.add(mirrored)
    assert seen == {False, True}


def test_a_half_turn_swaps_nothing(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    mask = unfiltered.generate([0]).mask[0]
    for direction, axes, swapped in (("diagonal", (0, 1), False), ("vertical", (0,), True)):
        flip = {"type": "DSGANRandomFlip", "checkpoint": checkpoint, "prob": 1.0, "direction": direction}
        item = DATASETS.build(dataset(checkpoint, pipeline=[flip, PACK]))[0]
        expected = SCHEMA.swap_sides(mask.flip(axes)) if swapped else mask.flip(axes)
        assert torch.equal(item["data_samples"].gt_sem_seg.data[0], expected)


def test_stock_flips_that_would_corrupt_labels_are_named(checkpoint: str) -> None:
    flip: dict[str, Any] = {"type": "RandomFlip", "prob": 0.5}
    nested = {"type": "RandomApply", "transforms": [flip]}
    for pipeline in ([flip, PACK], [nested, PACK]):
        with pytest.warns(UserWarning, match=r"left/right.*DSGANRandomFlip.*swap_seg_labels=\[\(1, 2\)\]"):
            DATASETS.build(dataset(checkpoint, pipeline=pipeline))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        DATASETS.build(dataset("demo-faces", pipeline=[flip, PACK]))  # its classes have no sides


def test_channels_reach_the_model_in_rgb(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    preprocessor = MODELS.build({"type": "SegDataPreProcessor", "bgr_to_rgb": True, "size": (16, 16)})
    expected = unfiltered.generate([0, 1]).image.float()
    for pipeline in (None, [PACK]):
        items = DATASETS.build(dataset(checkpoint, pipeline=pipeline)).__getitems__([0, 1])
        assert torch.equal(preprocessor(pseudo_collate(items), training=True)["inputs"], expected)
    assert not torch.equal(expected, expected.flip(1))


def test_flips_of_shards(tmp_path: Path, unfiltered: LabeledGenerator) -> None:
    """The schema in the manifest says which parts trade places."""
    write_shards(unfiltered, tmp_path / "sided", range(2))
    location = str(tmp_path / "sided")
    with pytest.warns(UserWarning, match="left/right on the wrong side"):
        DATASETS.build(shards(location, pipeline=[{"type": "RandomFlip", "prob": 0.5}]))
    flip = {"type": "DSGANRandomFlip", "shards": location, "prob": 1.0}
    item = DATASETS.build(shards(location, pipeline=[flip]))[1]
    mask = unfiltered.generate([1]).mask[0]
    assert np.array_equal(item["gt_seg_map"], SCHEMA.swap_sides(mask.flip(1)).numpy())
    with pytest.raises(ValueError, match="either checkpoint or shards"):
        DATASETS.build(shards(location, pipeline=[{"type": "DSGANRandomFlip"}]))
