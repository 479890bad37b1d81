"""Trainer's iteration -> place in the stream."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import HookBase
from torch.utils.data import DataLoader

from dsgan_datasets.adapters.detectron2.heads import check_model
from dsgan_datasets.adapters.detectron2.streams import MixedStream, RecordStream


class ResumeHook(HookBase):
    """Lets a resumed training continue with the samples that come next: ``trainer.register_hooks([ResumeHook()])``.

    Detectron2's checkpoints hold the iteration, but not where the data loader is. Register the hook before
    ``trainer.train()``, in a first training too: it gives the stream the global batch, which makes the order of the
    samples the same for any number of ranks and workers. The continuation is exact with as many images in all a batch
    as before, and, under aspect-ratio grouping, while all images fall into one group.

    Raises:
        ValueError: before the training, a batch that does not divide (the message names sizes that do), or a model
            with another number of classes than the samples (the message names them).

    Example:
        >>> trainer = DefaultTrainer(cfg)  # doctest: +SKIP
        >>> trainer.register_hooks([ResumeHook()])  # doctest: +SKIP
        >>> trainer.resume_or_load(resume=True)  # doctest: +SKIP
    """

    def before_train(self) -> None:
        """Move the stream in the trainer's loader to where it stood after `start_iter` iterations."""
        iteration = self.trainer.start_iter
        stream, batch, item = find_stream(self.trainer.data_loader)
        if stream is not None:
            registered = getattr(stream, "registered", None)
            if registered is not None:
                check_model(self.trainer.model, registered.name)
            if stream.global_batch is None:
                stream.batch_by(batch * stream.share.world_size, item)
            if iteration:
                stream.resume(*divmod(iteration * batch, stream.share.rank_batch))
        elif iteration:
            logging.getLogger(__name__).warning(
                "training resumes at iteration %d, but its data loader has no generated stream: the data start anew",
                iteration,
            )


def find_stream(loader: Any) -> tuple[RecordStream | MixedStream | None, int, int]:
    """(stream at the bottom of a loader, this rank's records of an iteration, records that a DataLoader takes at once).

    The one place that knows how Detectron2 nests its loaders.
    """
    batches = item = 1
    while loader is not None and not isinstance(loader, RecordStream | MixedStream):
        if isinstance(loader, DataLoader):
            item = loader.batch_size or 1
        else:  # Detectron2 groups by aspect ratio outside of a DataLoader of single records
            batches *= getattr(loader, "batch_size", 1)
        loader = getattr(loader, "dataset", getattr(loader, "_dataset", None))
    return loader, batches * item, item
