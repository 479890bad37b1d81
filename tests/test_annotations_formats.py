"""Masks, LabelMe and COCO files give the annotated masks, or say what is wrong with them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from annotation_folders import (
    GENERATOR,
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
from dsgan_datasets.annotations.coco import decode_rle
from dsgan_datasets.annotations.folder import IGNORE, Array
from dsgan_datasets.images import png
from dsgan_datasets.polygons import encode_rle


@pytest.mark.parametrize("writer", [write_masks, write_labelme, write_coco])
def test_masks_come_back(writer: Callable[[Path], Array], folder: Path) -> None:
    masks = writer(folder)
    found = load_annotations(folder, GENERATOR, device="cpu")
    assert equal(found, masks)
    assert np.array_equal(found.latents.numpy(), np.load(folder / "latents.npy"))
    assert found.schema == SCHEMA and found.recipe.truncation_psi == 0.9 and found.names == tuple(names(folder))
    assert found.generator is not None and found.generator.features == "convs"
    assert found.images is not None and found.images.shape == (3, 3, *SIZE)
    assert not found.warnings


def test_pictures_may_be_gray_rgb_or_rgba(folder: Path) -> None:
    masks = write_masks(folder)
    masks[1, 0, 0] = masks[2, 0, 0] = 255
    palette = np.full((256, 3), 255, dtype=np.uint8)
    palette[:4] = SCHEMA.palette
    paths = [folder / "masks" / f"{name}.png" for name in names(folder)]
    Image.fromarray(masks[0].astype(np.uint8)).save(paths[0])
    Image.fromarray(palette[masks[1]]).save(paths[1])
    Image.fromarray(palette[masks[2]]).convert("RGBA").save(paths[2])
    assert equal(load_annotations(folder), masks)


def test_all_shapes_of_labelme(folder: Path) -> None:
    write_labelme(folder)
    part = np.eye(3, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(part * 255).save(file, format="PNG")
    shapes = [
        {"label": "left", "points": [[9, 1], [3, 5]], "shape_type": "rectangle"},
        {"label": "right", "points": [[8, 8], [8, 10]], "shape_type": "circle"},
        {"label": "hat", "points": [[1, 12], [3, 14]], "shape_type": "mask",
         "mask": base64.b64encode(file.getvalue()).decode()},
        {"label": IGNORE, "points": [[0, 0], [2, 0], [2, 1], [0, 1]]},  # no type: a polygon, as in old files
    ]  # fmt: skip
    name = names(folder)[0]
    embedded = base64.b64encode((folder / "images" / f"{name}.png").read_bytes()).decode()
    change(folder / "images" / f"{name}.json", lambda c: c.update(shapes=shapes, imageData=embedded))
    expected = np.zeros(SIZE, dtype=np.int64)
    expected[1:5, 3:9] = 1
    rows, columns = np.indices(SIZE) + 0.5
    expected[(rows - 8) ** 2 + (columns - 8) ** 2 <= 4] = 2
    expected[12:15, 1:4][part == 1] = 3
    expected[0, :2] = 255
    assert np.array_equal(load_annotations(folder).masks[0].numpy(), expected)


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_of_coco(folder: Path, compressed: bool) -> None:
    masks = write_coco(folder)
    pycocotools = pytest.importorskip("pycocotools.mask")
    annotations = []
    for image_id, mask in enumerate(masks, 1):
        for i in (1, 2, 3):
            encoded = encode_rle(mask == i)
            assert np.array_equal(decode_rle(encoded, SIZE), pycocotools.decode(encoded))
            if not compressed:
                flat = (mask == i).T.flatten()
                edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
                encoded["counts"] = np.diff(edges, prepend=0).tolist()
            annotations.append({"image_id": image_id, "category_id": i + 1, "segmentation": encoded, "iscrowd": 1})
    change(folder / "coco.json", lambda c: c.update(annotations=annotations))
    assert equal(load_annotations(folder), masks)


def test_compressed_run_lengths_agree_with_pycocotools() -> None:
    pycocotools = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for share in (0.001, 0.1, 0.5, 0.999):
        mask = random.random((211, 97)) < share
        encoded = pycocotools.encode(np.asfortranarray(mask, dtype=np.uint8))
        text = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
        assert np.array_equal(decode_rle(text, mask.shape), mask)


def test_paths_of_other_systems_in_coco(folder: Path) -> None:
    masks = write_coco(folder)
    change(
        folder / "coco.json",
        lambda c: [i.update(file_name=rf"C:\data\{i['file_name']}") for i in c["images"]],
    )
    assert equal(load_annotations(folder), masks)


def test_colors_of_no_class(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[0]
    palette = np.array(SCHEMA.palette, dtype=np.uint8)
    soft = Image.fromarray(palette[blocks(0)]).resize((40, 40)).resize(SIZE, Image.Resampling.BILINEAR)
    soft.save(folder / "masks" / f"{name}.png")
    (output,) = mistakes(folder)
    assert f"{name}.png: is RGB with colors of no class: #" in output and "without soft edges" in output


def test_brightness_instead_of_ids(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[0]
    palette = np.array(SCHEMA.palette, dtype=np.uint8)
    Image.fromarray(palette[blocks(0)]).convert("L").save(folder / "masks" / f"{name}.png")
    (output,) = mistakes(folder)
    assert "brightnesses of the classes' colors" in output and "Save it as RGB" in output


def test_a_reordered_palette(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[0]
    order = np.array([3, 1, 0, 2])
    mask = png(order[blocks(0)], palette=[SCHEMA.palette[i] for i in order.argsort()])
    (folder / "masks" / f"{name}.png").write_bytes(mask)
    (output,) = mistakes(folder)
    assert "palette was reordered" in output and "Save it as RGB" in output
    Image.open(io.BytesIO(mask)).convert("RGB").save(folder / "masks" / f"{name}.png")
    assert np.array_equal(load_annotations(folder).masks[0].numpy(), blocks(0))


def test_transparent_and_foreign_files_among_masks(folder: Path) -> None:
    write_masks(folder)
    first, second, third = (folder / "masks" / f"{name}.png" for name in names(folder))
    Image.new("RGBA", SIZE, (0, 0, 0, 100)).save(first)
    Image.fromarray(blocks(1).astype(np.uint8)).save(second.with_suffix(".jpg"))
    second.unlink()
    third.write_bytes(third.read_bytes()[:60])
    (folder / "masks" / "Thumbs.db").write_bytes(b"left by a file manager")
    output = "\n".join(mistakes(folder))
    for words in ("transparent", "is not a PNG file", "is a damaged PNG file (it ends early)"):
        assert words in output
    assert "Thumbs" not in output


def test_mistakes_in_labelme_files(folder: Path) -> None:
    write_labelme(folder)
    first, second, third = (folder / "images" / f"{name}.json" for name in names(folder))

    def edit(content: dict) -> None:  # type: ignore[type-arg]
        content["shapes"][0]["label"] = "Left"
        content["shapes"][1].update(shape_type="line")
        content["shapes"][2]["points"] = [[1, 1]]

    change(first, edit)
    change(second, lambda c: c.update(imageHeight=32, imageWidth=32))
    change(third, lambda c: c.update(imagePath="elsewhere.png"))
    output = mistakes(folder)
    assert "1 shape with the unknown class 'Left'" in output[0] and "hat" in output[0] and IGNORE in output[0]
    assert "shape 2 ('right'): a 'line' has no area" in output[1]
    assert "needs 3 points" in output[2]
    assert "is 32×32 pixels, its image is 16×16" in output[3]
    assert "was drawn on 'elsewhere.png'" in output[4]
    other = io.BytesIO()
    Image.new("RGB", SIZE).save(other, format="PNG")
    change(first, lambda c: c.update(shapes=[], imageData=base64.b64encode(other.getvalue()).decode()))
    assert "is not the exported image" in mistakes(folder)[0]
    first.write_text('{"shapes": [{"label": "hat", "points": [[1e999, 1], [2, 2], [3, 1]]}]}')
    second.write_text(f'{{"shapes": [{{"label": "hat", "points": [[1{"0" * 400}, 1], [2, 2], [3, 1]]}}]}}')
    assert all("needs 3 points (x, y) of plain numbers" in mistake for mistake in mistakes(folder)[:2])
    first.write_text('{"shapes": [{"label": "hat", "points": [[1e300, 1], [2, 2], [-1e300, 1]]}]}')
    assert "needs 3 points (x, y) of plain numbers" in mistakes(folder)[0]
    first.write_text('{"shapes": [null]}')
    assert "shape 1: is not a shape" in mistakes(folder)[0]
    first.write_text("{")
    second.write_text("[]")
    output = mistakes(folder)
    assert "is not valid JSON" in output[0] and "is not a LabelMe file" in output[1]


def test_a_shape_too_small_to_count_is_a_warning(folder: Path) -> None:
    write_labelme(folder)
    path = folder / "images" / f"{names(folder)[0]}.json"
    tiny = {"label": "hat", "points": [[3.6, 3.6], [3.9, 3.6], [3.9, 3.9]], "shape_type": "polygon"}
    change(path, lambda c: c["shapes"].append(tiny))
    (warning,) = load_annotations(folder).warnings
    assert "('hat'): covers the center of no pixel" in warning


def test_mistakes_in_coco_files(folder: Path) -> None:
    write_coco(folder)

    def edit(content: dict) -> None:  # type: ignore[type-arg]
        content["categories"][1]["name"] = "Left"
        content["images"][2]["file_name"] = "other.png"
        content["annotations"][1]["segmentation"] = []
        content["annotations"][2]["segmentation"] = [[1, 2, 3]]
        content["annotations"][3]["segmentation"] = {"size": [16, 16], "counts": [3]}
        content["annotations"][4]["segmentation"] = [[1e300, 0, -1e300, 5, 3, 9]]
        content["annotations"].append(
            {"id": 99, "image_id": 77, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1]]}
        )

    change(folder / "coco.json", edit)
    output = "\n".join(mistakes(folder))
    for words in (
        "unknown class 'Left'", "a flat list x, y, x, y", "run lengths add up to 3",
        "other: no such image was exported", f"{names(folder)[2]}: has no annotation", "of image id 77",
    ):  # fmt: skip
        assert words in output
    write_coco(folder)
    change(folder / "coco.json", lambda c: (c["images"][1].update(id=1), c["categories"][1].update(id=1)))
    output = "\n".join(mistakes(folder))
    assert "several categories have the id 1" in output and "several images have the id 1" in output
    write(folder / "coco.json", {"images": []})
    assert "is not a COCO file" in mistakes(folder)[0]


def test_messages_are_plain_lines(folder: Path) -> None:
    write_coco(folder)
    change(folder / "coco.json", lambda c: c["images"][0].update(file_name="\x1b[31ma\nb.png"))
    output = mistakes(folder)
    assert any(r"\x1b[31ma\nb" in line for line in output) and all(line.isprintable() for line in output)


@pytest.mark.parametrize("counts", ["é", "P", "0" * 10_000, "1", "", [255], [1, -1], [True] * 256, None, ["x"]])
def test_damaged_run_lengths(counts: object) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        decode_rle({"size": [16, 16], "counts": counts}, SIZE)


def test_several_kinds_of_annotations(folder: Path) -> None:
    masks = write_masks(folder)
    write_labelme(folder)
    (output,) = mistakes(folder)
    assert "several kinds" in output and "masks, labelme" in output
    assert equal(load_annotations(folder, format="labelme"), masks)
