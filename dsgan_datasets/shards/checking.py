"""Shards -> what is wrong with them, and how it is mended."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Literal

from tqdm import tqdm

from dsgan_datasets.checkpoints.description import describe
from dsgan_datasets.checkpoints.directory import built_in
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import (
    MANIFEST,
    WIDS_INDEX,
    Manifest,
    Plan,
    Progress,
    Shard,
    ShardError,
    environment,
)
from dsgan_datasets.shards.tar import sha256
from dsgan_datasets.shards.writing import ProgressBar, finish, write_manifest, write_numbers

Kind = Literal[
    "missing", "truncated", "changed", "swapped", "interleaved", "duplicate", "foreign", "index", "unfinished"
]

#: Largest share of a shard's pixels that may have another class, and largest difference of its mean score (nats,
#: relative), when it is made again with other versions or on another device.
_PIXELS, _SCORE = 0.005, 0.02


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
    """

    name: str
    kind: Kind
    detail: str

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
        >>> verify_shards(tmp)
        [Problem(name='shard-000001.tar', kind='missing', detail='there is no such file')]
    """
    folder = Folder(outdir)
    plan, recorded, finished = _recorded(folder)
    names = folder.names()
    expected = [plan.name(number) for number in range(plan.num_shards)]
    hashes = {shard.sha256: shard.name for shard in recorded.values()}
    problems = []
    for number, name in enumerate(tqdm(expected, "verifying", unit="shard", delay=2)):
        shard = recorded.get(name)
        if shard is None or (name not in names and not finished):
            problems.append(Problem(name, "unfinished", "not written yet: run the same `dsgan shards write` again"))
        elif name not in names:
            problems.append(Problem(name, "missing", "there is no such file"))
        elif (found := sha256(folder, name)) != shard.sha256:
            problems.append(_diagnosis(folder, plan, number, shard, hashes.get(found)))
    for name in names:
        if name.endswith(".tar") and name not in expected:
            problems.append(_stray(folder, name, hashes))
    if finished and not problems and (WIDS_INDEX not in names or folder.read(WIDS_INDEX) != _index(plan, recorded)):
        problems.append(Problem(WIDS_INDEX, "index", "it does not list the shards of the manifest"))
    return sorted(problems, key=lambda problem: problem.name)


def _recorded(folder: Folder) -> tuple[Plan, dict[str, Shard], bool]:
    """(plan, what is recorded of its shards, whether the set is finished)."""
    progress = Progress(folder)
    if MANIFEST not in folder.names() and (plan := progress.read_plan()) is not None:
        return plan, progress.entries(plan), False
    manifest = Manifest.read(folder)
    return manifest.plan, manifest.by_name, True


def _index(plan: Plan, recorded: Mapping[str, Shard]) -> bytes:
    return Manifest(plan, tuple(recorded.values())).wids_index()


def _diagnosis(folder: Folder, plan: Plan, number: int, shard: Shard, same_as: str | None) -> Problem:
    """What happened to a shard whose bytes are not those recorded."""
    if same_as is not None:
        return Problem(shard.name, "swapped", f"it holds what {same_as} should hold")
    size = folder.size(shard.name) or 0
    with folder.open(shard.name) as file:
        found = _entries(file)
    expected = [f"{i:09d}.{extension}" for i in plan.indices(number) for extension in plan.extensions]
    if size < shard.bytes:
        whole = min(len(found) // len(plan.extensions), shard.count)
        return Problem(
            shard.name,
            "truncated",
            f"{size} bytes instead of {shard.bytes}; it ends after {whole} of {shard.count} records",
        )
    if strangers := [name for name in found if name not in set(expected)]:
        return Problem(shard.name, "interleaved", f"it holds records of elsewhere, {strangers[0]} first")
    if found != sorted(found, key=expected.index) or len(set(found)) < len(found):
        place = next(a for a, b in zip(found, expected, strict=False) if a != b)
        return Problem(shard.name, "interleaved", f"its records are out of order, from {place} on")
    readable = f"{len(found)} of {len(expected)} files in it can be found"
    return Problem(shard.name, "changed", f"some of its {size} bytes are not those that were written; {readable}")


def _entries(file: IO[bytes]) -> list[str]:
    """Names of the files in a tar, as far as it can be read."""
    names: list[str] = []
    with suppress(tarfile.TarError, OSError, EOFError, ValueError), tarfile.open(fileobj=file, mode="r|") as tar:
        names.extend(entry.name for entry in tar)
    return names


def _stray(folder: Folder, name: str, hashes: Mapping[str, str]) -> Problem:
    original = hashes.get(sha256(folder, name))
    if original is not None:
        return Problem(name, "duplicate", f"a copy of {original}: who reads *.tar gets its samples twice")
    return Problem(name, "foreign", "it does not belong to this set: move it elsewhere")


def repair_shards(
    outdir: str | os.PathLike[str], labeled: LabeledGenerator, *, strict: bool = False, workers: int = 2
) -> list[Problem]:
    """Make the shards again that `verify_shards` complains about; the others are not touched.

    Shards are made of the recorded attempts. With other versions or on another device than those of the manifest the
    bytes may differ: then the labels must agree with what is recorded (at most 0.5 % of the pixels in another class,
    mean score within 2 %), and the new hash is recorded together with its origin. Copies of shards under other names
    are removed; foreign tars are left alone.

    Args:
        outdir: path or URL of the set. One whose writing was interrupted is finished.
        labeled: the generator that made it; see `load_generator_of`.
        strict: take nothing but the recorded bytes.
        workers: threads that encode.

    Returns:
        what is still wrong: foreign tars.

    Raises:
        ShardError: another generator made the set, or what this one makes differs too much (with `strict`, at all);
            that shard is then left as it is.
        OSError: the folder cannot be read or written.
    """
    folder = Folder(outdir)
    plan, recorded, finished = _recorded(folder)
    if labeled.fingerprint != plan.fingerprint:
        raise ShardError(
            f"{folder} was made by the checkpoint and recipe with fingerprint {plan.fingerprint[:16]}…, this is "
            f"{labeled.fingerprint[:16]}…: give the checkpoint that made it"
        )
    here = environment(labeled.device)
    origin = None if here == plan.made_with else here
    if strict and origin is not None and any(plan.name(n) not in recorded for n in range(plan.num_shards)):
        raise ShardError(f"some shards were never written, and strict takes no versions or device but {plan.made_with}")
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
        if not finished:
            Progress(folder).add(shard)

    with ProgressBar(plan, broken, broken) as bar:
        for group, replayed in ((seen, attempts), (fresh, None)):
            for shard in write_numbers(labeled, plan, folder, group, approve, bar, workers=workers, attempts=replayed):
                if finished and known[shard.name] != recorded[shard.name]:
                    write_manifest(folder, Manifest(plan, tuple(known[name] for name in numbers)))
    for problem in problems:
        if problem.kind == "duplicate":
            folder.remove(problem.name)
    if finished and any(problem.kind == "index" for problem in problems):
        write_manifest(folder, Manifest(plan, tuple(known[name] for name in numbers)))
    finish(folder, plan)
    return [problem for problem in problems if problem.kind == "foreign"]


def _compare(before: Shard, after: Shard, strict: bool) -> None:
    """ShardError unless a shard that was made again may stand for the one that was recorded."""
    if strict:
        raise ShardError(
            f"{before.name}: made again it has other bytes (SHA-256 {after.sha256[:16]}…, recorded is "
            f"{before.sha256[:16]}…), which strict refuses; the shard was left as it is"
        )
    moved = sum(abs(a - b) for a, b in zip(before.pixels, after.pixels, strict=True)) / 2 / max(sum(before.pixels), 1)
    scored = abs(after.score - before.score) / max(before.score, 1e-6)
    if moved > _PIXELS or scored > _SCORE:
        raise ShardError(
            f"{before.name}: made again here, {moved:.2%} of the pixels have another class (at most {_PIXELS:.1%}) and "
            f"the mean score differs by {scored:.1%} (at most {_SCORE:.0%}); the shard was left as it is. Repair it "
            "with the versions and on the device of the manifest"
        )


def load_generator_of(
    outdir: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
) -> LabeledGenerator:
    """The generator that made a shard set, with the recipe and the classes of its manifest.

    Args:
        outdir: path or URL of the set.
        checkpoint: path or name; None looks among the built-in checkpoints for the one with the recorded weights.
        device: as for `LabeledGenerator.from_pretrained`.

    Raises:
        ShardError: no built-in checkpoint made this set, or the one given has other weights.
    """
    folder = Folder(outdir)
    plan, _, _ = _recorded(folder)
    if checkpoint is None:
        checkpoint = next((name for name in built_in() if describe(name).weights == plan.weights), None)
        if checkpoint is None:
            raise ShardError(f"no built-in checkpoint made {folder}: give the one that did (--checkpoint)")
    fields = {f.name: getattr(plan.recipe, f.name) for f in dataclasses.fields(plan.recipe)}
    # Its rules count the classes of the manifest's schema, which may be coarser: they are applied below.
    loaded = LabeledGenerator.from_pretrained(
        checkpoint, device=device, **{**fields, "threshold": None, "reject_fraction": 0.0, "require": ()}
    )
    if loaded.weights != plan.weights:
        raise ShardError(f"{checkpoint} has other weights than the checkpoint that made {folder}")
    same_rules = not plan.recipe.require or loaded.schema == plan.schema
    calibration = describe(checkpoint, **fields).calibration if same_rules else None
    parts = (loaded.generator, loaded.interpreter, plan.schema, plan.recipe)
    return LabeledGenerator(*parts, calibration=calibration, license=plan.license)
