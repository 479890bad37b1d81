"""Requests as calls of Ray actors, which are found by their names."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.engines.ray import import_ray, in_short, start
from dsgan_datasets.remote.errors import RemoteError, WorkerLost
from dsgan_datasets.remote.messages import Request
from dsgan_datasets.remote.transport import Call

#: Of Ray's names: all workers are in it, and nothing else.
NAMESPACE = "dsgan_datasets"
#: Calls that are answered while a worker generates.
STATUS = "status"
#: Seconds in which a cluster must take a connection.
_CONNECT = 10.0


class _Fork:
    """Whether this process was forked from one that was connected to Ray: Ray does not work in it."""

    happened = False


def _note_fork() -> None:
    ray = sys.modules.get("ray")
    _Fork.happened = _Fork.happened or (ray is not None and ray.is_initialized())


os.register_at_fork(after_in_child=_note_fork)


def connect(address: str | None) -> tuple[Any, str]:
    """(the module ray, connected to a cluster; what the cluster is called). No cluster is started.

    Args:
        address: see `RemoteSource`.

    Raises:
        ImportError: Ray is not installed.
        RemoteError: there is no cluster, it does not answer, or Ray cannot be used in this process.
    """
    ray = import_ray()
    if _Fork.happened:
        raise RemoteError(
            "this process was forked from one that is connected to Ray, which does not work in it. Samples come "
            "ready-made, so the loader needs no workers: set num_workers=0, or multiprocessing_context='spawn'"
        )
    given = address or os.environ.get("RAY_ADDRESS") or "auto"
    place = "the Ray cluster of this machine" if given == "auto" else f"the Ray cluster {without_credentials(given)}"
    if ray.is_initialized():
        _refuse_another(ray, address)
        return ray, place
    _probe(given, place)
    try:
        start(ray, given, namespace=NAMESPACE)
    except Exception as error:  # of many kinds
        hint = "start one with `ray start --head`, or by `dsgan serve` on this machine" if given == "auto" else ""
        hint = hint or (
            "is it running, with the same versions of Ray and Python as here? If it asks for a token, set "
            "RAY_AUTH_MODE=token and have the token here too"
        )
        raise RemoteError(f"{place} cannot be reached ({without_credentials(in_short(error))}): {hint}") from None
    _addresses[os.getpid()] = given
    return ray, place


#: What this process was connected to by `connect`.
_addresses: dict[int, str] = {}


def _refuse_another(ray: Any, address: str | None) -> None:
    """RemoteError if this process is connected, but to another cluster than the one that was asked for."""
    ours = _addresses.get(os.getpid())
    if address in (None, "auto", ours):
        return
    if ours is None and address == ray.get_runtime_context().gcs_address:
        return
    raise RemoteError(
        f"{without_credentials(str(address))} cannot be used: this process is connected to another Ray cluster, or to "
        "this one under another address, and Ray allows one connection a process. Leave out the address to use it"
    )


def _probe(address: str, place: str) -> None:
    """Fail early where nobody listens: Ray would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = parts.hostname, None
    if address == "auto" or host is None or parts.scheme not in ("", "ray"):
        return
    if port is None:
        raise RemoteError(f"{place}: the address needs a port, such as ray://{host}:10001")
    try:
        socket.create_connection((host, port), timeout=_CONNECT).close()
    except OSError as error:
        raise RemoteError(
            f"{place} cannot be reached ({error.strerror or error}): is it running, and is this the address that "
            "`ray start --head` printed (ray://HOST:10001 from other machines)?"
        ) from None


class RayTransport:
    """Workers that `dsgan serve` runs on a Ray cluster; a `Transport`.

    Args:
        address: see `RemoteSource`.

    Raises:
        ImportError, RemoteError: see `connect`.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray, self.place = connect(address)
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}  # calls of `facts` that have not ended
        self._facts: dict[str, Mapping[str, Any]] = {}
        errors = self._ray.exceptions
        self._lost = (errors.RayError, ConnectionError)

    def workers(self) -> Mapping[str, Mapping[str, Any] | None]:
        """See `Transport`."""
        ray = self._ray
        try:
            listed = ray.util.list_named_actors(all_namespaces=True)
            names = {entry["name"] for entry in listed if entry["namespace"] == NAMESPACE}
            for name in names - self._actors.keys():
                try:
                    self._actors[name] = actor = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:
                    continue  # it died a moment ago
                self._asked[name] = actor.facts.options(concurrency_group=STATUS).remote()
            for name in self._actors.keys() - names:
                for known in (self._actors, self._asked, self._facts):
                    known.pop(name, None)
            if self._asked:
                ended, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=0.1)
                for name, call in [(name, call) for name, call in self._asked.items() if call in ended]:
                    del self._asked[name]
                    try:
                        self._facts[name] = ray.get(call, timeout=1)
                    except self._lost:
                        del self._actors[name]  # dead, and soon not listed any more; or to be asked again
        except (*self._lost, RuntimeError) as error:
            raise RemoteError(f"it does not answer ({without_credentials(in_short(error))})") from None
        return {name: self._facts.get(name) for name in self._actors}

    def ask(self, worker: str, request: Request) -> Call:
        """See `Transport`."""
        try:
            call: Call = self._actors[worker].generate.remote(*request)
        except KeyError:
            raise WorkerLost("it is gone") from None
        except self._lost as error:
            raise WorkerLost(self._cause(error)) from None
        return call

    def wait(self, calls: Collection[Call], timeout: float) -> Collection[Call]:
        """See `Transport`."""
        try:
            ended, _ = self._ray.wait(list(calls), num_returns=1, timeout=timeout)
            more, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0) if ended else ([], [])
        except self._lost:
            return list(calls)  # `answer` says why
        return more

    def answer(self, call: Call) -> Mapping[str, Any]:
        """See `Transport`."""
        try:
            found: Mapping[str, Any] = self._ray.get(call, timeout=60)
        except self._lost as error:
            raise WorkerLost(self._cause(error)) from None
        return found

    def status(self, worker: str, timeout: float) -> Mapping[str, Any] | None:
        """See `Transport`."""
        actor = self._actors.get(worker)
        try:
            call = None if actor is None else actor.status.options(concurrency_group=STATUS).remote()
            found: Mapping[str, Any] | None = None if call is None else self._ray.get(call, timeout=timeout)
        except self._lost:
            return None
        return found

    def _cause(self, error: Exception) -> str:
        return without_credentials(in_short(error))
