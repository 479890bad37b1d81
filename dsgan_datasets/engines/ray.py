"""A pool of Ray actors, each with a labeled generator of its own: one a GPU, or one for every few CPU cores.

Ray decides where they run. What a lost worker was doing is done again by another one, which is safe for work whose
result depends on its arguments alone, as samples do. Ray's own restarts are not used: they have either one limit for an
actor's whole life, which a long run on machines that come and go would reach, or none, and then a worker that cannot
work is restarted forever.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

from dsgan_datasets.labeled_generator import LabeledGenerator

#: Seconds without any news from a worker after which a cluster without room is mentioned.
_PATIENCE = 300
#: Seconds between two looks whether a connection is still wanted.
_LOOK_EVERY = 0.2
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU"}


class Worker(Protocol):
    """Class of an actor; its public methods are what the pool calls."""

    def __call__(self, labeled: LabeledGenerator, device: str, *arguments: Any) -> Any:
        """Make one on the cluster.

        Args:
            labeled: on the CPU; ``labeled.to(device)`` puts it where the actor computes.
            device: "cuda" (the one GPU that the actor sees) or "cpu".
            arguments: those of the pool.
        """


class WorkersDied(RuntimeError):
    """A worker process died at every try; that is none of the errors that its methods raise.

    Attributes:
        item: what they were given; None if they died while they were made.
        deaths: how many died.
        cause: what Ray says of the last one.
    """

    def __init__(self, item: Any, deaths: int, cause: str) -> None:
        super().__init__(f"{deaths} Ray workers in a row died at {item!r:.100}; the last one: {cause}")
        self.item, self.deaths, self.cause = item, deaths, cause


class RayPool:
    """Calls methods of actors; make one with `ray_pool`.

    A worker that dies is replaced, and what it was doing is done by another one: machines may be lost, however often.
    But an item at which `TRIES` workers die in a row is given up, as is everything if that many die in a row before
    they have started.

    Args:
        ray: the module.
        make: makes an actor.
        size: actors at a time.
    """

    TRIES = 4

    def __init__(self, ray: Any, make: Callable[[], Any], size: int) -> None:
        self._ray, self._make, self.size = ray, make, size
        self._actors = [make() for _ in range(size)]

    def map_unordered(self, method: str, items: Iterable[Any], *arguments: Any) -> Iterator[Any]:
        """``method(item, *arguments)`` of every item on whichever actor is free; results in the order of finishing.

        Raises:
            WorkersDied: see the class.
        """
        ray, waiting = self._ray, deque((item, 0) for item in items)
        starting = {actor.__ray_ready__.remote(): actor for actor in self._actors}
        running: dict[Any, tuple[Any, Any, int]] = {}
        idle: list[Any] = []
        stillborn = 0  # that died in a row while they started
        while waiting or running:
            while waiting and idle:
                actor, (item, deaths) = idle.pop(), waiting.popleft()
                running[getattr(actor, method).remote(item, *arguments)] = actor, item, deaths
            ended, _ = ray.wait([*running, *starting], num_returns=1, timeout=_PATIENCE)
            if not ended:
                if not running:
                    warnings.warn(f"no Ray worker could start for {_PATIENCE} s: is the cluster busy?", stacklevel=2)
                continue
            (call,) = ended
            actor, item, deaths = running.pop(call, None) or (starting.pop(call), None, stillborn)
            try:
                result = ray.get(call)
            except ray.exceptions.RayActorError as error:
                deaths += 1
                if deaths >= self.TRIES:
                    raise WorkersDied(item, deaths, in_short(error)) from error
                if item is None:
                    stillborn = deaths
                else:
                    waiting.appendleft((item, deaths))
                self._actors[self._actors.index(actor)] = new = self._make()
                starting[new.__ray_ready__.remote()] = new
                ray.kill(actor)  # it may only be out of reach
                continue
            idle.append(actor)
            if item is None:
                stillborn = 0
            else:
                yield result

    def close(self) -> None:
        """End the actors: an error's traceback would keep them, and their cores, alive."""
        for actor in self._actors:
            self._ray.kill(actor)


