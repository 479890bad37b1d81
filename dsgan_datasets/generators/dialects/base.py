"""What a dialect is: a kind of generator file of another project, how to recognize it and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.generators.base import GeneratorConfig

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ImportedGenerator:
    """A generator as read from a file of another project.

    Attributes:
        config: its shape.
        tensors: under the names that our own files have.
        notes: what else was found or done, one sentence each.
    """

    config: GeneratorConfig
    tensors: Tensors
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Container:
    """A file format with its own allow-list: bytes -> plain data.

    Attributes:
        name: for people.
        starts: whether a file that begins with these bytes (16 of them, if it has as many) may be one.
        read: the content of the file; a `CheckpointError` for anything that is damaged or not on the allow-list.
    """

    name: str
    starts: Callable[[bytes], bool]
    read: Callable[[Path], Any]


@dataclass(frozen=True)
class Dialect:
    """A kind of generator file.

    Attributes:
        name: what such a file is and which of its networks is read, as provenance and `dsgan info` state it.
        readable: the same for a list of what can be read.
        container: how its content is read; dialects that share one share the reading, too.
        matches: whether that content is of this dialect. It looks at names only, and raises nothing.
        read: content and path of the file -> the generator. May raise a LookupError, TypeError, ValueError,
            AttributeError, OverflowError or RuntimeError where the content is not as published.
    """

    name: str
    readable: str
    container: Container
    matches: Callable[[Any], bool]
    read: Callable[[Any, Path], ImportedGenerator]


def require(name: str, value: object, expected: object) -> None:
    """ValueError unless a setting has the one value that is supported."""
    if value != expected:
        raise ValueError(f"{name} is {value!r:.40}, only {expected!r} is supported")


def check_filter(name: str, found: Tensor, taps: Sequence[float], gain: float = 1) -> None:
    """ValueError unless the filter is the separable one of these taps; other filters are not supported."""
    line = torch.tensor(taps, dtype=torch.float32, device="cpu")
    expected = torch.outer(line, line) / line.sum().square() * gain
    if found.numel() != expected.numel() or not torch.allclose(found.float().view_as(expected), expected):
        raise ValueError(f"{name} is not the filter {taps}; other filters are not supported")


def named_tensors(content: Mapping[Any, Any]) -> Tensors:
    """The tensors of a state dict; ValueError if it holds anything else."""
    wrong = [f"{k!r:.40}" for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if wrong:
        raise ValueError(f"a state dict holds only named tensors, not {', '.join(wrong[:3])}")
    return dict(content)


def check_nothing_left(theirs: Mapping[str, Tensor]) -> None:
    """ValueError if a file has tensors that its reader did not take."""
    if theirs:
        raise ValueError(f"it has tensors that are not known: {sorted(theirs)[:3]}")
