"""One labeled sample, a batch of them, and the legend of shapes that the whole project uses.

Shapes: N batch, L num_ws, C channels, H rows, W columns, K classes, M ensemble members, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from dsgan_datasets._deprecation import warn_renamed

#: Fields by the names that they had before.
_RENAMED = {"js": "uncertainty", "score": "uncertainty_score"}


class _Fields(dict[str, Any]):
    """A dict whose keys are attributes too: what collate, pin_memory, pickle and spawn already understand."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has: {', '.join(self)}") from None

    def __missing__(self, name: str) -> Any:
        """Fields under the names that they had before."""
        if (new := _RENAMED.get(name)) is None or new not in self:
            raise KeyError(name)
        warn_renamed(f"sample.{name}", f"sample.{new}", stacklevel=3)
        return self[new]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __repr__(self) -> str:
        fields = (f"{k}={tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}" for k, v in self.items())
        return f"{type(self).__name__}({', '.join(fields)})"


class Sample(_Fields):
    """One generated image and its labels. Fields are attributes and dict keys alike.

    Attributes:
        image: uint8 RGB [3, H, W], on the generator's device.
        mask: int64 class ids [H, W], on the generator's device; of a source with masks. Other kinds of label have the
            field that their target names, such as keypoints float32 [K, 3] or depth float32 [C, H, W].
        index: int64 scalar on the CPU, what the sample was drawn as.
        attempt: int64 scalar on the CPU, how many draws of this index the filter had rejected.

    Fields that not every sample has:
        uncertainty_score: float32 scalar on the CPU, in nats; higher is less certain. Of a labeler that has one.
        class_label: int64 scalar on the CPU, the class of the whole image; only of a conditional generator.
        uncertainty: float32 [H, W], per pixel, in nats; only if asked for.
        keypoints_uncertainty_score, keypoints_uncertainty: the same of a further label, by its field.
        latent: float32 [z_dim] on the CPU; only if asked for.
        probabilities: of each class of the mask, float16 [K, H, W], mean of the interpreter's members; only if asked
            for, and not stored in shards.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> sample = next(labeled.stream([7]))
        >>> list(sample)
        ['image', 'mask', 'uncertainty_score', 'index', 'attempt']
        >>> sample.mask is sample["mask"]
        True
    """

    image: Tensor
    mask: Tensor
    index: Tensor
    attempt: Tensor


class SampleBatch(_Fields):
    """N samples in one: the fields of `Sample` with a leading batch axis.

    Iterating over a dict gives its keys; `rows()` gives the samples.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> batch = labeled.generate([4, 5])
        >>> batch.num_samples, [int(sample.index) for sample in batch.rows()]
        (2, [4, 5])
        >>> SampleBatch.stack(list(batch.rows())).image.equal(batch.image)
        True
    """

    image: Tensor
    mask: Tensor
    index: Tensor
    attempt: Tensor

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self["index"])

    def rows(self) -> Iterator[Sample]:
        """The samples one by one (views, no copies)."""
        for i in range(self.num_samples):
            yield Sample({name: value[i] for name, value in self.items()})

    @classmethod
    def stack(cls, samples: Sequence[Sample]) -> SampleBatch:
        """Put samples of equal shape and equal fields into a batch.

        Raises:
            ValueError: they differ in fields or shapes; the message names what differs.
        """
        first = samples[0]
        for sample in samples:
            if not isinstance(sample, dict) or sample.keys() != first.keys():
                kinds = [
                    ", ".join(s) if isinstance(s, dict) else f"an item of type {type(s).__name__}"
                    for s in (first, sample)
                ]
                raise ValueError(
                    f"one batch cannot hold samples with different fields: {kinds[0]}; and {kinds[1]}. Make items of "
                    'all parts dicts with the same names, or choose fields that all have (fields=["image", "mask"])'
                )
            for name, value in sample.items():
                if value.shape != first[name].shape:
                    raise ValueError(
                        f"one batch cannot hold samples of different shapes: {name} is {list(first[name].shape)} and "
                        f"{list(value.shape)}. Scale them alike: the recipe's size for generated ones, transforms for "
                        "your own"
                    )
        return cls({name: torch.stack([s[name] for s in samples]) for name in first})


def _collate_samples(
    samples: Sequence[Sample], *, collate_fn_map: dict[Any, Callable[..., Any]] | None = None
) -> SampleBatch:
    return SampleBatch.stack(samples)


# The extension point that PyTorch documents for default_collate: without it a batch of Samples comes back as a
# Sample (https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.default_collate).
default_collate_fn_map[Sample] = _collate_samples
