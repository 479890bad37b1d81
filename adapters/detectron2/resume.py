"""Trainer's iteration -> place in the stream."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import HookBase
from torch.utils.data import DataLoader

from dsgan_datasets.adapters.detectron2.streams import RecordStream


class ResumeHook(HookBase):
    """Lets a resumed training continue with the samples that come next: ``trainer.register_hooks([ResumeHook()])``.

    Detectron2's checkpoints hold the iteration, but not where the data loader is. Register the hook before
    ``trainer.train()``, in a first training too, where it changes nothing. The continuation is exact with as many
    ranks, workers and images a batch as before, and, under aspect-ratio grouping, while all images fall into one
    group.
    """

    def before_train(self) -> None:
        """Move the stream in the trainer's loader to where it stood after `start_iter` iterations."""
        iteration = self.trainer.start_iter
        stream, batches, batch_size = _find_stream(self.trainer.data_loader)
        if stream is not None:
            stream.resume(iteration * batches, batch_size)
        elif iteration:
            logging.getLogger(__name__).warning(
                "training resumes at iteration %d, but its data loader has no generated stream: the data start anew",
                iteration,
            )


def _find_stream(loader: Any) -> tuple[RecordStream | None, int, int]:
    """The stream at the bottom of a loader, batches that its DataLoader reads in an iteration, records in a batch."""
    batches = batch_size = 1
    while loader is not None and not isinstance(loader, RecordStream):
        if isinstance(loader, DataLoader):
            batch_size = loader.batch_size or 1
        else:  # Detectron2 groups by aspect ratio outside of a DataLoader of single records
            batches *= getattr(loader, "batch_size", 1)
        loader = getattr(loader, "dataset", getattr(loader, "_dataset", None))
    return loader, batches, batch_size
