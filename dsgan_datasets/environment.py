"""Versions and device: what decides the last bits of a sample and the bytes of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL
import torch
from PIL import features as pillow_features

from dsgan_datasets._version import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device that decide the last bits of samples and the bytes of pictures.

    Example:
        >>> sorted(environment(torch.device("cpu")))
        ['device', 'dsgan_datasets', 'jpeg', 'numpy', 'pillow', 'torch', 'zlib']
    """
    return {
        "dsgan_datasets": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "zlib": _feature("zlib_ng") or _feature("zlib"),
        "jpeg": _feature("libjpeg_turbo") or _feature("jpg"),
        "device": _device_facts(device),
    }


def _feature(name: str) -> str | None:
    version = pillow_features.version(name)
    return None if version is None else f"{name} {version}"


def _device_facts(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"type": device.type, "capability": torch.backends.cpu.get_cpu_capability()}
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
