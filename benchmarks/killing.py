"""Work in a child process that gets SIGKILL at a moment of a chosen kind: what kill.py and kill_exports.py share.

A *moment* wraps a call that the work makes and tells a function, its `Strike`, whenever the call comes.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

Strike = Callable[[], None]
Moments = Mapping[str, Callable[[Strike], None]]
RANDOM = "any time"


def before_flush(strike: Strike) -> None:
    """The moment before a file is flushed to the disk."""
    fsync = os.fsync

    def wrapped(descriptor: int) -> None:
        strike()
        fsync(descriptor)

    os.fsync = wrapped  # type: ignore[assignment]


def around_rename(strike: Strike, *, before: bool, of: Callable[[str], bool] = lambda name: True) -> None:
    """The moment before or after a file gets its final name, if that name is one of those chosen."""
    replace = os.replace

    def wrapped(source: Any, target: Any) -> None:
        chosen = of(str(target))
        if before and chosen:
            strike()
        replace(source, target)
        if not before and chosen:
            strike()

    os.replace = wrapped  # type: ignore[assignment]


def half_way_through_a_file(strike: Strike, *, of: Callable[[str], bool] = lambda name: True) -> None:
    """The moment when half of what is written to a chosen file at once has reached the disk."""
    opened = Path.open

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __iter__(self) -> Iterator[Any]:
            return iter(self.file)

        def write(self, content: Any) -> int:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            strike()
            self.file.write(content[len(content) // 2 :])
            return len(content)

    def wrapped(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = opened(self, mode, *args, **kwargs)
        return Half(file) if ("w" in mode or "x" in mode) and of(self.name) else file

    Path.open = wrapped  # type: ignore[method-assign]


class Kills:
    """Kills of one kind of work, spread evenly over the moments that come while it is done.

    Args:
        name: of the work.
        work: runs in a child process.
        moments: at which it may be killed; those that do not come are left out.
        begin: makes the place what it is before the work.
        scratch: folder for notes.
        draw: draws the moments.

    Attributes:
        done: kills at each kind of moment.

    Raises:
        SystemExit: the undisturbed work fails.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        moments: Moments,
        begin: Callable[[], object],
        scratch: Path,
        draw: random.Random,
    ) -> None:
        self.name, self.work, self.draw = name, work, draw
        self.done: Counter[str] = Counter()
        begin()
        status, self.seconds = self.undisturbed()
        if status != 0:
            raise SystemExit(f"{name}: the undisturbed work failed")
        self.moments: dict[str, tuple[Callable[[Strike], None], int]] = {}
        tally = scratch / "tally"
        for kind, moment in moments.items():
            begin()
            self._forked(partial(moment, _counter(tally)))
            if tally.exists():
                self.moments[kind] = moment, tally.stat().st_size
                tally.unlink()

    def undisturbed(self) -> tuple[int, float]:
        """Do the work in a child that is left alone; (its wait status, seconds)."""
        return self._forked(lambda: None)

    def kill(self) -> tuple[str, int]:
        """Kill the work once, or find that it was faster; (kind of the moment, wait status)."""
        kind = min([*self.moments, RANDOM], key=lambda k: (self.done[k], self.draw.random()))
        if kind == RANDOM:
            status, _ = self._forked(lambda: None, self.draw.uniform(0, self.seconds))
        else:
            moment, times = self.moments[kind]
            at = self.draw.randrange(times)
            status, _ = self._forked(partial(moment, _killer(at)))
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.done[kind] += 1
        return kind, status

    def _forked(self, prepare: Callable[[], None], kill_after: float | None = None) -> tuple[int, float]:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its progress bars
                torch.set_num_threads(1)
                prepare()
                self.work()
                code = 0
            finally:
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # nothing if it has ended: it is still to be waited for
        _, status = os.waitpid(child, 0)
        return status, time.monotonic() - started


def failed(status: int) -> bool:
    """Whether a worker ended by itself, and not well."""
    return status != 0 and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)


def _counter(tally: Path) -> Strike:
    """Notes each call as a byte of a file. By descriptor: the moments may be wrapping `open`."""

    def strike() -> None:
        descriptor = os.open(tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b".")
        os.close(descriptor)

    return strike


def _killer(at: int) -> Strike:
    """Kills its process at call number `at`, from 0."""
    left = at

    def strike() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    return strike
