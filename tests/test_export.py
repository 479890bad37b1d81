"""What is exported holds the generated samples, to the pixel, as the readers of each format read it."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA, small_labeled
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema, SampleBatch, write_shards
from dsgan_datasets.export import ExportInput, check_export, export, formats_for, writing
from dsgan_datasets.polygons import polygons_to_mask
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.instances import connected_components
from dsgan_datasets.tools.cli import main
from dsgan_datasets.tools.export import add_layout, layout

pytestmark = pytest.mark.usefixtures("one_thread")

START, SEED, COUNT = 5, 3, 10


@pytest.fixture
def source(filtered: LabeledGenerator) -> ExportInput:
    return ExportInput.generated(filtered, COUNT, start=START, seed=SEED)


@pytest.fixture(scope="module")
def batch(filtered: LabeledGenerator) -> SampleBatch:
    return filtered.generate(range(START, START + COUNT), seed=SEED)


def pixels(path: Path, mode: str) -> torch.Tensor:
    picture = Image.open(path)
    assert picture.mode == mode
    return torch.from_numpy(np.array(picture))


class Drawn:
    """Masks that no generator made, with black images: the least that a source can be."""

    fingerprint, license, block = "f" * 64, "CC0-1.0", 1

    def __init__(self, masks: tuple[torch.Tensor, ...], schema: LabelSchema, group: int) -> None:
        self.masks, self.targets, self.group, self.num_samples = masks, (schema,), group, len(masks)
        self.image_size = (masks[0].shape[0], masks[0].shape[1])

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        for i in indices:
            image = torch.zeros(3, *self.image_size, dtype=torch.uint8)
            yield Sample(image=image, mask=self.masks[i], index=torch.tensor(i), attempt=torch.tensor(0))

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        return SampleBatch.stack(list(self.stream(indices)))


def drawn_source(*masks: torch.Tensor, schema: LabelSchema = SCHEMA, group_size: int = 1) -> ExportInput:
    return ExportInput.generated(Drawn(masks, schema, group_size), len(masks))


# Every format


@pytest.mark.parametrize("format", formats_for([SCHEMA]))
def test_images_records_and_classes(tmp_path: Path, source: ExportInput, batch: SampleBatch, format: str) -> None:
    counts = export(source, tmp_path / "out", format, splits={"val": 0.2, "test": 0.1})
    assert counts == {"train": 7, "val": 2, "test": 1}
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [record["split"] for record in records] == ["train"] * 7 + ["val"] * 2 + ["test"]
    for record, sample in zip(records, batch.rows(), strict=True):
        image = pixels(tmp_path / "out" / record["image"], "RGB")
        assert torch.equal(image.permute(2, 0, 1), sample.image)
        assert (record["index"], record["seed"], record["attempt"]) == (int(sample.index), SEED, int(sample.attempt))
        assert record["tallies"] == {"mask": sample.mask.flatten().bincount(minlength=4).tolist()}
        assert (record["fingerprint"], record["license"]) == (source.fingerprint, source.source.license)
        assert record["uncertainty_score"] == pytest.approx(float(sample.uncertainty_score), abs=1e-6)
        assert record["split"] in record["image"].split("/")
        assert record["image"].endswith(f"{int(sample.index):09d}.png")
    assert LabelSchema.from_dict(json.loads((tmp_path / "out" / "classes.json").read_text())) == SCHEMA
    with Image.open(tmp_path / "out" / "preview.png") as preview:
        assert preview.width > 300


@pytest.mark.parametrize("format", formats_for([SCHEMA]))
def test_the_same_bytes_again(tmp_path: Path, filtered: LabeledGenerator, format: str) -> None:
    contents = []
    for name in ("a", "b"):
        export(ExportInput.generated(filtered, 6), tmp_path / name, format, palette=True)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(str(path.relative_to(tmp_path / name)), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("format", formats_for([SCHEMA]))
def test_colored_masks_hold_the_ids_too(tmp_path: Path, source: ExportInput, batch: SampleBatch, format: str) -> None:
    export(source, tmp_path / "out", format, splits={}, palette=True)
    for sample in batch.rows():
        path = tmp_path / "out" / "masks_color" / f"{int(sample.index):09d}.png"
        assert torch.equal(pixels(path, "P").long(), sample.mask)
        colors = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
        assert torch.equal(colors.long(), torch.tensor(SCHEMA.palette)[sample.mask])


def test_views_of_a_group_stay_on_one_side(tmp_path: Path) -> None:
    source = drawn_source(*[torch.zeros(4, 4, dtype=torch.int64)] * 20, group_size=4)
    assert export(source, tmp_path / "out", "folder", splits={"val": 0.1}) == {"train": 16, "val": 4}
    with pytest.raises(ValueError, match="too few"):
        export(
            drawn_source(*[torch.zeros(4, 4).long()] * 4, group_size=4), tmp_path / "b", "folder", splits={"val": 0.1}
        )


# Folder


@pytest.mark.parametrize(("format", "folder"), [("folder", "masks"), ("mmseg", "ann_dir")])
def test_masks_are_class_ids(tmp_path: Path, source: ExportInput, batch: SampleBatch, format: str, folder: str) -> None:
    export(source, tmp_path / "out", format, splits={})
    paths = sorted((tmp_path / "out" / folder).iterdir())
    assert len(paths) == COUNT
    assert all(torch.equal(pixels(p, "L").long(), s.mask) for p, s in zip(paths, batch.rows(), strict=True))


# COCO


@pytest.mark.parametrize("instances", ["classes", "components"])
def test_coco_reads_the_instances(tmp_path: Path, source: ExportInput, batch: SampleBatch, instances: str) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    export(source, tmp_path / "out", "coco", instances=instances, things=["left", "hat"])
    read = coco.COCO(tmp_path / "out" / "annotations" / "instances_train.json")
    assert {c["id"]: c["name"] for c in read.loadCats(read.getCatIds())} == {1: "left", 3: "hat"}
    assert sorted(read.getAnnIds()) == list(range(1, len(read.anns) + 1))
    assert sorted(read.getImgIds()) == batch.index.tolist()
    for sample in batch.rows():
        (image,) = read.loadImgs([int(sample.index)])
        assert (image["height"], image["width"]) == (16, 16)
        assert (tmp_path / "out" / "images" / image["file_name"]).is_file()
        rebuilt = torch.zeros_like(sample.mask)
        annotations = read.loadAnns(read.getAnnIds([int(sample.index)]))
        for annotation in annotations:
            mask = torch.from_numpy(read.annToMask(annotation)).bool()
            rows, columns = mask.nonzero(as_tuple=True)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            assert not rebuilt[mask].any()
            rebuilt[mask] = annotation["category_id"]
        kept = (sample.mask == 1) | (sample.mask == 3)
        assert torch.equal(rebuilt, sample.mask * kept)
        regions = connected_components(sample.mask * kept)[kept].unique()
        assert len(annotations) == (len(sample.mask[kept].unique()) if instances == "classes" else len(regions))


def test_without_pycocotools_the_command_says_what_to_install(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    arguments = ["--format", "coco", "--num-samples", "2", "--device", "cpu"]
    assert main(["export", checkpoint, str(tmp_path / "out"), *arguments]) == 1
    assert "pip install 'dsgan_datasets[coco]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.frameworks
def test_detectron2_trains_on_coco_files(tmp_path: Path) -> None:
    """By its stock register_coco_instances, mapper and trainer."""
    pytest.importorskip("detectron2")
    import detectron2_support as framework
    from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    things = ["skin", "neck", "hair"]
    export(ExportInput.generated(labeled, 12), tmp_path / "out", "coco", things=things, splits={"val": 0.3})
    json_file = tmp_path / "out" / "annotations" / "instances_train.json"
    register_coco_instances("exported", {}, str(json_file), str(tmp_path / "out" / "images"))
    try:
        cfg = framework.config(tmp_path / "run", "GeneralizedRCNN", train="exported")  # MASK_FORMAT is "bitmask"
        cfg.merge_from_list(["SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 0.05, "INPUT.MIN_SIZE_TRAIN", (64,)])
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8, 32]]
        mapper = DatasetMapper(cfg, True)
        records = DatasetCatalog.get("exported")
        assert MetadataCatalog.get("exported").thing_classes == things
        ids = torch.tensor([labeled.schema.index(thing) for thing in things])
        for record, sample in zip(records, labeled.generate(range(8)).rows(), strict=True):
            mapped = mapper(record)
            assert torch.equal(mapped["image"], sample.image.flip(0))
            expected = [sample.mask == thing for thing in ids if (sample.mask == thing).any()]
            assert torch.equal(mapped["instances"].gt_masks.tensor, torch.stack(expected))
        losses, _ = framework.train(framework.StockTrainer, cfg)
        assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])
    finally:
        DatasetCatalog.pop("exported")
        MetadataCatalog.pop("exported")


# MMSegmentation


@pytest.mark.frameworks
def test_mmseg_trains_from_the_config_beside_the_files(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    import mmseg_support as framework
    from mmengine.config import Config
    from mmseg.registry import DATASETS
    from mmseg.utils import register_all_modules

    register_all_modules()
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    export(ExportInput.generated(labeled, 20), tmp_path / "out", "mmseg")
    (tmp_path / "out").rename(tmp_path / "moved")  # the config finds the files beside it
    (tmp_path / "train.py").write_text('_base_ = ["moved/dataset.py"]\n')
    config = Config.fromfile(tmp_path / "train.py")
    train, val = (DATASETS.build(config[f"{split}_dataloader"].dataset) for split in ("train", "val"))
    assert (len(train), len(val)) == (18, 2)
    assert train.metainfo["classes"] == labeled.schema.classes
    assert train.metainfo["palette"] == [list(color) for color in labeled.schema.palette]
    for dataset, first in ((train, 0), (val, 18)):
        for item, sample in zip(dataset, labeled.generate(range(first, first + len(dataset))).rows(), strict=True):
            assert torch.equal(item["inputs"], sample.image.flip(0))
            assert torch.equal(item["data_samples"].gt_sem_seg.data[0], sample.mask)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader |= {"num_workers": 0, "persistent_workers": False}
    seen = framework.run(
        tmp_path / "run",
        config.train_dataloader,
        iters=20,
        model=framework.model(12, 64),
        loop={"val_interval": 20},
        val_dataloader=config.val_dataloader,
        val_cfg={},
        val_evaluator=config.val_evaluator,
    )
    assert np.mean(seen.losses[-5:]) < 0.75 * np.mean(seen.losses[:3])
    assert 0 < seen.metrics["mIoU"] <= 100


# YOLO


def test_yolo_polygons_are_the_masks(tmp_path: Path, source: ExportInput, batch: SampleBatch) -> None:
    """Read as the format's description says: a line is ``class x1 y1 …``, shares of width and height."""
    yaml = pytest.importorskip("yaml")
    export(source, tmp_path / "out", "yolo-seg", things=["right", "hat"])
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert data["names"] == {0: "right", 1: "hat"}
    rows = list(batch.rows())
    for split, samples in (("train", rows[:9]), ("val", rows[9:])):
        images = sorted((tmp_path / "out" / data[split]).iterdir())
        assert len(images) == len(samples)
        for path, sample in zip(images, samples, strict=True):
            # The labels are found by putting "labels" in the place of "images".
            label = Path(str(path).replace(f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}")).with_suffix(".txt")
            rebuilt = torch.zeros_like(sample.mask)
            for line in label.read_text().splitlines():
                category, *shares = line.split()
                values = np.array(shares, dtype=np.float64)
                assert len(values) >= 6 and len(values) % 2 == 0 and 0 <= values.min() <= values.max() <= 1
                mask = polygons_to_mask([values.reshape(-1, 2) * 16], (16, 16))
                rebuilt[torch.from_numpy(mask)] = {"0": 2, "1": 3}[category]
            assert torch.equal(rebuilt, sample.mask * ((sample.mask == 2) | (sample.mask == 3)))


@pytest.mark.slow
def test_yolo_polygons_are_the_masks_as_its_loader_fills_them(tmp_path: Path) -> None:
    """IoU of each class of faces at 64×64, small parts included; with Ultralytics itself where it is installed."""
    cv2 = pytest.importorskip("cv2")
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    export(ExportInput.generated(labeled, 8), tmp_path / "out", "yolo-seg", splits={})
    both, either = torch.zeros(12), torch.zeros(12)
    for index, sample in enumerate(labeled.generate(range(8)).rows()):
        found: dict[int, np.ndarray] = {}
        for line in (tmp_path / "out" / "labels" / f"{index:09d}.txt").read_text().splitlines():
            category, *shares = line.split()
            points = np.array(shares, dtype=np.float32).reshape(-1, 2) * 64
            try:
                from ultralytics.data.utils import polygon2mask
            except ImportError:
                mask = np.zeros((64, 64), np.uint8)
                cv2.fillPoly(mask, [points.astype(np.int32)], 1)
            else:
                mask = polygon2mask((64, 64), [points.reshape(-1)])
            found[int(category) + 1] = found.get(int(category) + 1, np.zeros((64, 64), bool)) | (mask > 0)
        for i in range(1, 12):
            mine, truth = torch.from_numpy(found.get(i, np.zeros((64, 64), bool))), sample.mask == i
            both[i] += (mine & truth).sum()
            either[i] += (mine | truth).sum()
    iou = both[1:] / either[1:]
    assert iou.nan_to_num(1).min() >= 0.98, iou


def test_yolo_without_instances_and_without_splits(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    wide = torch.zeros(6, 10, dtype=torch.int64)
    wide[1:5, 2:9] = 1
    wide[2:4, 3:6] = 0
    schema = LabelSchema(("nothing", 'quoted "name": yes'))
    export(drawn_source(wide * 0, wide, schema=schema), tmp_path / "out", "yolo-seg", splits={}, min_instance_area=2)
    assert (tmp_path / "out" / "labels" / "000000000.txt").read_text() == ""
    (line,) = (tmp_path / "out" / "labels" / "000000001.txt").read_text().splitlines()
    points = np.array(line.split()[1:], dtype=np.float64).reshape(-1, 2) * (10, 6)
    assert np.array_equal(polygons_to_mask([points], (6, 10)), wide.numpy() == 1)
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert data == {"train": "images", "val": "images", "names": {0: 'quoted "name": yes'}}


@pytest.mark.parametrize("format", ["coco", "yolo-seg"])
def test_small_instances_are_left_out(tmp_path: Path, format: str) -> None:
    mask = torch.zeros(8, 8, dtype=torch.int64)
    mask[0, :3], mask[4:6, 4:6] = 1, 3
    export(drawn_source(mask), tmp_path / "out", format, splits={}, min_instance_area=4)
    if format == "coco":
        annotations = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())["annotations"]
        assert [a["category_id"] for a in annotations] == [3]
    else:
        assert (
            tmp_path / "out" / "labels" / "000000000.txt"
        ).read_text() == "2 0.50125 0.50125 0.74875 0.50125 0.74875 0.74875 0.50125 0.74875\n"


def test_ignored_pixels_are_in_no_instance_and_keep_their_id(tmp_path: Path) -> None:
    mask = torch.full((4, 4), 255)
    mask[0] = 1
    source = drawn_source(mask)
    export(source, tmp_path / "a", "folder", palette=True)
    assert torch.equal(pixels(tmp_path / "a" / "masks" / "000000000.png", "L").long(), mask)
    assert Image.open(tmp_path / "a" / "masks_color" / "000000000.png").convert("RGB").getpixel((0, 3)) == (255,) * 3
    assert json.loads((tmp_path / "a" / "samples.jsonl").read_text())["tallies"]["mask"] == [0, 4, 0, 0]
    export(source, tmp_path / "b", "yolo-seg", splits={})
    assert (
        tmp_path / "b" / "labels" / "000000000.txt"
    ).read_text() == "0 0.0025 0.0025 0.9975 0.0025 0.9975 0.2475 0.0025 0.2475\n"


# Whole or not at all


class Stopped(RuntimeError):
    pass


@pytest.mark.parametrize("error", [Stopped("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("format", formats_for([SCHEMA]))
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, source: ExportInput, monkeypatch: pytest.MonkeyPatch, format: str, error: BaseException
) -> None:
    calls: list[int] = []
    write = Path.write_bytes

    def failing(path: Path, content: bytes) -> int:
        calls.append(1)
        if len(calls) > 5:
            raise error
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(type(error)) as caught:
        export(source, tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert "No space left on device, nothing was written" in str(caught.value) and "out'" in str(caught.value)


def test_errors_of_the_generator_come_through(
    tmp_path: Path, source: ExportInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(picture: torch.Tensor) -> bytes:
        raise Stopped("while encoding")

    monkeypatch.setattr(writing, "png", failing)
    with pytest.raises(Stopped, match="while encoding"):
        export(source, tmp_path / "out", "folder")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path, source: ExportInput) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for name in ("full", "full/thesis.txt"):
        with pytest.raises(ValueError, match=r"exists: choose another name, or remove it"):
            export(source, tmp_path / name, "folder")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    export(source, tmp_path / "empty", "folder")
    assert (tmp_path / "empty" / "classes.json").is_file()
    with pytest.raises(OSError, match="nothing was written"):
        export(source, tmp_path / "full" / "thesis.txt" / "out", "folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "voc"}, "no format 'voc'; the formats are: folder, imagefolder, coco, mmseg, yolo-seg, yolo-pose"),
        ({"splits": {"val": 1.5}}, "val=1.5"),
        ({"splits": {"train": 0.5}}, "train is the rest"),
        ({"splits": {"../val": 0.5}}, "a split is a name"),
        ({"splits": {"val": 0.9, "test": 0.9}}, "10 samples are too few"),
        ({"things": ["nose"]}, "no class 'nose'; the classes are: background, left, right, hat"),
        ({"instances": "object"}, "must be one of classes, components"),
        ({"min_instance_area": 0}, "min_instance_area must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, source: ExportInput, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        export(source, tmp_path / "out", **{"format": "folder", **changes})
    assert list(tmp_path.iterdir()) == []


def test_no_samples(filtered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="num_samples must be an integer"):
        ExportInput.generated(filtered, 0)


# From shards


@pytest.mark.parametrize("format", formats_for([SCHEMA]))
def test_shards_export_as_the_generator_does(tmp_path: Path, filtered: LabeledGenerator, format: str) -> None:
    write_shards(filtered, tmp_path / "shards", range(START, START + COUNT), seed=SEED, samples_per_shard=3)
    export(ExportInput.read(tmp_path / "shards", 6, start=START + 2), tmp_path / "a", format, splits={"val": 0.3})
    live = ExportInput.generated(filtered, 6, start=START + 2, seed=SEED)
    export(live, tmp_path / "b", format, splits={"val": 0.3})
    files = {path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*")}
    assert files == {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*")}
    for name in files:
        if (tmp_path / "b" / name).is_file():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_shards_behind_a_url(tmp_path: Path, filtered: LabeledGenerator, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(filtered, "memory://exported/small", range(3))
    assert main(["export", "memory://exported/small", str(tmp_path / "out"), "--format", "folder"]) == 0
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3
    assert main(["export", "memory://exported/none", str(tmp_path / "b"), "--format", "folder"]) == 1
    assert "memory://exported/none has no manifest.json" in capsys.readouterr().err


def test_ranges_of_shards(tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(5, 8))
    assert [int(sample.index) for sample in ExportInput.read(tmp_path).samples] == [5, 6, 7]
    with pytest.raises(ValueError, match="start must be an integer in 5 … 7, not 0"):
        ExportInput.read(tmp_path, start=0)
    with pytest.raises(ValueError, match="num_samples must be an integer in 1 … 2, not 3"):
        ExportInput.read(tmp_path, 3, start=6)


def test_damaged_shards_leave_nothing(
    tmp_path: Path, filtered: LabeledGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(filtered, tmp_path / "shards", range(8), samples_per_shard=4)
    (tmp_path / "shards" / "shard-000001.tar").unlink()
    assert main(["export", str(tmp_path / "shards"), str(tmp_path / "out"), "--format", "folder"]) == 1
    assert "shard-000001.tar is damaged: there is no such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_the_command_reads_shards(
    tmp_path: Path, filtered: LabeledGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(filtered, tmp_path / "shards", range(5, 9), seed=2)
    command = ["export", str(tmp_path / "shards"), str(tmp_path / "out"), "--format", "folder"]
    assert main([*command, "--truncation-psi", "0.5", "--seed", "2", "--set", "size=[8,8]"]) == 1
    expected = "holds shards, whose samples exist already: leave out --truncation-psi and --set, --seed"
    assert expected in capsys.readouterr().err
    assert main(command) == 0
    assert "4 samples as folder (4)" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "out" / "images").iterdir())] == [
        f"{i:09d}.png" for i in range(5, 9)
    ]
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "b"), "--format", "folder"]) == 1
    assert "holds neither a checkpoint (config.json) nor shards (manifest.json)" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "no"), str(tmp_path / "b"), "--format", "folder"]) == 1
    assert "no file or directory" in capsys.readouterr().err


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    small_labeled().save_pretrained(path)
    return str(path)


def test_command(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--format", "yolo-seg", "--num-samples", "6", "--start", "2", "--seed", "7", "--device", "cpu"]
    splits = ["--split", "val=0.2", "--split", "test=0.2", "--instance-class", "hat", "--palette"]
    assert main(["export", checkpoint, str(out), *arguments, *splits]) == 0
    assert f"6 samples as yolo-seg (4 train, 1 val, 1 test): {out}" in capsys.readouterr().out
    expected = small_labeled().generate([2], seed=7)
    assert torch.equal(pixels(out / "images" / "train" / "000000002.png", "RGB").permute(2, 0, 1), expected.image[0])
    assert (out / "masks_color" / "test" / "000000007.png").is_file()
    assert main(["export", checkpoint, str(out), *arguments]) == 1
    assert "exists: choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "voc", "--num-samples", "3"], "invalid choice"),
        (["--format", "folder", "--num-samples", "0"], "'0' is not an integer in 1"),
        (["--format", "folder"], "--num-samples"),
        (["--format", "folder", "--num-samples", "3", "--split", "val"], "is not NAME=SHARE"),
        (["--format", "folder", "--num-samples", "3", "--split", "none", "--split", "val=0.5"], "none stands alone"),
        (["--format", "folder", "--num-samples", "3", "--start", "-1"], "'-1' is not an integer in 0"),
        (["--format", "mmseg", "--num-samples", "1"], "1 samples are too few"),
    ],
)
def test_command_refuses(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", checkpoint, str(tmp_path / "out"), *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_export_its_check_and_the_commands_have_the_same_options() -> None:
    """They are spelled out three times, so that each shows what it takes."""
    options = {name: each.default for name, each in inspect.signature(export).parameters.items() if name != "out"}
    assert {name: each.default for name, each in inspect.signature(check_export).parameters.items()} == options
    parser = argparse.ArgumentParser()
    add_layout(parser, formats_for([SCHEMA]))
    said = layout(parser.parse_args(["--format", "coco"]))
    assert said == {name: default for name, default in options.items() if name not in ("input", "format")}
