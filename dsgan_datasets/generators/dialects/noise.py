"""Noise that a file lacks, drawn from the hash of its weights: the same weights, the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.latents import Quantity, domain, normals, philox_words

#: Largest side of an image, pixels.
_LARGEST = 2048


def seed_of(tensors: Mapping[str, Tensor]) -> int:
    """The seed of the noise of a file with these tensors: the first 64 bits of their SHA-256."""
    return int(digest_tensors(tensors)[:16], 16)


def fixed_noise(seed: int, layer: int, size: tuple[int, int]) -> Tensor:
    """Standard normal noise [rows, columns]: the same for the same seed and layer."""
    count = size[0] * size[1]
    values = normals(_words(seed, layer, count + count % 2))[0, :count]
    return torch.from_numpy(values.reshape(size).copy())


def fixed_uniform(seed: int, layer: int, size: tuple[int, int]) -> Tensor:
    """Noise [rows, columns] between 0 and 1: the same for the same seed and layer."""
    words = _words(seed, layer, size[0] * size[1])
    return torch.from_numpy(((words >> np.uint64(40)) * 2.0**-24).astype(np.float32).reshape(size))


def check_doubling(sizes: Sequence[tuple[int, int]]) -> None:
    """ValueError unless the maps of a network's blocks, coarse to fine, double from each to the next.

    Called before any noise is drawn: sizes that a damaged file states could ask for any amount of it.
    """
    height, width = sizes[0] if sizes else (0, 0)
    if not sizes or any(size != (height << i, width << i) for i, size in enumerate(sizes)):
        raise ValueError(f"its blocks have the sizes {list(sizes)[:6]}, of which each must be twice the one before")
    if max(sizes[-1]) > _LARGEST:
        raise ValueError(f"its images have {sizes[-1][0]}×{sizes[-1][1]} pixels, more than {_LARGEST} along an axis")


def _words(seed: int, layer: int, count: int) -> np.ndarray:
    return philox_words(torch.tensor([layer], device="cpu"), count, seed=seed, domain=domain(Quantity.NOISE))


def drawn(seed: int) -> str:
    """A note that noise was drawn."""
    return f"noise drawn from the weights' hash (seed {seed}), as the file has none"
