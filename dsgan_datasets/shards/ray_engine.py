"""The shards of a plan as calls of Ray actors: one generator a GPU, or one for every few CPU cores.

Ray decides where they run, and starts again what a lost worker was doing (https://docs.ray.io, "Actor fault
tolerance"). As a shard appears whole or not at all, and its bytes do not depend on who makes it, that is all it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import Plan, Shard, ShardError, environment
from dsgan_datasets.shards.writing import ProgressBar, recording, write_numbers


def write_with_ray(
    labeled: LabeledGenerator,
    plan: Plan,
    folder: Folder,
    numbers: Sequence[int],
    recorded: Mapping[str, Shard],
    bar: ProgressBar,
    *,
    workers: int,
    cpus: int,
) -> None:
    """Write some shards of a plan on a Ray cluster: the one this process is connected to, the one that the address in
    RAY_ADDRESS names, or a new one on this machine.

    Args:
        labeled: is copied to every worker.
        plan: of the set.
        folder: that every machine of the cluster sees under this path or URL.
        numbers: of the shards.
        recorded: what is known of shards, by name.
        bar: to show the progress on, shard by shard.
        workers: encoding threads of each generator.
        cpus: cores of each generator.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster has nowhere to run a generator.
        ShardError: a worker's versions or device are not those of the plan.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('the engine "ray" needs Ray: pip install "dsgan_datasets[ray]"') from error
    if not numbers:
        return
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        resources = {"num_gpus": 1, "num_cpus": cpus} if labeled.device.type == "cuda" else {"num_cpus": cpus}
        # Without limit: a machine that is lost and replaced may be lost again.
        options = {**resources, "max_restarts": -1, "max_task_retries": -1}
        actor = ray.remote(**options)(_Writer)
        packed = _put(ray, labeled)
        generators = min(_room(ray, resources), len(numbers))
        actors = [actor.remote(packed, labeled.device.type, plan, folder, workers) for _ in range(generators)]
        pool = ray.util.ActorPool(actors)
        approved = {name: shard for name, shard in recorded.items() if name in set(map(plan.name, numbers))}
        for shard in pool.map_unordered(lambda writer, number: writer.write.remote(number, approved), numbers):
            bar.add(shard.count, sum(shard.attempts.values()))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or RuntimeError(str(error))) from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up: {error}") from error
    finally:
        if started_here:
            ray.shutdown()


def _room(ray: Any, resources: Mapping[str, int]) -> int:
    """Generators that fit on the cluster at once."""
    there = ray.cluster_resources()
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    fitting = min(int(there.get(names[name], 0)) // count for name, count in resources.items())
    if fitting < 1:
        needs = ", ".join(f"{count} {names[name]}" for name, count in resources.items())
        raise ValueError(
            f"a generator needs {needs}, but the Ray cluster has {int(there.get('CPU', 0))} CPU and "
            f"{int(there.get('GPU', 0))} GPU in all: lower cpus_per_generator (--cpus-per-generator), or add machines"
        )
    return fitting


def _put(ray: Any, labeled: LabeledGenerator) -> Any:
    """The generator in Ray's store, its tensors on the CPU: a worker's GPU has another number than the one here."""
    home = labeled.device
    try:
        labeled.generator.cpu(), labeled.interpreter.cpu()
        return ray.put(labeled)
    finally:
        labeled.generator.to(home), labeled.interpreter.to(home)


class _Writer:
    """An actor: holds a generator, writes one shard a call."""

    def __init__(self, labeled: LabeledGenerator, device: str, plan: Plan, folder: Folder, workers: int) -> None:
        labeled.generator.to(device), labeled.interpreter.to(device)
        self.labeled, self.plan, self.folder, self.workers = labeled, plan, folder, workers

    def write(self, number: int, recorded: Mapping[str, Shard]) -> Shard:
        """Write a shard and return what is to be known of it."""
        # Here and not in the constructor: Ray would start an actor that fails there again and again.
        if (here := environment(self.labeled.device)) != self.plan.made_with:
            raise ShardError(
                f"a Ray worker has {here}, the set is made with {dict(self.plan.made_with)}: they must agree"
            )
        approve = recording(self.folder, recorded)
        (shard,) = write_numbers(self.labeled, self.plan, self.folder, [number], approve, workers=self.workers)
        return shard
