"""What `dsgan view` shows: draws of a checkpoint under a changed recipe, and the file of those that are marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsgan_datasets.annotations.folder import generator_fingerprint
from dsgan_datasets.annotations.marked import Marked
from dsgan_datasets.files import one_at_a_time
from dsgan_datasets.filtering import accepts
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX, Purpose
from dsgan_datasets.recipe import Filter, ScoreFilter
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.tools import options
from dsgan_datasets.tools.messages import counted

#: Draws of an index after which a page gives up. A stream measures how often draws pass first, for which nobody waits
#: here.
MOST_ATTEMPTS = 50
#: Draws in a row, groups of them where there are groups, after which it gives up if the filter accepts none.
MOST_REJECTED = 64
#: The score that a filter's own threshold is compared with.
_FIRST_SCORE = "uncertainty_score"


@dataclass(frozen=True)
class Asked:
    """What a person wants to see.

    Attributes:
        seed: of the draws.
        first: index of the first sample.
        num_samples: on the page.
        psi: truncation psi; None is that of the checkpoint.
        thresholds: field of a label -> highest accepted score; None accepts all.
        require: names of classes and points that must be in every sample.
        min_area: pixels that a required class must have.
        to_annotate: show draws of the annotation family, rejected ones too, in place of a stream's samples.
    """

    seed: int = 0
    first: int = 0
    num_samples: int = 12
    psi: float | None = None
    thresholds: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    require: Sequence[str] = ()
    min_area: int = 1
    to_annotate: bool = False


@dataclass(frozen=True)
class Seen:
    """What is shown.

    Attributes:
        samples: on the CPU, with the uncertainty of each label that has one.
        accepted: whether the filter accepts each of them; all of a stream are.
        num_draws: that were made for it.
        missing: indices that found no accepted draw.
        stopped: whether the search for these was ended before it gave up.
    """

    samples: SampleBatch
    accepted: tuple[bool, ...]
    num_draws: int
    missing: tuple[int, ...] = ()
    stopped: bool = False


class StoppedError(Exception):
    """A search was stopped, and had found nothing."""


def usual(labeled: LabeledGenerator) -> Asked:
    """What a checkpoint's own recipe says."""
    recipe = labeled.recipe
    further = {score.field: score.threshold for score in recipe.scores}
    thresholds = {
        field: recipe.threshold if score == _FIRST_SCORE else further.get(field)
        for field, score in labeled.labeler.scores.items()
    }
    classes, points = parts_of(labeled)
    require = [*(classes[i] for i in recipe.require), *(points[i] for i in recipe.visible)]
    return Asked(thresholds=thresholds, require=require, min_area=recipe.min_area)


