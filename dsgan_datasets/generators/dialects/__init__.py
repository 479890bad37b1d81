"""Generator files of other projects -> config and tensors of ours. What people have: docs/generators.md.

A dialect is an entry of `DIALECTS`. Files are recognized by their content, not by their name: people rename them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.pickles import Foreign, Holder, check_content
from dsgan_datasets.checkpoints.snapshot import read_snapshot
from dsgan_datasets.generators.base import IMAGE_CHANNELS, Provenance
from dsgan_datasets.generators.dialects.average import average_w, read_average, read_centers
from dsgan_datasets.generators.dialects.base import Dialect, Found, ImportedGenerator, refuse_foreign
from dsgan_datasets.generators.dialects.datasetgan import DATASETGAN
from dsgan_datasets.generators.dialects.fastgan import FASTGAN
from dsgan_datasets.generators.dialects.genforce import GENFORCE
from dsgan_datasets.generators.dialects.lucidrains import LUCIDRAINS
from dsgan_datasets.generators.dialects.mmagic import MMAGIC_STYLEGAN2, MMAGIC_STYLEGAN3
from dsgan_datasets.generators.dialects.nvidia import (
    STYLEGAN2,
    STYLEGAN2_STATE,
    STYLEGAN3,
    STYLEGAN3_STATE,
    STYLEGAN_XL,
)
from dsgan_datasets.generators.dialects.others import what_else
from dsgan_datasets.generators.dialects.rosinality import ROSINALITY, SEMANTICGAN
from dsgan_datasets.generators.dialects.tensorflow import TENSORFLOW

__all__ = ["DIALECTS", "Dialect", "ImportedGenerator", "average_w", "import_generator", "read_average", "read_centers"]

#: All that can be read, in the order in which they are tried: a special one before the general one.
DIALECTS: tuple[Dialect, ...] = (
    *(TENSORFLOW, FASTGAN, SEMANTICGAN, ROSINALITY, STYLEGAN_XL, STYLEGAN3, STYLEGAN2),
    *(STYLEGAN2_STATE, STYLEGAN3_STATE),
    *(DATASETGAN, GENFORCE, MMAGIC_STYLEGAN2, MMAGIC_STYLEGAN3, LUCIDRAINS),
)

#: What can be read, for people.
_KINDS = list(dict.fromkeys(dialect.readable for dialect in DIALECTS))
READABLE = f"a checkpoint directory, {', '.join(_KINDS[:-1])}, or {_KINDS[-1]} (see docs/generators.md)"

#: Entries in which training code says how far it was.
_PROGRESS = ("cur_nimg", "cur_tick", "batch_idx", "best_fid", "best_fid_nimg", "iter", "iteration", "step", "epoch")


def import_generator(path: Path) -> tuple[ImportedGenerator, Provenance]:
    """Read a generator file of another project, running nothing from it.

    Raises:
        CheckpointError: it is none of `READABLE`, is damaged, or uses a setting that is not supported.
    """
    content = read_snapshot(path)
    dialect, found = _recognize(content, path)
    try:
        # Compressed files may unpack to four times their size.
        check_content(found.network, 4 * path.stat().st_size, enter=dialect.allows)
        refuse_foreign(found.network, dialect.allows)
        imported = dialect.read(found, path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path} is not a {dialect.name} as published, or damaged: {why:.300}") from error
    channels = imported.config.img_channels
    notes = [*imported.notes, *([] if channels == 3 else [f"images: {IMAGE_CHANNELS[channels]}"])]
    notes += [note for note in (_progress(content), _ignored(content, found, dialect)) if note]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return imported, Provenance(path.name, digest, dialect.name, tuple(notes))


def _recognize(content: Any, path: Path) -> tuple[Dialect, Found]:
    """The dialect of a file's content, and the network that is wanted of it."""
    for dialect in DIALECTS:
        if (found := dialect.find(content)) is not None:
            return dialect, found
    known = what_else(content)
    if known is not None:
        raise CheckpointError(f"{path} is {known}")
    raise CheckpointError(f"{path} is not a generator file: it holds {_summary(content)}; expected {READABLE}")


def _summary(content: Any) -> str:
    """What a file holds, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {content.name:.60}" if isinstance(content, Holder) else f"a {type(content).__name__}"
    return ", ".join(f"{name!r:.40}" for name in list(content)[:5]) or "nothing"


def _progress(content: Any) -> str:
    """How long the generator was trained, where the file says so."""
    if not isinstance(content, Mapping):
        return ""
    stored = content.get("progress")
    facts = {name: content.get(name) for name in _PROGRESS} | (dict(stored) if isinstance(stored, Mapping) else {})
    meta = content.get("meta")
    facts |= {name: meta.get(name) for name in _PROGRESS} if isinstance(meta, Mapping) else {}
    numbers = {name: number for name, value in facts.items() if (number := _number(value)) is not None}
    shown = ", ".join(f"{name:.30} {number:g}" for name, number in numbers.items() if isinstance(name, str))
    return f"training progress: {shown}" if shown else ""


def _number(value: Any) -> int | float | None:
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ignored(content: Any, found: Found, dialect: Dialect) -> str:
    """Which parts of the file were left alone."""
    if not isinstance(content, Mapping) or not found.where:
        return ""
    taken = {found.where.partition(".")[0], "progress", *dialect.takes, *_PROGRESS}
    left = [_left(name, value) for name, value in content.items() if isinstance(name, str) and name not in taken]
    return f"not needed and left alone: {', '.join(left[:12])}" if left else ""


def _left(name: str, value: Any) -> str:
    return f"{name:.30} ({value.name:.80})" if isinstance(value, Foreign) else f"{name:.30}"
