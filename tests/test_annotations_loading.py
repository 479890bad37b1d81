"""An annotated folder is read only if it belongs to the generator, and all its mistakes are listed at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from annotation_folders import GENERATOR, SIZE, blocks, change, equal, mistakes, names, write_masks
from conftest import SCHEMA
from PIL import Image

from dsgan_datasets import InterpretedLabeler, LabeledGenerator, fit_interpreter, load_generator, save_generator
from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.images import png


def test_a_fit_takes_them_as_they_are(folder: Path, one_thread: None) -> None:
    write_masks(folder)
    found = load_annotations(folder, GENERATOR, device="cpu")
    assert found.generator is not None
    ensemble = fit_interpreter(
        found.generator, found.annotated, found.schema, recipe=found.recipe, members=2, steps=5, pixels_per_image=64
    )
    labeled = LabeledGenerator(InterpretedLabeler(found.generator, ensemble, [found.schema]), found.recipe)
    assert labeled.image_size == SIZE


def test_all_mistakes_of_a_folder_are_told_together(folder: Path) -> None:
    write_masks(folder)
    first, second, third = names(folder)
    mask = blocks(0)
    mask[0, :5] = 7
    (folder / "masks" / f"{first}.png").write_bytes(png(mask))
    Image.new("L", (20, 16)).save(folder / "masks" / f"{second}.png")
    (folder / "masks" / f"{third}.png").rename(folder / "masks" / "other.png")
    output = mistakes(folder)
    assert len(output) == 4
    assert f"{first}.png: holds unknown class 7 (5 px)" in output[0] and "add the class to classes.json" in output[0]
    assert f"{second}.png: is 20×16 pixels, its image is 16×16" in output[1]
    assert f"{third}: has no annotation" in output[2] and "--allow-missing" in output[2]
    assert "other: no such image was exported" in output[3]


def test_an_empty_mask(folder: Path) -> None:
    write_masks(folder)
    name = names(folder)[1]
    for value in (0, 255):
        (folder / "masks" / f"{name}.png").write_bytes(png(np.full(SIZE, value), palette=SCHEMA.palette))
        (output,) = mistakes(folder)
        assert f"{name}: the mask is empty" in output and "Annotate it" in output


def test_missing_annotations_may_be_left_out(folder: Path) -> None:
    masks = write_masks(folder)
    (folder / "masks" / f"{names(folder)[1]}.png").unlink()
    found = load_annotations(folder, allow_missing=True)
    assert equal(found, masks[[0, 2]])
    assert np.array_equal(found.latents.numpy(), np.load(folder / "latents.npy")[[0, 2]])
    shutil.rmtree(folder / "masks")
    (output,) = mistakes(folder, allow_missing=True)
    assert "nothing is annotated yet" in output


def test_an_image_that_is_not_the_one_exported(folder: Path) -> None:
    write_masks(folder)
    first, second, third = (folder / "images" / f"{name}.png" for name in names(folder))
    Image.open(first).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(first)
    second.unlink()
    third.write_bytes(b"no picture")
    output = mistakes(folder)
    assert "is not the image that was exported" in output[0] and first.name in output[0]
    assert "is missing" in output[1] and "cannot be read as a picture" in output[2]


def test_an_image_may_be_compressed_anew(folder: Path) -> None:
    masks = write_masks(folder)
    path = folder / "images" / f"{names(folder)[0]}.png"
    before = path.read_bytes()
    Image.open(path).save(path, compress_level=0)
    assert path.read_bytes() != before and equal(load_annotations(folder), masks)


def test_a_generator_that_is_not_the_one_exported_from(folder: Path, tmp_path: Path) -> None:
    write_masks(folder)
    (output,) = mistakes(folder, "demo-faces", device="cpu")
    assert "'demo-faces': is not the one these images were exported from" in output and GENERATOR.name in output
    save_generator(load_generator(GENERATOR, device="cpu"), tmp_path / "converted")
    assert load_annotations(folder, tmp_path / "converted", device="cpu").generator is not None


def swap(content: dict) -> None:  # type: ignore[type-arg]
    content["images"][:2] = content["images"][1::-1]


@pytest.mark.parametrize("edit", [swap, lambda c: c["recipe"]["sampling"].update(truncation_psi=0.1)])
def test_entries_that_do_not_belong_to_the_latents(folder: Path, edit: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    write_masks(folder)
    assert load_annotations(folder, GENERATOR, device="cpu").generator is not None
    change(folder / "annotations.json", edit)
    output = mistakes(folder, GENERATOR, device="cpu")
    assert len(output) >= 2 and all("give another image" in mistake for mistake in output)


def test_a_generator_with_other_features(folder: Path) -> None:
    write_masks(folder)
    (output,) = mistakes(folder, load_generator(GENERATOR, device="cpu", features="const+convs"))
    assert "gives features 'const+convs', the export was for 'convs'" in output


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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("annotations.json", "{", "not valid JSON"),
        ("annotations.json", "[]", "expected an object"),
        ("annotations.json", '{"format_version": 3}', "format_version is 3"),
        ("annotations.json", '{"format_version": 1, "images": [3]}', "damaged"),
        ("classes.json", '{"classes": 3}', "not a list of classes"),
        ("classes.json", '{"classes": [{"name": "a"}, {"name": "__ignore__"}]}', "a class cannot be called __ignore__"),
        ("classes.json", '{"classes": [{"name": "a"}], "ignore_index": Infinity}', "not a list of classes"),
        ("classes.json", None, "is missing"),
        ("latents.npy", "x", "does not hold latents"),
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
    (output,) = mistakes(folder)
    assert "does not hold latents" in output and "allow_pickle" not in output
