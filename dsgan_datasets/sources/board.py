"""Numbers that a process shares with its children: where a stream stands, for DataLoader workers that live on."""

from __future__ import annotations

import ctypes
from multiprocessing import context, sharedctypes
from typing import Any

_NAMES = (
    "epoch",
    "read_epoch",
    "version",
    "taken_by",
    "start_epoch",
    "batches",
    "within",
    "global_batch",
    "world_size",
)


class _Numbers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _NAMES]


class Board:
    """What a stream and its living workers both see: the epoch, and the place to start at.

    Children of this process, forked or spawned, see what it writes later. A copy, or a plain pickle such as Ray sends,
    has numbers of its own, which it shares with its own children. Many boards take one file descriptor together.

    Attributes:
        epoch: that the next iteration is over.
        read_epoch: that workers have read of since the start was set; -1: of none.
        version: grows with each start that is set; 0: none was.
        taken_by: which loader took the start; `NOBODY`, `THIS_PROCESS`, or the seed of its workers.
        start_epoch, batches, within, global_batch, world_size: the start, see `Start`.
    """

    NOBODY = -1
    THIS_PROCESS = -2

    epoch: int
    read_epoch: int
    version: int
    taken_by: int
    start_epoch: int
    batches: int
    within: int
    global_batch: int
    world_size: int

    def __init__(self, values: tuple[int, ...] = (0, -1, 0, NOBODY), shared: Any = None) -> None:
        shared = sharedctypes.RawValue(_Numbers, *values) if shared is None else shared
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
            return Board, ((), self._shared)
        return Board, (tuple(getattr(self._shared, name) for name in _NAMES),)
