"""The rows of the table: each is what a student trains on, as batches without end, and what it minimizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import renders
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets import (
    AnnotatedImages,
    DSGANIterableDataset,
    LabeledGenerator,
    LabelSchema,
    PixelEnsemble,
    calibrate,
    fit_interpreter,
    sample_latents,
)
from dsgan_datasets.annotations import load_annotations
from dsgan_datasets.annotations.selection import diverse, pooled_features
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import Frame, Interpreter
from dsgan_datasets.inversion import Inverter, invert_photos
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.latents import Purpose
from dsgan_datasets.students import reused

from .cells import read_json
from .clusters import clustered
from .data import IGNORE, TEST, TRAIN, VALIDATION, Labeled, read_renders
from .semi import S4GANWithMLMT
from .students import Batch, Objective, Supervised
from .taught import as_photos, taught

ANNOTATED, MORE_ANNOTATED, MANY_ANNOTATED = 16, 30, 80
NEIGHBORS = "convolutional"  # the interpreter that sees them
CANDIDATES = 4  # draws that each annotated one is chosen from, as for the shipped checkpoint
INFORMATIVE_CANDIDATES = 8  # the same in a second round, for as many again as it annotates
IGNORED_SHARE = 0.1  # of the pixels, where the uncertain ones are ignored
Samples = Iterator[tuple[Tensor, Tensor]]
Batches = Callable[["Sources", int], Iterator[Batch]]


class Sources:
    """All data of a run, each read or made when first asked for.

    Args:
        domain: folder of renders with train-*.tar, test-*.tar and classes.json.
        checkpoint: of the labeled generator; None where no row needs it.
        annotator: weights of the stand-in for the person who annotates generated images, or a folder that a person has
            annotated (`dsgan annotate`); None where no row needs it.
        size: of the students' images.
        device: of generator and batches.
        batch_size: images a step; the rows with unlabeled images take as many of these beside.
        uses: steps that see a generated sample, on average.
        schema: the students' classes; those of the checkpoint if None.

    Raises:
        ValueError: the domain lacks its shards, or renders cannot have the classes.
    """

    def __init__(
        self,
        domain: Path,
        checkpoint: str | None,
        annotator: Path | None,
        *,
        size: int,
        device: str = "cpu",
        batch_size: int = 16,
        uses: int = 1,
        schema: LabelSchema | None = None,
    ) -> None:
        self.domain, self.checkpoint, self.annotator = domain, checkpoint, annotator
        self.size, self.device, self.batch_size, self.uses = size, device, batch_size, uses
        for shards in (TRAIN, TEST):  # said now rather than after hours of training
            if not any(domain.glob(shards)):
                raise ValueError(f"no {shards} in {domain}: --domain takes the folder of renders, with classes.json")
        self._fitted: dict[tuple[str, int, int], LabeledGenerator] = {}
        self.schema = schema or self.labeled.schema
        renders.class_lookup(self.schema.classes, size)

    @cached_property
    def labeled(self) -> LabeledGenerator:
        """The checkpoint."""
        assert self.checkpoint is not None
        return LabeledGenerator.from_pretrained(self.checkpoint, device=self.device)

    @cached_property
    def _train_shards(self) -> Labeled:
        return read_renders(sorted(self.domain.glob(TRAIN)), self.schema, self.size).to(self.device)

    @property
    def training(self) -> Labeled:
        """Renders to train on: all but the last `VALIDATION`."""
        return self._train_shards[:-VALIDATION]

    @property
    def validation(self) -> Labeled:
        """The last training renders: they choose the settings of every row."""
        return self._train_shards[-VALIDATION:]

    def some_renders(self, count: int, seed: int) -> Labeled:
        """Training renders drawn at random; fewer are among those that more draw with the same seed.

        Raises:
            ValueError: there are not that many.
        """
        if count > self.training.count:
            raise ValueError(f"{self.domain} has {self.training.count} renders to train on, {count} are needed")
        order = torch.randperm(self.training.count, generator=torch.Generator().manual_seed(seed))
        return self.training[order[:count]]

    @cached_property
    def test(self) -> Labeled:
        """The test renders. Nothing but the final measurement of a row may ask for them."""
        return read_renders(sorted(self.domain.glob(TEST)), self.schema, self.size)

    @cached_property
    def annotated_images(self) -> Labeled:
        """The 16 annotated samples as training data."""
        annotated = self.annotated(ANNOTATED)
        images, _ = synthesize(self.labeled.generator, self.labeled.recipe, annotated.latents)
        return Labeled(*resized(images, annotated.masks.to(self.device), self.size))

    def annotated(self, count: int) -> AnnotatedImages:
        """The first images of an annotated folder; or images unlike each other, with the masks of the stand-in."""
        assert self.annotator is not None
        if self.annotator.is_dir():
            held = load_annotations(self.annotator, self.labeled.generator)
            if held.schema.classes != self.schema.classes:
                theirs, ours = (", ".join(schema.classes) for schema in (held.schema, self.schema))
                raise ValueError(f"{self.annotator} has the classes {theirs}; the checkpoint has {ours}")
            if len(held.annotated.masks) < count:
                raise ValueError(f"{self.annotator} holds {len(held.annotated.masks)} annotated images, not {count}")
            return AnnotatedImages(held.annotated.latents[:count], held.annotated.masks[:count])
        return self._annotate(range(CANDIDATES * count), count)

    def _annotate(self, draws: range, count: int, unsure: Any = None) -> AnnotatedImages:
        """Images unlike each other among some draws, with the masks of the stand-in; given a first interpreter, those
        that it is unsure about, as ``dsgan annotate export --select informative`` chooses them."""
        generator, recipe = self.labeled.generator, self.labeled.recipe
        latents = sample_latents(draws, generator.z_dim, seed=0, purpose=Purpose.ANNOTATION)
        points, scores = [], []
        for part in latents.split(32):
            _, features = synthesize(generator, recipe, part)
            points.append(pooled_features(features))
            if unsure is not None:
                scores.append(unsure.predict(features, Frame(recipe.frame_size(generator.img_size))).uncertainty_score)
        chosen = latents[diverse(torch.cat(points), count, torch.cat(scores) if scores else None)]
        images, _ = synthesize(generator, recipe, chosen)
        return AnnotatedImages(chosen, self.annotator_network.annotate(images))

    @cached_property
    def annotator_network(self) -> Any:
        """The stand-in itself (`annotator.Annotator`), which labels any number of images.

        Raises:
            ValueError: a person annotated a folder; or it knows other classes than the checkpoint, or another size.
        """
        if self.annotator is None or self.annotator.is_dir():
            raise ValueError(
                "these rows need a network that labels thousands of images: --annotator WEIGHTS, no folder"
            )
        from annotator import load_annotator  # on the path since `data`

        network, size = load_annotator(self.annotator), self.labeled.image_size
        if size != (network.resolution, network.resolution):
            raise ValueError(
                f"{self.annotator} labels images of {network.resolution}², the checkpoint makes {size[0]}×{size[1]}: "
                "train one with train_annotator.py --resolution"
            )
        if self.schema.classes != network.classes:
            theirs, ours = (", ".join(classes) for classes in (network.classes, self.schema.classes))
            raise ValueError(f"{self.annotator} knows the classes {theirs}; the checkpoint has {ours}")
        return network.to(self.device)

    @cached_property
    def annotator_facts(self) -> dict[str, Any]:
        """Of a network: the hash of its weights, and what its training reported. Of a folder: its name."""
        assert self.annotator is not None
        if self.annotator.is_dir():
            return {"folder": self.annotator.name}
        from annotator import report_path  # on the path since `data`

        path = report_path(self.annotator)
        report: dict[str, Any] = (
            read_json(path, (), "delete it, or train the annotator again") if path.is_file() else {}
        )
        kept: dict[str, Any] = {name: report[name] for name in ("val_mean_iou", "training") if name in report}
        return {"sha256": hashlib.sha256(self.annotator.read_bytes()).hexdigest(), **kept}

    @cached_property
    def reannotated(self) -> Labeled:
        """The training renders with the masks of who annotates."""
        masks = self.annotator_network.annotate(self.training.images)
        return Labeled(self.training.images, masks.to(torch.uint8))

    @cached_property
    def clusters(self) -> LabeledGenerator:
        """Named after the 16 annotated samples."""
        return clustered(self.labeled, self.annotated(ANNOTATED))

    @cached_property
    def filtered(self) -> LabeledGenerator:
        """The checkpoint with its filter. Other labels than masks are not made, unless the filter asks for them."""
        labeled = self.labeled
        if len(labeled.targets) == 1 or labeled.recipe.scores:
            return labeled
        labeler = InterpretedLabeler(labeled.generator, [labeled.interpreter], [labeled.schema])
        return LabeledGenerator(labeler, labeled.recipe, calibration=labeled.calibration)

    @cached_property
    def unfiltered(self) -> LabeledGenerator:
        """The same without its filter."""
        return LabeledGenerator(self.filtered.labeler, self.filtered.recipe.override(reject_fraction=0.0))

    @cached_property
    def one_member(self) -> LabeledGenerator:
        """The first pixel classifier alone; one member is never uncertain, so there is no filter."""
        every = self.labeled.interpreter
        if not isinstance(every, PixelEnsemble):
            raise ValueError(f"one-member takes a checkpoint with pixel classifiers, not {every.architecture}")
        weights = {name: w[:, :1] if name == "w1" else w[:1] for name, w in every.state_dict().items()}
        single = PixelEnsemble(weights, layout=every.layout, channels=every.channels).to(self.device)
        return self._unfiltered_with(single)

    @cached_property
    def more_annotations(self) -> LabeledGenerator:
        """An interpreter of 30 annotated samples, of the checkpoint's architecture and filtered like it."""
        architecture = self.labeled.interpreter.architecture
        return self._filtered(self._fit(self.annotated(MORE_ANNOTATED), architecture).interpreter)

    @cached_property
    def taught(self) -> tuple[LabeledGenerator, dict[str, Any]]:
        """An interpreter of the 16 renders of `few-real`, inverted, filtered like the checkpoint; how well they were
        found."""
        labeled = self.unfiltered
        shards = sorted(self.domain.glob(TRAIN))[:1]
        renders = read_renders(shards, self.schema, labeled.image_size[0])[:ANNOTATED]
        photos = as_photos([f"{row:03d}" for row in range(ANNOTATED)], renders.images)
        found = invert_photos(Inverter(labeled.generator, labeled.recipe), photos)
        interpreter, facts = taught(labeled, renders, found)
        return self._filtered(interpreter), facts

    def _filtered(self, interpreter: Interpreter) -> LabeledGenerator:
        """Another interpreter of the same classes, filtered like the checkpoint."""
        return calibrate(self._unfiltered_with(interpreter), reject_fraction=self.labeled.recipe.reject_fraction)

    def _unfiltered_with(self, interpreter: Interpreter) -> LabeledGenerator:
        """The checkpoint with another interpreter of its masks, and no other label."""
        labeled = self.unfiltered
        labeler = InterpretedLabeler(labeled.generator, [interpreter], [labeled.schema])
        return LabeledGenerator(labeler, labeled.recipe)

    def fitted_as(self, architecture: str, count: int = ANNOTATED, *, rounds: int = 1) -> LabeledGenerator:
        """An interpreter of annotated samples, of another architecture or the same, without a filter.

        Args:
            architecture: of the interpreter.
            count: annotated samples.
            rounds: 1, or 2: the second half is what an interpreter of the first one is unsure about.
        """
        key = (architecture, count, rounds)
        if key not in self._fitted:
            annotated = self.annotated(count) if rounds == 1 else self._two_rounds(architecture, count)
            self._fitted[key] = self._fit(annotated, architecture)
        return self._fitted[key]

    def _fit(self, annotated: AnnotatedImages, architecture: str) -> LabeledGenerator:
        labeled = self.unfiltered
        fitted = fit_interpreter(
            labeled.generator, annotated, self.schema, recipe=labeled.recipe, architecture=architecture
        )
        return self._unfiltered_with(fitted)

    def _two_rounds(self, architecture: str, count: int) -> AnnotatedImages:
        """Half of the images unlike each other, half those that an interpreter of the first half is unsure about."""
        first = self.annotated(count // 2)
        draws = range(CANDIDATES * count, (CANDIDATES + INFORMATIVE_CANDIDATES) * count)
        second = self._annotate(draws, count - count // 2, self._fit(first, architecture).interpreter)
        both = ((first.latents, second.latents), (first.masks, second.masks))
        return AnnotatedImages(*(torch.cat(pair) for pair in both))


def resized(images: Tensor, masks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Generated samples at the students' size: bilinear images, nearest masks."""
    if images.shape[2:] == (size, size):
        return images, masks
    smooth = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return smooth.round().clamp(0, 255).to(torch.uint8), resized_masks(masks, size)


def resized_masks(masks: Tensor, size: int) -> Tensor:
    """Masks of another size, nearest; soft ones bilinear."""
    if masks.is_floating_point():
        return F.interpolate(masks, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(masks[:, None].float(), size=(size, size), mode="nearest-exact")[:, 0].long()


def drawn(data: Labeled, batch_size: int, seed: int) -> Samples:
    """Random batches without end, each image as often as any other."""
    random = torch.Generator().manual_seed(seed)
    order: Iterator[int] = iter(())
    while True:
        rows: list[int] = []
        while len(rows) < batch_size:
            if (row := next(order, None)) is None:
                order = iter(torch.randperm(data.count, generator=random).tolist())
            else:
                rows.append(row)
        yield data.images[rows], data.masks[rows]


def _labeled(data: Callable[[Sources], Labeled]) -> Batches:
    def batches(sources: Sources, seed: int) -> Iterator[Batch]:
        return (Batch(*pair) for pair in drawn(data(sources), sources.batch_size, seed))

    return batches


def exact(count: int) -> Row:
    """A number of renders with exact masks, other ones for each seed: which of them are labeled is chance too."""

    def batches(sources: Sources, seed: int) -> Iterator[Batch]:
        return (Batch(*pair) for pair in drawn(sources.some_renders(count, seed), sources.batch_size, seed))

    return Row(f"{count} renders with exact masks, drawn at random", batches, checkpoint=False)


def _with_unlabeled(labeled: Batches) -> Batches:
    def batches(sources: Sources, seed: int) -> Iterator[Batch]:
        unlabeled = drawn(sources.training, sources.batch_size, seed + 1)
        for batch, (images, _) in zip(labeled(sources, seed), unlabeled, strict=True):
            yield batch._replace(unlabeled=images)

    return batches


def _generated(make: Callable[[Sources, int, int], Samples]) -> Batches:
    """`make`: sources, seed, batch size -> generated batches."""

    def batches(sources: Sources, seed: int) -> Iterator[Batch]:
        fresh = max(1, sources.batch_size // sources.uses)
        for image, mask in reused(make(sources, seed, fresh), sources.batch_size, sources.uses, seed):
            if not mask.is_floating_point():
                mask = torch.where(mask == sources.schema.ignore_index, IGNORE, mask)
            yield Batch(*resized(image, mask, sources.size))

    return batches


def _stream(labeled: Callable[[Sources], LabeledGenerator]) -> Batches:
    def make(sources: Sources, seed: int, fresh: int) -> Samples:
        dataset = DSGANIterableDataset(labeled(sources), seed=seed, batch_size=fresh)
        return ((batch.image, batch.mask) for batch in dataset.batches())

    return _generated(make)


def _ignoring(labeled: Callable[[Sources], LabeledGenerator]) -> Batches:
    """Nothing is dropped but the most uncertain pixels."""
    return _stream(lambda sources: calibrate(labeled(sources), reject_fraction=0.0, ignore_fraction=IGNORED_SHARE))


def _soft(labeled: Callable[[Sources], LabeledGenerator]) -> Batches:
    """Masks are the probabilities of the classes."""

    def make(sources: Sources, seed: int, fresh: int) -> Samples:
        dataset = DSGANIterableDataset(labeled(sources), seed=seed, batch_size=fresh, extras=("probabilities",))
        return ((batch.image, batch.probabilities.float()) for batch in dataset.batches())

    return _generated(make)


def _annotating(sources: Sources, seed: int, fresh: int) -> Samples:
    """The stream's images, the annotator's masks."""
    dataset = DSGANIterableDataset(sources.unfiltered, seed=seed, batch_size=fresh)
    return ((batch.image, sources.annotator_network.annotate(batch.image)) for batch in dataset.batches())


def _fitted_as(architecture: str, count: int = ANNOTATED, *, rounds: int = 1) -> Callable[[Sources], LabeledGenerator]:
    return lambda sources: sources.fitted_as(architecture, count, rounds=rounds)


def _of_neighbors(what: str, batches: Batches) -> Row:
    return Row(f"generated images, {what}", batches, annotator=True)


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        title: what the table says; {renders} is the number of training renders.
        batches: sources, seed -> what the student sees.
        objective: (classes, steps, device) -> what it minimizes.
        annotator: whether annotated samples have to be made.
        checkpoint: whether it sees generated samples; others stay true when the checkpoint changes.
        facts: what else is to be known of it, kept in its cells.
    """

    title: str
    batches: Batches
    objective: Callable[[int, int, str], Objective] = Supervised
    annotator: bool = False
    checkpoint: bool = True
    facts: Callable[[Sources], dict[str, Any]] | None = None


#: Labeled renders -> their row: what the stream is compared with, to say how many labels it is worth.
CURVE = {count: f"exact-{count}" for count in (16, 30, 64, 128, 256)}
ROWS = {
    "few": Row("few labels: 16 annotated samples", _labeled(lambda s: s.annotated_images), annotator=True),
    "few-real": Row(
        "few labels: 16 renders with exact masks", _labeled(lambda s: s.training[:ANNOTATED]), checkpoint=False
    ),
    "semi": Row(
        "semi-supervised (s4GAN): 16 annotated samples, {renders} unlabeled renders",
        _with_unlabeled(_labeled(lambda s: s.annotated_images)),
        S4GANWithMLMT,
        annotator=True,
    ),
    "semi-real": Row(
        "semi-supervised (s4GAN): 16 renders with exact masks, {renders} unlabeled renders",
        _with_unlabeled(_labeled(lambda s: s.training[:ANNOTATED])),
        S4GANWithMLMT,
        checkpoint=False,
    ),
    "clusters": Row(
        "unsupervised: k-means of generator features, clusters named after 16 annotated samples",
        _stream(lambda s: s.clusters),
        annotator=True,
    ),
    "ours": Row("ours: stream of generated samples, 16 annotations, filter on", _stream(lambda s: s.filtered)),
    "ours-semi": Row(
        "ours, and {renders} unlabeled renders (s4GAN)", _with_unlabeled(_stream(lambda s: s.filtered)), S4GANWithMLMT
    ),
    "no-filter": Row("ours, filter off", _stream(lambda s: s.unfiltered)),
    "ignore": Row("ours, uncertain pixels ignored instead of samples dropped", _ignoring(lambda s: s.unfiltered)),
    "soft": Row("ours, filter off, soft labels: probabilities instead of masks", _soft(lambda s: s.unfiltered)),
    "one-member": Row("ours, 1 pixel classifier (no filter)", _stream(lambda s: s.one_member)),
    "annotations-30": Row("ours, 30 annotations", _stream(lambda s: s.more_annotations), annotator=True),
    "photos": Row(
        "stream of generated samples, interpreter of 16 inverted renders with exact masks, filter on",
        _stream(lambda s: s.taught[0]),
        facts=lambda s: s.taught[1],
    ),
    **{name: exact(count) for count, name in CURVE.items()},
    "full-1000": Row(
        "full supervision: 1,000 renders with exact masks", _labeled(lambda s: s.training[:1000]), checkpoint=False
    ),
    "full": Row(
        "full supervision: {renders} renders with exact masks", _labeled(lambda s: s.training), checkpoint=False
    ),
}
#: From full supervision to the stream, one difference at a time: what each costs a student.
GAPS = {
    "full": Row("renders, exact masks", ROWS["full"].batches),
    "renders-annotated": Row("renders, masks of who annotates", _labeled(lambda s: s.reannotated), annotator=True),
    "generated-annotated": Row("generated images, masks of who annotates", _generated(_annotating), annotator=True),
    "no-filter": Row("generated images, masks of the interpreter", ROWS["no-filter"].batches),
    "ours": Row("the same, filter on: the stream", ROWS["ours"].batches),
    "soft": Row("generated images, probabilities of the interpreter", ROWS["soft"].batches),
    **{
        name: Row(f"generated images, masks of {title} fitted to 16 of them", _stream(_fitted_as(name)), annotator=True)
        for name, title in (("pixel_ensemble", "pixel classifiers"), ("convolutional", "a convolutional interpreter"))
    },
    "convolutional-soft": _of_neighbors("probabilities of the convolutional interpreter", _soft(_fitted_as(NEIGHBORS))),
    "convolutional-ignore": _of_neighbors(
        "masks of the convolutional interpreter, uncertain pixels ignored", _ignoring(_fitted_as(NEIGHBORS))
    ),
    "convolutional-two-rounds": _of_neighbors(
        "masks of a convolutional interpreter, the second eight chosen by a first one",
        _stream(_fitted_as(NEIGHBORS, rounds=2)),
    ),
    **{
        f"convolutional-{count}": _of_neighbors(
            f"masks of a convolutional interpreter fitted to {count} of them", _stream(_fitted_as(NEIGHBORS, count))
        )
        for count in (MORE_ANNOTATED, MANY_ANNOTATED)
    },
}
#: The small configuration, for two CPU cores.
SMALL = ("few", "semi", "clusters", "ours", "full")
