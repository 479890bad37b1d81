"""The matrices of an ensemble of small networks that look at each pixel: all that its arithmetic depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class EnsembleWeights:
    """M networks with two hidden layers, stacked.

    Member m maps the C features f of a pixel to K outputs, logits of a classifier:
    relu(relu(f · w1[:, m] + b1[m]) · w2[m] + b2[m]) · w3[m] + b3[m]. The batch normalizations of the published
    classifiers follow a ReLU, so in evaluation they fold into the next matrix (`loading.stack_members`).

    Attributes:
        w1: [C, M, h1], so that the block of a feature map is contiguous.
        b1: [M, h1].
        w2: [M, h1, h2].
        b2: [M, h2].
        w3: [M, h2, K].
        b3: [M, K].

    Raises:
        ValueError: the matrices do not fit together.

    Example:
        >>> z = torch.zeros
        >>> EnsembleWeights(z(9, 2, 8), z(2, 8), z(2, 8, 4), z(2, 4), z(2, 4, 3), z(2, 3)).num_outputs
        3
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor

    def __post_init__(self) -> None:
        if self.w1.dim() != 3 or self.w3.dim() != 3 or 0 in (*self.w1.shape, *self.w3.shape):
            raise ValueError(
                f"w1 must be [C, M, h1] and w3 [M, h2, K], got {list(self.w1.shape)} and {list(self.w3.shape)}"
            )
        c, m, h1 = self.w1.shape
        h2, k = self.w3.shape[1:]
        shapes = {"w1": (c, m, h1), "b1": (m, h1), "w2": (m, h1, h2), "b2": (m, h2), "w3": (m, h2, k), "b3": (m, k)}
        for name, matrix in self.named().items():
            if tuple(matrix.shape) != shapes[name]:
                raise ValueError(f"{name} has shape {list(matrix.shape)}, expected {list(shapes[name])}")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> EnsembleWeights:
        """From tensors by name, others are ignored; KeyError for a missing one."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})

    def named(self) -> dict[str, Tensor]:
        """Name -> matrix."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self, function: Callable[[Tensor], Tensor]) -> EnsembleWeights:
        """The ensemble with a function applied to each matrix, such as ``Tensor.double``."""
        return EnsembleWeights(**{name: function(matrix) for name, matrix in self.named().items()})

    @property
    def num_members(self) -> int:
        """Number of networks M."""
        return len(self.w2)

    @property
    def num_outputs(self) -> int:
        """Number of outputs K of a member: classes of a classifier."""
        return self.w3.shape[2]

    @property
    def in_channels(self) -> int:
        """Number of features C of a pixel."""
        return len(self.w1)

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths (h1, h2) of the hidden layers."""
        return self.w2.shape[1], self.w2.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return self.w1.device

    def version(self) -> tuple[tuple[int, int], ...]:
        """Another value once a matrix was written to or replaced, while the old matrices are still referenced."""
        return tuple(
            # Inference tensors count no versions: they cannot be written to outside of inference mode.
            (matrix.data_ptr(), 0 if matrix.is_inference() else matrix._version)
            for matrix in self.named().values()
        )
