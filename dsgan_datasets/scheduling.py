"""Wanted indices -> draws in full compute batches, redrawn until the filter accepts them -> samples in order.

Nothing in here knows of networks: a function draws, another one says which draws are accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor

from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.samples import Sample

#: (indices, attempts), int64 [N] each -> N draws that are under way; calling these waits for them: (their fields, which
#: of them are accepted: bool [N] on the CPU).
Draw = Callable[[Tensor, Tensor], Callable[[], tuple[Mapping[str, Tensor], Tensor]]]


class _Unit(NamedTuple):
    """What is accepted, or drawn again, as a whole: a draw, or all draws of a view group.

    `wanted` are (place of the sample in the stream, position in `indices`).
    """

    wanted: list[tuple[int, int]]
    indices: Tensor
    attempt: int


def accepted_samples(
    draws: Iterable[tuple[int, int]],
    draw: Draw,
    *,
    compute_batch: int,
    group_size: int = 1,
    attempt_limit: Callable[[], int],
    overlap: bool = False,
) -> Iterator[Sample]:
    """The samples of (index, first attempt) pairs, in order.

    The places of rejected draws are filled with draws of later indices, so that no part of a compute batch is wasted.

    Args:
        draws: indices 0 … 2^63-1 and the attempts to begin with; taken a little ahead of the samples.
        draw: makes up to `compute_batch` draws, and says which are accepted.
        compute_batch: draws at a time.
        group_size: consecutive indices that are accepted or redrawn together.
        attempt_limit: asked when a draw was rejected; draws that an index may take.
        overlap: start a full batch of draws before waiting for the one before, so that a GPU has no gap. The samples
            are the same.

    Raises:
        RuntimeError: an index found no accepted draw within the limit.
    """
    fresh = _units(draws, group_size)
    units_at_once = compute_batch // group_size
    rejected: deque[_Unit] = deque()
    finished: dict[int, Sample] = {}
    next_place = 0
    units: list[_Unit] = []  # of the batch that is to be started
    started: deque[tuple[list[_Unit], Callable[[], tuple[Mapping[str, Tensor], Tensor]]]] = deque()
    while True:
        units += [rejected.popleft() for _ in range(min(units_at_once - len(units), len(rejected)))]
        units += islice(fresh, units_at_once - len(units))
        if units and (len(units) == units_at_once or not started):  # rejected draws may still fill it up
            indices = torch.cat([unit.indices for unit in units])
            attempts = torch.cat([torch.full_like(unit.indices, unit.attempt) for unit in units])
            started.append((units, draw(indices, attempts)))
            units = []
            if overlap and len(started) == 1:
                continue
        if not started:
            return
        drawn, wait = started.popleft()
        fields, accepted = wait()
        first = 0  # row of the unit's first draw
        for unit in drawn:
            if accepted[first : first + len(unit.indices)].all():
                for place, member in unit.wanted:
                    finished[place] = Sample({name: value[first + member] for name, value in fields.items()})
            else:
                rejected.append(_next_attempt(unit, attempt_limit()))
            first += len(unit.indices)
        while next_place in finished:
            yield finished.pop(next_place)
            next_place += 1


def _next_attempt(unit: _Unit, limit: int) -> _Unit:
    if unit.attempt + 1 >= limit:
        raise RuntimeError(
            f"index {int(unit.indices[0])} found no accepted draw in {unit.attempt + 1} attempts; the acceptance rate "
            "must have changed since it was measured: calibrate again"
        )
    return unit._replace(attempt=unit.attempt + 1)


def _units(draws: Iterable[tuple[int, int]], group_size: int) -> Iterator[_Unit]:
    """(index, attempt) pairs as units; neighbors of the same group share one."""
    if group_size == 1:
        for place, (index, attempt) in enumerate(draws):
            yield _Unit([(place, 0)], torch.tensor([index], device="cpu"), attempt)
        return
    for (group, attempt), members in groupby(enumerate(draws), lambda m: (m[1][0] // group_size, m[1][1])):
        wanted = [(place, index - group * group_size) for place, (index, _) in members]
        last = min((group + 1) * group_size - 1, MAX_INDEX)
        yield _Unit(wanted, torch.arange(last - group * group_size + 1, device="cpu") + group * group_size, attempt)
