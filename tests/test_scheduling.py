"""Draws in full batches, redrawn until they are accepted, in order; overlapped where a GPU would have a gap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count, islice
from typing import Any

import pytest
from torch import Tensor

from dsgan_datasets.samples import Sample
from dsgan_datasets.scheduling import accepted_samples


class Machine:
    """Draws whose first attempts are rejected for every third index; notes what is started and what is waited for."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.sizes: list[int] = []

    def draw(self, indices: Tensor, attempts: Tensor) -> Callable[[], tuple[dict[str, Tensor], Tensor]]:
        number = len(self.sizes)
        self.events.append(f"start {number}")
        self.sizes.append(len(indices))

        def wait() -> tuple[dict[str, Tensor], Tensor]:
            self.events.append(f"wait {number}")
            return {"index": indices, "attempt": attempts}, (indices % 3 > 0) | (attempts > 1)

        return wait

    def samples(self, indices: Iterable[int], **options: Any) -> Iterable[Sample]:
        draws = ((index, 0) for index in indices)
        return accepted_samples(draws, self.draw, compute_batch=4, attempt_limit=lambda: 9, **options)


def pairs(samples: Iterable[Sample]) -> list[tuple[int, int]]:
    return [(int(sample["index"]), int(sample["attempt"])) for sample in samples]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("length", [1, 4, 5, 13])
def test_samples_are_those_of_their_indices(length: int, overlap: bool) -> None:
    expected = [(index, 0 if index % 3 else 2) for index in range(length)]
    assert pairs(Machine().samples(range(length), overlap=overlap)) == expected


def test_a_batch_is_started_before_the_last_one_is_waited_for() -> None:
    machine = Machine()
    list(islice(machine.samples(count(), overlap=True), 12))
    assert machine.events[:6] == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "start 3"]
    plain = Machine()
    list(islice(plain.samples(count()), 12))
    assert plain.events[:4] == ["start 0", "wait 0", "start 1", "wait 1"]


@pytest.mark.parametrize("length", [4, 6, 8, 40])
def test_overlap_wastes_no_batch(length: int) -> None:
    """A batch that is not full waits for what the one before rejects."""
    sizes = {}
    for overlap in (False, True):
        machine = Machine()
        list(machine.samples(range(length), overlap=overlap))
        sizes[overlap] = machine.sizes
    assert sum(sizes[True]) == sum(sizes[False])
    assert len(sizes[True]) <= len(sizes[False]) + 1


def test_groups_stay_whole() -> None:
    found = pairs(Machine().samples([0, 1, 6, 7], overlap=True, group_size=2))
    assert found == [(0, 2), (1, 2), (6, 2), (7, 2)]
