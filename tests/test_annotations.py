"""Export to an annotator and import of what it made: every format gives the masks back, every mistake has its words."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_labeled, small_stylegan1
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema, Recipe, fit_interpreter, load_generator, save_generator
from dsgan_datasets.annotations import AnnotationError, Annotations, export_annotations, load_annotations
from dsgan_datasets.annotations.coco import coco_file, decode_rle
from dsgan_datasets.annotations.folder import IGNORE, Array
from dsgan_datasets.annotations.labelme import labelme_file
from dsgan_datasets.annotations.png import encode_png
from dsgan_datasets.annotations.regions import absorb_specks, drop_rare
from dsgan_datasets.annotations.selection import diverse
from dsgan_datasets.annotations.shapes import mask_to_shapes, paint, simplified
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.polygons import encode_rle, polygons_to_mask
from dsgan_datasets.tools.cli import main

GENERATOR = GOLDEN / "sg2ada_fullsnapshot16.pkl"
SIZE = (16, 16)


def blocks(seed: int) -> Array:
    """A mask [16, 16] with every class of SCHEMA, one inside another, and a region that touches the edge."""
    mask = np.zeros(SIZE, dtype=np.int64)
    mask[2:14, 1:15] = 1
    mask[4 + seed % 3 : 10, 4:12] = 2
    mask[6:8, 6:10] = 0
    mask[12:, 12:] = 3
    return mask


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotations") / "pristine"
    labeled = small_labeled()
    export_annotations(
        labeled.generator, SCHEMA, folder, num=3, candidates=12, recipe=labeled.recipe, name=str(GENERATOR)
    )
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "work")


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "images").glob("*.png"))


def write_masks(folder: Path) -> Array:
    """Right masks as palette PNG; [3, 16, 16]."""
    masks = np.stack([blocks(i) for i in range(3)])
    (folder / "masks").mkdir()
    for name, mask in zip(names(folder), masks, strict=True):
        (folder / "masks" / f"{name}.png").write_bytes(encode_png(mask, SCHEMA.palette))
    return masks


def write_labelme(folder: Path) -> Array:
    masks = np.stack([blocks(i) for i in range(3)])
    for name, mask in zip(names(folder), masks, strict=True):
        shapes = [(SCHEMA.classes[i], polygon) for i, polygon in mask_to_shapes(mask)]
        write(folder / "images" / f"{name}.json", labelme_file(f"{name}.png", SIZE, shapes))
    return masks


def write_coco(folder: Path) -> Array:
    masks = np.stack([blocks(i) for i in range(3)])
    images = [(f"{name}.png", mask_to_shapes(mask)) for name, mask in zip(names(folder), masks, strict=True)]
    write(folder / "coco.json", coco_file(images, SIZE, SCHEMA))
    return masks


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def change(path: Path, edit: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def mistakes(folder: Path, generator: object = None, **options: object) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        load_annotations(folder, generator, **options)  # type: ignore[arg-type]
    assert str(folder) in str(caught.value) and all(m in str(caught.value) for m in caught.value.mistakes)
    return list(caught.value.mistakes)


def equal(found: Annotations, masks: Array) -> bool:
    return np.array_equal(found.masks.numpy(), masks)


# Export


def test_export_writes_what_identifies_the_images(pristine: Path) -> None:
    stored = json.loads((pristine / "annotations.json").read_text())
    indices = [image["index"] for image in stored["images"]]
    latents = sample_latents(indices, 32, seed=0, purpose=Purpose.ANNOTATION)
    assert np.array_equal(np.load(pristine / "latents.npy"), latents.numpy())
    labeled = small_labeled()
    images, _ = synthesize(labeled.generator, labeled.recipe, latents)
    for image, pixels in zip(stored["images"], images, strict=True):
        shown = np.asarray(Image.open(pristine / image["file"]))
        assert np.array_equal(shown, pixels.permute(1, 2, 0).numpy())
    assert stored["recipe"]["psi"] == 0.9 and stored["seed"] == 0
    assert (pristine / "labels.txt").read_text().split() == [*SCHEMA.classes, IGNORE]
    cvat = json.loads((pristine / "cvat" / "labels.json").read_text())
    assert cvat[1] == {"name": "left", "color": "#{:02x}{:02x}{:02x}".format(*SCHEMA.palette[1]), "attributes": []}
    with Image.open(pristine / "contact_sheet.png") as picture:
        assert picture.width > 600
    text = (pristine / "README.txt").read_text()
    assert all(t in text for t in ("labelme images", "cvat/labels.json", "masks/NAME.png", "annotate check"))


def test_no_sample_of_a_dataset_is_annotated(pristine: Path) -> None:
    annotated = np.load(pristine / "latents.npy")
    dataset = sample_latents(range(64), 32, seed=0).numpy()
    assert not (annotated[:, None] == dataset[None]).all(2).any()


def test_diverse_covers_better_than_the_first(one_thread: None) -> None:
    points = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    standard = (points - points.mean(0)) / points.std(0)

    def radius(rows: list[int]) -> float:
        return float(torch.cdist(standard, standard[rows]).min(1).values.max())

    chosen = diverse(points, 16)
    assert len(set(chosen)) == 16 and radius(chosen) < radius(list(range(16)))
    assert diverse(points * 100 + 7, 16) == chosen  # units do not count
    assert sorted(diverse(torch.zeros(5, 3), 5)) == [0, 1, 2, 3, 4]  # equal candidates too, none twice


def test_informative_takes_uncertain_and_different_ones() -> None:
    points = torch.tensor([[0.0], [0.01], [5.0], [10.0]])
    scores = torch.tensor([0.9, 1.0, 0.8, 0.1])
    assert diverse(points, 2, scores) == [1, 2]  # not its twin 0, and not 3, of which nothing is to be learned


def test_informative_export_drafts_what_the_interpreter_sees(tmp_path: Path) -> None:
    labeled = small_labeled()
    exported = export_annotations(
        labeled.generator,
        SCHEMA,
        tmp_path / "a",
        num=3,
        select="informative",
        candidates=16,
        recipe=labeled.recipe,
        interpreter=labeled,
    )
    _, features = synthesize(labeled.generator, labeled.recipe, exported.latents)
    labels = labeled.interpreter.label(features, SIZE)
    assert [image.uncertainty_score for image in exported.images] == pytest.approx(labels.uncertainty_score.tolist())
    rest = sample_latents(range(16), 32, seed=0, purpose=Purpose.ANNOTATION)
    all_scores = labeled.interpreter.label(
        synthesize(labeled.generator, labeled.recipe, rest)[1], SIZE
    ).uncertainty_score
    assert labels.uncertainty_score.max() == pytest.approx(float(all_scores.max()))
    assert labels.uncertainty_score.mean() > all_scores.mean()
    drafts = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "a" / "drafts").glob("*.png"))])
    assert np.array_equal(drafts, labels.mask.numpy())


def test_drafts_of_a_merged_schema_and_of_more_classes(tmp_path: Path) -> None:
    labeled = small_labeled()
    merged = LabeledGenerator(
        labeled.generator, labeled.interpreter, SCHEMA.merge({"side": ["left", "right"]}), labeled.recipe
    )
    schema = LabelSchema(("background", "nose", "hat", "side"))
    exported = export_annotations(
        labeled.generator, schema, tmp_path / "a", num=2, select="random", recipe=labeled.recipe, interpreter=merged
    )
    _, features = synthesize(labeled.generator, labeled.recipe, exported.latents)
    fine = labeled.interpreter.label(features, SIZE).mask.numpy()
    drafts = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "a" / "drafts").glob("*.png"))])
    assert np.array_equal(drafts, np.array([0, 3, 3, 2])[fine])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"select": "informative"}, "needs an interpreter"),
        ({"num": 0}, "num must be"),
        ({"num": 10**6}, "num must be .* 10000"),
        ({"candidates": 2}, "num=3 images among candidates=2"),
        ({"candidates": 10**9}, "candidates must be"),
        ({"select": "best"}, "random, diverse, informative"),
        ({"recipe": Recipe(truncation_psi=(0.5, 0.7))}, "fixed psi"),
    ],
)
def test_export_refuses(options: dict[str, object], words: str, tmp_path: Path) -> None:
    generator = load_generator(GENERATOR, device="cpu")
    with pytest.raises(ValueError, match=words):
        export_annotations(generator, SCHEMA, tmp_path / "a", **({"num": 3} | options))  # type: ignore[arg-type]


def test_export_needs_a_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    generator = load_generator(GENERATOR, device="cpu")
    with pytest.raises(ValueError, match="file is a file: choose another name"):
        export_annotations(generator, SCHEMA, tmp_path / "file", num=3)
    with pytest.raises(OSError, match="cannot be written to"):
        export_annotations(generator, SCHEMA, tmp_path / "file" / "below", num=3)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_touches_no_annotations(folder: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        export_annotations(load_generator(GENERATOR, device="cpu"), SCHEMA, folder)


# Import: every format gives the masks back


@pytest.mark.parametrize("writer", [write_masks, write_labelme, write_coco])
def test_masks_come_back(writer: Callable[[Path], Array], folder: Path) -> None:
    masks = writer(folder)
    found = load_annotations(folder, GENERATOR, device="cpu")
    assert equal(found, masks)
    assert np.array_equal(found.latents.numpy(), np.load(folder / "latents.npy"))
    assert found.schema == SCHEMA and found.recipe.truncation_psi == 0.9 and found.names == tuple(names(folder))
    assert found.generator is not None and found.generator.features == found.recipe.features
    assert found.images is not None and found.images.shape == (3, 3, *SIZE)
    assert not found.warnings


def test_a_fit_takes_them_as_they_are(folder: Path, one_thread: None) -> None:
    write_masks(folder)
    found = load_annotations(folder, GENERATOR, device="cpu")
    assert found.generator is not None
    ensemble = fit_interpreter(
        found.generator, found.annotated, found.schema, recipe=found.recipe, members=2, steps=5, pixels_per_image=64
    )
    labeled = LabeledGenerator(found.generator, ensemble, found.schema, found.recipe)
    assert labeled.image_size == SIZE


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


# Every mistake has its words, and all are told at once


def test_all_mistakes_of_a_folder_are_told_together(folder: Path) -> None:
    write_masks(folder)
    first, second, third = names(folder)
    mask = blocks(0)
    mask[0, :5] = 7
    (folder / "masks" / f"{first}.png").write_bytes(encode_png(mask))
    Image.new("L", (20, 16)).save(folder / "masks" / f"{second}.png")
    (folder / "masks" / f"{third}.png").rename(folder / "masks" / "other.png")
    told = mistakes(folder)
    assert len(told) == 4
    assert f"{third}: has no annotation" in told[0] and "--allow-missing" in told[0]
    assert "other: no such image was exported" in told[1]
    assert f"{first}.png: holds unknown class 7 (5 px)" in told[2] and "add the class to classes.json" in told[2]
    assert f"{second}.png: is 20×16 pixels, its image is 16×16" in told[3]


def test_an_empty_mask(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[1]
    for value in (0, 255):
        (folder / "masks" / f"{name}.png").write_bytes(encode_png(np.full(SIZE, value), SCHEMA.palette))
        (told,) = mistakes(folder)
        assert f"{name}: the mask is empty" in told and "Annotate it" in told


def test_missing_annotations_may_be_left_out(folder: Path) -> None:
    masks = write_masks(folder)
    (folder / "masks" / f"{names(folder)[1]}.png").unlink()
    found = load_annotations(folder, allow_missing=True)
    assert equal(found, masks[[0, 2]])
    assert np.array_equal(found.latents.numpy(), np.load(folder / "latents.npy")[[0, 2]])
    shutil.rmtree(folder / "masks")
    (told,) = mistakes(folder, allow_missing=True)
    assert "nothing is annotated yet" in told


def test_an_image_that_is_not_the_one_exported(folder: Path) -> None:
    write_masks(folder)
    first, second, third = (folder / "images" / f"{name}.png" for name in names(folder))
    Image.open(first).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(first)
    second.unlink()
    third.write_bytes(b"no picture")
    told = mistakes(folder)
    assert "is not the image that was exported" in told[0] and first.name in told[0]
    assert "is missing" in told[1] and "no picture" in told[2]


def test_an_image_may_be_compressed_anew(folder: Path) -> None:
    masks = write_masks(folder)
    path = folder / "images" / f"{names(folder)[0]}.png"
    before = path.read_bytes()
    Image.open(path).save(path, compress_level=0)
    assert path.read_bytes() != before and equal(load_annotations(folder), masks)


def test_a_generator_that_is_not_the_one_exported_from(folder: Path, tmp_path: Path) -> None:
    write_masks(folder)
    (told,) = mistakes(folder, "demo-faces", device="cpu")
    assert "'demo-faces': is not the one these images were exported from" in told and GENERATOR.name in told
    save_generator(load_generator(GENERATOR, device="cpu"), tmp_path / "converted")
    assert load_annotations(folder, tmp_path / "converted", device="cpu").generator is not None


def swap(content: dict) -> None:  # type: ignore[type-arg]
    content["images"][:2] = content["images"][1::-1]


@pytest.mark.parametrize("edit", [swap, lambda c: c["recipe"].update(psi=0.1)])
def test_entries_that_do_not_belong_to_the_latents(folder: Path, edit: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    write_masks(folder)
    assert load_annotations(folder, GENERATOR, device="cpu").generator is not None
    change(folder / "annotations.json", edit)
    told = mistakes(folder, GENERATOR, device="cpu")
    assert len(told) >= 2 and all("give another image" in mistake for mistake in told)


def test_a_generator_with_other_features(folder: Path) -> None:
    write_masks(folder)
    (told,) = mistakes(folder, load_generator(GENERATOR, device="cpu", features="const+convs"))
    assert "gives features 'const+convs', the recipe reads 'convs'" in told


def test_changed_latents(folder: Path) -> None:
    write_masks(folder)
    np.save(folder / "latents.npy", np.load(folder / "latents.npy")[::-1].copy())
    assert "latents.npy is not the one that was exported" in mistakes(folder)[0]


def test_a_class_that_never_occurs_is_a_warning(folder: Path) -> None:
    write_masks(folder)
    change(folder / "classes.json", lambda c: c["classes"].extend([{"name": "ear", "color": [9, 9, 9]}]))
    found = load_annotations(folder)
    (warning,) = found.warnings
    assert "no image has the class ear" in warning and found.schema.num_classes == 5


def test_colors_of_no_class(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[0]
    palette = np.array(SCHEMA.palette, dtype=np.uint8)
    soft = Image.fromarray(palette[blocks(0)]).resize((40, 40)).resize(SIZE, Image.Resampling.BILINEAR)
    soft.save(folder / "masks" / f"{name}.png")
    (told,) = mistakes(folder)
    assert f"{name}.png: is RGB with colors of no class: #" in told and "without soft edges" in told


def test_brightness_instead_of_ids(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[0]
    palette = np.array(SCHEMA.palette, dtype=np.uint8)
    Image.fromarray(palette[blocks(0)]).convert("L").save(folder / "masks" / f"{name}.png")
    (told,) = mistakes(folder)
    assert "brightnesses of the classes' colors" in told and "Save it as RGB" in told


def test_a_reordered_palette(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[0]
    order = np.array([3, 1, 0, 2])
    mask = encode_png(order[blocks(0)], [SCHEMA.palette[i] for i in order.argsort()])
    (folder / "masks" / f"{name}.png").write_bytes(mask)
    (told,) = mistakes(folder)
    assert "palette was reordered" in told and "Save it as RGB" in told
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
    told = "\n".join(mistakes(folder))
    assert "transparent" in told and "is no PNG file" in told and "no picture that can be read" in told
    assert "Thumbs" not in told


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
    told = mistakes(folder)
    assert "1 shape with the unknown class 'Left'" in told[0] and "hat" in told[0] and IGNORE in told[0]
    assert "shape 2 ('right'): a 'line' has no area" in told[1]
    assert "needs 3 points" in told[2]
    assert "is 32×32 pixels, its image is 16×16" in told[3]
    assert "was drawn on 'elsewhere.png'" in told[4]
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
    assert "shape 1: is no shape" in mistakes(folder)[0]
    first.write_text("{")
    second.write_text("[]")
    told = mistakes(folder)
    assert "is no valid JSON" in told[0] and "is no LabelMe file" in told[1]


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
    told = "\n".join(mistakes(folder))
    for words in (
        "unknown class 'Left'", "has no outline (a box?)", "a flat list x, y, x, y", "run lengths add up to 3",
        "other: no such image was exported", f"{names(folder)[2]}: has no annotation", "of image id 77",
    ):  # fmt: skip
        assert words in told
    write_coco(folder)
    change(folder / "coco.json", lambda c: (c["images"][1].update(id=1), c["categories"][1].update(id=1)))
    told = "\n".join(mistakes(folder))
    assert "several categories have the id 1" in told and "several images have the id 1" in told
    write(folder / "coco.json", {"images": []})
    assert "is no COCO file" in mistakes(folder)[0]


def test_messages_are_plain_lines(folder: Path) -> None:
    write_coco(folder)
    change(folder / "coco.json", lambda c: c["images"][0].update(file_name="\x1b[31ma\nb.png"))
    told = mistakes(folder)
    assert any(r"\x1b[31ma\nb" in line for line in told) and all(line.isprintable() for line in told)


@pytest.mark.parametrize("counts", ["é", "P", "0" * 10_000, [1, -1], [True] * 256, None, ["x"]])
def test_damaged_run_lengths(counts: object) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        decode_rle({"size": [16, 16], "counts": counts}, SIZE)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("annotations.json", "{", "no valid JSON"),
        ("annotations.json", "[]", "expected an object"),
        ("annotations.json", '{"format_version": 2}', "format_version is 2"),
        ("annotations.json", '{"format_version": 1, "images": [3]}', "damaged"),
        ("classes.json", '{"classes": 3}', "no list of classes"),
        ("classes.json", '{"classes": [{"name": "a"}, {"name": "__ignore__"}]}', "no class can be called __ignore__"),
        ("classes.json", '{"classes": [{"name": "a"}], "ignore_index": Infinity}', "no list of classes"),
        ("classes.json", None, "is missing"),
        ("latents.npy", "x", "holds no latents"),
        ("latents.npy", None, "is missing"),
    ],
)
def test_damaged_exports(folder: Path, name: str, content: str | None, words: str) -> None:
    write_masks(folder)
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    assert words in mistakes(folder)[0]


def test_a_manifest_does_not_point_outside(folder: Path) -> None:
    write_masks(folder)
    change(folder / "annotations.json", lambda c: c["images"][0].update(file="../secret.png"))
    assert "damaged" in mistakes(folder)[0]


def test_pickles_are_not_read(folder: Path, tmp_path: Path) -> None:
    write_masks(folder)
    np.save(folder / "latents.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "holds no latents" in mistakes(folder)[0]


def test_several_kinds_of_annotations(folder: Path) -> None:
    masks = write_masks(folder)
    write_labelme(folder)
    (told,) = mistakes(folder)
    assert "several kinds" in told and "masks, labelme" in told
    assert equal(load_annotations(folder, format="labelme"), masks)


# Published layout


def published(folder: Path, masks: Array, latents: Array) -> None:
    folder.mkdir()
    for i, mask in enumerate(masks):
        np.save(folder / f"image_mask{i}.npy", mask.astype(np.uint8))
    np.save(folder / "latent_stylegan1.npy", latents)
    np.save(folder / "avg_latent_stylegan1.npy", np.full((18, 16), 0.25, dtype=np.float32))


def stylegan1(folder: Path) -> Path:
    path = folder / "g.for_g_all.pt"
    torch.save(small_stylegan1(), path)
    return path


def test_the_published_layout(tmp_path: Path) -> None:
    masks = np.zeros((2, 16, 24), dtype=np.int64)
    masks[:, 3:9, 4:12], masks[:, 10:, :] = 1, 2
    latents = np.random.RandomState(0).randn(2, 16)
    published(tmp_path / "p", masks, latents)
    file = stylegan1(tmp_path)
    (told,) = mistakes(tmp_path / "p", file, device="cpu")
    assert "ids up to 2" in told and "--classes" in told
    found = load_annotations(tmp_path / "p", file, classes=("background", "a", "b"), device="cpu")
    assert equal(found, masks) and np.array_equal(found.latents.numpy(), latents.astype(np.float32))
    assert found.recipe == Recipe(truncation_psi=0.7, truncation_cutoff=8, features="datasetgan", size=(16, 24))
    assert found.generator is not None and found.generator.mean_w is not None
    assert torch.equal(found.generator.mean_w, torch.full((16,), 0.25))
    images, _ = synthesize(found.generator, found.recipe, found.latents)
    assert images.shape[2:] == found.masks.shape[1:]
    other = load_generator(file, device="cpu", avg_latent=torch.zeros(16))
    (told,) = mistakes(tmp_path / "p", other, classes=("background", "a", "b"))
    assert "another average w" in told
    changed = load_annotations(tmp_path / "p", classes=("background", "a", "b"), truncation_psi=0.5)
    assert changed.recipe.truncation_psi == 0.5


def test_mistakes_in_the_published_layout(tmp_path: Path) -> None:
    masks = np.zeros((5, 16, 16), dtype=np.int64)
    masks[:, 3:9] = 1
    published(tmp_path / "p", masks, np.zeros((5, 16)))
    folder = tmp_path / "p"
    np.save(folder / "image_mask0.npy", np.zeros((8, 8), dtype=np.uint8))
    np.save(folder / "image_mask1.npy", np.full((16, 16), 9))
    np.save(folder / "image_mask2.npy", np.array([{}]), allow_pickle=True)
    (folder / "image_mask3.npy").unlink()
    np.save(folder / "image_mask7.npy", masks[0])
    told = "\n".join(mistakes(folder, classes=("background", "a")))
    for words in (
        "image_mask0.npy: is 8×8 pixels", "image_mask1.npy: holds unknown class 9", "image_mask2.npy: is no .npy file",
        "image_mask3: has no annotation", "image_mask7: no such image",
    ):  # fmt: skip
        assert words in told


# Cleaning and shapes


def test_specks_take_the_class_around_them(folder: Path) -> None:
    masks = write_masks(folder)
    specked = masks.copy()
    specked[0, 9, 2], specked[0, 0, 0] = 3, 1
    name = names(folder)[0]
    (folder / "masks" / f"{name}.png").write_bytes(encode_png(specked[0], SCHEMA.palette))
    assert equal(load_annotations(folder), specked)
    assert equal(load_annotations(folder, min_region=3), masks)


def test_specks_and_ignored_pixels() -> None:
    mask = np.array([[1, 1, 1, 1], [1, 255, 2, 1], [1, 1, 1, 1]])
    assert absorb_specks(mask, 5).tolist() == [[1, 1, 1, 1], [1, 255, 1, 1], [1, 1, 1, 1]]
    assert absorb_specks(np.full((2, 2), 3), 30).tolist() == [[3, 3], [3, 3]]


def test_rare_classes_are_dropped_as_published() -> None:
    mask = np.array([[1, 2, 0, 2], [1, 1, 0, 0]])
    assert drop_rare(mask, 3).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_shapes_paint_the_mask_back(seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 4, (17, 23))
    mask[4:10, 5:15] = 2  # something larger, with something inside
    mask[6:8, 8:11] = 0
    shapes = mask_to_shapes(mask)
    painted = paint([(i, polygons_to_mask([polygon], mask.shape)) for i, polygon in shapes], mask.shape)
    assert np.array_equal(painted, mask)


def test_simplified_outlines_stay_within_the_tolerance() -> None:
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([50 + 30 * np.cos(angles), 50 + 30 * np.sin(angles)], 1)
    few = simplified(circle, 0.5)
    assert 8 <= len(few) < 60
    ends = np.roll(few, -1, axis=0)
    t = np.linspace(0, 1, 50)[:, None, None]
    along = (few + t * (ends - few)).reshape(-1, 2)
    gaps = np.linalg.norm(circle[:, None] - along[None], axis=2).min(1)
    assert gaps.max() < 0.55 and len(simplified(circle, 0.0)) == 400


# The built-in checkpoint, as a newcomer takes it through LabelMe and COCO


def test_demo_faces_through_labelme_and_coco(tmp_path: Path) -> None:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    folder = tmp_path / "a"
    export_annotations(
        labeled.generator,
        labeled.schema,
        folder,
        num=8,
        select="random",
        recipe=labeled.recipe,
        interpreter=labeled,
        name="demo-faces",
    )
    source = np.stack([np.asarray(Image.open(p)) for p in sorted((folder / "drafts").glob("*.png"))])
    for found in (
        load_annotations(folder, "demo-faces", device="cpu"),
        load_annotations(folder, "demo-faces", device="cpu", files=folder / "cvat" / "coco_import.json"),
    ):
        masks = found.masks.numpy()
        k = labeled.schema.num_classes
        both = np.array([((masks == i) & (source == i)).sum() for i in range(k)])
        either = np.array([((masks == i) | (source == i)).sum() for i in range(k)])
        iou = both[either > 0] / either[either > 0]
        assert iou.min() > 0.99, iou  # half a pixel of simplification
        assert found.schema == labeled.schema and found.recipe.truncation_psi == labeled.recipe.truncation_psi
    assert any("8 of 8 annotations are unchanged drafts" in w for w in load_annotations(folder).warnings)
    # Done in another tool, the drafts beside the images are not in the way.
    (folder / "cvat" / "coco_import.json").rename(folder / "coco.json")
    assert not any("drafts" in warning for warning in load_annotations(folder).warnings)


# The command


def test_export_and_check_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    export = ["annotate", "export", str(GENERATOR), str(out), "--num", "3", "--candidates", "8", "--device", "cpu"]
    assert main(export) == 1 and "--classes" in capsys.readouterr().err
    assert main([*export, "--classes", "background,left,right,hat", "--psi", "0.5", "--set", "noise_mode=none"]) == 0
    printed = capsys.readouterr().out
    assert "3 images, 16×16, psi 0.5" in printed and str(out / "README.txt") in printed
    assert main(["annotate", "check", str(out)]) == 1
    assert "nothing is annotated yet" in capsys.readouterr().err
    masks = write_masks(out)
    picture = tmp_path / "new" / "seen.png"
    assert main(["annotate", "check", str(out), "--generator", str(GENERATOR), "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    for i, name in enumerate(SCHEMA.classes):
        assert [str(i), name, "3", str((masks == i).sum())] in [line.split()[:4] for line in printed.splitlines()]
    assert "no mistakes" in printed
    with Image.open(picture) as image:
        assert image.width > 600
    found = load_annotations(out, GENERATOR, device="cpu")
    assert found.recipe.truncation_psi == 0.5 and found.recipe.noise_mode == "none"
    (out / "masks" / f"{names(out)[0]}.png").unlink()
    assert main(["annotate", "check", str(out)]) == 1
    told = capsys.readouterr().err
    assert "1 mistake in" in told and f"{names(out)[0]}: has no annotation" in told
    for _ in range(2):  # its own picture may be replaced
        assert main(["annotate", "check", str(out), "--allow-missing"]) == 0 and (out / "check.png").is_file()
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for taken, words in (
        (out / "images" / f"{names(out)[0]}.png", "exists"),
        (out / "masks" / "seen.png", "lies among the annotations"),
        (out / "notes.txt", "must end in .png"),
    ):
        assert main(["annotate", "check", str(out), "--allow-missing", "--out", str(taken)]) == 1
        assert words in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("bare", [False, True], ids=["checkpoint", "generator alone"])
def test_a_second_round_has_the_interpreters_recipe(tmp_path: Path, bare: bool) -> None:
    out, generator = tmp_path / "b", "demo-faces"
    if bare:
        generator = str(tmp_path / "generator")
        save_generator(load_generator("demo-faces", device="cpu"), generator)
    options = ["--interpreter", "demo-faces", "--select", "informative", "--num", "2", "--candidates", "4"]
    assert main(["annotate", "export", generator, str(out), *options, "--start", "256", "--device", "cpu"]) == 0
    stored = json.loads((out / "annotations.json").read_text())
    assert all(256 <= image["index"] < 260 for image in stored["images"])
    psi = LabeledGenerator.from_pretrained("demo-faces", device="cpu").recipe.truncation_psi
    assert stored["recipe"]["psi"] == psi and stored["recipe"]["threshold"] is None


def test_published_annotations_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = np.zeros((2, 16, 16), dtype=np.int64)
    masks[:, 3:9, 4:12] = 1
    published(tmp_path / "p", masks, np.random.RandomState(0).randn(2, 16))
    command = ["annotate", "check", str(tmp_path / "p"), "--generator", str(stylegan1(tmp_path)), "--device", "cpu"]
    assert main(command) == 1 and "--classes" in capsys.readouterr().err
    assert main([*command, "--classes", "background,part"]) == 0
    assert "part" in capsys.readouterr().out and (tmp_path / "p" / "check.png").is_file()
