"""Lightning: a data module that streams, continues where a checkpoint was saved, and begins an epoch with new samples.

Needs ``pip install "dsgan_datasets[lightning]"``. The guide is docs/trainers.md.
"""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import DataLoader

from dsgan_datasets.checks import integer
from dsgan_datasets.samples import Sample
from dsgan_datasets.sources.base import SampleSource
from dsgan_datasets.sources.datasets import DSGANDataset, DSGANIterableDataset
from dsgan_datasets.sources.streaming import ResumableStream
from dsgan_datasets.sources.transforming import Transforms

try:
    import lightning
except ImportError as error:
    raise ImportError('this module needs Lightning: pip install "dsgan_datasets[lightning]"') from error

__all__ = ["DSGANDataModule", "EpochCallback"]


class DSGANDataModule(lightning.LightningDataModule):
    """Training samples as a stream, and a fixed set for validation.

    Each epoch has new samples. All ranks keep to one order, and a training that continues from a checkpoint of any
    step gets the samples that come next; also with another number of ranks, if `batch_size` times ranks stays.

    Args:
        source: makes the samples: a `LabeledGenerator`, or any other `SampleSource`. Or a stream (`Mixture`,
            `ShardDataset`): its own length, seed and transforms then hold.
        batch_size: samples that a rank takes in a step.
        length: samples an epoch has, over all ranks; None for no end (give the Trainer ``max_steps``).
        val_length: samples for validation; 0 for no validation. With several ranks a multiple of batch_size · ranks,
            else Lightning fills up the last batches with samples that were seen.
        seed: of the training samples.
        val_seed: of those for validation.
        transforms: of the training samples, see `DSGANIterableDataset`.
        val_transforms: of the samples for validation.
        options: of the DataLoaders, such as ``num_workers``.

    Raises:
        ValueError: an argument out of range, or a stream with samples for validation.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> data = DSGANDataModule(labeled, batch_size=4, length=64, val_length=8)
        >>> len(data.train_dataloader())
        16
    """

    def __init__(
        self,
        source: SampleSource | ResumableStream[Any],
        *,
        batch_size: int,
        length: int | None = None,
        val_length: int = 0,
        seed: int = 0,
        val_seed: int = 1,
        transforms: Transforms | None = None,
        val_transforms: Transforms | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size = integer("batch_size", batch_size, 1)
        if isinstance(source, ResumableStream):
            if val_length:
                raise ValueError("samples for validation are drawn from a source: give one instead of a stream")
            self.stream: ResumableStream[Any] = source
            self.validation = None
        else:
            self.stream = DSGANIterableDataset(source, seed=seed, length=length, transforms=transforms)
            self.validation = (
                DSGANDataset(source, val_length, seed=val_seed, transforms=val_transforms) if val_length else None
            )
        self.options = options

    def setup(self, stage: str) -> None:
        """Have the Trainer name the epochs."""
        if not any(isinstance(callback, EpochCallback) for callback in self.trainer.callbacks):
            self.trainer.callbacks.append(EpochCallback())

    def train_dataloader(self) -> DataLoader[Sample]:
        """The stream, in this rank's share of each step."""
        ranks = 1 if self.trainer is None else self.trainer.world_size
        self.stream.batch_by(self.batch_size * ranks, self.batch_size)
        return _ResumableLoader(self.stream, self.trainer, batch_size=self.batch_size, **self.options)

    def val_dataloader(self) -> Any:
        """The samples for validation; an empty list if there are none."""
        if self.validation is None:
            return []
        return DataLoader(self.validation, batch_size=self.batch_size, **self.options)


class EpochCallback(lightning.Callback):
    """Tells the stream of a `DSGANDataModule` which epoch begins; the module adds it by itself.

    Without it an epoch that ``limit_train_batches`` cuts short would be repeated.
    """

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Name the epoch."""
        stream = getattr(trainer.datamodule, "stream", None)
        if isinstance(stream, ResumableStream) and stream.length is not None:
            stream.set_epoch(trainer.current_epoch)


class _ResumableLoader(DataLoader[Sample]):
    """A loader whose state Lightning keeps in its checkpoints."""

    def __init__(self, stream: ResumableStream[Any], trainer: Any, **options: Any) -> None:
        super().__init__(stream, **options)
        self.stream = stream
        self.trainer = trainer
        self._begun = False

    def __iter__(self) -> Any:
        """The batches of the epoch that Lightning begins, or the rest of the one in a loaded state."""
        if not self._begun and self.trainer is not None and self.stream.length is not None:
            # Lightning begins to read before `on_train_epoch_start`, and loads no state that was saved between epochs.
            self.stream.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        self._begun = True
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, whatever was loaded ahead of it."""
        steps = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        epoch = self.trainer.current_epoch
        if steps >= self.trainer.num_training_batches and math.isfinite(self.trainer.num_training_batches):
            epoch, steps = epoch + 1, 0
        return {**self.stream.state_dict(step=steps), "epoch": epoch if self.stream.length is not None else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self._begun = True
        self.stream.load_state_dict(state)
