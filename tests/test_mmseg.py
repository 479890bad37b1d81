"""The real MMSegmentation trains, validates, draws and resumes on generated samples, from configs as users write."""

from __future__ import annotations

import io
import itertools
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import SCHEMA, small_labeled
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from dsgan_datasets import CheckpointError, LabeledGenerator, SampleBatch, ShardError, write_shards

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

from mmengine import fileio  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import LOOPS  # noqa: E402
from mmengine.runner import IterBasedTrainLoop, Runner  # noqa: E402
from mmseg.registry import DATASETS, MODELS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

from dsgan_datasets.adapters.mmseg import DSGANSegDataset  # noqa: E402
from dsgan_datasets.adapters.mmseg.resume import samples_ahead  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PACK = {"type": "PackSegInputs"}
STOCK_PIPELINE = [
    {"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.75, 1.5), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (48, 48), "cat_max_ratio": 0.9},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    PACK,
]
LOADING = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]


@pytest.fixture(autouse=True)
def scope() -> None:
    register_all_modules()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """16×16, 4 classes, left and right; accepts every draw."""
    path = tmp_path_factory.mktemp("checkpoints") / "small"
    small_labeled().save_pretrained(path)
    return str(path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The indices of every batch of draws that any generator of this process computes."""
    calls: list[list[int]] = []
    draw = LabeledGenerator._draw

    def counted(self: LabeledGenerator, indices: torch.Tensor, *rest: Any) -> Any:
        calls.append(indices.tolist())
        return draw(self, indices, *rest)

    monkeypatch.setattr(LabeledGenerator, "_draw", counted)
    return calls


def dataset(path: str, **changes: Any) -> dict[str, Any]:
    return {"type": "DSGANSegDataset", "checkpoint": path, "device": "cpu", "length": 40, **changes}


def stream(path: str, **changes: Any) -> dict[str, Any]:
    return dataset(path, **{"type": "DSGANSegIterableDataset", "length": 10**6, **changes})


def loader(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    sampler = None if "Iterable" in data["type"] else {"type": "InfiniteSampler", "shuffle": True}
    return {"batch_size": 3, "num_workers": 0, "sampler": sampler, "dataset": data, **changes}


def model(classes: int, size: int, channels: int = 8) -> dict[str, Any]:
    """A U-Net of two levels."""
    norm = {"type": "BN"}
    unet = {"num_stages": 2, "strides": (1, 1), "downsamples": (True,)}
    unet |= {"enc_num_convs": (1, 1), "dec_num_convs": (1,), "enc_dilations": (1, 1), "dec_dilations": (1,)}
    head = {"in_channels": channels, "in_index": -1, "channels": channels, "num_convs": 1, "num_classes": classes}
    pixels = {"mean": [127.5] * 3, "std": [127.5] * 3, "bgr_to_rgb": True, "size": (size, size)}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor", **pixels},
        "backbone": {"type": "UNet", "base_channels": channels, "norm_cfg": norm, **unet},
        "decode_head": {"type": "FCNHead", "norm_cfg": norm, **head},
        "test_cfg": {"mode": "whole"},
    }


class Recorder(Hook):  # type: ignore[misc]
    """Remembers what a training saw."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.epochs: list[int] = []
        self.losses: list[float] = []
        self.predictions: dict[str, torch.Tensor] = {}
        self.metrics: dict[str, float] = {}

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.paths += [sample.img_path for sample in data_batch["data_samples"]]
        self.epochs.append(runner.epoch)
        self.losses.append(outputs["loss"].item())

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.predictions |= {sample.img_path: sample.pred_sem_seg.data[0] for sample in outputs}

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or {}

    @property
    def indices(self) -> list[int]:
        return [index_of(path) for path in self.paths]


_runs = itertools.count()


def run(folder: Path, train: dict[str, Any], *, iters: int = 0, epochs: int = 0, **changes: Any) -> Recorder:
    """Train as a config says; `iters` or `epochs` of it."""
    loop = {"by_epoch": True, "max_epochs": epochs} if epochs else {"type": "IterBasedTrainLoop", "max_iters": iters}
    config = {
        "default_scope": "mmseg",
        "experiment_name": f"run{next(_runs)}",
        "work_dir": str(folder),
        "log_level": "ERROR",
        "randomness": {"seed": 0},
        "model": model(4, 16),
        "train_dataloader": train,
        "train_cfg": loop | changes.pop("loop", {}),
        "optim_wrapper": {"optimizer": {"type": "Adam", "lr": 0.01}},
        **changes,
    }
    runner, recorder = Runner.from_cfg(Config(config)), Recorder()
    runner.register_hook(recorder)
    runner.train()
    _stop_generating(runner)
    return recorder


def _stop_generating(runner: Any) -> None:
    """Now, and not when the runner is collected.

    It is garbage in a cycle, and workers that PyTorch stops out of one keep it waiting for seconds each.
    """
    iterator = getattr(runner.train_loop, "dataloader_iterator", runner.train_dataloader)
    while hasattr(iterator, "_iterator"):
        iterator = iterator._iterator
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    elif hasattr(getattr(iterator, "_dataset_fetcher", None), "dataset_iter"):
        iterator._dataset_fetcher.dataset_iter.close()


def index_of(path: str) -> int:
    return int(path.removesuffix(".png").rsplit("_", 1)[1])


def bgr(sample: Any) -> torch.Tensor:
    image: torch.Tensor = sample.image[[2, 1, 0]]
    return image


# Samples


def test_packed_samples_are_the_generated_ones(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    data = DATASETS.build(dataset(checkpoint, seed=3))
    assert len(data) == 40
    items = data.__getitems__([5, -1])
    for item, expected in zip(items, unfiltered.generate([5, 39], seed=3).rows(), strict=True):
        packed = item["data_samples"]
        assert item["inputs"].dtype == torch.uint8 and torch.equal(item["inputs"], bgr(expected))
        assert packed.gt_sem_seg.data.dtype == torch.int64 and torch.equal(packed.gt_sem_seg.data[0], expected.mask)
        assert packed.img_shape == packed.ori_shape == (16, 16)
        assert packed.img_path.endswith(f"/small_3_{int(expected.index)}.png")


def test_loaded_samples_are_what_stock_loading_steps_would_give(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    item, expected = DATASETS.build(dataset(checkpoint, pipeline=[]))[7], next(unfiltered.generate([7]).rows())
    assert item["img"].dtype == item["gt_seg_map"].dtype == np.uint8
    assert item["img"].flags.c_contiguous and item["img"].shape == (16, 16, 3)
    assert np.array_equal(item["img"], bgr(expected).permute(1, 2, 0).numpy())
    assert np.array_equal(item["gt_seg_map"], expected.mask.numpy())
    assert item["seg_fields"] == ["gt_seg_map"] and item["img_shape"] == item["ori_shape"] == (16, 16)
    assert item["sample_idx"] == 7 and item["reduce_zero_label"] is False and item["label_map"] is None


def test_metainfo_is_of_the_types_that_mmengine_compares(checkpoint: str) -> None:
    expected = {
        "classes": SCHEMA.classes,
        "palette": [list(color) for color in SCHEMA.palette],
        "label_map": None,
        "reduce_zero_label": False,
    }
    for build in (dataset, stream):
        metainfo = DATASETS.build(build(checkpoint)).metainfo
        assert metainfo == expected and isinstance(metainfo["classes"], tuple)


def test_building_reads_no_weights_and_all_datasets_share_them(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = LabeledGenerator.from_pretrained.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        LabeledGenerator, "from_pretrained", classmethod(lambda cls, *a, **k: loads.append(a) or load(cls, *a, **k))
    )
    both = [DATASETS.build(build(checkpoint, truncation_psi=0.8, threshold=None)) for build in (dataset, stream)]
    assert len(both[0]) == 40 and both[1].metainfo["classes"] == SCHEMA.classes and loads == []
    next(iter(both[0])), next(iter(both[1]))
    assert len(loads) == 1


def test_recipe_fields_reach_the_samples(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    narrow = DATASETS.build(dataset(checkpoint, truncation_psi=0.5, threshold=None))[0]["inputs"]
    assert not torch.equal(narrow, bgr(next(unfiltered.generate([0]).rows())))
    assert torch.equal(
        narrow, bgr(next(small_labeled().from_pretrained(checkpoint, truncation_psi=0.5).generate([0]).rows()))
    )


# Paths


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
        ("dsgan://591b198d/depth/small_0_1.png", "names no sample; expected dsgan://FINGERPRINT8/image"),
        ("dsgan://small", "names no sample"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        fileio.get(path)


@pytest.mark.parametrize("build", [dataset, stream])
def test_loading_steps_that_a_pipeline_still_has(
    checkpoint: str, build: Any, drawn: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the same, and nothing is generated twice."""
    monkeypatch.setattr("dsgan_datasets.datasets._AHEAD", 1)
    with_loading = DATASETS.build(build(checkpoint, pipeline=[*LOADING, PACK], compute_batch=4))
    without = DATASETS.build(build(checkpoint, pipeline=[PACK], compute_batch=4))
    two = [list(itertools.islice(DataLoader(d, batch_size=4, collate_fn=list), 2)) for d in (with_loading, without)]
    for a, b in zip(*(itertools.chain(*batches) for batches in two), strict=True):
        assert torch.equal(a["inputs"], b["inputs"]) and a["inputs"].dtype == torch.uint8
        assert torch.equal(a["data_samples"].gt_sem_seg.data, b["data_samples"].gt_sem_seg.data)
    again = [i for i, count in enumerate(np.bincount(list(itertools.chain(*drawn)))) if count > 2]
    assert again == []


def test_annotations_loaded_after_a_resize_keep_their_size(checkpoint: str) -> None:
    resize = {"type": "Resize", "scale": (32, 32)}
    for pipeline, size in (([resize, LOADING[1], PACK], 16), ([resize, PACK], 32)):
        item = DATASETS.build(dataset(checkpoint, pipeline=pipeline))[0]
        assert item["inputs"].shape[1:] == (32, 32)
        assert item["data_samples"].gt_sem_seg.data.shape[1:] == (size, size)


# Geometry and colors


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


# The fast path


class Operations(TorchDispatchMode):
    """Names of the tensor operations that produce new memory or move it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not func._schema.name.endswith("::is_pinned"):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_the_fast_path_stays_on_the_device(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have no content: reading, encoding or moving one to the host raises."""
    data = DATASETS.build(dataset(checkpoint))
    batch = data.store.generate([0, 1, 2], 0)
    meta = SampleBatch({**batch, "image": batch.image.to("meta"), "mask": batch.mask.to("meta")})
    monkeypatch.setattr(data.store, "generate", lambda indices, seed: meta)
    with Operations() as operations:
        items = data.__getitems__([0, 1, 2])
    assert operations.names == ["aten::flip"]  # RGB -> BGR, once a batch
    preprocessor = MODELS.build({"type": "SegDataPreProcessor", "bgr_to_rgb": True, "size": (16, 16)}).to("meta")
    ready = preprocessor(pseudo_collate(items), training=True)
    assert ready["inputs"].device.type == ready["data_samples"][0].gt_sem_seg.data.device.type == "meta"
    with_pipeline = DATASETS.build(dataset(checkpoint, pipeline=[PACK]))
    monkeypatch.setattr(with_pipeline.store, "generate", lambda indices, seed: meta)
    with pytest.raises(NotImplementedError, match="meta"):  # the check can fail
        with_pipeline.__getitems__([0])


# Training


@pytest.mark.parametrize("pipeline", [None, STOCK_PIPELINE, [*LOADING, *STOCK_PIPELINE]])
def test_a_model_learns(tmp_path: Path, pipeline: Any) -> None:
    data = dataset("demo-faces", length=10**4, pipeline=pipeline)
    size = 48 if pipeline else 64
    seen = run(tmp_path, loader(data, batch_size=4), iters=20, model=model(12, size))
    assert len(set(seen.paths)) == 80
    assert np.mean(seen.losses[-5:]) < 0.75 * np.mean(seen.losses[:3])


def test_epochs_with_validation(tmp_path: Path, checkpoint: str, unfiltered: LabeledGenerator) -> None:
    """IoUMetric's number is the one made of regenerated masks."""
    finite = {"sampler": {"type": "DefaultSampler", "shuffle": False}, "batch_size": 2}
    seen = run(
        tmp_path,
        loader(dataset(checkpoint, length=6), sampler={"type": "DefaultSampler", "shuffle": True}),
        epochs=2,
        val_dataloader=loader(dataset(checkpoint, length=5, seed=9, pipeline=[PACK]), **finite),
        val_cfg={},
        val_evaluator={"type": "IoUMetric", "iou_metrics": ["mIoU"]},
    )
    assert sorted(seen.indices[:6]) == sorted(seen.indices[6:]) == list(range(6)) and seen.epochs == [0, 0, 1, 1]
    masks = unfiltered.generate(range(5), seed=9).mask
    predicted = torch.stack([seen.predictions[path] for path in sorted(seen.predictions)])
    assert [index_of(path) for path in sorted(seen.predictions)] == list(range(5))
    both = [((masks == k) & (predicted == k)).sum() for k in range(4)]
    either = [((masks == k) | (predicted == k)).sum() for k in range(4)]
    expected = np.nanmean([float(b) / float(e) if e else np.nan for b, e in zip(both, either, strict=True)])
    assert seen.metrics["mIoU"] == pytest.approx(100 * expected, abs=0.006)


def test_the_visualization_hook_draws_samples(tmp_path: Path, checkpoint: str, unfiltered: LabeledGenerator) -> None:
    """Pictures are named by index, and show the sample behind colors of its classes."""
    name = f"visualizer{next(_runs)}"
    run(
        tmp_path,
        loader(dataset(checkpoint)),
        iters=1,
        val_dataloader=loader(dataset(checkpoint, length=2, seed=9), sampler={"type": "DefaultSampler"}, batch_size=1),
        val_cfg={},
        val_evaluator={"type": "IoUMetric"},
        visualizer={"type": "SegLocalVisualizer", "name": name, "vis_backends": [{"type": "LocalVisBackend"}]},
        default_hooks={"visualization": {"type": "SegVisualizationHook", "draw": True, "interval": 1}},
    )
    pictures = sorted(path.name for path in tmp_path.rglob("vis_image/*.png"))
    assert [re.sub(r"\.png_\d+", "", name) for name in pictures] == ["val_small_9_0.png", "val_small_9_1.png"]
    (picture,) = tmp_path.rglob("vis_image/val_small_9_1*")
    truth = np.asarray(Image.open(picture))[:, :16].astype(int)
    sample = next(unfiltered.generate([1], seed=9).rows())
    colors = torch.tensor(SCHEMA.palette)[sample.mask].numpy()
    expected = 0.2 * sample.image.permute(1, 2, 0).numpy() + 0.8 * colors
    unlabeled = np.abs(truth - expected).max(-1) <= 1  # names are written over some of it
    assert unlabeled.mean() > 0.3


# Together with real data


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, checkpoint: str) -> dict[str, Any]:
    """A stock dataset of six files."""
    folder = tmp_path_factory.mktemp("real")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(6):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(np.full((16, 16), i % 4, np.uint8)).save(folder / "masks" / f"{i}.png")
    return {
        "type": "BaseSegDataset",
        "data_root": str(folder),
        "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
        "img_suffix": ".png",
        "metainfo": {"classes": SCHEMA.classes, "palette": [list(color) for color in SCHEMA.palette]},
        "pipeline": [*LOADING, PACK],
    }


def wrapped(wrapper: str, checkpoint: str, real: dict[str, Any]) -> dict[str, Any]:
    ours = dataset(checkpoint, length=10, pipeline=[PACK])
    return {
        "none": ours,
        "stock concatenation": {"type": "ConcatDataset", "datasets": [real, ours]},
        "stock repetition": {"type": "RepeatDataset", "dataset": ours, "times": 2},
        "our concatenation": {"type": "DSGANConcatDataset", "datasets": [real, ours]},
        "ours around a repetition": {
            "type": "DSGANConcatDataset",
            "datasets": [{"type": "RepeatDataset", "dataset": real, "times": 3}, ours],
        },
    }[wrapper]


@pytest.mark.parametrize(
    ("wrapper", "indices", "calls"),
    [
        ("none", [0, 1, 2, 3, 4], 1),
        ("stock concatenation", [0, 6, 7, 1, 8], 3),
        ("stock repetition", [0, 11, 2, 13], 4),
        ("our concatenation", [0, 6, 7, 1, 8, 15], 1),
        ("ours around a repetition", [0, 18, 6, 19, 20], 1),
    ],
)
def test_generator_calls_of_one_batch(
    checkpoint: str, real: dict[str, Any], drawn: list[list[int]], wrapper: str, indices: list[int], calls: int
) -> None:
    data = DATASETS.build(wrapped(wrapper, checkpoint, real))
    (batch,) = DataLoader(data, batch_sampler=[indices], collate_fn=list)
    assert len(drawn) == calls
    for index, item in zip(indices, batch, strict=True):
        expected = data[index]["data_samples"]
        assert item["data_samples"].img_path == expected.img_path
        assert torch.equal(item["data_samples"].gt_sem_seg.data, expected.gt_sem_seg.data)


@pytest.mark.parametrize("wrapper", ["stock concatenation", "stock repetition", "our concatenation"])
def test_training_on_a_mixture(tmp_path: Path, checkpoint: str, real: dict[str, Any], wrapper: str) -> None:
    seen = run(tmp_path, loader(wrapped(wrapper, checkpoint, real), batch_size=8), iters=2)
    generated = sum(path.startswith("dsgan://") for path in seen.paths)
    assert generated == 16 if wrapper == "stock repetition" else 0 < generated < 16


def test_a_limited_number_of_batches_an_epoch(tmp_path: Path, checkpoint: str, drawn: list[list[int]]) -> None:
    ordered = {"type": "DefaultSampler", "shuffle": False}
    seen = run(tmp_path, loader(dataset(checkpoint), num_batch_per_epoch=2, sampler=ordered), epochs=2)
    assert seen.indices == [*range(6), *range(6)]
    assert drawn == [[0, 1, 2], [3, 4, 5]] * 2  # whole batches, through MMEngine's slice of the dataset too


# Workers, ranks, streams


@pytest.mark.parametrize("build", [dataset, stream])
def test_workers_give_the_same_set(checkpoint: str, build: Any, unfiltered: LabeledGenerator) -> None:
    data = DATASETS.build(build(checkpoint, length=10))
    for workers, persistent in ((0, False), (2, False), (2, True)):
        batches = DataLoader(data, batch_size=3, collate_fn=list, num_workers=workers, persistent_workers=persistent)
        for epoch in range(2):
            if build is stream:
                data.set_epoch(epoch)
            items = sorted(itertools.chain(*batches), key=lambda item: index_of(item["data_samples"].img_path))
            first = 10 * epoch if build is stream else 0
            assert [index_of(i["data_samples"].img_path) for i in items] == list(range(first, first + 10))
            assert torch.equal(items[4]["inputs"], bgr(next(unfiltered.generate([first + 4]).rows())))


def test_persistent_workers_train(tmp_path: Path, checkpoint: str) -> None:
    some = {"sampler": {"type": "DefaultSampler", "shuffle": False}, "num_workers": 2, "persistent_workers": True}
    assert run(tmp_path, loader(dataset(checkpoint, length=6), **some), epochs=2).indices == [*range(6)] * 2


@pytest.mark.parametrize("hook", [True, False])
def test_epochs_of_a_stream(tmp_path: Path, checkpoint: str, hook: bool) -> None:
    """New samples every epoch with the hook, the same ones without."""
    hooks = {"custom_hooks": [{"type": "DSGANResumeHook"}]} if hook else {}
    seen = run(tmp_path, loader(stream(checkpoint, length=6, start=100)), epochs=2, **hooks)
    assert seen.indices == ([*range(100, 112)] if hook else [*range(100, 106)] * 2)


def _train_on_a_rank(rank: int, port: int, folder: str, data: dict[str, Any], workers: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    register_all_modules()
    parallel = {"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}}
    seen = run(Path(folder), loader(data, batch_size=2, num_workers=workers), iters=4, **parallel)
    torch.save(seen.indices, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("build", "workers"), [(dataset, 0), (stream, 2)])
def test_two_ranks_see_disjoint_samples(tmp_path: Path, checkpoint: str, build: Any, workers: int) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    arguments = (port, str(tmp_path), build(checkpoint, length=17), workers)
    running = mp.start_processes(_train_on_a_rank, args=arguments, nprocs=2, join=False, start_method="spawn")
    try:
        assert running.join(timeout=120) or running.join(timeout=30), "the ranks hang"
    finally:
        for process in running.processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(first) == len(second) == 8 and len({*first, *second}) == 16
    if build is stream:
        assert sorted(first + second) == list(range(16))


# Resuming


class EagerIterator:
    """As the original MMEngine's: it starts the workers at once, and cannot skip."""

    def __init__(self, dataloader: Any) -> None:
        self._dataloader = dataloader
        self._iterator = iter(dataloader)

    def __next__(self) -> Any:
        return next(self._iterator)


@LOOPS.register_module()
class OriginalLoop(IterBasedTrainLoop):  # type: ignore[misc]
    """What a resume does in the original MMEngine 0.10.7, which cannot be installed beside its fork.

    The iterator is made with the loop, and every past batch is fetched and thrown away.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = EagerIterator(self.dataloader)
        del self.fast_forward_on_resume

    def run(self) -> None:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        for _ in range(self._iter):
            next(self.dataloader_iterator)
        while self._iter < self._max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
        self.runner.call_hook("after_train")


HOOK = {"custom_hooks": [{"type": "DSGANResumeHook"}]}
ORIGINAL = {"type": "OriginalLoop"}
UNWINDING = {"fast_forward_on_resume": True}  # the fork leaves the data where it is


@pytest.fixture(scope="session", params=[("map", 0), ("map", 2), ("stream", 0), ("stream", 2)], ids=str)
def interrupted(request: Any, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """(train loader, samples of 9 iterations, checkpoint after 5)."""
    register_all_modules()
    kind, workers = request.param
    data = {"map": dataset, "stream": stream}[kind](checkpoint)
    train = loader(data, num_workers=workers, persistent_workers=workers > 0)
    folder = tmp_path_factory.mktemp("interrupted")
    saving = {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 5, "by_epoch": False}}}
    return train, run(folder, train, iters=9, **saving).indices, str(folder / "iter_5.pth")


@pytest.mark.parametrize("loop", [{}, ORIGINAL, UNWINDING], ids=["fork", "original", "fork, switched off"])
def test_resuming_with_the_hook(
    tmp_path: Path, interrupted: tuple[Any, ...], loop: dict[str, Any], drawn: list[list[int]]
) -> None:
    train, expected, saved = interrupted
    drawn.clear()
    seen = run(tmp_path, train, iters=9, loop=loop, resume=True, load_from=saved, **HOOK)
    assert seen.indices == expected[15:]
    if train["num_workers"] == 0:
        generated = list(itertools.chain(*drawn))
        assert generated[:12] == expected[15:]
        if train["sampler"]:  # a stream is generated ahead
            assert len(generated) == 12


@pytest.mark.parametrize("interrupted", [("map", 0), ("stream", 0)], indirect=True, ids=str)
def test_resuming_without_the_hook(tmp_path: Path, interrupted: tuple[Any, ...], drawn: list[list[int]]) -> None:
    """The fork needs none for an InfiniteSampler. Elsewhere the past comes again: the checks above can fail."""
    train, expected, saved = interrupted
    for loop, past in (({}, 0 if train["sampler"] else 15), (ORIGINAL, 15)):
        drawn.clear()
        assert run(tmp_path, train, iters=9, loop=loop, resume=True, load_from=saved).indices == expected[15:]
        assert list(itertools.chain(*drawn))[: past + 12] == expected[15 - past :]
    seen = run(tmp_path, train, iters=9, loop=UNWINDING, resume=True, load_from=saved)
    assert seen.indices == expected[:12]


def test_a_sampler_that_the_hook_cannot_advance(tmp_path: Path, checkpoint: str) -> None:
    saving = {"default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": False}}}
    train = loader(dataset(checkpoint), sampler={"type": "DefaultSampler"})
    run(tmp_path, train, iters=1, **saving)
    resumed = {"resume": True, "load_from": str(tmp_path / "iter_1.pth"), "log_level": "WARNING"}
    run(tmp_path, train, iters=2, **resumed, **HOOK)
    assert any("cannot advance a DefaultSampler" in log.read_text() for log in tmp_path.rglob("*.log"))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_where_each_worker_goes_on(workers: int, batch_size: int) -> None:
    """Against the order in which a DataLoader takes batches from its workers, for every place in small epochs."""

    def batches(starts: list[range]) -> Iterator[list[int]]:
        shares = [list(share) for share in starts]
        while any(shares):
            for share in shares:
                if share:
                    yield share[:batch_size]
                    del share[:batch_size]

    for length in range(1, 14):
        epoch = list(batches([range(w, length, workers) for w in range(workers)]))
        for done in range(2 * len(epoch)):
            ahead = [samples_ahead(done, batch_size, w, workers, length) for w in range(workers)]
            left = list(batches([range(w + ahead[w], length, workers) for w in range(workers)]))
            assert left == epoch[done % len(epoch) :], (length, done)


# Errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"checkpoint": "no-such-faces"}, CheckpointError, "no-such-faces"),
        ({"length": None}, ValueError, "needs a length: the number of samples"),
        ({"length": 0}, ValueError, "length must be an integer in 1"),
        ({"seed": -1}, ValueError, "seed"),
        (
            {"data_root": "x", "psi": 0.5},
            ValueError,
            "no data_root: it takes checkpoint, length.*psi, cutoff.*_delete_",
        ),
        ({"psi": 5}, ValueError, "psi must be a number in -2 … 2"),
        ({"pipeline": [{"type": "RandomFlop"}]}, KeyError, "RandomFlop"),
    ],
)
@pytest.mark.parametrize("build", [dataset, stream])
def test_configs_that_are_refused(
    checkpoint: str, build: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DATASETS.build(build(checkpoint, **changes))


def test_requests_that_are_refused(checkpoint: str) -> None:
    data = DATASETS.build(dataset(checkpoint))
    for index in (40, -41):
        with pytest.raises(IndexError, match=f"index {index} is out of range for a dataset of 40 samples"):
            data[index]
    assert len(list(data)) == 40  # the old sequence protocol ends at IndexError
    dropping = DSGANSegDataset(checkpoint, length=4, device="cpu", pipeline=[lambda item: None])
    with pytest.raises(ValueError, match="returned None for sample 2"):
        dropping[2]
    with pytest.raises(ValueError, match="picture, not a text"):
        fileio.get_text(DSGANSegDataset(checkpoint, length=1, device="cpu")[0]["data_samples"].img_path)


# From shards


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Faces, whose indices are not their places."""
    path = tmp_path_factory.mktemp("shards") / "faces"
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    write_shards(labeled, path, range(100, 124), seed=4, samples_per_shard=10)
    return str(path)


def shards(path: str, **changes: Any) -> dict[str, Any]:
    return {"type": "DSGANShardSegDataset", "shards": path, **changes}


def test_shards_give_what_the_checkpoint_gave(tars: str, drawn: list[list[int]]) -> None:
    data, live = DATASETS.build(shards(tars)), DATASETS.build(dataset("demo-faces", seed=4))
    assert len(data) == 24 and data.metainfo == live.metainfo
    items = data.__getitems__([23, 0, -4])
    assert not drawn
    generated = LabeledGenerator.from_pretrained("demo-faces", device="cpu").generate([123, 100, 120], seed=4)
    for item, sample in zip(items, generated.rows(), strict=True):
        assert torch.equal(item["inputs"], bgr(sample))
        assert torch.equal(item["data_samples"].gt_sem_seg.data[0], sample.mask)
        picture = Image.open(io.BytesIO(fileio.get(item["data_samples"].img_path)))
        assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), sample.image)
    assert items[0]["data_samples"].img_path.endswith("/image/faces_0_23.png")
    assert items[0]["data_samples"].img_path != live[23]["data_samples"].img_path


@pytest.mark.parametrize("pipeline", [None, [*LOADING, *STOCK_PIPELINE]])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_learns_from_shards(tmp_path: Path, tars: str, pipeline: Any, workers: int) -> None:
    data = loader(shards(tars, pipeline=pipeline), batch_size=4, num_workers=workers)
    seen = run(tmp_path, data, iters=20, model=model(12, 48 if pipeline else 64))
    assert len(set(seen.paths[:24])) == 24 == len(set(seen.paths))
    assert np.mean(seen.losses[-5:]) < 0.75 * np.mean(seen.losses[:3])


def test_validation_on_shards(tmp_path: Path, tars: str) -> None:
    finite = {"sampler": {"type": "DefaultSampler", "shuffle": False}, "batch_size": 2}
    seen = run(
        tmp_path,
        loader(shards(tars), batch_size=4),
        iters=2,
        model=model(12, 64),
        loop={"val_interval": 2},
        val_dataloader=loader(shards(tars, length=5), **finite),
        val_cfg={},
        val_evaluator={"type": "IoUMetric", "iou_metrics": ["mIoU"]},
    )
    assert sorted(map(index_of, seen.predictions)) == list(range(5)) and "mIoU" in seen.metrics


def test_shards_travel_to_spawned_workers(tars: str) -> None:
    data = DATASETS.build(shards(tars))
    batches = DataLoader(data, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context="spawn")
    assert torch.equal(next(iter(batches))[3]["inputs"], data[3]["inputs"])


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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"length": 25}, ValueError, "length must be an integer in 1 … 24, not 25"),
        ({"psi": 0.5, "seed": 1}, ValueError, "knows no psi, seed: it takes shards, length, pipeline"),
        ({"shards": "nowhere"}, ShardError, "nowhere has no manifest.json"),
    ],
)
def test_shard_configs_that_are_refused(
    tars: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DATASETS.build(shards(tars, **changes))


@pytest.mark.parametrize("build", [dataset, stream])
@pytest.mark.parametrize("device", [None, "cuda:0"])
def test_a_gpu_is_refused_in_a_worker(
    checkpoint: str, build: Any, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process sees a GPU; its forked worker may not see it any more, and must not fall back to the CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        data = DATASETS.build(build(checkpoint, device=device))
    batches = iter(DataLoader(data, num_workers=1, collate_fn=list))
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(batches)
    batches._shutdown_workers()  # type: ignore[attr-defined]  # now: see _stop_generating


def test_a_missing_framework_is_named() -> None:
    code = "import sys; sys.modules['mmseg'] = None; import dsgan_datasets.adapters.mmseg"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ImportError: dsgan_datasets.adapters.mmseg needs MMSegmentation 1.x" in done.stderr
    pins = re.findall(r"^[\w-]+==[\w.]+", (ROOT / ".ci" / "frameworks.txt").read_text(), re.MULTILINE)
    assert len(pins) == 3 and all(pin in done.stderr for pin in pins)


def test_the_package_itself_imports_no_framework() -> None:
    code = "import sys, dsgan_datasets.adapters; print([m for m in ('mmseg', 'mmengine', 'mmcv') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# What the guide and the example promise

EXAMPLE = ROOT / "examples" / "mmseg"
GUIDE = (ROOT / "docs" / "mmseg.md").read_text()
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_example_trains_and_is_short(tmp_path: Path) -> None:
    config = EXAMPLE / "demo_faces.py"
    assert len([line for line in config.read_text().splitlines() if line]) < 10
    assert SNIPPETS[0] == config.read_text()
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "val_dataloader.dataset.length=2"]
    command = [sys.executable, EXAMPLE / "train.py", config, "--work-dir", tmp_path, "--cfg-options", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mIoU" in done.stdout + done.stderr and (tmp_path / "iter_2.pth").exists()


@pytest.mark.parametrize("snippet", SNIPPETS[1:], ids=lambda snippet: snippet.split()[0])
def test_snippets_of_the_guide(tmp_path: Path, snippet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes at the end of the example."""
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "data" / "my_faces" / kind).mkdir(parents=True)
        Image.new(mode, (64, 64)).save(tmp_path / "data" / "my_faces" / kind / "1.png")
    (tmp_path / "data" / "my_faces" / "images" / "1.png").rename(tmp_path / "data" / "my_faces" / "images" / "1.jpg")
    (tmp_path / "small_unet.py").write_text((EXAMPLE / "small_unet.py").read_text())
    (tmp_path / "config.py").write_text(SNIPPETS[0] + snippet)
    write_shards(LabeledGenerator.from_pretrained("demo-faces", device="cpu"), tmp_path / "faces", range(2))
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile("config.py")
    data = Runner.build_dataloader(config.train_dataloader, seed=0).dataset
    item = next(iter(data))
    assert item["inputs"].shape[0] == 3 and item["data_samples"].gt_sem_seg.data.dtype == torch.int64


def test_the_picture_of_the_guide(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLE / "draw.py", "out.png", "--indices", "3", "0"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=ENVIRONMENT)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (512, 512)


def test_links_of_the_guide_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", GUIDE)
    assert targets and all((ROOT / "docs" / target).exists() for target in targets)
