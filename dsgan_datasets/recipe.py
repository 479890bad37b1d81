"""The recipe: everything that decides a sample beside the weights, the seed and the index."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch

from dsgan_datasets.checks import integer

NoiseMode = Literal["const", "none"]
Vote = Literal["majority", "mean"]
FeatureLayout = Literal["convs", "const+convs", "datasetgan"]
Precision = Literal["float32", "float16", "bfloat16"]
Layers = Literal["fine", "coarse"]

#: Longest side of a labeled frame, pixels: more than any generator draws, less than fills the memory.
MAX_SIDE = 8192
#: Fields that leave the score of every draw as it is: changing one of them keeps a calibrated threshold.
_KEEP_THRESHOLD = frozenset({"threshold", "reject_fraction", "require", "min_area", "compute_batch", "max_uncertainty"})
#: Fields that came after the first checkpoints were written: left out of the JSON form while they are at their default,
#: so that a recipe that does not use them keeps its fingerprint.
_LATER = frozenset({"max_uncertainty"})
#: Names of fields in format 1.
_V1 = {
    "truncation_psi": "psi",
    "truncation_cutoff": "cutoff",
    "mixing_side": "second_latent",
    "group_size": "views",
    "max_uncertainty": "ignore_js",
}


@dataclass(frozen=True)
class Recipe:
    """How samples are made from a generator and an interpreter.

    Args:
        truncation_psi: 1 draws the full variety, smaller values draw nearer to the mean. A pair (low, high) draws it
            uniformly, anew for every index; two equal numbers are one.
        truncation_cutoff: truncate only the first `truncation_cutoff` layers; None truncates all.
        noise_mode: "const" uses the noise stored with the generator, "none" leaves it out.
        class_label: class of a conditional generator; None for an unconditional one, or with `class_weights`.
        class_weights: one weight a class: the class is drawn for every index, as often as its weight says. These are
            the classes of all draws; a filter that rejects draws of one class more often leaves fewer of it.
        mixing_layer: style mixing (StyleGAN, section 3.1): the layers on one side of this one (1 … num_ws − 1) take
            their styles from a second latent; None for none.
        mixing_side: which side: "fine", this layer and those after it, or "coarse", those before it. Without
            `mixing_layer` it has no effect.
        group_size: so many consecutive indices have the second latent, psi and class in common: a view group, which for
            instance shares an identity and varies the pose (arXiv 2010.09125, section 3.1). Groups start at the
            multiples of `group_size`; a filter accepts or redraws a group as a whole. At most `compute_batch`.
        features: which maps the interpreter reads, see `load_generator`.
        vote: "majority" (as published, ties to the lowest class) or "mean" (argmax of the mean probability).
        size: (H, W) at which the full frame is labeled, and to which the image is resized, at most 8192 each; None is
            the image's own.
        crop: (top, bottom) rows of the frame to keep, for letterboxed generators; None keeps all.
        top_fraction: share of the pixels that decides the image score.
        dtype: precision of the synthesis; the interpreter computes in float32.
        compute_batch: draws computed in one go: as one batch on a GPU, side by side on the CPU. Part of the recipe, as
            the last bits of a float depend on the batch; how many samples you ask for at once changes nothing.
        reject_fraction: share of the most uncertain draws to drop, 0 for none; `calibrate` finds the threshold.
        threshold: highest accepted score, in nats.
        require: class ids that must cover at least `min_area` pixels each; ids of the schema, of a merged one if it is.
        min_area: pixels, see `require`; ignored ones do not count.
        max_uncertainty: pixels whose uncertainty exceeds so many nats become the schema's `ignore_index`; None for none.
            ``calibrate(…, ignore_fraction=0.05)`` finds the level.

    Numbers may be those of NumPy, lists arrays or tensors.

    Raises:
        ValueError: a value outside its range, named with what is allowed.

    Example:
        >>> Recipe(truncation_psi=0.7).override(vote="mean").vote
        'mean'
    """

    truncation_psi: float | tuple[float, float] = 1.0
    truncation_cutoff: int | None = None
    noise_mode: NoiseMode = "const"
    class_label: int | None = None
    class_weights: tuple[float, ...] | None = None
    mixing_layer: int | None = None
    mixing_side: Layers = "fine"
    group_size: int = 1
    features: FeatureLayout = "convs"
    vote: Vote = "majority"
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    top_fraction: float = 0.1
    dtype: Precision = "float32"
    compute_batch: int = 8
    reject_fraction: float = 0.0
    threshold: float | None = None
    require: tuple[int, ...] = ()
    min_area: int = 1
    max_uncertainty: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name in ("size", "crop", "require"):
            if getattr(self, name) is not None:
                self._set_tuple(name, "integers", partial(integer, name, lowest=0))
        if self.class_weights is not None:
            self._set_tuple("class_weights", "numbers", _as_float)
        if isinstance(self.truncation_psi, Iterable):
            self._set_tuple("truncation_psi", "numbers (low, high), or one number", _as_float)
            if len(self.psi_range) == 2 and self.psi_range[0] == self.psi_range[1]:
                object.__setattr__(self, "truncation_psi", self.psi_range[0])
        elif _is_number(self.truncation_psi):
            object.__setattr__(self, "truncation_psi", float(self.truncation_psi))  # 1 and 1.0 are one recipe
        for name, kind in (
            ("noise_mode", NoiseMode),
            ("features", FeatureLayout),
            ("vote", Vote),
            ("dtype", Precision),
            ("mixing_side", Layers),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        self._check_numbers()

    def _set_tuple(self, name: str, of: str, convert: Callable[[Any], Any]) -> None:
        """Make a list a tuple, so that a recipe is hashable and reads the same from JSON."""
        value = getattr(self, name)
        try:
            if isinstance(value, str | Mapping):
                raise TypeError
            object.__setattr__(self, name, tuple(convert(v) for v in value))
        except TypeError:
            raise ValueError(f"{name} must be a list of {of}, not {value!r:.60}") from None

    def _check_numbers(self) -> None:
        weights = self.class_weights
        limits: tuple[tuple[str, bool, str], ...] = (
            (
                "truncation_psi",
                len(self.psi_range) == 2 and all(map(_is_number, self.psi_range)) and _ascend(-2, *self.psi_range, 2),
                "a number in -2 … 2, or two of them (low, high) with low <= high",
            ),
            (
                "class_weights",
                weights is None or (all(w >= 0 for w in weights) and sum(weights) > 0 and self.class_label is None),
                "None, or one weight a class, none negative and not all 0, with class_label=None",
            ),
            ("mixing_layer", self.mixing_layer is None or _is_count(self.mixing_layer, 1), "None or a layer from 1"),
            (
                "truncation_cutoff",
                self.truncation_cutoff is None or _is_count(self.truncation_cutoff, 0),
                "None or an integer from 0",
            ),
            (
                "class_label",
                self.class_label is None or _is_count(self.class_label, 0),
                "None or a class number from 0",
            ),
            (
                "size",
                self.size is None or (len(self.size) == 2 and min(self.size) > 0 and max(self.size) <= MAX_SIDE),
                f"None or (rows, columns) of at most {MAX_SIDE}",
            ),
            (
                "crop",
                self.crop is None or (len(self.crop) == 2 and 0 <= self.crop[0] < self.crop[1]),
                "None or (top, bottom) with 0 <= top < bottom",
            ),
            ("top_fraction", _is_number(self.top_fraction) and 0 < self.top_fraction <= 1, "a number in (0, 1]"),
            ("compute_batch", _is_count(self.compute_batch, 1), "an integer from 1"),
            (
                "group_size",
                _is_count(self.group_size, 1)
                and (self.group_size == 1 or (self.mixing_layer is not None and self.group_size <= self.compute_batch)),
                f"1, or with mixing_layer up to compute_batch ({self.compute_batch})",
            ),
            (
                "reject_fraction",
                _is_number(self.reject_fraction) and 0 <= self.reject_fraction < 1,
                "a number in [0, 1)",
            ),
            ("threshold", self.threshold is None or _is_number(self.threshold), "None or a number of nats"),
            ("require", all(i >= 0 for i in self.require), "class ids from 0"),
            ("min_area", _is_count(self.min_area, 1), "an integer number of pixels from 1"),
            (
                "max_uncertainty",
                self.max_uncertainty is None or (_is_number(self.max_uncertainty) and self.max_uncertainty >= 0),
                "None or a number of nats from 0",
            ),
        )
        for name, fits, allowed in limits:
            if not fits:
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)!r}")

    @property
    def psi_range(self) -> tuple[float, float]:
        """(low, high) of psi; equal if it is fixed."""
        return (
            self.truncation_psi
            if isinstance(self.truncation_psi, tuple)
            else (self.truncation_psi, self.truncation_psi)
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def frame_size(self, img_resolution: int) -> tuple[int, int]:
        """(H, W) of the full frame, before any crop, for a generator of that resolution."""
        return self.size or (img_resolution, img_resolution)

    def image_size(self, img_resolution: int) -> tuple[int, int]:
        """(H, W) of images and masks, for a generator of that resolution."""
        height, width = self.frame_size(img_resolution)
        top, bottom = self.crop or (0, height)
        return bottom - top, width

    @property
    def needs_calibration(self) -> bool:
        """True if uncertain draws should be rejected but the threshold is not known."""
        return self.reject_fraction > 0 and self.threshold is None

    @property
    def is_filtered(self) -> bool:
        """True if some draws may be rejected."""
        return self.threshold is not None or bool(self.require)

    def override(self, **changes: Any) -> Recipe:
        """A recipe with some fields changed.

        A change that moves the scores (all but compute batch and filter fields) drops the calibrated threshold, so
        that `calibrate` must run again. ``threshold=None`` asks for no filter at all.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"no such recipe field: {', '.join(unknown)}; the fields are: {', '.join(sorted(known))}")
        changed = dataclasses.replace(self, **changes)
        moved = {name for name in known - _KEEP_THRESHOLD if getattr(changed, name) != getattr(self, name)}
        if changed.mixing_layer is None:
            moved.discard("mixing_side")
        if "threshold" in changes:
            return changed if changes["threshold"] is not None else dataclasses.replace(changed, reject_fraction=0.0)
        if moved or changed.reject_fraction != self.reject_fraction:
            return dataclasses.replace(changed, threshold=None)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json; `max_uncertainty` is left out while it is None."""
        later = {f.name for f in dataclasses.fields(self) if f.name in _LATER and getattr(self, f.name) == f.default}
        fields = {_V1.get(name, name): value for name, value in dataclasses.asdict(self).items() if name not in later}
        return json.loads(json.dumps(fields))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`."""
        known = {f.name for f in dataclasses.fields(cls)}
        data = {{old: new for new, old in _V1.items()}.get(name, name): value for name, value in data.items()}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"recipe has unknown fields {unknown}: written by a newer version of dsgan_datasets?")
        return cls(**data)


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and tensors as Python's numbers and lists; anything else as it is."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | torch.Tensor) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _ascend(*numbers: float) -> bool:
    return list(numbers) == sorted(numbers)


