"""Where samples come from, who gets which of them, and the datasets that a DataLoader understands."""

from dsgan_datasets.sources.addresses import SampleAddress
from dsgan_datasets.sources.base import NamedSource, SampleSource
from dsgan_datasets.sources.datasets import DSGANDataset, DSGANIterableDataset, SampleStream, SourceStream
from dsgan_datasets.sources.local import CheckpointSource
from dsgan_datasets.sources.mixture import Mixture, Origin
from dsgan_datasets.sources.relabeled import choose_classes
from dsgan_datasets.sources.share import Share

__all__ = [
    "CheckpointSource",
    "DSGANDataset",
    "DSGANIterableDataset",
    "Mixture",
    "NamedSource",
    "Origin",
    "SampleAddress",
    "SampleSource",
    "SampleStream",
    "Share",
    "SourceStream",
    "choose_classes",
]
