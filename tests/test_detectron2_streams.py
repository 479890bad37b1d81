"""Streams of records: ranks, workers, and mixtures with real data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, defaults, launch  # noqa: E402
from detectron2_support import SEED, FastTrainer, StockTrainer, config, train  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


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


@pytest.mark.extended
def test_two_ranks_see_disjoint_samples(checkpoint: str, tmp_path: Path) -> None:
    """Through Detectron2's launch and DDP; its workers are spawned and know of no process group."""
    launch(_two_ranks, 2, dist_url="auto", args=(checkpoint, str(tmp_path)))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == first[1] == [[0, 1], [4, 5], [8, 9]]  # without and with a worker
    assert second[0] == second[1] == [[2, 3], [6, 7], [10, 11]]
    # Of 7 samples for two ranks the last is dropped, or one rank would wait for the other for ever.
    assert (first[2], second[2]) == ([0, 2, 4], [1, 3, 5])


@pytest.mark.extended
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
    register: Callable[..., RegisteredDataset], real: int, asked: list[list[int]]
) -> None:
    register()
    adapter.register_mixture("mixed", "small", "real", generated_fraction=0.25, seed=1)
    stream = iter(DatasetCatalog.get("mixed"))
    mapper = adapter.DSGANDatasetMapper(real_mapper=lambda record: record)
    mapped = [mapper(record) for record in itertools.islice(stream, 64)]
    stream.close()  # type: ignore[attr-defined]
    assert sum(m is not None and m["image_id"] >= 0 for m in mapped) == 16
    # One stream is asked, a little ahead: two batches of 8 for 16 samples, two more, and what is computed with them.
    assert [index for (index,) in asked] == list(range(len(asked))) and 16 <= len(asked) <= 5 * 8
    epochs = [m["image_id"] for m in mapped if m is not None and m["image_id"] < 0]
    assert [sorted(epochs[i : i + 5]) for i in range(0, 45, 5)] == [[-5, -4, -3, -2, -1]] * 9
    assert len({tuple(epochs[i : i + 5]) for i in range(0, 45, 5)}) > 3  # shuffled anew


def test_ranks_and_workers_share_the_real_data(register: Callable[..., RegisteredDataset], real: int) -> None:
    register()
    adapter.register_mixture("mixed", "small", "real", seed=1)
    consumers: list[list[int]] = []
    for rank in (0, 1, 2):
        stream = DatasetCatalog.get("mixed")
        stream.rank, stream.world_size = rank, 3
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
    adapter.register_mixture("alone", "small", "reel")
    with pytest.raises(ValueError, match=r"mixture 'alone' has real: 'reel', which is not in .* there: .*real"):
        DatasetCatalog.get("alone")
    DatasetCatalog.register("streamed", lambda: DatasetCatalog.get("small"))
    adapter.register_mixture("endless", "small", "streamed")
    with pytest.raises(ValueError, match="'streamed' is a stream"):
        DatasetCatalog.get("endless")
    MetadataCatalog.remove("real")
    MetadataCatalog.get("real").set(stuff_classes=["sky"])
    with pytest.raises(ValueError, match=r"stuff_classes of 'small' are .*'hat'.* 'real' are \['sky'\]"):
        DatasetCatalog.get("mixed")


@pytest.mark.parametrize("workers", [0, 2])
def test_view_groups_stay_together(register: Callable[..., RegisteredDataset], workers: int) -> None:
    """Single indices were dealt out: rank 0 got 0, 2, 4, … of groups of four."""
    register(group_size=4, mixing_layer=2)
    seen = []
    for rank in range(2):
        stream = adapter.RecordStream("small", length=32)
        stream.rank, stream.world_size = rank, 2
        ids = [
            record["image_id"]
            for batch in DataLoader(stream, 4, num_workers=workers, collate_fn=list)
            for record in batch
        ]
        assert all(ids[i] == ids[i - i % 4] + i % 4 and ids[i - i % 4] % 4 == 0 for i in range(len(ids)))
        seen += ids
    assert sorted(seen) == list(range(32))


def test_view_groups_that_a_loader_would_tear(register: Callable[..., RegisteredDataset], real: int) -> None:
    register(group_size=4, mixing_layer=2)
    stream = adapter.RecordStream("small")
    stream.batch_by(8, 1)
    one = itertools.islice(DataLoader(stream, None, num_workers=1), 8)
    assert [record["image_id"] for record in one] == list(range(8))
    with pytest.raises(ValueError, match="groups of 4, but this loader takes 1 record") as error:
        next(iter(DataLoader(stream, None, num_workers=2)))
    assert "set DATALOADER.NUM_WORKERS to 0 or 1" in str(error.value)
    adapter.register_mixture("mixed", "small", "real")
    with pytest.raises(ValueError, match="view groups of 4, which a mixture with single real records would tear"):
        DatasetCatalog.get("mixed")


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.9])
def test_a_mixture_has_one_order(register: Callable[..., RegisteredDataset], real: int, fraction: float) -> None:
    """Whatever the number of ranks; each global batch and each lane keeps the ratio; nothing is skipped."""
    register()
    adapter.register_mixture("mixed", "small", "real", generated_fraction=fraction, seed=1)
    orders = []
    for ranks in (1, 2, 4):
        steps: list[list[int]] = [[] for _ in range(10)]
        for rank in range(ranks):
            stream = DatasetCatalog.get("mixed")
            stream.rank, stream.world_size = rank, ranks
            stream.batch_by(8)
            ids = [record["image_id"] for record in itertools.islice(stream, 80 // ranks)]
            for g, step in enumerate(steps):
                step += ids[g * (8 // ranks) : (g + 1) * (8 // ranks)]
        orders.append(list(itertools.chain(*steps)))
    assert orders[0] == orders[1] == orders[2]
    generated = [i for i in orders[0] if i >= 0]
    assert generated == list(range(round(80 * fraction)))
    for g in range(11):
        assert sum(i >= 0 for i in orders[0][: 8 * g]) == int(8 * g * round(fraction * 10) / 10)
    resumed = DatasetCatalog.get("mixed")
    resumed.batch_by(8)
    resumed.resume(7)
    assert [record["image_id"] for record in itertools.islice(resumed, 24)] == orders[0][56:]
