"""Samples -> WebDataset tars that survive anything, and back: plan, write, verify, repair, read."""

from dsgan_datasets.shards.checking import Problem, load_generator_of, repair_shards, verify_shards
from dsgan_datasets.shards.codec import Encoding
from dsgan_datasets.shards.errors import ShardError
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import Manifest
from dsgan_datasets.shards.plan import Plan, Shard
from dsgan_datasets.shards.reading import ShardDataset, ShardMapDataset, ShardSet
from dsgan_datasets.shards.writing import write_shards

__all__ = [
    "Encoding",
    "Folder",
    "Manifest",
    "Plan",
    "Problem",
    "Shard",
    "ShardDataset",
    "ShardError",
    "ShardMapDataset",
    "ShardSet",
    "load_generator_of",
    "repair_shards",
    "verify_shards",
    "write_shards",
]