@contextmanager
def ray_pool(
    worker: Worker, labeled: LabeledGenerator, *arguments: Any, cpus: int = 1, most: int | None = None
) -> Iterator[RayPool]:
    """Actors for the length of a block.

    They run on the Ray cluster that this process is connected to, the one that the address in RAY_ADDRESS names, or a
    new one on this machine, which then ends with the block.

    Args:
        worker: class of the actors, see `Worker`. Its errors should be raised by its methods, not when it is made.
        labeled: is copied to every actor. It moves to the CPU and back meanwhile, as a worker's GPU has another number
            than the one here.
        arguments: further arguments of `worker`.
        cpus: cores of each actor.
        most: actors that are useful; None is as many as fit.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster has no room for a single actor.
        WorkersDied: workers die at every try, see `RayPool`.
        RuntimeError: Ray gave up. An error that a method raised is raised here as it was.

    Example:
        >>> class Painter:
        ...     def __init__(self, labeled, device):
        ...         self.labeled = labeled.to(device)
        ...     def paint(self, index):
        ...         return self.labeled.generate([index]).image[0]
        >>> with ray_pool(Painter, labeled, cpus=2) as pool:  # doctest: +SKIP
        ...     images = list(pool.map_unordered("paint", range(100)))
    """
    ray = import_ray()
    pool: RayPool | None = None
    started_here = not ray.is_initialized()
    if started_here:
        start(ray)
    try:
        device = labeled.device.type
        resources = resources_of(device, cpus)
        fitting = some_room(ray.cluster_resources(), resources, "--cpus-per-generator")
        remote_class = ray.remote(**resources)(worker)
        packed = put(ray, labeled)
        size = fitting if most is None else min(fitting, most)
        pool = RayPool(ray, lambda: remote_class.remote(packed, device, *arguments), size)
        yield pool
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or RuntimeError(str(error))) from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up: {error}") from error
    finally:
        if pool is not None:
            pool.close()
        if started_here:
            ray.shutdown()


def import_ray() -> Any:
    """The module; ImportError that names the extra."""
    try:
        import ray
    except ImportError as error:
        raise ImportError('this needs Ray: pip install "dsgan_datasets[ray]"') from error
    return ray


def start(ray: Any, address: str | None = None, **options: Any) -> None:
    """Connect this process to a cluster; None starts one on this machine. How it handles signals stays as it is.

    In the main thread Ray takes SIGTERM for itself, and loses one that comes while it is at work. So another thread
    connects. It lives as long as the connection, as the processes of a cluster end with the thread that started them.
    """
    options = {"log_to_driver": False, "logging_level": "ERROR", **options}
    if address is None:
        options["include_dashboard"] = False
    connected: Future[None] = Future()

    def connect() -> None:
        try:
            ray.init(address=address, **options)
        except BaseException as error:
            connected.set_exception(error)
            return
        connected.set_result(None)
        while ray.is_initialized():
            time.sleep(_LOOK_EVERY)

    thread = threading.Thread(target=connect, daemon=True, name="dsgan-ray")
    try:
        thread.start()
        connected.result()
    except KeyboardInterrupt:  # or a signal that ends a command: so does what has begun
        if thread.ident is not None and connected.exception() is None:
            ray.shutdown()
        raise
    finally:
        if threading.current_thread() is threading.main_thread() and (handler := signal.getsignal(signal.SIGTERM)):
            signal.signal(signal.SIGTERM, handler)  # Ray's libraries have put one of their own before it, which logs


def in_short(error: Exception) -> str:
    """The first and the last line of what Ray says: what happened, and the error that it comes from, if any."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " … ".join(dict.fromkeys((lines[0], lines[-1])))


def resources_of(device: str, cpus: int) -> dict[str, int]:
    """What an actor that computes on such a device takes of a cluster."""
    return {"num_gpus": 1, "num_cpus": cpus} if device == "cuda" else {"num_cpus": cpus}


def room(cluster: Mapping[str, float], resources: Mapping[str, int]) -> int:
    """Actors that fit on the cluster at once."""
    return min(int(cluster.get(_RESOURCES[name], 0)) // count for name, count in resources.items())


def some_room(cluster: Mapping[str, float], resources: Mapping[str, int], option: str) -> int:
    """Actors that fit on the cluster at once; ValueError if not one does, which names the option for fewer cores."""
    if (fitting := room(cluster, resources)) < 1:
        needs = ", ".join(f"{count} {_RESOURCES[name]}" for name, count in resources.items())
        raise ValueError(
            f"a generator needs {needs}, but the Ray cluster has {int(cluster.get('CPU', 0))} CPU and "
            f"{int(cluster.get('GPU', 0))} GPU in all: give each fewer cores ({option}), or add machines"
        )
    return fitting


def put(ray: Any, labeled: LabeledGenerator) -> Any:
    """The generator in Ray's store, its tensors on the CPU."""
    home = labeled.device
    try:
        return ray.put(labeled.to("cpu"))
    finally:
        labeled.to(home)
