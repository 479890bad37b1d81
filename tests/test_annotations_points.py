"""Points that were marked with LabelMe or CVAT are read in the pixels of `Keypoints`, or the mistake is named."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotation_folders import (
    GENERATOR,
    POINTS,
    SIZE,
    change,
    export_command,
    export_to,
    mistakes,
    names,
    places,
    write,
    write_coco_points,
    write_labelme,
    write_labelme_points,
    write_masks,
)
from conftest import SCHEMA, small_labeled
from test_annotations_received import HOSTILE_JSON

from dsgan_datasets.annotations import AnnotationError, Annotations, export_annotations, load_annotations
from dsgan_datasets.annotations.coco import coco_file, points_part
from dsgan_datasets.annotations.kinds.points import exchanged
from dsgan_datasets.images import png
from dsgan_datasets.targets import Keypoints
from dsgan_datasets.tools.cli import main

Content = dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders whose labels are points, and masks and points."""
    root = tmp_path_factory.mktemp("points")
    return {"points": export_to(root / "points", POINTS), "both": export_to(root / "both", SCHEMA, POINTS)}


@pytest.fixture
def folder(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["points"], tmp_path / "points"))


@pytest.fixture
def both(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["both"], tmp_path / "both"))


def points_of(found: Annotations) -> np.ndarray:
    points: np.ndarray = found.annotated.of("keypoints").numpy()
    return points


def first_file(folder: Path) -> Path:
    return folder / "images" / f"{names(folder)[0]}.json"


# --------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("writer", [write_labelme_points, write_coco_points])
def test_points_come_back(writer: Callable[[Path], np.ndarray], folder: Path) -> None:
    points = writer(folder)
    found = load_annotations(folder, GENERATOR, device="cpu")
    assert np.array_equal(points_of(found), points) and found.targets == (POINTS,) and not found.warnings
    assert found.annotated.of("keypoints").dtype == torch.float32 and found.size == SIZE
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    for path in (folder / "coco_keypoints.json", *(folder / "images").glob("*.json")):
        if path.exists():
            path.rename(elsewhere / path.name)
    assert np.array_equal(points_of(load_annotations(folder, files=elsewhere)), points)


@pytest.mark.parametrize(
    ("extra", "state"),
    [
        ({}, 2),
        ({"flags": {"hidden": True}}, 1),
        ({"flags": {"hidden": False, "occluded": True}}, 1),
        ({"flags": {"absent": True}}, 0),
        ({"flags": None, "description": None}, 2),
        ({"description": " Hidden "}, 1),
        ({"description": "outside"}, 0),
        ({"description": "a remark"}, 2),
        ({"attributes": {"visibility": "occluded"}}, 1),
        ({"attributes": {"hidden": "true"}}, 1),
        ({"attributes": {"hidden": "false"}}, 2),
        ({"attributes": [1]}, 2),
    ],
)
def test_flags_descriptions_and_attributes_say_what_is_hidden_or_not_there(
    folder: Path, extra: Content, state: int
) -> None:
    write_labelme_points(folder)
    change(first_file(folder), lambda c: c["shapes"][0].update(extra))
    assert points_of(load_annotations(folder))[0, 0].tolist() == ([8.25, 9.5, state] if state else [0, 0, 0])


def test_a_category_may_have_the_points_in_another_order(folder: Path) -> None:
    points = write_coco_points(folder)
    order = [2, 0, 1]

    def edit(content: Content) -> None:
        content["categories"][0]["keypoints"] = [POINTS.names[i] for i in order]
        for annotation in content["annotations"]:
            annotation["keypoints"] = np.reshape(annotation["keypoints"], (-1, 3))[order].flatten().tolist()

    change(folder / "coco_keypoints.json", edit)
    assert np.array_equal(points_of(load_annotations(folder)), points)


def test_whole_numbers_of_coco_are_pixels_and_others_are_places(folder: Path) -> None:
    points = write_coco_points(folder)
    pixels = points.copy()
    pixels[..., :2] = np.floor(points[..., :2])
    files = [f"{name}.png" for name in names(folder)]
    write(folder / "coco_keypoints.json", coco_file(files, SIZE, points_part(list(pixels), POINTS)))
    found = load_annotations(folder)
    expected = pixels + [0.5, 0.5, 0] * (pixels[..., 2:] > 0)
    assert np.array_equal(points_of(found), expected)
    assert any("half a pixel was added" in warning for warning in found.warnings)
    # One that is not whole says that places were written: of the file, not of the image.
    change(folder / "coco_keypoints.json", lambda c: c["annotations"][2]["keypoints"].__setitem__(0, 8.25))
    assert np.array_equal(points_of(load_annotations(folder))[:2], pixels[:2])


