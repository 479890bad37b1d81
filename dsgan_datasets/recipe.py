"""The recipe: everything that decides a sample besides the weights, the seed and the index.

It has four sections, one for each step that it decides: sampling (latents), rendering (images), labeling and filter.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypedDict, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets._deprecation import renamed_arguments, warn_renamed
from dsgan_datasets.checks import integer
from dsgan_datasets.targets.base import Target

NoiseMode = Literal["const", "none"]
Vote = Literal["majority", "mean"]
FeatureLayout = Literal["convs", "const+convs", "datasetgan"]
Precision = Literal["float32", "float16", "bfloat16"]
Layers = Literal["fine", "coarse"]

#: Longest side of a labeled frame, pixels: more than any generator draws, less than fills the memory.
MAX_SIDE = 8192

#: Flat names of earlier versions.
RENAMED = {
    "psi": "truncation_psi",
    "cutoff": "truncation_cutoff",
    "second_latent": "mixing_side",
    "views": "group_size",
    "ignore_js": "max_uncertainty",
}

Check = Callable[[Any], Any]


def _checked(default: Any, allowed: str, check: Check) -> Any:
    """A field of a section: `check` gives the value in its plain form, or raises TypeError or ValueError."""
    return field(default=default, metadata={"allowed": allowed, "check": check})


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _number(lowest: float, highest: float) -> Check:
    def check(value: Any) -> float:
        _require(isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest)
        return float(value)

    return check


def _integer(lowest: int, highest: int = 2**31 - 1) -> Check:
    return lambda value: integer("value", value, lowest, highest)


def _choice(kind: Any) -> Check:
    def check(value: Any) -> Any:
        _require(value in get_args(kind))
        return value

    return check


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _each(check: Check) -> Check:
    def check_all(values: Any) -> tuple[Any, ...]:
        _require(isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | Set))
        return tuple(check(_plain(value)) for value in values)

    return check_all


def _text(value: Any) -> str:
    _require(isinstance(value, str) and value.isidentifier())
    return str(value)


def _boolean(value: Any) -> bool:
    _require(isinstance(value, bool))
    return bool(value)


def _psi(value: Any) -> float | tuple[float, float]:
    if not isinstance(value, Iterable):
        return float(_number(-2, 2)(value))
    low, high = _each(_number(-2, 2))(value)
    _require(low <= high)
    return low if low == high else (low, high)


def _weights(value: Any) -> tuple[float, ...]:
    weights: tuple[float, ...] = _each(_number(0, 1e300))(value)
    _require(sum(weights) > 0)
    return weights


def _size(value: Any) -> tuple[int, int]:
    height, width = _each(_integer(1))(value)
    _require(max(height, width) <= MAX_SIDE)
    return height, width


def _rows(value: Any) -> tuple[int, int]:
    top, bottom = _each(_integer(0))(value)
    _require(top < bottom)
    return top, bottom


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and tensors as Python's numbers and lists; anything else as it is."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray | torch.Tensor) else value


class _Section:
    """A part of a recipe: a frozen dataclass whose fields check themselves."""

    #: Name of the section.
    section: ClassVar[str]

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            try:
                object.__setattr__(self, f.name, f.metadata["check"](_plain(value)))
            except (TypeError, ValueError, LookupError, OverflowError):
                raise ValueError(f"{f.name} must be {f.metadata['allowed']}, not {value!r:.60}") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, all fields."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return, call-overload]


@dataclass(frozen=True)
class Sampling(_Section):
    """Which latents are drawn, and how they become style vectors.

    Args:
        truncation_psi: 1 draws the full variety, smaller values draw nearer to the mean. A pair (low, high) draws it
            uniformly, anew for every index; two equal numbers are one.
        truncation_cutoff: truncate only the first `truncation_cutoff` layers; None truncates all.
        class_label: class of a conditional generator; None for an unconditional one, or with `class_weights`.
        class_weights: one weight per class: the class is drawn for every index, as often as its weight says. These are
            the classes of all draws; a filter that rejects draws of one class more often leaves fewer of it.
        mixing_layer: style mixing (StyleGAN, section 3.1): the layers on one side of this one (1 … num_ws − 1) take
            their styles from a second latent; None for none.
        mixing_side: which side: "fine", this layer and those after it, or "coarse", those before it. Without
            `mixing_layer` it has no effect.
        group_size: number of consecutive indices that share second latent, psi and class: a view group, which for
            instance shares an identity and varies the pose (arXiv 2010.09125, section 3.1). Groups start at the
            multiples of `group_size`; a filter accepts or redraws a group as a whole. Needs `mixing_layer`.

    Example:
        >>> Sampling(truncation_psi=(0.5, 0.9)).psi_range
        (0.5, 0.9)
        >>> views = Sampling(mixing_layer=4, group_size=4)  # four views of each object
        >>> Recipe(views, Rendering(compute_batch=8)).group_size
        4
    """

    section: ClassVar[str] = "sampling"

    truncation_psi: float | tuple[float, float] = _checked(
        1.0, "a number in -2 … 2, or two of them (low, high) with low <= high", _psi
    )
    truncation_cutoff: int | None = _checked(None, "None or an integer from 0", _optional(_integer(0)))
    class_label: int | None = _checked(None, "None or a class number from 0", _optional(_integer(0)))
    class_weights: tuple[float, ...] | None = _checked(
        None, "None, or one weight per class, none negative and not all 0", _optional(_weights)
    )
    mixing_layer: int | None = _checked(None, "None or a layer from 1", _optional(_integer(1)))
    mixing_side: Layers = _checked("fine", "fine or coarse", _choice(Layers))
    group_size: int = _checked(1, "an integer from 1", _integer(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights is not None and self.class_label is not None:
            raise ValueError(f"class_weights must be None or come with class_label=None, not {self.class_label}")
        if self.group_size > 1 and self.mixing_layer is None:
            raise ValueError(f"group_size must be 1 without mixing_layer, not {self.group_size}")

    @property
    def psi_range(self) -> tuple[float, float]:
        """(low, high) of truncation_psi; equal if it is fixed."""
        psi = self.truncation_psi
        return psi if isinstance(psi, tuple) else (psi, psi)


@dataclass(frozen=True)
class Rendering(_Section):
    """How style vectors become images.

    Args:
        noise_mode: "const" uses the noise stored with the generator, "none" leaves it out.
        size: (H, W) at which the full frame is labeled, and to which the image is resized, at most 8192 each; None is
            the image's own.
        crop: (top, bottom) rows of the frame to keep, for letterboxed generators; None keeps all.
        dtype: precision of the synthesis and of the interpreter's operands; its sums are float32. On a CPU labels are
            computed in bfloat16 where the processor has instructions for it, else, as of float16 maps, in float32.
        compute_batch: draws computed at a time: as one batch on a GPU, side by side on the CPU. Part of the recipe, as
            the last bits of a float depend on the batch; how many samples you ask for at once changes nothing.
        compile: have torch.compile fuse the synthesis (CUDA only). Part of the recipe, as it changes the last bits.

    Example:
        >>> letterboxed = Rendering(size=(512, 512), crop=(64, 448))
        >>> Recipe(rendering=letterboxed).image_size(1024)
        (384, 512)
    """

    section: ClassVar[str] = "rendering"

    noise_mode: NoiseMode = _checked("const", "const or none", _choice(NoiseMode))
    size: tuple[int, int] | None = _checked(None, f"None or (rows, columns) of at most {MAX_SIDE}", _optional(_size))
    crop: tuple[int, int] | None = _checked(None, "None or (top, bottom) with 0 <= top < bottom", _optional(_rows))
    dtype: Precision = _checked("float32", "float32, float16 or bfloat16", _choice(Precision))
    compute_batch: int = _checked(8, "an integer in 1 … 65536", _integer(1, 65536))
    compile: bool = _checked(False, "True or False", _boolean)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True)
class Labeling(_Section):
    """How features become labels.

    Args:
        class_map: for a coarser task, the id in the schema of each class that the labeler predicts; None if both have
            the same classes. `LabeledGenerator.merge_classes` makes it.
        max_uncertainty: pixels whose uncertainty exceeds it, in nats, become the schema's `ignore_index`; None for
            none. ``calibrate(…, ignore_fraction=0.05)`` finds the level.
        vote: of an ensemble: "majority" (as published, ties to the lowest class) or "mean" (argmax of the mean
            probability).
        top_fraction: share of the pixels that decides the uncertainty score of an image.

    Example:
        >>> Recipe(labeling=Labeling(vote="mean")) == Recipe(vote="mean")
        True
    """

    section: ClassVar[str] = "labeling"

    class_map: tuple[int, ...] | None = _checked(None, "None or class ids from 0", _optional(_each(_integer(0))))
    max_uncertainty: float | None = _checked(None, "None or a number of nats from 0", _optional(_number(0, 1e300)))
    vote: Vote = _checked("majority", "majority or mean", _choice(Vote))
    top_fraction: float = _checked(0.1, "a number in (0, 1]", _number(1e-12, 1))


class Rule(Protocol):
    """A condition on the content of a draw."""

    #: Name in config.json.
    rule: ClassVar[str]
    #: Field of the one label that it looks at.
    field: ClassVar[str]

    def check(self, targets: Sequence[Target], image_size: tuple[int, int]) -> None:
        """ValueError if no label of these targets could ever pass."""

    def describe(self, targets: Sequence[Target]) -> str:
        """The rule in words, for messages."""

    def passes(self, fields: Mapping[str, Tensor], targets: Sequence[Target]) -> Tensor:
        """Which of N draws pass, bool [N], on the device of the labels."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with "rule"."""


