"""Keypoints and dense maps in exported files, as the readers of each format read them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from new_kinds import DEPTH, POINTS, kinds_labeled
from PIL import Image
from scalar_map import depth_labeled
from torch import Tensor

from dsgan_datasets import DenseMap, LabeledGenerator, SampleBatch
from dsgan_datasets.export import ExportInput, export, formats_for
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets import target_from_dict
from dsgan_datasets.targets.instances import tight_box
from dsgan_datasets.targets.keypoints import box_around

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 6


def labeled(*fields: str) -> LabeledGenerator:
    return kinds_labeled(fields)


def exported(tmp_path: Path, fields: tuple[str, ...], format: str, **options: Any) -> tuple[Path, SampleBatch]:
    source = labeled(*fields)
    export(ExportInput.generated(source, COUNT), tmp_path / "out", format, splits={}, **options)
    return tmp_path / "out", source.generate(range(COUNT))


class Given:
    """A source of labels that no generator made, with black images."""

    fingerprint, license, block, group = "f" * 64, "CC0-1.0", 1, 1
    image_size, targets = (8, 10), (POINTS,)

    def __init__(self, *points: Tensor) -> None:
        self.points, self.num_samples = points, len(points)

    def stream(self, indices: Any, *, seed: int = 0, extras: Any = ()) -> Any:
        for i in indices:
            image = torch.zeros(3, *self.image_size, dtype=torch.uint8)
            yield Sample(image=image, keypoints=self.points[i], index=torch.tensor(i), attempt=torch.tensor(0))


def given(*points: Tensor) -> ExportInput:
    return ExportInput.generated(Given(*points), len(points))  # type: ignore[arg-type]


# COCO


def annotations(path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "annotations" / f"{name}_train.json").read_text())
    return found


@pytest.mark.parametrize("fields", [("keypoints",), ("mask", "keypoints")], ids=" and ".join)
def test_coco_keypoints(tmp_path: Path, fields: tuple[str, ...]) -> None:
    out, batch = exported(tmp_path, fields, "coco", category="face")
    found = annotations(out, "keypoints")
    assert found["categories"] == [
        {
            "id": 1,
            "name": "face",
            "supercategory": "face",
            "keypoints": list(POINTS.names),
            "skeleton": [[1, 2], [1, 3]],
        }
    ]
    for annotation, sample in zip(found["annotations"], batch.rows(), strict=True):
        label = sample["keypoints"].double()
        x, y, v = np.array(annotation["keypoints"]).reshape(-1, 3).T
        centered = np.stack([np.where(v > 0, x + 0.5, 0), np.where(v > 0, y + 0.5, 0), v], 1)
        assert np.abs(centered - label.numpy()).max() <= 1e-4  # COCO counts from the centers of pixels
        assert annotation["num_keypoints"] == (label[:, 2] > 0).sum()
        foreground = (sample.mask > 0).numpy() if "mask" in fields else np.zeros((16, 16), bool)
        left, top, width, height = annotation["bbox"]
        if foreground.any():
            assert [left, top, width, height] == tight_box(foreground) and annotation["area"] == foreground.sum()
        else:
            box = (left, top, left + width, top + height)
            assert box == pytest.approx(box_around(sample["keypoints"], (16, 16)), abs=2e-4)
            assert annotation["area"] == pytest.approx(width * height, abs=1e-3)
    assert (out / "annotations" / "instances_train.json").exists() == ("mask" in fields)
    assert target_from_dict(json.loads((out / "keypoints.json").read_text())) == POINTS


def test_cocos_own_evaluation_takes_the_keypoints(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    out, batch = exported(tmp_path, ("keypoints",), "coco")

    def precision(shift: float) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(out / "annotations" / "keypoints_train.json"))
            guesses = []
            for sample in batch.rows():
                points = sample["keypoints"].double()
                points[:, :2] += shift - 0.5
                guess = {"keypoints": points.flatten().tolist(), "score": 0.9}
                guesses.append({"image_id": int(sample.index), "category_id": 1, **guess})
            evaluation = COCOeval(truth, truth.loadRes(guesses), "keypoints")
            evaluation.params.kpt_oks_sigmas = np.array(POINTS.sigmas)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    assert precision(0) == 1
    assert precision(0.5) < 0.5 and precision(3) == 0


def test_coco_of_masks_is_as_without_keypoints(tmp_path: Path) -> None:
    both, _ = exported(tmp_path / "both", ("mask", "keypoints"), "coco")
    alone, _ = exported(tmp_path / "alone", ("mask", "keypoints"), "coco", labels=["mask"])
    names = ("images", "annotations", "categories")
    assert [annotations(both, "instances")[n] for n in names] == [annotations(alone, "instances")[n] for n in names]
    assert not (alone / "annotations" / "keypoints_train.json").exists() and not (alone / "keypoints.json").exists()


def test_images_without_points_have_no_annotation(tmp_path: Path) -> None:
    source = given(torch.zeros(4, 3), torch.tensor([[2.5, 1.5, 2.0], [7.5, 4.5, 1.0], [0.0] * 3, [0.0] * 3]))
    export(source, tmp_path / "coco", "coco")
    found = annotations(tmp_path / "coco", "keypoints")
    assert [image["id"] for image in found["images"]] == [0, 1]
    (annotation,) = found["annotations"]
    assert annotation["image_id"] == 1 and annotation["bbox"] == [2, 1, 6, 4] and annotation["num_keypoints"] == 2
    assert annotation["keypoints"] == [2, 1, 2, 7, 4, 1, 0, 0, 0, 0, 0, 0]
    export(source, tmp_path / "yolo", "yolo-pose", splits={})
    labels = tmp_path / "yolo" / "labels"
    assert (labels / "000000000.txt").read_text() == ""
    assert (labels / "000000001.txt").read_text() == ("0 0.5 0.375 0.6 0.5 0.25 0.1875 2 0.75 0.5625 1 0 0 0 0 0 0\n")


# YOLO-pose


@pytest.mark.parametrize("fields", [("keypoints",), ("mask", "keypoints")], ids=" and ".join)
def test_yolo_pose(tmp_path: Path, fields: tuple[str, ...]) -> None:
    yaml = pytest.importorskip("yaml")
    out, batch = exported(tmp_path, fields, "yolo-pose", category='a "face"')
    data = yaml.safe_load((out / "data.yaml").read_text())
    assert data == {
        "train": "images",
        "val": "images",
        "kpt_shape": [4, 3],
        "flip_idx": [0, 2, 1, 3],
        "names": {0: 'a "face"'},
        "kpt_names": {0: list(POINTS.names)},
    }
    for sample in batch.rows():
        (line,) = (out / "labels" / f"{int(sample.index):09d}.txt").read_text().splitlines()
        numbers = np.array(line.split(), dtype=np.float64)
        points = numbers[5:].reshape(-1, 3) * (16, 16, 1)
        assert np.abs(points - sample["keypoints"].double().numpy()).max() < 1e-4
        assert len(numbers) == 17 and numbers[1:5].min() >= 0 and numbers[1:5].max() <= 1
        foreground = (sample.mask > 0).numpy() if "mask" in fields else None
        x, y, width, height = numbers[1:5] * 16
        if foreground is not None and foreground.any():
            expected = tight_box(foreground)
            assert (x - width / 2, y - height / 2, width, height) == pytest.approx(tuple(expected), abs=1e-4)
        else:
            inside = sample["keypoints"][sample["keypoints"][:, 2] > 0].double().numpy()
            assert (np.abs(inside[:, 0] - x) < width / 2).all() and (np.abs(inside[:, 1] - y) < height / 2).all()


# Dense maps


def test_depth_in_the_folder(tmp_path: Path) -> None:
    out, batch = exported(tmp_path, ("mask", "keypoints", "depth"), "folder")
    for sample in batch.rows():
        name = f"{int(sample.index):09d}"
        with Image.open(out / "depth" / f"{name}.png") as picture:
            assert picture.mode == "I;16"
            values = np.asarray(picture).astype(np.float64)
        depth = np.where(values > 0, DEPTH.low + (values - 1) * DEPTH.step, np.nan)
        np.testing.assert_allclose(depth, sample["depth"][0].numpy(), atol=1e-6)
        rows = json.loads((out / "keypoints" / f"{name}.json").read_text())
        assert torch.equal(torch.tensor(rows, dtype=torch.float32), sample["keypoints"])
    assert {path.name for path in out.glob("*.json")} == {"classes.json", "keypoints.json", "depth.json"}
    assert target_from_dict(json.loads((out / "depth.json").read_text())) == DEPTH


@pytest.mark.slow
def test_mmsegmentation_loads_depth_with_its_own_classes(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    import mmseg.datasets
    import mmseg.evaluation  # noqa: F401
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS, METRICS

    out, batch = exported(tmp_path, ("mask", "depth"), "mmseg")
    init_default_scope("mmseg")
    config = Config.fromfile(out / "dataset_depth.py")
    dataset = DATASETS.build(config.train_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    assert len(dataset) == COUNT
    for i, sample in enumerate(batch.rows()):
        loaded = dataset[i]["data_samples"].gt_depth_map.data
        known = ~sample["depth"].isnan()
        assert torch.equal(loaded > 0, known)  # what its losses and its metric leave out
        torch.testing.assert_close((loaded + DEPTH.low - DEPTH.step)[known], sample["depth"][known], atol=1e-6, rtol=0)
        guess = {"pred_depth_map": {"data": loaded + 0.25}, "gt_depth_map": {"data": loaded}}
        metric.process({}, [guess])
    assert metric.compute_metrics(metric.results)["rmse"] == pytest.approx(0.25, abs=1e-5)
    masks = DATASETS.build(Config.fromfile(out / "dataset.py").train_dataloader.dataset)
    assert torch.equal(masks[2]["data_samples"].gt_sem_seg.data[0], batch.mask[2])


def test_configs_hold_no_words_of_strangers(tmp_path: Path) -> None:
    """They are Python, which MMSegmentation executes."""
    source = labeled("depth")
    hostile = DenseMap("depth", -1.5, 1.5, 'm""" + print() + """', channels=('"""+x',))
    relabeled = LabeledGenerator(source.labeler.with_targets([hostile]), source.recipe)
    export(ExportInput.generated(relabeled, 1), tmp_path / "out", "mmseg", splits={})
    text = (tmp_path / "out" / "dataset_depth.py").read_text()
    assert "print" not in text and '"""+x' not in text


