"""What every stream needs: its share among ranks and workers, its epoch, and resuming in the middle of one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import context
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from torch.utils.data import IterableDataset, get_worker_info

from dsgan_datasets.checks import boolean, integer
from dsgan_datasets.exits import closed_at_exit
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.sources.board import Board, Pass
from dsgan_datasets.sources.share import Share, accelerate_is_reading, current_rank, loader_batch

Uneven = Literal["drop", "pad", "keep"]
Item_co = TypeVar("Item_co", covariant=True)


class Start(NamedTuple):
    """Where an iteration begins: what was delivered of an epoch before.

    Attributes:
        epoch: the epoch.
        batches: global batches.
        within: samples that each rank was given of the next one.
        global_batch: samples of such a batch; 0 if the stream has none.
        world_size: ranks among which `within`, or a stream without `global_batch`, was shared out; 0: any number.
        consumed: samples that this very DataLoader worker delivered since.
    """

    epoch: int
    batches: int = 0
    within: int = 0
    global_batch: int = 0
    world_size: int = 0
    consumed: int = 0


@dataclass
class Iteration:
    """One pass of one consumer over an epoch.

    Attributes:
        start: where it began.
        share: which positions this consumer has.
        length: positions of the epoch, after dropping or padding.
        process: that it runs in.
        in_worker: that is a DataLoader worker.
        named: `Board.named` when it began.
        delivered: samples that it has handed out.
        running: until it ends or is left.
    """

    start: Start
    share: Share
    length: int
    process: int
    in_worker: bool
    named: int
    delivered: int = 0
    running: bool = True

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self.start.epoch

    @property
    def place(self) -> Start:
        """Where one would begin that continues it."""
        return self.start._replace(consumed=self.start.consumed + self.delivered)

    @property
    def progress(self) -> tuple[bool, int]:
        """The greatest is the one that a state is about: one that is running, and of these the furthest."""
        rank_batch = self.share.rank_batch
        return self.running, self.start.batches * rank_batch + self.start.within + self.place.consumed

    @property
    def finished(self) -> bool:
        """Whether all of its samples were handed out."""
        return next(self._positions(self.place), None) is None

    def positions(self) -> Iterator[int]:
        """Its positions, one by one; a new iterator each time."""
        return self._positions(self.start)

    def _positions(self, start: Start) -> Iterator[int]:
        ranges = self.share.positions(
            self.length, batches_done=start.batches, within=start.within, samples_done=start.consumed
        )
        return (position for positions in ranges for position in positions)


class ResumableStream(IterableDataset[Item_co]):
    """A stream that shares out its positions among ranks and workers, and can continue in the middle of an epoch.

    A pass that comes to its end makes the next epoch the one that follows; one that is left early is repeated. With
    DataLoader workers it ends when the loader has asked all of them in vain, which it does while the loop has up to
    ``prefetch_factor - 1`` batches of each to go: a loop that counts batches and stops about there should call
    `set_epoch`.

    A subclass says in `_numbering` which samples an epoch has, makes them in `_made`, and says in `_identity` what a
    saved state belongs to. One that hands out something else than single items iterates inside `_iteration`, and gives
    `_deliver` the number of samples that it hands out.

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
        if split_by_rank is not None:
            split_by_rank = boolean("split_by_rank", split_by_rank, "True, False or None")
        if world_size is not None:
            world_size = integer("world_size", world_size, 1)
            rank = integer("rank", rank, 0, world_size - 1)
            if split_by_rank is False and world_size > 1:
                raise ValueError(f"split_by_rank=False makes every process the only rank, not one of {world_size}")
        self.length = length
        self.group = group
        self.rank = rank
        self.world_size = world_size
        self.split_by_rank = split_by_rank
        self.uneven: Uneven | None = uneven
        self.global_batch: int | None = None
        self.loader_batch_size: int | None = None
        self._board = Board()
        self._iterations: list[Iteration] = []  # of this process, in the epoch
        self._own_start: Start | None = None  # of a DataLoader worker that was given its own state
        self._pass: Pass | None = None  # that this DataLoader worker takes part in
        self._joined = False  # and that it has not begun yet
        self._version = 0  # of the board's start that was loaded here
        self._version_seen: int | None = None  # of the latest that this DataLoader worker could take
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

    def _check_loader(self, share: Share) -> None:
        """Warn if the DataLoader that reads takes other batches than the stream was given: its steps are then others.

        Only a warning: without workers, or with one, the order is right even so, and a loop may count global batches.
        """
        worker = get_worker_info()
        if self.global_batch is None or self.split_by_rank is False or (worker is not None and worker.id):
            return
        found = loader_batch(self)
        if found not in (None, share.per_item) and not accelerate_is_reading():
            warnings.warn(
                f"the DataLoader has batch_size={found}, but of global_batch={self.global_batch} each of "
                f"{share.world_size} rank(s) takes {share.rank_batch}"
                + (f" in items of {share.per_item}" if self.loader_batch_size is not None else "")
                + f": a saved step would continue with other samples. Set batch_size={share.per_item} or "
                f"global_batch={found * share.world_size}; or pass loader_batch_size={found}, if a step takes several "
                "batches",
                stacklevel=2,
            )

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
        state = {**self.__dict__, "_iterations": [], "_pass": None, "_joined": False}
        if context.get_spawning_popen() is not None and current_rank() is not None:
            state["rank"], state["world_size"] = self._rank_and_world_size()
        return state

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch of your choice; takes effect when iteration starts, in living workers too.

        Without it the epochs follow each other: each begins when all workers have finished the one before. A loaded
        state is about one epoch; naming another one drops it, with a warning.
        """
        epoch = integer("epoch", epoch, 0, MAX_INDEX)
        start = self._waiting_start()
        if start is not None and start.epoch == self._board.next_epoch() != epoch:
            warnings.warn(
                f"set_epoch({epoch}) drops the loaded state, which is in epoch {start.epoch}: continue a training with "
                f"set_epoch({start.epoch})",
                stacklevel=2,
            )
        if not (epoch == self._board.next_epoch() and self._is_read()):  # a trainer may name an epoch that has begun
            self._board.name_epoch(epoch)

    def _is_read(self) -> bool:
        """Whether the next epoch has begun already, here or in workers."""
        latest, epoch = self._board.latest, self._board.next_epoch()
        in_workers = latest is not None and not self._board.is_finished(latest)
        return in_workers or any(i.running and i.epoch == epoch for i in self._here())

    def __iter__(self) -> Iterator[Item_co]:
        """What this consumer gets of an epoch, one by one."""
        # Not with the first item: torchdata's loader asks a worker for its state before that.
        self._join_pass()
        return closed_at_exit(self._iterate())

    def _iterate(self) -> Generator[Item_co]:
        with self._iteration() as iteration, closing(self._made(partial(self._numbers, iteration))) as items:
            for item in items:
                self._deliver(iteration)  # not before: what could not be made was not handed out
                yield item

    def _numbers(self, iteration: Iteration) -> Iterator[int]:
        """Numbers of the samples that are left of an iteration."""
        return map(self._numbering(iteration.epoch), iteration.positions())

    def _numbering(self, epoch: int) -> Callable[[int], int]:
        """A function: position in an epoch (padding goes beyond its length) -> number of a sample; any at once."""
        raise NotImplementedError

    def _made(self, numbers: Callable[[], Iterator[int]]) -> Generator[Item_co]:
        """What the stream hands out for some numbers, in order.

        Args:
            numbers: gives a new iterator over them with each call.
        """
        raise NotImplementedError

    @contextmanager
    def _iteration(self) -> Iterator[Iteration]:
        """One iteration over an epoch, or over the rest of it after a state was loaded."""
        share = self.share
        self._check_loader(share)
        self._join_pass()
        iteration = self._iteration_from(self._place_to_begin(share), share)
        self._joined = False
        resumed = self._take_start()
        # What a state may be about: of earlier iterations those that are running, and the furthest that was left.
        before = [i for i in self._here() if i.epoch == iteration.epoch]
        left = sorted((i for i in before if not i.running and not i.finished), key=lambda i: i.progress)
        self._iterations = [*(i for i in before if i.running), *left[-1:], iteration]
        try:
            yield iteration
            # In a worker not with its last sample: the loader is ahead of the loop, which may be left before.
            self._leave_pass()
        finally:  # at the end, and where the consumer leaves early
            iteration.running = False
            if iteration.finished:
                self._end(iteration)
            elif resumed:
                self._give_back_start(resumed)

    def _iteration_from(self, start: Start, share: Share) -> Iteration:
        in_worker = get_worker_info() is not None
        return Iteration(start, share, self._even_length(share), os.getpid(), in_worker, self._board.named)

    def _join_pass(self, epoch: int | None = None) -> None:
        """In a worker: take part in the next pass of its loader, unless it has joined that already."""
        worker = get_worker_info()
        if worker is None or self._joined:
            return
        loader, number = worker.seed - worker.id, 1 if self._pass is None else self._pass.number + 1
        if self._version_seen is None and self._version != self._board.version:
            # Made before a state was loaded: its loader may be gone, and what it reads says nothing about that state.
            self._pass = Pass(0, loader, number, self._board.next_epoch(), worker.num_workers, self._board.named)
        else:
            self._pass = self._board.join(worker.id, worker.num_workers, loader, number, epoch)
        self._joined = True

    def _leave_pass(self) -> None:
        """In a worker: it came to its end."""
        worker = get_worker_info()
        if worker is not None and self._pass is not None:
            self._board.leave(worker.id, self._pass)

    def _end(self, iteration: Iteration) -> None:
        """Of an iteration in this process that gave all of its samples: the next epoch is next."""
        if not iteration.in_worker:  # a worker that exits may no longer know that it is one
            self._board.end_pass(iteration.epoch, iteration.named)

    def _place_to_begin(self, share: Share) -> Start:
        """Where an iteration that begins now begins.

        Raises:
            ValueError: a loaded state is for other numbers than those here. It stays loaded.
        """
        for iteration in self._here():  # some may be held by what has read all of their samples
            if iteration.running and iteration.finished:
                self._end(iteration)
        epoch = self._next_epoch()
        start = self._waiting_start()
        if start is None or start.epoch != epoch:
            return Start(epoch)
        # Checked here and not only where the state was loaded: batches and ranks may be set later, by another process.
        self._refuse_other(global_batch=start.global_batch or None)
        if start.world_size:
            self._refuse_other(world_size=start.world_size)
        batches = self._most_batches(share)
        if batches is not None and start.batches > batches:
            raise ValueError(
                f"cannot resume: {start.batches} global batches were done in the saved state, an epoch has {batches}"
            )
        return start

    def _most_batches(self, share: Share) -> int | None:
        """Global batches of an epoch if none is dropped; None for no end."""
        return None if self.length is None else -(-self.length // share.global_batch)

    def _waiting_start(self) -> Start | None:
        """The start that was set and not yet taken, as this process or DataLoader worker sees it."""
        board, worker = self._board, get_worker_info()
        if self._own_start is not None:
            return self._own_start
        takers = [Board.NOBODY] if worker is None else [Board.NOBODY, worker.seed - worker.id]
        if board.taken_by not in takers or board.version != self._version_to_take():
            return None
        return Start(board.start_epoch, board.batches, board.within, board.global_batch, board.world_size)

    def _version_to_take(self) -> int | None:
        """Version of the start that an iteration that begins now may take: None for none.

        All workers of a loader take a start once. One that has not begun yet takes what was loaded before it was made:
        it may be slow, and its loader may be gone by now.
        """
        version = self._version if get_worker_info() is None or self._version_seen is None else self._board.version
        return None if version in (0, self._version_seen) else version

    def _take_start(self) -> int:
        """Let no other loader take the start; the version of what this process took from the board, 0 for nothing."""
        board, worker = self._board, get_worker_info()
        free = board.taken_by == Board.NOBODY and board.version == self._version_to_take()
        if free:
            board.taken_by = Board.THIS_PROCESS if worker is None else worker.seed - worker.id
        self._own_start = None
        if worker is not None:  # not in the process that workers are forked from
            self._version_seen = self._version if self._version_seen is None else board.version
            return 0
        return board.version if free else 0

    def _give_back_start(self, version: int) -> None:
        """A look at a few samples does not use up a loaded state."""
        if self._board.version == version and self._board.taken_by == Board.THIS_PROCESS:
            self._board.taken_by = Board.NOBODY

    def _deliver(self, iteration: Iteration, samples: int = 1) -> None:
        """Count samples that are about to be handed out."""
        iteration.delivered += samples

    def _begin_at(self, start: Start) -> None:
        board = self._board
        self._iterations = []
        if get_worker_info() is not None:
            self._own_start, self._joined = start, False
            self._join_pass(start.epoch)
            if self._iteration_from(start, self.share).finished:
                self._leave_pass()
            return
        board.name_epoch(start.epoch)
        board.start_epoch, board.batches, board.within = start.epoch, start.batches, start.within
        board.global_batch, board.world_size = start.global_batch, start.world_size
        board.taken_by = Board.NOBODY
        self._version = board.version = board.version + 1

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch, the last of which may not be full; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError("this stream has no end; give it a length")
        share = self.share
        return -(-self._even_length(share) // share.global_batch)

    def resume(self, batches: int, within: int = 0, *, epoch: int | None = None) -> None:
        """Start the next iteration after some global batches of an epoch, and `within` samples of each rank.

        Args:
            batches: global batches of the epoch that were done.
            within: samples of the next one that each rank was given.
            epoch: None is the one that the next iteration would be over.
        """
        epoch = self._board.next_epoch() if epoch is None else integer("epoch", epoch, 0, MAX_INDEX)
        start = Start(epoch, integer("batches", batches, 0), integer("within", within, 0))
        ranks = self.share.world_size if within or self.global_batch is None else 0
        self._begin_at(start._replace(global_batch=self.global_batch or 0, world_size=ranks))

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Where the stream is in its epoch: samples handed out (not those prepared ahead), and what they belong to.

        A state that is taken between global batches continues with any number of ranks and workers; one taken inside
        a global batch, or without `global_batch`, with as many ranks. The state of a DataLoader worker (torchdata's
        StatefulDataLoader collects them) needs as many ranks and workers. Each iterator counts for itself: of several
        over one epoch, the state is that of the one that is running, and of these the one that is furthest.

        Args:
            step: global batches that the training has done in this epoch, which is the one that was read last; 0 after
                its end means the next one. Needed where DataLoader workers read the stream, which the process that
                trains cannot count; None counts what this process handed out.

        Raises:
            ValueError: no step although workers read the stream, or a step without `global_batch` or beyond the epoch.
        """
        at = self._position()
        if step is not None:
            if self.global_batch is None:
                raise ValueError("a step counts global batches: give the stream a global_batch")
            step = integer("step", step, 0)
            batches = self._most_batches(self.share)
            if batches is not None and step > batches:  # such a state could not be loaded
                raise ValueError(
                    f"step must count the global batches of this epoch, which has {batches}, not {step}: begin at 0 in "
                    "each epoch"
                )
            return self._state(Start(self._epoch_read_last() if step else at.epoch, step))
        if get_worker_info() is None and self._board.latest is not None:
            raise ValueError(
                "DataLoader workers read this stream, and this process cannot count what they delivered: pass "
                "state_dict(step=…), the number of global batches done in this epoch (which needs a global_batch)"
            )
        return self._state(at)

    def _here(self) -> list[Iteration]:
        """Iterations in this process, which may be a copy of another one."""
        process = os.getpid()
        return [iteration for iteration in self._iterations if iteration.process == process]

    def _next_epoch(self) -> int:
        """Of the iteration that begins next; in a worker, of the pass that it takes part in."""
        in_pass = self._pass is not None and get_worker_info() is not None
        return self._pass.epoch if in_pass and self._pass is not None else self._board.next_epoch()

    def _epoch_read_last(self) -> int:
        """That of which a training has just done some steps."""
        board = self._board
        running = [i for i in self._here() if i.running]
        if running:
            return max(running, key=lambda i: i.progress).epoch
        if board.latest is not None:
            return board.latest.epoch
        return board.ended_epoch if board.ended_named == board.named else board.epoch

    def _position(self) -> Start:
        """What was delivered up to now."""
        epoch = self._next_epoch()
        counting = [] if self._joined else [i for i in self._here() if i.running or i.epoch == epoch]
        if counting and self._own_start is None:
            return max(counting, key=lambda i: i.progress).place
        start = self._waiting_start()
        # Between two epochs set_epoch has already named the next one.
        return start if start is not None and start.epoch == epoch else Start(epoch)

    def _state(self, at: Start) -> dict[str, Any]:
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

        All workers of a DataLoader take a state together, once; an iteration in this process uses it up when it comes
        to the end. Numbers of samples and ranks that are not known yet are compared when iteration starts.

        Raises:
            ValueError: the state belongs to another stream, or is not one; the message names the field.
        """
        if not isinstance(state, dict):
            raise ValueError(f"cannot resume: expected the dict of state_dict(), got {type(state).__name__}")
        expected = self._identity()
        if self.global_batch is not None or state.get("global_batch") is None:
            expected["global_batch"] = self.global_batch
        if "consumed" in state:
            if get_worker_info() is None:
                raise ValueError(
                    "cannot resume: this is the state of a DataLoader worker; load it through the StatefulDataLoader"
                )
            share = self.share
            expected["consumers"] = share.workers * share.world_size
            expected["consumer"] = share.worker * share.world_size + share.rank
        elif "world_size" in state and (self.world_size is not None or current_rank() is not None):
            expected["world_size"] = self.share.world_size
        for name, here in expected.items():
            if not _equal(state.get(name), here):
                raise _other(name, here, state.get(name))
        shared_out = state.get("within") or state.get("global_batch") is None
        if shared_out and not {"consumed", "world_size"} & state.keys():
            raise ValueError("cannot resume: the saved state does not say for which world_size it is")
        numbers = {"epoch": None, "batches": None, "within": 0, "world_size": 0, "consumed": 0}
        start = Start(
            **{
                name: integer(f"{name} in the saved state", state.get(name, default), 0, MAX_INDEX)
                for name, default in numbers.items()
            }
        )
        if (size := state.get("global_batch")) is not None:
            start = start._replace(global_batch=integer("global_batch in the saved state", size, 1, MAX_INDEX))
        self._begin_at(start)

    def _refuse_other(self, **numbers: int | None) -> None:
        here = {"global_batch": self.global_batch, "world_size": self.share.world_size}
        for name, number in numbers.items():
            if here[name] != number:
                raise _other(name, here[name], number)

    def _identity(self) -> dict[str, Any]:
        """What a saved state belongs to; it is refused where any of this differs."""
        raise NotImplementedError


def _equal(saved: object, here: object) -> bool:
    """Whether a saved value is that one: of a plain kind (a tensor may be in an edited state), and no True for 1."""
    plain = isinstance(saved, str | int | float | list | tuple | dict | None)
    return plain and isinstance(saved, bool) == isinstance(here, bool) and saved == here


def _other(name: str, here: object, saved: object) -> ValueError:
    return ValueError(f"cannot resume: {name} is {here!r} here, but {saved!r:.80} in the saved state")
