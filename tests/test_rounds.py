"""Several rounds of annotating are fitted together: what must agree, which mask counts, and what the commands say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from annotation_folders import GENERATOR, blocks, change, names, write_coco, write_labelme, write_masks
from conftest import SCHEMA, small_labeled
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema
from dsgan_datasets.annotations import AnnotationError, export_annotations, load_annotations
from dsgan_datasets.images import png
from dsgan_datasets.tools.cli import main

CPU = ("--device", "cpu")


def exported(folder: Path, *, schema: LabelSchema = SCHEMA, **options: object) -> Path:
    labeled = small_labeled()
    options = {"num_samples": 3, "select": "random", "recipe": labeled.recipe, "name": str(GENERATOR), **options}
    export_annotations(labeled.generator, schema, folder, **options)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two rounds, the first as palette masks, the second without annotations."""
    root = tmp_path_factory.mktemp("rounds")
    first = exported(root / "round-1")
    write_masks(first)
    return first, exported(root / "round-2", earlier=[first], recipe=None)


@pytest.fixture
def rounds(both: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in both]


def mistakes(folders: list[Path], generator: object = None) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        load_annotations(folders, generator)  # type: ignore[arg-type]
    assert "round-1, round-2" in str(caught.value)
    return list(caught.value.mistakes)


# Exporting a second round


def test_a_second_round_has_other_images_and_the_same_recipe(both: tuple[Path, Path]) -> None:
    first, second = (json.loads((folder / "annotations.json").read_text()) for folder in both)
    assert first["recipe"] == second["recipe"] and first["generator"] == second["generator"]
    assert [image["index"] for image in second["images"]] == [3, 4, 5]


def test_draws_of_earlier_rounds_are_passed_over(rounds: list[Path], tmp_path: Path) -> None:
    third = exported(tmp_path / "round-3", earlier=rounds, start=1, select="diverse", candidates=8, num_samples=2)
    assert all(int(name) in (6, 7, 8) for name in names(third))
    with pytest.raises(ValueError, match="only 1 of the draws 0 … 6 are not in an earlier round"):
        exported(tmp_path / "round-4", earlier=rounds, start=0, select="diverse", candidates=7, num_samples=3)
    assert not (tmp_path / "round-4").exists()


@pytest.mark.parametrize("kind", ["psi", "classes", "generator", "not exported"])
def test_a_second_round_that_could_not_be_fitted_is_refused(rounds: list[Path], tmp_path: Path, kind: str) -> None:
    options: dict[str, object] = {"earlier": rounds[:1]}
    if kind == "psi":
        options["recipe"], words = small_labeled().recipe.override(truncation_psi=0.5), "truncation_psi 0.5 instead of"
    if kind == "classes":
        options["schema"], words = LabelSchema((*SCHEMA.classes, "ring")), "round-1: classes.json lacks ring"
    if kind == "generator":
        change(rounds[0] / "annotations.json", lambda file: file["generator"].update(fingerprint="0" * 64))
        words = "another generator"
    if kind == "not exported":
        options["earlier"], words = [tmp_path], "annotations.json is missing"
    with pytest.raises(ValueError, match=words):
        exported(tmp_path / "new", **options)  # type: ignore[arg-type]


def test_the_instructions_name_all_rounds(both: tuple[Path, Path], tmp_path: Path) -> None:
    assert "dsgan fit sg2ada_fullsnapshot16.pkl round-1 OUT" in (both[0] / "README.txt").read_text()
    assert "dsgan fit sg2ada_fullsnapshot16.pkl round-1 round-2 OUT" in (both[1] / "README.txt").read_text()
    labeled = small_labeled()
    drafted = exported(tmp_path / "round 2", interpreter=labeled)
    text = (drafted / "README.txt").read_text()
    assert "dsgan fit sg2ada_fullsnapshot16.pkl EARLIER 'round 2' OUT" in text and "EARLIER is the folder" in text


# Reading them together


