"""Requests to workers on a Ray cluster, through a process that has Ray.

Ray ends every process that is connected to a cluster once that is away for a minute; it allows a process one cluster,
breaks in forked processes, and takes their signals. None of that may happen to a training.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Collection, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

from dsgan_datasets.checks import one_line
from dsgan_datasets.credentials import secrets_of, without_credentials
from dsgan_datasets.remote.errors import RemoteError, WorkerLost
from dsgan_datasets.remote.messages import Request
from dsgan_datasets.remote.ray_cluster import warn_if_unasked
from dsgan_datasets.remote.transport import Call
from dsgan_datasets.remote.waiting import Waiting

#: Seconds in which a connection to a cluster must be there: Ray's client starts a process for it on the cluster.
_CONNECT = 90.0
#: Seconds between two tries to connect again, and of silence after which a cluster counts as away.
_AGAIN, _SILENCE = 10.0, 20.0


class _Link:
    """One process with Ray, and what came from it. Its thread holds this and not the `Relay`."""

    def __init__(self, address: str | None) -> None:
        self._owner = os.getpid()
        self._known = secrets_of(address or "")
        self.news = threading.Condition()
        self.answers: dict[int, tuple[str, Any]] = {}
        self.wanted: set[int] = set()
        self.workers: Mapping[str, Any] = {}
        self.away: str | None = None
        self.seen = time.monotonic()
        self.place = ""
        self.ended: str | None = None
        self._sending = threading.Lock()
        self._log: IO[bytes] = tempfile.TemporaryFile(prefix="dsgan-ray-")  # noqa: SIM115
        self._connection, theirs = Pipe()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "dsgan_datasets.remote.ray_relay", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # Ctrl-C is the training's
        )
        theirs.close()
        self._connection.send(address)  # not an argument of a command, which others see
        threading.Thread(target=_receive, args=(self, self._connection), daemon=True, name="dsgan-remote").start()

    def send(self, *message: Any) -> None:
        """Send a message; `WorkerLost` if nobody is there to take it."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            raise WorkerLost("the connection to the cluster was lost") from None

    def take(self, message: tuple[Any, ...]) -> None:
        """Note what came."""
        with self.news:
            self.seen = time.monotonic()
            match message:
                case ("hello", place):
                    self.place = place
                case ("failed", why):
                    self.ended = why
                case ("workers", facts):
                    self.workers, self.away = facts, None
                case ("away", why):
                    self.away = why
                case (number, kind, value) if number in self.wanted:
                    self.wanted.discard(number)
                    self.answers[number] = kind, value
            self.news.notify_all()

    def end(self) -> None:
        """The process has ended, or is to end."""
        if os.getpid() != self._owner:
            return  # a forked copy: it is not its process
        self._child.kill()
        self._child.wait()
        with self.news:
            if not self._log.closed:
                self._log.seek(0)
                lines = self._log.read()[-4000:].decode(errors="replace").splitlines() or ["it left no word"]
                self._log.close()
                self.ended = self.ended or one_line(without_credentials(lines[-1], self._known), 300)
            self.news.notify_all()


def _receive(link: _Link, connection: Connection[Any, Any]) -> None:
    try:
        while True:
            link.take(connection.recv())
    except (EOFError, OSError):
        link.end()
        connection.close()


class Relay:
    """Workers that `dsgan serve` runs on a Ray cluster; a `Transport`. Once a connection is lost, it is made again.

    Args:
        address: see `RemoteSource`.

    Raises:
        RemoteError: there is no cluster at the address, or Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        named = None if address == "auto" else address
        self._address = named or _cluster_of_this_process() or address
        self._numbers = itertools.count()
        self._tried = 0.0
        self._link = self._connected()
        self.place = self._link.place
        warn_if_unasked(self._address, self.place)

    def _connected(self) -> _Link:
        self._tried = time.monotonic()
        link, waiting = _Link(self._address), Waiting()
        weakref.finalize(self, link.end)
        try:
            with link.news:
                while not link.place and link.ended is None and time.monotonic() - self._tried < _CONNECT:
                    link.news.wait(0.5)
                    waiting.show("connecting to the Ray cluster")
        finally:
            waiting.over()
        if link.ended is None and not link.place:
            link.end()
            raise RemoteError(f"no connection to the Ray cluster within {_CONNECT:.0f} s: is it overloaded?")
        if link.ended is not None:
            raise RemoteError(link.ended)
        return link

    def workers(self) -> Mapping[str, Mapping[str, Any] | None]:
        """See `Transport`."""
        link = self._link
        if link.ended is not None:
            lost = f"the connection was lost ({link.ended})"
            if time.monotonic() - self._tried < _AGAIN:
                raise RemoteError(lost)
            try:
                self._link = link = self._connected()
            except RemoteError as error:
                raise RemoteError(f"{lost}; {error}") from None
        with link.news:
            if link.away is not None:
                raise RemoteError(link.away)
            if (silence := time.monotonic() - link.seen) > _SILENCE:
                raise RemoteError(f"it has not answered for {silence:.0f} s")
            return link.workers

    def ask(self, worker: str, request: Request) -> Call:
        """See `Transport`."""
        return self._call(self._link, worker, "generate", *request)

    def wait(self, calls: Collection[Call], timeout: float) -> Collection[Call]:
        """See `Transport`."""
        link = self._link

        def ended() -> list[Call]:
            return [call for call in calls if call[0] is not link or call[1] in link.answers or link.ended is not None]

        with link.news:
            link.news.wait_for(ended, timeout)
            return ended()

    def answer(self, call: Call) -> Mapping[str, Any]:
        """See `Transport`."""
        link, number = call
        with link.news:
            kind, value = link.answers.pop(number, ("lost", f"the connection to the cluster was lost ({link.ended})"))
        if kind == "lost":
            raise WorkerLost(value)
        found: Mapping[str, Any] = value
        return found

    def drop(self, calls: Collection[Call]) -> None:
        """See `Transport`."""
        for link, number in calls:
            with link.news:
                link.wanted.discard(number)
                link.answers.pop(number, None)

    def status(self, worker: str, timeout: float) -> Mapping[str, Any] | None:
        """See `Transport`."""
        try:
            call = self._call(self._link, worker, "status")
            return self.answer(call) if self.wait([call], timeout) else None
        except WorkerLost:
            return None

    def _call(self, link: _Link, worker: str, method: str, *arguments: Any) -> tuple[_Link, int]:
        number = next(self._numbers)
        with link.news:
            link.wanted.add(number)
        link.send(number, worker, method, arguments)
        return link, number


def _cluster_of_this_process() -> str | None:
    """Address of the cluster that this process is connected to; None if it is to none."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().gcs_address if ray is not None and ray.is_initialized() else None
