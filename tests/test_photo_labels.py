"""Labels of photos: those of the COCO file or the shards that they came in, and those of files beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SCHEMA
from kinds import POINTS, labeled_with
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema, write_shards
from dsgan_datasets.annotations import AnnotationError, load_annotations
from dsgan_datasets.export import export
from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.inversion import Inversion, Photos, export_photos, read_labels, read_photos
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.tools.cli import main

SIZE = (16, 16)
KINDS = ("mask", "keypoints", "depth")


@pytest.fixture(scope="module")
def labeled() -> LabeledGenerator:
    return labeled_with(*KINDS)


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths, down the columns, beginning with 0."""
    flat = mask.T.flatten()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


CATEGORIES = [
    {"id": 1, "name": "left"},
    {"id": 2, "name": "right"},
    {"id": 9, "name": "face", "keypoints": ["right_eye", "nose", "left_eye"]},
]


def coco_photos(folder: Path, **changes: Any) -> Path:
    """Two photos of different sizes: one with a polygon, run lengths and two faces with points; one with nothing."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 40)).save(folder / "a.jpg")
    Image.new("RGB", (32, 32)).save(folder / "b.png")
    right = np.zeros((40, 64), np.uint8)
    right[10:20, 40:50] = 1
    face = {"image_id": 1, "category_id": 9, "segmentation": []}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[12.5, 0, 32.5, 0, 32.5, 20, 12.5, 20]]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": rle(right)},
        {**face, "id": 3, "bbox": [12, 0, 32, 32], "keypoints": [20.5, 8, 2, 28, 16, 2, 36, 8, 1]},
        {**face, "id": 4, "bbox": [32, 8, 32, 32], "keypoints": [40, 10, 2, 0, 0, 0, 60, 10, 2]},
    ]
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 64, "height": 40},
            {"id": 2, "file_name": "b.png", "width": 32, "height": 32},
        ],
        "categories": CATEGORIES,
        "annotations": annotations,
        **changes,
    }
    (folder / "photos.json").write_text(json.dumps(content))
    return folder / "photos.json"


def test_annotations_of_a_coco_file_are_labels_of_its_photos(tmp_path: Path) -> None:
    photos = read_photos(coco_photos(tmp_path), (20, 20))  # the middle 40×40 of the first, at half its size
    warnings: list[str] = []
    labels = read_labels(photos, [SCHEMA], warn=warnings.append)
    assert labels.keys() == {"a"}  # the other has no annotation
    expected = np.zeros((20, 20), np.int64)
    expected[:10, 0:10] = 1  # x from 12.5 to 32.5, of which the frame begins at 12
    expected[5:10, 14:19] = 2
    assert (labels["a"]["mask"] == expected).mean() > 0.97
    assert labels["a"].keys() == {"mask"}


def test_each_object_has_its_own_points_and_the_outlines_in_its_frame(tmp_path: Path) -> None:
    photos = read_photos(coco_photos(tmp_path), SIZE, align="boxes", category="face")
    labels = read_labels(photos, [SCHEMA, POINTS])
    assert labels.keys() == {"a-3", "a-4"}
    points = labels["a-3"]["keypoints"]  # nose, left eye, right eye; the frame is half as large as its box
    assert np.allclose(points, [[8, 8, 2], [12, 4, 1], [4.25, 4, 2]])
    assert np.allclose(labels["a-4"]["keypoints"], [[0, 0, 0], [14, 1, 2], [4, 1, 2]])
    assert (labels["a-4"]["mask"][1:6, 4:9] == 2).all() and (labels["a-4"]["mask"][7:] != 2).all()
    template = {"left_eye": [12, 4], "right_eye": [4, 4]}
    by_points = read_photos(tmp_path / "photos.json", SIZE, align="keypoints", template=template, category="face")
    assert np.allclose(read_labels(by_points, [POINTS])["a-4"]["keypoints"], [[0, 0, 0], [12, 4, 2], [4, 4, 2]])
    with pytest.raises(AnnotationError, match="no category 'dog'; it has: left, right, face"):
        read_photos(tmp_path / "photos.json", SIZE, align="boxes", category="dog")
    with pytest.raises(ValueError, match="give it with align=boxes or keypoints"):
        read_photos(tmp_path / "photos.json", SIZE, category="face")


def test_points_outside_of_the_frame_are_not_in_the_image(tmp_path: Path) -> None:
    face = {"id": 3, "image_id": 1, "category_id": 9, "keypoints": [2.5, 20, 2, 32, 20, 2, 63, 20, 2]}
    photos = read_photos(coco_photos(tmp_path, annotations=[face]), (20, 20))
    assert np.allclose(read_labels(photos, [POINTS])["a"]["keypoints"], [[10, 10, 2], [0, 0, 0], [0, 0, 0]])


def test_categories_that_match_no_label_are_an_error_that_lists_both_sides(tmp_path: Path) -> None:
    photos = read_photos(coco_photos(tmp_path), (20, 20))
    with pytest.raises(AnnotationError) as caught:
        read_labels(photos, [LabelSchema(("dog", "cat"))])
    message = str(caught.value)
    assert "it has face (2×), left (1×), right (1×); mask has 2 classes: dog, cat. Rename them alike, or" in message
    assert "give their folder in place of this file" in message
    with pytest.raises(
        AnnotationError, match=r"face with the points 'right_eye', 'nose', 'left_eye' \(2×\).*2 points: "
    ):
        read_labels(photos, [Keypoints(("nose", "chin"))])


def test_half_known_outlines_are_a_mistake_and_other_categories_are_named(tmp_path: Path) -> None:
    photos = read_photos(coco_photos(tmp_path), (20, 20))
    with pytest.raises(AnnotationError, match="unknown class 'right'"):
        read_labels(photos, [LabelSchema(("background", "left"))])
    warnings: list[str] = []
    assert read_labels(photos, [SCHEMA], warn=warnings.append).keys() == {"a"}
    (warning,) = [each for each in warnings if "left out" in each]
    assert "were left out: face (2×); mask has 4 classes: background, left, right, hat" in warning
    several = read_photos(tmp_path / "photos.json", (20, 20))
    with pytest.raises(AnnotationError, match="several instances"):
        read_labels(several, [POINTS])


def test_a_file_without_annotations_lists_photos_only(tmp_path: Path) -> None:
    warnings: list[str] = []
    for changes in ({"annotations": []}, {"annotations": [], "categories": []}):
        photos = read_photos(coco_photos(tmp_path, **changes), (20, 20))
        assert read_labels(photos, [SCHEMA], warn=warnings.append) == {} and not warnings


def test_what_photos_are_aligned_by_need_not_be_a_label(tmp_path: Path) -> None:
    """Boxes and outlines of people, to find them in the photos: their parts are labeled elsewhere, or by hand."""
    outline = [[12, 0, 44, 0, 44, 32, 12, 32]]
    person = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [12, 0, 32, 32], "segmentation": outline}
    part = {"id": 2, "image_id": 1, "category_id": 1, "segmentation": outline}
    categories = [{"id": 7, "name": "person"}, {"id": 1, "name": "left"}]
    place = coco_photos(tmp_path, annotations=[person, part], categories=categories)
    photos = read_photos(place, SIZE, align="boxes", category="person")
    warnings: list[str] = []
    labels = read_labels(photos, [SCHEMA], warn=warnings.append)
    assert (labels["a-1"]["mask"] == 1).all() and not [each for each in warnings if "left out" in each]
    with pytest.raises(AnnotationError, match=r"it has left \(1×\); mask has 2 classes: dog, cat"):
        read_labels(photos, [LabelSchema(("dog", "cat"))])
    alone = read_photos(coco_photos(tmp_path, annotations=[person], categories=categories), SIZE, align="boxes")
    assert read_labels(alone, [SCHEMA], warn=warnings.append) == {}
    assert "holds no labels: photos are aligned by its categories (person), and mask has 4 classes" in warnings[-1]


def test_labels_may_be_in_a_coco_file_of_their_own(tmp_path: Path) -> None:
    place = coco_photos(tmp_path / "coco")
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "photos" / name).write_bytes((tmp_path / "coco" / name).read_bytes())
    photos = read_photos(tmp_path / "photos", (20, 20))
    own = read_labels(read_photos(place, (20, 20)), [SCHEMA])
    assert np.array_equal(read_labels(photos, [SCHEMA], place)["a"]["mask"], own["a"]["mask"])
    for content, message in (
        ("[1, 2]", "neither a folder nor a zip archive of labels, nor COCO's JSON"),
        (json.dumps({"images": [{"id": 1}], "annotations": []}), "no id or no file_name"),
        (json.dumps({"images": [{"id": 1, "file_name": "c.png"}], "annotations": []}), "none of its images is one"),
        (place.read_text().replace('"left"', '"dog"').replace('"right"', '"cat"'), "none of its categories is one"),
    ):
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(AnnotationError, match=message):
            read_labels(photos, [SCHEMA], tmp_path / "labels.json")
    with pytest.raises(AnnotationError, match="no such folder or file with labels"):
        read_labels(photos, [SCHEMA], tmp_path / "nowhere")


def same(labels: dict[str, Any], samples: Any, rows: range) -> None:
    assert len(labels) == len(rows)
    for row, its in zip(rows, labels.values(), strict=True):
        assert its.keys() == set(KINDS)
        for field in KINDS:
            assert np.array_equal(its[field], samples[field][row].numpy(), equal_nan=True), field


def test_labels_of_shards_are_labels_of_the_photos_in_them(labeled: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(labeled, tmp_path / "shards", range(3))
    photos, samples = read_photos(tmp_path / "shards", SIZE), labeled.batch(range(3))
    same(read_labels(photos, labeled.targets), samples, range(3))
    other = LabelSchema(("background", "hat", "right", "left"), flip_pairs=((2, 3),))
    renamed = read_labels(photos, [other])["000000000"]["mask"]
    assert [other.classes[i] for i in renamed.flatten()] == [SCHEMA.classes[i] for i in samples.mask[0].flatten()]
    warnings: list[str] = []
    assert read_labels(photos, [LabelSchema(("dog", "cat"))], warn=warnings.append) == {}
    assert len(warnings) == 1 and warnings[0].startswith("mask: of the shards was not taken")


def test_an_exported_folder_is_a_folder_of_labeled_photos(labeled: LabeledGenerator, tmp_path: Path) -> None:
    export(ExportInput.generated(labeled, 3), tmp_path / "out", "folder")
    photos = read_photos(tmp_path / "out" / "images", SIZE)
    same(read_labels(photos, labeled.targets, tmp_path / "out"), labeled.batch(range(3)), range(3))
    broken = sorted((tmp_path / "out" / "keypoints").iterdir())[0]
    broken.write_text("[[1, 2]]")
    (tmp_path / "out" / "masks" / "stranger.png").write_bytes(b"")
    with pytest.raises(AnnotationError) as caught:
        read_labels(photos, labeled.targets, tmp_path / "out")
    assert "write [[x, y, v], …]" in str(caught.value) and "is a mask of no photo" in str(caught.value)


def inverted(labeled: LabeledGenerator, photos: Photos) -> Inversion:
    """As if the photos had been found exactly."""
    images = torch.stack([photo.image for photo in photos])
    styles = torch.zeros(len(photos), labeled.generator.num_ws, labeled.generator.w_dim)
    none = torch.zeros(len(photos))
    return Inversion(styles + torch.arange(len(photos))[:, None, None], images, none, none, none)


def test_labels_of_all_kinds_come_back_from_the_folder_that_is_fitted(
    labeled: LabeledGenerator, tmp_path: Path
) -> None:
    write_shards(labeled, tmp_path / "shards", range(3))
    photos = read_photos(tmp_path / "shards", SIZE)
    labels = read_labels(photos, labeled.targets)
    found = inverted(labeled, photos)
    export_photos(
        labeled.generator, labeled.targets, tmp_path / "out", photos, found, recipe=labeled.recipe, labels=labels
    )
    read = load_annotations(tmp_path / "out")
    for field in KINDS:
        own = torch.from_numpy(np.stack([its[field] for its in labels.values()]))
        assert torch.allclose(read.annotated.of(field).double(), own.double(), equal_nan=True, atol=1e-4), field


def test_directions_of_turned_photos_are_refused(tmp_path: Path) -> None:
    normals = DenseMap("normals", low=-1, high=1, channels=("x", "y"), signed=(0,))
    face = {"id": 3, "image_id": 1, "category_id": 9, "keypoints": [20, 8, 2, 28, 16, 2, 36, 20, 2]}
    turned = read_photos(
        coco_photos(tmp_path, annotations=[face]),
        SIZE,
        align="keypoints",
        template={"left_eye": [12, 4], "right_eye": [4, 4]},
    )
    (tmp_path / "normals").mkdir()
    np.save(tmp_path / "normals" / "a-3.npy", np.zeros((2, 40, 64), np.float32))
    with pytest.raises(AnnotationError, match="x of normals are directions"):
        read_labels(turned, [normals], tmp_path / "normals")


@pytest.mark.slow
def test_a_checkpoint_of_photos_names_their_license_and_stores_none_of_them(tmp_path: Path) -> None:
    """All its files are the same whatever the photos show, as long as their styles and labels are the same."""
    labeled = labeled_with("mask")
    labeled.save_pretrained(tmp_path / "ck")
    sample = labeled.batch(range(4))
    found = None
    contents = []
    for name, change in (("one", 0), ("other", 1)):
        (tmp_path / name / "photos").mkdir(parents=True)
        for number, image in enumerate(sample.image):
            pixels = (image ^ change).permute(1, 2, 0).numpy()  # by one level, which changes no decision
            Image.fromarray(pixels).save(tmp_path / name / "photos" / f"p{number}.png")
        photos = read_photos(tmp_path / name / "photos", SIZE, license="CC-BY-4.0, Jane Doe")
        found = found or inverted(labeled, photos)
        labels = {f"p{number}": {"mask": mask.numpy()} for number, mask in enumerate(sample.mask)}
        out = tmp_path / name / "to-annotate"
        export_photos(labeled.generator, SCHEMA, out, photos, found, recipe=labeled.recipe, labels=labels, name="ck")
        quick = ["--steps", "3", "--members", "2", "--num-samples", "20", "--folds", "0", "--device", "cpu"]
        assert main(["fit", str(tmp_path / "ck"), str(out), str(tmp_path / name / "fitted"), *quick]) == 0
        contents.append({file.name: file.read_bytes() for file in (tmp_path / name / "fitted").iterdir()})
    assert contents[0] == contents[1]
    card = contents[0]["README.md"].decode()
    assert "license of the photos among them" in card and "CC-BY-4.0, Jane Doe" in card


@pytest.mark.slow
def test_labels_of_shards_are_fitted_from_the_command_line(
    labeled: LabeledGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled.save_pretrained(tmp_path / "ck")
    write_shards(labeled, tmp_path / "shards", range(2))
    words = ["--steps", "2", "--keep-untrusted", "--device", "cpu"]
    assert main(["invert", str(tmp_path / "ck"), str(tmp_path / "shards"), str(tmp_path / "out"), *words]) == 0
    assert "2 photos to annotate, 2 with labels" in capsys.readouterr().out
    names = load_annotations(tmp_path / "out", tmp_path / "ck").names
    assert names == ("000000000", "000000001")


def test_labels_in_another_kind_of_file_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    photos = read_photos(coco_photos(tmp_path / "photos").parent, (20, 20))
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (64, 40), 1).save(masks / "a.png")
    Image.new("L", (32, 32), 1).save(masks / "b.jpg")
    warnings: list[str] = []
    assert read_labels(photos, [SCHEMA], masks, warn=warnings.append).keys() == {"a"}
    assert len(warnings) == 1 and "b.jpg: was not read: a mask is a file that ends in .png" in warnings[0]


@pytest.mark.extended
def test_a_dry_run_labels_some_photos_and_writes_nothing(
    tmp_path: Path, labeled: LabeledGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(labeled.generate(range(6)).image):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{index}.png")
    before = sorted(tmp_path.rglob("*"))
    command = [
        "label",
        str(tmp_path / "checkpoint"),
        str(tmp_path / "photos"),
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    options = ["--format", "folder", "--steps", "2", "--starts", "1", "--sheet", str(tmp_path / "sheet.png")]
    assert main([*command, *options, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "photos  6" in printed and "photos/s" in printed and "size" in printed
    assert sorted(tmp_path.rglob("*")) == before
