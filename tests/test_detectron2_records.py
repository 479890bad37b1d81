"""Records as Detectron2's own tools look at them, and datasets that it cannot list or join."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsgan_datasets import LabeledGenerator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from conftest import SCHEMA  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator  # noqa: E402
from detectron2_support import config  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real

Register = Callable[..., RegisteredDataset]


def test_records_of_a_set_are_a_sequence(register: Register) -> None:
    register(length=7, task="instances")
    records = DatasetCatalog.get("small")
    assert isinstance(records, Sequence) and len(records) == 7
    ids = [record["image_id"] for record in records]
    assert ids == list(range(7)) and [r["image_id"] for r in reversed(records)] == ids[::-1]
    assert {r["image_id"] for r in random.Random(0).sample(records, 7)} == set(ids)
    assert random.Random(0).choice(records)["image_id"] in ids
    for part in (slice(3), slice(-2, None), slice(None, None, -3), slice(5, 99), slice(0)):
        assert [r["image_id"] for r in records[part]] == ids[part]
    assert records[-1]["image_id"] == 6
    for index in (7, -8):
        with pytest.raises(IndexError, match="out of range"):
            records[index]
    with pytest.raises(TypeError):
        records["0"]
    picture = detection_utils.read_image(records[2]["file_name"], "BGR")
    assert picture.shape == (16, 16, 3) and len(Path(records[2]["file_name"]).stem) < 20


@pytest.mark.parametrize("task", ["sem_seg", "instances", "panoptic"])
def test_a_stream_is_not_evaluated(register: Register, tmp_path: Path, task: str) -> None:
    register(task=task)
    makers: list[Callable[[], Any]] = [lambda: adapter.build_evaluator("small", str(tmp_path))]
    makers.append(lambda: get_detection_dataset_dicts(["small"]).__len__())
    if task != "instances":
        makers.append(lambda: SemSegEvaluator("small"))
    if task != "sem_seg":
        makers.append(lambda: COCOEvaluator("small", output_dir=str(tmp_path)))
    for make in makers:
        with pytest.raises((ValueError, TypeError), match="'small' has no end.*register it with a length"):
            make()


@pytest.mark.parametrize("name", ["small", "mixed"])
def test_a_stream_in_test_is_refused_where_the_config_is_read(
    clean: None, checkpoint: str, real: int, tmp_path: Path, name: str
) -> None:
    cfg = config(tmp_path)
    cfg.DSGAN.DATASETS = [{"name": "small", "checkpoint": checkpoint, "device": "cpu"}]
    cfg.DSGAN.MIXTURES = [{"NAME": "mixed", "generated": "small", "real": "real"}]
    adapter.register_from_config(cfg)
    cfg.DATASETS.TEST = ("real", name)
    with pytest.raises(ValueError, match=f"DATASETS.TEST: dataset '{name}' has no end.*length: 500"):
        adapter.register_from_config(cfg)


@pytest.mark.parametrize("names", [("small", "real"), ("real", "small"), ("mixed", "real"), ("small", "small")])
def test_a_stream_beside_other_data_names_the_mixture(register: Register, real: int, names: tuple[str, str]) -> None:
    register()
    adapter.register_mixture("mixed", "small", "real")
    with pytest.raises(ValueError, match=r"cannot be joined.*stream without end.*DSGAN.MIXTURES"):
        get_detection_dataset_dicts(names)
    assert len(get_detection_dataset_dicts(["real"])) == real
    next(iter(get_detection_dataset_dicts(["mixed"])))
    next(iter(get_detection_dataset_dicts("small")))


@pytest.mark.parametrize("names", [("list", "real"), ("real", "list")])
def test_a_set_with_a_length_is_joined(register: Register, real: int, names: tuple[str, str]) -> None:
    register("list", length=3)
    assert len(get_detection_dataset_dicts(names, filter_empty=False)) == 3 + real


@pytest.mark.parametrize("mode", ["classes", "components"])
def test_polygons_are_the_same_instances(
    register: Register, labeled: LabeledGenerator, tmp_path: Path, mode: str
) -> None:
    """Through the stock mapper, in both of its formats."""
    register("rle", length=6, task="instances", instances=mode, mask_format="bitmask")
    polygons = register("polygons", length=6, task="instances", instances=mode)
    cfg = config(tmp_path, "GeneralizedRCNN")
    masks = {}
    for name, mask_format in (("rle", "bitmask"), ("polygons", "bitmask"), ("polygons", "polygon")):
        cfg.INPUT.MASK_FORMAT = mask_format
        mapper = DatasetMapper(cfg, is_train=True)
        instances = [mapper(record)["instances"] for record in DatasetCatalog.get(name)]
        masks[name, mask_format] = [
            found.gt_masks.tensor.numpy()
            if mask_format == "bitmask"
            else np.stack([detection_utils.polygons_to_bitmask(p, 16, 16) for p in found.gt_masks.polygons])
            for found in instances
        ]
        assert all(len(found) for found in instances)
    for other in (("polygons", "bitmask"), ("polygons", "polygon")):
        for a, b in zip(masks["rle", "bitmask"], masks[other], strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="mask_format must be one of bitmask, polygon, not 'rle'"):
        register("wrong", length=6, task="instances", mask_format="rle")
    assert polygons.mask_format == "polygon"


def test_a_config_with_polygons_trains(clean: None, checkpoint: str, tmp_path: Path) -> None:
    cfg = config(tmp_path, "GeneralizedRCNN", INPUT__MASK_FORMAT="polygon")
    cfg.DSGAN.DATASETS = [{"name": "small", "checkpoint": checkpoint, "device": "cpu", "task": "instances"}]
    adapter.register_from_config(cfg)
    batch = next(iter(build_detection_train_loader(cfg)))
    assert {type(mapped["instances"].gt_masks).__name__ for mapped in batch} == {"PolygonMasks"}


def test_classes_are_chosen_and_merged_in_a_config(
    clean: None, checkpoint: str, labeled: LabeledGenerator, tmp_path: Path
) -> None:
    names = SCHEMA.classes
    a, b = SCHEMA.flip_pairs[0]
    kept = next(i for i in range(1, 4) if i not in (a, b))
    entry = {"checkpoint": checkpoint, "device": "cpu", "seed": 5, "length": 3}
    cfg = config(tmp_path)
    cfg.DSGAN.DATASETS = [
        {**entry, "name": "merged", "merge": {"side": [names[a], names[b]]}, "classes": ["side", names[kept]]},
        {**entry, "name": "panoptic", "merge": {"side": [names[a], names[b]]}, "task": "panoptic", "things": ["side"]},
    ]
    adapter.register_from_config(cfg)
    assert list(MetadataCatalog.get("merged").stuff_classes) == ["side", names[kept]]
    mapper = adapter.DSGANDatasetMapper(is_train=True)
    for record, mask in zip(DatasetCatalog.get("merged"), labeled.generate(range(3), seed=5).mask, strict=True):
        expected = torch.full_like(mask, 255)
        expected[(mask == a) | (mask == b)] = 0
        expected[mask == kept] = 1
        assert torch.equal(mapper(record)["sem_seg"], expected)
        assert np.array_equal(adapter.load_sem_seg(record["sem_seg_file_name"]), expected.numpy())
    assert list(MetadataCatalog.get("panoptic").thing_classes) == ["side"]
    with pytest.raises(ValueError, match=f"class '{names[a]}' is chosen without '{names[b]}'.*choose both"):
        adapter.register("half", checkpoint, device="cpu", classes=[names[a]])
    with pytest.raises(ValueError, match="no class 'wheel'; the classes are: "):
        adapter.register("wheel", checkpoint, device="cpu", classes=["wheel"])
