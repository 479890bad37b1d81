"""Outputs of whole batches, as a GPU computes them: by the fused kernel if Triton is there, else in plain PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dsgan_datasets.acceleration import keep_for_graph
from dsgan_datasets.device import why_no_triton
from dsgan_datasets.interpreters import projection
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import Reduction
from dsgan_datasets.interpreters.weights import EnsembleWeights

#: Tasks that an ensemble stays prepared for: a few recipes with a few sizes each.
_MOST_HELD = 8
#: Precisions that whole batches are computed in; maps of any other are converted to float32.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Task(NamedTuple):
    """What a kernel is prepared for: weights at a version, maps of given shapes, and what is to be kept."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    frame: Frame
    reduction: Reduction
    version: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, weights: EnsembleWeights, features: Sequence[Tensor], frame: Frame, reduction: Reduction) -> Task:
        """The task for these maps."""
        dtype = features[0].dtype if features[0].dtype in _DTYPES else torch.float32
        return cls(tuple(tuple(f.shape) for f in features), dtype, frame, reduction, weights.version())


@dataclass(frozen=True, eq=False)
class Prepared:
    """Computes batches of one task; `prepare` makes it.

    Attributes:
        task: what it is prepared for.
        weights: of the ensemble; held, so that `Task.version` of other weights differs.
        fused: whether the fused kernel serves.
    """

    task: Task
    weights: EnsembleWeights
    fused: bool
    _compute: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]

    @torch.no_grad()
    def reduce(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the task's reduction keeps, [N, ..., H, W] each, of maps [N, C_l, h_l, w_l] of its shapes."""
        keep_for_graph(self)  # its tables are read by address
        return self._compute([f.to(self.task.dtype) for f in features])


@torch.no_grad()
def prepare(
    weights: EnsembleWeights,
    features: Sequence[Tensor],
    frame: Frame,
    reduction: Reduction,
    held: dict[Task, Prepared] | None = None,
) -> Prepared:
    """Choose, compile and try what computes such maps.

    Operands are in the precision of the maps (the recipe's dtype), sums and everything after the last layer in float32.

    Args:
        weights: the members, on the device of the maps.
        features: maps [N, C_l, h_l, w_l] of one dtype; any of the same shapes can be computed afterwards.
        frame: size and rows.
        reduction: of the members' outputs.
        held: what was prepared before, by task; what is prepared now joins it, and what belongs to weights that have
            changed since leaves it.
    """
    task = Task.of(weights, features, frame, reduction)
    held = {} if held is None else held
    if task in held:
        return held[task]
    stale = [old for old in held if old.version != task.version] or list(held)[: max(0, len(held) + 1 - _MOST_HELD)]
    if stale and weights.device.type == "cuda":
        torch.cuda.synchronize(weights.device)  # a kernel on another stream may still read what is dropped
    for old in stale:
        held.pop(old, None)
    fused = _fused(weights, task, features)
    compute = fused or projection.PlainForm(weights, [s[1:] for s in task.shapes], frame, task.dtype, reduction).reduce
    held[task] = Prepared(task, weights, fused is not None, compute)
    if weights.device.type == "cuda":  # its tables are complete before any other stream reads them
        torch.cuda.current_stream(weights.device).synchronize()
    return held[task]


def _fused(
    weights: EnsembleWeights, task: Task, features: Sequence[Tensor]
) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None:
    """The fused kernel, compiled and tried; None with a warning where it does not run."""
    reason = why_no_triton(weights.device)
    if reason is None:
        from dsgan_datasets.interpreters.fused_tail import FusedTail  # needs Triton, which is optional

        try:
            kernel = FusedTail(weights, [shape[1:] for shape in task.shapes], task.frame, task.dtype, task.reduction)
            kernel.reduce([f.to(task.dtype) for f in features])  # compiles it
            return kernel.reduce
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or a driver may raise: plain PyTorch does the same
            reason = f"{type(error).__name__}: {error!s:.300}"
    if weights.device.type in ("cpu", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        return None  # nobody computes whole batches there but tests and benchmarks
    warnings.warn(
        f"labels are computed by plain PyTorch, which on a GPU takes tens of times as long: the fused kernel does not "
        f"run here ({reason})",
        RuntimeWarning,
        stacklevel=4,
    )
    return None
