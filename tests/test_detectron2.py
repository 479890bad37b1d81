"""The Detectron2 adapter with the real Detectron2: catalogs, both paths, ranks, workers, resume, mixing, evaluation."""

from __future__ import annotations

import ast
import copy
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_ensemble
from PIL import Image
from test_examples import ROOT, load
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from dsgan_datasets import LabeledGenerator, LabelSchema, Recipe, Sample, ShardError, load_generator, write_shards

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T  # noqa: E402
from detectron2.engine import DefaultTrainer, HookBase, defaults, launch  # noqa: E402
from detectron2.evaluation import inference_on_dataset  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, Backbone  # noqa: E402
from detectron2.structures import BitMasks  # noqa: E402
from detectron2.utils.env import seed_all_rng  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402
from detectron2.utils.visualizer import Visualizer  # noqa: E402
from scipy import ndimage  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2 import registered as registry  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset  # noqa: E402
from dsgan_datasets.targets.instances import connected_components, find_instances, tight_boxes  # noqa: E402

SEED = 5


@pytest.fixture(scope="module")
def labeled() -> LabeledGenerator:
    """16 pixels, four classes with left and right, all of them in nearly every sample; accepts every draw."""
    generator = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu")
    ensemble = small_ensemble(sum(generator.feature_channels), seed=33)
    return LabeledGenerator(generator, ensemble, SCHEMA, Recipe(truncation_psi=0.9))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, labeled: LabeledGenerator) -> str:
    """The same, saved."""
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    labeled.save_pretrained(path)
    return str(path)


@pytest.fixture
def clean() -> Iterator[None]:
    """Catalogs without generated datasets, and as they were afterwards."""
    catalogs = [DatasetCatalog, MetadataCatalog, registry._REGISTERED]
    before = [dict(catalog) for catalog in catalogs]
    for catalog, name in itertools.product(catalogs, before[2]):
        catalog.pop(name, None)
    yield
    for catalog, entries in zip(catalogs, before, strict=True):
        catalog.clear()
        catalog.update(entries)


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


# Registering


def test_metadata_of_each_task(register: Callable[..., RegisteredDataset]) -> None:
    for task in ("sem_seg", "instances", "panoptic"):
        register(task, task=task)
    register("object", task="instances", instances="object")
    colors = [list(color) for color in SCHEMA.palette]
    sem_seg, instances, panoptic, whole = map(MetadataCatalog.get, ("sem_seg", "instances", "panoptic", "object"))
    assert (sem_seg.stuff_classes, sem_seg.stuff_colors) == (list(SCHEMA.classes), colors)
    assert (sem_seg.ignore_label, sem_seg.evaluator_type) == (255, "sem_seg")
    assert sem_seg.stuff_dataset_id_to_contiguous_id == {0: 0, 1: 1, 2: 2, 3: 3}
    assert sem_seg.get("thing_classes") is None and instances.get("stuff_classes") is None
    assert (instances.thing_classes, instances.thing_colors) == (["left", "right", "hat"], colors[1:])
    assert instances.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    assert (instances.evaluator_type, panoptic.evaluator_type) == ("coco", "coco_panoptic_seg")
    assert (panoptic.stuff_classes, panoptic.thing_classes) == (["things", "background"], ["left", "right", "hat"])
    assert whole.thing_classes == ["object"] and whole.thing_dataset_id_to_contiguous_id == {1: 0}


def test_registering_reads_config_json_only(checkpoint: str, tmp_path: Path, clean: None) -> None:
    (tmp_path / "config.json").write_bytes((Path(checkpoint) / "config.json").read_bytes())
    dataset = adapter.register("no_weights", tmp_path, task="panoptic", device="cpu")
    assert len(DatasetCatalog.get("no_weights").registered.fingerprint) == 64
    assert dataset.record(7)["height"] == 16  # a record needs no sample
    with pytest.raises(Exception, match="safetensors"):
        dataset.sample(7)