# What a format cannot hold


@pytest.mark.parametrize(
    ("fields", "format", "problem", "kept"),
    [
        (("mask", "keypoints"), "mmseg", "cannot hold keypoints", "mask"),
        (("mask", "keypoints"), "yolo-seg", "cannot hold keypoints", "mask"),
        (("mask", "depth"), "coco", "cannot hold depth", "mask"),
        (("keypoints",), "yolo-seg", "cannot hold keypoints", ""),
        (("depth",), "yolo-pose", "cannot hold depth", ""),
        (("mask",), "yolo-pose", "needs keypoints", ""),
    ],
)
def test_what_a_format_cannot_hold(
    tmp_path: Path, fields: tuple[str, ...], format: str, problem: str, kept: str
) -> None:
    source = ExportInput.generated(labeled(*fields), 12)
    able = formats_for(source.targets)
    assert "folder" in able and format not in able
    message = f"format {format} {problem}; the formats that hold {' and '.join(fields)} are: {', '.join(able)}"
    if kept:
        message += f"; or leave out {fields[1]} with labels=['{kept}'] (--label {kept})"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        export(source, tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []
    if kept:
        export(source, tmp_path / "out", format, labels=[kept])


def test_labels_are_chosen_by_their_fields(tmp_path: Path) -> None:
    source = ExportInput.generated(labeled("mask", "keypoints", "depth"), 12)
    for wrong, message in (([], "not none"), (["mask", "pose"], "some of mask, keypoints, depth, not mask, pose")):
        with pytest.raises(ValueError, match=message):
            export(source, tmp_path / "out", "folder", labels=wrong)
    export(source, tmp_path / "out", "mmseg", labels="depth")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".py"} == {"dataset_depth.py"}
    record = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert list(record["tallies"]) == ["depth"]


