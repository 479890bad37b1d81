"""Work side by side on the CPU without letting the number of cores into the result.

Matrix products, softmax and sums split their work by the number of threads, and their last bits depend on how it was
split. So samples are computed on threads whose own operations use one core each: several at a time, every one alike.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_this_thread = threading.local()


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """``[function(item) for item in items]``; on the CPU, on ``torch.get_num_threads()`` threads without gradients.

    Each call there sees single-threaded PyTorch operations, so its result does not depend on the number of threads.
    Calls from inside `function` run where they are, and so does everything on a GPU, which orders its own work.

    Raises:
        RuntimeError: the system starts no thread at all.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or getattr(_this_thread, "is_single_threaded", False):
        return [function(item) for item in items]

    def without_gradients(item: Item) -> Result:
        with torch.no_grad():  # holds for one thread only
            return function(item)

    return list(_pool(os.getpid(), threads).map(without_gradients, items))


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


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process (a forked child starts its own), each limited to one core."""

    def become_single_threaded() -> None:
        torch.get_num_threads()  # has PyTorch initialize this thread now; later it would undo the next line
        torch.set_num_threads(1)
        _this_thread.is_single_threaded = True

    try:
        return start_threads(threads, "dsgan-compute", become_single_threaded)
    finally:
        # The setting belongs to a thread, but is also what threads that start later begin with: put that back.
        torch.set_num_threads(threads)
