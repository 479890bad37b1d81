"""Generated samples in Ultralytics: real trainings on the CPU, and the dataset that they read."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA, small_labeled
from kinds import labeled_with

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("one_thread", "as_before")]
pytest.importorskip("ultralytics")

import ultralytics_support  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.data.dataset import YOLODataset  # noqa: E402
from ultralytics.models.yolo.segment import SegmentationTrainer  # noqa: E402
from ultralytics.utils import YAML  # noqa: E402
from ultralytics_support import OPTIONS, data_yaml, dataset, numbers, train  # noqa: E402

from dsgan_datasets import LabeledGenerator, write_shards  # noqa: E402
from dsgan_datasets.adapters import ultralytics as adapter  # noqa: E402
from dsgan_datasets.adapters.ultralytics.loading import EpochSampler, build_loader  # noqa: E402
from dsgan_datasets.export import ExportInput, export  # noqa: E402

as_before = ultralytics_support.as_before

FACES = {"checkpoint": "demo-faces", "device": "cpu", "length": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """16 pixels, four classes with left and right."""
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    labeled_with("mask").save_pretrained(path)
    return str(path)


def exported(folder: Path, source: Any, format: str, count: int = 4) -> Path:
    export(ExportInput.generated(source, count), folder, format, splits={"val": 0.5})
    return folder


def test_one_line_trains_validates_and_resumes(tmp_path: Path) -> None:
    data = data_yaml(tmp_path, {"dsgan": {**FACES, "val": {"length": 4}}})
    began, trainer = train(tmp_path, data, epochs=3, until=1, close_mosaic=1)
    assert [numbers(epoch) for epoch in began] == [list(range(8))]
    (tmp_path / "faces.yaml").unlink()
    resumed, trainer = train(tmp_path, None, model=str(trainer.last), resume=True)
    assert [numbers(epoch) for epoch in resumed] == [list(range(8, 16)), list(range(16, 24))]
    assert trainer.model.names[0] == "skin" and len(trainer.model.names) == 11
    assert math.isfinite(trainer.metrics["metrics/mAP50-95(M)"])
    assert not list(tmp_path.rglob("*.png")) + list(tmp_path.rglob("*.jpg"))  # nothing is written but the model
    held_out = [[path for batch in trainer.test_loader for path in batch["im_file"]] for _ in range(2)]
    assert numbers(held_out[0]) == [0, 1, 2, 3] and held_out[0] == held_out[1]
    assert all("demo-faces_1_" in path for path in held_out[0])  # of another seed than those trained on
    model = YOLO(str(trainer.best))
    metrics = model.val(validator=adapter.DSGANSegmentationValidator, **{**OPTIONS, "project": str(tmp_path)})
    assert metrics.seg.map == pytest.approx(trainer.metrics["metrics/mAP50-95(M)"], abs=0.01)


def test_a_pose_model_trains_from_the_stream(tmp_path: Path) -> None:
    labeled_with("mask", "keypoints").save_pretrained(tmp_path / "points")
    given = {"checkpoint": str(tmp_path / "points"), "device": "cpu", "length": 4, "category": "face"}
    data = data_yaml(tmp_path, {"dsgan": {**given, "val": {"length": 2}}})
    epochs, trainer = train(tmp_path, data, adapter.DSGANPoseTrainer, model="yolo11n-pose.yaml", epochs=1)
    assert numbers(epochs[0]) == [0, 1, 2, 3] and trainer.model.names == {0: "face"}
    assert trainer.data["kpt_shape"] == [3, 3] and trainer.data["flip_idx"] == [0, 2, 1]
    assert "metrics/mAP50-95(P)" in trainer.metrics


@pytest.mark.extended
def test_the_export_of_poses_trains_a_stock_model(tmp_path: Path) -> None:
    folder = exported(tmp_path / "export", labeled_with("mask", "keypoints"), "yolo-pose", 8)
    yolo = YOLO("yolo11n-pose.yaml")
    yolo.train(data=str(folder / "data.yaml"), epochs=1, project=str(tmp_path), **OPTIONS)
    assert yolo.trainer.data["kpt_shape"] == [3, 3] and "metrics/mAP50-95(P)" in yolo.trainer.metrics


def test_files_are_mixed_in(tmp_path: Path) -> None:
    """Every epoch has all files and new samples; what is validated on are the files."""
    faces = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    folder = exported(tmp_path / "export", faces, "yolo-seg")
    content = YAML.load(folder / "data.yaml")
    data = data_yaml(folder, {**content, "dsgan": {**FACES, "length": 6}})
    epochs, trainer = train(tmp_path, data, epochs=2)
    own = {str(path) for path in (folder / "images" / "train").iterdir()}
    for epoch, seen in enumerate(epochs):
        assert own == {path for path in seen if not path.startswith("dsgan:")} and len(seen) == 2 + 6
        generated = numbers([path for path in seen if path.startswith("dsgan:")])
        assert sorted(generated) == list(range(6 * epoch, 6 * epoch + 6)) and seen != sorted(seen)
    assert {Path(path).parent for path in trainer.test_loader.dataset.im_files} == {folder / "images" / "val"}


@pytest.mark.parametrize(("format", "task"), [("yolo-seg", "segment"), ("yolo-pose", "pose")])
def test_labels_are_those_of_the_export(tmp_path: Path, format: str, task: str) -> None:
    """As Ultralytics' own loader reads them from files."""
    source = labeled_with("mask", "keypoints")
    source.save_pretrained(tmp_path / "both")
    fields = ["mask"] if task == "segment" else None
    export(ExportInput.generated(source, 4), tmp_path / "export", format, splits={}, labels=fields)
    data = YAML.load(tmp_path / "export" / "data.yaml")
    stock = YOLODataset(str(tmp_path / "export" / "images"), imgsz=64, augment=False, task=task, data=data)
    ours = dataset(checkpoint=str(tmp_path / "both"), augment=False, task=task, length=4)
    assert ours.data["names"] == {int(i): name for i, name in data["names"].items()}
    for index in range(4):
        (drawn,) = ours.generated.draw([index])
        a, b = stock[index], ours[drawn]
        assert torch.equal(a["img"], b["img"]) and a["cls"].tolist() == b["cls"].tolist()
        assert torch.allclose(a["bboxes"].float(), b["bboxes"].float(), atol=0.02 / 16 if task == "segment" else 1e-5)
        for key in ("masks",) if task == "segment" else ("keypoints",):
            assert torch.allclose(a[key].float(), b[key].float(), atol=1e-5), key


