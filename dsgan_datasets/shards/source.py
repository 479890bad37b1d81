"""Shards as a source of samples: number -> sample, from front to back or any one at once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, BinaryIO

import torch

from dsgan_datasets.checks import names
from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.shards.codec import decode
from dsgan_datasets.shards.errors import REPAIR_HINT, ShardError, damage_as_shard_error, damaged, no_file
from dsgan_datasets.shards.folder import location_text
from dsgan_datasets.shards.http import WholeFilesOnly
from dsgan_datasets.shards.jobs import byte_bar
from dsgan_datasets.shards.locations import Locations, Place, ShardSet, was_replaced
from dsgan_datasets.shards.stored import StoredFile
from dsgan_datasets.shards.tar import is_as_recorded, parse_record
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import schema_of

#: Bytes between two records that are read together with them rather than skipped.
_SMALL_GAP = 1 << 16
#: Bytes that are read at once, at most, if they are several records.
_LONGEST_READ = 1 << 24


class ShardSource:
    """Tar shards, of which only the manifest is read until a sample is asked for; a `SampleSource`.

    Samples are numbered by their place in the shards, 0 … len - 1; `sample.index` is what they were generated as.
    Nothing that a tar or a URL says is executed: there are no "pipe:" URLs and no pickles.

    Args:
        path_or_urls: a folder or URL of shards, or several; see `ShardSet`.
        check_hashes: read each shard once in full before its first sample, and compare its SHA-256. That is always so
            for sets of format 1, whose manifests have no checksums of records.
        read_together: numbers that `stream` takes at a time, whose records are read in the order of the files.
        whole_files: where a web server gives no parts of files, `stream` copies each shard to a temporary file before
            its first sample. False makes that an error, as it always is for `batch`: numbers in any order would copy a
            shard for nearly every sample.

    Attributes:
        shards: the `ShardSet`.

    Raises:
        ShardError: no shards, or a damaged manifest; when samples are read, a missing or damaged shard.
        OSError: they cannot be read.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp / "faces", range(100, 103))
        >>> source = ShardSource(tmp / "faces")
        >>> len(source), source.name, source.batch([2, 0]).index
        (3, 'faces', tensor([102, 100]))
    """

    def __init__(
        self, path_or_urls: Locations, *, check_hashes: bool = False, read_together: int = 1, whole_files: bool = True
    ) -> None:
        several = [path_or_urls] if isinstance(path_or_urls, str | os.PathLike) else path_or_urls
        if not isinstance(several, Iterable) or isinstance(several, bytes | Mapping) or hasattr(several, "dtype"):
            raise ValueError(f"expected the path or URL of a folder of shards, or a list of them, not {several!r:.80}")
        self.locations = tuple(map(location_text, several))
        self.shards = ShardSet(self.locations)
        self.check_hashes = check_hashes
        self.read_together = read_together
        self.whole_files = whole_files
        self._checked: set[str] = set()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.shards)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.shards)

    @property
    def name(self) -> str:
        """Last part of the first location."""
        path, _, rest = self.locations[0].partition("?")
        path = path if path.startswith("http") or not rest else self.locations[0]
        return path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".tar")

    @property
    def identity(self) -> dict[str, Any]:
        """The locations, without credentials."""
        return {"shards": tuple(map(without_credentials, self.locations))}

    @property
    def schema(self) -> Any:
        """What the class ids of masks mean; ValueError if there are none."""
        return schema_of(self.targets)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The labels of each sample."""
        return self.shards.targets

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.shards.image_size

    @property
    def license(self) -> str:
        """Of the samples."""
        return self.shards.license

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def group(self) -> int:
        """Samples of a view group, if the shards hold whole ones; else 1."""
        return self.shards.group

    @property
    def block(self) -> int:
        """1: each sample costs the same."""
        return 1

    @cached_property
    def fingerprint(self) -> str:
        """Of the shards' contents, in order; not that of the checkpoint that made them."""
        hashes = "".join(place.shard.sha256 for place in self.shards.places)
        return hashlib.sha256(hashes.encode("ascii")).hexdigest()

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        """The samples of some numbers, in the order asked for; each shard stays open while it is read.

        Args:
            indices: numbers in 0 … len - 1.
            seed: has no effect: the seed is that of the shards.
            extras: fields that the samples must have. All fields that are stored are read.

        Raises:
            ShardError: a shard is missing or damaged.
            ValueError: the shards do not hold an extra.
        """
        self.check_extras(extras)
        return self._stream(iter(indices))

    def _stream(self, numbers: Iterator[int]) -> Iterator[Sample]:
        with _OpenShard(self, whole_files=self.whole_files) as reader:
            while chunk := list(islice(numbers, self.read_together)):
                if len(chunk) == 1:
                    yield reader.sample(chunk[0])
                    continue
                parts = reader.parts(sorted(set(chunk)))
                for number in chunk:
                    yield _decoded(*self.shards.find(number), parts[number])

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """The samples of some numbers, in the order asked for; see `stream`."""
        self.check_extras(extras)
        with _OpenShard(self, whole_files=False) as reader:
            return SampleBatch.stack([reader.sample(number) for number in indices])

    def check_extras(self, extras: Collection[str]) -> None:
        """ValueError if the shards do not hold such a field."""
        stored = {extension.partition(".")[0] for extension in self.shards.extensions}
        for extra in names("extras", extras):
            if extra not in ("uncertainty", "latent"):
                hint = ": probabilities are not stored, stream from the checkpoint" if extra == "probabilities" else ""
                raise ValueError(f"extras are uncertainty and latent, not {extra!r}{hint}")
            if extra not in stored:
                raise ValueError(
                    f"these shards do not hold {extra!r}: write them with Encoding({extra}=True) "
                    f"(`dsgan shards write --{extra}`)"
                )

    def _check_hash(self, place: Place) -> None:
        shard = place.shard
        if (self.check_hashes or shard.checksums is None) and place.where not in self._checked:
            if not is_as_recorded(place.folder, shard):
                raise damaged(place.where, "its SHA-256 is not the recorded one", REPAIR_HINT)
            self._checked.add(place.where)


