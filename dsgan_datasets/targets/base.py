"""A target: one kind of label, and everything that depends on its kind.

Code that stores, filters, counts, mirrors, draws or exports samples asks the target and never checks which kind it is.
A new kind is a class with these members and an entry in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from PIL import Image
from torch import Tensor

#: RGB, 0-255.
Color = tuple[int, int, int]


@runtime_checkable
class Target(Protocol):
    """One label of an image.

    A label's tensor has no batch axis unless a method says so. Methods that take batches keep the labels on their
    device and never wait for it.

    Attributes:
        kind: name of the kind in config.json, such as "segmentation".
        field: key of the label in a `Sample`, such as "mask"; unique among the targets of a source.
        folder: folder of its files in an export, such as "masks".
        extension: of the file that holds it in a shard or an export, without a leading dot, such as "seg.png".
        tally_names: what the numbers of `tally` count, such as class names.
        tally_colors: a color for each of them, used in legends and charts.
        tally_unit: what is counted, such as "pixels".
        tally_measures: whether a number of the tally says how much there is, as of pixels, and not only whether.
        summary: what the label holds, in one line for people.
        ignored_as: what `ignore` puts in place of a label, as JSON, such as a class id; it is a part of fingerprints.
        rounding: what decides `rounded`, as JSON, a part of fingerprints; None if it changes nothing.

    Example:
        >>> from dsgan_datasets import DenseMap, LabelSchema
        >>> labels: list[Target] = [LabelSchema(("background", "face")), DenseMap("depth", 0, 10)]
        >>> [(target.field, target.extension) for target in labels]
        [('mask', 'seg.png'), ('depth', 'depth.png')]
    """

    kind: ClassVar[str]

    @property
    def field(self) -> str: ...

    @property
    def folder(self) -> str: ...

    @property
    def extension(self) -> str: ...

    @property
    def tally_names(self) -> tuple[str, ...]: ...

    @property
    def tally_colors(self) -> tuple[Color, ...]: ...

    @property
    def tally_unit(self) -> str: ...

    @property
    def tally_measures(self) -> bool: ...

    @property
    def summary(self) -> str: ...

    @property
    def ignored_as(self) -> Any: ...

    @property
    def rounding(self) -> Any: ...

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """Raise a ValueError unless this is the label of an image of that (H, W); waits for a GPU."""

    def mirror(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """The label of the horizontally mirrored (H, W) image, left and right parts exchanged; also of N labels."""

    def ignore(self, values: Tensor, pixels: Tensor) -> Tensor:
        """Labels [N, ...] without what they say about some pixels, bool [N, H, W]."""

    def rounded(self, values: Tensor) -> Tensor:
        """Labels [N, ...] as they come back from their files: samples hold these, so that streams equal shards."""

    def encode(self, value: Tensor) -> bytes:
        """Content of the label's file; `decode` gives `rounded` labels back exactly."""

    def decode(self, content: bytes, size: tuple[int, int]) -> Tensor:
        """Inverse of `encode` for an (H, W) image, on the CPU.

        The content is known to be what was written; but its writer may have meant harm: a ValueError for anything
        but a label of that size, before memory is taken for it."""

    def tally(self, values: Tensor) -> Tensor:
        """Counts of N labels, int64 [N, T], on their device: manifests sum them, statistics show them, rules compare
        them."""

    def tally_total(self, size: tuple[int, int]) -> int:
        """What the counts of one label of an (H, W) image add up to if nothing is ignored."""

    def wrap(self, value: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The label of an (H, W) image as entries of the dict that torchvision's v2 transforms take: `field` is a
        tv_tensor, and further entries, whose names begin with the field's, hold what that one cannot."""

    def unwrap(self, entries: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """The label that the entries of `wrap` hold after transforms; the image has (H, W) now."""

    def draw(
        self, image: Image.Image, value: Tensor, size: tuple[int, int], opacity: float | None = None
    ) -> Image.Image:
        """The label of an (H, W) image drawn on a copy of it, which is RGB and may be enlarged.

        `opacity` is 0 … 1 of what is drawn; None is what suits the kind."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with "kind" and "field"; `target_from_dict` reads it."""


AnyTarget = TypeVar("AnyTarget", bound=Target)


def find_target(targets: Iterable[Target], kind: type[AnyTarget]) -> AnyTarget | None:
    """The first target of a class; None if there is none."""
    return next((target for target in targets if isinstance(target, kind)), None)


def require_target(targets: Iterable[Target], kind: type[AnyTarget], noun: str) -> AnyTarget:
    """The first target of a class, for what makes sense with such labels only.

    Raises:
        ValueError: there is none; `noun` says what is missing.
    """
    if not isinstance(targets, Iterable):
        raise ValueError(f"expected labels, such as the `targets` of a LabeledGenerator, not {targets!r:.80}")
    targets = tuple(targets)
    if (found := find_target(targets, kind)) is None:
        labels = ", ".join(target.field for target in targets)
        raise ValueError(f"this needs {noun}, and there are none; the labels are: {labels or 'none'}")
    return found


KINDS: dict[str, Callable[[Mapping[str, Any]], Target]] = {}
"""Kind -> `from_dict` of that kind's JSON form. Third parties add theirs with `register`."""


def register(kind: str, from_dict: Callable[[Mapping[str, Any]], Target]) -> None:
    """Make a kind of label known to checkpoints and shards.

    Example:
        >>> from dsgan_datasets import LabelSchema
        >>> register("segmentation", LabelSchema.from_dict)  # as its module does
        >>> target_from_dict(LabelSchema(("background",)).to_dict()).kind
        'segmentation'
    """
    KINDS[kind] = from_dict


def target_from_dict(data: Mapping[str, Any]) -> Target:
    """The target of a JSON form.

    Raises:
        ValueError: an unknown kind, or a form that its kind does not understand.

    Example:
        >>> target_from_dict({"kind": "segmentation", "classes": [{"name": "background"}, {"name": "face"}]}).field
        'mask'
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind of label {kind!r:.40}; known: {', '.join(sorted(KINDS))}")
    try:
        return KINDS[kind](data)
    except KeyError as error:
        raise ValueError(f"damaged description of a {kind} label: it lacks {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged description of a {kind} label: {error!r:.200}") from error
