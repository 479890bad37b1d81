"""Soft labels: probabilities of the classes beside the mask, for whoever asks, through classes, flips and loaders."""

from __future__ import annotations

import pytest
import torch
from conftest import SCHEMA, small_labeled
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, LabelSchema, ShardDataset
from dsgan_datasets.labelers.base import merged_probabilities
from dsgan_datasets.sources.local import CheckpointSource
from dsgan_datasets.sources.relabeled import choose_classes
from dsgan_datasets.transforms import RandomHorizontalFlip

EXTRAS = ("probabilities",)


def test_they_are_those_of_the_vote(unfiltered: LabeledGenerator) -> None:
    mean = unfiltered.with_recipe(unfiltered.recipe.override(vote="mean"))
    batch = mean.generate(range(4), extras=EXTRAS)
    p = batch["probabilities"]
    assert p.dtype == torch.float16 and p.shape == (4, SCHEMA.num_classes, 16, 16)
    torch.testing.assert_close(p.float().sum(1), torch.ones(4, 16, 16), atol=2e-3, rtol=0)
    chosen = p.gather(1, batch.mask[:, None])[:, 0]
    assert bool((chosen >= p.amax(1) - 1e-3).all()), "the class of the mask is the most probable one"


def test_asking_changes_nothing_else(filtered: LabeledGenerator) -> None:
    plain, more = filtered.generate(range(5)), filtered.generate(range(5), extras=EXTRAS)
    assert set(more) - set(plain) == {"probabilities"} and "probabilities" not in plain
    assert all(torch.equal(plain[name], more[name]) for name in plain)


@pytest.mark.parametrize("threads", [1, 2])
def test_they_are_the_same_in_any_company(filtered: LabeledGenerator, threads: int) -> None:
    together = filtered.generate(range(5), extras=EXTRAS)["probabilities"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(filtered.generate([3], extras=EXTRAS)["probabilities"][0], together[3])
    finally:
        torch.set_num_threads(before)


def test_merged_classes_add_up(unfiltered: LabeledGenerator) -> None:
    fine = unfiltered.generate(range(2), extras=EXTRAS)["probabilities"].float()
    coarse = unfiltered.merge_classes({"head": ["left", "right"]})
    found = coarse.generate(range(2), extras=EXTRAS)["probabilities"].float()
    assert coarse.schema.classes == ("background", "head", "hat")
    expected = torch.stack([fine[:, 0], fine[:, 1] + fine[:, 2], fine[:, 3]], 1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_chosen_classes_keep_theirs() -> None:
    source = CheckpointSource("demo-faces", device="cpu")
    chosen = choose_classes(source, ["hair", "face"], merge={"face": ["skin", "nose"]})
    names = source.schema.classes
    p, found = (s.batch([0], extras=EXTRAS)["probabilities"][0].float() for s in (source, chosen))
    expected = torch.stack([p[names.index("hair")], p[names.index("skin")] + p[names.index("nose")]])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_classes_are_added_by_a_table() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.125]).view(4, 1, 1)
    assert merged_probabilities(p, [1, 0, 255, 1], 3).flatten().tolist() == [0.25, 0.625, 0.0]


def test_a_mirror_swaps_their_sides() -> None:
    p = torch.rand(4, 2, 3)
    schema = LabelSchema(("none", "left", "right", "hat"), flip_pairs=((1, 2),))
    given = {"image": torch.zeros(3, 2, 3), "mask": torch.zeros(2, 3, dtype=torch.int64), "probabilities": p}
    for wrapped in (False, True):
        inputs = {**given, "probabilities": tv_tensors.Mask(p) if wrapped else p}
        found = RandomHorizontalFlip(schema, p=1.0)(inputs)["probabilities"]
        assert isinstance(found, tv_tensors.Mask) == wrapped
        assert torch.equal(found.as_subclass(torch.Tensor), p[[0, 2, 1, 3]].flip(2))


def test_datasets_and_loaders_pass_them_on(unfiltered: LabeledGenerator) -> None:
    flip = RandomHorizontalFlip(unfiltered.targets, p=1.0)
    expected = unfiltered.generate(range(4), extras=EXTRAS)["probabilities"]
    loader = DataLoader(DSGANDataset(unfiltered, 4, extras=EXTRAS), batch_size=4)
    assert torch.equal(next(iter(loader))["probabilities"], expected)
    stream = DSGANIterableDataset(unfiltered, length=4, extras=EXTRAS, transforms=flip)
    found = torch.stack([sample["probabilities"].as_subclass(torch.Tensor) for sample in stream])
    assert torch.equal(found, expected[:, [0, 2, 1, 3]].flip(3))


@pytest.mark.slow
def test_who_has_none_says_so(tars: str) -> None:
    with pytest.raises(ValueError, match="probabilities are not stored, stream from the checkpoint"):
        ShardDataset(tars, extras=EXTRAS)
    labeled = small_labeled()
    labeled.interpreter.has_probabilities = False
    with pytest.raises(ValueError, match="no probabilities of classes: leave out the extra 'probabilities'"):
        labeled.generate([0], extras=EXTRAS)
    with pytest.raises(ValueError, match="extras are uncertainty, latent, probabilities, not 'depth'"):
        labeled.generate([0], extras=("depth",))