def test_the_same_again_is_fine_and_anything_else_is_not(register: Callable[..., RegisteredDataset]) -> None:
    first = register()
    assert register() is first
    for different in ({"seed": 6}, {"length": 3}, {"task": "instances"}, {"psi": 0.5}, {"things": ["hat"]}):
        with pytest.raises(ValueError, match="'small' is already registered with"):
            register(**different)
    DatasetCatalog.register("taken", list)
    with pytest.raises(ValueError, match="'taken' is taken"):
        register("taken")
    DatasetCatalog.remove("small")
    MetadataCatalog.remove("small")
    assert register(seed=6).seed == 6  # as Detectron2 users make a name free


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "semantic"}, "task must be one of sem_seg, instances, panoptic, not 'semantic'"),
        ({"instances": "parts"}, "instances must be one of classes, components, object"),
        ({"things": ["nose"]}, "no class 'nose'; the classes are: background, left"),
        ({"things": [], "task": "instances"}, "at least one class"),
        ({"length": 0}, "length must be an integer in 1 …"),
        ({"min_instance_area": 0}, "min_instance_area must be an integer of at least 1"),
        ({"psii": 1}, "no such recipe field: psii; the fields are: class_label"),
        ({"name": ""}, "name must be a word"),
    ],
)
def test_wrong_arguments(register: Callable[..., RegisteredDataset], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(**arguments)
    assert "small" not in DatasetCatalog


def test_config_node(checkpoint: str, clean: None, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"""
DSGAN:
  DATASETS:
    - {{name: train, checkpoint: {checkpoint}, task: instances, instances: components, device: cpu}}
    - {{NAME: test, CHECKPOINT: {checkpoint}, SEED: 1, LENGTH: 4, PSI: 0.5}}
DATASETS: {{TRAIN: [train], TEST: [test]}}
"""
    )
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    cfg.freeze()
    with pytest.warns(UserWarning, match="train, test has left and right parts: the stock DatasetMapper"):
        adapter.register_from_config(cfg)
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    assert len(DatasetCatalog.get("test")) == 4 and registry.lookup("train").mode == "components"
    assert registry.lookup("test").source.description.recipe.truncation_psi == 0.5
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP = "none"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.register_from_config(cfg)  # twice is fine


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        (
            "DATASETS",
            {"name": "x", "checkpoint": "demo-faces", "sed": 1},
            "unknown keys sed; allowed: name, checkpoint, s",
        ),
        ("DATASETS", {"name": "x"}, "lacks checkpoint; allowed"),
        ("DATASETS", "demo-faces", "must be a mapping with the keys name, checkpoint"),
        ("DATASETS", {"name": "x", "checkpoint": "demo-fases"}, "demo-fases"),
        ("DATASETS", {"name": "x", "checkpoint": "demo-faces", "psi": 9}, "psi must be"),
        ("MIXTURES", {"name": "m", "generated": "no", "real": "x"}, "no generated dataset 'no'"),
        ("MIXTURES", {"name": "m", "generated": "ok", "real": "x", "generated_fraction": 1.5}, "between 0 and 1"),
    ],
)
def test_wrong_entries_are_named(clean: None, key: str, entry: Any, message: str) -> None:
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.DSGAN.DATASETS = [{"name": "ok", "checkpoint": "demo-faces"}]
    cfg.DSGAN[key] = [*(cfg.DSGAN.DATASETS if key == "DATASETS" else []), entry]
    with pytest.raises(ValueError, match=rf"DSGAN.{key}\[{1 if key == 'DATASETS' else 0}\].*{message}"):
        adapter.register_from_config(cfg)
    with pytest.raises(ValueError, match="add_dsgan_config"):
        adapter.register_from_config(get_cfg())


# Paths


def test_paths_give_the_very_sample(register: Callable[..., RegisteredDataset], labeled: LabeledGenerator) -> None:
    dataset = register(task="sem_seg")
    expected = labeled.generate([3, 40], seed=SEED)
    for row, index in enumerate((3, 40)):
        record = dataset.record(index)
        assert record["file_name"] == f"dsgan://small/{SEED}/{labeled.fingerprint[:8]}/{index}/image"
        with PathManager.open(record["file_name"], "rb") as file:
            image = np.array(Image.open(file))
        with PathManager.open(record["sem_seg_file_name"], "rb") as file:
            assert file.seekable()
            mask = Image.open(file)
            assert mask.mode == "L"
            mask = np.array(mask)
        assert torch.equal(torch.from_numpy(image).permute(2, 0, 1), expected.image[row])
        assert np.array_equal(mask, expected.mask[row].numpy())
    assert PathManager.exists(record["file_name"]) and PathManager.isfile(record["file_name"])
    assert not PathManager.exists(record["file_name"] + "s") and not PathManager.isdir(record["file_name"])


