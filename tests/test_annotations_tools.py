"""From the command line, as a newcomer takes the built-in checkpoint through LabelMe and COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from annotation_folders import GENERATOR, POINTS, SIZE, blocks, export_command, names, places, write, write_masks
from conftest import SCHEMA, small_labeled
from PIL import Image
from test_annotations_published import published, stylegan1

from dsgan_datasets import LabeledGenerator, load_generator, save_generator
from dsgan_datasets.annotations import AnnotationError, export_annotations, load_annotations
from dsgan_datasets.annotations.labelme import labelme_file, point_shapes, polygon_shapes
from dsgan_datasets.annotations.shapes import mask_to_shapes
from dsgan_datasets.tools.cli import main


@pytest.mark.slow
def test_demo_faces_through_labelme_and_coco(tmp_path: Path) -> None:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    folder = tmp_path / "a"
    export_annotations(
        labeled.generator,
        labeled.schema,
        folder,
        num_samples=8,
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


def test_export_and_check_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    export = export_command(out)
    assert main(export) == 1 and "--classes" in capsys.readouterr().err
    assert (
        main([*export, "--classes", "background,left,right,hat", "--truncation-psi", "0.5", "--set", "noise_mode=none"])
        == 0
    )
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
    output = capsys.readouterr().err
    assert "1 mistake in" in output and f"{names(out)[0]}: has no annotation" in output
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
    options = ["--interpreter", "demo-faces", "--select", "informative", "--num-samples", "2", "--candidates", "4"]
    assert main(["annotate", "export", generator, str(out), *options, "--start", "256", "--device", "cpu"]) == 0
    stored = json.loads((out / "annotations.json").read_text())
    assert all(256 <= image["index"] < 260 for image in stored["images"])
    psi = LabeledGenerator.from_pretrained("demo-faces", device="cpu").recipe.truncation_psi
    assert stored["recipe"]["sampling"]["truncation_psi"] == psi and stored["recipe"]["filter"] is None


def test_published_annotations_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = np.zeros((2, 16, 16), dtype=np.int64)
    masks[:, 3:9, 4:12] = 1
    published(tmp_path / "p", masks, np.random.RandomState(0).randn(2, 16))
    command = ["annotate", "check", str(tmp_path / "p"), "--generator", str(stylegan1(tmp_path)), "--device", "cpu"]
    assert main(command) == 1 and "--classes" in capsys.readouterr().err
    assert main([*command, "--classes", "background,part"]) == 0
    assert "part" in capsys.readouterr().out and (tmp_path / "p" / "check.png").is_file()


def test_the_picture_of_many_images_is_no_tower(tmp_path: Path) -> None:
    labeled = small_labeled()
    export_annotations(
        labeled.generator, [SCHEMA, POINTS], tmp_path / "a", num_samples=30, candidates=30, recipe=labeled.recipe
    )
    for name in names(tmp_path / "a"):
        shapes = [*polygon_shapes(mask_to_shapes(blocks(0)), SCHEMA), *point_shapes(places(0), POINTS)]
        write(tmp_path / "a" / "images" / f"{name}.json", labelme_file(f"{name}.png", SIZE, shapes))
    assert main(["annotate", "check", str(tmp_path / "a")]) == 0
    with Image.open(tmp_path / "a" / "check.png") as image:
        assert image.height < 2.2 * image.width and image.width < 2.2 * image.height


def test_mistakes_are_printable_whoever_names_them() -> None:
    error = AnnotationError("a\x1bb", "given.zip/annotations\x0fcoco.json: cannot be read", "c\nd")
    assert str(error).splitlines()[0] == r"2 mistakes in a\x1bb:" and all(map(str.isprintable, error.mistakes))
    assert len(str(error).splitlines()) == 3
