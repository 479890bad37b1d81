"""Lightning: a data module that streams, continues where a checkpoint was saved, and has new samples in each epoch.

Needs ``pip install "dsgan_datasets[lightning]"``. The guide is docs/trainers.md.
"""

from __future__ import annotations

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

    Each epoch has new samples. All ranks keep to one order, and a training that continues from a checkpoint, wherever
    it was saved, gets the samples that come next; also with another number of ranks, if `batch_size` times ranks stays.

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
        #: (epoch, global batches of it) at which the latest pass began, and the batches that were trained on before it.
        self._pass = 0, 0
        self._trained_before: int | None = None

    def train_dataloader(self) -> DataLoader[Sample]:
        """The stream, in this rank's share of each step."""
        ranks = 1 if self.trainer is None else self.trainer.world_size
        self.stream.batch_by(self.batch_size * ranks, self.batch_size)
        return _Loader(self.stream, self, batch_size=self.batch_size, **self.options)

    def val_dataloader(self) -> Any:
        """The samples for validation; an empty list if there are none."""
        if self.validation is None:
            return []
        return DataLoader(self.validation, batch_size=self.batch_size, **self.options)

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, whatever was loaded ahead of it; Lightning keeps it in its checkpoints.

        Steps are counted here: Lightning's own epoch is over where ``max_steps`` cuts it short, and it restores the
        states of loaders at some places only.
        """
        epoch, step = self._place()
        return {**self.stream.state_dict(step=step), "epoch": epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue there; ValueError if the state is that of another stream."""
        self.stream.load_state_dict(state_dict)
        self._pass, self._trained_before = (state_dict["epoch"], state_dict["batches"]), None

    def begin_pass(self) -> None:
        """Put the stream where the training is: after the steps of this epoch, or at the beginning of the next one."""
        if self.trainer is None:
            return
        self._pass, self._trained_before = self._place(), self._trained
        epoch, step = self._pass
        if step:
            self.stream.resume(step, epoch=epoch)
        else:
            self.stream.set_epoch(epoch)

    @property
    def _trained(self) -> int:
        """Batches that were trained on, in all epochs."""
        batches: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        return batches

    def _place(self) -> tuple[int, int]:
        """(epoch, global batches of it that were trained on)."""
        epoch, step = self._pass
        if self._trained_before is not None:
            step += self._trained - self._trained_before
        # Lightning takes fewer batches of an epoch than there are if ``limit_train_batches`` says so.
        ended = self.stream.length is not None and step >= self.trainer.num_training_batches
        return (epoch + 1, 0) if ended else (epoch, step)


class _Loader(DataLoader[Sample]):
    """A loader that begins where the training is."""

    def __init__(self, stream: ResumableStream[Any], module: DSGANDataModule, **options: Any) -> None:
        super().__init__(stream, **options)
        self._module = module

    def __iter__(self) -> Any:
        """The batches of an epoch, or the rest of them."""
        self._module.begin_pass()
        return super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing, as the state is the module's; Lightning warns about loaders that have none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class EpochCallback(lightning.Callback):
    """Names the epochs to streams in loaders of your own, without a `DSGANDataModule`.

    Without it an epoch that ``limit_train_batches`` cuts short is repeated. It restores no place within an epoch.

    Example:
        >>> trainer = lightning.Trainer(callbacks=[EpochCallback()], limit_train_batches=100)  # doctest: +SKIP
    """

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Name the next epoch: Lightning begins to read it before it says that it begins."""
        stream = getattr(trainer.train_dataloader, "dataset", None)
        if isinstance(stream, ResumableStream) and stream.length is not None:
            stream.set_epoch(trainer.current_epoch + 1)