def test_paths_of_other_datasets_are_refused(register: Callable[..., RegisteredDataset]) -> None:
    path = register(length=10).path(9, "image")
    _, _, name, seed, fingerprint, index, kind = path.split("/")
    for wrong, message in (
        (f"{name}/{seed}/00000000/{index}/{kind}", f"registered with seed {seed} and fingerprint {fingerprint}"),
        (f"{name}/4/{fingerprint}/{index}/{kind}", f"registered with seed {seed} and fingerprint {fingerprint}"),
        (f"other/{seed}/{fingerprint}/{index}/{kind}", "'other' is not registered in this process"),
        (f"{name}/{seed}/{fingerprint}/10/{kind}", "the index must be in 0 … 9"),
        (f"{name}/{seed}/{fingerprint}/-1/{kind}", "the index must be in 0 … 9"),
        (f"{name}/{seed}/{fingerprint}/{index}/js", "expected dsgan://NAME/SEED"),
        (f"{name}/{index}/{kind}", "expected dsgan://NAME/SEED"),
    ):
        assert not PathManager.exists(f"dsgan://{wrong}")
        with pytest.raises(FileNotFoundError, match=message):
            PathManager.open(f"dsgan://{wrong}", "rb")
    assert PathManager.exists(register("faces/train").path(0, "mask"))  # a name may have slashes
    with pytest.raises(ValueError, match="can only be read"):
        PathManager.open(path, "wb")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every index that is drawn, in this process."""
    drawn: list[int] = []
    draw = LabeledGenerator._draw

    def counting(self: LabeledGenerator, indices: torch.Tensor, *rest: Any) -> Any:
        drawn.extend(indices.tolist())
        return draw(self, indices, *rest)

    monkeypatch.setattr(LabeledGenerator, "_draw", counting)
    return drawn


def test_one_generation_a_sample(
    register: Callable[..., RegisteredDataset], generated: list[int], tmp_path: Path
) -> None:
    """Image, mask and annotations are read from one block, by the stock mapper too."""
    register("stream", task="panoptic")
    mapper = DatasetMapper(config(tmp_path, "PanopticFPN"), True)
    stream = iter(DatasetCatalog.get("stream"))
    for record in itertools.islice(stream, 12):
        mapper(record)
    stream.close()  # type: ignore[attr-defined]
    assert len(generated) == len(set(generated)) and set(generated) >= set(range(12))
    generated.clear()
    for record in DatasetCatalog.get(register("set", task="panoptic", length=3).name):
        mapper(record)
    assert generated == [0, 1, 2]


# Instances


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


# Both paths train


ARCHITECTURES = {"sem_seg": "SemanticSegmentor", "instances": "GeneralizedRCNN", "panoptic": "PanopticFPN"}


@pytest.mark.parametrize("trainer", [StockTrainer, FastTrainer])
@pytest.mark.parametrize("task", ARCHITECTURES)
def test_training_learns(clean: None, tmp_path: Path, trainer: type[DefaultTrainer], task: str) -> None:
    """On faces, which have something to learn from."""
    adapter.register("faces", "demo-faces", task=task, things=["skin", "neck", "hair"], device="cpu")
    classes = len(MetadataCatalog.get("faces").get("stuff_classes", ()))
    cfg = config(tmp_path, ARCHITECTURES[task], train="faces", MODEL__SEM_SEG_HEAD__NUM_CLASSES=classes)
    cfg.merge_from_list(["SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 0.05, "INPUT.MIN_SIZE_TRAIN", (64,)])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8, 32]]
    losses, seen = train(trainer, cfg)
    assert mean(losses[-3:]) < 0.85 * mean(losses[:3])
    assert seen == [list(range(4 * i, 4 * i + 4)) for i in range(20)]


@pytest.mark.parametrize("trainer", [StockTrainer, FastTrainer])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_train_on_the_same_set(
    register: Callable[..., RegisteredDataset], tmp_path: Path, trainer: type[DefaultTrainer], workers: int
) -> None:
    dataset = register()
    _, seen = train(trainer, config(tmp_path, SOLVER__MAX_ITER=10, DATALOADER__NUM_WORKERS=workers))
    assert sorted(itertools.chain(*seen)) == list(range(40))
    assert (dataset.source._labeled is None) == (workers > 0)  # the weights load where samples are made


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_colors_and_labels_in_both_paths(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator, tmp_path: Path, image_format: str
) -> None:
    register()
    cfg = config(tmp_path, INPUT__FORMAT=image_format)
    for mapper in (DatasetMapper(cfg, True), adapter.DSGANDatasetMapper(cfg, True)):
        batch = next(iter(build_detection_train_loader(cfg, mapper=mapper)))
        expected = labeled.generate(range(4), seed=SEED)
        for mapped, sample in zip(batch, expected.rows(), strict=True):
            image = sample.image.flip(0) if image_format == "BGR" else sample.image
            assert mapped["image"].dtype == torch.uint8 and torch.equal(mapped["image"], image)
            assert mapped["sem_seg"].dtype == torch.int64 and torch.equal(mapped["sem_seg"], sample.mask)
            assert (mapped["height"], mapped["width"], mapped["image_id"]) == (16, 16, int(sample.index))
            assert mapped["file_name"].endswith(f"/{int(sample.index)}/image")
    with pytest.raises(ValueError, match="must be BGR or RGB, not 'L'"):
        adapter.DSGANDatasetMapper(image_format="L")


@pytest.mark.parametrize("fast", [True, False])
def test_flip_and_crop_keep_image_and_labels_together(checkpoint: str, clean: None, tmp_path: Path, fast: bool) -> None:
    """A demo face has no sides: mirrored and cropped by both paths, the result is a cut of the regenerated sample."""
    dataset = adapter.register("faces", "demo-faces", task="panoptic", device="cpu")
    cfg = config(
        tmp_path, "PanopticFPN", INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="absolute", INPUT__CROP__SIZE=[40, 30]
    )
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN = "horizontal", (0,)
    mapper = adapter.DSGANDatasetMapper(cfg, True) if fast else DatasetMapper(cfg, True)
    mirrored = []
    for index in range(6):
        mapped = mapper(dataset.record(index))
        sample = dataset.source.labeled.generate([index])
        whole = torch.cat([sample.image[0].flip(0), dataset.sem_seg(sample.mask)]).to(torch.int64)
        got = torch.cat([mapped["image"], mapped["sem_seg"][None]]).to(torch.int64)
        assert got.shape == (4, 40, 30)
        matches = [
            flip
            for flip in (False, True)
            for window in [(whole.flip(-1) if flip else whole).unfold(1, 40, 1).unfold(2, 30, 1)]
            if (window == got[:, None, None]).all(-1).all(-1).all(0).any()
        ]
        assert len(matches) == 1
        mirrored += matches
        instances = mapped["instances"]
        assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
        assert torch.equal(instances.gt_masks.tensor.any(0), mapped["sem_seg"] == 0)
    assert set(mirrored) == {False, True}


def test_the_mappers_flip_swaps_sides(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator, tmp_path: Path
) -> None:
    dataset = register(task="panoptic", things=["left", "right"])
    sample = labeled.generate([2], seed=SEED)
    mapped = adapter.DSGANDatasetMapper(image_format="RGB", flip_prob=1.0)(dataset.record(2))
    assert mapped is not None
    swapped = SCHEMA.swap_sides(sample.mask[0].flip(-1))
    assert not torch.equal(swapped, sample.mask[0].flip(-1))
    assert torch.equal(mapped["image"], sample.image[0].flip(-1))
    assert torch.equal(mapped["instances"].gt_masks.tensor, torch.stack([swapped == 1, swapped == 2]))
    assert mapped["instances"].gt_classes.tolist() == [0, 1]
    cfg = config(tmp_path, INPUT__RANDOM_FLIP="horizontal")
    assert adapter.DSGANDatasetMapper(cfg, True).flip_prob == 0.5
    assert adapter.DSGANDatasetMapper(cfg, False).flip_prob == 0
    with pytest.raises(ValueError, match=r"take RandomFlip out of augmentations and use .*flip_prob"):
        adapter.DSGANDatasetMapper(augmentations=[T.RandomFlip(1.0)])(dataset.record(2))


def test_augmentations_move_image_and_targets_alike(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator
) -> None:
    dataset = register(task="panoptic", things=["left"])
    crop = T.CropTransform(2, 4, 8, 6)
    mapped = adapter.DSGANDatasetMapper(image_format="RGB", augmentations=[crop])(dataset.record(1))
    sample = labeled.generate([1], seed=SEED)
    assert mapped is not None
    assert torch.equal(mapped["image"], sample.image[0, :, 4:10, 2:10])
    assert torch.equal(mapped["sem_seg"], dataset.sem_seg(sample.mask[0, 4:10, 2:10]))
    assert torch.equal(mapped["instances"].gt_masks.tensor[0], sample.mask[0, 4:10, 2:10] == 1)
    assert (mapped["height"], mapped["width"]) == (16, 16)  # of the sample: what aspect-ratio grouping reads


# Nothing is copied


class Operations(TorchDispatchMode):
    """Names of the operations that run in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