def test_labelme_counts_from_the_corner_of_a_pixel_even_if_all_numbers_are_whole(folder: Path) -> None:
    write_labelme_points(folder)
    for name in names(folder):
        path = folder / "images" / f"{name}.json"
        change(path, lambda c: [s.update(points=np.floor(s["points"]).tolist()) for s in c["shapes"]])
    assert points_of(load_annotations(folder))[0, :, :2].tolist() == [[8, 9], [12, 5], [4, 5]]


def test_tools_that_write_boxes_and_skeletons_beside_do_no_harm(folder: Path) -> None:
    points = write_coco_points(folder)

    def edit(content: Content) -> None:
        content["categories"].append({"id": 7, "name": "face"})
        content["annotations"].append({"id": 99, "image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9]})

    change(folder / "coco_keypoints.json", edit)
    found = load_annotations(folder)
    assert np.array_equal(points_of(found), points)
    (warning,) = found.warnings
    assert "annotation 99: has no keypoints" in warning


# -------------------------------------------------------------------------------------------- mistakes


def rename(content: Content) -> None:
    content["shapes"][0]["label"] = "Nose"


def double(content: Content) -> None:
    content["shapes"][1]["label"] = "nose"


def two_faces(content: Content) -> None:
    content["shapes"] = [{**shape, "group_id": group, "flags": {}} for group in (1, 2) for shape in content["shapes"]]


def polygon(content: Content) -> None:
    content["shapes"][0].update(shape_type="polygon", points=[[1, 1], [5, 1], [5, 5]])


SHAPES: list[tuple[Callable[[Content], object], tuple[str, ...]]] = [
    (rename, ("unknown point 'Nose'", "nose, left_eye, right_eye")),
    (double, ("the point 'nose' is there 2 times (shape 1, shape 2)", "keep one")),
    (two_faces, ("several instances (group 1, group 2)", "points of one instance")),
    (polygon, ("shape 1 ('nose'): a 'polygon' marks no point", "draw a point")),
    (lambda c: c["shapes"][0].update(points=[[16.5, 3]]), ("'nose' (shape 1) is at (16.5, 3), outside", "16×16")),
    (lambda c: c["shapes"][0].update(points=[[3, -0.1]]), ("outside of the image",)),
    (lambda c: c["shapes"].pop(0), ("nose is not marked", "allow_missing")),
    (lambda c: c.update(shapes=c["shapes"][:1]), ("left_eye, right_eye are not marked",)),
    (lambda c: c.update(shapes=[]), ("has no annotation",)),
    (lambda c: c["shapes"][0].update(flags={"hidden": True, "absent": True}), ("is marked hidden and absent",)),
    (lambda c: [s.update(flags={"absent": True}) for s in c["shapes"]], ("no point is in the image",)),
    (lambda c: c.update(imageHeight=32, imageWidth=32), ("is 32×32 pixels, its image is 16×16",)),
    (lambda c: c["shapes"][0].update(points=[[1, 2], [3, 4]]), ("one pair (x, y)",)),
    (lambda c: c["shapes"][0].update(points=3), ("one pair (x, y)",)),
    (lambda c: c["shapes"][0].update(points=[["a", "b"]]), ("one pair (x, y)",)),
    (lambda c: c["shapes"][0].update(points=[[float("nan"), 2]]), ("one pair (x, y)",)),
    (lambda c: c["shapes"][0].update(points=[[1e300, 2]]), ("one pair (x, y)",)),
    (lambda c: c["shapes"][0].update(points=[[10**400, 2]]), ("one pair (x, y)",)),
    (lambda c: c["shapes"][0].update(label=["nose"]), ("unknown point ['nose']",)),
    (lambda c: c["shapes"][0].update(shape_type={"a": 1}), ("marks no point",)),
]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"label": "nose", "shape_type": "polygon", "points": [[1, 1], [5, 1], [5, 5]]}, "draw it as a point"),
        ({"label": SCHEMA.classes[1], "shape_type": "point", "points": [[1, 1]]}, "draw it as an outline"),
    ],
)
def test_a_shape_of_the_other_kind(both: Path, shape: Content, words: str) -> None:
    write_labelme_points(both)
    write_masks(both)
    change(first_file(both), lambda c: c["shapes"].append({"flags": {}, "group_id": None, **shape}))
    assert any(words in output and shape["label"] in output for output in mistakes(both))


