"""A checkpoint that a config names: described at once, loaded by the process that first needs samples."""

from __future__ import annotations

import os
from typing import Any

import torch

from dsgan_datasets.checkpoints.description import describe
from dsgan_datasets.datasets import refuse_cuda_in_worker
from dsgan_datasets.device import Device, resolve_device
from dsgan_datasets.labeled_generator import LabeledGenerator


class LabeledSource:
    """A labelled checkpoint whose weights load on first use; cheap to make, to pickle and to send to a worker.

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

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: whoever is sent this loads them on its own device."""
        return {**self.__dict__, "_labeled": None}
