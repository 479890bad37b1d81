"""Named tensors: putting them into a network, hashing them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsgan_datasets.checkpoints.errors import CheckpointError


def assign_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Make `tensors` the parameters and buffers of `module`, as float32.

    Raises:
        CheckpointError: names or shapes differ from what the module has, or a value is not finite; the message says
            what was expected and what was found in `source`.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(map(str, tensors.keys() - expected.keys()))  # a foreign file may have numbers among its names
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
        check_numbers(tensor, f"{source}: tensor {name}")
    # Cloned, as `contiguous` keeps odd strides of axes of length 1, by which convolutions choose their algorithm: the
    # same weights from another file would give other last bits.
    plain = {name: t.float().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    module.load_state_dict(plain, assign=True)


def check_numbers(tensor: Tensor, what: str) -> None:
    """Refuse integers, complex and 8-bit numbers, infinity and NaN; `what` names the tensor in the CheckpointError."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise CheckpointError(f"{what} is of type {tensor.dtype}; weights are float16, bfloat16, float32 or float64")
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{what} holds values that are not finite numbers")


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
