"""What tests of the Ultralytics adapter share: a settings folder of their own, and a training that is watched."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Before it is imported: it looks for a network, installs packages, and keeps settings in the user's home.
os.environ |= {"YOLO_CONFIG_DIR": tempfile.mkdtemp(), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
os.environ["YOLO_VERBOSE"] = "false"

_save = torch.save
pytest.importorskip("ultralytics")
torch.save = _save  # it puts its own in place

from ultralytics import YOLO  # noqa: E402
from ultralytics.utils import DEFAULT_CFG, SETTINGS  # noqa: E402

from dsgan_datasets.adapters import ultralytics as adapter  # noqa: E402

SETTINGS.update(dict.fromkeys(("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb"), False))

MODEL = "yolo11n-seg.yaml"
OPTIONS = {"imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "amp": False, "seed": 0}


@pytest.fixture(autouse=True)
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It trains in the working folder, and changes torch's settings."""
    monkeypatch.chdir(tmp_path)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def data_yaml(folder: Path, content: dict[str, Any], name: str = "faces") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def dataset(folder: str | Path = "", *, augment: bool = True, files: bool = False, **options: Any) -> Any:
    given = {key: options.pop(key) for key in ("classes", "single_cls") if key in options}
    hyp = DEFAULT_CFG.__class__(**{**vars(DEFAULT_CFG), **options.pop("hyp", {})})
    task = options.get("task", "segment")
    generated = adapter.GeneratedSet(**{"device": "cpu", "length": 6, **options})
    data = {"names": dict(enumerate(generated.annotator.names)), "channels": 3, **generated.annotator.facts}
    return adapter.DSGANYOLODataset(
        generated,
        img_path=str(folder),
        files=files,
        imgsz=64,
        batch_size=4,
        augment=augment,
        hyp=hyp,
        task=task,
        data=data,
        **given,
    )


class Interrupted(Exception):
    """As if the process had been killed."""


def train(
    folder: Path,
    data: str | None,
    trainer: type = adapter.DSGANSegmentationTrainer,
    *,
    model: str = MODEL,
    until: int | None = None,
    **options: Any,
) -> tuple[list[list[str]], Any]:
    """The images of each epoch, and the trainer; interrupted after `until` epochs."""
    epochs: dict[int, list[str]] = {}

    class WatchedTrainer(trainer):  # type: ignore[misc]
        def preprocess_batch(self, batch: Any) -> Any:
            epochs.setdefault(self.epoch, []).extend(batch["im_file"])
            return super().preprocess_batch(batch)

    yolo = YOLO(model)
    if until is not None:
        yolo.add_callback("on_model_save", lambda trainer: _stop(trainer, until))
    if data is not None:
        options["data"] = data
    with contextlib.suppress(Interrupted):
        yolo.train(trainer=WatchedTrainer, **{**OPTIONS, "project": str(folder), "exist_ok": True, **options})
    return list(epochs.values()), yolo.trainer


def _stop(trainer: Any, until: int) -> None:
    if trainer.epoch + 1 == until:
        raise Interrupted


def numbers(paths: list[str]) -> list[int]:
    return [int(path.removesuffix(".png").rsplit("_", 1)[1]) for path in paths]
