"""Numbers that a process shares with its children: where a stream stands, for DataLoader workers that live on."""

from __future__ import annotations

import ctypes
from multiprocessing import context, sharedctypes
from typing import Any, NamedTuple

#: Workers of a loader whose passes are followed; with more, a pass never counts as finished.
_MAX_WORKERS = 256


class Pass(NamedTuple):
    """One pass of all workers of a loader over the stream.

    Attributes:
        id: grows with each pass.
        loader: seed of the loader's workers.
        number: passes that this loader began, this one included.
        epoch: what the pass is over.
        workers: how many share it.
        named: `Board.named` when it began.
    """

    id: int
    loader: int
    number: int
    epoch: int
    workers: int
    named: int


class _Pass(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in Pass._fields]


_NAMES = (
    "epoch",
    "named",
    "current",
    "ended_epoch",
    "ended_named",
    "version",
    "taken_by",
    "start_epoch",
    "batches",
    "within",
    "global_batch",
    "world_size",
)


class _Numbers(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _NAMES),
        ("passes", _Pass * 2),
        ("done", ctypes.c_int64 * _MAX_WORKERS),
    ]


class Board:
    """What a stream and its living workers both see: the epoch, and the place to start at.

    Children of this process, forked or spawned, see what it writes later. A copy, or a plain pickle such as Ray sends,
    has numbers of its own, which it shares with its own children. Many boards take one file descriptor together.

    Workers agree on the epoch of a pass without a lock. The first of them writes the pass into the one of two places
    that is not in use, and then makes it the current one; two that are first at once write the same. Nobody begins the
    pass after it before all have begun this one, as a DataLoader waits for all of its workers.

    Attributes:
        epoch: that was named last, by `set_epoch`, a loaded state, or a pass that came to its end in this process.
        named: grows whenever an epoch is named.
        current: id of the latest pass of DataLoader workers; 0: there was none.
        ended_epoch, ended_named: epoch of the pass in this process that named `epoch` by ending, and `named` then.
        version: grows with each start that is set; 0: none was.
        taken_by: which loader took the start; `NOBODY`, `THIS_PROCESS`, or the seed of its workers.
        start_epoch, batches, within, global_batch, world_size: the start, see `Start`.
    """

    NOBODY = -1
    THIS_PROCESS = -2

    epoch: int
    named: int
    current: int
    ended_epoch: int
    ended_named: int
    version: int
    taken_by: int
    start_epoch: int
    batches: int
    within: int
    global_batch: int
    world_size: int
    _shared: Any

    def __init__(self, values: bytes | None = None, shared: Any = None) -> None:
        if shared is None:
            shared = sharedctypes.RawValue(_Numbers)
            if values is None:
                shared.ended_named = shared.taken_by = Board.NOBODY
            else:
                ctypes.memmove(ctypes.addressof(shared), values, ctypes.sizeof(_Numbers))
        object.__setattr__(self, "_shared", shared)

    def __getattr__(self, name: str) -> int:
        if name.startswith("_"):
            raise AttributeError(name)
        number: int = getattr(self._shared, name)
        return number

    def __setattr__(self, name: str, value: int) -> None:
        setattr(self._shared, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        if context.get_spawning_popen() is not None:  # to a child of this process
            return Board, (None, self._shared)
        return Board, (bytes(self._shared),)

    def name_epoch(self, epoch: int) -> None:
        """Let the next pass be over an epoch."""
        self.epoch = epoch
        self.named += 1

    def end_pass(self, epoch: int, named: int) -> None:
        """A pass in this process came to its end: the next epoch is next, unless another was named meanwhile."""
        if named == self.named and epoch == self.next_epoch():
            self.name_epoch(epoch + 1)
            self.ended_epoch, self.ended_named = epoch, self.named

    @property
    def latest(self) -> Pass | None:
        """The latest pass of workers, if no epoch was named since it began."""
        latest = self._pass(self.current)
        return latest if latest is not None and latest.named == self.named else None

    def next_epoch(self) -> int:
        """Of the pass that begins next: that of the latest if it was left early, else the one after it."""
        latest = self.latest
        return self.epoch if latest is None else latest.epoch + self.is_finished(latest)

    def is_finished(self, latest: Pass) -> bool:
        """Whether all workers of a pass gave all of their samples."""
        done = self._shared.done
        return latest.workers <= _MAX_WORKERS and all(done[w] == latest.id for w in range(latest.workers))

    def join(self, worker: int, workers: int, loader: int, number: int, epoch: int | None = None) -> Pass:
        """A worker begins a pass.

        Args:
            worker, workers: number of the worker, and how many its loader has.
            loader, number: see `Pass`.
            epoch: that a state which the worker was given is about; None is the next one.
        """
        # Read first: if another worker begins the pass from here on, this one must not begin one more.
        before = self.current
        latest = self._joined(worker, loader, number)
        if latest is None:
            values = (before + 1, loader, number, self.next_epoch() if epoch is None else epoch, workers, self.named)
            # Who reads another number here was overtaken, maybe while it looked at what is done.
            if self.current == before:
                self._shared.passes[(before + 1) % 2] = values
                self.current = before + 1
            latest = self._pass(self.current)
            assert latest is not None
        if worker < _MAX_WORKERS:
            self._shared.done[worker] = 0
        return latest

    def leave(self, worker: int, finished: Pass) -> None:
        """A worker gave all of its samples of a pass."""
        if worker < _MAX_WORKERS:
            self._shared.done[worker] = finished.id

    def _joined(self, worker: int, loader: int, number: int) -> Pass | None:
        """The pass that another worker has begun, if this one has to join it."""
        latest = self._pass(self.current)
        if latest is None or (latest.loader, latest.number) != (loader, number):
            return None
        # Another loader may have been given the same seed.
        done = worker < _MAX_WORKERS and self._shared.done[worker] == latest.id
        return None if done else latest

    def _pass(self, id: int) -> Pass | None:
        place = self._shared.passes[id % 2]
        return Pass(*(getattr(place, name) for name in Pass._fields)) if id else None