def test_a_copy_that_was_given_back_is_read_itself(folder: Path, both: Path, tmp_path: Path) -> None:
    write_labelme_points(folder)
    back = Path(shutil.copytree(folder, tmp_path / "back"))
    change(back / "images" / first_file(folder).name, lambda c: c["shapes"][0].update(points=[[3, 4]]))
    found = points_of(load_annotations(folder, files=back))
    assert (
        found[0, 0].tolist() == [3, 4, 2] and found[0, 0].tolist() != points_of(load_annotations(folder))[0, 0].tolist()
    )
    change(both / "annotations.json", lambda c: c["images"][0].update(sha256="0" * 64))
    with pytest.raises(AnnotationError, match="an export of other images"):
        load_annotations(folder, files=both)


@pytest.mark.parametrize(("file", "lost"), [("classes.json", "mask"), ("targets.json", "keypoints")])
def test_a_lost_description_of_a_label_is_no_smaller_task(both: Path, file: str, lost: str) -> None:
    write_labelme_points(both)
    write_masks(both)
    (both / file).unlink()
    (output,) = mistakes(both)
    assert file in output and lost in output and "restore it" in output


@pytest.mark.parametrize(("edit", "words"), SHAPES)
def test_mistakes_in_labelme_files(folder: Path, edit: Callable[[Content], object], words: tuple[str, ...]) -> None:
    write_labelme_points(folder)
    change(first_file(folder), edit)
    (output,) = mistakes(folder)
    assert names(folder)[0] in output and all(each in output for each in words), output


def put(number: int, value: object) -> Callable[[Content], object]:
    return lambda c: c["annotations"][0]["keypoints"].__setitem__(number, value)


KEYPOINTS: list[tuple[Callable[[Content], object], tuple[str, ...]]] = [
    (lambda c: c["categories"][0]["keypoints"].__setitem__(0, "Nose"), ("unknown point 'Nose'",)),
    (lambda c: c["categories"][0]["keypoints"].__setitem__(0, "left_eye"), ("the point 'left_eye' is there 2 times",)),
    (lambda c: c["categories"][0].update(keypoints=["nose"]), ("has 3 keypoints, and its category names 1",)),
    (lambda c: c["categories"][0].update(keypoints=3), ("its category names no keypoints",)),
    (lambda c: c["annotations"][0].update(category_id=9), ("its category names no keypoints",)),
    (lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}), ("several instances (annotation 1, annot",)),
    (put(2, 3), ("whose v are 0, 1 or 2",)),
    (put(2, 1.5), ("whose v are 0, 1 or 2",)),
    (put(2, None), ("whose v are 0, 1 or 2",)),
    (put(0, float("nan")), ("a flat list x, y, v",)),
    (put(0, 10**400), ("a flat list x, y, v",)),
    (put(0, [[1]]), ("a flat list x, y, v",)),
    (put(0, 17), ("'nose' (annotation 1) is at (17, 9.5), outside",)),
    (lambda c: c["annotations"][0].update(keypoints=[1, 2]), ("a flat list x, y, v",)),
    (lambda c: c["annotations"][0].update(keypoints="1 2 2"), ("a flat list x, y, v",)),
    (lambda c: c["annotations"][0].update(keypoints={"nose": 3}), ("a flat list x, y, v",)),
    (lambda c: c["annotations"].pop(0), ("has no annotation",)),
    (lambda c: c["images"][0].update(height=32), ("is 16×32 pixels",)),
]


@pytest.mark.parametrize(("edit", "words"), KEYPOINTS)
def test_mistakes_in_coco_files(folder: Path, edit: Callable[[Content], object], words: tuple[str, ...]) -> None:
    write_coco_points(folder)
    change(folder / "coco_keypoints.json", edit)
    output = mistakes(folder)
    assert names(folder)[0] in output[0] and all(each in output[0] for each in words), output


