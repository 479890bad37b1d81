"""MMSegmentation's own configs, as people took them at first: each sample that a training reads, resumed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsgan_datasets import LabeledGenerator, write_shards
from dsgan_datasets.export import ExportInput, export

pytestmark = [pytest.mark.frameworks, pytest.mark.extended, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg  # noqa: E402
import mmseg_support  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg_support import Recorder  # noqa: E402

scope = mmseg_support.scope

BASES = {
    "fcn": "fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "deeplabv3plus": "deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "pspnet": "pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "segformer": "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
}
CLASSES = 12
NORM = {"type": "BN", "requires_grad": True}
FACES = {"type": "DSGANSegDataset", "checkpoint": "demo-faces", "device": "cpu", "length": 40}


def trained(folder: Path, base: str, data: dict[str, Any], iterations: int, **changes: Any) -> list[str]:
    """The paths that a stock config reads, with the changes that its first users made."""
    config = Config.fromfile(f"{mmseg.__path__[0]}/.mim/configs/{BASES[base]}")
    cnn = base != "segformer"
    model: dict[str, Any] = {"data_preprocessor": {"size": (64, 64)}, "decode_head": {"num_classes": CLASSES}}
    if cnn:
        model |= {"pretrained": None, "backbone": {"norm_cfg": NORM}}
        model["decode_head"]["norm_cfg"] = NORM
        model["auxiliary_head"] = {"num_classes": CLASSES, "norm_cfg": NORM}
    else:
        model["backbone"] = {"init_cfg": None}
    few = {"batch_size": 2, "num_workers": 0, "persistent_workers": False}
    config.merge_from_dict(
        {
            "custom_imports": {"imports": ["dsgan_datasets.adapters.mmseg"]},
            "train_dataloader": {**few, "dataset": {"_delete_": True, **data}},
            "val_dataloader": None,
            "val_cfg": None,
            "val_evaluator": None,
            "test_dataloader": None,
            "test_cfg": None,
            "test_evaluator": None,
            "model": model,
            "train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": iterations},
            "default_hooks": {"checkpoint": {"interval": 2}},
            "custom_hooks": [{"type": "DSGANResumeHook"}],
            "randomness": {"seed": 0},
            "work_dir": str(folder),
            "experiment_name": f"{folder.name}{iterations}{changes}",
            "log_level": "ERROR",
            **changes,
        }
    )
    runner, recorder = Runner.from_cfg(config), Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder.paths


def shuffled(names: list[Any]) -> list[Any]:
    """In the order of MMEngine's sampler."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    return [names[place] for place in order]


@pytest.mark.parametrize("base", BASES)
def test_stock_configs(tmp_path: Path, base: str) -> None:
    paths = trained(tmp_path, base, FACES, 3)
    assert [mmseg_support.index_of(path) for path in paths] == shuffled(list(range(40)))[:6]
    resumed = {"resume": True, "load_from": str(tmp_path / "iter_2.pth")}
    assert trained(tmp_path / "resumed", base, FACES, 3, **resumed) == paths[4:]


@pytest.mark.parametrize("kind", ["mixed", "shards", "exported"])
def test_files_are_each_read_once_in_an_epoch(tmp_path: Path, kind: str) -> None:
    faces = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    if kind == "shards":
        write_shards(faces, tmp_path / "faces", range(6))
        data: dict[str, Any] = {"type": "DSGANShardSegDataset", "shards": str(tmp_path / "faces")}
        expected = [str(number) for number in range(6)]
    elif kind == "exported":
        export(ExportInput.generated(faces, 8), tmp_path / "exported", "mmseg", splits={"val": 0.25})
        data = Config.fromfile(tmp_path / "exported" / "dataset.py").train_dataloader.dataset.to_dict()
        expected = sorted(path.stem for path in (tmp_path / "exported" / "img_dir" / "train").iterdir())
    else:
        for folder, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / folder).mkdir()
            for number in range(2):
                shape = (96, 80, 3)[: 3 if mode == "RGB" else 2]
                Image.fromarray(np.full(shape, number, np.uint8)).save(tmp_path / folder / f"real_{number}.png")
        load = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
        steps = [*load, {"type": "RandomCrop", "crop_size": (64, 64)}, {"type": "PackSegInputs"}]
        real = {
            "type": "BaseSegDataset",
            "data_root": str(tmp_path),
            "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
            "img_suffix": ".png",
            "metainfo": {"classes": faces.schema.classes},
            "pipeline": steps,
        }
        both = [real, {**FACES, "length": 4, "pipeline": steps}]
        data = {"type": "DSGANConcatDataset", "datasets": both, "ignore_keys": ["palette"]}
        expected = ["real_0", "real_1", "0", "1", "2", "3"]
    paths = trained(tmp_path / "out", "segformer", data, 3)
    stems = [Path(path).stem for path in paths]
    assert [stem if stem in expected else stem.rsplit("_", 1)[1] for stem in stems] == shuffled(expected)