def test_a_sample_does_not_depend_on_how_it_is_reached(small: str) -> None:
    one, other = dataset(checkpoint=small, augment=False), dataset(checkpoint=small, augment=False)
    (drawn,) = one.generated.draw([4])
    a, b = one[drawn], other[4]
    assert (
        all(torch.equal(a[key], b[key]) for key in ("img", "cls", "bboxes", "masks")) and a["im_file"] == b["im_file"]
    )


MIXING = ("mosaic", "mixup", "cutmix", "copy_paste")


@pytest.mark.parametrize("steps", [MIXING, *(pytest.param((s,), marks=pytest.mark.extended) for s in MIXING)], ids=str)
def test_augmentations_that_mix_images(steps: tuple[str, ...]) -> None:
    mixing = dataset(checkpoint="demo-faces", hyp={"mosaic": 0.0, **dict.fromkeys(steps, 1.0)})
    random.seed(0)
    loader = build_loader(mixing, 3, 0, train=True)
    batches = list(loader)
    assert [batch["img"].shape for batch in batches] == [torch.Size([3, 3, 64, 64])] * 2
    assert numbers([path for batch in batches for path in batch["im_file"]]) == list(range(6))
    assert all(len(batch["cls"]) and batch["masks"].max() > 0 for batch in batches)


