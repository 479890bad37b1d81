"""What surrounds a command: signals that end it in order, and standard streams that cannot fail it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

#: What schedulers, `kill` and a closed terminal send.
_SIGNALS = ("SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end: as Ctrl-C does, whatever is open cleans up after itself.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise `Stopped` in the main thread, once.

    A signal that the process ignores, as under `nohup`, or that a program handles itself, stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked child: it has nothing to clean up that is not its parent's
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in replaced:  # a terminal that closes sends two: the second must not cut short the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    replaced = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


class Output:
    """A standard stream that takes whatever is written, also if it is closed or its reader is gone.

    Attributes:
        error: why nothing more is written; None while all is well, or if only the reader is gone.

    Args:
        stream: what it writes to; None for nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or give up for good."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, or give up for good."""
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                self.error = error
            with suppress(OSError, ValueError):  # what is still buffered would fail once more at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def standard_streams() -> Iterator[Output]:
    """While the block runs, nothing that is printed fails, and warnings are lines like errors.

    Yields:
        standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get its number, and all that is printed
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            cast(Any, stream).reconfigure(errors="replace")  # a terminal without × still gets the rest of the line
    out, err = Output(sys.stdout), Output(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)), warnings.catch_warnings():
        printed = set()

        def once(message: Warning | str) -> None:
            """Two places in the code may give the same warning; the user reads it once."""
            if (line := f"dsgan: warning: {message}") not in printed:
                printed.add(line)
                print(line, file=sys.stderr)

        warnings.showwarning = lambda message, *where: once(message)
        # Python hides these from users of a program; here the old names are theirs.
        warnings.filterwarnings("default", ".* is deprecated and will be removed in version", DeprecationWarning)
        try:
            yield out
        finally:
            out.flush()
            err.flush()
