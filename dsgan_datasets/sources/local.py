"""What a config names as the origin of samples: a checkpoint, or shards.

Both are described at once, and cheap to make, to pickle and to send to a worker. Weights load in the process that first
needs samples; of shards only the records that are asked for are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch

from dsgan_datasets.checkpoints.description import describe
from dsgan_datasets.device import Device, resolve_device
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.shards import ShardMapDataset
from dsgan_datasets.sources.datasets import refuse_cuda_in_worker
from dsgan_datasets.targets.segmentation import LabelSchema

#: A folder or URL, or several.
Locations = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class SampleSource(Protocol):
    """Gives the samples that are asked for by number.

    Attributes:
        device: on which samples are made, as a config says it; None otherwise.
    """

    device: Device

    @property
    def name(self) -> str:
        """A word for people: the last part of where the samples come from."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a config said, for comparing it with another."""

    @property
    def schema(self) -> LabelSchema:
        """What the class ids mean."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex): equal prints, equal samples under equal numbers."""

    def batch(self, indices: Sequence[int], seed: int) -> SampleBatch:
        """The samples of these numbers; `index` says which is which."""

    def together(self, index: int, length: int | None) -> range:
        """Numbers, this one among them, whose samples cost no more than this one's."""


class LabeledSource:
    """A labeled checkpoint whose weights load on first use; a `SampleSource`.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        device: None is the current CUDA device of the process that loads, if there is one, else the CPU.
        recipe: fields of `Recipe` to change.

    Attributes:
        description: what config.json says: schema, recipe, fingerprint, image size.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an override that is unknown or out of range.

    Example:
        >>> source = LabeledSource("demo-faces", device="cpu")
        >>> source.description.schema.classes[1]
        'skin'
        >>> source.labeled.generate([0]).num_samples
        1
    """

    def __init__(self, checkpoint: str | os.PathLike[str], *, device: Device = None, **recipe: Any) -> None:
        self.checkpoint = os.fspath(checkpoint)
        self.device = device
        self.overrides = recipe
        self.description = describe(checkpoint, **recipe)
        self._labeled: LabeledGenerator | None = None
        # Asked here: in a process forked from one that uses CUDA, PyTorch finds no GPU and would fall back to the CPU.
        self._on_cuda = torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))

    @property
    def labeled(self) -> LabeledGenerator:
        """The generator, loaded once in each process.

        Raises:
            RuntimeError: in a DataLoader worker, if the device is a GPU.
        """
        if self._on_cuda:
            refuse_cuda_in_worker(torch.device("cuda"))
        if self._labeled is None:
            device = resolve_device(self.device)
            self._labeled = LabeledGenerator.from_pretrained(self.checkpoint, device=device, **self.overrides)
        return self._labeled

    @property
    def name(self) -> str:
        """Last part of the checkpoint's path."""
        return os.path.basename(os.path.abspath(self.checkpoint))

    @property
    def identity(self) -> dict[str, Any]:
        """Checkpoint and device."""
        return {"checkpoint": self.checkpoint, "device": None if self.device is None else str(self.device)}

    @property
    def schema(self) -> LabelSchema:
        """What the class ids mean."""
        return self.description.schema

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.description.image_size

    @property
    def fingerprint(self) -> str:
        """Of checkpoint and recipe."""
        return self.description.fingerprint

    def batch(self, indices: Sequence[int], seed: int) -> SampleBatch:
        """Samples that are generated together.

        Raises:
            RuntimeError: in a DataLoader worker, if the device is a GPU.
        """
        return self.labeled.generate(indices, seed=seed)

    def together(self, index: int, length: int | None) -> range:
        """The compute batch on a GPU, which computes whole ones anyway, and sets are often read in order."""
        if self.labeled.device.type != "cuda":
            return range(index, index + 1)
        first = index - index % self.labeled.recipe.compute_batch
        return range(first, min(first + self.labeled.recipe.compute_batch, length or MAX_INDEX + 1))

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: whoever is sent this loads them on its own device."""
        return {**self.__dict__, "_labeled": None}


class ShardSource:
    """Tar shards, of which only the manifest is read until a sample is asked for; a `SampleSource`.

    Samples are numbered by their place in the shards, 0 … len - 1, whatever their indices in the set they come from.

    Args:
        shards: a folder or URL of shards, or several; see `ShardMapDataset`.

    Raises:
        ShardError: no shards, or a damaged manifest.
        OSError: they cannot be read.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp / "faces", range(100, 103))
        >>> source = ShardSource(tmp / "faces")
        >>> len(source), source.name, source.batch([2, 0], seed=0).index
        (3, 'faces', tensor([2, 0]))
    """

    device: Device = None

    def __init__(self, shards: Locations) -> None:
        several = [shards] if isinstance(shards, str | os.PathLike) else shards
        self.locations = tuple(os.fspath(location) for location in several)
        self.samples = ShardMapDataset(self.locations)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def name(self) -> str:
        """Last part of the first location."""
        return self.locations[0].rstrip("/").rsplit("/", 1)[-1].removesuffix(".tar")

    @property
    def identity(self) -> dict[str, Any]:
        """The locations."""
        return {"shards": self.locations}

    @property
    def schema(self) -> LabelSchema:
        """What the class ids mean."""
        return self.samples.schema

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.samples.image_size

    @cached_property
    def fingerprint(self) -> str:
        """Of the shards' contents, in order; not that of the checkpoint that made them."""
        hashes = "".join(place.shard.sha256 for place in self.samples.shards.places)
        return hashlib.sha256(hashes.encode("ascii")).hexdigest()

    def batch(self, indices: Sequence[int], seed: int) -> SampleBatch:
        """Samples that are read one after the other; the seed is that of the shards, whatever is given here."""
        batch = SampleBatch.stack([self.samples[index] for index in indices])
        batch.index = torch.tensor(indices, dtype=torch.int64)
        return batch

    def together(self, index: int, length: int | None) -> range:
        """Each is read on its own."""
        return range(index, index + 1)
