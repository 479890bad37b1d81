"""Workers on a Ray cluster, kept alive for as long as a process serves."""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dsgan_datasets.checks import integer
from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.engines.ray import import_ray, in_short, put, resources_of, room, some_room, start
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.remote.errors import RemoteError
from dsgan_datasets.remote.messages import difference
from dsgan_datasets.remote.ray_cluster import NAMESPACE, Workers, connect, probe, warn_if_unasked
from dsgan_datasets.remote.worker import GeneratorWorker

#: Calls that are answered while a worker generates.
STATUS = "status"
#: Workers that may die in a row within a minute of their start, without a sample made in between.
_TRIES, _YOUNG = 4, 60.0
#: Seconds between two rounds of asking the workers how they are.
_EVERY = 1.0


@dataclass(frozen=True)
class Serving:
    """What the workers of a process have done.

    Attributes:
        place: the cluster, for people.
        wanted: workers that are to run.
        running: those that do, by name.
        samples: made since the start, by all of them.
        bytes: sent.
        lost: workers that died and were replaced.

    Example:
        >>> now = Serving("local cluster", wanted=2, running=("gpu-1",), samples=800, bytes=10**7, lost=1)
        >>> f"{len(now.running)} of {now.wanted} workers"
        '1 of 2 workers'
    """

    place: str
    wanted: int
    running: tuple[str, ...]
    samples: int
    bytes: int
    lost: int


@dataclass
class _Worker:
    actor: Any
    ready: Any  # the call of `facts`
    facts: dict[str, Any] | None = None
    since: float = 0.0  # it is ready
    call: Any = None  # of `status`
    status: dict[str, Any] = field(default_factory=dict)


def serve(
    labeled: LabeledGenerator,
    checkpoint: str,
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    cpus_per_worker: int = 1,
) -> Generator[Serving, None, None]:
    """Run workers that make a checkpoint's samples for any `RemoteSource`; what they did, about once a second.

    Workers live as long as this iterator. One that dies is replaced; if `_TRIES` die in a row soon after their start,
    and no sample was made, that is the end. The generator travels through Ray: the other machines need the package and
    Ray, no files.

    Args:
        labeled: on the CPU.
        checkpoint: what it is called, for people.
        address: of the cluster, see `RemoteSource`. None and "auto" start one on this machine if there is none; it ends
            with the iterator.
        workers: how many; None is as many as fit, also on machines that join later.
        device: "cuda" or "cpu"; None is "cuda" if the cluster has GPUs.
        cpus_per_worker: cores of each.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an argument out of range, or the cluster has no room for a single worker.
        RemoteError: the cluster is away, workers die or cannot work, or others serve the same samples with other
            versions or devices.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> for serving in serve(labeled, "demo-faces", workers=2):  # doctest: +SKIP
        ...     print(serving.samples)
    """
    workers = None if workers is None else integer("workers", workers, 1)
    cpus_per_worker = integer("cpus_per_worker", cpus_per_worker, 1)
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f'device is what workers compute on, "cuda" or "cpu", not {device!r:.80}')
    labeled.fingerprint  # noqa: B018  hashed once, here
    with _cluster(address) as (ray, place):
        crew = _Crew(ray, place, labeled, checkpoint, workers, device, cpus_per_worker)
        heart = address if address is not None and "://" in address else ray.get_runtime_context().gcs_address
        try:
            while True:
                if _beats(heart, place):
                    yield crew.look()
                time.sleep(_EVERY)
        finally:
            crew.end()


@contextmanager
def _cluster(address: str | None) -> Iterator[tuple[Any, str]]:
    """(ray, what the cluster is called) for the length of a block; one of this machine is started if there is none."""
    ray = import_ray()
    was_connected = ray.is_initialized()
    try:
        try:
            ray, place = connect(address)
            if not was_connected:
                warn_if_unasked(address, place)
        except RemoteError:
            if address not in (None, "auto") or _named_elsewhere():
                raise
            start(ray, namespace=NAMESPACE)
            place = "a Ray cluster that was started on this machine"
        yield ray, place
    except ray.exceptions.RayError as error:
        raise RemoteError(f"Ray gave up: {without_credentials(in_short(error))}") from error
    finally:
        if not was_connected:
            ray.shutdown()


def _beats(heart: str, place: str) -> bool:
    """Whether the cluster takes connections. If not, Ray is asked nothing: it would not return."""
    try:
        probe(heart, place)
    except RemoteError as error:
        warnings.warn(
            f"{error}. If it stays away for a minute, Ray ends this process: start it again when the cluster is back",
            stacklevel=3,
        )
        return False
    return True


def _named_elsewhere() -> bool:
    return os.environ.get("RAY_ADDRESS", "auto") not in ("", "auto", "local")


