"""State dicts: where in a file the averaged generator is, and its tensors without the prefixes of wrappers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.pickles import Foreign, Holder
from dsgan_datasets.generators.dialects.base import Found, Tensors

#: Entries of a file that may hold the generator, the averaged one first.
ENTRIES = (
    *("g_ema", "G_ema", "generator_ema", "params_ema", "generator_smooth", "g_running", "ema"),
    *("state_dict", "model_state_dict", "models", "GAN", "params", "generator", "netG", "g", "G", "model"),
)
#: What a state dict of several networks puts before the names of the averaged generator, in that order.
_PREFIXES = ("generator_ema.", "generator_smooth.", "g_ema.", "G_ema.", "ema.", "decoder.", "generator.", "netG.")
_MOST_MODULES = 10_000
#: What wrappers put before every name: data parallel training, torch.compile, averaged models.
_WRAPPERS = ("module.", "_orig_mod.")
#: Modules of PyTorch that hold others.
CONTAINERS = frozenset(f"torch.nn.modules.container.{name}" for name in ("Sequential", "ModuleList", "ModuleDict"))
CONTAINERS |= {"torch.nn.parallel.data_parallel.DataParallel", "torch.nn.parallel.distributed.DistributedDataParallel"}


def finder(*marks: str, classes: frozenset[str] = frozenset()) -> Callable[[Any], Found | None]:
    """A `Dialect.find` for state dicts that have these names, and for whole networks of these classes that do."""

    def find(content: Any) -> Found | None:
        for where, entry in _entries(content):
            names = names_of(entry, classes)
            for prefix in ("", *_PREFIXES):
                inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
                inner = _without_wrappers(inner)
                if all(mark in inner for mark in marks):
                    return Found(entry, where, content)
        return None

    return find


def tensors_of(found: Found, *marks: str) -> Tensors:
    """The tensors of the generator, by name without prefixes.

    Raises:
        ValueError: a state dict that holds anything else than named tensors.
    """
    entry = found.network
    state = entry.tensors() if isinstance(entry, Holder) else entry
    for prefix in ("", *_PREFIXES):
        names = {str(name): name for name in state if str(name).startswith(prefix)}
        stripped = {name.removeprefix(prefix): original for name, original in names.items()}
        while any(mark not in stripped for mark in marks):
            inner = _without_wrapper(stripped)
            if inner is stripped:
                break
            stripped = inner
        if all(mark in stripped for mark in marks):
            return named_tensors({name: state[original] for name, original in stripped.items()})
    raise ValueError(f"it has no {' or '.join(marks)}")


def named_tensors(content: Mapping[Any, Any]) -> Tensors:
    """The tensors of a state dict; ValueError if it holds anything else."""
    wrong = [f"{k!r:.40}" for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if wrong:
        raise ValueError(f"a state dict holds only named tensors, not {', '.join(wrong[:3])}")
    return dict(content)


def names_of(entry: Any, classes: frozenset[str] = frozenset()) -> set[str]:
    """The names of the tensors of an entry: a state dict, or a whole network."""
    if isinstance(entry, Holder):
        return _names_of_network(entry, classes)
    return {name for name in entry if isinstance(name, str)} if isinstance(entry, Mapping) else set()


def _names_of_network(network: Holder, classes: frozenset[str]) -> set[str]:
    """Names of tensors, of a network of the classes; of others nothing is looked at, which may hold themselves."""
    found: set[str] = set()
    todo: list[tuple[str, Holder, int]] = [("", network, 0)]
    for _ in range(_MOST_MODULES):  # it may hold itself, or one module in many places
        if not todo:
            break
        prefix, part, depth = todo.pop()
        allowed = (
            not isinstance(part, Foreign) or part.name in classes or f"*.{part.name.rpartition('.')[2]}" in classes
        )
        if not allowed or depth > 20:
            continue
        try:
            found |= {f"{prefix}{name}" for name in part.own_tensors()}
            todo += [(f"{prefix}{name}.", child, depth + 1) for name, child in part.children().items()]
        except CheckpointError:
            return set()
    return found


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Entries that may hold the generator; the last is the file itself."""
    if isinstance(content, Mapping):
        for name in ENTRIES:
            entry = content.get(name)
            if isinstance(entry, Mapping):
                yield from ((f"{name}.{inner}", below) for inner, below in _entries(entry) if inner)
                yield name, entry
            elif isinstance(entry, Holder):
                yield name, entry
    if isinstance(content, Mapping | Holder):
        yield "", content


def _without_wrappers(names: set[str]) -> set[str]:
    while (wrapper := _common_wrapper(names)) is not None:
        names = {name.removeprefix(wrapper) for name in names if name.startswith(wrapper)}
    return names


def _without_wrapper(names: dict[str, str]) -> dict[str, str]:
    wrapper = _common_wrapper(set(names))
    if wrapper is None:
        return names
    return {name.removeprefix(wrapper): original for name, original in names.items() if name.startswith(wrapper)}


def _common_wrapper(names: set[str]) -> str | None:
    """A wrapper's prefix of every name but such counters as "steps"."""
    for wrapper in _WRAPPERS:
        if (
            names
            and all(name.startswith(wrapper) or "." not in name for name in names)
            and any(name.startswith(wrapper) for name in names)
        ):
            return wrapper
    return None


def count(names: Mapping[str, Tensor], pattern: str) -> int:
    """How many names match all of a regular expression."""
    return len([name for name in names if re.fullmatch(pattern, name)])