@dataclass(frozen=True)
class AreaRule(_Section):
    """At least `min_area` pixels must have a class; ignored ones do not count.

    Args:
        class_id: id in the schema, of a merged one if classes are merged.
        min_area: pixels.

    Example:
        >>> hat = AreaRule(class_id=1, min_area=20)
        >>> hat.describe([LabelSchema(("background", "hat"))])
        'hat >= 20 px'
        >>> LabeledGenerator.from_pretrained("demo-faces", device="cpu", rules=[hat]).recipe.require
        (1,)
    """

    rule: ClassVar[str] = "area"
    field: ClassVar[str] = "mask"
    section: ClassVar[str] = "filter"

    class_id: int = _checked(0, "a class id from 0", _integer(0))
    min_area: int = _checked(1, "an integer number of pixels from 1", _integer(1))

    def check(self, targets: Sequence[Target], image_size: tuple[int, int]) -> None:
        """ValueError for a class that the schema lacks, or an area larger than the image."""
        names = _target(targets, self.field, "a rule on areas needs masks").tally_names
        if self.class_id >= len(names):
            raise ValueError(f"require names class {self.class_id}, the schema has 0 … {len(names) - 1}")
        if self.min_area > image_size[0] * image_size[1]:
            raise ValueError(f"min_area {self.min_area} is more than the pixels of an image of {image_size}")

    def describe(self, targets: Sequence[Target]) -> str:
        """Such as "ear >= 20 px"."""
        return f"{_target(targets, self.field).tally_names[self.class_id]} >= {self.min_area} px"

    def passes(self, fields: Mapping[str, Tensor], targets: Sequence[Target]) -> Tensor:
        """Which draws hold enough of the class."""
        return _target(targets, self.field).tally(fields[self.field])[:, self.class_id] >= self.min_area

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"rule": self.rule, **super().to_dict()}


