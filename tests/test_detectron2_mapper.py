"""The stock mapper and the fast one: both train, and move image and labels alike."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SCHEMA
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from dsgan_datasets import LabeledGenerator, Sample

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.data import transforms as T  # noqa: E402
from detectron2.engine import DefaultTrainer  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402
from detectron2_support import ARCHITECTURES, SEED, FastTrainer, StockTrainer, config, mean, train  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2 import registered as registry  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


@pytest.mark.extended
@pytest.mark.parametrize("trainer", [StockTrainer, FastTrainer])
@pytest.mark.parametrize("task", ARCHITECTURES)
def test_training_learns(clean: None, tmp_path: Path, trainer: type[DefaultTrainer], task: str) -> None:
    """On faces, which have something to learn from."""
    of_task = {} if task == "sem_seg" else {"things": ["skin", "neck", "hair"]}
    adapter.register("faces", "demo-faces", task=task, device="cpu", **of_task)
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
    register: Callable[..., RegisteredDataset],
    tmp_path: Path,
    trainer: type[DefaultTrainer],
    workers: int,
    asked: list[list[int]],
) -> None:
    register()
    _, seen = train(trainer, config(tmp_path, SOLVER__MAX_ITER=10, DATALOADER__NUM_WORKERS=workers))
    assert sorted(itertools.chain(*seen)) == list(range(40))
    assert bool(asked) == (workers == 0)  # the weights load where samples are made


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
            assert mapped["file_name"].endswith(f"_{int(sample.index)}.ppm")
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
        whole = torch.cat([sample.image[0].flip(0), dataset.labels.sem_seg(sample.mask)]).to(torch.int64)
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
    assert torch.equal(mapped["sem_seg"], dataset.labels.sem_seg(sample.mask[0, 4:10, 2:10]))
    assert torch.equal(mapped["instances"].gt_masks.tensor[0], sample.mask[0, 4:10, 2:10] == 1)
    assert (mapped["height"], mapped["width"]) == (16, 16)  # of the sample: what aspect-ratio grouping reads


@pytest.mark.parametrize("trainer", [StockTrainer, FastTrainer])
@pytest.mark.parametrize("task", ARCHITECTURES)
def test_training_from_shards_by_config(
    clean: None, tmp_path: Path, tars: str, trainer: type[DefaultTrainer], task: str, asked: list[list[int]]
) -> None:
    things = "" if task == "sem_seg" else ", things: [skin, neck, hair]"
    (tmp_path / "faces.yaml").write_text(
        f"""
DSGAN: {{DATASETS: [{{name: faces, SHARDS: {tars}, task: {task}{things}}}]}}
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
    assert not asked


def test_workers_read_shards(clean: None, tmp_path: Path, tars: str) -> None:
    adapter.register_shards("faces", tars)
    cfg = config(tmp_path, train="faces", SOLVER__MAX_ITER=6, DATALOADER__NUM_WORKERS=2)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 12
    _, seen = train(StockTrainer, cfg)
    assert sorted(itertools.chain(*seen)) == list(range(24))


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
    monkeypatch.setattr(dataset, "keep", lambda *given: made.update(block := keep(*given)) or block)
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
