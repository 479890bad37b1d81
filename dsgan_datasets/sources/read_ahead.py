"""Samples -> batches that a thread prepares while the consumer works."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from weakref import WeakKeyDictionary

import torch

from dsgan_datasets.parallel import start_threads
from dsgan_datasets.samples import Sample, SampleBatch

#: Batches that are prepared before they are asked for, unless it is said.
PREFETCH = 2


def read_ahead(
    samples: Iterator[Sample],
    batch_size: int,
    *,
    device: torch.device,
    owner: object | None = None,
    prefetch: int | None = None,
    duty_cycle: float = 1.0,
) -> Generator[SampleBatch]:
    """Batches of samples, in order, prepared on a thread (and a CUDA stream) of their own.

    Args:
        samples: only that thread takes from it.
        batch_size: samples a batch; the last may have fewer.
        device: that the samples are made on.
        owner: what makes them; all its iterations share one CUDA stream.
        prefetch: batches that wait for the consumer, at most; None is two.
        duty_cycle: part of the time that may go into this, in (0, 1].

    Raises:
        RuntimeError: continued in a process that was forked meanwhile, or the system starts no thread.
    """
    process = os.getpid()
    cuda_stream: torch.cuda.Stream | None = None
    if device.type == "cuda":
        cuda_stream = _stream_of(owner, device)
        cuda_stream.wait_stream(torch.cuda.current_stream(device))
    rest = Rest(duty_cycle)

    def produce() -> tuple[SampleBatch | None, torch.cuda.Event | None]:
        with rest.before_work(), nullcontext() if cuda_stream is None else torch.cuda.stream(cuda_stream):
            rows = list(islice(samples, batch_size))
            batch = SampleBatch.stack(rows) if rows else None
            done = None if cuda_stream is None else cuda_stream.record_event()
            if done is not None and duty_cycle < 1:
                done.synchronize()  # the time that the GPU took is what counts
            return batch, done

    thread = start_threads(1, "dsgan-generate")
    pending = deque(thread.submit(produce) for _ in range(prefetch or PREFETCH))
    try:
        while True:
            if os.getpid() != process:
                raise RuntimeError(
                    "this process was forked from one with an open stream: start another iteration in it"
                )
            batch, done = pending.popleft().result()
            if batch is None:
                return
            pending.append(thread.submit(produce))
            if done is not None:
                _hand_over(batch, done)
            yield batch
    finally:
        if os.getpid() == process:  # a forked child has no such thread, and perhaps the locks that it was holding
            rest.end()
            thread.shutdown(cancel_futures=True)
            if isinstance(samples, Generator):
                samples.close()


#: Libraries keep memory for every stream that they ever saw: an epoch must not bring a new one.
_streams: WeakKeyDictionary[object, torch.cuda.Stream] = WeakKeyDictionary()


def _stream_of(owner: object | None, device: torch.device) -> torch.cuda.Stream:
    stream = None if owner is None else _streams.get(owner)
    if stream is None or stream.device != device:
        stream = torch.cuda.Stream(device)
        if owner is not None:
            _streams[owner] = stream
    return stream


class Rest:
    """Pauses between pieces of work, so that these take a share of the time.

    Args:
        duty_cycle: that share, in (0, 1].

    Raises:
        ValueError: a share out of range.
    """

    def __init__(self, duty_cycle: float) -> None:
        self._pause_per_second = 1 / check_duty_cycle(duty_cycle) - 1
        self._until = 0.0
        self._ended = threading.Event()

    @contextmanager
    def before_work(self) -> Iterator[None]:
        """Wait until the pause for the last piece of work is over, and time the next one."""
        if (pause := self._until - time.monotonic()) > 0:
            self._ended.wait(pause)
        start = time.monotonic()
        yield
        now = time.monotonic()
        self._until = now + (now - start) * self._pause_per_second

    def end(self) -> None:
        """No more pauses; a pause that is being made ends."""
        self._ended.set()


def check_duty_cycle(duty_cycle: float) -> float:
    """The number as a float; ValueError unless it is in (0, 1]."""
    if isinstance(duty_cycle, bool) or not isinstance(duty_cycle, int | float) or not 0 < duty_cycle <= 1:
        raise ValueError(f"duty_cycle must be a number above 0 and up to 1, not {duty_cycle!r}")
    return float(duty_cycle)


def _hand_over(batch: SampleBatch, done: torch.cuda.Event) -> None:
    """Make the consumer's CUDA stream wait for the batch, and the allocator for the consumer."""
    for tensor in batch.values():
        if tensor.is_cuda:
            consumer = torch.cuda.current_stream(tensor.device)
            consumer.wait_event(done)
            tensor.record_stream(consumer)
