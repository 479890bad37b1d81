"""What the guide and the example of the MMSegmentation adapter promise."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsgan_datasets import LabeledGenerator, write_shards

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmseg_support import (  # noqa: E402
    ROOT,
)

scope = mmseg_support.scope


EXAMPLE = ROOT / "examples" / "mmseg"
GUIDE = (ROOT / "docs" / "mmseg.md").read_text()
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.extended
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


def test_the_example_draws_on_arrays_that_opencv_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The visualizer of the original MMSegmentation draws with OpenCV: on contiguous, writable arrays."""
    spec = importlib.util.spec_from_file_location("draw_example", EXAMPLE / "draw.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    drawn = []

    class Picky(example.SegLocalVisualizer):  # type: ignore[misc, name-defined]
        def add_datasample(self, name: str, image: np.ndarray, *arguments: object, **options: object) -> None:
            assert image.flags.c_contiguous and image.flags.writeable and image.dtype == np.uint8
            drawn.append(image.shape)
            super().add_datasample(name, image, *arguments, **options)

    monkeypatch.setattr(example, "SegLocalVisualizer", Picky)
    example.draw(str(tmp_path / "out.png"), [1], size=32)
    assert drawn == [(32, 32, 3)]
