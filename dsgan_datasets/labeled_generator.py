"""indices -> samples: the one place where latents, labeler and filter meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.acceleration import Function, capture_graph
from dsgan_datasets.acceptance import remembered
from dsgan_datasets.checkpoints.calibration_report import Calibration
from dsgan_datasets.checkpoints.card import PICTURES
from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.checks import integer, names
from dsgan_datasets.device import Device, check_precision, resolve_device
from dsgan_datasets.exits import closed_at_exit
from dsgan_datasets.filtering import Acceptance, accepts
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import style_vectors
from dsgan_datasets.labelers.base import Labeler
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.latents import MAX_INDEX, Latents, Purpose, as_indices, check_index, check_seed, draw_latents
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe, RecipeOverrides
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.scheduling import accepted_samples
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import as_groups, schema_of

#: Fields of a sample that are only made when asked for.
EXTRAS = ("uncertainty", "latent", "probabilities")
#: Extras by the names that they had before.
_RENAMED_EXTRAS = {"js": "uncertainty"}

#: What tells a labeler from, say, a generator.
_LABELER = ("generator", "targets", "label", "parts")

#: Draws that tell the acceptance rate of a filter whose calibration did not store it.
_ESTIMATE_DRAWS = 256


class LabeledGenerator:
    """Generates labeled samples; a sample depends on (weights, recipe, seed, index) and on nothing else.

    A `SampleSource` without end.

    Args:
        labeler: makes images and labels; such as ``InterpretedLabeler(generator, interpreter, [schema])``.
        recipe: everything else that decides a sample.
        calibration: what `calibrate` measured for this recipe; saves measuring the acceptance rate again.
        license: license of the checkpoint, passed on to what is made with it; None is that of the generator.
        fit: how the interpreter was fitted, kept with the checkpoint.
        more: sections of config.json that this version does not know, kept with the checkpoint.

    Raises:
        ValueError: parts or recipe do not fit together.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> batch = labeled.generate([0, 1, 2], seed=0)
        >>> batch.image.shape, batch.mask.shape
        (torch.Size([3, 3, 64, 64]), torch.Size([3, 64, 64]))
    """

    def __init__(
        self,
        labeler: Labeler,
        recipe: Recipe,
        *old_form: Any,
        calibration: Calibration | None = None,
        license: str | None = None,
        fit: FitReport | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        if old_form:  # (generator, interpreter, schema, recipe)
            warn_renamed(
                "LabeledGenerator(generator, interpreter, schema, recipe)",
                "LabeledGenerator(InterpretedLabeler(generator, interpreter, [schema]), recipe)",
            )
            generator, interpreter, (schema, recipe) = labeler, recipe, old_form
            labeler = InterpretedLabeler(generator, interpreter, [schema])  # type: ignore[arg-type]
        if not isinstance(recipe, Recipe) or any(not hasattr(labeler, member) for member in _LABELER):
            raise ValueError(
                "expected a labeler and a Recipe, such as LabeledGenerator(InterpretedLabeler(generator, interpreter, "
                f"[schema]), Recipe()), got {type(labeler).__name__} and {type(recipe).__name__}"
            )
        self.labeler = labeler
        self.recipe = recipe
        self.calibration = calibration
        provenance = labeler.generator.provenance
        self.license = license or (provenance.license if provenance else "unspecified")
        self.fit = fit
        self.more = dict(more or {})
        labeler.check(recipe)
        check_precision(labeler.device, recipe.torch_dtype)
        self._graph: Function | None = None

    def __repr__(self) -> str:
        size = "×".join(map(str, self.image_size))
        kind, labels = type(self.generator).__name__, ", ".join(target.field for target in self.targets)
        return f"LabeledGenerator({kind}, {size}, {labels}, {self.fingerprint[:8]})"

    @property
    def generator(self) -> FeatureGenerator:
        """The generator of the labeler."""
        return self.labeler.generator

    @property
    def interpreter(self) -> Any:
        """The interpreter of the labeler; AttributeError if its generator makes the labels itself."""
        return self.labeler.interpreter  # type: ignore[attr-defined]

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the labels mean."""
        return self.labeler.targets

    @property
    def schema(self) -> Any:
        """The `LabelSchema` of the masks; ValueError if there are none."""
        return schema_of(self.targets)

    @property
    def device(self) -> torch.device:
        """Where samples are computed and where images and labels stay."""
        return self.labeler.device

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and labels."""
        return self.recipe.image_size(self.generator.img_size)

    @property
    def group(self) -> int:
        """Samples of a view group, which are made as a whole."""
        return self.recipe.sampling.group_size

    @property
    def block(self) -> int:
        """Samples that cost together no more than one of them: a GPU computes whole batches."""
        return 1 if self.device.type == "cpu" else self.recipe.rendering.compute_batch

    @property
    def num_samples(self) -> None:
        """None: there is no end."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a sample besides seed and index: equal prints, equal samples."""
        return self._checkpoint.fingerprint

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 (hex) of the tensors of each part ("generator", "interpreter")."""
        return {stem: digest_tensors(part.tensors) for stem, part in self.labeler.parts().items()}

    @property
    def _checkpoint(self) -> Checkpoint:
        provenance = self.generator.provenance
        return Checkpoint(
            labeler_kind=self.labeler.kind,
            parts={stem: part.config for stem, part in self.labeler.parts().items()},
            weights=self.weights,
            targets=self.targets,
            recipe=self.recipe,
            calibration=self.calibration,
            license=self.license,
            provenance=provenance.to_dict() if provenance else None,
            fit=self.fit,
            more=self.more,
        )

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of the checkpoint."""
        return self._checkpoint.to_dict()

    def generate(
        self,
        indices: Tensor | Sequence[int] | range,
        *,
        seed: int = 0,
        attempts: int | Tensor | Sequence[int] | None = None,
        extras: Collection[str] = (),
        purpose: Purpose = Purpose.DATASET,
    ) -> SampleBatch:
        """The samples of some indices, in the order asked for.

        A draw that the filter rejects is replaced by the next draw of the same index, so every index gives a sample.

        Args:
            indices: N integers in 0 … 2^63-1.
            seed: 0 … 2^64-1; another seed is another dataset.
            attempts: replay exactly these draws, without the filter; one number for all, or one for each index. This is
                how a recorded sample is reproduced elsewhere.
            extras: further fields of the batch: "uncertainty" (per pixel, if the labeler has it), "latent" (z),
                "probabilities" (of each class of the mask, if the labeler has them).
            purpose: which family of draws; ``Purpose.ANNOTATION`` shows what `export_annotations` would write.

        Raises:
            ValueError: indices, seed or attempts out of range, the filter has no threshold yet, or it accepts less than
                2 % of the draws (the message names the rate of each rule).
            RuntimeError: an index found no accepted draw (probability below 1e-12 if the acceptance rate is right).
        """
        flat = as_indices(indices)
        first = _as_attempts(0 if attempts is None else attempts, len(flat))
        draws = zip(flat.tolist(), first.tolist(), strict=True)
        samples = list(self._stream(draws, seed, filtered=attempts is None, extras=extras, purpose=purpose))
        return SampleBatch.stack(samples) if samples else self._empty(extras)

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """`generate`, as any `SampleSource` has it."""
        return self.generate(indices, seed=seed, extras=extras)

    def stream(
        self,
        indices: Iterable[int],
        *,
        seed: int = 0,
        attempts: Iterable[int] | None = None,
        extras: Collection[str] = (),
    ) -> Iterator[Sample]:
        """The samples of some indices one by one, in order; the samples are those of `generate`.

        Indices (and attempts, one for each index, if draws are to be replayed) are taken from the iterable a little
        ahead of the samples: the places of rejected draws are filled with draws of later indices, so that no part of a
        compute batch is wasted.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
            >>> next(labeled.stream(itertools.count())).index
            tensor(0)
        """
        checked = map(check_index, indices)
        draws = ((i, 0) for i in checked) if attempts is None else zip(checked, map(_attempt, attempts), strict=True)
        return closed_at_exit(self._stream(draws, seed, filtered=attempts is None, extras=extras))

    @torch.no_grad()
    def _stream(
        self,
        draws: Iterable[tuple[int, int]],
        seed: int,
        *,
        filtered: bool,
        extras: Collection[str],
        purpose: Purpose = Purpose.DATASET,
    ) -> Generator[Sample]:
        """Samples of (index, attempt) pairs, in order; rejected ones are drawn again if `filtered`."""
        seed, wanted = check_seed(seed), self._checked_extras(extras)
        filtered = filtered and self._is_filtered()
        filter = self.recipe.filter if filtered else None

        def draw(indices: Tensor, attempts: Tensor) -> Callable[[], tuple[dict[str, Tensor], Tensor]]:
            wait = self._start(indices, attempts, seed, purpose, wanted)

            def finish() -> tuple[dict[str, Tensor], Tensor]:
                drawn = wait()
                made = {*EXTRAS, *self._maps_of_others}
                fields = {name: value for name, value in drawn.items() if name not in made or name in wanted}
                return fields, accepts(filter, self.targets, drawn)

            return finish

        yield from accepted_samples(
            draws,
            draw,
            compute_batch=self.recipe.compute_batch,
            group_size=self.recipe.group_size if filtered else 1,
            attempt_limit=lambda: self._acceptance.attempt_limit,
            overlap=self.device.type == "cuda",
        )

    def _checked_extras(self, extras: Collection[str]) -> set[str]:
        wanted = set()
        for name in names("extras", [extras] if isinstance(extras, str) else extras):
            if name in _RENAMED_EXTRAS:
                warn_renamed(f"the extra {name!r}", repr(_RENAMED_EXTRAS[name]), stacklevel=3)
            wanted.add(_RENAMED_EXTRAS.get(name, name))
        known = (*EXTRAS, *self._maps_of_others)
        if unknown := wanted - set(known):
            raise ValueError(f"extras are {', '.join(known)}, not {', '.join(sorted(map(repr, unknown)))}")
        if "uncertainty" in wanted and not self.labeler.has_uncertainty:
            raise ValueError("this source of labels does not know how certain it is: leave out the extra 'uncertainty'")
        if "probabilities" in wanted and not self.labeler.has_probabilities:
            raise ValueError(
                "this source of labels has no probabilities of classes: leave out the extra 'probabilities'"
            )
        return wanted

    @property
    def _maps_of_others(self) -> list[str]:
        """Extras that only a labeler of several labels has: the uncertainty of each but the first."""
        names = [score.removesuffix("_score") for score in self.labeler.scores.values()]
        return [name for name in names if name != "uncertainty"]

    def _empty(self, extras: Collection[str]) -> SampleBatch:
        """A batch of no samples."""
        sample = next(self._stream([(0, 0)], 0, filtered=False, extras=extras))
        return SampleBatch({name: value.new_empty(0, *value.shape) for name, value in sample.items()})

    def _start(
        self, indices: Tensor, attempts: Tensor, seed: int, purpose: Purpose, extras: Collection[str] = ()
    ) -> Callable[[], dict[str, Tensor]]:
        """Begin up to compute_batch draws; what is returned waits for their scores, and gives all fields, unfiltered.

        No draw depends on which others are asked for.
        """
        latents = draw_latents(self.recipe, self.generator.z_dim, indices, seed=seed, attempt=attempts, purpose=purpose)
        if self.device.type == "cpu":
            alone = [latents[i : i + 1] for i in range(len(latents))]
            rows = parallel_map(lambda one: self._compute(one, extras), alone, self.device)
            fields = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        else:
            # The last bits of a convolution depend on its batch size: it is always the same, filled up if need be.
            padding = torch.arange(self.recipe.compute_batch, device="cpu").clamp(max=len(indices) - 1)
            fields = {name: value[: len(indices)] for name, value in self._compute(latents[padding], extras).items()}
        fields |= {"index": indices, "attempt": attempts, "latent": latents.z}
        if latents.class_label is not None:
            fields["class_label"] = latents.class_label
        copied: torch.cuda.Event | None = None
        scored = [name for name in self.labeler.scores.values() if name in fields]
        if self.device.type == "cuda" and scored:
            # Copied right after the batch, in front of whatever is enqueued next.
            fields |= {name: fields[name].to("cpu", non_blocking=True) for name in scored}
            copied = torch.cuda.current_stream(self.device).record_event()

        def wait() -> dict[str, Tensor]:
            if copied is not None:  # the one time that the host waits for a GPU
                copied.synchronize()
            return {**fields, **{name: fields[name].cpu() for name in scored}}

        return wait

    def _compute(self, latents: Latents, extras: Collection[str]) -> dict[str, Tensor]:
        """Image, labels, uncertainty and what else is asked for of latents."""
        if self.recipe.rendering.compile and self.device.type != "cuda":
            raise ValueError(f"compile=True needs a CUDA device, this is {self.device}: use compile=False")
        ws = style_vectors(self.generator, self.recipe, latents)
        try:
            if "probabilities" in extras:  # which a captured graph does not make
                return self.labeler.label(ws, self.recipe, extras)
            return dict((self._graph or self._label)(ws))
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(self._out_of_memory(latents)) from error

    def _out_of_memory(self, latents: Latents) -> str:
        """What to do; smaller batches are tried for it."""
        self._graph = None  # it holds memory
        tried, group = len(latents), self.recipe.group_size
        message = f"the memory of {self.device} is not enough for compute_batch={tried}"
        while (tried := tried // 2 // group * group) >= group:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                self._label(style_vectors(self.generator, self.recipe, latents[:tried]))
            except torch.OutOfMemoryError:
                continue
            return (
                f"{message}, but it is for {tried}: pass compute_batch={tried} (it is part of the recipe, as last bits "
                "depend on it on a GPU), or leave it more memory"
            )
        return (
            f"{message}, nor for any smaller one: leave it more memory, or choose dtype='float16' or a smaller size, "
            "or device='cpu'"
        )

    def _label(self, ws: Tensor) -> dict[str, Tensor]:
        return self.labeler.label(ws, self.recipe)

    def _is_filtered(self) -> bool:
        if self.recipe.needs_calibration:
            raise ValueError(
                f"the recipe rejects {_rejected(self.recipe)} of the draws, but has no threshold: it was "
                "changed, which drops the calibrated one. Run calibrate(...) (`dsgan calibrate`), or pass threshold=… "
                "in nats, or reject_fraction=0 (`--no-filter`) to accept every draw"
            )
        if self.recipe.is_filtered:
            self._acceptance.check()
        return self.recipe.is_filtered

    @cached_property
    def _acceptance(self) -> Acceptance:
        """How often draws pass the filter: as calibrated, or measured once and remembered."""
        if self.calibration is not None:
            return Acceptance(self.calibration.num_samples // self.recipe.group_size, self.calibration.acceptance, {})

        def measure() -> Acceptance:
            drawn = self.unfiltered(
                max(_ESTIMATE_DRAWS, 32 * self.recipe.group_size), description="measuring the acceptance rate"
            )
            return Acceptance.measure(self.recipe, self.targets, drawn)

        return remembered(self.fingerprint, measure)

    @torch.no_grad()
    def unfiltered(self, num_draws: int, *, seed: int = 0, description: str = "drawing") -> Iterator[dict[str, Tensor]]:
        """Fields of draws that the filter has not seen, batch by batch, from the calibration's own family of latents.

        Shows a progress bar if it takes more than two seconds.
        """
        batches = range(0, num_draws, self.recipe.compute_batch)
        for start in tqdm(batches, description, unit="batch", delay=2, leave=False):
            indices = torch.arange(start, min(start + self.recipe.compute_batch, num_draws), device="cpu")
            yield self._start(indices, torch.zeros_like(indices), seed, Purpose.CALIBRATION)()

    @torch.no_grad()
    def capture_graph(self) -> LabeledGenerator:
        """Compute a batch as one CUDA graph from now on: a GPU need not wait for the host to name each operation.

        Samples stay the same, bit for bit. Where it fails there is a RuntimeWarning, and they are computed as before;
        so they are, without a warning, once weights were moved or changed.

        Returns:
            The labeled generator itself.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces").capture_graph()  # doctest: +SKIP
        """
        ws = torch.zeros(self.recipe.compute_batch, self.generator.num_ws, self.generator.w_dim, device=self.device)
        parts = self.generator, *getattr(self.labeler, "interpreters", ())
        self._graph = capture_graph(self._label, ws, [part for part in parts if isinstance(part, nn.Module)])
        return self

    def accelerate(self, *, compile: bool = False) -> LabeledGenerator:
        """Old name of `capture_graph`; ``compile=True`` sets the recipe's `compile`, which changes the fingerprint."""
        warn_renamed("accelerate()", "capture_graph()" + " with the recipe's compile=True" * compile)
        if compile and not self.recipe.rendering.compile:
            self.recipe = self.recipe.replace(compile=True)
            self.__dict__.pop("fingerprint", None)
        return self.capture_graph()

    def to(self, device: torch.device | str) -> LabeledGenerator:
        """Move everything to a device; a captured graph is dropped. Returns the labeled generator itself.

        Raises:
            ValueError: not a device that is there; the message names what there is.

        Example:
            >>> LabeledGenerator.from_pretrained("demo-faces", device="cpu").to("cpu").device
            device(type='cpu')
        """
        resolved = resolve_device(device)  # `nn.Module.to` would also take a dtype, which the recipe decides
        self._graph = None
        self.labeler = self.labeler.to(resolved)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without a captured graph, which belongs to this process."""
        return {**self.__dict__, "_graph": None}

    def with_recipe(self, recipe: Recipe, calibration: Calibration | None = None) -> LabeledGenerator:
        """The same labeler with another recipe, and what was measured for that one; ValueError if they do not fit."""
        return LabeledGenerator(
            self.labeler, recipe, calibration=calibration, license=self.license, fit=self.fit, more=self.more
        )

    def merge_classes(self, groups: Mapping[str, Iterable[str]]) -> LabeledGenerator:
        """The same labels in coarser classes; the labeler still predicts the fine ones.

        The uncertainty filter stays; rules on classes are dropped, as they count the old ones.

        Args:
            groups: new class name -> names of the classes that it replaces. Classes in no group stay as they are.

        Raises:
            ValueError: an unknown class, or one that is in two groups.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
            >>> labeled.merge_classes({"face": ["skin", "nose", "eye"]}).schema.num_classes
            10
        """
        groups = as_groups(groups)
        coarse, step = self.schema.merge(groups), self.schema.class_map_to(groups)
        before = self.recipe.labeling.class_map or tuple(range(self.schema.num_classes))
        recipe = self.recipe.override(class_map=tuple(step[i] for i in before), require=())
        targets = [coarse if target.field == "mask" else target for target in self.targets]
        same_filter = recipe.filter == self.recipe.filter
        return LabeledGenerator(
            self.labeler.with_targets(targets),
            recipe,
            calibration=self.calibration if same_filter else None,
            license=self.license,
            fit=self.fit,
            more=self.more,
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, device: Device = None, **recipe_overrides: Unpack[RecipeOverrides]
    ) -> LabeledGenerator:
        """Load a checkpoint directory.

        Args:
            name_or_path: a path, the name of a built-in checkpoint ("demo-faces"), or "hf://org/name".
            device: None is the current CUDA device if there is one, else the CPU.
            recipe_overrides: fields of `Recipe` to change (see `RecipeOverrides`); `require` may name classes. A change
                that moves the scores drops the calibrated threshold: calibrate again, or pass ``reject_fraction=0``.

        Raises:
            CheckpointError: files are missing, damaged, or do not belong together.
            ValueError: an override that is unknown or out of range.
        """
        found = Checkpoint.open(name_or_path, **recipe_overrides)
        return cls(
            found.build(device),
            found.recipe,
            calibration=found.calibration,
            license=found.license,
            fit=found.fit,
            more=found.more,
        )

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        card: str | None = None,
        pictures: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write a checkpoint directory; each file appears whole or not at all.

        Args:
            path: the directory; files of the same names in it are replaced.
            card: text of the model card (README.md); left out, one is made from what is known.
            pictures: contents of "preview.png" and "calibration.png", which such a card shows. Those of a checkpoint
                that is replaced are removed.

        Raises:
            CheckpointError: the directory cannot be written.
            ValueError: a card that is not a text, or a picture of another name.
        """
        if card is not None and not isinstance(card, str):
            raise ValueError(f"card must be the text of the model card, got {type(card).__name__}")
        if unknown := set(pictures or ()) - set(PICTURES):
            raise ValueError(f"pictures of a card are {' and '.join(PICTURES)}, not {sorted(unknown)}")
        tensors = {stem: part.tensors for stem, part in self.labeler.parts().items()}
        self._checkpoint.write(path, tensors, card, pictures or {})


def _rejected(recipe: Recipe) -> str:
    """Shares to be dropped, such as "10% (and 5% by keypoints)"."""
    others = [f"{score.reject_fraction:.0%} by {score.field}" for score in recipe.scores]
    return f"{recipe.reject_fraction:.0%}" + (f" (and {', '.join(others)})" if others else "")


def _attempt(attempt: int) -> int:
    return integer("attempts", attempt, 0, MAX_INDEX)


def _as_attempts(attempts: int | Tensor | Sequence[int], count: int) -> Tensor:
    """One attempt number an index, int64 [count]."""
    if not isinstance(attempts, Iterable) or getattr(attempts, "ndim", 1) == 0:
        attempts = [integer("attempts", attempts, 0, MAX_INDEX)] * count
    flat = as_indices(attempts)
    if len(flat) != count:
        raise ValueError(f"attempts must be one number, or one for each of the {count} indices; got {len(flat)}")
    return flat
