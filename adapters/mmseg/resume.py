"""A resumed MMEngine training continues with the next sample, and regenerates none of the past."""

from __future__ import annotations

from itertools import islice
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from dsgan_datasets.sources.streaming import ResumableStream


@HOOKS.register_module()
class DSGANResumeHook(Hook):
    """Puts the training data where the training stands.

    - `IterBasedTrainLoop`, resumed: the data continues after the last iteration. Without this hook, the original
      MMEngine generates all past batches again and throws them away, and so does its maintained fork for an iterable
      dataset. Works for any dataset under an `InfiniteSampler`, and for `DSGANSegIterableDataset`.
    - `EpochBasedTrainLoop`: the epochs of a `DSGANSegIterableDataset` are counted by the loop, also when it resumes.

    It gives a stream the global batch (batch size · ranks), so that the order of the samples is the same for any number
    of ranks and workers: use it in the first training too. A sampler must be the same as before: give `randomness` a
    seed, or shuffle nothing. Random augmentations are drawn anew. Written for MMEngine 0.10
    (https://github.com/open-mmlab/mmengine) and onedl-mmengine 0.10.

    Example:
        >>> custom_hooks = [dict(type="DSGANResumeHook")]
    """

    def before_train(self, runner: Any) -> None:
        """Give a stream its global batch, and advance the data of an iteration-based loop that was resumed."""
        loop = runner.train_loop
        loader = loop.dataloader
        iteration = runner.iter if hasattr(loop, "dataloader_iterator") else 0
        batch_size = loader.batch_size or loader.batch_sampler.batch_size
        if isinstance(loader.dataset, ResumableStream):
            changed = _advance_stream(loader.dataset, batch_size, iteration)
        elif iteration:
            changed = advance_sampler(loader.sampler, iteration * batch_size)
            if not changed:
                runner.logger.warning(
                    f"DSGANResumeHook cannot advance a {type(loader.sampler).__name__}: past samples may be generated "
                    "again. Use sampler=dict(type='InfiniteSampler') with IterBasedTrainLoop"
                )
        else:
            changed = False
        if changed and hasattr(loop, "dataloader_iterator"):
            restart(loop, iteration)

    def before_train_epoch(self, runner: Any) -> None:
        """Give a stream the number of the epoch that begins, in a loop that counts epochs."""
        loop = runner.train_loop
        if isinstance(loop.dataloader.dataset, ResumableStream) and not hasattr(loop, "dataloader_iterator"):
            loop.dataloader.dataset.set_epoch(runner.epoch)


def _advance_stream(stream: ResumableStream[Any], batch_size: int, iteration: int) -> bool:
    """Set the global batch, and the place after some iterations; whether a running iterator is out of date."""
    changed = stream.global_batch is None
    if changed:
        stream.batch_by(batch_size * stream.share.world_size, batch_size)
    if iteration:
        batches, within = divmod(iteration * batch_size, stream.share.rank_batch)
        epoch, batches = divmod(batches, stream.batches_per_epoch)
        stream.resume(batches, within, epoch=epoch)
    return changed or iteration > 0


def advance_sampler(sampler: Any, samples: int) -> bool:
    """Let MMEngine's `InfiniteSampler` begin after some samples of this rank; False for another sampler.

    Calls a private method of MMEngine 0.10; there is no public one.
    """
    if not hasattr(sampler, "_indices_of_rank"):
        return False
    sampler.indices = islice(sampler._indices_of_rank(), samples, None)
    return True


def restart(loop: Any, iteration: int) -> None:
    """Have an iteration-based loop read from a new iterator over its loader, which stands at `iteration` already.

    Sets private attributes of PyTorch's DataLoader and of MMEngine 0.10's iterator; there are no public ones.

    Args:
        loop: an IterBasedTrainLoop.
        iteration: that it resumes at.
    """
    loop.dataloader._iterator = None  # persistent workers that have begun at the beginning
    loop.dataloader_iterator._iterator = iter(loop.dataloader)
    if iteration:
        # With fast_forward_on_resume the loop takes no steps towards its place; without, `iteration` of them.
        steps = 0 if getattr(loop, "fast_forward_on_resume", False) else iteration
        loop.dataloader_iterator = _InPlace(loop.dataloader_iterator, steps)


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
