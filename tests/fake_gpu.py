"""A GPU that is not there: tensors without values on it, and a torch.cuda that notes what it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

Module = TypeVar("Module", bound=nn.Module)


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, tensors have shapes, types and devices (also cuda:N), and no values."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def to_fake_gpu(module: Module, device: str = "cuda:0") -> Module:
    """Moves a network there, inside of `fake_tensors`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        moved: Module = module.to(device)
        return moved
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class Operations(TorchDispatchMode):
    """Notes the operations that run while it is entered: (name, types of the tensors that go in)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[torch.dtype, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tuple(x.dtype for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor))
        self.seen.append((str(func), inputs))
        return func(*args, **(kwargs or {}))


class Stream:
    """Of `FakeCuda`."""

    def __init__(self, cuda: FakeCuda, device: torch.device) -> None:
        self.device = device
        self._cuda = cuda

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self) -> object:
        return object()


class FakeCuda:
    """Takes the place of torch.cuda, but for `is_available`: by its False, PyTorch makes tensors without values there.

    Attributes:
        current: number of the current device.
        streams: that were made.
        captures: of each graph: (current device, stream given).
        replays: of all graphs.
        launches: of `kernel`: the current device.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        self.current, self.replays = 0, 0
        self.streams: list[Stream] = []
        self.captures: list[tuple[int, Any]] = []
        self.launches: list[int] = []
        self._default = Stream(self, torch.device("cuda", 0))
        replaced = {
            # Said outright: a library that was imported before may have PyTorch count devices instead.
            "is_available": lambda: False,
            "device_count": lambda: 2,
            "current_device": lambda: self.current,
            "get_device_capability": lambda device=None: capability,
            "get_device_name": lambda device=None: "fake",
            "synchronize": lambda device=None: None,
            "current_stream": lambda device=None: self._default,
            "Stream": self._stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "device": self._device,
            "graph": self._graph,
            "CUDAGraph": lambda: self,
        }
        for name, function in replaced.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def replay(self) -> None:
        self.replays += 1

    def kernel(self) -> Any:
        """A Triton kernel that notes its launches."""
        cuda = self

        class Kernel:
            def __getitem__(self, grid: object) -> Any:
                return lambda *args, **kwargs: cuda.launches.append(cuda.current)

        return Kernel()

    def _stream(self, device: torch.device | None = None) -> Stream:
        self.streams.append(Stream(self, torch.device("cuda", self.current) if device is None else device))
        return self.streams[-1]

    @contextlib.contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index or 0
        yield
        self.current = before

    @contextlib.contextmanager
    def _graph(self, graph: object, *, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        self.captures.append((self.current, stream))
        yield
