"""Sections of config.json that decide no sample: what a newer version added to them is kept, not refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def split_known(cls: Any, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(entries that are fields of a dataclass, entries that it does not know); "more" itself is never an entry.

    Example:
        >>> split_known(Calibration, {"seed": 1, "lens": "wide"})  # doctest: +SKIP
        ({'seed': 1}, {'lens': 'wide'})
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"expected an object of settings, not {data!r:.60}")
    names = {field.name for field in dataclasses.fields(cls)} - {"more"}
    return {k: v for k, v in data.items() if k in names}, {k: v for k, v in data.items() if k not in names}
