"""What every stream needs: its share among ranks and workers, its epoch, and resuming in the middle of one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dsgan_datasets.checks import integer
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.sources.share import Share, accelerate_is_reading, current_rank

Uneven = Literal["drop", "pad", "keep"]
Item_co = TypeVar("Item_co", covariant=True)


class _Start(NamedTuple):
    """Where an iteration begins: what was delivered of an epoch before.

    Attributes:
        epoch: the epoch.
        batches: global batches.
        within: samples that each rank was given of the next one.
        consumed: samples that this very DataLoader worker delivered since.
        process: that asked for this start.
    """

    epoch: int
    batches: int = 0
    within: int = 0
    consumed: int = 0
    process: int = 0


@dataclass
class Iteration:
    """One pass of one consumer over an epoch.

    Attributes:
        start: where it began.
        share: which positions this consumer has.
        length: positions of the epoch, after dropping or padding.
        delivered: samples that it has handed out.
        running: until it ends or is left.
    """

    start: _Start
    share: Share
    length: int
    delivered: int = 0
    running: bool = True

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self.start.epoch

    def positions(self) -> Iterator[int]:
        """Positions that are left, one by one; it may be asked for several times before something is delivered."""
        start = self.start
        ranges = self.share.positions(
            self.length, batches_done=start.batches, within=start.within, samples_done=start.consumed
        )
        return (position for positions in ranges for position in positions)


class ResumableStream(IterableDataset[Item_co]):
    """A stream that shares out its positions among ranks and workers, and can continue in the middle of an epoch.

    A subclass iterates inside `_iteration`, gives `_deliver` the number of samples that it hands out, and says in
    `_identity` what a saved state belongs to.

    Args:
        length: positions of an epoch, over all ranks; None for no end.
        group: samples of a view group, which stay together.
        rank, world_size: of this process; None asks torch.distributed when iteration starts (one rank if it is not
            initialized).
        split_by_rank: False where a launcher shares out batches among the ranks itself (accelerate's ``prepare``, the
            Trainer of Hugging Face): every process then reads the whole epoch as if it were the only rank. None is
            True, unless a loader that accelerate prepared is found to be reading; then there is a warning.
        global_batch: B, samples of all ranks in a step. With it all ranks and workers keep to one order of the epoch,
            and a state can be continued with other numbers of them. None deals out single view groups in turn.
        loader_batch_size: batch size of the DataLoader, if it is not B / ranks; needs `global_batch`.
        uneven: what happens to a last global batch that is not full (without `global_batch`, to samples that do not
            divide by the number of ranks): "keep" gives some ranks less, "drop" leaves it out, "pad" fills it up with
            the first samples. None is "keep" on one rank and "drop" on several, because ranks that wait for each other
            after every step (DDP) would hang.

    Raises:
        ValueError: an argument out of range, numbers that do not divide, or only one of rank and world_size.
    """

    def __init__(
        self,
        *,
        length: int | None,
        group: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        split_by_rank: bool | None = None,
        global_batch: int | None = None,
        loader_batch_size: int | None = None,
        uneven: Uneven | None = None,
    ) -> None:
        if uneven not in (None, *get_args(Uneven)):
            raise ValueError(f'uneven must be "drop", "pad" or "keep", not {uneven!r}')
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        if world_size is not None:
            world_size = integer("world_size", world_size, 1)
            rank = integer("rank", rank, 0, world_size - 1)
            if split_by_rank is False and world_size > 1:
                raise ValueError(f"split_by_rank=False makes every process the only rank, not one of {world_size}")
        if split_by_rank not in (None, True, False):
            raise ValueError(f"split_by_rank must be True, False or None, not {split_by_rank!r}")
        self.length = length
        self.group = group
        self.rank = rank
        self.world_size = world_size
        self.split_by_rank = split_by_rank
        self.uneven: Uneven | None = uneven
        self.global_batch: int | None = None
        self.loader_batch_size: int | None = None
        # In shared memory, for workers that live longer than an epoch: the epoch; the one that workers have read of
        # (-1: none); whether workers have begun where a loaded state ends, and the seed of their DataLoader.
        self._shared = torch.tensor([0, -1, 0, 0], device="cpu").share_memory_()
        self._current: Iteration | None = None
        self._resume: _Start | None = None
        self._warned = False
        self.batch_by(global_batch, loader_batch_size)
        if global_batch is not None:
            # Workers are not known yet; a batch size that was given must suit any number of them.
            workers = 1 if loader_batch_size is None else 2
            Share(rank or 0, world_size or 1, 0, workers, self.global_batch or 1, self.loader_batch_size, group)

    def batch_by(self, global_batch: int | None, loader_batch_size: int | None = None) -> None:
        """Set `global_batch` and `loader_batch_size`, before an iteration (and its workers) starts."""
        if global_batch is None and loader_batch_size is not None:
            raise ValueError("loader_batch_size says how a global batch is loaded: give global_batch too")
        self.global_batch = None if global_batch is None else integer("global_batch", global_batch, 1)
        if loader_batch_size is not None:
            loader_batch_size = integer("loader_batch_size", loader_batch_size, 1)
        self.loader_batch_size = loader_batch_size

    @property
    def share(self) -> Share:
        """What this process, or DataLoader worker, gets of each global batch.

        Raises:
            ValueError: the numbers of ranks, workers and samples do not divide; the message names some that do.
        """
        rank, world_size = self._rank_and_world_size()
        return Share.here(
            rank=rank,
            world_size=world_size,
            global_batch=self.global_batch,
            item=self.loader_batch_size,
            group=self.group,
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        rank, world_size = current_rank() or (0, 1)
        if self.split_by_rank is False:
            return 0, 1
        if world_size > 1 and self.split_by_rank is None and accelerate_is_reading():
            self._warn_about_accelerate()
            return 0, 1
        return rank, world_size

    def _warn_about_accelerate(self) -> None:
        worker = get_worker_info()
        if not self._warned and (worker is None or worker.id == 0):
            warnings.warn(
                "accelerate shares out this stream among the ranks itself, so every rank reads it as if it were the "
                "only one. Pass split_by_rank=False to confirm that; or leave the loader out of prepare(), and each "
                "rank makes only its own samples",
                stacklevel=2,
            )
        self._warned = True

    def _even_length(self, share: Share) -> int:
        """Positions of an epoch after dropping or padding."""
        if self.length is None:
            return MAX_INDEX + 1
        return share.even_length(self.length, self.uneven or ("keep" if share.world_size == 1 else "drop"))

    def __len__(self) -> int:
        """Samples that this rank sees in an epoch; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError("this stream has no end; give it a length")
        share = self.share
        return share.count(self._even_length(share))

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker has no process group: it is given the rank of the process that sent it there."""
        state = self.__dict__.copy()
        if current_rank() is not None:
            state["rank"], state["world_size"] = self._rank_and_world_size()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared.share_memory_()  # a deep copy is not

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch; takes effect when iteration starts, in living workers too."""
        self._shared[0] = integer("epoch", epoch, 0, MAX_INDEX)

    @contextmanager
    def _iteration(self) -> Iterator[Iteration]:
        """One iteration over an epoch, or over the rest of it after a state was loaded."""
        share = self.share
        iteration = Iteration(self._taken_start(), share, self._even_length(share))
        if get_worker_info() is not None:
            self._shared[1] = iteration.epoch
        self._current = iteration
        try:
            yield iteration
        finally:  # at the end, and where the consumer leaves early
            iteration.running = False

    def _deliver(self, iteration: Iteration, samples: int = 1) -> None:
        """Count samples that are about to be handed out; of several iterations the state is that of the latest."""
        iteration.delivered += samples
        self._current = iteration

    def _taken_start(self) -> _Start:
        """Where the iteration that begins now begins. A loaded state is used once, by all workers of a DataLoader."""
        epoch = int(self._shared[0])
        start, self._resume = self._resume, None
        if start is None or start.epoch != epoch:
            return _Start(epoch)
        worker, (taken, seed) = get_worker_info(), self._shared[2:].tolist()
        if start.process == os.getpid():
            return _Start(epoch) if worker is None and taken else start
        loader = 0 if worker is None else worker.seed - worker.id
        if taken and seed != loader:
            return _Start(epoch)  # workers of an earlier iteration had it
        self._shared[2:] = torch.tensor([1, loader], device="cpu")
        return start

    def _begin_at(self, start: _Start) -> None:
        self._resume = start._replace(process=os.getpid())
        if get_worker_info() is None:
            self._shared[:] = torch.tensor([start.epoch, -1, 0, 0], device="cpu")
        else:
            self._shared[0] = start.epoch

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch, the last of which may not be full; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError("this stream has no end; give it a length")
        share = self.share
        return -(-self._even_length(share) // share.global_batch)

    def resume(self, batches: int, within: int = 0) -> None:
        """Start the next iteration of this epoch after some global batches, and `within` samples of each rank."""
        start = _Start(int(self._shared[0]), integer("batches", batches, 0), integer("within", within, 0))
        self._begin_at(start)

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Where the stream is in its epoch: samples handed out (not those prepared ahead), and what they belong to.

        A state that is taken between global batches continues with any number of ranks and workers; one taken inside
        a global batch, or without `global_batch`, with as many ranks. The state of a DataLoader worker (torchdata's
        StatefulDataLoader collects them) needs as many ranks and workers.

        Args:
            step: global batches that the training has done in this epoch. Needed where DataLoader workers read the
                stream, which the process that trains cannot count; None counts what this process handed out.

        Raises:
            ValueError: no step although workers read the stream, or a step without `global_batch`.
        """
        at = self._position()
        if step is not None:
            if self.global_batch is None:
                raise ValueError("a step counts global batches: give the stream a global_batch")
            return self._state(_Start(at.epoch, integer("step", step, 0)))
        if get_worker_info() is None and self._resume is None and int(self._shared[1]) == at.epoch:
            raise ValueError(
                "DataLoader workers read this stream, and this process cannot count what they delivered: pass "
                "state_dict(step=…), the number of global batches done in this epoch (which needs a global_batch)"
            )
        return self._state(at)

    def _position(self) -> _Start:
        """What was delivered up to now."""
        epoch, current = int(self._shared[0]), self._current
        if self._resume is not None and int(self._shared[2]) and self._resume.process == os.getpid():
            self._resume = None  # workers have it
        if self._resume is not None:
            return self._resume if self._resume.epoch == epoch else _Start(epoch)
        if current is not None and (current.running or current.epoch == epoch):
            start = current.start
            return start._replace(consumed=start.consumed + current.delivered)
        return _Start(epoch)  # between two epochs: set_epoch has already named the next one

    def _state(self, at: _Start) -> dict[str, Any]:
        share = self.share
        state = {**self._identity(), "global_batch": self.global_batch, "epoch": at.epoch}
        if get_worker_info() is not None:
            consumer, consumers = share.worker * share.world_size + share.rank, share.workers * share.world_size
            place = {"consumer": consumer, "consumers": consumers, "consumed": at.consumed}
            return {**state, **place, "batches": at.batches, "within": at.within}
        more, within = divmod(at.within + at.consumed, share.rank_batch)
        state["batches"] = at.batches + more
        if within or self.global_batch is None:
            state |= {"within": within, "world_size": share.world_size}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, when iteration over that epoch starts next.

        Raises:
            ValueError: the state belongs to another stream, or is not one; the message names the field.
        """
        if not isinstance(state, dict):
            raise ValueError(f"cannot resume: expected the dict of state_dict(), got {type(state).__name__}")
        share = self.share
        expected = {**self._identity(), "global_batch": self.global_batch}
        if "consumed" in state:
            if get_worker_info() is None:
                raise ValueError(
                    "cannot resume: this is the state of a DataLoader worker; load it through the StatefulDataLoader"
                )
            expected["consumers"] = share.workers * share.world_size
            expected["consumer"] = share.worker * share.world_size + share.rank
        elif "world_size" in state:  # it ends inside a global batch
            expected["world_size"] = share.world_size
        for name, here in expected.items():
            if state.get(name) != here:
                raise ValueError(f"cannot resume: {name} is {here!r} here, but {state.get(name)!r} in the saved state")
        epoch, batches, within, consumed = (
            integer(f"{name} in the saved state", state.get(name, default), 0, MAX_INDEX)
            for name, default in (("epoch", None), ("batches", None), ("within", 0), ("consumed", 0))
        )
        self._begin_at(_Start(epoch, batches, within, consumed))

    def _identity(self) -> dict[str, Any]:
        """What a saved state belongs to; it is refused where any of this differs."""
        raise NotImplementedError
