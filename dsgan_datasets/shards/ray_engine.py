"""The shards of a plan as calls of Ray actors.

A shard appears whole or not at all, and its bytes do not depend on who writes it: so a lost worker's shard may be
written again by another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.engines.ray import WorkersDied, ray_pool
from dsgan_datasets.environment import environment
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.shards.errors import ShardError
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.jobs import ProgressBar, recording, write_numbers
from dsgan_datasets.shards.plan import Plan, Shard


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
    """Write some shards of a plan on a Ray cluster, see `dsgan_datasets.engines.ray.ray_pool`.

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
        RuntimeError: workers die at every try; names the shard and the last cause.
    """
    if not numbers:
        return
    names = set(map(plan.name, numbers))
    relevant = {name: shard for name, shard in recorded.items() if name in names}
    with ray_pool(_Writer, labeled, plan, folder, workers, cpus=cpus, most=len(numbers)) as pool:
        try:
            for shard in pool.map_unordered("write", numbers, relevant):
                bar.add(shard.count, sum(shard.attempts.values()))
        except WorkersDied as error:
            work = "started" if error.item is None else f"wrote {folder.at(plan.name(error.item))}"
            raise RuntimeError(
                f"{error.deaths} Ray workers in a row died while they {work}: {without_credentials(error.cause)}. Do "
                "they have enough memory (fewer at a time: --cpus-per-generator)? The logs of Ray say more. The same "
                "command continues where it stopped"
            ) from error


class _Writer:
    """An actor: holds a generator, writes one shard a call."""

    def __init__(self, labeled: LabeledGenerator, device: str, plan: Plan, folder: Folder, workers: int) -> None:
        self.labeled, self.plan, self.folder, self.workers = labeled.to(device), plan, folder, workers

    def write(self, number: int, recorded: Mapping[str, Shard]) -> Shard:
        """Write a shard and return its description."""
        if (here := environment(self.labeled.device)) != self.plan.made_with:
            raise ShardError(
                f"a Ray worker has {here}, the set is made with {dict(self.plan.made_with)}: they must agree"
            )
        approve = recording(self.folder, self.plan, recorded)
        (shard,) = write_numbers(self.labeled, self.plan, self.folder, [number], approve, workers=self.workers)
        return shard