def test_the_flip_exchanges_left_and_right(small: str) -> None:
    """And Ultralytics' other random steps, turned off here, see the same sample."""
    off = dict.fromkeys(("mosaic", "translate", "scale", "hsv_h", "hsv_s", "hsv_v", "copy_paste"), 0.0)
    plain, flipped = (dataset(checkpoint=small, hyp={**off, "fliplr": p}) for p in (0.0, 1.0))
    seen = set()
    for index in range(6):
        a, b = plain[index], flipped[index]
        assert torch.equal(a["img"].flip(-1), b["img"])
        names = [[SCHEMA.classes[1:][int(c)] for c in sample["cls"]] for sample in (a, b)]
        swap = {"left": "right", "right": "left", "hat": "hat"}
        assert sorted(swap[name] for name in names[0]) == sorted(names[1])
        seen |= set(names[0])
    assert seen == {"left", "right", "hat"}
    with pytest.raises(ValueError, match="a mirror makes 'left' of 'right', but only one of them"):
        dataset(checkpoint=small, things=["left", "hat"])


def test_classes_and_one_class(small: str) -> None:
    chosen = dataset(checkpoint=small, augment=False, classes=[2])
    assert all(set(chosen[i]["cls"].flatten().tolist()) <= {2.0} for i in range(4))
    single = dataset(checkpoint=small, augment=False, single_cls=True)
    assert all(set(single[i]["cls"].flatten().tolist()) <= {0.0} for i in range(4))
    whole = dataset(checkpoint=small, augment=False, instances="object")
    assert all(len(whole[i]["cls"]) == 1 for i in range(4))


def test_shards_are_shuffled_and_repeated(tmp_path: Path) -> None:
    write_shards(small_labeled(), tmp_path / "shards", range(10, 16))
    sampler = EpochSampler(dataset(shards=str(tmp_path / "shards"), length=None, device=None), 3)
    epochs = []
    for epoch in (0, 1, 1):
        sampler.set_epoch(epoch)
        epochs.append([drawn.number for drawn in sampler])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6)) and epochs[0] != epochs[1] == epochs[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"dsgan": "demo-faces"}, "dsgan must be a mapping such as {checkpoint: demo-faces}, not 'demo-faces'"),
        ({"dsgan": None}, "dsgan must be a mapping such as {checkpoint: demo-faces}, not None"),
        ({"dsgan": {"chekpoint": "demo-faces"}}, "dsgan has unknown keys chekpoint; allowed: val, checkpoint, shards"),
        (
            {"dsgan": {**FACES, "val": {"lenght": 3}}},
            "val in dsgan has unknown keys lenght; allowed: checkpoint, shards",
        ),
        ({"dsgan": {**FACES, 5: 3}}, "dsgan has unknown keys 5; allowed: val, checkpoint"),
        (
            {"dsgan": {"length": 5}},
            "neither a checkpoint nor shards: name one, checkpoint .a path, .* such as demo-faces",
        ),
        ({"dsgan": {**FACES, "shards": "x"}, "val": "images"}, "it has both a checkpoint and shards: name one"),
        ({"dsgan": {"checkpoint": "nowhere"}}, "no file or directory 'nowhere'"),
        ({"dsgan": {**FACES, "things": ["nos"]}}, "no class 'nos'; the classes are: background, skin"),
        ({"dsgan": FACES, "names": ["cat", "dog"]}, "names is .'cat', 'dog'., but that of the generated samples is"),
        ({"dsgan": FACES, "nc": 80}, "nc is 80, but that of the generated samples is 11"),
        ({"dsgan": FACES, "channels": 1}, "channels is 1, but that of the generated samples is 3"),
        ({"dsgan": {**FACES, "val": 3}}, "val in dsgan must be a mapping such as {length: 500}, not 3"),
        ({"dsgan": {**FACES, "val": {}}, "val": "images"}, "there are two validation sets"),
        ({"dsgan": {**FACES, "val": {"things": ["hair"]}}}, "classes for validation are"),
        ({"dsgan": {**FACES, "seed": -1}}, "seed must be an integer"),
        ({"dsgan": {**FACES, "category": "face"}}, "category has no effect here, as only the object of a pose has"),
    ],
)
def test_a_wrong_yaml_is_refused_before_anything_is_generated(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, data_yaml(tmp_path, content), epochs=1)