@dataclass(frozen=True)
class KeypointRule(_Section):
    """A point must be in the image and not hidden: its v is 2.

    Args:
        point_id: id of the point, its position among the names.

    Example:
        >>> KeypointRule(point_id=1).describe([Keypoints(("nose", "chin"))])
        'chin visible'
        >>> Recipe(rules=[KeypointRule(1)]) == Recipe(visible=[1])
        True
    """

    rule: ClassVar[str] = "visible"
    field: ClassVar[str] = "keypoints"
    section: ClassVar[str] = "filter"

    point_id: int = _checked(0, "a point id from 0", _integer(0))

    def check(self, targets: Sequence[Target], image_size: tuple[int, int]) -> None:
        """ValueError for a point that the keypoints lack."""
        names = _target(targets, self.field, "a rule on visible points needs keypoints").tally_names
        if self.point_id >= len(names):
            raise ValueError(f"visible names point {self.point_id}, the keypoints have 0 … {len(names) - 1}")

    def describe(self, targets: Sequence[Target]) -> str:
        """Such as "left_eye visible"."""
        return f"{_target(targets, self.field).tally_names[self.point_id]} visible"

    def passes(self, fields: Mapping[str, Tensor], targets: Sequence[Target]) -> Tensor:
        """Which draws show the point."""
        return fields[self.field][:, self.point_id, 2] == 2

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"rule": self.rule, **super().to_dict()}


