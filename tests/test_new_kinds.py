"""Keypoints and dense maps, alone and beside masks: filter, shards, transforms, statistics and pictures."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from conftest import SCHEMA
from new_kinds import DEPTH, POINTS, KindsInterpreter, kinds_labeled
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dsgan_datasets import (
    DenseMap,
    DSGANDataset,
    LabeledGenerator,
    Recipe,
    Sample,
    calibrate,
    verify_shards,
    write_shards,
)
from dsgan_datasets.arrays import npy
from dsgan_datasets.compatibility import class_ids
from dsgan_datasets.images import png
from dsgan_datasets.interpreters import loading
from dsgan_datasets.shards import repair_shards
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.relabeled import choose_classes
from dsgan_datasets.targets import Target, target_from_dict
from dsgan_datasets.targets.keypoints import box_around
from dsgan_datasets.tools.cli import main
from dsgan_datasets.transforms import RandomHorizontalFlip

pytestmark = pytest.mark.usefixtures("one_thread")

CHOICES = [("mask", "keypoints", "depth"), ("keypoints",), ("depth",)]


@pytest.fixture(scope="module", params=CHOICES, ids=" and ".join)
def labeled(request: pytest.FixtureRequest) -> LabeledGenerator:
    return kinds_labeled(request.param)


@pytest.fixture(scope="module")
def whole() -> LabeledGenerator:
    return kinds_labeled()


def assert_same(found: Sample, expected: Sample) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name].nan_to_num(9), value.nan_to_num(9)), name


# What a label may be


def wrong(**changes: Any) -> dict[str, Any]:
    return {**POINTS.to_dict(), **changes}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (wrong(names=[]), "at least one point"),
        (wrong(names="nose"), "must be words, in a list"),
        (wrong(names=["a", "a"], flip_pairs=[], skeleton=[]), r"no name twice; repeated: \['a'\]"),
        (wrong(names=[f"p{i}" for i in range(2000)]), "at most 1024 points"),
        (wrong(names=["a\n"]), "written and shown"),
        (wrong(skeleton=[[0, 4]]), "skeleton .*ids 0-3"),
        (wrong(skeleton=7), "skeleton must be pairs of point ids"),
        (wrong(flip_pairs=[[1, 2], [2, 3]]), "at most one pair"),
        (wrong(flip_pairs=[[1, 1]]), "two different point ids"),
        (wrong(sigmas=[0.1]), "sigmas must be 4 numbers above 0"),
        (wrong(sigmas=[0.1, 0.1, float("nan"), 0.1]), "sigmas must be 4 numbers"),
        (wrong(sigmas=[0.1, 0.1, "x", 0.1]), "sigmas must be 4 numbers"),
        (wrong(field="points"), "have the field keypoints"),
        ({"kind": "keypoints"}, "damaged description"),
        ({**DEPTH.to_dict(), "low": float("nan")}, "low and high must be numbers"),
        ({**DEPTH.to_dict(), "low": 2}, "low below high"),
        ({**DEPTH.to_dict(), "high": "9" * 30}, "low and high must be numbers"),
        ({**DEPTH.to_dict(), "high": 10**400}, "low and high must be numbers"),
        ({**DEPTH.to_dict(), "low": 1e6, "high": 1e6 + 1}, "so far from 0 that float32"),
        ({**DEPTH.to_dict(), "field": "../depth"}, "lowercase letters"),
        ({**DEPTH.to_dict(), "field": "image"}, "another meaning"),
        ({**DEPTH.to_dict(), "unit": "m\n"}, "unit must be a text"),
        ({**DEPTH.to_dict(), "channels": ["x", "x"]}, "no name twice"),
        ({**DEPTH.to_dict(), "channels": list(map(str, range(100)))}, "at most 64 channels"),
        ({**DEPTH.to_dict(), "signed": [1]}, "signed must be an integer in 0 … 0"),
        ({**DEPTH.to_dict(), "low": 0, "signed": [0]}, "range symmetric"),
        ({"kind": "dense_map", "field": "depth"}, "damaged description"),
    ],
)
def test_descriptions_of_strangers(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_from_dict(form)


ROW, SIZE = [1.5, 2, 2], (6, 10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW] * 3, "list of 4 rows"),
        ([ROW] * 5, "list of 4 rows"),
        ({"keypoints": [ROW] * 4}, "list of 4 rows"),
        ([*[ROW] * 3, [1, 2]], "list of 4 rows"),
        ([*[ROW] * 3, [1, 2, "2"]], "list of 4 rows"),
        ([*[ROW] * 3, [1, True, 2]], "list of 4 rows"),
        ([*[ROW] * 3, [1, float("nan"), 2]], "list of 4 rows"),
        ([*[ROW] * 3, [1, float("inf"), 2]], "list of 4 rows"),
        ([*[ROW] * 3, [1, 10**60, 2]], "list of 4 rows|bytes"),
        ([*[ROW] * 3, [1, 2, 3]], "chin: v is 3; it is 0"),
        ([*[ROW] * 3, [1, 2, 1.5]], "chin: v is 1.5"),
        ([*[ROW] * 3, [1, 2, 0]], "chin is not in the image"),
        ([*[ROW] * 3, [10.5, 2, 1]], "outside the image of 10×6"),
        ([*[ROW] * 3, [1, -0.5, 1]], "outside the image"),
    ],
)
def test_keypoints_of_strangers(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        POINTS.decode(json.dumps(rows).encode(), SIZE)


@pytest.mark.parametrize("content", [b"[" * 300, b"[" * 10**6, b"\xff\xfe", b"[" + b"1" * 310 + b"]", b" " * 10**7])
def test_no_file_of_keypoints_takes_much_memory(content: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON|list of 4 rows|at most"):
        POINTS.decode(content, SIZE)


def test_maps_of_strangers() -> None:
    normals = DenseMap("normals", -1, 1, channels=("x", "y", "z"))
    empty = np.zeros(SIZE, np.float32)
    for content in (png(empty.astype(np.uint8)), png(np.zeros((*SIZE, 3), np.uint8)), npy(empty)):
        with pytest.raises(ValueError):
            DEPTH.decode(content, SIZE)
    good = np.zeros((3, *SIZE), np.float32)
    assert not normals.decode(npy(good), SIZE).any()
    for array in (good[:2], good.astype(np.float64), good + 2, good + np.inf):
        with pytest.raises(ValueError, match="normals"):
            normals.decode(npy(array), SIZE)
    fortran = npy(good).replace(b"'fortran_order': False", b"'fortran_order': True ")
    with pytest.raises(ValueError, match="normals is"):
        normals.decode(fortran, SIZE)
    with pytest.raises(ValueError, match="normals is"):
        normals.decode(npy(good).replace(b"(3, 6, 10)", b"(3, 6,9999)"), SIZE)


@pytest.mark.parametrize("target", [POINTS, DEPTH, DenseMap("normals", -1, 1, channels=("x", "y"))], ids=str)
def test_damaged_files_are_refused_or_labels(target: Target) -> None:
    value = torch.tensor([[1.5, 2, 2], [0.25, 5, 1], [10, 6, 2], [0, 0, 0]])
    if target is not POINTS:
        value = torch.linspace(-1, 1, len(target.channels) * 60).view(-1, *SIZE)  # type: ignore[attr-defined]
    content, chance, refused = target.encode(value), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        at = chance.randrange(len(damaged))
        damaged[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        try:
            target.check(target.decode(bytes(damaged), SIZE), SIZE)
        except ValueError:
            refused += 1
    assert refused > 100


def test_depth_files_hold_levels_and_zero_for_unknown() -> None:
    """As the exact depth of the demo's renders is stored."""
    value = torch.tensor([[[-1.5, 0.0, 1.5, torch.nan]]])
    levels = np.asarray(Image.open(io.BytesIO(DEPTH.encode(value))))
    assert levels.tolist() == [[1, 32768, 65535, 0]]
    assert DEPTH.rounded(torch.tensor([[[[-9.0, 9.0, 0.00001]]]])).tolist() == [[[[-1.5, 1.5, 0.0]]]]