def test_what_does_not_go_together_is_refused(tmp_path: Path, small: str) -> None:
    with pytest.raises(ValueError, match="rect=True sorts files by their shape"):
        train(tmp_path, data_yaml(tmp_path, {"dsgan": FACES}), epochs=1, rect=True)
    with pytest.raises(ValueError, match="this needs keypoints, and there are none; the labels are: mask"):
        train(tmp_path, data_yaml(tmp_path, {"dsgan": FACES}), adapter.DSGANPoseTrainer, model="yolo11n-pose.yaml")
    write_shards(small_labeled(), tmp_path / "shards", range(4))
    shards = {"shards": str(tmp_path / "shards")}
    for node, message in (
        (shards, "samples for validation must not be those for training"),
        ({**shards, "seed": 3, "val": shards}, "seed cannot be changed for shards"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tmp_path, data_yaml(tmp_path, {"dsgan": node}), epochs=1)


@pytest.mark.extended
@pytest.mark.parametrize("relative", [False, True])
def test_a_stock_training_reads_each_file_of_an_export_once_in_an_epoch(tmp_path: Path, relative: bool) -> None:
    """With the absolute and with a relative path of data.yaml."""
    folder = exported(tmp_path / "export", LabeledGenerator.from_pretrained("demo-faces", device="cpu"), "yolo-seg", 8)
    data = (folder / "data.yaml").relative_to(tmp_path) if relative else folder / "data.yaml"
    epochs, trainer = train(tmp_path, str(data), SegmentationTrainer, epochs=2, mosaic=0.0)
    files = {split: sorted(map(str, (folder / "images" / split).iterdir())) for split in ("train", "val")}
    assert len(files["train"]) == 4 and [sorted(epoch) for epoch in epochs] == [files["train"]] * 2
    assert sorted(path for batch in trainer.test_loader for path in batch["im_file"]) == files["val"]


@pytest.mark.extended
def test_a_yaml_without_generated_images_is_left_alone(tmp_path: Path) -> None:
    faces = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    folder = exported(tmp_path / "export", faces, "yolo-seg")
    _, trainer = train(tmp_path, str(folder / "data.yaml"), epochs=1)
    assert type(trainer.train_loader.dataset) is YOLODataset
    assert np.isfinite(trainer.metrics["metrics/mAP50-95(B)"])


@pytest.mark.extended
def test_the_guide_runs(tmp_path: Path) -> None:
    """Its blocks, in order, with smaller numbers; the YAML of the user's own images names files that are not here."""
    guide = (Path(__file__).parent.parent / "docs" / "ultralytics.md").read_text()
    (first, _), blocks = (
        re.findall(r"^```yaml\n(.*?)^```", guide, re.M | re.S),
        re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S),
    )
    (tmp_path / "faces.yaml").write_text(first.replace("demo-faces", "demo-faces, length: 4, val: {length: 2}"))
    assert len(first.splitlines()) == 1 and len(blocks[0].splitlines()) < 10
    train, resume, validate = blocks
    names: dict[str, Any] = {}
    exec(train.replace("epochs=100", f"epochs=1, batch=4, device='cpu', plots=False, project={str(tmp_path)!r}"), names)
    assert (tmp_path / "train" / "weights" / "last.pt").exists() and len(names["model"].names) == 11
    assert "train/weights/last.pt" in resume
    exec(
        validate.replace(")", f", project={str(tmp_path)!r})"),
        {**names, "DSGANSegmentationValidator": adapter.DSGANSegmentationValidator},
    )
    undocumented = {name for name in adapter.__all__ if name not in guide}
    assert undocumented == {"DSGANYOLODataset", "GeneratedSet"}


@pytest.mark.extended
def test_without_ultralytics_the_import_says_what_to_install() -> None:
    code = (
        "import sys, dsgan_datasets, dsgan_datasets.adapters\n"
        "assert not any(m.partition('.')[0] == 'ultralytics' for m in sys.modules)\n"
        "sys.modules['ultralytics'] = None\n"
        "try: import dsgan_datasets.adapters.ultralytics\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "needs Ultralytics" in done.stdout and "`dsgan install ultralytics` (its license is" in done.stdout, (
        done.stderr
    )