@pytest.mark.parametrize("write", [write_masks, write_labelme, write_coco])
def test_rounds_of_any_format_are_read_together(rounds: list[Path], write: object) -> None:
    write(rounds[1])  # type: ignore[operator]
    found = load_annotations(rounds, GENERATOR, device="cpu")
    alone = [load_annotations(folder, GENERATOR, device="cpu") for folder in rounds]
    assert torch.equal(found.latents, torch.cat([each.latents for each in alone]))
    assert torch.equal(found.masks, torch.cat([each.masks for each in alone]))
    assert found.names == tuple(f"{folder.name}/{name}" for folder in rounds for name in names(folder))
    assert found.recipe == alone[0].recipe and found.schema == SCHEMA and found.generator is not None
    assert found.images is not None and len(found.images) == 6


def test_one_folder_is_read_as_before(rounds: list[Path]) -> None:
    one, listed = load_annotations(rounds[0]), load_annotations([str(rounds[0])])
    assert torch.equal(one.masks, listed.masks) and one.names == listed.names == tuple(names(rounds[0]))


def test_the_last_mask_of_an_image_counts(rounds: list[Path], tmp_path: Path) -> None:
    again = Path(shutil.copytree(rounds[0], tmp_path / "corrected"))
    changed = np.zeros((16, 16), np.uint8)
    changed[3:9, 3:9] = 3
    for name in names(again)[1:]:
        (again / "masks" / f"{name}.png").unlink()
    (again / "masks" / f"{names(again)[0]}.png").write_bytes(png(changed))
    found = load_annotations([rounds[0], again], allow_missing=True)
    assert len(found.masks) == 3 and len({z.numpy().tobytes() for z in found.latents}) == 3
    assert found.names == (*(f"round-1/{n}" for n in names(again)[1:]), f"corrected/{names(again)[0]}")
    assert np.array_equal(found.masks[-1].numpy(), changed)
    (warning,) = [w for w in found.warnings if "annotated again in corrected, whose labels count" in w]
    assert warning.startswith(f"round-1: {names(again)[0]}:")


def test_classes_agree_by_name_not_by_place(rounds: list[Path]) -> None:
    order = [0, 3, 1, 2]
    write_masks(rounds[1])
    change(rounds[1] / "classes.json", lambda file: file.update(classes=[file["classes"][i] for i in order]))
    change(rounds[1] / "classes.json", lambda file: file.update(flip_pairs=[[2, 3]], ignore_index=254))
    for i, name in enumerate(names(rounds[1])):
        mask = np.array([0, 2, 3, 1])[blocks(i)]
        mask[0, 0] = 254
        (rounds[1] / "masks" / f"{name}.png").write_bytes(png(mask))
    found = load_annotations(rounds)
    expected = np.stack([blocks(i) for i in range(3)])
    expected[:, 0, 0] = 255
    assert found.schema == SCHEMA and np.array_equal(found.masks[3:].numpy(), expected)


def test_a_class_that_one_round_lacks_is_a_mistake_with_a_way_out(rounds: list[Path]) -> None:
    write_masks(rounds[1])
    longer = [*json.loads((rounds[1] / "classes.json").read_text())["classes"], {"name": "ring", "color": [1, 2, 3]}]
    change(rounds[1] / "classes.json", lambda file: file.update(classes=longer))
    (output,) = mistakes(rounds)
    assert output.startswith("round-1: classes.json lacks ring, which round-2 has") and "append the names" in output
    change(rounds[0] / "classes.json", lambda file: file.update(classes=longer))  # the way out
    assert any("no image has the class ring" in w for w in load_annotations(rounds).warnings)


def test_other_recipes_and_generators_are_mistakes(rounds: list[Path]) -> None:
    write_masks(rounds[1])
    change(rounds[1] / "annotations.json", lambda file: file["recipe"]["sampling"].update(truncation_psi=0.5))
    change(rounds[1] / "annotations.json", lambda file: file["generator"].update(fingerprint="0" * 64))
    output = mistakes(rounds)
    assert any("another generator (fingerprint 00000000…)" in mistake for mistake in output)
    assert any("truncation_psi 0.5 instead of 0.9" in mistake and "--after round-1" in mistake for mistake in output)


def test_mistakes_of_all_rounds_come_at_once(rounds: list[Path]) -> None:
    write_masks(rounds[1])
    for folder in rounds:
        (folder / "masks" / f"{names(folder)[0]}.png").unlink()
    assert [mistake.split(":")[0] for mistake in mistakes(rounds)] == ["round-1", "round-2"]


