"""What people and the Hugging Face Hub read first: cards of datasets, and the metadata in front of a card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dsgan_datasets.targets.base import Target

#: Licenses by their names on the Hub, which refuses others; they are SPDX names in lower case.
_HUB_LICENSES = frozenset(
    f"cc-by{limits}-{version}"
    for limits in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd")
    for version in ("2.0", "3.0", "4.0")
) | {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0"}


def with_metadata(card: str, license: str, **fields: Any) -> str:
    """A card (README.md) that begins with what the Hub reads: its license, and more fields. One that has such a
    beginning stays as it is.

    Example:
        >>> print(with_metadata("# Faces", "CC0-1.0", tags=["synthetic"]))
        ---
        license: "cc0-1.0"
        tags: ["synthetic"]
        ---
        <BLANKLINE>
        # Faces
    """
    if card.startswith("---\n"):
        return card
    name = license.lower()
    known = {"license": name} if name in _HUB_LICENSES else {"license": "other", "license_name": _plain(name)}
    # JSON is YAML too, and nothing in it is taken for anything but text.
    lines = [f"{key}: {json.dumps(value)}" for key, value in {**known, **fields}.items()]
    return "\n".join(["---", *lines, "---", "", card])


def dataset_card(
    targets: Sequence[Target],
    *,
    num_samples: int,
    image_size: tuple[int, int],
    license: str,
    fingerprint: str,
    seed: int,
    start: int,
    layout: str,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """README.md of generated samples that lie in files.

    Args:
        targets: their labels.
        num_samples: how many they are.
        image_size: (H, W).
        license: of the samples.
        fingerprint, seed, start: what made them.
        layout: a sentence about the files.
        metadata: more fields for the Hub.
    """
    height, width = image_size
    labels = "\n".join(f"- `{target.field}`: {_label(target)}" for target in targets)
    text = f"""# {num_samples} labeled images

Images and labels were made together by a generator of labeled images (dsgan_datasets).
Nobody annotated them one by one.

- {num_samples} images, {height}×{width}, indices {start} … {start + num_samples - 1} of seed {seed}
- license: {license}
- fingerprint of the checkpoint and its recipe: `{fingerprint}`
{labels}

{layout}
"""
    tasks = ["image-segmentation"] if any(target.field == "mask" for target in targets) else []
    return with_metadata(text, license, task_categories=tasks, tags=["synthetic"], **(metadata or {}))


def _label(target: Target) -> str:
    names = [" ".join(name.split()) for name in target.tally_names]
    return f"{target.kind} ({', '.join(names)})" if len(names) <= 300 else target.kind


def _plain(name: str) -> str:
    """A name as the Hub wants it: lower case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.-]+", "-", name).strip("-") or "unspecified"
