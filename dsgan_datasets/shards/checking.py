"""Shards -> what is wrong with them, and how it is mended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from dsgan_datasets.checkpoints.directory import built_in
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.environment import environment
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.shards.errors import ShardError, no_file
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.jobs import ProgressBar, byte_bar, write_numbers
from dsgan_datasets.shards.manifest import MANIFEST, WIDS_INDEX, Manifest, write_manifest
from dsgan_datasets.shards.plan import Plan, Shard
from dsgan_datasets.shards.progress import Progress
from dsgan_datasets.shards.tar import Bar, is_intact, measure, names_in
from dsgan_datasets.shards.writing import check_version, finish

Kind = Literal[
    "missing", "truncated", "changed", "swapped", "interleaved", "duplicate", "foreign", "index", "unfinished"
]

#: Largest share of a shard's tallies (pixels) that may be counted elsewhere (in another class), and largest relative
#: difference of its mean score, when it is regenerated with other versions or on another device.
_MOVED, _SCORE = 0.005, 0.02
#: Damaged records that a message names.
_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a set.

    Attributes:
        name: of the file.
        kind: "missing", "truncated" (shorter than it was), "changed" (other bytes), "swapped" (holds another shard),
            "interleaved" (records of other shards, or out of order), "duplicate" (a copy of a shard under another
            name), "foreign" (a tar that does not belong to the set), "index" (the index of `wids`), "unfinished" (not
            written yet).
        detail: in words.
        records: indices of the damaged samples of a "changed" or "truncated" shard; empty if only bytes between the
            records are damaged, or if the set has no checksums of records (format 1).

    Example:
        >>> Problem("shard-000001.tar", "truncated", "is 3 bytes shorter than it was", records=(7,)).kind
        'truncated'
    """

    name: str
    kind: Kind
    detail: str
    records: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}, {self.detail}"


def verify_shards(outdir: str | os.PathLike[str]) -> list[Problem]:
    """Read every shard of a set and compare it with what was recorded when it was written.

    Args:
        outdir: path or URL of the set.

    Returns:
        what is wrong, by name; empty if every byte is as it was.

    Raises:
        ShardError: there is no manifest, or it is damaged itself.
        OSError: something cannot be read.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(4), samples_per_shard=2)
        >>> (tmp / "shard-000001.tar").unlink()
        >>> print(*verify_shards(tmp))
        shard-000001.tar: missing, there is no such file
    """
    folder = Folder(outdir)
    found = _Recorded.of(folder)
    plan, recorded, finished = found.plan, found.shards, found.manifest is not None
    hashes = {shard.sha256: shard.name for shard in recorded.values()}
    largest = max((shard.bytes for shard in recorded.values()), default=0)
    numbers = {plan.name(number): number for number in range(plan.num_shards)}
    problems = []
    with byte_bar("verifying", recorded.values()) as bar:
        for name, number in numbers.items():
            shard = recorded.get(name)
            problem = None if shard is None else _problem(folder, plan, number, shard, hashes, largest, bar)
            if shard is None or (problem is not None and problem.kind == "missing" and not finished):
                problem = Problem(name, "unfinished", "not written yet: run the same `dsgan shards write` again")
            if problem is not None:
                problems.append(problem)
    for name in folder.names():
        if name.endswith(".tar") and name not in numbers:
            problems.append(_stray(folder, name, hashes, largest))
    if not problems and found.manifest is not None and _index(folder) != found.manifest.wids_index():
        problems.append(Problem(WIDS_INDEX, "index", "it does not list the shards of the manifest"))
    return sorted(problems, key=lambda problem: problem.name)


@dataclass(frozen=True)
class _Recorded:
    """What is recorded of a set: its plan, its shards by name, and its manifest if it is finished."""

    plan: Plan
    shards: Mapping[str, Shard]
    manifest: Manifest | None

    @classmethod
    def of(cls, folder: Folder) -> _Recorded:
        progress = Progress(folder)
        if MANIFEST not in folder.names() and (plan := progress.read_plan()) is not None:
            return cls(plan, progress.entries(plan), None)
        manifest = Manifest.read(folder)
        return cls(manifest.plan, manifest.by_name, manifest)


