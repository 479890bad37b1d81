"""Logits of the members -> one class and one uncertainty per pixel (DatasetGAN, sections 3.1 and 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from dsgan_datasets.recipe import Vote
from dsgan_datasets.uncertainty import jensen_shannon


def reduce_members(logits: Tensor, dim: int, vote: Vote) -> tuple[Tensor, Tensor]:
    """Class and disagreement of every pixel.

    Args:
        logits: members first, [M, …, K, …].
        dim: the dimension of the K classes, counted from the left, at least 1.
        vote: "majority" of the members' classes, or argmax of the "mean" probability; ties go to the lowest class.

    Returns:
        class ids int64 and Jensen-Shannon divergence in nats, both of the shape of `logits` without M and K.
    """
    probabilities = logits.softmax(dim)
    divergence = jensen_shannon(probabilities, dim)
    if vote == "mean":
        return _lowest_argmax(probabilities.mean(0), dim - 1), divergence
    votes = probabilities.new_zeros(*divergence.shape, logits.shape[dim])
    for choice in _lowest_argmax(logits, dim).unsqueeze(-1):
        votes.scatter_add_(-1, choice, votes.new_ones(()).expand_as(choice))
    return votes.argmax(-1), divergence


def _lowest_argmax(values: Tensor, dim: int) -> Tensor:
    """Argmax, the lowest index where several are equal. PyTorch vectorizes it along the last axis only."""
    return torch.argmax(values.movedim(dim, -1).contiguous(), -1)
