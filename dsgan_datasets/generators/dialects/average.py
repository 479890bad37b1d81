"""The average w: where a file of its own holds it, or computed where no file does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.files import is_file
from dsgan_datasets.latents import Purpose, sample_latents

#: Draws of z whose mean w is taken for the average of the training, for each class.
AVERAGED_DRAWS = 10_000
_CHUNK = 1000
#: Multiplications that computing an average may take: some twenty seconds. A network of 8 layers of 512 takes 2e10.
_MOST_WORK, _MOST_CLASSES = 2.5e11, 1000


@torch.no_grad()
def mean_of_mapped(mapping: nn.Module, z_dim: int, c_dim: int) -> Tensor | None:
    """Mean of w over fixed draws of z: always the same draws, summed in double precision.

    Args:
        mapping: z [N, z_dim] and one-hot classes [N, c_dim] or None -> w [N, w_dim].
        z_dim: length of z.
        c_dim: classes; 0 for none.

    Returns:
        float32 [w_dim], or [c_dim, w_dim] with one for each class; None if it would take too long.
    """
    work = max(c_dim, 1) * AVERAGED_DRAWS * sum(p.numel() for p in mapping.parameters())
    if work > _MOST_WORK or c_dim > _MOST_CLASSES:
        return None
    exact = copy.deepcopy(mapping).double()
    sums: list[Tensor | float] = [0.0] * max(c_dim, 1)
    for start in range(0, AVERAGED_DRAWS, _CHUNK):
        indices = torch.arange(start, start + _CHUNK, device="cpu")
        z = sample_latents(indices, z_dim, seed=0, purpose=Purpose.AVERAGE).double()
        for label in range(len(sums)):
            c = torch.eye(c_dim, dtype=torch.float64, device="cpu")[label].expand(_CHUNK, -1) if c_dim else None
            sums[label] = sums[label] + exact(z, c).sum(0)
    means = torch.stack([torch.as_tensor(total) / AVERAGED_DRAWS for total in sums]).float()
    return means if c_dim else means[0]


def read_average(path: Path) -> Tensor:
    """Average w of a ``.npy`` file, see `average_w`.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    return _read(path, average_w)


def read_centers(path: Path) -> Tensor:
    """Centers of w of a ``.npy`` file, see `centers_of_w`.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    return _read(path, centers_of_w)


def _read(path: Path, convert: Callable[[Tensor], Tensor]) -> Tensor:
    if not is_file(path):
        raise CheckpointError(f"no file {path} with an average latent")
    try:
        latent = torch.from_numpy(np.load(path, allow_pickle=False))
    except Exception as error:  # a damaged file may raise anything at all
        raise CheckpointError(f"{path} is not a .npy file of numbers, as an average latent should be") from error
    try:
        return convert(latent)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def average_w(latent: Tensor | np.ndarray) -> Tensor:
    """Average w as one vector [w_dim], from [w_dim] or from equal rows [L, w_dim] or [1, L, w_dim], as DatasetGAN and
    encoders store it.

    Raises:
        ValueError: another shape, or rows that differ.
    """
    rows = centers_of_w(latent)
    if not bool((rows == rows[0]).all()):
        raise ValueError(
            "an average latent must be the same for all layers: truncation pulls every layer to one w; centers of w, "
            "of which the nearest counts, are centroids=… (`--centroids` to dsgan convert)"
        )
    return rows[0].clone()


def centers_of_w(latents: Tensor | np.ndarray) -> Tensor:
    """Rows of w, float32 [K, w_dim], from [w_dim], [K, w_dim] or [1, K, w_dim].

    Raises:
        ValueError: another shape, or something other than finite numbers.
    """
    try:
        latents = torch.as_tensor(latents)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"an average latent must be a tensor or array of numbers, not {type(latents).__name__}"
        ) from error
    if latents.is_complex() or latents.dtype == torch.bool:
        raise ValueError(f"an average latent must be real numbers, not {latents.dtype}")
    is_batch = latents.dim() == 3 and len(latents) == 1
    if not (latents.dim() in (1, 2) or is_batch) or not latents.numel() or not bool(latents.isfinite().all()):
        raise ValueError(f"an average latent must be finite numbers [w_dim] or [L, w_dim], not {list(latents.shape)}")
    return latents.detach().cpu().float().reshape(-1, latents.shape[-1])