def test_mirrored_normals_point_to_the_other_side() -> None:
    normals = DenseMap("normals", -1, 1, channels=("x", "y"), signed=(0,))
    found = normals.mirror(torch.tensor([[[0.25, 0.5]], [[0.75, 1.0]]]), (1, 2))
    assert found.tolist() == [[[-0.5, -0.25]], [[1.0, 0.75]]]


def test_points_on_ignored_pixels_are_not_in_the_image() -> None:
    values = torch.tensor([[[0.0, 0.0, 0.0], [9.99, 5.99, 2.0], [10.0, 6.0, 1.0], [3.2, 1.9, 2.0]]])
    pixels = torch.zeros(1, *SIZE, dtype=torch.bool)
    pixels[0, 5, 9] = True
    found = POINTS.ignore(values, pixels)
    assert found[0, :, 2].tolist() == [0, 0, 0, 2] and not found[0, 1:3].any()
    assert POINTS.tally(found).tolist() == [[0, 0, 0, 1]]


def test_boxes_around_points() -> None:
    assert box_around(torch.zeros(4, 3), SIZE) is None
    assert box_around(torch.tensor([[5.0, 3.0, 2.0], [0.0, 0.0, 0.0]]), SIZE) == (4.5, 2.5, 5.5, 3.5)
    assert box_around(torch.tensor([[0.0, 3.0, 2.0], [10.0, 6.0, 1.0]]), SIZE) == (0, 2, 10, 6)


