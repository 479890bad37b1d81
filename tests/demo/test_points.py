"""The annotator of keypoints of the demo: it learns, it annotates folders, and bad input is reported."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRAIN_RENDERS
from PIL import Image
from safetensors.torch import save_file

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import annotate  # noqa: E402
import train_annotator  # noqa: E402
import train_point_annotator  # noqa: E402
from annotator import WIDTHS, Annotator, one_cycle, save_annotator  # noqa: E402
from point_annotator import PointAnnotator, load_point_annotator, save_point_annotator  # noqa: E402
from render_points import open_stream, read, sample  # noqa: E402
from renders import MERGED, RENDERED  # noqa: E402

from dsgan_datasets import DenseMap, Keypoints, LabeledGenerator, LabelSchema, load_generator  # noqa: E402
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
                key = member.name.partition(".")[0]
                lines.write(json.dumps({"key": key, "keypoints": [left + 16, top + 16, 2, left, top, 1]}) + "\n")
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
    assert "coco_keypoints.json holds annotations already" in capsys.readouterr().err
    assert (folder / "coco_keypoints.json").read_bytes() == before and not (folder / "masks").exists()


def test_a_label_may_be_left_to_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, networks = _export(tmp_path / "both", CLASSES, POINTS), _networks(tmp_path)
    (folder / "masks").mkdir()
    (folder / "masks" / "mine.png").write_bytes(b"painted")
    assert annotate.main([str(folder), *networks[2:]]) == 0
    out = capsys.readouterr().out
    assert "19 points of 2 images" in out and "mask: left to be annotated" in out
    assert [path.name for path in (folder / "masks").iterdir()] == ["mine.png"]
    assert annotate.main([str(folder), *networks[:2]]) == 1
    assert "mine.png holds annotations already" in capsys.readouterr().err
    assert annotate.main([str(folder)]) == 1
    assert "nothing to annotate with: --annotator or --points" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["labelme", "coco", "another image", "no image", "no export"])
def test_what_was_annotated_or_changed_is_left_alone(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, networks = _export(tmp_path / "both", CLASSES, POINTS), _networks(tmp_path)
    image = next((folder / "images").glob("*.png"))
    if change == "labelme":
        image.with_suffix(".json").write_text("{}")
    elif change == "coco":
        (folder / "coco.json").write_text("{}")
    elif change == "another image":
        Image.new("RGB", (64, 64)).save(image)
    elif change == "no image":
        image.unlink()
    else:
        (folder / "annotations.json").unlink()
    before = sorted(folder.rglob("*"))
    assert annotate.main([str(folder), *networks]) == 1
    named = {"labelme": ".json holds", "coco": "coco.json holds", "no export": "annotations.json"}
    assert named.get(change, image.name) in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_points_alone(tmp_path: Path) -> None:
    folder, networks = _export(tmp_path / "points", POINTS), _networks(tmp_path)
    assert annotate.main([str(folder), *networks[2:]]) == 0
    assert load_annotations(folder, "demo-faces").annotated.of("keypoints").shape == (2, 19, 3)


def test_labels_and_networks_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = _networks(tmp_path)
    larger = tmp_path / "larger"
    larger.mkdir()
    another_order = Keypoints(POINTS.names[::-1])
    cases: list[tuple[tuple[Target, ...], list[str], str]] = [
        ((CLASSES,), networks, "asks for mask, not for keypoints: leave --points out"),
        ((POINTS,), networks, "asks for keypoints, not for mask: leave --annotator out"),
        ((DenseMap("depth", -1, 1),), networks[2:], "asks for depth, not for keypoints"),
        ((Keypoints(("nose", "chin")),), networks[2:], "has the points nose, chin; the annotator knows nose_tip"),
        ((another_order,), networks[2:], "the same points as the annotator, but in another order: nose_tip"),
        ((POINTS,), _networks(larger, 128)[2:], "the images are 64×64 pixels, the annotator labels 128×128"),
        ((POINTS,), ["--points", networks[1]], "it annotates masks: give it as --annotator"),
        ((CLASSES,), ["--annotator", networks[3]], "it annotates points: give it as --points"),
        ((POINTS,), ["--points", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        ((POINTS,), ["--points", str(tmp_path)], "is a folder: give the file that train_point_annotator.py made"),
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


def _line(key: str = "000001", keypoints: object = (1.0, 2.0, 2, 3.0, 4.0, 1)) -> str:
    return json.dumps({"key": key, "keypoints": keypoints})


@pytest.mark.slow
def test_it_learns_from_a_stream_without_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "points.safetensors"
    count = ["--num-samples", "12", "--val-count", "4", "--batch-size", "4", "--steps", "2", "--out", str(out)]
    assert train_point_annotator.main(["--stream", "demo-faces-128", *count]) == 0
    assert "on 4 held-out samples" in capsys.readouterr().out
    network = load_point_annotator(out)
    assert network.names == POINTS.names and network.report["of"] == "samples"
    for more, words in (
        (["--stream", "demo-faces"], "demo-faces labels no keypoints: --stream takes a checkpoint that does"),
        (["--stream", "nowhere"], "nowhere"),
        (["--stream", "demo-faces-128", "--start", str(tmp_path / "gone")], "gone does not exist"),
        (["--stream", "demo-faces-128", "--resolution", "128", "--val-count", "12"], "of 12 samples leaves none"),
    ):
        assert train_point_annotator.main([*count[:-1], str(tmp_path / "none.safetensors"), *more]) == 1
        assert words in capsys.readouterr().err


def test_samples_are_those_of_the_stream() -> None:
    stream = LabeledGenerator.from_pretrained("demo-faces-128", device="cpu").generate(range(3), seed=5)
    source, names = open_stream("demo-faces-128", 64)
    whole, halves = (sample(source, 3, side, seed=5) for side in (128, 64))
    assert torch.equal(whole.images, stream.image) and names == POINTS.names
    torch.testing.assert_close(whole.points, stream["keypoints"].float())
    torch.testing.assert_close(halves.points[..., :2] * 2, whole.points[..., :2])
    assert torch.equal(halves.points[..., 2], whole.points[..., 2]) and halves.depths.isnan().all()
    pooled = torch.nn.functional.avg_pool2d(whole.images.float(), 2)
    assert (halves.images.float() - pooled).abs().max() <= 0.5
    assert (whole.masks[stream.mask == RENDERED.index("iris")] == MERGED.index("eye")).all()
    assert halves.masks.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("none", "line 2: Expecting value"),
        ("", "line 2: Expecting value"),
        ("{}", "line 2: 'keypoints' is missing"),
        (_line("000007"), "line 2: key '000007', but this render is 000001"),
        (_line(keypoints=[1, 2, 2]), "line 2: expected x, y, v of 2 points"),
        (_line(keypoints=[float("nan"), 2, 2, 3, 4, 2]), "line 2: x and y must be finite"),
        (_line(keypoints=[1e300, 2, 2, 3, 4, 2]), "line 2: "),
        (_line(keypoints=[1, 2, 7, 3, 4, 2]), "line 2: x and y must be finite, v 0, 1 or 2"),
        (_line(keypoints="abc"), "line 2: "),
        (None, f"has 1 lines; there are {TRAIN_RENDERS} renders"),
    ],
)
def test_damaged_points_are_named_by_their_line(
    pointed: Path, tmp_path: Path, line: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(pointed, tmp_path / "data")
    stored = data / "keypoints-train.jsonl"
    first, _, *others = stored.read_text().splitlines()
    stored.write_text("\n".join([first] if line is None else [first, line, *others]) + "\n")
    assert train_point_annotator.main(["--data", str(data), "--out", str(tmp_path / "out.safetensors")]) == 1
    message = capsys.readouterr().err
    assert "keypoints-train.jsonl" in message and words in message and message.count("\n") == 1


@pytest.mark.parametrize("damage", ["none", "no lines", "words", "no names", "depth of another"])
def test_what_the_domain_lacks_is_named(
    pointed: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(pointed, tmp_path / "data")
    names, out = data / "keypoints.json", tmp_path / "out.safetensors"
    if damage == "none":
        names.unlink()
    elif damage == "no lines":
        (data / "keypoints-train.jsonl").unlink()
    elif damage == "words":
        names.write_text(json.dumps({"names": "ab", "skeleton": [], "flip_pairs": []}))
    elif damage == "no names":
        names.write_text("{}")
    else:
        (tmp_path / "none").write_bytes(b"")
        with tarfile.open(data / "depth-train-0000.tar", "w") as tar:
            tar.add(tmp_path / "none", "999999.depth.png")
    assert train_point_annotator.main(["--data", str(data), "--out", str(out)]) == 1
    words = {
        "none": "keypoints.json is needed",
        "no lines": "keypoints-train.jsonl is needed",
        "words": "(names is not a list)",
        "no names": "('names' is missing)",
        "depth of another": "the depth of 999999, of which there is no render",
    }
    assert words[damage] in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("script", [train_annotator, train_point_annotator])
def test_a_training_that_diverges_writes_nothing(
    script: Any, pointed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WIDTHS, 64, (4, 8))
    command = ["--data", str(pointed), "--out", str(tmp_path / "out.safetensors"), "--batch-size", "4", "--lr", "1e38"]
    assert script.main([*command, "--val-count", "4"]) == 1
    assert "the training diverged: the loss of step" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for option, value in (("--lr", "inf"), ("--threads", "99999999"), ("--seed", str(2**64)), ("--val-count", "0")):
        with pytest.raises(SystemExit):
            script.main([*command, option, value])
        assert f"{option} " in capsys.readouterr().err


def test_a_schedule_has_any_number_of_steps() -> None:
    for steps in range(1, 25):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        schedule = one_cycle(optimizer, 1.0, steps)
        rates = []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        assert max(rates) <= 1 and (steps < 4 or rates[-1] < 0.1)


def test_what_is_no_annotator_of_points_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("none")
    network = PointAnnotator(("a",), 64, (4, 8))
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    whole = {"points": ["a"], "resolution": 64, "widths": [4, 8]}
    reports = {"bare": None, "list": [], "none": {"points": ["a"]}, "more": {**whole, "points": ["a", "b"]}}
    for name, report in reports.items():
        save_file(weights, tmp_path / name, None if report is None else {"report": json.dumps(report)})
    with pytest.raises(ValueError, match="folder is a folder: give the file that train_point_annotator.py made"):
        load_point_annotator(tmp_path / "folder")
    for name in ("text", *reports):
        with pytest.raises(ValueError, match=f"{name} is not a readable annotator .*train_point_annotator.py"):
            load_point_annotator(tmp_path / name)
    broken = {**weights, "head.bias": torch.full_like(weights["head.bias"], torch.nan)}
    save_file(broken, tmp_path / "diverged", {"report": json.dumps(whole)})
    with pytest.raises(ValueError, match="some of its weights are not finite: its training diverged"):
        load_point_annotator(tmp_path / "diverged")
    with pytest.raises(ValueError, match="got images torch.uint8"):
        network.annotate(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
