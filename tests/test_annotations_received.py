"""Annotations as people get them from their tools: renamed, packed, saved again, half done, damaged or hostile."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_folders import (
    SIZE,
    blocks,
    change,
    equal,
    mistakes,
    names,
    write,
    write_coco,
    write_labelme,
    write_masks,
)
from conftest import SCHEMA
from PIL import Image

from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.annotations.folder import IGNORE
from dsgan_datasets.images import png

Writer = Callable[[Path], Any]


# ------------------------------------------------------------------------------------------------- names


RENAMED = [
    "a1b2c3d4-{}.png",
    r"images\a1b2c3d4-{}.png",
    "/data/upload/1/ab12cd34-{}.png",
    "/data/local-files/?d=work%5C{}.png",
    "{}_png.rf.0123456789abcdef0123456789abcdef.jpg",
    "upload ({}).JPEG",
    "https://host/some%20where/{}.png?versionId=3",
]


@pytest.mark.parametrize("form", RENAMED)
def test_images_that_a_tool_renamed_are_recognized_in_coco(folder: Path, form: str) -> None:
    masks = write_coco(folder)
    change(folder / "coco.json", lambda c: [i.update(file_name=form.format(i["file_name"][:-4])) for i in c["images"]])
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize("form", ["task-1 {} label", "{}_mask", "deeper/{}", "{}_json/label"])
@pytest.mark.parametrize("writer", [write_masks, write_labelme])
def test_files_that_a_tool_renamed_are_recognized(folder: Path, writer: Writer, form: str) -> None:
    masks = writer(folder)
    ending = ".png" if writer is write_masks else ".json"
    for path in sorted((folder / ("masks" if writer is write_masks else "images")).glob(f"*{ending}")):
        new = path.parent / (form.format(path.stem) + ending)
        new.parent.mkdir(exist_ok=True)
        path.rename(new)
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize("form", ["1{}.png", "{}x.png", "é{}.png", ""])
def test_a_name_within_a_longer_word_is_no_name(folder: Path, form: str) -> None:
    write_coco(folder)
    first = names(folder)[0]
    change(folder / "coco.json", lambda c: c["images"][0].update(file_name=form.format(first)))
    output = "\n".join(mistakes(folder))
    assert f"{first}: has no annotation" in output
    assert "no such image was exported" in output or "needs a file name" in output


def test_what_may_be_of_two_images_is_refused_with_both_names(folder: Path) -> None:
    write_coco(folder)
    first, second, _ = names(folder)
    change(folder / "coco.json", lambda c: c["images"][0].update(file_name=f"{first}-{second}.png"))
    assert any(first in output and second in output and "several images" in output for output in mistakes(folder))
    write_coco(folder)
    change(folder / "coco.json", lambda c: c["images"][0].update(file_name=f"x-{second}.png"))
    assert any(f"are both {second}" in output for output in mistakes(folder))
    (folder / "coco.json").unlink()
    write_masks(folder)
    (folder / "masks" / f"{first}.png").rename(folder / "masks" / f"{first}+{second}.png")
    assert any(first in output and second in output and "several images" in output for output in mistakes(folder))


def test_the_exact_name_counts_before_copies(folder: Path) -> None:
    masks = write_masks(folder)
    first = names(folder)[0]
    other = png(np.zeros(SIZE, np.uint8), palette=SCHEMA.palette)
    for name in (f"{first} copy.png", f"a-{first}_overlay.png"):
        (folder / "masks" / name).write_bytes(other)
    found = load_annotations(folder)
    assert equal(found, masks) and len(found.warnings) == 2 and "was passed over" in found.warnings[0]
    (folder / "masks" / f"{first}.png").unlink()
    assert any("keep one of them" in output for output in mistakes(folder))


def test_pictures_of_no_image_are_mistakes_only_where_they_may_be_the_missing_one(folder: Path) -> None:
    masks = write_masks(folder)
    (folder / "masks" / "legend.png").write_bytes(png(np.zeros((9, 9), np.uint8)))
    found = load_annotations(folder)
    assert equal(found, masks) and "legend: no such image" in found.warnings[0]
    (folder / "masks" / f"{names(folder)[0]}.png").unlink()
    assert any("legend: no such image" in output for output in mistakes(folder, allow_missing=True))


# ------------------------------------------------------------------------------------------ ids and sizes


@pytest.mark.parametrize("form", [str, float, lambda n: f" {n} ", lambda n: f"{n}.0"])
@pytest.mark.parametrize(
    "places", [("images", "id"), ("categories", "id"), ("annotations", "image_id"), ("annotations", "category_id")]
)
def test_an_id_is_the_same_whatever_its_type(folder: Path, places: tuple[str, str], form: Callable[[int], Any]) -> None:
    masks = write_coco(folder)
    part, key = places
    change(folder / "coco.json", lambda c: [entry.update({key: form(entry[key])}) for entry in c[part]])
    assert equal(load_annotations(folder), masks)


def test_ids_may_be_words(folder: Path) -> None:
    masks = write_coco(folder)

    def edit(content: dict[str, Any]) -> None:
        for part, key in (("images", "id"), ("annotations", "image_id")):
            for entry in content[part]:
                entry[key] = f"frame-{entry[key]}"

    change(folder / "coco.json", edit)
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize("value", [True, 1.5, None, [1], {"a": 1}, float("nan")])
def test_what_is_no_id_is_refused(folder: Path, value: object) -> None:
    write_coco(folder)
    change(folder / "coco.json", lambda c: c["images"][0].update(id=value))
    assert any("a number or text as id" in output for output in mistakes(folder))
    write_coco(folder)
    change(folder / "coco.json", lambda c: c["annotations"][0].update(image_id=value))
    assert any("which is not a number or text" in output for output in mistakes(folder))
    write_coco(folder)
    change(folder / "coco.json", lambda c: c["annotations"][0].update(category_id=value))
    assert any("unknown class" in output for output in mistakes(folder))


@pytest.mark.parametrize("value", [16, 16.0, "16", "16.0", " 16 ", None])
@pytest.mark.parametrize("writer", [write_coco, write_labelme])
def test_a_right_size_may_have_any_type(folder: Path, writer: Writer, value: object) -> None:
    masks = writer(folder)
    set_sizes(folder, value, value)
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize(
    ("writer", "value", "both"),
    [
        *((write_coco, value, True) for value in (32.0, "32", "32.0", 16.5, "wide", float("nan"))),
        *((write_labelme, value, False) for value in (32.0, "32", [16], True, 1e999, 0, "")),
    ],
)
def test_a_wrong_size_is_refused_whatever_its_type(folder: Path, writer: Writer, value: object, both: bool) -> None:
    writer(folder)
    set_sizes(folder, value, value if both else 16)
    output = mistakes(folder)
    assert all("pixels, its image is 16×16" in mistake or "is not in whole pixels" in mistake for mistake in output)


def set_sizes(folder: Path, width: object, height: object) -> None:
    if (folder / "coco.json").exists():
        change(folder / "coco.json", lambda c: [i.update(width=width, height=height) for i in c["images"]])
    for path in (folder / "images").glob("*.json"):
        change(path, lambda c: c.update(imageWidth=width, imageHeight=height))


@pytest.mark.parametrize("side", ["16", 16.0, "16.0"])
def test_the_size_of_run_lengths_may_have_any_type(folder: Path, side: object) -> None:
    masks = write_coco(folder)
    flat = (masks[0] == 1).T.flatten()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    rle = {"size": [side, side], "counts": np.diff(edges, prepend=0).astype(float).tolist()}
    change(
        folder / "coco.json", lambda c: c.update(annotations=[{"image_id": 1, "category_id": 2, "segmentation": rle}])
    )
    assert np.array_equal(load_annotations(folder, allow_missing=True).masks[0].numpy(), masks[0] == 1)


# --------------------------------------------------------------------------------------------- half done


@pytest.mark.parametrize("writer", [write_coco, write_labelme])
def test_images_listed_without_shapes_are_missing(folder: Path, writer: Writer) -> None:
    masks = writer(folder)
    second = names(folder)[1]
    if writer is write_coco:
        change(
            folder / "coco.json", lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 2])
        )
    else:
        change(folder / "images" / f"{second}.json", lambda c: c.update(shapes=[]))
    assert equal(load_annotations(folder, allow_missing=True), masks[[0, 2]])
    (output,) = mistakes(folder)
    assert output.startswith(f"{second}: has no annotation")


def test_coco_may_list_images_of_other_folders_without_annotations(folder: Path) -> None:
    masks = write_coco(folder)
    change(folder / "coco.json", lambda c: c["images"].append({"id": 9, "file_name": "holiday.png"}))
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize("how", ["ids", "colors", "labelme", "coco"])
def test_a_mask_with_nothing_but_ignored_pixels_says_which_value_that_is(folder: Path, how: str) -> None:
    write(folder / "classes.json", {"classes": [{"name": "background"}, {"name": "object"}]})
    square = [[2, 2], [9.5, 2], [9.5, 9], [2, 9]]
    for image_id, name in enumerate(names(folder), 1):
        mask = np.zeros(SIZE, np.uint8)
        mask[2:9, 2:9] = 255
        (folder / "masks").mkdir(exist_ok=True)
        if how in ("ids", "colors"):
            Image.fromarray(mask).convert("L" if how == "ids" else "RGB").save(folder / "masks" / f"{name}.png")
        elif how == "labelme":
            write(folder / "images" / f"{name}.json", {"shapes": [{"label": IGNORE, "points": square}]})
        else:
            annotation = {"image_id": image_id, "category_id": 1, "segmentation": [np.ravel(square).tolist()]}
            image = {"id": image_id, "file_name": f"{name}.png"}
            write(
                folder / "coco.json",
                {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": IGNORE}]},
            )
    output = mistakes(folder, allow_missing=True)[0]
    assert "the mask is empty" in output and "255" in output and "white" in output and "1 for 'object'" in output


# ------------------------------------------------------------------------------------------- handed over


def packed(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def taken(folder: Path, pattern: str, inside: str) -> dict[str, bytes]:
    """Files of the folder, under the names that they have in an archive; they are no longer in the folder."""
    found = {f"{inside}{path.name}": path.read_bytes() for path in folder.glob(pattern)}
    for path in folder.glob(pattern):
        path.unlink()
    return found


ARCHIVED = [
    (write_coco, "coco.json", "annotations/"),
    (write_coco, "coco.json", ""),
    (write_coco, "coco.json", "train/deeper/"),
    (write_labelme, "images/*.json", "labels/"),
    (write_masks, "masks/*.png", "SegmentationClass/"),
]


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize(("writer", "pattern", "inside"), ARCHIVED)
def test_what_a_tool_hands_out_is_read_packed_and_unpacked(
    folder: Path, tmp_path: Path, writer: Writer, pattern: str, inside: str, unpacked: bool
) -> None:
    masks = writer(folder)
    more = {"__MACOSX/._x.json": b"\0", "labelmap.txt": b"skin:255,0,0::\n", "data.yaml": b"names: []\n"}
    archive = packed(tmp_path / "task 7.zip", more | taken(folder, pattern, inside))
    if unpacked:
        zipfile.ZipFile(archive).extractall(tmp_path / "task 7")
    given = archive.with_suffix("") if unpacked else archive
    assert equal(load_annotations(folder, files=given), masks)
    if unpacked:
        deepest = next(path for path in given.rglob("*.*") if path.suffix in (".json", ".png") and path.stem[0] != ".")
        assert equal(load_annotations(folder, files=deepest.parent), masks)


def test_coco_in_several_files_is_joined_if_no_image_is_in_two(folder: Path, tmp_path: Path) -> None:
    masks = write_coco(folder)
    whole = json.loads((folder / "coco.json").read_text())
    for split, ids in (("train", (1, 3)), ("valid", (2,))):
        part = {key: [e for e in whole[key] if e.get("image_id", e["id"]) in ids] for key in ("images", "annotations")}
        (tmp_path / "all" / split).mkdir(parents=True)
        write(tmp_path / "all" / split / "_annotations.coco.json", {**whole, **part})
    assert equal(load_annotations(folder, files=tmp_path / "all"), masks)
    write(tmp_path / "all" / "again.json", whole)
    assert any(
        "both annotate its mask: keep one of them" in output for output in mistakes(folder, files=tmp_path / "all")
    )


def test_a_file_may_have_any_name(folder: Path, tmp_path: Path) -> None:
    masks = write_coco(folder)
    (folder / "coco.json").rename(tmp_path / "result (1).txt")
    assert equal(load_annotations(folder, files=tmp_path / "result (1).txt"), masks)


@pytest.mark.parametrize("place", ["annotations/instances_default.json", "task.zip", "export/task.zip"])
def test_what_lies_in_a_wrong_place_is_named(folder: Path, place: str) -> None:
    packed(folder / place, {"a": b""})
    (output,) = mistakes(folder)
    assert "nothing is annotated yet" in output and f"here is {place}" in output


SHORT_TASKS = json.dumps([{"id": 1, "image": "a.png", "label": []}]).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'<?xml version="1.0"?>\n<annotations><version>1.1</version></annotations>', "holds XML, not JSON. CVAT"),
        (b"<!DOCTYPE html><html>sign in", "holds an HTML page"),
        (b"image,class,x,y\na.png,eye,1,2\n", "a table (CSV)"),
        (b"image;class\na.png;eye\n", "a table (CSV)"),
        (b"0 0.5 0.5 0.1 0.2\n", "is not valid JSON"),
        (b"", "is empty"),
        (b"\x1f\x8b\x08" + bytes(20), "holds a gzip archive"),
        (b"PK\x03\x04" + bytes(50), "damaged zip archive"),
        (b"\x80\x04\x95" + bytes(20), "holds a pickle"),
        (b"%PDF-1.7", "holds PDF"),
        ("{“id”: 1}".encode("cp1252"), "is not UTF-8 text"),
        (b"[1, 2]", "neither COCO, LabelMe nor Label Studio"),
        (SHORT_TASKS, "a list of objects with id, image, label"),
        (b'{"item": {"name": "a"}}', "an object with item"),
        (b'{"images": [], "categories": []}', "needs lists of images, annotations and categories"),
        (
            b'{"images": [], "categories": [], "annotations": [{"image_id": 1, "segments_info": []}]}',
            "is panoptic COCO",
        ),
    ],
)
def test_what_is_something_else_is_named_for_what_it_is(
    folder: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    for name in ("given.json", "given.dat"):
        (tmp_path / name).write_bytes(content)
        output = mistakes(folder, files=tmp_path / name)[0]
        assert words in output and name in output


def test_folders_without_annotations_say_what_they_hold(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    for name in ("a.txt", "b.txt", "data.yaml"):
        (tmp_path / "yolo" / name).write_text("")
    assert "2 of .txt, 1 of .yaml" in mistakes(folder, files=tmp_path / "yolo")[0]
    (tmp_path / "yolo" / "a.xml").write_text("<annotation/>")
    (output,) = mistakes(folder, files=tmp_path / "nowhere")
    assert "no such file or folder" in output


# ------------------------------------------------------------------------------------------ JSON saved again


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_that_an_editor_saved_again_is_read(folder: Path, encoding: str) -> None:
    masks = write_coco(folder)
    for name in ("classes.json", "annotations.json", "coco.json"):
        (folder / name).write_text((folder / name).read_text(), encoding=encoding)
    assert equal(load_annotations(folder), masks)
    (folder / "coco.json").unlink()
    masks = write_labelme(folder)
    for path in (folder / "images").glob("*.json"):
        path.write_text(path.read_text(), encoding=encoding)
    assert equal(load_annotations(folder), masks)


HOSTILE_JSON = {
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested in an object": b'{"shapes": ' * 50_000 + b"1" + b"}" * 50_000,
    "digits": b'{"shapes": [{"label": "hat", "points": [[' + b"9" * 5000 + b", 1]]}]}",
    "twice": b'{"shapes": [], "shapes": [{"label": "hat"}], "images": [], "classes": []}',
    "twice among many": b'{"shapes": [], ' + b",".join(b'"%d": 0' % i for i in range(300_000)) + b', "299999": 0}',
    "many objects": b"[" + b"{}," * 3_000_000 + b"{}]",
    "many lists": b"[" + b"[]," * 8_000_000 + b"[]]",
}


@pytest.mark.parametrize("content", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_is_a_mistake_of_its_file(folder: Path, content: bytes) -> None:
    write_labelme(folder)
    path = folder / "images" / f"{names(folder)[0]}.json"
    path.write_bytes(content)
    (output,) = mistakes(folder)
    assert path.name in output and len(output) < 400
    for name in ("classes.json", "annotations.json"):
        (folder / name).write_bytes(content)
        assert name in mistakes(folder)[0]


def test_numbers_that_are_none_do_no_harm_where_nothing_depends_on_them(folder: Path) -> None:
    """pandas writes NaN where a cell was empty."""
    masks = write_coco(folder)
    nan = float("nan")
    change(folder / "coco.json", lambda c: [a.update(area=nan, iscrowd=nan, score=nan) for a in c["annotations"]])
    assert equal(load_annotations(folder), masks)


# --------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (3, 1, 0, 2), (0, 2, 1, 3)])
@pytest.mark.parametrize("stray", [None, (255, 255, 255), (17, 3, 99)])
@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_in_another_order_is_refused_whatever_else_is_in_the_picture(
    folder: Path, order: tuple[int, ...], stray: tuple[int, int, int] | None, transparent: bool
) -> None:
    write_masks(folder)
    ids = np.argsort(order)[blocks(0)].astype(np.uint8)
    colors = [SCHEMA.palette[i] for i in order]
    if stray:
        ids[0, 0], colors = 4, [*colors, stray]
    picture = Image.fromarray(ids)
    picture.putpalette([value for color in colors for value in color])
    options = {"transparency": 4} if transparent else {}
    picture.save(folder / "masks" / f"{names(folder)[0]}.png", **options)
    (output,) = mistakes(folder)
    assert "its palette was reordered" in output and "Save it as RGB" in output


def test_white_among_the_colors_of_classes_is_not_a_class(folder: Path) -> None:
    """An editor that numbers colors by their first use: the ids of the classes happen to be right."""
    write_masks(folder)
    ids = blocks(0).astype(np.uint8)
    ids[ids == 3] = 0
    ids[0, :5] = 3
    picture = Image.fromarray(ids)
    picture.putpalette([v for color in (*SCHEMA.palette[:3], (255, 255, 255)) for v in color])
    picture.save(folder / "masks" / f"{names(folder)[0]}.png")
    (output,) = mistakes(folder)
    assert "id 3 is shown in white" in output


@pytest.mark.parametrize("colors", [[(0, 0, 0), (255, 255, 255)], [(9, 9, 9), (8, 8, 8), (7, 7, 7), (6, 6, 6)]])
def test_with_a_palette_of_its_own_the_ids_count(folder: Path, colors: list[tuple[int, int, int]]) -> None:
    masks = write_masks(folder)
    mask = np.minimum(blocks(0), len(colors) - 1).astype(np.uint8)
    picture = Image.fromarray(mask)
    picture.putpalette([v for color in colors for v in color])
    picture.save(folder / "masks" / f"{names(folder)[0]}.png")
    masks[0] = mask
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_mask_of_another_format_is_refused_whatever_its_name(folder: Path, kind: str) -> None:
    write_masks(folder)
    file = io.BytesIO()
    Image.fromarray(blocks(0).astype(np.uint8)).convert("RGB").save(file, format=kind)
    first = names(folder)[0]
    (folder / "masks" / f"{first}.png").write_bytes(file.getvalue())
    (output,) = mistakes(folder)
    assert f"{first}.png: holds {kind}, not PNG" in output
    (folder / "masks" / f"{first}.png").rename(folder / "masks" / f"{first}.{kind.lower()}")
    output = "\n".join(mistakes(folder))
    assert f"{first}.{kind.lower()}: is not a PNG file but {kind}" in output


@pytest.mark.parametrize(
    "left",
    ["{}.xcf", "{}.png.aux.xml", "{}.png~", "{}.psd", "{}.txt", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.md",
     "__MACOSX/._{}.png", "@eaDir/{}.png", ".ipynb_checkpoints/{}.png", ".{}.png.swp"],
)  # fmt: skip
def test_working_files_beside_masks_are_passed_over(folder: Path, left: str) -> None:
    masks = write_masks(folder)
    path = folder / "masks" / left.format(names(folder)[1])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"gimp xcf v011")
    found = load_annotations(folder)
    assert equal(found, masks) and len(found.warnings) <= 1


@pytest.mark.parametrize("left", ["{}.json~", "{}.json.bak", "labels.json", "settings.json", ".labelme.json"])
def test_working_files_beside_labelme_files_are_passed_over(folder: Path, left: str) -> None:
    masks = write_labelme(folder)
    (folder / "images" / left.format(names(folder)[1])).write_text('{"colors": 3}')
    found = load_annotations(folder)
    assert equal(found, masks) and len(found.warnings) <= 1


def test_a_working_file_alone_is_named_for_what_it_is(folder: Path) -> None:
    write_masks(folder)
    path = folder / "masks" / f"{names(folder)[1]}.png"
    path.with_suffix(".xcf").write_bytes(b"gimp xcf v011")
    path.unlink()
    assert f"{path.stem}.xcf: is not a PNG file but GIMP" in "\n".join(mistakes(folder))


# ----------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("kind", ["oriented_rectangle", "rotation", "rectangle", "quadrilateral", "polygon", None])
def test_shapes_of_corners_are_filled_as_their_tools_fill_them(folder: Path, kind: str | None) -> None:
    write_labelme(folder)
    corners = [[8.2, 1], [14.2, 7], [8.2, 13], [2.2, 7]]
    path = folder / "images" / f"{names(folder)[0]}.json"
    shape = {"label": "hat", "points": corners, "shape_type": kind, "direction": 0.7, "mask": None}
    change(path, lambda c: c.update(version="7.9.1", shapes=[shape]))
    rows, columns = np.indices(SIZE) + 0.5
    inside = np.abs(columns - 8.2) + np.abs(rows - 7) < 6
    assert np.array_equal(load_annotations(folder).masks[0].numpy(), np.where(inside, 3, 0))


@pytest.mark.parametrize(("kind", "words"), [("linestrip", "has no area"), ("cuboid", "is not a shape that is read")])
def test_other_shapes_are_refused_for_the_right_reason(folder: Path, kind: str, words: str) -> None:
    write_labelme(folder)
    path = folder / "images" / f"{names(folder)[0]}.json"
    change(path, lambda c: c["shapes"][0].update(shape_type=kind))
    (output,) = mistakes(folder)
    assert words in output


@pytest.mark.parametrize("segmentation", [[], None, {}, "left out"])
def test_an_annotation_without_an_outline_is_a_warning(folder: Path, segmentation: object) -> None:
    masks = write_coco(folder)
    more = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "segmentation": segmentation}
    if segmentation == "left out":
        del more["segmentation"]
    change(folder / "coco.json", lambda c: c["annotations"].append(more))
    found = load_annotations(folder)
    assert equal(found, masks) and len(found.warnings) == 1 and "has no outline" in found.warnings[0]


@pytest.mark.parametrize("form", [lambda flat: flat, lambda flat: [np.reshape(flat, (-1, 2)).tolist()]])
def test_a_polygon_may_be_flat_or_of_pairs(folder: Path, form: Callable[[list[float]], object]) -> None:
    masks = write_coco(folder)
    change(
        folder / "coco.json", lambda c: [a.update(segmentation=form(a["segmentation"][0])) for a in c["annotations"]]
    )
    assert equal(load_annotations(folder), masks)


def trace(mask: np.ndarray, cv2: Any) -> list[list[int]]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.flatten().tolist() for contour in contours if contour.size >= 6]


def coco_of(folder: Path, segmentations: list[list[list[int]]]) -> None:
    annotations = [{"image_id": 1, "category_id": 1, "segmentation": s} for s in segmentations]
    image = {"id": 1, "file_name": f"{names(folder)[0]}.png"}
    write(
        folder / "coco.json",
        {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "hat"}]},
    )


def test_outlines_traced_from_pixels_are_read_with_their_border_and_holes(folder: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    mask = np.zeros(SIZE, np.uint8)
    for row, column in random.integers(1, 15, (14, 2)):
        mask[max(row - 2, 0) : row + 2, max(column - 1, 0) : column + 1] = 1
    mask[6:9, 6:9] = [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    mask[0, 0] = 0
    drawn = trace(mask, cv2)
    coco_of(folder, [drawn] * 12)  # enough diagonal steps to be sure
    found = load_annotations(folder, allow_missing=True)
    expected = np.zeros(SIZE, np.uint8)
    cv2.drawContours(expected, [np.reshape(c, (-1, 1, 2)) for c in drawn], -1, 1, cv2.FILLED)
    assert np.array_equal(found.masks[0].numpy() == 3, expected == 1)
    assert any("were traced from masks" in warning for warning in found.warnings)


def test_whole_coordinates_alone_are_a_warning(folder: Path) -> None:
    coco_of(folder, [[[2, 2, 9, 2, 9, 9, 2, 9]]])
    found = load_annotations(folder, allow_missing=True)
    assert any("lost its right and lower border" in warning for warning in found.warnings)
    assert found.masks[0, 2:9, 2:9].eq(3).all() and found.masks.eq(3).sum() == 49
    coco_of(folder, [[[2, 2, 9.5, 2, 9, 9, 2, 9]]])
    assert not any("whole" in warning for warning in load_annotations(folder, allow_missing=True).warnings)


@pytest.mark.slow
def test_outlines_that_are_not_traced_are_filled_as_polygons_however_many_traced_ones_come_before(folder: Path) -> None:
    """The first 20,000 outlines tell what a file holds; a later one must still be read as what it is."""
    masks = write_coco(folder)
    masks[:] = 0
    traced, other = [[1, 0, 2, 1, 1, 2, 0, 1]] * 6667, [[4.4, 4.4, 16, 4.4, 16, 16, 4.4, 16]]
    masks[:, :3, :3] = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    masks[2, 4:, 4:] = 2

    def edit(content: dict[str, Any]) -> None:
        ids = [image["id"] for image in content["images"]]
        content["annotations"] = [{"image_id": i, "category_id": 2, "segmentation": traced} for i in ids]
        content["annotations"].append({"image_id": ids[2], "category_id": 3, "segmentation": other})

    change(folder / "coco.json", edit)
    assert equal(load_annotations(folder), masks)


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e300], ids=["long", "negative", "float"])
@pytest.mark.parametrize("where", ["id", "width", "image_id", "category_id", "size"])
def test_numbers_of_any_length_are_a_mistake_of_their_place(folder: Path, number: float, where: str) -> None:
    write_coco(folder)

    def edit(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        if where in ("id", "width"):
            content["images"][0][where] = number
        elif where == "size":
            first["segmentation"] = {"size": [number, 16], "counts": [256]}
        else:
            first[where] = number

    change(folder / "coco.json", edit)
    told = mistakes(folder)
    assert told and not any("Error" in mistake or len(mistake) > 400 for mistake in told), told


def test_ids_whose_hashes_are_all_the_same_take_no_longer_than_others(folder: Path) -> None:
    masks = write_coco(folder)
    modulus = 2**61 - 1  # of Python's hashes of integers
    more = [{"id": (i + 1) * modulus, "file_name": f"other{i}.png"} for i in range(100_000)]
    change(folder / "coco.json", lambda c: c["images"].extend(more))
    begin = time.process_time()
    assert equal(load_annotations(folder), masks)
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"{}", b"PK"])
def test_where_the_one_file_of_all_images_cannot_be_read_no_image_is_said_to_lack_an_annotation(
    folder: Path, content: bytes
) -> None:
    (folder / "coco.json").write_bytes(content)
    (told,) = mistakes(folder, format="coco")
    assert "coco.json" in told and "again" in told
