"""A checkpoint as a source of samples: cheap to make, to pickle and to send to a worker.

Weights load in the process that first needs samples.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch

from dsgan_datasets._deprecation import moved
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.device import Device, named_device, resolve_device
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.sources.datasets import refuse_cuda_in_worker
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema


class OfCheckpoint:
    """What a source of a checkpoint's samples knows without its weights.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        recipe: fields of `Recipe` to change.

    Attributes:
        description: what config.json says: targets, recipe, fingerprint, image size.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an override that is unknown or out of range.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], **recipe: Any) -> None:
        self.description = Checkpoint.open(checkpoint, **recipe)
        self.checkpoint = os.fspath(checkpoint)
        self.overrides = recipe

    @property
    def name(self) -> str:
        """Last part of the checkpoint's path."""
        return os.path.basename(os.path.abspath(self.checkpoint))

    @property
    def schema(self) -> LabelSchema:
        """What the class ids mean."""
        schema: LabelSchema = self.description.schema
        return schema

    @property
    def targets(self) -> tuple[Target, ...]:
        """The labels of each sample."""
        return self.description.targets

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.description.image_size

    @property
    def fingerprint(self) -> str:
        """Of checkpoint and recipe."""
        return self.description.fingerprint

    @property
    def license(self) -> str:
        """Of the samples."""
        return self.description.license

    @property
    def group(self) -> int:
        """Samples of a view group."""
        group: int = self.description.recipe.group_size
        return group

    @property
    def num_samples(self) -> None:
        """None: there is no end."""
        return None


class CheckpointSource(OfCheckpoint):
    """A labeled checkpoint whose weights load on first use; a `SampleSource`.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        device: None is the current CUDA device of the process that loads, if there is one, else the CPU.
        recipe: fields of `Recipe` to change.

    Attributes:
        description: what config.json says: targets, recipe, fingerprint, image size.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an override that is unknown or out of range.

    Example:
        >>> source = CheckpointSource("demo-faces", device="cpu")
        >>> source.description.schema.classes[1]
        'skin'
        >>> source.batch([0]).num_samples
        1
    """

    def __init__(self, checkpoint: str | os.PathLike[str], *, device: Device = None, **recipe: Any) -> None:
        super().__init__(checkpoint, **recipe)
        self._requested = None if device is None else named_device(device)
        self._labeled: LabeledGenerator | None = None
        # Asked here: in a process forked from one that uses CUDA, PyTorch finds no GPU and would fall back to the CPU.
        self._on_cuda = torch.cuda.is_available() and (device is None or str(device).startswith("cuda"))

    @property
    def labeled(self) -> LabeledGenerator:
        """The generator, loaded once in each process.

        Raises:
            RuntimeError: in a DataLoader worker, if the device is a GPU.
        """
        refuse_cuda_in_worker(self.device)
        if self._labeled is None:
            device = resolve_device(self._requested)
            self._labeled = LabeledGenerator.from_pretrained(self.checkpoint, device=device, **self.overrides)
        return self._labeled

    @property
    def identity(self) -> dict[str, Any]:
        """Checkpoint and device, as they were given."""
        return {"checkpoint": self.checkpoint, "device": None if self._requested is None else str(self._requested)}

    @property
    def device(self) -> torch.device:
        """That samples are, or will be, made on."""
        if self._requested is not None:
            return self._requested
        return torch.device("cuda" if self._on_cuda else "cpu")

    @property
    def block(self) -> int:
        """Samples that cost together no more than one of them: a GPU computes whole batches."""
        return self.description.recipe.compute_batch if self.device.type == "cuda" else 1

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        """See `LabeledGenerator.stream`; RuntimeError in a DataLoader worker, if the device is a GPU."""
        return self.labeled.stream(indices, seed=seed, extras=extras)

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """Samples that are generated together; RuntimeError in a DataLoader worker, if the device is a GPU."""
        return self.labeled.generate(indices, seed=seed, extras=extras)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: a process that receives this loads them on its own device."""
        return {**self.__dict__, "_labeled": None}


__getattr__ = moved(
    __name__,
    {
        "LabeledSource": "dsgan_datasets.sources.local:CheckpointSource",
        "ShardSource": "dsgan_datasets.shards.source:ShardSource",
        "SampleSource": "dsgan_datasets.sources.base:SampleSource",
    },
)
