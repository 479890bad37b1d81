"""Generated samples under names of their own: MMEngine's file functions read ``dsgan://…`` as PNG.

What reads pictures by their path (loading steps, SegVisualizationHook) thereby works on samples that are in no file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from mmengine.fileio import BaseStorageBackend, register_backend

from dsgan_datasets.device import Device
from dsgan_datasets.images import png
from dsgan_datasets.remote.source import checkpoint_source
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.shards.locations import Locations
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.addresses import SampleAddress, parse
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.sources.relabeled import choose_classes

Source = TypeVar("Source", bound=NamedSource)


class SampleStore(Generic[Source]):
    """Samples of one source, as batches and under ``dsgan://`` paths; get one from `open_store` or `open_shards`.

    The last batch is kept, so that reading its pictures by path generates nothing again.

    Args:
        source: gives the samples.

    Example:
        >>> store = open_store("demo-faces", device="cpu")
        >>> store.path("image", seed=0, index=7) == f"dsgan://{store.source.fingerprint[:8]}/image/demo-faces_0_7.png"
        True
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        # Pictures that are made of a sample get the last part of its path as their name.
        self.name = source.name
        self._recent: dict[tuple[int, int], Sample] = {}

    def generate(self, indices: Sequence[int], seed: int) -> SampleBatch:
        """The samples of some indices, generated together or read.

        Raises:
            RuntimeError: in a DataLoader worker, if the device is a GPU.
        """
        batch = self.source.batch(indices, seed=seed)
        self.remember(indices, batch, seed)
        return batch

    def remember(self, indices: Sequence[int], batch: SampleBatch, seed: int) -> None:
        """Keep this batch, of the samples with these numbers, instead of the one before."""
        self._recent = {(seed, index): row for index, row in zip(indices, batch.rows(), strict=True)}

    def sample(self, index: int, seed: int) -> Sample:
        """One sample, from the last batch if it is in it."""
        if (seed, index) not in self._recent:
            self.generate([index], seed)
        return self._recent[seed, index]

    def path(self, kind: str, seed: int, index: int) -> str:
        """Under which `DSGANBackend` finds the image or a label of a sample."""
        return str(SampleAddress(self.source.fingerprint[:8], kind, self.name, seed, index))

    def __reduce__(self) -> tuple[Any, ...]:
        """Unpickling reopens the source; weights are not serialized."""
        return _shared, (self.source,)


#: Stores of this process that are in use, by what decides their samples and where they are computed.
_STORES: WeakValueDictionary[tuple[str, str], SampleStore[Any]] = WeakValueDictionary()


def _shared(source: Source) -> SampleStore[Source]:
    """The store of this process that has an equal source; a new one if there is none."""
    key = (source.fingerprint, str(source.device))
    store = _STORES.get(key)
    if store is None:
        store = _STORES[key] = SampleStore(source)
    return store


def open_store(
    checkpoint: str | os.PathLike[str],
    device: Device = None,
    recipe: Mapping[str, Any] | None = None,
    *,
    classes: Sequence[str] | None = None,
    merge: Mapping[str, Iterable[str]] | None = None,
) -> SampleStore[NamedSource]:
    """The store of a checkpoint; all datasets of a process that use it in the same way share one, and its weights.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        device: see `checkpoint_source`.
        recipe: fields of `Recipe` to change.
        classes, merge: see `choose_classes`.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an override or a class that is unknown or out of range.
    """
    return _shared(choose_classes(checkpoint_source(checkpoint, device=device, **(recipe or {})), classes, merge))


def open_shards(
    shards: Locations,
    *,
    classes: Sequence[str] | None = None,
    merge: Mapping[str, Iterable[str]] | None = None,
) -> SampleStore[NamedSource]:
    """The store of shards, which all datasets of a process share.

    Raises:
        ShardError, OSError: see `ShardSource`.
        ValueError: an unknown class.
    """
    return _shared(choose_classes(ShardSource(shards), classes, merge))


@register_backend("dsgan", prefixes="dsgan", force=True)
class DSGANBackend(BaseStorageBackend):
    """Reads the paths of `SampleStore`: images as PNG in RGB, labels as their files in shards.

    Masks are PNG in 8-bit grayscale whose pixels are class ids; maps of one channel are PNG in 16-bit grayscale.

    Example:
        >>> from mmengine import fileio
        >>> store = open_store("demo-faces", device="cpu")
        >>> fileio.get(store.path("mask", seed=0, index=7))[:4]
        b'\\x89PNG'
    """

    def get(self, filepath: str) -> bytes:
        """File of an image or a label.

        Raises:
            FileNotFoundError: not such a path, no dataset of this process has that checkpoint and recipe, or there is
                no such label.
        """
        address = parse(str(filepath))
        stores = [store for (known, _), store in _STORES.items() if known.startswith(address.fingerprint)]
        if not stores:
            raise FileNotFoundError(
                f"{filepath}: no dataset of this process has a checkpoint and recipe, or shards, with fingerprint "
                f"{address.fingerprint}…; build the dataset that the path came from, with the same recipe, and keep it"
            )
        targets = {target.field: target for target in stores[0].source.targets}
        if address.kind not in ("image", *targets):
            raise FileNotFoundError(f"{filepath}: a sample has image, {', '.join(targets)}, and no {address.kind}")
        sample = stores[0].sample(address.index, address.seed)
        return png(sample.image) if address.kind == "image" else targets[address.kind].encode(sample[address.kind])

    def get_text(self, filepath: str, encoding: str = "utf-8") -> str:
        """Samples are pictures: a ValueError."""
        raise ValueError(f"{filepath} is a picture, not a text: read it with mmengine.fileio.get")
