"""The stand-in annotator of the demo: both resolutions learn from the same changes, and bad input is reported."""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import TRAIN_RENDERS
from safetensors.torch import save_file
from torch.nn import functional as F

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import annotate  # noqa: E402
import renders  # noqa: E402
import train_annotator  # noqa: E402
from annotator import WIDTHS, Annotator, load_annotator, save_annotator  # noqa: E402

from dsgan_datasets import LabelSchema, load_generator  # noqa: E402
from dsgan_datasets.annotations import export_annotations, read_classes  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_both_resolutions_see_the_same_changes(domain: Path) -> None:
    shards = [domain / "train-0000.tar"]
    seen = {}
    for side in (64, 128):
        images, masks = renders.read_renders(shards, renders.MERGED, side)
        assert images.shape == (TRAIN_RENDERS, 3, side, side) and masks.shape == (TRAIN_RENDERS, side, side)
        x = images.float() / 255
        g = torch.Generator().manual_seed(5)
        x, moved = train_annotator.warp(x, masks, g)
        x = train_annotator.recolor(train_annotator.muddle(x, moved, renders.MERGED, g), g)
        x = train_annotator.tint_background(x, moved, renders.MERGED, g)
        seen[side] = F.adaptive_avg_pool2d(train_annotator.cut_out(x, g), 32), moved
    assert seen[64][1].max() == seen[128][1].max() == len(renders.MERGED) - 1
    assert (seen[128][1][:, ::2, ::2] == seen[64][1]).double().mean() > 0.93
    difference = (seen[128][0] - seen[64][0]).abs()
    assert difference.mean() < 0.02 < (seen[64][0] - seen[64][0].roll(1, 0)).abs().mean()


def test_lengths_are_64ths_of_the_width() -> None:
    widths, patched = [], []
    for side in (64, 128):
        spot = torch.zeros(1, 1, side, side)
        spot[..., side // 2] = 1  # a line, so that only one direction is blurred
        at = torch.arange(side) - side // 2
        profile = train_annotator._blur(spot, 3.0)[0, 0, 0]
        widths.append(float((profile * at**2).sum() / profile.sum()) ** 0.5 * 64 / side)
        gray = torch.full((16, 3, side, side), 0.5)
        cut = train_annotator.cut_out(gray, torch.Generator().manual_seed(2))
        patched.append(F.adaptive_avg_pool2d(cut - gray, 32))
    assert widths[1] == pytest.approx(widths[0], rel=0.03)
    assert patched[0].abs().sum() > 0
    assert (patched[1] - patched[0]).abs().sum() < 0.25 * patched[0].abs().sum()


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [64, 128])
def test_it_learns_at_both_resolutions(
    domain: Path, tmp_path: Path, resolution: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WIDTHS, resolution, (8, 8, 8))
    out = tmp_path / "new" / "annotator.safetensors"
    words = f"--data {domain} --out {out} --resolution {resolution} --batch-size 4 --val-count 4 --epochs 4 --lr 0.01"
    assert train_annotator.main(words.split()) == 0
    assert "mean IoU" in capsys.readouterr().out
    annotator = load_annotator(out)
    classes = {64: renders.MERGED, 128: renders.RENDERED}[resolution]
    images, masks = renders.read_renders([domain / "test-0000.tar"], classes, resolution)
    assert annotator.resolution == resolution and annotator.classes == classes and not annotator.training
    assert json.loads(out.with_suffix(".json").read_text())["classes"] == list(classes)
    commonest = torch.bincount(masks.flatten()).max() / masks.numel()
    assert (annotator.annotate(images) == masks).double().mean() > commonest + 0.03
    with pytest.raises(ValueError, match=f"expected torch.uint8 .*{resolution}"):
        annotator.annotate(images[:, :, :32])


def test_its_classes_are_those_of_its_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "annotator.safetensors"
    for resolution, file, name in ((64, "classes.json", "demo-faces"), (128, "classes-128.json", "demo-faces-128")):
        save_annotator(Annotator(resolution, (4, 8)), weights, {})
        schema, generator = json.loads((DEMO / file).read_text()), load_generator(name, device="cpu")
        for known in (True, False):
            if not known:
                schema["classes"].pop()
            folder = tmp_path / f"{resolution}-{known}"
            export_annotations(generator, LabelSchema.from_dict(schema), folder, num_samples=1, candidates=1)
            assert annotate.main([str(folder), "--annotator", str(weights)]) == (0 if known else 1)
        assert "the annotator knows background, skin" in capsys.readouterr().err, resolution
    report = json.loads(weights.with_suffix(".json").read_text()) | {"classes": renders.MERGED}
    save_file({"w": torch.zeros(1)}, weights, {"report": json.dumps(report)})  # of before it knew fourteen
    with pytest.raises(ValueError, match="got classes background.* eye, lips.* expected .* iris.* at 128×128 pixels"):
        load_annotator(weights)


