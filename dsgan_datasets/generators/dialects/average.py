"""The average w, where a file of its own holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError


def read_average(path: Path) -> Tensor:
    """Average w of a ``.npy`` file, see `average_w`.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {path} with an average latent")
    try:
        latent = torch.from_numpy(np.load(path, allow_pickle=False))
    except Exception as error:  # a damaged file may raise anything at all
        raise CheckpointError(f"{path} is not a .npy file of numbers, as an average latent should be") from error
    try:
        return average_w(latent)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def average_w(latent: Tensor | np.ndarray) -> Tensor:
    """Average w as one vector [w_dim], from [w_dim] or from equal rows [L, w_dim], as DatasetGAN stores it.

    Raises:
        ValueError: another shape, or rows that differ.
    """
    try:
        latent = torch.as_tensor(latent)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"an average latent must be a tensor or array of numbers, not {type(latent).__name__}"
        ) from error
    if latent.is_complex() or latent.dtype == torch.bool:
        raise ValueError(f"an average latent must be real numbers, not {latent.dtype}")
    if latent.dim() not in (1, 2) or not latent.numel() or not bool(latent.isfinite().all()):
        raise ValueError(f"an average latent must be finite numbers [w_dim] or [L, w_dim], not {list(latent.shape)}")
    rows = latent.detach().cpu().float().reshape(-1, latent.shape[-1])
    if not bool((rows == rows[0]).all()):
        raise ValueError("an average latent must be the same for all layers: truncation pulls every layer to one w")
    return rows[0].clone()
