"""The annotator of keypoints of the demo: it learns, it annotates folders, and bad input is reported."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAIN_RENDERS
from PIL import Image
from safetensors.torch import save_file

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import annotate  # noqa: E402
import train_point_annotator  # noqa: E402
from annotator import WIDTHS, Annotator, save_annotator  # noqa: E402
from point_annotator import PointAnnotator, load_point_annotator, save_point_annotator  # noqa: E402
from render_points import read  # noqa: E402

from dsgan_datasets import DenseMap, Keypoints, LabelSchema, load_generator  # noqa: E402
from dsgan_datasets.annotations import export_annotations, load_annotations  # noqa: E402
from dsgan_datasets.targets import Target  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = LabelSchema.from_dict(json.loads((DEMO / "classes.json").read_text()))
POINTS = Keypoints.from_dict(json.loads((DEMO / "keypoints.json").read_text()))


@pytest.fixture(scope="module")
def pointed(domain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Renders of rectangles with two points: middle and corner of the one that covers all others."""
    folder = tmp_path_factory.mktemp("pointed")
    shutil.copytree(domain, folder, dirs_exist_ok=True)
    names = {"names": ["middle", "corner"], "skeleton": [], "flip_pairs": [], "coordinates": "said in words"}
    (folder / "keypoints.json").write_text(json.dumps(names))
    with tarfile.open(folder / "train-0000.tar") as tar, (folder / "keypoints-train.jsonl").open("w") as lines:
        for member in tar.getmembers():
            if member.name.endswith(".png"):
                down, across = np.nonzero(np.asarray(Image.open(tar.extractfile(member))) == 13)
                left, top = float(across.min()), float(down.min())
                lines.write(json.dumps({"keypoints": [left + 16, top + 16, 2, left, top, 1]}) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [64, 128])
def test_it_learns_where_points_are_and_whether_they_are_hidden(
    pointed: Path, tmp_path: Path, resolution: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WIDTHS, resolution, (8, 8, 16))
    out = tmp_path / "new" / "points.safetensors"
    words = f"--data {pointed} --out {out} --resolution {resolution} --batch-size 4 --val-count 8 --steps 50 --lr 0.02"
    assert train_point_annotator.main(words.split()) == 0
    network = load_point_annotator(out)
    renders = read(pointed, "train", resolution).part(slice(-8, None))
    points, depth = network.annotate(renders.images)
    assert depth.shape == (8, 1, resolution, resolution) and not network.training
    assert network.names == ("middle", "corner") and network.report["steps"] == 50
    errors = (points[..., :2] - renders.points[..., :2]).norm(dim=2)
    scattered = (renders.points[..., :2].mean(0) - renders.points[..., :2]).norm(dim=2)
    assert errors.mean() < 0.4 * scattered.mean(), "no better than the mean place"
    assert (points[..., 2] == torch.tensor([2.0, 1.0])).double().mean() > 0.8
    assert train_point_annotator.main(words.split()) == 1, "weights are not replaced"


def _networks(folder: Path, resolution: int = 64) -> list[str]:
    """Options that name untrained networks."""
    torch.manual_seed(3)
    masks, points = folder / "masks.safetensors", folder / "points.safetensors"
    save_annotator(Annotator(resolution, (4, 8)), masks, {})
    save_point_annotator(PointAnnotator(POINTS.names, resolution, (4, 8)), points, {})
    return ["--annotator", str(masks), "--points", str(points)]


def _export(folder: Path, *targets: Target) -> Path:
    export_annotations(load_generator("demo-faces", device="cpu"), targets, folder, num_samples=2, candidates=2)
    return folder


def test_a_folder_gets_the_points_that_the_network_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, networks = _export(tmp_path / "both", CLASSES, POINTS), _networks(tmp_path)
    assert annotate.main([str(folder), *networks]) == 0
    out = capsys.readouterr().out
    assert "2 masks" in out and "19 points of 2 images" in out
    found = load_annotations(folder, "demo-faces").annotated
    files = sorted((folder / "images").glob("*.png"))
    images = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
    expected, _ = load_point_annotator(tmp_path / "points.safetensors").annotate(images)
    torch.testing.assert_close(found.of("keypoints"), expected, atol=0.01, rtol=0)
    assert found.of("mask").shape == (2, 64, 64)
    before = (folder / "coco_keypoints.json").read_bytes()
    shutil.rmtree(folder / "masks")
    assert annotate.main([str(folder), *networks]) == 1
    assert "coco_keypoints.json is there already" in capsys.readouterr().err
    assert (folder / "coco_keypoints.json").read_bytes() == before and not (folder / "masks").exists()