# Filter


@pytest.fixture(scope="module")
def strict(whole: LabeledGenerator) -> LabeledGenerator:
    return calibrate(whole.with_recipe(whole.recipe.override(visible=[1, 3])), 60, reject_fraction=0.2)


def test_only_samples_that_show_the_points(whole: LabeledGenerator, strict: LabeledGenerator) -> None:
    batch, free = strict.generate(range(12)), whole.generate(range(12))
    assert (batch["keypoints"][:, [1, 3], 2] == 2).all() and batch.attempt.sum() > 0
    assert not (free["keypoints"][:, [1, 3], 2] == 2).all()
    again = whole.generate(batch.index, attempts=batch.attempt)
    assert torch.equal(again["keypoints"], batch["keypoints"]) and torch.equal(again.mask, batch.mask)


def test_acceptance_counts_rules_on_points(whole: LabeledGenerator, strict: LabeledGenerator) -> None:
    drawn = list(whole.unfiltered(60))
    shown = torch.cat([(fields["keypoints"][:, [1, 3], 2] == 2).all(1) for fields in drawn])
    certain = torch.cat([fields["uncertainty_score"] for fields in drawn]) <= strict.recipe.threshold
    assert strict.calibration is not None and 0.1 < shown.double().mean() < 0.9
    assert strict.calibration.acceptance == pytest.approx((shown & certain).double().mean().item())


def test_visible_takes_ids_and_refuses_what_is_not_there() -> None:
    assert kinds_labeled(visible=[2]).recipe.visible == (2,)
    with pytest.raises(ValueError, match="visible names point 4, the keypoints have 0 … 3"):
        kinds_labeled(visible=[4])
    with pytest.raises(ValueError, match="needs keypoints, and this source has none; its labels are: depth"):
        kinds_labeled(("depth",), visible=[0])


def test_rules_are_in_one_order_and_change_no_other_fingerprint() -> None:
    both = Recipe(require=[2], visible=[1], min_area=3)
    assert (
        Recipe(visible=[1]).override(require=[2], min_area=3)
        == both
        == Recipe(require=[2]).override(min_area=3, visible=[1])
    )
    assert Recipe.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    assert both.override(visible=()) == Recipe(require=[2], min_area=3) and both.override(require=()).visible == (1,)
    assert Recipe(visible=()).decisions() == Recipe().decisions()


def test_fingerprints_tell_ranges_apart(whole: LabeledGenerator) -> None:
    wide = whole.labeler.with_targets([SCHEMA, POINTS, DenseMap("depth", -3, 3, "m")])
    renamed = whole.labeler.with_targets([SCHEMA, POINTS, DenseMap("depth", -1.5, 1.5, "ft")])
    assert LabeledGenerator(wide, whole.recipe).fingerprint != whole.fingerprint
    assert LabeledGenerator(renamed, whole.recipe).fingerprint == whole.fingerprint


# Shards


