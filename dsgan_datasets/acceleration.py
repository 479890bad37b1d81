"""Recording what a GPU does for a batch of fixed size, so that the host can start it as a whole."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], tuple[Tensor, ...]]

#: Calls before the recording: libraries choose their algorithms and get their memory, kernels are compiled.
_WARM_UP = 3


def accelerated(function: Function, example: Tensor, *, modules: Sequence[nn.Module] = ()) -> Function:
    """The function as one CUDA graph, for tensors like `example`; the function itself, with a warning, if that fails.

    Args:
        function: never waits for the GPU, and gives tensors whose shapes depend on the shape of its argument only.
        example: as large as every later argument.
        modules: parts of it that torch.compile is to fuse first; they stay compiled.
    """
    try:
        if not example.is_cuda:
            raise RuntimeError(f"CUDA graphs need a CUDA device, this is {example.device}")
        for module in modules:
            module.compile(dynamic=False)
        return _Recorded(function, example)
    except Exception as error:  # whatever a compiler or a driver may raise: there is a plain way
        for module in modules:
            module._compiled_call_impl = None
        warnings.warn(
            f"batches are computed plainly, not as a CUDA graph: {error!s:.300}", RuntimeWarning, stacklevel=3
        )
        return function


class _Recorded:
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
        # Other threads may go on using the GPU meanwhile: only what this one does is recorded, or forbidden.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = function(self._input)
        torch.cuda.current_stream(example.device).synchronize()
        self._done: torch.cuda.Event = torch.cuda.current_stream(example.device).record_event()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Copies of the outputs, as the next call overwrites them."""
        with self._turn:
            stream = torch.cuda.current_stream(x.device)
            stream.wait_event(self._done)
            self._input.copy_(x)
            self._graph.replay()
            outputs = tuple(output.clone() for output in self._outputs)
            self._done = stream.record_event()
        return outputs
