"""The real MMSegmentation trains, validates and draws on generated samples."""

from __future__ import annotations

import itertools
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import SCHEMA
from PIL import Image
from torch.utils.data import DataLoader

from dsgan_datasets import LabeledGenerator

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmseg.registry import DATASETS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402
from mmseg_support import (  # noqa: E402
    LOADING,
    PACK,
    ROOT,
    STOCK_PIPELINE,
    _runs,
    bgr,
    dataset,
    index_of,
    loader,
    model,
    run,
    stream,
)

checkpoint = mmseg_support.checkpoint
scope = mmseg_support.scope
real = mmseg_support.real


@pytest.mark.extended
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
    """New samples every epoch, with the hook and without."""
    hooks = {"custom_hooks": [{"type": "DSGANResumeHook"}]} if hook else {}
    seen = run(tmp_path, loader(stream(checkpoint, length=6, start=100)), epochs=2, **hooks)
    assert seen.indices == [*range(100, 112)]


def _train_on_a_rank(rank: int, port: int, folder: str, data: dict[str, Any], workers: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    register_all_modules()
    parallel = {"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}}
    seen = run(Path(folder), loader(data, batch_size=2, num_workers=workers), iters=4, **parallel)
    torch.save(seen.indices, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.extended
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


@pytest.mark.parametrize("workers", [0, 2])
def test_view_groups_stay_together(checkpoint: str, workers: int) -> None:
    """A stream hands whole groups to each rank and worker; it used to refuse recipes with groups."""
    seen = []
    for rank in range(2):
        data = DATASETS.build(stream(checkpoint, length=48, group_size=4, mixing_layer=2, global_batch=16))
        data.rank, data.world_size = rank, 2
        for batch in DataLoader(data, batch_size=8, collate_fn=list, num_workers=workers):
            seen.append([index_of(item["data_samples"].img_path) for item in batch])
            assert all(index % 4 == place % 4 for place, index in enumerate(seen[-1]))
    assert sorted(itertools.chain(*seen)) == list(range(48))
    with pytest.raises(ValueError, match="must be multiples of the recipe's group_size, 4"):
        DATASETS.build(stream(checkpoint, length=49, group_size=4, mixing_layer=2))


@pytest.mark.parametrize("kind", ["DSGANSegDataset", "DSGANSegIterableDataset"])
def test_heads_that_do_not_fit_are_named_before_the_first_step(tmp_path: Path, checkpoint: str, kind: str) -> None:
    """Not as a target that is out of bounds, which on a GPU is a device assert."""
    message = (
        rf"model.decode_head.num_classes is 3, but {kind} has 4 classes: background, left, right, hat; set it to 4"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path, loader(dataset(checkpoint, type=kind)), iters=1, model=model(3, 16))
    chosen = dataset(checkpoint, type=kind, metainfo={"classes": ["hat", "background"]})
    with pytest.raises(ValueError, match="num_classes is 4, but .* has 2 classes: hat, background"):
        run(tmp_path, loader(chosen), iters=1, model=model(4, 16))


def test_configs_that_come_with_mmsegmentation_are_found(tmp_path: Path) -> None:
    """As docs/mmseg.md says: by a path, where `mmseg::` needs the distribution's original name."""
    (line,) = re.findall(r"^_base_ = __import__.*$", (ROOT / "docs" / "mmseg.md").read_text(), re.MULTILINE)
    (tmp_path / "config.py").write_text(line)
    assert Config.fromfile(tmp_path / "config.py").model.type == "EncoderDecoder"
