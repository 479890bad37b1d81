"""Tars -> samples: a stream (sequential reading, as training wants it) and a map (any record, at once)."""

from __future__ import annotations

import io
import os
import random
import tarfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import IO, Any, NamedTuple

from torch.utils.data import Dataset

from dsgan_datasets.checks import integer, position
from dsgan_datasets.latents import check_seed
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards.codec import decode
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import MANIFEST, Manifest, Plan, Shard, ShardError
from dsgan_datasets.shards.tar import read_record, sha256
from dsgan_datasets.sources.streaming import ResumableStream, Transforms, Uneven, transformed
from dsgan_datasets.targets.segmentation import LabelSchema

_WAY_OUT = "`dsgan shards verify FOLDER` says what is wrong, with --repair it makes damaged shards again"

Locations = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class _Place(NamedTuple):
    """A tar and the folder it lies in."""

    folder: Folder
    shard: Shard


class ShardSet:
    """Shards of one or several sets, in order, as their manifests describe them; no tar is opened.

    Args:
        path_or_urls: a folder that `write_shards` made, or tars in such folders, or several of these; paths or URLs of
            any protocol that fsspec knows. Braces are expanded: ``"s3://bucket/faces/shard-{000000..000009}.tar"``.

    Attributes:
        schema: classes of the masks.
        license: of the samples.
        image_size: (H, W).
        fingerprints: of checkpoint and recipe, one a set.

    Raises:
        ShardError: no manifest, a damaged one, a tar that it does not list, or sets that do not fit together.
        OSError: a folder cannot be read.
    """

    def __init__(self, path_or_urls: Locations) -> None:
        locations = [path_or_urls] if isinstance(path_or_urls, str | os.PathLike) else list(path_or_urls)
        manifests: dict[str, tuple[Folder, Manifest]] = {}
        self._places: list[_Place] = []
        for location in (found for given in locations for found in _expanded(os.fspath(given))):
            parent, name = _split(location)
            if parent not in manifests:
                folder = Folder(parent)
                manifests[parent] = folder, Manifest.read(folder)
            folder, manifest = manifests[parent]
            self._places += [_Place(folder, shard) for shard in _shards(manifest, name, folder)]
        if not self._places:
            raise ShardError("no shards were given: name a folder that `dsgan shards write` made")
        plans = [manifest.plan for _, manifest in manifests.values()]
        _check_alike(plans, list(manifests))
        self.schema: LabelSchema = plans[0].schema
        self.license = plans[0].license
        self.image_size = plans[0].image_size
        self.fingerprints = tuple(plan.fingerprint for plan in plans)
        self._ends = list(accumulate(place.shard.count for place in self._places))

    def __len__(self) -> int:
        """Samples in all."""
        return self._ends[-1]

    @property
    def places(self) -> Sequence[_Place]:
        """The shards and where they lie."""
        return self._places

    def find(self, number: int) -> tuple[_Place, int]:
        """The shard of a sample, and its place in that."""
        which = bisect_right(self._ends, number)
        return self._places[which], number - (self._ends[which] - self._places[which].shard.count)

    def files(self, number: int) -> dict[str, bytes]:
        """The files of one record, extension -> content; reads no more than these.

        Raises:
            ShardError: the shard is missing or damaged.
        """
        (folder, shard), within = self.find(number)
        try:
            return read_record(folder, shard, within)
        except (ValueError, FileNotFoundError) as error:
            raise _damaged(folder, shard, error) from error