def test_points_alone(tmp_path: Path) -> None:
    folder, networks = _export(tmp_path / "points", POINTS), _networks(tmp_path)
    assert annotate.main([str(folder), *networks[2:]]) == 0
    assert load_annotations(folder, "demo-faces").annotated.of("keypoints").shape == (2, 19, 3)


def test_labels_and_networks_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = _networks(tmp_path)
    larger = tmp_path / "larger"
    larger.mkdir()
    cases: list[tuple[tuple[Target, ...], list[str], str]] = [
        ((CLASSES, POINTS), networks[:2], "asks for the label keypoints: --points is needed"),
        ((CLASSES,), networks, "does not ask for the label keypoints: leave --points out"),
        ((POINTS,), networks, "does not ask for the label mask: leave --annotator out"),
        ((CLASSES, POINTS), networks[2:], "asks for the label mask: --annotator is needed"),
        ((CLASSES, DenseMap("depth", -1, 1)), networks, "asks for depth; this annotates masks and keypoints"),
        ((Keypoints(("nose", "chin")),), networks[2:], "has the points nose, chin; the annotator knows nose_tip"),
        ((POINTS,), _networks(larger, 128)[2:], "is 64×64 pixels; the annotator labels 128×128"),
        ((POINTS,), ["--points", networks[1]], "not a readable annotator of points"),
        ((POINTS,), ["--points", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
    ]
    for i, (targets, options, words) in enumerate(cases):
        folder = _export(tmp_path / str(i), *targets)
        before = sorted(folder.rglob("*"))
        assert annotate.main([str(folder), *options]) == 1
        assert words in capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before, words
    assert annotate.main([str(tmp_path / "none"), *networks]) == 1
    assert "none" in capsys.readouterr().err


def test_a_start_gives_all_layers_but_the_last(
    pointed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "masks.safetensors"
    torch.manual_seed(1)
    trained = Annotator(64, (4, 8))
    save_annotator(trained, start, {})
    network = train_point_annotator.new_annotator(("a", "b"), 64, 0, start)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(network.levels(x)[-1], trained.levels(x)[-1])
    assert network.state_dict().keys() == trained.state_dict().keys() and network(x).shape == (1, 6, 64, 64)
    options = ["--data", str(pointed), "--out", str(tmp_path / "out.safetensors")]
    for more, words in (
        (["--start", str(start), "--resolution", "128"], "labels 64×64, not 128"),
        (["--start", str(tmp_path / "gone.safetensors")], "gone.safetensors does not exist"),
        (["--val-count", str(TRAIN_RENDERS)], f"--val-count {TRAIN_RENDERS} of {TRAIN_RENDERS} renders leaves none"),
    ):
        assert train_point_annotator.main([*options, *more]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert train_point_annotator.main(["--data", str(pointed), "--out", str(tmp_path / "out.bin")]) == 1
    assert "ends in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no points.json", "no lines", "fewer lines", "other points", "no json"])
def test_renders_without_their_points_are_reported(
    pointed: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(pointed, tmp_path / "data")
    names, lines = data / "keypoints.json", data / "keypoints-train.jsonl"
    if damage == "no points.json":
        names.unlink()
    elif damage == "no lines":
        lines.unlink()
    elif damage == "fewer lines":
        lines.write_text(lines.read_text().partition("\n")[0])
    elif damage == "other points":
        names.write_text(json.dumps({"names": ["one"], "skeleton": [], "flip_pairs": []}))
    else:
        lines.write_text("none\n")
    assert train_point_annotator.main(["--data", str(data), "--out", str(tmp_path / "out.safetensors")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("train_point_annotator.py: error: ") and "data" in message and "keypoints" in message


def test_what_is_no_annotator_of_points_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("none")
    network = PointAnnotator(("a",), 64, (4, 8))
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    whole = {"points": ["a"], "resolution": 64, "widths": [4, 8]}
    reports = {"bare": None, "list": [], "none": {"points": ["a"]}, "more": {**whole, "points": ["a", "b"]}}
    for name, report in reports.items():
        save_file(weights, tmp_path / name, None if report is None else {"report": json.dumps(report)})
    for name in ("folder", "text", *reports):
        with pytest.raises(ValueError, match=f"{name} is not a readable annotator of points"):
            load_point_annotator(tmp_path / name)
    with pytest.raises(ValueError, match="got images torch.uint8"):
        network.annotate(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
