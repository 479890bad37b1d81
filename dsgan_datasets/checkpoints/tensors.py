"""Named tensors: reading torch's own files safely, putting tensors into a network, hashing them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsgan_datasets.checkpoints.errors import CheckpointError


def read_torch_file(path: Path) -> Any:
    """Content of a ``.pt`` / ``.pth`` file, restricted to tensors and plain containers.

    Raises:
        CheckpointError: unreadable, or it holds anything else; nothing from the file has run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"refused: {path} holds more than tensors and plain containers: {error}") from error
    except Exception as error:  # torch.load has no single error for damaged files
        raise CheckpointError(f"{path} cannot be read as a torch file: {type(error).__name__}: {error}") from error


def assign_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Make `tensors` the parameters and buffers of `module`, as float32.

    Raises:
        CheckpointError: names or shapes differ from what the module has, or a value is not finite; the message says
            what was expected and what was found in `source`.
    """
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: the tensors do not fit the architecture: missing {missing[:5] or 'none'} ({len(missing)}), "
            f"unexpected {unexpected[:5] or 'none'} ({len(unexpected)})"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: tensor {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            )
        if not tensor.dtype.is_floating_point or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: tensor {name} ({tensor.dtype}) holds values that are no finite numbers")
    module.load_state_dict({name: tensor.float().contiguous() for name, tensor in tensors.items()}, assign=True)


def fingerprint(*decisions: object) -> str:
    """SHA-256 (hex) of plain data as canonical JSON."""
    return hashlib.sha256(json.dumps(decisions, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over tensors: names, dtypes, shapes, values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
