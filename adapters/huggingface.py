"""Hugging Face: samples for transformers' Trainer, and as an `IterableDataset` of datasets.

Needs ``pip install "dsgan_datasets[huggingface]"``. The guide is docs/trainers.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from dsgan_datasets.checks import integer
from dsgan_datasets.images import png
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.samples import Sample
from dsgan_datasets.sources.base import SampleSource
from dsgan_datasets.sources.datasets import check_source
from dsgan_datasets.sources.streaming import ResumableStream
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import schema_of

__all__ = ["for_trainer", "label_names", "to_hf_dataset"]

Item = dict[str, Tensor]
Preprocess = Callable[[Tensor], Tensor]

#: Samples of a shard of `to_hf_dataset`. Fewer than that are generated again when a state is loaded.
_BLOCK = 32


def label_names(targets: Sequence[Target]) -> dict[str, Any]:
    """What a model for segmentation needs to know of the masks: arguments of its config.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> label_names(labeled.targets)["id2label"][1]
        'skin'
    """
    schema = schema_of(targets)
    names = dict(enumerate(schema.classes))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}


def for_trainer(dataset: Any, preprocess: Preprocess | None = None) -> Any:
    """A dataset of this package as transformers' Trainer takes it: items are {"pixel_values", "labels"}.

    So the Trainer needs neither a collate function nor ``remove_unused_columns=False``. It shares out batches among the
    ranks itself: a stream is read as by a single rank (``split_by_rank=False``). Epochs and states are the stream's.

    Args:
        dataset: a stream or a map-style dataset, of samples with masks.
        preprocess: image [3, H, W] -> what the model takes; None scales uint8 to 0 … 1.

    Raises:
        ValueError: something else, or samples without masks.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> item = next(iter(for_trainer(DSGANIterableDataset(labeled))))
        >>> item["pixel_values"].dtype, item["labels"].shape
        (torch.float32, torch.Size([64, 64]))
    """
    if isinstance(dataset, ResumableStream):
        return _TrainerStream(dataset, preprocess)
    if isinstance(dataset, str) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ValueError(f"expected a stream or a map-style dataset of samples, not {dataset!r:.80}")
    return _TrainerDataset(dataset, preprocess)


class _Items:
    """Samples -> items."""

    def __init__(self, preprocess: Preprocess | None) -> None:
        self.preprocess = preprocess

    def item(self, sample: Sample) -> Item:
        if not isinstance(sample, dict) or "mask" not in sample:
            found = ", ".join(map(str, sample)) if isinstance(sample, dict) else f"{sample!r:.80}"
            raise ValueError(f"the Trainer's items need masks; these samples have {found}")
        image = sample["image"].as_subclass(Tensor)
        if self.preprocess is not None:
            image = self.preprocess(image)
        elif not image.is_floating_point():
            image = image / 255
        return {"pixel_values": image, "labels": sample["mask"].as_subclass(Tensor)}


class _TrainerStream(_Items, IterableDataset[Item]):
    def __init__(self, stream: ResumableStream[Any], preprocess: Preprocess | None) -> None:
        super().__init__(preprocess)
        self.stream = copy.copy(stream)
        if self.stream.rank is None:
            self.stream.split_by_rank = False

    def __iter__(self) -> Iterator[Item]:
        return map(self.item, iter(self.stream))

    def __len__(self) -> int:
        return len(self.stream)

    def set_epoch(self, epoch: int) -> None:
        """See `ResumableStream.set_epoch`."""
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `ResumableStream.state_dict`."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ResumableStream.load_state_dict`."""
        self.stream.load_state_dict(state)


class _TrainerDataset(_Items, Dataset[Item]):
    def __init__(self, dataset: Any, preprocess: Preprocess | None) -> None:
        super().__init__(preprocess)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        return self.item(self.dataset[index])

    def __getitems__(self, indices: list[int]) -> list[Item]:
        several = getattr(self.dataset, "__getitems__", None)
        samples = several(indices) if several else map(self.dataset.__getitem__, indices)
        return [self.item(sample) for sample in samples]


def to_hf_dataset(source: SampleSource, length: int, *, seed: int = 0, start: int = 0) -> Any:
    """Generated samples as a `datasets.IterableDataset`, with the columns image, mask (PIL pictures), and index.

    All that `datasets` does works: `map`, `shuffle`, `split_dataset_by_node` and DataLoader workers (both share
    out blocks of 32 samples), `state_dict` and `load_state_dict` (exact; up to a block is generated again). Like every
    dataset there it has the same rows in each pass: make it as long as the training.

    Args:
        source: a `LabeledGenerator`, or any other source of samples.
        length: number of samples.
        seed: 0 … 2^64-1.
        start: number of the first sample.

    Raises:
        ValueError: an argument out of range, or something other than a source.
        ImportError: datasets is not installed.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> row = next(iter(to_hf_dataset(labeled, 100)))
        >>> row["image"].size, row["mask"].mode, row["index"]
        ((64, 64), 'L', 0)
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError('to_hf_dataset needs datasets: pip install "dsgan_datasets[huggingface]"') from error
    check_source(source)
    end = MAX_INDEX if source.num_samples is None else source.num_samples
    start = integer("start", start, 0, end - 1)
    stop = start + integer("length", length, 1, end - start)
    pictures = {"mask": datasets.Image()} if any(target.field == "mask" for target in source.targets) else {}
    features = datasets.Features({"image": datasets.Image(), **pictures, "index": datasets.Value("int64")})
    block = -(-_BLOCK // source.group) * source.group
    blocks = [(first, min(first + block, stop)) for first in range(start, stop, block)]
    arguments = {"source": source, "seed": check_seed(seed), "blocks": blocks}
    return datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs=arguments)


def _rows(source: SampleSource, seed: int, blocks: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Rows of some blocks."""
    for first, last in blocks:
        for sample in source.stream(range(first, last), seed=seed):
            row: dict[str, Any] = {"image": {"bytes": png(sample.image)}, "index": int(sample.index)}
            if "mask" in sample:
                row["mask"] = {"bytes": png(sample.mask.to(torch.uint8))}
            yield row
