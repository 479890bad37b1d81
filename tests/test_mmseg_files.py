"""Samples under dsgan:// paths, as MMEngine's file functions read them."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dsgan_datasets import LabeledGenerator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine import fileio  # noqa: E402
from mmseg.registry import DATASETS  # noqa: E402
from mmseg_support import (  # noqa: E402
    LOADING,
    PACK,
    dataset,
    stream,
)

checkpoint = mmseg_support.checkpoint
scope = mmseg_support.scope
real = mmseg_support.real


def test_pictures_are_read_by_path(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    data = DATASETS.build(dataset(checkpoint, seed=1, pipeline=[]))
    item, expected = data[3], next(unfiltered.generate([4], seed=1).rows())
    for key, picture in (("img_path", expected.image.permute(1, 2, 0)), ("seg_map_path", expected.mask)):
        png = fileio.get(item[key].replace("_3.png", "_4.png"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), picture.numpy())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("dsgan://00000000/image/small_0_1.png", "no dataset of this process.*build the dataset"),
        ("dsgan://591b198d/Depth/small_0_1.png", "names no sample; expected dsgan://FINGERPRINT/KIND/NAME"),
        ("dsgan://small", "names no sample"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        fileio.get(path)


@pytest.mark.parametrize("build", [dataset, stream])
def test_loading_steps_that_a_pipeline_still_has(checkpoint: str, build: Any, asked: list[list[int]]) -> None:
    """The result is the same, and nothing is generated twice."""
    options = {"compute_batch": 4} | ({"prefetch": 1} if build is stream else {})
    with_loading = DATASETS.build(build(checkpoint, pipeline=[*LOADING, PACK], **options))
    without = DATASETS.build(build(checkpoint, pipeline=[PACK], **options))
    two = [list(itertools.islice(DataLoader(d, batch_size=4, collate_fn=list), 2)) for d in (with_loading, without)]
    for a, b in zip(*(itertools.chain(*batches) for batches in two), strict=True):
        assert torch.equal(a["inputs"], b["inputs"]) and a["inputs"].dtype == torch.uint8
        assert torch.equal(a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data)
    again = [i for i, count in enumerate(np.bincount(list(itertools.chain(*asked)))) if count > 2]
    assert again == []


def test_annotations_loaded_after_a_resize_keep_their_size(checkpoint: str) -> None:
    resize = {"type": "Resize", "scale": (32, 32)}
    for pipeline, size in (([resize, LOADING[1], PACK], 16), ([resize, PACK], 32)):
        item = DATASETS.build(dataset(checkpoint, pipeline=pipeline))[0]
        assert item["inputs"].shape[1:] == (32, 32)
        assert item["data_samples"].gt_sem_seg.data.shape[1:] == (size, size)
