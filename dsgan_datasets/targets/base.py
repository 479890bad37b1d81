"""A target: one kind of label, and everything that depends on its kind.

What stores, filters, counts, mirrors, draws or exports samples asks the target, never which kind it is. A new kind is a
class with these members and an entry in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor


@runtime_checkable
class Target(Protocol):
    """One label of an image.

    Attributes:
        kind: name of the kind in config.json, such as "segmentation".
        field: key of the label in a `Sample`, such as "mask".
        extension: of the file that holds it in a shard or an export, without a leading dot, such as "seg.png".
        tally_names: what the numbers of `tally` count, such as class names.
    """

    kind: ClassVar[str]

    @property
    def field(self) -> str: ...

    @property
    def extension(self) -> str: ...

    @property
    def tally_names(self) -> tuple[str, ...]: ...

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """ValueError unless this is one label of an image of that (H, W)."""

    def mirror(self, value: Tensor) -> Tensor:
        """The label of the horizontally mirrored image."""

    def encode(self, value: Tensor) -> bytes:
        """Content of its file; `decode` gives the same tensor back, bit for bit or as exactly as the kind documents."""

    def decode(self, content: bytes) -> Tensor:
        """Inverse of `encode`, on the CPU; ValueError for damaged content."""

    def tally(self, values: Tensor) -> Tensor:
        """Counts of N labels, int64 [N, T], on their device: what manifests sum, statistics show and rules compare."""

    def wrap(self, value: Tensor) -> Tensor:
        """The label as the tv_tensor that torchvision's v2 transforms understand."""

    def draw(self, image: Image.Image, value: Tensor) -> Image.Image:
        """The label drawn on the image, which may be an enlarged one."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with "kind"."""


#: Kind -> `from_dict` of that kind's JSON form. Third parties add theirs with `register`.
KINDS: dict[str, Callable[[Mapping[str, Any]], Target]] = {}


def register(kind: str, from_dict: Callable[[Mapping[str, Any]], Target]) -> None:
    """Make a kind of label known to checkpoints and shards."""
    KINDS[kind] = from_dict


def target_from_dict(data: Mapping[str, Any]) -> Target:
    """The target of a JSON form.

    Raises:
        ValueError: an unknown kind, or a form that its kind does not understand.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind of label {kind!r:.40}; known: {', '.join(sorted(KINDS))}")
    return KINDS[kind](data)
