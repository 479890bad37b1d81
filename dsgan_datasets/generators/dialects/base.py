"""What a dialect is: a kind of generator file of another project, how to recognize it and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.pickles import Foreign, Holder, not_allowed
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
class Found:
    """The network that is wanted of a file.

    Attributes:
        network: it, as it is in the file: an object with its attributes, or a dict of tensors by name.
        where: name of its entry; "" if it is all that the file holds.
        content: of the whole file.
    """

    network: Any
    where: str
    content: Any

    def beside(self, name: str) -> Any:
        """Another entry of the file; None if it has none of that name."""
        return self.content.get(name) if isinstance(self.content, Mapping) else None


@dataclass(frozen=True)
class Dialect:
    """A kind of generator file. What is known of pickles in general is in `checkpoints.snapshot`, for all dialects.

    Attributes:
        name: what such a file is and which of its networks is read, as provenance and `dsgan info` state it.
        readable: the same for a list of what can be read.
        find: content of a file -> the network that is wanted; None if it is not of this dialect. It looks at names
            only, and raises nothing.
        read: network and path of the file -> the generator. May raise a LookupError, TypeError, ValueError,
            AttributeError, OverflowError or RuntimeError where the content is not as published.
        classes: the allow-list of names that may make a part of the network; "*.ToRGB" is a class of any module.
        takes: other entries of the file that are read.
    """

    name: str
    readable: str
    find: Callable[[Any], Found | None]
    read: Callable[[Found, Path], ImportedGenerator]
    classes: frozenset[str] = frozenset()
    takes: tuple[str, ...] = ()

    def allows(self, found: Foreign) -> bool:
        """Whether an object of that class may be a part of the network."""
        return found.name in self.classes or f"*.{found.name.rpartition('.')[2]}" in self.classes


def refuse_foreign(network: Any, allows: Callable[[Foreign], bool]) -> None:
    """CheckpointError if a module, parameter or buffer of the network is made by a name that is not allowed.

    Other attributes may be anything: nobody reads them.
    """
    todo, seen = [network], set()
    while todo:
        part = todo.pop()
        if isinstance(part, Foreign) and not allows(part):
            raise not_allowed(part.name)
        if isinstance(part, Holder) and id(part) not in seen:
            seen.add(id(part))
            for kind in ("_parameters", "_buffers", "_modules"):
                entries = part.state.get(kind)
                todo += entries.values() if isinstance(entries, Mapping) else []
        elif isinstance(part, Mapping):
            todo += part.values()


def require(name: str, value: object, expected: object) -> None:
    """ValueError unless a setting has the one value that is supported."""
    if value != expected:
        raise ValueError(f"{name} is {value!r:.40}, only {expected!r} is supported")


def check_filter(name: str, found: Tensor, taps: Sequence[float], gain: float = 1) -> None:
    """ValueError unless the filter is the separable one of these taps; other filters are not supported."""
    line = torch.tensor(taps, dtype=torch.float32, device="cpu")
    expected = torch.outer(line, line) / line.sum().square() * gain
    if found.numel() != expected.numel() or not torch.allclose(found.float().view_as(expected), expected, atol=1e-4):
        raise ValueError(f"{name} is not the filter {taps}; other filters are not supported")


def take(theirs: Tensors, name: str) -> Tensor:
    """A tensor, taken out of those of a file.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in theirs:
        raise ValueError(f"it has no {name}")
    return theirs.pop(name)


def check_nothing_left(theirs: Mapping[str, Tensor]) -> None:
    """ValueError if a file has tensors that its reader did not take."""
    if theirs:
        raise ValueError(f"it has tensors that are not known: {sorted(theirs)[:3]}")
