"""Several datasets as one stream, in exact proportions and in one order for any number of consumers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from dsgan_datasets.checks import boolean, integer, is_number, names
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.samples import Sample
from dsgan_datasets.sources.streaming import ResumableStream, Uneven


class Origin(NamedTuple):
    """Where an item of a mixture comes from.

    Attributes:
        part: number of the part.
        number: of the sample there: its index in a generated stream, its place in a map-style dataset.

    Example:
        >>> Origin(part=1, number=42)
        Origin(part=1, number=42)
    """

    part: int
    number: int


class Mixture(ResumableStream[Any]):
    """Items of several datasets in turn, in exact proportions.

    Items have one order for any number of ranks and workers, if the mixture is given its `global_batch`. The first
    g global batches hold floor(g · B · f) items of the first part, f being its share of the weights, and what any lane
    of the batches has seen keeps to it as closely as whole numbers can; the other parts divide what is left likewise. A
    stream goes through its epochs, transformed and prepared in batches as it is alone; its own ranks and batches do not
    matter. A map-style dataset is shuffled anew each time, and gives each item once before any twice.

    Args:
        parts: streams (`DSGANIterableDataset`, `ShardDataset`, another mixture), and anything with a length and integer
            indices, such as a map-style dataset or a list.
        weights: a positive number for each part; [3, 1] takes three items of the first for one of the second.
        length: items an epoch has, over all ranks and workers; None for no end.
        seed: 0 … 2^64-1, of the shuffling.
        same_epoch: give every epoch the items of epoch 0, instead of those that come next.
        fields: what is kept of items that are dicts, so that they fit into one batch; None keeps items as they are.
        rank, world_size, split_by_rank, global_batch, loader_batch_size, uneven: see `DSGANIterableDataset`.

    Raises:
        ValueError: an argument out of range, a part that is neither a stream nor has a length, or one with view groups,
            which single items of others would tear.

    Example:
        >>> stream = DSGANIterableDataset(LabeledGenerator.from_pretrained("demo-faces", device="cpu"))
        >>> real = DSGANDataset(stream.source, 10, seed=1)
        >>> mixture = Mixture([stream, real], weights=[3, 1], global_batch=4)
        >>> [mixture.origin(n).part for n in range(8)], mixture.origin(6)
        ([1, 0, 0, 0, 0, 1, 0, 0], Origin(part=0, number=4))
    """

    def __init__(
        self,
        parts: Sequence[Any],
        weights: Sequence[float | Fraction],
        *,
        length: int | None = None,
        seed: int = 0,
        same_epoch: bool = False,
        fields: Collection[str] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        split_by_rank: bool | None = None,
        global_batch: int | None = None,
        loader_batch_size: int | None = None,
        uneven: Uneven | None = None,
    ) -> None:
        super().__init__(
            length=None if length is None else integer("length", length, 1, MAX_INDEX),
            rank=rank,
            world_size=world_size,
            split_by_rank=split_by_rank,
            global_batch=global_batch,
            loader_batch_size=loader_batch_size,
            uneven=uneven,
        )
        self.seed = check_seed(seed)
        self.same_epoch = boolean("same_epoch", same_epoch)
        self.fields = None if fields is None else names("fields", fields)
        if self.fields == ():
            raise ValueError("fields must name at least one field, such as image; None keeps items as they are")
        if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
            raise ValueError(f"parts must be a list of datasets, not {parts!r:.80}")
        self.parts = tuple(parts)
        self.weights = _checked_weights(weights, len(self.parts))
        self._streams = tuple(self._stream_of(number, part) for number, part in enumerate(self.parts))

    def origin(self, n: int) -> Origin:
        """Where the n-th item comes from, over all ranks and epochs, in the order of the global batches.

        Raises:
            ValueError: n below 0.
        """
        part, place = self._places()(integer("n", n, 0))
        stream = self._streams[part]
        return Origin(part, _number_at(stream)(place))

    def _stream_of(self, number: int, part: Any) -> ResumableStream[Any]:
        """A part as a stream."""
        if isinstance(part, ResumableStream):
            if part.group > 1:
                raise ValueError(
                    f"part {number} has view groups of {part.group}, which single items of other parts would tear: use "
                    "a recipe with group_size=1"
                )
            return part
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise ValueError(
                f"part {number} must be a stream of this package, or have a length and integer indices, not "
                f"{part!r:.80}"
            )
        if not len(part):
            raise ValueError(f"part {number} is empty")
        return _Shuffled(part, self.seed, sum(not isinstance(other, ResumableStream) for other in self.parts[:number]))

    def _numbering(self, epoch: int) -> Callable[[int], int]:
        length = self.length
        if length is None:
            return lambda position: position
        first = 0 if self.same_epoch else epoch * length
        return lambda position: first + position % length

    def _made(self, numbers: Callable[[], Iterator[int]]) -> Generator[Any]:
        def numbers_of(part: int) -> Iterator[int]:
            """Numbers of its samples, for the thread that prepares them."""
            places, number_at = self._places(), _number_at(self._streams[part])
            return (number_at(place) for which, place in map(places, numbers()) if which == part)

        with ExitStack() as open_streams:
            made = [
                open_streams.enter_context(closing(stream._made(partial(numbers_of, part))))
                for part, stream in enumerate(self._streams)
            ]
            for part, _ in map(self._places(), numbers()):
                item = next(made[part])
                yield item if self.fields is None else self._kept(item, part)

    def _kept(self, item: Any, part: int) -> Sample:
        missing = [name for name in self.fields or () if not isinstance(item, dict) or name not in item]
        if missing:
            found = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise ValueError(f"items of part {part} have no {', '.join(missing)}; found {found}: choose other fields")
        return Sample({name: item[name] for name in self.fields or ()})

    def _places(self) -> Callable[[int], tuple[int, int]]:
        """A function: number of an item of the mixture -> (part, how many items of that part come before)."""
        *chosen, last = range(len(self.parts))
        rest = sum(self.weights)
        divisions = []
        for part in chosen:  # each takes its items out of those that the parts before it left
            divisions.append(_division(self.weights[part] / rest, 1 if part else self.share.global_batch))
            rest -= self.weights[part]

        def place_of(n: int) -> tuple[int, int]:
            for part, division in enumerate(divisions):
                taken, before = division(n)
                if taken:
                    return part, before
                n -= before
            return last, n

        return place_of

    def _identity(self) -> dict[str, Any]:
        return {
            "parts": [stream._identity() for stream in self._streams],
            "weights": [str(weight) for weight in self.weights],
            "length": self.length,
            "seed": self.seed,
            "uneven": self.uneven,
            "same_epoch": self.same_epoch,
        }


class _Shuffled(ResumableStream[Any]):
    """A map-style dataset as a stream: each epoch has all of its items, in another order.

    Args:
        dataset: has a length and integer indices.
        seed: decides the orders.
        stream: number of this dataset among those with the same seed.
    """

    def __init__(self, dataset: Any, seed: int, stream: int) -> None:
        super().__init__(length=len(dataset))
        self.dataset = dataset
        self.seed = seed
        self.stream = stream

    def _numbering(self, epoch: int) -> Callable[[int], int]:
        key, counter = ([self.seed, epoch], [0, self.stream, 0, 0])
        words = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))
        order = words.random_raw(len(self.dataset)).argsort(kind="stable")
        return lambda position: int(order[position])

    def _made(self, numbers: Callable[[], Iterator[int]]) -> Generator[Any]:
        for number in numbers():
            yield self.dataset[number]

    def _identity(self) -> dict[str, Any]:
        return {"length": self.length}


def _number_at(stream: ResumableStream[Any]) -> Callable[[int], int]:
    """A function: place in all epochs of a stream, one after another -> number of the sample."""
    numbering = lru_cache(maxsize=2)(stream._numbering)
    if stream.length is None:
        return numbering(0)
    length = stream.length

    def number_at(place: int) -> int:
        epoch, position = divmod(place, length)
        return numbering(epoch)(position)

    return number_at


def _division(fraction: Fraction, size: int) -> Callable[[int], tuple[bool, int]]:
    """A function: n -> (whether the n-th item is taken, how many are taken before it).

    Lane l of batch g is taken if floor((g + 1) · f + l / size) > floor(g · f + l / size).

    Args:
        fraction: f, the share of the items that are taken.
        size: lanes of a batch.
    """

    def before(g: int, lane: int) -> int:
        """Items of a lane that are taken in the first g batches."""
        return (g * fraction.numerator * size + lane * fraction.denominator) // (fraction.denominator * size)

    @lru_cache(maxsize=2)
    def lanes(g: int) -> tuple[list[bool], list[int]]:
        """Of batch g: which lanes are taken, and how many taken ones precede each."""
        taken = [before(g + 1, lane) > before(g, lane) for lane in range(size)]
        first = g * size * fraction.numerator // fraction.denominator
        return taken, [first, *(first + n for n in np.cumsum(taken).tolist())]

    def place_of(n: int) -> tuple[bool, int]:
        g, lane = divmod(n, size)
        taken, taken_before = lanes(g)
        return taken[lane], taken_before[lane]

    return place_of


def _checked_weights(weights: Any, parts: int) -> tuple[Fraction, ...]:
    """The weights as fractions; ValueError unless there is a positive number for each part."""
    listed = list(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else None
    if listed is None or len(listed) != parts or not all(is_number(w) and 0 < w < float("inf") for w in listed):
        raise ValueError(f"weights must be {parts} positive numbers, one for each part, not {weights!r:.80}")
    # 0.1 is meant as one tenth, not as the nearest binary fraction.
    fractions = tuple(Fraction(weight).limit_denominator(1_000_000) for weight in listed)
    if not all(fractions):
        raise ValueError(f"weights must be at least 0.000001, not {weights!r:.80}: multiply all of them")
    return fractions
