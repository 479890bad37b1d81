"""The file formats that generators come in, each with the names that its files may use."""

from __future__ import annotations

from functools import partial

from dsgan_datasets.checkpoints.snapshot import read_snapshot
from dsgan_datasets.checkpoints.torch_file import WITH_ARGUMENTS, read_torch_file
from dsgan_datasets.generators.dialects.base import Container

#: How a file of torch.save begins that is not a zip: protocol 2, and a magic number.
_TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"


def _is_torch_file(start: bytes) -> bool:
    return start.startswith((b"PK\x03\x04", _TORCH_LEGACY))


def _is_pickle(start: bytes) -> bool:
    return start[:1] == b"\x80" and not _is_torch_file(start)


#: ``pickle.dump`` of the training code of stylegan2-ada-pytorch and stylegan3.
SNAPSHOT = Container("snapshot pickle", _is_pickle, read_snapshot)
#: ``torch.save`` of tensors and plain containers, perhaps with the arguments of the training script.
TORCH_FILE = Container("torch file", _is_torch_file, partial(read_torch_file, names=WITH_ARGUMENTS))
