"""What is asked before the first step of a training: heads that fit, an end where one is needed, a saved config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import build_detection_test_loader  # noqa: E402
from detectron2.engine import SimpleTrainer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.solver import build_optimizer  # noqa: E402
from detectron2_support import ARCHITECTURES, StockTrainer, config, train  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register

Register = Callable[..., RegisteredDataset]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("sem_seg", {"MODEL__SEM_SEG_HEAD__NUM_CLASSES": 54}, "SEG_HEAD.NUM_CLASSES is 54, but dataset 'small' has 4 "
         "stuff_classes: background, left, right, hat; set it to 4"),
        ("instances", {"MODEL__ROI_HEADS__NUM_CLASSES": 2}, "ROI_HEADS.NUM_CLASSES is 2, but dataset 'small' has 3 "
         "thing_classes: left, right, hat; set it to 3"),
        ("panoptic", {}, "SEM_SEG_HEAD.NUM_CLASSES is 4, but dataset 'small' has 2 stuff_classes: things, background"),
        ("instances", {"MODEL__META_ARCHITECTURE": "RetinaNet"}, "RETINANET.NUM_CLASSES is 80, but .* has 3"),
        ("sem_seg", {"MODEL__META_ARCHITECTURE": "GeneralizedRCNN"}, "needs thing_classes, .* register it with task: "
         "instances"),
        ("instances", {"MODEL__META_ARCHITECTURE": "GeneralizedRCNN", "MODEL__KEYPOINT_ON": True},
         "needs keypoint_names, .* register it with task: keypoints"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [None, 4])
def test_heads_that_do_not_fit_are_named_before_the_first_step(
    register: Register, tmp_path: Path, task: str, options: dict[str, Any], message: str, length: int | None
) -> None:
    register(task=task, length=length)
    cfg = config(tmp_path, ARCHITECTURES[task], **options)
    with pytest.raises(ValueError, match=message):
        StockTrainer.build_train_loader(cfg)


def test_heads_of_a_model_without_a_config_are_looked_at(register: Register, tmp_path: Path) -> None:
    """As from a LazyConfig: loader and model know nothing of each other."""
    register(task="instances")
    loader = StockTrainer.build_train_loader(config(tmp_path, "GeneralizedRCNN"))
    cfg = config(tmp_path, "GeneralizedRCNN", MODEL__ROI_HEADS__NUM_CLASSES=80)
    model = build_model(cfg)
    trainer = SimpleTrainer(model, loader, build_optimizer(cfg, model))
    trainer.register_hooks([adapter.ResumeHook()])
    with pytest.raises(ValueError, match=r"model.roi_heads.num_classes is 80, but dataset 'small' has 3"):
        trainer.train(0, 1)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_what_register_gives_suits_both_mask_formats(register: Register, tmp_path: Path, mask_format: str) -> None:
    register(task="instances")
    losses, _ = train(StockTrainer, config(tmp_path, "GeneralizedRCNN", INPUT__MASK_FORMAT=mask_format))
    assert len(losses) == 3 and all(loss == loss for loss in losses)


def test_a_stream_for_evaluation_is_refused(register: Register, tmp_path: Path) -> None:
    register()
    with pytest.raises(ValueError, match=r"DATASETS.TEST: dataset 'small' has no end, .* a length \(length: 500\)"):
        build_detection_test_loader(config(tmp_path), "small")


def test_a_saved_config_loads_again(checkpoint: str, tmp_path: Path, clean: None) -> None:
    cfg = config(tmp_path)
    again = {"name": "again", "checkpoint": checkpoint, "device": "cpu", "task": "panoptic", "things": ["hat", "left"]}
    cfg.DSGAN.DATASETS = [again]
    (tmp_path / "config.yaml").write_text(cfg.dump())  # what DefaultTrainer writes
    loaded = get_cfg()  # without add_dsgan_config
    loaded.merge_from_file(str(tmp_path / "config.yaml"))
    adapter.register_from_config(loaded)
    assert loaded.DSGAN == cfg.DSGAN
