"""A resumed training of Detectron2 continues with the next sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread")]

pycocotools_mask = pytest.importorskip("pycocotools.mask")
pytest.importorskip("detectron2")

import detectron2_support  # noqa: E402
from detectron2_support import StockTrainer, config, train  # noqa: E402

from dsgan_datasets.adapters import detectron2 as adapter  # noqa: E402
from dsgan_datasets.adapters.detectron2.registered import RegisteredDataset  # noqa: E402

labeled = detectron2_support.labeled
checkpoint = detectron2_support.checkpoint
register = detectron2_support.register
real = detectron2_support.real


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_exactly(
    register: Callable[..., RegisteredDataset], tmp_path: Path, workers: int, grouping: bool
) -> None:
    """After an odd number of iterations, when it is the other worker's turn."""
    register()
    options: dict[str, Any] = {"DATALOADER__NUM_WORKERS": workers, "DATALOADER__ASPECT_RATIO_GROUPING": grouping}
    _, whole = train(StockTrainer, config(tmp_path / "whole", SOLVER__MAX_ITER=7, **options))
    _, before = train(StockTrainer, config(tmp_path / "parts", SOLVER__MAX_ITER=3, **options))
    _, after = train(StockTrainer, config(tmp_path / "parts", SOLVER__MAX_ITER=7, **options), resume=True)
    assert whole[:3] == before and whole[3:] == after


def test_resume_without_a_stream_warns(
    register: Callable[..., RegisteredDataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register("set", length=6)
    train(StockTrainer, config(tmp_path, train="set", SOLVER__MAX_ITER=1))
    with caplog.at_level("WARNING", "dsgan_datasets"):
        train(StockTrainer, config(tmp_path, train="set", SOLVER__MAX_ITER=2), resume=True)
    assert "no generated stream" in caplog.text


def test_resume_with_other_workers(register: Callable[..., RegisteredDataset], real: int, tmp_path: Path) -> None:
    """The hook gives a stream its global batch: the order no longer depends on the number of workers."""
    register()
    adapter.register_mixture("mixed", "small", "real", generated_fraction=0.3, seed=1)
    for name in ("small", "mixed"):
        _, whole = train(StockTrainer, config(tmp_path / name, train=name, SOLVER__MAX_ITER=7))
        for before, after in ((2, 0), (0, 2)):
            folder = tmp_path / f"{name}{before}"
            _, first = train(
                StockTrainer, config(folder, train=name, SOLVER__MAX_ITER=3, DATALOADER__NUM_WORKERS=before)
            )
            options: dict[str, Any] = {"SOLVER__MAX_ITER": 7, "DATALOADER__NUM_WORKERS": after}
            _, rest = train(StockTrainer, config(folder, train=name, **options), resume=True)
            assert first + rest == whole
