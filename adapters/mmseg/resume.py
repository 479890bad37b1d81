"""A resumed MMEngine training goes on with the next sample, and generates none of the past again."""

from __future__ import annotations

from itertools import islice
from typing import Any, Protocol, runtime_checkable

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from dsgan_datasets.sources.resuming import resumed_worker


@runtime_checkable
class Stream(Protocol):
    """An iterable dataset that can start later than at its beginning."""

    def set_epoch(self, epoch: int) -> None:
        """Go to the samples of this epoch."""

    def skip(self, batches: int, batch_size: int) -> None:
        """Start this rank's next iteration after so many batches."""


@HOOKS.register_module()
class DSGANResumeHook(Hook):
    """Puts the training data where the training stands.

    - `IterBasedTrainLoop`, resumed: the data goes on after the last iteration. Without this hook, the original
      MMEngine generates all past batches again and throws them away, and so does its maintained fork for an iterable
      dataset. Works for any dataset under an `InfiniteSampler`, and for `DSGANSegIterableDataset`.
    - `EpochBasedTrainLoop`: each epoch of a `DSGANSegIterableDataset` brings new samples (without this hook, the same).

    The sampler must be the same as before: give `randomness` a seed, or shuffle nothing. Random augmentations are
    drawn anew. Written for MMEngine 0.10 (https://github.com/open-mmlab/mmengine) and onedl-mmengine 0.10.

    Example:
        >>> custom_hooks = [dict(type="DSGANResumeHook")]
    """

    def before_train(self, runner: Any) -> None:
        """Advance the data of an iteration-based loop that does not begin at its beginning."""
        loop = runner.train_loop
        if runner.iter == 0 or not hasattr(loop, "dataloader_iterator"):
            return
        loader = loop.dataloader
        batch_size = loader.batch_size or loader.batch_sampler.batch_size
        if isinstance(loader.dataset, Stream):
            loader.dataset.skip(runner.iter, batch_size)
        elif hasattr(loader.sampler, "_indices_of_rank"):
            loader.sampler.indices = islice(loader.sampler._indices_of_rank(), runner.iter * batch_size, None)
        else:
            runner.logger.warning(
                f"DSGANResumeHook cannot advance a {type(loader.sampler).__name__}: past samples may be generated "
                "again. Use sampler=dict(type='InfiniteSampler') with IterBasedTrainLoop"
            )
            return
        loader._iterator = None  # persistent workers that have begun at the beginning
        loop.dataloader_iterator._iterator = iter(loader)
        # With fast_forward_on_resume the loop takes no steps towards its place; without, as many as it has behind it.
        steps = 0 if getattr(loop, "fast_forward_on_resume", False) else runner.iter
        loop.dataloader_iterator = _InPlace(loop.dataloader_iterator, steps)

    def before_train_epoch(self, runner: Any) -> None:
        """Tell a stream which epoch begins."""
        if isinstance(runner.train_loop.dataloader.dataset, Stream):
            runner.train_loop.dataloader.dataset.set_epoch(runner.epoch)


class _InPlace:
    """A loop's iterator that stands where it should: the steps by which the loop would get there do nothing."""

    def __init__(self, iterator: Any, steps: int) -> None:
        self._iterator = iterator
        self._steps = steps

    def __iter__(self) -> _InPlace:
        return self

    def __next__(self) -> Any:
        if self._steps:
            self._steps -= 1
            return None
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """All steps in one, as the maintained fork takes them."""
        self._steps -= num_iters


def samples_ahead(batches: int, batch_size: int, worker: int, workers: int, length: int) -> int:
    """By how many samples of its rank a worker's start moves when the rank has done some batches of an epoch.

    Worker w makes its batches of samples w, w + workers, … of the rank; see `resumed_worker` for whose it goes on with.

    Args:
        batches: done by the rank; beyond one epoch, those of the last epoch count.
        batch_size: of the DataLoader.
        worker: 0 … workers - 1, in the new DataLoader.
        workers: as many as before.
        length: samples of the rank in an epoch.
    """
    an_epoch = sum(-(-len(range(w, length, workers)) // batch_size) for w in range(workers))
    former, done = resumed_worker(worker, workers, batches % an_epoch if an_epoch else 0)
    return former - worker + done * batch_size * workers
