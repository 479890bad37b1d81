"""Images that are not square, 64×32 and 24×40: features, labels, crop, shards, exports, annotation and fitting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_ensemble
from PIL import Image

from dsgan_datasets import (
    InterpretedLabeler,
    LabeledGenerator,
    Recipe,
    ShardMapDataset,
    describe,
    load_generator,
    write_shards,
)
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import projection, rowwise
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import Votes
from dsgan_datasets.reference import label
from dsgan_datasets.tools.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATORS = {"human_sg2_64x32": (64, 32), "gilesbathgate_24x40": (24, 40)}


@pytest.fixture(params=GENERATORS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def labeled_generator(name: str, **recipe: object) -> LabeledGenerator:
    generator = load_generator(GOLDEN / f"{name}.pkl", device="cpu")
    ensemble = small_ensemble(list(generator.feature_channels), layout=generator.features, seed=1)
    return LabeledGenerator(InterpretedLabeler(generator, ensemble, [SCHEMA]), Recipe(truncation_psi=0.9, **recipe))


def test_sizes_of_everything(name: str) -> None:
    labeled = labeled_generator(name)
    generator, (height, width) = labeled.generator, GENERATORS[name]
    assert generator.img_size == labeled.image_size == (height, width)
    z = torch.randn(2, generator.z_dim)
    image, maps = synthesize(generator, labeled.recipe, z)
    assert [tuple(f.shape[2:]) for f in maps] == generator.feature_sizes and tuple(image.shape[2:]) == (height, width)
    assert all(h * width == w * height for h, w in generator.feature_sizes)
    sample = labeled.generate([3], extras=("uncertainty",))
    assert sample.mask.shape[1:] == sample.uncertainty.shape[1:] == sample.image.shape[2:] == (height, width)


@pytest.mark.parametrize("crop", [None, (3, 17)])
def test_labels_are_those_of_the_plain_method(name: str, crop: tuple[int, int] | None) -> None:
    """Both fast forms: row by row, and the one that the fused kernel computes."""
    labeled = labeled_generator(name, crop=crop)
    latents = torch.randn(2, labeled.generator.z_dim, generator=torch.Generator().manual_seed(0))
    _, maps = synthesize(labeled.generator, labeled.recipe, latents)
    frame = Frame(GENERATORS[name], crop)
    expected = label(labeled.interpreter.weights, maps, frame)
    for form in (rowwise, projection):
        mask, uncertainty = form.reduce(labeled.interpreter.weights, maps, frame, Votes("majority"))
        assert mask.shape == expected.labels["mask"].shape
        assert (uncertainty - expected.uncertainty).abs().max() < 1e-4
        assert (mask != expected.labels["mask"]).double().mean() < 0.002  # near ties


def test_shards_come_back(name: str, tmp_path: Path) -> None:
    labeled = labeled_generator(name)
    write_shards(labeled, tmp_path / "shards", range(5), samples_per_shard=3)
    shards = ShardMapDataset(tmp_path / "shards")
    samples = [shards[i] for i in range(5)]
    fresh = labeled.generate(range(5))
    assert torch.equal(torch.stack([s.image for s in samples]), fresh.image)
    assert torch.equal(torch.stack([s.mask for s in samples]), fresh.mask)
    assert main(["shards", "verify", str(tmp_path / "shards")]) == 0


def test_checkpoint_card_and_description(name: str, tmp_path: Path) -> None:
    labeled = labeled_generator(name)
    labeled.save_pretrained(tmp_path / "x")
    height, width = GENERATORS[name]
    assert f"{height}×{width}" in (tmp_path / "x" / "README.md").read_text()
    assert describe(tmp_path / "x").image_size == (height, width)
    again = LabeledGenerator.from_pretrained(tmp_path / "x", device="cpu")
    assert again.fingerprint == labeled.fingerprint
    assert torch.equal(again.generate([0]).mask, labeled.generate([0]).mask)


def test_info_and_preview(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labeled_generator(name).save_pretrained(tmp_path / "x")
    height, width = GENERATORS[name]
    for source in (GOLDEN / f"{name}.pkl", tmp_path / "x"):
        assert main(["info", str(source)]) == 0
        assert f"{height}×{width}" in capsys.readouterr().out
    assert main(["preview", str(tmp_path / "x"), "--num-samples", "2", "--out", str(tmp_path / "p.png")]) == 0
    assert size_of(tmp_path / "p.png")[0] > width


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


@pytest.mark.parametrize("layout", ["mmseg", "coco", "yolo-seg", "folder"])
def test_exports(name: str, tmp_path: Path, layout: str) -> None:
    labeled_generator(name).save_pretrained(tmp_path / "x")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "x"), str(out), "--format", layout, "--num-samples", "3"]) == 0
    height, width = GENERATORS[name]
    images = [path for path in out.rglob("*") if path.suffix in (".png", ".jpg") and path.stem != "preview"]
    assert len(images) >= 3 and {size_of(path) for path in images} == {(width, height)}
    for path in out.rglob("*.json"):
        for entry in json.loads(path.read_text()).get("images", []) if layout == "coco" else []:
            assert (entry["height"], entry["width"]) == (height, width)


def test_a_square_config_says_nothing_new() -> None:
    """Fingerprints of checkpoints that exist hold: fields that came later are stated only where they differ."""
    square = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu").config
    assert not {"img_size", "normalize", "mapping_width", "w_avg_per_class", "norm_eps"} & square.keys()
    assert load_generator(GOLDEN / "human_sg2_64x32.pkl", device="cpu").config["img_size"] == [64, 32]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ([64], "rows and columns"),
        ([64, 31], "times the rows and columns of a constant"),
        ([0, 64], "img_size"),
        ("64", "rows and columns"),
    ],
)
def test_sizes_that_no_generator_has(tmp_path: Path, size: object, message: str) -> None:
    from dsgan_datasets import CheckpointError, save_generator

    save_generator(load_generator(GOLDEN / "human_sg2_64x32.pkl", device="cpu"), tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    del config["parts_sha256"]  # else the change itself is noticed
    config["parts"]["generator"]["config"]["img_size"] = size
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_generator(tmp_path / "x", device="cpu")
