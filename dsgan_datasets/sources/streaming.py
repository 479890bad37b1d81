"""What every stream of samples needs: its share among ranks and workers, its epoch, and resuming in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from dsgan_datasets.checks import integer
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.samples import Sample

Transforms = Callable[..., Any]
Uneven = Literal["drop", "pad", "keep"]


class ResumableStream(IterableDataset[Sample]):
    """Counts what a consumer has been given, so that it can go on there; subclasses make the samples.

    A subclass iterates inside `_resumed`, adds to `_consumed` what it hands out, and says in `_identity` what a saved
    state belongs to.

    Args:
        rank, world_size: of this process; None asks torch.distributed when iteration starts (one rank if it is not
            initialized).
        transforms: torchvision v2 transforms of (image, mask), given as tv_tensors.Image and tv_tensors.Mask.
        uneven: what happens to samples that do not divide by the world size.

    Raises:
        ValueError: an argument out of range, or only one of rank and world_size.
    """

    def __init__(
        self, *, rank: int | None, world_size: int | None, transforms: Transforms | None, uneven: Uneven
    ) -> None:
        if uneven not in ("drop", "pad", "keep"):
            raise ValueError(f'uneven must be "drop", "pad" or "keep", not {uneven!r}')
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        if world_size is not None:
            world_size = integer("world_size", world_size, 1)
            rank = integer("rank", rank, 0, world_size - 1)
        self.rank = rank
        self.world_size = world_size
        self.transforms = transforms
        self.uneven: Uneven = uneven
        # In shared memory, so that set_epoch reaches workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._running_epoch = 0
        self._running = False
        self._consumed = 0  # of the epoch that runs, or ran last
        self._resume_at: int | None = None

    @contextmanager
    def _resumed(self) -> Iterator[int]:
        """One iteration over an epoch; gives the number of samples that were handed out before it."""
        self._consumed, self._resume_at = self._resume_at or 0, None
        self._running_epoch, self._running = int(self._epoch), True
        try:
            yield self._consumed
        finally:  # at the end, and where the consumer leaves early
            self._running = False

    def _evened(self, units: int) -> int:
        """Units of an epoch (samples, view groups) after dropping or padding, so that all ranks get as many."""
        _, world_size = self._rank_and_world_size()
        if self.uneven == "keep":
            return units
        if self.uneven == "drop":
            return units - units % world_size
        return units + -units % world_size

    def _consumer(self) -> tuple[int, int]:
        """(number of this consumer, number of consumers)."""
        rank, world_size = self._rank_and_world_size()
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Rank fastest: which indices a rank sees does not depend on how many workers it has.
        return number * world_size + rank, world_size * workers

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        return current_rank() or (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker has no process group: it is told the rank of the process that sent it here."""
        state = self.__dict__.copy()
        if current_rank() is not None:
            state["rank"], state["world_size"] = self._rank_and_world_size()
        return state

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch; takes effect when iteration starts, in living workers too."""
        self._epoch.fill_(integer("epoch", epoch, 0, MAX_INDEX))

    def state_dict(self) -> dict[str, Any]:
        """Where this consumer is: samples handed out (not those generated ahead), and what they belong to."""
        epoch = int(self._epoch)
        if self._resume_at is not None:
            consumed = self._resume_at
        elif self._running:
            epoch, consumed = self._running_epoch, self._consumed
        else:  # between two epochs: set_epoch may already have named the next one
            consumed = self._consumed if epoch == self._running_epoch else 0
        return {**self._identity(), "epoch": epoch, "consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, when iteration starts next.

        Raises:
            ValueError: the state belongs to another stream, or is none; the message names the field.
        """
        if not isinstance(state, dict):
            raise ValueError(f"cannot resume: expected the dict of state_dict(), got {type(state).__name__}")
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise ValueError(f"cannot resume: {name} is {here!r} here, but {state.get(name)!r} in the saved state")
        epoch = integer("epoch in the saved state", state.get("epoch"), 0, MAX_INDEX)
        self._resume_at = integer("consumed in the saved state", state.get("consumed"), 0, MAX_INDEX)
        self._epoch.fill_(epoch)

    def _identity(self) -> dict[str, Any]:
        """What a saved state belongs to; it is refused where any of this differs."""
        raise NotImplementedError


def transformed(sample: Sample, transforms: Transforms) -> Sample:
    """A sample whose image and mask went through the transforms."""
    from torchvision import tv_tensors

    result = transforms(tv_tensors.Image(sample.image), tv_tensors.Mask(sample.mask))
    if not isinstance(result, tuple | list) or [isinstance(part, torch.Tensor) for part in result] != [True, True]:
        raise ValueError(
            f"transforms must take (image, mask) and return two tensors (image, mask); "
            f"got {type(result).__name__}: {result!r:.80}"
        )
    return Sample({**sample, "image": result[0], "mask": result[1]})


def current_rank() -> tuple[int, int] | None:
    """(rank, world size) of this process; None if torch.distributed is not initialized in it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None
