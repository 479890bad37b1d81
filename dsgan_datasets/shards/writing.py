"""Samples -> tar shards. One shard is one unit of work: a contiguous range of indices, made whole or not at all."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Literal

from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards.codec import Encoding, pixel_counts, record
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import MANIFEST, WIDS_INDEX, Manifest, Plan, Progress, Shard, ShardError, numbers_of
from dsgan_datasets.shards.tar import first_description, sha256, write_tar

Engine = Literal["local", "ray"]
Approve = Callable[[Shard], None]


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
        outdir: folder, or URL of any protocol that fsspec knows (s3://bucket/faces); is made if needed.
        indices: ``range(first, last)``, step 1.
        seed: of the samples, 0 … 2^64-1.
        samples_per_shard: the last shard may hold fewer.
        encoding: image format, and what a record holds beside image and mask; None is PNG and nothing else.
        shard_range: write only the shards of these numbers, (first, end) with end excluded. Other processes, on any
            machines that see the same folder, write the others; whoever finishes last writes the manifest.
        workers: threads that encode pictures beside the generator; None is one a CPU core, up to 16.
        engine: "local" writes in this process; "ray" spreads the shards over a Ray cluster, one generator a GPU, or one
            for every `cpus_per_generator` cores. Ray starts again what a lost machine was working on.
        cpus_per_generator: cores of each generator with the engine "ray"; None is 1.

    Returns:
        path or URL of each shard of `shard_range`, in order.

    Raises:
        ValueError: nothing to write, an argument out of range, or (ShardError) the folder holds something else: shards
            of another checkpoint, seed or option; the message says which.
        OSError: the folder cannot be written. Nothing half-written bears a final name.
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
    todo = [n for n in _checked(numbers) if not is_there(folder, recorded.get(plan.name(n)))]
    with ProgressBar(plan, numbers, todo) as bar:
        if engine == "ray":
            from dsgan_datasets.shards.ray_engine import write_with_ray

            write_with_ray(labeled, plan, folder, todo, recorded, bar, workers=workers, cpus=cpus)
        else:
            for _ in write_numbers(labeled, plan, folder, todo, recording(folder, recorded), bar, workers=workers):
                pass
    finish(folder, plan)
    return [folder.at(plan.name(number)) for number in numbers]


def agree(folder: Folder, plan: Plan) -> dict[str, Shard]:
    """Make sure that the folder is for this plan, or for nothing yet; begin it in that case.

    Returns:
        what is recorded of its shards, by name.

    Raises:
        ShardError: it holds something else.
    """
    names = folder.names()
    progress = Progress(folder)
    if MANIFEST in names:
        manifest = Manifest.read(folder)
        _check_same(folder, plan, manifest.plan)
        return manifest.by_name
    if (begun := progress.read_plan()) is None:
        if foreign := [name for name in names if name.endswith(".tar") and not _may_be_of(folder, name, plan)]:
            raise ShardError(
                f"{folder} already holds {', '.join(foreign[:3])}{' …' * (len(foreign) > 3)}, which no manifest "
                "describes and which these arguments do not make: choose another folder, or remove them"
            )
        progress.write_plan(plan)
        begun = progress.read_plan()  # another process may have begun at the same moment: the last one wins
        if begun is None:
            raise OSError(f"{folder}: what was written a moment ago is not there; is something else removing files?")
    _check_same(folder, plan, begun)
    return progress.entries(plan)


def _may_be_of(folder: Folder, name: str, plan: Plan) -> bool:
    """Whether a tar that no manifest describes any more says of itself that it is of this plan."""
    return plan.facts.items() <= first_description(folder, name).items()


def _check_same(folder: Folder, plan: Plan, there: Plan) -> None:
    if differences := plan.differences(there):
        only_here = all(text.startswith("made_with") for text in differences)
        way_out = (
            "go on with those versions on such a device, or make the missing shards with these: "
            "`dsgan shards verify --repair`"
            if only_here
            else "use the same arguments, or another folder"
        )
        raise ShardError(f"{folder} holds other shards: {'; '.join(differences)}. To continue, {way_out}")


def _checked(numbers: range) -> Iterable[int]:
    return tqdm(numbers, "checking what is there", unit="shard", delay=2, leave=False)


def is_there(folder: Folder, shard: Shard | None) -> bool:
    """True if a shard lies there as it is recorded."""
    if shard is None or folder.size(shard.name) != shard.bytes:
        return False
    return sha256(folder, shard.name) == shard.sha256


def recording(folder: Folder, recorded: Mapping[str, Shard]) -> Approve:
    """Records each shard just before it appears; one that was recorded before must be what it was.

    A process killed between the two leaves an entry without its shard, which is then made again.
    """
    progress = Progress(folder)

    def approve(shard: Shard) -> None:
        before = recorded.get(shard.name)
        if before is None:
            if folder.size(shard.name) is not None and sha256(folder, shard.name) != shard.sha256:
                raise ShardError(
                    f"{folder.at(shard.name)} is there already, with other bytes and no manifest that describes it: "
                    "choose another folder, or remove it"
                )
            progress.add(shard)
        elif before.sha256 != shard.sha256:
            raise ShardError(
                f"{folder.at(shard.name)} was damaged, and making it again gives other bytes than those recorded, with "
                "the same versions on the same kind of device: `dsgan shards verify --repair` accepts them if the "
                "labels agree"
            )

    return approve


class ProgressBar:
    """Samples written, samples a second, share of the draws that the filter accepts, and the time left."""

    def __init__(self, plan: Plan, numbers: Sequence[int], todo: Sequence[int]) -> None:
        total = sum(len(plan.indices(n)) for n in numbers)
        left = sum(len(plan.indices(n)) for n in todo)
        self._bar = tqdm(desc="writing shards", unit="sample", total=total, initial=total - left, delay=2)
        self._draws = self._samples = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, samples: int, rejected: int) -> None:
        """Count samples that were written, and the draws rejected on the way to them."""
        self._samples += samples
        self._draws += samples + rejected
        self._bar.set_postfix_str(f"{self._samples / self._draws:.0%} of draws accepted", refresh=False)
        self._bar.update(samples)


def write_numbers(
    labeled: LabeledGenerator,
    plan: Plan,
    folder: Folder,
    numbers: Sequence[int],
    approve: Approve,
    bar: ProgressBar | None = None,
    *,
    workers: int,
    attempts: Mapping[int, int] | None = None,
) -> Iterator[Shard]:
    """Write some shards of a plan, one after the other; yields each when it is there.

    All come out of one stream of samples, so that the places of rejected draws at the end of one shard are filled with
    draws of the next.

    Args:
        labeled: makes the samples.
        plan: of the set.
        folder: to write to.
        numbers: of the shards.
        approve: is told of each shard just before it appears, and may raise to prevent it.
        bar: to show the progress on.
        workers: threads that encode.
        attempts: replay these draws (index -> attempt, 0 if it is not in there) without the filter.
    """
    indices = [plan.indices(number) for number in numbers]
    replayed = None if attempts is None else (attempts.get(i, 0) for i in chain.from_iterable(indices))
    samples = labeled.stream(
        chain.from_iterable(indices), seed=plan.seed, attempts=replayed, extras=plan.encoding.extras
    )
    with ThreadPoolExecutor(workers, thread_name_prefix="dsgan-encode") as pool:
        encoded = _encoded(pool, samples, plan, ahead=2 * workers + plan.recipe.compute_batch)
        for number in numbers:
            yield _write_one(folder, plan, number, islice(encoded, len(plan.indices(number))), approve, bar)


def _encoded(
    pool: ThreadPoolExecutor, samples: Iterator[Sample], plan: Plan, ahead: int
) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Samples with their files, in order; up to `ahead` of them are being encoded while the generator goes on."""

    def encode(sample: Sample) -> tuple[Sample, dict[str, bytes]]:
        return sample, record(sample, plan.encoding, plan.schema.num_classes, plan.facts)

    pending: deque[Future[tuple[Sample, dict[str, bytes]]]] = deque()
    try:
        for sample in samples:
            pending.append(pool.submit(encode, sample))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _write_one(
    folder: Folder,
    plan: Plan,
    number: int,
    encoded: Iterator[tuple[Sample, dict[str, bytes]]],
    approve: Approve,
    bar: ProgressBar | None,
) -> Shard:
    name, indices = plan.name(number), plan.indices(number)
    attempts: dict[int, int] = {}
    pixels = [0] * plan.schema.num_classes
    scores: list[float] = []

    def noted() -> Iterator[dict[str, bytes]]:
        for sample, files in encoded:
            attempt = int(sample.attempt)
            if attempt:
                attempts[int(sample.index)] = attempt
            for class_id, count in enumerate(pixel_counts(sample.mask, len(pixels))):
                pixels[class_id] += count
            scores.append(float(sample.uncertainty_score))
            if bar is not None:
                bar.add(1, attempt)
            yield files

    folder.remove_leftovers(name)
    with folder.writing(name) as file:
        tar = write_tar(file, noted())
        shard = Shard(
            name=name,
            first=indices[0],
            last=indices[-1],
            count=len(scores),
            bytes=tar.bytes,
            sha256=tar.sha256,
            offsets=tar.offsets,
            attempts=attempts,
            pixels=tuple(pixels),
            score=round(sum(scores) / len(scores), 6),
        )
        approve(shard)
    return shard


def finish(folder: Folder, plan: Plan) -> bool:
    """Write the manifest if every shard is there; False if some are still missing."""
    progress = Progress(folder)
    names = folder.names()
    if MANIFEST in names:
        if WIDS_INDEX not in names:
            folder.write(WIDS_INDEX, Manifest.read(folder).wids_index())
    else:
        entries = progress.entries(plan)
        shards = tuple(entries[name] for name in map(plan.name, range(plan.num_shards)) if name in entries)
        if len(shards) < plan.num_shards or not {shard.name for shard in shards} <= set(names):
            return MANIFEST in folder.names()  # another process may have finished it just now
        write_manifest(folder, Manifest(plan, shards))
    progress.clear()
    return True


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write manifest.json, last of all: a set that has one is finished."""
    for name in (WIDS_INDEX, MANIFEST):
        folder.remove_leftovers(name)
    folder.write(WIDS_INDEX, manifest.wids_index())
    folder.write(MANIFEST, manifest.to_json())
