"""Class probabilities of an ensemble -> disagreement per pixel -> one score per image (DatasetGAN, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsgan_datasets.targets.base import Target


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Shannon entropy along `dim`, in nats; 0 log 0 = 0.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5]), 0)  # log 2
        tensor(0.6931)
    """
    # log of a clamped value, not xlogy: the same number, and vectorized on the CPU.
    return -(probabilities * probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()).sum(dim)


def jensen_shannon(probabilities: Tensor, dim: int) -> Tensor:
    """Jensen-Shannon divergence of the members' class distributions, H(mean) - mean(H), in nats.

    Args:
        probabilities: members first, [M, …, K, …], summing to 1 over K.
        dim: the dimension of the K classes, counted from the left, at least 1.

    Returns:
        the shape of `probabilities` without M and K; 0 where all members agree, at most log(min(M, K)).

    Example:
        >>> agreeing, opposed = torch.tensor([[[0.5, 0.5]] * 2, [[1.0, 0.0], [0.0, 1.0]]]).unbind()
        >>> jensen_shannon(agreeing, 1), jensen_shannon(opposed, 1)
        (tensor(0.), tensor(0.6931))
    """
    divergence = entropy(probabilities.mean(0), dim - 1) - entropy(probabilities, dim).mean(0)
    return divergence.clamp_min(0)  # rounding may leave -1e-8 where all members agree


def js_divergence(probabilities: Tensor) -> Tensor:
    """`jensen_shannon` of a batch of images. Computed on probabilities: the published code passes logits.

    Args:
        probabilities: [M, N, K, H, W], summing to 1 over K.

    Returns:
        [N, H, W], nats.

    Raises:
        ValueError: another number of dimensions.

    Example:
        >>> js_divergence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 2, 1, 1)).item()  # log 2
        0.6931471824645996
    """
    if probabilities.dim() != 5:
        raise ValueError(f"probabilities must be [M, N, K, H, W], got shape {tuple(probabilities.shape)}")
    return jensen_shannon(probabilities, 2)


def score_unit(targets: Sequence[Target]) -> str:
    """Unit of the scores of a source: nats where its first label is a class, none for heat and for shares of a range.

    Example:
        >>> score_unit([LabelSchema(("background", "face"))])
        'nats'
    """
    return "nats" if targets and targets[0].field == "mask" else ""


def image_score(uncertainty: Tensor, top_fraction: float = 0.1) -> Tensor:
    """Mean of the most uncertain pixels of each image: the score that the filter ranks by.

    Args:
        uncertainty: [N, H, W], nats.
        top_fraction: share of the pixels that counts; max(1, floor(HW * top_fraction + 1e-9)) of them.

    Returns:
        [N], nats.

    Example:
        >>> image_score(torch.arange(20.0).view(1, 4, 5))  # the mean of the two highest
        tensor([18.5000])
    """
    flat = uncertainty.flatten(1)
    count = max(1, math.floor(flat.shape[1] * top_fraction + 1e-9))
    return flat.topk(count, dim=1).values.mean(1)