def test_shards_give_every_label_back(labeled: LabeledGenerator, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(labeled, tmp_path / name, range(6), samples_per_shard=3)
    assert not verify_shards(tmp_path / "a")
    source = ShardSource(tmp_path / "a")
    assert source.targets == labeled.targets
    for found, expected in zip(source.stream(range(6)), labeled.stream(range(6)), strict=True):
        assert_same(found, expected)
    written = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    damaged = tmp_path / "a" / "shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    assert verify_shards(tmp_path / "a")
    repair_shards(tmp_path / "a", labeled)
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_webdataset_reads_the_files(whole: LabeledGenerator, tmp_path: Path) -> None:
    paths = write_shards(whole, tmp_path, range(4))
    records = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode()
    for record, sample in zip(records, whole.stream(range(4)), strict=True):
        assert torch.equal(torch.tensor(record["keypoints.json"], dtype=torch.float32), sample["keypoints"])
        depth = DEPTH.decode(record["depth.png"], whole.image_size)
        assert torch.equal(depth.nan_to_num(9), sample["depth"].nan_to_num(9))
        assert record["json"]["tallies"]["keypoints"] == (sample["keypoints"][:, 2] > 0).int().tolist()


def test_a_false_label_in_a_shard_is_found(whole: LabeledGenerator, tmp_path: Path) -> None:
    (path,) = write_shards(whole, tmp_path, range(2))
    data = Path(path).read_bytes()
    at = data.index(b"[[")
    Path(path).write_bytes(data[:at] + b"[[9" + data[at + 3 :])
    (problem,) = verify_shards(tmp_path)
    assert "shard-000000.tar" in str(problem)


def test_other_classes_leave_other_labels_alone(whole: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(whole, tmp_path, range(6))
    chosen = choose_classes(ShardSource(tmp_path), None, {"side": ["left", "right"]})
    assert [target.field for target in chosen.targets] == ["mask", "keypoints", "depth"]
    changed = 0
    for found, expected in zip(chosen.stream(range(6)), whole.stream(range(6)), strict=True):
        assert torch.equal(found["keypoints"], expected["keypoints"])
        assert torch.equal(found["depth"].nan_to_num(9), expected["depth"].nan_to_num(9))
        changed += not torch.equal(found.mask, expected.mask)
    assert changed
    assert chosen.targets[0].tally_names == ("background", "side", "hat")


# Transforms


def transformed(labeled: LabeledGenerator, *steps: Any, index: int = 1) -> tuple[Sample, Sample]:
    dataset = DSGANDataset(labeled, length=index + 1, transforms=v2.Compose([v2.Identity(), *steps]))
    return dataset[index], next(iter(labeled.stream([index])))


def test_stock_transforms_move_points_with_the_image(whole: LabeledGenerator) -> None:
    found, plain = transformed(whole, v2.Resize((32, 48)))
    scale = torch.tensor([48 / 16, 32 / 16, 1])
    torch.testing.assert_close(found["keypoints"], plain["keypoints"] * scale)
    assert type(found["keypoints"]) is Tensor and "keypoints_v" not in found and "depth_known" not in found


def test_points_that_are_cropped_away_are_not_in_the_image(whole: LabeledGenerator) -> None:
    class Crop(torch.nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: v2.functional.crop(value, 8, 0, 8, 16) if isinstance(value, tv_tensors.TVTensor) else value
                for name, value in inputs.items()
            }

    found, plain = transformed(whole, Crop(), index=0)
    below = (plain["keypoints"][:, 1] >= 8) & (plain["keypoints"][:, 2] > 0)
    assert 0 < below.sum() < 4
    assert torch.equal(found["keypoints"][below], plain["keypoints"][below] - torch.tensor([0.0, 8.0, 0.0]))
    assert not found["keypoints"][~below].any()
    POINTS.check(found["keypoints"], (8, 16))


def test_maps_are_resized_without_mixing_and_padding_is_unknown(whole: LabeledGenerator) -> None:
    found, plain = transformed(whole, v2.Resize((32, 32)), v2.Pad(3))
    expected = plain["depth"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(found["depth"][:, 3:-3, 3:-3].nan_to_num(9), expected.nan_to_num(9))
    border = torch.ones(38, 38, dtype=torch.bool)
    border[3:-3, 3:-3] = False
    assert found["depth"][0, border].isnan().all()
    DEPTH.check(found["depth"], (38, 38))


def test_converted_maps_are_refused(whole: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="must leave depth float32, they made it int64"):
        transformed(whole, v2.ToDtype({tv_tensors.Mask: torch.int64, "others": None}))


def test_lost_points_are_refused(whole: LabeledGenerator) -> None:
    def lose(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**inputs, "keypoints": inputs["keypoints"][:2]}

    with pytest.raises(ValueError, match="must keep all 4 points"):
        transformed(whole, v2.Lambda(lambda x: x), lose)


def test_flips_exchange_sides(whole: LabeledGenerator) -> None:
    found, plain = transformed(whole, RandomHorizontalFlip(whole.targets, p=1))
    for target in whole.targets:
        expected = target.mirror(plain[target.field], whole.image_size)
        assert torch.equal(torch.as_tensor(found[target.field]).nan_to_num(9), expected.nan_to_num(9))
    left, right = plain["keypoints"][1], found["keypoints"][2]
    assert (right[0], right[1], right[2]) == (16 - left[0], left[1], left[2])
    image, points = RandomHorizontalFlip(POINTS, p=1)(plain.image, plain["keypoints"])
    assert torch.equal(image, plain.image.flip(-1)) and torch.equal(points, found["keypoints"])


def test_older_torchvision_says_what_keypoints_need(monkeypatch: pytest.MonkeyPatch, whole: LabeledGenerator) -> None:
    monkeypatch.delattr(tv_tensors, "KeyPoints")
    assert next(iter(whole.stream([0])))["keypoints"].shape == (4, 3)
    with pytest.raises(ImportError, match=r"torchvision 0\.23 or newer"):
        transformed(whole)


# Statistics, pictures, command line


@pytest.fixture(scope="module")
def checkpoint(whole: LabeledGenerator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loading.ARCHITECTURES, KindsInterpreter.architecture, KindsInterpreter)
        path = tmp_path_factory.mktemp("kinds") / "checkpoint"
        whole.save_pretrained(path)
        yield str(path)


def test_a_checkpoint_comes_back(checkpoint: str, whole: LabeledGenerator) -> None:
    loaded = LabeledGenerator.from_pretrained(checkpoint, device="cpu")
    assert loaded.fingerprint == whole.fingerprint and loaded.targets == whole.targets
    assert_same(next(iter(loaded.stream([5]))), next(iter(whole.stream([5]))))
    strict = LabeledGenerator.from_pretrained(checkpoint, device="cpu", visible=["left_eye"], require="hat")
    assert strict.recipe.visible == (1,) and strict.recipe.require == (3,)
    with pytest.raises(ValueError, match="no point 'ear'; the points are: nose, left_eye, right_eye, chin"):
        LabeledGenerator.from_pretrained(checkpoint, device="cpu", visible=["ear"])


@pytest.mark.parametrize("rule", ["visible", "require"])
def test_a_rule_on_a_label_that_is_not_there_names_the_labels(rule: str) -> None:
    with pytest.raises(ValueError, match=f"{rule} names .* labels of this source are depth"):
        class_ids({rule: ["ear"]}, kinds_labeled(("depth",)).targets)


def test_info_says_what_labels_hold(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", checkpoint]) in (None, 0)
    shown = capsys.readouterr().out
    assert "4 points: nose, left_eye, right_eye, chin" in shown
    assert "-1.5 … 1.5 m" in shown and "4 classes: background, left, right, hat" in shown


def test_stats_count_points_and_values(
    checkpoint: str, whole: LabeledGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats.png"
    command = ["stats", checkpoint, "--num-samples", "8", "--out", str(out), "--device", "cpu"]
    main(command)
    shown = capsys.readouterr().out
    main([*command, "--json"])
    labels, batch = json.loads(capsys.readouterr().out)["labels"], whole.generate(range(8))
    seen = (batch["keypoints"][..., 2] > 0).double().mean(0)
    assert [row["frequency"] for row in labels["keypoints"]["counted"]] == pytest.approx(seen.tolist())
    assert labels["keypoints"]["ignored"] == pytest.approx(1 - seen.mean().item())
    assert labels["depth"]["ignored"] == pytest.approx(batch["depth"].isnan().double().mean().item())
    assert "of all points" in shown and "of all values" in shown
    with Image.open(out) as picture:
        assert picture.width == 720


def test_preview_draws_points_and_depth(checkpoint: str, tmp_path: Path) -> None:
    main(["preview", checkpoint, "--num-samples", "2", "--out", str(tmp_path / "p.png"), "--device", "cpu"])
    with Image.open(tmp_path / "p.png") as opened:
        picture = np.asarray(opened).reshape(-1, 3)
    for color in (*POINTS.tally_colors, *DEPTH.tally_colors):
        assert (picture == color).all(1).any(), color


def test_drawn_points_are_where_the_label_says() -> None:
    value = torch.tensor([[2.5, 1.5, 2.0], [7.5, 4.5, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    drawn = np.asarray(POINTS.draw(Image.new("RGB", (100, 60)), value, SIZE)).astype(int)
    first, second = POINTS.tally_colors[:2]
    rows, columns = np.nonzero((drawn == first).all(2))
    assert (rows.mean(), columns.mean()) == pytest.approx((14.5, 24.5), abs=0.5)
    rows, columns = np.nonzero((drawn == second).all(2))
    assert (rows.mean(), columns.mean()) == pytest.approx((44.5, 74.5), abs=0.5)
    assert not (drawn[44, 74] == second).all()  # hidden: a ring