def test_a_kind_of_a_third_party_goes_into_the_folder_only(tmp_path: Path) -> None:
    source = ExportInput.generated(depth_labeled(bare=True), 12)
    with pytest.raises(ValueError, match="cannot hold depth; the formats that hold depth are: folder"):
        export(source, tmp_path / "out", "mmseg")


def test_categories_are_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="category names must be"):
        export(given(torch.zeros(4, 3)), tmp_path / "out", "coco", category="")


@pytest.mark.parametrize(
    ("format", "labels", "argument"),
    [
        ("folder", None, {"things": ["left"]}),
        ("folder", None, {"category": "face"}),
        ("coco", ["mask"], {"category": "face"}),
        ("yolo-pose", ["keypoints"], {"instances": "components"}),
        ("mmseg", ["mask"], {"min_instance_area": 5}),
    ],
)
def test_an_argument_without_effect_is_refused(
    tmp_path: Path, format: str, labels: list[str] | None, argument: dict[str, Any]
) -> None:
    (name,) = argument
    source = ExportInput.generated(labeled("mask", "keypoints", "depth"), 2)
    with pytest.raises(ValueError, match=rf"{name} \(--.*\) changes nothing in format {format} with .*formats"):
        export(source, tmp_path / "out", format, labels=labels, **argument)
    assert not (tmp_path / "out").exists()
