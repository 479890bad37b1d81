"""Capture a fixed-size batch as one CUDA graph, so that the host starts all of its kernels with one call."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Function = Callable[[Tensor], Mapping[str, Tensor]]

#: Calls before the capture: libraries choose their algorithms and get their memory, kernels are compiled.
_WARM_UP = 3


def capture_graph(function: Function, example: Tensor) -> Function:
    """The function as one CUDA graph, for tensors like `example`; the function itself, with a warning, if that fails.

    Args:
        function: never waits for the GPU, and returns tensors whose shapes depend on the shape of its argument only.
        example: as large as every later argument.
    """
    try:
        if not example.is_cuda:
            raise RuntimeError(f"CUDA graphs need a CUDA device, this is {example.device}")
        return _Captured(function, example)
    except Exception as error:  # whatever a compiler or a driver may raise: there is a plain way
        warnings.warn(
            f"batches are computed plainly, not as a CUDA graph: {error!s:.300}", RuntimeWarning, stacklevel=3
        )
        return function


class _Captured:
    """A CUDA graph of a function; may be called from several threads and streams, which then take turns."""

    def __init__(self, function: Function, example: Tensor) -> None:
        self._input = example.clone()
        self._turn = threading.Lock()
        stream = torch.cuda.current_stream(example.device)
        aside = torch.cuda.Stream(example.device)
        aside.wait_stream(stream)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                function(self._input)
        stream.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: only what this one does is captured, or forbidden.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = function(self._input)
        torch.cuda.current_stream(example.device).synchronize()
        self._done: torch.cuda.Event = torch.cuda.current_stream(example.device).record_event()

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Copies of the outputs, as the next call overwrites them."""
        with self._turn:
            stream = torch.cuda.current_stream(x.device)
            stream.wait_event(self._done)
            self._input.copy_(x)
            self._graph.replay()
            outputs = {name: output.clone() for name, output in self._outputs.items()}
            self._done = stream.record_event()
        return outputs
