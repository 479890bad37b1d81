"""Capture a fixed-size batch as one CUDA graph, so that the host starts all of its kernels with one call."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Function = Callable[[Tensor], Mapping[str, Tensor]]

#: Calls before the capture: libraries choose their algorithms and get their memory, kernels are compiled.
_WARM_UP = 3

_this_thread = threading.local()


def keep_for_graph(owner: object) -> None:
    """Called by what computes with tensors of its own: a graph that is being captured keeps the owner alive.

    A graph replays addresses. What lies there must not be freed while the graph can run.
    """
    kept: list[object] | None = getattr(_this_thread, "kept", None)
    if kept is not None:
        kept.append(owner)


def capture_graph(function: Function, example: Tensor, networks: Sequence[nn.Module] = ()) -> Function:
    """The function as one CUDA graph, for tensors like `example`; the function itself, with a warning, if that fails.

    Args:
        function: never waits for the GPU, and returns tensors whose shapes depend on the shape of its argument only.
        example: as large as every later argument.
        networks: that the function computes with. Once a tensor of theirs was moved or written to, the function is
            called instead of the graph.
    """
    try:
        if not example.is_cuda:
            raise RuntimeError(f"CUDA graphs need a CUDA device, this is {example.device}")
        return _Captured(function, example, networks)
    except Exception as error:  # whatever a compiler or a driver may raise: there is a plain way
        warnings.warn(
            f"batches are computed plainly, not as a CUDA graph: {error!s:.300}", RuntimeWarning, stacklevel=3
        )
        return function


class OnDevice(TorchDispatchMode):
    """While it is entered, operations that make the host wait for the device, or copy from the host, are refused.

    Args:
        device: where everything has to be.

    Raises:
        RuntimeError: such an operation; the message names it.

    Example:
        >>> with OnDevice(torch.device("cuda")):
        ...     torch.ones(2).sum()
        Traceback (most recent call last):
        RuntimeError: aten.ones.default works on cpu: a CUDA graph holds what happens on cuda only
    """

    #: They return what the host has to know, such as a number or a shape.
    WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"})

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        # A number that PyTorch wrapped into a tensor is passed to the kernel as a number.
        wrapped = {
            id(x) for x in tree_leaves(args) if isinstance(x, Tensor) and x.dim() == 0 and x.device.type == "cpu"
        }
        elsewhere = [t.device for t in tensors if t.device.type != self._device.type and id(t) not in wrapped]
        if elsewhere:
            raise RuntimeError(
                f"{func} works on {elsewhere[0]}: a CUDA graph holds what happens on {self._device.type} only"
            )
        if func.overloadpacket.__name__ in self.WAITING:
            raise RuntimeError(f"{func} waits for the device: a CUDA graph cannot hold that")
        return result


class _Captured:
    """A CUDA graph of a function; may be called from several threads and streams, which then take turns."""

    def __init__(self, function: Function, example: Tensor, networks: Sequence[nn.Module]) -> None:
        self._function = function
        self._modules = [module for network in networks for module in network.modules()]
        self._input = example.clone()
        self._turn = threading.Lock()
        with torch.cuda.device(example.device):
            stream, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(stream)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    function(self._input)
                # A capture that fails leaves the allocator as if it were still going on: what cannot be captured is
                # found before.
                with OnDevice(example.device):
                    function(self._input)
            stream.wait_stream(aside)
            #: Weights whose addresses the graph holds, and what functions keep for themselves: alive as long as it.
            self._kept: list[object] = [tensor.detach() for tensor in self._weights()]
            self._state = self._versions()
            self._graph = torch.cuda.CUDAGraph()
            _this_thread.kept = self._kept
            try:
                # On a stream of its own: libraries keep one workspace a stream, and two graphs may run at once. Other
                # threads may use the GPU meanwhile: only what this one does is captured, or forbidden.
                with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
                    self._outputs = function(self._input)
            finally:
                _this_thread.kept = None
            torch.cuda.current_stream().synchronize()
            self._done: torch.cuda.Event = torch.cuda.current_stream().record_event()

    def __call__(self, x: Tensor) -> Mapping[str, Tensor]:
        """Copies of the outputs, as the next call overwrites them."""
        if self._versions() != self._state:
            return self._function(x)
        with self._turn, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            self._input.copy_(x)
            self._graph.replay()
            outputs = {name: output.clone() for name, output in self._outputs.items()}
            self._done = stream.record_event()
        return outputs

    def _weights(self) -> list[Tensor]:
        # Not parameters() and buffers(), which take five times as long, for each batch.
        tensors = [t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values())]
        return [tensor for tensor in tensors if tensor is not None]

    def _versions(self) -> list[tuple[int, int]]:
        """Another value once a tensor was replaced or written to; the old ones are alive."""
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._weights()]
