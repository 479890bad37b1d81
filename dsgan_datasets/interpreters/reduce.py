"""Logits of the members -> one class and one uncertainty per pixel (DatasetGAN, sections 3.1 and 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsgan_datasets.recipe import Vote
from dsgan_datasets.uncertainty import entropy, jensen_shannon

_LN2 = math.log(2)


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


class Tally:
    """`reduce_members` for a CPU: a group of members and a chunk of rows at a time, while they are in the cache.

    The entropy of a member follows from its logits l: log Σ e - Σ e · l' / Σ e with l' = l - max l and e = exp(l'),
    here to the base of 2, whose powers cost a quarter.

    Args:
        shape: (K, rows, W).
        vote: as for `reduce_members`.
        device: of the logits.
    """

    def __init__(self, shape: tuple[int, int, int], vote: Vote, device: torch.device) -> None:
        self.vote, self.members = vote, 0
        self.probability = torch.zeros(shape, device=device)  # summed over members
        self.entropy = torch.zeros(shape[1:], device=device)  # likewise, in bits
        self.votes = self.probability if vote == "mean" else torch.zeros(shape, device=device)

    def add(self, members: slice, rows: slice, logits: Tensor) -> None:
        """Count some members, by their logits [members, K, rows, W] at these rows."""
        if rows.start == 0:
            self.members += members.stop - members.start
        largest = logits.amax(1, keepdim=True)
        shifted = (logits - largest).mul_(1 / _LN2)
        e = shifted.exp2()
        total = e.sum(1, keepdim=True)
        self.entropy[rows] += (total.log2() - shifted.mul_(e).sum(1, keepdim=True) / total).sum(0)[0]
        self.probability[:, rows] += e.mul_(total.reciprocal_()).sum(0)
        if self.vote == "majority":
            self.votes[:, rows] += _lowest_of(shifted.copy_(logits).eq_(largest)).sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        """Class ids int64 and Jensen-Shannon divergence in nats, [rows, W]."""
        divergence = entropy(self.probability / self.members, 0) - self.entropy * (_LN2 / self.members)
        if self.vote == "mean":
            return _lowest_argmax(self.votes, 0), divergence.clamp_min_(0)
        # Votes are whole numbers: with the class as the lower digit, a maximum finds the lowest of the most frequent.
        classes = len(self.votes)
        digits = torch.arange(classes - 1, -1, -1, device=self.votes.device)[:, None, None]
        winner = (classes * self.votes + digits).amax(0).long() % classes
        return classes - 1 - winner, divergence.clamp_min_(0)


def _lowest_of(marked: Tensor) -> Tensor:
    """Marks 1.0 and 0.0, [members, K, ...]: only the lowest of the classes that a member marks at a pixel."""
    if marked.sum() == marked[:, 0].numel():  # nearly always: one each
        return marked
    return marked * (marked.cumsum(1) == 1)


def _lowest_argmax(values: Tensor, dim: int) -> Tensor:
    """Argmax, the lowest index where several are equal. PyTorch vectorizes it along the last axis only."""
    return torch.argmax(values.movedim(dim, -1).contiguous(), -1)
