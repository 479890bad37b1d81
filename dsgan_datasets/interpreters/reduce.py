"""Outputs of the members at every pixel -> what is kept of them: votes on a class, or a mean; and their disagreement.

A reduction is a frozen value: what computes the outputs (`rowwise`, `batched`) is prepared for one and knows nothing
more about it. DatasetGAN, sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dsgan_datasets.recipe import Vote
from dsgan_datasets.uncertainty import entropy, jensen_shannon

_LN2 = math.log(2)


class Tally(Protocol):
    """A `Reduction` for a CPU: a group of members and a chunk of rows at a time, while they are in the cache."""

    def add(self, members: slice, rows: slice, outputs: Tensor) -> None:
        """Count some members, by their outputs [members, K, rows, W] at these rows, which may be overwritten."""

    def result(self) -> tuple[Tensor, ...]:
        """What is kept, [..., rows, W] each."""


class Reduction(Protocol):
    """What is kept of the outputs of the members. Equal ones are interchangeable."""

    def empty(self, outputs: int, count: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Where what is kept of N images goes, [N, ..., H, W] each.

        Args:
            outputs: K of a member.
            count: N.
            size: (H, W).
            device: of all.
        """

    def __call__(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """What is kept, [N, ..., rows, W] each, of outputs [M, N, rows, W, K]."""

    def tally(self, shape: tuple[int, int, int], device: torch.device) -> Tally:
        """The same, bit by bit, for one image and (K, rows, W) outputs."""


@dataclass(frozen=True)
class Votes:
    """Class ids int64 [N, H, W] and Jensen-Shannon divergence float32 [N, H, W], in nats, of members that classify.

    Args:
        vote: "majority" of the members' classes, or argmax of the "mean" probability; ties go to the lowest class.
    """

    vote: Vote

    def empty(self, outputs: int, count: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """See `Reduction`."""
        mask = torch.empty(count, *size, dtype=torch.int64, device=device)
        return mask, torch.empty(count, *size, device=device)

    def __call__(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """See `Reduction`."""
        return reduce_members(outputs, 4, self.vote)

    def tally(self, shape: tuple[int, int, int], device: torch.device) -> Tally:
        """See `Reduction`."""
        return _VoteTally(shape, self.vote, device)


@dataclass(frozen=True)
class Moments:
    """Mean float32 [N, K, H, W] of members that regress, and how far they lie apart, float32 [N, H, W].

    The latter is the root mean square distance of the members' outputs from their mean: √(Σ over outputs of their
    variance over members).

    Args:
        counted: outputs, from the first on, whose variance counts; None for all.
    """

    counted: int | None = None

    def empty(self, outputs: int, count: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """See `Reduction`."""
        return torch.empty(count, outputs, *size, device=device), torch.empty(count, *size, device=device)

    def __call__(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """See `Reduction`."""
        mean = outputs.mean(0)
        variance = (outputs - mean)[..., : self.counted].square_().sum(4).mean(0)
        return mean.movedim(3, 1), variance.sqrt_()

    def tally(self, shape: tuple[int, int, int], device: torch.device) -> Tally:
        """See `Reduction`."""
        return _MomentTally(shape, self.counted, device)


@dataclass(frozen=True)
class Probabilities:
    """Probabilities of the classes, mean over the members that classify, float16 [N, K, H, W]."""

    def empty(self, outputs: int, count: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """See `Reduction`."""
        return (torch.empty(count, outputs, *size, dtype=torch.float16, device=device),)

    def __call__(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """See `Reduction`."""
        return (outputs.softmax(4).mean(0).movedim(3, 1).half(),)

    def tally(self, shape: tuple[int, int, int], device: torch.device) -> Tally:
        """See `Reduction`."""
        return _ProbabilityTally(shape, device)


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


class _VoteTally:
    """`reduce_members` of some rows, as a `Tally`.

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

    def add(self, members: slice, rows: slice, outputs: Tensor) -> None:
        """Count some members, by their logits."""
        logits = outputs
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


class _MomentTally:
    """`Moments` of some rows, as a `Tally`. Outputs should be of the order of one: variances are differences.

    Args:
        shape: (K, rows, W).
        counted: outputs whose variance counts.
        device: of the outputs.
    """

    def __init__(self, shape: tuple[int, int, int], counted: int | None, device: torch.device) -> None:
        self.counted, self.members = counted, 0
        self.total = torch.zeros(shape, device=device)
        self.squares = torch.zeros(shape[1:], device=device)

    def add(self, members: slice, rows: slice, outputs: Tensor) -> None:
        """Count some members."""
        if rows.start == 0:
            self.members += members.stop - members.start
        self.total[:, rows] += outputs.sum(0)
        self.squares[rows] += outputs[:, : self.counted].square().sum((0, 1))

    def result(self) -> tuple[Tensor, ...]:
        """Mean [K, rows, W] and spread [rows, W]."""
        mean = self.total / self.members
        variance = self.squares / self.members - mean[: self.counted].square().sum(0)
        return mean, variance.clamp_min_(0).sqrt_()


class _ProbabilityTally:
    """`Probabilities` of some rows, as a `Tally`; shape [K, rows, W]."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self.members, self.total = 0, torch.zeros(shape, device=device)

    def add(self, members: slice, rows: slice, outputs: Tensor) -> None:
        """Count some members, by their logits."""
        if rows.start == 0:
            self.members += members.stop - members.start
        self.total[:, rows] += outputs.softmax(1).sum(0)

    def result(self) -> tuple[Tensor, ...]:
        """Probabilities [K, rows, W]."""
        return ((self.total / self.members).half(),)


def _lowest_of(marked: Tensor) -> Tensor:
    """Marks 1.0 and 0.0, [members, K, ...]: only the lowest of the classes that a member marks at a pixel."""
    if marked.sum() == marked[:, 0].numel():  # nearly always: one each
        return marked
    return marked * (marked.cumsum(1) == 1)


def _lowest_argmax(values: Tensor, dim: int) -> Tensor:
    """Argmax, the lowest index where several are equal. PyTorch vectorizes it along the last axis only."""
    return torch.argmax(values.movedim(dim, -1).contiguous(), -1)
