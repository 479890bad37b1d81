"""Instances and panoptic targets of registered datasets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsgan_datasets import LabeledGenerator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetMapper,
    MetadataCatalog,
)
from detectron2.structures import BitMasks  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402
from detectron2_support import SEED, config  # noqa: E402
from scipy import ndimage  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402
from dsgan_datasets.targets.instances import connected_components, find_instances, tight_boxes  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


def test_components_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    for size in ((1, 1), (1, 9), (7, 1), (17, 23), (64, 64)):
        values = ndimage.zoom(random.integers(0, 3, [-(-side // 2) for side in size]), 2, order=0)
        values = np.where(random.random(values.shape) < 0.3, random.integers(0, 3, values.shape), values)
        ours = connected_components(torch.from_numpy(values)).numpy()
        for value in range(3):
            theirs, number = ndimage.label(values == value, np.ones((3, 3)))
            pairs = set(zip(ours[values == value].tolist(), theirs[values == value].tolist(), strict=True))
            assert len(pairs) == number == len({a for a, _ in pairs})
    spiral = torch.zeros(33, 33, dtype=torch.int64)
    for k in range(0, 16, 2):  # one long path, worst for propagation
        spiral[k, k : 33 - k], spiral[k : 33 - k, 32 - k], spiral[32 - k, k : 33 - k] = 1, 1, 1
        spiral[k + 2 : 33 - k, k] = 1
        spiral[k + 2, k : k + 3] = 1
    assert len(connected_components(spiral)[spiral == 1].unique()) == 1


def test_boxes_are_those_of_detectron2(labeled: LabeledGenerator) -> None:
    categories = torch.full((256,), -1)
    categories[:4] = torch.arange(4)
    for sample in labeled.generate(range(4)).rows():
        masks, _ = find_instances(sample.mask, categories, components=True)
        assert len(masks) > 3
        assert torch.equal(tight_boxes(masks), BitMasks(masks).get_bounding_boxes().tensor)
    assert tight_boxes(torch.zeros(0, 4, 5, dtype=torch.bool)).shape == (0, 4)


@pytest.mark.parametrize("mode", ["classes", "components", "object"])
def test_annotations_and_fast_instances_agree(
    register: Callable[..., RegisteredDataset], mode: str, labeled: LabeledGenerator, tmp_path: Path
) -> None:
    dataset = register(task="instances", instances=mode, min_instance_area=3, things=["left", "hat"])
    stock, fast = (
        DatasetMapper(config(tmp_path, "GeneralizedRCNN"), True),
        adapter.DSGANDatasetMapper(image_format="BGR"),
    )
    for sample in labeled.generate(range(6), seed=SEED).rows():
        record = dataset.record(int(sample.index))
        slow, quick = stock(record)["instances"], fast(record)["instances"]
        assert torch.equal(slow.gt_boxes.tensor, quick.gt_boxes.tensor)
        assert torch.equal(slow.gt_masks.tensor, quick.gt_masks.tensor)
        assert torch.equal(slow.gt_classes, quick.gt_classes)
        assert slow.image_size == quick.image_size == (16, 16)
        areas = quick.gt_masks.tensor.sum((1, 2))
        assert areas.min() >= 3
        left, hat = sample.mask == 1, sample.mask == 3
        if mode == "object":
            assert len(quick) == 1 and torch.equal(quick.gt_masks.tensor[0], left | hat)
        elif mode == "classes":
            expected = [m for m in (left, hat) if m.sum() >= 3]
            assert torch.equal(quick.gt_masks.tensor, torch.stack(expected))
        else:
            number = sum(int((ndimage.sum_labels(m, *_components(m)) >= 3).sum()) for m in (left.numpy(), hat.numpy()))
            assert len(quick) == number
        for annotation in record["annotations"]:
            assert annotation["iscrowd"] == 0 and annotation["bbox_mode"] == 0
    assert type(copy.deepcopy(record)["annotations"]) is list
    assert type(pickle.loads(pickle.dumps(record))["annotations"]) is list


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    return labels, np.arange(1, number + 1)


def test_panoptic_targets(register: Callable[..., RegisteredDataset], labeled: LabeledGenerator) -> None:
    dataset = register(task="panoptic", things=["left", "hat"])
    mask = labeled.generate([0], seed=SEED).mask[0]
    expected = torch.zeros_like(mask)
    expected[mask == 0], expected[mask == 2] = 1, 2
    mapped = adapter.DSGANDatasetMapper()(dataset.record(0))
    assert mapped is not None and torch.equal(mapped["sem_seg"], expected)
    with PathManager.open(dataset.path(0, "mask"), "rb") as file:
        assert np.array_equal(np.array(Image.open(file)), expected.numpy())
    assert MetadataCatalog.get("small").stuff_classes == ["things", "background", "right"]
    assert MetadataCatalog.get("small").thing_classes == ["left", "hat"]
