"""(seed, domain, attempt, index) -> random numbers -> latents, without any global state.

Every number comes from the counter-based generator Philox4x64-10 (Salmon et al., SC 2011): the key is
(seed, domain), the counter (0, 0, attempt, index). No draw depends on what was drawn before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.recipe import Recipe

MAX_SEED = 2**64 - 1
MAX_INDEX = 2**63 - 1


class Quantity(IntEnum):
    """What a random number is for; each quantity has its own stream. The numbers are part of the format."""

    Z = 0
    SECOND_Z = 1
    NOISE = 2
    CLASS = 3
    PSI = 4


class Purpose(IntEnum):
    """Who asks: calibration and annotation never see the draws of a dataset with the same seed."""

    DATASET = 0
    CALIBRATION = 1
    ANNOTATION = 2
    AVERAGE = 3


def domain(quantity: Quantity, purpose: Purpose = Purpose.DATASET) -> int:
    """The second key word of Philox: one number a (quantity, purpose)."""
    return int(purpose) << 8 | int(quantity)


def as_indices(indices: Tensor | Sequence[int] | range) -> Tensor:
    """Indices as an int64 tensor [N] on the CPU.

    Raises:
        ValueError: an index below 0 or above 2^63-1, or not a flat list.
        TypeError: indices that are not integers.
    """
    if isinstance(indices, Tensor):
        if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, not {indices.dtype}")
        flat = indices.detach().to("cpu", torch.int64)
    else:
        if not isinstance(indices, Iterable):
            raise TypeError(f"indices must be a list, range or tensor of integers, got {indices!r}")
        numbers = [int(i) if hasattr(i, "__index__") and not isinstance(i, bool) else i for i in indices]
        if any(not isinstance(i, int) or isinstance(i, bool) for i in numbers):
            raise TypeError(f"indices must be integers, got {numbers[:4]}")
        flat = torch.tensor([check_index(i) for i in numbers], dtype=torch.int64, device="cpu")
    if flat.dim() != 1:
        raise ValueError(f"indices must be one-dimensional [N], got shape {tuple(flat.shape)}")
    if len(flat):
        check_index(int(flat.min()))
    return flat


def check_index(index: int) -> int:
    """The index itself; ValueError unless it lies in 0 … 2^63-1."""
    if not 0 <= index <= MAX_INDEX:
        raise ValueError(f"indices must lie in 0 … 2^63-1, got {index}")
    return index


def check_seed(seed: int) -> int:
    """The seed itself; ValueError unless 0 <= seed <= 2^64-1."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= int(seed) <= MAX_SEED:
        raise ValueError(f"seed must be an integer in 0 … 2^64-1, got {seed!r}")
    return int(seed)


def philox_words(indices: Tensor, count: int, *, seed: int, domain: int, attempt: int | Tensor = 0) -> np.ndarray:
    """Random 64-bit words.

    Args:
        indices: int64 [N].
        count: words an index.
        seed: 0 … 2^64-1.
        domain: separates the streams, see `domain`.
        attempt: number of the draw, one for all or int64 [N].

    Returns:
        uint64 array [N, count]; row n depends on (seed, domain, attempt[n], indices[n]) and nothing else.
    """
    key = np.array([check_seed(seed), domain], dtype=np.uint64)
    flat = as_indices(indices)
    attempts = torch.as_tensor(attempt, dtype=torch.int64, device="cpu").expand(len(flat))
    words = np.empty((len(flat), count), dtype=np.uint64)
    for row, i, a in zip(words, flat.tolist(), attempts.tolist(), strict=True):
        row[:] = np.random.Philox(key=key, counter=np.array([0, 0, a, i], dtype=np.uint64)).random_raw(count)
    return words


