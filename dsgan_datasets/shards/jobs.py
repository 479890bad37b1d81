"""Writing some shards of a plan: the work that the engines share. A shard is written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any

from tqdm import tqdm

from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.parallel import ahead
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards.codec import record, tallies
from dsgan_datasets.shards.errors import ShardError
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.plan import Plan, Shard
from dsgan_datasets.shards.progress import Progress
from dsgan_datasets.shards.tar import Bar, is_as_recorded, write_tar

#: Is called with the description of a shard just before it appears, and may raise to prevent that.
Approve = Callable[[Shard], None]


def byte_bar(what: str, shards: Iterable[Shard]) -> Any:
    """A ``tqdm`` over the bytes of shards that are about to be read: a shard may take minutes through a network."""
    total = sum(shard.bytes for shard in shards)
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, delay=2, leave=False)


def is_there(folder: Folder, shard: Shard, bar: Bar | None = None) -> bool:
    """True if the folder holds a shard as it is recorded."""
    return folder.size(shard.name) == shard.bytes and is_as_recorded(folder, shard, bar)


def recording(folder: Folder, plan: Plan, recorded: Mapping[str, Shard]) -> Approve:
    """Records each shard just before it appears; a shard recorded earlier must have the same hash.

    A process killed between the two leaves an entry without its shard, which is then written again.
    """
    progress = Progress(folder)

    def approve(shard: Shard) -> None:
        before = recorded.get(shard.name)
        if before is None:
            if folder.size(shard.name) is not None and not is_as_recorded(folder, shard):
                raise ShardError(
                    f"{folder.at(shard.name)} is there already, with other bytes and no manifest that describes it: "
                    "choose another folder, or remove it"
                )
            progress.add(plan, shard)
        elif before.sha256 != shard.sha256:
            raise ShardError(
                f"{folder.at(shard.name)} was damaged, and regenerating it gives other bytes than those recorded, with "
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
        approve: is called with each shard just before it appears, and may raise to prevent it.
        bar: to show the progress on.
        workers: threads that encode.
        attempts: replay these draws (index -> attempt, 0 if it is not in there) without the filter.
    """
    indices = [plan.indices(number) for number in numbers]
    replayed = None if attempts is None else (attempts.get(i, 0) for i in chain.from_iterable(indices))
    samples = labeled.stream(
        chain.from_iterable(indices), seed=plan.seed, attempts=replayed, extras=plan.encoding.extras
    )

    def encode(sample: Sample) -> tuple[Sample, dict[str, bytes]]:
        return sample, record(sample, plan.encoding, plan.targets, plan.facts)

    encoded = ahead(encode, samples, workers, length=2 * workers + plan.recipe.compute_batch)
    with closing(encoded):
        for number in numbers:
            yield _write_one(folder, plan, number, islice(encoded, len(plan.indices(number))), approve, bar)


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
    totals = {target.field: [0] * len(target.tally_names) for target in plan.targets}
    scores: list[float] = []

    def counted() -> Iterator[dict[str, bytes]]:
        for sample, files in encoded:
            attempt = int(sample.attempt)
            if attempt:
                attempts[int(sample.index)] = attempt
            for field, counts in tallies(sample, plan.targets).items():
                totals[field] = [total + count for total, count in zip(totals[field], counts, strict=True)]
            if "uncertainty_score" in sample:
                scores.append(float(sample["uncertainty_score"]))
            if bar is not None:
                bar.add(1, attempt)
            yield files

    folder.remove_leftovers(name)
    with folder.writing(name) as file:
        tar = write_tar(file, counted())
        shard = Shard(
            name=name,
            first=indices[0],
            last=indices[-1],
            count=len(tar.offsets) - 1,
            bytes=tar.bytes,
            sha256=tar.sha256,
            offsets=tar.offsets,
            attempts=attempts,
            tallies={field: tuple(counts) for field, counts in totals.items()},
            uncertainty_score=round(sum(scores) / len(scores), 6) if scores else None,
            checksums=tar.checksums,
        )
        approve(shard)
    return shard