def _target(targets: Sequence[Target], field: str, needs: str = "this rule needs labels") -> Target:
    """The target of a field; ValueError says what needs it."""
    for target in targets:
        if target.field == field:
            return target
    raise ValueError(f"{needs}, and this source has none; its labels are: {', '.join(t.field for t in targets)}")


#: Kind of rule -> its class.
RULES: dict[str, Any] = {rule.rule: rule for rule in (AreaRule, KeypointRule)}


_SomeRule = TypeVar("_SomeRule", bound=Rule)


def _rule(value: Any) -> Any:
    if isinstance(value, Mapping):
        fields = dict(value)
        return RULES[fields.pop("rule")](**fields)
    _require(getattr(value, "rule", None) in RULES)
    return value


def _rules(values: Any) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(_rule(value) for value in values))


@dataclass(frozen=True)
class ScoreFilter(_Section):
    """Drops draws by the uncertainty of one label of several that have one, beside the first of them.

    Scores of different labels have different units, so no sum of them means anything; each has a threshold of its own,
    and a draw must stay below all.

    Args:
        field: of the label, such as "keypoints"; the score is the field "keypoints_uncertainty_score".
        reject_fraction: share of the draws to drop for this score alone; `calibrate` finds the threshold.
        threshold: highest accepted score; None if it is not known yet.

    Example:
        >>> points = ScoreFilter("keypoints", reject_fraction=0.05)
        >>> points.score, Recipe(scores=[points]).needs_calibration
        ('keypoints_uncertainty_score', True)
    """

    section: ClassVar[str] = "filter"

    field: str = _checked("", "the field of a label, such as keypoints", _text)
    reject_fraction: float = _checked(0.1, "a number in (0, 1)", _number(1e-12, 1 - 1e-12))
    threshold: float | None = _checked(None, "None or a number", _optional(_number(-1e300, 1e300)))

    @property
    def score(self) -> str:
        """The field of a sample that is compared."""
        return f"{self.field}_uncertainty_score"


def _scores(values: Any) -> tuple[ScoreFilter, ...]:
    found = [ScoreFilter(**value) if isinstance(value, Mapping) else value for value in values]
    _require(all(isinstance(value, ScoreFilter) for value in found))
    _require(len({value.field for value in found}) == len(found))
    return tuple(sorted(found, key=lambda value: value.field))


@dataclass(frozen=True)
class Filter(_Section):
    """Which draws become samples.

    Args:
        reject_fraction: share of the most uncertain draws to drop, 0 for none; `calibrate` finds the threshold.
        threshold: highest accepted uncertainty score, in nats; None if it is not known yet, or not needed.
        rules: conditions on the content, all of which must hold.
        scores: filters by the uncertainty of further labels, one for each.

    Example:
        >>> strict = Filter(threshold=0.1, rules=[AreaRule(class_id=3)])
        >>> Recipe(filter=strict).is_filtered, Filter(reject_fraction=0.1).needs_calibration
        (True, True)
    """

    section: ClassVar[str] = "filter"

    reject_fraction: float = _checked(0.0, "a number in [0, 1)", _number(0, 1 - 1e-12))
    threshold: float | None = _checked(None, "None or a number of nats", _optional(_number(-1e300, 1e300)))
    rules: tuple[Rule, ...] = _checked((), "a list of rules", _rules)
    scores: tuple[ScoreFilter, ...] = _checked((), "a list of score filters, one a label", _scores)

    @property
    def needs_calibration(self) -> bool:
        """True if uncertain draws should be rejected but a threshold is not known."""
        missing = self.reject_fraction > 0 and self.threshold is None
        return missing or any(score.threshold is None for score in self.scores)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "reject_fraction": self.reject_fraction,
            "threshold": self.threshold,
            "rules": [rule.to_dict() for rule in self.rules],
            "scores": [score.to_dict() for score in self.scores],
        }


