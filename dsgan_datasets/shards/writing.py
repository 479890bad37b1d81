"""Samples -> tar shards: plan the set, agree with what the folder holds, write what is missing, finish.

One shard is one unit of work: a contiguous range of indices, written whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from dsgan_datasets.checks import integer
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.shards.codec import RECORD_VERSION, Encoding
from dsgan_datasets.shards.errors import ShardError
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.jobs import ProgressBar, byte_bar, is_there, recording, write_numbers
from dsgan_datasets.shards.manifest import MANIFEST, WIDS_INDEX, Manifest, write_manifest
from dsgan_datasets.shards.plan import Plan, Shard, numbers_of
from dsgan_datasets.shards.progress import Progress
from dsgan_datasets.shards.tar import first_description

Engine = Literal["local", "ray"]


def write_shards(
    labeled: LabeledGenerator,
    outdir: str | os.PathLike[str],
    indices: range,
    *,
    seed: int = 0,
    samples_per_shard: int = 1000,
    encoding: Encoding | None = None,
    shard_range: Sequence[int] | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    cpus_per_generator: int | None = None,
) -> list[str]:
    """Write the samples of consecutive indices as WebDataset tars; see docs/shard-format.md.

    The bytes depend on checkpoint, recipe, seed, indices, samples_per_shard, encoding, versions and device, which the
    manifest records; not on workers, engine, or how often the writing was interrupted. Call it again with the same
    arguments after an interruption: what is there is verified, what is missing or damaged is written.

    Args:
        labeled: makes the samples.
        outdir: folder, or URL of any protocol that fsspec knows (s3://bucket/faces); is created if needed.
        indices: ``range(first, last)``, step 1. With view groups both are multiples of the group size.
        seed: of the samples, 0 … 2^64-1.
        samples_per_shard: the last shard may hold fewer. With view groups a multiple of the group size.
        encoding: image format, and what a record holds besides image and labels; None is PNG and nothing else.
        shard_range: write only the shards of these numbers, (first, end) with end excluded. Other processes, on any
            machines that see the same folder, write the others; the one that finishes last writes the manifest.
        workers: threads that encode pictures beside the generator; None is one a CPU core, up to 16.
        engine: "local" writes in this process; "ray" spreads the shards over a Ray cluster, one generator a GPU, or one
            for every `cpus_per_generator` cores. Ray restarts what a lost machine was working on.
        cpus_per_generator: cores of each generator with the engine "ray"; None is 1.

    Returns:
        path or URL of each shard of `shard_range`, in order; with the credentials that `outdir` holds, if any.

    Raises:
        ValueError: nothing to write, an argument out of range or one that cuts a view group, or (ShardError) the folder
            holds something else: shards of another checkpoint, seed or option; the message says which.
        OSError: the folder cannot be written. Nothing half-written has a final name.
        ImportError: the engine's package is not installed.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> [path.rsplit("/", 1)[1] for path in write_shards(labeled, tmp, range(6), samples_per_shard=4)]
        ['shard-000000.tar', 'shard-000001.tar']
    """
    if engine not in ("local", "ray"):
        raise ValueError(f'engine must be "local" or "ray", not {engine!r}')
    workers = integer("workers", min(os.cpu_count() or 1, 16) if workers is None else workers, 1)
    cpus = integer("cpus_per_generator", 1 if cpus_per_generator is None else cpus_per_generator, 1)
    plan = Plan.of(labeled, indices, seed, samples_per_shard, encoding or Encoding())
    numbers = numbers_of(plan, shard_range)
    folder = Folder(outdir)
    recorded = agree(folder, plan)
    todo = _missing(folder, plan, numbers, recorded)
    with ProgressBar(plan, numbers, todo) as bar:
        if engine == "ray":
            from dsgan_datasets.shards.ray_engine import write_with_ray

            write_with_ray(labeled, plan, folder, todo, recorded, bar, workers=workers, cpus=cpus)
        else:
            for _ in write_numbers(
                labeled, plan, folder, todo, recording(folder, plan, recorded), bar, workers=workers
            ):
                pass
    finish(folder, plan)
    return [folder.url(plan.name(number)) for number in numbers]


def agree(folder: Folder, plan: Plan) -> dict[str, Shard]:
    """Make sure that the folder belongs to this plan, or to none yet; begin it in that case.

    Returns:
        what is recorded of its shards, by name.

    Raises:
        ShardError: it holds something else.
    """
    names = folder.names()
    progress = Progress(folder)
    if MANIFEST in names:
        return _finished(folder, plan)
    if progress.read_plan() is None:
        if foreign := [name for name in names if name.endswith(".tar") and not _may_be_of(folder, name, plan)]:
            raise ShardError(
                f"{folder} already holds {', '.join(foreign[:3])}{' …' * (len(foreign) > 3)}, which no manifest "
                "describes and which these arguments do not make: choose another folder, or remove them"
            )
        progress.begin(plan)
    begun = progress.read_plan()  # of several processes that begin at once, one's plan is there
    if MANIFEST in folder.names():  # and one may have finished meanwhile: its manifest came before its plan went
        return _finished(folder, plan)
    if begun is None:
        raise OSError(f"{folder}: what was written a moment ago is not there; is something else removing files?")
    _check_same(folder, plan, begun)
    return progress.entries(plan)


def _finished(folder: Folder, plan: Plan) -> dict[str, Shard]:
    manifest = Manifest.read(folder)
    _check_same(folder, plan, manifest.plan)
    return manifest.by_name


def _may_be_of(folder: Folder, name: str, plan: Plan) -> bool:
    """Whether a tar that no manifest describes any more says of itself that it is of this plan."""
    return plan.facts.items() <= first_description(folder, name).items()


def check_version(folder: Folder, plan: Plan) -> None:
    """ShardError for a set whose records this version reads but no longer writes."""
    if plan.encoding.version != RECORD_VERSION:
        raise ShardError(
            f"{folder} was written in format {plan.encoding.version}, with {dict(plan.made_with)}: it can be read and "
            f"verified, but only that version continues or repairs it. Write a new set to another folder"
        )


def _check_same(folder: Folder, plan: Plan, there: Plan) -> None:
    check_version(folder, there)
    if differences := plan.differences(there):
        only_here = all(text.startswith("made_with") for text in differences)
        way_out = (
            "use those versions on such a device, or generate the missing shards with these: "
            "`dsgan shards verify --repair`"
            if only_here
            else "use the same arguments, or another folder"
        )
        raise ShardError(f"{folder} holds other shards: {'; '.join(differences)}. To continue, {way_out}")


def _missing(folder: Folder, plan: Plan, numbers: range, recorded: Mapping[str, Shard]) -> list[int]:
    """Numbers of the shards that are not there as they are recorded."""
    there = {n: shard for n in numbers if (shard := recorded.get(plan.name(n))) is not None}
    with byte_bar("checking what is there", there.values()) as bar:
        return [n for n in numbers if n not in there or not is_there(folder, there[n], bar)]


def finish(folder: Folder, plan: Plan) -> bool:
    """Write the manifest if every shard is there; False if some are still missing."""
    progress = Progress(folder)
    names = folder.names()
    if MANIFEST in names:
        if WIDS_INDEX not in names:
            folder.write(WIDS_INDEX, Manifest.read(folder).wids_index())
    else:
        if (begun := progress.read_plan()) is not None:
            _check_same(folder, plan, begun)
        entries = progress.entries(plan)
        shards = tuple(entries[name] for name in map(plan.name, range(plan.num_shards)) if name in entries)
        if len(shards) < plan.num_shards or not {shard.name for shard in shards} <= set(names):
            return MANIFEST in folder.names()  # another process may have finished it just now
        write_manifest(folder, Manifest(plan, shards))
    progress.clear()
    return True
