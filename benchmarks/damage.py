"""Flips bits and zeroes pages of shards: what is read afterwards is refused, or equal to the original in every fact.

Two sets, one of PNG and one of JPEG images, with masks, facts, latents and uncertainty. Each damage is done to one
file: a bit of a picture, a JSON, an .npy, a tar header, the padding between them, or the manifest; or a page of 4 kB of
a tar, as a bad sector or a power cut leaves it. Then the damaged records and their neighbors are read by number, the
shard is read as a stream, and the set is verified. Another error than ShardError or OSError, a sample that differs from
the original, or damage that `verify_shards` does not find is a violation: the run then exits with 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from measuring import conclude, cpu_name
from tqdm import tqdm

from dsgan_datasets import LabeledGenerator, Sample, ShardDataset, ShardError, ShardMapDataset, verify_shards
from dsgan_datasets import write_shards as write
from dsgan_datasets.shards import Encoding, Folder, Manifest
from dsgan_datasets.shards.tar import read_record

EXAMPLE = "example: python benchmarks/damage.py --flips 3000 --pages 500 --out benchmarks/results/damage.json"
SAMPLES, SAMPLES_PER_SHARD, PAGE = 64, 16, 4096
FORMATS = ("png", "jpg")

Result = dict[str, Any]


@dataclass(frozen=True)
class Region:
    """Bytes of one kind in one file."""

    file: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Damage:
    """What is done to a file: bytes that take the place of others.

    Attributes:
        kind: what is damaged.
        at: where in the file.
    """

    file: str
    kind: str
    at: int
    content: bytes


class Victim:
    """A set that is damaged, read, and made whole again.

    Args:
        labeled: makes the samples.
        folder: for the set.
        image_format: of its images.
    """

    def __init__(self, labeled: LabeledGenerator, folder: Path, image_format: Any) -> None:
        self.folder, self.image_format = folder, image_format
        encoding = Encoding(image_format, uncertainty=True, latent=True)
        write(labeled, folder, range(SAMPLES), samples_per_shard=SAMPLES_PER_SHARD, encoding=encoding)
        self.whole = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.manifest = Manifest.read(Folder(folder))
        self.samples = list(ShardDataset(folder))
        self.files = [
            read_record(Folder(folder), shard, number)
            for shard in self.manifest.shards
            for number in range(shard.count)
        ]
        self.regions = [region for shard in self.manifest.shards for region in regions_of(folder / shard.name)]
        self.regions.append(Region("manifest.json", "manifest", 0, len(self.whole["manifest.json"])))

    def flips(self, random: Random) -> Iterator[Damage]:
        """Flipped bits without end, as many of each kind of bytes as of any other."""
        kinds = sorted({region.kind for region in self.regions})
        while True:
            for kind in kinds:
                region = random.choice([region for region in self.regions if region.kind == kind])
                at = random.randrange(region.start, region.end)
                byte = self.whole[region.file][at] ^ 1 << random.randrange(8)
                yield Damage(region.file, kind, at, bytes([byte]))

    def pages(self, random: Random) -> Iterator[Damage]:
        """Zeroed pages, each once in a round; a page that holds zeros only cannot be damaged."""
        tars = [shard.name for shard in self.manifest.shards]
        pages = [(name, at) for name in tars for at in range(0, len(self.whole[name]), PAGE)]
        while True:
            for name, at in random.sample(pages, len(pages)):
                if any(page := self.whole[name][at : at + PAGE]):
                    yield Damage(name, "page", at, bytes(len(page)))

    def try_out(self, damage: Damage) -> tuple[str, list[str]]:
        """ "refused" or "equal", and violations."""
        path, data = self.folder / damage.file, self.whole[damage.file]
        path.write_bytes(data[: damage.at] + damage.content + data[damage.at + len(damage.content) :])
        try:
            return self._read(damage)
        finally:
            path.write_bytes(data)

    def _read(self, damage: Damage) -> tuple[str, list[str]]:
        violations: list[str] = []
        refused = False
        for read in (self._by_number, self._as_stream, self._raw):
            try:
                violations += read(damage)
            except (ShardError, OSError):
                refused = True
            except Exception as error:
                violations.append(f"{read.__name__[1:]}: {type(error).__name__}: {error}")
        try:
            found = bool(verify_shards(self.folder))
        except ShardError:
            found = True
        if not found:
            violations.append("verify_shards finds nothing")
        return "refused" if refused else "equal", violations

    def _numbers(self, damage: Damage) -> range:
        """The damaged records, and one beside them."""
        if damage.file not in self.manifest.by_name:
            return range(2)
        shard = self.manifest.by_name[damage.file]
        first = bisect_right(shard.offsets, damage.at) - 1
        last = bisect_right(shard.offsets, damage.at + len(damage.content) - 1) - 1
        return range(shard.first + max(first - 1, 0), shard.first + min(last + 2, shard.count))

    def _by_number(self, damage: Damage) -> list[str]:
        dataset, error, wrong = ShardMapDataset(self.folder), None, []
        for number in self._numbers(damage):
            try:
                if not same(dataset[number], self.samples[number]):
                    wrong.append(f"sample {number} differs")
            except (ShardError, OSError) as refusal:
                error = refusal
        if error is not None and not wrong:
            raise error
        return wrong

    def _as_stream(self, damage: Damage) -> list[str]:
        is_tar = damage.file in self.manifest.by_name
        dataset = ShardDataset(self.folder / damage.file if is_tar else self.folder)
        first = self.manifest.by_name[damage.file].first if is_tar else 0
        count = first  # of what a consumer has been given when an error comes
        for sample in dataset:
            if not same(sample, self.samples[count]):
                return [f"the stream's sample {count} differs"]
            count += 1
        return [] if count - first == len(dataset) else [f"the stream ends after {count - first} samples"]

    def _raw(self, damage: Damage) -> list[str]:
        """Every byte of the records, facts included."""
        error, wrong = None, []
        for number in self._numbers(damage):
            which, within = divmod(number, SAMPLES_PER_SHARD)
            try:
                if read_record(Folder(self.folder), self.manifest.shards[which], within) != self.files[number]:
                    wrong.append(f"record {number} differs")
            except (ShardError, OSError) as refusal:
                error = refusal
        if error is not None and not wrong:
            raise error
        return wrong


def regions_of(path: Path) -> list[Region]:
    """What the bytes of a tar are: headers, files by their extension, padding, and the end of the archive."""
    found = []
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    for member in members:
        end = member.offset_data + member.size
        padded = -(-end // 512) * 512
        found.append(Region(path.name, "header", member.offset, member.offset_data))
        found.append(Region(path.name, member.name.partition(".")[2], member.offset_data, end))
        if end < padded:
            found.append(Region(path.name, "padding", end, padded))
    return [*found, Region(path.name, "end of archive", padded, path.stat().st_size)]


def same(a: Sample, b: Sample) -> bool:
    """Whether two samples are equal, bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def run(flips: int, pages: int, seed: int) -> Result:
    """Damage that often; the result counts outcomes by what was damaged."""
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    counts: dict[str, Counter[str]] = {}
    violations: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dsgan-damage-") as scratch, tqdm(total=flips + pages) as bar:
        victims = [Victim(labeled, Path(scratch) / image_format, image_format) for image_format in FORMATS]
        for what, total in (("flips", flips), ("pages", pages)):
            sources = [getattr(victim, what)(Random(f"{seed} {victim.image_format} {what}")) for victim in victims]
            for number in range(total):
                victim, source = victims[number % 2], sources[number % 2]
                damage = next(source)
                outcome, wrong = victim.try_out(damage)
                row = counts.setdefault(f"{what}, {victim.image_format} set, {damage.kind}", Counter())
                row.update([outcome, *["violations"] * bool(wrong)])
                violations += [f"{damage.kind} at {damage.at} of {damage.file}: {text}" for text in wrong]
                bar.update(1)
        for victim in victims:
            shutil.rmtree(victim.folder)
    outcomes = sum(counts.values(), Counter())
    return {
        "benchmark": "damage",
        "fingerprint": labeled.fingerprint,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seed": seed,
        "flips": flips,
        "pages": pages,
        "refused": outcomes["refused"],
        "equal": outcomes["equal"],
        "violations": violations[:100],
        "by_what_was_damaged": {name: dict(sorted(row.items())) for name, row in sorted(counts.items())},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=3000, help="flipped bits (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=500, help="zeroed pages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args(arguments)
    result = run(args.flips, args.pages, args.seed)
    for name, row in result["by_what_was_damaged"].items():
        print(f"{row.get('refused', 0):6} refused {row.get('equal', 0):6} equal   {name}")
    print(f"{result['refused']:6} refused {result['equal']:6} equal   in all")
    return conclude(result, "violations", args.out)


if __name__ == "__main__":
    sys.exit(main())
