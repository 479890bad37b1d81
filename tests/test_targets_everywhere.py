"""A second kind of label goes through the whole library: labeler, filter, shards, datasets and transforms, and back."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import SCHEMA
from scalar_map import ScalarMap, depth_labeled
from torchvision import tv_tensors

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator, Sample, verify_shards, write_shards
from dsgan_datasets.export import ExportInput, export
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.transforms import RandomHorizontalFlip

DEPTH = ScalarMap()


@pytest.fixture(scope="module", params=[False, True], ids=["mask and depth", "depth alone"])
def labeled(request: pytest.FixtureRequest) -> LabeledGenerator:
    return depth_labeled(bare=request.param)


def assert_equal(found: Sample, expected: Sample) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].nan_to_num(9), value.nan_to_num(9)), name


def test_samples_hold_every_label(labeled: LabeledGenerator) -> None:
    sample = labeled.generate([3]).rows().__next__()
    for target in labeled.targets:
        target.check(sample[target.field], labeled.image_size)
    assert ("uncertainty_score" in sample) == labeled.labeler.has_uncertainty


def test_rules_on_masks_redraw_every_label() -> None:
    strict = depth_labeled(require=(2,))
    batch = strict.generate(range(6))
    assert (SCHEMA.tally(batch.mask)[:, 2] >= 1).all() and batch.attempt.sum() > 0
    free = depth_labeled().generate(batch.index, attempts=batch.attempt)
    assert torch.equal(batch["depth"], free["depth"])


def test_uncertain_pixels_are_ignored_in_every_label() -> None:
    labeled = depth_labeled(max_uncertainty=0.3)
    batch = labeled.generate(range(4), extras=("uncertainty",))
    ignored = batch["uncertainty"] > 0.3
    assert 0 < ignored.sum() < ignored.numel()
    assert torch.equal(batch.mask == SCHEMA.ignore_index, ignored)
    assert torch.equal(batch["depth"].isnan(), ignored)


def test_a_rule_on_masks_needs_masks() -> None:
    with pytest.raises(ValueError, match="needs masks"):
        depth_labeled(bare=True, require=(3,))


def test_shards_give_every_label_back(labeled: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(labeled, tmp_path, range(6), samples_per_shard=3)
    assert not verify_shards(tmp_path)
    source = ShardSource(tmp_path)
    assert source.targets == labeled.targets
    for found, expected in zip(source.stream(range(6)), labeled.stream(range(6)), strict=True):
        assert_equal(found, expected)
    tallies = [shard["tallies"]["depth"] for shard in json.loads((tmp_path / "manifest.json").read_text())["shards"]]
    assert torch.tensor(tallies).sum(0).equal(DEPTH.tally(labeled.generate(range(6))["depth"]).sum(0))


def test_shards_are_exported(labeled: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(labeled, tmp_path / "shards", range(2, 6))
    export(ExportInput.read(tmp_path / "shards", start=3), tmp_path / "read", "folder")
    export(ExportInput.generated(labeled, 3, start=3), tmp_path / "generated", "folder")
    for path in (tmp_path / "generated").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "read" / path.relative_to(tmp_path / "generated")).read_bytes(), path


def test_datasets_transform_every_label(labeled: LabeledGenerator) -> None:
    seen: list[set[type]] = []

    def look(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append({type(value) for value in inputs.values()})
        return inputs

    for transforms, mirror in ((look, False), (RandomHorizontalFlip(labeled.targets, p=1), True)):
        dataset = DSGANIterableDataset(labeled, seed=2, transforms=transforms)
        for found, plain in zip(islice(dataset, 4), labeled.stream(range(4), seed=2), strict=True):
            for target in labeled.targets:
                value = plain[target.field]
                assert torch.equal(
                    torch.as_tensor(found[target.field]), target.mirror(value, labeled.image_size) if mirror else value
                )
    assert seen[0] == {tv_tensors.Image, tv_tensors.Mask}