def _actor(ray: Any) -> type[GeneratorWorker]:
    """The class of the actors. Which calls are answered at any time is said here: Ray's client cannot say it later."""
    Method = Callable[[Any], dict[str, Any]]
    at_any_time: Callable[[Method], Method] = ray.method(concurrency_group=STATUS)

    class Actor(GeneratorWorker):
        @at_any_time
        def facts(self) -> dict[str, Any]:
            return super().facts()

        @at_any_time
        def status(self) -> dict[str, Any]:
            return super().status()

    return Actor


class _Crew:
    """The workers of one `serve`."""

    def __init__(
        self,
        ray: Any,
        place: str,
        labeled: LabeledGenerator,
        checkpoint: str,
        workers: int | None,
        device: str | None,
        cpus: int,
    ) -> None:
        self._ray, self._place, self._workers, self._checkpoint = ray, place, workers, checkpoint
        self._fingerprint = labeled.fingerprint
        self._device = device or ("cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu")
        self._resources = resources_of(self._device, cpus)
        some_room(ray.cluster_resources(), self._resources, "--cpus-per-worker")
        self._class = ray.remote(concurrency_groups={STATUS: 2}, max_restarts=0, **self._resources)(_actor(ray))
        self._labeled = put(ray, labeled)
        self._alive: dict[str, _Worker] = {}
        self._samples = self._bytes = self._lost = self._in_a_row = 0
        self._checked = False

    def look(self) -> Serving:
        """Start what is missing, and ask all how they are."""
        ray, wanted = self._ray, self._wanted()
        while len(self._alive) < wanted:
            name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
            actor = self._class.options(name=name, namespace=NAMESPACE).remote(
                self._labeled, self._device, self._checkpoint
            )
            self._alive[name] = _Worker(actor, actor.facts.remote())
        for name, worker in list(self._alive.items()):
            call = worker.ready if worker.facts is None else worker.call
            if call is not None:
                ended, _ = ray.wait([call], timeout=0)
                if not ended:
                    continue
                try:
                    self._take(worker, ray.get(call, timeout=10))
                except ray.exceptions.RayError as error:
                    self._replace(name, in_short(error))
                    continue
            worker.call = worker.actor.status.remote()
        running = tuple(worker.facts["name"] for worker in self._alive.values() if worker.facts is not None)
        return Serving(self._place, wanted, running, self._samples, self._bytes, self._lost)

    def end(self) -> None:
        """End the workers."""
        for worker in self._alive.values():
            self._ray.kill(worker.actor)

    def _wanted(self) -> int:
        """As many as fit: machines may have joined or left."""
        return self._workers or room(self._ray.cluster_resources(), self._resources)

    def _take(self, worker: _Worker, found: dict[str, Any]) -> None:
        if worker.facts is None:
            if found["trouble"] is not None:
                raise RemoteError(f"worker {found['name']} cannot work: {found['trouble']}")
            worker.facts, worker.since = found, time.monotonic()
            if not self._checked:
                self._checked = True
                self._refuse_mixture(found)
            return
        before, worker.status = worker.status, found
        samples = found["samples"] - before.get("samples", 0)
        self._samples += samples
        self._bytes += found["bytes"] - before.get("bytes", 0)
        if samples:
            self._in_a_row = 0

    def _replace(self, name: str, why: str) -> None:
        worker = self._alive.pop(name)
        self._ray.kill(worker.actor)  # it may only be out of reach
        self._lost += 1
        if worker.facts is None or time.monotonic() - worker.since < _YOUNG:
            self._in_a_row += 1  # one that had been there for long was taken away, with its machine perhaps
        who = f"worker {worker.facts['name']}" if worker.facts is not None else "a worker that was starting"
        why = without_credentials(why)
        if self._in_a_row >= _TRIES:
            raise RemoteError(
                f"{_TRIES} workers in a row died soon after their start and made no sample; the last, {who}: {why}. Do "
                "they have enough memory? Fewer on a machine: cpus_per_worker. The logs of Ray say more"
            )
        warnings.warn(f"{who} died and is replaced: {why}", stacklevel=2)

    def _refuse_mixture(self, facts: dict[str, Any]) -> None:
        """Trainers would ask only those that were there first."""
        workers = Workers(self._ray)
        for _ in range(10):
            there = workers.look()
            if None not in there.values():
                break
            time.sleep(0.1)
        for other in there.values():
            if other is None or other["fingerprint"] != self._fingerprint or other["name"] == facts["name"]:
                continue
            if (what := difference(facts["made_with"], other["made_with"])) is not None:
                raise RemoteError(
                    f"worker {other['name']} serves {self._checkpoint} already, and those started here have {what} as "
                    "there: the last bits of samples would depend on who is asked. Serve with the same versions and "
                    "kind of device, or end the others first"
                )
