"""What trainer and worker send each other: numbers, words and arrays, whatever carries them.

A request is a fingerprint, a seed, indices and extras, and its answer depends on these alone. So it may be asked again,
of any worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from dsgan_datasets.environment import environment
from dsgan_datasets.remote.errors import RemoteError
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.targets.base import Target

#: Of `environment`, what decides the bits of samples; the rest decides those of files.
_DECISIVE = ("dsgan_datasets", "torch", "numpy", "device")


class Request(NamedTuple):
    """Some samples.

    Attributes:
        fingerprint: of checkpoint and recipe.
        seed: of the dataset.
        indices: of the samples, in the order wanted.
        extras: further fields of the samples.

    Example:
        >>> Request("0" * 64, seed=3, indices=(4, 5)).extras
        ()
    """

    fingerprint: str
    seed: int
    indices: tuple[int, ...]
    extras: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """For people, such as "samples 8 … 15"."""
        first, last = self.indices[0], self.indices[-1]
        return f"sample {first}" if len(self.indices) == 1 else f"samples {first} … {last}"


def made_with(device: torch.device) -> dict[str, Any]:
    """What decides the last bits of a sample besides the request; equal on all workers of a stream."""
    here = environment(device)
    return {name: here[name] for name in _DECISIVE}


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The first entry that differs, in words; None if there is none."""
    for name in _DECISIVE:
        if theirs.get(name) != ours.get(name):
            return f"{name} {_shown(theirs.get(name))}, not {_shown(ours.get(name))}"
    return None


def _shown(value: Any) -> str:
    return ", ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)


def pack(batch: SampleBatch) -> dict[str, tuple[str, Any]]:
    """Fields as (dtype, array). Class ids travel as bytes, an eighth of what they take in memory.

    Example:
        >>> packed = pack(SampleBatch({"mask": torch.tensor([[3, 255]]), "index": torch.tensor([300])}))
        >>> [(name, dtype, array.dtype.name) for name, (dtype, array) in packed.items()]
        [('mask', 'int64', 'uint8'), ('index', 'int64', 'int64')]
    """
    packed = {}
    for name, value in batch.items():
        value = value.cpu()
        dtype = str(value.dtype).removeprefix("torch.")
        if value.dtype == torch.int64 and value.numel() and value.min() >= 0 and value.max() <= 255:
            value = value.to(torch.uint8)
        packed[name] = dtype, value.numpy()
    return packed


def unpack(packed: Mapping[str, tuple[str, Any]], request: Request, targets: tuple[Target, ...]) -> SampleBatch:
    """The samples of an answer.

    Raises:
        RemoteError: they are not those that were asked for.
    """
    batch = SampleBatch({name: _tensor(dtype, array) for name, (dtype, array) in packed.items()})
    fields = {"image", "index", *(target.field for target in targets)}
    if missing := sorted(fields - batch.keys()):
        raise RemoteError(f"the answer has no {', '.join(missing)}")
    if batch.index.tolist() != list(request.indices):
        raise RemoteError(f"the answer is about other samples than {request.what}")
    return batch


def _tensor(dtype: str, array: Any) -> torch.Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(getattr(torch, dtype))


def size_of(packed: Mapping[str, tuple[str, Any]]) -> int:
    """Bytes of the arrays."""
    return sum(int(array.nbytes) for _, array in packed.values())