@pytest.mark.parametrize("kind", ["nested", "digits", "twice"])
def test_hostile_json_is_a_mistake_of_its_file(folder: Path, kind: str) -> None:
    write_labelme_points(folder)
    content = HOSTILE_JSON[kind]
    first_file(folder).write_bytes(content)
    (output,) = mistakes(folder)
    assert first_file(folder).name in output and len(output) < 400
    (folder / "targets.json").write_bytes(content)
    assert "targets.json" in mistakes(folder)[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "expected a list of labels"),
        ("[3]", "unknown kind"),
        ('[{"kind": "keypoints"}]', "damaged description"),
        ('[{"kind": "keypoints", "names": ["a", "a"]}]', "no name twice"),
        ('[{"kind": "keypoints", "names": ["a"]}, {"kind": "keypoints", "names": ["b"]}]', "described twice"),
        ('[{"kind": "keypoints", "names": ["a"], "flip_pairs": [[0, 5]]}]', "flip_pairs"),
        ('[{"kind": "dense_map", "field": "../x", "low": 0, "high": 1}]', "field must be"),
        ('[{"kind": "dense_map", "field": "depth", "low": 0, "high": NaN}]', "low and high"),
        ('[{"kind": "segmentation", "classes": [{"name": "a"}, {"name": "__ignore__"}]}]', "cannot be called"),
        ("[]", "must be labels"),
    ],
)
def test_descriptions_of_labels_that_make_no_sense(folder: Path, content: str, words: str) -> None:
    write_labelme_points(folder)
    (folder / "targets.json").write_text(content)
    (output,) = mistakes(folder)
    assert output.startswith("targets.json") and words in output, output


def test_missing_annotations_may_be_left_out_and_points_without_a_mark_are_not_there(folder: Path) -> None:
    points = write_labelme_points(folder)
    first_file(folder).unlink()
    (output,) = mistakes(folder)
    assert "has no annotation" in output
    change(folder / "images" / f"{names(folder)[2]}.json", lambda c: c["shapes"].pop(1))
    points[2, 1] = 0
    found = load_annotations(folder, allow_missing=True)
    assert np.array_equal(points_of(found), points[1:]) and found.names == tuple(names(folder)[1:])
    assert any("left_eye: not marked, so taken as not in the image" in warning for warning in found.warnings)
    for name in names(folder)[1:]:
        (folder / "images" / f"{name}.json").unlink()
    (output,) = mistakes(folder, allow_missing=True)
    assert "nothing is annotated yet: put images/NAME.json (LabelMe), labelstudio.json or coco.json here" in output


# ------------------------------------------------------------------------------------- left and right


