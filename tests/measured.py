"""What a call needs, measured in a child process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path


def growth_of(call: Callable[[], object]) -> int:
    """Bytes by which the resident memory grows at most while a call runs; errors that a reader may raise are none."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_measure, args=(call, queue))
    child.start()
    try:
        found: int | str = queue.get(timeout=120)
    finally:
        child.kill()
        child.join()
    assert isinstance(found, int), found
    return found


def _measure(call: Callable[[], object], queue: Queue[int | str]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    try:
        call()
    except (ValueError, OSError):
        pass
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")
        return
    queue.put(_status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