class _OpenShard:
    """Reads records; the shard that was read last stays open.

    Args:
        source: whose records they are.
        whole_files: copy a shard to a temporary file if its server gives no parts of files.
    """

    def __init__(self, source: ShardSource, *, whole_files: bool) -> None:
        self._source = source
        self._whole_files = whole_files
        self._place: Place | None = None
        self._file: BinaryIO | StoredFile | None = None

    def __enter__(self) -> _OpenShard:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def sample(self, number: int) -> Sample:
        """One sample."""
        place, within = self._source.shards.find(number)
        return _decoded(place, within, self._read(place, within, within + 1))

    def parts(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """The bytes of some records, whose numbers rise; records that lie near each other are read at once."""
        found: dict[int, bytes] = {}
        located = [(number, *self._source.shards.find(number)) for number in numbers]
        first = 0
        while first < len(located):
            _, place, begin = located[first]
            offsets, last = place.shard.offsets, first
            while (
                last + 1 < len(located)
                and located[last + 1][1] is place
                and offsets[located[last + 1][2]] - offsets[located[last][2] + 1] <= _SMALL_GAP
                and offsets[located[last + 1][2] + 1] - offsets[begin] <= _LONGEST_READ
            ):
                last += 1
            content = memoryview(self._read(place, begin, located[last][2] + 1))
            for number, _, within in located[first : last + 1]:
                found[number] = bytes(content[offsets[within] - offsets[begin] : offsets[within + 1] - offsets[begin]])
            first = last + 1
        return found

    def _read(self, place: Place, begin: int, end: int) -> bytes:
        """The bytes of the records begin … end - 1 of a shard, fewer if it ends early."""
        offsets = place.shard.offsets
        try:
            return self._part(place, offsets[begin], offsets[end])
        except WholeFilesOnly as error:
            if not self._whole_files:
                raise ShardError(str(error)) from None
            self._place, self._file = place, _copied(place)
            return self._part(place, offsets[begin], offsets[end])
        except FileNotFoundError as error:
            raise damaged(place.where, no_file(error), REPAIR_HINT) from error

    def _part(self, place: Place, start: int, end: int) -> bytes:
        if self._file is None or self._place is not place:
            self._close()
            self._source._check_hash(place)
            self._place, self._file = place, place.folder.open(place.shard.name)
        self._file.seek(start)
        return self._file.read(end - start)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _copied(place: Place) -> BinaryIO:
    """A shard in a temporary file, which is gone when it is closed."""
    name, left = place.shard.name, place.shard.bytes
    copy: BinaryIO = tempfile.TemporaryFile(prefix="dsgan-shard-")  # noqa: SIM115
    with place.folder.open_whole(name) as file, byte_bar(f"copying {name}", [place.shard]) as bar:
        while block := file.read(min(left, 1 << 20)):
            copy.write(block)
            left -= len(block)
            bar.update(len(block))
    return copy


def _decoded(place: Place, within: int, part: bytes) -> Sample:
    """The sample in the bytes of its record, which must be what manifest and plan say of it."""
    shard, plan = place.shard, place.plan
    index = shard.first + within
    facts = {**plan.facts, "index": index, "attempt": shard.attempts.get(index, 0)}
    hint = REPAIR_HINT if place.folder.local is not None else f"Or it was changed on its way. {REPAIR_HINT}"
    try:
        with damage_as_shard_error(place.where, hint):
            files = parse_record(part, shard, within)
            if tuple(files) != plan.extensions:
                expected = ", ".join(plan.extensions)
                raise ValueError(f"record {index:09d} holds {', '.join(files)!r:.200}, the manifest says {expected}")
            try:
                return decode(files, plan.targets, plan.image_size, facts)
            except Exception as error:
                raise ValueError(f"record {index:09d}, {error}") from error
    except ShardError as error:
        if was_replaced(place):
            raise ShardError(
                f"{place.folder} holds another set, or a repaired one, since it was opened: open it anew"
            ) from error
        raise