def faces(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    turn = torch.rand(count, generator=random) * 1.6 - 0.8  # in the picture, up to 46 degrees
    width = torch.rand(count, generator=random) * 20 + 4
    points = torch.full((count, 3, 3), 2.0)
    points[:, 0, :2] = 32
    for i, side in ((1, 1), (2, -1)):
        points[:, i, 0] = 32 + side * width * turn.cos()
        points[:, i, 1] = 20 + side * width * turn.sin()
    return points


def test_sides_that_were_exchanged_in_one_image_are_found_and_no_others() -> None:
    points = faces(16)
    assert not any(exchanged(points, (1, 2)))
    for row in range(16):
        swapped = points.clone()
        swapped[row, [1, 2]] = points[row, [2, 1]]
        assert [i for i, found in enumerate(exchanged(swapped, (1, 2))) if found] == [row]
    for row in (3, 7):
        points[row, [1, 2]] = points[row, [2, 1]]
    assert [i for i, found in enumerate(exchanged(points, (1, 2))) if found] == [3, 7]


def test_objects_that_point_everywhere_have_no_sides_to_compare() -> None:
    angle = torch.linspace(0, 6.28, 16)
    points = torch.full((16, 2, 3), 2.0)
    points[:, 0, :2] = 32 + 9 * torch.stack([angle.cos(), angle.sin()], 1)
    points[:, 1, :2] = 32 - 9 * torch.stack([angle.cos(), angle.sin()], 1)
    assert not any(exchanged(points, (0, 1)))
    assert not any(exchanged(faces(3).index_select(1, torch.tensor([0, 2, 1])), (1, 2)))  # too few to say


def test_exchanged_sides_are_a_warning_that_names_image_and_points(tmp_path: Path) -> None:
    labeled = small_labeled()
    folder = tmp_path / "five"
    export_annotations(labeled.generator, POINTS, folder, num_samples=5, select="random", recipe=labeled.recipe)
    points = [places(0) for _ in names(folder)]
    points[2][[1, 2]] = points[2][[2, 1]]
    files = [f"{name}.png" for name in names(folder)]
    write(folder / "coco.json", coco_file(files, SIZE, points_part(points, POINTS)))
    (warning,) = load_annotations(folder).warnings
    assert warning.startswith(f"{names(folder)[2]}: left and right seem exchanged") and "left_eye and right" in warning


# ------------------------------------------------------------------------------------ masks beside points


def write_both(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """One LabelMe file for masks and points."""
    points = write_labelme_points(folder)
    marked = {name: json.loads((folder / "images" / f"{name}.json").read_text())["shapes"] for name in names(folder)}
    masks = write_labelme(folder)
    for name, shapes in marked.items():
        path = folder / "images" / f"{name}.json"
        content = json.loads(path.read_text())
        write(path, {**content, "shapes": [*content["shapes"], *shapes]})
    return masks, points


def same(found: Annotations, masks: np.ndarray, points: np.ndarray) -> bool:
    return np.array_equal(found.masks.numpy(), masks) and np.array_equal(points_of(found), points)


def test_one_labelme_file_may_hold_masks_and_points(both: Path) -> None:
    masks, points = write_both(both)
    found = load_annotations(both, GENERATOR, device="cpu")
    assert same(found, masks, points) and not found.warnings
    assert found.targets == (SCHEMA, POINTS) and found.schema == SCHEMA


def test_masks_may_be_painted_and_points_marked(both: Path) -> None:
    masks, points = write_masks(both), write_labelme_points(both)
    assert same(load_annotations(both), masks, points)
    for path in (both / "images").glob("*.json"):
        path.unlink()
    write_coco_points(both)
    assert same(load_annotations(both), masks, points)
    elsewhere = both / "coco_keypoints.json"
    elsewhere.rename(both.parent / "given.json")
    assert same(load_annotations(both, files=both.parent / "given.json"), masks, points)


def test_masks_in_two_places_are_a_mistake_with_a_way_out(both: Path) -> None:
    _, points = write_both(both)
    painted = write_masks(both)
    painted[:, 0, 0] = 3
    for name, mask in zip(names(both), painted, strict=True):
        (both / "masks" / f"{name}.png").write_bytes(png(mask, palette=SCHEMA.palette))
    output = mistakes(both)
    first = names(both)[0]
    assert len(output) == 3 and f"masks/{first}.png and images/{first}.json both annotate its mask" in output[0]
    assert same(load_annotations(both, format="masks"), painted, points)


def test_an_image_needs_both_labels(both: Path) -> None:
    masks, points = write_masks(both), write_labelme_points(both)
    first_file(both).unlink()
    (output,) = mistakes(both)
    assert output.startswith(f"{names(both)[0]}: has no keypoints:")
    found = load_annotations(both, allow_missing=True)
    assert same(found, masks[1:], points[1:])
    assert any("has no keypoints, so it was left out" in warning for warning in found.warnings)


def test_a_mistake_of_a_file_is_noted_once(both: Path) -> None:
    write_both(both)
    change(first_file(both), lambda c: c.update(imageHeight=32, imageWidth=32))
    assert len(mistakes(both)) == 1


# ----------------------------------------------------------------------------------------------- rounds


@pytest.fixture
def rounds(folder: Path, tmp_path: Path) -> list[Path]:
    labeled = small_labeled()
    other = Keypoints(("right_eye", "nose", "left_eye"), flip_pairs=((0, 2),))
    export_annotations(labeled.generator, other, tmp_path / "later", num_samples=2, earlier=[folder], select="random")
    write_labelme_points(folder)
    for name in names(tmp_path / "later"):
        shapes = json.loads(first_file(folder).read_text())["shapes"]
        write(tmp_path / "later" / "images" / f"{name}.json", {"shapes": shapes})
    return [folder, tmp_path / "later"]


def test_rounds_agree_by_the_names_of_points(rounds: list[Path]) -> None:
    found = load_annotations(rounds)
    assert found.targets == (POINTS,) and np.array_equal(points_of(found)[3:], np.stack([places(0)] * 2))


def test_rounds_with_other_labels_are_mistakes(rounds: list[Path], both: Path) -> None:
    change_points = json.loads((rounds[1] / "targets.json").read_text())
    change_points[0].update(names=["right_eye", "nose", "ear"])
    write(rounds[1] / "targets.json", change_points)
    with pytest.raises(AnnotationError) as caught:
        load_annotations(rounds, allow_missing=True)
    assert "unknown point 'left_eye'" in str(caught.value)
    write_both(both)
    with pytest.raises(AnnotationError) as caught:
        load_annotations([rounds[0], both])
    assert "points: has no mask, which both has" in str(caught.value)


# ------------------------------------------------------------------------------------------ the commands


def test_projects_for_annotation_tools_have_the_points_as_labels(exported: dict[str, Path]) -> None:
    folder = exported["both"]
    assert (folder / "labels.txt").read_text().split() == [*SCHEMA.classes, "__ignore__", *POINTS.names]
    ((pattern, flags),) = json.loads((folder / "label_flags.json").read_text()).items()
    assert flags == ["hidden", "absent"] and pattern == "^(nose|left_eye|right_eye)$"
    skeleton = json.loads((folder / "cvat" / "labels.json").read_text())[-1]
    assert skeleton["type"] == "skeleton" and [s["name"] for s in skeleton["sublabels"]] == list(POINTS.names)
    picture = ElementTree.fromstring(f"<svg>{skeleton['svg']}</svg>")
    nodes = picture.findall("circle")
    assert [node.get("data-label-name") for node in nodes] == list(POINTS.names)
    edges = {(edge.get("data-node-from"), edge.get("data-node-to")) for edge in picture.findall("line")}
    assert edges == {("1", "2"), ("1", "3")} and [n.get("data-node-id") for n in nodes] == ["1", "2", "3"]
    text = (folder / "README.txt").read_text()
    assert all(word in text for word in ("--labelflags label_flags.json", "COCO Keypoints 1.0", "own: of somebody"))
    assert json.loads((folder / "targets.json").read_text()) == [POINTS.to_dict()]
    assert not (exported["points"] / "classes.json").exists()


def test_export_and_check_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    export = export_command(out)
    assert main([*export, "--keypoints", "nose,left_eye,right_eye"]) == 0
    assert "keypoints: 3 points: nose, left_eye, right_eye" in capsys.readouterr().out
    write_labelme_points(out)
    assert main(["annotate", "check", str(out), "--generator", str(GENERATOR), "--device", "cpu"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "nose", "2", "0", "1"] in printed and ["2", "right_eye", "0", "3", "0"] in printed
    assert (out / "check.png").is_file()
    found = load_annotations(out)
    assert found.targets == (Keypoints(POINTS.names, flip_pairs=((1, 2),)),)
    points = tmp_path / "points.json"
    write(points, {"names": ["a", "b"], "skeleton": [[0, 1]], "left": "a remark"})
    more = [*export[:3], str(tmp_path / "b"), *export[4:]]
    assert main([*more, "--classes", "background,eye", "--keypoints", str(points)]) == 0
    assert load_text(tmp_path / "b" / "targets.json")[0]["skeleton"] == [[0, 1]]
    listed, nameless = tmp_path / "listed.json", tmp_path / "nameless.json"
    write(listed, ["nose"])
    write(nameless, [{"kind": "keypoints"}])
    for given, words in (
        (["--keypoints", "missing.json"], "cannot be read"),
        (["--keypoints", "a,a"], "no name twice"),
        (["--keypoints", str(listed)], "expected an object"),
        (["--targets", str(nameless)], "it lacks 'names'"),
    ):
        assert main([*more, *given]) == 2
        assert words in capsys.readouterr().err


def load_text(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_flag_that_says_nothing_of_a_point_is_a_warning(folder: Path) -> None:
    write_labelme_points(folder)
    change(first_file(folder), lambda c: c["shapes"][0].update(flags={"Hiden": True, "difficult": False}))
    (warning,) = load_annotations(folder).warnings
    assert "the flag Hiden says nothing of a point; those that do are hidden, occluded, absent, outside" in warning
    change(first_file(folder), lambda c: c["shapes"][0].update(flags=["hidden"]))
    assert "its flags are ['hidden'], not an object" in mistakes(folder)[0]


def test_a_misspelled_key_of_a_description_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = tmp_path / "points.json"
    described.write_text(json.dumps({"names": ["left_eye", "right_eye"], "flip_pair": [[0, 1]], "source": "a comment"}))
    export = ["annotate", "export", str(GENERATOR), str(tmp_path / "out"), "--num-samples", "1"]
    assert main([*export, "--keypoints", str(described)]) == 2
    assert "described with 'flip_pair'; rename it to 'flip_pairs', or remove it" in capsys.readouterr().err
    described.write_text(described.read_text().replace("flip_pair", "flip_pairs"))
    assert main([*export, "--keypoints", str(described), "--device", "cpu"]) == 0
