"""Mixtures: exact proportions, one order, and every item's origin at once."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import NumberSource
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, Mixture, SampleBatch
from dsgan_datasets.sources import Origin


def stream(**options: Any) -> DSGANIterableDataset:
    return DSGANIterableDataset(NumberSource(), **options)  # type: ignore[arg-type]


def real(length: int) -> DSGANDataset:
    return DSGANDataset(NumberSource(), length)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 12),
    batches=st.integers(0, 40),
    sizes=st.lists(st.integers(1, 7), min_size=4, max_size=4),
)
def test_proportions_are_exact(weights: list[int], batch: int, batches: int, sizes: list[int]) -> None:
    parts = [stream(start=5), real(sizes[1]), real(sizes[2]), stream(length=sizes[3])][: len(weights)]
    mixture = Mixture(parts, weights, global_batch=batch)
    origins = [mixture.origin(n) for n in range(batch * batches)]
    counts = Counter(origin.part for origin in origins)
    assert counts[0] == batch * batches * weights[0] // sum(weights)
    for part, weight in enumerate(weights):
        assert abs(counts[part] - Fraction(batch * batches * weight, sum(weights))) < len(weights)
    numbers = [[origin.number for origin in origins if origin.part == part] for part in range(len(parts))]
    assert numbers[0] == list(range(5, 5 + counts[0]))
    for part, seen in enumerate(numbers[1:3], 1):
        if part < len(parts):
            size = sizes[part]
            assert all(sorted(seen[i : i + size]) == list(range(size)) for i in range(0, len(seen) - size + 1, size))
    if len(parts) > 3:
        assert numbers[3] == list(range(counts[3]))  # epoch after epoch


def test_items_are_where_they_say() -> None:
    mixture = Mixture([stream(start=100), real(5), real(3)], weights=[2, 1, 1], length=12, global_batch=4)
    for epoch in range(2):
        seen = [int(sample.index) for sample in mixture]
        assert seen == [mixture.origin(n).number for n in range(12 * epoch, 12 * epoch + 12)]
    assert mixture.origin(0) == Origin(2, 0)
    orders = [[mixture.origin(n).number for n in range(200) if mixture.origin(n).part == p][:15] for p in (1, 2)]
    assert len({tuple(orders[0][i : i + 5]) for i in (0, 5, 10)}) > 1, "shuffled anew"


def test_every_rank_keeps_the_ratio() -> None:
    for rank in range(4):
        mixture = Mixture([stream(start=1000), real(5)], [3, 1], global_batch=8, rank=rank, world_size=4)
        generated = [int(sample.index) >= 1000 for sample in islice(mixture, 80)]
        assert sum(generated) == 60


def test_fields_make_different_items_one_batch() -> None:
    class Photos:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": torch.ones(3, 1, 1, dtype=torch.uint8), "mask": torch.ones(1, 1).long(), "file": "1.jpg"}

    mixture = Mixture([stream(), Photos()], [1, 1], fields=["image", "mask"], length=4)
    (batch,) = DataLoader(mixture, batch_size=4)
    assert isinstance(batch, SampleBatch) and set(batch) == {"image", "mask"}
    assert batch.mask.flatten().tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    with pytest.raises(ValueError, match="items of part 1 have no depth; found image, mask, file"):
        next(iter(Mixture([real(1), Photos()], [1, 100], fields=["depth"])))


def test_generation_stays_batched() -> None:
    source = NumberSource()
    rows = iter(Mixture([DSGANIterableDataset(source, batch_size=4), real(3)], [1, 3]))  # type: ignore[arg-type]
    list(islice(rows, 16))
    rows.close()  # type: ignore[attr-defined]
    assert source.asked == list(range(len(source.asked))) and len(source.asked) <= 16


def test_a_mixture_of_mixtures() -> None:
    inner = Mixture([stream(start=10), stream(start=20)], [1, 1])
    outer = Mixture([inner, real(2)], [2, 1], length=9)
    seen = [int(sample.index) for sample in outer]
    assert sorted(i for i in seen if i >= 10) == [10, 11, 12, 20, 21, 22]


def test_states_of_other_mixtures_are_refused() -> None:
    state = Mixture([stream(), real(5)], [3, 1], length=8).state_dict()
    for other in (
        Mixture([stream(), real(5)], [2, 1], length=8),
        Mixture([stream(), real(4)], [3, 1], length=8),
        Mixture([stream(seed=1), real(5)], [3, 1], length=8),
        Mixture([stream(), real(5)], [3, 1], length=8, seed=1),
    ):
        with pytest.raises(ValueError, match="cannot resume: (weights|parts|seed) is"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ([], [], "parts must be a list of datasets"),
        ("ab", [1, 1], "parts must be a list of datasets, not 'ab'"),
        ([real(1)], [1, 2], "weights must be 1 positive numbers"),
        ([real(1), real(1)], [1, 0], "weights must be 2 positive numbers"),
        ([real(1), real(1)], [1, float("inf")], "positive numbers"),
        ([real(1), real(1)], "11", "positive numbers"),
        ([real(1), real(1)], [1, 1e-9], "at least 0.000001"),
        ([real(1), 7], [1, 1], "part 1 must be a stream of this package, or have a length"),
        ([real(1), []], [1, 1], "part 1 is empty"),
        ([DSGANIterableDataset(NumberSource(group=2), length=4)], [1], "part 0 has view groups of 2"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_mixed(parts: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(parts, weights)


def test_items_without_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="fields must name at least one field"):
        Mixture([real(1)], [1], fields=[])