def _problem(
    folder: Folder, plan: Plan, number: int, shard: Shard, hashes: Mapping[str, str], largest: int, bar: Bar
) -> Problem | None:
    """What happened to a shard whose bytes are not those recorded; None if they are."""
    try:
        size, digest = measure(folder, shard.name, largest, bar)
    except FileNotFoundError as error:
        return Problem(shard.name, "missing", no_file(error))
    if digest == shard.sha256:
        return None
    if digest in hashes:
        return Problem(shard.name, "swapped", f"it holds what {hashes[digest]} should hold")
    expected = [f"{i:09d}.{extension}" for i in plan.indices(number) for extension in plan.extensions]
    with folder.open_whole(shard.name) as file:
        found = names_in(file, 2 * len(expected), shard.bytes)
    if size < shard.bytes:
        whole = min(len(found) // len(plan.extensions), shard.count)
        detail = f"{size} bytes instead of {shard.bytes}; it ends after {whole} of {shard.count} records"
        return Problem(shard.name, "truncated", detail, _damaged_records(folder, shard))
    places = {name: place for place, name in enumerate(expected)}
    if strangers := [name for name in found if name not in places]:
        return Problem(shard.name, "interleaved", f"it holds records of elsewhere, {strangers[0]!r:.100} first")
    if any(places[a] >= places[b] for a, b in pairwise(found)):
        place = next(a for a, b in zip(found, expected, strict=False) if a != b)
        return Problem(shard.name, "interleaved", f"its records are out of order, from {place} on")
    records = _damaged_records(folder, shard)
    more = " or more" * (size > largest)
    detail = f"some of its {size}{more} bytes are not those that were written"
    if records:
        shown = ", ".join(f"{index:09d}" for index in records[:_SHOWN]) + " …" * (len(records) > _SHOWN)
        detail = f"{len(records)} of {shard.count} records are not those that were written: {shown}"
    elif shard.checksums is None:
        detail += f"; {len(found)} of {len(expected)} files in it can be found"
    else:
        detail += "; all records are intact"
    return Problem(shard.name, "changed", detail, records)


def _index(folder: Folder) -> bytes | None:
    """Content of the index of `wids`; None if there is none."""
    try:
        return folder.read(WIDS_INDEX)
    except FileNotFoundError:
        return None


def _damaged_records(folder: Folder, shard: Shard) -> tuple[int, ...]:
    """Indices of the samples whose bytes are not those recorded."""
    if shard.checksums is None:
        return ()
    with folder.open_whole(shard.name) as file:
        sizes = (end - start for start, end in pairwise(shard.offsets))
        damaged = [number for number, size in enumerate(sizes) if not is_intact(file.read(size), shard, number)]
    return tuple(shard.first + number for number in damaged)


def _stray(folder: Folder, name: str, hashes: Mapping[str, str], largest: int) -> Problem:
    original = hashes.get(measure(folder, name, largest)[1])
    if original is not None:
        return Problem(name, "duplicate", f"a copy of {original}: readers of *.tar get its samples twice")
    return Problem(name, "foreign", "it does not belong to this set: move it elsewhere")


def repair_shards(
    outdir: str | os.PathLike[str], labeled: LabeledGenerator, *, strict: bool = False, workers: int = 2
) -> list[Problem]:
    """Regenerate the shards that `verify_shards` complains about; the others are not touched.

    Recorded attempts are replayed. With other versions or on another device than those of the manifest the bytes may
    differ: then the labels must agree with what is recorded (at most 0.5 % of the pixels in another class, mean score
    within 2 %), and the new hash is recorded together with its origin. Copies of shards under other names are removed;
    foreign tars are left alone.

    Args:
        outdir: path or URL of the set. One whose writing was interrupted is finished.
        labeled: the generator that made it; see `load_generator_of`.
        strict: accept the recorded bytes only.
        workers: threads that encode.

    Returns:
        what is still wrong: foreign tars.

    Raises:
        ShardError: another generator or an earlier format made the set, or what this generator makes differs too much
            (with `strict`, at all); that shard is then left as it is.
        OSError: the folder cannot be read or written.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(4), samples_per_shard=2)
        >>> (tmp / "shard-000001.tar").unlink()
        >>> [problem.kind for problem in verify_shards(tmp)]
        ['missing']
        >>> repair_shards(tmp, labeled), verify_shards(tmp)
        ([], [])
    """
    folder = Folder(outdir)
    found = _Recorded.of(folder)
    plan, recorded, manifest = found.plan, found.shards, found.manifest
    check_version(folder, plan)
    if labeled.fingerprint != plan.fingerprint:
        raise ShardError(
            f"{folder} was made by the checkpoint and recipe with fingerprint {plan.fingerprint[:16]}…, this is "
            f"{labeled.fingerprint[:16]}…: give the checkpoint that made it"
        )
    here = environment(labeled.device)
    origin = None if here == plan.made_with else here
    if strict and origin is not None and any(plan.name(n) not in recorded for n in range(plan.num_shards)):
        raise ShardError(f"some shards were never written, and strict accepts only what {plan.made_with} would write")
    for name in (WIDS_INDEX, MANIFEST):  # of a repair that was killed while it recorded its last shard
        folder.remove_leftovers(name)
    problems = verify_shards(outdir)
    known = dict(recorded)
    numbers = {plan.name(number): number for number in range(plan.num_shards)}
    broken = [numbers[problem.name] for problem in problems if problem.name in numbers]
    seen = [n for n in broken if plan.name(n) in recorded]
    fresh = [n for n in broken if plan.name(n) not in recorded]
    attempts = {i: a for n in seen for i, a in recorded[plan.name(n)].attempts.items()}

    def approve(shard: Shard) -> None:
        before = recorded.get(shard.name)
        if before is None or before.sha256 != shard.sha256:
            if before is not None:
                _compare(before, shard, strict)
            shard = replace(shard, origin=origin)
        else:
            shard = before
        known[shard.name] = shard
        if manifest is None:
            Progress(folder).add(plan, shard)

    def record_shards() -> None:
        if manifest is not None:
            write_manifest(folder, replace(manifest, shards=tuple(known[name] for name in numbers)))

    with ProgressBar(plan, broken, broken) as bar:
        for group, replayed in ((seen, attempts), (fresh, None)):
            for shard in write_numbers(labeled, plan, folder, group, approve, bar, workers=workers, attempts=replayed):
                if manifest is not None and known[shard.name] != recorded[shard.name]:
                    record_shards()
    for problem in problems:
        if problem.kind == "duplicate":
            folder.remove(problem.name)
    if any(problem.kind == "index" for problem in problems):
        record_shards()
    finish(folder, plan)
    return [problem for problem in problems if problem.kind == "foreign"]


def _compare(before: Shard, after: Shard, strict: bool) -> None:
    """ShardError unless a regenerated shard may replace the one that was recorded."""
    if strict:
        raise ShardError(
            f"{before.name}: regenerated it has other bytes (SHA-256 {after.sha256[:16]}…, recorded is "
            f"{before.sha256[:16]}…), which strict refuses; the shard was left as it is"
        )
    moved = max(_moved(counts, after.tallies[field]) for field, counts in before.tallies.items())
    scored = 0.0
    if before.uncertainty_score is not None and after.uncertainty_score is not None:
        scored = abs(after.uncertainty_score - before.uncertainty_score) / max(before.uncertainty_score, 1e-6)
    if moved > _MOVED or scored > _SCORE:
        raise ShardError(
            f"{before.name}: regenerated here, {moved:.2%} of what its labels count (such as pixels of a class) is "
            f"counted elsewhere (at most {_MOVED:.1%}), and the mean score differs by {scored:.1%} (at most "
            f"{_SCORE:.0%}); the shard was left as it is. Repair it with the versions and on the device of the manifest"
        )


def _moved(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of what is counted that is counted elsewhere."""
    return sum(abs(a - b) for a, b in zip(before, after, strict=True)) / 2 / max(sum(before), 1)


def load_generator_of(
    outdir: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
) -> LabeledGenerator:
    """The generator that made a shard set, with the recipe and the targets of its manifest.

    Args:
        outdir: path or URL of the set.
        checkpoint: path or name; None looks among the built-in checkpoints for the one with the recorded weights.
        device: as for `LabeledGenerator.from_pretrained`.

    Raises:
        ShardError: no built-in checkpoint made this set, or the one given has other weights.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", reject_fraction=0)
        >>> _ = write_shards(labeled, tmp, range(2))
        >>> load_generator_of(tmp, device="cpu").fingerprint == labeled.fingerprint
        True
    """
    folder = Folder(outdir)
    plan = _Recorded.of(folder).plan
    candidates = built_in() if checkpoint is None else [checkpoint]
    found = next((c for c in map(Checkpoint.open, candidates) if c.weights == plan.weights), None)
    if found is None and checkpoint is None:
        raise ShardError(f"no built-in checkpoint made {folder}: give the one that did (--checkpoint)")
    if found is None:
        raise ShardError(f"{checkpoint} has other weights than the checkpoint that made {folder}")
    return LabeledGenerator(
        found.build(device).with_targets(plan.targets),
        plan.recipe,
        calibration=found.calibration if plan.recipe == found.recipe else None,
        license=plan.license,
    )