_SECTIONS: tuple[type[_Section], ...] = (Sampling, Rendering, Labeling)
_ALL_SECTIONS: tuple[type[_Section], ...] = (*_SECTIONS, Filter)
#: Flat name -> section, of every field that `Recipe` and `override` take by its own name.
_OWNERS: dict[str, str] = {
    f.name: cls.section
    for cls in _ALL_SECTIONS
    for f in dataclasses.fields(cls)  # type: ignore[arg-type]
}
#: Flat names of rules: which classes, and how much of them; which points.
RULE_NAMES = ("require", "min_area", "visible")

#: Changing one of these, or a field of the filter, leaves the score of every draw as it is and keeps the threshold.
_KEEPS_SCORES = frozenset({"compute_batch", "compile", "max_uncertainty", "class_map"})

#: The defaults of format 2 of config.json. Never change a value: fingerprints hash what differs from these. A field
#: that is added later is added here too, with the default that means "as before".
_FORMAT_2: dict[str, dict[str, Any]] = {
    "sampling": {
        "truncation_psi": 1.0,
        "truncation_cutoff": None,
        "class_label": None,
        "class_weights": None,
        "mixing_layer": None,
        "mixing_side": "fine",
        "group_size": 1,
    },
    "rendering": {
        "noise_mode": "const",
        "size": None,
        "crop": None,
        "dtype": "float32",
        "compute_batch": 8,
        "compile": False,
    },
    "labeling": {"class_map": None, "max_uncertainty": None, "vote": "majority", "top_fraction": 0.1},
    "filter": {"reject_fraction": 0.0, "threshold": None, "rules": [], "scores": []},
}


class RecipeOverrides(TypedDict, total=False):
    """Flat names that `Recipe.override` and `LabeledGenerator.from_pretrained` take; `Recipe` explains them.

    Example:
        >>> changes: RecipeOverrides = {"truncation_psi": 0.7, "reject_fraction": 0}
        >>> LabeledGenerator.from_pretrained("demo-faces", device="cpu", **changes).recipe.truncation_psi
        0.7
    """

    truncation_psi: float | tuple[float, float]
    truncation_cutoff: int | None
    class_label: int | None
    class_weights: Sequence[float] | None
    mixing_layer: int | None
    mixing_side: Layers
    group_size: int
    noise_mode: NoiseMode
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    dtype: Precision
    compute_batch: int
    compile: bool
    class_map: Sequence[int] | None
    max_uncertainty: float | None
    vote: Vote
    top_fraction: float
    reject_fraction: float
    threshold: float | None
    rules: Sequence[Rule]
    scores: Sequence[ScoreFilter]
    require: Sequence[int | str]
    min_area: int
    visible: Sequence[int | str]


