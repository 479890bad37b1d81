"""What tests of the MMSegmentation adapter share: configs as users write them, and a training that is watched."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA, small_labeled
from PIL import Image

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import IterBasedTrainLoop, Runner  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

import dsgan_datasets.adapters.mmseg  # noqa: E402, F401

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


#: Whether the maintained fork is installed, whose loops leave the data where it is when they resume; or the original.
IS_FORK = "fast_forward_on_resume" in inspect.signature(IterBasedTrainLoop).parameters


@pytest.fixture(autouse=True)
def scope(monkeypatch: pytest.MonkeyPatch) -> None:
    register_all_modules()
    if not IS_FORK:  # PyTorch refuses what the original has written itself: docs/mmseg.md
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """16×16, 4 classes, left and right; accepts every draw."""
    path = tmp_path_factory.mktemp("checkpoints") / "small"
    small_labeled().save_pretrained(path)
    return str(path)


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
        masks = [sample for sample in outputs if "pred_sem_seg" in sample]
        self.predictions |= {sample.img_path: sample.pred_sem_seg.data[0] for sample in masks}

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


def shards(path: str, **changes: Any) -> dict[str, Any]:
    return {"type": "DSGANShardSegDataset", "shards": path, **changes}


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
