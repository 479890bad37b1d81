"""What tests of the Detectron2 adapter share: a small checkpoint, a config, and trainings that are watched."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_ensemble
from PIL import Image

from dsgan_datasets import InterpretedLabeler, LabeledGenerator, Recipe, load_generator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, Backbone  # noqa: E402
from detectron2.utils.env import seed_all_rng  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset  # noqa: E402

SEED = 5


@pytest.fixture(scope="module")
def labeled() -> LabeledGenerator:
    """16 pixels, four classes with left and right, all of them in nearly every sample; accepts every draw."""
    generator = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu")
    ensemble = small_ensemble(sum(generator.feature_channels), seed=33)
    return LabeledGenerator(InterpretedLabeler(generator, ensemble, [SCHEMA]), Recipe(truncation_psi=0.9))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, labeled: LabeledGenerator) -> str:
    """The same, saved."""
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    labeled.save_pretrained(path)
    return str(path)


@pytest.fixture
def register(checkpoint: str, clean: None) -> Callable[..., RegisteredDataset]:
    def call(name: str = "small", **arguments: Any) -> RegisteredDataset:
        return adapter.register(name, **{"checkpoint": checkpoint, "device": "cpu", "seed": SEED, **arguments})

    return call


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):  # type: ignore[misc]
    """Two convolutions: stride 4, 16 channels."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        first, second = torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.Conv2d(16, 16, 3, 2, 1)
        self.layers = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU())

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p2": self.layers(image)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"p2": ShapeSpec(channels=16, stride=4)}


def config(out: Path, architecture: str = "SemanticSegmentor", *, train: str = "small", **options: Any) -> CfgNode:
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    rcnn = architecture != "SemanticSegmentor"
    # fmt: off
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.META_ARCHITECTURE", architecture, "MODEL.MASK_ON", rcnn,
        "MODEL.BACKBONE.NAME", "TinyBackbone", "MODEL.PIXEL_STD", [64.0] * 3, "MODEL.PIXEL_MEAN", [128.0] * 3,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2"], "MODEL.SEM_SEG_HEAD.NORM", "",
        "MODEL.RPN.IN_FEATURES", ["p2"], "MODEL.ANCHOR_GENERATOR.SIZES", [[8]], "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2"],
        "MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4,
        "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 4,
        "INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.MIN_SIZE_TEST", 16, "INPUT.RANDOM_FLIP", "none",
        "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.02, "SOLVER.WARMUP_ITERS", 0,
        "DATALOADER.NUM_WORKERS", 0, "DATASETS.TRAIN", (train,), "DATASETS.TEST", (), "OUTPUT_DIR", str(out),
        *itertools.chain.from_iterable((key.replace("__", "."), value) for key, value in options.items()),
    ])
    # fmt: on
    return cfg


class Watch(HookBase):  # type: ignore[misc]
    """Notes losses; the data are noted by the loader of `Trainer`."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        if "total_loss" in latest:  # on rank 0 only
            self.losses.append(latest["total_loss"][0])


class Noting:
    """A loader that notes the images it gives out, and looks like the one it holds."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.batch_size = 1
        self.seen: list[list[int]] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.dataset:
            self.seen.append([mapped["image_id"] for mapped in batch])
            yield batch


class StockTrainer(DefaultTrainer):  # type: ignore[misc]
    """The stock trainer; the loader is only watched."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Noting:
        return Noting(super().build_train_loader(cfg))


class FastTrainer(DefaultTrainer):  # type: ignore[misc]
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Noting:
        return Noting(build_detection_train_loader(cfg, mapper=adapter.DSGANDatasetMapper(cfg, True)))


def train(trainer_class: type[DefaultTrainer], cfg: CfgNode, *, resume: bool = False) -> tuple[list[float], list[Any]]:
    """Losses, and the image ids of each batch that the trainer asked for."""
    seed_all_rng(0)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer, watch = trainer_class(cfg), Watch()
    trainer.register_hooks([watch, adapter.ResumeHook()])
    trainer.resume_or_load(resume)
    trainer.train()
    return watch.losses, trainer.data_loader.seen


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


ARCHITECTURES = {"sem_seg": "SemanticSegmentor", "instances": "GeneralizedRCNN", "panoptic": "PanopticFPN"}


@pytest.fixture
def real(clean: None, tmp_path: Path) -> int:
    """Five pictures with masks under the name "real"."""
    for i in range(5):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
        Image.new("L", (16, 16), i % 4).save(tmp_path / f"{i}_mask.png")

    def records() -> list[Record]:
        files = [(tmp_path / f"{i}.png", tmp_path / f"{i}_mask.png") for i in range(5)]
        return [
            {"file_name": str(a), "sem_seg_file_name": str(b), "height": 16, "width": 16, "image_id": -1 - i}
            for i, (a, b) in enumerate(files)
        ]

    DatasetCatalog.register("real", records)
    MetadataCatalog.get("real").set(stuff_classes=list(SCHEMA.classes), ignore_label=255)
    return 5
