"""Detectron2's own configs, as people took them on first use: each sample that a training reads, resumed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.frameworks, pytest.mark.extended, pytest.mark.usefixtures("one_thread", "clean")]

pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

from detectron2 import model_zoo  # noqa: E402
from detectron2.config import CfgNode, get_cfg, instantiate  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader  # noqa: E402
from detectron2.data.datasets import register_coco_instances  # noqa: E402
from detectron2.engine import SimpleTrainer  # noqa: E402
from detectron2_support import FastTrainer, Noting, StockTrainer, train  # noqa: E402

from dsgan_datasets import LabeledGenerator, write_shards  # noqa: E402
from dsgan_datasets.adapters import detectron2 as dsgan  # noqa: E402
from dsgan_datasets.export import ExportInput, export  # noqa: E402

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
FILES = {
    "instances": MASK,
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "sem_seg": "Misc/semantic_R_50_FPN_1x",
}


def stock(folder: Path, file: str, train: str, **options: Any) -> CfgNode:
    """A config of the model zoo, in small sizes."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(f"{file}.yaml"))
    small = {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu", "SOLVER.IMS_PER_BATCH": 2, "SOLVER.BASE_LR": 1e-5}
    small |= {"INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64, "INPUT.RANDOM_FLIP": "none"}
    small |= {"DATALOADER.NUM_WORKERS": 0, "DATASETS.TRAIN": (train,), "DATASETS.TEST": (), "OUTPUT_DIR": str(folder)}
    for key, value in {**small, **options}.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("instances", {}),
        ("instances", {"INPUT__MASK_FORMAT": "bitmask"}),
        ("panoptic", {}),
        ("sem_seg", {}),
    ],
    ids=str,
)
def test_stock_configs(tmp_path: Path, task: Any, options: dict[str, Any]) -> None:
    """The one with bit masks uses our mapper."""
    dsgan.register("faces_train", "demo-faces", task=task, device="cpu")
    dsgan.register("faces_val", "demo-faces", task=task, device="cpu", seed=1, length=3)
    metadata = MetadataCatalog.get("faces_train")
    if task != "sem_seg":
        options["MODEL__ROI_HEADS__NUM_CLASSES"] = len(metadata.thing_classes)
    if task != "instances":
        options["MODEL__SEM_SEG_HEAD__NUM_CLASSES"] = len(metadata.stuff_classes)
    trainer = FastTrainer if "INPUT__MASK_FORMAT" in options else StockTrainer
    seen = []
    for stop in (2, 3):
        cfg = stock(tmp_path, FILES[task], "faces_train", SOLVER__MAX_ITER=stop, **options)
        seen += train(trainer, cfg, resume=stop == 3)[1]
    assert seen == [[0, 1], [2, 3], [4, 5]]
    held_out = build_detection_test_loader(cfg, "faces_val")
    assert [item["image_id"] for batch in held_out for item in batch] == [0, 1, 2]


def test_the_stock_lazy_config() -> None:
    dsgan.register("faces_train", "demo-faces", task="instances", device="cpu")
    seen = []
    for start, stop in ((0, 2), (2, 3)):
        cfg = model_zoo.get_config(f"{MASK}.py", trained=False)
        loader = cfg.dataloader.train
        loader.dataset.names, loader.total_batch_size, loader.num_workers = "faces_train", 2, 0
        loader.mapper.augmentations = []
        cfg.model.roi_heads.num_classes = 11
        model = instantiate(cfg.model)
        cfg.optimizer.params.model, cfg.optimizer.lr = model, 1e-6
        noting = Noting(instantiate(loader))
        trainer = SimpleTrainer(model, noting, instantiate(cfg.optimizer))
        trainer.register_hooks([dsgan.ResumeHook()])
        trainer.train(start, stop)
        seen += noting.seen
    assert seen == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("kind", ["export", "shards"])
def test_files_are_each_read_once_in_an_epoch(tmp_path: Path, kind: str) -> None:
    """Detectron2's own loader on an export, and ours on shards."""
    faces = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    if kind == "export":
        export(ExportInput.generated(faces, 6), tmp_path / "coco", "coco", splits={"val": 0.34})
        annotations = tmp_path / "coco" / "annotations" / "instances_train.json"
        register_coco_instances("set", {}, str(annotations), str(tmp_path / "coco" / "images"))
    else:
        write_shards(faces, tmp_path / "shards", range(4))
        dsgan.register_shards("set", tmp_path / "shards", task="instances")
    numbers = sorted(record["image_id"] for record in DatasetCatalog.get("set"))
    assert len(numbers) == 4
    options = {"MODEL__ROI_HEADS__NUM_CLASSES": 11, "INPUT__MASK_FORMAT": "bitmask", "SOLVER__MAX_ITER": 4}
    _, seen = train(StockTrainer, stock(tmp_path / "out", MASK, "set", **options))
    for epoch in (seen[:2], seen[2:]):
        assert sorted(number for batch in epoch for number in batch) == numbers
