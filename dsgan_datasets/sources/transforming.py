"""The user's transforms on a sample: a dict of tv_tensors, as torchvision's v2 transforms take it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsgan_datasets._deprecation import outside_level, warn_renamed
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target

Transforms = Callable[..., Any]


def check_transforms(transforms: Transforms | None) -> Transforms | None:
    """The transforms, after a warning if they take (image, mask) as those of version 0.2 did.

    Raises:
        ValueError: not a callable.
    """
    if transforms is None:
        return None
    if not callable(transforms):
        raise ValueError(f"transforms must be callable, not {transforms!r:.80}")
    if _takes_two(transforms):
        new = "transforms that take and return a dict of tv_tensors"
        warn_renamed("transforms(image, mask)", new, stacklevel=outside_level())
    return transforms


def transformed(sample: Sample, transforms: Transforms, targets: Iterable[Target]) -> Sample:
    """A sample whose image and labels went through the transforms.

    They get {"image": tv_tensors.Image}, the entries of each target's `wrap`, and as tv_tensors.Mask "uncertainty"
    [H, W] and "probabilities" [K, H, W] if the sample has them, and return a dict with the same keys. The sample holds
    each label as `unwrap` gives it.

    Raises:
        ValueError: the transforms returned something else.
        RuntimeError: they raised StopIteration, which would end the consumer's loop without a word.
    """
    from torchvision import tv_tensors

    given: dict[str, Tensor] = {"image": tv_tensors.Image(sample.image)}
    wrapped = {target: target.wrap(sample[target.field], _size(sample.image)) for target in targets}
    for entries in wrapped.values():
        given |= entries
    given |= {name: tv_tensors.Mask(sample[name]) for name in ("uncertainty", "probabilities") if name in sample}
    if _takes_two(transforms):
        return Sample({**sample, **_of_two(transforms, given)})
    result = _called(transforms, given)
    if not isinstance(result, dict) or not all(isinstance(result.get(key), torch.Tensor) for key in given):
        raise ValueError(
            f"transforms must take a dict and return one with the same keys ({', '.join(given)}) and tensors; got "
            f"{type(result).__name__}: {result!r:.80}"
        )
    labels = {target.field: target.unwrap(result, _size(result["image"])) for target in wrapped}
    beside = {name for entries in wrapped.values() for name in entries}
    more = {name: value for name, value in result.items() if name not in beside}
    return Sample({**sample, **more, **labels})


def _size(image: Tensor) -> tuple[int, int]:
    """(H, W) of an image [..., H, W]."""
    height, width = image.shape[-2:]
    return height, width


def _called(transforms: Transforms, *given: Any) -> Any:
    try:
        return transforms(*given)
    except StopIteration as error:
        raise RuntimeError(
            "the transforms raised StopIteration, which a DataLoader would take for the end of the data: an iterator "
            "that they read has come to its end"
        ) from error


def _of_two(transforms: Transforms, given: dict[str, Tensor]) -> dict[str, Tensor]:
    result = _called(transforms, given["image"], given["mask"])
    if not isinstance(result, tuple | list) or [isinstance(part, torch.Tensor) for part in result] != [True, True]:
        raise ValueError(
            f"transforms of (image, mask) must return two tensors (image, mask); "
            f"got {type(result).__name__}: {result!r:.80}"
        )
    return {"image": result[0], "mask": result[1]}


def _takes_two(transforms: Transforms) -> bool:
    """Whether a transform, or one inside of a composed one, needs two arguments."""
    inner = getattr(transforms, "transforms", None)
    if isinstance(inner, Sequence | nn.ModuleList) and any(_takes_two(step) for step in inner if callable(step)):
        return True
    call = transforms.forward if isinstance(transforms, nn.Module) else transforms
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 2
