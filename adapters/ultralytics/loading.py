"""A dataset -> batches: new generated samples in every epoch, in one order for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from ultralytics.data.build import seed_worker

from dsgan_datasets.adapters.ultralytics.datasets import DSGANYOLODataset
from dsgan_datasets.adapters.ultralytics.generated import Drawn
from dsgan_datasets.sources.share import Share, current_rank


class EpochSampler(Sampler[Any]):
    """What one rank takes of an epoch: indices of files, and samples that are drawn ahead on a thread.

    So samples are made in the training process, and the workers of a DataLoader, which augment them, need no generator.

    Epoch e of a checkpoint has the samples e · length … (e + 1) · length - 1, in order. Where there are files, or only
    so many samples as in shards, an epoch has all of them, shuffled. Global batch g holds the positions g · B … of that
    order, and rank r of R its r-th part; on several ranks a last batch that is not full is left out in training.

    Args:
        dataset: whose indices these are.
        batch_size: of one rank.
        train: False gives one and the same order of all.
        rank, world_size: of this process.
    """

    def __init__(
        self, dataset: DSGANYOLODataset, batch_size: int, *, train: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset = dataset
        self.train = train
        self.epoch = 0
        self.share = Share(rank, world_size, global_batch=batch_size * world_size)
        self.length = self.share.even_length(len(dataset), "drop" if train and world_size > 1 else "keep")

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; it takes effect when iteration starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.share.count(self.length)

    def __iter__(self) -> Iterator[int | Drawn]:
        files, order = self.dataset.num_files, self._order()
        indices = [order[position] for positions in self.share.positions(self.length) for position in positions]
        drawn = self.dataset.generated.draw(index - files for index in indices if index >= files)
        for index in indices:
            yield index if index < files else next(drawn)

    def _order(self) -> Sequence[int]:
        """Indices of the epoch, of all ranks."""
        files, generated = self.dataset.num_files, self.dataset.generated
        if not self.train:
            return range(len(self.dataset))
        first = files + (self.epoch * generated.length if generated.fresh else 0)
        fresh = range(first, first + generated.length)
        if generated.fresh and not files:
            return fresh
        indices = [*range(files), *fresh]
        places = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.epoch))
        return [indices[place] for place in places.tolist()]


class EpochLoader(DataLoader[Any]):
    """A DataLoader with what Ultralytics' trainers ask of theirs; its workers live until it is reset or closed."""

    def reset(self) -> None:
        """Start anew with the next epoch: the dataset was changed, and living workers have a copy of it."""
        self.close()

    def close(self) -> None:
        """Stop the workers. Uses private attributes of PyTorch's DataLoader; there are no public ones."""
        iterator: Any = self._iterator
        self._iterator = None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


def build_loader(
    dataset: DSGANYOLODataset, batch_size: int, workers: int, *, train: bool, drop_last: bool = False
) -> EpochLoader:
    """The loader of a generated set.

    Args:
        dataset: the set.
        batch_size: of one rank.
        workers: processes that augment.
        train: False reads it in order, the same samples each time.
        drop_last: leave out a last batch that is not full.
    """
    rank, world_size = current_rank() or (0, 1)
    generator = torch.Generator()
    generator.manual_seed((torch.initial_seed() + rank) % 2**63)
    return EpochLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=EpochSampler(dataset, batch_size, train=train, rank=rank, world_size=world_size),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=dataset.collate_fn,
        worker_init_fn=seed_worker,
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last and len(dataset) > batch_size,
        generator=generator,
    )
