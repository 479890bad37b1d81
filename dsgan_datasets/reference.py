"""The method in the order of the paper and in plain PyTorch: read this first. The tests compare the fast code with it.

Y. Zhang et al., "DatasetGAN: Efficient Labeled Data Factory with Minimal Human Effort", CVPR 2021, arXiv 2104.06490.
Nothing here is fast: at 512² the concatenated features of one image take 5 GB. `interpreters.rowwise` and
`interpreters.batched` compute the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, Prediction
from dsgan_datasets.interpreters.weights import EnsembleWeights


def pixel_features(features: Sequence[Tensor], frame: Frame) -> Tensor:
    """Section 3.1: all feature maps of the generator, resized to the output and concatenated.

    Args:
        features: maps S_l [N, C_l, h_l, w_l], coarse to fine.
        frame: output size, and the rows that are kept of it.

    Returns:
        [N, C, H, W] with C = Σ C_l: one feature vector per pixel.

    Example:
        >>> maps = [torch.zeros(1, 5, 4, 4), torch.zeros(1, 3, 8, 8)]
        >>> pixel_features(maps, Frame((8, 8))).shape
        torch.Size([1, 8, 8, 8])
    """
    resized = [F.interpolate(s, size=frame.size, mode="bilinear", align_corners=False) for s in features]
    top, bottom = frame.kept
    return torch.cat(resized, dim=1)[:, :, top:bottom]


def classify(weights: EnsembleWeights, pixels: Tensor) -> Tensor:
    """Section 3.1: an ensemble of three-layer classifiers (M = 10 in the paper) looks at each pixel by itself.

    Args:
        weights: the classifiers, batch normalization folded in; their dtype is that of the computation.
        pixels: features [N, C, H, W].

    Returns:
        logits [M, N, K, H, W].

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> weights = labeled.interpreter.weights
        >>> pixels = torch.zeros(1, sum(labeled.generator.feature_channels), 2, 2)
        >>> classify(weights, pixels).shape
        torch.Size([10, 1, 12, 2, 2])
    """
    f = pixels.movedim(1, -1).to(weights.w1)  # [N, H, W, C]
    members = []
    for m in range(weights.num_members):
        hidden = (f @ weights.w1[:, m] + weights.b1[m]).relu()
        hidden = (hidden @ weights.w2[m] + weights.b2[m]).relu()
        members.append(hidden @ weights.w3[m] + weights.b3[m])
    return torch.stack(members).movedim(-1, 2)


def label(
    weights: EnsembleWeights, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
) -> Prediction:
    """Mask, uncertainty and score of N images, like `PixelEnsemble.predict`.

    Example:
        >>> ensemble = load_interpreter("demo-faces", device="cpu")
        >>> features = [torch.zeros(1, c, 8, 8) for c in ensemble.channels]
        >>> label(ensemble.weights, features, Frame((16, 16))).labels["mask"].shape
        torch.Size([1, 16, 16])
    """
    logits = classify(weights, pixel_features(features, frame))
    p = logits.softmax(dim=2)  # [M, N, K, H, W]

    # Section 3.1: the members vote; of equally many votes the lowest class wins.
    votes = F.one_hot(logits.argmax(dim=2), weights.num_outputs).sum(dim=0)  # [N, H, W, K]
    mask = votes.argmax(dim=-1) if options.vote == "majority" else p.mean(dim=0).argmax(dim=1)

    # Section 3.2: Jensen-Shannon divergence of the members, JS = H(mean p) - mean H(p) with H(p) = -Σ p log p.
    uncertainty = torch.special.entr(p.mean(dim=0)).sum(dim=1) - torch.special.entr(p).sum(dim=2).mean(dim=0)
    uncertainty = uncertainty.clamp_min(0)

    # Section 3.2: the score of an image is the mean of its most uncertain pixels, 10 % of them as published.
    flat = uncertainty.flatten(1)
    count = max(1, int(flat.shape[1] * options.top_fraction + 1e-9))
    score = flat.topk(count, dim=1).values.mean(dim=1)
    return Prediction({"mask": mask}, uncertainty, score)