def normals(words: np.ndarray) -> np.ndarray:
    """Box-Muller in float64, rounded to float32: [N, 2n] words -> [N, 2n] independent standard normals."""
    uniform = (words >> np.uint64(11)).astype(np.float64)  # 53 bits, exact
    radius = np.sqrt(-2.0 * np.log((uniform[:, 0::2] + 1.0) * 2.0**-53))  # (0, 1]: the logarithm stays finite
    angle = 2.0 * np.pi * 2.0**-53 * uniform[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(len(words), -1).astype(np.float32)


def sample_latents(
    indices: Tensor | Sequence[int] | range,
    dim: int,
    *,
    seed: int,
    attempt: int | Tensor = 0,
    purpose: Purpose = Purpose.DATASET,
) -> Tensor:
    """Latents z of a standard normal distribution, one row an index.

    Args:
        indices: N integers in 0 … 2^63-1.
        dim: length of z.
        seed: 0 … 2^64-1.
        attempt: number of the draw of each index; an int, or int64 [N].
        purpose: which family of draws; leave it out for dataset samples.

    Returns:
        float32 [N, dim] on the CPU. A row is the same whatever else is asked for, in whatever order.

    Raises:
        ValueError: seed or index out of range.

    Example:
        >>> sample_latents([7, 3], 512, seed=0)[1].equal(sample_latents([3], 512, seed=0)[0])
        True
    """
    words = philox_words(
        as_indices(indices), dim + dim % 2, seed=seed, domain=domain(Quantity.Z, purpose), attempt=attempt
    )
    return torch.from_numpy(normals(words)[:, :dim].copy())


@dataclass(frozen=True)
class Latents:
    """All random inputs of N draws.

    Attributes:
        z: float32 [N, z_dim].
        second_z: float32 [N, z_dim] of the second latent, with style mixing.
        psi: float64 [N], if it is drawn.
        class_label: int64 [N], of a conditional generator.
    """

    z: Tensor
    second_z: Tensor | None = None
    psi: Tensor | None = None
    class_label: Tensor | None = None

    @classmethod
    def of(cls, recipe: Recipe, z: Tensor) -> Latents:
        """Latents of a recipe that draws nothing but z.

        Raises:
            ValueError: psi, class or a second latent would have to be drawn too.
        """
        if (
            isinstance(recipe.sampling.truncation_psi, tuple)
            or recipe.class_weights is not None
            or recipe.mixing_layer is not None
        ):
            raise ValueError(
                "z alone does not say what to make, as the recipe also draws psi, a class or a second latent: use a "
                "fixed psi and class and no mixing_layer here, and change the recipe afterwards"
            )
        fixed = None if recipe.class_label is None else torch.full((len(z),), recipe.class_label, device="cpu")
        return cls(z, class_label=fixed)

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: Tensor | slice) -> Latents:
        """The latents of some of the draws."""
        second_z, psi, class_label = (p if p is None else p[rows] for p in (self.second_z, self.psi, self.class_label))
        return Latents(self.z[rows], second_z, psi, class_label)


def draw_latents(
    recipe: Recipe, z_dim: int, indices: Tensor, *, seed: int, attempt: Tensor, purpose: Purpose = Purpose.DATASET
) -> Latents:
    """Draw what a recipe leaves to chance.

    z is drawn for each index, everything else for each view group (which is the index itself unless the recipe has
    views), so that the views of a group differ in z alone.

    Args:
        recipe: says what is drawn.
        z_dim: length of a latent.
        indices: int64 [N].
        seed: 0 … 2^64-1.
        attempt: int64 [N].
        purpose: which family of draws.
    """
    groups = indices // recipe.group_size

    def words(quantity: Quantity, count: int) -> np.ndarray:
        return philox_words(groups, count, seed=seed, domain=domain(quantity, purpose), attempt=attempt)

    def uniform(quantity: Quantity) -> Tensor:
        """float64 [N] in [0, 1)."""
        return torch.from_numpy((words(quantity, 1)[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    second_z = psi = class_label = None
    if recipe.mixing_layer is not None:
        second_z = torch.from_numpy(normals(words(Quantity.SECOND_Z, z_dim + z_dim % 2))[:, :z_dim].copy())
    low, high = recipe.psi_range
    if low != high:
        psi = low + (high - low) * uniform(Quantity.PSI)
    if recipe.class_weights is not None:
        cumulative = torch.tensor(recipe.class_weights, dtype=torch.float64, device="cpu").cumsum(0)
        class_label = torch.searchsorted(cumulative, uniform(Quantity.CLASS) * cumulative[-1], right=True)
    elif recipe.class_label is not None:
        class_label = torch.full((len(indices),), recipe.class_label, device="cpu")
    z = sample_latents(indices, z_dim, seed=seed, attempt=attempt, purpose=purpose)
    return Latents(z, second_z, psi, class_label)
