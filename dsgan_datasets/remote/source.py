"""Samples from other machines as a source: numbers become requests, and answers samples."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

import torch

from dsgan_datasets.checks import integer, is_number
from dsgan_datasets.device import Device
from dsgan_datasets.latents import check_index, check_seed
from dsgan_datasets.remote.crew import Crew
from dsgan_datasets.remote.messages import Request
from dsgan_datasets.remote.relay import Relay
from dsgan_datasets.remote.requests import Asking
from dsgan_datasets.remote.transport import Transport
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.sources.local import CheckpointSource, OfCheckpoint

#: Bytes of an answer that are aimed at, and samples of one at most: enough that a round trip does not count.
_ANSWER_BYTES, _ANSWER_SAMPLES = 1 << 24, 32

#: How a config names a cluster where it names a device.
_ADDRESS = re.compile(r"ray(://.+)?")


class RemoteSource(OfCheckpoint):
    """Samples of a checkpoint that workers on a Ray cluster make (`dsgan serve CHECKPOINT`); a `NamedSource`.

    They are those that the checkpoint gives on such a device here, bit for bit, whoever makes them. Workers may join,
    leave and die: what a lost one had is asked of another. Here only the checkpoint's config.json is read. The
    connection is made by the process that first needs a sample, and belongs to it.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name": says which samples are wanted. Of a
            folder only config.json is needed.
        address: of the cluster, as ``ray.init`` takes it: "ray://HOST:10001" from any machine, "HOST:6379" from one of
            the cluster. "auto" is the cluster that this process is connected to, or the one in RAY_ADDRESS, or the one
            that this machine belongs to; None likewise, with a warning that names the last.
        timeout: seconds without any worker, or without a sample from the one that is waited for, after which it is an
            error, or that worker is given up.
        request_size: samples of a request, rounded up to whole view groups; None is up to 32, fewer of large images.
        recipe: fields of `Recipe` to change. The workers must have been started with the same ones.
        transport: makes what carries requests, in the process that needs it; None is Ray.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ValueError: an argument out of range.
        RemoteError: when samples are read: the cluster is away, nobody serves this checkpoint, workers fail one after
            the other, or one says that a sample cannot be made.

    Example:
        >>> source = RemoteSource("demo-faces", "ray://gpu-box:10001")
        >>> dataset = DSGANIterableDataset(source, length=1000)
        >>> len(dataset), source.image_size
        (1000, (64, 64))
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        address: str | None = None,
        *,
        timeout: float = 300.0,
        request_size: int | None = None,
        transport: Callable[[], Transport] | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(checkpoint, **recipe)
        if address is not None and (not isinstance(address, str) or not address):
            raise ValueError(f'address must be that of a Ray cluster, such as "ray://HOST:10001", not {address!r:.80}')
        if not is_number(timeout) or not 0 < timeout < float("inf"):
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r:.80}")
        self.address = address
        self.timeout = float(timeout)
        if request_size is not None:
            request_size = integer("request_size", request_size, 1, 65536)
        self.request_size = self._whole_groups(self._default_size() if request_size is None else request_size)
        self._transport = transport
        self._connection: tuple[int, Crew] | None = None  # and the process that it belongs to
        self._connecting = threading.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        """The checkpoint as it was given; who makes the samples decides nothing."""
        return {"checkpoint": self.checkpoint, "device": "ray"}

    @property
    def device(self) -> torch.device:
        """The CPU, to which samples come."""
        return torch.device("cpu")

    @property
    def block(self) -> int:
        """Samples that cost together no more than one of them: what a GPU computes at a time."""
        compute_batch: int = self.description.recipe.compute_batch
        return compute_batch

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        """The samples of some indices, in order; up to 64 requests of them are taken ahead.

        Args:
            indices: in 0 … 2^63-1.
            seed: 0 … 2^64-1.
            extras: further fields: "uncertainty", "latent".
        """
        seed, size = check_seed(seed), self.request_size
        if isinstance(indices, Sized):  # a batch: all workers may have a part of it
            size = min(size, self._whole_groups(self.block))
        numbers = map(check_index, indices)

        def requests() -> Iterator[Request]:
            while chosen := tuple(islice(numbers, size)):
                yield Request(self.fingerprint, seed, chosen, tuple(extras))

        for batch in Asking(self._crew(), requests(), self.targets, self.timeout).answers():
            yield from batch.rows()

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """Samples in the order asked for; see `stream`."""
        samples = list(self.stream(list(indices) or [0], seed=seed, extras=extras))
        batch = SampleBatch.stack(samples)
        return SampleBatch({name: value[: len(indices)] for name, value in batch.items()})

    def _crew(self) -> Crew:
        """The workers, found once in each process."""
        with self._connecting:
            if self._connection is None or self._connection[0] != os.getpid():
                transport = Relay(self.address) if self._transport is None else self._transport()
                self._connection = os.getpid(), Crew(transport, self.fingerprint, self.name)
            return self._connection[1]

    def _default_size(self) -> int:
        height, width = self.image_size
        affordable = _ANSWER_BYTES // (height * width * (3 + 4 * len(self.targets)))
        return max(self.block, min(affordable, _ANSWER_SAMPLES) // self.block * self.block)

    def _whole_groups(self, size: int) -> int:
        return -(-size // self.group) * self.group

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection, which belongs to this process."""
        return {**self.__dict__, "_connection": None, "_connecting": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _connecting=threading.Lock())


def checkpoint_source(checkpoint: str | os.PathLike[str], *, device: Device = None, **recipe: Any) -> NamedSource:
    """A checkpoint as a source, made wherever `device` says: here, or by the workers of a Ray cluster.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        device: of PyTorch, for a `CheckpointSource`; or "ray" or "ray://HOST:PORT", for a `RemoteSource`.
        recipe: fields of `Recipe` to change.

    Example:
        >>> checkpoint_source("demo-faces", device="ray").identity
        {'checkpoint': 'demo-faces', 'device': 'ray'}
    """
    if isinstance(device, str) and (found := _ADDRESS.fullmatch(device)):
        return RemoteSource(checkpoint, device if found[1] else "auto", **recipe)
    return CheckpointSource(checkpoint, device=device, **recipe)
