"""Invariant 1, first half: latents are a pure function of (seed, domain, attempt, index)."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsgan_datasets import Recipe, sample_latents
from dsgan_datasets.latents import (
    MAX_INDEX,
    MAX_SEED,
    Latents,
    Purpose,
    Quantity,
    domain,
    draw_latents,
    philox_words,
)

# Written down once: a change of any of these numbers changes every dataset that was ever made.
KNOWN_WORDS = {  # (seed, domain, attempt, index): first two words
    (0, 0, 0, 0): (0x02F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2),
    (123, 2, 0, 7): (0x33D339173E37A87B, 0xDD11E028C4C8967C),
    (MAX_SEED, 256, 3, MAX_INDEX): (0xB4319329939C63A1, 0x7E0E776EF3A8F044),
}
KNOWN_LATENTS = {  # (seed, index, attempt): first four numbers of z
    (0, 0, 0): (0.15853384137153625, 2.982879400253296, -1.9256919622421265, -0.8249255418777466),
    (0, 1, 0): (-1.2985116243362427, -0.6772649884223938, -1.4570860862731934, -1.6639143228530884),
    (0, 0, 1): (0.864948570728302, 0.36483633518218994, -1.0867525339126587, 1.747602105140686),
    (MAX_SEED, MAX_INDEX, 5): (0.83534836769104, 0.4638601243495941, 0.12327772378921509, 1.2141588926315308),
}


@pytest.mark.parametrize("address", KNOWN_WORDS)
def test_known_words(address: tuple[int, int, int, int]) -> None:
    seed, where, attempt, index = address
    words = philox_words(torch.tensor([index]), 2, seed=seed, domain=where, attempt=attempt)
    assert tuple(int(w) for w in words[0]) == KNOWN_WORDS[address]


@pytest.mark.parametrize("address", KNOWN_LATENTS)
def test_known_latents(address: tuple[int, int, int]) -> None:
    seed, index, attempt = address
    z = sample_latents([index], 4, seed=seed, attempt=attempt)[0]
    # Logarithm and cosine of another processor may round differently in the last bit.
    assert z.tolist() == pytest.approx(KNOWN_LATENTS[address], rel=1e-6)


def test_domains_are_distinct() -> None:
    assert len({domain(q, p) for q in Quantity for p in Purpose}) == len(Quantity) * len(Purpose)
    assert domain(Quantity.Z) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, MAX_INDEX), min_size=1, max_size=6), st.integers(0, MAX_SEED), st.integers(0, 9))
def test_rows_do_not_depend_on_each_other(indices: list[int], seed: int, attempt: int) -> None:
    together = sample_latents(indices, 7, seed=seed, attempt=attempt)
    alone = torch.cat([sample_latents([i], 7, seed=seed, attempt=attempt) for i in indices])
    assert together.dtype == torch.float32 and torch.equal(together, alone)


def test_every_part_of_the_address_matters() -> None:
    base = sample_latents([5], 16, seed=1)
    others = [
        sample_latents([6], 16, seed=1),
        sample_latents([5], 16, seed=2),
        sample_latents([5], 16, seed=1, attempt=1),
        sample_latents([5], 16, seed=1, purpose=Purpose.CALIBRATION),
    ]
    assert not any(torch.equal(base, other) for other in others)


def test_attempts_may_differ_by_row() -> None:
    mixed = sample_latents([4, 4], 8, seed=0, attempt=torch.tensor([0, 2]))
    assert torch.equal(mixed[1:], sample_latents([4], 8, seed=0, attempt=2))


def test_global_generators_are_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = sample_latents([1], 8, seed=0)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(1)
    assert torch.equal(first, sample_latents([1], 8, seed=0))


def test_standard_normal() -> None:
    z = sample_latents(range(400), 512, seed=3).double()
    assert abs(z.mean().item()) < 0.01 and abs(z.var().item() - 1) < 0.02
    assert abs((z**4).mean().item() - 3) < 0.1
    assert abs((z[:, 0::2] * z[:, 1::2]).mean().item()) < 0.01  # the two of a Box-Muller pair


def test_odd_dimension_is_a_prefix_of_the_even_one() -> None:
    assert torch.equal(sample_latents([2], 5, seed=0), sample_latents([2], 6, seed=0)[:, :5])


@pytest.mark.parametrize("indices", [[-1], [2**63], torch.tensor([-3])])
def test_indices_out_of_range(indices: object) -> None:
    with pytest.raises(ValueError, match="2\\^63"):
        sample_latents(indices, 4, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [[1.5], ["a"], torch.tensor([0.5]), torch.tensor([True])])
def test_indices_of_wrong_type(indices: object) -> None:
    with pytest.raises(TypeError, match="integers"):
        sample_latents(indices, 4, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_seed_out_of_range(seed: object) -> None:
    with pytest.raises(ValueError, match="2\\^64"):
        sample_latents([0], 4, seed=seed)  # type: ignore[arg-type]


# --- what a recipe leaves to chance ---


CONDITIONAL = Recipe(class_weights=(1, 0, 3))


def drawn(recipe: Recipe, indices: range | list[int], seed: int = 0, attempt: int = 0) -> Latents:
    flat = torch.tensor(list(indices))
    return draw_latents(recipe, 8, flat, seed=seed, attempt=torch.full_like(flat, attempt))


def test_nothing_is_drawn_that_the_recipe_fixes() -> None:
    latents = drawn(Recipe(truncation_psi=0.7), range(3))
    assert (latents.second_z, latents.psi, latents.class_label) == (None, None, None)
    assert torch.equal(latents.z, sample_latents(range(3), 8, seed=0))
    assert drawn(Recipe(class_label=2), range(3)).class_label.tolist() == [2, 2, 2]


def test_psi_is_uniform_in_its_range() -> None:
    psi = drawn(Recipe(truncation_psi=(0.5, 0.9)), range(2000)).psi
    assert psi.dtype == torch.float64 and 0.5 <= psi.min() < 0.51 and 0.89 < psi.max() <= 0.9
    counts = torch.histc(psi.float(), 8, 0.5, 0.9)
    assert (counts - 250).abs().max() < 75  # five standard deviations


def test_classes_come_as_often_as_their_weights_say() -> None:
    classes = drawn(CONDITIONAL, range(2000)).class_label
    counts = classes.bincount(minlength=3).tolist()
    assert counts[1] == 0 and abs(counts[0] - 500) < 100
    again = drawn(Recipe(class_weights=(10, 0, 30)), range(2000)).class_label
    assert torch.equal(classes, again), "only the ratio matters"


EVERYTHING = Recipe(truncation_psi=(0.4, 1), class_weights=(1, 1), mixing_layer=2)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=6), st.sampled_from([1, 4]))
def test_everything_drawn_depends_on_the_index_alone(indices: list[int], views: int) -> None:
    recipe = dataclasses.replace(EVERYTHING, group_size=views)
    together = drawn(recipe, indices, seed=3, attempt=2)
    for i, index in enumerate(indices):
        alone = drawn(recipe, [index], seed=3, attempt=2)
        for name in ("z", "second_z", "psi", "class_label"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0])


@pytest.mark.parametrize("other", [{"seed": 1}, {"attempt": 1}])
def test_everything_drawn_depends_on_seed_and_attempt(other: dict[str, int]) -> None:
    first, second = drawn(EVERYTHING, range(50)), drawn(EVERYTHING, range(50), **other)
    for name in ("z", "second_z", "psi", "class_label"):
        assert not torch.equal(getattr(first, name), getattr(second, name))


def test_quantities_do_not_share_their_numbers() -> None:
    latents = drawn(EVERYTHING, range(50))
    assert not torch.equal(latents.z, latents.second_z)
    uniform = (latents.psi - 0.4) / 0.6
    assert not torch.equal(uniform > 0.5, latents.class_label == 1)


def test_views_share_all_but_z() -> None:
    latents = drawn(dataclasses.replace(EVERYTHING, group_size=4), range(3, 9))  # 3 | 4 5 6 7 | 8
    for shared in (latents.second_z, latents.psi[:, None]):
        assert [bool((a == b).all()) for a, b in pairwise(shared)] == [False, True, True, True, False]
    assert len(latents.z.unique(dim=0)) == 6


@pytest.mark.parametrize("recipe", [Recipe(truncation_psi=(0.5, 1)), CONDITIONAL, Recipe(mixing_layer=1)])
def test_z_alone_is_not_enough_for_a_recipe_that_draws_more(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="z alone does not say what to make"):
        Latents.of(recipe, torch.zeros(1, 8))
