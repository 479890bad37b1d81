"""Generators that make mask and image together: the reference, what a recipe may ask, checkpoints, commands."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_labeled
from golden_data import JOINT, PROBES, TOLERANCE, Golden, generator_file, reference_generator
from properties import assert_same_samples

from dsgan_datasets import (
    CheckpointError,
    JointLabeler,
    LabeledGenerator,
    LabelSchema,
    Recipe,
    ShardMapDataset,
    describe,
    load_generator,
    load_joint,
    save_generator,
    write_shards,
)
from dsgan_datasets.generators.semanticgan import SemanticGANConfig
from dsgan_datasets.tools.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

SEMANTICGAN, STYLEGAN2, STYLEGAN3 = (
    PROBES / file for file in ("semanticgan_32.pt", "sg2ada_4ch_32.pkl", "sg3_4ch_t_32.pkl")
)
CLASSES = ("background", "lesion")


def joint(name: str, **how: Any) -> JointLabeler:
    file = generator_file(PROBES, name)
    return load_joint(file, label_channel=None if name == "semanticgan_32" else 3, device="cpu", **how)


@pytest.fixture(scope="module")
def lesions() -> LabeledGenerator:
    return LabeledGenerator(joint("sg2ada_4ch_32", classes=CLASSES), Recipe())


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("psi", ["1", "0.7"])
def test_masks_are_those_of_the_reference(name: str, psi: str) -> None:
    golden, generator = Golden(PROBES / f"{name}.npz"), reference_generator(PROBES, name)
    labeler = JointLabeler(generator, joint(name).schema)
    ws = generator.mapping(golden.whole("z"), truncation_psi=float(psi))
    fields = labeler.label(ws, Recipe())
    image = golden.whole(f"img_psi{psi}")
    logits = golden.whole(f"seg_psi{psi}") if f"seg_psi{psi}" in golden.names else image[:, 3:]
    expected = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
    # Pixels where rounding may swap classes are few, and nothing else is excused.
    best = logits.topk(2, 1).values if logits.shape[1] > 1 else torch.cat([logits, torch.zeros_like(logits)], 1)
    tied = (best[:, 0] - best[:, 1]).abs() <= TOLERANCE["relative"] * logits.abs().max()
    assert tied.float().mean() < 0.002
    assert torch.equal(fields["mask"][~tied], expected[~tied])
    assert len(expected.unique()) > 1 or (name, psi) == ("sg3_4ch_t_32", "0.7")
    assert ((image[:, :3] * 127.5 + 128).clamp(0, 255) - fields["image"]).abs().max() <= 1.01


@pytest.mark.parametrize("name", JOINT)
def test_there_is_no_uncertainty_rather_than_a_faked_one(name: str) -> None:
    labeled = LabeledGenerator(joint(name), Recipe())
    sample = labeled.generate([0])
    assert set(sample) == {"image", "mask", "index", "attempt"}
    with pytest.raises(AttributeError, match="uncertainty_score"):
        sample.uncertainty_score  # noqa: B018
    with pytest.raises(ValueError, match="does not know how certain it is"):
        labeled.generate([0], extras=["uncertainty"])


@pytest.mark.parametrize("asked", [{"reject_fraction": 0.1}, {"threshold": 0.5}, {"max_uncertainty": 0.1}])
def test_filtering_by_uncertainty_is_refused_with_the_way_out(asked: dict[str, float]) -> None:
    labeler, recipe = joint("sg2ada_4ch_32"), Recipe(**asked)  # type: ignore[arg-type]
    for refuse in (lambda: labeler.check(recipe), lambda: LabeledGenerator(labeler, recipe)):
        with pytest.raises(ValueError, match=r"use reject_fraction=0.*\(require, visible\) work"):
            refuse()


@pytest.mark.parametrize("asked", [{"vote": "mean"}, {"top_fraction": 0.5}])
def test_there_is_nothing_to_vote_on(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing to vote on"):
        joint("sg2ada_4ch_32").check(Recipe(**asked))


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("frame", [{"size": (64, 48)}, {"size": (16, 16), "crop": (2, 14)}, {"crop": (4, 28)}])
def test_the_mask_is_resized_and_cropped_as_the_image_is(name: str, frame: dict[str, Any]) -> None:
    """The channels are resized, then compared: a class id is never interpolated."""
    labeler, recipe = joint(name), Recipe(**frame)
    ws = labeler.generator.mapping(torch.randn(2, labeler.generator.z_dim, generator=torch.Generator().manual_seed(0)))
    fields = labeler.label(ws, recipe)
    channels = labeler.generator.synthesis_channels(ws)[0]
    resized = torch.nn.functional.interpolate(channels, size=recipe.frame_size(32), mode="bilinear")
    logits = resized[:, 3:, slice(*recipe.crop) if recipe.crop else slice(None)]
    assert torch.equal(fields["mask"], (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1))
    assert tuple(fields["image"].shape[2:]) == tuple(fields["mask"].shape[1:]) == recipe.image_size(32)


def test_a_single_logit_is_a_binary_mask(tmp_path: Path) -> None:
    content = torch.load(SEMANTICGAN, weights_only=False)
    state = content["g_ema"]
    for name in state:
        if name.startswith("to_seg") and name.endswith((".bias", "conv.weight")) and "modulation" not in name:
            state[name] = state[name][:, 2:3]
    torch.save({"g_ema": state}, tmp_path / "x.pt")
    labeler = load_joint(tmp_path / "x.pt", device="cpu")
    ws = labeler.generator.mapping(torch.ones(1, 32))
    assert labeler.schema.classes == ("class_0", "class_1")
    channels = load_joint(SEMANTICGAN, device="cpu").generator.synthesis_channels(ws)[0]
    assert torch.equal(labeler.label(ws, Recipe())["mask"], (channels[:, 5] > 0).long())


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        (STYLEGAN2, {}, "may be a mask or transparency.*label_channel=3"),
        (STYLEGAN3, {"classes": CLASSES}, "may be a mask or transparency"),
        (STYLEGAN2, {"label_channel": 0}, "only the fourth of four"),
        (STYLEGAN2, {"label_channel": 3, "classes": ("a", "b", "c")}, "have 2 classes, got 3 names: a, b, c"),
        (SEMANTICGAN, {"classes": CLASSES}, "have 5 classes, got 2 names"),
        (SEMANTICGAN, {"label_channel": 3}, "leave label_channel out"),
        (PROBES / "sg3_t_32.pkl", {}, "makes colors only: fit an interpreter"),
        (PROBES / "sg3_t_32.pkl", {"label_channel": 3}, "has 3 image channels"),
    ],
)
def test_what_makes_no_mask_or_another_one(file: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_joint(file, device="cpu", **how)


def test_shapes_that_no_semanticgan_has() -> None:
    shape: dict[str, Any] = {"z_dim": 8, "w_dim": 8, "img_resolution": 8, "channels": {4: 4, 8: 4}}
    SemanticGANConfig(**shape, label_channels=255)
    for wrong in ({"label_channels": 0}, {"label_channels": 256}, {"block": "resnet"}, {"img_channels": 4}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SemanticGANConfig(**{**shape, "label_channels": 2, **wrong})


# --- as any other labeled generator ---


@pytest.mark.parametrize("name", JOINT)
def test_a_checkpoint_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    labeled = LabeledGenerator(joint(name), Recipe(size=(24, 24)))
    labeled.save_pretrained(tmp_path / "x")
    loaded = LabeledGenerator.from_pretrained(tmp_path / "x", device="cpu")
    assert_same_samples(loaded.generate(range(5), seed=1).rows(), list(labeled.generate(range(5), seed=1).rows()))
    assert describe(tmp_path / "x").fingerprint == loaded.fingerprint == labeled.fingerprint
    assert loaded.generator.provenance == labeled.generator.provenance
    assert "makes its labels itself" in (tmp_path / "x" / "README.md").read_text()
    assert_same_samples(pickle.loads(pickle.dumps(labeled)).generate([3]).rows(), list(labeled.generate([3]).rows()))


@pytest.mark.slow
def test_required_classes_filter_by_content(lesions: LabeledGenerator) -> None:
    """Each sample is the first draw of its index whose mask has enough of the class."""
    area = int(lesions.generate(range(40)).mask.flatten(1).sum(1).median())
    filtered = LabeledGenerator(lesions.labeler, Recipe(require=(1,), min_area=area))
    kept = filtered.generate(range(20), seed=3)
    assert bool((kept.mask.flatten(1).sum(1) >= area).all()) and int(kept.attempt.max()) > 0
    for sample in kept.rows():
        for attempt in range(int(sample.attempt)):
            earlier = lesions.generate([int(sample.index)], seed=3, attempts=attempt)
            assert int(earlier.mask.sum()) < area


def test_merged_classes_map_the_mask() -> None:
    labeled = LabeledGenerator(joint("semanticgan_32"), Recipe())
    merged = labeled.merge_classes({"thing": ["class_1", "class_2"], "stuff": ["class_3", "class_4"]})
    lookup = torch.tensor([0, 1, 1, 2, 2])
    assert merged.schema.classes == ("class_0", "thing", "stuff")
    assert torch.equal(merged.generate(range(3)).mask, lookup[labeled.generate(range(3)).mask])


def test_shards_hold_the_masks(lesions: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(lesions, tmp_path / "shards", range(6), samples_per_shard=3, seed=2)
    stored = ShardMapDataset(tmp_path / "shards")
    direct = lesions.generate(range(6), seed=2)
    for i in range(6):
        assert torch.equal(stored[i]["mask"], direct.mask[i]) and torch.equal(stored[i]["image"], direct.image[i])


def test_a_checkpoint_without_its_channels_is_refused(tmp_path: Path, lesions: LabeledGenerator) -> None:
    """Weights of a generator of colors beside a config that says joint."""
    lesions.save_pretrained(tmp_path / "x")
    save_generator(small_labeled().generator, tmp_path / "rgb")
    (tmp_path / "x" / "generator.safetensors").write_bytes((tmp_path / "rgb" / "generator.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="changed or damaged"):
        LabeledGenerator.from_pretrained(tmp_path / "x", device="cpu")
    with pytest.raises(CheckpointError, match="changed or damaged, or belongs to another checkpoint"):
        load_generator(tmp_path / "x", device="cpu")


# --- commands ---


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("file", [STYLEGAN2, STYLEGAN3])
def test_converting_four_channels_needs_a_word_from_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    out = printed(capsys, "convert", file, tmp_path / "image")
    assert "channel 4 is dropped" in out and "--label-channel" in out
    assert "--label-channel" in printed(capsys, "info", file)
    with pytest.raises(CheckpointError, match="generator without labels"):
        LabeledGenerator.from_pretrained(tmp_path / "image")
    args = ("convert", file, tmp_path / "labeled", "--classes", "background,lesion", "--license", "MIT")
    assert main(list(map(str, args))) == 1 and "--label-channel" in capsys.readouterr().err
    out = printed(capsys, *args, "--label-channel")
    assert "made by the generator itself" in out and "background, lesion" in out and "dropped" not in out
    labeled = LabeledGenerator.from_pretrained(tmp_path / "labeled", device="cpu")
    assert labeled.schema.classes == CLASSES and labeled.license == "MIT"
    assert_same_samples(
        labeled.generate([0, 1]).rows(),
        list(LabeledGenerator(load_joint(file, label_channel=3, device="cpu"), Recipe()).generate([0, 1]).rows()),
    )


def test_converting_a_semanticgan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "SemanticGAN" in printed(capsys, "info", SEMANTICGAN)
    out = printed(capsys, "convert", SEMANTICGAN, tmp_path / "x", "--classes", "a,b,c,d,e")
    assert "a, b, c, d, e" in out and "semanticgan" in out
    assert "class_0, class_1" in printed(capsys, "convert", SEMANTICGAN, tmp_path / "y")
    labeled = LabeledGenerator.from_pretrained(tmp_path / "x", device="cpu")
    assert labeled.generate([0]).mask.unique().max() > 1
    assert LabeledGenerator.from_pretrained(tmp_path / "x", device="cpu", truncation_psi=0.7).generate([0]).mask.any()
    assert "made by the generator itself" in printed(capsys, "info", tmp_path / "x")


def test_a_schema_must_name_what_the_generator_makes() -> None:
    labeler = JointLabeler(load_generator(SEMANTICGAN, device="cpu"), LabelSchema(CLASSES))
    with pytest.raises(ValueError, match="predicts 5 classes, the schema names 2"):
        labeler.check(Recipe())
