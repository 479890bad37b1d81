"""Depth in MMSegmentation: its own loading, model parts and metric on generated samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from kinds import DEPTH, labeled_with  # noqa: E402
from mmengine import fileio  # noqa: E402
from mmseg_support import PACK, run  # noqa: E402

from dsgan_datasets import CheckpointError, write_shards  # noqa: E402, F401
from dsgan_datasets.adapters.mmseg import DSGANDepthDataset, DSGANShardDepthDataset  # noqa: E402

scope = mmseg_support.scope

LOAD = {"type": "LoadDepthAnnotation", "depth_rescale_factor": DEPTH.step}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoints") / "deep"
    labeled_with("mask", "depth").save_pretrained(path)
    return str(path)


def dataset(path: str, **changes: Any) -> dict[str, Any]:
    return {"type": "DSGANDepthDataset", "checkpoint": path, "device": "cpu", "length": 12, "size": [64, 64], **changes}


MODEL = {
    "type": "DepthEstimator",
    "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [127.5] * 3, "std": [127.5] * 3, "size": (64, 64)},
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 16, "norm_cfg": {"type": "BN"}},
    "decode_head": {
        "type": "VPDDepthHead",
        "in_channels": [16, 32, 64, 128],
        "max_depth": DEPTH.high - DEPTH.low,
        "embed_dim": 16,
        "feature_dim": 128,
        "num_deconv_filters": (16, 16, 16),
    },
    "test_cfg": {"mode": "whole"},
}


@pytest.mark.parametrize("stock", [True, False], ids=["stock loading", "as generated"])
def test_a_depth_estimator_trains_and_is_measured(tmp_path: Path, checkpoint: str, stock: bool) -> None:
    pipeline = [{"type": "LoadImageFromFile"}, LOAD, PACK] if stock else None
    loader = {"batch_size": 2, "num_workers": 0, "sampler": {"type": "InfiniteSampler"}}
    held_out = {"batch_size": 2, "num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False}}
    recorder = run(
        tmp_path,
        {**loader, "dataset": dataset(checkpoint, pipeline=pipeline)},
        iters=2,
        loop={"val_interval": 2},
        model=MODEL,
        val_dataloader={**held_out, "dataset": dataset(checkpoint, seed=1, length=4, pipeline=pipeline)},
        val_cfg={},
        val_evaluator={"type": "DepthMetric"},
    )
    assert len(recorder.losses) == 2 and all(map(math.isfinite, recorder.losses))
    assert math.isfinite(recorder.metrics["rmse"]) and recorder.metrics["rmse"] > 0


def test_depth_is_the_same_however_it_is_loaded(checkpoint: str) -> None:
    packed = DSGANDepthDataset(checkpoint, length=3, device="cpu")
    stock = DSGANDepthDataset(checkpoint, length=3, device="cpu", pipeline=[{"type": "LoadImageFromFile"}, LOAD, PACK])
    arrays = DSGANDepthDataset(checkpoint, length=3, device="cpu", pipeline=[])
    samples = labeled_with("mask", "depth").generate(range(3))
    for index in range(3):
        depth = samples["depth"][index, 0]
        expected = torch.where(depth.isnan(), 0, depth - DEPTH.low + DEPTH.step)
        fast, slow = (each[index]["data_samples"].gt_depth_map.data[0] for each in (packed, stock))
        assert torch.allclose(fast, expected, atol=1e-6) and expected.max() > 0
        assert torch.allclose(fast, slow, atol=1e-6)
        assert np.array_equal(arrays[index]["gt_depth_map"], fast.numpy())
        assert torch.equal(packed[index]["inputs"], stock[index]["inputs"])


def test_shards_and_paths(checkpoint: str, tmp_path: Path) -> None:
    write_shards(labeled_with("mask", "depth"), tmp_path / "shards", range(3))
    live, stored = DSGANDepthDataset(checkpoint, length=3, device="cpu"), DSGANShardDepthDataset(tmp_path / "shards")
    for a, b in zip(live, stored, strict=True):
        assert torch.equal(a["data_samples"].gt_depth_map.data, b["data_samples"].gt_depth_map.data)
    info = stored.get_data_info(2)
    assert fileio.get(info["depth_map_path"])[:4] == b"\x89PNG"
    with pytest.raises(FileNotFoundError, match="a sample has image, mask, depth, and no normals"):
        fileio.get(info["depth_map_path"].replace("/depth/", "/normals/"))


def test_what_does_not_fit_is_refused(checkpoint: str) -> None:
    wrong = [{**LOAD, "depth_rescale_factor": 0.001}, PACK]
    with pytest.raises(ValueError, match=r"depth_rescale_factor=0.001, but a step of depth is 4.57"):
        DSGANDepthDataset(checkpoint, length=3, device="cpu", pipeline=wrong)
    with pytest.raises(ValueError, match="DSGANDepthDataset needs a map of one channel; the labels .*: mask"):
        DSGANDepthDataset("demo-faces", length=3, device="cpu")
