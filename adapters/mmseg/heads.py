"""Whether a model's heads fit the classes of a dataset, asked when it is built: later it is an index out of bounds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from mmengine.runner import Runner
from torch import nn

_HEADS = ("decode_head", "auxiliary_head")


def check_heads(classes: Sequence[str], *, of: str) -> None:
    """ValueError if a runner of MMEngine builds this dataset for a model with another number of classes.

    The runner is found on the stack of calls, because MMEngine does not pass it to datasets.

    Args:
        classes: of the dataset.
        of: what to call it.
    """
    for name, head in _heads(_building_runner()):
        found = getattr(head, "num_classes", len(classes))
        if found != len(classes):
            raise ValueError(
                f"model.{name}.num_classes is {found}, but {of} has {len(classes)} classes: {', '.join(classes)}; set "
                f"it to {len(classes)}"
            )


def _heads(runner: Any) -> Iterator[tuple[str, Any]]:
    model = getattr(runner, "model", None)
    model = getattr(model, "module", model)
    for name in _HEADS:
        head = getattr(model, name, None)
        heads = head if isinstance(head, nn.ModuleList) else [head]
        yield from ((name, each) for each in heads if each is not None)


def _building_runner() -> Any:
    """The runner whose method is being called; None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), Runner):
            return found
        frame = frame.f_back
    return None