class ShardMapDataset(Dataset[Sample]):
    """Map-style: number -> sample, read by the offsets in the manifest.

    Args:
        path_or_urls: see `ShardSet`.
        transforms: torchvision v2 transforms of (image, mask), given as tv_tensors.Image and tv_tensors.Mask.

    Raises:
        ShardError, OSError: as `ShardSet`; when a sample is read, if its shard is missing or damaged.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(10, 14), samples_per_shard=2)
        >>> dataset = ShardMapDataset(tmp)
        >>> len(dataset), dataset[-1].index, torch.equal(dataset[0].image, labeled.generate([10]).image[0])
        (4, tensor(13), True)
    """

    def __init__(self, path_or_urls: Locations, *, transforms: Transforms | None = None) -> None:
        self.shards = ShardSet(path_or_urls)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Sample:
        """One sample; negative indices count from the end, IndexError beyond it."""
        number = position(index, len(self))
        files = self.shards.files(number)
        try:
            sample = decode(files)
        except ValueError as error:
            raise _damaged(*self.shards.find(number)[0], error) from error
        return sample if self.transforms is None else transformed(sample, self.transforms)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples."""
        return [self[index] for index in indices]

    @property
    def schema(self) -> LabelSchema:
        """Classes of the masks."""
        return self.shards.schema

    @property
    def license(self) -> str:
        """Of the samples."""
        return self.shards.license

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.shards.image_size


class ShardDataset(ResumableStream):
    """A stream of the samples in shards, read from front to back; they are those that the generator gave.

    An epoch is cut into one run of neighboring samples for each rank, and that into one for each worker: no gap and no
    overlap, at most one sample more or less, with any number of shards. With `shuffle`, shards come in another order
    every epoch, and samples are drawn from a buffer; both depend only on seed and epoch.

    Nothing that a tar or a URL says is executed: there are no "pipe:" URLs and no pickles (what WDS_SECURE=1 asks of
    webdataset).

    Args:
        path_or_urls: see `ShardSet`.
        shuffle: samples in the shuffling buffer; 0 keeps the order.
        seed: of the shuffling.
        rank: of this process; None asks torch.distributed when iteration starts (0 if it is not initialized).
        world_size: number of ranks; None likewise.
        uneven: when the samples do not divide by the world size: "keep" gives some ranks one more, "drop" leaves out
            the last ones, "pad" repeats the first ones.
        repeat: make `set_epoch` keep the order of epoch 0.
        check_hashes: read each shard once in full before its first sample, and compare its SHA-256.
        transforms: torchvision v2 transforms of (image, mask), given as tv_tensors.Image and tv_tensors.Mask.

    Raises:
        ShardError, OSError: as `ShardSet`; while iterating, if a shard is missing or damaged.
        ImportError: webdataset is not installed.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(5), samples_per_shard=2)
        >>> [int(sample.index) for sample in ShardDataset(tmp)]
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        path_or_urls: Locations,
        *,
        shuffle: int = 0,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "keep",
        repeat: bool = False,
        check_hashes: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        super().__init__(rank=rank, world_size=world_size, transforms=transforms, uneven=uneven)
        _webdataset()
        self.shards = ShardSet(path_or_urls)
        self.shuffle = integer("shuffle", shuffle, 0)
        self.seed = check_seed(seed)
        self.repeat = repeat
        self.check_hashes = check_hashes

    def __iter__(self) -> Iterator[Sample]:
        """Samples of this consumer, one by one."""
        with self._resumed() as consumed:
            for record in islice(self._records(), consumed, None):
                self._consumed += 1
                files = {extension: content for extension, content in record.items() if not extension.startswith("__")}
                try:
                    sample = decode(files)
                except ValueError as error:
                    where = f"{record['__url__']}, record {record['__key__']},"
                    raise ShardError(f"{where} is damaged: {error}. {_WAY_OUT}") from error
                yield sample if self.transforms is None else transformed(sample, self.transforms)

    def _records(self) -> Iterator[dict[str, Any]]:
        """Undecoded records of this consumer's share of the epoch, in order: a webdataset pipeline."""
        wds = _webdataset()
        epoch = 0 if self.repeat else int(self._epoch)
        files = wds.tariterators.tar_file_expander(self._pieces(epoch))
        records: Iterator[dict[str, Any]] = iter(wds.tariterators.group_by_keys(files))
        if self.shuffle:
            draws = random.Random(f"{self.seed} {epoch} {self._consumer()[0]}")
            records = wds.filters.shuffle(self.shuffle, initial=self.shuffle, rng=draws)(records)
        try:
            yield from records
        except tarfile.TarError as error:  # webdataset appends the URL to the error's arguments
            raise ShardError(f"{error.args[-1]} is damaged: {error.args[0]}. {_WAY_OUT}") from error

    def _pieces(self, epoch: int) -> Iterator[dict[str, Any]]:
        """Opened runs of records, as webdataset wants them: {"url", "stream"}."""
        places = list(self.shards.places)
        if self.shuffle:
            random.Random(f"{self.seed} {epoch}").shuffle(places)
        for start, stop in self._runs():
            at = 0
            for folder, shard in places:
                begin, last = max(start - at, 0), min(stop - at, shard.count)
                at += shard.count
                if begin < last:
                    yield from self._piece(folder, shard, begin, last)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """This consumer's share of the epoch; one that "pad" leads beyond the end goes on at the beginning."""
        length = len(self.shards)
        first, end = self._share()
        while first < end:
            start = first % length
            stop = min(length, start + end - first)
            yield start, stop
            first += stop - start

    def _piece(self, folder: Folder, shard: Shard, begin: int, last: int) -> Iterator[dict[str, Any]]:
        url = folder.at(shard.name)
        try:
            if self.check_hashes and sha256(folder, shard.name) != shard.sha256:
                raise ValueError("its SHA-256 is not the recorded one")
            with folder.open(shard.name) as file:
                file.seek(shard.offsets[begin])
                part = _Part(file, shard.offsets[last] - shard.offsets[begin])
                yield {"url": url, "stream": part}
                if part.left:
                    raise ValueError(f"it ends {part.left} bytes early")
        except (ValueError, FileNotFoundError) as error:
            raise _damaged(folder, shard, error) from error

    def _share(self) -> tuple[int, int]:
        """First sample of this consumer in the order of the epoch, and the one after its last."""
        rank, world_size = self._rank_and_world_size()
        consumer, consumers = self._consumer()
        worker, workers = consumer // world_size, consumers // world_size
        total = self._evened(len(self.shards))
        begin, end = total * rank // world_size, total * (rank + 1) // world_size
        return begin + (end - begin) * worker // workers, begin + (end - begin) * (worker + 1) // workers

    def __len__(self) -> int:
        """Samples that this rank sees in an epoch."""
        rank, world_size = self._rank_and_world_size()
        total = self._evened(len(self.shards))
        return total * (rank + 1) // world_size - total * rank // world_size

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprints": list(self.shards.fingerprints),
            "samples": len(self.shards),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "uneven": self.uneven,
            "repeat": self.repeat,
            "consumers": self._consumer()[1],
        }

    @property
    def schema(self) -> LabelSchema:
        """Classes of the masks."""
        return self.shards.schema