#: Copies, transfers, and reads of a value by the host.
COPIES = {"_to_copy", "clone", "copy_", "_local_scalar_dense", "contiguous", "item", "is_pinned", "_pin_memory"}


@pytest.mark.parametrize("task", ["sem_seg", "instances"])
def test_fast_path_neither_copies_nor_encodes(
    register: Callable[..., RegisteredDataset], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    dataset = register(task=task)
    made: dict[int, Sample] = {}
    keep = dataset.keep
    monkeypatch.setattr(dataset, "keep", lambda batch: made.update(block := keep(batch)) or block)
    loader = build_detection_train_loader(
        DatasetCatalog.get("small"),
        mapper=adapter.DSGANDatasetMapper(image_format="RGB"),
        total_batch_size=4,
        aspect_ratio_grouping=True,
    )
    batches = iter(loader)
    next(batches)  # the weights are loaded

    thread = threading.current_thread()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            assert threading.current_thread() is not thread, "encoded, or sent to the host"
            return function(*arguments, **options)  # in the thread that generates

        return call

    for owner, name in (
        (registry.rle, "encode"),
        (PathManager, "open"),
        (Image, "open"),
        (torch.Tensor, "cpu"),
        (torch.Tensor, "numpy"),
        (RegisteredDataset, "annotations"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    with Operations() as operations:
        for mapped in itertools.chain(*itertools.islice(batches, 4)):
            sample = made[mapped["image_id"]]
            assert mapped["image"].data_ptr() == sample.image.data_ptr()
            if task == "sem_seg":
                assert mapped["sem_seg"].data_ptr() == sample.mask.data_ptr()
    names = set(operations.names)
    assert names, "the counter sees nothing"
    if task == "sem_seg":
        assert names <= {"select", "_record_function_enter_new", "_record_function_exit"}  # views and nothing else
    else:
        assert not names & (COPIES - {"_to_copy"})  # bytes from bools for the boxes, on the device
    with Operations() as operations:
        torch.zeros(3).clone().to(torch.int64)
    assert {"clone", "_to_copy"} <= set(operations.names)  # that check can fail


# Ranks, workers, CUDA


def seen_by_workers(workers: int, **options: Any) -> list[int]:
    loader = build_detection_train_loader(
        DatasetCatalog.get("small"),
        mapper=adapter.DSGANDatasetMapper(),
        total_batch_size=4,
        num_workers=workers,
        aspect_ratio_grouping=False,
        **options,
    )
    return [m["image_id"] for m in itertools.chain(*itertools.islice(loader, 6))]


def test_workers_share_the_stream(register: Callable[..., RegisteredDataset]) -> None:
    register()
    assert seen_by_workers(0) == list(range(24))
    assert sorted(seen_by_workers(2)) == list(range(24))
    assert sorted(seen_by_workers(2, multiprocessing_context="spawn")) == list(range(24))


def test_gpu_in_a_worker_is_refused(
    register: Callable[..., RegisteredDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked worker sees no GPU, so what the registering process saw must count."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    register(device=None)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="set num_workers=0"):
        seen_by_workers(2)


def _two_ranks(checkpoint: str, out: str) -> None:
    torch.set_num_threads(1)
    # It always passes device_ids, which DistributedDataParallel refuses on the CPU.
    create_ddp_model = defaults.create_ddp_model
    defaults.create_ddp_model = lambda *a, **k: create_ddp_model(*a, **{**k, "device_ids": None})
    adapter.register("small", checkpoint, seed=SEED, device="cpu")
    seen = [train(StockTrainer, config(Path(out), DATALOADER__NUM_WORKERS=workers))[1] for workers in (0, 1)]
    epoch = [record["image_id"] for record in adapter.RecordStream("small", length=7)]
    Path(out, f"rank{defaults.comm.get_rank()}.json").write_text(json.dumps([*seen, epoch]))


def test_two_ranks_see_disjoint_samples(checkpoint: str, tmp_path: Path) -> None:
    """Through Detectron2's launch and DDP; its workers are spawned and know of no process group."""
    launch(_two_ranks, 2, dist_url="auto", args=(checkpoint, str(tmp_path)))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == first[1] == [[0, 2], [4, 6], [8, 10]]  # without and with a worker
    assert second[0] == second[1] == [[1, 3], [5, 7], [9, 11]]
    # Of 7 samples for two ranks the last is dropped, or one rank would wait for the other for ever.
    assert (first[2], second[2]) == ([0, 2, 4], [1, 3, 5])


# Resume


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_exactly(
    register: Callable[..., RegisteredDataset], tmp_path: Path, workers: int, grouping: bool
) -> None:
    """After an odd number of iterations, when it is the other worker's turn."""
    register()
    options: dict[str, Any] = {"DATALOADER__NUM_WORKERS": workers, "DATALOADER__ASPECT_RATIO_GROUPING": grouping}
    _, whole = train(StockTrainer, config(tmp_path / "whole", SOLVER__MAX_ITER=7, **options))
    _, before = train(StockTrainer, config(tmp_path / "parts", SOLVER__MAX_ITER=3, **options))
    _, after = train(StockTrainer, config(tmp_path / "parts", SOLVER__MAX_ITER=7, **options), resume=True)
    assert whole[:3] == before and whole[3:] == after


def test_resume_without_a_stream_warns(
    register: Callable[..., RegisteredDataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register("set", length=6)
    train(StockTrainer, config(tmp_path, train="set", SOLVER__MAX_ITER=1))
    with caplog.at_level("WARNING", "dsgan_datasets"):
        train(StockTrainer, config(tmp_path, train="set", SOLVER__MAX_ITER=2), resume=True)
    assert "no generated stream" in caplog.text


# Real data


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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("trainer", [StockTrainer, FastTrainer])
def test_mixing_in_training_from_yaml(
    checkpoint: str, real: int, tmp_path: Path, workers: int, trainer: type[DefaultTrainer]
) -> None:
    cfg = config(tmp_path, train="mixed", DATALOADER__NUM_WORKERS=workers, SOLVER__MAX_ITER=10)
    cfg.DSGAN.DATASETS = [{"name": "small", "checkpoint": checkpoint, "device": "cpu"}]
    cfg.DSGAN.MIXTURES = [{"name": "mixed", "generated": "small", "real": "real", "generated_fraction": 0.75}]
    adapter.register_from_config(cfg)
    adapter.register_from_config(cfg)  # twice is fine
    _, seen = train(trainer, cfg)
    ids = list(itertools.chain(*seen))
    assert [sum(i >= 0 for i in batch) for batch in seen] == [3] * 10  # every batch keeps the ratio
    assert sorted(i for i in ids if i >= 0) == list(range(30))
    assert sorted(i for i in ids if i < 0) == sorted([-1, -2, -3, -4, -5] * 2)  # two epochs, each whole
    _, again = train(trainer, cfg)
    assert again == seen
    _, resumed = train(trainer, cfg, resume=True)
    assert resumed == []


def test_a_mixture_resumes_exactly(register: Callable[..., RegisteredDataset], real: int, tmp_path: Path) -> None:
    register()
    adapter.register_mixture("mixed", "small", "real", generated_fraction=0.3, seed=1)
    for workers in (0, 2):
        options: dict[str, Any] = {"train": "mixed", "DATALOADER__NUM_WORKERS": workers}
        _, whole = train(StockTrainer, config(tmp_path / f"whole{workers}", SOLVER__MAX_ITER=6, **options))
        _, before = train(StockTrainer, config(tmp_path / f"parts{workers}", SOLVER__MAX_ITER=3, **options))
        _, after = train(StockTrainer, config(tmp_path / f"parts{workers}", SOLVER__MAX_ITER=6, **options), resume=True)
        assert whole == before + after


def test_mixing_keeps_generation_batched(
    register: Callable[..., RegisteredDataset], real: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    adapter.register_mixture("mixed", "small", "real", generated_fraction=0.25, seed=1)
    sizes: list[int] = []
    draw = LabeledGenerator._draw

    def counting(self: LabeledGenerator, indices: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(indices))
        return draw(self, indices, *rest)

    monkeypatch.setattr(LabeledGenerator, "_draw", counting)
    stream = iter(DatasetCatalog.get("mixed"))
    mapper = adapter.DSGANDatasetMapper(real_mapper=lambda record: record)
    mapped = [mapper(record) for record in itertools.islice(stream, 64)]
    stream.close()  # type: ignore[attr-defined]
    assert sum(m is not None and m["image_id"] >= 0 for m in mapped) == 16
    assert set(sizes) == {8} and len(sizes) <= 2 + 2  # two batches for 16 samples, two more ahead
    epochs = [m["image_id"] for m in mapped if m is not None and m["image_id"] < 0]
    assert [sorted(epochs[i : i + 5]) for i in range(0, 45, 5)] == [[-5, -4, -3, -2, -1]] * 9
    assert len({tuple(epochs[i : i + 5]) for i in range(0, 45, 5)}) > 3  # shuffled anew


def test_ranks_and_workers_share_the_real_data(
    register: Callable[..., RegisteredDataset], real: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    adapter.register_mixture("mixed", "small", "real", seed=1)
    consumers: list[list[int]] = []
    for rank in (0, 1, 2):
        stream = DatasetCatalog.get("mixed")
        stream._sent_by = (rank, 3)
        loader = DataLoader(stream, None, num_workers=2)
        consumers.append([r["image_id"] for r in itertools.islice(loader, 20)])
    ids = list(itertools.chain(*consumers))
    assert sorted(i for i in ids if i >= 0) == list(range(30))
    assert sorted(i for i in ids if i < 0) == sorted([-1, -2, -3, -4, -5] * 6)


def test_mixtures_that_cannot_be(register: Callable[..., RegisteredDataset], real: int) -> None:
    register()
    register("finite", length=3)
    with pytest.raises(ValueError, match="'finite' has length 3"):
        adapter.register_mixture("mixed", "finite", "real")
    adapter.register_mixture("mixed", "small", "real")
    with pytest.raises(ValueError, match="'mixed' is already registered"):
        adapter.register_mixture("mixed", "small", "real", generated_fraction=0.1)
    with pytest.raises(ValueError, match="is not a generated sample: give real_mapper"):
        adapter.DSGANDatasetMapper()(DatasetCatalog.get("real")[0])
    DatasetCatalog.register("streamed", lambda: DatasetCatalog.get("small"))
    adapter.register_mixture("endless", "small", "streamed")
    with pytest.raises(ValueError, match="'streamed' is a stream"):
        DatasetCatalog.get("endless")
    MetadataCatalog.remove("real")
    MetadataCatalog.get("real").set(stuff_classes=["sky"])
    with pytest.raises(ValueError, match=r"stuff_classes of 'small' are .*'hat'.* 'real' are \['sky'\]"):
        DatasetCatalog.get("mixed")


# Evaluation


class Oracle(torch.nn.Module):
    """Predicts the truth, or half of it."""

    def __init__(self, dataset: RegisteredDataset, labeled: LabeledGenerator) -> None:
        super().__init__()
        self.dataset, self.labeled = dataset, labeled

    def forward(self, inputs: list[Record]) -> list[Record]:
        from detectron2.structures import Boxes, Instances

        outputs = []
        for record in inputs:
            assert not {"instances", "annotations"} & set(record)
            mask = self.labeled.generate([record["image_id"]], seed=self.dataset.seed).mask[0]
            masks, classes = self.dataset.instances(mask)
            found = Instances((16, 16), pred_boxes=Boxes(tight_boxes(masks)), pred_masks=masks)
            found.pred_classes, found.scores = classes, torch.ones(len(classes))
            sem_seg = torch.nn.functional.one_hot(self.dataset.sem_seg(mask), 4).permute(2, 0, 1)
            outputs.append({"sem_seg": sem_seg, "instances": found})
        return outputs


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("task", ["sem_seg", "instances", "panoptic"])
def test_evaluation_of_a_finite_set(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator, tmp_path: Path, task: str, fast: bool
) -> None:
    dataset = register(task=task, length=5)
    cfg = config(tmp_path)
    mapper = adapter.DSGANDatasetMapper(cfg, False) if fast else None
    loader = build_detection_test_loader(cfg, "small", mapper=mapper)
    evaluator = adapter.build_evaluator("small", str(tmp_path))
    results = inference_on_dataset(Oracle(dataset, labeled), loader, evaluator)
    if task != "instances":
        assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    if task != "sem_seg":
        assert results["segm"]["AP"] == pytest.approx(100) and results["bbox"]["AP"] == pytest.approx(100)
    wrong = inference_on_dataset(Oracle(register("other", seed=9, task=task), labeled), loader, evaluator)
    assert (wrong["sem_seg"]["mIoU"] if task != "instances" else wrong["segm"]["AP"]) < 90  # that can fail


def test_no_stale_annotations(
    register: Callable[..., RegisteredDataset], labeled: LabeledGenerator, tmp_path: Path
) -> None:
    """Another seed under the same name in a later run: the evaluator must not take the annotations of the first."""
    for seed in (1, 2):
        dataset = register(seed=seed, task="instances", length=3)
        loader = build_detection_test_loader(config(tmp_path), "small")
        evaluator = adapter.build_evaluator("small", str(tmp_path))
        results = inference_on_dataset(Oracle(dataset, labeled), loader, evaluator)
        assert results["segm"]["AP"] == pytest.approx(100)
        DatasetCatalog.remove("small")
        MetadataCatalog.remove("small")
    with pytest.raises(ValueError, match="evaluator_type None; there are evaluators for sem_seg, coco"):
        adapter.build_evaluator("nothing", str(tmp_path))


def test_a_finite_set_is_a_list(register: Callable[..., RegisteredDataset]) -> None:
    register("set", length=4)
    records = DatasetCatalog.get("set")
    assert [r["image_id"] for r in records] == [0, 1, 2, 3] and records[-1]["image_id"] == 3
    for outside in (4, -5):
        with pytest.raises(IndexError, match="out of range for a dataset of 4"):
            records[outside]
    register("endless")
    with pytest.raises(ValueError, match="'endless' has no end: register it with a length"):
        adapter.RecordList("endless")


def test_finite_sets_train_and_mix_with_lists(
    register: Callable[..., RegisteredDataset], real: int, tmp_path: Path
) -> None:
    register("set", length=6)
    cfg = config(tmp_path, train="set", SOLVER__MAX_ITER=3)
    _, seen = train(StockTrainer, cfg)
    assert sorted(itertools.chain(*seen))[:6] == [0, 0, 1, 1, 2, 2]  # stock sampler: two shuffled epochs of six


# From shards


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Faces, whose indices are not their places."""
    path = tmp_path_factory.mktemp("shards") / "faces"
    faces = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    write_shards(faces, path, range(100, 124), seed=4, samples_per_shard=10)
    return str(path)


@pytest.mark.parametrize("trainer", [StockTrainer, FastTrainer])
@pytest.mark.parametrize("task", ARCHITECTURES)
def test_training_from_shards_by_config(
    clean: None, tmp_path: Path, tars: str, trainer: type[DefaultTrainer], task: str, generated: list[int]
) -> None:
    (tmp_path / "faces.yaml").write_text(
        f"""
DSGAN: {{DATASETS: [{{name: faces, SHARDS: {tars}, task: {task}, things: [skin, neck, hair]}}]}}
DATASETS: {{TRAIN: [faces]}}
"""
    )
    cfg = config(tmp_path, ARCHITECTURES[task])
    cfg.merge_from_file(tmp_path / "faces.yaml")
    adapter.register_from_config(cfg)
    classes = len(MetadataCatalog.get("faces").get("stuff_classes", ()))
    cfg.merge_from_list(["SOLVER.MAX_ITER", 40, "SOLVER.BASE_LR", 0.05, "INPUT.MIN_SIZE_TRAIN", (64,)])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8, 32]]
    losses, seen = train(trainer, cfg)
    assert mean(losses[-3:]) < 0.85 * mean(losses[:3])
    assert sorted(itertools.chain(*seen[:6])) == list(range(24))  # the stock sampler's first epoch
    assert not generated


@pytest.mark.parametrize("task", ["sem_seg", "instances"])
def test_shards_give_what_the_checkpoint_gave(clean: None, tmp_path: Path, tars: str, task: str) -> None:
    things = ["skin", "hair"]
    adapter.register_shards("read", tars, task=task, things=things, length=3)
    adapter.register("made", "demo-faces", task=task, things=things, seed=4, device="cpu")
    assert MetadataCatalog.get("read").as_dict().keys() == MetadataCatalog.get("made").as_dict().keys()
    read, made = DatasetCatalog.get("read"), registry.lookup("made")
    assert [record["image_id"] for record in read] == [0, 1, 2]
    cfg = config(tmp_path, ARCHITECTURES[task], INPUT__MIN_SIZE_TRAIN=(64,))
    for mapper in (DatasetMapper(cfg, True), adapter.DSGANDatasetMapper(cfg, True)):
        for place, record in enumerate(read):
            ours, theirs = mapper(copy.deepcopy(record)), mapper(made.record(100 + place))
            assert torch.equal(ours["image"], theirs["image"])
            if task == "sem_seg":
                assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
            else:
                assert torch.equal(ours["instances"].gt_masks.tensor, theirs["instances"].gt_masks.tensor)
                assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)


def test_workers_read_shards(clean: None, tmp_path: Path, tars: str) -> None:
    adapter.register_shards("faces", tars)
    cfg = config(tmp_path, train="faces", SOLVER__MAX_ITER=6, DATALOADER__NUM_WORKERS=2)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 12
    _, seen = train(StockTrainer, cfg)
    assert sorted(itertools.chain(*seen)) == list(range(24))


def test_shards_that_are_refused(clean: None, checkpoint: str, tars: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere has no manifest.json"):
        adapter.register_shards("faces", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="length must be an integer in 1 … 24, not 25"):
        adapter.register_shards("faces", tars, length=25)
    adapter.register_shards("faces", tars)
    adapter.register_shards("faces", tars)
    with pytest.raises(ValueError, match="already registered with checkpoint None"):
        adapter.register("faces", checkpoint, device="cpu")
    with pytest.raises(ValueError, match="already registered with length 24, not 5"):
        adapter.register_shards("faces", tars, length=5)
    with pytest.raises(ValueError, match="is read from shards, which are no stream"):
        adapter.RecordStream("faces")
    with pytest.raises(ValueError, match="name both datasets in DATASETS.TRAIN"):
        adapter.register_mixture("mixed", "faces", "photos")
    cfg = config(tmp_path)
    cfg.DSGAN.DATASETS = [{"name": "other", "shards": tars, "psi": 0.5}]
    with pytest.raises(ValueError, match=r"DSGAN.DATASETS\[0\].*unknown keys psi; allowed: name, shards, length, task"):
        adapter.register_from_config(cfg)


# Pictures and imports


@pytest.mark.parametrize("task", ["sem_seg", "instances", "panoptic"])
def test_visualizer_draws_records(register: Callable[..., RegisteredDataset], task: str) -> None:
    record = register(task=task).record(0)
    with PathManager.open(record["file_name"], "rb") as file:
        image = np.array(Image.open(file))
    drawn = Visualizer(image, MetadataCatalog.get("small"), scale=4).draw_dataset_dict(record).get_image()
    assert drawn.shape == (64, 64, 3) and len(np.unique(drawn)) > 10


def test_without_detectron2_the_import_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys, dsgan_datasets, dsgan_datasets.adapters\n"
        "assert not any(m.partition('.')[0] == 'detectron2' for m in sys.modules)\n"
        "sys.modules['detectron2'] = None\n"
        "try: import dsgan_datasets.adapters.detectron2\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "needs Detectron2" in done.stdout and "pip install 'dsgan_datasets[detectron2]'" in done.stdout, done.stderr


def test_schema_without_sides_does_not_warn(clean: None) -> None:
    assert not LabelSchema(("a", "b")).flip_pairs
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.DSGAN.DATASETS = [{"name": "faces", "checkpoint": "demo-faces"}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.register_from_config(cfg)


# Examples, guide, benchmark

EXAMPLES = ROOT / "examples" / "detectron2"


@pytest.mark.parametrize(
    ("name", "task", "metric"), [("semantic", "sem_seg", "sem_seg"), ("instances", "instances", "segm")]
)
def test_yaml_examples_run(clean: None, tmp_path: Path, name: str, task: str, metric: str) -> None:
    adapter.register("few", "demo-faces", task=task, seed=1, length=3)
    options = [
        "DATASETS.TEST",
        "('few',)",
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    words = ["--config-file", str(EXAMPLES / f"{name}.yaml"), *options]
    results = load(EXAMPLES / "train.py").main(defaults.default_argument_parser().parse_args(words))
    assert metric in results


def test_what_a_user_writes_is_short() -> None:
    """Under ten lines each: the body of `main`, and the nodes of the YAML that name datasets."""
    tree = ast.parse((EXAMPLES / "train.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert len(main.body) <= 12  # nine of them are Detectron2's own
    assert sum("dsgan." in ast.unparse(node) for node in main.body) == 3
    yaml = (EXAMPLES / "semantic.yaml").read_text()
    assert len(yaml[yaml.index("DSGAN:") : yaml.index("MODEL:")].split("\n")) < 10


@pytest.mark.slow
def test_lazy_example_runs(clean: None, tmp_path: Path) -> None:
    adapter.register("few", "demo-faces", task="instances", seed=1, length=3)
    options = ["dataloader.test.dataset.names=few", "dataloader.evaluator.name=few", "train.max_iter=1"]
    options += [f"train.output_dir={tmp_path}", f"dataloader.evaluator.output_dir={tmp_path}"]
    options += ["model.roi_heads.box_predictor.test_score_thresh=0"]  # after one step no score is high
    words = ["--config-file", str(EXAMPLES / "lazy.py"), "dataloader.train.total_batch_size=2", *options]
    results = load(EXAMPLES / "train_lazy.py").main(defaults.default_argument_parser().parse_args(words))
    assert "segm" in results


def test_the_guide_is_complete() -> None:
    guide = ROOT / "docs" / "detectron2.md"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", guide.read_text()):
        assert (guide.parent / target).exists(), target
    undocumented = {name for name in adapter.__all__ if name not in guide.read_text()}
    assert undocumented <= {"DSGANPathHandler", "MixedStream", "RecordList", "RecordStream", "register_mixture"}


def test_benchmark(
    clean: None, checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = load(ROOT / "benchmarks" / "adapters.py")
    words = ["--checkpoint", checkpoint, "--samples", "16", "--runs", "1", "--threads", "1", "--device", "cpu"]
    assert benchmark.main([*words, "--out", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["samples_compared"] == 16
    assert benchmark.main([*words, "--check"]) == 1  # one run proves nothing
    assert "with so few runs" in capsys.readouterr().err
    monkeypatch.setattr(registry.RegisteredDataset, "sem_seg", lambda self, mask: mask.flip(0))
    assert benchmark.main(words) == 1
    assert "the mask of sample 0 is not that of" in capsys.readouterr().err
    assert benchmark.median_interval(range(7)) == (0, 6)  # tables of the sign test
    assert benchmark.median_interval(range(11)) == (1, 9)
    assert benchmark.median_interval(range(5)) == (-float("inf"), float("inf"))
