"""Generator files of other projects -> config and tensors of ours. Layouts: docs/checkpoint-format.md.

A dialect is an entry of `DIALECTS`. Files are recognized by their content, not by their name: people rename them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.generators.base import IMAGE_CHANNELS, Provenance
from dsgan_datasets.generators.dialects.average import average_w, read_average
from dsgan_datasets.generators.dialects.base import Container, Dialect, ImportedGenerator
from dsgan_datasets.generators.dialects.datasetgan import DATASETGAN
from dsgan_datasets.generators.dialects.nvidia import STYLEGAN2, STYLEGAN3
from dsgan_datasets.generators.dialects.rosinality import ROSINALITY
from dsgan_datasets.generators.dialects.semanticgan import SEMANTICGAN

__all__ = ["DIALECTS", "Dialect", "ImportedGenerator", "average_w", "import_generator", "read_average"]

#: All that can be read, in the order in which they are tried: a special one before the general one.
DIALECTS: tuple[Dialect, ...] = (STYLEGAN3, STYLEGAN2, SEMANTICGAN, ROSINALITY, DATASETGAN)

#: What can be read, for people.
READABLE = "a checkpoint directory, " + ", ".join(dict.fromkeys(dialect.readable for dialect in DIALECTS[:-1]))
READABLE += f", or {DIALECTS[-1].readable}"

_START_BYTES = 16


def import_generator(path: Path) -> tuple[ImportedGenerator, Provenance]:
    """Read a generator file of another project, running nothing from it.

    Raises:
        CheckpointError: it is none of `READABLE`, is damaged, or uses a setting that is not supported.
    """
    dialect, content = _recognize(path)
    try:
        imported = dialect.read(content, path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a {dialect.name} as published: {error!r:.300}") from error
    channels = imported.config.img_channels
    notes = imported.notes if channels == 3 else (*imported.notes, f"images: {IMAGE_CHANNELS[channels]}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return imported, Provenance(path.name, digest, dialect.name, notes)


def _recognize(path: Path) -> tuple[Dialect, Any]:
    """The dialect of a file, and its content."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    containers = [c for c in dict.fromkeys(dialect.container for dialect in DIALECTS) if c.starts(start)]
    if not containers:
        found = "is empty" if not start else "is not a generator file"
        raise CheckpointError(f"{path} {found}: expected {READABLE}")
    refusals, found = [], ""
    for container in containers:  # one after the other, so that only one content is in memory
        try:
            content = container.read(path)
        except CheckpointError as error:
            refusals.append(error)
            continue
        for dialect in _dialects(container):
            if dialect.matches(content):
                return dialect, content
        found = _summary(content)
    if refusals and not found:
        raise refusals[0]
    raise CheckpointError(f"{path} is not a generator file: it holds {found}; expected {READABLE}")


def _dialects(container: Container) -> list[Dialect]:
    return [dialect for dialect in DIALECTS if dialect.container is container]


def _summary(content: Any) -> str:
    """What a file holds, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return ", ".join(f"{name!r:.40}" for name in list(content)[:5]) or "nothing"
