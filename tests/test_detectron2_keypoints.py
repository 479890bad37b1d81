"""Keypoints in Detectron2: a stock config trains from the stream, and both mappers give the same points."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2 import model_zoo  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import DatasetMapper, MetadataCatalog  # noqa: E402
from detectron2.data import transforms as T  # noqa: E402
from detectron2.engine import DefaultTrainer  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2_support import Watch  # noqa: E402
from kinds import POINTS, labeled_with  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

register = detectron2_support.register


ALONE = pytest.param(("keypoints",), marks=pytest.mark.extended)


@pytest.fixture(scope="module", params=[("mask", "keypoints"), ALONE], ids="+".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "points"
    labeled_with(*request.param).save_pretrained(path)
    return str(path)


def stock(out: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("points",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 1, POINTS.num_points
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "cpu", str(out)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.DATALOADER.NUM_WORKERS = 2, 2, 1e-5, 0
    return cfg


def test_the_stock_config_trains_from_the_stream(register: Callable[..., RegisteredDataset], tmp_path: Path) -> None:
    register("points", task="keypoints")
    trainer, watch = DefaultTrainer(stock(tmp_path)), Watch()
    trainer.register_hooks([watch, adapter.ResumeHook()])
    trainer.train()
    assert len(watch.losses) == 2 and all(map(math.isfinite, watch.losses))
    assert "loss_keypoint" in trainer.storage.latest()


def test_the_truth_is_measured_as_exact(register: Callable[..., RegisteredDataset], tmp_path: Path) -> None:
    dataset = register("points_val", task="keypoints", length=4)
    evaluator = adapter.build_evaluator("points_val", str(tmp_path))
    for shift, precision in ((0.0, 100), (6.0, 0)):
        evaluator.reset()
        for index in range(4):
            found, record = dataset.labels.instances(dataset.sample(index)), dataset.record(index)
            predicted = Instances((16, 16), pred_boxes=Boxes(found.boxes), pred_classes=found.categories)
            predicted.scores = torch.ones(len(found.boxes))
            predicted.pred_keypoints = found.keypoints + torch.tensor([shift, 0.0, 0.0])
            evaluator.process([record], [{"instances": predicted}])
        results = evaluator.evaluate()
        assert results["bbox"]["AP"] == pytest.approx(100) and results["keypoints"]["AP"] == pytest.approx(precision)


def test_the_number_of_points_is_checked(register: Callable[..., RegisteredDataset], tmp_path: Path) -> None:
    register("points", task="keypoints")
    cfg = stock(tmp_path)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 17
    with pytest.raises(ValueError, match=r"NUM_KEYPOINTS is 17, .* has 3 keypoint_names: nose, left_eye, right_eye"):
        DefaultTrainer.build_train_loader(cfg)


def test_metadata(register: Callable[..., RegisteredDataset]) -> None:
    register("points", task="keypoints")
    metadata = MetadataCatalog.get("points")
    assert metadata.keypoint_names == ["nose", "left_eye", "right_eye"] and metadata.thing_classes == ["object"]
    assert metadata.keypoint_flip_map == [("left_eye", "right_eye")] and metadata.evaluator_type == "coco"
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [("nose", "left_eye"), ("nose", "right_eye")]


def test_both_mappers_give_the_points_of_the_sample(register: Callable[..., RegisteredDataset], tmp_path: Path) -> None:
    """Detectron2's points have the center of the first pixel at .5, as ours have."""
    dataset = register("points", task="keypoints")
    cfg = stock(tmp_path)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (16,), "none"
    seen = 0
    for index in range(6):
        points = dataset.sample(index)["keypoints"]
        slow = DatasetMapper(cfg, True)(dataset.record(index))["instances"]
        fast = adapter.DSGANDatasetMapper(cfg, True)(dataset.record(index))["instances"]
        assert torch.equal(fast.gt_keypoints.tensor, points[None][: len(fast)])
        assert torch.allclose(slow.gt_keypoints.tensor, fast.gt_keypoints.tensor, atol=1e-4)
        assert torch.allclose(slow.gt_boxes.tensor, fast.gt_boxes.tensor, atol=1e-4)
        seen += int((points[:, 2] > 0).sum())
    assert seen > 6


def test_a_mirror_exchanges_the_eyes(register: Callable[..., RegisteredDataset], tmp_path: Path) -> None:
    dataset = register("points", task="keypoints")
    cfg = stock(tmp_path)
    cfg.INPUT.MIN_SIZE_TRAIN = (16,)
    slow_mapper = DatasetMapper(cfg, True)
    slow_mapper.augmentations = T.AugmentationList([T.RandomFlip(1.0)])
    fast_mapper = adapter.DSGANDatasetMapper(flip_prob=1.0)
    for index in range(4):
        sample = dataset.sample(index)
        fast = fast_mapper(dataset.record(index))
        mirrored = POINTS.mirror(sample["keypoints"], (16, 16))
        assert torch.equal(fast["instances"].gt_keypoints.tensor, mirrored[None][: len(fast["instances"])])
        assert torch.equal(fast["image"], sample.image.flip(0, 2))
        slow = slow_mapper(dataset.record(index))["instances"].gt_keypoints.tensor
        known = slow[..., 2] > 0
        assert torch.equal(known, fast["instances"].gt_keypoints.tensor[..., 2] > 0)
        assert torch.allclose(slow[known], fast["instances"].gt_keypoints.tensor[known], atol=1e-4)


def test_augmentations_move_the_points(register: Callable[..., RegisteredDataset]) -> None:
    dataset = register("points", task="keypoints")
    mapper = adapter.DSGANDatasetMapper(augmentations=[T.CropTransform(4, 2, 8, 10)])
    for index in range(4):
        x, y, v = dataset.sample(index)["keypoints"].unbind(-1)
        inside = (v > 0) & (x >= 4) & (x <= 12) & (y >= 2) & (y <= 12)
        expected = torch.stack([x - 4, y - 2, v], -1).masked_fill(~inside[:, None], 0)
        instances = mapper(dataset.record(index))["instances"]
        assert torch.allclose(instances.gt_keypoints.tensor, expected[None][: len(instances)], atol=1e-4)


def test_keypoints_are_needed(clean: None) -> None:
    with pytest.raises(ValueError, match="this needs keypoints, and there are none; the labels are: mask"):
        adapter.register("points", "demo-faces", task="keypoints", device="cpu")


def test_what_is_said_of_parts_is_refused_where_there_is_one_object(register: Callable[..., RegisteredDataset]) -> None:
    with pytest.raises(ValueError, match="instances has no effect here, as the task is keypoints"):
        register("points", task="keypoints", instances="components")
