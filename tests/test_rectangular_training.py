"""A rectangular generator from `dsgan annotate export` to a training step of Detectron2 and of MMSegmentation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, SCHEMA
from PIL import Image

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.tools.cli import main

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]
pytest.importorskip("detectron2")
pytest.importorskip("mmseg")

import mmseg_support  # noqa: E402
from detectron2_support import StockTrainer, config, train  # noqa: E402
from mmseg_support import dataset, loader, run  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402

scope = mmseg_support.scope
GENERATORS = {"human_sg2_64x32": (64, 32), "gilesbathgate_24x40": (24, 40)}


@pytest.fixture(scope="module", params=GENERATORS)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, int]]:
    """Exported, annotated by brightness, fitted: all by the commands that people type."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    source, work, out = str(GOLDEN / f"{request.param}.pkl"), folder / "to-annotate", folder / "fitted"
    names = ",".join(SCHEMA.classes)
    export = ["annotate", "export", source, str(work), "--classes", names, "--num-samples", "3", "--select", "random"]
    assert main([*export, "--psi", "0.8"]) == 0
    (work / "masks").mkdir()
    for path in sorted((work / "images").glob("*.png")):
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
        assert gray.shape == GENERATORS[request.param]
        mask = np.digitize(gray, np.quantile(gray, (0.25, 0.5, 0.75))).astype(np.uint8)
        Image.fromarray(mask).save(work / "masks" / path.name)
    quick = ["--members", "2", "--steps", "40", "--num-samples", "40", "--device", "cpu", "--folds", "0"]
    assert main(["fit", source, str(work), str(out), *quick]) == 0
    return out, GENERATORS[request.param]


def test_the_fitted_checkpoint(fitted: tuple[Path, tuple[int, int]]) -> None:
    out, (height, width) = fitted
    assert json.loads((out / "config.json").read_text())["parts"]["generator"]["config"]["img_size"] == [height, width]
    samples = LabeledGenerator.from_pretrained(out, device="cpu").generate(range(3))
    assert samples.image.shape == (3, 3, height, width) and samples.mask.shape == (3, height, width)
    assert len(samples.mask.unique()) > 1


@pytest.mark.parametrize("architecture", ["SemanticSegmentor", "GeneralizedRCNN"])
def test_detectron2_trains(
    fitted: tuple[Path, tuple[int, int]], clean: None, tmp_path: Path, architecture: str
) -> None:
    out, size = fitted
    task = "instances" if architecture == "GeneralizedRCNN" else "sem_seg"
    adapter.register("small", str(out), device="cpu", task=task)
    losses, _ = train(
        StockTrainer, config(tmp_path, architecture, SOLVER__MAX_ITER=2, INPUT__MIN_SIZE_TRAIN=(min(size),))
    )
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_mmsegmentation_trains(fitted: tuple[Path, tuple[int, int]], tmp_path: Path) -> None:
    out, (height, width) = fitted
    shape = mmseg_support.model(4, 64)
    shape["data_preprocessor"]["size"] = (height, width)
    seen = run(tmp_path, loader(dataset(str(out))), iters=2, model=shape)
    assert len(seen.losses) == 2 and np.isfinite(seen.losses).all()
