"""Generated samples and shards as datasets of MMSegmentation: what they hand out, to whom, and what they refuse."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA, small_labeled
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from dsgan_datasets import CheckpointError, LabeledGenerator, SampleBatch, ShardError

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine import fileio  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmseg.registry import DATASETS, MODELS  # noqa: E402
from mmseg_support import (  # noqa: E402
    LOADING,
    PACK,
    ROOT,
    STOCK_PIPELINE,
    bgr,
    dataset,
    index_of,
    loader,
    model,
    run,
    shards,
    stream,
)

from dsgan_datasets.adapters.mmseg import DSGANSegDataset  # noqa: E402

checkpoint = mmseg_support.checkpoint
scope = mmseg_support.scope
real = mmseg_support.real


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
    both = [DATASETS.build(build(checkpoint, truncation_psi=0.8, reject_fraction=0)) for build in (dataset, stream)]
    assert len(both[0]) == 40 and both[1].metainfo["classes"] == SCHEMA.classes and loads == []
    next(iter(both[0])), next(iter(both[1]))
    assert len(loads) == 1


def test_recipe_fields_reach_the_samples(checkpoint: str, unfiltered: LabeledGenerator) -> None:
    narrow = DATASETS.build(dataset(checkpoint, truncation_psi=0.5, reject_fraction=0))[0]["inputs"]
    assert not torch.equal(narrow, bgr(next(unfiltered.generate([0]).rows())))
    assert torch.equal(
        narrow, bgr(next(small_labeled().from_pretrained(checkpoint, truncation_psi=0.5).generate([0]).rows()))
    )


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
    checkpoint: str, real: dict[str, Any], asked: list[list[int]], wrapper: str, indices: list[int], calls: int
) -> None:
    data = DATASETS.build(wrapped(wrapper, checkpoint, real))
    (batch,) = DataLoader(data, batch_sampler=[indices], collate_fn=list)
    assert len(asked) == calls
    for index, item in zip(indices, batch, strict=True):
        expected = data[index]["data_samples"]
        assert item["data_samples"].img_path == expected.img_path
        assert torch.equal(item["data_samples"].gt_sem_seg.data, expected.gt_sem_seg.data)


@pytest.mark.parametrize("wrapper", ["stock concatenation", "stock repetition", "our concatenation"])
def test_training_on_a_mixture(tmp_path: Path, checkpoint: str, real: dict[str, Any], wrapper: str) -> None:
    seen = run(tmp_path, loader(wrapped(wrapper, checkpoint, real), batch_size=8), iters=2)
    generated = sum(path.startswith("dsgan://") for path in seen.paths)
    assert generated == 16 if wrapper == "stock repetition" else 0 < generated < 16


#: Types of datasets, as configs name them.
GENERATED = ["DSGANSegDataset", "DSGANSegIterableDataset", "DSGANDepthDataset", "DSGANDepthIterableDataset"]
SHARDS = ["DSGANShardSegDataset", "DSGANShardDepthDataset"]


def test_a_limited_number_of_batches_an_epoch(tmp_path: Path, checkpoint: str, asked: list[list[int]]) -> None:
    ordered = {"type": "DefaultSampler", "shuffle": False}
    seen = run(tmp_path, loader(dataset(checkpoint), num_batch_per_epoch=2, sampler=ordered), epochs=2)
    assert seen.indices == [*range(6), *range(6)]
    assert asked == [[0, 1, 2], [3, 4, 5]] * 2  # whole batches, through MMEngine's slice of the dataset too


def test_shards_give_what_the_checkpoint_gave(tars: str, asked: list[list[int]]) -> None:
    data, live = DATASETS.build(shards(tars)), DATASETS.build(dataset("demo-faces", seed=4))
    assert len(data) == 24 and data.metainfo == live.metainfo
    items = data.__getitems__([23, 0, -4])
    assert not asked
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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"length": 25}, ValueError, "length must be an integer in 1 … 24, not 25"),
        (
            {"truncation_psi": 0.5, "seed": 1},
            ValueError,
            "does not know truncation_psi, seed: it takes shards, length, pipeline",
        ),
        ({"shards": "nowhere"}, ShardError, "nowhere has no manifest.json"),
    ],
)
def test_shard_configs_that_are_refused(
    tars: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DATASETS.build(shards(tars, **changes))


@pytest.mark.parametrize(
    ("kinds", "config", "message"),
    [
        (
            GENERATED,
            {"length": 4},
            "needs checkpoint .a path, the name of a built-in checkpoint such as demo-faces, or",
        ),
        (GENERATED, {}, "needs checkpoint .*; and length .the number of samples"),
        (
            GENERATED,
            {"chekpoint": "demo-faces"},
            "does not know chekpoint: it takes checkpoint, length, .*truncation_psi",
        ),
        (SHARDS, {}, "needs shards .a folder or URL of shards that `dsgan shards write` made, or a list of them"),
        (
            SHARDS,
            {"data_root": "x"},
            "does not know data_root: it takes shards, length, .* when the shards were written",
        ),
        (["DSGANConcatDataset"], {}, "needs datasets .a list of configs"),
        (["DSGANConcatDataset"], {"dataset": []}, "does not know dataset: it takes datasets, lazy_init, ignore_keys"),
    ],
)
def test_keys_that_are_missing_or_unknown_are_named(kinds: list[str], config: dict[str, Any], message: str) -> None:
    for kind in kinds:
        with pytest.raises(ValueError, match=f"{kind} {message}"):
            DATASETS.build({"type": kind, **config})


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
    assert "`dsgan install mmseg`" in done.stderr


def test_the_package_itself_imports_no_framework() -> None:
    code = "import sys, dsgan_datasets.adapters; print([m for m in ('mmseg', 'mmengine', 'mmcv') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"checkpoint": "no-such-faces"}, CheckpointError, "no-such-faces"),
        ({"length": None}, ValueError, "needs length .the number of samples"),
        ({"length": 0}, ValueError, "length must be an integer in 1"),
        ({"seed": -1}, ValueError, "seed"),
        (
            {"data_root": "x", "truncation_psi": 0.5},
            ValueError,
            "does not know data_root: it takes checkpoint, length.*truncation_psi, truncation_cutoff.*_delete_",
        ),
        ({"truncation_psi": 5}, ValueError, "truncation_psi must be a number in -2 … 2"),
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
