"""Generated samples in Ultralytics: real trainings on the CPU, and the dataset that they read."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread", "as_before")]
pytest.importorskip("ultralytics")

import ultralytics_support  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics_support import OPTIONS, data_yaml, numbers, train  # noqa: E402

from dsgan_datasets import LabeledGenerator, LabelSchema, export  # noqa: E402, F401
from dsgan_datasets.adapters import ultralytics as adapter  # noqa: E402

as_before = ultralytics_support.as_before

FACES = {"checkpoint": "demo-faces", "device": "cpu", "length": 8, "val": {"length": 4}}


def test_one_line_trains_validates_and_resumes(tmp_path: Path) -> None:
    data = data_yaml(tmp_path, {"dsgan": FACES})
    began, trainer = train(tmp_path, data, epochs=3, until=1, close_mosaic=1)
    assert [numbers(epoch) for epoch in began] == [list(range(8))]
    last = str(trainer.last)
    (tmp_path / "faces.yaml").unlink()
    resumed, trainer = train(tmp_path, None, model=last, resume=True)
    assert [numbers(epoch) for epoch in resumed] == [list(range(8, 16)), list(range(16, 24))]
    assert trainer.model.names[0] == "skin" and len(trainer.model.names) == 11
    assert "metrics/mAP50-95(M)" in trainer.metrics
    assert not list(tmp_path.rglob("*.png"))


def test_validation_is_one_finite_set(tmp_path: Path) -> None:
    data = data_yaml(tmp_path, {"dsgan": FACES})
    seen: list[list[str]] = []
    _, trainer = train(tmp_path, data, epochs=1)
    validator = trainer.validator
    for _ in range(2):
        seen.append([path for batch in validator.dataloader for path in batch["im_file"]])
    assert numbers(seen[0]) == [0, 1, 2, 3] and seen[0] == seen[1]
    assert all("demo-faces_1_" in path for path in seen[0])  # of another seed than those trained on
    metrics = YOLO(trainer.best).val(validator=adapter.DSGANSegmentationValidator, data=data, **OPTIONS)
    assert metrics.seg.map == pytest.approx(trainer.metrics["metrics/mAP50-95(M)"], abs=0.02)