def parts_of(labeled: LabeledGenerator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes and of the points, of which a rule can require some."""
    schema = next((t for t in labeled.targets if isinstance(t, LabelSchema)), None)
    points = next((t for t in labeled.targets if isinstance(t, Keypoints)), None)
    return schema.classes if schema else (), points.names if points else ()


def changed(labeled: LabeledGenerator, asked: Asked) -> LabeledGenerator:
    """The checkpoint with the recipe that is asked for.

    Raises:
        ValueError: the recipe does not fit the checkpoint.
    """
    recipe = labeled.recipe if asked.psi is None else labeled.recipe.override(truncation_psi=asked.psi)
    levels = {field: asked.thresholds.get(field) for field in labeled.labeler.scores}
    first = next((field for field, score in labeled.labeler.scores.items() if score == _FIRST_SCORE), "")
    threshold = levels.pop(first, None)
    scores = tuple(ScoreFilter(field, threshold=level) for field, level in levels.items() if level is not None)
    rules = (recipe.filter or Filter()).rules
    recipe = recipe.override(filter=Filter(threshold=threshold, rules=rules, scores=scores))
    classes, points = parts_of(labeled)
    require = [classes.index(name) for name in asked.require if name in classes]
    visible = [points.index(name) for name in asked.require if name in points]
    return labeled.with_recipe(recipe.replace(require=require, min_area=asked.min_area, visible=visible))


def look(
    labeled: LabeledGenerator,
    asked: Asked,
    progress: Callable[[int, int], object] = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Seen:
    """Draw what is asked for. Samples of a stream are those of `LabeledGenerator.stream` with the same recipe.

    Args:
        labeled: the checkpoint, with its own recipe.
        asked: see there; of a recipe with view groups, whole groups are shown.
        progress: called with the samples that are there, and all.
        stopped: called before each batch; true ends the search, and what was found until then is returned.

    Raises:
        ValueError: the recipe does not fit, or no draw at all is accepted.
        StoppedError: it was stopped before any draw was accepted.
    """
    source = changed(labeled, asked)
    group = source.group
    first = asked.first // group * group
    pending = list(range(first, min(first + -(-asked.num_samples // group) * group, MAX_INDEX + 1)))
    purpose = Purpose.ANNOTATION if asked.to_annotate else Purpose.DATASET
    extras = [name.removesuffix("_score") for name in source.labeler.scores.values()]
    found: dict[int, SampleBatch] = {}
    accepted: dict[int, bool] = {}
    total, num_draws, in_a_row, stop = len(pending), 0, 0, False
    for attempt in range(1 if asked.to_annotate else MOST_ATTEMPTS):
        waiting, pending = pending, []
        for indices in _blocks(waiting, source.recipe.compute_batch // group * group):
            stop = stop or stopped()
            if stop or in_a_row >= MOST_REJECTED:
                pending += indices
                continue
            before = len(found)
            batch = source.generate(indices, seed=asked.seed, attempts=attempt, extras=extras, purpose=purpose)
            passed = _together(accepts(source.recipe.filter, source.targets, batch), group)
            num_draws += len(indices)
            for row, (index, passes) in enumerate(zip(indices, passed.tolist(), strict=True)):
                if passes or asked.to_annotate:
                    found[index] = SampleBatch({name: value[row].cpu() for name, value in batch.items()})
                    accepted[index] = passes
                else:
                    pending.append(index)
            in_a_row = 0 if len(found) > before else in_a_row + len(indices) // group
            progress(len(found), total)
        if not pending or stop or in_a_row >= MOST_REJECTED:
            break
    if not found and stop:
        raise StoppedError(f"stopped after {counted(num_draws, 'draw')}, of which the filter accepts none")
    if not found:
        said = f"the filter accepts none of {num_draws} draws"
        raise ValueError(f"{said}: raise the highest uncertainty, or require less")
    rows = [found[index] for index in sorted(found)]
    samples = SampleBatch({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
    return Seen(samples, tuple(accepted[index] for index in sorted(found)), num_draws, tuple(pending), stop)


def _blocks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _together(passed: Tensor, group: int) -> Tensor:
    """A view group passes as a whole."""
    return passed.view(-1, group).all(1).repeat_interleave(group)


class MarkFile:
    """The draws that are marked, always as they are on the disk: other programs may change the file meanwhile.

    Args:
        path: of the file; what it already holds stays.
        labeled: the checkpoint.
        checkpoint: as a user names it.

    Raises:
        ValueError: the file holds something else, or marks for another generator.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, labeled: LabeledGenerator, checkpoint: str) -> None:
        self.path = path
        self.labeled = labeled
        self.checkpoint = checkpoint
        self._fingerprint = generator_fingerprint(labeled.generator)
        self.read()

    def read(self) -> Marked:
        """What the file holds now; no marks if it is not there.

        Raises:
            ValueError, OSError: as at the beginning.
        """
        try:
            found = Marked.read(self.path)
        except FileNotFoundError:
            return self.of(Asked())
        if found.fingerprint != self._fingerprint:
            raise ValueError(
                f"{self.path} holds marks for another generator ({found.generator}): name another file (--marks)"
            )
        return found

    def of(self, asked: Asked) -> Marked:
        """No marks, of the draws that are asked for."""
        recipe = changed(self.labeled, asked).recipe.unfiltered().override(class_map=None, max_uncertainty=None)
        return Marked(options.short(self.checkpoint), self._fingerprint, recipe, asked.seed)

    def mark(self, asked: Asked, changes: Mapping[int, bool]) -> Marked:
        """Mark draws, or take their marks away, and write the file.

        Args:
            asked: what they were drawn for.
            changes: index -> whether it is to be marked; other marks stay.

        Returns:
            what the file holds then.

        Raises:
            ValueError: there are marks of another seed or psi; one round of annotations has one of each.
            OSError: the file cannot be read or written.
        """
        these = self.of(asked)

        def change(found: Marked) -> Marked:
            same = found.same_draws(these)
            if found.indices and not same:
                psi = found.recipe.truncation_psi
                raise ValueError(
                    f"{self.path} holds marks of seed {found.seed}, psi {psi}: go back to these, or clear the marks"
                )
            after = found if same else these
            for index, marked in changes.items():
                after = after.with_mark(index, marked)
            return after

        return self._changed(change)

    def clear(self, known: Marked | None) -> Marked:
        """Take all marks away.

        Args:
            known: what the file holds, as the person sees it.

        Returns:
            what the file holds then.

        Raises:
            ValueError: it holds other marks, which nobody has decided to clear.
            OSError: the file cannot be read or written.
        """

        def change(found: Marked) -> Marked:
            if known is None or found.indices != known.indices or not found.same_draws(known):
                raise ValueError(
                    f"{self.path} was changed elsewhere, and nothing is cleared: look at the marks that are shown now, "
                    "then clear them"
                )
            return dataclasses.replace(found, indices=())

        return self._changed(change)

    def _changed(self, change: Callable[[Marked], Marked]) -> Marked:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.path.parent):
            before = self.read()
            after = change(before)
            if after != before:
                after.write(self.path)
            return after
