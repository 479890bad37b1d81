"""`dsgan fit`: from a folder of annotations to a checkpoint that says how good it is; held-out numbers are held out."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image

from dsgan_datasets import AnnotatedImages, LabeledGenerator, LabelSchema, Recipe, fit_interpreter, load_generator
from dsgan_datasets.annotations import export_annotations
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, count_pairs, cross_validate, evaluate
from dsgan_datasets.fitting.settings import ConvolutionalSettings, FitSettings
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.tools.cli import main

GENERATOR = GOLDEN / "sg2ada_fullsnapshot16.pkl"
SCHEMA = LabelSchema(("dark", "middle", "bright"))
RECIPE = Recipe(truncation_psi=0.9)
QUICK = FitSettings(members=2, steps=120)


def annotated(labeled: LabeledGenerator, indices: range) -> AnnotatedImages:
    """Classes by the value of one channel of the finest map: a rule that the features know."""
    latents = sample_latents(indices, 32, seed=0, purpose=Purpose.ANNOTATION)
    _, features = synthesize(labeled.generator, RECIPE, latents)
    channel = features[-1][:, 0]
    return AnnotatedImages(latents, (channel > -0.1).long() + (channel > 0.5).long())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder with masks, drawn by that rule."""
    folder = tmp_path_factory.mktemp("fit") / "annotations"
    generator = load_generator(GENERATOR, device="cpu")
    exported = export_annotations(
        generator, SCHEMA, folder, num_samples=6, candidates=8, recipe=RECIPE, name=str(GENERATOR)
    )
    _, features = synthesize(generator, RECIPE, exported.latents)
    channel = features[-1][:, 0]
    masks = (channel > -0.1).long() + (channel > 0.5).long()
    (folder / "masks").mkdir(exist_ok=True)
    for image, mask in zip(exported.images, masks, strict=True):
        Image.fromarray(mask.numpy().astype(np.uint8)).save(folder / "masks" / f"{image.name}.png")
    return folder


# Numbers


def test_iou_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1, 255, 0]])
    mask = torch.tensor([[0, 1, 1, 255, 1, 0]])
    quality = ConfusionMatrix(count_pairs(truth, mask, 3, 255))
    assert quality.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert quality.iou[:2].tolist() == [2 / 3, 1 / 2] and quality.iou[2].isnan()
    assert quality.mean_iou == pytest.approx(7 / 12) and quality.pixel_accuracy == 0.75


def test_evaluation_looks_at_the_pixels_of_the_crop(unfiltered: LabeledGenerator) -> None:
    recipe = Recipe(truncation_psi=0.9, crop=(4, 12), size=(16, 24))
    latents = sample_latents(range(3), 32, seed=0)
    _, features = synthesize(unfiltered.generator, recipe, latents)
    masks = unfiltered.interpreter.predict(features, Frame((16, 24), (4, 12))).labels["mask"]
    own = evaluate(unfiltered.generator, unfiltered.interpreter, AnnotatedImages(latents, masks), recipe=recipe)
    assert own.pixel_accuracy == 1 and own.confusion.sum() == 3 * 8 * 24
    wrong = AnnotatedImages(latents, (masks + 1) % 4)
    assert evaluate(unfiltered.generator, unfiltered.interpreter, wrong, recipe=recipe).pixel_accuracy == 0


@pytest.mark.slow
def test_cross_validation_holds_images_out(unfiltered: LabeledGenerator) -> None:
    """Masks of noise can be learned by heart, and not be predicted: only a leak would give more than chance."""
    random = torch.Generator().manual_seed(0)
    latents = sample_latents(range(4), 32, seed=0)
    noise = AnnotatedImages(latents, torch.randint(0, 2, (4, 1, 1), generator=random).expand(4, 16, 16).clone())
    noise.masks[:] = torch.tensor([0, 1, 0, 1])[:, None, None]
    schema = LabelSchema(("a", "b"))
    quality = cross_validate(unfiltered.generator, noise, schema, recipe=RECIPE, folds=4, settings=QUICK)
    ensemble = fit_interpreter(unfiltered.generator, noise, schema, recipe=RECIPE, members=2, steps=80)
    seen = evaluate(unfiltered.generator, ensemble, noise, recipe=RECIPE)
    assert seen.pixel_accuracy > 0.95 and quality.pixel_accuracy < 0.75
    assert quality.confusion.sum() == noise.masks.numel()  # every image once


@pytest.mark.slow
def test_cross_validation_predicts_a_rule(unfiltered: LabeledGenerator) -> None:
    data = annotated(unfiltered, range(8))
    first = cross_validate(unfiltered.generator, data, SCHEMA, recipe=RECIPE, settings=QUICK)
    majority = data.masks.flatten().bincount().max().item() / data.masks.numel()
    assert first.pixel_accuracy > majority + 0.1
    again = cross_validate(unfiltered.generator, data, SCHEMA, recipe=RECIPE, settings=QUICK)
    assert torch.equal(first.confusion, again.confusion)


