"""Recipes that draw more than z: psi ranges, classes, style mixing, view groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, small_ensemble, small_labeled
from properties import assert_partition, assert_same_samples, rows_by_index
from torch.utils.data import DataLoader

from dsgan_datasets import (
    DSGANDataset,
    DSGANIterableDataset,
    InterpretedLabeler,
    LabeledGenerator,
    LabelSchema,
    Recipe,
    calibrate,
    describe,
    load_generator,
)
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.latents import Latents, draw_latents, sample_latents
from dsgan_datasets.shards.codec import Encoding, record

pytestmark = pytest.mark.usefixtures("one_thread")

VIEWS = 4
MIXED = {"mixing_layer": 3, "group_size": VIEWS}


def conditional(**recipe: object) -> LabeledGenerator:
    generator = load_generator(GOLDEN / "sg2ada_cond32_skip.pkl", device="cpu")
    ensemble = small_ensemble(sum(generator.feature_channels))
    return LabeledGenerator(InterpretedLabeler(generator, ensemble, [LabelSchema(tuple("abcd"))]), Recipe(**recipe))


@pytest.fixture(scope="module")
def grouped() -> LabeledGenerator:
    """View groups of four, nearly half of which are drawn again."""
    return calibrate(small_labeled(**MIXED), 200, reject_fraction=0.2)


# --- psi ---


def test_psi_of_each_sample_is_its_own() -> None:
    labeled = small_labeled()
    ranged = labeled.with_recipe(labeled.recipe.override(truncation_psi=(0.2, 0.9)))
    batch = ranged.generate(range(5), seed=1)
    indices = torch.arange(5)
    psi = draw_latents(ranged.recipe, 32, indices, seed=1, attempt=torch.zeros_like(indices)).psi
    z = sample_latents(range(5), 32, seed=1)
    for i in range(5):
        image, _ = synthesize(labeled.generator, Recipe(truncation_psi=float(psi[i])), z[i : i + 1])
        assert (image.int() - batch.image[i : i + 1].int()).abs().max() <= 1  # one number or one a latent: last bit
    assert_same_samples(ranged.generate([3], seed=1).rows(), [rows_by_index(batch)[3]])


def test_without_an_average_psi_must_be_one() -> None:
    labeled = small_labeled()
    labeled.generator.mapping_network.w_avg = None
    labeled.with_recipe(Recipe())
    for psi in (0.7, (0.7, 1.0)):
        with pytest.raises(ValueError, match="average w of this generator is not known: only 1 works"):
            labeled.with_recipe(Recipe(truncation_psi=psi))


# --- classes ---


def test_the_class_of_a_sample_is_recorded_and_is_the_one_it_shows() -> None:
    labeled = conditional(class_weights=(2, 0, 1))
    batch = labeled.generate(range(12), seed=4)
    assert batch.class_label.dtype == torch.int64 and set(batch.class_label.tolist()) == {0, 2}
    by_class = {k: rows_by_index(conditional(class_label=k).generate(range(12), seed=4)) for k in (0, 2)}
    for sample in batch.rows():
        assert_same_samples([sample], [by_class[int(sample.class_label)][int(sample.index)]])
    loaded = next(iter(DataLoader(DSGANDataset(labeled, 12, seed=4), batch_size=12)))
    assert torch.equal(loaded.class_label, batch.class_label)


def test_an_unconditional_sample_has_no_class(unfiltered: LabeledGenerator) -> None:
    assert "class_label" not in unfiltered.generate([0])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, r"class_label is None, allowed is 0 … 2, or class_weights"),
        ({"class_label": 3}, r"class_label is 3, allowed is 0 … 2"),
        ({"class_weights": (1, 1)}, "class_weights has 2 weights, the generator has 3 classes"),
    ],
)
def test_classes_that_the_generator_does_not_have(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional(**recipe)


@pytest.mark.parametrize("label", [None, 3])
def test_images_to_annotate_need_a_class_that_there_is(label: int | None) -> None:
    generator = load_generator(GOLDEN / "sg2ada_cond32_skip.pkl", device="cpu")
    with pytest.raises(ValueError, match=rf"class_label is {label}, allowed is 0 … 2"):
        synthesize(generator, Recipe(class_label=label), torch.zeros(1, generator.z_dim))


def test_shards_say_the_class(tmp_path: Path) -> None:
    labeled = conditional(class_weights=(1, 1, 1))
    facts = json.loads(record(next(labeled.generate([3]).rows()), Encoding(), labeled.targets, {})["000000003.json"])
    assert facts["class_label"] == int(labeled.generate([3]).class_label)


def test_classes_of_an_unconditional_generator() -> None:
    with pytest.raises(ValueError, match="class_weights has 2 weights, the generator has 0 classes"):
        small_labeled(class_weights=(1, 1))


# --- style mixing ---


@pytest.mark.parametrize("side", ["fine", "coarse"])
@pytest.mark.parametrize("layer", [1, 3, 5])
def test_each_layer_takes_its_style_from_one_of_two_latents(side: str, layer: int) -> None:
    labeled = small_labeled(mixing_layer=layer, mixing_side=side)
    generator = labeled.generator
    one = torch.zeros(1, dtype=torch.int64)
    latents = draw_latents(labeled.recipe, 32, one, seed=0, attempt=one)
    first, second = (generator.mapping(z, truncation_psi=0.9) for z in (latents.z, latents.second_z))
    ws = first.clone()
    if side == "fine":
        ws[:, layer:] = second[:, layer:]
    else:
        ws[:, :layer] = second[:, :layer]
    expected = (generator.synthesis(ws)[0] * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert torch.equal(labeled.generate([0]).image, expected)


def test_a_layer_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"mixing_layer is 6, this generator can mix at 1 … 5"):
        small_labeled(mixing_layer=6)


# --- view groups ---


@pytest.mark.parametrize("side", ["fine", "coarse"])
def test_views_of_a_group_share_one_side_and_vary_the_other(side: str) -> None:
    labeled = small_labeled(**MIXED, mixing_side=side)
    seen: list[torch.Tensor] = []
    labeled.generator.synthesis_network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    labeled.generate(range(8))
    ws = torch.cat(seen)
    shared, varied = (ws[:, 3:], ws[:, :3]) if side == "fine" else (ws[:, :3], ws[:, 3:])
    assert shared.unique(dim=0, return_counts=True)[1].tolist() == [4, 4]
    assert len(varied.unique(dim=0)) == 8


@pytest.mark.slow
def test_a_group_is_accepted_or_drawn_again_as_a_whole(grouped: LabeledGenerator) -> None:
    batch = grouped.generate(range(60), seed=2)
    attempts = batch.attempt.view(-1, VIEWS)
    assert (attempts == attempts[:, :1]).all() and attempts.max() >= 2
    assert (batch.uncertainty_score <= grouped.recipe.threshold).all()
    for group in range(15):  # every earlier attempt had at least one view above the threshold
        for attempt in range(int(attempts[group, 0])):
            members = range(group * VIEWS, (group + 1) * VIEWS)
            assert (
                grouped.generate(members, seed=2, attempts=attempt).uncertainty_score > grouped.recipe.threshold
            ).any()
    assert grouped.calibration.acceptance < 0.8, "of groups, not of draws"


def test_a_view_is_the_same_alone_and_in_company(grouped: LabeledGenerator) -> None:
    reference = rows_by_index(grouped.generate(range(24), seed=2))
    for request in ([5], [23, 0, 1, 22], list(range(3, 20)), [7, 7, 6], list(reversed(range(24)))):
        assert_same_samples(grouped.generate(request, seed=2).rows(), [reference[i] for i in request])


def test_replaying_needs_no_company(grouped: LabeledGenerator) -> None:
    reference = rows_by_index(grouped.generate(range(12), seed=2))
    calls: list[int] = []
    compute = grouped._compute
    grouped._compute = lambda latents, *more: (calls.append(len(latents)), compute(latents, *more))[1]  # type: ignore
    try:
        replayed = grouped.generate([6], seed=2, attempts=int(reference[6].attempt))
    finally:
        del grouped._compute
    assert_same_samples(replayed.rows(), [reference[6]])
    assert sum(calls) == 1


@pytest.mark.parametrize("uneven", ["keep", "drop", "pad"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_get_whole_groups(uneven: str, world_size: int) -> None:
    labeled = small_labeled(**MIXED)
    parts = []
    for rank in range(world_size):
        dataset = DSGANIterableDataset(labeled, length=20, rank=rank, world_size=world_size, uneven=uneven)
        parts.append([int(sample.index) for sample in dataset])
        assert len(parts[-1]) == len(dataset) and len(dataset) % VIEWS == 0
        groups = torch.tensor(parts[-1]).view(-1, VIEWS)
        assert (groups == groups[:, :1] + torch.arange(VIEWS)).all() and (groups[:, 0] % VIEWS == 0).all()
    if uneven == "keep":
        assert_partition(parts, range(20))
    else:
        assert len({len(part) for part in parts}) == 1


@pytest.mark.parametrize("consumed", [0, 3, 4, 9])
def test_resuming_within_a_group(consumed: int) -> None:
    dataset = DSGANIterableDataset(small_labeled(**MIXED), length=16)
    stream = iter(dataset)
    for _ in range(consumed):
        next(stream)
    state = dataset.state_dict()
    resumed = DSGANIterableDataset(small_labeled(**MIXED), length=16)
    resumed.load_state_dict(state)
    assert [int(sample.index) for sample in resumed] == list(range(consumed, 16))


@pytest.mark.parametrize("arguments", [{"length": 10}, {"length": 8, "start": 2}, {"start": 1}])
def test_groups_are_not_cut(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be multiples of the recipe's group_size, 4"):
        DSGANIterableDataset(small_labeled(**MIXED), **arguments)


def test_round_trip(tmp_path: Path, grouped: LabeledGenerator) -> None:
    grouped.save_pretrained(tmp_path / "group_size")
    loaded = LabeledGenerator.from_pretrained(tmp_path / "group_size", device="cpu")
    assert loaded.recipe == grouped.recipe and loaded.fingerprint == describe(tmp_path / "group_size").fingerprint
    assert_same_samples(loaded.generate(range(8)).rows(), grouped.generate(range(8)).rows())


def test_a_gpu_would_compute_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents picked by rows, as the padding of a compute batch does."""
    latents = Latents(torch.randn(3, 4), torch.randn(3, 4), torch.rand(3), torch.arange(3))
    picked = latents[torch.tensor([0, 2, 2])]
    assert len(picked) == 3 and picked.class_label.tolist() == [0, 2, 2]
    assert torch.equal(picked.second_z[1], latents.second_z[2])
