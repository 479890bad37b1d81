"""Every kind of label keeps the contract of `Target`, and what asks targets takes any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCHEMA
from PIL import Image
from scalar_map import ScalarMap, depth_labeled
from torch import Tensor

from dsgan_datasets import DenseMap, Keypoints
from dsgan_datasets.export import ExportInput, export
from dsgan_datasets.pictures import contact_sheet
from dsgan_datasets.statistics import measure
from dsgan_datasets.targets import Target, keypoints_of, schema_of, target_from_dict

POINTS = Keypoints(("nose", "left", "right"), skeleton=((1, 2),), flip_pairs=((1, 2),), sigmas=(0.1, 0.2, 0.3))
DEPTH = DenseMap("depth", -1.5, 4, "m")
NORMALS = DenseMap("normals", -1, 1, channels=("x", "y", "z"), signed=(0,))
TARGETS: list[Target] = [SCHEMA, POINTS, DEPTH, NORMALS, ScalarMap()]
SIZE = (6, 10)


def label(target: Target, seed: int = 0) -> Tensor:
    """A label with parts that are ignored."""
    random = torch.Generator().manual_seed(seed)
    values: dict[str, Callable[[], Tensor]] = {
        "mask": lambda: torch.randint(0, 4, SIZE, generator=random),
        "keypoints": lambda: torch.tensor([[seed + 0.25, 2.125, 2.0], [9.5, 5.75, 1.0], [0.0, 0.0, 0.0]]),
        "depth": lambda: torch.rand(1, *SIZE, generator=random) * 5 - 1.25,
        "normals": lambda: torch.rand(3, *SIZE, generator=random) * 2 - 1,
    }
    if isinstance(target, ScalarMap):
        value = (torch.randint(0, 65535, SIZE, generator=random).double() / 65534).float()
    else:
        value = target.rounded(values[target.field]()[None])[0]
    return target.ignore(value[None], torch.rand(1, *SIZE, generator=random) < 0.2)[0]


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found.nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.kind} {target.field}")
class TestContract:
    def test_is_a_target(self, target: Target) -> None:
        assert isinstance(target, Target)
        assert len(target.tally_names) == len(target.tally_colors)
        assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target
        assert len({target: 1}) == 1 and len(target.summary.splitlines()) == 1

    def test_storage_is_exact(self, target: Target) -> None:
        value = label(target)
        target.check(value, SIZE)
        assert same(target.rounded(value[None])[0], value)
        assert same(target.decode(target.encode(value), SIZE), value)
        assert target.encode(target.decode(target.encode(value), SIZE)) == target.encode(value)

    @pytest.mark.parametrize("content", [b"", b"no picture", SCHEMA.encode(torch.zeros(3, 3))[:40]])
    def test_damaged_content_is_refused(self, target: Target, content: bytes) -> None:
        with pytest.raises(ValueError):
            target.decode(content, SIZE)

    def test_another_size_is_refused(self, target: Target) -> None:
        with pytest.raises(ValueError, match=r"expected|outside|not float32"):
            target.decode(target.encode(label(target)), (SIZE[0] - 1, SIZE[1] - 1))

    def test_mirroring_twice_changes_nothing(self, target: Target) -> None:
        values = torch.stack([label(target, seed) for seed in range(3)])
        mirrored = target.mirror(values, SIZE)
        assert same(target.mirror(mirrored, SIZE), values)
        assert not same(mirrored, values)
        assert same(mirrored[1], target.mirror(values[1], SIZE))
        target.check(mirrored[1], SIZE)

    def test_tallies_add_up_to_what_is_not_ignored(self, target: Target) -> None:
        values = torch.stack([label(target, seed) for seed in range(3)])
        tally = target.tally(values)
        assert tally.dtype == torch.int64 and tally.shape == (3, len(target.tally_names))
        assert torch.equal(tally[1], target.tally(values[1:2])[0])
        nothing = target.ignore(values, torch.ones(3, *SIZE, dtype=torch.bool))
        assert target.tally(nothing).sum() == 0
        assert 0 < tally.sum() < 3 * target.tally_total(SIZE)

    def test_wrong_labels_are_refused(self, target: Target) -> None:
        for wrong in (label(target)[:, 1:], label(target).to(torch.int16), label(target) + 100):
            with pytest.raises(ValueError):
                target.check(wrong, SIZE)

    def test_drawing_leaves_the_image_alone(self, target: Target) -> None:
        image = Image.new("RGB", (SIZE[1] * 4, SIZE[0] * 4), (90, 90, 90))
        drawn = target.draw(image, label(target), SIZE)
        assert drawn.size == image.size and drawn.mode == "RGB"
        assert np.ptp(np.asarray(drawn).reshape(-1, 3), 0).max() > 0 == np.ptp(np.asarray(image))

    def test_wrapped_labels_come_back(self, target: Target) -> None:
        from torchvision import tv_tensors

        wrapped = target.wrap(label(target), SIZE)
        assert isinstance(wrapped[target.field], tv_tensors.TVTensor)
        assert all(name.startswith(target.field) for name in wrapped)
        assert same(target.unwrap(wrapped, SIZE).as_subclass(Tensor), label(target))


def test_unknown_and_damaged_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown kind of label 'smell'; known: .*segmentation"):
        target_from_dict({"kind": "smell"})
    with pytest.raises(ValueError, match="damaged description of a segmentation label"):
        target_from_dict({"kind": "segmentation"})
    with pytest.raises(ValueError, match="describes the mask"):
        target_from_dict({"kind": "segmentation", "field": "depth", "classes": [{"name": "a"}]})


def test_schema_of_names_the_labels_that_there_are() -> None:
    assert schema_of(TARGETS) == SCHEMA and keypoints_of(TARGETS) == POINTS
    with pytest.raises(ValueError, match="the labels are: depth"):
        schema_of([ScalarMap()])


def test_statistics_of_two_kinds() -> None:
    labeled = depth_labeled()
    found, batch = measure(labeled, range(6)), labeled.generate(range(6))
    assert list(found.labels) == ["mask", "depth"]
    inside = ((batch["depth"] >= 0.25) & (batch["depth"] < 0.5)).flatten(1).double().mean(1)
    assert found.labels["depth"].frequency[1] == pytest.approx((inside > 0).double().mean().item())
    assert found.labels["depth"].mean_share[1] == pytest.approx(inside[inside > 0].mean().item())
    assert found.labels["depth"].ignored == 0


def test_statistics_without_uncertainty() -> None:
    found = measure(depth_labeled(bare=True), range(3))
    assert found.scores is None and found.to_dict()["uncertainty_score"] is None
    assert found.num_samples == 3


def test_contact_sheets_show_every_label() -> None:
    both, bare = depth_labeled(), depth_labeled(bare=True)
    sheets = [contact_sheet(labeled.generate([0, 1]), labeled.targets) for labeled in (both, bare)]
    assert sheets[0].width > sheets[1].width


def test_the_folder_holds_every_label(tmp_path: Path) -> None:
    labeled = depth_labeled()
    export(ExportInput.generated(labeled, 5), tmp_path / "out", "folder", splits={"val": 0.2})
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    for record, sample in zip(records, labeled.generate(range(5)).rows(), strict=True):
        assert record["tallies"]["depth"] == ScalarMap().tally(sample["depth"][None])[0].tolist()
        path = tmp_path / "out" / record["image"].replace("images/", "depths/")
        assert torch.equal(ScalarMap().decode(path.read_bytes(), labeled.image_size), sample["depth"])
        assert torch.equal(
            SCHEMA.decode(Path(str(path).replace("depths", "masks")).read_bytes(), labeled.image_size), sample.mask
        )
    assert target_from_dict(json.loads((tmp_path / "out" / "depth.json").read_text())) == ScalarMap()
    assert (tmp_path / "out" / "classes.json").is_file()


def test_the_folder_needs_no_masks(tmp_path: Path) -> None:
    labeled = depth_labeled(bare=True)
    export(ExportInput.generated(labeled, 2), tmp_path / "out", "folder")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"images", "depths", "depth.json", "samples.jsonl", "preview.png", "README.md"}
    record = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert "uncertainty_score" not in record


def test_colors_of_classes_need_masks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs masks, and there are none; the labels are: depth"):
        export(ExportInput.generated(depth_labeled(bare=True), 2), tmp_path / "out", "folder", palette=True)
    assert list(tmp_path.iterdir()) == []