@pytest.mark.parametrize("folds", [1, 4])
def test_folds_out_of_range(unfiltered: LabeledGenerator, folds: int) -> None:
    with pytest.raises(ValueError, match="folds must be an integer in 2 … 3"):
        cross_validate(unfiltered.generator, annotated(unfiltered, range(3)), SCHEMA, recipe=RECIPE, folds=folds)


# The command

FAST = ("--device", "cpu", "--steps", "60", "--members", "2", "--num-samples", "40", "--folds", "2")


@pytest.mark.slow
def test_fit_writes_a_checkpoint_with_its_card(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shades"
    output = ("--license", "CC0-1.0", "--description", "Squares in three shades.")
    assert main(["fit", str(GENERATOR), str(folder), str(out), *FAST, *output, "--ignore-fraction", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "middle" in printed and "pixel accuracy" in printed and "threshold" in printed
    labeled = LabeledGenerator.from_pretrained(out, device="cpu")
    assert labeled.license == "CC0-1.0" and labeled.schema.classes == SCHEMA.classes
    assert labeled.recipe.truncation_psi == 0.9 and labeled.recipe.reject_fraction == 0.1
    assert labeled.calibration is not None and labeled.calibration.ignore_fraction == 0.1
    assert labeled.interpreter.num_members == 2
    card = (out / "README.md").read_text()
    for expected in ("# shades", "IoU", "CC0-1.0", "preview.png", "calibration.png", "| steps | 60 |", "6 annotated"):
        assert expected in card
    assert labeled.fingerprint in card
    for name in ("preview.png", "calibration.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300
    weights = ["generator.safetensors", "interpreter.safetensors"]
    pictures = ["calibration.png", "preview.png"]
    assert {p.name for p in out.iterdir()} == {"README.md", "config.json", *weights, *pictures}
    data = annotated(labeled, range(100, 106))
    assert evaluate(labeled.generator, labeled.interpreter, data, recipe=RECIPE).pixel_accuracy > 0.6

    # What is known of the fitting outlives another calibration, also one in place, whose pictures are new.
    drawn = {name: (out / name).read_bytes() for name in pictures}
    again = ["calibrate", str(out), str(out), "--overwrite", "--num-samples", "40", "--device", "cpu"]
    assert main([*again, "--reject-fraction", "0.4"]) == 0
    stricter, new_card = LabeledGenerator.from_pretrained(out, device="cpu"), (out / "README.md").read_text()
    assert stricter.fit == labeled.fit and stricter.fingerprint != labeled.fingerprint
    for kept in (
        "# shades\n\nSquares in three shades.\n\nGenerator",
        "Held out:\n\n- mask: mean IoU",
        "| steps | 60 |",
        "6 annotated",
    ):
        assert kept in card and kept in new_card
    assert all((out / name).read_bytes() != before for name, before in drawn.items())
    stricter.save_pretrained(out)
    assert not any((out / name).exists() or name in (out / "README.md").read_text() for name in pictures)


@pytest.mark.slow
def test_a_dry_run_says_how_long_it_takes_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", str(GENERATOR), str(folder), str(tmp_path / "out"), *FAST, "--dry-run"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 ensembles of 60 steps" in printed and "40 draws" in printed and "time  " in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_auto_prints_both_figures_and_takes_the_better(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ConvolutionalSettings(members=2, width=8, steps=30, learning_rate=1e-2, channel_dropout=0.0)
    quick = functools.partial(FitSettings, convolutional=settings)
    monkeypatch.setattr("dsgan_datasets.tools.fit.FitSettings", quick)
    command = ["fit", str(GENERATOR), str(folder), str(tmp_path / "out"), *FAST, "--interpreter", "auto"]
    assert main([*command[:-4], "--folds", "0", *command[-2:]]) == 1
    assert "it needs two annotated images or more, and folds that are not 0" in capsys.readouterr().err
    assert main(command) == 0
    printed = capsys.readouterr().out
    scores = {
        name: float(re.search(rf"mask \({name}\).*?mean IoU ([0-9.]+)", printed, re.S)[1])  # type: ignore[index]
        for name in ("pixels", "convolutional")
    }
    better = max(scores, key=lambda name: scores[name])
    assert f"taken, as it labels held-out images better: {better}" in printed
    labeled = LabeledGenerator.from_pretrained(tmp_path / "out", device="cpu")
    assert labeled.interpreter.architecture == {"pixels": "pixel_ensemble"}.get(better, better)
    assert (
        labeled.fit is not None and f"{labeled.fit.quality['mask'].summary['mean IoU']:.3f}" == f"{scores[better]:.3f}"
    )
    assert len(list(labeled.stream(range(2)))) == 2


@pytest.mark.slow
def test_samples_may_have_another_psi_than_the_annotated_images(folder: Path, tmp_path: Path) -> None:
    plain = ("fit", str(GENERATOR), str(folder), str(tmp_path / "a"), *FAST[:-1], "0")
    assert main(plain) == 0
    assert main([*plain[:3], str(tmp_path / "b"), *plain[4:], "--truncation-psi", "0.4", "--set", "vote=mean"]) == 0
    a, b = (LabeledGenerator.from_pretrained(tmp_path / name, device="cpu") for name in "ab")
    assert (b.recipe.truncation_psi, b.recipe.vote) == (0.4, "mean") and torch.equal(a.interpreter.w1, b.interpreter.w1)
    assert "IoU" not in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds (or 0 for no held-out check) must be an integer of at least 2"),
        (["--class-balance", "2"], "class_balance must lie in 0 … 1, not 2.0"),
        (["--learning-rate", "0"], "learning_rate must be above 0, not 0.0"),
        (["--batch-pixels", "1"], "batch_pixels must be an integer of at least 2"),
        (["--set", "threshold=0.1"], "fit finds the threshold itself"),
        (["--set", "features=const+convs"], "the layout is that of the annotated images"),
        (["--reject-fraction", "1.5"], "reject_fraction must be a number in"),
        (["--learning-rate", "1e30", "--folds", "0", "--steps", "20"], "the training diverged"),
        (["--members", "1"], "one member agrees with itself everywhere"),
        (["--set", "crop=[4,400]"], "reaches beyond the 16 rows"),
        (["--set", "mixing_layer=99"], "this generator can mix at 1 …"),
        (["--set", "require=[0]", "--set", "min_area=257"], "min_area 257 is more than the pixels"),
        (["--set", "require=[7]"], "the schema has 0 … 2"),
    ],
)
def test_mistakes_end_in_one_clear_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    fast = ["--device", "cpu", "--steps", "1", "--members", "2", "--num-samples", "40"]
    assert main(["fit", str(GENERATOR), str(folder), str(tmp_path / "out"), *fast, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mistakes_of_the_annotator_come_first(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = shutil.copytree(folder, tmp_path / "work")
    next((work / "masks").glob("*.png")).unlink()
    assert main(["fit", str(GENERATOR), str(work), str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "has no annotation" in capsys.readouterr().err
    assert main(["fit", str(GENERATOR), str(tmp_path / "nowhere"), str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "no folder" in capsys.readouterr().err


def test_nothing_is_replaced_unasked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps({}))
    assert main(["fit", str(GENERATOR), str(folder), str(tmp_path / "out")]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_a_rule_that_no_sample_meets_does_not_lose_what_was_fitted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = ("--folds", "0", "--set", "require=[0,1,2]", "--set", "min_area=85")
    assert main(["fit", str(GENERATOR), str(folder), str(tmp_path / "out"), *FAST[:-2], *rules]) == 1
    message = capsys.readouterr().err
    assert "the filter accepts" in message and "dsgan calibrate" in message
    fitted = LabeledGenerator.from_pretrained(tmp_path / "out", device="cpu")
    assert not fitted.recipe.is_filtered and fitted.generate([0]).mask.shape == (1, 16, 16)


def test_one_image_is_told_to_be_unchecked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "one")
    _, *others = sorted((tmp_path / "one" / "masks").glob("*.png"))
    for mask in others:
        mask.unlink()
    plain = ("fit", str(GENERATOR), str(tmp_path / "one"), str(tmp_path / "out"), *FAST, "--allow-missing")
    assert main([*plain, "--members", "1", "--reject-fraction", "0"]) == 0
    printed = capsys.readouterr().out
    assert "no held-out check" in printed and "no filter" in printed


@pytest.mark.parametrize("verb", ["fit", "calibrate", "convert"])
def test_what_is_no_checkpoint_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, folder: Path
) -> None:
    first = {"fit": [str(GENERATOR), str(folder)], "calibrate": ["demo-faces"], "convert": [str(GENERATOR)]}[verb]
    photos, file, deep = tmp_path / "photos", tmp_path / "file", tmp_path / "file" / "deep"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"a cat")
    file.write_text("text")
    for out, message in (
        (photos, "--overwrite replaces checkpoints only"),
        (file, "is a file"),
        (deep, "cannot be written to"),
        ("hf://me/faces", "OUT is a folder on this machine"),
    ):
        assert main([verb, *first, str(out), "--overwrite"]) == 1
        assert message in capsys.readouterr().err
    assert [p.name for p in photos.iterdir()] == ["cat.jpg"] and file.read_text() == "text"


@pytest.mark.slow
def test_an_option_that_nothing_uses_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = str(GOLDEN / "sg2ada_fullsnapshot16.pkl")
    fit = ["fit", generator, str(folder), str(tmp_path / "out"), "--interpreter", "convolutional"]
    assert main([*fit, "--batch-pixels", "64"]) == 1
    told = capsys.readouterr().err
    assert "--batch-pixels is an option of pixel classifiers" in told and not (tmp_path / "out").exists()
    short = ["--members", "1", "--steps", "2", "--folds", "0", "--num-samples", "20", "--device", "cpu"]
    assert main([*fit, *short, "--reject-fraction", "0"]) == 0
    labeled = LabeledGenerator.from_pretrained(tmp_path / "out", device="cpu")
    assert labeled.interpreter.architecture == "convolutional" and labeled.interpreter.config["members"] == 1
    assert labeled.fit is not None and labeled.fit.settings["steps"] == 2
