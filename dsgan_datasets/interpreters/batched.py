"""Labels of whole batches, as a GPU computes them: by the fused kernel where there is Triton, plainly elsewhere."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dsgan_datasets.interpreters import projection

if TYPE_CHECKING:
    from dsgan_datasets.interpreters.fused_tail import FusedTail
    from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble

#: Precisions that whole batches are computed in; maps of any other are made float32.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

#: The kernel of an ensemble, for the maps that it labeled last; None where they do not suit the kernel.
_kernels: WeakKeyDictionary[PixelEnsemble, tuple[Hashable, FusedTail | None]] = WeakKeyDictionary()


def available(device: torch.device) -> bool:
    """Whether the fused kernel can run: Triton is installed and knows the device, or interprets kernels on the CPU."""
    if find_spec("triton") is None:
        return False
    if device.type != "cuda":
        return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@torch.no_grad()
def label(
    ensemble: PixelEnsemble, features: Sequence[Tensor], size: tuple[int, int], rows: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Mask int64 and uncertainty float32 [N, H, W] of a batch; arguments as for `PixelEnsemble.label`, and checked."""
    dtype = features[0].dtype if features[0].dtype in _DTYPES else torch.float32
    features = [f.to(dtype) for f in features]
    kernel = _kernel(ensemble, features, size, rows)
    if kernel is None:
        return projection.label(ensemble, features, size, rows)
    mask, js = kernel.label(features)
    return mask.long(), js


def _kernel(
    ensemble: PixelEnsemble, features: Sequence[Tensor], size: tuple[int, int], rows: tuple[int, int]
) -> FusedTail | None:
    """The kernel for such maps, made and tried when they come first."""
    key = (
        *(tuple(f.shape) for f in features),
        *(size, rows, features[0].dtype, ensemble.vote),
        *((weight.data_ptr(), weight._version) for weight in ensemble.buffers()),
    )
    known = _kernels.get(ensemble)
    if known is None or known[0] != key:
        known = key, _tried_kernel(ensemble, features, size, rows)
        _kernels[ensemble] = known
    return known[1]


def _tried_kernel(
    ensemble: PixelEnsemble, features: Sequence[Tensor], size: tuple[int, int], rows: tuple[int, int]
) -> FusedTail | None:
    if not available(ensemble.w1.device):
        return None
    from dsgan_datasets.interpreters.fused_tail import FusedTail

    try:
        kernel = FusedTail(ensemble, [f.shape[1:] for f in features], size, rows, features[0].dtype)
        kernel.label(features)  # compiles it
        if ensemble.w1.is_cuda:  # its tables are there from now on, whatever stream comes to read them
            torch.cuda.current_stream(ensemble.w1.device).synchronize()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a driver may raise: there is a second way
        warnings.warn(
            f"labels are computed by plain PyTorch, which is slower: the fused kernel does not serve here "
            f"({type(error).__name__}: {error!s:.300})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return kernel