def test_renders_have_the_classes_of_their_size(domain: Path) -> None:
    shards = [domain / "test-0000.tar"]
    with pytest.raises(ValueError, match="128 pixels can have background.* eye, lips.*; or background.* iris"):
        renders.read_renders(shards, ["cat"], 128)
    with pytest.raises(ValueError, match="64 pixels can have background, [a-z, ]* eye, lips, [a-z, ]*$"):
        renders.read_renders(shards, renders.RENDERED, 64)


def test_its_images_must_have_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, folder = tmp_path / "annotator.safetensors", tmp_path / "to-annotate"
    save_annotator(Annotator(128, (4, 8)), weights, {})
    export_annotations(load_generator("demo-faces", device="cpu"), read_classes(DEMO), folder, num_samples=1)
    assert annotate.main([str(folder), "--annotator", str(weights)]) == 1
    message = capsys.readouterr().err
    assert "are 64×64 pixels, the annotator labels 128×128" in message and "--resolution" in message
    assert not (folder / "masks").exists()


def _renamed(member: tarfile.TarInfo, name: str) -> bytes:
    return member.replace(name=name, deep=False).tobuf()


def test_what_it_cannot_train_on_is_told(domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (domain / "train-0000.tar").read_bytes()
    with tarfile.open(domain / "train-0000.tar") as tar:
        image, mask = tar.getmembers()[:2]
    damaged = {
        "no-tar": (b"not a tar at all" * 100, "nor a tar that can be read"),
        "cut": (whole[: mask.offset_data + 10], "nor a tar that can be read"),
        "cut-gzip": (gzip.compress(whole)[:5000], "nor a tar that can be read"),
        "no-image": (
            whole[: image.offset_data] + bytes(512) + whole[image.offset_data + 512 :],
            "000000.jpg is not a picture: save it as JPEG or PNG or WEBP",
        ),
        "half-a-pair": (whole[: mask.offset] + b"\0" * 1024, "ends after"),
        "two-of-a-kind": (2 * whole[image.offset : mask.offset] + b"\0" * 1024, "ends after"),
        "not-its-mask": (whole[: mask.offset] + _renamed(mask, "000009.seg.png") + whole[mask.offset_data :], "follow"),
        "empty": (b"\0" * 10240, "contains no renders"),
    }
    for name, (content, _) in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-0000.tar").write_bytes(content)
    out = ["--out", str(tmp_path / "annotator.safetensors")]
    for name, (_, words) in damaged.items():
        assert train_annotator.main(["--data", str(tmp_path / name), *out]) == 1
        assert words in capsys.readouterr().err, name
    assert train_annotator.main(["--data", str(tmp_path), *out]) == 1
    assert "no train-*.tar" in capsys.readouterr().err
    assert train_annotator.main(["--data", str(domain), *out]) == 1
    assert "--val-count 512 of 24 renders" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_annotator.main(["--data", str(domain), *out, "--epochs", "0"])
    assert not (tmp_path / "annotator.safetensors").exists()
    (tmp_path / "there.safetensors").mkdir()
    (tmp_path / "report.json").write_text("{}")
    for name, words in (
        ("there.safetensors", "is not replaced"),
        ("report.safetensors", "report.json exists and is not replaced"),
        ("weights.json", "ends in .safetensors"),
    ):
        assert train_annotator.main(["--data", str(domain), "--out", str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none", "folder", "text", "bare", "list", "no widths", "classes", "narrower"])
def test_what_is_no_annotator_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("none")
    whole = {"classes": renders.MERGED, "resolution": 64, "widths": [4, 8]}
    reports = {
        "bare": None,
        "list": [],
        "no widths": {"classes": renders.MERGED},
        "classes": {**whole, "classes": ["cat"]},
        "narrower": {**whole, "widths": [4, 4]},
    }
    weights = {key: tensor.contiguous() for key, tensor in Annotator(widths=(4, 8)).state_dict().items()}
    for file, report in reports.items():
        save_file(weights, tmp_path / file, None if report is None else {"report": json.dumps(report)})
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name}.*train_annotator.py"):
        load_annotator(tmp_path / name)
