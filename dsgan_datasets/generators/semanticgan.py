"""SemanticGAN (Li et al., CVPR 2021, arXiv 2104.05833): a StyleGAN2 that makes a mask's logits beside the image.

Its segmentation heads are built like ToRGB: a 1×1 convolution with a style of its own at every resolution, summed
through the same upsampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from dsgan_datasets.recipe import FeatureLayout


@dataclass(frozen=True, kw_only=True)
class SemanticGANConfig(StyleGAN2Config):
    """Shape of a SemanticGAN.

    Args:
        label_channels: logits of a pixel: one for each class, or a single one for a binary mask.
    """

    architecture = "semanticgan"

    label_channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("label_channels", self.label_channels, 1, 255)
        if self.block != "skip":
            raise ValueError(f'block must be "skip", not {self.block!r}')
        if self.img_channels not in (1, 3):
            raise ValueError(f"img_channels must be 1 or 3, not {self.img_channels}")

    @property
    def heads(self) -> Mapping[str, int]:
        """See `StyleGAN2Config`."""
        return {**super().heads, "toseg": self.label_channels}


class SemanticGAN(StyleGAN2):
    """A frozen SemanticGAN; make one with `load_generator`. Its extra channels are the logits of the classes.

    Args:
        config: its shape.
        features: as of `StyleGAN2`.

    Raises:
        ValueError: a feature layout that StyleGAN2 does not have.
    """

    def __init__(self, config: SemanticGANConfig, features: FeatureLayout | None = None) -> None:
        super().__init__(config, features)
        self.extra_channels = config.label_channels
