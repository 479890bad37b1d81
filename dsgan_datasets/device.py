"""Where to compute: one rule for every `device` argument."""

from __future__ import annotations

import torch

Device = str | torch.device | None


def resolve_device(device: Device = None) -> torch.device:
    """The device itself; None is the rank's current CUDA device if there is one, else the CPU.

    Raises:
        ValueError: no such device, or CUDA is asked for and there is none.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known to PyTorch; use cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but PyTorch finds no CUDA device here; use device='cpu'")
    return resolved


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices in bfloat16, rather than emulating it.

    The CPU is asked through a private function of PyTorch; a version without that function counts as a CPU without
    such instructions.

    Example:
        >>> has_fast_bfloat16(torch.device("meta"))
        False
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())
