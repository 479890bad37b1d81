"""Work side by side on the CPU without letting the number of cores into the result.

Matrix products, softmax and sums split their work by the number of threads, and their last bits depend on how it was
split. So samples are computed on threads whose own operations use one core each: several at a time, every one alike.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

_this_thread = threading.local()


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """``[function(item) for item in items]``; on the CPU, on ``torch.get_num_threads()`` threads without gradients.

    Each call there sees single-threaded PyTorch operations, so its result does not depend on the number of threads.
    A call from inside `function` shares its items with the threads that have nothing else to do: a sample by itself is
    computed by all of them. On a GPU, which orders its own work, everything runs where it is called.

    Raises:
        RuntimeError: the system starts no thread at all.
    """
    if device.type != "cpu":
        return [function(item) for item in items]

    def without_gradients(item: Item) -> Result:
        with torch.no_grad():  # holds for one thread only
            return function(item)

    if (team := getattr(_this_thread, "team", None)) is not None:
        shared: list[Result] = team.share(without_gradients, list(items))
        return shared
    with _forks.held_off():
        if torch.get_num_threads() == 1:
            return [function(item) for item in items]
        return _team(os.getpid(), torch.get_num_threads()).map(without_gradients, items)


class _Forks:
    """Has a fork wait until no thread computes.

    A child that is forked in the middle of a call of MKL has its bookkeeping of memory half changed, and its own first
    matrix product may never end. Frameworks fork the workers of one loader while a stream reads ahead for another.
    """

    #: Seconds that a fork waits at most: longer than a batch takes, unless images are very large.
    PATIENCE = 60.0

    def __init__(self) -> None:
        self._changed, self._computing, self._waiting = threading.Condition(), 0, 0

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """For a computation. A thread that is inside already may enter again, also while a fork waits."""
        outermost = not getattr(_this_thread, "computing", False)
        if outermost:
            with self._changed:
                self._changed.wait_for(lambda: not self._waiting)
                self._computing += 1
            _this_thread.computing = True
        try:
            yield
        finally:
            if outermost:
                _this_thread.computing = False
                with self._changed:
                    self._computing -= 1
                    self._changed.notify_all()

    def before(self) -> None:
        """A thread is about to fork."""
        own = int(getattr(_this_thread, "computing", False))
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._computing <= own, self.PATIENCE)

    def after_in_parent(self) -> None:
        """It has forked."""
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()

    def after_in_child(self) -> None:
        """No thread but the one that forked is here; another one may have held the lock."""
        own = int(getattr(_this_thread, "computing", False))
        self._changed, self._computing, self._waiting = threading.Condition(), own, 0


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
    )


class _Team:
    """Threads that are each limited to one core."""

    def __init__(self, threads: int) -> None:
        self.threads, self._busy, self._lock = threads, 0, threading.Lock()

        def become_single_threaded() -> None:
            torch.get_num_threads()  # has PyTorch initialize this thread now; later it would undo the next line
            torch.set_num_threads(1)
            _this_thread.team = self

        try:
            self.pool = start_threads(threads, "dsgan-compute", become_single_threaded)
        finally:
            # The setting belongs to a thread, but is also what threads that start later begin with: put that back.
            torch.set_num_threads(threads)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Called from outside of the team: all items on its threads."""

        def counted(item: Item) -> Result:
            self._count(1)
            try:
                return function(item)
            finally:
                self._count(-1)

        return list(self.pool.map(counted, items))

    def _count(self, change: int) -> None:
        with self._lock:
            self._busy += change

    def share(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Called by one of the team: it works through the items, and threads without work help it."""
        results: dict[int, Result] = {}
        numbers = iter(range(len(items)))  # each number is taken once, whichever threads ask

        def work() -> None:
            for i in numbers:
                results[i] = function(items[i])

        # A guess is enough: a helper that does not come to work is called off.
        helpers = [self.pool.submit(work) for _ in range(min(self.threads - self._busy, len(items) - 1))]
        try:
            work()
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        return [results[i] for i in range(len(items))]


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, length: int | None = None
) -> Generator[Result, None, None]:
    """``map(function, items)`` on threads that work ahead of the consumer; results come in the order of the items.

    For work that leaves Python to other threads, such as the encoding of pictures beside a generator. An error of
    `function` or of `items` is raised at its place; what is still waiting then, or when the consumer stops, is dropped.

    Args:
        function: is called on the threads.
        items: taken in the thread of the consumer, up to `length` ahead of it.
        workers: threads, at least 1.
        length: items that are taken ahead; None is two for each thread.

    Raises:
        RuntimeError: the system starts no thread at all.

    Example:
        >>> list(ahead(abs, [-1, 2, -3], workers=2))
        [1, 2, 3]
    """
    length = 2 * workers if length is None else length
    pending: deque[Future[Result]] = deque()
    with start_threads(workers, "dsgan-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > length:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def start_threads(threads: int, name: str, initializer: Callable[[], None] | None = None) -> ThreadPoolExecutor:
    """A pool whose threads have all started, each after its `initializer`; nothing waits for one that could not.

    Args:
        threads: how many there should be. Where the system refuses them (it may limit those of a container or a user),
            there are fewer, with a warning.
        name: prefix of their names.
        initializer: called first in each.

    Raises:
        RuntimeError: not a single thread can be started.
    """
    number = threads
    while number:
        if (pool := _started(number, name, initializer)) is not None:
            if number < threads:
                warnings.warn(
                    f"the system starts only {number} of {threads} threads; work takes longer. It may limit the "
                    "threads of this container or user (pids.max, ulimit -u)",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return pool
        number //= 2
    raise RuntimeError(
        f"the system refuses to start a thread ({name}): raise the limit of threads of this container or user "
        "(pids.max, ulimit -u), or run fewer processes in it"
    )


def _started(threads: int, name: str, initializer: Callable[[], None] | None) -> ThreadPoolExecutor | None:
    """A pool of that many running threads; None if the system refuses one, after those that did start have ended."""
    all_here = threading.Barrier(threads)
    pool = ThreadPoolExecutor(threads, name, initializer=initializer)
    try:
        # Each call keeps its thread until all have one, so that the next one needs another.
        done, _ = wait([pool.submit(all_here.wait) for _ in range(threads)], return_when=FIRST_EXCEPTION)
        for call in done:
            call.result()
        return pool
    except BaseException as error:
        all_here.abort()  # nobody waits for a thread that will not come
        pool.shutdown()
        if isinstance(error, RuntimeError) and not isinstance(error, BrokenExecutor):  # "can't start new thread"
            return None
        raise


class Workspace:
    """Working memory of a thread, used again by the next call: fresh memory costs a page fault every 4 KB."""

    @staticmethod
    def take(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialized tensor. On the CPU it shares the memory of the one that this thread took before by the name,
        which must not be in use any more.

        Example:
            >>> a = Workspace.take("doctest", (2, 3), torch.float32, torch.device("cpu"))
            >>> b = Workspace.take("doctest", (3,), torch.float32, torch.device("cpu"))
            >>> a.data_ptr() == b.data_ptr()
            True
        """
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        held: dict[tuple[str, torch.dtype], Tensor] = _this_thread.__dict__.setdefault("workspace", {})
        count, found = math.prod(shape), held.get((name, dtype))
        if found is None or len(found) < count:
            held.pop((name, dtype), None)
            with torch.inference_mode(False):  # such tensors could not be written to outside of that mode
                found = held[name, dtype] = torch.empty(count, dtype=dtype)
        return found[:count].view(*shape)


@lru_cache(maxsize=4)
def _team(process: int, threads: int) -> _Team:
    """The team of this process (a forked child starts its own)."""
    return _Team(threads)
