"""Kind of labeler in a checkpoint -> what builds it."""

from __future__ import annotations

from typing import Any

from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.labelers.joint import JointLabeler

#: Kind -> class with `from_parts`, and the parts that its checkpoint has.
LABELERS: dict[str, Any] = {
    InterpretedLabeler.kind: InterpretedLabeler,
    JointLabeler.kind: JointLabeler,
}
