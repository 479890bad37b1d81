"""Where to compute: one rule for every `device` argument."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch

Device = str | torch.device | None


def resolve_device(device: Device = None) -> torch.device:
    """The device itself; None is the rank's current CUDA device if there is one, else the CPU.

    Warns where a launcher started one process a GPU and none of them has chosen its own yet: all would use the first.

    Raises:
        ValueError: no such device, or CUDA is asked for and there is none.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None:
        return _current_cuda_device() if torch.cuda.is_available() else torch.device("cpu")
    resolved = named_device(device)
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{resolved}' was asked for, but PyTorch finds no CUDA device here; use device='cpu'")
    if resolved.type == "cuda" and (resolved.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"device '{resolved}' was asked for, but PyTorch finds {count} here: cuda:0 … cuda:{count - 1}"
        )
    return resolved


def named_device(device: str | torch.device) -> torch.device:
    """The device of that name, which need not be on this machine; ValueError if PyTorch knows none.

    Example:
        >>> named_device("cuda:1")
        device(type='cuda', index=1)
    """
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r:.80} is not known to PyTorch; use cpu, cuda or cuda:N") from error


def _current_cuda_device() -> torch.device:
    current, rank = torch.cuda.current_device(), os.environ.get("LOCAL_RANK", "")
    if rank.isdecimal() and int(rank) != current and int(rank) < torch.cuda.device_count():
        warnings.warn(
            f"LOCAL_RANK is {rank}, but this process's current device is cuda:{current}: every rank would generate on "
            "that one. Call torch.cuda.set_device(local_rank) before, or pass device=…",
            RuntimeWarning,
            stacklevel=4,
        )
    return torch.device("cuda", current)


def why_no_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a device; None if they can. Triton also interprets kernels on the CPU."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda":
        interprets = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        return None if interprets else f"they are not compiled for {device.type}"
    if torch.version.hip is not None:
        return "they are not written for ROCm"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"a GPU of compute capability {capability[0]}.{capability[1]} is too old"


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one for the length of a block, as what launches kernels itself needs it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """ValueError if a device cannot compute in a precision."""
    if dtype == torch.bfloat16 and device.type == "cuda" and not has_fast_bfloat16(device):
        raise ValueError(
            f"dtype='bfloat16' needs a GPU from NVIDIA's Ampere generation on, {device} is older: use dtype='float16'"
        )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices in bfloat16, rather than emulating it.

    The CPU is asked through a private function of PyTorch; a version without that function counts as a CPU without
    such instructions.

    Example:
        >>> has_fast_bfloat16(torch.device("meta"))
        False
    """
    if device.type == "cuda":
        with on_device(device):  # it asks the current one
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())
