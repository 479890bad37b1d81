"""Labels of whole batches, as a GPU computes them: by the fused kernel where Triton has one, else in plain PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from dsgan_datasets.interpreters import projection
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.recipe import Vote

#: Precisions that whole batches are computed in; maps of any other are converted to float32.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def available(device: torch.device) -> bool:
    """Whether the fused kernel can run: Triton is installed and knows the device, or interprets kernels on the CPU."""
    if find_spec("triton") is None:
        return False
    if device.type != "cuda":
        return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


class Task(NamedTuple):
    """What a kernel is prepared for: weights at a version, maps of given shapes, and the labels asked for."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    frame: Frame
    vote: Vote
    version: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, weights: EnsembleWeights, features: Sequence[Tensor], frame: Frame, vote: Vote) -> Task:
        """The task of labeling these maps."""
        dtype = features[0].dtype if features[0].dtype in _DTYPES else torch.float32
        return cls(tuple(tuple(f.shape) for f in features), dtype, frame, vote, weights.version())


@dataclass(frozen=True)
class Prepared:
    """Labels batches of one task; `prepare` makes it.

    Attributes:
        task: what it is prepared for.
        weights: of the ensemble; held, so that `Task.version` of other weights differs.
        fused: whether the fused kernel serves.
    """

    task: Task
    weights: EnsembleWeights
    fused: bool
    _compute: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def label(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mask int64 and uncertainty float32 [N, H, W] of maps [N, C_l, h_l, w_l] of the task's shapes."""
        mask, uncertainty = self._compute([f.to(self.task.dtype) for f in features])
        return mask.long(), uncertainty


@torch.no_grad()
def prepare(
    weights: EnsembleWeights,
    features: Sequence[Tensor],
    frame: Frame,
    vote: Vote,
    held: Prepared | None = None,
) -> Prepared:
    """Choose, compile and try what labels such maps.

    Operands are in the precision of the maps (the recipe's dtype), sums and everything after the last layer in float32.

    Args:
        weights: the classifiers, on the device of the maps.
        features: maps [N, C_l, h_l, w_l] of one dtype; any of the same shapes can be labeled afterwards.
        frame: size and rows.
        vote: of the members.
        held: what was prepared before; returned if it is for the same task.
    """
    task = Task.of(weights, features, frame, vote)
    if held is not None and held.task == task:
        return held
    fused = _fused(weights, features, task) if available(weights.device) else None
    if fused is not None:
        return Prepared(task, weights, True, fused)
    return Prepared(task, weights, False, lambda maps: projection.label(weights, maps, frame, vote))


def _fused(
    weights: EnsembleWeights, features: Sequence[Tensor], task: Task
) -> Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]] | None:
    """The fused kernel, compiled and tried; None with a warning where it does not run."""
    from dsgan_datasets.interpreters.fused_tail import FusedTail  # needs Triton, which is optional

    try:
        kernel = FusedTail(weights, [shape[1:] for shape in task.shapes], task.frame, task.dtype, task.vote)
        kernel.label([f.to(task.dtype) for f in features])  # compiles it
        if weights.device.type == "cuda":  # its tables are complete before any other stream reads them
            torch.cuda.current_stream(weights.device).synchronize()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a driver may raise: plain PyTorch does the same
        warnings.warn(
            f"labels are computed by plain PyTorch, which is slower: the fused kernel does not run here "
            f"({type(error).__name__}: {error!s:.300})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return kernel.label