def test_a_class_that_only_one_round_shows_is_no_warning(rounds: list[Path]) -> None:
    write_masks(rounds[1])
    for folder, kept in zip(rounds, ((0, 1, 2), (0, 3)), strict=True):
        for path in (folder / "masks").iterdir():
            mask = np.asarray(Image.open(path))
            path.write_bytes(png(np.where(np.isin(mask, kept), mask, 0)))
    assert not any("no image has" in w for w in load_annotations(rounds).warnings)
    assert any("no image has the class hat" in w for w in load_annotations(rounds[0]).warnings)


@pytest.mark.parametrize("kind", ["none", "twice", "files"])
def test_wrong_lists_of_folders(rounds: list[Path], kind: str) -> None:
    folders = {"none": [], "twice": [rounds[0], rounds[0] / ".." / "round-1"], "files": rounds}[kind]
    with pytest.raises(ValueError, match="no folder of|given twice|files are the annotations of one"):
        load_annotations(folders, files="coco.json" if kind == "files" else None)


def test_published_and_exported_rounds_are_fitted_together(rounds: list[Path], tmp_path: Path) -> None:
    """The published layout has no recipe of its own: the caller gives it, and it holds for that folder only."""
    published = tmp_path / "published"
    published.mkdir()
    np.save(published / "latent_stylegan1.npy", np.random.RandomState(0).randn(2, 32).astype(np.float32))
    for i in range(2):
        np.save(published / f"image_mask{i}.npy", blocks(i))
    recipe = {"truncation_psi": 0.9, "truncation_cutoff": None, "classes": SCHEMA}
    found = load_annotations([published, rounds[0]], GENERATOR, device="cpu", **recipe)  # type: ignore[arg-type]
    assert len(found.masks) == 5 and found.names[0] == "published/image_mask0"
    with pytest.raises(AnnotationError, match=r"truncation_psi 0\.9 instead of 0\.7"):
        load_annotations([published, rounds[0]], GENERATOR, device="cpu", classes=SCHEMA)


# The commands


@pytest.mark.slow
def test_fit_and_check_take_several_rounds(
    rounds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_labelme(rounds[1])
    first, second = map(str, rounds)
    fast = ("--steps", "40", "--members", "2", "--num-samples", "40", "--folds", "2")
    assert main(["fit", str(GENERATOR), first, second, str(tmp_path / "out"), *fast, *CPU]) == 0
    printed = capsys.readouterr().out
    assert "6 images, each labeled by an ensemble fitted without it (2 folds)" in printed
    labeled = LabeledGenerator.from_pretrained(tmp_path / "out", device="cpu")
    assert labeled.fit is not None and labeled.fit.num_images == 6
    assert main(["annotate", "check", first, second, "--generator", str(GENERATOR), *CPU]) == 0
    printed = capsys.readouterr().out
    assert "annotated images: 6, 16×16" in printed and str(rounds[1] / "check.png") in printed
    assert not (rounds[0] / "check.png").exists()
    assert main(["fit", str(GENERATOR), first, second, "--overwrite", *fast, *CPU]) == 1
    assert "round-2 holds annotations: OUT, the checkpoint to write, comes last" in capsys.readouterr().err


def test_the_command_exports_a_round_after_another(
    rounds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "round-3"
    after = [word for folder in rounds for word in ("--after", str(folder))]
    command = ["annotate", "export", str(GENERATOR), str(out), *after, "--num-samples", "2", "--candidates", "4", *CPU]
    assert main([*command, "--psi", "0.3"]) == 1
    assert "truncation_psi 0.3 instead of 0.9" in capsys.readouterr().err
    assert main(command) == 0
    assert "psi 0.9" in capsys.readouterr().out and all(int(name) >= 6 for name in names(out))
    assert "round-1 round-2 round-3 OUT" in (out / "README.txt").read_text()


def test_a_labeled_checkpoint_lends_its_classes(tmp_path: Path) -> None:
    small_labeled().save_pretrained(tmp_path / "small")
    command = [
        "annotate",
        "export",
        str(tmp_path / "small"),
        str(tmp_path / "out"),
        "--num-samples",
        "1",
        "--select",
        "random",
    ]
    assert main([*command, *CPU]) == 0
    assert LabelSchema.from_dict(json.loads((tmp_path / "out" / "classes.json").read_text())) == SCHEMA
