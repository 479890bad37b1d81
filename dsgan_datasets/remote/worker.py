"""What runs on the other machine: a labeled generator that answers requests, one at a time."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import torch

from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.remote.messages import Request, made_with, pack, size_of
from dsgan_datasets.samples import SampleBatch


class GeneratorWorker:
    """Answers requests; made where the samples are computed.

    `facts` and `status` may be called while `generate` runs. What goes wrong is part of an answer and not raised: a
    transport need not know how to carry errors.

    Args:
        labeled: on the CPU; moved to the device.
        device: "cuda" (the one GPU that this process sees) or "cpu".
        checkpoint: what it is called, for people.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> worker = GeneratorWorker(labeled, "cpu", "demo-faces")
        >>> from dsgan_datasets.remote import Request
        >>> sorted(worker.generate(*Request(labeled.fingerprint, seed=0, indices=(0, 1))))
        ['samples']
    """

    def __init__(self, labeled: LabeledGenerator, device: str, checkpoint: str) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.checkpoint = checkpoint
        self.fingerprint = labeled.fingerprint
        self._done = self._bytes = self._answers = 0
        self._seconds = 0.0
        self._made_with: dict[str, Any] = {}
        self._trouble: str | None = None
        try:
            self._labeled = labeled.to(device)
            self._made_with = made_with(self._labeled.device)
            self._labeled.generate([0])  # what is wrong, and what is compiled, shows before anyone waits for it
        except Exception as error:
            self._trouble = _in_words(error)

    def facts(self) -> dict[str, Any]:
        """What a trainer must know before it asks; "trouble" says why this worker cannot work, None if it can."""
        return {
            "name": self.name,
            "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint,
            "made_with": self._made_with,
            "trouble": self._trouble,
        }

    def status(self) -> dict[str, Any]:
        """Samples made, answers and bytes given, and seconds spent on them, since the start."""
        return {
            "name": self.name,
            "trouble": self._trouble,
            "samples": self._done,
            "answers": self._answers,
            "bytes": self._bytes,
            "seconds": self._seconds,
        }

    def generate(self, *request: Any) -> dict[str, Any]:
        """The answer to a `Request`: {"samples": packed fields}, or {"error": a sentence, "elsewhere": whether another
        worker may do better}."""
        fingerprint, seed, indices, extras = Request(*request)
        started = time.monotonic()
        if fingerprint != self.fingerprint:
            return _failure(f"serves {self.fingerprint[:8]}, not {fingerprint[:8]}", elsewhere=True)
        try:
            samples = []
            for sample in self._labeled.stream(indices, seed=seed, extras=extras):
                samples.append(sample)
                self._done += 1
            packed = pack(SampleBatch.stack(samples))
        except Exception as error:
            memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
            return _failure(_in_words(error), elsewhere=memory)
        self._answers += 1
        self._bytes += size_of(packed)
        self._seconds += time.monotonic() - started
        return {"samples": packed}


def _failure(error: str, *, elsewhere: bool) -> dict[str, Any]:
    return {"error": error, "elsewhere": elsewhere}


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    return without_credentials(str(error) or type(error).__name__)
