"""Convolutions and matrix products whose bits no switch of the process decides.

`torch.backends` has switches that choose other algorithms or precisions for everybody: cudnn.benchmark, TF32, half
sums, autocast. A sample must not depend on them, and they are not ours to set: other threads train meanwhile. So on an
NVIDIA GPU cuDNN is called with its flags given for each call: the first plan of its heuristics rather than the fastest
one measured, deterministic plans only, IEEE float32. Elsewhere, and where gradients are asked for, these are PyTorch's
own operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def conv2d(
    x: Tensor, kernel: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Tensor:
    """`torch.nn.functional.conv2d` of x [N, C, H, W] with a kernel [O, C / groups, k, k] and a bias [O]."""
    if not _asks_cudnn(x, kernel):
        return F.conv2d(x, kernel, bias, stride, padding, 1, groups)
    result: Tensor = _convolution(x, kernel, stride, padding, groups)
    return result if bias is None else result + bias[:, None, None]


def conv_transpose2d(x: Tensor, kernel: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """`torch.nn.functional.conv_transpose2d` of x [N, C, H, W] with a kernel [C, O, k, k]."""
    if not _asks_cudnn(x, kernel):
        return F.conv_transpose2d(x, kernel, stride=stride, padding=padding)
    result: Tensor = _transposed_convolution(x, kernel, stride, padding)
    return result


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows [..., K] @ matrix [K, J], summed in float32.

    cuBLAS takes its precision from switches of the process; as a 1×1 convolution a product takes none.
    """
    if not _asks_cudnn(rows, matrix):
        return rows @ matrix
    pixels = rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)  # [1, K, rows, 1], channels last
    made: Tensor = _convolution(pixels, matrix.t()[:, :, None, None], 1, 0, 1)
    return made.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], matrix.shape[1])


def product_of_columns(matrix: Tensor, columns: Tensor) -> Tensor:
    """matrix [J, K] @ columns [..., K, P], as `product` computes it."""
    if not _asks_cudnn(columns, matrix):
        return matrix @ columns
    images = columns.reshape(-1, *columns.shape[-2:]).unsqueeze(2)  # [N, K, 1, P]
    made: Tensor = _convolution(images, matrix[:, :, None, None], 1, 0, 1)
    return made.reshape(*columns.shape[:-2], len(matrix), columns.shape[-1])


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator: the function computes in the precision that it names, also where the caller has autocast on."""

    @functools.wraps(function)
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return computed


def _asks_cudnn(x: Tensor, weight: Tensor) -> bool:
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return x.is_cuda and x.dtype != torch.float64 and torch.version.hip is None and not trains


#: As cuDNN is asked: not by timing, the same bits each time, products in IEEE float32 where operands are float32.
_FLAGS: dict[str, Any] = {"benchmark": False, "deterministic": True, "allow_tf32": False}


# Custom operators: cuDNN's functions do not say what shapes they return, which torch.compile and fake tensors ask for.
@torch.library.custom_op("dsgan_datasets::convolution", mutates_args=())
def _convolution(x: Tensor, kernel: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    made: Tensor = torch.cudnn_convolution(x, kernel, [padding] * 2, [stride] * 2, [1, 1], groups, **_FLAGS)
    return made


@_convolution.register_fake
def _(x: Tensor, kernel: Tensor, stride: int, padding: int, groups: int) -> Tensor:
    return F.conv2d(x, kernel, None, stride, padding, 1, groups)


@torch.library.custom_op("dsgan_datasets::transposed_convolution", mutates_args=())
def _transposed_convolution(x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    made: Tensor = torch.cudnn_convolution_transpose(
        x, kernel, [padding] * 2, [0, 0], [stride] * 2, [1, 1], 1, **_FLAGS
    )
    return made


@_transposed_convolution.register_fake
def _(x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv_transpose2d(x, kernel, stride=stride, padding=padding)
