"""The Ray cluster that workers run on: how it is reached, and how they are found there."""

from __future__ import annotations

import os
import socket
import warnings
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.engines.ray import import_ray, in_short, start
from dsgan_datasets.remote.errors import RemoteError

#: Of Ray's names: all workers are in it, and nothing else.
NAMESPACE = "dsgan_datasets"
#: Seconds in which a cluster must take a connection.
_CONNECT = 10.0


def connect(address: str | None) -> tuple[Any, str]:
    """(the module ray, connected to a cluster; what the cluster is called). No cluster is started.

    Args:
        address: see `RemoteSource`.

    Raises:
        ImportError: Ray is not installed.
        RemoteError: there is no cluster, or it does not answer.
    """
    ray = import_ray()
    named = None if address == "auto" else address
    given = named or os.environ.get("RAY_ADDRESS") or "auto"
    place = "the Ray cluster of this machine" if given == "auto" else f"the Ray cluster {without_credentials(given)}"
    if ray.is_initialized():
        return ray, place
    probe(given, place)
    if given.startswith("ray://"):
        _check_client_server(urlsplit(given), place)
    try:
        start(ray, given, namespace=NAMESPACE)
    except Exception as error:  # of many kinds
        hint = "start one with `ray start --head`, or by `dsgan serve` on this machine"
        if given != "auto":
            hint = (
                "is it running, with the same versions of Ray and Python as here? If it asks for a token, set "
                "RAY_AUTH_MODE=token and have the token here too"
            )
        raise RemoteError(f"{place} cannot be reached ({without_credentials(in_short(error))}): {hint}") from None
    return ray, f"{place} ({ray.get_runtime_context().gcs_address})" if given == "auto" else place


def warn_if_unasked(address: str | None, place: str) -> None:
    """Say which cluster was joined, if none was named: anybody on this machine may have started it."""
    if address is None and not os.environ.get("RAY_ADDRESS"):
        warnings.warn(
            f"no address was given, so {place} was joined, which was running already: give its address, or auto, if "
            "that is the one that you mean",
            stacklevel=4,
        )


def _check_client_server(parts: SplitResult, place: str) -> None:
    """Fail early where something else than Ray's client server listens, such as the cluster's own port: Ray would try
    for 35 seconds.

    Raises:
        RemoteError: it does not know the call with which Ray's client begins.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    try:
        import grpc
    except ImportError:
        return  # Ray says that it needs it
    with grpc.insecure_channel(parts.netloc.rpartition("@")[2]) as channel:
        try:
            channel.unary_unary("/ray.rpc.RayletDriver/ClusterInfo")(b"", timeout=_CONNECT)
        except grpc.RpcError as error:
            codes = grpc.StatusCode
            if error.code() in (codes.UNIMPLEMENTED, codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED):
                raise RemoteError(
                    f"{place} cannot be reached: what listens there is not Ray's client server. Its port is 10001, "
                    "unless `ray start --ray-client-server-port` said otherwise; from a machine of the cluster, leave "
                    "out ray:// and name the port of the cluster (HOST:6379)"
                ) from None


def probe(address: str, place: str) -> None:
    """Fail early where nobody listens: Ray would try for minutes, or end the process.

    Raises:
        RemoteError: no connection within seconds, or an address without a port.
    """
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


class Workers:
    """The workers on a cluster, as those who ask them see them.

    Args:
        ray: the module, connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}  # calls of `facts` that have not ended
        self._facts: dict[str, dict[str, Any]] = {}
        #: What Ray raises if a worker, or the cluster, is lost.
        self.losses = (ray.exceptions.RayError, ConnectionError)

    def look(self) -> dict[str, dict[str, Any] | None]:
        """Their facts, by id; None for one that is still starting.

        Raises:
            RemoteError: the cluster does not answer.
        """
        ray = self._ray
        try:
            listed = ray.util.list_named_actors(all_namespaces=True)
            names = {entry["name"] for entry in listed if entry["namespace"] == NAMESPACE}
            for name in names - self._actors.keys():
                try:
                    actor = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:
                    continue  # it died a moment ago
                self._actors[name], self._asked[name] = actor, actor.facts.remote()
            for name in self._actors.keys() - names:
                for known in (self._actors, self._asked, self._facts):
                    known.pop(name, None)
            if self._asked:
                ended, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=0.1)
                for name, call in [(name, call) for name, call in self._asked.items() if call in ended]:
                    del self._asked[name]
                    try:
                        self._facts[name] = ray.get(call, timeout=1)
                    except self.losses:
                        del self._actors[name]  # dead, and soon not listed any more; or to be asked again
        except (*self.losses, RuntimeError) as error:
            raise RemoteError(f"it does not answer ({without_credentials(in_short(error))})") from None
        return {name: self._facts.get(name) for name in list(self._actors)}

    def call(self, worker: str, method: str, *arguments: Any) -> Any:
        """Ray's reference to what a worker's method will give; KeyError if it is gone."""
        return getattr(self._actors[worker], method).remote(*arguments)