@dataclass(frozen=True, init=False)
class Recipe:
    """How samples are made from a labeler, in four sections.

    Args:
        sampling, rendering, labeling, filter: the sections; None is the default one, and a filter that accepts every
            draw.
        fields: fields of the sections by their own names, such as ``truncation_psi=0.7``; and names for rules:
            `require`, class ids that must be in every sample, `min_area`, their pixels (1), and `visible`, ids of
            keypoints that must be in every image and not hidden.

    The fields can be read by their own names too: ``recipe.truncation_psi``. Numbers may be those of NumPy, lists
    arrays or tensors.

    Raises:
        ValueError: a value outside its range, named with what is allowed, or a field that does not exist.

    Example:
        >>> recipe = Recipe(truncation_psi=0.7, require=[3], min_area=20)
        >>> recipe.sampling.truncation_psi, recipe.filter.rules
        (0.7, (AreaRule(class_id=3, min_area=20),))
        >>> recipe.override(vote="mean").vote
        'mean'
    """

    sampling: Sampling
    rendering: Rendering
    labeling: Labeling
    filter: Filter | None

    def __init__(
        self,
        sampling: Sampling | None = None,
        rendering: Rendering | None = None,
        labeling: Labeling | None = None,
        filter: Filter | None = None,
        **fields: Any,
    ) -> None:
        fields = renamed_arguments(fields, RENAMED)
        if fields.pop("features", None) is not None:
            warn_renamed("Recipe(features=…)", "the layout that the interpreter was fitted on, which decides alone")
        if unknown := sorted(set(fields) - {*_OWNERS, *RULE_NAMES}):
            known = ", ".join(sorted({*_OWNERS, *RULE_NAMES}))
            raise ValueError(f"no such recipe field: {', '.join(unknown)}; the fields are: {known}")
        given = (sampling, rendering, labeling, filter)
        sections = {cls.section: _section(cls, value) for cls, value in zip(_ALL_SECTIONS, given, strict=True)}
        for name, section in sections.items():
            changes = {f: value for f, value in fields.items() if _OWNERS.get(f) == name}
            sections[name] = dataclasses.replace(section, **changes) if changes else section
        sections["filter"] = _with_rules(sections["filter"], **{n: fields[n] for n in RULE_NAMES if n in fields})
        if sections["filter"] == Filter():
            sections["filter"] = None
        for name, section in sections.items():
            object.__setattr__(self, name, section)
        if self.sampling.group_size > self.rendering.compute_batch:
            raise ValueError(
                f"group_size must be up to compute_batch ({self.rendering.compute_batch}), not {self.group_size}"
            )

    def __getattr__(self, name: str) -> Any:
        """Fields of the sections by their own names."""
        if name in _OWNERS and (section := _OWNERS[name]) in self.__dict__:
            return getattr(self.__dict__[section] or Filter(), name)
        if name in RENAMED:
            warn_renamed(f"Recipe.{name}", f"Recipe.{RENAMED[name]}")
            return getattr(self, RENAMED[name])
        raise AttributeError(f"Recipe has no field {name!r}")

    @property
    def require(self) -> tuple[int, ...]:
        """Class ids of the area rules."""
        return tuple(rule.class_id for rule in _rules_of(AreaRule, self.filter))

    @property
    def min_area(self) -> int:
        """Smallest area of the area rules, pixels; 1 without any."""
        return min((rule.min_area for rule in _rules_of(AreaRule, self.filter)), default=1)

    @property
    def visible(self) -> tuple[int, ...]:
        """Ids of the keypoints that must be visible."""
        return tuple(rule.point_id for rule in _rules_of(KeypointRule, self.filter))

    @property
    def psi_range(self) -> tuple[float, float]:
        """(low, high) of truncation_psi; equal if it is fixed."""
        return self.sampling.psi_range

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return self.rendering.torch_dtype

    def frame_size(self, native: int | tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the full frame, before any crop, for a generator whose images are `native`: a side, or (H, W)."""
        return self.rendering.size or ((native, native) if isinstance(native, int) else native)

    def image_size(self, native: int | tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images and masks, for a generator whose images are `native`: a side, or (H, W)."""
        height, width = self.frame_size(native)
        top, bottom = self.rendering.crop or (0, height)
        return bottom - top, width

    @property
    def needs_calibration(self) -> bool:
        """True if uncertain draws should be rejected but the threshold is not known."""
        return self.filter is not None and self.filter.needs_calibration

    @property
    def is_filtered(self) -> bool:
        """True if some draws may be rejected."""
        found = self.filter
        return found is not None and (found.threshold is not None or bool(found.rules or found.scores))

    def replace(self, **fields: Any) -> Recipe:
        """A recipe with some fields changed, and nothing else: unlike `override`, it keeps the threshold."""
        sections = {name: getattr(self, name) for name in ("sampling", "rendering", "labeling", "filter")}
        return Recipe(**{**sections, **fields})

    def unfiltered(self) -> Recipe:
        """The same draws, all accepted."""
        return Recipe(self.sampling, self.rendering, self.labeling)

    def override(self, **changes: Any) -> Recipe:
        """A recipe with some fields changed, by their flat names or whole sections.

        A change that moves the scores (all but `compute_batch`, `compile`, `max_uncertainty`, `class_map` and the
        filter's own fields) drops the calibrated thresholds, so that `calibrate` must run again. ``filter=None``
        accepts every draw, ``reject_fraction=0`` every draw that meets the rules, however uncertain its labels are.

        Raises:
            ValueError: an unknown field, or a value out of range.
        """
        changes = renamed_arguments(changes, RENAMED)
        if "threshold" in changes and changes["threshold"] is None and "reject_fraction" not in changes:
            if self.reject_fraction or self.threshold is not None:
                warn_renamed("threshold=None", "reject_fraction=0")
            changes = {**changes, "reject_fraction": 0.0}
        changed = self.replace(**changes)
        moved = self._scores_decided_by() != changed._scores_decided_by()
        if "filter" in changes:
            return changed
        if changed.scores and "scores" not in changes:
            if changes.get("reject_fraction") == 0:
                changed = changed.replace(scores=())
            elif moved:
                stale = [dataclasses.replace(score, threshold=None) for score in changed.scores]
                changed = changed.replace(scores=stale)
        if "threshold" not in changes and (moved or changed.reject_fraction != self.reject_fraction):
            return changed.replace(threshold=None)
        return changed

    def _scores_decided_by(self) -> dict[str, Any]:
        """All that moves the score of a draw."""
        fields = {name: getattr(self, name) for name, section in _OWNERS.items() if section != "filter"}
        if self.mixing_layer is None:
            fields.pop("mixing_side")
        return {name: value for name, value in fields.items() if name not in _KEEPS_SCORES}

    def decisions(self) -> dict[str, Any]:
        """What differs from the defaults of format 2, by section: what a fingerprint hashes."""
        stored = self.to_dict()
        return {
            name: {f: value for f, value in (stored[name] or {}).items() if value != _FORMAT_2[name][f]}
            for name in stored
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        sections = (self.sampling, self.rendering, self.labeling)
        return {**{s.section: s.to_dict() for s in sections}, "filter": self.filter.to_dict() if self.filter else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`; a field that is missing has the default of format 2.

        Raises:
            ValueError: an unknown section or field (written by a newer version), or a value out of range.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a recipe must be an object with sections, not {data!r:.60}")
        if unknown := sorted(set(data) - set(_FORMAT_2)):
            raise ValueError(f"recipe has unknown sections {unknown}: written by a newer version of dsgan_datasets?")
        sections: dict[str, Any] = {}
        for section in _ALL_SECTIONS:
            name, stored = section.section, data.get(section.section)
            if stored is None and name == "filter":
                continue
            if stored is not None and not isinstance(stored, Mapping):
                raise ValueError(f"section {name} of the recipe must be an object, not {stored!r:.60}")
            fields = {**_FORMAT_2[name], **(stored or {})}
            if unknown := sorted(set(fields) - set(_FORMAT_2[name])):
                raise ValueError(
                    f"section {name} of the recipe has unknown fields {unknown}: written by a newer version of "
                    "dsgan_datasets?"
                )
            sections[name] = section(**fields)
        return cls(**sections)


def _section(kind: type[_Section], value: Any) -> Any:
    """The value, or a default section; ValueError if it is another section, or something else."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ValueError(f"{kind.section} must be a {kind.__name__} or None, not {value!r:.60}")
    return value


def _rules_of(kind: type[_SomeRule], filter: Filter | None) -> list[_SomeRule]:
    return [rule for rule in (filter or Filter()).rules if isinstance(rule, kind)]


def _with_rules(filter: Filter, **names: Any) -> Filter:
    """The filter with the rules that `require`, `min_area` and `visible` ask for in place of those of the same kind.

    Rules of one kind stay together, in an order that does not depend on which name was given first.
    """
    if not names:
        return filter
    areas, points = _rules_of(AreaRule, filter), _rules_of(KeypointRule, filter)
    if "require" in names or "min_area" in names:
        least = names.get("min_area", min((rule.min_area for rule in areas), default=1))
        AreaRule(0, least)  # refuses a wrong min_area even where no class is required
        ids = names.get("require", [rule.class_id for rule in areas])
        areas = _each_of("require", "class", ids, lambda class_id: AreaRule(class_id, least))
    if "visible" in names:
        points = _each_of("visible", "point", names["visible"], KeypointRule)
    others = [rule for rule in filter.rules if not isinstance(rule, AreaRule | KeypointRule)]
    return dataclasses.replace(filter, rules=(*others, *areas, *points))


def _each_of(name: str, part: str, ids: Any, rule: Callable[[Any], _SomeRule]) -> list[_SomeRule]:
    """A rule for each id; ValueError if they are not a list of ids."""
    if isinstance(ids := _plain(ids), str | Mapping) or not isinstance(ids, Iterable):
        raise ValueError(f"{name} must be a list of {part} ids, not {ids!r:.60}")
    try:
        return [rule(each) for each in ids]
    except ValueError as error:
        raise ValueError(f"{name} must be a list of {part} ids, not {ids!r:.60}: {error}") from None