class _Part(io.RawIOBase):
    """The next so many bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self.file, self.left = file, length

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(content)
        return content


def _expanded(location: str) -> list[str]:
    """Braces as in a shell."""
    if "{" not in location or os.path.exists(location):
        return [location]
    _webdataset()
    import braceexpand

    return list(braceexpand.braceexpand(location))


def _split(location: str) -> tuple[str, str | None]:
    """(folder, name of the tar in it, if it is one)."""
    if not location.endswith(".tar"):
        return location, None
    parent, slash, name = location.rpartition("/")
    return (parent or slash or ".", name)


def _shards(manifest: Manifest, name: str | None, folder: Folder) -> Iterable[Shard]:
    if name is None:
        return manifest.shards
    if name not in manifest.by_name:
        raise ShardError(
            f"{folder.at(MANIFEST)} does not list {name}, only {manifest.shards[0].name} … {manifest.shards[-1].name}"
        )
    return [manifest.by_name[name]]


def _check_alike(plans: Sequence[Plan], where: Sequence[str]) -> None:
    first = plans[0]
    for plan, location in zip(plans[1:], where[1:], strict=True):
        for name in ("schema", "image_size", "extensions"):
            here, there = getattr(plan, name), getattr(first, name)
            if here != there:
                raise ShardError(f"{location} does not fit {where[0]}: its {name} is {here}, there it is {there}")


def _damaged(folder: Folder, shard: Shard, error: Exception) -> ShardError:
    if isinstance(error, ShardError):
        return error
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
    return ShardError(f"{folder.at(shard.name)} is damaged: {reason}. {_WAY_OUT}")


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError(
            'reading shards as a stream needs webdataset: pip install "dsgan_datasets[webdataset]"; ShardMapDataset '
            "does without"
        ) from error
    return webdataset
