"""A pool of Ray actors, each with a labeled generator of its own: one a GPU, or one for every few CPU cores.

Ray decides where they run, and restarts what a lost worker was doing (https://docs.ray.io, "Actor fault tolerance").
That is safe for work whose result depends on its arguments alone, as samples do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from dsgan_datasets.labeled_generator import LabeledGenerator

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


class RayPool:
    """Calls methods of actors; make one with `ray_pool`."""

    def __init__(self, ray: Any, actors: list[Any]) -> None:
        self._pool = ray.util.ActorPool(actors)
        self.size = len(actors)

    def map_unordered(self, method: str, items: Iterable[Any], *arguments: Any) -> Iterator[Any]:
        """``method(item, *arguments)`` of every item on whichever actor is free; results in the order of finishing."""
        yield from self._pool.map_unordered(lambda actor, item: getattr(actor, method).remote(item, *arguments), items)


@contextmanager
def ray_pool(
    worker: Worker, labeled: LabeledGenerator, *arguments: Any, cpus: int = 1, most: int | None = None
) -> Iterator[RayPool]:
    """Actors for the length of a block.

    They run on the Ray cluster that this process is connected to, the one that the address in RAY_ADDRESS names, or a
    new one on this machine, which then ends with the block.

    Args:
        worker: class of the actors, see `Worker`. Its errors should be raised by its methods, not when it is made: Ray
            restarts an actor that cannot be made without end.
        labeled: is copied to every actor. It moves to the CPU and back meanwhile, as a worker's GPU has another number
            than the one here.
        arguments: further arguments of `worker`.
        cpus: cores of each actor.
        most: actors that are useful; None is as many as fit.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster has no room for a single actor.
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
    try:
        import ray
    except ImportError as error:
        raise ImportError('the engine "ray" needs Ray: pip install "dsgan_datasets[ray]"') from error
    actors: list[Any] = []
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        resources = {"num_gpus": 1, "num_cpus": cpus} if labeled.device.type == "cuda" else {"num_cpus": cpus}
        room = _room(ray.cluster_resources(), resources)
        # Without limit: a machine that is lost and replaced may be lost again.
        remote_class = ray.remote(**resources, max_restarts=-1, max_task_retries=-1)(worker)
        packed, device = _put(ray, labeled), labeled.device.type
        size = room if most is None else min(room, most)
        actors += [remote_class.remote(packed, device, *arguments) for _ in range(size)]
        yield RayPool(ray, actors)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or RuntimeError(str(error))) from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up: {error}") from error
    finally:
        for actor in actors:  # an error's traceback would keep them, and their cores, alive
            ray.kill(actor)
        if started_here:
            ray.shutdown()


def _room(cluster: Mapping[str, float], resources: Mapping[str, int]) -> int:
    """Actors that fit on the cluster at once."""
    fitting = min(int(cluster.get(_RESOURCES[name], 0)) // count for name, count in resources.items())
    if fitting < 1:
        needs = ", ".join(f"{count} {_RESOURCES[name]}" for name, count in resources.items())
        raise ValueError(
            f"a generator needs {needs}, but the Ray cluster has {int(cluster.get('CPU', 0))} CPU and "
            f"{int(cluster.get('GPU', 0))} GPU in all: lower cpus_per_generator (--cpus-per-generator), or add machines"
        )
    return fitting


def _put(ray: Any, labeled: LabeledGenerator) -> Any:
    """The generator in Ray's store, its tensors on the CPU."""
    home = labeled.device
    try:
        return ray.put(labeled.to("cpu"))
    finally:
        labeled.to(home)