def _as_float(value: Any) -> float:
    value = _plain(value)
    if not _is_number(value):
        raise TypeError
    return float(value)


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured; stored beside the recipe.

    Attributes:
        num_samples: unfiltered draws that were looked at.
        seed: their seed.
        reject_fraction: share of the most uncertain draws to drop.
        threshold: score that separates them, nats.
        standard_error: of the threshold, nats, from the order statistics around the quantile.
        acceptance: share of these draws (with group_size: of their view groups) that all rules of the recipe accept.
        ignore_fraction: share of the pixels of accepted draws that `max_uncertainty` was set to ignore; None if it was given
            otherwise or is off.
        dropped_by_class: of the draws that hold a class, the share whose score is above the threshold; classes that
            fewer than 20 of the draws hold are left out. None if it was not looked at.
    """

    num_samples: int
    seed: int
    reject_fraction: float
    threshold: float
    standard_error: float
    acceptance: float
    ignore_fraction: float | None = None
    dropped_by_class: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        integer("calibration num_samples", self.num_samples, 1)
        integer("calibration seed", self.seed, 0)
        shares = ("reject_fraction", "acceptance", "ignore_fraction")
        for name in ("reject_fraction", "threshold", "standard_error", "acceptance", "ignore_fraction"):
            value = getattr(self, name)
            if name == "ignore_fraction" and value is None:
                continue
            if not _is_number(value) or (name in shares and not 0 <= value <= 1):
                raise ValueError(f"calibration {name} is {value!r}")
        dropped = self.dropped_by_class
        if dropped is not None and not (
            isinstance(dropped, Mapping) and all(_is_number(share) and 0 <= share <= 1 for share in dropped.values())
        ):
            raise ValueError(f"calibration dropped_by_class is {dropped!r:.60}")

    @property
    def dropped_most(self) -> dict[str, float]:
        """Classes whose draws are dropped at least twice as often as all draws are, the worst first."""
        shares = sorted((self.dropped_by_class or {}).items(), key=lambda item: -item[1])
        return {name: share for name, share in shares if share >= 2 * self.reject_fraction}

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
